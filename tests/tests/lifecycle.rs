//! The life of an instance besides its invocations: freezing, callbacks, health checks. And functions that
//! have no server.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use skiff_tests::{Baseline, Outcome, Sandbox, Served, images, wait_for};

const SOON: Duration = Duration::from_secs(20);

#[track_caller]
fn wait_until_frozen(served: &Served) {
    assert!(wait_for(SOON, || served.is_frozen().then_some(())).is_some(), "never frozen");
}

/// What the function was called for besides invocations: `METHOD PATH CONTROL_PATH`.
fn calls(served: &Served) -> Vec<String> {
    let told = served.get("/lifecycle").ok().json();
    let field = |call: &Value, name: &str| call[name].as_str().unwrap_or_default().to_owned();
    let calls = told["calls"].as_array().expect("calls").iter();
    calls
        .map(|c| format!("{} {} {}", field(c, "method"), field(c, "path"), field(c, "control_path")))
        .collect()
}

// --- Freezing ------------------------------------------------------------------------------------

#[test]
fn an_idle_function_is_frozen_and_answers_all_the_same() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    wait_until_frozen(&served);
    let ticks = |served: &Served| served.get("/lifecycle").ok().json()["ticks"].as_u64().expect("ticks");
    let before = ticks(&served);
    wait_until_frozen(&served);
    // It stays frozen while nobody calls: seconds pass and its clock does not go on.
    std::thread::sleep(Duration::from_secs(2));
    assert!(served.is_frozen());
    let ran = ticks(&served) - before;
    assert!(ran < 100, "it ran for {ran} ticks of 200");
    served.stop();
}

#[test]
fn freezing_can_be_turned_off() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--no-freeze"]);
    let _ = served.get("/lifecycle").ok();
    std::thread::sleep(Duration::from_millis(500));
    assert!(!served.is_frozen());
}

#[test]
fn no_call_is_lost_while_the_function_is_being_frozen() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--timeout", "20s"]);
    let mut connection = served.connect();
    let mut thawed = 0;
    for round in 0..300_u64 {
        thawed += u32::from(served.is_frozen());
        let response = connection.request("POST", "/echo", &[], round.to_string().as_bytes()).ok();
        assert_eq!(response.text(), round.to_string());
        // Around the time after which it is frozen.
        std::thread::sleep(Duration::from_micros(45_000 + round * 37 % 15_000));
    }
    assert!(thawed > 0, "no call met a frozen function: the test shows nothing");
}

#[test]
fn an_answer_that_streams_keeps_it_awake() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    wait_until_frozen(&served);
    assert_eq!(served.get("/stream?n=4&ms=300").ok().text().lines().count(), 4);
}

#[test]
fn a_connection_that_switched_protocols_keeps_it_awake() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    wait_until_frozen(&served);
    let mut connection = served.connect();
    connection.send_head("GET", "/upgrade", &[("Connection", "upgrade"), ("Upgrade", "echo")]);
    assert_eq!(connection.read_any_head().status, 101);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(200));
        assert!(!served.is_frozen());
        connection.send(b"ping");
        assert_eq!(connection.read_raw(4), b"ping");
    }
    drop(connection);
    wait_until_frozen(&served);
}

#[test]
fn a_frozen_function_is_stopped_as_any_other_and_its_log_is_whole() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let served = sandbox.serve_function(&["--stop-timeout", "10s"]);
    let _ = served.get("/log?line=before").ok();
    wait_until_frozen(&served);
    served.wait_for_stderr("before (stderr)");
    let said = served.stop().stderr;
    assert!(said.contains("SIGTERM: bye"), "{said}");
    baseline.assert_restored();
}

#[test]
fn a_frozen_function_dies_with_a_daemon_that_is_killed() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let served = sandbox.serve_function(&[]);
    wait_until_frozen(&served);
    let init = served.init();
    served.signal(Signal::KILL);
    served.wait();
    assert!(wait_for(SOON, || (!init.is_alive()).then_some(())).is_some(), "{init:?}");
    // What a crash leaves, the next start removes.
    sandbox.event(&images::oci("function"), &[]).ok();
    baseline.assert_restored();
}

