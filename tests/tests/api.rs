//! The invoke API on its Unix socket, as bytes: routes, errors in the shapes of each version, signatures,
//! asynchronous events that fail.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_tests::http::{Connection, Response};
use skiff_tests::{Sandbox, Served, wait_for};

#[track_caller]
fn request(served: &Served, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let socket = served.socket().with_file_name("api.sock");
    let mut connection = Connection::unix(&socket).expect("it listens");
    connection.request(method, target, headers, body)
}

#[track_caller]
fn invoke(served: &Served, headers: &[(&str, &str)], event: &Value) -> Response {
    let target = "/2023-03-30/functions/demo/invocations";
    request(served, "POST", target, headers, event.to_string().as_bytes())
}

fn serve(sandbox: &Sandbox, options: &[&str]) -> Served {
    sandbox.serve_function(&[&["--name", "demo"], options].concat())
}

#[test]
fn errors_have_the_shape_of_their_version() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox, &[]);
    let post = |target: &str| request(&served, "POST", target, &[], b"{}");
    let three = post("/2023-03-30/functions/none/invocations");
    assert_eq!(three.status, 404);
    let id = three.header("x-fc-request-id").expect("an id").to_owned();
    assert_eq!(
        three.json(),
        json!({ "RequestId": id, "Code": "FunctionNotFound", "Message": "function 'none' does not exist." })
    );
    assert_eq!(three.header("content-type"), Some("application/json"));
    // A function of 3.0 is not there for 2.0.
    let two = post("/2016-08-15/services/default/functions/demo/invocations");
    let expected =
        json!({ "ErrorCode": "ServiceNotFound", "ErrorMessage": "service 'default' does not exist" });
    assert_eq!((two.status, two.json()), (404, expected));
    let both = post("/2021-04-06/services/default/functions/demo/invocations").json();
    assert_eq!((&both["Code"], &both["ErrorCode"]), (&json!("ServiceNotFound"), &json!("ServiceNotFound")));
    for (target, code) in [
        ("/2023-03-30/functions/demo/invocations?qualifier=7", "VersionNotFound"),
        ("/2023-03-30/functions/demo/invocations?qualifier=prod", "AliasNotFound"),
        ("/2023-03-30/functions/demo", "PathNotSupported"),
        ("/", "PathNotSupported"),
    ] {
        assert_eq!(post(target).json()["Code"], code, "{target}");
    }
    for (header, value) in
        [("x-fc-invocation-type", "Later"), ("x-fc-log-type", "All"), ("x-fc-async-delay", "3601")]
    {
        let answer = invoke(&served, &[(header, value)], &json!({}));
        assert_eq!((answer.status, &answer.json()["Code"]), (400, &json!("InvalidArgument")), "{header}");
    }
    let other =
        request(&served, "POST", "/", &[("X-TC-Action", "Invoke"), ("X-TC-Version", "2018-04-16")], b"{}");
    assert_eq!(other.status, 200);
    assert_eq!(other.json()["Response"]["Error"]["Code"], "MissingParameter");
    served.stop();
}

#[test]
fn events_of_tencents_are_json_of_known_actions() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox, &["--platform", "scf"]);
    let call = |action: &str, version: &str, body: &Value| {
        let headers = [("X-TC-Action", action), ("X-TC-Version", version)];
        request(&served, "POST", "/", &headers, body.to_string().as_bytes()).json()["Response"].clone()
    };
    let function = |fields: &Value| {
        let mut all = fields.clone();
        all["FunctionName"] = "demo".into();
        call("Invoke", "2018-04-16", &all)
    };
    assert_eq!(function(&json!({}))["Result"]["InvokeResult"], 0, "an event may be missing");
    assert_eq!(function(&json!({ "RoutingKey": "a" }))["Result"]["InvokeResult"], 0, "there is one version");
    for (fields, code) in [
        (json!({ "ClientContext": "no json" }), "InvalidParameterValue.ClientContext"),
        (json!({ "InvocationType": "Later" }), "InvalidParameterValue"),
        (json!({ "LogType": "All" }), "InvalidParameterValue"),
        (json!({ "Namespace": "none" }), "ResourceNotFound.Namespace"),
        (json!({ "Qualifier": "7" }), "ResourceNotFound.FunctionVersion"),
        (json!({ "ClientContext": 7 }), "InvalidParameter"),
        (
            json!({ "InvocationType": "Event", "ClientContext": format!("\"{}\"", "x".repeat(128 * 1024)) }),
            "InvalidParameter.Payload",
        ),
    ] {
        assert_eq!(function(&fields)["Error"]["Code"], code, "{code}");
    }
    let named = json!({ "FunctionName": "demo" });
    assert_eq!(call("Remove", "2018-04-16", &named)["Error"]["Code"], "InvalidAction");
    assert_eq!(call("Invoke", "2017-03-12", &named)["Error"]["Code"], "NoSuchVersion");
    assert!(call("Invoke", "2017-03-12", &named)["RequestId"].is_string());
    // Who signs as before TC3 is told so in a way that SDKs read.
    let form = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
    for old in [
        request(
            &served,
            "POST",
            "/",
            &form,
            b"Action=Invoke&Version=2018-04-16&FunctionName=demo&Signature=x",
        ),
        request(&served, "GET", "/?Nonce=1&Action=Invoke&FunctionName=demo&Signature=x", &[], b""),
    ] {
        let told = old.json()["Response"]["Error"].clone();
        assert_eq!((old.status, &told["Code"]), (200, &json!("InvalidRequest")), "{told}");
        assert!(told["Message"].as_str().is_some_and(|text| text.contains("TC3-HMAC-SHA256")), "{told}");
    }
    served.stop();
}

