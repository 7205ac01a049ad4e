//! `GetFunctionLogs` of Tencent's API: what a node keeps of the requests of its functions.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use skiff_tests::{Node, Sandbox, images, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// An answer of Tencent's API on the node's socket.
#[track_caller]
fn call(node: &Node<'_>, action: &str, body: &Value) -> Value {
    let headers = [("X-TC-Action", action), ("X-TC-Version", "2018-04-16")];
    let answer = node.connection().request("POST", "/", &headers, body.to_string().as_bytes());
    assert_eq!(answer.status, 200);
    answer.json()["Response"].clone()
}

#[track_caller]
fn logs(node: &Node<'_>, mut wanted: Value) -> Value {
    wanted["FunctionName"] = "demo".into();
    call(node, "GetFunctionLogs", &wanted)
}

/// The one entry of a request that fits.
#[track_caller]
fn entry(node: &Node<'_>, id: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let found = wait_for(SOON, || {
        let answer = logs(node, json!({ "FunctionRequestId": id }));
        let one = answer["Data"][0].clone();
        (answer["TotalCount"] == 1 && fits(&one)).then_some(one)
    });
    found.unwrap_or_else(|| panic!("{}", logs(node, json!({ "FunctionRequestId": id }))))
}

fn deploy(node: &Node<'_>, more: &str) {
    let _ = node.deploy("demo", "function", &format!("platform = \"scf\"\n{more}"), &[]).ok();
}

#[test]
fn tencents_sdk_reads_the_logs_of_its_calls() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &["--api-listen", "0"]);
    deploy(&node, "timeout = \"1s\"");
    let python = images::target_dir().join("sdk/python/bin/python");
    assert!(python.exists(), "no {}: run scripts/sdks", python.display());
    let told = node.stdout();
    let address = told.lines().find_map(|line| line.split("http://").nth(1)).expect("an address");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk/logs_call.py");
    let output = Command::new(python).args([script, address, "demo"]).output().expect("started");
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), node.log());
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let (outcomes, asked) = (&all["outcomes"], &all["logs"]);
    let id = |case: &str| outcomes[case]["FunctionRequestId"].clone();
    let ids = |case: &str| {
        let data = asked[case]["Data"].as_array().unwrap_or_else(|| panic!("{case}: {}", asked[case]));
        data.iter().map(|one| one["RequestId"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (ids("all"), &asked["all"]["TotalCount"]),
        (vec![id("late"), id("bad"), id("good")], &json!(3))
    );
    assert_eq!((ids("not0"), ids("is0")), (vec![id("bad"), id("late")], vec![id("good")]));
    assert_eq!((ids("late"), ids("slowest"), ids("before")), (vec![id("late")], vec![id("late")], vec![]));
    assert_eq!((ids("page"), &asked["page"]["TotalCount"]), (vec![id("bad")], &json!(3)));
    assert_eq!(asked["too_long"]["error"], "InvalidParameterValue.DateTime");
    assert_eq!(asked["too_many"]["error"], "LimitExceeded.Offset");
    let good = &asked["good"]["Data"][0];
    assert_eq!(
        (&good["RetCode"], &good["InvokeFinished"], &good["RetryNum"]),
        (&json!(0), &json!(1), &json!(0))
    );
    assert_eq!((&good["FunctionName"], &good["RetMsg"]), (&json!("demo"), &outcomes["good"]["RetMsg"]));
    assert_eq!(good["MemUsage"], outcomes["good"]["MemUsage"], "bytes");
    let (ms, exact) = (good["Duration"].as_f64(), outcomes["good"]["Duration"].as_f64());
    assert_eq!(ms, exact.map(f64::trunc), "whole milliseconds");
    let log = good["Log"].as_str().expect("a text");
    let words = id("good").as_str().expect("an id").to_owned();
    assert!(log.starts_with(&format!("START RequestId:{words}\n")), "{log}");
    assert!(log.contains(&format!("END RequestId:{words}\nReport RequestId:{words} Duration:")), "{log}");
    assert_eq!(good["StartTime"].as_str().map(str::len), Some(19));
    let late = &asked["late"]["Data"][0];
    assert_eq!(late["RetCode"], 1);
    assert!(late["RetMsg"].as_str().is_some_and(|text| text.contains("\"statusCode\":433")), "{late}");
    node.stop();
}

#[test]
fn requests_over_http_what_they_write_and_what_runs_are_in_the_log() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    deploy(&node, "timeout = \"30s\"");
    let said = node.own("default.demo").request("GET", "/log?line=said-something", &[], b"").ok();
    let id = said.header("x-scf-request-id").expect("an id").to_owned();
    let entry_of_said = entry(&node, &id, |one| one["RetCode"] == 0);
    let log = entry_of_said["Log"].as_str().expect("a text");
    assert!(log.contains("\nsaid-something") && log.contains("said-something (stderr)"), "{log}");
    assert_eq!(entry_of_said["RetMsg"], "", "what goes over HTTP is not logged");
    // One that runs, and one whose end nobody has seen.
    let event = json!({ "FunctionName": "demo", "InvocationType": "Event", "ClientContext": "{\"sleep_ms\": 20000}" });
    let taken =
        call(&node, "Invoke", &event)["Result"]["FunctionRequestId"].as_str().expect("an id").to_owned();
    let running = entry(&node, &taken, |one| one["RetCode"] == 2);
    assert_eq!((&running["InvokeFinished"], &running["Duration"]), (&json!(0), &json!(0.0)));
    let only = |code: &str| logs(&node, json!({ "Filter": { "RetCode": code } }))["TotalCount"].clone();
    assert_eq!((only("is0"), only("not0")), (json!(1), json!(0)), "it has no result yet");
    let end = json!({ "FunctionName": "demo", "InvokeRequestId": taken });
    assert!(call(&node, "TerminateAsyncEvent", &end)["Error"].is_null());
    let ended = entry(&node, &taken, |one| one["RetCode"] == 3);
    assert_eq!(ended["InvokeFinished"], 1, "{ended}");
    // A later node has the log of the former.
    node.end(Signal::KILL);
    let node = Node::start(&sandbox, &[]);
    assert_eq!(entry(&node, &id, |_| true), entry_of_said);
    node.stop();
}

