//! Leases: what is in use is not removed.
//!
//! ```text
//! taker                                  remover (gc, rmi)
//! gc.lock shared ─ open lease ─ lock     gc.lock exclusive ─ which leases are locked?
//!   it shared ─ gc.lock free               ─ rename away what is not ─ gc.lock free ─ delete
//! ```
//! A lease is a file with the digests that an image consists of, and a shared `flock` on it. The lock
//! belongs to the open file and not to a process: a copy of the descriptor in the keeper holds it after
//! the daemon is gone, and the kernel gives it back with the last copy.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::image::digest::Digest;
use crate::{Error, ErrorKind, Result};

/// Bytes of a lease: 128 digests of layers and some of documents fit well.
const MAX_LEASE_BYTES: u64 = 256 << 10;

/// A share in an image of the store. It cannot be removed while one is held anywhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lease(Option<Arc<OwnedFd>>);

impl Lease {
    /// The descriptor that holds it; none for an image that is in no store.
    pub(crate) fn descriptor(&self) -> Option<&OwnedFd> {
        self.0.as_deref()
    }
}

/// What an image consists of, as its lease lists it. The same for all holders, for it follows from
/// the manifest's digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// Digest of the manifest.
    pub(crate) manifest: String,
    /// Digest of the configuration.
    pub(crate) config: String,
    /// DiffIDs of the layers.
    pub(crate) diff_ids: Vec<String>,
}

/// A lock of the whole store, held for as long as this lives.
#[derive(Debug)]
pub(crate) struct Guard(#[expect(dead_code, reason = "held, not used")] File);

impl Store {
    /// Keeps removers away for a moment. Blocks while one marks what to remove.
    pub(super) fn hold(&self) -> Result<Guard> {
        self.guard("gc.lock", FlockOperation::LockShared)?.ok_or_else(never)
    }

    /// Waits until nobody takes a lease or writes a record, and keeps it so.
    pub(super) fn hold_alone(&self) -> Result<Guard> {
        self.guard("gc.lock", FlockOperation::LockExclusive)?.ok_or_else(never)
    }

    /// Keeps documents that no image names yet, until it has a lease.
    pub(crate) fn hold_documents(&self) -> Result<Guard> {
        self.guard("documents.lock", FlockOperation::LockShared)?.ok_or_else(never)
    }

    /// The right to remove documents that no image names; `None` while an image is being resolved.
    pub(super) fn claim_documents(&self) -> Result<Option<Guard>> {
        self.guard("documents.lock", FlockOperation::NonBlockingLockExclusive)
    }

    fn guard(&self, name: &str, how: FlockOperation) -> Result<Option<Guard>> {
        let path = self.root.join(name);
        lock_file(&path, how).map(|file| file.map(Guard))
    }

    /// Takes a lease on an image that is here or is about to be. Blocks for some file operations.
    ///
    /// # Errors
    /// `DiskFull`, `Host`.
    pub(crate) fn lease(&self, parts: &Parts) -> Result<Lease> {
        let bytes = serde_json::to_vec(parts)
            .map_err(|e| Error::new(ErrorKind::Internal, "write a lease").because(e))?;
        let path = self.lease_path(&parts.manifest);
        let _hold = self.hold()?;
        let file = lock_file(&path, FlockOperation::LockShared)?.ok_or_else(never)?;
        // All takers write the same, so it does not matter who does first. Nobody reads the file
        // before this one lets go of the store's lock.
        if read_bytes(&file, &path)? != bytes {
            file.write_all_at(&bytes, 0)
                .and_then(|()| file.set_len(bytes.len() as u64))
                .map_err(|e| Error::host(format!("write the lease {}", path.display()), e))?;
        }
        Ok(Lease(Some(Arc::new(file.into()))))
    }

    fn lease_path(&self, manifest: &str) -> PathBuf {
        self.root.join("leases").join(Digest::sha256(manifest.as_bytes()).hex())
    }

    /// All leases, with those that nobody holds told apart. Only with [`Store::hold_alone`].
    pub(super) fn leases(&self, _alone: &Guard) -> Result<Leases> {
        let dir = self.root.join("leases");
        let mut leases = Leases::default();
        for path in super::entries(&dir)? {
            let file = File::open(&path).map_err(|e| Error::host(format!("open {}", path.display()), e))?;
            match flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => leases.stale.push(path),
                Err(Errno::WOULDBLOCK) => leases.held.push(read_parts(&file, &path)?),
                Err(e) => return Err(Error::host(format!("flock {}", path.display()), e)),
            }
        }
        Ok(leases)
    }
}

/// The leases of a store.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Images that someone uses.
    pub(super) held: Vec<Parts>,
    /// Files that nobody has locked.
    pub(super) stale: Vec<PathBuf>,
}

fn never() -> Error {
    Error::new(ErrorKind::Internal, "a lock that is waited for was refused")
}

/// Locks a file, which is made if missing; `None` if another has it and this is not to wait.
///
/// Between opening and locking it may have been removed, so its name must still lead to it after
/// that.
fn lock_file(path: &Path, how: FlockOperation) -> Result<Option<File>> {
    let failed = |call: &str, e: std::io::Error| Error::host(format!("{call} {}", path.display()), e);
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(|e| failed("open", e))?;
        loop {
            match flock(&file, how) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(e) => return Err(failed("flock", e.into())),
            }
        }
        let locked = file.metadata().map_err(|e| failed("stat", e))?;
        let named = std::fs::symlink_metadata(path);
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino())) {
            return Ok(Some(file));
        }
    }
}

fn read_bytes(file: &File, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.take(MAX_LEASE_BYTES).read_to_end(&mut bytes);
    read.map_err(|e| Error::host(format!("read the lease {}", path.display()), e))?;
    Ok(bytes)
}

/// A lease that is held has been written: else nothing may be removed at all.
fn read_parts(file: &File, path: &Path) -> Result<Parts> {
    serde_json::from_slice(&read_bytes(file, path)?).map_err(|e| {
        Error::new(ErrorKind::Host, format!("the lease {} is held and cannot be read", path.display()))
            .because(e)
            .advise("stop the Skiff processes that use this state directory, then try again")
    })
}
