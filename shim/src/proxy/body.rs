//! Bodies: passed on as they come.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use crate::Platform;
use crate::platform::remove_prefixed;

/// What can go wrong while a body is passed on.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Any body of a request or an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// What arrives at a listener.
pub(crate) fn arriving(request: Request<Incoming>) -> Request<Body> {
    request.map(|body| body.map_err(BodyError::from).boxed_unsync())
}

/// No body.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is known already.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A body, with something that is let go with it.
pub(crate) struct Keeping<T> {
    body: Body,
    _kept: T,
}

impl<T> Keeping<T> {
    pub(crate) fn new(body: Body, kept: T) -> Self {
        Self { body, _kept: kept }
    }
}

impl<T: Unpin> HttpBody for Keeping<T> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a client's request as it comes, without the trailers that clients may not send; it breaks
/// off after the platform's limit. Why it broke off is noted in `broken`.
pub(crate) fn of_client(body: Body, platform: &'static dyn Platform, broken: Arc<OnceLock<Broken>>) -> Body {
    let left = platform.limits().http_body_bytes;
    ClientBody { body, platform, left, broken }.boxed_unsync()
}

/// Why a client's body has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It went away, or what it sends is no body.
    Client,
    /// Its body is larger than its platform takes, in bytes.
    TooLarge(usize),
}

/// The client's body is larger than its platform takes, in bytes.
#[derive(Debug)]
pub(crate) struct TooLarge(pub(crate) usize);

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the client's body is larger than {} bytes", self.0)
    }
}

impl std::error::Error for TooLarge {}

/// The client broke its own request: it went away, or what it sends is no body.
#[derive(Debug)]
pub(crate) struct ClientBroke(BodyError);

impl std::fmt::Display for ClientBroke {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the client's body broke off")
    }
}

impl std::error::Error for ClientBroke {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

struct ClientBody {
    body: Body,
    platform: &'static dyn Platform,
    /// Bytes that may still come.
    left: usize,
    broken: Arc<OnceLock<Broken>>,
}

impl ClientBody {
    fn count(&mut self, frame: &Frame<Bytes>) -> Result<(), TooLarge> {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match self.left.checked_sub(length) {
            Some(left) => self.left = left,
            None => {
                let limit = self.platform.limits().http_body_bytes;
                let _ = self.broken.set(Broken::TooLarge(limit));
                return Err(TooLarge(limit));
            }
        }
        Ok(())
    }
}

impl HttpBody for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        polled.map(|frame| {
            let frame = frame?.map_err(|error| {
                let _ = self.broken.set(Broken::Client);
                BodyError::from(ClientBroke(error))
            });
            let frame = frame.and_then(|frame| self.count(&frame).map(|()| frame).map_err(BodyError::from));
            // Servers may take a trailer for a header: the platform's own are no client's to send.
            Some(frame.map(|mut frame| {
                if let Some(trailers) = frame.trailers_mut() {
                    remove_prefixed(trailers, self.platform.reserved_header_prefix());
                }
                frame
            }))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
