//! The vendors' official SDKs call functions here: only the endpoint differs from a call of the cloud.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_tests::{Sandbox, Served, images, wait_for};

const KEY_ID: &str = "LTAI-test-key";
const KEY_SECRET: &str = "the-secret-91bc";

/// A function behind the API, called by one SDK.
struct Called {
    sandbox: Sandbox,
    served: Served,
    outcomes: Value,
}

impl Called {
    /// Serves the function and makes all calls of one SDK; `too_large` is one byte more than events may have.
    #[track_caller]
    fn new(platform: &str, program: &str, sdk: &str, too_large: usize) -> Self {
        let sandbox = Sandbox::new();
        let keys = sandbox.write("keys", format!("# who may call\n{KEY_ID} {KEY_SECRET}\n"));
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&keys, private).expect("set");
        let done = sandbox.path().join("done");
        let served = sandbox.serve_function(&[
            "--platform",
            platform,
            "--name",
            "demo",
            "--timeout",
            "1s",
            "--api-listen",
            "0",
            "--api-keys",
            keys.to_str().expect("utf-8"),
            "--async-on-success",
            done.to_str().expect("utf-8"),
        ]);
        let outcomes = call(&sandbox, &served, program, sdk, too_large);
        Self { sandbox, served, outcomes }
    }

    fn text(&self, case: &str, field: &str) -> String {
        let value = &self.outcomes[case][field];
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    #[track_caller]
    fn assert(&self, case: &str, field: &str, expected: &str) {
        assert_eq!(self.text(case, field), expected, "{case}: {}", self.outcomes[case]);
    }

    #[track_caller]
    fn assert_has(&self, case: &str, field: &str, part: &str) {
        assert!(self.text(case, field).contains(part), "{case}: {}", self.outcomes[case]);
    }

    fn header(&self, case: &str, name: &str) -> String {
        let headers = self.outcomes[case]["headers"].as_object().cloned().unwrap_or_default();
        let found = headers.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.and_then(|(_, value)| Some(value.as_str()?.to_owned())).unwrap_or_default()
    }

    /// The event that was taken for later has been worked on, with the id that its caller was told.
    #[track_caller]
    fn assert_done(&self, request_id: &str) {
        let record = self.record();
        assert_eq!(record["requestContext"]["requestId"], request_id, "{record}");
        assert_eq!(record["requestPayload"]["case"], "asynchronous", "{record}");
        assert_eq!(record["responsePayload"]["event"]["case"], "asynchronous", "{record}");
    }

    /// What has been told of it.
    #[track_caller]
    fn record(&self) -> Value {
        let done = self.sandbox.path().join("done");
        let record = wait_for(Duration::from_secs(20), || {
            std::fs::read_to_string(&done).ok().filter(|text| text.ends_with('\n'))
        });
        serde_json::from_str(&record.expect("a record")).expect("JSON")
    }

    fn end(self) {
        let (stdout, stderr) = (self.served.stdout(), self.served.stderr());
        assert!(!stdout.contains(KEY_SECRET) && !stderr.contains(KEY_SECRET), "the secret is told");
        self.served.stop();
        drop(self.sandbox);
    }
}

#[track_caller]
fn call(sandbox: &Sandbox, served: &Served, program: &str, sdk: &str, too_large: usize) -> Value {
    let address = wait_for(Duration::from_secs(20), || {
        let text = served.stdout();
        let address = text.split("invoke API on http://").nth(1)?.split('\n').next()?.to_owned();
        Some(address)
    });
    let installed = images::target_dir().join("sdk");
    assert!(installed.join("stamp").exists(), "the SDKs are not installed: run scripts/sdks");
    let scripts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk");
    let mut command = match program {
        "python" => Command::new(installed.join("python/bin/python")),
        _ => Command::new("node"),
    };
    if program == "python" && ["all", "intl"].contains(&sdk) {
        command.env("PYTHONPATH", installed.join(sdk));
    }
    let script = scripts.join(if program == "python" { "call.py" } else { "call.js" });
    command.arg(script).args([sdk, &address.expect("an address"), "demo", KEY_ID, KEY_SECRET]);
    command.arg(too_large.to_string()).env("NODE_PATH", installed.join("node_modules"));
    let output = command.current_dir(sandbox.path()).output().expect("started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{}", served.stderr());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"))
}

/// More than Alibaba takes: 32 MiB and the JSON around it.
const FC_TOO_LARGE: usize = 32 << 20;
const SCF_TOO_LARGE: usize = 6 << 20;

