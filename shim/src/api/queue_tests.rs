use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{BoxFuture, FutureExt as _};
use http::{Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::api::Destination;
use crate::api::states::{State, Status};
use crate::api::{fc as fc_api, scf as scf_api};
use crate::instance::Ending;
use crate::platform::{fc, scf};
use crate::proxy::body::Body;
use crate::{FunctionConfig, Platform};

/// A function that fails so often before it succeeds, and notes how it was called.
struct Failing {
    config: FunctionConfig,
    failures: usize,
    how: fn() -> (EventResult, u16),
    calls: Mutex<Vec<InvokeOptions>>,
    running: AtomicUsize,
    most: AtomicUsize,
    /// How many it can work on at once.
    places: AtomicUsize,
}

fn function_error() -> (EventResult, u16) {
    (EventResult::FunctionError("no".into()), 200)
}

impl Failing {
    fn new(platform: &'static dyn Platform, failures: usize, how: fn() -> (EventResult, u16)) -> Arc<Self> {
        let config = FunctionConfig::new("f", platform);
        let (calls, running, most) = (Mutex::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let places = AtomicUsize::new(1);
        Arc::new(Self { config, failures, how, calls, running, most, places })
    }

    fn calls(&self) -> Vec<InvokeOptions> {
        locked(&self.calls).clone()
    }
}

impl Function for Failing {
    fn config(&self) -> &FunctionConfig {
        &self.config
    }

    fn places(&self) -> usize {
        self.places.load(Ordering::SeqCst)
    }

    fn invoke(&self, event: Bytes, options: InvokeOptions) -> BoxFuture<'_, EventOutcome> {
        let number = {
            let mut calls = locked(&self.calls);
            calls.push(options.clone());
            calls.len()
        };
        let (result, status) =
            if number > self.failures { (EventResult::Success, 200) } else { (self.how)() };
        async move {
            self.most.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.running.fetch_sub(1, Ordering::SeqCst);
            EventOutcome {
                request_id: options.request_id.unwrap_or_default(),
                result,
                status: StatusCode::from_u16(status).expect("a status"),
                headers: http::HeaderMap::new(),
                body: event,
                duration: Duration::ZERO,
                memory_peak_bytes: 0,
                log: None,
            }
        }
        .boxed()
    }

    fn forward(&self, _: Option<SocketAddr>, _: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        unreachable!("events are not forwarded")
    }
}

fn queue(retries: Option<u32>, dir: &tempfile::TempDir) -> Arc<Queue> {
    let to = |name: &str| Some(Destination::File(dir.path().join(name)));
    Arc::new(Queue::new(AsyncOptions {
        retries,
        max_age: None,
        on_success: to("good"),
        on_failure: to("bad"),
    }))
}

fn push(queue: &Arc<Queue>, function: &Arc<Failing>) {
    let event = Event::new(
        Arc::clone(function) as _,
        &fc_api::POLICY,
        "{\"k\":1}".into(),
        "the-request".into(),
        Duration::ZERO,
    );
    queue.push(event).expect("room");
}

/// The records of a destination, when there are so many.
async fn records(dir: &tempfile::TempDir, name: &str, count: usize) -> Vec<Value> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        if text.lines().count() >= count && text.ends_with('\n') {
            return text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        }
        assert!(Instant::now() < until, "{text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_fails_is_tried_again_with_the_same_id() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (queue, function) = (queue(None, &dir), Failing::new(fc(), 1, function_error));
    push(&queue, &function);
    let record = records(&dir, "good", 1).await.remove(0);
    let calls = function.calls();
    assert_eq!(calls.iter().map(|call| call.retries).collect::<Vec<_>>(), [0, 1]);
    assert!(calls.iter().all(|call| call.request_id.as_deref() == Some("the-request")));
    assert_eq!(record["requestContext"]["condition"], "Success");
    assert_eq!(record["requestContext"]["approximateInvokeCount"], 2);
    assert_eq!(record["requestPayload"], json!({ "k": 1 }));
    assert!(
        record["requestContext"]["functionArn"]
            .as_str()
            .is_some_and(|arn| arn.starts_with("acs:fc:cn-hangzhou:"))
    );
}

#[tokio::test]
async fn retries_have_an_end_and_the_callers_faults_none() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (first, second) = (queue(Some(1), &dir), queue(Some(0), &dir));
    let failing = Failing::new(fc(), 99, function_error);
    push(&first, &failing);
    push(&second, &failing);
    let refused = Failing::new(fc(), 99, || (EventResult::PlatformError("no".into()), 400));
    push(&first, &refused);
    let mut found: Vec<(String, u64)> = records(&dir, "bad", 3)
        .await
        .iter()
        .map(|record| {
            let context = &record["requestContext"];
            let count = context["approximateInvokeCount"].as_u64().expect("a number");
            (context["condition"].as_str().expect("text").to_owned(), count)
        })
        .collect();
    found.sort();
    let exhausted = |count| ("RetriesExhausted".to_owned(), count);
    assert_eq!(found, [("RequestRefused".to_owned(), 1), exhausted(1), exhausted(2)]);
}

