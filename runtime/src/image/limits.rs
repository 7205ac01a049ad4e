//! Bounds on what an image may be. Everything over a bound is a clear error, never growth.

use std::sync::atomic::{AtomicU64, Ordering};

use super::room::Share;
use super::stop::Stop;
use crate::{Error, ErrorKind, Result};

/// Bytes of a manifest or index: what registries must accept at least (OCI distribution
/// specification, *Pushing Manifests*: 4 MiB).
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Bytes of an image configuration.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Layers of an image; Docker's own bound is 128 with the writable one on top.
pub const MAX_LAYERS: u64 = 128;
/// Archive entries of all layers together.
pub const MAX_ENTRIES: u64 = 5_000_000;
/// Bytes of all layers when unpacked, archive headers included.
pub const MAX_UNPACKED_BYTES: u64 = 40 << 30;
/// Bytes of all layers as they are fetched.
pub const MAX_PACKED_BYTES: u64 = 10 << 30;
/// Bytes of a path inside a layer (Linux `PATH_MAX`).
pub const MAX_PATH_BYTES: u64 = 4096;
/// Bytes of one component of a path (Linux `NAME_MAX`).
pub const MAX_NAME_BYTES: u64 = 255;
/// Directories above an entry.
pub const MAX_DEPTH: u64 = 256;
/// Bytes of the extended headers (PAX, GNU long names) of one entry.
pub const MAX_HEADER_BYTES: u64 = 1 << 20;
/// Bytes of one extended attribute (Linux `XATTR_SIZE_MAX`).
pub const MAX_XATTR_BYTES: u64 = 64 << 10;
/// Extended attributes of one entry.
pub const MAX_XATTRS: u64 = 128;
/// Bytes that the whiteouts of all layers of an image take in memory until their layer's end; some
/// 150,000 of them.
pub const MAX_WHITEOUT_BYTES: u64 = 8 << 20;
/// Paths of the directories of one layer that it has entries in and none for; they are listed on disk.
pub const MAX_IMPLIED_BYTES: u64 = 16 << 20;
/// Images that an index may list.
pub const MAX_INDEX_ENTRIES: u64 = 1024;

/// Unpacked bytes for each packed byte that an image may have throughout. Programs and their data
/// come to 2 to 5, text to 10 or 20; only long runs of the same bytes reach more (gzip at most
/// 1032, zstd tens of thousands).
pub const MAX_INFLATION: u64 = 200;
/// Unpacked bytes of an image that [`MAX_INFLATION`] does not count: an honest image may hold a large
/// file of zeros.
pub const FREE_INFLATED_BYTES: u64 = 256 << 20;

/// The bounds of one pull that a caller may change; the rest are constants of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Whose limits these are, for errors (the name of a platform); `None` for Skiff's own.
    pub owner: Option<&'static str>,
    /// Layers of the image.
    pub layers: u64,
    /// Archive entries of all layers together.
    pub entries: u64,
    /// Bytes of all layers when unpacked, archive headers included.
    pub unpacked_bytes: u64,
    /// Bytes of all layers as they are fetched.
    pub packed_bytes: u64,
    /// Unpacked bytes for each packed byte, beyond [`FREE_INFLATED_BYTES`] of the image.
    pub inflation: u64,
    /// What an index that lists attestations is taken for.
    pub attestations: Attestations,
}

/// What to do with an index that lists attestations: entries of the platform `unknown/unknown`, which
/// BuildKit adds for build provenance and SBOMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attestations {
    /// They are no images, so they are passed over, as containerd does.
    #[default]
    Ignore,
    /// The whole index is refused.
    Refuse,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            owner: None,
            layers: MAX_LAYERS,
            entries: MAX_ENTRIES,
            unpacked_bytes: MAX_UNPACKED_BYTES,
            packed_bytes: MAX_PACKED_BYTES,
            inflation: MAX_INFLATION,
            attestations: Attestations::default(),
        }
    }
}

impl Limits {
    /// Whether the image may have so many layers.
    ///
    /// # Errors
    /// `LimitExceeded`.
    pub(crate) fn check_layers(&self, layers: u64) -> Result<()> {
        check(&self.named("layers of the image"), layers, self.layers)
            .map_err(|e| e.advise("squash its layers, or build it in fewer steps"))
    }

    /// Whether the image may have so many bytes as it is fetched.
    ///
    /// # Errors
    /// `LimitExceeded`.
    pub(crate) fn check_packed(&self, bytes: u64) -> Result<()> {
        check(&self.named("packed bytes of the image"), bytes, self.packed_bytes)
            .map_err(|e| e.advise(self.smaller()))
    }

