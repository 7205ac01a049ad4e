//! Errors as SCF words them: statuses of its own between 400 and 500, one text each.
//!
//! An event's caller gets `{"errorCode":-1,"errorMessage","requestId","statusCode"}` (the `RetMsg`
//! of the invoke call), an HTTP caller `{"errorMessage","statusCode"}` as function URLs answer; the
//! HTTP status is the code in both cases. Documented or observed texts: 405, 407, 433, 434, 439,
//! 446. The texts of 406, 438, 443, 444, 445, 447, 449, 450, 455, 456, 499 and 500 are not documented and are ours.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Serialize;

use super::headers;
use crate::FunctionConfig;
use crate::platform::{
    HttpEvent, InvocationContext, InvocationFailure, InvocationKind, PlatformAnswer, StartCause,
    StartFailure, seconds,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventBody<'a> {
    error_code: i32,
    error_message: &'a str,
    request_id: &'a str,
    status_code: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HttpBody<'a> {
    error_message: &'a str,
    status_code: u16,
}

#[derive(Serialize)]
struct GatewayBody<'a> {
    errno: u16,
    error: &'a str,
}

/// The name of the error of an answer that cannot become one of HTTP.
const INVALID_ANSWER: &str = "Invalid scf response format";

/// The answer for an instance that did not come up.
pub(super) fn start(failure: &StartFailure, kind: InvocationKind) -> PlatformAnswer {
    let ms = failure.deadline.as_millis();
    let (status, code, message) = match &failure.cause {
        StartCause::NotListening(_) => (
            446,
            "PortBindingFailed",
            format!(
                "The request timed out in {ms}ms.Please confirm your http server have enabled listening on \
                 port {}.",
                failure.port
            ),
        ),
        StartCause::Exited(_) => (
            405,
            "ContainerStateExited",
            "Failed to initialize the container. Please confirm that the container can be started locally."
                .to_owned(),
        ),
        StartCause::CommandNotFound(file) => {
            (445, "ContainerInitError", format!("[{file}] no such file or directory"))
        }
        StartCause::CommandNotExecutable(file) => {
            (445, "ContainerInitError", format!("[{file}] permission denied"))
        }
        StartCause::TimedOut => {
            (450, "InitContainerTimeout", format!("The container initialization timed out in {ms}ms."))
        }
        StartCause::PullFailed(reason) => (444, "PullImageFailed", format!("Failed to pull image: {reason}")),
        StartCause::PullTimedOut(reason) => {
            (447, "PullImageTimeOut", format!("Pulling image timed out: {reason}"))
        }
        StartCause::EventTooLarge(limit) => {
            (406, "RequestTooLarge", format!("payload size exceeds maximum allowed size ({limit} bytes)"))
        }
        StartCause::InvalidEvent(why) => (400, "InvalidParameterValue", why.clone()),
        // Who calls can do nothing about these but try again, and need not know how the host is made.
        StartCause::OutOfResources(_) => {
            (449, "InsufficientResources", "Insufficient resources. Please try again later.".to_owned())
        }
        StartCause::Internal(_) => {
            (500, "InternalError", "An internal error has occurred. Please try again later.".to_owned())
        }
        StartCause::NotActive(state) => (438, "FunctionStatusError", state.clone()),
        // It knows neither initializers nor health checks.
        StartCause::InitializerFailed(reason) | StartCause::Unhealthy(reason) | StartCause::Other(reason) => {
            (500, "InternalError", reason.clone())
        }
    };
    answer(status, code, message, &failure.request_id, kind)
}

/// The answer where all instances are busy. What there is of them is told in MB, as a reserved quota.
pub(super) fn throttled(config: &FunctionConfig, request_id: &str, kind: InvocationKind) -> PlatformAnswer {
    let message =
        format!("Function [ {} ] concurrency exceeded reserved quota {} MB", config.name, config.memory_mib);
    answer(432, "ResourceLimitReached", message, request_id, kind)
}

/// No function here forbids it; said all the same, rather than nothing.
pub(super) fn session_over(id: &str, request_id: &str, kind: InvocationKind) -> PlatformAnswer {
    let message = format!("session {id} is over and cannot be used again");
    answer(400, "InvalidParameterValue", message, request_id, kind)
}

