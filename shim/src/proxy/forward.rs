//! One request through to the instance and its answer back: method, path, query, headers and bodies
//! as they are, but for what belongs to the connections and to the platform.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use http::header::{HOST, ORIGIN};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::timeout_at;

use super::answer::Answer;
use super::body::{self, Body, Broken};
use super::gather::{Gathered, gather};
use super::{as_event, headers, http2, tunnel};
use crate::FunctionConfig;
use crate::instance::invocation::{Arrival, Held, Invocation, Waited};
use crate::instance::shared::Shared;
use crate::platform::{InvocationFailure, InvocationKind, Limits, PlatformAnswer};

/// In a request that was taken for later: what its caller has been told, and how often it was tried before.
#[derive(Clone, Debug)]
pub(crate) struct Later {
    pub(crate) request_id: String,
    pub(crate) retries: u32,
}

/// In an answer: what it means, for who does more than pass it on.
#[derive(Clone, Debug)]
pub(crate) enum Meaning {
    /// The function answered and reported an error; the text.
    Reported(String),
    /// It is the platform's own; the text.
    Platform(String),
}

/// Both ends of an upgrade that a client asks for.
struct Upgrade {
    protocol: HeaderValue,
    client: OnUpgrade,
}

/// Passes a request on; `held` is let go at its end. Every failure is an answer.
pub(crate) async fn forward(
    shared: Arc<Shared>,
    client: Option<SocketAddr>,
    request: Request<Body>,
    held: Option<Held>,
) -> Response<Body> {
    if let Some((status, why)) = headers::refusal(&request) {
        return refused(status, why);
    }
    if let Some(form) = shared.config.http_event {
        return as_event::forward(shared, client, request, held, form).await;
    }
    let later = request.extensions().get::<Later>().cloned();
    let arrival = Arrival {
        kind: InvocationKind::Http,
        path: request.uri().path().to_owned(),
        method: request.method().clone(),
        client,
        origin: request.headers().get(ORIGIN).cloned(),
        request_id: later.as_ref().map(|later| later.request_id.clone()),
        retries: later.as_ref().map_or(0, |later| later.retries),
        asynchronous: later.is_some(),
        log_tail: shared.config.platform.wants_log(request.headers()),
        held,
        trigger: None,
        waited: Waited::of(&request),
        caller: shared.caller(request.headers()),
    };
    let invocation = Invocation::begin(&shared, arrival).await;
    if let Some(failure) = over_a_limit(shared.config.platform.limits(), &request) {
        return failed(invocation, &failure).await;
    }
    let (grpc, broken) = (http2::is_grpc(&request), Arc::default());
    let (request, upgrade) = prepare(&invocation, request, &broken);
    let sending = async {
        match grpc {
            true => shared.pool.send_http2(request, &broken).await,
            false => shared.pool.send(request).await,
        }
    };
    let sent = match timeout_at(invocation.deadline(), sending).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(shared.explain(error).await),
        Err(_) => Err(InvocationFailure::TimedOut),
    };
    match sent {
        Ok(response) => finish(invocation, response, upgrade, grpc).await,
        Err(failure) => failed(invocation, &failure).await,
    }
}

/// A request that is larger than its platform takes, as far as its head tells.
pub(crate) fn over_a_limit<B: HttpBody>(limits: &Limits, request: &Request<B>) -> Option<InvocationFailure> {
    let limit = limits.request_header_bytes;
    if headers::size(request.headers()) > limit {
        let text = format!("request headers exceed maximum allowed size ({limit} bytes)");
        return Some(InvocationFailure::RequestTooLarge(text));
    }
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if let Some(limit) = limits.request_target_bytes.filter(|limit| target > *limit) {
        let text = format!("path and query exceed maximum allowed size ({limit} bytes)");
        return Some(InvocationFailure::RequestTooLarge(text));
    }
    let body = request.body().size_hint().lower();
    (body > limits.http_body_bytes as u64).then(|| InvocationFailure::body_too_large(limits.http_body_bytes))
}

/// An answer that is larger than its platform passes on, as far as its head tells.
fn answer_over_a_limit(limits: &Limits, response: &Response<Incoming>) -> Option<InvocationFailure> {
    let limit = limits.response_header_bytes;
    if headers::size(response.headers()) > limit {
        let text = format!("response headers exceed maximum allowed size ({limit} bytes)");
        return Some(InvocationFailure::BadResponse(text));
    }
    let length = response.body().size_hint().lower();
    let limit = limits.http_answer_bytes.filter(|limit| length > *limit as u64)?;
    Some(InvocationFailure::AnswerTooLarge(limit))
}

