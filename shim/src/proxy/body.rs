//! Bodies: passed on as they come.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;

/// What can go wrong while a body is passed on.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Any body of a request or an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// No body.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is known already.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A body that is still coming.
pub(crate) fn incoming(body: Incoming) -> Body {
    body.map_err(Into::into).boxed_unsync()
}
