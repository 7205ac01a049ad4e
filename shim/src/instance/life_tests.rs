//! Callbacks, health checks and freezing, in front of real servers and without a container.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::time::{sleep, timeout};

use super::testing::TestGuest;
use super::tests::{Lines, answer, bring_up, config, server};
use super::{Ending, EventOutcome, Instance, InvokeOptions, State};
use crate::function::HealthCheck;
use crate::platform::{InstanceEvent, InvocationKind, fc, fc2, scf};
use crate::{Error, ErrorKind, FunctionConfig};

const SOON: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

type Seen = Arc<Mutex<Vec<String>>>;

/// A server that keeps what it was asked and answers by `status` of method and path.
async fn recording(status: impl Fn(&str) -> u16 + Clone + Send + 'static) -> (TestGuest, Seen) {
    let seen = Seen::default();
    let kept = Arc::clone(&seen);
    let guest = server(move |request| {
        let what = format!("{} {}", request.method(), request.uri().path());
        let control = request.headers().get("x-fc-control-path").and_then(|path| path.to_str().ok());
        kept.lock().expect("lock").push(format!("{what} {}", control.unwrap_or_default()));
        let status = status(&what);
        async move { answer(status, "") }
    })
    .await;
    (guest, seen)
}

fn asked(seen: &Seen) -> Vec<String> {
    seen.lock().expect("lock").clone()
}

fn text(lines: &Lines) -> String {
    lines.lock().expect("lock").join("\n")
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{what} does not come"));
}

async fn refused(guest: &TestGuest, change: impl FnOnce(&mut FunctionConfig)) -> Error {
    bring_up(guest, config(fc(), change)).await.expect_err("it must not come up")
}

#[tokio::test]
async fn the_initializer_comes_once_and_before_the_first_health_check() {
    let (guest, seen) = recording(|_| 200).await;
    let config = config(fc(), |config| {
        config.callbacks.initializer = Some(SECOND);
        config.health_check = Some(HealthCheck::new("/healthy?x=1"));
        config.freeze = false;
    });
    let (instance, lines) = bring_up(&guest, config).await.expect("up");
    assert_eq!(asked(&seen), ["POST /initialize /initialize", "GET /healthy /http-invoke"]);
    instance.invoke_event("{}".into()).await;
    instance.invoke_event("{}".into()).await;
    let initialized = asked(&seen).iter().filter(|what| what.contains("/initialize")).count();
    assert_eq!(initialized, 1);
    instance.stop().await.expect("stopped");
    let lines = text(&lines);
    let start = lines.find("FC Initialize Start RequestId: ").expect("a start line");
    let end = lines.find("FC Initialize End RequestId: ").expect("an end line");
    assert!(start < end && end < lines.find("FC Invoke Start").expect("invoked"), "{lines}");
}

#[tokio::test]
async fn an_initializer_that_fails_is_the_first_callers_answer() {
    let (guest, _) = recording(|_| 500).await;
    let error = refused(&guest, |config| config.callbacks.initializer = Some(SECOND)).await;
    assert_eq!(error.kind(), ErrorKind::StartFailed);
    let answer = error.answer(InvocationKind::Event).expect("an answer");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["x-fc-error-type"], "InitializationError");
    let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    let message = body["errorMessage"].as_str().expect("a message");
    assert!(message.contains("/initialize with status 500"), "{message}");
    assert_eq!(error.answer(InvocationKind::Http).expect("an answer").status.as_u16(), 502);
}

#[tokio::test]
async fn an_initializer_has_its_own_time_limit() {
    let guest = server(|_| async {
        sleep(Duration::from_secs(60)).await;
        answer(200, "")
    })
    .await;
    let error = refused(&guest, |config| config.callbacks.initializer = Some(SECOND)).await;
    assert!(error.to_string().contains("timed out after 1 seconds"), "{error}");
    assert_eq!(error.answer(InvocationKind::Event).expect("an answer").status.as_u16(), 200);
}

#[tokio::test]
async fn a_first_health_check_that_fails_has_fcs_text() {
    let (guest, _) = recording(|_| 500).await;
    let error = refused(&guest, |config| config.health_check = Some(HealthCheck::new("/health"))).await;
    let answer = error.answer(InvocationKind::Http).expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.code), (412, "FunctionNotStarted"));
    assert_eq!(
        answer.message,
        "The function http server cannot be started. check function health failed with status code: 500 "
    );
}

