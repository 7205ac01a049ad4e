//! Tencent's API: `Invoke` and `InvokeFunction` of 2018-04-16, what becomes of requests ([`events`]), and their
//! logs ([`logs`]). Every answer has the status 200; what went wrong stands in it.

mod attempts;
mod events;
mod logs;
mod time;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::auth::{self, Denied};
use super::fc::INVOCATION_TARGET;
use super::queue::{Event, Policy};
use super::{Api, Function, Missing, Target, Unread, pass_over, read, response};
use crate::platform::scf;
use crate::proxy::body::Body;
use crate::telemetry::TraceContext;
use crate::{EventOutcome, EventResult, InvokeOptions};

/// The header that a call of Tencent's API has.
const ACTION: &str = "x-tc-action";
const VERSION: &str = "2018-04-16";
const FORM: &str = "application/x-www-form-urlencoded";

/// Bytes of a call: an event is a text in JSON, where each of its bytes may become six.
const MAX_CALL_BYTES: usize = 40 << 20;

/// A minute after each error of the function, and while it is over a limit; up to five after the platform's own,
/// for six hours.
pub(super) static POLICY: Policy = Policy {
    retries: 2,
    max_age: Duration::from_secs(6 * 3600),
    first: Duration::from_secs(60),
    longest: Duration::from_secs(300),
    steady: true,
};

/// Code and message, as the API names them.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    code: &'static str,
    message: String,
}

impl Fault {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Invoke,
    InvokeFunction,
    GetRequestStatus,
    GetAsyncEventStatus,
    ListAsyncEvents,
    TerminateAsyncEvent,
    GetFunctionLogs,
}

const ACTIONS: [(&str, Action); 7] = [
    ("Invoke", Action::Invoke),
    ("InvokeFunction", Action::InvokeFunction),
    ("GetRequestStatus", Action::GetRequestStatus),
    ("GetAsyncEventStatus", Action::GetAsyncEventStatus),
    ("ListAsyncEvents", Action::ListAsyncEvents),
    ("TerminateAsyncEvent", Action::TerminateAsyncEvent),
    ("GetFunctionLogs", Action::GetFunctionLogs),
];

/// Which function is meant.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Names {
    function_name: Option<String>,
    namespace: Option<String>,
    qualifier: Option<String>,
}

/// The parameters of both calls of a function.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Parameters {
    #[serde(flatten)]
    names: Names,
    invocation_type: Option<String>,
    /// The event of `Invoke`.
    client_context: Option<String>,
    /// The event of `InvokeFunction`.
    event: Option<String>,
    log_type: Option<String>,
}

/// What comes back. Memory in bytes, times in ms.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Outcome {
    log: String,
    ret_msg: String,
    err_msg: String,
    mem_usage: u64,
    duration: f64,
    bill_duration: u64,
    function_request_id: String,
    /// 0, or 1 for an error of the function and -1 for one of the platform, as older SDKs read it.
    invoke_result: i32,
}

/// Whether a request is one of Tencent's API; those with the signatures before TC3, which name their action among the
/// parameters, are told so in its form.
pub(super) fn is_meant<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let is_form = || {
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        kind.get(..FORM.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(FORM.as_bytes()))
    };
    let query = || request.uri().query().unwrap_or_default();
    let names_action = || query().split('&').any(|parameter| parameter.starts_with("Action="));
    let is_old = || request.uri().path() == "/" && !headers.contains_key(INVOCATION_TARGET);
    headers.contains_key(ACTION) || is_old() && (is_form() || names_action())
}

/// The answer to a request of Tencent's API.
pub(super) async fn answer(api: &Arc<Api>, request: Request<Incoming>) -> Response<Body> {
    let id = scf().new_request_id();
    let (parts, body) = request.into_parts();
    let mut body = Some(body);
    let body = match answer_to(api, &parts, &mut body).await {
        Ok(mut answer) => {
            answer["RequestId"] = id.into();
            json!({ "Response": answer })
        }
        Err(Fault { code, message }) => {
            pass_over(body).await;
            json!({ "Response": { "Error": { "Code": code, "Message": message }, "RequestId": id } })
        }
    };
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response(StatusCode::OK, headers, body.to_string().into())
}

