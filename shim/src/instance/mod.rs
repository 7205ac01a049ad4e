//! An instance: one running container of a function.
//!
//! ```text
//!              server listens             stop
//!   Starting ───────────────▶ Ready ─────────────▶ Stopping
//!      │                        │                     │
//!      │ exit, deadline         │ exit                │ exit
//!      ▼                        ▼                     ▼
//!    Failed                   Ended ◀─────────────────┘
//! ```

mod activity;
mod callbacks;
mod ending;
pub(crate) mod event;
mod failure;
pub(crate) mod guest;
mod health;
pub(crate) mod invocation;
mod job;
#[cfg(test)]
mod life_tests;
mod logs;
mod metrics;
mod readiness;
mod rehearsal;
pub(crate) mod role;
pub(crate) mod shared;
mod start;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod timeline;
pub(crate) mod traces;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
pub use ending::Ending;
use futures_util::future::FutureExt as _;
use http::{HeaderMap, StatusCode};
pub use job::Job;
pub(crate) use logs::Logs;
pub use logs::{LogLine, LogSink, LogStream};
pub use rehearsal::Rehearsal;
use shared::Shared;
use skiff_runtime::{Container, Exit, Runtime, Stats, breakpoint};
pub use timeline::Timeline;
use tokio::task::JoinHandle;
use traces::Tracer;
pub use traces::{Trace, TraceStep};

use crate::function::Callback;
use crate::meter::{Receipt, Tap};
use crate::platform::{PlatformAnswer, Trigger};
use crate::pool::room::Share;
use crate::telemetry::TraceContext;
use crate::{Error, FunctionConfig, Image, Result};

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The container starts, or runs and does not listen yet.
    Starting,
    /// Its server listens; it takes invocations.
    Ready,
    /// It has been told to stop.
    Stopping,
    /// It has ended after it had been ready.
    Ended(Exit),
    /// It never became ready.
    Failed,
}

/// What the caller of an event asks for besides the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InvokeOptions {
    /// The last 4 KB of the log of the invocation ([`EventOutcome::log`]; fc: `X-Fc-Log-Type: Tail` asks,
    /// `X-Fc-Log-Result` answers). Not of an instance that works on several invocations at once: nobody
    /// could tell whose lines they are.
    pub log_tail: bool,
    /// The request's id, for one that has been told its caller already; a new one when `None`.
    pub request_id: Option<String>,
    /// How often an asynchronous event has been tried before.
    pub retries: u32,
    /// Whether it is an asynchronous event, as records tell it.
    pub asynchronous: bool,
    /// What calls instead of a caller (scf: `X-Scf-Trigger-Src`); its event is
    /// [`Platform::timer_event`](crate::Platform::timer_event).
    pub trigger: Option<Trigger>,
    /// What ends it besides its caller, who can drop it.
    pub ending: Option<Ending>,
    /// How long it has waited for its instance, as traces tell it.
    pub waited: Duration,
    /// Its caller's place in a trace, where a node exports spans.
    pub caller: Option<TraceContext>,
}

/// How an event call went.
#[derive(Clone, Debug)]
pub struct EventOutcome {
    /// The request's id.
    pub request_id: String,
    /// How it went.
    pub result: EventResult,
    /// The status that the caller of the platform's invoke call sees.
    pub status: StatusCode,
    /// The headers that the caller sees.
    pub headers: HeaderMap,
    /// The function's answer, or the platform's error body.
    pub body: Bytes,
    /// From the call to the answer's last byte.
    pub duration: Duration,
    /// Highest memory use of the instance so far, in bytes.
    pub memory_peak_bytes: u64,
    /// The last 4 KB of the log of the invocation, for who asked.
    pub log: Option<Bytes>,
}

/// Who says what about an event call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventResult {
    /// The function answered and reported success.
    Success,
    /// The function answered and reported an error, or ended while it served; the text.
    FunctionError(String),
    /// The platform could not get an answer (time limit, broken connection, size limit); the text.
    PlatformError(String),
}

impl EventOutcome {
    /// The platform's own answer to an event that no instance has worked on.
    pub(crate) fn refused(request_id: String, answer: PlatformAnswer, duration: Duration) -> Self {
        Self {
            request_id,
            result: EventResult::PlatformError(answer.message),
            status: answer.status,
            headers: answer.headers,
            body: answer.body,
            duration,
            memory_peak_bytes: 0,
            log: None,
        }
    }

    /// How a program that made only this call should exit.
    #[must_use]
    pub fn exit_code(&self) -> crate::ExitCode {
        match self.result {
            EventResult::Success => crate::ExitCode::Success,
            EventResult::FunctionError(_) => crate::ExitCode::FunctionError,
            EventResult::PlatformError(_) => crate::ExitCode::Platform,
        }
    }
}

/// What ties an instance to its node; one of no node has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ties {
    /// A label by which a later process knows its container again.
    pub(crate) label: Vec<u8>,
    /// Where its invocations are noted.
    pub(crate) tap: Option<Tap>,
    /// And how long their steps took.
    pub(crate) tracer: Option<Tracer>,
}

