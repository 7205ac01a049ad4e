//! Kept connections to one instance's server.
//!
//! A request goes out on a kept connection that is still open, else on a fresh one. What is never
//! sent again: a request of which the server may have seen a byte, unless its method is safe and it
//! has no body. A connection is used again when its answer has been read to the end.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, Uri, Version};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::body::{self, Body, Broken, ClientBroke, TooLarge};
use super::http2;
use crate::instance::guest::Guest;

/// Kept connections at most; both platforms send at most 200 requests at once to an instance.
const MAX_KEPT: usize = 200;

/// How long a connection to a server of this host may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Header fields of an answer at most.
const MAX_HEADERS: usize = 256;

/// The connections of one instance.
#[derive(Debug)]
pub(crate) struct Pool {
    guest: Arc<dyn Guest>,
    port: u16,
    /// Those that are free, and those whose answer is still being read: nobody need wait for its end.
    kept: Mutex<Vec<SendRequest<Body>>>,
    shared: http2::Shared,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// No connection could be made.
    Connect(std::io::Error),
    /// The connection broke; the server may have seen the request.
    Broken(hyper::Error),
    /// The server's answer is not HTTP as it should be.
    Invalid(hyper::Error),
    /// The client broke its own request off.
    Client,
    /// The client's body is over the limit, in bytes.
    TooLarge(usize),
}

impl SendError {
    /// In words.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Connect(error) => error.to_string(),
            Self::Broken(error) | Self::Invalid(error) => error.to_string(),
            Self::Client => "the client broke off".to_owned(),
            Self::TooLarge(limit) => format!("the body is larger than {limit} bytes"),
        }
    }
}

impl Pool {
    pub(crate) fn new(guest: Arc<dyn Guest>, port: u16) -> Arc<Self> {
        Arc::new(Self { guest, port, kept: Mutex::default(), shared: http2::Shared::default() })
    }

    /// Makes a connection of a stream and keeps it.
    pub(crate) async fn keep(&self, stream: TcpStream) {
        if let Ok(sender) = handshake(stream).await {
            self.put(sender);
        }
    }

    /// Sends a request and returns the answer when its headers have come.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let again = Replay::of(&request);
        while let Some(mut sender) = self.pop() {
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.put(sender);
                    return Ok(response);
                }
                Err(mut error) => match (error.take_message(), &again) {
                    (Some(unsent), _) => request = unsent,
                    (None, Some(again)) if is_broken(error.error()) => request = again.request(),
                    (None, _) => return Err(error.into_error().into()),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await?;
        self.put(sender);
        Ok(response)
    }

    /// As [`Pool::send`], over HTTP/2. `broken` tells what became of the request's body.
    pub(crate) async fn send_http2(
        &self,
        request: Request<Body>,
        broken: &OnceLock<Broken>,
    ) -> Result<Response<Incoming>, SendError> {
        self.shared.send(&self.guest, self.port, http2::upgraded(request), broken).await
    }

    async fn connect(&self) -> Result<SendRequest<Body>, SendError> {
        Ok(handshake(connect(&self.guest, self.port).await?).await?)
    }

    /// The connection used last that is still open and free: the others may age and go.
    fn pop(&self) -> Option<SendRequest<Body>> {
        let mut kept = self.kept();
        kept.retain(|sender| !sender.is_closed());
        let free = kept.iter().rposition(SendRequest::is_ready)?;
        Some(kept.remove(free))
    }

    /// Keeps a connection; its answer may still be on its way.
    fn put(&self, sender: SendRequest<Body>) {
        let mut kept = self.kept();
        if kept.len() >= MAX_KEPT {
            kept.retain(|sender| !sender.is_closed());
        }
        if kept.len() < MAX_KEPT {
            kept.push(sender);
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<SendRequest<Body>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new connection to the server.
pub(super) async fn connect(guest: &Arc<dyn Guest>, port: u16) -> Result<TcpStream, SendError> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, guest.connect(port));
    connecting.await.unwrap_or_else(|late| Err(late.into())).map_err(SendError::Connect)
}

async fn handshake(stream: TcpStream) -> hyper::Result<SendRequest<Body>> {
    // Small writes go out at once: a streamed chunk must not wait for the next.
    let _ = stream.set_nodelay(true);
    let (sender, connection) =
        http1::Builder::new().max_headers(MAX_HEADERS).handshake(TokioIo::new(stream)).await?;
    // Its errors reach the request that is on it; it ends when the sender is dropped.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

/// The connection ended or failed; the other kinds are about what was sent or answered.
fn is_broken(error: &hyper::Error) -> bool {
    !error.is_parse() && !error.is_user()
}

impl From<hyper::Error> for SendError {
    fn from(error: hyper::Error) -> Self {
        let cause = std::error::Error::source(&error);
        if let Some(TooLarge(limit)) = cause.and_then(|cause| cause.downcast_ref()) {
            return Self::TooLarge(*limit);
        }
        match error.is_parse() {
            _ if cause.is_some_and(|cause| cause.is::<ClientBroke>()) => Self::Client,
            true => Self::Invalid(error),
            false => Self::Broken(error),
        }
    }
}

/// A request that may be sent a second time: RFC 9110's safe methods, without a body (fc retries
/// exactly GET, HEAD, OPTIONS and TRACE).
struct Replay {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Replay {
    fn of(request: &Request<Body>) -> Option<Self> {
        let safe = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(request.method());
        (safe && request.body().is_end_stream()).then(|| Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        })
    }

    fn request(&self) -> Request<Body> {
        let mut request = Request::new(body::empty());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = self.headers.clone();
        request
    }
}