#[test]
fn a_target_in_a_header_leaves_the_path_clean() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox, &["--platform", "fc2"]);
    let target = ("x-fc-invocation-target", "2016-08-15/proxy/default/demo");
    let clean =
        request(&served, "PUT", "/request/a%20b?c=d", &[target, ("authorization", "Basic eA==")], b"body");
    let seen = clean.json();
    assert_eq!((&seen["method"], &seen["uri"]), (&json!("PUT"), &json!("/request/a%20b?c=d")));
    assert_eq!(seen["body"], "body");
    // Without keys the API has no use for it, and the function may.
    let has = |name: &str| seen["headers"].as_array().expect("headers").iter().any(|pair| pair[0] == name);
    assert!(has("authorization") && !has("x-fc-invocation-target"), "{seen}");
    // A form is nobody's but the function's then.
    let form = ("content-type", "application/x-www-form-urlencoded");
    let passed = request(&served, "POST", "/?Action=a", &[target, form], b"Action=b");
    assert_eq!((passed.status, &*passed.text()), (404, "no such path\n"), "its answer");
    let wrong = request(&served, "GET", "/", &[("x-fc-invocation-target", "demo")], b"");
    assert_eq!((wrong.status, &wrong.json()["Code"]), (400, &json!("InvalidArgument")));
    served.stop();
}

#[test]
fn without_a_signature_nobody_calls() {
    let sandbox = Sandbox::new();
    let keys = sandbox.write("keys", "the-id the-secret-91bc\n");
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set");
    let served = serve(&sandbox, &["--api-keys", keys.to_str().expect("utf-8")]);
    let code = |headers: &[(&str, &str)]| {
        let answer = invoke(&served, headers, &json!({ "a": 1 }));
        (answer.status, answer.json()["Code"].as_str().unwrap_or_default().to_owned())
    };
    let date = ("date", "Wed, 25 Nov 2020 17:10:11 GMT");
    for (headers, status, expected) in [
        (vec![], 400, "MissingRequiredHeader"),
        (vec![("authorization", "Bearer x")], 400, "InvalidArgument"),
        (vec![("authorization", "FC the-id:eA==")], 400, "MissingRequiredHeader"),
        (vec![("authorization", "FC nobody:eA=="), date], 403, "InvalidAccessKeyID"),
        (vec![("authorization", "FC the-id:eA=="), date], 403, "AccessDenied"),
    ] {
        assert_eq!(code(&headers), (status, expected.to_owned()), "{headers:?}");
    }
    let unsigned =
        request(&served, "POST", "/", &[("X-TC-Action", "Invoke"), ("X-TC-Version", "2018-04-16")], b"{}");
    assert_eq!(unsigned.json()["Response"]["Error"]["Code"], "MissingParameter");
    assert!(!served.stderr().contains("Invoke Start"), "the function was called");
    // Its own socket is its owner's.
    assert_eq!(served.get("/request").status, 200);
    served.stop();
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let sandbox = Sandbox::new();
    let keys = sandbox.write("keys", "the-id the-secret-91bc\n");
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("set");
    let refused =
        sandbox.run(&["run", "oci:none", "--api-keys", keys.to_str().expect("utf-8")]).expect_code(2);
    assert!(refused.stderr.contains("chmod 600") && !refused.stderr.contains("91bc"), "{}", refused.stderr);
}

