//! HTTP requests to a function that may be for later: `X-Fc-Invocation-Type: Async`.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::EXPECT;
use http::{Request, Response};
use hyper::body::Incoming;

use super::{Fault, INVOCATION_TYPE, POLICY, Wishes, accepted};
use crate::api::queue::{Event, Queue};
use crate::api::work::{HttpRequest, Work};
use crate::api::{Function, Unread, pass_over, read, response};
use crate::platform::{FcApi, InvocationFailure, fc_error};
use crate::proxy::body::{self, Body};
use crate::proxy::{headers, over_a_limit};

/// Passes a request on, or takes it for later.
pub(in crate::api) async fn pass(
    queue: &Arc<Queue>,
    function: Arc<dyn Function>,
    client: Option<SocketAddr>,
    request: Request<Incoming>,
) -> Response<Body> {
    let platform = function.config().platform;
    let shape = match platform.name() {
        "fc" => FcApi::V3,
        "fc2" => FcApi::V2,
        _ => return function.forward(client, body::arriving(request)).await,
    };
    let kind =
        request.headers().get(INVOCATION_TYPE).map(|kind| kind.as_bytes().eq_ignore_ascii_case(b"async"));
    if kind != Some(true) || headers::refusal(&request).is_some() {
        return function.forward(client, body::arriving(request)).await;
    }
    let id = platform.new_request_id();
    match take(queue, function, client, request, &id).await {
        Ok(response) => response,
        Err(fault) => {
            let answer = fc_error(shape, fault.status, fault.code, fault.message, &id);
            response(answer.status, answer.headers, answer.body)
        }
    }
}

async fn take(
    queue: &Arc<Queue>,
    function: Arc<dyn Function>,
    client: Option<SocketAddr>,
    request: Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, Fault> {
    let limits = function.config().platform.limits();
    if let Some(InvocationFailure::RequestTooLarge(what)) = over_a_limit(limits, &request) {
        pass_over(Some(request.into_body())).await;
        return Err(Fault::argument(what));
    }
    let (mut parts, body) = request.into_parts();
    let wishes = Wishes::of(&parts.headers)?;
    let (mut body, limit) = (Some(body), limits.async_event_bytes);
    let whole = match read(&mut body, limit).await {
        Ok(whole) => whole,
        Err(why) => {
            pass_over(body).await;
            return Err(unread(why));
        }
    };
    let asked = parts.headers.clone();
    // What belongs to the connection, and to a client that waits.
    headers::strip(&mut parts.headers);
    parts.headers.remove(EXPECT);
    let kept = kept(&parts, whole);
    let work = Work::Request(Box::new(HttpRequest { request: kept, client }));
    let event = Event::of(function, &POLICY, work, id.to_owned(), wishes.delay);
    accepted(queue, event, &asked, id)
}

/// The request without what only the connection has a use for.
fn kept(parts: &http::request::Parts, body: Bytes) -> Request<Bytes> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.headers_mut() = parts.headers.clone();
    request
}

fn unread(why: Unread) -> Fault {
    match why {
        Unread::TooLarge(limit) => {
            Fault::argument(format!("payload size exceeds maximum allowed size ({limit} bytes)"))
        }
        Unread::Broken => Fault::argument("the body of the request broke off"),
    }
}
