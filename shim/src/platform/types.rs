//! The facts that platforms put into their words.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use skiff_runtime::Exit;

use crate::instance::Timeline;
use crate::{Credentials, FunctionConfig, Secret};

/// What a function has unless it says otherwise.
#[derive(Debug)]
pub struct Defaults {
    /// Port of the function's server.
    pub port: u16,
    /// How long the server may take until it listens.
    pub start_deadline: Duration,
    /// How long an invocation may take.
    pub timeout: Duration,
    /// How long a WebSocket may be idle; `None` where the platform has no such limit.
    pub websocket_idle: Option<Duration>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Region name.
    pub region: &'static str,
    /// Account id or UIN, made up.
    pub account_id: &'static str,
    /// APPID, made up.
    pub app_id: &'static str,
    /// Namespace or service.
    pub namespace: &'static str,
    /// Version or alias.
    pub version: &'static str,
    /// Handler name.
    pub handler: &'static str,
}

/// The bounds of what a function may ask for and may do.
#[derive(Debug)]
pub struct Limits {
    /// Memory in MiB.
    pub memory_mib: RangeInclusive<u32>,
    /// Memory is a multiple of this many MiB.
    pub memory_step_mib: u32,
    /// Memory in MiB that is allowed although it is outside the steps.
    pub memory_also_mib: &'static [u32],
    /// Time of one invocation, in seconds.
    pub timeout_s: RangeInclusive<u64>,
    /// Time until the server listens, in seconds.
    pub start_deadline_s: RangeInclusive<u64>,
    /// Time that a WebSocket may be idle, in seconds.
    pub websocket_idle_s: RangeInclusive<u64>,
    /// Time of the initializer, in seconds.
    pub initializer_s: RangeInclusive<u64>,
    /// Time of the other callbacks, in seconds.
    pub callback_s: RangeInclusive<u64>,
    /// Invocations that one instance works on at once.
    pub concurrency: RangeInclusive<u32>,
    /// Whether instances may have health checks.
    pub health_checks: bool,
    /// Characters of a function's name.
    pub name_chars: usize,
    /// Characters of its name and its namespace together; `None` is no bound.
    pub full_name_chars: Option<usize>,
    /// Bytes of a user variable's name.
    pub env_key_bytes: RangeInclusive<usize>,
    /// Bytes of all user variables together, names and values.
    pub env_total_bytes: usize,
    /// Bytes of a request's header names and values.
    pub request_header_bytes: usize,
    /// Bytes of a request's path and query; `None` is no bound of the platform's.
    pub request_target_bytes: Option<usize>,
    /// Bytes of the body of an HTTP request.
    pub http_body_bytes: usize,
    /// Bytes of the body of an answer to one; `None` is no bound.
    pub http_answer_bytes: Option<usize>,
    /// Bytes of a message of a WebSocket, where those are watched ([`Defaults::websocket_idle`]).
    pub websocket_message_bytes: usize,
    /// Bytes of the header names and values of an answer to one.
    pub response_header_bytes: usize,
    /// Bytes of a synchronous event.
    pub event_bytes: usize,
    /// Bytes of an asynchronous event.
    pub async_event_bytes: usize,
    /// Bytes of a synchronous event's answer.
    pub answer_bytes: usize,
    /// Bytes of one log line; a longer one is split.
    pub log_line_bytes: usize,
    /// Open files of one process.
    pub nofile: u64,
    /// Processes and threads.
    pub pids: u32,
    /// How much memory the platform advises for images of a size, smallest first; empty where it
    /// advises nothing.
    pub image_memory: &'static [ImageMemory],
}

/// The memory that a platform advises for images up to a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMemory {
    /// Packed bytes of the image at most.
    pub image_bytes: u64,
    /// Memory in MiB, at least.
    pub memory_mib: u32,
    /// Memory in MiB that is enough; `None` where the platform names no bound.
    pub enough_mib: Option<u32>,
}

/// Something that works and that the platform advises against. For callers to show.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Warning {
    /// What it is about, in snake case: `memory_below_advice`.
    pub kind: &'static str,
    /// What was found, with its values.
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

/// What sort of invocation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvocationKind {
    /// The platform's own invoke call with an event.
    Event,
    /// An HTTP request passed through.
    Http,
}

/// What has called a function instead of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trigger {
    /// A timer.
    Timer,
}

/// The form in which an HTTP request becomes an event, and the answer to that an HTTP answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpEvent {
    /// As a function URL does it.
    Url,
    /// As API Gateway does it, with an integrated request and an integrated answer.
    Gateway,
}

