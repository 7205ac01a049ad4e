//! HTTP requests to functions of Alibaba FC that are for later: `X-Fc-Invocation-Type: Async`.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use skiff_tests::http::Connection;
use skiff_tests::{Baseline, Node, Sandbox, Served, deploy_as, wait_for};

fn serve(sandbox: &Sandbox, options: &[&str]) -> Served {
    sandbox.serve_function(&[&["--name", "demo"], options].concat())
}

/// The one record of a destination's file.
#[track_caller]
fn record_in(path: &std::path::Path) -> Value {
    let record = wait_for(Duration::from_secs(20), || {
        std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'))
    });
    serde_json::from_str(&record.expect("a record")).expect("JSON")
}

/// They are worked on by all instances that the function may have, and not one after the other.
#[test]
fn events_for_later_have_an_instance_each() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let done = sandbox.path().join("done");
    let more = format!("[asynchronous]\non_success = {:?}", done.display().to_string());
    let _ = node.deploy("demo", "function", &more, &["--max-instances", "3"]).ok();
    for _ in 0..3 {
        let headers = [("X-Fc-Invocation-Type", "Async")];
        let target = "/2023-03-30/functions/demo/invocations";
        let answer = node.connection().request("POST", target, &headers, b"{\"sleep_ms\":10000}");
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    let busy = || node.info("demo")["instances"]["running"].as_u64().unwrap_or_default();
    let most = wait_for(Duration::from_secs(40), || (busy() == 3).then_some(()));
    assert!(most.is_some(), "{}", node.info("demo"));
    let all = wait_for(Duration::from_secs(40), || {
        std::fs::read_to_string(&done).ok().filter(|text| text.lines().count() == 3)
    });
    assert!(all.is_some(), "{}", node.info("demo"));
    node.stop();
}

