//! Functions without a server: one container for each event, which is in its environment.
//!
//! fc 2.0 runs it to its end and answers then; what the body of that answer is, is not documented: here
//! it is empty, and what the command wrote is in the logs. scf answers as soon as the container runs.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use skiff_runtime::{Container, Exit, Runtime};
use tokio::time::{Instant, timeout_at};

use super::failure::failed_start;
use super::guest::KILLED;
use super::logs::{LogSink, LogStream, Logs};
use super::start::{Launch, command};
use super::traces::Traced;
use super::{EventOutcome, EventResult, InvokeOptions, LAST_LINES, Ties, Timeline};
use crate::function::Mode;
use crate::meter::{Measured, Receipt, Status};
use crate::platform::{
    InvocationContext, InvocationFailure, InvocationKind, InvocationReport, JobContract, StartCause,
};
use crate::telemetry::{Span, TraceContext};
use crate::{Error, ErrorKind, FunctionConfig, Image, Result};

/// Bytes of a variable with its name, the `=` and the NUL at its end (Linux: `MAX_ARG_STRLEN`).
const MAX_VARIABLE_BYTES: usize = 128 * 1024;

/// One container that works on one event. Dropping it kills the container.
pub struct Job {
    id: Arc<str>,
    config: Arc<FunctionConfig>,
    contract: JobContract,
    container: Container,
    logs: Arc<Logs>,
    timeline: Timeline,
    request_id: String,
    /// How often its event has been tried before, and whether anybody waits for it.
    retries: u32,
    asynchronous: bool,
    code_checksum: String,
    started: Instant,
    begun: SystemTime,
    /// Where it is noted, and how long it had waited before its start.
    ties: Ties,
    waited: Duration,
    /// Its caller's place in a trace, and its own, where spans are exported.
    caller: Option<TraceContext>,
    span: Option<Span>,
}

impl Job {
    /// Starts a container of `image` for the event. The time limit runs from here on; what the command
    /// writes, and the platform's log lines, go to `logs`.
    ///
    /// # Errors
    /// `InvalidFunction`; `InvalidEvent` for one that no variable can hold; `Runtime` for what the image,
    /// the host or the keeper does not allow. [`Error::answer`] is what the platform tells its caller.
    pub async fn start(
        runtime: &Runtime,
        image: &Image,
        config: &Arc<FunctionConfig>,
        logs: Arc<dyn LogSink>,
        event: Bytes,
    ) -> Result<Self> {
        Self::start_with(runtime, image, config, logs, event, InvokeOptions::default()).await
    }

    /// As [`Job::start`], with what the caller asks for besides; a log is not among what it can have.
    ///
    /// # Errors
    /// As [`Job::start`].
    pub async fn start_with(
        runtime: &Runtime,
        image: &Image,
        config: &Arc<FunctionConfig>,
        logs: Arc<dyn LogSink>,
        event: Bytes,
        options: InvokeOptions,
    ) -> Result<Self> {
        Box::pin(Self::start_unboxed(runtime, image, config, logs, event, options)).await
    }

    /// The same, noted at its end.
    pub(crate) fn noted(mut self, ties: Ties) -> Self {
        self.ties = ties;
        let since = (self.begun, self.waited);
        self.span = self
            .ties
            .tracer
            .as_ref()
            .and_then(|tracer| tracer.span(self.caller.as_ref(), since, &self.config));
        self
    }

    async fn start_unboxed(
        runtime: &Runtime,
        image: &Image,
        config: &Arc<FunctionConfig>,
        sink: Arc<dyn LogSink>,
        event: Bytes,
        options: InvokeOptions,
    ) -> Result<Self> {
        let begun = SystemTime::now();
        config.validate()?;
        let contract = config.platform.job().filter(|_| config.mode == Mode::Job).ok_or_else(not_a_job)?;
        let id: Arc<str> = config.platform.new_instance_id().into();
        let launch = Launch::new(Arc::clone(&id), config, command(config, image));
        let logs = launch.logs(sink);
        let launch = launch.with_role().await.map_err(|error| error.with_logs(&logs))?;
        let variable = variable(&contract, event).map_err(|(cause, why)| launch.refused(cause, why))?;
        let mut spec = launch.spec();
        spec.env.push(variable);
        let container = match runtime.start(image, spec).await {
            Ok(container) => container,
            Err(error) => return Err(failed_start(&launch, error).with_logs(&logs)),
        };
        if let Some((stdout, stderr)) = container.take_output() {
            logs.follow(LogStream::Stdout, stdout);
            logs.follow(LogStream::Stderr, stderr);
        }
        let timeline = Timeline::new(&image.timings, &container.timings());
        let request_id = options.request_id.unwrap_or_else(|| config.platform.new_request_id());
        let job = Self {
            id,
            config: Arc::clone(config),
            contract,
            container,
            logs,
            timeline,
            request_id,
            retries: options.retries,
            asynchronous: options.asynchronous,
            code_checksum: config.platform.code_checksum(&image.digest),
            started: launch.started,
            begun,
            ties: Ties::default(),
            waited: options.waited,
            caller: options.caller,
            span: None,
        };
        job.logs.works_on(&job.request_id);
        let lines = job.config.platform.log_start(&job.context(), &job.report());
        job.logs.platform(Some(&job.request_id), lines);
        Ok(job)
    }

