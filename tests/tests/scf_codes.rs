//! The status codes of Tencent SCF, each brought about by a container or a host that misbehaves. Those that
//! other files show are not repeated: 400, 405, 444 to 447 in `platform_scf`, 403 in `http_event`, 455 and
//! 456 in `websocket`.

use serde_json::{Value, json};
use skiff_tests::http::Response;
use skiff_tests::{Outcome, Sandbox, Served, images};

fn serve(sandbox: &Sandbox, options: &[&str]) -> Served {
    sandbox.serve_function(&[&["--platform", "scf"], options].concat())
}

#[track_caller]
fn assert_error(answer: &Response, code: u16, text: &str) {
    assert_eq!(answer.status, code, "{}", answer.text());
    assert_eq!(answer.json(), json!({ "errorMessage": text, "statusCode": code }));
}

/// Invokes the function with an event; what its caller gets.
fn event(event: &str, options: &[&str]) -> Outcome {
    let image = images::oci("function");
    let args = ["run", &image, "--platform", "scf", "--event", event];
    Sandbox::new().run(&[&args[..], options].concat())
}

#[track_caller]
fn assert_event_error(outcome: &Outcome, code: u16, text: &str) {
    let answer = outcome.json();
    let expected = json!({
        "errorCode": -1, "errorMessage": text, "requestId": answer["requestId"], "statusCode": code,
    });
    assert_eq!(answer, expected, "{}", outcome.stderr);
}

#[test]
fn bodies_and_answers_that_are_too_large() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox, &["--timeout", "20s", "--memory", "256MiB"]);
    let mut connection = served.connect();
    connection.send_head("POST", "/request", &[("Content-Length", "6291457")]);
    assert_error(
        &connection.read_response("POST"),
        406,
        "payload size exceeds maximum allowed size (6291456 bytes)",
    );
    assert_eq!(served.get(&format!("/large?bytes={}", 6 << 20)).ok().body.len(), 6 << 20);
    let large = served.get(&format!("/large?bytes={}", (6 << 20) + 1));
    assert_error(&large, 407, "The size of response exceeds the upper limit (6MB)");
    assert_eq!(served.get("/head?bytes=3000").status, 200);
    let head = served.get("/head?bytes=5000");
    assert_error(&head, 443, "user code error: response headers exceed maximum allowed size (4096 bytes)");
    let outcome = event(r#"{"answer_bytes":6291457}"#, &["--memory", "256MiB"]).expect_code(3);
    assert_event_error(&outcome, 407, "The size of response exceeds the upper limit (6MB)");
}

#[test]
fn a_time_limit_and_an_exit() {
    let outcome = event(r#"{"sleep_ms":60000}"#, &["--timeout", "1s"]).expect_code(3);
    assert_event_error(&outcome, 433, "Invoking task timed out after 1 seconds");
    let outcome = event(r#"{"exit":3}"#, &[]).expect_code(1);
    assert_event_error(&outcome, 439, "User process exit when running");
    let outcome = event(r#"{"status":500}"#, &[]).expect_code(1);
    assert_eq!(outcome.stdout(), "status 500\n", "the body of a function error is the server's");
    let sandbox = Sandbox::new();
    let served = serve(&sandbox, &[]);
    assert_error(&served.request("POST", "/exit/3", &[], b""), 439, "User process exit when running");
}

#[test]
fn memory_that_runs_out_is_told_to_all_that_run() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox, &["--memory", "64MiB", "--concurrency", "2", "--timeout", "60s"]);
    let text = "Task memory exceeded 64 MB";
    let mut other = served.connect();
    other.send_head("GET", "/sleep/50000", &[]);
    served.wait_for_stderr("START RequestId:");
    assert_error(&served.request("POST", "/oom", &[], b""), 434, text);
    assert_error(&other.read_response("GET"), 434, text);
}

#[test]
fn a_time_limit_is_one_requests_own_where_others_run_beside_it() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox, &["--concurrency", "2", "--timeout", "3s"]);
    let mut late = served.connect();
    late.send_head("GET", "/sleep/50000", &[]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let mut other = served.connect();
    other.send_head("GET", "/sleep/2000", &[]);
    assert_error(&late.read_response("GET"), 433, "Invoking task timed out after 3 seconds");
    assert_eq!(other.read_response("GET").ok().text(), "slept 2000 ms\n");
}

#[test]
fn a_client_that_goes_away_is_told_in_the_log() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox, &["--timeout", "60s"]);
    let mut connection = served.connect();
    connection.send_head("GET", "/sleep/50000", &[]);
    served.wait_for_stderr("START RequestId:");
    drop(connection);
    served.wait_for_stderr(r#"Result:{"errorCode":-1,"errorMessage":"Request canceled","statusCode":499}"#);
    let _ = served.get("/headers").ok();
}