// --- Callbacks -----------------------------------------------------------------------------------

#[test]
fn the_initializer_comes_first_and_once() {
    let sandbox = Sandbox::new();
    let options = ["--initializer-timeout", "5s", "--health-check", "/health", "--no-freeze"];
    let served = sandbox.serve_function(&options);
    let _ = served.get("/headers").ok();
    let calls = calls(&served);
    assert_eq!(calls[..2], ["POST /initialize /initialize", "GET /health /http-invoke"]);
    assert_eq!(calls.iter().filter(|call| call.contains("/initialize")).count(), 1);
    let said = served.stop().stderr;
    for line in ["FC Initialize Start RequestId: ", "FC Initialize End RequestId: "] {
        let id = said.split_once(line).and_then(|(_, rest)| rest.split_whitespace().next());
        let lengths: Vec<usize> = id.unwrap_or_default().split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{line}: {said}");
    }
}

/// Starts a function whose initializer misbehaves; the answer to the first caller.
#[track_caller]
fn not_initialized(how: &str) -> (String, Value) {
    let sandbox = Sandbox::new();
    let variable = format!("FUNCTION_CALLBACK={how}");
    let options = ["--initializer-timeout", "1s", "--env", &variable];
    let outcome = sandbox.event(&images::oci("function"), &options).expect_code(3);
    let (status, body) = outcome.platform_answer();
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

#[test]
fn an_initializer_that_fails_or_hangs_is_an_initialization_error() {
    for (how, text) in [("500", "status 500"), ("404", "status 404"), ("hang", "timed out after 1 seconds")] {
        let (status, body) = not_initialized(how);
        assert_eq!(status, "200 (InitializationError)", "{how}");
        let message = body["errorMessage"].as_str().expect("a message");
        assert!(message.contains(text), "{how}: {message}");
    }
}

#[test]
fn an_initializer_that_ends_the_process_is_an_exit() {
    let sandbox = Sandbox::with_shared_images();
    let script = "import os; from server import *\n\
                  class H(Handler):\n def do_POST(self): os._exit(7)\n\
                  ThreadingHTTPServer(('0.0.0.0', 9000), H).serve_forever()";
    let options = ["--initializer-timeout", "5s", "--", "-c", script];
    let outcome = sandbox.event(&images::oci("python"), &options).expect_code(3);
    let (status, body) = outcome.platform_answer();
    assert_eq!(status, "412 (CAExited)");
    assert!(body.contains("exited unexpectedly(code 7"), "{body}");
}

#[test]
fn pre_freeze_and_pre_stop_are_called_whatever_they_answer() {
    let sandbox = Sandbox::new();
    let options = ["--platform", "fc2", "--pre-freeze-timeout", "2s", "--pre-stop-timeout", "2s"];
    let served = sandbox.serve_function(&[&options[..], &["--env", "FUNCTION_CALLBACK=404"]].concat());
    wait_until_frozen(&served);
    assert_eq!(calls(&served), ["GET /pre-freeze /pre-freeze"]);
    let said = served.stop().stderr;
    for line in ["FC PreFreeze Start RequestId: ", "called GET /pre-stop", "FC PreStop End RequestId: "] {
        assert!(said.contains(line), "{line}: {said}");
    }
}

#[test]
fn a_pre_stop_that_hangs_is_left_after_its_time() {
    let sandbox = Sandbox::new();
    let options = ["--pre-stop-timeout", "1s", "--env", "FUNCTION_CALLBACK=hang"];
    let said = sandbox.serve_function(&options).stop().stderr;
    assert!(said.contains("Error: timed out after 1 seconds"), "{said}");
}

#[test]
fn functions_in_python_and_node_take_callbacks() {
    let sandbox = Sandbox::with_shared_images();
    for image in ["python", "node"] {
        let options = ["--platform", "fc2", "--initializer-timeout", "20s", "--pre-freeze-timeout", "2s"];
        let options = [&options[..], &["--pre-stop-timeout", "2s", "--health-check", "/health"]].concat();
        let served = sandbox.serve(&images::oci(image), &options);
        wait_until_frozen(&served);
        assert_eq!(served.get("/x").ok().json()["server"], image);
        let said = served.stop().stderr;
        for callback in ["Initialize", "PreFreeze", "PreStop"] {
            let failed = said.lines().find(|line| line.contains(callback) && line.contains("Error"));
            assert!(said.contains(&format!("FC {callback} End")) && failed.is_none(), "{image}: {said}");
        }
    }
}

#[test]
fn what_the_platform_does_not_have_is_refused() {
    let sandbox = Sandbox::new();
    let cases: [(&[&str], &str); 4] = [
        (&["--platform", "scf", "--initializer-timeout", "2s"], "platform scf has no such callback"),
        (&["--platform", "fc", "--pre-freeze-timeout", "2s"], "platform fc has no such callback"),
        (&["--platform", "scf", "--health-check", "/"], "platform scf has none"),
        (&["--platform", "fc", "--pre-stop-timeout", "91s"], "must be 1 s to 90 s"),
    ];
    for (options, text) in cases {
        sandbox.event(&images::oci("function"), options).fails(2, &[text]);
    }
}

// --- Health checks -------------------------------------------------------------------------------

#[test]
fn a_first_health_check_that_fails_is_a_failed_start() {
    let sandbox = Sandbox::new();
    let options = ["--health-check", "/status/500"];
    let outcome = sandbox.event(&images::oci("function"), &options).expect_code(3);
    let (status, body) = outcome.platform_answer();
    assert_eq!(status, "412 (FunctionNotStarted)");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        body["Message"],
        "The function http server cannot be started. check function health failed with status code: 500 "
    );
}