    /// The instance's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it uses now, or what it used last.
    #[must_use]
    pub fn stats(&self) -> skiff_runtime::Stats {
        self.container.stats()
    }

    /// How long each step of its start took; there is no server to wait for.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The answer that the platform gives when the container runs and the command has not ended; `None`
    /// where it waits for the end.
    #[must_use]
    pub fn accepted(&self) -> Option<EventOutcome> {
        self.contract
            .answers_at_start
            .then(|| self.outcome(EventResult::Success, StatusCode::OK, Bytes::new()))
    }

    /// Waits for the command's end, within the function's time. Success is exit code 0.
    pub async fn finish(&self) -> EventOutcome {
        let deadline = self.started + self.config.timeout;
        let failure = match timeout_at(deadline, self.container.wait()).await {
            Ok(Ok(exit)) => self.judge(exit),
            Ok(Err(_)) => Some(InvocationFailure::ProcessExited(Some(KILLED))),
            Err(_) => {
                let _ = self.container.stop(Duration::ZERO).await;
                Some(InvocationFailure::TimedOut)
            }
        };
        self.ended(failure).await
    }

    /// Ends it as a caller's cancel does: SIGTERM, the function's grace, SIGKILL.
    pub async fn cancel(&self) -> EventOutcome {
        let _ = self.container.stop(self.config.stop_grace).await;
        self.ended(Some(InvocationFailure::Canceled)).await
    }

    fn judge(&self, exit: Exit) -> Option<InvocationFailure> {
        match exit {
            Exit { oom_killed: true, .. } => Some(InvocationFailure::OutOfMemory),
            Exit { code: Some(0), .. } => None,
            exit => Some(InvocationFailure::ProcessExited(Some(exit))),
        }
    }

    async fn ended(&self, failure: Option<InvocationFailure>) -> EventOutcome {
        self.logs.drained(LAST_LINES).await;
        let platform = self.config.platform;
        let report = self.report();
        let Some(failure) = failure else {
            platform_end(self, &InvocationReport { answer: Some(b""), ..report });
            self.bill(&report, None).settled().await;
            return self.outcome(EventResult::Success, StatusCode::OK, Bytes::new());
        };
        let answer = platform.invocation_failure(&self.context(), &failure, &report);
        let report = InvocationReport { error: Some(&answer.message), failure: Some(&answer), ..report };
        platform_end(self, &report);
        self.bill(&report, Some(&failure)).settled().await;
        let result = match failure {
            InvocationFailure::TimedOut | InvocationFailure::Canceled => {
                EventResult::PlatformError(answer.message)
            }
            _ => EventResult::FunctionError(answer.message),
        };
        EventOutcome { headers: answer.headers, ..self.outcome(result, answer.status, answer.body) }
    }

    /// Notes its end. Its time runs from the start of its container, as its time limit does.
    fn bill(&self, report: &InvocationReport<'_>, failure: Option<&InvocationFailure>) -> Receipt {
        self.trace(report);
        let Some(tap) = &self.ties.tap else { return Receipt::none() };
        let billed_ms = self.config.platform.billing().billed_ms(report.duration);
        let measured = Measured { start: self.begun, billed_ms, status: Status::of(false, failure) };
        tap.invocation(&self.context(), report, &measured)
    }

