//! What a function of Tencent SCF is given, and what its caller is told when it does not come up.

use serde_json::{Value, json};
use skiff_tests::{Outcome, Sandbox, images};

#[track_caller]
fn failed_start(image: &str, options: &[&str]) -> Outcome {
    let sandbox = Sandbox::new();
    let scf = ["--platform", "scf", "--start-timeout", "1s"];
    sandbox.event(&images::oci(image), &[&scf[..], options].concat()).expect_code(3)
}

/// Status with code, and the body as it stands.
#[track_caller]
fn assert_answer(outcome: &Outcome, status: &str, message: &str, code: u16) {
    let (found, body) = outcome.platform_answer();
    assert_eq!(found, status);
    let value: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
    let id = value["requestId"].as_str().unwrap_or_default();
    assert_uuid(id);
    let text =
        format!(r#"{{"errorCode":-1,"errorMessage":"{message}","requestId":"{id}","statusCode":{code}}}"#);
    assert_eq!(body, text);
}

#[track_caller]
fn assert_uuid(text: &str) {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    assert_eq!(lengths, [8, 4, 4, 4, 12], "{text}");
    assert!(text.split('-').nth(2).is_some_and(|part| part.starts_with('1')), "not of version 1: {text}");
}

#[track_caller]
fn header<'a>(headers: &'a Value, name: &str) -> Option<&'a str> {
    let pairs = headers.as_array().expect("headers");
    let mut values = pairs.iter().filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str());
    let value = values.next();
    assert!(values.next().is_none(), "{name} twice");
    value
}

#[test]
fn the_environment_is_the_documented_one() {
    let sandbox = Sandbox::new();
    let identity =
        ["--platform", "scf", "--name", "resize", "--region", "ap-beijing", "--app-id", "1252245989"];
    let served = sandbox.serve_function(&[&identity[..], &["--account-id", "100000090134"]].concat());
    let environment = served.get("/env").ok().json();
    for (name, value) in [
        ("TENCENTCLOUD_RUNENV", "SCF"),
        ("USER_CODE_ROOT", "/var/user/"),
        ("USER", "qcloud"),
        ("SCF_FUNCTIONNAME", "resize"),
        ("SCF_FUNCTIONVERSION", "$LATEST"),
        ("TENCENTCLOUD_REGION", "ap-beijing"),
        ("TENCENTCLOUD_APPID", "1252245989"),
        ("TENCENTCLOUD_UIN", "100000090134"),
    ] {
        assert_eq!(environment[name], value, "{name}");
    }
    for name in ["TENCENTCLOUD_SECRETID", "TENCENTCLOUD_SESSIONTOKEN", "_SCF_SERVER_PORT", "SCF_NAMESPACE"] {
        assert!(environment[name].is_null(), "{name} is not promised for images");
    }
}

#[test]
fn the_context_headers_come_with_every_request() {
    let sandbox = Sandbox::new();
    let options = ["--platform", "scf", "--name", "resize", "--memory", "256MiB", "--timeout", "7s"];
    let served = sandbox.serve_function(&options);
    let headers = served.get("/headers").ok().json();
    for (name, value) in [
        ("x-scf-memory", "256"),
        ("x-scf-timeout", "7000"),
        ("x-scf-version", "$LATEST"),
        ("x-scf-name", "resize"),
        ("x-scf-namespace", "default"),
        ("x-scf-region", "ap-guangzhou"),
        ("x-scf-appid", "1250000000"),
        ("x-scf-uin", "100000000001"),
    ] {
        assert_eq!(header(&headers, name), Some(value), "{name}");
    }
    assert_uuid(header(&headers, "x-scf-request-id").expect("a request id"));
    for name in ["x-scf-session-token", "x-scf-secret-id", "x-scf-secret-key", "x-scf-trigger-src"] {
        assert_eq!(header(&headers, name), None, "{name} without a role or a timer");
    }
}