/// The answer of an event where the disk of images and writable layers is full.
#[track_caller]
fn without_room(platform: &str) -> (String, String) {
    let sandbox = Sandbox::new();
    let state = sandbox.state_dir().display().to_string();
    let (skiff, keeper) = (Sandbox::program("skiff"), Sandbox::program("skiff-keeper"));
    // In a mount namespace of its own, which goes with its last process: a small disk that is filled up
    // when the image is in the store.
    let script = format!(
        "set -e; mkdir -p {state}; mount -t tmpfs -o size=24m,mode=700 tmpfs {state}; \
         {skiff} --quiet pull {image} >/dev/null; \
         dd if=/dev/zero of={state}/filler bs=64k 2>/dev/null || true; \
         exec {skiff} run {image} --pull missing --platform {platform} --writable loop --event '{{}}'",
        skiff = skiff.display(),
        image = images::oci("function"),
    );
    let mut command = sandbox.command(std::path::Path::new("unshare"), &["--mount", "sh", "-c", &script]);
    command.env("SKIFF_STATE_DIR", &state).env("SKIFF_RUN_DIR", sandbox.run_dir());
    command.env("SKIFF_KEEPER", keeper);
    let outcome = sandbox.finish(command).expect_code(3);
    assert!(outcome.stderr.contains("No space left on device"), "{}", outcome.stderr);
    outcome.platform_answer()
}

#[test]
fn a_host_without_room_for_the_writable_layer() {
    let (status, body) = without_room("scf");
    assert_eq!(status, "449 (InsufficientResources)");
    assert!(body.ends_with(r#""statusCode":449}"#), "{body}");
    // fc has no such code.
    let (status, body) = without_room("fc");
    assert_eq!(status, "500 (InternalServerError)");
    assert!(body.contains(r#""Message":"an internal error has occurred. Please retry.""#), "{body}");
}

#[test]
fn an_image_without_a_command_and_a_root_that_is_read_only() {
    let sandbox = Sandbox::with_shared_images();
    let run = |image: &str, options: &[&str]| {
        sandbox.event(&images::oci(image), &[&["--platform", "scf"], options].concat())
    };
    let none = run("no-command", &[]).expect_code(3);
    let (status, body) = none.platform_answer();
    assert_eq!(status, "500 (InternalError)");
    assert!(body.contains("command") && body.ends_with(r#""statusCode":500}"#), "{body}");
    let script = "open('/new', 'w').close()\n\
                  from server import *\n\
                  ThreadingHTTPServer(('0.0.0.0', 9000), Handler).serve_forever()";
    let writes = ["--timeout", "20s", "--", "-c", script];
    let _ = run("python", &writes).ok();
    let refused = run("python", &[&["--read-only"], &writes[..]].concat()).expect_code(3);
    assert_eq!(refused.platform_answer().0, "405 (ContainerStateExited)");
    assert!(refused.stderr.contains("Read-only file system"), "{}", refused.stderr);
}

// --- Jobs ----------------------------------------------------------------------------------------

#[test]
fn events_that_no_job_can_have() {
    let sandbox = Sandbox::new();
    let large = sandbox.write("large", format!("\"{}\"", "x".repeat(128 * 1024)));
    let run = |event: &str| {
        let image = images::oci("function");
        sandbox.run(&["run", &image, "--platform", "scf", "--job", "--event", event, "--", "job"])
    };
    let cases = [
        (format!("@{}", large.display()), "406 (RequestTooLarge)", 406),
        ("k=v".to_owned(), "400 (InvalidParameterValue)", 400),
    ];
    for (event, expected, code) in cases {
        let (status, body) = run(&event).expect_code(2).platform_answer();
        assert_eq!(status, expected);
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((&body["statusCode"], &body["errorCode"]), (&json!(code), &json!(-1)));
    }
}

#[test]
fn a_job_has_the_eight_variables_too() {
    let options = ["--name", "resize", "--app-id", "1252245989", "--job", "--", "job"];
    let said = event(r#"{"env":true}"#, &options).ok().stderr;
    for variable in [
        "TENCENTCLOUD_RUNENV=SCF",
        "USER_CODE_ROOT=/var/user/",
        "USER=qcloud",
        "SCF_FUNCTIONNAME=resize",
        "SCF_FUNCTIONVERSION=$LATEST",
        "TENCENTCLOUD_REGION=ap-guangzhou",
        "TENCENTCLOUD_APPID=1252245989",
        "TENCENTCLOUD_UIN=100000000001",
    ] {
        assert!(said.lines().any(|line| line.ends_with(variable)), "{variable}: {said}");
    }
}
