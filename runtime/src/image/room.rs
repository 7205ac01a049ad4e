//! Memory for the windows of zstd decoders, which all pulls of this process share.
//!
//! ```text
//! room of the pull ─ room for large windows (only they) ─ room of the process
//! ```
//! Who asks waits until others have ended, in the order in which they asked, or until its pull is over.
//! Each step waits only for a later one, and who has passed all waits for nothing but its own input. One
//! pull cannot have all of it, and large windows cannot, so that a slow or hostile image leaves room
//! for a usual one of another pull.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::stop::Stop;
use crate::{Error, ErrorKind, Result};

/// The largest window, and what those of one pull come to together.
pub(crate) const PULL_BYTES: u64 = 32 << 20;
/// What images made in Go have; a larger window counts as large.
const USUAL_BYTES: u64 = 8 << 20;
/// Windows of all decoders together: one usual window more than one pull or the large ones have.
const PROCESS_BYTES: u64 = PULL_BYTES + USUAL_BYTES;

/// What pulls share.
#[derive(Debug)]
struct Pool {
    large: Semaphore,
    all: Semaphore,
}

static POOL: Pool = Pool::new();

impl Pool {
    const fn new() -> Self {
        Self { large: semaphore(PULL_BYTES), all: semaphore(PROCESS_BYTES) }
    }
}

/// A permit is a KiB.
const fn semaphore(bytes: u64) -> Semaphore {
    Semaphore::const_new((bytes >> 10) as usize)
}

/// What one pull may have.
#[derive(Debug)]
pub(crate) struct Share {
    own: Semaphore,
    pool: &'static Pool,
    stop: Stop,
}

/// Room for one window, given back when dropped.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    _permits: [Option<SemaphorePermit<'a>>; 3],
}

impl Share {
    /// For a pull that ends with `stop`.
    pub(crate) fn new(stop: Stop) -> Self {
        Self { own: semaphore(PULL_BYTES), pool: &POOL, stop }
    }

    /// Waits for room for a window of at most [`PULL_BYTES`]. Blocks the thread.
    ///
    /// # Errors
    /// `Internal` if the pull is over first.
    pub(crate) fn take(&self, bytes: u64) -> Result<Room<'_>> {
        block_on(async {
            tokio::select! {
                biased;
                () = self.stop.asked() => Err(Stop::error()),
                room = self.room(bytes) => room,
            }
        })
    }

    async fn room(&self, bytes: u64) -> Result<Room<'_>> {
        debug_assert!(bytes <= PULL_BYTES, "it would wait for ever");
        let own = permits(&self.own, bytes).await?;
        let large = match bytes > USUAL_BYTES {
            true => Some(permits(&self.pool.large, bytes).await?),
            false => None,
        };
        let all = permits(&self.pool.all, bytes).await?;
        Ok(Room { _permits: [Some(all), large, Some(own)] })
    }
}

async fn permits(from: &Semaphore, bytes: u64) -> Result<SemaphorePermit<'_>> {
    let count = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
    let closed = |e| Error::new(ErrorKind::Internal, "the room for zstd windows is closed").because(e);
    from.acquire_many(count).await.map_err(closed)
}

/// Waits for a future on a thread of no runtime.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(done) => return done,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Pulls of a process of their own.
    fn pulls<const N: usize>() -> [Share; N] {
        let pool: &'static Pool = Box::leak(Box::new(Pool::new()));
        std::array::from_fn(|_| Share { own: semaphore(PULL_BYTES), pool, stop: Stop::default() })
    }

    fn now(share: &Share, bytes: u64) -> Option<Room<'_>> {
        share.room(bytes).now_or_never().map(|room| room.expect("room"))
    }

    #[test]
    fn room_is_bounded_and_given_back() {
        let [a, b, c] = pulls();
        let all = now(&a, PULL_BYTES).expect("the share of a pull");
        assert!(now(&a, MIB).is_none(), "a pull has no more");
        assert!(now(&b, 9 * MIB).is_none(), "nor have large windows");
        let usual = now(&b, USUAL_BYTES).expect("a usual window of another pull");
        assert!(now(&c, MIB).is_none(), "that is all of it");
        drop(usual);
        now(&c, MIB).expect("it was given back");
        drop(all);
        now(&c, PULL_BYTES).expect("so was the rest");
    }

    #[test]
    fn waiters_are_served_in_order() {
        let [a, b, c, d] = pulls();
        let held = now(&a, PULL_BYTES);
        let (mut second, mut third) = (pin!(b.room(PULL_BYTES)), pin!(c.room(9 * MIB)));
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        now(&d, MIB).expect("a usual window need not wait for large ones");
        drop(held);
        assert!(third.as_mut().now_or_never().is_none(), "the second was here before");
        let held = second.as_mut().now_or_never().expect("its turn");
        assert!(third.as_mut().now_or_never().is_none());
        drop(held);
        third.as_mut().now_or_never().expect("its turn").expect("room");
    }

    #[test]
    fn who_gives_up_takes_no_room() {
        let [a, b, c] = pulls();
        let held = now(&a, PULL_BYTES);
        {
            let mut gone = pin!(b.room(PULL_BYTES));
            assert!(gone.as_mut().now_or_never().is_none());
        }
        drop(held);
        now(&c, PULL_BYTES).expect("nobody is in front");
        now(&b, PULL_BYTES).expect("nor has the pull that gave up lost any");
    }

    #[test]
    fn a_blocked_thread_sees_room_and_the_end_of_its_pull() {
        let [a, mut b, c] = pulls();
        let (sender, stop) = Stop::pair();
        b.stop = stop;
        let held = now(&a, PULL_BYTES);
        std::thread::scope(|scope| {
            let stopped = scope.spawn(|| b.take(PULL_BYTES).map(drop));
            let served = scope.spawn(|| c.take(PULL_BYTES).map(drop));
            // Whether it waits already makes no difference.
            sender.send(true).expect("someone listens");
            let error = stopped.join().expect("joined").expect_err("stopped");
            assert_eq!(error.kind(), ErrorKind::Internal);
            drop(held);
            served.join().expect("joined").expect("room");
        });
        drop(sender);
        b.take(MIB).expect_err("nobody waits for this pull");
    }
}