#[test]
fn a_role_gives_credentials_in_headers_alone() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.skiff(&["run", &images::oci("function"), "--platform", "scf"]);
    command.env("SKIFF_FUNCTION_ACCESS_KEY_ID", "the-id");
    command.env("SKIFF_FUNCTION_ACCESS_KEY_SECRET", "the-key-4f1d");
    command.env("SKIFF_FUNCTION_SECURITY_TOKEN", "the-token-9c2e");
    let served = sandbox.start(command);
    let headers = served.get("/headers").ok().json();
    assert_eq!(header(&headers, "x-scf-secret-id"), Some("the-id"));
    assert_eq!(header(&headers, "x-scf-secret-key"), Some("the-key-4f1d"));
    assert_eq!(header(&headers, "x-scf-session-token"), Some("the-token-9c2e"));
    let environment = served.get("/env").ok().text();
    assert!(!environment.contains("the-key-4f1d"), "{environment}");
}

#[test]
fn forged_context_headers_are_dropped() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--platform", "scf"]);
    let forged = [("X-Scf-Uin", "forged"), ("x-scf-secret-key", "forged"), ("x-scf-other", "forged")];
    let headers = served.request("GET", "/headers", &forged, b"").ok().text();
    assert!(!headers.contains("forged"), "{headers}");
}

#[test]
fn a_client_over_tcp_is_named_and_one_on_the_socket_is_not() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--platform", "scf", "--listen", "0"]);
    let mut connection = served.connect_tcp();
    let headers = connection.request("GET", "/headers", &[("X-Scf-Remote-Addr", "forged")], b"").ok().json();
    for name in ["x-forwarded-for", "x-real-ip", "x-scf-remote-addr"] {
        assert_eq!(header(&headers, name), Some("127.0.0.1"), "{name}");
    }
    assert_eq!(header(&headers, "x-scf-request-domain"), Some("function.test"));
    let told = [("X-Forwarded-For", "192.0.2.7"), ("X-Real-Ip", "192.0.2.7")];
    let headers = connection.request("GET", "/headers", &told, b"").ok().json();
    assert_eq!(header(&headers, "x-forwarded-for"), Some("192.0.2.7"), "a proxy in front has said it");
    let headers = served.get("/headers").ok().json();
    for name in ["x-forwarded-for", "x-real-ip", "x-scf-remote-addr"] {
        assert_eq!(header(&headers, name), None, "{name}");
    }
    // What a Web function answers is not in its log.
    served.wait_for_stderr("END RequestId:");
    assert!(!served.stderr().contains("Response RequestId:"), "{}", served.stderr());
}

#[test]
fn an_event_is_posted_to_event_invoke() {
    let sandbox = Sandbox::new();
    let options = ["--platform", "scf", "--name", "resize"];
    let answer = sandbox.event(&images::oci("function"), &options).ok().json();
    assert_eq!((&answer["method"], &answer["path"]), (&"POST".into(), &"/event-invoke".into()));
    assert_eq!(answer["headers"]["content-type"], "application/json");
    assert_eq!(answer["headers"]["x-scf-name"], "resize");
    assert_eq!(answer["event"], json!({"k": 1}));
}

#[test]
fn a_server_that_does_not_listen_in_time() {
    for image in ["hangs", "local"] {
        let text = "The request timed out in 1000ms.Please confirm your http server have enabled listening on \
                    port 9000.";
        assert_answer(&failed_start(image, &[]), "446 (PortBindingFailed)", text, 446);
    }
}

#[test]
fn a_server_that_exits() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.event(&images::oci("exits"), &["--platform", "scf"]).expect_code(3);
    let text =
        "Failed to initialize the container. Please confirm that the container can be started locally.";
    assert_answer(&outcome, "405 (ContainerStateExited)", text, 405);
    assert!(outcome.stderr.contains("it is over"), "{}", outcome.stderr);
}

