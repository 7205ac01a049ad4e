//! A layer in the making: who makes it, and how it becomes complete or vanishes.
//!
//! ```text
//! claim ── Committed (someone has made it)
//!       ├─ Busy (someone makes it now)
//!       └─ Mine ── prepare ── unpack into fs/ ── commit ── layers/…
//!                                             └─ drop ──── nothing, or packed bytes to go on from
//! ```
//! The lock is on the directory itself. Between opening and locking it may have been renamed (made)
//! or removed (failed), so its name must still lead to the same inode after that.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{LayerRecord, Store, settle};
use crate::image::digest::Digest;
use crate::image::download::Partial;
use crate::image::unpack::{self, remove_all};
use crate::{Error, Result};

/// The root directory of a layer that does not describe it.
const LAYER_MODE: Mode = Mode::from_raw_mode(0o755);
/// Packed bytes that a pull keeps for a later one are in a file of this name and the digest.
const PARTIAL_PREFIX: &str = "packed-";
/// A layer of fewer bytes is fetched anew: that costs less than writing its bytes twice.
const PARTIAL_FROM_BYTES: u64 = 8 << 20;
/// Who was cut off comes again soon, or not at all.
const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The state of a layer.
pub(crate) enum Claim {
    /// It is complete.
    Committed,
    /// Someone else makes it; ask again.
    Busy,
    /// The caller makes it.
    Mine(Ingest),
}

/// The right to make one layer. Dropping it without a commit removes what was made, except for
/// packed bytes that were asked to be kept.
pub(crate) struct Ingest {
    path: PathBuf,
    target: PathBuf,
    marker: PathBuf,
    dir: File,
    /// Whether this maker went on from what an earlier one kept.
    resumed: bool,
    keep_packed: bool,
    committed: bool,
}

impl Store {
    /// Asks for the right to make a layer.
    pub(crate) fn claim(self: &Arc<Self>, diff_id: &Digest) -> Result<Claim> {
        let target = self.layer_dir(diff_id);
        if target.exists() {
            return Ok(Claim::Committed);
        }
        let Some(mine) = self.lock_ingest(diff_id)? else {
            return Ok(Claim::Busy);
        };
        // Made between the first look and the lock; `mine` removes the empty directory again.
        if mine.target.exists() { Ok(Claim::Committed) } else { Ok(Claim::Mine(mine)) }
    }

    /// The lock on a layer, whether or not it is there; `None` if someone else has it.
    pub(super) fn lock_ingest(&self, diff_id: &Digest) -> Result<Option<Ingest>> {
        let name = format!("{}-{}", diff_id.algorithm().as_str(), diff_id.hex());
        let marker = self.root.join(settle::DIRECTORY).join(&name);
        self.lock_making(&name, self.layer_dir(diff_id), marker)
    }