#[test]
fn a_health_check_waits_for_its_delay_and_has_a_time_limit() {
    let sandbox = Sandbox::new();
    let options = ["--health-check", "/sleep/60000", "--health-timeout", "1s", "--health-delay", "1s"];
    let started = std::time::Instant::now();
    let outcome = sandbox.event(&images::oci("function"), &options).expect_code(3);
    assert!(started.elapsed() >= Duration::from_secs(2), "delay and time limit");
    assert!(outcome.platform_answer().1.contains("no answer within 1 seconds"), "{outcome:?}");
}

#[test]
fn a_frozen_function_is_not_checked() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--health-check", "/health", "--health-period", "1s"]);
    wait_until_frozen(&served);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(calls(&served), ["GET /health /http-invoke"], "the one before it was ready");
}

#[test]
fn a_function_that_runs_is_checked() {
    let sandbox = Sandbox::new();
    let options = ["--health-check", "/health", "--health-period", "1s", "--no-freeze"];
    let served = sandbox.serve_function(&options);
    let checked = wait_for(SOON, || (calls(&served).len() >= 3).then_some(()));
    assert!(checked.is_some(), "{:?}", calls(&served));
}

// --- Events and records --------------------------------------------------------------------------

/// The lines of one stream of the log, each of which is JSON.
fn told(outcome: &Outcome, stream: &str) -> Vec<Value> {
    let events = outcome.json_events();
    let lines = events.iter().filter(|event| event["event"] == "log" && event["stream"] == stream);
    lines.map(|event| serde_json::from_str(event["line"].as_str().expect("a line")).expect("JSON")).collect()
}

