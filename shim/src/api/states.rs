//! What has become of requests, kept for a while for callers who ask later.
//!
//! It is in memory, and bounded: what has ended is forgotten after three days, as Tencent does, and the oldest
//! of it sooner when it is too much.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::queue::locked;
use crate::instance::Ending;
use crate::{EventOutcome, EventResult, FunctionConfig};

/// Requests that have ended, at most.
const MAX_KEPT: usize = 10_000;

/// Of their answers together, in bytes.
const MAX_KEPT_BYTES: usize = 32 << 20;

/// How long they are kept.
const KEPT: Duration = Duration::from_secs(3 * 24 * 3600);

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It waits, runs, or is to be tried again.
    Running,
    Finished,
    /// Somebody ended it.
    Aborted,
    Failed,
}

/// What is known of a request.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) id: String,
    pub(super) namespace: String,
    pub(super) function: String,
    pub(super) qualifier: String,
    /// Whether its caller did not wait for it.
    pub(super) asynchronous: bool,
    pub(super) status: Status,
    /// Of the outcome; 0 before.
    pub(super) code: u16,
    pub(super) started: SystemTime,
    pub(super) ended: Option<SystemTime>,
    pub(super) answer: Bytes,
    pub(super) duration: Duration,
    pub(super) memory_peak_bytes: u64,
    pub(super) retries: u32,
    ending: Ending,
}

/// Why a request cannot be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotEnded {
    Unknown,
    OverAlready,
}

#[derive(Debug, Default)]
pub(super) struct States(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    requests: HashMap<String, State>,
    /// Those that have ended, the oldest first.
    over: VecDeque<(String, Instant)>,
    /// Of the answers of those.
    bytes: usize,
}

/// A request that runs; one that is dropped was given up by its caller.
pub(super) struct Tracked {
    states: Arc<States>,
    id: String,
    ending: Ending,
}

impl States {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        locked(&self.0)
    }

    /// Begins one.
    pub(super) fn begin(
        self: &Arc<Self>,
        id: String,
        config: &FunctionConfig,
        qualifier: &str,
        asynchronous: bool,
    ) -> Tracked {
        let ending = Ending::new();
        let state = State {
            id: id.clone(),
            namespace: config.namespace.clone(),
            function: config.name.clone(),
            qualifier: qualifier.to_owned(),
            asynchronous,
            status: Status::Running,
            code: 0,
            started: SystemTime::now(),
            ended: None,
            answer: Bytes::new(),
            duration: Duration::ZERO,
            memory_peak_bytes: 0,
            retries: 0,
            ending: ending.clone(),
        };
        self.lock().requests.insert(id.clone(), state);
        Tracked { states: Arc::clone(self), id, ending }
    }

    /// What is known of one.
    pub(super) fn get(&self, id: &str) -> Option<State> {
        let mut inner = self.lock();
        inner.forget(Instant::now());
        inner.requests.get(id).cloned()
    }

    /// Those that `wanted` says, in no order.
    pub(super) fn all(&self, wanted: impl Fn(&State) -> bool) -> Vec<State> {
        let mut inner = self.lock();
        inner.forget(Instant::now());
        inner.requests.values().filter(|state| wanted(state)).cloned().collect()
    }

    /// Ends one that is asynchronous, or has it sent SIGTERM.
    pub(super) fn end(&self, state: &State, gracefully: bool) -> Result<(), NotEnded> {
        let inner = self.lock();
        let found = inner.requests.get(&state.id).ok_or(NotEnded::Unknown)?;
        if found.status != Status::Running {
            return Err(NotEnded::OverAlready);
        }
        if gracefully {
            found.ending.signal();
        } else {
            found.ending.terminate();
        }
        Ok(())
    }
}

impl Inner {
    /// Forgets what is too old, and the oldest while there is too much.
    fn forget(&mut self, now: Instant) {
        while let Some((_, at)) = self.over.front() {
            let too_much = self.over.len() > MAX_KEPT || self.bytes > MAX_KEPT_BYTES;
            if !too_much && now.saturating_duration_since(*at) < KEPT {
                return;
            }
            let Some((id, _)) = self.over.pop_front() else { return };
            if let Some(state) = self.requests.remove(&id) {
                self.bytes -= state.answer.len();
            }
        }
    }

    fn over(&mut self, id: &str, set: impl FnOnce(&mut State)) {
        let Some(state) = self.requests.get_mut(id).filter(|state| state.ended.is_none()) else { return };
        state.ended = Some(SystemTime::now());
        set(state);
        self.bytes += state.answer.len();
        let now = Instant::now();
        self.over.push_back((id.to_owned(), now));
        self.forget(now);
    }
}