#[tokio::test]
async fn an_old_event_is_given_up() {
    let dir = tempfile::tempdir().expect("tempdir");
    let function = Failing::new(fc(), 99, || (EventResult::PlatformError("busy".into()), 429));
    let mut options = queue(Some(0), &dir).options.clone();
    options.max_age = Some(Duration::from_millis(700));
    let queue = Arc::new(Queue::new(options));
    push(&queue, &function);
    let record = records(&dir, "bad", 1).await.remove(0);
    assert_eq!(record["requestContext"]["condition"], "EventAgeExceeded");
    // The platform's own failures are no retries of the function.
    assert_eq!(record["requestContext"]["approximateInvokeCount"], 2);
}

#[tokio::test]
async fn as_many_run_at_once_as_the_instances_work_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (queue, function) = (queue(None, &dir), Failing::new(fc(), 0, function_error));
    let mut done = 0;
    // A later revision may have more instances, or fewer.
    for places in [1, 4, 2] {
        function.places.store(places, Ordering::SeqCst);
        function.most.store(0, Ordering::SeqCst);
        for _ in 0..20 {
            push(&queue, &function);
        }
        done += 20;
        assert_eq!(records(&dir, "good", done).await.len(), done);
        assert_eq!(function.most.load(Ordering::SeqCst), places);
    }
}

#[tokio::test]
async fn a_change_reaches_those_that_wait() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (queue, function) = (queue(None, &dir), Failing::new(fc(), 0, function_error));
    function.places.store(4, Ordering::SeqCst);
    for _ in 0..100 {
        push(&queue, &function);
    }
    for (done, places) in [(10, 1), (50, 3)] {
        let done = records(&dir, "good", done).await.len();
        function.places.store(places, Ordering::SeqCst);
        // Those that run end first, and records come later than what they tell of.
        let done = records(&dir, "good", done + 15).await.len();
        function.most.store(0, Ordering::SeqCst);
        let _ = records(&dir, "good", done + 10).await;
        assert_eq!(function.most.load(Ordering::SeqCst), places);
    }
    let _ = records(&dir, "good", 100).await;
}

#[tokio::test]
async fn places_that_are_taken_go_when_they_are_free() {
    let mut places = Places { free: Arc::new(Semaphore::new(0)), all: 0 };
    places.adjust(3);
    let taken = Arc::clone(&places.free).acquire_many_owned(2).await.expect("open");
    places.adjust(1);
    assert_eq!((places.all, places.free.available_permits()), (2, 0));
    drop(taken);
    places.adjust(1);
    assert_eq!((places.all, places.free.available_permits()), (1, 1));
    places.adjust(5);
    assert_eq!((places.all, places.free.available_permits()), (5, 5));
}

#[tokio::test]
async fn events_that_wait_are_bounded_in_count_and_bytes() {
    let queue = Arc::new(Queue::new(AsyncOptions::default()));
    let function = Failing::new(fc(), 0, function_error);
    let event = |bytes: usize| {
        let payload = vec![b' '; bytes].into();
        Event::new(
            Arc::clone(&function) as _,
            &fc_api::POLICY,
            payload,
            "r".into(),
            Duration::from_secs(1000),
        )
    };
    queue.push(event(MAX_BYTES)).expect("room for one");
    assert_eq!(queue.push(event(1)), Err(2), "bytes");
    for _ in 1..MAX_EVENTS {
        queue.push(event(0)).expect("room");
    }
    assert_eq!(queue.push(event(0)), Err(MAX_EVENTS));
    assert!(function.calls().is_empty());
}

#[tokio::test]
async fn the_end_waits_for_what_runs_and_for_nothing_else() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (queue, function) = (queue(None, &dir), Failing::new(fc(), 0, function_error));
    for _ in 0..5 {
        push(&queue, &function);
    }
    while function.running.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    queue.close().await;
    assert_eq!(records(&dir, "good", 1).await.len(), 1, "one ran, four waited for it");
}