#[test]
fn the_life_and_the_request_are_told_to_programs() {
    let sandbox = Sandbox::new();
    let options = ["--initializer-timeout", "5s", "--name", "resize", "--output", "json"];
    let outcome = sandbox.event(&images::oci("function"), &options).ok();
    let events = told(&outcome, "events");
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    let expected = [
        "fc:Instance:Creating",
        "fc:Instance:PullImageSuccess",
        "fc:Instance:RuntimeInitializationSuccess",
        "fc:Instance:InitializationSuccess",
        "fc:Instance:CreateSuccess",
        "fc:Instance:DestroySuccess",
    ];
    assert_eq!(kinds, expected);
    let created = events[4]["message"].as_str().expect("a message");
    assert!(
        created.starts_with("Successfully created instance c-") && created.contains(" of function resize ")
    );
    let records = told(&outcome, "requests");
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0]["requestId"], outcome.json()["request_id"]);
    assert_eq!((&records[0]["functionName"], &records[0]["isColdStart"]), (&json!("resize"), &json!(true)));
}

#[test]
fn a_failed_start_is_told_to_programs() {
    let sandbox = Sandbox::new();
    let options = ["--start-timeout", "1s", "--output", "json"];
    let outcome = sandbox.event(&images::oci("hangs"), &options).expect_code(3);
    let events = told(&outcome, "events");
    let kinds: Vec<_> = events.iter().map(|event| (&event["type"], &event["level"])).collect();
    let warning = json!("Warning");
    let failed = [json!("fc:Instance:RuntimeInitializationFailed"), json!("fc:Instance:CreateFailed")];
    assert_eq!(kinds[2..], [(&failed[0], &warning), (&failed[1], &warning)]);
    let missing = sandbox.event(&images::oci("no-such-entrypoint"), &["--output", "json"]).expect_code(3);
    let last = told(&missing, "events").pop().expect("events");
    assert_eq!(last["type"], "fc:Instance:CreateFailed");
}

#[test]
fn people_are_not_shown_what_is_for_programs() {
    let outcome = Sandbox::new().event(&images::oci("function"), &[]).ok();
    for text in ["fc:Instance", "InvokeFunction"] {
        assert!(!outcome.stderr.contains(text), "{}", outcome.stderr);
    }
}

// --- A client that goes away ---------------------------------------------------------------------

#[test]
fn a_cancelled_invocation_is_told_in_the_log() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let mut connection = served.connect();
    connection.send_head("GET", "/sleep/20000", &[]);
    served.wait_for_stderr("FC Invoke Start RequestId: ");
    drop(connection);
    served.wait_for_stderr(", Error: Invocation canceled by client (duration: ");
    assert!(served.stderr().contains("ms, maxMemoryUsage: "));
    let _ = served.get("/headers").ok();
}

// --- Functions without a server ------------------------------------------------------------------

#[track_caller]
fn job(options: &[&str], event: &str) -> Outcome {
    let sandbox = Sandbox::new();
    let image = images::oci("function");
    let args = [&["run", &image, "--job", "--event", event], options, &["--", "job"]].concat();
    sandbox.run(&args)
}

