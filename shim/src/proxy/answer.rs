//! An answer's body on its way to the caller, with the invocation that it belongs to: the time
//! limit holds until the last byte, and the invocation ends with the body. What the caller waits for to have
//! the whole answer goes out when the invocation's record is kept.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::BodyError;
use crate::instance::invocation::Invocation;
use crate::platform::InvocationFailure;

/// A streamed answer.
pub(super) struct Answer {
    body: Incoming,
    deadline: Pin<Box<Sleep>>,
    invocation: Option<Invocation>,
    /// It is one of gRPC.
    grpc: bool,
    last: Option<Last>,
}

type Part = Option<Result<Frame<Bytes>, BodyError>>;

/// The last of an answer, which waits for the invocation's record.
struct Last {
    kept: BoxFuture<'static, bool>,
    part: Part,
}

impl Answer {
    pub(super) fn new(body: Incoming, invocation: Invocation, grpc: bool) -> Self {
        let deadline = Box::pin(sleep_until(invocation.deadline()));
        Self { body, deadline, invocation: Some(invocation), grpc, last: None }
    }

    /// What the caller gets instead of the rest. A call of gRPC just ends, as in the cloud: without trailers
    /// that is a failure ("server closed the stream without sending trailers").
    fn fail(&mut self, failure: &InvocationFailure, cx: &mut Context<'_>) -> Poll<Part> {
        let Some(mut invocation) = self.invocation.take() else { return Poll::Ready(None) };
        let message = invocation.fail(failure).message;
        let part = (!self.grpc).then(|| Err(message.into()));
        self.hold(invocation, part, cx)
    }

    fn succeed(&mut self, part: Part, cx: &mut Context<'_>) -> Poll<Part> {
        let Some(mut invocation) = self.invocation.take() else { return Poll::Ready(part) };
        invocation.succeed(None, None);
        self.hold(invocation, part, cx)
    }

    fn hold(&mut self, invocation: Invocation, part: Part, cx: &mut Context<'_>) -> Poll<Part> {
        let receipt = invocation.receipt();
        if receipt.is_none() {
            return Poll::Ready(part);
        }
        self.last = Some(Last { kept: receipt.settled().boxed(), part });
        self.release(cx)
    }

    fn release(&mut self, cx: &mut Context<'_>) -> Poll<Part> {
        let Some(last) = &mut self.last else { return Poll::Ready(None) };
        ready!(last.kept.poll_unpin(cx));
        Poll::Ready(self.last.take().and_then(|last| last.part))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.last.is_some() {
            return self.release(cx);
        }
        // First: a server that always has more must not outrun its time limit.
        if self.deadline.as_mut().poll(cx).is_ready()
            && self.invocation.is_some()
            && !self.body.is_end_stream()
        {
            return self.fail(&InvocationFailure::TimedOut, cx);
        }
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            // The last of a known length is not followed by an end.
            Some(Ok(frame)) if self.body.is_end_stream() => self.succeed(Some(Ok(frame)), cx),
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => {
                let failure = InvocationFailure::ConnectionBroken(error.to_string());
                self.fail(&failure, cx)
            }
            None => self.succeed(None, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.last.as_ref().and_then(|last| last.part.as_ref()?.as_ref().ok()?.data_ref());
        match (held, self.body.size_hint().exact()) {
            (Some(held), Some(rest)) => SizeHint::with_exact(rest + held.len() as u64),
            _ => self.body.size_hint(),
        }
    }
}

impl Drop for Answer {
    /// A body of known length is not asked for its end: one that was read to it has succeeded, and
    /// dropping the invocation says that any other was cancelled. One whose client did not read it
    /// until the time was up has timed out.
    fn drop(&mut self) {
        let Some(mut invocation) = self.invocation.take() else { return };
        if self.body.is_end_stream() {
            invocation.succeed(None, None);
        } else if Instant::now() >= invocation.deadline() {
            invocation.fail(&InvocationFailure::TimedOut);
        }
    }
}
