//! Several instances of one function: how many there are, what each works on at once, when they come and go.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_tests::http::{Connection, Response};
use skiff_tests::process::{self, Process};
use skiff_tests::{Baseline, Sandbox, Served, images, wait_for};

/// So many requests at once.
fn at_once(served: &Served, count: usize, target: &str) -> Vec<Response> {
    thread::scope(|scope| {
        let calls: Vec<_> = (0..count).map(|_| scope.spawn(|| served.get(target))).collect();
        calls.into_iter().map(|call| call.join().expect("answered")).collect()
    })
}

fn instances(answers: &[Response]) -> BTreeSet<String> {
    answers.iter().map(|answer| answer.header("x-fc-instance-id").expect("an id").to_owned()).collect()
}

/// The order in which invocations began and ended in each instance.
fn nesting(stderr: &str, begin: &str, end: &str) -> Vec<(String, usize)> {
    let mut deepest: Vec<(String, usize, usize)> = Vec::new();
    for line in stderr.lines() {
        let Some((instance, text)) = line.split_once(" | ") else { continue };
        let place = deepest.iter().position(|(name, ..)| name == instance).unwrap_or_else(|| {
            deepest.push((instance.to_owned(), 0, 0));
            deepest.len() - 1
        });
        let (_, now, most) = &mut deepest[place];
        if text.starts_with(begin) {
            *now += 1;
            *most = (*most).max(*now);
        } else if text.starts_with(end) {
            *now -= 1;
        }
    }
    deepest.into_iter().map(|(name, _, most)| (name, most)).collect()
}

#[test]
fn calls_at_once_have_an_instance_each() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--max-instances", "3"]);
    let answers = at_once(&served, 3, "/sleep/1500");
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(instances(&answers).len(), 3);
    // One that is free is taken before another is started.
    for _ in 0..3 {
        assert!(instances(&answers).is_superset(&instances(&[served.get("/status/200")])));
    }
    let _ = served.stop();
}

#[test]
fn one_instance_works_on_one_call_at_a_time() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let answers = at_once(&served, 4, "/sleep/200");
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(instances(&answers).len(), 1);
    let stderr = served.stop().stderr;
    let found = nesting(&stderr, "FC Invoke Start", "FC Invoke End");
    assert!(found.iter().all(|(_, most)| *most == 1) && !found.is_empty(), "{found:?}: {stderr}");
}

#[test]
fn an_instance_works_on_as_many_as_its_concurrency() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--concurrency", "3", "--max-instances", "2"]);
    let answers = at_once(&served, 12, "/sleep/700");
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(instances(&answers).len(), 2);
    let stderr = served.stop().stderr;
    let most: Vec<usize> = nesting(&stderr, "FC Invoke Start", "FC Invoke End").iter().map(|n| n.1).collect();
    assert_eq!(most, [3, 3], "{stderr}");
}

#[test]
fn too_many_calls_get_the_platforms_throttling_error() {
    for (platform, status, text) in [
        ("fc", 429, "ResourceExhausted"),
        ("fc2", 429, "ResourceExhausted"),
        ("scf", 432, "Function [ function ] concurrency exceeded reserved quota 128 MB"),
    ] {
        let sandbox = Sandbox::new();
        let options =
            ["--platform", platform, "--memory", "128MiB", "--name", "function", "--max-waiting", "0"];
        let served = sandbox.serve_function(&options);
        let mut first = served.connect();
        first.send_head("GET", "/sleep/1500", &[]);
        thread::sleep(Duration::from_millis(300));
        let refused = served.get("/status/200");
        assert_eq!(refused.status, status, "{}", refused.text());
        assert!(refused.text().contains(text), "{}", refused.text());
        assert_eq!(first.read_response("GET").status, 200);
        assert_eq!(served.get("/status/200").status, 200);
        let _ = served.stop();
    }
}

#[test]
fn who_waits_too_long_is_told_so_too() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--max-wait", "300ms"]);
    let answers = at_once(&served, 2, "/sleep/1500");
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 429]);
    let _ = served.stop();
}

#[test]
fn an_instance_whose_time_is_up_is_replaced() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let served = sandbox.serve_function(&["--platform", "scf", "--timeout", "1s"]);
    let first = served.init();
    assert_eq!(served.get("/sleep/60000").status, 433);
    let answer = served.get("/status/200");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(wait_for(Duration::from_secs(20), || (!first.is_alive()).then_some(())).is_some(), "it lives on");
    assert_ne!(served.init(), first);
    let _ = served.stop();
    baseline.assert_restored();
}

#[test]
fn an_idle_instance_goes_and_the_next_call_starts_another() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--idle-timeout", "500ms"]);
    let (keeper, first) = (served.keeper(), served.init());
    let of = |answer: Response| instances(&[answer]);
    let before = of(served.get("/status/200"));
    let gone = || Process::children_of(keeper.pid).iter().all(|child| child.state == 'Z').then_some(());
    assert!(wait_for(Duration::from_secs(20), gone).is_some(), "it stays");
    assert!(!first.is_alive());
    assert_ne!(of(served.get("/status/200")), before);
    let _ = served.stop();
}

