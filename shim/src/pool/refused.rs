//! Calls that get no instance: what their callers are told, and what is logged of them.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, Request};

use super::Refusal;
use crate::platform::{InvocationContext, InvocationKind, InvocationReport, PlatformAnswer};
use crate::proxy::body::Body;
use crate::proxy::{Later, over_http};
use crate::{Error, EventOutcome, FunctionConfig, InvokeOptions};

/// Of an error's text in a line, in characters: it may go on with what the container wrote, which has lines already.
const MAX_ERROR: usize = 512;

/// What is logged of a call.
#[derive(Default)]
pub(super) struct Asked {
    /// What it has been told already.
    request_id: Option<String>,
    method: Option<Method>,
    path: String,
    client: Option<SocketAddr>,
    retries: u32,
    asynchronous: bool,
}

impl Asked {
    pub(super) fn over_http(client: Option<SocketAddr>, request: &Request<Body>) -> Self {
        let later = request.extensions().get::<Later>();
        Self {
            request_id: later.map(|later| later.request_id.clone()),
            method: Some(request.method().clone()),
            path: request.uri().path().to_owned(),
            client,
            retries: later.map_or(0, |later| later.retries),
            asynchronous: later.is_some(),
        }
    }
}

/// What the platform tells a caller that got no instance, and logs of it.
fn refuse(
    config: &FunctionConfig,
    refusal: &Refusal,
    asked: &Asked,
    request_id: &str,
    kind: InvocationKind,
) -> PlatformAnswer {
    let throttled = || config.platform.throttled(config, request_id, kind);
    let error = match refusal {
        Refusal::Start(error) => error,
        Refusal::Throttled => return throttled(),
        Refusal::SessionOver(id) => return config.platform.session_over(id, request_id, kind),
    };
    let answer = error.answer_to(request_id, kind).unwrap_or_else(throttled);
    log(config, error, asked, request_id, kind, &answer);
    answer
}

/// The same for the client of an HTTP request.
pub(super) fn refuse_http(config: &FunctionConfig, refusal: &Refusal, mut asked: Asked) -> PlatformAnswer {
    let request_id = asked.request_id.take().unwrap_or_else(|| config.platform.new_request_id());
    over_http(config, |kind| refuse(config, refusal, &asked, &request_id, kind))
}

/// The same as the outcome of an event call.
pub(super) fn refuse_event(
    config: &FunctionConfig,
    refusal: &Refusal,
    options: &InvokeOptions,
    waited: Duration,
) -> EventOutcome {
    let request_id = options.request_id.clone().unwrap_or_else(|| config.platform.new_request_id());
    let asked = Asked {
        path: config.platform.event_path().to_owned(),
        retries: options.retries,
        asynchronous: options.asynchronous,
        ..Asked::default()
    };
    let answer = refuse(config, refusal, &asked, &request_id, InvocationKind::Event);
    EventOutcome::refused(request_id, answer, waited)
}

/// Writes the platform's lines and record about a call whose instance did not come up, as about one that failed
/// otherwise: its documentation names no others. Nothing is billed. A call that is not let in has none.
fn log(
    config: &FunctionConfig,
    error: &Error,
    asked: &Asked,
    request_id: &str,
    kind: InvocationKind,
    answer: &PlatformAnswer,
) {
    let Some(logs) = error.logs() else { return };
    let context = InvocationContext {
        config,
        instance_id: logs.instance_id(),
        request_id,
        kind,
        path: &asked.path,
        client: asked.client,
        origin: None,
        retries: asked.retries,
        asynchronous: asked.asynchronous,
        code_checksum: "",
        trigger: None,
        credentials: None,
    };
    let error: String = answer.message.lines().next().unwrap_or_default().chars().take(MAX_ERROR).collect();
    let report = InvocationReport {
        error: Some(&error),
        failure: Some(answer),
        method: asked.method.as_ref(),
        status: Some(answer.status),
        ..InvocationReport::default()
    };
    let mut lines = config.platform.log_start(&context, &report);
    lines.extend(config.platform.log_end(&context, &report));
    logs.platform(Some(request_id), lines);
    if let Some(record) = config.platform.request_record(&context, &report) {
        logs.request(request_id, record);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::platform::scf;
    use crate::platform::{StartCause, StartFailure};
    use crate::{ErrorKind, HttpEvent};

    #[test]
    fn who_gets_no_instance_is_told_in_the_form_of_its_way() {
        let mut config = FunctionConfig::new("resize", scf());
        let mut told = |form| {
            config.http_event = form;
            let answer = refuse_http(&config, &Refusal::Throttled, Asked::default());
            let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
            (answer.status.as_u16(), body["statusCode"].clone(), body["errorCode"].clone())
        };
        let none = serde_json::Value::Null;
        for form in [None, Some(HttpEvent::Url)] {
            assert_eq!(told(form), (432, 432.into(), none.clone()), "{form:?}");
        }
        assert_eq!(told(Some(HttpEvent::Gateway)), (200, 432.into(), (-1).into()));
    }

    #[test]
    fn all_who_waited_for_a_start_that_failed_have_their_own_request() {
        for platform in [scf(), crate::platform::fc()] {
            let config = FunctionConfig::new("resize", platform);
            let failure = StartFailure::of(&config, "of-the-start".to_owned(), StartCause::TimedOut);
            let error = Error::new(ErrorKind::StartFailed, "late").with_start(platform, failure);
            let refusal = Refusal::Start(Arc::new(error));
            let header = format!("x-{}-request-id", platform.name());
            for own in ["one", "another"] {
                let asked = Asked { request_id: Some(own.to_owned()), ..Asked::default() };
                let answer = refuse_http(&config, &refusal, asked);
                assert_eq!(answer.headers[&header], own);
                let options = InvokeOptions { request_id: Some(own.to_owned()), ..InvokeOptions::default() };
                let outcome = refuse_event(&config, &refusal, &options, Duration::ZERO);
                let text = String::from_utf8_lossy(&outcome.body).into_owned();
                assert_eq!(
                    (outcome.request_id.as_str(), &outcome.headers[&header]),
                    (own, &own.parse().expect("a value"))
                );
                assert!(text.contains(own) && !text.contains("of-the-start"), "{text}");
            }
        }
    }
}