#[tokio::test]
async fn checks_that_fail_make_an_instance_unusable_and_others_usable_again() {
    let sick = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let state = Arc::clone(&sick);
    let (guest, _) =
        recording(move |_| if state.load(std::sync::atomic::Ordering::SeqCst) { 503 } else { 302 }).await;
    let config = config(fc(), |config| {
        let check = HealthCheck::new("/health");
        config.health_check = Some(HealthCheck { period: SECOND, failure_threshold: 1, ..check });
        config.freeze = false;
    });
    let (instance, _) = bring_up(&guest, config).await.expect("up");
    assert!(instance.is_usable());
    sick.store(true, std::sync::atomic::Ordering::SeqCst);
    until("a failed check", || !instance.is_usable()).await;
    assert_eq!(instance.state(), State::Ready, "it is left to run");
    sick.store(false, std::sync::atomic::Ordering::SeqCst);
    until("a good check", || instance.is_usable()).await;
}

#[tokio::test]
async fn a_frozen_instance_is_not_checked() {
    let (guest, seen) = recording(|_| 200).await;
    let config = config(fc(), |config| {
        config.health_check = Some(HealthCheck { period: SECOND, ..HealthCheck::new("/health") });
    });
    let (_instance, _) = bring_up(&guest, config).await.expect("up");
    until("the freeze", || guest.frozen()).await;
    let before = asked(&seen).len();
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(asked(&seen).len(), before, "{:?}", asked(&seen));
    assert_eq!((guest.frozen(), guest.freezes()), (true, 1), "and stays as it is");
}

#[tokio::test]
async fn an_idle_instance_is_frozen_after_pre_freeze_and_thawed_by_the_next_call() {
    let (guest, seen) = recording(|what| if what.contains("pre-") { 404 } else { 200 }).await;
    let config = config(fc2(), |config| {
        config.callbacks.pre_freeze = Some(SECOND);
        config.callbacks.pre_stop = Some(SECOND);
    });
    let (instance, lines) = bring_up(&guest, config).await.expect("up");
    until("the first freeze", || guest.frozen()).await;
    assert_eq!(asked(&seen), ["GET /pre-freeze /pre-freeze"], "404 does not stop the freeze");
    assert_eq!(instance.invoke_event("{}".into()).await.status, 200);
    until("the second freeze", || guest.frozen() && guest.freezes() == 2).await;
    sleep(Duration::from_millis(300)).await;
    let calls = asked(&seen);
    assert_eq!(calls.iter().filter(|what| what.contains("pre-freeze")).count(), 2, "once each: {calls:?}");
    instance.stop().await.expect("stopped");
    assert_eq!(asked(&seen).last().expect("some"), "GET /pre-stop /pre-stop", "of a frozen one too");
    let lines = text(&lines);
    for line in
        ["FC PreFreeze Start RequestId: ", "FC PreFreeze End RequestId: ", "FC PreStop Start RequestId: "]
    {
        assert!(lines.contains(line), "{line}: {lines}");
    }
}

#[tokio::test]
async fn a_setting_turns_freezing_off() {
    let (guest, _) = recording(|_| 200).await;
    let (instance, _) = bring_up(&guest, config(fc(), |config| config.freeze = false)).await.expect("up");
    instance.invoke_event("{}".into()).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(guest.freezes(), 0);
}

#[tokio::test]
async fn a_time_out_condemns_an_instance_that_works_on_one_request() {
    for (concurrency, usable) in [(1, false), (2, true)] {
        let guest = server(|_| async {
            sleep(Duration::from_secs(60)).await;
            Response::new(Full::new(Bytes::new()))
        })
        .await;
        let config = config(fc(), |config| {
            config.timeout = SECOND;
            config.concurrency = concurrency;
        });
        let (instance, _) = bring_up(&guest, config).await.expect("up");
        assert!(instance.is_usable());
        instance.invoke_event("{}".into()).await;
        assert_eq!(instance.is_usable(), usable, "concurrency {concurrency}");
    }
}

// --- Ends from outside ---------------------------------------------------------------------------

/// An invocation that runs until somebody ends it, and what ends it.
fn runs(instance: &Arc<Instance>) -> (tokio::task::JoinHandle<EventOutcome>, Ending) {
    let (ending, instance) = (Ending::new(), Arc::clone(instance));
    let options = InvokeOptions { ending: Some(ending.clone()), ..InvokeOptions::default() };
    (tokio::spawn(async move { instance.invoke_event_with("{}".into(), options).await }), ending)
}