/// The answer for an invocation that failed on the way.
pub(super) fn invocation(context: &InvocationContext<'_>, failure: &InvocationFailure) -> PlatformAnswer {
    let (status, code, message) = match failure {
        InvocationFailure::TimedOut => (
            433,
            "TimeLimitReached",
            format!("Invoking task timed out after {} seconds", seconds(context.config.timeout)),
        ),
        InvocationFailure::OutOfMemory => {
            (434, "MemoryLimitReached", format!("Task memory exceeded {} MB", context.config.memory_mib))
        }
        InvocationFailure::ProcessExited(_) => {
            (439, "User process exit when running", "User process exit when running".to_owned())
        }
        InvocationFailure::ConnectionBroken(reason) | InvocationFailure::BadResponse(reason) => {
            (443, "UserCodeError", format!("user code error: {reason}"))
        }
        InvocationFailure::InvalidAnswer(_) => {
            let text = "Invalid scf response format. please check your scf response format.";
            (403, INVALID_ANSWER, text.to_owned())
        }
        InvocationFailure::Canceled | InvocationFailure::Terminated => {
            (499, "RequestCanceled", "Request canceled".to_owned())
        }
        InvocationFailure::WebSocketIdle => {
            let seconds = seconds(context.config.websocket_idle().unwrap_or_default());
            (455, "WebSocketIdleTimeout", format!("WebSocket connection idle for {seconds} seconds"))
        }
        InvocationFailure::WebSocketBroken => {
            (456, "WebSocketClosed", "WebSocket connection closed by client abnormally".to_owned())
        }
        InvocationFailure::InvalidEvent(why) => (400, "InvalidParameterValue", why.clone()),
        InvocationFailure::WebSocketTooLarge(limit) => (
            406,
            "RequestTooLarge",
            format!("WebSocket message exceeds maximum allowed size ({limit} bytes)"),
        ),
        InvocationFailure::RequestTooLarge(what) => (406, "RequestTooLarge", what.clone()),
        InvocationFailure::AnswerTooLarge(_) => {
            (407, "ResponseTooLarge", "The size of response exceeds the upper limit (6MB)".to_owned())
        }
    };
    answer(status, code, message, context.request_id, context.kind)
}

/// An event's error, for the client whose HTTP request the event was.
///
/// A function URL answers as for Web functions. API Gateway answers 200 with the error of the event, as
/// documented for time-outs, but for an answer that it cannot turn into one of HTTP.
pub(super) fn of_http_event(form: HttpEvent, mut answer: PlatformAnswer) -> PlatformAnswer {
    let status_code = answer.status.as_u16();
    match form {
        HttpEvent::Url => {
            answer.body = json(&HttpBody { error_message: &answer.message, status_code });
        }
        HttpEvent::Gateway if answer.code == INVALID_ANSWER => {
            answer.body = json(&GatewayBody { errno: status_code, error: &answer.message });
        }
        HttpEvent::Gateway => answer.status = StatusCode::OK,
    }
    answer
}

