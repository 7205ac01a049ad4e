//! Spans of invocations, as a collector of OpenTelemetry takes them: read there with OpenTelemetry's own messages.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_tests::{Node, Sandbox, images, wait_for};

const SOON: Duration = Duration::from_secs(60);

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// Kinds of spans, as OTLP numbers them.
const INTERNAL: u64 = 1;
const SERVER: u64 = 2;
const CLIENT: u64 = 3;

struct Collector {
    child: Child,
    address: String,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    /// One that answers so many requests with status 503 first.
    fn start(refusals: u32) -> Self {
        let python = images::target_dir().join("sdk/python/bin/python");
        assert!(python.exists(), "no {}: run scripts/sdks", python.display());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk/collector.py");
        let mut command = Command::new(python);
        command.args([script, &refusals.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let lines = BufReader::new(child.stdout.take().expect("an output")).lines();
        let mut lines = lines.map(|line| line.expect("a line"));
        let port = lines.next().expect("a port");
        let spans = Arc::<Mutex<Vec<Value>>>::default();
        let noted = Arc::clone(&spans);
        thread::spawn(move || {
            for line in lines {
                noted.lock().expect("a lock").push(serde_json::from_str(&line).expect("JSON"));
            }
        });
        Self { child, address: format!("http://127.0.0.1:{port}"), spans }
    }

    fn all(&self) -> Vec<Value> {
        self.spans.lock().expect("a lock").clone()
    }

    /// The span of a request, and those below it by their beginnings.
    #[track_caller]
    fn of(&self, request: &str) -> (Value, Vec<Value>) {
        let found = wait_for(SOON, || {
            let all = self.all();
            let root = all.iter().find(|span| span["attributes"]["faas.invocation_id"] == request)?.clone();
            let mut below: Vec<Value> = all.into_iter().filter(|span| span["parent"] == root["id"]).collect();
            below.sort_by_key(|span| (span["start"].as_u64(), span["end"].as_u64()));
            Some((root, below))
        });
        found.unwrap_or_else(|| panic!("no span of {request}: {:#?}", self.all()))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Their names, but for a wait for an instance, which also a call may have that finds one.
/// Without those that may be too short to be told, or out of order where the clock was set meanwhile.
fn names(spans: &[Value]) -> Vec<&str> {
    let names = spans.iter().map(|span| span["name"].as_str().expect("a name"));
    names.filter(|name| !["wait", "initialize"].contains(name)).collect()
}

/// A node that exports there, soon.
fn node<'a>(sandbox: &'a Sandbox, options: &[&str], variables: &[(&str, &str)]) -> Node<'a> {
    let mut command = sandbox.skiff(&[&["serve", "--api-listen", "0"], options].concat());
    command.stdin(Stdio::null()).env("OTEL_BSP_SCHEDULE_DELAY", "100");
    command.envs(variables.iter().copied());
    Node::start_by(sandbox, command)
}

fn header(seen: &Value, name: &str) -> Option<String> {
    let pairs = seen.as_array().expect("pairs").iter();
    let mut values =
        pairs.filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().expect("text").to_owned());
    let value = values.next();
    assert_eq!(values.next(), None, "{name} comes twice: {seen}");
    value
}

#[test]
fn an_http_request_has_a_span_between_its_caller_and_the_function() {
    let (sandbox, collector) = (Sandbox::new(), Collector::start(0));
    let options = ["--otlp-endpoint", &collector.address, "--max-instances", "1"];
    let node = node(&sandbox, &options, &[]);
    let _ = node.deploy("other", "function", "", &[]).ok();
    let _ = node.deploy("demo", "function", "", &[]).ok();
    // The call needs an instance: the other function's is the only one that may be.
    let _ = node.get("other", "/status/200").ok();
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let context = [("traceparent", parent.as_str()), ("tracestate", "a=1"), ("tracestate", "b=2")];
    let answer = node.own("demo").request("GET", "/headers", &context, b"").ok();
    let (seen, id) = (answer.json(), answer.header("x-fc-request-id").expect("an id").to_owned());
    let (root, below) = collector.of(&id);
    assert_eq!(
        (&root["trace"], &root["parent"], &root["state"]),
        (&json!(TRACE), &json!(CALLER), &json!("a=1,b=2"))
    );
    assert_eq!(
        (&root["name"], &root["kind"], &root["status"]),
        (&json!("demo"), &json!(SERVER), &json!([0, ""]))
    );
    assert_eq!((&root["path"], &root["scope"]), (&json!("/v1/traces"), &json!("skiff")));
    assert_eq!(root["resource"]["service.name"], "skiff");
    let told = &root["attributes"];
    let expected = json!({
        "faas.name": "demo", "faas.invocation_id": id, "faas.instance": told["faas.instance"],
        "faas.version": "1", "faas.coldstart": true, "faas.trigger": "http", "http.response.status_code": 200,
        "skiff.namespace": "default",
    });
    assert_eq!(told, &expected);
    assert!(told["faas.instance"].as_str().is_some_and(|id| id.starts_with("c-")), "{told}");
    assert_eq!(names(&below), ["rootfs", "network", "spawn", "listen", "invoke"]);
    let invoke = below.last().expect("one");
    assert_eq!((&invoke["kind"], &below[0]["kind"]), (&json!(CLIENT), &json!(INTERNAL)));
    assert!(invoke["start"].as_u64() >= root["start"].as_u64() && invoke["end"] == root["end"], "{invoke}");
    let id = invoke["id"].as_str().expect("an id");
    assert_eq!(header(&seen, "traceparent"), Some(format!("00-{TRACE}-{id}-01")));
    assert_eq!(header(&seen, "tracestate").as_deref(), Some("a=1,b=2"));
    assert!(below.iter().all(|span| span["start"].as_u64() >= root["start"].as_u64()), "{below:#?}");
    // A warm one of a caller who has no trace begins one.
    let answer = node.own("demo").request("GET", "/headers", &[], b"").ok();
    let (root, below) = collector.of(answer.header("x-fc-request-id").expect("an id"));
    assert_eq!((&root["parent"], names(&below)), (&json!(""), vec!["invoke"]));
    assert_eq!((&root["attributes"]["faas.coldstart"], &root["state"]), (&json!(false), &json!("")));
    assert_ne!(root["trace"], TRACE);
    let parent = format!(
        "00-{}-{}-01",
        root["trace"].as_str().expect("text"),
        below.last().expect("one")["id"].as_str().expect("text")
    );
    assert_eq!(header(&answer.json(), "traceparent"), Some(parent));
    assert_eq!(header(&answer.json(), "tracestate"), None);
    node.stop();
}

#[test]
fn events_and_failures_have_spans() {
    let (sandbox, collector) = (Sandbox::new(), Collector::start(0));
    // The other way to name a collector, a name of one's own, and a header that is a secret.
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address.as_str()),
        ("OTEL_SERVICE_NAME", "node-7"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret-of-the-collector"),
    ];
    let node = node(&sandbox, &["--log-level", "trace"], &variables);
    let _ = node.deploy("demo", "function", "timeout = \"3s\"", &[]).ok();
    let told = node.stdout();
    let address = told.lines().find_map(|line| line.split("http://").nth(1)).expect("an address").to_owned();
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let invoke = |event: &Value, more: &[(&str, &str)]| {
        let headers = [&[("traceparent", parent.as_str())], more].concat();
        let mut connection = skiff_tests::http::Connection::tcp(&address).expect("connected");
        let body = event.to_string();
        connection.request("POST", "/2023-03-30/functions/demo/invocations", &headers, body.as_bytes())
    };
    let id =
        |answer: &skiff_tests::http::Response| answer.header("x-fc-request-id").expect("an id").to_owned();
    let answer = invoke(&json!({ "k": 1 }), &[]).ok();
    let (root, below) = collector.of(&id(&answer));
    assert_eq!((&root["trace"], &root["parent"]), (&json!(TRACE), &json!(CALLER)));
    // The deploy has started its instance: no start is told, though it is the first call.
    assert_eq!((names(&below), &root["attributes"]["faas.coldstart"]), (vec!["invoke"], &json!(false)));
    assert_eq!(
        (&root["attributes"]["faas.trigger"], &root["resource"]["service.name"]),
        (&json!("other"), &json!("node-7"))
    );
    assert_eq!(root["authorization"], "Bearer s3cret-of-the-collector");
    let own = below.last().expect("one")["id"].as_str().expect("an id").to_owned();
    assert_eq!(answer.json()["headers"]["traceparent"], format!("00-{TRACE}-{own}-01"));

