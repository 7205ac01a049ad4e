//! Alibaba's invoke API: 2016-08-15 and 2021-04-06 (services and functions), 2023-03-30 (functions).

mod later;
mod route;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderName;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use route::{Action, Call, Version};

use super::auth::{self, Denied};
pub(super) use later::pass;
pub(super) use route::INVOCATION_TARGET;

use super::queue::{Event, Policy, Queue};
use super::{Api, Function, Missing, Unread, pass_over, read, response};
use crate::InvokeOptions;
use crate::platform::{FcApi, fc_error};
use crate::proxy::body::Body;
use crate::telemetry::TraceContext;

const INVOCATION_TYPE: &str = "x-fc-invocation-type";
const LOG_TYPE: &str = "x-fc-log-type";
const DELAY: &str = "x-fc-async-delay";
/// Of 2.0 and 3.0: a name that the caller gives an asynchronous call.
const TASK_IDS: [&str; 2] = ["x-fc-async-task-id", "x-fc-stateful-async-invocation-id"];

/// Longest delay of an asynchronous call, in seconds.
const MAX_DELAY_S: u64 = 3600;

/// 0.5 s, 1, 2, 4 … whoever's fault it was, for a day.
pub(super) static POLICY: Policy = Policy {
    retries: 3,
    max_age: Duration::from_secs(24 * 3600),
    first: Duration::from_millis(500),
    longest: Duration::from_secs(5 * 3600),
    steady: false,
};

/// An answer of the API itself.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Fault {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn argument(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidArgument", message)
    }
}

/// The answer to a request of Alibaba's API, or of none.
pub(super) async fn answer(
    api: &Arc<Api>,
    client: Option<SocketAddr>,
    request: Request<Incoming>,
) -> Response<Body> {
    let version = Version::of(request.uri().path()).unwrap_or(Version::V2023);
    let id = crate::platform::fc().new_request_id();
    let (parts, body) = request.into_parts();
    let mut body = Some(body);
    match answer_to(api, client, parts, &mut body, &id).await {
        Ok(response) => response,
        Err(fault) => {
            pass_over(body).await;
            let answer = fc_error(version.shape(), fault.status, fault.code, fault.message, &id);
            response(answer.status, answer.headers, in_both_shapes(version, answer.status, answer.body, &id))
        }
    }
}

async fn answer_to(
    api: &Arc<Api>,
    client: Option<SocketAddr>,
    parts: Parts,
    body: &mut Option<Incoming>,
    id: &str,
) -> Result<Response<Body>, Fault> {
    auth::check_alibaba(&api.keys, &parts).map_err(denied)?;
    let call = Call::of(&parts)?;
    let function = find(api, &call)?;
    if let Action::Forward { path } = &call.action {
        let body = body.take().ok_or_else(|| unread(Unread::Broken))?;
        let mut request = Request::from_parts(parts, body);
        if let Some(path) = path {
            *request.uri_mut() = path.clone();
        }
        if !api.keys.is_empty() {
            // It was for the API.
            request.headers_mut().remove(http::header::AUTHORIZATION);
        }
        return Ok(pass(&api.queue, function, client, request).await);
    }
    let wishes = Wishes::of(&parts.headers)?;
    let limits = function.config().platform.limits();
    let limit = if wishes.asynchronous { limits.async_event_bytes } else { limits.event_bytes };
    let event = read(body, limit).await.map_err(unread)?;
    auth::check_body(&api.keys, &parts.headers, &event).map_err(denied)?;
    if wishes.asynchronous {
        return accept(api, function, event, &wishes, &parts.headers, id);
    }
    let caller = TraceContext::of(&parts.headers);
    let options = InvokeOptions { log_tail: wishes.log_tail, caller, ..InvokeOptions::default() };
    Ok(invoke(&*function, call.version, event, options).await)
}

async fn invoke(
    function: &dyn Function,
    version: Version,
    event: Bytes,
    options: InvokeOptions,
) -> Response<Body> {
    let mut outcome = function.invoke(event, options).await;
    let name = match version {
        Version::V2023 => "x-fc-invocation-function-version",
        Version::V2016 | Version::V2021 => "x-fc-invocation-service-version",
    };
    if let Ok(value) = HeaderValue::from_str(&function.config().version) {
        outcome.headers.insert(HeaderName::from_static(name), value);
    }
    let body = in_both_shapes(version, outcome.status, outcome.body, &outcome.request_id);
    response(outcome.status, outcome.headers, body)
}

/// An error of 2021-04-06 is in the shape of 2.0 by its documentation, and in that of 3.0 for its SDKs.
fn in_both_shapes(version: Version, status: StatusCode, body: Bytes, id: &str) -> Bytes {
    if version != Version::V2021 || status.as_u16() < 400 {
        return body;
    }
    let Ok(mut fields) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&body) else {
        return body;
    };
    for (name, of_two) in [("Code", "ErrorCode"), ("Message", "ErrorMessage")] {
        let Some(value) = fields.get(of_two).cloned() else { return body };
        fields.insert(name.to_owned(), value);
    }
    fields.insert("RequestId".to_owned(), id.into());
    serde_json::to_vec(&fields).map_or(body, Bytes::from)
}

/// Takes an event for later.
fn accept(
    api: &Arc<Api>,
    function: Arc<dyn Function>,
    event: Bytes,
    wishes: &Wishes,
    headers: &HeaderMap,
    id: &str,
) -> Result<Response<Body>, Fault> {
    let event = Event::new(function, &POLICY, event, id.to_owned(), wishes.delay)
        .called_by(TraceContext::of(headers));
    accepted(&api.queue, event, headers, id)
}