#[test]
fn where_there_may_be_more_the_end_of_one_ends_nothing() {
    let sandbox = Sandbox::new();
    // A frozen process of cgroup version 1 does not die of a signal.
    let served = sandbox.serve_function(&["--max-instances", "2", "--no-freeze"]);
    process::send(served.init().pid, rustix::process::Signal::KILL);
    served.wait_for_stderr("has ended by itself: killed by signal 9");
    assert_eq!(served.get("/status/200").status, 200);
    // What a call does to its instance concerns the call alone.
    assert_eq!(served.get("/exit/3").status, 502);
    assert_eq!(served.get("/status/200").status, 200);
    let _ = served.stop();
}

#[test]
fn a_later_start_that_fails_is_its_callers_answer() {
    let sandbox = Sandbox::new();
    let flag = "FUNCTION_NO_SUCH_VARIABLE=1";
    let served = sandbox.serve_function(&["--max-instances", "2", "--env", flag, "--start-timeout", "1s"]);
    // Nothing of the image is there for a second instance.
    let layers = sandbox.state_dir().join("layers");
    let moved = sandbox.path().join("layers");
    std::fs::rename(&layers, &moved).expect("moved");
    let answers = at_once(&served, 2, "/sleep/1500");
    std::fs::rename(&moved, &layers).expect("moved back");
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    // The host's fault: fc tells its callers no more.
    assert_eq!(statuses, [200, 500], "{answers:?}");
    assert_eq!(at_once(&served, 2, "/sleep/700").iter().filter(|answer| answer.status == 200).count(), 2);
    let _ = served.stop();
}

fn serve_job(sandbox: &Sandbox, platform: &str, options: &[&str]) -> Served {
    let job = ["--job", "--platform", platform, "--name", "demo"];
    sandbox.serve_function(&[&job[..], options, &["--", "job"]].concat())
}

#[track_caller]
fn invoke_fc2(served: &Served, headers: &[(&str, &str)], event: &Value) -> Response {
    let target = "/2021-04-06/services/default/functions/demo/invocations";
    let mut connection = Connection::unix(served.socket()).expect("it listens");
    connection.request("POST", target, headers, event.to_string().as_bytes())
}

#[test]
fn a_job_takes_events_by_the_invoke_api() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let served = serve_job(&sandbox, "fc2", &["--max-instances", "2"]);
    let good = invoke_fc2(&served, &[], &json!({}));
    assert_eq!((good.status, good.body.len()), (200, 0), "{}", good.text());
    assert!(good.header("x-fc-error-type").is_none());
    let bad = invoke_fc2(&served, &[], &json!({ "exit": 3 }));
    let text = "Process exited unexpectedly before completing request";
    assert!(bad.header("x-fc-error-type").is_some() && bad.text().contains(text), "{bad:?}");
    let later = [("X-Fc-Invocation-Type", "Async")];
    assert_eq!(invoke_fc2(&served, &later, &json!({ "later": true })).status, 202);
    served.wait_for_stderr(r#"bytes: {"later":true}"#);
    let _ = served.stop();
    baseline.assert_restored();
}

#[test]
fn a_job_of_scf_is_answered_when_it_runs() {
    let sandbox = Sandbox::new();
    let served = serve_job(&sandbox, "scf", &[]);
    let headers = [("X-TC-Action", "Invoke"), ("X-TC-Version", "2018-04-16")];
    let event = json!({ "FunctionName": "demo", "ClientContext": r#"{"sleep_ms":1500,"exit":4}"# });
    let mut connection = Connection::unix(served.socket()).expect("it listens");
    let answer = connection.request("POST", "/", &headers, event.to_string().as_bytes()).ok().json();
    let result = &answer["Response"]["Result"];
    assert_eq!(result["InvokeResult"], 0, "{answer}");
    assert!(!served.stderr().contains("439"), "it has ended already: {}", served.stderr());
    served.wait_for_stderr("User process exit when running");
    let _ = served.stop();
}

#[test]
fn jobs_that_run_are_cancelled_at_the_end_and_leave_nothing() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let served = serve_job(&sandbox, "fc2", &["--stop-timeout", "5s"]);
    let mut connection = Connection::unix(served.socket()).expect("it listens");
    let target = "/2021-04-06/services/default/functions/demo/invocations";
    connection.send_head("POST", target, &[("Content-Length", "18")]);
    connection.send(br#"{"sleep_ms":60000}"#);
    served.wait_for_stderr("| sleeps");
    let stderr = served.stop().stderr;
    assert!(stderr.contains("SIGTERM: bye"), "{stderr}");
    baseline.assert_restored();
}

#[test]
fn requests_for_a_job_have_nowhere_to_go() {
    let sandbox = Sandbox::new();
    let outcome =
        sandbox.run(&["run", &images::oci("function"), "--job", "--platform", "scf", "--listen", "8080"]);
    let _ = outcome.fails(2, &["a job has no server", "--api-listen"]);
}

#[test]
fn calls_leave_an_instance_that_is_unhealthy() {
    let sandbox = Sandbox::new();
    let checks = ["--health-check", "/health", "--health-period", "1s", "--health-failures", "1"];
    let served = sandbox.serve_function(&[&checks[..], &["--no-freeze", "--max-instances", "2"]].concat());
    let id = |answer: &Response| answer.header("x-fc-instance-id").expect("an id").to_owned();
    let first = id(&served.get("/sick/500").ok());
    let other = wait_for(Duration::from_secs(20), || {
        let its = id(&served.get("/status/200").ok());
        (its != first).then_some(its)
    });
    let other = other.expect("another instance");
    assert_eq!(id(&served.get("/status/200").ok()), other);
    served.stop();
}
