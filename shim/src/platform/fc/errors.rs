//! Errors as FC words them.
//!
//! Start failures: status 412, codes `FunctionNotStarted`, `CAExited`, `CAFileNotFound` and
//! `CAFilePermission`. 3.0 answers `{"RequestId","Code","Message"}` with the texts of its
//! troubleshooting pages, 2.0 `{"ErrorCode","ErrorMessage"}` with the older texts. Both quote the
//! container's last log lines. What FC says when an image cannot be pulled is not documented: the
//! code is `PreconditionFailed` and the text names the image and the reason. What is the fault of this
//! host or of Skiff is 500 `InternalServerError` with FC's text, and the reason is the operator's to see.
//!
//! Invocation failures: an event's caller gets 200 with `X-Fc-Error-Type`, an HTTP caller 502, both
//! `{"errorMessage"}`. The type is documented for neither time limit nor exit:
//! `UnhandledInvocationError` is ours.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;

use super::{Api, errno, headers};
use crate::platform::{
    InvocationContext, InvocationFailure, InvocationKind, InvocationReport, PlatformAnswer, StartCause,
    StartFailure, TailLine, megabytes, rfc3339, seconds,
};

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-fc-error-type");

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body3<'a> {
    request_id: &'a str,
    code: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body2<'a> {
    error_code: &'a str,
    error_message: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FunctionError<'a> {
    error_message: &'a str,
}

/// The answer for an instance that did not come up.
pub(super) fn start(api: Api, failure: &StartFailure, kind: InvocationKind) -> PlatformAnswer {
    match &failure.cause {
        StartCause::InitializerFailed(why) => return not_initialized(why, &failure.request_id, kind),
        StartCause::EventTooLarge(limit) => {
            let text = format!("payload size exceeds maximum allowed size ({limit} bytes)");
            return api_error(api, StatusCode::BAD_REQUEST, "EntityTooLarge", text, &failure.request_id);
        }
        StartCause::InvalidEvent(why) => {
            return api_error(
                api,
                StatusCode::BAD_REQUEST,
                "InvalidArgument",
                why.clone(),
                &failure.request_id,
            );
        }
        // Who calls can do nothing about it but try again, and need not know how the host is made: its operator is told.
        StartCause::OutOfResources(_) | StartCause::Internal(_) => {
            let text = "an internal error has occurred. Please retry.".to_owned();
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return api_error(api, status, "InternalServerError", text, &failure.request_id);
        }
        _ => {}
    }
    let code = match &failure.cause {
        StartCause::Exited(_) => "CAExited",
        StartCause::CommandNotFound(_) => "CAFileNotFound",
        StartCause::CommandNotExecutable(_) => "CAFilePermission",
        StartCause::PullFailed(_) | StartCause::PullTimedOut(_) => "PreconditionFailed",
        _ => "FunctionNotStarted",
    };
    let message = match api {
        Api::V3 => start_message_3(failure),
        Api::V2 => start_message_2(failure),
    };
    api_error(api, StatusCode::PRECONDITION_FAILED, code, message, &failure.request_id)
}

/// The caller of an event gets 200 with the error's type, as of an error of the function.
fn not_initialized(why: &str, request_id: &str, kind: InvocationKind) -> PlatformAnswer {
    let status = match kind {
        InvocationKind::Event => StatusCode::OK,
        InvocationKind::Http => StatusCode::BAD_GATEWAY,
    };
    let message = format!("Function instance initialization failed: {why}");
    let mut headers = common(request_id, None);
    headers.insert(ERROR_TYPE, HeaderValue::from_static("InitializationError"));
    let body = json(&FunctionError { error_message: &message });
    PlatformAnswer { status, headers, body, code: "InitializationError", message }
}

fn start_message_3(failure: &StartFailure) -> String {
    let exited = |code: i32| {
        let text = errno::text(code).map(|text| format!(", message:{text}")).unwrap_or_default();
        let command: String = failure.command.iter().flat_map(|word| [word.as_str(), " "]).collect();
        format!("Function instance exited unexpectedly(code {code}{text}) with start command '{command}'.")
    };
    match &failure.cause {
        StartCause::NotListening(_) | StartCause::TimedOut => format!(
            "Function instance health check failed on port {} in {} seconds.\nLogs:{}",
            failure.port,
            seconds(failure.deadline),
            plain_logs(&failure.logs)
        ),
        StartCause::Exited(exit) => {
            format!("{} Logs:{}", exited(exit.shell_code()), plain_logs(&failure.logs))
        }
        StartCause::CommandNotFound(file) => format!(
            "The function cannot be started. Failed to start function instance. \
             Error: the file {file} is not exist"
        ),
        StartCause::CommandNotExecutable(_) => format!("The function cannot be started. {}", exited(13)),
        other => other_message(other),
    }
}