#[tokio::test]
async fn a_record_is_posted_until_it_is_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        let mut seen = Vec::new();
        for status in ["503 Busy", "204 No Content"] {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut text = vec![0; 16 * 1024];
            let length = stream.read(&mut text).await.expect("read");
            seen.push(String::from_utf8_lossy(&text[..length]).into_owned());
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
        seen
    });
    let uri = format!("http://{address}/records?a=b").parse().expect("an address");
    deliver(&Destination::Http(uri), &json!({ "a": 1 })).await.expect("taken");
    let seen = server.await.expect("no panic");
    assert!(seen.iter().all(|request| request.starts_with("POST /records?a=b HTTP/1.1\r\n")), "{seen:?}");
    let gone = format!("http://{address}/").parse().expect("an address");
    let error = deliver(&Destination::Http(gone), &json!({})).await.expect_err("nobody listens");
    assert!(error.contains(&address.to_string()), "{error}");
    let nowhere = Destination::File("/no/such/directory/file".into());
    deliver(&nowhere, &json!({})).await.expect_err("no directory");
}

#[test]
fn pauses_are_as_the_platforms_say() {
    let pauses = |policy: &Policy, verdict| {
        (0..5).map(|tries| policy.pause(verdict, tries).as_millis()).collect::<Vec<_>>()
    };
    let (fc, scf) = (&fc_api::POLICY, &scf_api::POLICY);
    assert_eq!(pauses(fc, Verdict::Error), [500, 1000, 2000, 4000, 8000]);
    assert_eq!(fc.pause(Verdict::Throttled, u32::MAX).as_secs(), 5 * 3600);
    assert_eq!(pauses(scf, Verdict::Error), [60_000; 5]);
    assert_eq!(pauses(scf, Verdict::Throttled), [60_000; 5]);
    assert_eq!(pauses(scf, Verdict::Broken), [60_000, 120_000, 240_000, 300_000, 300_000]);
    assert_eq!(pauses(fc, Verdict::Broken), pauses(fc, Verdict::Throttled));
}

#[tokio::test]
async fn the_end_does_not_wait_for_pauses_and_delays() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (queue, function) = (queue(None, &dir), Failing::new(fc(), 99, function_error));
    push(&queue, &function);
    let hour = Duration::from_secs(3600);
    let late = Event::new(Arc::clone(&function) as _, &scf_api::POLICY, "{}".into(), "r".into(), hour);
    queue.push(late).expect("room");
    let minute =
        Event::new(Arc::clone(&function) as _, &scf_api::POLICY, "{}".into(), "s".into(), Duration::ZERO);
    queue.push(minute).expect("room");
    while function.calls().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // One that fails is tried again in a minute; the end is not that far.
    tokio::time::timeout(GRACE / 2, queue.close()).await.expect("it waits for nothing that does not run");
    assert!(function.calls().len() < 4, "nothing is tried at the end");
}

/// An event of Tencent's that can be asked after.
fn tracked(queue: &Arc<Queue>, function: &Arc<Failing>, delay: Duration) {
    let tracked = queue.states().begin("the-request".into(), &function.config, "$LATEST", true);
    let event =
        Event::new(Arc::clone(function) as _, &scf_api::POLICY, "{}".into(), "the-request".into(), delay);
    queue.push(event.tracked(tracked)).expect("room");
}

