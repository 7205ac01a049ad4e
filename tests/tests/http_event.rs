//! HTTP requests for event functions of Tencent SCF, as function URLs and API Gateway turn them into events.

use serde_json::{Value, json};
use skiff_tests::{Sandbox, Served};

fn serve(sandbox: &Sandbox, form: &str) -> Served {
    let options = ["--platform", "scf", "--name", "resize", "--http-event", form, "--listen", "0"];
    sandbox.serve_function(&[&options[..], &["--timeout", "1s"]].concat())
}

#[test]
fn a_function_url_makes_an_event_of_a_request() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox, "url");
    let headers = [("X-Own", "1"), ("X-Scf-Uin", "forged"), ("Content-Type", "text/plain")];
    let answer = served.connect_tcp().request("PUT", "/orders/7?a=1&b=2%203", &headers, b"hello").ok();
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let seen = answer.json();
    assert_eq!((&seen["method"], &seen["path"]), (&json!("POST"), &json!("/event-invoke")));
    assert_eq!(seen["headers"]["x-scf-name"], "resize");
    assert_eq!(seen["headers"]["x-scf-request-id"].as_str(), answer.header("x-scf-request-id"));
    let expected = json!({
        "httpMethod": "PUT",
        "path": "/orders/7",
        "queryString": { "a": "1", "b": "2 3" },
        "body": "hello",
        "headers": {
            "host": "function.test",
            "x-own": "1",
            "content-type": "text/plain",
            "content-length": "5",
            "x-scf-remote-addr": "127.0.0.1",
            "x-scf-request-domain": "function.test",
        },
    });
    assert_eq!(seen["event"], expected);
    // Its log is an event's.
    served.wait_for_stderr("Response RequestId:");
    served.stop();
}

#[test]
fn a_gateway_makes_an_event_of_a_request() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox, "gateway");
    let answer = served.request("POST", "/mirror?a=1", &[("X-Own", "1")], b"hello").ok();
    let id = answer.header("x-scf-request-id").expect("an id").to_owned();
    let expected = json!({
        "requestContext": {
            "serviceId": "service-00000000",
            "path": "/mirror",
            "httpMethod": "POST",
            "requestId": id,
            "identity": {},
            "sourceIp": "127.0.0.1",
            "stage": "release",
        },
        "headers": { "host": "function.test", "x-own": "1", "content-length": "5" },
        "body": "hello",
        "isBase64Encoded": false,
        "pathParameters": {},
        "queryStringParameters": {},
        "headerParameters": {},
        "stageVariables": { "stage": "release" },
        "path": "/mirror",
        "queryString": { "a": "1" },
        "httpMethod": "POST",
    });
    assert_eq!(answer.json(), expected);
    served.stop();
}

#[test]
fn an_integrated_answer_is_one_of_http() {
    let sandbox = Sandbox::new();
    for form in ["url", "gateway"] {
        let served = serve(&sandbox, form);
        let answer = served.request("DELETE", "/integrated", &[], b"");
        assert_eq!((answer.status, &answer.body[..]), (201, &[0xff, 0][..]), "{form}");
        assert_eq!(answer.header("content-type"), Some("image/x-two-bytes"));
        let several = answer.headers.iter().filter(|(name, _)| name == "x-several");
        assert_eq!(several.map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["one", "two"]);
        served.stop();
    }
}

#[test]
fn what_cannot_be_an_answer_is_a_403() {
    let sandbox = Sandbox::new();
    let text = "Invalid scf response format. please check your scf response format.";
    for (form, expected) in [
        ("url", json!({ "errorMessage": text, "statusCode": 403 })),
        ("gateway", json!({ "errno": 403, "error": text })),
    ] {
        let served = serve(&sandbox, form);
        for path in ["/malformed", "/plain"] {
            let answer = served.get(path);
            assert_eq!((answer.status, answer.json()), (403, expected.clone()), "{form} {path}");
        }
        served.stop();
    }
}

/// The event's error that a gateway passes on, without its id.
#[track_caller]
fn passed_on(mut error: Value) -> Value {
    assert!(error.as_object_mut().is_some_and(|fields| fields.remove("requestId").is_some()), "{error}");
    error
}

#[test]
fn errors_have_the_form_of_their_way() {
    let sandbox = Sandbox::new();
    let text = "User process exit when running";
    let url = serve(&sandbox, "url");
    let answer = url.get("/crash");
    assert_eq!((answer.status, answer.json()), (439, json!({ "errorMessage": text, "statusCode": 439 })));
    let gateway = serve(&sandbox, "gateway");
    let answer = gateway.get("/crash").ok();
    let expected = json!({ "errorCode": -1, "errorMessage": text, "statusCode": 439 });
    assert_eq!(passed_on(answer.json()), expected);
}

#[test]
fn functions_in_python_and_node_take_http_events() {
    let sandbox = Sandbox::with_shared_images();
    for image in ["python", "node"] {
        let options = ["--platform", "scf", "--http-event", "url", "--timeout", "20s"];
        let served = sandbox.serve(&skiff_tests::images::oci(image), &options);
        let seen = served.request("POST", "/orders?id=7", &[], b"x=1").ok().json();
        assert_eq!((&seen["server"], &seen["path"]), (&json!(image), &json!("/event-invoke")));
        let event = &seen["event"];
        assert_eq!((&event["path"], &event["queryString"]["id"]), (&json!("/orders"), &json!("7")), "{seen}");
        assert_eq!((&event["httpMethod"], &event["body"]), (&json!("POST"), &json!("x=1")), "{seen}");
        served.stop();
    }
}
