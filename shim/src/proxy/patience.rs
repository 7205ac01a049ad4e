//! How long a connection may keep a request and its answer: a client that stops reading must not
//! hold an invocation beyond its time limit, nor a connection for good.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// What a client gets beyond the time limit to read that it is over.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// How long a client may take for the bytes that are on their way when its last answer has ended, and for
/// its next request.
const LAST_BYTES: Duration = Duration::from_secs(60);

/// The time at which a connection is closed, whatever it does.
#[derive(Default)]
pub(super) struct Patience {
    running: Mutex<Running>,
    /// It is over earlier than [`Patience::over`] waits for.
    earlier: Notify,
}

/// When the requests that run must be over, each with a number of its own: of HTTP/2 there may be many.
#[derive(Default)]
struct Running {
    ends: BTreeSet<(Instant, u64)>,
    begun: u64,
    until: Option<Instant>,
    /// What is waited for: who waits looks again then. Nearly every request puts the end off, and wakes
    /// nobody.
    waited_for: Option<Instant>,
}

impl Patience {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Gives a connection that has brought no request yet so long for its first.
    pub(super) fn wait_for_first(&self, limit: Duration) {
        self.set(&mut self.running(), Instant::now() + limit);
    }

    /// A request has come that may take as long as `limit`.
    pub(super) fn begin(self: &Arc<Self>, limit: Duration) -> Turn {
        let mut running = self.running();
        running.begun += 1;
        let end = (Instant::now() + limit + GRACE, running.begun);
        running.ends.insert(end);
        let next = running.ends.first().map_or(end.0, |(until, _)| *until);
        self.set(&mut running, next);
        drop(running);
        Turn { patience: Arc::clone(self), end }
    }

    /// Whether no request runs.
    pub(super) fn is_idle(&self) -> bool {
        self.running().ends.is_empty()
    }

    /// Waits until it is over; begins anew with every request. Cancel safe; for one at a time.
    pub(super) async fn over(&self) {
        loop {
            let until = {
                let mut running = self.running();
                running.waited_for = running.until;
                running.until
            };
            let over = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => {}
                () = self.earlier.notified() => continue,
            }
            // It may have been put off meanwhile.
            if self.running().until.is_none_or(|until| until <= Instant::now()) {
                return;
            }
        }
    }

    fn set(&self, running: &mut Running, until: Instant) {
        running.until = Some(until);
        if running.waited_for.is_none_or(|waited_for| until < waited_for) {
            self.earlier.notify_one();
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that runs, with its answer, until it is dropped.
pub(super) struct Turn {
    patience: Arc<Patience>,
    end: (Instant, u64),
}

impl Drop for Turn {
    /// The end of the last leaves the client the time for the last bytes.
    fn drop(&mut self) {
        let mut running = self.patience.running();
        running.ends.remove(&self.end);
        let next = running.ends.first().map_or_else(|| Instant::now() + LAST_BYTES, |(until, _)| *until);
        self.patience.set(&mut running, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// How long from now the connection has, in whole minutes.
    fn minutes(patience: &Patience) -> Option<u64> {
        let until = patience.running().until;
        until.map(|until| until.duration_since(Instant::now()).as_secs() / 60)
    }

    #[tokio::test]
    async fn the_request_that_must_end_first_decides() {
        let patience = Patience::new();
        assert_eq!(minutes(&patience), None, "nothing has begun");
        patience.wait_for_first(5 * MINUTE + GRACE);
        assert_eq!(minutes(&patience), Some(5));
        let long = patience.begin(100 * MINUTE);
        assert_eq!(minutes(&patience), Some(100));
        let short = patience.begin(20 * MINUTE);
        let as_short = patience.begin(20 * MINUTE);
        assert_eq!((minutes(&patience), patience.is_idle()), (Some(20), false));
        drop(short);
        assert_eq!(minutes(&patience), Some(20), "the other one has not ended");
        drop(as_short);
        assert_eq!(minutes(&patience), Some(100));
        drop(long);
        assert!(patience.is_idle() && minutes(&patience) < Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_put_off_and_what_is_brought_forward_counts() {
        let patience = Patience::new();
        let over = async {
            let begun = Instant::now();
            patience.over().await;
            begun.elapsed()
        };
        let requests = async {
            patience.wait_for_first(MINUTE);
            tokio::time::sleep(MINUTE / 2).await;
            let long = patience.begin(100 * MINUTE);
            tokio::time::sleep(10 * MINUTE).await;
            let short = patience.begin(MINUTE);
            tokio::time::sleep(MINUTE / 2).await;
            drop(short);
            tokio::time::sleep(MINUTE / 2).await;
            drop(long);
        };
        let (took, ()) = tokio::join!(over, requests);
        // The last ends after 11.5 minutes.
        assert!(took.abs_diff(MINUTE * 23 / 2 + LAST_BYTES) < Duration::from_secs(1), "{took:?}");
    }

    #[tokio::test]
    async fn what_is_held_beyond_its_time_ends_the_connection() {
        let patience = Patience::new();
        let (_long, _short) = (patience.begin(100 * MINUTE), patience.begin(Duration::ZERO));
        tokio::time::timeout(MINUTE, patience.over()).await.expect("over");
    }
}
