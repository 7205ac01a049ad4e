//! What a pool tells of its callers and starts, and what it has.

use std::time::{Duration, SystemTime};

use skiff_runtime::Stats;

use crate::{Error, Timeline};

/// Takes what happens in a pool. It is called where calls pass: it must not block.
pub(crate) trait Watch: Send + Sync + 'static {
    /// A caller found no free slot; how long it waited, whatever came of it.
    fn waited(&self, time: Duration);
    /// A caller got the platform's throttling error.
    fn throttled(&self);
    /// An instance takes invocations.
    fn started(&self, timeline: &Timeline);
    /// One did not come up.
    fn failed(&self, error: &Error);
}

/// Nobody looks.
pub(crate) struct Unwatched;

impl Watch for Unwatched {
    fn waited(&self, _: Duration) {}
    fn throttled(&self) {}
    fn started(&self, _: &Timeline) {}
    fn failed(&self, _: &Error) {}
}

/// One instance of a pool, or one job.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) id: String,
    /// When it was ready.
    pub(crate) since: SystemTime,
    /// It gets no more invocations.
    pub(crate) leaving: bool,
    /// Invocations that it works on.
    pub(crate) running: usize,
    pub(crate) frozen: bool,
    pub(crate) stats: Stats,
}
