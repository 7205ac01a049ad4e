//! How long a connection may keep a request and its answer: a client that stops reading must not
//! hold an invocation beyond its time limit, nor a connection for good.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::body::{Body, BodyError};

/// What a client gets beyond the time limit to read that it is over.
const GRACE: Duration = Duration::from_secs(1);

/// How long a client may take for the bytes that are on their way when its answer has ended.
const LAST_BYTES: Duration = Duration::from_secs(60);

/// The time at which a connection is closed, whatever it does.
pub(super) struct Patience(watch::Sender<Option<Instant>>);

impl Patience {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(None)))
    }

    /// A request has come that may take as long as `limit`.
    pub(super) fn begin(&self, limit: Duration) {
        self.0.send_replace(Some(Instant::now() + limit + GRACE));
    }

    /// Waits until it is over; begins anew with every request. Cancel safe.
    pub(super) async fn over(&self) {
        let mut seen = self.0.subscribe();
        loop {
            let until = *seen.borrow_and_update();
            let over = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                // The sender lives as long as `self`.
                _ = seen.changed() => {}
            }
        }
    }
}

/// An answer's body; its end leaves the client the time for the last bytes.
pub(super) struct Watched {
    body: Body,
    patience: Arc<Patience>,
}

impl Watched {
    pub(super) fn new(body: Body, patience: Arc<Patience>) -> Self {
        Self { body, patience }
    }
}

impl HttpBody for Watched {
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

impl Drop for Watched {
    fn drop(&mut self) {
        self.patience.0.send_replace(Some(Instant::now() + LAST_BYTES));
    }
}
