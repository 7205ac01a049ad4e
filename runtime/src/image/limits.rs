//! Bounds on what an image may be. Everything over a bound is a clear error, never growth.

use std::sync::atomic::{AtomicU64, Ordering};

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
pub const MAX_WHITEOUT_BYTES: u64 = 16 << 20;
/// Images that an index may list.
pub const MAX_INDEX_ENTRIES: u64 = 1024;

/// The bounds of one pull that a caller may change; the rest are constants of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Layers of the image.
    pub layers: u64,
    /// Archive entries of all layers together.
    pub entries: u64,
    /// Bytes of all layers when unpacked, archive headers included.
    pub unpacked_bytes: u64,
    /// Bytes of all layers as they are fetched.
    pub packed_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: MAX_LAYERS,
            entries: MAX_ENTRIES,
            unpacked_bytes: MAX_UNPACKED_BYTES,
            packed_bytes: MAX_PACKED_BYTES,
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
    whiteouts: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, entries: AtomicU64::new(0), unpacked: AtomicU64::new(0), whiteouts: AtomicU64::new(0) }
    }

    /// Counts one archive entry.
    pub(crate) fn entry(&self) -> Result<()> {
        let entries = self.entries.fetch_add(1, Ordering::Relaxed) + 1;
        check("archive entries of the image", entries, self.limits.entries)
    }

    /// Counts memory for whiteouts.
    pub(crate) fn whiteout(&self, bytes: u64) -> Result<()> {
        let all = self.whiteouts.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        check("bytes for the whiteouts of the image", all, MAX_WHITEOUT_BYTES)
    }

    /// Gives back the memory of a layer that is complete.
    pub(crate) fn whiteouts_done(&self, bytes: u64) {
        self.whiteouts.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts unpacked bytes.
    pub(crate) fn unpacked(&self, bytes: u64) -> Result<()> {
        let all = self.unpacked.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        check("unpacked bytes of the image", all, self.limits.unpacked_bytes)
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
        budget.unpacked(10).expect("full");
        assert_eq!(budget.unpacked(1).expect_err("over").kind(), ErrorKind::LimitExceeded);
    }
}
