//! Asynchronous events: taken at once, invoked when the function has room, tried again when they fail.
//!
//! They are in memory: those that wait when the API ends are lost, and that is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Function;
use super::options::{AsyncOptions, deliver};
use super::states::{States, Tracked};
use super::work::Work;
use crate::platform::{InvocationContext, InvocationFailure, InvocationKind, InvocationReport};
use crate::telemetry::TraceContext;
use crate::{EventOutcome, EventResult, InvokeOptions};

/// Events that wait or run; more are refused.
const MAX_EVENTS: usize = 10_000;

/// Of all events together, in bytes.
const MAX_BYTES: usize = 256 << 20;

/// How long events that run may take when the API ends.
const GRACE: Duration = Duration::from_secs(10);

/// How long an event may take to end that was told to, while it is invoked.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why an event ended that somebody ended.
const TERMINATED: &str = "Terminated";

/// One event on its way.
pub(super) struct Event {
    function: Arc<dyn Function>,
    policy: &'static Policy,
    work: Work,
    request_id: String,
    taken: Instant,
    delay: Duration,
    /// Who asks what has become of it, and ends it.
    tracked: Option<Tracked>,
    caller: Option<TraceContext>,
}

impl Event {
    pub(super) fn new(
        function: Arc<dyn Function>,
        policy: &'static Policy,
        payload: Bytes,
        request_id: String,
        delay: Duration,
    ) -> Self {
        Self::of(function, policy, Work::Event(payload), request_id, delay)
    }

    pub(super) fn of(
        function: Arc<dyn Function>,
        policy: &'static Policy,
        work: Work,
        request_id: String,
        delay: Duration,
    ) -> Self {
        Self { function, policy, work, request_id, taken: Instant::now(), delay, tracked: None, caller: None }
    }

    /// With its caller's place in a trace. An HTTP request has it in itself.
    pub(super) fn called_by(mut self, caller: Option<TraceContext>) -> Self {
        self.caller = caller;
        self
    }

    /// As one that can be asked after and ended.
    pub(super) fn tracked(mut self, tracked: Tracked) -> Self {
        self.tracked = Some(tracked);
        self
    }

    /// Does `wait` while it is not invoked; `None` when somebody ends it meanwhile.
    async fn while_it_waits<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let Some(tracked) = &self.tracked else { return Some(wait.await) };
        tokio::select! {
            biased;
            () = tracked.ending().asked() => None,
            done = wait => Some(done),
        }
    }

    /// Waits until one that was to end has had the time for it.
    async fn overdue(&self) {
        match &self.tracked {
            Some(tracked) => tracked.ending().terminated().await,
            None => std::future::pending().await,
        }
        tokio::time::sleep(PATIENCE).await;
    }

    fn is_asked_to_end(&self) -> bool {
        self.tracked.as_ref().is_some_and(|tracked| tracked.ending().is_asked())
    }
}

/// How a platform treats what failed.
#[derive(Debug)]
pub(super) struct Policy {
    /// How often errors of the function are tried again.
    pub(super) retries: u32,
    pub(super) max_age: Duration,
    /// Before a failed event is tried again; doubled each time up to `longest`.
    pub(super) first: Duration,
    pub(super) longest: Duration,
    /// After errors of the function, and while it is over a limit, it is always the first pause.
    pub(super) steady: bool,
}

impl Policy {
    fn pause(&self, verdict: Verdict, tries: u32) -> Duration {
        if self.steady && matches!(verdict, Verdict::Error | Verdict::Throttled) {
            return self.first;
        }
        self.first.saturating_mul(1 << tries.min(20)).min(self.longest)
    }
}

/// What an outcome means for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Success,
    /// Tried again so often as the function's owner says.
    Error,
    /// The function is over a limit: tried again until it is too old.
    Throttled,
    /// The platform's own: the same.
    Broken,
    /// The caller's: never tried again.
    Refused,
}

fn verdict(outcome: &EventOutcome) -> Verdict {
    match (&outcome.result, outcome.status) {
        (EventResult::Success, _) => Verdict::Success,
        (EventResult::FunctionError(_), _) | (_, StatusCode::OK) => Verdict::Error,
        (_, status) if status == StatusCode::TOO_MANY_REQUESTS || status.as_u16() == 432 => {
            Verdict::Throttled
        }
        (_, status) if status.is_server_error() => Verdict::Broken,
        // scf: the function is not there yet, or not for now.
        (_, status) if status.as_u16() == 438 => Verdict::Broken,
        // scf: time and memory limits are errors of the run.
        (_, status) if [433, 434, 439].contains(&status.as_u16()) => Verdict::Error,
        _ => Verdict::Refused,
    }
}