#[test]
fn an_http_request_may_be_for_later() {
    let sandbox = Sandbox::new();
    let (good, bad) = (sandbox.path().join("good"), sandbox.path().join("bad"));
    let options =
        ["--async-retries", "1", "--async-on-success", good.to_str().expect("utf-8"), "--output", "json"];
    let served =
        serve(&sandbox, &[&options[..], &["--async-on-failure", bad.to_str().expect("utf-8")]].concat());
    let later = |target: &str, body: &[u8]| {
        let headers =
            [("X-Fc-Invocation-Type", "Async"), ("X-Fc-Async-Task-Id", "task-7"), ("X-Own", "kept")];
        served.request("PUT", target, &headers, body)
    };
    let taken = later("/request/a%20b?c=d", b"the body");
    assert_eq!((taken.status, taken.body.len()), (202, 0));
    assert_eq!(taken.header("x-fc-async-task-id"), Some("task-7"));
    let record = record_in(&good);
    assert_eq!(record["requestContext"]["requestId"].as_str(), taken.header("x-fc-request-id"));
    let seen = &record["responsePayload"];
    assert_eq!((&seen["method"], &seen["uri"]), (&json!("PUT"), &json!("/request/a%20b?c=d")));
    assert_eq!((&seen["body"], &record["requestPayload"]), (&json!("the body"), &json!("the body")));
    let headers = seen["headers"].as_array().expect("headers");
    assert!(headers.contains(&json!(["x-own", "kept"])), "{seen}");
    let id = record["requestContext"]["requestId"].clone();
    assert!(headers.contains(&json!(["x-fc-request-id", id])), "{seen}");
    // What the function reports as its error is tried again, an answer with any status is not.
    assert_eq!(later("/function-error", b"").status, 202);
    let record = record_in(&bad);
    let context = &record["requestContext"];
    assert_eq!(
        (&context["condition"], &context["approximateInvokeCount"]),
        (&json!("RetriesExhausted"), &json!(2))
    );
    assert_eq!(record["responsePayload"]["errorMessage"], "the function says no");
    let large = later("/request", &vec![b'x'; 128 * 1024 + 1]);
    assert_eq!((large.status, &large.json()["Code"]), (400, &json!("InvalidArgument")));
    let told = served.stop().stderr;
    let of_records = |text: &str| told.matches(text).count();
    assert_eq!(of_records(r#"\"invocationType\":\"Async\""#), 3, "{told}");
    assert_eq!(of_records(r#"\"retryCount\":1"#), 1, "{told}");
}

#[test]
fn an_http_request_by_the_proxys_path_may_be_for_later() {
    let sandbox = Sandbox::new();
    let good = sandbox.path().join("good");
    let options = ["--platform", "fc2", "--async-on-success", good.to_str().expect("utf-8")];
    let served = serve(&sandbox, &options);
    let target = "/2016-08-15/proxy/default/demo/request";
    let mut api = Connection::unix(&served.socket().with_file_name("api.sock")).expect("it listens");
    let taken = api.request("POST", target, &[("X-Fc-Invocation-Type", "async")], b"x");
    assert_eq!(taken.status, 202);
    let record = record_in(&good);
    assert_eq!(record["responsePayload"]["uri"], target);
    // Under scf the header means nothing.
    let scf = serve(&sandbox, &["--platform", "scf"]);
    assert_eq!(scf.request("GET", "/request", &[("X-Fc-Invocation-Type", "Async")], b"").status, 200);
}

const ASYNC: (&str, &str) = ("X-Fc-Invocation-Type", "Async");

/// What the node bills, by request.
fn billed(sandbox: &Sandbox, id: &str) -> Vec<Value> {
    let told = sandbox.run(&["usage", "--output", "json"]).ok().stdout();
    let records = told.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    records.filter(|record: &Value| record["request_id"] == id).collect()
}

#[test]
fn a_functions_own_socket_of_a_node_takes_requests_for_later() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let (good, bad) = (sandbox.path().join("good"), sandbox.path().join("bad"));
    // What the function's file says goes before what the node says.
    let of_node = ["--async-retries", "5", "--async-on-success", good.to_str().expect("utf-8")];
    let node = Node::start(&sandbox, &of_node);
    let file = format!("[asynchronous]\nretries = 1\non_failure = {bad:?}");
    let _ = node.deploy("demo", "function", &file, &[]).ok();
    let later = |target: &str, more: &[(&str, &str)], body: &[u8]| {
        node.own("demo").request("PUT", target, &[&[ASYNC], more].concat(), body)
    };
    let taken = later("/request/a%20b?c=d", &[("X-Fc-Async-Task-Id", "task-7")], b"the body");
    assert_eq!((taken.status, taken.body.len()), (202, 0));
    assert_eq!(taken.header("x-fc-async-task-id"), Some("task-7"));
    let id = taken.header("x-fc-request-id").expect("an id").to_owned();
    let record = record_in(&good);
    assert_eq!(record["requestContext"]["requestId"], *id);
    let seen = &record["responsePayload"];
    assert_eq!((&seen["method"], &seen["uri"]), (&json!("PUT"), &json!("/request/a%20b?c=d")));
    assert_eq!(seen["body"], "the body");
    // Its answer, 202, is none of the function's.
    let own = billed(&sandbox, &id);
    assert_eq!((own.len(), &own[0]["asynchronous"], &own[0]["http_status"]), (1, &json!(true), &json!(200)));
    assert_eq!(node.info("demo")["calls"], 1);
    // Each try is billed and counted.
    let failing = later("/function-error", &[], b"");
    assert_eq!(failing.status, 202);
    assert_eq!(record_in(&bad)["requestContext"]["approximateInvokeCount"], 2);
    let tries = billed(&sandbox, failing.header("x-fc-request-id").expect("an id"));
    let retries: Vec<&Value> = tries.iter().map(|record| &record["retries"]).collect();
    assert_eq!((retries, &node.info("demo")["calls"]), (vec![&json!(0), &json!(1)], &json!(3)));
    // What is refused is neither.
    let large = later("/request", &[], &vec![b'x'; 128 * 1024 + 1]);
    assert_eq!((large.status, &large.json()["Code"]), (400, &json!("InvalidArgument")));
    let delay = later("/request", &[("x-fc-async-delay", "3601")], b"");
    assert_eq!((delay.status, &delay.json()["Code"]), (400, &json!("InvalidArgument")));
    assert_eq!(node.info("demo")["calls"], 3);
    // Another revision says otherwise.
    let bad = sandbox.path().join("others");
    let _ = node
        .deploy("demo", "function", &format!("[asynchronous]\nretries = 0\non_failure = {bad:?}"), &[])
        .ok();
    assert_eq!(later("/function-error", &[], b"").status, 202);
    assert_eq!(record_in(&bad)["requestContext"]["approximateInvokeCount"], 1);
    // Whoever waits has the function's answer, as ever.
    assert_eq!(node.get("demo", "/status/201").status, 201);
    let _ = sandbox.run(&["delete", "demo"]).ok();
    node.stop();
    baseline.assert_restored();
}

#[test]
fn what_waits_on_a_node_that_ends_or_for_a_function_that_goes_is_told() {
    let sandbox = Sandbox::new();
    let bad = sandbox.path().join("bad");
    let node = Node::start(&sandbox, &["--async-on-failure", bad.to_str().expect("utf-8")]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let after = |seconds: &str| {
        let taken =
            node.own("demo").request("POST", "/request", &[ASYNC, ("x-fc-async-delay", seconds)], b"");
        assert_eq!(taken.status, 202);
        taken.header("x-fc-request-id").expect("an id").to_owned()
    };
    let orphan = after("2");
    let _ = sandbox.run(&["delete", "demo"]).ok();
    let record = record_in(&bad);
    assert_eq!(record["requestContext"]["requestId"], *orphan, "{record}");
    assert_eq!(record["requestContext"]["condition"], "RequestRefused", "{record}");
    assert_eq!(billed(&sandbox, &orphan).len(), 0);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let lost = after("60");
    assert_eq!(node.end(Signal::TERM), Some(0));
    let log = std::fs::read_to_string(sandbox.path().join("node.log")).expect("a log");
    assert!(log.contains("an asynchronous event that waited is lost") && log.contains(&lost), "{log}");
    let node = Node::start(&sandbox, &[]);
    assert_eq!(node.get("demo", "/status/200").status, 200);
    node.stop();
}

#[test]
fn functions_of_others_platforms_on_a_node_answer_at_once() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = deploy_as(&sandbox, "demo", "function", "platform = \"scf\"", &[]).ok();
    let answer = node.own("default.demo").request("GET", "/request", &[ASYNC], b"");
    assert_eq!((answer.status, &answer.json()["uri"]), (200, &json!("/request")));
    let _ = deploy_as(&sandbox, "demo2", "function", "platform = \"fc2\"", &[]).ok();
    assert_eq!(node.own("default.demo2").request("GET", "/request", &[ASYNC], b"").status, 202);
    node.stop();
}