#[test]
fn a_command_that_is_not_there_or_cannot_be_executed() {
    let text = "[/no/such/file] no such file or directory";
    assert_answer(&failed_start("no-such-entrypoint", &[]), "445 (ContainerInitError)", text, 445);
    let text = "[/data.txt] permission denied";
    assert_answer(&failed_start("not-executable", &[]), "445 (ContainerInitError)", text, 445);
}

#[test]
fn an_image_that_cannot_be_pulled_or_not_in_time() {
    let outcome = failed_start("no-such-image", &[]);
    let (status, body) = outcome.platform_answer();
    assert_eq!(status, "444 (PullImageFailed)");
    assert!(body.contains("no-such-image") && body.ends_with(r#""statusCode":444}"#), "{body}");
    // A registry that takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let image = format!("{}/team/resize:1", silent.local_addr().expect("an address"));
    let sandbox = Sandbox::new();
    let options = ["--platform", "scf", "--plain-http", "--pull-timeout", "1s"];
    let outcome = sandbox.event(&image, &options).expect_code(3);
    let (status, body) = outcome.platform_answer();
    assert_eq!(status, "447 (PullImageTimeOut)");
    let text = "Pulling image timed out: the pull did not end within 1 seconds: ";
    assert!(body.contains(text) && body.ends_with(r#""statusCode":447}"#), "{body}");
}

#[test]
fn an_event_that_is_not_json() {
    let sandbox = Sandbox::new();
    let args = ["run", &images::oci("function"), "--platform", "scf", "--event", "k=v"];
    let outcome = sandbox.run(&args).fails(3, &["the event is not JSON"]);
    let answer = outcome.json();
    assert_eq!(
        (&answer["statusCode"], &answer["errorMessage"]),
        (&json!(400), &json!("the event is not JSON"))
    );
    assert_uuid(answer["requestId"].as_str().expect("an id"));
}

#[test]
fn the_request_is_told_to_programs() {
    let sandbox = Sandbox::new();
    let records = |event: &str, code: i32| -> Vec<Value> {
        let image = images::oci("function");
        let args = ["run", &image, "--platform", "scf", "--name", "resize", "--output", "json"];
        let outcome =
            sandbox.run(&[&args[..], &["--event", event, "--timeout", "1s"]].concat()).expect_code(code);
        let told = outcome.json_events();
        let lines = told.iter().filter(|event| event["event"] == "log" && event["stream"] == "requests");
        lines.map(|line| serde_json::from_str(line["line"].as_str().expect("text")).expect("JSON")).collect()
    };
    let good = records("{}", 0);
    assert_eq!((good.len(), good[0].as_object().map(serde_json::Map::len)), (1, Some(14)), "{good:?}");
    assert_eq!((&good[0]["SCF_FunctionName"], &good[0]["SCF_StatusCode"]), (&json!("resize"), &json!(200)));
    let (start, end) = (&good[0]["SCF_StartTime"], &good[0]["SCF_LogTime"]);
    assert!(start.as_u64() > Some(1_700_000_000_000) && start.as_u64() <= end.as_u64(), "{start} {end}");
    assert!(good[0]["SCF_MemUsage"].as_f64().is_some_and(|mb| mb > 0.1 && mb < 128.0), "{good:?}");
    let late = records(r#"{"sleep_ms":60000}"#, 3);
    assert_eq!((&late[0]["SCF_StatusCode"], &late[0]["SCF_Level"]), (&json!(433), &json!("ERROR")));
    assert!(late[0]["SCF_Duration"].as_u64() >= Some(1000), "{late:?}");
}

#[test]
fn a_timer_goes_off() {
    let sandbox = Sandbox::new();
    let run = |event: &str, more: &[&str]| {
        let image = images::oci("function");
        let args = ["run", &image, "--platform", "scf", "--event", event];
        sandbox.run(&[&args[..], more].concat())
    };
    let answer = run("user \"msg\" body", &["--trigger", "timer:EveryDay"]).ok().json();
    assert_eq!(answer["headers"]["x-scf-trigger-src"], "Timer");
    let event = answer["event"].as_object().expect("an event");
    let (name, message) = (&event["TriggerName"], &event["Message"]);
    assert_eq!(
        (&event["Type"], name, message),
        (&json!("Timer"), &json!("EveryDay"), &json!("user \"msg\" body"))
    );
    let time = event["Time"].as_str().expect("a time");
    assert!(time.len() == 20 && time.starts_with("20") && time.ends_with('Z') && event.len() == 4, "{time}");
    // A job's is in its environment.
    let job = run("x", &["--trigger", "timer", "--job", "--", "job"]).ok();
    let line = job.stderr.lines().find(|line| line.contains("SCF_CUSTOM_CONTAINER_EVENT has "));
    let line = line.expect("the event");
    assert!(line.contains(r#"{"Type":"Timer","TriggerName":"timer","Time":""#), "{line}");
    let plain = run("{}", &[]).ok().json();
    assert!(plain["headers"]["x-scf-trigger-src"].is_null(), "{plain}");
    let fc = ["run", &images::oci("function"), "--event", "x", "--trigger", "timer"];
    sandbox.run(&fc).fails(2, &["platform fc has no timer events here"]);
}

#[test]
fn variables_that_scf_reserves_are_refused() {
    let sandbox = Sandbox::new();
    for name in ["SCF_MINE", "QCLOUD_MINE", "TENCENTCLOUD_MINE", "a-b"] {
        let variable = format!("{name}=1");
        let options = ["--platform", "scf", "--env", &variable];
        sandbox.event(&images::oci("function"), &options).fails(2, &[name]);
    }
}

#[test]
fn an_event_that_is_too_large_is_refused_before_anything_starts() {
    let sandbox = Sandbox::new();
    let event = sandbox.write("event.json", vec![b'1'; (6 << 20) + 1]);
    let event = format!("@{}", event.display());
    let args = ["run", &images::oci("function"), "--platform", "scf", "--event", &event];
    let outcome = sandbox.run(&args);
    assert_ne!(outcome.code(), 0);
    assert!(outcome.stderr.contains("6291456"), "{}", outcome.stderr);
}

#[test]
fn requests_outside_the_rules_of_http_are_refused() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--platform", "scf"]);
    for head in [
        "GET /exit/3 HTTP/1.1\r\nHost: a\r\nbad name: x\r\n\r\n",
        "GET /exit/3 HTTP/1.1\r\nHost: a\r\nx-bad: a\u{1}b\r\n\r\n",
        "GET /exit/3 HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        "GET /exit/3 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    ] {
        let mut connection = served.connect();
        connection.send(head.as_bytes());
        assert_eq!(connection.read_head().status, 400, "{head:?}");
    }
    // The function has got none of them: it would be gone.
    let _ = served.get("/headers").ok();
    served.stop();
}

#[test]
fn headers_and_paths_may_be_longer_than_those_of_old_http_functions() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--platform", "scf"]);
    let path = format!("/headers/{}?{}", "p".repeat(20_000), "q".repeat(20_000));
    let long = "h".repeat(60_000);
    let headers = served.request("GET", &path, &[("x-long", &long)], b"").ok().json();
    assert_eq!(header(&headers, "x-long"), Some(long.as_str()));
    let longer = "h".repeat(66_000);
    let refused = served.request("GET", "/headers", &[("x-long", &longer)], b"");
    assert_eq!(refused.status, 406, "{}", refused.text());
    served.stop();
}

/// What the container writes before its server listens comes before the first `START`.
#[test]
fn output_of_the_start_comes_when_it_is_written() {
    let sandbox = Sandbox::new();
    let outcome =
        sandbox.event(&images::oci("function"), &["--platform", "scf", "--", "log", "3", "500"]).ok();
    let place = |text: &str| {
        let place = outcome.stderr.find(text);
        place.unwrap_or_else(|| panic!("no {text} in {}", outcome.stderr))
    };
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert!(place("line 2") < place("START RequestId:"), "{lines:#?}");
}
