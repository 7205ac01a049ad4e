//! HTTP/2 without TLS, by prior knowledge: what clients of gRPC speak.
//!
//! A call of gRPC goes on to the container's server over HTTP/2, many at once on one connection. Any other
//! request goes on as HTTP/1.1, as the clouds' gateways do it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{CONTENT_TYPE, COOKIE, HOST};
use http::uri::{Authority, Parts as UriParts, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::server::conn::http2 as server;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::body::{Body, Broken};
use super::pool::SendError;
use crate::instance::guest::Guest;

/// Requests at once on one connection; both platforms send at most 200 to an instance.
const MAX_STREAMS: u32 = 200;

/// Bytes that may come of one request or answer before somebody has taken those before.
const STREAM_WINDOW: u32 = 64 * 1024;

/// The same of a whole connection: requests that stand still do not stop the others.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;

/// Bytes of the names and values of headers or trailers; the platforms' own limits are lower.
const MAX_HEADER_BYTES: u32 = 128 * 1024;

/// How long the server may take to begin with HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The server's side, for clients.
pub(super) fn server() -> server::Builder<TokioExecutor> {
    let mut builder = server::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .max_header_list_size(MAX_HEADER_BYTES);
    builder
}

/// Whether a request is a call of gRPC, which no server of HTTP/1.1 understands.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let grpc = kind.strip_prefix(b"application/grpc").and_then(|rest| rest.first().copied().or(Some(b';')));
    request.version() == Version::HTTP_2 && grpc.is_some_and(|next| b";+ ".contains(&next))
}

/// HTTP/2 may send a cookie in pieces, which HTTP/1.1 may not (RFC 9113, section 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let pieces: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(COOKIE, whole);
    }
}

/// A request that is ready for HTTP/1.1, for HTTP/2: its host is a part of its address.
pub(super) fn upgraded(request: Request<Body>) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    let host = parts.headers.remove(HOST);
    let named = host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut uri = UriParts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(named.unwrap_or(Authority::from_static("localhost")));
    uri.path_and_query = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from_parts(uri).unwrap_or(parts.uri);
    parts.version = Version::HTTP_2;
    Request::from_parts(parts, body)
}

/// The connection to one instance's server, made when it is needed first.
#[derive(Default)]
pub(super) struct Shared(Mutex<Option<SendRequest<Body>>>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    /// Sends a request and returns the answer when its headers have come. A request of which the server may
    /// have seen something is not sent again. `broken` tells what became of the request's body.
    pub(super) async fn send(
        &self,
        guest: &Arc<dyn Guest>,
        port: u16,
        request: Request<Body>,
        broken: &OnceLock<Broken>,
    ) -> Result<Response<Incoming>, SendError> {
        let (mut sender, kept) = self.sender(guest, port).await?;
        let mut error = match sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let Some(unsent) = error.take_message().filter(|_| kept) else {
            return Err(explained(error.into_error(), broken));
        };
        // The connection was at its end.
        *self.0.lock().await = None;
        let (mut sender, _) = self.sender(guest, port).await?;
        sender.send_request(unsent).await.map_err(|error| explained(error, broken))
    }

    /// The connection, and whether it had been there before.
    async fn sender(
        &self,
        guest: &Arc<dyn Guest>,
        port: u16,
    ) -> Result<(SendRequest<Body>, bool), SendError> {
        let mut kept = self.0.lock().await;
        if let Some(sender) = kept.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((sender.clone(), true));
        }
        let stream = super::pool::connect(guest, port).await?;
        let begun = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream)).await;
        let sender = begun.map_err(|late| SendError::Connect(late.into()))??;
        *kept = Some(sender.clone());
        Ok((sender, false))
    }
}

async fn handshake(stream: TcpStream) -> hyper::Result<SendRequest<Body>> {
    let _ = stream.set_nodelay(true);
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .max_header_list_size(MAX_HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    // Its errors reach the requests that are on it; it ends when the senders are dropped.
    tokio::spawn(connection);
    Ok(sender)
}

/// A request that its client broke off is reset, and the error says no more than that.
fn explained(error: hyper::Error, broken: &OnceLock<Broken>) -> SendError {
    match broken.get() {
        Some(Broken::Client) => SendError::Client,
        Some(Broken::TooLarge(limit)) => SendError::TooLarge(*limit),
        None => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::body;

    #[test]
    fn grpc_is_told_by_its_content_type_and_version() {
        let is = |version, kind: &'static str| {
            let mut request = Request::new(());
            *request.version_mut() = version;
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            is_grpc(&request)
        };
        for kind in
            ["application/grpc", "application/grpc+proto", "application/grpc;x=y", "application/grpc "]
        {
            assert!(is(Version::HTTP_2, kind) && !is(Version::HTTP_11, kind), "{kind}");
        }
        for kind in ["application/grpc-web", "application/json", ""] {
            assert!(!is(Version::HTTP_2, kind), "{kind}");
        }
    }

    #[test]
    fn a_cookie_in_pieces_becomes_one() {
        let mut headers = HeaderMap::new();
        join_cookies(&mut headers);
        assert!(headers.is_empty());
        for piece in ["a=1", "b=2; c=3"] {
            headers.append(COOKIE, HeaderValue::from_static(piece));
        }
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }

    #[test]
    fn the_host_becomes_a_part_of_the_address() {
        let uri = |host: Option<&'static str>| {
            let mut request = Request::new(body::empty());
            *request.uri_mut() = Uri::from_static("/pkg.Service/Method");
            request.headers_mut().extend(host.map(|host| (HOST, HeaderValue::from_static(host))));
            let request = upgraded(request);
            assert!(request.headers().is_empty() && request.version() == Version::HTTP_2);
            request.uri().to_string()
        };
        assert_eq!(uri(Some("f.example:81")), "http://f.example:81/pkg.Service/Method");
        assert_eq!(uri(Some("")), "http://localhost/pkg.Service/Method");
        assert_eq!(uri(None), "http://localhost/pkg.Service/Method");
    }
}
