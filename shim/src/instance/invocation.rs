//! One invocation from its arrival to its last byte: ids, time limit, log lines.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::time::Instant;

use super::Timeline;
use super::activity::Active;
use super::shared::Shared;
use super::traces::{Traced, trigger_name};
use crate::Credentials;
use crate::meter::{Measured, Receipt, Status};
use crate::platform::{
    InvocationContext, InvocationFailure, InvocationKind, InvocationReport, PlatformAnswer, Trigger,
};
use crate::telemetry::{Span, TraceContext};

/// An invocation that runs. Dropped before it has ended, it was cancelled by its client.
pub(crate) struct Invocation {
    pub(crate) shared: Arc<Shared>,
    request_id: String,
    arrival: Arrival,
    /// What the caller of an HTTP request gets.
    status: Option<StatusCode>,
    /// What the function says of its own failure, in the head of an answer to an HTTP request.
    reported: Option<String>,
    /// Where the log was at its beginning, for a caller of an HTTP request who asked for what came then.
    mark: Option<u64>,
    started: Instant,
    begun: SystemTime,
    /// When its work was done; what is waited for then is not the function's.
    over: Option<Instant>,
    /// What it took, once it has ended.
    spent: Spent,
    cold_start: Option<Timeline>,
    ended: bool,
    /// Of its record, once it has ended.
    receipt: Receipt,
    /// Where spans are exported.
    span: Option<Span>,
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
    /// Whether it was taken for later.
    pub(crate) asynchronous: bool,
    /// Whether the caller of an HTTP request asked for its log.
    pub(crate) log_tail: bool,
    /// Let go at its end.
    pub(crate) held: Option<Held>,
    /// What has called instead of a caller.
    pub(crate) trigger: Option<Trigger>,
    /// How long it has waited for its instance.
    pub(crate) waited: Duration,
    /// Its caller's place in a trace.
    pub(crate) caller: Option<TraceContext>,
}

/// In a request: how long it has waited for its instance.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waited(pub(crate) Duration);

impl Waited {
    pub(crate) fn of<B>(request: &http::Request<B>) -> Duration {
        request.extensions().get::<Self>().map_or(Duration::ZERO, |waited| waited.0)
    }
}

/// What an invocation took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) duration: Duration,
    pub(crate) memory_peak_bytes: u64,
}

impl Spent {
    fn of(report: &InvocationReport<'_>) -> Self {
        Self { duration: report.duration, memory_peak_bytes: report.memory_peak_bytes }
    }
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
            asynchronous: false,
            log_tail: false,
            held: None,
            trigger: None,
            waited: Duration::ZERO,
            caller: None,
        }
    }
}

