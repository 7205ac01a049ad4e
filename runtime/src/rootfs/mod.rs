//! The root filesystem of a container, in two halves: `disk`, `pool` and `quota` make what holds
//! written bytes, and `choice` says which of them this host has; `mount` puts overlay, writable
//! layer and `/tmp` together inside the container's own mount namespace, and `system` adds what is the
//! kernel's. `path` looks into the result without trusting it.

mod choice;
mod disk;
pub(crate) mod idmap;
pub(crate) mod inside;
pub(crate) mod mount;
pub(crate) mod path;
mod pool;
pub(crate) mod quota;
pub(crate) mod system;

pub(crate) use choice::Choice;
pub(crate) use disk::Use;
pub(crate) use pool::{Disks, KeptDisks};

/// One inode for this many bytes unless told, as mkfs.ext4's default.
const BYTES_PER_INODE: u64 = 16384;
/// Least inodes of that default: what an overlay and a few files need.
const DEFAULT_INODES_MIN: u64 = 256;

/// Caps of one place that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct Cap {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Cap {
    /// `inodes` of 0 are one for each 16 KiB, and at least 256.
    pub(crate) fn new(bytes: u64, inodes: u64) -> Self {
        let usual = (bytes / BYTES_PER_INODE).max(DEFAULT_INODES_MIN);
        Self { bytes, inodes: if inodes == 0 { usual } else { inodes } }
    }
}

/// The version of Linux from which on overlayfs takes its layers one by one.
pub(crate) const LAYERS_ONE_BY_ONE: (u32, u32) = (6, 5);

/// The first two numbers of a release of Linux such as `6.1.0-28-cloud-amd64`.
pub(crate) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