#[test]
fn what_is_no_function_with_a_log_here_is_told() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &["--log-to", "stdout"]);
    deploy(&node, "");
    let refused = |body: &Value| call(&node, "GetFunctionLogs", body)["Error"].clone();
    let kept = refused(&json!({ "FunctionName": "demo" }));
    assert_eq!(kept["Code"], "UnsupportedOperation");
    assert!(kept["Message"].as_str().is_some_and(|text| text.contains("keeps no logs")), "{kept}");
    for (body, code) in [
        (json!({}), "MissingParameter"),
        (json!({ "FunctionName": "none" }), "ResourceNotFound.Function"),
        (json!({ "FunctionName": "demo", "Namespace": "none" }), "ResourceNotFound.Namespace"),
        (json!({ "FunctionName": "demo", "Qualifier": "7" }), "ResourceNotFound.FunctionVersion"),
        (json!({ "FunctionName": "demo", "Limit": "many" }), "InvalidParameter"),
        (json!({ "FunctionName": "demo", "Filter": { "RetCode": "is1" } }), "InvalidParameterValue"),
    ] {
        assert_eq!(refused(&body)["Code"], code, "{body}");
    }
    // Functions of the other vendor are none of this API.
    let _ = node.deploy("other", "function", "", &[]).ok();
    assert_eq!(refused(&json!({ "FunctionName": "other" }))["Code"], "ResourceNotFound.Function");
    node.stop();
}

#[test]
fn a_call_that_no_instance_came_up_for_is_in_the_log() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let role = sandbox.path().join("role.json");
    let text = json!({ "AccessKeyId": "id", "AccessKeySecret": "s3cret", "SecurityToken": "t", "Expiration": 4_000_000_000_u64 });
    std::fs::write(&role, text.to_string()).expect("written");
    std::fs::set_permissions(&role, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set");
    let role_table = format!("[role]\nfile = \"{}\"", role.display());
    for (name, platform) in [("demo", "scf"), ("other", "fc")] {
        let more = format!("platform = \"{platform}\"\n{role_table}");
        let _ = node.deploy(name, "function", &more, &["--idle-timeout", "1s"]).ok();
    }
    let none = || {
        let all = node.ask("GET", "/v1/instances", "").json();
        all["instances"].as_array().is_some_and(Vec::is_empty).then_some(())
    };
    assert!(wait_for(SOON, none).is_some(), "{}", node.log());
    std::fs::remove_file(role).expect("there");
    let event = json!({ "FunctionName": "demo", "ClientContext": "{}" });
    let result = call(&node, "Invoke", &event)["Result"].clone();
    let id = result["FunctionRequestId"].as_str().expect("an id");
    let one = entry(&node, id, |one| one["RetCode"] == 1);
    assert_eq!(one["InvokeFinished"], 1, "{one}");
    assert!(one["RetMsg"].as_str().is_some_and(|text| text.ends_with("\"statusCode\":500}")), "{one}");
    let log = one["Log"].as_str().expect("a text");
    assert!(
        log.starts_with(&format!("START RequestId:{id}\nERROR RequestId:{id} Result:{{\"errorCode\":-1,")),
        "{log}"
    );
    assert!(log.contains(&format!("\nEND RequestId:{id}\nReport RequestId:{id} Duration:")), "{log}");
    // The same of the other vendor.
    let refused = node.get("other", "/headers");
    assert_eq!(refused.status, 500, "{}", refused.text());
    let id = refused.header("x-fc-request-id").expect("an id").to_owned();
    let lines = wait_for(SOON, || {
        let text = node.ask("GET", &format!("/v1/functions/other/logs?request={id}"), "").text();
        let line = |record: &str| serde_json::from_str::<Value>(record).expect("JSON")["line"].clone();
        let lines: Vec<Value> = text.lines().map(line).collect();
        (lines.len() == 4).then_some(lines)
    });
    let lines = lines.unwrap_or_else(|| panic!("{}", node.log()));
    assert_eq!(lines[0], format!("FC Invoke Start RequestId: {id}"));
    let end = lines[1].as_str().expect("a text");
    assert_eq!(
        end,
        format!("FC Invoke End RequestId: {id}, Error: an internal error has occurred. Please retry.")
    );
    assert!(
        lines[2].as_str().is_some_and(|line| line.starts_with("Duration: 0.00 ms, Billed Duration: 0 ms"))
    );
    let record: Value = serde_json::from_str(lines[3].as_str().expect("a text")).expect("JSON");
    assert_eq!((&record["method"], &record["requestURI"]), (&json!("GET"), &json!("/headers")), "{record}");
    // Why is its operator's to know.
    assert!(
        node.log().contains("the credentials of the role of function other are not there"),
        "{}",
        node.log()
    );
    node.stop();
}