/// What SDKs give that raise exceptions for errors of the API alone.
#[track_caller]
fn check_fc(called: &Called, in_service: &str) {
    called.assert_has("success", "body", r#""event":{"case":"success"}"#);
    called.assert_has("success", "body", r#""x-fc-control-path":"/invoke""#);
    for name in ["x-fc-request-id", "x-fc-instance-id", "x-fc-invocation-duration", "x-fc-max-memory-usage"] {
        assert!(!called.header("success", name).is_empty(), "{name}: {}", called.outcomes["success"]);
    }
    let kind = if in_service == "." { "function" } else { "service" };
    assert_eq!(called.header("success", &format!("x-fc-invocation-{kind}-version")), "LATEST");
    assert!(called.header("success", "x-fc-log-result").starts_with("RkMgSW52b2tlIFN0YXJ0"), "no log");
    called.assert("function_error", "body", r#"{"errorMessage":"the function says no"}"#);
    assert_eq!(called.header("function_error", "x-fc-error-type"), "HandledInvocationError");
    called.assert("unknown_function", "error", "FunctionNotFound");
    called.assert_has(
        "unknown_function",
        "message",
        &format!("function 'no-such' does not exist{in_service}"),
    );
    called.assert("too_large", "error", "EntityTooLarge");
    called.assert_has("too_large", "message", "payload size exceeds maximum allowed size (33554432 bytes)");
    called.assert("asynchronous", "body", "");
    called.assert_done(&called.header("asynchronous", "x-fc-request-id"));
    called.assert_has(
        "timeout",
        "body",
        r#"{"errorMessage":"Function timed out after 1 seconds (maxMemoryUsage: "#,
    );
    assert_eq!(called.header("timeout", "x-fc-error-type"), "UnhandledInvocationError");
}

/// What the first SDKs give: the body alone.
#[track_caller]
fn check_first(called: &Called) {
    called.assert_has("success", "body", r#""event":{"case":"success"}"#);
    called.assert("unknown_function", "error", "FunctionNotFound");
    called.assert_has(
        "unknown_function",
        "message",
        "function 'no-such' does not exist in service 'default'",
    );
    called.assert("too_large", "error", "EntityTooLarge");
    called.assert("asynchronous", "body", "");
    let record = called.record();
    assert_eq!(record["requestPayload"]["case"], "asynchronous", "{record}");
}

#[test]
fn aliyun_fc_for_python() {
    let called = Called::new("fc2", "python", "fc", FC_TOO_LARGE);
    check_first(&called);
    called.assert_has("function_error", "message", "the function says no");
    called.assert_has("timeout", "message", "Function timed out after 1 seconds");
    called.end();
}

#[test]
fn alicloud_fc_for_node() {
    let called = Called::new("fc2", "node", "fc", FC_TOO_LARGE);
    check_first(&called);
    called.assert("function_error", "body", r#"{"errorMessage":"the function says no"}"#);
    called.assert_has("timeout", "body", "Function timed out after 1 seconds");
    called.end();
}

#[test]
fn aliyun_fc2_for_python() {
    let called = Called::new("fc2", "python", "fc2", FC_TOO_LARGE);
    called.assert_has("success", "body", r#""event":{"case":"success"}"#);
    assert!(!called.header("success", "x-fc-log-result").is_empty());
    // It raises exceptions for errors of the function too.
    called.assert_has("function_error", "message", "the function says no");
    called.assert("function_error", "status", "200");
    called.assert("unknown_function", "error", "FunctionNotFound");
    called.assert("unknown_function", "status", "404");
    called.assert("too_large", "error", "EntityTooLarge");
    called.assert_done(&called.header("asynchronous", "x-fc-request-id"));
    called.assert_has("timeout", "message", "Function timed out after 1 seconds");
    // An HTTP function sees the whole path and the parameters.
    called.assert_has("other", "body", r#""uri":"/2016-08-15/proxy/default/demo/request?b=2+3&a=1""#);
    called.assert_has("other", "body", r#"["x-fc-control-path","/http-invoke"]"#);
    called.end();
}

#[test]
fn alibabacloud_fc_open20210406_for_python() {
    let called = Called::new("fc2", "python", "open20210406", FC_TOO_LARGE);
    check_fc(&called, " in service 'default'");
    called.assert("asynchronous", "status", "202");
    called.end();
}

#[test]
fn alibabacloud_fc20230330_for_python() {
    let called = Called::new("fc", "python", "fc20230330", FC_TOO_LARGE);
    check_fc(&called, ".");
    called.assert("asynchronous", "status", "202");
    called.end();
}

#[test]
fn alicloud_fc2_for_node() {
    let called = Called::new("fc2", "node", "fc2", FC_TOO_LARGE);
    check_fc(&called, " in service 'default'");
    called.assert_has("other", "body", r#""uri":"/2016-08-15/proxy/default/demo/request?a=1&b=2%203""#);
    called.end();
}

#[test]
fn alicloud_fc20230330_for_node() {
    let called = Called::new("fc", "node", "fc20230330", FC_TOO_LARGE);
    check_fc(&called, ".");
    called.end();
}

#[track_caller]
fn check_scf(called: &Called) {
    called.assert_has("success", "RetMsg", r#""event":{"case":"success"}"#);
    called.assert("success", "InvokeResult", "0");
    called.assert("success", "ErrMsg", "");
    let id = called.text("success", "FunctionRequestId");
    called.assert_has("success", "Log", &format!("START RequestId:{id}\n"));
    let number = |field: &str| called.outcomes["success"][field].as_f64().expect(field);
    assert!(number("MemUsage") > 100_000.0 && number("MemUsage") < 128e6, "bytes");
    assert!(number("Duration") > 0.0 && number("Duration") < 1000.0, "milliseconds");
    assert!((number("BillDuration") - number("Duration").ceil()).abs() < 0.5, "whole milliseconds");
    // No log unless asked for.
    called.assert_has("other", "RetMsg", r#""event":{"case":"invoke_function"}"#);
    called.assert("other", "Log", "");
    called.assert("function_error", "InvokeResult", "1");
    called.assert("function_error", "RetMsg", r#"{"errorMessage":"the function says no"}"#);
    called.assert("unknown_function", "error", "ResourceNotFound.Function");
    called.assert("too_large", "error", "InvalidParameter.Payload");
    called.assert("asynchronous", "RetMsg", "");
    called.assert_done(&called.text("asynchronous", "FunctionRequestId"));
    called.assert("timeout", "InvokeResult", "-1");
    called.assert("timeout", "ErrMsg", "Invoking task timed out after 1 seconds");
    called.assert_has(
        "timeout",
        "RetMsg",
        r#"{"errorCode":-1,"errorMessage":"Invoking task timed out after 1 seconds","#,
    );
    called.assert_has("timeout", "RetMsg", r#""statusCode":433}"#);
    check_scf_states(called);
}

/// What has become of the calls, as the SDK reads it.
#[track_caller]
fn check_scf_states(called: &Called) {
    let status = &called.outcomes["status"];
    let request = &status["request"]["Data"][0];
    assert_eq!(status["request"]["TotalCount"], 1, "{status}");
    assert_eq!(request["RequestId"], called.text("success", "FunctionRequestId"), "{status}");
    assert_eq!(request["RetMsg"], called.text("success", "RetMsg"), "{status}");
    assert_eq!((&request["RetCode"], &request["RetryNum"]), (&json!(0), &json!(0)), "{status}");
    assert!(request["MemUsage"].as_f64().is_some_and(|mb| mb > 0.1 && mb < 128.0), "MB: {status}");
    assert!(request["Duration"].as_f64().is_some_and(|ms| ms > 0.0 && ms < 1000.0), "ms: {status}");
    let state =
        |case: &str| (status[case]["Result"]["Status"].clone(), status[case]["Result"]["StatusCode"].clone());
    assert_eq!(state("asynchronous"), (json!("FINISHED"), json!(200)), "{status}");
    assert_eq!(state("running"), (json!("RUNNING"), json!(0)), "{status}");
    assert!(status["terminate"]["RequestId"].is_string(), "{status}");
    assert_eq!(state("terminated").0, "ABORTED", "{status}");
    assert_eq!(status["again"]["error"], "FailedOperation.AsyncEventStatus", "{status}");
    assert_eq!(status["unknown"]["error"], "ResourceNotFound.AsyncEvent", "{status}");
    // `skiff run` keeps no logs.
    assert_eq!(status["logs"]["error"], "UnsupportedOperation", "{status}");
    let listed = |case: &str| {
        let events = status[case]["EventList"].as_array().cloned().unwrap_or_default();
        events.iter().map(|event| event["InvokeRequestId"].clone()).collect::<Vec<_>>()
    };
    let asynchronous = json!(called.text("asynchronous", "FunctionRequestId"));
    assert_eq!(listed("list"), [asynchronous, status["doomed"].clone()], "{status}");
    assert_eq!(listed("aborted"), [status["doomed"].clone()], "{status}");
    let event = &status["list"]["EventList"][0];
    assert_eq!((&event["Status"], &event["Qualifier"]), (&json!("FINISHED"), &json!("$LATEST")), "{status}");
    let time = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    assert!(time("StartTime").len() == 26 && time("StartTime") <= time("EndTime"), "{status}");
}

#[track_caller]
fn called_by_tencents(program: &str, sdk: &str) {
    let called = Called::new("scf", program, sdk, SCF_TOO_LARGE);
    check_scf(&called);
    called.end();
}

#[test]
fn tencentcloud_scf_for_python() {
    called_by_tencents("python", "scf");
}

#[test]
fn tencentcloud_of_all_products_for_python() {
    called_by_tencents("python", "all");
    called_by_tencents("python", "intl");
}

#[test]
fn tencentcloud_of_all_products_for_node() {
    called_by_tencents("node", "all");
    called_by_tencents("node", "intl");
}

#[test]
fn tencentcloud_scf_for_node() {
    called_by_tencents("node", "scf");
}
