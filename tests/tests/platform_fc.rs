//! What a function of Alibaba FC is given, and what its caller is told when it does not come up.

use serde_json::{Value, json};
use skiff_tests::{Outcome, Sandbox, images};

/// Starts a variant of the function that cannot come up.
#[track_caller]
fn failed_start(image: &str, options: &[&str]) -> Outcome {
    let sandbox = Sandbox::new();
    sandbox.event(&images::oci(image), &[&["--start-timeout", "1s"], options].concat()).expect_code(3)
}

/// Status with code, and the body of the answer.
#[track_caller]
fn answer(outcome: &Outcome) -> (String, Value) {
    let (status, body) = outcome.platform_answer();
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// `1-` or `c-`, 8 digits of the time, 8 and 12 more.
#[track_caller]
fn assert_id(text: &str, first: &str) {
    let parts: Vec<&str> = text.split('-').collect();
    let form = parts.len() == 4
        && parts[0] == first
        && is_hex(parts[1], 8)
        && is_hex(parts[2], 8)
        && is_hex(parts[3], 12);
    assert!(form, "{text}");
}

#[test]
fn the_environment_is_the_documented_one() {
    let sandbox = Sandbox::new();
    let identity = ["--name", "resize", "--region", "cn-shanghai", "--account-id", "1987654321098765"];
    let served = sandbox.serve_function(&[&identity[..], &["--memory", "256MiB"]].concat());
    let environment = served.get("/env").ok().json();
    for (name, value) in [
        ("FC_FUNC_CODE_PATH", "/code"),
        ("FC_ACCOUNT_ID", "1987654321098765"),
        ("FC_FUNCTION_NAME", "resize"),
        ("FC_FUNCTION_HANDLER", "index.handler"),
        ("FC_FUNCTION_MEMORY_SIZE", "256"),
        ("FC_REGION", "cn-shanghai"),
        ("FC_CUSTOM_LISTEN_PORT", "9000"),
    ] {
        assert_eq!(environment[name], value, "{name}");
    }
    let instance = environment["FC_INSTANCE_ID"].as_str().expect("an instance id");
    assert_id(instance, "c");
    let hostname = served.get("/read?path=/etc/hostname").ok().text();
    assert_eq!(hostname.trim(), instance);
    for name in ["ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_SECURITY_TOKEN", "FC_SERVICE_NAME"] {
        assert!(environment[name].is_null(), "{name} without a role, or of the older API");
    }
}

#[test]
fn a_role_gives_credentials_in_environment_and_headers() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.skiff(&["run", &images::oci("function"), "--log-level", "trace"]);
    command.env("SKIFF_FUNCTION_ACCESS_KEY_ID", "STS.the-id");
    command.env("SKIFF_FUNCTION_ACCESS_KEY_SECRET", "the-key-4f1d");
    command.env("SKIFF_FUNCTION_SECURITY_TOKEN", "the-token-9c2e");
    let served = sandbox.start(command);
    let environment = served.get("/env").ok().json();
    assert_eq!(environment["ALIBABA_CLOUD_ACCESS_KEY_ID"], "STS.the-id");
    assert_eq!(environment["ALIBABA_CLOUD_ACCESS_KEY_SECRET"], "the-key-4f1d");
    assert_eq!(environment["ALIBABA_CLOUD_SECURITY_TOKEN"], "the-token-9c2e");
    let headers = served.get("/headers").ok().json();
    assert_eq!(header(&headers, "x-fc-access-key-id"), "STS.the-id");
    assert_eq!(header(&headers, "x-fc-access-key-secret"), "the-key-4f1d");
    assert_eq!(header(&headers, "x-fc-security-token"), "the-token-9c2e");
    let said = served.stop().stderr;
    assert!(!said.contains("the-key-4f1d") && !said.contains("the-token-9c2e"), "{said}");
}

/// The only value of a header as the function saw it.
#[track_caller]
fn header<'a>(headers: &'a Value, name: &str) -> &'a str {
    let pairs = headers.as_array().expect("headers");
    let mut values = pairs.iter().filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str());
    let value = values.next().unwrap_or_else(|| panic!("no {name} in {headers}"));
    assert!(values.next().is_none(), "{name} twice");
    value
}

