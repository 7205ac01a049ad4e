//! The platform's event call.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use skiff_runtime::breakpoint;
use tokio::time::timeout_at;

use super::invocation::{Arrival, Invocation};
use super::shared::Shared;
use super::{EventOutcome, EventResult, InvokeOptions, ending};
use crate::meter::Receipt;
use crate::platform::{InvocationFailure, InvocationReport};
use crate::proxy::body;

/// Invokes the instance; every failure is an outcome. Its caller waits for the receipt.
pub(super) async fn invoke(
    shared: &Arc<Shared>,
    event: Bytes,
    options: InvokeOptions,
) -> (EventOutcome, Receipt) {
    let platform = shared.config.platform;
    let arrival = Arrival {
        request_id: options.request_id,
        retries: options.retries,
        asynchronous: options.asynchronous,
        trigger: options.trigger,
        log_tail: options.log_tail,
        waited: options.waited,
        caller: options.caller,
        ..Arrival::event(platform.event_path())
    };
    let mut invocation = Invocation::begin(shared, arrival).await;
    breakpoint::reach("daemon-invokes");
    let exchange = tokio::select! {
        done = timeout_at(invocation.deadline(), exchange(&invocation, event)) => {
            done.unwrap_or(Err(InvocationFailure::TimedOut))
        }
        ended = ending::asked(shared, options.ending.as_ref()) => Err(ended),
    };
    breakpoint::reach("daemon-answered");
    invocation.is_over();
    if invocation.wants_log() {
        shared.logs.settle().await;
    }
    let mut outcome = match exchange {
        Ok((status, headers, answer)) => answered(&mut invocation, status, &headers, answer),
        Err(failure) => failed(&mut invocation, &failure),
    };
    let (log, spent) = (invocation.log(), invocation.spent());
    let report = InvocationReport {
        duration: spent.duration,
        memory_peak_bytes: spent.memory_peak_bytes,
        log_tail: log.as_deref(),
        ..InvocationReport::default()
    };
    platform.finish_event(&invocation.context(), &report, &mut outcome.headers);
    (outcome.duration, outcome.memory_peak_bytes) = (spent.duration, spent.memory_peak_bytes);
    outcome.log = log.map(Bytes::from);
    (outcome, invocation.receipt())
}

/// Posts the event and reads the answer.
pub(crate) async fn exchange(
    invocation: &Invocation,
    event: Bytes,
) -> Result<(StatusCode, HeaderMap, Bytes), InvocationFailure> {
    let shared = &invocation.shared;
    let limits = shared.config.platform.limits();
    if event.len() > limits.event_bytes {
        return Err(InvocationFailure::body_too_large(limits.event_bytes));
    }
    if shared.config.platform.events_are_json() && !is_json(&event) {
        return Err(InvocationFailure::InvalidEvent("the event is not JSON".to_owned()));
    }
    let response = match shared.pool.send(request(invocation, event)).await {
        Ok(response) => response,
        Err(error) => return Err(shared.explain(error).await),
    };
    read(shared, response, limits.answer_bytes).await
}

fn is_json(event: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(event).is_ok()
}

fn request(invocation: &Invocation, event: Bytes) -> Request<body::Body> {
    let shared = &invocation.shared;
    let platform = shared.config.platform;
    let length = event.len();
    let mut request = Request::new(body::full(event));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(platform.event_path());
    let headers = request.headers_mut();
    let address = shared.guest.address(shared.config.port()).to_string();
    headers.insert(HOST, HeaderValue::from_str(&address).unwrap_or(HeaderValue::from_static("localhost")));
    // Said for an empty event too: both platforms send it, and many servers rely on it.
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    platform.event_headers(headers);
    invocation.prepare(headers);
    request
}

async fn read(
    shared: &Shared,
    response: Response<Incoming>,
    limit: usize,
) -> Result<(StatusCode, HeaderMap, Bytes), InvocationFailure> {
    let (parts, body) = response.into_parts();
    match Limited::new(body, limit).collect().await {
        Ok(answer) => Ok((parts.status, parts.headers, answer.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(InvocationFailure::AnswerTooLarge(limit)),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(shared.explain((*error).into()).await),
            Err(error) => Err(InvocationFailure::BadResponse(error.to_string())),
        },
    }
}

/// What it took is added when it has ended.
fn answered(
    invocation: &mut Invocation,
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
) -> EventOutcome {
    let platform = invocation.shared.config.platform;
    let verdict = platform.event_verdict(&invocation.context(), status, headers);
    invocation.succeed(Some(&body), verdict.error.as_deref());
    EventOutcome {
        request_id: invocation.context().request_id.to_owned(),
        result: verdict.error.map_or(EventResult::Success, EventResult::FunctionError),
        status: verdict.status,
        headers: verdict.headers,
        body,
        duration: Duration::ZERO,
        memory_peak_bytes: 0,
        log: None,
    }
}

fn failed(invocation: &mut Invocation, failure: &InvocationFailure) -> EventOutcome {
    let answer = invocation.fail(failure);
    let outcome = EventOutcome::refused(invocation.context().request_id.to_owned(), answer, Duration::ZERO);
    match outcome.result {
        EventResult::PlatformError(text) if failure.is_of_function() => {
            EventOutcome { result: EventResult::FunctionError(text), ..outcome }
        }
        result => EventOutcome { result, ..outcome },
    }
}