#[tokio::test]
async fn an_invocation_is_ended_by_somebody_else() {
    for (concurrency, usable) in [(1, false), (2, true)] {
        let guest = server(|_| std::future::pending()).await;
        let config = config(scf(), |config| config.concurrency = concurrency);
        let (instance, lines) = bring_up(&guest, config).await.expect("up");
        let instance = Arc::new(instance);
        let (running, ending) = runs(&instance);
        until("the start", || text(&lines).contains("START RequestId:")).await;
        assert!(instance.is_usable() && !running.is_finished());
        ending.terminate();
        let outcome = timeout(SOON, running).await.expect("ended").expect("no panic");
        assert_eq!((outcome.status.as_u16(), outcome.exit_code()), (499, crate::ExitCode::Platform));
        assert!(outcome.body.ends_with(br#""statusCode":499}"#), "{outcome:?}");
        assert_eq!(instance.is_usable(), usable, "concurrency {concurrency}");
        assert_eq!(guest.terms(), 0, "it is not sent SIGTERM");
    }
}

#[tokio::test]
async fn a_signal_ends_nothing_by_itself() {
    let guest = server(|_| async {
        sleep(Duration::from_millis(500)).await;
        answer(200, "done")
    })
    .await;
    let (instance, lines) = bring_up(&guest, config(scf(), |_| ())).await.expect("up");
    let instance = Arc::new(instance);
    let (running, ending) = runs(&instance);
    until("the start", || text(&lines).contains("START RequestId:")).await;
    ending.signal();
    ending.signal();
    until("the signal", || guest.terms() == 1).await;
    let outcome = timeout(SOON, running).await.expect("ended").expect("no panic");
    assert_eq!((outcome.status.as_u16(), &outcome.body[..]), (200, b"done".as_slice()));
    until("the line", || text(&lines).contains("[PLATFORM] Signal received successfully")).await;
    assert!(instance.is_usable() && guest.terms() == 1);
}

// --- What is told of it --------------------------------------------------------------------------

fn events(lines: &Lines) -> Vec<String> {
    let lines = lines.lock().expect("lock");
    let events = lines.iter().filter_map(|line| serde_json::from_str::<InstanceEvent>(line).ok());
    events.map(|event| event.kind.trim_start_matches("fc:Instance:").to_owned()).collect()
}

#[tokio::test]
async fn a_life_has_its_events_in_their_order_and_each_once() {
    let (guest, _) = recording(|_| 200).await;
    let config = config(fc(), |config| config.callbacks.initializer = Some(SECOND));
    let (instance, lines) = bring_up(&guest, config).await.expect("up");
    instance.stop().await.expect("stopped");
    instance.stop().await.expect("stopped again");
    let expected =
        ["RuntimeInitializationSuccess", "InitializationSuccess", "CreateSuccess", "DestroySuccess"];
    assert_eq!(events(&lines), expected);
}

#[tokio::test]
async fn an_end_by_itself_is_an_event_too() {
    let (guest, _) = recording(|_| 200).await;
    let (instance, lines) = bring_up(&guest, config(fc(), |_| ())).await.expect("up");
    guest.end(skiff_runtime::Exit { code: Some(0), signal: None, oom_killed: false });
    instance.wait().await;
    until("the event", || events(&lines).last().is_some_and(|kind| kind == "DestroySuccess")).await;
}

#[tokio::test]
async fn every_request_has_a_record() {
    let (guest, _) = recording(|_| 200).await;
    let (instance, lines) = bring_up(&guest, config(fc(), |_| ())).await.expect("up");
    let ids = [instance.invoke_event("{}".into()).await, instance.invoke_event("{}".into()).await];
    instance.stop().await.expect("stopped");
    let lines = lines.lock().expect("lock");
    let records: Vec<serde_json::Value> = lines
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|record: &serde_json::Value| record["operation"] == "InvokeFunction")
        .collect();
    let told: Vec<_> = records.iter().map(|record| (&record["requestId"], &record["isColdStart"])).collect();
    let expected = [true, false].map(serde_json::Value::from);
    let ids = ids.map(|outcome| serde_json::Value::from(outcome.request_id));
    assert_eq!(told, [(&ids[0], &expected[0]), (&ids[1], &expected[1])]);
}

#[tokio::test]
async fn the_log_of_an_event_is_in_its_answer_for_who_asks() {
    for (concurrency, there) in [(1, true), (2, false)] {
        let (guest, _) = recording(|_| 200).await;
        let config = config(fc(), |config| config.concurrency = concurrency);
        let (instance, _) = bring_up(&guest, config).await.expect("up");
        let plain = instance.invoke_event("{}".into()).await;
        assert!(!plain.headers.contains_key("x-fc-log-result"), "not asked for");
        let options = InvokeOptions { log_tail: true, ..InvokeOptions::default() };
        let outcome = instance.invoke_event_with("{}".into(), options).await;
        assert_eq!(outcome.headers.contains_key("x-fc-log-result"), there, "concurrency {concurrency}");
        if let Some(log) = outcome.headers.get("x-fc-log-result") {
            let start = format!("FC Invoke Start RequestId: {}\n", outcome.request_id);
            let bytes = start.len() / 3 * 3;
            assert!(log.to_str().expect("text").starts_with(&crate::base64(&start.as_bytes()[..bytes])));
        }
    }
}