/// The events of all functions.
pub(super) struct Queue {
    options: AsyncOptions,
    states: Arc<States>,
    room: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// As many of a function's events run at once as its instances can work on.
    places: Mutex<HashMap<String, Places>>,
    events: Mutex<JoinSet<()>>,
    /// Closed when the API ends; it never has a place.
    end: Semaphore,
}

/// Of one function.
struct Places {
    free: Arc<Semaphore>,
    /// How many there are, and more where some that are to go are taken.
    all: usize,
}

impl Places {
    /// A revision may have more or fewer instances than the one before.
    fn adjust(&mut self, wanted: usize) {
        if wanted > self.all {
            self.free.add_permits(wanted - self.all);
            self.all = wanted;
        } else {
            self.all -= self.free.forget_permits(self.all - wanted);
        }
    }
}

/// The room that an event takes until it is over.
struct Room(#[allow(dead_code, reason = "held")] [OwnedSemaphorePermit; 2]);

impl Queue {
    pub(super) fn new(options: AsyncOptions) -> Self {
        Self {
            options,
            states: Arc::default(),
            room: Arc::new(Semaphore::new(MAX_EVENTS)),
            bytes: Arc::new(Semaphore::new(MAX_BYTES)),
            places: Mutex::default(),
            events: Mutex::new(JoinSet::new()),
            end: Semaphore::new(0),
        }
    }

    /// What has become of requests.
    pub(super) fn states(&self) -> &Arc<States> {
        &self.states
    }

    /// Takes an event. The error is how many wait when there is no room.
    pub(super) fn push(self: &Arc<Self>, event: Event) -> Result<(), usize> {
        let full = |_| MAX_EVENTS - self.room.available_permits();
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(full)?;
        let size = event.work.size() + event.caller.as_ref().map_or(0, TraceContext::size);
        let length = u32::try_from(size).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(length).map_err(full)?;
        let (queue, room) = (Arc::clone(self), Room([room, bytes]));
        let mut events = locked(&self.events);
        // Those that are over are forgotten.
        while events.try_join_next().is_some() {}
        events.spawn(async move {
            queue.run(event).await;
            drop(room);
        });
        Ok(())
    }

    /// Lets events that run end within a grace, and tells of those that are lost.
    pub(super) async fn close(&self) {
        self.end.close();
        locked(&self.places).values().for_each(|places| places.free.close());
        let mut events = std::mem::take(&mut *locked(&self.events));
        let _ = tokio::time::timeout(GRACE, async { while events.join_next().await.is_some() {} }).await;
        let lost = events.len();
        if lost > 0 {
            tracing::warn!(lost, "asynchronous events that did not end in time are lost");
        }
        events.shutdown().await;
    }

    /// Waits so long; false when the API has ended meanwhile.
    async fn rest(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.end.acquire()).await.is_err()
    }

    /// The function's own go first.
    fn options_of(&self, event: &Event) -> AsyncOptions {
        event.function.config().asynchronous.or(&self.options)
    }

    fn places(&self, function: &dyn Function) -> Arc<Semaphore> {
        self.with_places(function, |places, wanted| {
            places.adjust(wanted);
            Arc::clone(&places.free)
        })
    }

    /// Lets another event have a place, if there are not too many: others wait for it already.
    fn give_back(&self, function: &dyn Function, place: SemaphorePermit<'_>) {
        self.with_places(function, |places, wanted| {
            if places.all > wanted {
                place.forget();
                places.all -= 1;
            } else {
                drop(place);
                places.adjust(wanted);
            }
        });
    }

    /// With its places, and how many it is to have by now.
    fn with_places<T>(&self, function: &dyn Function, work: impl FnOnce(&mut Places, usize) -> T) -> T {
        let config = function.config();
        let wanted = function.places().clamp(1, MAX_EVENTS);
        let mut all = locked(&self.places);
        let place = all.entry(format!("{}/{}", config.namespace, config.name));
        work(place.or_insert_with(|| Places { free: Arc::new(Semaphore::new(0)), all: 0 }), wanted)
    }

    async fn run(&self, event: Event) {
        let worked = tokio::select! {
            biased;
            worked = self.work_on(&event) => worked,
            () = event.overdue() => Some((given_up(&event), TERMINATED, 0)),
        };
        match worked {
            Some((outcome, condition, tries)) => {
                if let Some(tracked) = &event.tracked {
                    tracked.over(&outcome);
                }
                self.tell(&event, &outcome, condition, tries).await;
            }
            None => tracing::warn!(request = event.request_id, "an asynchronous event that waited is lost"),
        }
    }

    /// What became of it, why it ended so, and how often it was tried; `None` when the API ended first.
    async fn work_on(&self, event: &Event) -> Option<(EventOutcome, &'static str, u32)> {
        let asked = self.options_of(event);
        let retries = asked.retries.unwrap_or(event.policy.retries);
        let max_age = asked.max_age.unwrap_or(event.policy.max_age);
        let (mut tries, mut errors) = (0, 0);
        if !event.while_it_waits(self.rest(event.delay)).await.unwrap_or(true) {
            return None;
        }
        loop {
            let places = self.places(&*event.function);
            let Some(place) = event.while_it_waits(places.acquire()).await else {
                return Some((given_up(event), TERMINATED, tries));
            };
            let place = place.ok()?;
            let options = InvokeOptions {
                request_id: Some(event.request_id.clone()),
                retries: tries,
                asynchronous: true,
                caller: event.caller.clone(),
                ending: event.tracked.as_ref().map(|tracked| tracked.ending().clone()),
                ..InvokeOptions::default()
            };
            if let Some(tracked) = &event.tracked {
                tracked.retried(tries);
            }
            let outcome = event.work.run(&*event.function, options).await;
            self.give_back(&*event.function, place);
            let verdict = verdict(&outcome);
            errors += u32::from(verdict == Verdict::Error);
            let pause = event.policy.pause(verdict, tries);
            tries = tries.saturating_add(1);
            let condition = match verdict {
                Verdict::Success => "Success",
                _ if event.is_asked_to_end() => TERMINATED,
                Verdict::Refused => "RequestRefused",
                Verdict::Error if errors > retries => "RetriesExhausted",
                _ if event.taken.elapsed() + pause > max_age => "EventAgeExceeded",
                _ if event.while_it_waits(self.rest(pause)).await.unwrap_or(true) => continue,
                _ => return None,
            };
            return Some((outcome, condition, tries));
        }
    }

    async fn tell(&self, event: &Event, outcome: &EventOutcome, condition: &str, tries: u32) {
        let success = condition == "Success";
        let asked = self.options_of(event);
        let Some(destination) = (if success { &asked.on_success } else { &asked.on_failure }) else { return };
        let record = record(event, outcome, condition, tries);
        if let Err(error) = deliver(destination, &record).await {
            tracing::warn!(request = event.request_id, error, "a destination did not take a record");
        }
    }
}