/// How long a stop waits for the last lines to be passed on.
pub(crate) const LAST_LINES: Duration = Duration::from_secs(2);

/// One running container of a function. Dropping it kills the container.
pub struct Instance {
    pub(crate) shared: Arc<Shared>,
    /// Its watchers, ended when it is dropped.
    tasks: Vec<JoinHandle<()>>,
    /// Its container is a later process's.
    left: AtomicBool,
    /// What it has of its node's room.
    share: OnceLock<Share>,
}

impl Instance {
    /// Starts a container of `image` for the function and waits until its server listens. What it
    /// writes to stdout and stderr, and the platform's log lines, go to `logs`.
    ///
    /// # Errors
    /// `InvalidFunction`; `StartFailed` when the server does not come up; `Runtime` for what the
    /// image, the host or the keeper does not allow. [`Error::answer`] is what the platform tells
    /// its caller.
    pub async fn start(
        runtime: &Arc<Runtime>,
        image: &Image,
        config: &Arc<FunctionConfig>,
        logs: Arc<dyn LogSink>,
    ) -> Result<Self> {
        Self::start_known(runtime, image, config, logs, Ties::default()).await
    }

    /// As [`Instance::start`], of a node.
    pub(crate) async fn start_known(
        runtime: &Arc<Runtime>,
        image: &Image,
        config: &Arc<FunctionConfig>,
        logs: Arc<dyn LogSink>,
        ties: Ties,
    ) -> Result<Self> {
        // Boxed: the future of a whole start is large.
        Box::pin(start::start(runtime, image, config, logs, ties)).await
    }

    /// Takes a container over that another process started, and whose server was ready then.
    pub(crate) async fn adopt(
        container: Container,
        image: &Image,
        config: &Arc<FunctionConfig>,
        logs: Arc<dyn LogSink>,
        ties: Ties,
    ) -> Result<Self> {
        Box::pin(start::adopt(container, image, config, logs, ties)).await
    }

    /// One that is ready, with who looks after it.
    fn of(shared: Arc<Shared>) -> Self {
        Self { tasks: start::tend(&shared), left: AtomicBool::new(false), share: OnceLock::new(), shared }
    }