#[test]
fn an_asynchronous_event_is_tried_again_and_told_of() {
    let sandbox = Sandbox::new();
    let (good, bad) = (sandbox.path().join("good"), sandbox.path().join("bad"));
    let options = ["--async-retries", "1", "--async-on-success", good.to_str().expect("utf-8")];
    let served =
        serve(&sandbox, &[&options[..], &["--async-on-failure", bad.to_str().expect("utf-8")]].concat());
    let later = [("X-Fc-Invocation-Type", "Async"), ("X-Fc-Async-Task-Id", "task-7")];
    let taken = invoke(&served, &later, &json!({ "fail": true }));
    assert_eq!((taken.status, taken.body.len()), (202, 0));
    assert_eq!(taken.header("x-fc-async-task-id"), Some("task-7"));
    // So of 2.0, which calls it otherwise.
    let older = [("X-Fc-Invocation-Type", "Async"), ("X-Fc-Stateful-Async-Invocation-Id", "task-8")];
    let older = invoke(&served, &older, &json!({}));
    assert_eq!((older.status, older.header("x-fc-stateful-async-invocation-id")), (202, Some("task-8")));
    let record = wait_for(Duration::from_secs(20), || {
        std::fs::read_to_string(&bad).ok().filter(|text| text.ends_with('\n'))
    });
    let record: Value = serde_json::from_str(&record.expect("a record")).expect("JSON");
    let context = &record["requestContext"];
    assert_eq!(context["requestId"].as_str(), taken.header("x-fc-request-id"));
    assert_eq!(
        (&context["condition"], &context["approximateInvokeCount"]),
        (&json!("RetriesExhausted"), &json!(2))
    );
    assert_eq!(record["responseContext"]["functionError"], "HandledInvocationError");
    assert_eq!(record["responsePayload"]["errorMessage"], "the function says no");
    let too_large = invoke(&served, &later, &json!("x".repeat(128 * 1024)));
    assert_eq!((too_large.status, &too_large.json()["Code"]), (400, &json!("EntityTooLarge")));
    let told = wait_for(Duration::from_secs(20), || {
        std::fs::read_to_string(&good).ok().filter(|text| text.ends_with('\n'))
    });
    assert_eq!(told.expect("a record").lines().count(), 1, "of the one that succeeded");
    served.stop();
}