    /// As [`Store::lock_ingest`], for whatever gets its name when it is complete.
    pub(super) fn lock_making(&self, name: &str, target: PathBuf, marker: PathBuf) -> Result<Option<Ingest>> {
        let path = self.root.join("ingest").join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::host(format!("make the directory {}", path.display()), e));
            }
            _ => {}
        }
        let Some(dir) = lock(&path)? else {
            return Ok(None);
        };
        Ok(Some(Ingest { target, marker, path, dir, resumed: false, keep_packed: false, committed: false }))
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
        self.wipe(true).map_err(|e| self.failed("empty", e))?;
        make_root(&self.dir).map_err(|e| self.failed("make the directory fs in", e.into()))
    }

    /// Makes a directory with the empty root of a layer in it; gives its path, it, and the root.
    pub(super) fn prepare_below(&self, name: &str) -> Result<(PathBuf, OwnedFd, OwnedFd)> {
        let path = self.path.join(name);
        let failed = |e: std::io::Error| Error::host(format!("make the directory {}", path.display()), e);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        let beside = OwnedFd::from(File::open(&path).map_err(failed)?);
        let root = make_root(&beside).map_err(|e| failed(e.into()))?;
        Ok((path, beside, root))
    }

    /// An empty file beside the layer's root, for its recipe.
    pub(crate) fn recipe(&self) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&self.dir, unpack::RECIPE, flags, Mode::RUSR | Mode::WUSR);
        made.map(File::from).map_err(|e| self.failed("make the file recipe in", e.into()))
    }

    /// The directory that the layer's root is in.
    pub(crate) fn beside(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, ".", flags, Mode::empty()).map_err(|e| self.failed("open", e.into()))
    }

    /// Writes a small file beside the layer's root.
    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let put = || std::io::Write::write_all(&mut File::create_new(&path)?, bytes);
        put().map_err(|e| Error::host(format!("write {}", path.display()), e))
    }

    /// Removes the layer's root, which is of no use.
    pub(super) fn remove_root(&self) -> Result<()> {
        self.remove_where(|name| name == "fs").map_err(|e| self.failed("remove the directory fs in", e))
    }

    /// What an earlier pull kept of the packed layer; `None` for a layer that is too small for that.
    ///
    /// Asked for a second time, nothing is kept: what there was led to a layer that is not right.
    pub(crate) fn partial(&mut self, digest: &Digest, size: u64) -> Result<Option<Partial>> {
        if size < PARTIAL_FROM_BYTES || std::mem::take(&mut self.resumed) {
            self.remove_packed().map_err(|e| self.failed("remove the packed bytes in", e))?;
            return Ok(None);
        }
        let name = format!("{PARTIAL_PREFIX}{}-{}", digest.algorithm().as_str(), digest.hex());
        let path = self.path.join(name);
        let open = || -> std::io::Result<Partial> {
            let mut file =
                OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
            let mut bytes = file.seek(SeekFrom::End(0))?;
            if bytes > size {
                file.set_len(0)?;
                bytes = file.seek(SeekFrom::Start(0))?;
            }
            Ok(Partial { file, bytes })
        };
        let partial = open().map_err(|e| Error::host(format!("open {}", path.display()), e))?;
        self.resumed = partial.bytes > 0;
        Ok(Some(partial))
    }

    /// Whether the layer began with bytes that an earlier pull kept.
    pub(crate) fn has_resumed(&self) -> bool {
        self.resumed
    }

    /// Has the packed bytes that came kept for a later pull.
    pub(crate) fn keep_packed(mut self) {
        self.keep_packed = true;
    }

    /// Makes the layer complete. Its bytes may not be on the disk yet: [`settle`] tells of that. One that
    /// could not be hashed again after a crash (`replaced`) waits for them, and its files are noted.
    pub(crate) fn commit(self, record: &LayerRecord, replaced: bool) -> Result<()> {
        record.write(self.dir.as_fd())?;
        self.remove_packed().map_err(|e| self.failed("remove the packed bytes in", e))?;
        if replaced {
            unpack::note(&self.path)?;
            rustix::fs::syncfs(&self.dir).map_err(|e| self.failed("syncfs for", e.into()))?;
        } else {
            settle::mark(&self.marker)?;
        }
        self.publish()
    }

    /// Gives it its name.
    pub(super) fn publish(mut self) -> Result<()> {
        std::fs::rename(&self.path, &self.target).map_err(|e| {
            let (from, to) = (self.path.display(), self.target.display());
            Error::host(format!("rename {from} to {to}"), e)
        })?;
        self.committed = true;
        Ok(())
    }

    /// Takes a complete layer back: it is no longer there, and vanishes with this.
    pub(super) fn revoke(self) -> Result<()> {
        match std::fs::rename(&self.target, self.path.join("revoked")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::host(format!("remove {}", self.target.display()), e))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, call: &str, e: std::io::Error) -> Error {
        Error::host(format!("{call} {}", self.path.display()), e)
    }

    fn remove_packed(&self) -> std::io::Result<()> {
        self.remove_where(is_packed)
    }

    fn wipe(&self, keep_packed: bool) -> std::io::Result<()> {
        self.remove_where(|name| !(keep_packed && is_packed(name)))
    }

    fn remove_where(&self, unwanted: impl Fn(&OsStr) -> bool) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if unwanted(&name) {
                remove_all(self.dir.as_fd(), &name)?;
            }
        }
        Ok(())
    }
}

/// Whether a pull that was killed left packed bytes in a layer's directory that are worth going on
/// from.
fn has_fresh_packed(path: &Path) -> bool {
    let fresh = |entry: std::fs::DirEntry| {
        let data = entry.metadata().ok()?;
        // A time in the future is of a clock that was wrong.
        let age = data.modified().ok()?.elapsed().ok()?;
        (is_packed(&entry.file_name()) && data.len() > 0 && age < PARTIAL_KEPT).then_some(())
    };
    std::fs::read_dir(path).is_ok_and(|entries| entries.flatten().filter_map(fresh).next().is_some())
}

/// Whether nobody makes a layer, and nobody will go on from what is there if that is kept.
pub(super) fn is_left(path: &Path, keep_packed: bool) -> Result<bool> {
    Ok(lock(path)?.is_some() && !(keep_packed && has_fresh_packed(path)))
}

/// The empty root of a layer.
fn make_root(dir: impl AsFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::mkdirat(&dir, "fs", LAYER_MODE)?;
    let fs = rustix::fs::openat(&dir, "fs", flags, Mode::empty())?;
    rustix::fs::fchmod(&fs, LAYER_MODE).map(|()| fs)
}

fn is_packed(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PARTIAL_PREFIX.as_bytes())
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // Under the lock. What cannot be removed now is removed by the next maker or opening.
        if !self.committed && self.wipe(self.keep_packed).is_ok() {
            // Fails where packed bytes are kept.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// Removes layers in the making that nobody makes. Packed bytes that came lately stay if they may.
pub(super) fn sweep(ingest: &Path, keep_packed: bool) -> Result<()> {
    let failed = |e| Error::host(format!("read the directory {}", ingest.display()), e);
    for entry in std::fs::read_dir(ingest).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let Some(dir) = lock(&path)? {
            let nowhere = PathBuf::new();
            let mut left = Ingest {
                path,
                target: nowhere.clone(),
                marker: nowhere,
                dir,
                resumed: false,
                keep_packed: false,
                committed: false,
            };
            left.keep_packed = keep_packed && has_fresh_packed(&left.path);
        }
    }
    Ok(())
}
