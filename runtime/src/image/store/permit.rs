//! Leave to make layers, for all pulls of this process.
//!
//! The first layer of a pull takes from a reserve, of which no pull has more than one, and the others
//! from what all share. So an image whose registry hardly sends anything holds up its own pull and not
//! those beside it.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{Error, ErrorKind, Result};

/// Layers that one pull makes at the same time: each has two threads and some buffers, and up to a few
/// MiB of memory.
const PULL_LAYERS: usize = 10;
/// Pulls that go on while one has all that is shared.
const RESERVED: usize = 6;

/// What all pulls share.
#[derive(Debug)]
pub(super) struct Permits {
    shared: Semaphore,
    reserved: Semaphore,
}

impl Permits {
    pub(super) fn new() -> Self {
        Self { shared: Semaphore::new(PULL_LAYERS - 1), reserved: Semaphore::new(RESERVED) }
    }

    /// For one pull.
    pub(super) fn share(&self) -> Share<'_> {
        Share { permits: self, first: Semaphore::new(1) }
    }
}

/// What one pull may have.
#[derive(Debug)]
pub(crate) struct Share<'a> {
    permits: &'a Permits,
    first: Semaphore,
}

/// Leave to make one layer, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    _permit: SemaphorePermit<'a>,
    _first: Option<SemaphorePermit<'a>>,
}

impl Share<'_> {
    /// Waits for leave to make one layer; in order, but for the first of a pull.
    pub(crate) async fn permit(&self) -> Result<Permit<'_>> {
        let first = async {
            let first = acquire(&self.first).await?;
            acquire(&self.permits.reserved)
                .await
                .map(|permit| Permit { _permit: permit, _first: Some(first) })
        };
        let shared = async {
            acquire(&self.permits.shared).await.map(|permit| Permit { _permit: permit, _first: None })
        };
        tokio::select! {
            biased;
            permit = first => permit,
            permit = shared => permit,
        }
    }
}

async fn acquire(from: &Semaphore) -> Result<SemaphorePermit<'_>> {
    let closed = |e| Error::new(ErrorKind::Internal, "the permits of the store are closed").because(e);
    from.acquire().await.map_err(closed)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn take<'a>(share: &'a Share<'_>, count: usize) -> Vec<Permit<'a>> {
        std::iter::from_fn(|| share.permit().now_or_never().map(|permit| permit.expect("permit")))
            .take(count)
            .collect()
    }

    #[test]
    fn one_pull_leaves_room_for_others() {
        let permits = Permits::new();
        let (a, b) = (permits.share(), permits.share());
        let all = take(&a, 100);
        assert_eq!(all.len(), PULL_LAYERS);
        let one = take(&b, 100);
        assert_eq!(one.len(), 1, "one after the other");
        drop(one);
        assert_eq!(take(&b, 100).len(), 1, "and the next");
        drop(all);
        assert_eq!(take(&b, 100).len(), PULL_LAYERS, "as fast as ever");
    }

    #[test]
    fn what_all_pulls_have_is_bounded() {
        let permits = Permits::new();
        let shares: Vec<_> = (0..20).map(|_| permits.share()).collect();
        let held: Vec<_> = shares.iter().flat_map(|share| take(share, 100)).collect();
        assert_eq!(held.len(), PULL_LAYERS - 1 + RESERVED);
    }

    #[test]
    fn who_waits_gets_what_comes_free_first() {
        let permits = Permits::new();
        let (a, b, c) = (permits.share(), permits.share(), permits.share());
        let (all, mut first) = (take(&a, 100), take(&b, 1));
        let mut second = std::pin::pin!(b.permit());
        assert!(second.as_mut().now_or_never().is_none());
        first.clear();
        let second = second.now_or_never().expect("that of the first").expect("permit");
        assert_eq!(take(&c, 100).len(), 1);
        drop((all, second));
    }
}
