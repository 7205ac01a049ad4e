//! The time for a pull in all.

use std::time::Duration;

use tokio::time::Instant;

use super::registry::shown_time;
use crate::{Error, ErrorKind, Result};

/// When a pull must have ended, if ever.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    limit: Duration,
    at: Option<Instant>,
}

impl Deadline {
    /// Begins now. A limit beyond what a clock can hold is none.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        let at = limit.and_then(|limit| Instant::now().checked_add(limit));
        Self { limit: limit.unwrap_or_default(), at }
    }

    /// The time that is left, if it has an end.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Waits until the time is over.
    pub(crate) async fn passed(&self) {
        match self.at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Does `work`, which leaves nothing half-made when it is dropped, in what time there is.
    ///
    /// # Errors
    /// Those of `work`, and `PullTimedOut` with `how_far`.
    pub(crate) async fn within<T>(&self, how_far: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            () = self.passed() => Err(self.error(how_far)),
        }
    }

    /// The error of a pull that takes too long.
    pub(crate) fn error(&self, how_far: &str) -> Error {
        let message = format!("the pull did not end within {}: {how_far}", shown_time(self.limit));
        Error::new(ErrorKind::PullTimedOut, message)
            .advise("pull again, which goes on from what is here, or allow more time")
    }
}