fn start_message_2(failure: &StartFailure) -> String {
    let took = failure.elapsed.as_nanos();
    let dial = |error: &str| {
        let address = failure.address.map_or_else(|| format!("0.0.0.0:{}", failure.port), |a| a.to_string());
        format!("ContainerStartDuration:{took}. Ping CA failed due to: dial tcp {address}: {error}")
    };
    match &failure.cause {
        StartCause::NotListening(error) => {
            let error =
                if error.contains("refused") { "getsockopt: connection refused" } else { "i/o timeout" };
            let logs = dated_logs(&failure.logs);
            format!("The CA's http server cannot be started:{}{logs}", dial(error))
        }
        StartCause::TimedOut => {
            format!("The CA's http server cannot be started:{}", dial("i/o timeout"))
        }
        StartCause::Exited(_) => format!(
            "The CA process either cannot be started or exited:ContainerStartDuration:{took}. \
             CA process cannot be started or exited already: rpc error: code = 106 desc = {}{}",
            dial("i/o timeout"),
            dated_logs(&failure.logs)
        ),
        StartCause::CommandNotFound(file) => {
            format!("The function cannot be started. the file {file} is not exist.")
        }
        StartCause::CommandNotExecutable(file) => {
            format!("The function cannot be started. {file}: permission denied.")
        }
        other => other_message(other),
    }
}

fn other_message(cause: &StartCause) -> String {
    match cause {
        StartCause::PullFailed(reason) | StartCause::PullTimedOut(reason) => {
            format!("Failed to pull image: {reason}")
        }
        StartCause::Unhealthy(how) => {
            format!("The function http server cannot be started. check function health failed with {how}")
        }
        StartCause::NotActive(reason) | StartCause::Other(reason) => {
            format!("The function cannot be started. Failed to start function instance. Error: {reason}")
        }
        other => format!("The function cannot be started. {other:?}"),
    }
}

/// 3.0 quotes log lines as they are.
fn plain_logs(logs: &[TailLine]) -> String {
    let lines: Vec<_> = logs.iter().map(|line| String::from_utf8_lossy(&line.bytes)).collect();
    lines.join("\n")
}

/// 2.0 quotes them with their time, and says nothing when there are none.
fn dated_logs(logs: &[TailLine]) -> String {
    let mut text = String::new();
    for (index, line) in logs.iter().enumerate() {
        let lead = if index == 0 { " Logs : " } else { "\n" };
        let _ = write!(text, "{lead}{} {}", rfc3339(line.time), String::from_utf8_lossy(&line.bytes));
    }
    text
}

/// The answer for an invocation that failed on the way.
pub(super) fn invocation(
    api: Api,
    context: &InvocationContext<'_>,
    failure: &InvocationFailure,
    report: &InvocationReport<'_>,
) -> PlatformAnswer {
    let peak = megabytes(report.memory_peak_bytes);
    let id = context.request_id;
    match failure {
        InvocationFailure::TimedOut | InvocationFailure::WebSocketIdle => {
            let limit = seconds(context.config.timeout);
            let text = format!("Function timed out after {limit} seconds (maxMemoryUsage: {peak:.2}MB)");
            function_error(context, "FunctionTimeoutError", text)
        }
        InvocationFailure::ProcessExited(_)
        | InvocationFailure::OutOfMemory
        | InvocationFailure::ConnectionBroken(_) => {
            let code = match failure {
                InvocationFailure::OutOfMemory => "FunctionOOMError",
                _ => "FunctionUnhandledError",
            };
            let text = format!(
                "Process exited unexpectedly before completing request \
                 (duration: {}ms, maxMemoryUsage: {peak:.2}MB)",
                whole_ms(report.duration)
            );
            function_error(context, code, text)
        }
        InvocationFailure::Canceled
        | InvocationFailure::Terminated
        | InvocationFailure::WebSocketBroken
        | InvocationFailure::WebSocketTooLarge(_) => {
            let ms = whole_ms(report.duration);
            let text =
                format!("Invocation canceled by client (duration: {ms}ms, maxMemoryUsage: {peak:.2}MB)");
            let status = StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST);
            api_error(api, status, "ClientClosedRequest", text, id)
        }
        InvocationFailure::BadResponse(reason) | InvocationFailure::InvalidAnswer(reason) => {
            api_error(api, StatusCode::BAD_GATEWAY, "BadResponse", format!("bad response: {reason}"), id)
        }
        InvocationFailure::AnswerTooLarge(limit) => {
            let text = format!("response size exceeds maximum allowed size ({limit} bytes)");
            api_error(api, StatusCode::BAD_GATEWAY, "BadResponse", text, id)
        }
        InvocationFailure::InvalidEvent(why) => {
            api_error(api, StatusCode::BAD_REQUEST, "InvalidArgument", why.clone(), id)
        }
        InvocationFailure::RequestTooLarge(what) => match context.kind {
            InvocationKind::Event => {
                api_error(api, StatusCode::BAD_REQUEST, "EntityTooLarge", what.clone(), id)
            }
            InvocationKind::Http => {
                api_error(api, StatusCode::BAD_REQUEST, "InvalidArgument", what.clone(), id)
            }
        },
    }
}