#[test]
fn a_job_has_its_event_in_its_environment() {
    for (platform, variable) in [("fc2", "FC_CUSTOM_CONTAINER_EVENT"), ("scf", "SCF_CUSTOM_CONTAINER_EVENT")]
    {
        let outcome = job(&["--platform", platform], r#"{"k":1}"#).ok();
        assert!(outcome.stdout.is_empty(), "the answer has no body: {outcome:?}");
        let line = format!(r#"{variable} has 7 bytes: {{"k":1}}"#);
        assert!(outcome.stderr.contains(&line), "{}", outcome.stderr);
        let end = if platform == "scf" { "END RequestId:" } else { "FC Invoke End RequestId: " };
        assert!(outcome.stderr.contains(end), "{}", outcome.stderr);
    }
}

#[test]
fn jobs_in_python_and_node() {
    let sandbox = Sandbox::with_shared_images();
    let python: &[&str] = &["-c", "import os; print('has', os.environ['FC_CUSTOM_CONTAINER_EVENT'])"];
    let node: &[&str] = &["node", "-e", "console.log('has', process.env.FC_CUSTOM_CONTAINER_EVENT)"];
    for (image, command) in [("python", python), ("node", node)] {
        let options = [&["--platform", "fc2", "--job", "--timeout", "60s", "--"], command].concat();
        let outcome = sandbox.event(&images::oci(image), &options).ok();
        assert!(outcome.stderr.contains(r#"has {"k":1}"#), "{image}: {}", outcome.stderr);
    }
}

#[test]
fn the_exit_code_of_a_job_decides() {
    let outcome = job(&["--platform", "fc2", "--output", "json"], r#"{"exit":3}"#).expect_code(1);
    let answer = outcome.json();
    assert_eq!((&answer["result"], &answer["status"]), (&"function_error".into(), &json!(200)));
    let error = answer["error"].as_str().expect("an error");
    assert!(
        error.starts_with("Process exited unexpectedly before completing request (duration: "),
        "{error}"
    );
}

#[test]
fn scf_answers_when_the_job_runs_and_not_at_its_end() {
    let options = ["--platform", "scf", "--output", "json"];
    let outcome = job(&options, r#"{"exit":3}"#).expect_code(1);
    let answer = outcome.json();
    assert_eq!((&answer["result"], &answer["status"]), (&"success".into(), &json!(200)));
    assert!(outcome.stderr.contains(r#"\"statusCode\":439"#), "{}", outcome.stderr);
}

#[test]
fn a_job_has_the_functions_time() {
    let options = ["--platform", "fc2", "--timeout", "1s"];
    let outcome = job(&options, r#"{"sleep_ms":60000}"#);
    outcome.fails(3, &["Function timed out after 1 seconds (maxMemoryUsage: "]);
}

#[test]
fn a_job_out_of_memory_is_a_function_error() {
    let outcome = job(&["--platform", "scf", "--memory", "64MiB"], r#"{"oom":true}"#);
    outcome.fails(1, &["Task memory exceeded 64 MB"]);
}

#[test]
fn a_cancelled_job_gets_sigterm_and_its_grace() {
    let sandbox = Sandbox::new();
    let image = images::oci("function");
    let event = r#"{"sleep_ms":60000}"#;
    let args = ["run", &image, "--platform", "fc2", "--job", "--event", event, "--stop-timeout", "10s"];
    let mut running = sandbox.skiff(&[&args[..], &["--", "job"]].concat());
    let (log, stderr) = (sandbox.path().join("log"), std::fs::File::create(sandbox.path().join("log")));
    running.stderr(stderr.expect("a file"));
    let mut child = running.spawn().expect("skiff");
    let text = || std::fs::read_to_string(&log).unwrap_or_default();
    let begun = wait_for(SOON, || text().contains("| sleeps").then_some(()));
    skiff_tests::process::send(child.id(), Signal::TERM);
    assert_eq!(child.wait().expect("ended").code(), Some(143), "{}", text());
    assert!(begun.is_some() && text().contains("SIGTERM: bye"), "{}", text());
    assert!(text().contains("Error: Invocation canceled by client"), "{}", text());
}

#[test]
fn events_that_no_variable_holds_are_refused() {
    let sandbox = Sandbox::new();
    let large = sandbox.write("large", "x".repeat(128 * 1024));
    let nul = sandbox.write("nul", b"a\0b");
    let image = images::oci("function");
    let cases = [
        (format!("@{}", large.display()), "400 (EntityTooLarge)"),
        (format!("@{}", nul.display()), "400 (InvalidArgument)"),
    ];
    for (event, expected) in cases {
        let args = ["run", &image, "--platform", "fc2", "--job", "--event", &event, "--", "job"];
        let outcome = sandbox.run(&args).expect_code(2);
        assert_eq!(outcome.platform_answer().0, expected, "{}", outcome.stderr);
    }
    job(&["--platform", "scf"], "k=v").fails(2, &["the event is not JSON"]);
    job(&["--platform", "fc"], "{}").fails(2, &["mode job: platform fc has none"]);
}