#[test]
fn asynchronous_events_of_tencents_are_ended_from_outside() {
    let sandbox = Sandbox::new();
    for graceful in [false, true] {
        let bad = sandbox.path().join(format!("bad-{graceful}"));
        let options = ["--platform", "scf", "--timeout", "60s", "--async-on-failure"];
        let served = serve(&sandbox, &[&options[..], &[bad.to_str().expect("utf-8")]].concat());
        let call = |action: &str, mut body: Value| {
            body["FunctionName"] = "demo".into();
            let headers = [("X-TC-Action", action), ("X-TC-Version", "2018-04-16")];
            request(&served, "POST", "/", &headers, body.to_string().as_bytes()).json()["Response"].clone()
        };
        let event = json!({ "InvocationType": "Event", "ClientContext": r#"{"sleep_ms":60000}"# });
        let taken = call("Invoke", event);
        let id = taken["Result"]["FunctionRequestId"].as_str().expect("an id").to_owned();
        served.wait_for_stderr(&format!("START RequestId:{id}"));
        let of_other = call("TerminateAsyncEvent", json!({ "InvokeRequestId": "other" }));
        assert_eq!(of_other["Error"]["Code"], "ResourceNotFound.AsyncEvent");
        let ended = call("TerminateAsyncEvent", json!({ "InvokeRequestId": id, "GraceShutdown": graceful }));
        assert!(ended["Error"].is_null() && ended["RequestId"].is_string(), "{ended}");
        // The process ends by the signal, as the function's handler has it.
        let code = if graceful { 439 } else { 499 };
        served.wait_for_stderr(&format!("\"statusCode\":{code}}}"));
        let record = wait_for(Duration::from_secs(20), || {
            std::fs::read_to_string(&bad).ok().filter(|text| text.ends_with('\n'))
        });
        let record: Value = serde_json::from_str(&record.expect("a record")).expect("JSON");
        let context = &record["requestContext"];
        assert_eq!((&context["requestId"], &context["condition"]), (&json!(id), &json!("Terminated")));
        let said = served.stderr();
        assert_eq!(said.contains("[PLATFORM] Signal received successfully"), graceful, "{said}");
        if graceful {
            assert!(said.contains("SIGTERM: bye"), "{said}");
        } else {
            // Another instance works on the next.
            assert_eq!(call("Invoke", json!({}))["Result"]["InvokeResult"], 0);
            let starts = || served.stderr().matches("Init Report RequestId:").count();
            let twice = wait_for(Duration::from_secs(20), || (starts() == 2).then_some(()));
            assert!(twice.is_some(), "{}", served.stderr());
        }
    }
}

#[test]
fn what_is_asked_of_tencents_requests_is_checked() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox, &["--platform", "scf"]);
    let call = |action: &str, body: &Value| {
        let headers = [("X-TC-Action", action), ("X-TC-Version", "2018-04-16")];
        request(&served, "POST", "/", &headers, body.to_string().as_bytes()).json()["Response"].clone()
    };
    let now = json!({ "Start": "2026-01-01 00:00:00", "End": "2026" });
    for (action, body, code) in [
        ("GetRequestStatus", json!({ "FunctionRequestId": "a" }), "MissingParameter"),
        ("GetRequestStatus", json!({ "FunctionName": "demo" }), "MissingParameter"),
        (
            "GetRequestStatus",
            json!({ "FunctionName": "no", "FunctionRequestId": "a" }),
            "ResourceNotFound.Function",
        ),
        (
            "GetRequestStatus",
            json!({ "FunctionName": "demo", "FunctionRequestId": "a", "StartTime": "2026-01-01 00:00:00" }),
            "MissingParameter",
        ),
        ("GetAsyncEventStatus", json!({}), "MissingParameter"),
        ("TerminateAsyncEvent", json!({ "InvokeRequestId": "a" }), "MissingParameter"),
        ("ListAsyncEvents", json!({}), "MissingParameter"),
        ("ListAsyncEvents", json!({ "FunctionName": "demo", "Limit": 101 }), "InvalidParameterValue"),
        ("ListAsyncEvents", json!({ "FunctionName": "demo", "Order": "UP" }), "InvalidParameterValue"),
        (
            "ListAsyncEvents",
            json!({ "FunctionName": "demo", "StartTimeInterval": now }),
            "InvalidParameterValue",
        ),
        ("ListAsyncEvents", json!({ "FunctionName": "demo", "Status": "RUNNING" }), "InvalidParameter"),
    ] {
        let answer = call(action, &body);
        assert_eq!(answer["Error"]["Code"], code, "{action} {body}: {answer}");
    }
    let of_call = call("Invoke", &json!({ "FunctionName": "demo" }))["Result"]["FunctionRequestId"].clone();
    let asked = |times: Value| {
        let mut body = json!({ "FunctionName": "demo", "FunctionRequestId": of_call });
        body.as_object_mut().expect("an object").extend(times.as_object().expect("an object").clone());
        call("GetRequestStatus", &body)["TotalCount"].clone()
    };
    assert_eq!(asked(json!({})), 1);
    assert_eq!(asked(json!({ "StartTime": "2001-01-01 00:00:00", "EndTime": "2001-01-01 01:00:00" })), 0);
    let unknown = json!({ "FunctionName": "demo", "FunctionRequestId": "unknown" });
    assert_eq!(call("GetRequestStatus", &unknown)["TotalCount"], 0);
    assert_eq!(
        call("ListAsyncEvents", &json!({ "FunctionName": "demo" }))["TotalCount"],
        0,
        "calls are no events"
    );
    served.stop();
}

#[test]
fn wrong_signatures_of_tencents_have_its_codes() {
    let sandbox = Sandbox::new();
    let keys = sandbox.write("keys", "the-id the-secret-91bc\n");
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set");
    let served = serve(&sandbox, &["--platform", "scf", "--api-keys", keys.to_str().expect("utf-8")]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs();
    let (now, long_ago) = (now.to_string(), (now - 3600).to_string());
    let signed = |id: &str| {
        let fields = "SignedHeaders=content-type;host, Signature=";
        format!("TC3-HMAC-SHA256 Credential={id}/2026-01-01/scf/tc3_request, {fields}{}", "0".repeat(64))
    };
    for (authorization, timestamp, code) in [
        ("Bearer x", &now, "AuthFailure.InvalidAuthorization"),
        (&*signed("nobody"), &now, "AuthFailure.SecretIdNotFound"),
        (&*signed("the-id"), &now, "AuthFailure.SignatureFailure"),
        (&*signed("the-id"), &long_ago, "AuthFailure.SignatureExpire"),
    ] {
        let headers = [
            ("X-TC-Action", "Invoke"),
            ("X-TC-Version", "2018-04-16"),
            ("X-TC-Timestamp", timestamp),
            ("Authorization", authorization),
            ("Content-Type", "application/json"),
        ];
        let answer = request(&served, "POST", "/", &headers, br#"{"FunctionName":"demo"}"#);
        let error = answer.json()["Response"]["Error"].clone();
        assert_eq!((answer.status, &error["Code"]), (200, &json!(code)), "{error}");
        assert!(!error.to_string().contains("91bc"), "{error}");
    }
    assert!(!served.stderr().contains("START RequestId"), "the function was called");
    served.stop();
}
