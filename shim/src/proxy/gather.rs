//! Answers that are read to their end before their head goes out: what is known at the end is in it then,
//! and a server that breaks off or is late is told as the platform tells it.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout_at;

use crate::instance::invocation::Invocation;
use crate::platform::InvocationFailure;

/// Bytes of an answer that is read first. Only one that says its length can be: others stream.
const AT_ONCE: usize = 64 * 1024;

/// An answer's body.
pub(super) enum Gathered {
    Whole(Bytes),
    Streams(Incoming),
}

/// Reads a body that is small enough. A caller who asks for the log of the invocation waits for a larger one
/// too, as the caller of an event does.
pub(super) async fn gather(invocation: &Invocation, body: Incoming) -> Result<Gathered, InvocationFailure> {
    let limit = match invocation.wants_log() {
        true => invocation.shared.config.platform.limits().answer_bytes,
        false => AT_ONCE,
    };
    if body.size_hint().exact().is_none_or(|length| length > limit as u64) {
        return Ok(Gathered::Streams(body));
    }
    match timeout_at(invocation.deadline(), body.collect()).await {
        Ok(Ok(whole)) => Ok(Gathered::Whole(whole.to_bytes())),
        Ok(Err(error)) => Err(invocation.shared.explain(error.into()).await),
        Err(_) => Err(InvocationFailure::TimedOut),
    }
}