    fn trace(&self, report: &InvocationReport<'_>) {
        let Some(tracer) = &self.ties.tracer else { return };
        tracer.note(&Traced {
            config: &self.config,
            request_id: &self.request_id,
            instance: &self.id,
            // Its start is the invocation's.
            begun: self.begun,
            waited: self.waited,
            duration: report.duration,
            start: Some((self.begun, self.timeline)),
            status: report.failure.map(|answer| answer.status.as_u16()),
            error: report.failure.map(|answer| answer.code),
            failed: report.function_error,
            trigger: "other",
            span: self.span.as_ref(),
        });
    }

    fn outcome(&self, result: EventResult, status: StatusCode, body: Bytes) -> EventOutcome {
        let mut headers = HeaderMap::new();
        self.config.platform.finish_event(&self.context(), &self.report(), &mut headers);
        let duration = self.started.elapsed();
        let (request_id, memory_peak_bytes) = (self.request_id.clone(), self.container.memory_peak_bytes());
        EventOutcome { request_id, result, status, headers, body, duration, memory_peak_bytes, log: None }
    }

    fn context(&self) -> InvocationContext<'_> {
        InvocationContext {
            config: &self.config,
            instance_id: &self.id,
            request_id: &self.request_id,
            kind: InvocationKind::Event,
            path: "",
            client: None,
            origin: None,
            retries: self.retries,
            asynchronous: self.asynchronous,
            code_checksum: &self.code_checksum,
            trigger: None,
            credentials: None,
        }
    }

    fn report(&self) -> InvocationReport<'_> {
        InvocationReport {
            duration: self.started.elapsed(),
            memory_peak_bytes: self.container.memory_peak_bytes(),
            cold_start: Some(&self.timeline),
            ..InvocationReport::default()
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.id)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

fn platform_end(job: &Job, report: &InvocationReport<'_>) {
    let platform = job.config.platform;
    job.logs.platform(Some(&job.request_id), platform.log_end(&job.context(), report));
    if let Some(record) = platform.request_record(&job.context(), report) {
        job.logs.request(&job.request_id, record);
    }
}

fn not_a_job() -> Error {
    Error::new(ErrorKind::InvalidFunction, "the function has a server and is no job")
        .advise("set its mode to job, or start an instance of it")
}

/// The event as a variable.
fn variable(contract: &JobContract, event: Bytes) -> Result<(String, String), (StartCause, String)> {
    let limit = MAX_VARIABLE_BYTES - contract.variable.len() - 2;
    if event.len() > limit {
        let why = format!("an event of {} bytes: an environment variable holds {limit}", event.len());
        return Err((StartCause::EventTooLarge(limit), why));
    }
    let invalid = |why: &str| (StartCause::InvalidEvent(why.to_owned()), why.to_owned());
    if contract.events_are_json && serde_json::from_slice::<serde::de::IgnoredAny>(&event).is_err() {
        return Err(invalid("the event is not JSON"));
    }
    let text = String::from_utf8(event.into()).map_err(|_| invalid("the event is not UTF-8"))?;
    if text.contains('\0') {
        return Err(invalid("the event contains a NUL character, which an environment variable cannot hold"));
    }
    Ok((contract.variable.to_owned(), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{fc2, scf};

    fn cause(contract: &JobContract, event: impl Into<Bytes>) -> StartCause {
        variable(contract, event.into()).expect_err("refused").0
    }

    #[test]
    fn events_that_no_variable_holds_are_refused() {
        let fc = fc2().job().expect("jobs");
        let limit = MAX_VARIABLE_BYTES - "FC_CUSTOM_CONTAINER_EVENT=".len() - 1;
        let (name, value) = variable(&fc, vec![b'x'; limit].into()).expect("fits");
        assert_eq!((name.as_str(), value.len()), ("FC_CUSTOM_CONTAINER_EVENT", limit));
        assert_eq!(cause(&fc, vec![b'x'; limit + 1]), StartCause::EventTooLarge(limit));
        assert!(matches!(cause(&fc, "a\0b"), StartCause::InvalidEvent(why) if why.contains("NUL")));
        assert!(matches!(cause(&fc, vec![0xff]), StartCause::InvalidEvent(why) if why.contains("UTF-8")));
    }

    #[test]
    fn events_of_scf_are_json() {
        let scf = scf().job().expect("jobs");
        variable(&scf, "{\"k\":[1,2]}".into()).expect("JSON");
        for event in ["", "k=v", "{", "{} {}"] {
            assert!(
                matches!(cause(&scf, event), StartCause::InvalidEvent(why) if why.contains("JSON")),
                "{event}"
            );
        }
    }
}
