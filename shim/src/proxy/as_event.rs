//! Requests for a function that takes events: each becomes one, and the answer to that the client's.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::time::timeout_at;

use super::body::{self, Body, BodyError, ClientBroke, TooLarge};
use super::forward::{of_platform, over_a_limit};
use super::headers;
use crate::instance::event;
use crate::instance::invocation::{Arrival, Held, Invocation, Waited};
use crate::instance::shared::Shared;
use crate::platform::{HttpCall, HttpEvent, InvocationFailure, remove_prefixed};

/// Invokes the function with the event that a request becomes. Every failure is an answer.
pub(super) async fn forward(
    shared: Arc<Shared>,
    client: Option<SocketAddr>,
    request: Request<Body>,
    held: Option<Held>,
    form: HttpEvent,
) -> Response<Body> {
    let platform = shared.config.platform;
    let waited = Waited::of(&request);
    let caller = shared.caller(request.headers());
    let arrival = Arrival { client, held, waited, caller, ..Arrival::event(platform.event_path()) };
    let mut invocation = Invocation::begin(&shared, arrival).await;
    // A body that comes slowly takes of the function's time, as one that is passed through does.
    let exchange = timeout_at(invocation.deadline(), exchange(&invocation, form, request)).await;
    let response = match exchange.unwrap_or(Err(InvocationFailure::TimedOut)) {
        Ok((response, answer)) => {
            invocation.answers(response.status(), None);
            invocation.succeed(Some(&answer), None);
            response.map(body::full)
        }
        Err(failure) => of_platform(platform.http_failure(form, invocation.fail(&failure))),
    };
    invocation.receipt().settled().await;
    response
}

/// The client's answer, and the function's own.
async fn exchange(
    invocation: &Invocation,
    form: HttpEvent,
    request: Request<Body>,
) -> Result<(Response<Bytes>, Bytes), InvocationFailure> {
    let platform = invocation.shared.config.platform;
    let limits = platform.limits();
    if let Some(failure) = over_a_limit(limits, &request) {
        return Err(failure);
    }
    let (mut parts, body) = request.into_parts();
    let body = body::of_client(body, platform, Arc::default())
        .collect()
        .await
        .map_err(|error| unread(&error))?
        .to_bytes();
    remove_prefixed(&mut parts.headers, platform.reserved_header_prefix());
    let call = HttpCall {
        method: &parts.method,
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
        body: &body,
    };
    let event = platform.http_event(form, &invocation.context(), &call);
    let (status, of_answer, answer) = event::exchange(invocation, event).await?;
    if let Some(error) = platform.event_verdict(&invocation.context(), status, &of_answer).error {
        return Err(InvocationFailure::BadResponse(error));
    }
    let mut response = platform.http_answer(form, &answer).map_err(InvocationFailure::InvalidAnswer)?;
    let (bytes, limit) = (headers::size(response.headers()), limits.response_header_bytes);
    if bytes > limit {
        let text = format!("response headers exceed maximum allowed size ({limit} bytes)");
        return Err(InvocationFailure::BadResponse(text));
    }
    headers::strip(response.headers_mut());
    platform.finish_response(&invocation.context(), response.headers_mut());
    Ok((response, answer))
}

fn unread(error: &BodyError) -> InvocationFailure {
    if let Some(TooLarge(limit)) = error.downcast_ref() {
        return InvocationFailure::body_too_large(*limit);
    }
    debug_assert!(error.is::<ClientBroke>(), "{error}");
    InvocationFailure::Canceled
}