impl Invocation {
    /// Begins one, writes the platform's first log lines, and thaws the instance if need be.
    pub(crate) async fn begin(shared: &Arc<Shared>, mut arrival: Arrival) -> Self {
        let (request_id, held) = (arrival.request_id.take(), arrival.held.take());
        let begun = SystemTime::now();
        let span = shared
            .tracer
            .as_ref()
            .and_then(|tracer| tracer.span(arrival.caller.as_ref(), (begun, arrival.waited), &shared.config));
        let invocation = Self {
            shared: Arc::clone(shared),
            request_id: request_id.unwrap_or_else(|| shared.config.platform.new_request_id()),
            mark: (arrival.log_tail && shared.config.concurrency == 1).then(|| shared.logs.mark()),
            arrival,
            status: None,
            reported: None,
            started: Instant::now(),
            begun,
            over: None,
            spent: Spent::default(),
            cold_start: shared.cold_start().copied(),
            ended: false,
            receipt: Receipt::none(),
            span,
            credentials: shared.role.current(),
            _active: shared.activity.begin(),
            _held: held,
        };
        if shared.tap.is_some() {
            let mut busy = shared.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.begin(invocation.started);
        }
        // Its memory is told at a cold start alone, and is read from a file.
        let memory = if invocation.cold_start.is_some() { shared.memory_peak_bytes() } else { 0 };
        let report = invocation.report_with(memory);
        let lines = shared.config.platform.log_start(&invocation.context(), &report);
        if shared.config.concurrency == 1 {
            shared.logs.works_on(&invocation.request_id);
        }
        shared.logs.platform(Some(&invocation.request_id), lines);
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
            asynchronous: self.arrival.asynchronous,
            code_checksum: &self.shared.code_checksum,
            trigger: self.arrival.trigger,
            credentials: self.credentials.as_deref(),
        }
    }

    /// Adds what the platform tells the function with this invocation, and its place in a trace.
    pub(crate) fn prepare(&self, headers: &mut HeaderMap) {
        self.shared.config.platform.prepare_request(&self.context(), headers);
        if let Some(span) = &self.span {
            span.inject(headers);
        }
    }

    /// Notes the status of an answer whose body is still to come, and what the function reports there.
    pub(crate) fn answers(&mut self, status: StatusCode, reported: Option<String>) {
        self.status = Some(status);
        self.reported = reported;
    }

    /// The same invocation as before its answer, of which nothing has gone out.
    pub(crate) fn unanswered(mut self) -> Self {
        (self.status, self.reported) = (None, None);
        self
    }

    /// Whether its log is to be in the head of its answer.
    pub(crate) fn wants_log(&self) -> bool {
        self.mark.is_some()
    }

    /// When the function's time is up.
    pub(crate) fn deadline(&self) -> Instant {
        self.started + self.shared.config.timeout
    }

    /// Notes that its work is done.
    pub(crate) fn is_over(&mut self) {
        self.over.get_or_insert_with(Instant::now);
    }

    /// What it took, once it has ended.
    pub(crate) fn spent(&self) -> Spent {
        self.spent
    }

    /// The end of its log, for a caller who wants it.
    pub(crate) fn log(&self) -> Option<Vec<u8>> {
        self.mark.map(|mark| self.shared.logs.since(mark))
    }

    /// Ends it with an answer of the function. `answer` is an event's, `error` what the function
    /// reported.
    pub(crate) fn succeed(&mut self, answer: Option<&[u8]>, error: Option<&str>) {
        let reported = self.reported.take();
        let error = error.or(reported.as_deref());
        let report = InvocationReport { answer, error, function_error: error.is_some(), ..self.report() };
        let (spent, receipt) = (Spent::of(&report), self.log_end(&report, None));
        (self.spent, self.receipt, self.ended) = (spent, receipt, true);
    }

    /// Ends an HTTP request whose whole answer is there, and adds to its head what is known then.
    pub(crate) async fn succeed_over_http(&mut self, headers: &mut HeaderMap) {
        self.is_over();
        if self.wants_log() {
            self.shared.logs.settle().await;
        }
        self.succeed(None, None);
        self.tell(headers);
    }

    /// Ends an HTTP request with the platform's answer, of which nothing has gone out.
    pub(crate) fn fail_over_http(&mut self, failure: &InvocationFailure) -> PlatformAnswer {
        let mut answer = self.fail(failure);
        self.tell(&mut answer.headers);
        answer
    }

    fn tell(&self, headers: &mut HeaderMap) {
        let log = self.log();
        let report = InvocationReport {
            duration: self.spent.duration,
            memory_peak_bytes: self.spent.memory_peak_bytes,
            log_tail: log.as_deref(),
            ..InvocationReport::default()
        };
        self.shared.config.platform.finish_http(&self.context(), &report, headers);
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
        let report =
            InvocationReport { error: Some(&answer.message), failure: Some(&answer), status, ..report };
        let (spent, receipt) = (Spent::of(&report), self.log_end(&report, Some(failure)));
        (self.spent, self.receipt, self.ended) = (spent, receipt, true);
        answer
    }

    /// The promise of its record, once it has ended. The answer's last bytes wait for it, and its place need
    /// not: it is let go first.
    pub(crate) fn receipt(mut self) -> Receipt {
        std::mem::replace(&mut self.receipt, Receipt::none())
    }

    fn report(&self) -> InvocationReport<'_> {
        self.report_with(self.shared.memory_peak_bytes())
    }

    fn report_with(&self, memory_peak_bytes: u64) -> InvocationReport<'_> {
        InvocationReport {
            duration: self.over.unwrap_or_else(Instant::now) - self.started,
            memory_peak_bytes,
            cold_start: self.cold_start.as_ref(),
            provisioned: self.shared.provisioned.load(Ordering::Relaxed),
            method: Some(&self.arrival.method),
            status: self.status,
            ..InvocationReport::default()
        }
    }

    /// Writes the platform's last log lines and records, and what is billed.
    fn log_end(&self, report: &InvocationReport<'_>, failure: Option<&InvocationFailure>) -> Receipt {
        let (platform, logs) = (self.shared.config.platform, &self.shared.logs);
        logs.platform(Some(&self.request_id), platform.log_end(&self.context(), report));
        if let Some(record) = platform.request_record(&self.context(), report) {
            logs.request(&self.request_id, record);
        }
        self.trace(report);
        self.bill(report, failure)
    }

    fn trace(&self, report: &InvocationReport<'_>) {
        let Some(tracer) = &self.shared.tracer else { return };
        tracer.note(&Traced {
            config: &self.shared.config,
            request_id: &self.request_id,
            instance: &self.shared.id,
            begun: self.begun,
            waited: self.arrival.waited,
            duration: report.duration,
            start: self.cold_start.map(|timeline| (self.shared.since, timeline)),
            status: report.status.map(|status| status.as_u16()),
            error: report.failure.map(|answer| answer.code),
            failed: report.function_error,
            trigger: trigger_name(self.arrival.kind, self.arrival.trigger),
            span: self.span.as_ref(),
        });
    }

    fn bill(&self, report: &InvocationReport<'_>, failure: Option<&InvocationFailure>) -> Receipt {
        let Some(tap) = &self.shared.tap else { return Receipt::none() };
        let billed_ms = {
            let mut busy = self.shared.busy.lock().unwrap_or_else(PoisonError::into_inner);
            match failure {
                Some(failure) if failure.is_of_request() => {
                    busy.forget();
                    0
                }
                _ => busy.end(self.started + report.duration, self.shared.config.platform.billing()),
            }
        };
        let status = Status::of(report.function_error, failure);
        tap.invocation(&self.context(), report, &Measured { start: self.begun, billed_ms, status })
    }
}

impl Drop for Invocation {
    fn drop(&mut self) {
        if !self.ended {
            self.fail(&InvocationFailure::Canceled);
        }
    }
}