impl HttpEvent {
    /// Both, with their names on the command line and in files.
    pub const ALL: [(&'static str, Self); 2] = [("url", Self::Url), ("gateway", Self::Gateway)];

    /// The one of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, form)| form)
    }
}

/// An HTTP request that is to become an event.
#[derive(Clone, Copy, Debug)]
pub struct HttpCall<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path, as it was sent.
    pub path: &'a str,
    /// Its query, as it was sent.
    pub query: Option<&'a str>,
    /// Its headers, without those that clients may not send.
    pub headers: &'a HeaderMap,
    /// Its body.
    pub body: &'a [u8],
}

/// One invocation on its way to an instance.
#[derive(Clone, Copy, Debug)]
pub struct InvocationContext<'a> {
    /// The function.
    pub config: &'a FunctionConfig,
    /// The instance's id.
    pub instance_id: &'a str,
    /// The request's id.
    pub request_id: &'a str,
    /// Event or HTTP.
    pub kind: InvocationKind,
    /// The request's path, without the query.
    pub path: &'a str,
    /// The client's address, when it came over TCP.
    pub client: Option<SocketAddr>,
    /// The request's `Origin`, for an HTTP request from a page of another site.
    pub origin: Option<&'a HeaderValue>,
    /// How often an asynchronous event has been tried before.
    pub retries: u32,
    /// Whether it was taken for later, and its caller does not wait for it.
    pub asynchronous: bool,
    /// What its platform makes of the image, see [`Platform::code_checksum`](super::Platform).
    pub code_checksum: &'a str,
    /// What has called instead of a caller.
    pub trigger: Option<Trigger>,
    /// The credentials that the function's role has now.
    pub credentials: Option<&'a Credentials>,
}

/// How a platform runs functions that have no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobContract {
    /// The variable that has the event.
    pub variable: &'static str,
    /// Whether the caller is answered when the container runs, not at its end.
    pub answers_at_start: bool,
    /// Whether events must be JSON.
    pub events_are_json: bool,
}

/// A step in the life of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceStep<'a> {
    /// It is being made.
    Creating,
    /// Its image is here; how long that took.
    ImageReady(Duration),
    /// Its image could not be pulled; why.
    ImageFailed(&'a str),
    /// Its server listens; how long its start took.
    ServerReady(Duration),
    /// Its server did not come up, or its first health check failed; why.
    ServerFailed(&'a str),
    /// Its initializer has succeeded; how long that took.
    Initialized(Duration),
    /// Its initializer has failed; why.
    InitializerFailed(&'a str),
    /// It takes invocations; how long all of it took.
    Created(Duration),
    /// It will not take any; why.
    CreateFailed(&'a str),
    /// It has ended after it had taken invocations.
    Destroyed,
}

/// What an instance did in a span of time, and what it may use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InstanceUse {
    /// CPU time in the span, in percent of one core.
    pub cpu_percent: f64,
    /// CPU time that it may have, in percent of one core.
    pub cpu_quota_percent: f64,
    /// Memory in use at the end of the span, in bytes.
    pub memory_bytes: u64,
    /// Invocations that run at the end of the span.
    pub running: usize,
    /// Bytes received from outside in the span, and so far. Invocations do not come that way.
    pub received: (u64, u64),
    /// Bytes sent outside in the span, and so far.
    pub sent: (u64, u64),
}

/// An event in the life of an instance, as its platform writes it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InstanceEvent {
    /// Milliseconds since 1970.
    #[serde(rename = "time")]
    pub unix_ms: u64,
    /// `Normal` or `Warning`.
    pub level: String,
    /// Such as `fc:Instance:CreateSuccess`.
    #[serde(rename = "type")]
    pub kind: String,
    /// For people.
    pub message: String,
}

/// A line of the container's output, kept for error texts.
#[derive(Clone, Debug)]
pub struct TailLine {
    /// When it was read.
    pub time: SystemTime,
    /// The line without its line feed; not necessarily UTF-8.
    pub bytes: Bytes,
}

/// An instance that did not come up.
#[derive(Clone, Debug)]
pub struct StartFailure {
    /// The request for which it was started.
    pub request_id: String,
    /// Why.
    pub cause: StartCause,
    /// The start command with its arguments, as configured or from the image.
    pub command: Vec<String>,
    /// Where its server was expected.
    pub address: Option<SocketAddr>,
    /// Port of its server.
    pub port: u16,
    /// How long it was allowed to take.
    pub deadline: Duration,
    /// How long it did take.
    pub elapsed: Duration,
    /// The last lines of its output.
    pub logs: Vec<TailLine>,
}

impl StartFailure {
    /// Of a function of which nothing has been started.
    pub(crate) fn of(config: &FunctionConfig, request_id: String, cause: StartCause) -> Self {
        Self {
            request_id,
            cause,
            command: Vec::new(),
            address: None,
            port: config.port(),
            deadline: config.start_deadline(),
            elapsed: Duration::ZERO,
            logs: Vec::new(),
        }
    }
}

/// Why an instance did not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartCause {
    /// Nothing listened on the port by the deadline; the last error of connecting.
    NotListening(String),
    /// The container ended before its server listened.
    Exited(Exit),
    /// The start command does not exist in the image.
    CommandNotFound(String),
    /// The start command exists and cannot be executed.
    CommandNotExecutable(String),
    /// The container was not running by the deadline.
    TimedOut,
    /// The image could not be pulled.
    PullFailed(String),
    /// The image did not come in the time that its pull was given; which time, and how far it came.
    PullTimedOut(String),
    /// Its initializer failed or took too long; how.
    InitializerFailed(String),
    /// Its first health check failed: `status code: 500 ` or what came instead of a status.
    Unhealthy(String),
    /// The event of a job is larger than the limit, in bytes.
    EventTooLarge(usize),
    /// The event of a job cannot be one; why.
    InvalidEvent(String),
    /// The host has not enough of something, such as disk space; the message.
    OutOfResources(String),
    /// The function has no instances yet, or could have none; its state.
    NotActive(String),
    /// The fault of this host, or of Skiff; the message.
    Internal(String),
    /// Anything else; the message.
    Other(String),
}