    /// Looks after its container no longer, and lets it go on when this is dropped, for a later process. Its
    /// runtime must have been left by then.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
        self.tasks.iter().for_each(JoinHandle::abort);
    }

    /// Holds what it has of its node's room until it is dropped.
    pub(crate) fn hold(&self, share: Share) {
        // There is one for each.
        let _ = self.share.set(share);
    }

    /// Whether it is there whether anybody calls or not.
    pub(crate) fn is_provisioned(&self) -> bool {
        self.shared.provisioned.load(Ordering::Relaxed)
    }

    /// It is so from now on, whatever it was started for.
    pub(crate) fn keep(&self, provisioned: bool) {
        self.shared.provisioned.store(provisioned, Ordering::Relaxed);
    }

    /// It was started to be there whether anybody calls or not: no invocation of it is a cold start's.
    pub(crate) fn provision(&self) {
        self.keep(true);
        let shared = &self.shared;
        if let Some(start) = shared.cold_start() {
            let platform = shared.config.platform;
            let id = platform.new_request_id();
            let memory = shared.memory_peak_bytes();
            shared.logs.platform(Some(&id), platform.log_provisioned(&shared.config, &id, start, memory));
        }
    }

    /// It will stop: nobody else need give way for the room that it has.
    pub(crate) fn gives_way(&self) {
        if let Some(share) = self.share.get() {
            share.leaves();
        }
    }

    /// Runs the function's command once to record what a start of it touches, as a preparation for
    /// starts with [`FunctionConfig::acceleration`]: until its server listens and a second longer,
    /// or until `patience` is over; then it is killed. What was recorded before is replaced.
    ///
    /// # Errors
    /// `InvalidFunction`; `StartFailed` when the command ends by itself, or where nothing could be
    /// recorded; `Runtime` as [`Instance::start`].
    pub async fn rehearse(
        runtime: &Arc<Runtime>,
        image: &Image,
        config: &Arc<FunctionConfig>,
        patience: Duration,
    ) -> Result<Rehearsal> {
        Box::pin(rehearsal::rehearse(runtime, image, config, patience)).await
    }

    /// The error for an image that could not be pulled, with the platform's answer to the caller.
    #[must_use]
    pub fn pull_failed(config: &FunctionConfig, error: skiff_runtime::Error) -> Error {
        failure::pull_failed(config, error)
    }

    /// As [`Instance::pull_failed`], and the platform's events of it go to `logs`, those of an instance that
    /// will not be. Must be called in a tokio runtime.
    pub async fn pull_failed_told(
        config: &FunctionConfig,
        error: skiff_runtime::Error,
        logs: Arc<dyn LogSink>,
    ) -> Error {
        failure::tell_pull_failed(config, &error, logs).await;
        failure::pull_failed(config, error)
    }

    /// Its id, which is its host name too.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Its function.
    #[must_use]
    pub fn config(&self) -> &Arc<FunctionConfig> {
        &self.shared.config
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> State {
        *self.shared.state.borrow()
    }

    /// Whether it may get invocations: it is ready, its health checks succeed, and it has had no failure
    /// after which its platform replaces an instance.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.state() == State::Ready
            && self.shared.healthy.load(Ordering::Relaxed)
            && !self.shared.condemned.load(Ordering::SeqCst)
    }

    /// How long each step of its start took, the pull of its image included.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.shared.timeline
    }

    /// What it uses now, or what it used last.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.guest.stats()
    }

    /// When its start began.
    #[must_use]
    pub fn since(&self) -> SystemTime {
        self.shared.since
    }

    /// How many invocations it works on.
    #[must_use]
    pub fn running(&self) -> usize {
        self.shared.activity.running()
    }

    /// Whether it is frozen, for it has nothing to do.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.shared.activity.is_cool() && self.shared.guest.is_frozen()
    }

    /// Waits until it has ended, by itself or by [`Instance::stop`]. Cancel safe.
    pub async fn wait(&self) -> State {
        let mut state = self.shared.state.subscribe();
        let ended = state.wait_for(|state| matches!(state, State::Ended(_))).await;
        // The sender lives as long as `self`.
        ended.map_or(State::Ended(guest::KILLED), |state| *state)
    }

    /// Waits until it will get no more invocations, and tells how it has ended, if it has by itself. Cancel
    /// safe.
    pub(crate) async fn used_up(&self) -> Option<State> {
        let mut state = self.shared.state.subscribe();
        let condemned = &self.shared.condemned;
        let used_up = |state: &State| *state != State::Ready || condemned.load(Ordering::SeqCst);
        let found = state.wait_for(used_up).await.map_or(State::Stopping, |state| *state);
        match found {
            State::Ended(_) => Some(found),
            // The news of its end may not have come yet.
            State::Ready => {
                let exit = self.shared.guest.wait().now_or_never()?;
                Some(State::Ended(exit.unwrap_or(guest::KILLED)))
            }
            _ => None,
        }
    }

    /// Passes an HTTP request on to its server; `held` is let go at the invocation's end.
    pub(crate) fn pass(
        &self,
        client: Option<std::net::SocketAddr>,
        request: http::Request<crate::proxy::body::Body>,
        held: Option<invocation::Held>,
    ) -> futures_util::future::BoxFuture<'static, http::Response<crate::proxy::body::Body>> {
        Box::pin(crate::proxy::forward(Arc::clone(&self.shared), client, request, held))
    }

    /// Invokes it as the platform's event call does. Never fails: every failure is an answer.
    pub async fn invoke_event(&self, event: Bytes) -> EventOutcome {
        self.invoke_event_with(event, InvokeOptions::default()).await
    }

    /// As [`Instance::invoke_event`], with what the caller asks for besides.
    pub async fn invoke_event_with(&self, event: Bytes, options: InvokeOptions) -> EventOutcome {
        let (outcome, receipt) = self.invoke_metered(event, options).await;
        receipt.settled().await;
        outcome
    }

    /// The same, for who waits for its record when the instance may work on something else.
    pub(crate) async fn invoke_metered(
        &self,
        event: Bytes,
        options: InvokeOptions,
    ) -> (EventOutcome, Receipt) {
        Box::pin(event::invoke(&self.shared, event, options)).await
    }

    /// Stops it (the PreStop callback, SIGTERM, the function's grace, kill) and waits until its output has been passed
    /// on, for 2 s at most. May be called again; every call returns when it has ended.
    ///
    /// # Errors
    /// `Runtime(KeeperLost)`.
    pub async fn stop(&self) -> Result<State> {
        breakpoint::reach("daemon-stops");
        let ready = self.state() == State::Ready;
        self.shared.enter(State::Stopping);
        // It is kept awake until it has ended.
        let _active = self.shared.activity.begin();
        self.shared.activity.wake(&*self.shared.guest).await;
        if ready {
            // What it answers, and whether it answers, changes nothing.
            let _ = callbacks::call(&self.shared, Callback::PreStop).await;
        }
        let stopped = self.shared.guest.stop(self.shared.config.stop_grace).await;
        breakpoint::reach("daemon-stopped");
        self.shared.ended(*stopped.as_ref().unwrap_or(&guest::KILLED));
        self.shared.logs.drained(LAST_LINES).await;
        stopped?;
        Ok(self.state())
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("id", &self.shared.id)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// Invocations that still run hold the container: it is killed under them.
impl Drop for Instance {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if matches!(self.state(), State::Ended(_)) || self.left.load(Ordering::SeqCst) {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let guest = Arc::clone(&self.shared.guest);
            runtime.spawn(async move { guest.stop(Duration::ZERO).await });
        }
    }
}