impl Tracked {
    /// What ends it from outside.
    pub(super) fn ending(&self) -> &Ending {
        &self.ending
    }

    /// Notes that it is tried again.
    pub(super) fn retried(&self, retries: u32) {
        if let Some(state) = self.states.lock().requests.get_mut(&self.id) {
            state.retries = retries;
        }
    }

    /// Notes how it ended.
    pub(super) fn over(&self, outcome: &EventOutcome) {
        let status = match outcome.result {
            EventResult::Success => Status::Finished,
            _ if self.ending.is_asked() => Status::Aborted,
            _ => Status::Failed,
        };
        self.states.lock().over(&self.id, |state| {
            state.status = status;
            state.code = outcome.status.as_u16();
            state.answer = outcome.body.clone();
            state.duration = outcome.duration;
            state.memory_peak_bytes = outcome.memory_peak_bytes;
        });
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.states.lock().over(&self.id, |state| {
            state.status = Status::Aborted;
            state.code = 499;
        });
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::platform::scf;

    fn outcome(result: EventResult, body: Bytes) -> EventOutcome {
        EventOutcome {
            request_id: String::new(),
            result,
            status: StatusCode::OK,
            headers: http::HeaderMap::new(),
            body,
            duration: Duration::from_millis(5),
            memory_peak_bytes: 7,
            log: None,
        }
    }

    fn begin(states: &Arc<States>, id: &str) -> Tracked {
        states.begin(id.to_owned(), &FunctionConfig::new("f", scf()), "$LATEST", true)
    }

    fn status(states: &States, id: &str) -> Option<Status> {
        states.get(id).map(|state| state.status)
    }

    #[test]
    fn a_request_runs_until_it_has_ended() {
        let states = Arc::new(States::default());
        let request = begin(&states, "a");
        request.retried(2);
        let running = states.get("a").expect("known");
        assert_eq!((running.status, running.code, running.retries), (Status::Running, 0, 2));
        request.over(&outcome(EventResult::Success, "done".into()));
        drop(request);
        let ended = states.get("a").expect("known");
        assert_eq!((ended.status, ended.code, &ended.answer[..]), (Status::Finished, 200, &b"done"[..]));
        assert_eq!((ended.memory_peak_bytes, ended.duration.as_millis()), (7, 5));
        let failing = begin(&states, "b");
        failing.over(&outcome(EventResult::FunctionError("no".into()), Bytes::new()));
        drop(begin(&states, "c"));
        assert_eq!(
            (status(&states, "b"), status(&states, "c")),
            (Some(Status::Failed), Some(Status::Aborted))
        );
        assert_eq!(status(&states, "d"), None);
        assert_eq!(states.all(|state| state.status == Status::Failed).len(), 1);
    }

    #[tokio::test]
    async fn what_runs_can_be_ended_and_nothing_else() {
        let states = Arc::new(States::default());
        let request = begin(&states, "a");
        let state = states.get("a").expect("known");
        assert_eq!(states.end(&state, true), Ok(()));
        assert!(request.ending().is_asked());
        assert_eq!(states.end(&state, false), Ok(()));
        request.ending().terminated().await;
        request.over(&outcome(EventResult::PlatformError("gone".into()), Bytes::new()));
        assert_eq!(status(&states, "a"), Some(Status::Aborted));
        assert_eq!(states.end(&state, false), Err(NotEnded::OverAlready));
    }

    #[test]
    fn what_has_ended_is_bounded_in_count_bytes_and_time() {
        let states = Arc::new(States::default());
        let running = begin(&states, "running");
        for number in 0..MAX_KEPT + 5 {
            begin(&states, &number.to_string()).over(&outcome(EventResult::Success, Bytes::new()));
        }
        assert_eq!(states.all(|_| true).len(), MAX_KEPT + 1);
        assert_eq!((status(&states, "4"), status(&states, "5")), (None, Some(Status::Finished)));
        let large = Bytes::from(vec![b'x'; MAX_KEPT_BYTES - 1]);
        begin(&states, "large").over(&outcome(EventResult::Success, large.clone()));
        assert_eq!(states.all(|_| true).len(), MAX_KEPT + 1, "there is room for one");
        begin(&states, "larger").over(&outcome(EventResult::Success, large));
        let kept = states.all(|_| true);
        assert_eq!(kept.len(), 2, "the large one went, and all that were older");
        assert_eq!(status(&states, "larger"), Some(Status::Finished));
        states.lock().forget(Instant::now() + KEPT);
        assert_eq!(status(&states, "larger"), None);
        assert_eq!(status(&states, "running"), Some(Status::Running), "what runs is never forgotten");
        drop(running);
        assert_eq!(states.lock().bytes, 0);
    }
}