/// The outcome of an event that was ended and is not invoked, or does not end.
fn given_up(event: &Event) -> EventOutcome {
    let config = event.function.config();
    let platform = config.platform;
    let context = InvocationContext {
        config,
        instance_id: "",
        request_id: &event.request_id,
        kind: InvocationKind::Event,
        path: "",
        client: None,
        origin: None,
        retries: 0,
        asynchronous: true,
        code_checksum: "",
        trigger: None,
        credentials: None,
    };
    let report = InvocationReport::default();
    let answer = platform.invocation_failure(&context, &InvocationFailure::Terminated, &report);
    EventOutcome::refused(event.request_id.clone(), answer, Duration::ZERO)
}

/// As fc writes it: payloads are JSON where they can be, else text.
fn record(event: &Event, outcome: &EventOutcome, condition: &str, tries: u32) -> Value {
    let config = event.function.config();
    let value = |bytes: &[u8]| {
        serde_json::from_slice(bytes)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(bytes).into_owned()))
    };
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let error = outcome.headers.get("x-fc-error-type").and_then(|kind| kind.to_str().ok());
    let error = error.map(str::to_owned).or_else(|| match &outcome.result {
        EventResult::Success => None,
        EventResult::FunctionError(text) | EventResult::PlatformError(text) => Some(text.clone()),
    });
    json!({
        "timestamp": u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        "requestContext": {
            "requestId": event.request_id,
            "functionArn": format!("acs:fc:{}:{}:functions/{}", config.region, config.account_id, config.name),
            "condition": condition,
            "approximateInvokeCount": tries,
        },
        "requestPayload": value(event.work.payload()),
        "responseContext": {
            "statusCode": outcome.status.as_u16(),
            "functionError": error.unwrap_or_default(),
        },
        "responsePayload": value(&outcome.body),
    })
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