    fn check_unpacked(&self, bytes: u64) -> Result<()> {
        check(&self.named("unpacked bytes of the image"), bytes, self.unpacked_bytes)
            .map_err(|e| e.advise(self.smaller()))
    }

    fn check_entries(&self, entries: u64) -> Result<()> {
        check(&self.named("archive entries of the image"), entries, self.entries)
            .map_err(|e| e.advise("leave out files that the function does not need"))
    }

    /// A bound's name, with the platform's where it is the platform's.
    fn named(&self, what: &str) -> String {
        match self.owner {
            Some(owner) => format!("{what} under {owner}"),
            None => what.to_owned(),
        }
    }

    fn smaller(&self) -> String {
        let advice = "make the image smaller: a smaller base, a build in several stages, no package caches";
        match self.owner {
            Some(owner) => format!("{advice}; or have {owner} raise its limit for you"),
            None => advice.to_owned(),
        }
    }
}

/// Whether `value` is within `limit`.
///
/// # Errors
/// `LimitExceeded` that names the thing, the value and the limit.
pub(crate) fn check(what: &str, value: u64, limit: u64) -> Result<()> {
    if value <= limit {
        return Ok(());
    }
    Err(Error::new(ErrorKind::LimitExceeded, format!("{what}: {value} is over the limit of {limit}")))
}

/// What the layers of one image have used together; shared by the threads that unpack them.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    entries: AtomicU64,
    unpacked: AtomicU64,
    inflated: AtomicU64,
    whiteouts: AtomicU64,
    windows: Share,
}

impl Budget {
    /// For an image that nobody gives up.
    pub(crate) fn new(limits: Limits) -> Self {
        Self::until(limits, Stop::default())
    }

    /// For a pull that ends with `stop`.
    pub(crate) fn until(limits: Limits, stop: Stop) -> Self {
        let zero = || AtomicU64::new(0);
        let (entries, unpacked, inflated, whiteouts) = (zero(), zero(), zero(), zero());
        Self { limits, entries, unpacked, inflated, whiteouts, windows: Share::new(stop) }
    }

    /// Counts one archive entry.
    fn entry(&self) -> Result<()> {
        let entries = self.entries.fetch_add(1, Ordering::Relaxed) + 1;
        self.limits.check_entries(entries)
    }

    /// Counts memory for whiteouts.
    fn whiteout(&self, bytes: u64) -> Result<()> {
        let all = self.whiteouts.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        check("bytes for the whiteouts of the image", all, MAX_WHITEOUT_BYTES)
    }
}

/// What one attempt at a layer uses, counted against the image's budget: entries, whiteouts, and the
/// bytes on both sides of its decompression.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    budget: &'a Budget,
    packed: AtomicU64,
    unpacked: AtomicU64,
    inflated: AtomicU64,
    entries: AtomicU64,
    whiteouts: AtomicU64,
}

impl<'a> Flow<'a> {
    pub(crate) fn new(budget: &'a Budget) -> Self {
        let zero = || AtomicU64::new(0);
        let (packed, unpacked, inflated) = (zero(), zero(), zero());
        Self { budget, packed, unpacked, inflated, entries: zero(), whiteouts: zero() }
    }

