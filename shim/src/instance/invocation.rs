//! One invocation from its arrival to its last byte: ids, time limit, log lines.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode};
use tokio::time::Instant;

use super::Timeline;
use super::activity::Active;
use super::shared::Shared;
use crate::Credentials;
use crate::platform::{
    InvocationContext, InvocationFailure, InvocationKind, InvocationReport, PlatformAnswer, Trigger,
};

/// An invocation that runs. Dropped before it has ended, it was cancelled by its client.
pub(crate) struct Invocation {
    pub(crate) shared: Arc<Shared>,
    request_id: String,
    arrival: Arrival,
    /// What the caller of an HTTP request gets.
    status: Option<StatusCode>,
    started: Instant,
    cold_start: Option<Timeline>,
    ended: bool,
    /// What the role has at its beginning.
    credentials: Option<Arc<Credentials>>,
    /// Keeps the instance from being frozen.
    _active: Active,
    /// Its place in a pool. After the invocation has ended, and so last.
    _held: Option<Held>,
}

/// What is let go at an invocation's end.
pub(crate) type Held = Box<dyn std::any::Any + Send + Sync>;

/// What an invocation came with.
pub(crate) struct Arrival {
    /// Event or HTTP.
    pub(crate) kind: InvocationKind,
    /// Path of the request, without the query.
    pub(crate) path: String,
    /// Method of the request.
    pub(crate) method: Method,
    /// The client, when it came over TCP.
    pub(crate) client: Option<SocketAddr>,
    /// The request's `Origin`.
    pub(crate) origin: Option<HeaderValue>,
    /// Its id, when its caller has been told.
    pub(crate) request_id: Option<String>,
    /// How often it has been tried before.
    pub(crate) retries: u32,
    /// Let go at its end.
    pub(crate) held: Option<Held>,
    /// What has called instead of a caller.
    pub(crate) trigger: Option<Trigger>,
}

impl Arrival {
    pub(crate) fn event(path: &str) -> Self {
        let kind = InvocationKind::Event;
        Self {
            kind,
            path: path.to_owned(),
            method: Method::POST,
            client: None,
            origin: None,
            request_id: None,
            retries: 0,
            held: None,
            trigger: None,
        }
    }
}

impl Invocation {
    /// Begins one, writes the platform's first log lines, and thaws the instance if need be.
    pub(crate) async fn begin(shared: &Arc<Shared>, mut arrival: Arrival) -> Self {
        let (request_id, held) = (arrival.request_id.take(), arrival.held.take());
        let invocation = Self {
            shared: Arc::clone(shared),
            request_id: request_id.unwrap_or_else(|| shared.config.platform.new_request_id()),
            arrival,
            status: None,
            started: Instant::now(),
            cold_start: shared.cold_start().copied(),
            ended: false,
            credentials: shared.role.current(),
            _active: shared.activity.begin(),
            _held: held,
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
            kind: self.arrival.kind,
            path: &self.arrival.path,
            client: self.arrival.client,
            origin: self.arrival.origin.as_ref(),
            retries: self.arrival.retries,
            trigger: self.arrival.trigger,
            credentials: self.credentials.as_deref(),
        }
    }

    /// Notes the status of an answer whose body is still to come.
    pub(crate) fn answers(&mut self, status: StatusCode) {
        self.status = Some(status);
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
        // An answer whose head has gone out keeps its status.
        let status = Some(self.status.unwrap_or(answer.status));
        self.log_end(&InvocationReport {
            error: Some(&answer.message),
            failure: Some(&answer),
            status,
            ..report
        });
        self.ended = true;
        answer
    }

    pub(crate) fn report(&self) -> InvocationReport<'_> {
        InvocationReport {
            duration: self.started.elapsed(),
            memory_peak_bytes: self.shared.memory_peak_bytes(),
            cold_start: self.cold_start.as_ref(),
            method: Some(&self.arrival.method),
            status: self.status,
            ..InvocationReport::default()
        }
    }

    fn log_end(&self, report: &InvocationReport<'_>) {
        let (platform, logs) = (self.shared.config.platform, &self.shared.logs);
        logs.platform(platform.log_end(&self.context(), report));
        if let Some(record) = platform.request_record(&self.context(), report) {
            logs.request(record);
        }
    }
}

impl Drop for Invocation {
    fn drop(&mut self) {
        if !self.ended {
            self.fail(&InvocationFailure::Canceled);
        }
    }
}
