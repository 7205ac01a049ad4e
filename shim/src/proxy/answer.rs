//! An answer's body on its way to the caller, with the invocation that it belongs to: the time
//! limit holds until the last byte, and the invocation ends with the body.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
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
}

impl Answer {
    pub(super) fn new(body: Incoming, invocation: Invocation, grpc: bool) -> Self {
        let deadline = Box::pin(sleep_until(invocation.deadline()));
        Self { body, deadline, invocation: Some(invocation), grpc }
    }

    /// What the caller gets instead of the rest. A call of gRPC just ends, as in the cloud: without trailers
    /// that is a failure ("server closed the stream without sending trailers").
    fn fail(&mut self, failure: &InvocationFailure) -> Option<Result<Frame<Bytes>, BodyError>> {
        let message = self.invocation.take().map(|mut invocation| invocation.fail(failure).message);
        (!self.grpc).then(|| Err(message.unwrap_or_default().into()))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // First: a server that always has more must not outrun its time limit.
        if self.deadline.as_mut().poll(cx).is_ready()
            && self.invocation.is_some()
            && !self.body.is_end_stream()
        {
            return Poll::Ready(self.fail(&InvocationFailure::TimedOut));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(Some(Err(error))) => {
                let failure = InvocationFailure::ConnectionBroken(error.to_string());
                Poll::Ready(self.fail(&failure))
            }
            Poll::Ready(None) => {
                if let Some(mut invocation) = self.invocation.take() {
                    invocation.succeed(None, None);
                }
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
