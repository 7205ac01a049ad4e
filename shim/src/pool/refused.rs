//! Calls that get no instance: what their callers are told, and what is logged of them.

use std::sync::Arc;
use std::time::Duration;

use super::Refusal;
use crate::instance::{LogSink, Logs};
use crate::platform::{InvocationContext, InvocationKind, InvocationReport, PlatformAnswer};
use crate::proxy::{Later, over_http};
use crate::{EventOutcome, FunctionConfig, InvokeOptions};

/// What the platform tells a caller that got no instance.
fn refuse(
    config: &FunctionConfig,
    refusal: &Refusal,
    request_id: &str,
    kind: InvocationKind,
) -> PlatformAnswer {
    let throttled = || config.platform.throttled(config, request_id, kind);
    match refusal {
        Refusal::Start(error) => error.answer_to(request_id, kind).unwrap_or_else(throttled),
        Refusal::Throttled => throttled(),
        Refusal::SessionOver(id) => config.platform.session_over(id, request_id, kind),
    }
}

/// The same for the client of an HTTP request, and logs it.
pub(super) fn refuse_http(
    config: &FunctionConfig,
    sink: Option<Arc<dyn LogSink>>,
    refusal: &Refusal,
    later: Option<&Later>,
    waited: Duration,
) -> PlatformAnswer {
    let request_id = match later {
        Some(later) => later.request_id.clone(),
        None => config.platform.new_request_id(),
    };
    let tried = (later.map_or(0, |later| later.retries), later.is_some());
    over_http(config, |kind| {
        let answer = refuse(config, refusal, &request_id, kind);
        log(config, sink, refusal, &answer, (&request_id, kind), tried, waited);
        answer
    })
}

/// The same as the outcome of an event call, and logs it.
pub(super) fn refuse_event(
    config: &FunctionConfig,
    sink: Option<Arc<dyn LogSink>>,
    refusal: &Refusal,
    options: &InvokeOptions,
    waited: Duration,
) -> EventOutcome {
    let request_id = options.request_id.clone().unwrap_or_else(|| config.platform.new_request_id());
    let answer = refuse(config, refusal, &request_id, InvocationKind::Event);
    let tried = (options.retries, options.asynchronous);
    log(config, sink, refusal, &answer, (&request_id, InvocationKind::Event), tried, waited);
    EventOutcome::refused(request_id, answer, waited)
}

/// Writes the platform's lines and record about a call whose instance did not come up, as about one that failed
/// otherwise: its documentation names no others. A call that is not let in has none.
fn log(
    config: &FunctionConfig,
    sink: Option<Arc<dyn LogSink>>,
    refusal: &Refusal,
    answer: &PlatformAnswer,
    (request_id, kind): (&str, InvocationKind),
    (retries, asynchronous): (u32, bool),
    waited: Duration,
) {
    let (Refusal::Start(error), Some(sink)) = (refusal, sink) else { return };
    let instance_id = error.failed_instance();
    let logs = Logs::new(instance_id.into(), config.platform.limits().log_line_bytes, sink);
    let context = InvocationContext {
        config,
        instance_id,
        request_id,
        kind,
        path: "",
        client: None,
        origin: None,
        retries,
        asynchronous,
        code_checksum: "",
        trigger: None,
        credentials: None,
    };
    // It quotes what the container wrote, which must not be able to forge log lines.
    let error = answer.message.replace('\n', "\\n").replace('\r', "\\r");
    let report = InvocationReport {
        duration: waited,
        error: Some(&error),
        failure: Some(answer),
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
    use super::*;
    use crate::platform::scf;
    use crate::platform::{StartCause, StartFailure};
    use crate::{Error, ErrorKind, HttpEvent};

    #[test]
    fn who_gets_no_instance_is_told_in_the_form_of_its_way() {
        let mut config = FunctionConfig::new("resize", scf());
        let mut told = |form| {
            config.http_event = form;
            let answer = refuse_http(&config, None, &Refusal::Throttled, None, Duration::ZERO);
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
                let later = Later { request_id: own.to_owned(), retries: 0 };
                let answer = refuse_http(&config, None, &refusal, Some(&later), Duration::ZERO);
                assert_eq!(answer.headers[&header], own);
                let options = InvokeOptions { request_id: Some(own.to_owned()), ..InvokeOptions::default() };
                let outcome = refuse_event(&config, None, &refusal, &options, Duration::ZERO);
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
