//! Containers that misbehave, and every text that Alibaba FC has for that, whole: 3.0 (`fc`) and 2.0 (`fc2`).

use serde_json::{Value, json};
use skiff_tests::{Outcome, Sandbox, assert_like, images};

/// The answer to the caller for whom an instance was started that did not come up: status with code, and
/// the body without what is not known before.
#[track_caller]
fn failed_start(platform: &str, image: &str, options: &[&str], status: &str, body: &str) {
    let sandbox = Sandbox::new();
    let options = [&["--platform", platform, "--start-timeout", "1s"], options].concat();
    let outcome = sandbox.event(&images::oci(image), &options).expect_code(3);
    let (found, answer) = outcome.platform_answer();
    assert_eq!(found, status, "{answer}");
    assert_like(&answer, body);
}

/// Both shapes of the same error, with its text in each model.
#[track_caller]
fn both(image: &str, options: &[&str], code: &str, three: &str, two: &str) {
    let status = format!("412 ({code})");
    let body = format!(r#"{{"RequestId":"<id>","Code":"{code}","Message":"{three}"}}"#);
    failed_start("fc", image, options, &status, &body);
    let body = format!(r#"{{"ErrorCode":"{code}","ErrorMessage":"{two}"}}"#);
    failed_start("fc2", image, options, &status, &body);
}

// --- Starts --------------------------------------------------------------------------------------

#[test]
fn nothing_listens() {
    both(
        "function",
        &["--", "hang", "1"],
        "FunctionNotStarted",
        r"Function instance health check failed on port 9000 in 1 seconds.\nLogs:line 1 of 1",
        "The CA's http server cannot be started:ContainerStartDuration:<n>. Ping CA failed due to: dial tcp \
         <ip>:9000: getsockopt: connection refused Logs : <time> line 1 of 1",
    );
    both(
        "local",
        &[],
        "FunctionNotStarted",
        r"Function instance health check failed on port 9000 in 1 seconds.\nLogs:",
        "The CA's http server cannot be started:ContainerStartDuration:<n>. Ping CA failed due to: dial tcp \
         <ip>:9000: getsockopt: connection refused",
    );
}

#[test]
fn the_command_exits() {
    let codes = [
        ("1", ", message:operation not permitted"),
        ("2", ", message:no such file or directory"),
        ("8", ", message:exec format error"),
        ("13", ", message:permission denied"),
        ("127", ", message:key has expired"),
        ("145", ""),
    ];
    for (code, message) in codes {
        let three = format!(
            "Function instance exited unexpectedly(code {code}{message}) with start command '/function exit \
             {code} bye '. Logs:bye"
        );
        let body = format!(r#"{{"RequestId":"<id>","Code":"CAExited","Message":"{three}"}}"#);
        failed_start("fc", "function", &["--", "exit", code, "bye"], "412 (CAExited)", &body);
    }
    let two = "The CA process either cannot be started or exited:ContainerStartDuration:<n>. CA process cannot be \
               started or exited already: rpc error: code = 106 desc = ContainerStartDuration:<n>. Ping CA failed \
               due to: dial tcp <ip>:9000: i/o timeout Logs : <time> bye";
    let body = format!(r#"{{"ErrorCode":"CAExited","ErrorMessage":"{two}"}}"#);
    failed_start("fc2", "function", &["--", "exit", "1", "bye"], "412 (CAExited)", &body);
}

#[test]
fn memory_runs_out_before_it_listens() {
    both(
        "function",
        &["--memory", "128MiB", "--", "oom"],
        "CAExited",
        "Function instance exited unexpectedly(code 137) with start command '/function oom '. Logs:",
        "The CA process either cannot be started or exited:ContainerStartDuration:<n>. CA process cannot be \
         started or exited already: rpc error: code = 106 desc = ContainerStartDuration:<n>. Ping CA failed due \
         to: dial tcp <ip>:9000: i/o timeout",
    );
}

#[test]
fn the_command_cannot_be_executed() {
    both(
        "no-such-entrypoint",
        &[],
        "CAFileNotFound",
        "The function cannot be started. Failed to start function instance. Error: the file /no/such/file is not \
         exist",
        "The function cannot be started. the file /no/such/file is not exist.",
    );
    both(
        "not-executable",
        &[],
        "CAFilePermission",
        "The function cannot be started. Function instance exited unexpectedly(code 13, message:permission denied) \
         with start command '/data.txt '.",
        "The function cannot be started. /data.txt: permission denied.",
    );
}

#[test]
fn the_first_health_check_fails() {
    let text =
        "The function http server cannot be started. check function health failed with status code: 500 ";
    both("function", &["--health-check", "/status/500"], "FunctionNotStarted", text, text);
}

#[test]
fn the_initializer_fails() {
    for platform in ["fc", "fc2"] {
        let options = ["--initializer-timeout", "1s", "--env", "FUNCTION_CALLBACK=500"];
        let text = "Function instance initialization failed: the server answered /initialize with status 500 \
                    Internal Server Error";
        let body = json!({ "errorMessage": text }).to_string();
        failed_start(platform, "function", &options, "200 (InitializationError)", &body);
    }
}

#[test]
fn the_image_cannot_be_pulled() {
    let sandbox = Sandbox::new();
    let image = format!("oci:{}/none:tag", sandbox.path().display());
    for (platform, body) in [
        (
            "fc",
            r#"{"RequestId":"<id>","Code":"PreconditionFailed","Message":"Failed to pull image: REASON"}"#,
        ),
        ("fc2", r#"{"ErrorCode":"PreconditionFailed","ErrorMessage":"Failed to pull image: REASON"}"#),
    ] {
        let outcome = sandbox.event(&image, &["--platform", platform]).expect_code(3);
        let (status, answer) = outcome.platform_answer();
        assert_eq!(status, "412 (PreconditionFailed)");
        let reason = answer.split("Failed to pull image: ").nth(1).expect("a reason").trim_end_matches("\"}");
        assert!(reason.contains("/none"), "the image is not named: {reason}");
        assert_like(&answer, &body.replace("REASON", reason));
        // And in the events of the instance that it was for.
        let outcome = sandbox.event(&image, &["--platform", platform, "--output", "json"]).expect_code(3);
        let kinds: Vec<(Value, Value)> = told(&outcome, "events")
            .iter()
            .map(|event| (event["type"].clone(), event["level"].clone()))
            .collect();
        let expected = [("Creating", "Normal"), ("PullImageFailed", "Warning"), ("CreateFailed", "Warning")];
        let expected = expected.map(|(kind, level)| (json!(format!("fc:Instance:{kind}")), json!(level)));
        assert_eq!(kinds, expected);
    }
}

/// The lines of one stream of the log, each of which is JSON.
fn told(outcome: &Outcome, stream: &str) -> Vec<Value> {
    let events = outcome.json_events();
    let lines = events.iter().filter(|event| event["event"] == "log" && event["stream"] == stream);
    lines.map(|event| serde_json::from_str(event["line"].as_str().expect("a line")).expect("JSON")).collect()
}

// --- Invocations ---------------------------------------------------------------------------------

const TIMED_OUT: &str = "Function timed out after 1 seconds (maxMemoryUsage: <mb>MB)";
const EXITED: &str =
    "Process exited unexpectedly before completing request (duration: <n>ms, maxMemoryUsage: <mb>MB)";

/// A misbehaving server, as the caller of an event and an HTTP client see it.
struct Case {
    options: &'static [&'static str],
    event: &'static str,
    target: &'static str,
    /// An error of the function, or the code of one of the platform.
    code: Option<&'static str>,
    event_text: &'static str,
    http_text: &'static str,
    /// As records tell it.
    error_type: Option<&'static str>,
}

impl Case {
    fn body(&self, platform: &str, text: &str) -> String {
        match (self.code, platform) {
            (None, _) => format!(r#"{{"errorMessage":"{text}"}}"#),
            (Some(code), "fc") => format!(r#"{{"RequestId":"<id>","Code":"{code}","Message":"{text}"}}"#),
            (Some(code), _) => format!(r#"{{"ErrorCode":"{code}","ErrorMessage":"{text}"}}"#),
        }
    }

    #[track_caller]
    fn check(&self) {
        for platform in ["fc", "fc2"] {
            self.check_event(platform);
            self.check_http(platform);
        }
    }

    /// Of a function error the caller of an event gets 200, and an HTTP client 502.
    #[track_caller]
    fn check_event(&self, platform: &str) {
        let sandbox = Sandbox::new();
        let fixed = ["--platform", platform, "--output", "json"];
        let image = images::oci("function");
        let args = [&["run", &image, "--event", self.event], &fixed[..], self.options].concat();
        let outcome = sandbox.run(&args);
        let answer = outcome.json();
        assert_eq!(answer["status"], if self.code.is_some() { 502 } else { 200 }, "{platform}: {answer}");
        assert_like(answer["body"].as_str().expect("a body"), &self.body(platform, self.event_text));
        let kind = header(&answer, "x-fc-error-type");
        assert_eq!(kind.as_deref(), self.code.is_none().then_some("UnhandledInvocationError"), "{answer}");
        let records = told(&outcome, "requests");
        assert_eq!(records[0]["errorType"].as_str(), self.error_type, "{records:?}");
    }

    #[track_caller]
    fn check_http(&self, platform: &str) {
        let sandbox = Sandbox::new();
        let served = sandbox.serve_function(&[&["--platform", platform], self.options].concat());
        let response = served.request("POST", self.target, &[], b"");
        assert_eq!(response.status, 502, "{platform}: {response:?}");
        assert_like(&response.text(), &self.body(platform, self.http_text));
        let kind = self.code.is_none().then_some("UnhandledInvocationError");
        assert_eq!(response.header("x-fc-error-type"), kind, "{response:?}");
        let text = format!("FC Invoke End RequestId: {}", response.header("x-fc-request-id").expect("an id"));
        served.wait_for_stderr(&format!("{text}, Error: "));
    }
}

fn header(answer: &Value, name: &str) -> Option<String> {
    let headers = answer["headers"].as_array().expect("headers").iter();
    let mut values = headers.filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str());
    values.next().map(str::to_owned)
}

#[test]
fn it_is_late() {
    let case = Case {
        options: &["--timeout", "1s"],
        event: r#"{"sleep_ms":60000}"#,
        target: "/sleep/60000",
        code: None,
        event_text: TIMED_OUT,
        http_text: TIMED_OUT,
        error_type: Some("FunctionTimeoutError"),
    };
    case.check();
}

/// For its caller it has ended.
#[track_caller]
fn check_ended(
    options: &'static [&str],
    event: &'static str,
    target: &'static str,
    error_type: &'static str,
) {
    let (event_text, http_text, error_type) = (EXITED, EXITED, Some(error_type));
    Case { options, event, target, code: None, event_text, http_text, error_type }.check();
}

#[test]
fn it_exits_while_it_serves() {
    check_ended(&[], r#"{"exit":3}"#, "/exit/3", "FunctionUnhandledError");
}

#[test]
fn its_memory_runs_out() {
    check_ended(&["--memory", "128MiB"], r#"{"oom":true}"#, "/oom", "FunctionOOMError");
}

#[test]
fn it_refuses_connections() {
    check_ended(&["--", "deaf"], "{}", "/", "FunctionUnhandledError");
}

#[test]
fn its_answer_is_too_large() {
    let case = Case {
        options: &["--memory", "512MiB"],
        event: r#"{"answer_bytes":33554433}"#,
        target: "/head?bytes=9000",
        code: Some("BadResponse"),
        event_text: "response size exceeds maximum allowed size (33554432 bytes)",
        http_text: "bad response: response headers exceed maximum allowed size (8192 bytes)",
        error_type: None,
    };
    case.check();
}

#[test]
fn it_does_not_speak_http() {
    let text = "bad response: invalid HTTP version parsed";
    let case = Case {
        options: &["--", "garbage"],
        event: "{}",
        target: "/",
        code: Some("BadResponse"),
        event_text: text,
        http_text: text,
        error_type: None,
    };
    case.check();
}