fn prepare(
    invocation: &Invocation,
    mut request: Request<Body>,
    broken: &Arc<OnceLock<Broken>>,
) -> (Request<Body>, Option<Upgrade>) {
    let upgrade = headers::upgrade(request.headers())
        .map(|protocol| Upgrade { protocol, client: hyper::upgrade::on(&mut request) });
    let (mut parts, body) = request.into_parts();
    headers::strip(&mut parts.headers);
    http2::join_cookies(&mut parts.headers);
    if let Some(upgrade) = &upgrade {
        headers::set_upgrade(&mut parts.headers, upgrade.protocol.clone());
    }
    let shared = &invocation.shared;
    // The host in the request line goes before the header (RFC 9112, section 3.2.2).
    let named =
        parts.uri.authority().map(|named| named.as_str().rsplit('@').next().unwrap_or_default().to_owned());
    if named.is_some() || !parts.headers.contains_key(HOST) {
        let host = named.unwrap_or_else(|| shared.guest.address(shared.config.port()).to_string());
        parts.headers.insert(HOST, HeaderValue::from_str(&host).unwrap_or(HeaderValue::from_static("")));
    }
    invocation.prepare(&mut parts.headers);
    // A client of a proxy names scheme and host in the request line; the container gets the rest.
    let target = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    parts.uri = Uri::from(target);
    parts.version = Version::HTTP_11;
    let body = body::of_client(body, shared.config.platform, Arc::clone(broken));
    (Request::from_parts(parts, body), upgrade)
}

async fn finish(
    mut invocation: Invocation,
    mut response: Response<Incoming>,
    upgrade: Option<Upgrade>,
    grpc: bool,
) -> Response<Body> {
    let platform = invocation.shared.config.platform;
    if let Some(failure) = answer_over_a_limit(platform.limits(), &response) {
        return failed(invocation, &failure).await;
    }
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let protocol = headers::upgrade(response.headers());
    let server = switched.then(|| hyper::upgrade::on(&mut response));
    let (mut parts, body) = response.into_parts();
    headers::strip(&mut parts.headers);
    let reported = platform.reported_error(&parts.headers);
    if let Some(error) = reported.clone() {
        parts.extensions.insert(Meaning::Reported(error));
    }
    invocation.answers(parts.status, reported);
    platform.finish_response(&invocation.context(), &mut parts.headers);
    parts.version = Version::HTTP_11;
    let Some(server) = server else {
        return match gather(&invocation, body).await {
            Ok(Gathered::Streams(body)) => {
                Response::from_parts(parts, Answer::new(body, invocation, grpc).boxed_unsync())
            }
            Ok(Gathered::Whole(whole)) => {
                invocation.succeed_over_http(&mut parts.headers).await;
                invocation.receipt().settled().await;
                Response::from_parts(parts, body::full(whole))
            }
            Err(failure) => failed(invocation.unanswered(), &failure).await,
        };
    };
    let (Some(upgrade), Some(protocol)) = (upgrade, protocol) else {
        let reason = "it switched protocols unasked".to_owned();
        return failed(invocation.unanswered(), &InvocationFailure::BadResponse(reason)).await;
    };
    headers::set_upgrade(&mut parts.headers, protocol.clone());
    tokio::spawn(async move { tunnel::run(invocation, upgrade.client, server, protocol.as_bytes()).await });
    Response::from_parts(parts, body::empty())
}

async fn failed(mut invocation: Invocation, failure: &InvocationFailure) -> Response<Body> {
    let answer = invocation.fail_over_http(failure);
    invocation.receipt().settled().await;
    of_platform(answer)
}

/// What the platform tells the client of an HTTP request, which may be one that would have become an event.
pub(crate) fn over_http(
    config: &FunctionConfig,
    answer: impl FnOnce(InvocationKind) -> PlatformAnswer,
) -> PlatformAnswer {
    match config.http_event {
        None => answer(InvocationKind::Http),
        Some(form) => config.platform.http_failure(form, answer(InvocationKind::Event)),
    }
}

/// The platform's own answer.
pub(crate) fn of_platform(answer: PlatformAnswer) -> Response<Body> {
    let mut response = Response::new(body::full(answer.body));
    response.extensions_mut().insert(Meaning::Platform(answer.message));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

fn refused(status: StatusCode, why: &'static str) -> Response<Body> {
    let mut response = Response::new(body::full(why.into()));
    *response.status_mut() = status;
    response
}