/// What the platform tells a caller instead of, or around, a function's own answer.
#[derive(Clone, Debug)]
pub struct PlatformAnswer {
    /// HTTP status (scf has its own between 400 and 500).
    pub status: StatusCode,
    /// Headers, the content type among them.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// The error's code or name in the platform's documentation.
    pub code: &'static str,
    /// The error's text alone.
    pub message: String,
}

/// An invocation that failed on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvocationFailure {
    /// The function's time was up.
    TimedOut,
    /// The container ended before it had answered.
    ProcessExited(Option<Exit>),
    /// The container was killed for want of memory.
    OutOfMemory,
    /// The connection broke before the answer's headers had come, or could not be made.
    ConnectionBroken(String),
    /// The container's server does not speak HTTP as it should; why.
    BadResponse(String),
    /// The answer to an event cannot become an answer to the HTTP request that the event was; why.
    InvalidAnswer(String),
    /// The answer to an event is larger than the limit, in bytes.
    AnswerTooLarge(usize),
    /// Nothing has come over a WebSocket for too long.
    WebSocketIdle,
    /// The client ended a WebSocket otherwise than by a normal close.
    WebSocketBroken,
    /// The client has sent a message over a WebSocket that is larger than the limit, in bytes.
    WebSocketTooLarge(usize),
    /// The request is larger than the limit; which limit.
    RequestTooLarge(String),
    /// The event cannot be one; why.
    InvalidEvent(String),
    /// The client went away before it had the whole answer.
    Canceled,
    /// Somebody else than the caller ended it.
    Terminated,
}

impl InvocationFailure {
    /// For a request's body of more than so many bytes.
    pub(crate) fn body_too_large(limit: usize) -> Self {
        Self::RequestTooLarge(format!("payload size exceeds maximum allowed size ({limit} bytes)"))
    }

    /// Whether the function is at fault: it ended, or gave an answer that is none.
    pub(crate) fn is_of_function(&self) -> bool {
        matches!(
            self,
            Self::ProcessExited(_) | Self::OutOfMemory | Self::ConnectionBroken(_) | Self::BadResponse(_)
        )
    }

    /// Whether the caller is at fault, and the function has not seen the request.
    pub(crate) fn is_of_request(&self) -> bool {
        matches!(self, Self::RequestTooLarge(_) | Self::InvalidEvent(_))
    }
}

/// What is known at the end of an invocation.
#[derive(Clone, Copy, Debug, Default)]
pub struct InvocationReport<'a> {
    /// From the request's arrival to the answer's last byte.
    pub duration: Duration,
    /// Highest memory use of the instance so far, in bytes.
    pub memory_peak_bytes: u64,
    /// The answer's body, for an event.
    pub answer: Option<&'a [u8]>,
    /// The error's text, when it failed; `function_error` tells whose.
    pub error: Option<&'a str>,
    /// The platform's whole answer, when it failed on the way.
    pub failure: Option<&'a PlatformAnswer>,
    /// The function reported an error.
    pub function_error: bool,
    /// How long the start took, for the first invocation of an instance that was started for calls.
    pub cold_start: Option<&'a Timeline>,
    /// Its instance is there whether anybody calls or not.
    pub provisioned: bool,
    /// The method of an HTTP request.
    pub method: Option<&'a Method>,
    /// The status that the caller gets, when it is known.
    pub status: Option<StatusCode>,
    /// The last log lines of the invocation, for a caller who asked for them.
    pub log_tail: Option<&'a [u8]>,
}

/// The value of a credential header or variable.
pub(crate) fn exposed(secret: &Secret) -> String {
    secret.expose().to_owned()
}
