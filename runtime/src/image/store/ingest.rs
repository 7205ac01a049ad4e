//! A layer in the making: who makes it, and how it becomes complete or vanishes.
//!
//! ```text
//! claim ── Committed (someone has made it)
//!       ├─ Busy (someone makes it now)
//!       └─ Mine ── prepare ── unpack into fs/ ── commit ── layers/…
//!                                             └─ drop ──── nothing
//! ```
//! The lock is on the directory itself. Between opening and locking it may have been renamed (made)
//! or removed (failed), so its name must still lead to the same inode after that.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::Store;
use crate::image::digest::Digest;
use crate::image::unpack::remove_all;
use crate::{Error, Result};

/// The root directory of a layer that does not describe it.
const LAYER_MODE: Mode = Mode::from_raw_mode(0o755);

/// The state of a layer.
pub(crate) enum Claim {
    /// It is complete.
    Committed,
    /// Someone else makes it; ask again.
    Busy,
    /// The caller makes it.
    Mine(Ingest),
}

/// The right to make one layer. Dropping it without a commit removes what was made.
pub(crate) struct Ingest {
    path: PathBuf,
    target: PathBuf,
    dir: File,
    committed: bool,
}

impl Store {
    /// Asks for the right to make a layer.
    pub(crate) fn claim(self: &Arc<Self>, diff_id: &Digest) -> Result<Claim> {
        let target = self.layer_dir(diff_id);
        if target.exists() {
            return Ok(Claim::Committed);
        }
        let name = format!("{}-{}", diff_id.algorithm().as_str(), diff_id.hex());
        let path = self.root.join("ingest").join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::host(format!("make the directory {}", path.display()), e));
            }
            _ => {}
        }
        let Some(dir) = lock(&path)? else {
            return Ok(Claim::Busy);
        };
        let mine = Ingest { path, target, dir, committed: false };
        // Made between the first look and the lock; `mine` removes the empty directory again.
        if mine.target.exists() { Ok(Claim::Committed) } else { Ok(Claim::Mine(mine)) }
    }
}

/// Locks a directory, if no one else has and its name still leads to it.
pub(super) fn lock(path: &Path) -> Result<Option<File>> {
    let failed = |call: &str, e: std::io::Error| Error::host(format!("{call} {}", path.display()), e);
    let dir = match File::open(path) {
        Ok(dir) => dir,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open", e)),
    };
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(e) => return Err(failed("flock", e.into())),
    }
    let locked = dir.metadata().map_err(|e| failed("stat", e))?;
    let same = std::fs::symlink_metadata(path)
        .is_ok_and(|named| named.dev() == locked.dev() && named.ino() == locked.ino());
    Ok(same.then_some(dir))
}

impl Ingest {
    /// Removes what an earlier maker left, and gives the empty root directory of the layer.
    pub(crate) fn prepare(&self) -> Result<OwnedFd> {
        let failed =
            |call: &str, e: std::io::Error| Error::host(format!("{call} {}", self.path.display()), e);
        self.wipe().map_err(|e| failed("empty", e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = || {
            rustix::fs::mkdirat(&self.dir, "fs", LAYER_MODE)?;
            let fs = rustix::fs::openat(&self.dir, "fs", flags, Mode::empty())?;
            rustix::fs::fchmod(&fs, LAYER_MODE).map(|()| fs)
        };
        make().map_err(|e| failed("make the directory fs in", e.into()))
    }

    /// Makes the layer complete: all of it is on the disk before its name appears.
    pub(crate) fn commit(mut self) -> Result<()> {
        let shown = self.target.display().to_string();
        rustix::fs::syncfs(&self.dir).map_err(|e| Error::host(format!("syncfs for {shown}"), e))?;
        std::fs::rename(&self.path, &self.target)
            .map_err(|e| Error::host(format!("rename {} to {shown}", self.path.display()), e))?;
        self.committed = true;
        Ok(())
    }

    fn wipe(&self) -> std::io::Result<()> {
        remove_all(self.dir.as_fd(), OsStr::new("fs"))
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // Under the lock. What cannot be removed now is removed by the next maker or opening.
        if !self.committed && self.wipe().is_ok() {
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// Removes layers in the making that nobody makes.
pub(super) fn sweep(ingest: &Path) -> Result<()> {
    let failed = |e| Error::host(format!("read the directory {}", ingest.display()), e);
    for entry in std::fs::read_dir(ingest).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let Some(dir) = lock(&path)? {
            drop(Ingest { path, target: PathBuf::new(), dir, committed: false });
        }
    }
    Ok(())
}