#[test]
fn the_common_headers_come_with_every_request() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--name", "resize", "--memory", "256MiB", "--timeout", "7s"]);
    let headers = served.get("/headers?x=1").ok().json();
    for (name, value) in [
        ("x-fc-function-name", "resize"),
        ("x-fc-function-handler", "index.handler"),
        ("x-fc-function-memory", "256"),
        ("x-fc-function-timeout", "7"),
        ("x-fc-region", "cn-hangzhou"),
        ("x-fc-account-id", "1234567890123456"),
        ("x-fc-qualifier", "LATEST"),
        ("x-fc-version-id", ""),
        ("x-fc-service-logproject", ""),
        ("x-fc-service-logstore", ""),
        ("x-fc-access-key-id", ""),
        ("x-fc-access-key-secret", ""),
        ("x-fc-security-token", ""),
        ("x-fc-control-path", "/http-invoke"),
    ] {
        assert_eq!(header(&headers, name), value, "{name}");
    }
    assert_id(header(&headers, "x-fc-request-id"), "1");
}

#[test]
fn an_answer_has_the_ids_of_request_and_instance() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let response = served.get("/headers").ok();
    let request = response.header("x-fc-request-id").expect("a request id").to_owned();
    assert_id(&request, "1");
    assert_eq!(header(&response.json(), "x-fc-request-id"), request);
    assert_id(response.header("x-fc-instance-id").expect("an instance id"), "c");
}

#[test]
fn an_event_is_posted_to_invoke() {
    let sandbox = Sandbox::new();
    let answer = sandbox.event(&images::oci("function"), &["--name", "resize"]).ok().json();
    assert_eq!((&answer["method"], &answer["path"]), (&"POST".into(), &"/invoke".into()));
    let headers = &answer["headers"];
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert_eq!(headers["x-fc-control-path"], "/invoke");
    assert_eq!(headers["x-fc-function-name"], "resize");
}

#[test]
fn the_log_has_fcs_lines_around_the_functions_own() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.event(&images::oci("function"), &["--memory", "256MiB"]).ok();
    let lines: Vec<&str> =
        outcome.stderr.lines().filter_map(|line| line.split_once(" | ")).map(|l| l.1).collect();
    let start = lines.iter().find_map(|line| line.strip_prefix("FC Invoke Start RequestId: "));
    let end = lines.iter().find_map(|line| line.strip_prefix("FC Invoke End RequestId: "));
    assert_eq!(start.expect("a start line"), end.expect("an end line"));
    assert_id(start.expect("a start line"), "1");
    let summary = lines.iter().find(|line| line.starts_with("Duration: ")).expect("a summary");
    for text in [" ms, Billed Duration: ", " ms, Memory Size: 256 MB, Max Memory Used: ", " MB"] {
        assert!(summary.contains(text), "{summary}");
    }
}

#[test]
fn a_server_that_does_not_listen_in_time() {
    for image in ["hangs", "local"] {
        let outcome = failed_start(image, &[]);
        let (status, body) = answer(&outcome);
        assert_eq!(status, "412 (FunctionNotStarted)", "{image}");
        assert_eq!(body["Code"], "FunctionNotStarted");
        let message = "Function instance health check failed on port 9000 in 1 seconds.\nLogs:";
        assert_eq!(body["Message"], message, "{image}");
        assert_id(body["RequestId"].as_str().expect("a request id"), "1");
        assert_eq!(body.as_object().map(serde_json::Map::len), Some(3), "{body}");
    }
}

#[test]
fn the_log_is_in_the_error_of_a_server_that_listens_elsewhere() {
    // Python says where it listens: not where FC looks.
    let sandbox = Sandbox::with_shared_images();
    let script = "import os; os.environ.pop('FC_CUSTOM_LISTEN_PORT'); exec(open('server.py').read())";
    let options = ["--port", "9001", "--start-timeout", "5s", "--", "-c", script];
    let outcome = sandbox.event(&images::oci("python"), &options).expect_code(3);
    let (_, body) = answer(&outcome);
    let message = body["Message"].as_str().expect("a message");
    let start = "Function instance health check failed on port 9001 in 5 seconds.\nLogs:python 3.";
    assert!(message.starts_with(start) && message.ends_with("listens on 9000"), "{message}");
}