    // One that takes too long, and one of whose failure the function tells.
    let (root, _) = collector.of(&id(&invoke(&json!({ "sleep_ms": 30000 }), &[])));
    assert_eq!(root["status"][0], 2, "an error: {root}");
    assert_eq!(
        (&root["attributes"]["error.type"], &root["status"][1]),
        (&json!("FunctionTimeoutError"), &json!("FunctionTimeoutError"))
    );
    let (root, _) = collector.of(&id(&invoke(&json!({ "fail": true }), &[])));
    assert_eq!(root["attributes"]["error.type"], "function_error", "{root}");

    // One for later knows who asked for it.
    let later = invoke(&json!({ "k": 2 }), &[("x-fc-invocation-type", "Async")]);
    let (root, _) = collector.of(&id(&later));
    assert_eq!((later.status, &root["parent"]), (202, &json!(CALLER)));

    // A caller whose trace nobody keeps: no span, and the function is told so.
    let before = collector.all().len();
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    let seen = node.own("demo").request("GET", "/headers", &[("traceparent", &unsampled)], b"").ok().json();
    let told = header(&seen, "traceparent").expect("a parent");
    assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-00"), "{told}");
    // What is no context counts as none.
    let odd = [("traceparent", "00-nonsense-01"), ("tracestate", "a=1")];
    let answer = node.own("demo").request("GET", "/headers", &odd, b"").ok();
    assert!(header(&answer.json(), "traceparent").is_some_and(|told| !told.contains("nonsense")));
    let (root, _) = collector.of(&id(&answer));
    assert_eq!(root["parent"], "", "{root}");
    assert!(
        collector.all()[before..].iter().all(|span| span["trace"] == root["trace"]),
        "{:#?}",
        collector.all()
    );
    let log = node.log();
    assert!(!log.contains("s3cret"), "{log}");
    node.stop();
}