async fn answer_to(api: &Arc<Api>, parts: &Parts, body: &mut Option<Incoming>) -> Result<Value, Fault> {
    let action = action(&parts.headers)?;
    if parts.method != Method::POST || parts.uri.path() != "/" {
        let message = format!("{} against '/' with a body in JSON is what is supported", Method::POST);
        return Err(Fault::new("InvalidRequest", message));
    }
    let body = read(body, MAX_CALL_BYTES).await.map_err(unread)?;
    auth::check_tencent(&api.keys, parts, &body).map_err(denied)?;
    match action {
        Action::Invoke | Action::InvokeFunction => {
            let outcome = invoke(api, action, parameters(&body)?, TraceContext::of(&parts.headers)).await?;
            Ok(json!({ "Result": outcome }))
        }
        Action::GetRequestStatus => events::request_status(api, &body),
        Action::GetAsyncEventStatus => events::event_status(api, &body),
        Action::ListAsyncEvents => events::list(api, &body),
        Action::TerminateAsyncEvent => events::terminate(api, &body),
        Action::GetFunctionLogs => logs::read(api, &body).await,
    }
}

fn parameters<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(|error| {
        Fault::new("InvalidParameter", format!("the body is no JSON of parameters: {error}"))
    })
}

fn action(headers: &HeaderMap) -> Result<Action, Fault> {
    if !headers.contains_key(ACTION) {
        let message = "calls have their action in X-TC-Action, a body in JSON, and the signature TC3-HMAC-SHA256: \
                       let the SDK sign by that instead of HmacSHA1 or HmacSHA256";
        return Err(Fault::new("InvalidRequest", message));
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let version = text("x-tc-version");
    if version != VERSION {
        let message = format!("version '{}' is not {VERSION}", version.escape_default());
        return Err(Fault::new("NoSuchVersion", message));
    }
    let asked = text(ACTION);
    ACTIONS.into_iter().find(|(name, _)| *name == asked).map(|(_, action)| action).ok_or_else(|| {
        let known = ACTIONS.map(|(name, _)| name).join(", ");
        let message = format!("action '{}' is none of {known}", asked.escape_default());
        Fault::new("InvalidAction", message)
    })
}

/// A parameter that must be there.
fn required<'a>(text: &'a Option<String>, name: &str) -> Result<&'a str, Fault> {
    let given = text.as_deref().filter(|text| !text.is_empty());
    given.ok_or_else(|| Fault::new("MissingParameter", format!("the parameter {name} is missing")))
}

/// The function that is meant; without a qualifier it is of the version `otherwise`.
fn find(api: &Api, names: &Names, otherwise: &str) -> Result<(Arc<dyn Function>, Target), Fault> {
    let name = required(&names.function_name, "FunctionName")?.to_owned();
    let given = |text: &Option<String>, otherwise: &str| {
        Some(text.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| otherwise.to_owned()))
    };
    let target = Target {
        namespace: given(&names.namespace, "default"),
        name,
        qualifier: given(&names.qualifier, otherwise),
    };
    let function = api.functions.find(&target).map_err(|missing| not_found(missing, &target))?;
    if function.config().platform.name() == scf().name() {
        return Ok((function, target));
    }
    Err(not_found(Missing::Function, &target))
}

async fn invoke(
    api: &Arc<Api>,
    action: Action,
    parameters: Parameters,
    caller: Option<TraceContext>,
) -> Result<Outcome, Fault> {
    let otherwise = if action == Action::Invoke { "$LATEST" } else { "$DEFAULT" };
    let (function, target) = find(api, &parameters.names, otherwise)?;
    let asynchronous = match (action, parameters.invocation_type.as_deref().unwrap_or_default()) {
        (Action::Invoke, "Event") => true,
        (Action::Invoke, other) if !["", "RequestResponse"].contains(&other) => {
            let message = format!("InvocationType '{other}' is neither RequestResponse nor Event");
            return Err(Fault::new("InvalidParameterValue", message));
        }
        _ => false,
    };
    let log_tail = match parameters.log_type.as_deref().unwrap_or_default() {
        "" | "None" => false,
        "Tail" => true,
        other => {
            let message = format!("LogType '{other}' is neither None nor Tail");
            return Err(Fault::new("InvalidParameterValue", message));
        }
    };
    let (name, event) = match action {
        Action::Invoke => ("ClientContext", parameters.client_context),
        _ => ("Event", parameters.event),
    };
    // A call without an event is one with an empty object.
    let event = Bytes::from(event.filter(|event| !event.is_empty()).unwrap_or_else(|| "{}".to_owned()));
    check_event(&*function, name, &event, asynchronous)?;
    let id = scf().new_request_id();
    let qualifier = target.qualifier.as_deref().unwrap_or_default();
    let tracked = api.queue.states().begin(id.clone(), function.config(), qualifier, asynchronous);
    if asynchronous {
        let waiting = Event::new(function, &POLICY, event, id.clone(), Duration::ZERO)
            .tracked(tracked)
            .called_by(caller);
        return accept(api, waiting, id);
    }
    let options = InvokeOptions { log_tail, request_id: Some(id), caller, ..InvokeOptions::default() };
    let outcome = function.invoke(event, options).await;
    tracked.over(&outcome);
    Ok(of(outcome, log_tail))
}