async fn reached(queue: &Queue, status: Status) -> State {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let state = queue.states().get("the-request").expect("known");
        if state.status == status {
            return state;
        }
        assert!(Instant::now() < until, "{state:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_has_become_of_an_event_is_known() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (queue, function) = (queue(None, &dir), Failing::new(scf(), 0, function_error));
    tracked(&queue, &function, Duration::ZERO);
    let state = reached(&queue, Status::Finished).await;
    assert_eq!((state.code, &state.answer[..], state.retries), (200, &b"{}"[..], 0));
    let failing = Failing::new(scf(), 99, || (EventResult::FunctionError("no".into()), 443));
    let queue = self::queue(Some(0), &dir);
    tracked(&queue, &failing, Duration::ZERO);
    assert_eq!(reached(&queue, Status::Failed).await.code, 443);
}

#[tokio::test]
async fn an_event_that_waits_is_ended_at_once() {
    let hour = Duration::from_secs(3600);
    // One is delayed, the other waits for its next try.
    for (failures, delay) in [(0, hour), (99, Duration::ZERO)] {
        let dir = tempfile::tempdir().expect("tempdir");
        let (queue, function) = (queue(None, &dir), Failing::new(scf(), failures, function_error));
        tracked(&queue, &function, delay);
        while delay.is_zero() && function.running.load(Ordering::SeqCst) + function.calls().len() != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let state = reached(&queue, Status::Running).await;
        queue.states().end(&state, false).expect("it waits");
        let ended = tokio::time::timeout(PATIENCE, reached(&queue, Status::Aborted)).await.expect("at once");
        assert!(ended.code == 499 || failures > 0, "{ended:?}");
        let record = records(&dir, "bad", 1).await.remove(0);
        assert_eq!(record["requestContext"]["condition"], "Terminated");
        assert_eq!(function.calls().len(), usize::from(failures > 0), "it is not tried again");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_does_not_end_is_left_alone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let queue = queue(None, &dir);
    let function = Arc::new(Hanging { config: FunctionConfig::new("f", scf()), ending: Mutex::default() });
    let tracked = queue.states().begin("the-request".into(), &function.config, "$LATEST", true);
    let event = Event::new(
        Arc::clone(&function) as _,
        &scf_api::POLICY,
        "{}".into(),
        "the-request".into(),
        Duration::ZERO,
    );
    queue.push(event.tracked(tracked)).expect("room");
    while locked(&function.ending).is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let state = queue.states().get("the-request").expect("known");
    queue.states().end(&state, false).expect("it runs");
    let asked = locked(&function.ending).clone().expect("what ends it");
    asked.terminated().await;
    tokio::time::sleep(PATIENCE + Duration::from_secs(1)).await;
    assert_eq!(queue.states().get("the-request").expect("known").status, Status::Aborted);
}

/// A function that never answers, and keeps what ends its invocation.
struct Hanging {
    config: FunctionConfig,
    ending: Mutex<Option<Ending>>,
}

impl Function for Hanging {
    fn config(&self) -> &FunctionConfig {
        &self.config
    }

    fn invoke(&self, _: Bytes, options: InvokeOptions) -> BoxFuture<'_, EventOutcome> {
        *locked(&self.ending) = options.ending;
        std::future::pending().boxed()
    }

    fn forward(&self, _: Option<SocketAddr>, _: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        unreachable!("events are not forwarded")
    }
}

#[tokio::test(start_paused = true)]
async fn tencents_events_have_two_retries_and_six_hours() {
    let dir = tempfile::tempdir().expect("tempdir");
    let push = |function: &Arc<Failing>| {
        let queue = queue(None, &dir);
        let function = Arc::clone(function) as _;
        queue
            .push(Event::new(function, &scf_api::POLICY, "{}".into(), "r".into(), Duration::ZERO))
            .expect("room");
        queue
    };
    let begun = Instant::now();
    let failing = Failing::new(scf(), 99, || (EventResult::FunctionError("no".into()), 443));
    let queue = push(&failing);
    while queue.room.available_permits() < MAX_EVENTS {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(failing.calls().len(), 3, "the first, and two again");
    assert_eq!(begun.elapsed().as_secs() / 60, 2, "a minute apart");
    let begun = Instant::now();
    let broken = Failing::new(scf(), usize::MAX, || (EventResult::PlatformError("no".into()), 500));
    let queue = push(&broken);
    while queue.room.available_permits() < MAX_EVENTS {
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let (tries, hours) = (broken.calls().len(), begun.elapsed().as_secs_f64() / 3600.0);
    assert!((5.9..6.0).contains(&hours), "given up before the next try would be too late: {hours} h");
    // After 1, 2 and 4 minutes, then each 5.
    assert_eq!(tries, 4 + (6 * 60 - 7) / 5);
}

#[test]
fn whose_fault_it_was_decides() {
    let outcome = |result: EventResult, status: u16| EventOutcome {
        request_id: String::new(),
        result,
        status: StatusCode::from_u16(status).expect("a status"),
        headers: http::HeaderMap::new(),
        body: Bytes::new(),
        duration: Duration::ZERO,
        memory_peak_bytes: 0,
        log: None,
    };
    let platform = |status| verdict(&outcome(EventResult::PlatformError("e".into()), status));
    assert_eq!(verdict(&outcome(EventResult::Success, 200)), Verdict::Success);
    assert_eq!(verdict(&outcome(EventResult::FunctionError("e".into()), 443)), Verdict::Error);
    for (status, expected) in [
        (200, Verdict::Error),
        (400, Verdict::Refused),
        (406, Verdict::Refused),
        (412, Verdict::Refused),
        (429, Verdict::Throttled),
        (432, Verdict::Throttled),
        (438, Verdict::Broken),
        (433, Verdict::Error),
        (500, Verdict::Broken),
        (503, Verdict::Broken),
    ] {
        assert_eq!(platform(status), expected, "{status}");
    }
}