fn answer(
    status: u16,
    code: &'static str,
    message: String,
    request_id: &str,
    kind: InvocationKind,
) -> PlatformAnswer {
    let body = match kind {
        InvocationKind::Event => {
            json(&EventBody { error_code: -1, error_message: &message, request_id, status_code: status })
        }
        InvocationKind::Http => json(&HttpBody { error_message: &message, status_code: status }),
    };
    let mut map = HeaderMap::new();
    map.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers::id(request_id, &mut map);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    PlatformAnswer { status, headers: map, body, code, message }
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skiff_runtime::Exit;

    use super::*;
    use crate::FunctionConfig;
    use crate::platform::scf;
    use crate::platform::testing::{context, failure};

    fn start_body(cause: StartCause, kind: InvocationKind) -> (u16, String) {
        let mut failure = failure(cause);
        failure.deadline = Duration::from_secs(30);
        let answer = start(&failure, kind);
        assert_eq!(answer.headers["content-type"], "application/json");
        (answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).expect("UTF-8"))
    }

    #[test]
    fn a_server_that_does_not_listen_is_as_in_the_seed() {
        let cause = || StartCause::NotListening("timed out".into());
        assert_eq!(
            start_body(cause(), InvocationKind::Event),
            (446, r#"{"errorCode":-1,"errorMessage":"The request timed out in 30000ms.Please confirm your http server have enabled listening on port 9000.","requestId":"the-request","statusCode":446}"#.to_owned())
        );
        assert_eq!(
            start_body(cause(), InvocationKind::Http),
            (446, r#"{"errorMessage":"The request timed out in 30000ms.Please confirm your http server have enabled listening on port 9000.","statusCode":446}"#.to_owned())
        );
    }

    #[test]
    fn a_server_that_exits() {
        let cause = StartCause::Exited(Exit { code: Some(3), signal: None, oom_killed: false });
        assert_eq!(
            start_body(cause, InvocationKind::Event),
            (405, r#"{"errorCode":-1,"errorMessage":"Failed to initialize the container. Please confirm that the container can be started locally.","requestId":"the-request","statusCode":405}"#.to_owned())
        );
    }

    #[test]
    fn other_start_failures_have_their_codes() {
        let cases = [
            (StartCause::CommandNotFound("./serve".into()), 445, "[./serve] no such file or directory"),
            (StartCause::CommandNotExecutable("./serve".into()), 445, "[./serve] permission denied"),
            (StartCause::PullFailed("manifest unknown".into()), 444, "manifest unknown"),
            (StartCause::PullTimedOut("not within 5s".into()), 447, "timed out: not within 5s"),
            (StartCause::TimedOut, 450, "30000ms"),
            (
                StartCause::OutOfResources("/srv".into()),
                449,
                "\"Insufficient resources. Please try again later.\"",
            ),
            (
                StartCause::Internal("/srv".into()),
                500,
                "\"An internal error has occurred. Please try again later.\"",
            ),
            (StartCause::NotActive("in state Pending".into()), 438, "in state Pending"),
            (StartCause::Other("no command".into()), 500, "no command"),
        ];
        for (cause, code, text) in cases {
            let (status, body) = start_body(cause, InvocationKind::Event);
            assert_eq!(status, code);
            assert!(body.contains(text) && body.ends_with(&format!("\"statusCode\":{code}}}")), "{body}");
        }
    }

    #[test]
    fn clients_whose_requests_became_events_have_their_own_shapes() {
        let config = FunctionConfig::new("resize", scf());
        let told = |form, failure| {
            let context = context(&config, InvocationKind::Event);
            let answer = of_http_event(form, invocation(&context, &failure));
            (answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).expect("UTF-8"))
        };
        assert_eq!(
            told(HttpEvent::Url, InvocationFailure::TimedOut),
            (
                433,
                r#"{"errorMessage":"Invoking task timed out after 3 seconds","statusCode":433}"#.to_owned()
            )
        );
        assert_eq!(
            told(HttpEvent::Gateway, InvocationFailure::TimedOut),
            (200, r#"{"errorCode":-1,"errorMessage":"Invoking task timed out after 3 seconds","requestId":"the-request","statusCode":433}"#.to_owned())
        );
        let invalid = || InvocationFailure::InvalidAnswer("no object".to_owned());
        let text = "Invalid scf response format. please check your scf response format.";
        assert_eq!(
            told(HttpEvent::Url, invalid()),
            (403, format!(r#"{{"errorMessage":"{text}","statusCode":403}}"#))
        );
        assert_eq!(
            told(HttpEvent::Gateway, invalid()),
            (403, format!(r#"{{"errno":403,"error":"{text}"}}"#))
        );
    }

    #[test]
    fn invocation_failures_have_their_texts() {
        let mut config = FunctionConfig::new("resize", scf());
        config.timeout = Duration::from_secs(3);
        let cases = [
            (InvocationFailure::TimedOut, 433, "Invoking task timed out after 3 seconds"),
            (InvocationFailure::OutOfMemory, 434, "Task memory exceeded 128 MB"),
            (InvocationFailure::ProcessExited(None), 439, "User process exit when running"),
            (InvocationFailure::AnswerTooLarge(1), 407, "The size of response exceeds the upper limit (6MB)"),
            (InvocationFailure::RequestTooLarge("too large".into()), 406, "too large"),
            (InvocationFailure::ConnectionBroken("reset".into()), 443, "user code error: reset"),
            (InvocationFailure::BadResponse("no HTTP".into()), 443, "user code error: no HTTP"),
            (InvocationFailure::Canceled, 499, "Request canceled"),
            (InvocationFailure::Terminated, 499, "Request canceled"),
            (InvocationFailure::InvalidEvent("no JSON".into()), 400, "no JSON"),
            (InvocationFailure::WebSocketIdle, 455, "WebSocket connection idle for 15 seconds"),
            (InvocationFailure::WebSocketBroken, 456, "WebSocket connection closed by client abnormally"),
            (
                InvocationFailure::WebSocketTooLarge(1_048_576),
                406,
                "WebSocket message exceeds maximum allowed size (1048576 bytes)",
            ),
        ];
        for (failure, code, text) in cases {
            let answer = invocation(&context(&config, InvocationKind::Http), &failure);
            assert_eq!(answer.status.as_u16(), code);
            assert_eq!(
                answer.body,
                format!("{{\"errorMessage\":\"{text}\",\"statusCode\":{code}}}").as_bytes()
            );
        }
    }
}