/// Spans of the last moments are sent before the node is gone, and a collector that cannot take them delays nobody.
#[test]
fn a_collector_may_fail() {
    let (sandbox, collector) = (Sandbox::new(), Collector::start(1));
    let variables = [("OTEL_BSP_SCHEDULE_DELAY", "600000")];
    let one = node(&sandbox, &["--otlp-endpoint", &collector.address], &variables);
    let _ = one.deploy("demo", "function", "", &[]).ok();
    let answer = one.get("demo", "/status/200").ok();
    assert_eq!(collector.all(), Vec::<Value>::new(), "nothing is sent for ten minutes");
    one.stop();
    // The first try was refused.
    let _ = collector.of(answer.header("x-fc-request-id").expect("an id"));
    drop(collector);

    // A port where nobody listens.
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let other = node(&sandbox, &["--otlp-endpoint", &format!("http://{closed}")], &[]);
    let _ = other.get("demo", "/status/200").ok();
    let told = wait_for(SOON, || other.log().contains("Export").then_some(()));
    assert!(told.is_some(), "nobody is told: {}", other.log());
    other.stop();
}

#[test]
fn what_is_no_collector_is_told() {
    let sandbox = Sandbox::new();
    let variables = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
    let users = ["https://user:pa55w0rd@host:4318", "https://user:pa55^w0rd@host", "http://pa55w0rd@"];
    for address in
        ["localhost:4318", "ftp://collector", "http://", "unix:/run/otel.sock"].iter().chain(&users)
    {
        let by_option = sandbox.run(&["serve", "--otlp-endpoint", address]);
        let by_variable = variables.map(|name| {
            let mut command = sandbox.skiff(&["serve"]);
            command.env(name, address);
            sandbox.finish(command)
        });
        for outcome in by_variable.into_iter().chain([by_option]) {
            let texts = if users.contains(address) {
                ["has a user", "OTEL_EXPORTER_OTLP_HEADERS"]
            } else {
                [*address, "http://localhost:4318"]
            };
            let outcome = outcome.fails(2, &texts);
            assert!(!outcome.stderr.contains("pa55"), "{}", outcome.stderr);
        }
    }
}
