//! The document at `/openapi.json` and the daemon agree: schemathesis makes requests of the one, right and
//! wrong ones, and compares the answers of the other with it.

use std::collections::BTreeSet;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::{Value, json};
use skiff_tests::{Baseline, Node, Sandbox, images};

/// What is made at random is made of it.
const SEED: &str = "7";
/// Requests that are made at random of each operation.
const EXAMPLES: &str = "20";

/// A TCP port that leads to a Unix socket, as long as this process lives: schemathesis knows no others.
fn bridge(socket: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let socket = socket.clone();
            // Who is cut off tells so itself.
            thread::spawn(move || drop(pass_on(&client, &socket)));
        }
    });
    port
}

fn pass_on(client: &TcpStream, socket: &Path) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server = UnixStream::connect(socket)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &*client, &mut &server);
            let _ = server.shutdown(Shutdown::Write);
        });
        let _ = io::copy(&mut &server, &mut &*client);
        let _ = client.shutdown(Shutdown::Both);
    });
    Ok(())
}

/// The document with examples of what is there, without which hardly a request would meet a function.
fn with_examples(mut document: Value, sandbox: &Sandbox) -> PathBuf {
    let file = format!("name = \"third\"\nimage = \"{}\"\n", images::oci("function"));
    let paths = &mut document["paths"];
    paths["/v1/functions"]["post"]["requestBody"]["content"]["application/json"]["example"] =
        json!({ "file": file, "name": "third.toml" });
    for path in ["/v1/functions/{name}", "/v1/functions/{name}/logs"] {
        assert_eq!(paths[path]["parameters"][0]["name"], "name");
        paths[path]["parameters"][0]["example"] = "first".into();
    }
    let one = &mut paths["/v1/functions/{name}"];
    let mut name = one["parameters"][0].clone();
    name["example"] = "second".into();
    one["delete"]["parameters"] = json!([name]);
    sandbox.write("openapi.json", document.to_string())
}

/// Runs schemathesis and gives its report: a JSON object in each line.
fn schemathesis(sandbox: &Sandbox, document: &Path, port: u16) -> Vec<Value> {
    let installed = images::target_dir().join("sdk/schemathesis");
    assert!(installed.exists(), "schemathesis is not installed: run scripts/sdks");
    let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/schemathesis.toml");
    let report = sandbox.path().join("report.ndjson");
    let mut command = Command::new(installed.join("bin/st"));
    command.arg("--config-file").arg(settings).arg("run").arg(document);
    command.args(["--url", &format!("http://127.0.0.1:{port}"), "--checks", "all"]);
    command.args(["--seed", SEED, "--max-examples", EXAMPLES, "--no-shrink", "--continue-on-failure"]);
    // Its answer has no end; `node::events_are_told_as_they_happen` looks at it.
    command.args(["--exclude-path", "/v1/events", "--request-timeout", "30"]);
    command.args(["--report", "ndjson", "--report-ndjson-path"]).arg(&report);
    let output = command.current_dir(sandbox.path()).output().expect("started");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    let lines = std::fs::read_to_string(&report).expect("a report");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Operations with the statuses that they answered.
fn answered(report: &[Value]) -> BTreeSet<(String, u64)> {
    let scenarios = report.iter().filter_map(|line| line.get("ScenarioFinished"));
    let recorders = scenarios.map(|scenario| &scenario["recorder"]);
    let of = |recorder: &Value| {
        let label = recorder["label"].as_str().unwrap_or_default().to_owned();
        let exchanges = recorder["interactions"].as_object().cloned().unwrap_or_default();
        let statuses = exchanges.into_iter().filter_map(|(_, one)| one["response"]["status_code"].as_u64());
        statuses.map(|status| (label.clone(), status)).collect::<Vec<_>>()
    };
    recorders.flat_map(of).collect()
}

#[test]
#[allow(clippy::print_stdout, reason = "how much was tried is part of the result")]
fn requests_of_the_document_are_answered_as_it_says() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let node = Node::start(&sandbox, &[]);
    for name in ["first", "second"] {
        let _ = node.deploy(name, "function", "", &[]).ok();
        assert_eq!(node.get(name, "/status/200").status, 200);
    }
    let document = with_examples(node.ask("GET", "/openapi.json", "").ok().json(), &sandbox);
    let report = schemathesis(&sandbox, &document, bridge(node.socket()));
    let answered = answered(&report);
    println!("{answered:?}");
    // It has seen what there is, and what there is not.
    for (operation, status) in [
        ("GET /v1/functions", 200),
        ("POST /v1/functions", 200),
        ("POST /v1/functions", 400),
        ("GET /v1/functions/{name}", 200),
        ("GET /v1/functions/{name}", 404),
        ("DELETE /v1/functions/{name}", 200),
        ("GET /v1/functions/{name}/logs", 200),
        ("GET /v1/functions/{name}/logs", 400),
        ("GET /v1/instances", 200),
        ("GET /metrics", 200),
        ("GET /v1/usage", 200),
        ("GET /v1/usage", 400),
        ("GET /v1/usage/records", 200),
    ] {
        assert!(
            answered.contains(&(operation.to_owned(), status)),
            "no {status} of {operation}: {answered:?}"
        );
    }
    let left = node.ask("GET", "/v1/functions", "").ok().json();
    for function in left["functions"].as_array().expect("a list") {
        let _ = sandbox.run(&["delete", function["name"].as_str().expect("a name")]).ok();
    }
    node.stop();
    baseline.assert_restored();
}

/// The fields of a schema of the document.
fn fields<'a>(document: &'a Value, schema: &str) -> BTreeSet<&'a str> {
    let properties = document["components"]["schemas"][schema]["properties"].as_object();
    properties.unwrap_or_else(|| panic!("no {schema}")).keys().map(String::as_str).collect()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().map(String::as_str).collect()
}

/// A schema lets fields pass that it does not name; these it names all.
#[test]
fn every_field_of_an_answer_is_in_the_document() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    assert_eq!(node.get("demo", "/log?line=hello").status, 200);
    let document = node.ask("GET", "/openapi.json", "").ok().json();
    let function = node.info("demo");
    assert_eq!(keys(&function), fields(&document, "Function"));
    assert_eq!(keys(&function["scaling"]), fields(&document, "Scaling"));
    assert_eq!(keys(&function["instances"]), fields(&document, "Slots"));
    assert_eq!(keys(&function["last_update"]), fields(&document, "LastUpdate"));
    let instances = node.ask("GET", "/v1/instances", "").ok().json();
    assert_eq!(keys(&instances["instances"][0]), fields(&document, "Instance"));
    let usage = node.ask("GET", "/v1/usage", "").ok().json();
    assert_eq!(keys(&usage), fields(&document, "Usage"));
    for (target, schema) in [("/v1/usage/records", "Record"), ("/v1/functions/demo/logs", "LogLine")] {
        let text = node.ask("GET", target, "").ok().text();
        let named = fields(&document, schema);
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            assert!(keys(&line).is_subset(&named), "{schema}: {line}");
        }
        assert!(!text.is_empty(), "nothing at {target}");
    }
    let error = node.ask("GET", "/v1/functions/nobody", "").json();
    let told = document["components"]["schemas"]["Error"]["properties"]["error"]["properties"].clone();
    assert_eq!(keys(&error["error"]), keys(&told));
    node.stop();
}