fn whole_ms(time: Duration) -> u128 {
    time.as_micros().div_ceil(1000)
}

fn function_error(context: &InvocationContext<'_>, code: &'static str, message: String) -> PlatformAnswer {
    let status = match context.kind {
        InvocationKind::Event => StatusCode::OK,
        InvocationKind::Http => StatusCode::BAD_GATEWAY,
    };
    let mut headers = common(context.request_id, Some(context.instance_id));
    headers.insert(ERROR_TYPE, HeaderValue::from_static("UnhandledInvocationError"));
    let body = json(&FunctionError { error_message: &message });
    PlatformAnswer { status, headers, body, code, message }
}

/// The answer where all instances are busy. Its text is not documented.
pub(super) fn throttled(api: Api, request_id: &str) -> PlatformAnswer {
    let text = "The function's concurrency is over its limit: all its instances are busy.".to_owned();
    api_error(api, StatusCode::TOO_MANY_REQUESTS, "ResourceExhausted", text, request_id)
}

pub(super) fn session_over(api: Api, id: &str, request_id: &str) -> PlatformAnswer {
    let text =
        format!("session ID '{id}' has expired and cannot be used again: begin a session with another");
    api_error(api, StatusCode::BAD_REQUEST, "InvalidArgument", text, request_id)
}

/// An answer of the API itself, in its shape.
pub(crate) fn api_error(
    api: Api,
    status: StatusCode,
    code: &'static str,
    message: String,
    request_id: &str,
) -> PlatformAnswer {
    let body = match api {
        Api::V3 => json(&Body3 { request_id, code, message: &message }),
        Api::V2 => json(&Body2 { error_code: code, error_message: &message }),
    };
    PlatformAnswer { status, headers: common(request_id, None), body, code, message }
}

/// Marks an event's answer as an error of the function's own.
pub(super) fn mark_handled(headers: &mut HeaderMap) {
    headers.insert(ERROR_TYPE, HeaderValue::from_static("HandledInvocationError"));
}

