//! The connections of a listener, counted: each has some 20 KiB while it is open, and what many have had is
//! given back to the kernel when most of them are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fewer are not worth the milliseconds.
const MANY: usize = 256;

/// How many there are.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    now: AtomicUsize,
    /// The most since memory was given back.
    most: AtomicUsize,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Present(Arc<Crowd>);

impl Crowd {
    /// One more.
    pub(super) fn join(self: &Arc<Self>) -> Present {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Present(Arc::clone(self))
    }

    /// One fewer; whether so many have gone that their memory is to be given back. Says so once for each
    /// crowd.
    fn leave(&self) -> bool {
        let left = self.now.fetch_sub(1, Ordering::Relaxed) - 1;
        let most = self.most.load(Ordering::Relaxed);
        let gone = most >= MANY && left <= most / 4;
        gone && self.most.compare_exchange(most, left, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        if !self.0.leave() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(crate::give_back_memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_when_most_of_many_have_gone() {
        let crowd = Arc::new(Crowd::default());
        let given_back = |join: usize, leave: usize| -> usize {
            (0..join).for_each(|_| std::mem::forget(crowd.join()));
            (0..leave).filter(|_| crowd.leave()).count()
        };
        assert_eq!(given_back(MANY - 1, MANY - 1), 0, "too few");
        assert_eq!(given_back(4 * MANY, 3 * MANY - 1), 0, "most are still there");
        assert_eq!(given_back(0, 1), 1);
        assert_eq!(given_back(0, MANY), 1, "a quarter of those that were left");
        assert_eq!(crowd.now.load(Ordering::Relaxed), 0);
        assert_eq!(given_back(10, 10), 0);
    }
}
