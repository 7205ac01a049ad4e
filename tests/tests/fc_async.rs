//! HTTP requests to functions of Alibaba FC that are for later: `X-Fc-Invocation-Type: Async`.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_tests::http::Connection;
use skiff_tests::{Sandbox, Served, wait_for};

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