fn common(request_id: &str, instance_id: Option<&str>) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers::ids(request_id, instance_id, &mut map);
    map
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use skiff_runtime::Exit;

    use super::*;
    use crate::FunctionConfig;
    use crate::platform::fc;
    use crate::platform::testing::{context, failure};

    fn body(api: Api, cause: StartCause) -> String {
        let answer = start(api, &failure(cause), InvocationKind::Event);
        assert_eq!(answer.status, 412);
        assert_eq!(answer.headers["content-type"], "application/json");
        String::from_utf8(answer.body.to_vec()).expect("UTF-8")
    }

    fn exit(code: i32) -> StartCause {
        StartCause::Exited(Exit { code: Some(code), signal: None, oom_killed: false })
    }

    #[test]
    fn a_server_that_does_not_listen_in_three() {
        assert_eq!(
            body(Api::V3, StartCause::NotListening("Connection refused (os error 111)".into())),
            r#"{"RequestId":"the-request","Code":"FunctionNotStarted","Message":"Function instance health check failed on port 9000 in 120 seconds.\nLogs:Listening on port 9000\nbye"}"#
        );
    }

    #[test]
    fn a_server_that_does_not_listen_in_two_is_as_in_the_seed() {
        let mut failure = failure(StartCause::NotListening("Connection refused (os error 111)".into()));
        failure.elapsed = Duration::from_secs(25);
        failure.logs.truncate(1);
        failure.logs[0].time = UNIX_EPOCH + Duration::new(1_575_021_210, 859_837_462);
        let answer = start(Api::V2, &failure, InvocationKind::Event);
        assert_eq!(
            answer.body,
            r#"{"ErrorCode":"FunctionNotStarted","ErrorMessage":"The CA's http server cannot be started:ContainerStartDuration:25000000000. Ping CA failed due to: dial tcp 21.0.3.4:9000: getsockopt: connection refused Logs : 2019-11-29T09:53:30.859837462Z Listening on port 9000"}"#
        );
    }

    #[test]
    fn a_server_that_exits() {
        assert_eq!(
            body(Api::V3, exit(1)),
            r#"{"RequestId":"the-request","Code":"CAExited","Message":"Function instance exited unexpectedly(code 1, message:operation not permitted) with start command 'npm run start '. Logs:Listening on port 9000\nbye"}"#
        );
        assert!(body(Api::V3, exit(145)).contains("exited unexpectedly(code 145) with"));
        let killed = StartCause::Exited(Exit { code: None, signal: Some(9), oom_killed: true });
        assert!(body(Api::V3, killed).contains("exited unexpectedly(code 137) with"));
        let two = body(Api::V2, exit(1));
        assert!(
            two.starts_with(
                r#"{"ErrorCode":"CAExited","ErrorMessage":"The CA process either cannot be started or exited:ContainerStartDuration:1500000000. CA process cannot be started or exited already: rpc error: code = 106 desc = ContainerStartDuration:1500000000. Ping CA failed due to: dial tcp 21.0.3.4:9000: i/o timeout Logs : "#
            ),
            "{two}"
        );
    }

    #[test]
    fn commands_that_cannot_be_run() {
        assert_eq!(
            body(Api::V3, StartCause::CommandNotFound("/code/bootstrap".into())),
            r#"{"RequestId":"the-request","Code":"CAFileNotFound","Message":"The function cannot be started. Failed to start function instance. Error: the file /code/bootstrap is not exist"}"#
        );
        assert_eq!(
            body(Api::V3, StartCause::CommandNotExecutable("npm".into())),
            r#"{"RequestId":"the-request","Code":"CAFilePermission","Message":"The function cannot be started. Function instance exited unexpectedly(code 13, message:permission denied) with start command 'npm run start '."}"#
        );
    }

    #[test]
    fn the_hosts_own_failures_are_internal_errors_without_their_cause() {
        for cause in [StartCause::OutOfResources("no space".into()), StartCause::Internal("/srv/x".into())] {
            for (api, body) in [
                (
                    Api::V3,
                    r#"{"RequestId":"the-request","Code":"InternalServerError","Message":"an internal error has occurred. Please retry."}"#,
                ),
                (
                    Api::V2,
                    r#"{"ErrorCode":"InternalServerError","ErrorMessage":"an internal error has occurred. Please retry."}"#,
                ),
            ] {
                let answer = start(api, &failure(cause.clone()), InvocationKind::Event);
                assert_eq!((answer.status.as_u16(), &answer.body[..]), (500, body.as_bytes()));
            }
        }
    }

    #[test]
    fn logs_that_are_not_utf8_or_json_stay_inside_their_string() {
        let mut failure = failure(StartCause::NotListening(String::new()));
        failure.logs = vec![TailLine { time: UNIX_EPOCH, bytes: Bytes::from_static(b"\"}\xff\x00{\\") }];
        for api in [Api::V2, Api::V3] {
            let answer = start(api, &failure, InvocationKind::Event);
            let value: serde_json::Value = serde_json::from_slice(&answer.body).expect("valid JSON");
            let key = if api == Api::V2 { "ErrorMessage" } else { "Message" };
            let text = value[key].as_str().expect("text");
            assert!(text.ends_with("\"}\u{fffd}\0{\\"), "{text:?}");
        }
    }

    #[test]
    fn invocation_failures() {
        let mut config = FunctionConfig::new("resize", fc());
        config.timeout = Duration::from_secs(3);
        let report = InvocationReport {
            duration: Duration::from_micros(8_400),
            memory_peak_bytes: 52_239_991,
            ..InvocationReport::default()
        };
        let answer = |kind, failure: &InvocationFailure| {
            invocation(Api::V3, &context(&config, kind), failure, &report)
        };
        let timed_out = answer(InvocationKind::Http, &InvocationFailure::TimedOut);
        assert_eq!(timed_out.status, 502);
        assert_eq!(
            timed_out.body,
            r#"{"errorMessage":"Function timed out after 3 seconds (maxMemoryUsage: 49.82MB)"}"#
        );
        let exited = answer(InvocationKind::Event, &InvocationFailure::ProcessExited(None));
        assert_eq!(exited.status, 200);
        assert_eq!(exited.headers["x-fc-error-type"], "UnhandledInvocationError");
        assert_eq!(
            exited.body,
            r#"{"errorMessage":"Process exited unexpectedly before completing request (duration: 9ms, maxMemoryUsage: 49.82MB)"}"#
        );
        let large = answer(InvocationKind::Event, &InvocationFailure::RequestTooLarge("too large".into()));
        assert_eq!(
            (large.status.as_u16(), &large.body[..]),
            (400, br#"{"RequestId":"the-request","Code":"EntityTooLarge","Message":"too large"}"#.as_slice())
        );
    }
}