/// Puts it into the queue, and tells its caller so.
fn accepted(
    queue: &Arc<Queue>,
    event: Event,
    headers: &HeaderMap,
    id: &str,
) -> Result<Response<Body>, Fault> {
    queue.push(event).map_err(|full| {
        let status = StatusCode::TOO_MANY_REQUESTS;
        Fault::new(status, "ResourceExhausted", format!("{full} asynchronous events wait already"))
    })?;
    let mut answer = HeaderMap::new();
    if let Ok(id) = HeaderValue::from_str(id) {
        answer.insert(HeaderName::from_static("x-fc-request-id"), id);
    }
    for name in TASK_IDS {
        if let Some(task) = headers.get(name) {
            answer.insert(HeaderName::from_static(name), task.clone());
        }
    }
    Ok(response(StatusCode::ACCEPTED, answer, Bytes::new()))
}

/// What a caller's headers ask for.
struct Wishes {
    asynchronous: bool,
    log_tail: bool,
    delay: Duration,
}

impl Wishes {
    fn of(headers: &HeaderMap) -> Result<Self, Fault> {
        let text = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap_or("?"));
        let asynchronous = match text(INVOCATION_TYPE) {
            "" => false,
            kind if kind.eq_ignore_ascii_case("sync") => false,
            kind if kind.eq_ignore_ascii_case("async") => true,
            kind => {
                return Err(Fault::argument(format!("invocation type '{kind}' is neither Sync nor Async")));
            }
        };
        let log_tail = match text(LOG_TYPE) {
            "" => false,
            kind if kind.eq_ignore_ascii_case("none") => false,
            kind if kind.eq_ignore_ascii_case("tail") => true,
            kind => return Err(Fault::argument(format!("log type '{kind}' is neither None nor Tail"))),
        };
        let delay = match text(DELAY) {
            "" => 0,
            seconds => {
                seconds.parse().ok().filter(|seconds| (1..=MAX_DELAY_S).contains(seconds)).ok_or_else(
                    || Fault::argument(format!("delay '{seconds}' is not 1 to {MAX_DELAY_S} seconds")),
                )?
            }
        };
        Ok(Self { asynchronous, log_tail, delay: Duration::from_secs(delay) })
    }
}

fn find(api: &Api, call: &Call) -> Result<Arc<dyn Function>, Fault> {
    let target = &call.target;
    let missing = |missing| not_found(missing, call);
    let function = api.functions.find(target).map_err(missing)?;
    // Functions of the one API cannot be seen by the other.
    match (function.config().platform.name(), call.version.shape()) {
        ("fc", FcApi::V3) | ("fc2", FcApi::V2) => Ok(function),
        (_, FcApi::V2) => Err(not_found(Missing::Namespace, call)),
        (_, FcApi::V3) => Err(not_found(Missing::Function, call)),
    }
}

fn not_found(missing: Missing, call: &Call) -> Fault {
    let name = &call.target.name;
    let service = call.target.namespace.as_deref().unwrap_or_default();
    let (code, message) = match (missing, &call.target.namespace) {
        (Missing::Namespace, _) => ("ServiceNotFound", format!("service '{service}' does not exist")),
        (Missing::Function, None) => ("FunctionNotFound", format!("function '{name}' does not exist.")),
        (Missing::Function, Some(_)) => {
            ("FunctionNotFound", format!("function '{name}' does not exist in service '{service}'"))
        }
        (Missing::Qualifier, _) => {
            let qualifier = call.target.qualifier.as_deref().unwrap_or_default();
            // Versions are numbers, aliases begin with a letter.
            if qualifier.bytes().all(|byte| byte.is_ascii_digit()) {
                ("VersionNotFound", format!("version '{qualifier}' does not exist"))
            } else {
                ("AliasNotFound", format!("alias '{qualifier}' does not exist"))
            }
        }
    };
    Fault::new(StatusCode::NOT_FOUND, code, message)
}

fn denied(denied: Denied) -> Fault {
    let forbidden = |code, message: String| Fault::new(StatusCode::FORBIDDEN, code, message);
    match denied {
        Denied::MissingHeader(name) => Fault::new(
            StatusCode::BAD_REQUEST,
            "MissingRequiredHeader",
            format!("required HTTP header {name} was not specified"),
        ),
        Denied::Malformed => Fault::argument("the authorization header has no form that is known"),
        Denied::UnknownKey(id) => {
            forbidden("InvalidAccessKeyID", format!("invalid access key ID '{}'", id.escape_default()))
        }
        Denied::Mismatch => {
            forbidden("SignatureNotMatch", "the signature is not the one of this request and key".to_owned())
        }
        Denied::Expired => {
            forbidden("AccessDenied", "the signature's time is more than 15 minutes from now".to_owned())
        }
    }
}

fn unread(unread: Unread) -> Fault {
    match unread {
        Unread::TooLarge(limit) => Fault::new(
            StatusCode::BAD_REQUEST,
            "EntityTooLarge",
            format!("payload size exceeds maximum allowed size ({limit} bytes)"),
        ),
        Unread::Broken => Fault::argument("the body broke off"),
    }
}

/// The path and query below a function's own prefix.
fn below(path: &str, query: Option<&str>) -> Option<Uri> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let text = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    PathAndQuery::try_from(text).ok().map(Uri::from)
}