fn check_event(function: &dyn Function, name: &str, event: &[u8], asynchronous: bool) -> Result<(), Fault> {
    let limits = function.config().platform.limits();
    let limit = if asynchronous { limits.async_event_bytes } else { limits.event_bytes };
    if event.len() > limit {
        let message = format!("{name} has {} bytes; at most {limit} are allowed", event.len());
        return Err(Fault::new("InvalidParameter.Payload", message));
    }
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(event) {
        let code = if name == "Event" {
            "InvalidParameterValue.Event"
        } else {
            "InvalidParameterValue.ClientContext"
        };
        return Err(Fault::new(code, format!("{name} is not JSON: {error}")));
    }
    Ok(())
}

fn accept(api: &Arc<Api>, event: Event, id: String) -> Result<Outcome, Fault> {
    api.queue.push(event).map_err(|full| {
        Fault::new("ResourceUnavailable", format!("{full} asynchronous events wait already"))
    })?;
    Ok(Outcome {
        log: String::new(),
        ret_msg: String::new(),
        err_msg: String::new(),
        mem_usage: 0,
        duration: 0.0,
        bill_duration: 0,
        function_request_id: id,
        invoke_result: 0,
    })
}

fn of(outcome: EventOutcome, log_tail: bool) -> Outcome {
    let (invoke_result, err_msg) = match outcome.result {
        EventResult::Success => (0, String::new()),
        EventResult::FunctionError(error) => (1, error),
        EventResult::PlatformError(error) => (-1, error),
    };
    let ms = outcome.duration.as_micros() as f64 / 1000.0;
    Outcome {
        log: outcome.log.filter(|_| log_tail).map_or_else(String::new, |log| lossy(&log)),
        ret_msg: lossy(&outcome.body),
        err_msg,
        mem_usage: outcome.memory_peak_bytes,
        duration: ms,
        bill_duration: ms.ceil() as u64,
        function_request_id: outcome.request_id,
        invoke_result,
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn not_found(missing: Missing, target: &Target) -> Fault {
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let qualifier = target.qualifier.as_deref().unwrap_or_default();
    let name = &target.name;
    match missing {
        Missing::Namespace => {
            Fault::new("ResourceNotFound.Namespace", format!("namespace '{namespace}' does not exist"))
        }
        Missing::Function => Fault::new(
            "ResourceNotFound.Function",
            format!("function '{name}' does not exist in namespace '{namespace}'"),
        ),
        Missing::Qualifier => Fault::new(
            "ResourceNotFound.FunctionVersion",
            format!("function '{name}' has no version or alias '{qualifier}'"),
        ),
    }
}

fn denied(denied: Denied) -> Fault {
    match denied {
        Denied::MissingHeader(name) => {
            Fault::new("MissingParameter", format!("the header {name} is missing"))
        }
        Denied::Malformed => Fault::new(
            "AuthFailure.InvalidAuthorization",
            "the Authorization header is not one of TC3-HMAC-SHA256",
        ),
        Denied::UnknownKey(id) => {
            let message = format!("the SecretId '{}' is not found", id.escape_default());
            Fault::new("AuthFailure.SecretIdNotFound", message)
        }
        Denied::Mismatch => {
            Fault::new("AuthFailure.SignatureFailure", "the signature is not the one of this request and key")
        }
        Denied::Expired => {
            Fault::new("AuthFailure.SignatureExpire", "the signature's time is more than 15 minutes from now")
        }
    }
}

fn unread(unread: Unread) -> Fault {
    match unread {
        Unread::TooLarge(limit) => {
            Fault::new("RequestSizeLimitExceeded", format!("a call has at most {limit} bytes"))
        }
        Unread::Broken => Fault::new("InvalidRequest", "the body broke off"),
    }
}