    /// The memory for windows of zstd decoders.
    pub(crate) fn windows(&self) -> &'a Share {
        &self.budget.windows
    }

    /// Counts one archive entry.
    pub(crate) fn entry(&self) -> Result<()> {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.budget.entry()
    }

    /// Counts memory for whiteouts.
    pub(crate) fn whiteout(&self, bytes: u64) -> Result<()> {
        self.whiteouts.fetch_add(bytes, Ordering::Relaxed);
        self.budget.whiteout(bytes)
    }

    /// Gives back the memory of the whiteouts.
    pub(crate) fn whiteouts_done(&self) {
        let bytes = self.whiteouts.swap(0, Ordering::Relaxed);
        self.budget.whiteouts.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Gives all back: the attempt failed, and another may follow.
    pub(crate) fn give_back(&self) {
        let give = |own: &AtomicU64, all: &AtomicU64| {
            all.fetch_sub(own.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        };
        let budget = self.budget;
        give(&self.entries, &budget.entries);
        give(&self.unpacked, &budget.unpacked);
        give(&self.inflated, &budget.inflated);
        give(&self.whiteouts, &budget.whiteouts);
    }

    /// Counts bytes as they come.
    pub(crate) fn packed(&self, bytes: u64) {
        self.packed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that have been unpacked. Called by one thread.
    ///
    /// The bound on inflation is for the bytes that have come, not for those that the manifest
    /// promises. Each layer counts with the most that it was ever over the ratio, and these peaks add
    /// up over the image: so many small bombs are like one, and the result does not depend on which
    /// layer is faster.
    pub(crate) fn unpacked(&self, bytes: u64) -> Result<()> {
        let budget = self.budget;
        let unpacked = self.unpacked.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let all = budget.unpacked.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        budget.limits.check_unpacked(all)?;
        let packed = self.packed.load(Ordering::Relaxed);
        let over = unpacked.saturating_sub(packed.saturating_mul(budget.limits.inflation));
        let more = over.saturating_sub(self.inflated.fetch_max(over, Ordering::Relaxed));
        let inflated = budget.inflated.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        if inflated <= FREE_INFLATED_BYTES {
            return Ok(());
        }
        let ratio = budget.limits.inflation;
        let message = budget.limits.named(&format!(
            "a layer inflates like a bomb: {unpacked} bytes from {packed} are more than {ratio} for one, \
             and the image may have {FREE_INFLATED_BYTES} bytes of such"
        ));
        Err(Error::new(ErrorKind::LimitExceeded, message)
            .advise("leave out large files of zeros; let the function make them when it starts"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_itself_is_allowed() {
        check("things", 5, 5).expect("at the limit");
        let error = check("things", 6, 5).expect_err("over");
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        assert_eq!(error.to_string(), "things: 6 is over the limit of 5");
    }

    #[test]
    fn a_budget_is_shared() {
        let budget = Budget::new(Limits { entries: 2, unpacked_bytes: 10, ..Limits::default() });
        budget.entry().expect("first");
        budget.entry().expect("second");
        assert_eq!(budget.entry().expect_err("third").kind(), ErrorKind::LimitExceeded);
        budget.entries.fetch_sub(1, Ordering::Relaxed);
        Flow::new(&budget).unpacked(10).expect("full");
        assert_eq!(Flow::new(&budget).unpacked(1).expect_err("over").kind(), ErrorKind::LimitExceeded);
    }

    #[test]
    fn errors_name_the_platform_the_limit_and_the_value() {
        let limits = Limits { owner: Some("some"), packed_bytes: 5, layers: 1, ..Limits::default() };
        limits.check_packed(5).expect("at the limit");
        let error = limits.check_packed(6).expect_err("over");
        assert_eq!(error.to_string(), "packed bytes of the image under some: 6 is over the limit of 5");
        assert!(error.advice().is_some_and(|a| a.contains("smaller") && a.contains("some")));
        let error = limits.check_layers(2).expect_err("over");
        assert!(error.to_string().contains("under some") && error.advice().is_some(), "{error}");
    }

    #[test]
    fn inflation_is_free_up_to_a_bound_and_then_refused() {
        let budget = Budget::new(Limits::default());
        let flow = Flow::new(&budget);
        flow.unpacked(FREE_INFLATED_BYTES).expect("zeros up to the bound");
        let error = flow.unpacked(1).expect_err("one more");
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        assert!(error.to_string().contains("268435457 bytes from 0"), "{error}");
    }

    #[test]
    fn usual_ratios_are_never_refused() {
        let budget = Budget::new(Limits::default());
        let flow = Flow::new(&budget);
        for _ in 0..100 {
            flow.packed(1 << 20);
            flow.unpacked(MAX_INFLATION << 20).expect("at the ratio");
        }
    }

    #[test]
    fn many_small_bombs_are_like_one() {
        let budget = Budget::new(Limits::default());
        let flows: Vec<_> = (0..5).map(|_| Flow::new(&budget)).collect();
        for flow in &flows[..4] {
            flow.unpacked(FREE_INFLATED_BYTES / 4).expect("together at the bound");
            // Bytes that come later do not make it unseen.
            flow.packed(1 << 30);
        }
        assert_eq!(flows[4].unpacked(1).expect_err("one more").kind(), ErrorKind::LimitExceeded);
    }

    #[test]
    fn a_failed_attempt_does_not_count() {
        let budget = Budget::new(Limits { entries: 1, unpacked_bytes: 10, ..Limits::default() });
        for _ in 0..3 {
            let flow = Flow::new(&budget);
            flow.entry().expect("one");
            flow.whiteout(MAX_WHITEOUT_BYTES).expect("all of it");
            flow.unpacked(10).expect("all of it");
            flow.unpacked(1).expect_err("more");
            flow.give_back();
        }
    }
}
