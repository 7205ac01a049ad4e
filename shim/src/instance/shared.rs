//! What an instance's invocations share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use skiff_runtime::Exit;
use tokio::sync::watch;

use super::activity::Activity;
use super::guest::{Guest, KILLED};
use super::logs::Logs;
use super::role::Role;
use super::start::tell;
use super::traces::Tracer;
use super::{State, Timeline};
use crate::FunctionConfig;
use crate::meter::{Busy, Tap};
use crate::platform::{InstanceStep, InvocationFailure};
use crate::proxy::pool::{Pool, SendError};
use crate::telemetry::TraceContext;

/// How long the news of a container's end may lag behind the break of its connections, on a host that has much
/// to do: an exit that is taken for a broken connection gets another answer.
const EXIT_NEWS: Duration = Duration::from_secs(1);

pub(crate) struct Shared {
    pub(crate) id: Arc<str>,
    pub(crate) config: Arc<FunctionConfig>,
    pub(crate) guest: Arc<dyn Guest>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) code_checksum: String,
    pub(super) state: watch::Sender<State>,
    pub(super) timeline: Timeline,
    /// No invocation has come yet.
    pub(super) cold: AtomicBool,
    /// It is there whether anybody calls or not.
    pub(super) provisioned: AtomicBool,
    pub(crate) activity: Arc<Activity>,
    pub(crate) role: Arc<Role>,
    /// As its health checks say.
    pub(super) healthy: AtomicBool,
    /// A failure after which its platform gives it no more invocations.
    pub(super) condemned: AtomicBool,
    /// When its start began.
    pub(super) since: SystemTime,
    /// Where its invocations are noted, and what it is billed while it works.
    pub(super) tap: Option<Tap>,
    pub(super) tracer: Option<Tracer>,
    pub(super) busy: Mutex<Busy>,
}

impl Shared {
    /// The timeline, for the first that asks: its invocation is the cold start's.
    pub(super) fn cold_start(&self) -> Option<&Timeline> {
        self.cold.swap(false, Ordering::Relaxed).then_some(&self.timeline)
    }

    /// The place in a trace that a request comes from, where anybody wants to know.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Option<TraceContext> {
        self.tracer.as_ref()?.caller(headers)
    }

    /// Highest memory use so far in bytes.
    pub(super) fn memory_peak_bytes(&self) -> u64 {
        self.guest.memory_peak_bytes()
    }

    /// Why a request got no answer: the container's end explains a broken connection.
    pub(crate) async fn explain(&self, error: SendError) -> InvocationFailure {
        match error {
            SendError::Invalid(error) => return InvocationFailure::BadResponse(error.to_string()),
            SendError::Client => return InvocationFailure::Canceled,
            SendError::TooLarge(limit) => return InvocationFailure::body_too_large(limit),
            SendError::Broken(_) | SendError::Connect(_) => {}
        }
        let reason = error.text();
        match tokio::time::timeout(EXIT_NEWS, self.guest.wait()).await {
            Ok(Ok(exit)) if exit.oom_killed => InvocationFailure::OutOfMemory,
            Ok(exit) => InvocationFailure::ProcessExited(exit.ok()),
            Err(_) => InvocationFailure::ConnectionBroken(reason),
        }
    }

    /// Notes that its platform gives it no more invocations.
    pub(crate) fn condemn(&self) {
        self.condemned.store(true, Ordering::SeqCst);
        // Whoever waits for a change of state looks again.
        self.state.send_modify(|_| ());
    }

    /// Adds the platform's event of a step to the logs.
    pub(super) fn tell(&self, step: InstanceStep<'_>) {
        tell(&self.config, &self.id, &self.logs, step);
    }

    /// Notes its end, once.
    pub(super) fn ended(&self, exit: Exit) {
        let first = self.state.send_if_modified(|state| {
            let changes = !matches!(state, State::Ended(_));
            if changes {
                *state = State::Ended(exit);
            }
            changes
        });
        if first {
            self.tell(InstanceStep::Destroyed);
        }
    }

    /// Enters a state unless it has ended already.
    pub(super) fn enter(&self, next: State) {
        self.state.send_if_modified(|state| {
            let changes = !matches!(state, State::Ended(_)) && *state != next;
            if changes {
                *state = next;
            }
            changes
        });
    }
}

/// Waits for the container's end; the only one that turns it into a state, besides a stop.
pub(super) async fn drive(guest: Arc<dyn Guest>, shared: Weak<Shared>) {
    let exit = guest.wait().await.unwrap_or(KILLED);
    if let Some(shared) = shared.upgrade() {
        shared.ended(exit);
    }
}
