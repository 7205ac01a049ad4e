//! One invocation from its arrival to its last byte: ids, time limit, log lines.

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderValue;
use tokio::time::Instant;

use super::Timeline;
use super::activity::Active;
use super::shared::Shared;
use crate::platform::{
    InvocationContext, InvocationFailure, InvocationKind, InvocationReport, PlatformAnswer,
};

/// An invocation that runs. Dropped before it has ended, it was cancelled by its client.
pub(crate) struct Invocation {
    pub(crate) shared: Arc<Shared>,
    request_id: String,
    kind: InvocationKind,
    path: String,
    client: Option<SocketAddr>,
    origin: Option<HeaderValue>,
    started: Instant,
    cold_start: Option<Timeline>,
    ended: bool,
    /// Keeps the instance from being frozen.
    _active: Active,
}

impl Invocation {
    /// Begins one, writes the platform's first log lines, and thaws the instance if need be.
    pub(crate) async fn begin(
        shared: &Arc<Shared>,
        kind: InvocationKind,
        path: &str,
        client: Option<SocketAddr>,
        origin: Option<HeaderValue>,
    ) -> Self {
        let invocation = Self {
            shared: Arc::clone(shared),
            request_id: shared.config.platform.new_request_id(),
            kind,
            path: path.to_owned(),
            client,
            origin,
            started: Instant::now(),
            cold_start: shared.cold_start().copied(),
            ended: false,
            _active: shared.activity.begin(),
        };
        let lines = shared.config.platform.log_start(&invocation.context(), &invocation.report());
        shared.logs.platform(lines);
        shared.activity.wake(&*shared.guest).await;
        invocation
    }

    pub(crate) fn context(&self) -> InvocationContext<'_> {
        InvocationContext {
            config: &self.shared.config,
            instance_id: &self.shared.id,
            request_id: &self.request_id,
            kind: self.kind,
            path: &self.path,
            client: self.client,
            origin: self.origin.as_ref(),
        }
    }

    /// When the function's time is up.
    pub(crate) fn deadline(&self) -> Instant {
        self.started + self.shared.config.timeout
    }

    pub(crate) fn elapsed(&self) -> std::time::Duration {
        self.started.elapsed()
    }

    /// Ends it with an answer of the function. `answer` is an event's, `error` what the function
    /// reported.
    pub(crate) fn succeed(&mut self, answer: Option<&[u8]>, error: Option<&str>) {
        let report = InvocationReport { answer, error, function_error: error.is_some(), ..self.report() };
        self.log_end(&report);
        self.ended = true;
    }

    /// Ends it with the platform's answer.
    pub(crate) fn fail(&mut self, failure: &InvocationFailure) -> PlatformAnswer {
        let report = self.report();
        let platform = self.shared.config.platform;
        if platform.recycles(&self.shared.config, failure) {
            self.shared.condemn();
        }
        let answer = platform.invocation_failure(&self.context(), failure, &report);
        self.log_end(&InvocationReport { error: Some(&answer.message), failure: Some(&answer), ..report });
        self.ended = true;
        answer
    }

    pub(crate) fn report(&self) -> InvocationReport<'_> {
        InvocationReport {
            duration: self.started.elapsed(),
            memory_peak_bytes: self.shared.memory_peak_bytes(),
            cold_start: self.cold_start.as_ref(),
            ..InvocationReport::default()
        }
    }

    fn log_end(&self, report: &InvocationReport<'_>) {
        self.shared.logs.platform(self.shared.config.platform.log_end(&self.context(), report));
    }
}

impl Drop for Invocation {
    fn drop(&mut self) {
        if !self.ended {
            self.fail(&InvocationFailure::Canceled);
        }
    }
}