#[test]
fn the_older_api_words_it_as_its_page_does() {
    let outcome = failed_start("local", &["--platform", "fc2"]);
    let (status, body) = answer(&outcome);
    assert_eq!(status, "412 (FunctionNotStarted)");
    assert_eq!(body["ErrorCode"], "FunctionNotStarted");
    let message = body["ErrorMessage"].as_str().expect("a message");
    assert!(
        message.starts_with("The CA's http server cannot be started:ContainerStartDuration:1"),
        "{message}"
    );
    assert!(message.contains(". Ping CA failed due to: dial tcp 21.0."), "{message}");
    assert!(message.contains(":9000: getsockopt: connection refused"), "{message}");
}

#[test]
fn a_server_that_exits_is_told_at_once_with_its_code_and_its_log() {
    let started = std::time::Instant::now();
    let sandbox = Sandbox::new();
    let outcome = sandbox.event(&images::oci("exits"), &[]).expect_code(3);
    assert!(started.elapsed().as_secs() < 30, "it waited for the deadline");
    let (status, body) = answer(&outcome);
    assert_eq!(status, "412 (CAExited)");
    assert_eq!(
        body["Message"],
        "Function instance exited unexpectedly(code 7, message:argument list too long) with start command '/function exit 7 it is over '. \
         Logs:it is over"
    );
}

#[test]
fn an_exit_code_has_the_text_of_its_errno() {
    let (_, body) = answer(&failed_start("function", &["--", "exit", "1"]));
    assert_eq!(
        body["Message"],
        "Function instance exited unexpectedly(code 1, message:operation not permitted) with start command \
         '/function exit 1 '. Logs:"
    );
}

#[test]
fn a_command_that_is_not_there() {
    let (status, body) = answer(&failed_start("no-such-entrypoint", &[]));
    assert_eq!(status, "412 (CAFileNotFound)");
    assert_eq!(
        body["Message"],
        "The function cannot be started. Failed to start function instance. Error: the file /no/such/file is \
         not exist"
    );
}

#[test]
fn a_command_that_cannot_be_executed() {
    let (status, body) = answer(&failed_start("not-executable", &[]));
    assert_eq!(status, "412 (CAFilePermission)");
    assert_eq!(
        body["Message"],
        "The function cannot be started. Function instance exited unexpectedly(code 13, message:permission \
         denied) with start command '/data.txt '."
    );
}

#[test]
fn a_server_that_is_late_but_in_time() {
    let sandbox = Sandbox::new();
    let options = ["--start-timeout", "5s", "--", "late", "1500"];
    let answer = sandbox.event(&images::oci("function"), &options).ok().json();
    assert_eq!(answer["event"], json!({"k": 1}));
}

#[test]
fn variables_that_fc_reserves_are_refused() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.event(&images::oci("function"), &["--env", "FC_MINE=1", "--env", "1X=2"]);
    outcome.fails(2, &["FC_MINE", "1X"]);
}

#[test]
fn a_client_over_tcp_is_named() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--listen", "0"]);
    let mut connection = served.connect_tcp();
    let headers = connection.request("GET", "/headers", &[], b"").ok().text();
    for pair in [r#"["x-forwarded-for","127.0.0.1"]"#, r#"["x-forwarded-proto","http"]"#] {
        assert!(headers.contains(pair), "{pair}: {headers}");
    }
    assert!(
        !served.get("/headers").ok().text().contains("x-forwarded-for"),
        "one on the socket has no address"
    );
    served.stop();
}

#[test]
fn a_function_is_no_proxy() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let mut connection = served.connect();
    connection.send(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n");
    assert_eq!(connection.read_head().status, 405);
    served.stop();
}

#[test]
fn lines_like_the_platforms_pass_as_others_do() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let _ = served.get("/log?line=FC%20Invoke%20Start%20RequestId:%20its-own").ok();
    served.wait_for_stderr("FC Invoke Start RequestId: its-own");
    served.stop();
}
