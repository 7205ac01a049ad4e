//! When the bytes of a layer are on the disk.
//!
//! A pull does not wait for the disk. A layer that was committed has a marker with the number of
//! this boot, which goes away when `syncfs` has been called after the commit. While this boot lasts
//! the page cache holds what the disk lacks, so the layer is whole. A marker of another boot means
//! that the layer may have holes: it is hashed again before it is believed, and removed if it differs.
//!
//! The marker is made before the layer gets its name, and filesystems keep the order of such changes,
//! so there is no layer without its marker after a crash; an empty marker counts as one of another boot.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;

use super::Store;
use crate::image::digest::Digest;
use crate::image::unpack::{Rehash, has_whole_list, verify_layer};
use crate::{Error, Result};

/// The markers' directory.
pub(super) const DIRECTORY: &str = "unsettled";
/// Bytes of a marker that are read: the number of a boot has 36, what follows fewer.
const MAX_MARKER_BYTES: u64 = 128;
/// A function that was just pulled starts now, and shall have the disk for itself.
const SETTLE_AFTER: Duration = Duration::from_secs(3);
/// Waiting for another process that handles the same marker.
const POLL: Duration = Duration::from_millis(5);

/// Marks a layer that is about to be committed.
pub(super) fn mark(marker: &Path) -> Result<()> {
    // No two makings of a layer have the same marker, so that one is not taken for the other.
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let text = || Ok::<_, std::io::Error>(format!("{} {}-{since}", boot_id()?, std::process::id()));
    let write = || File::create(marker)?.write_all(text()?.as_bytes());
    write().map_err(|e| Error::host(format!("write {}", marker.display()), e))
}

/// The kernel's number of this boot (random(4)).
pub(super) fn boot_id() -> std::io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

pub(super) fn read(marker: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(marker)?.take(MAX_MARKER_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether it is that of a layer of which nobody knows that it is whole.
fn is_of_another_boot(marker: &Path, boot: &str) -> bool {
    match read(marker) {
        Ok(text) => text.split(' ').next() != Some(boot),
        Err(e) => e.kind() != std::io::ErrorKind::NotFound,
    }
}

fn diff_id_of(marker: &Path) -> Option<Digest> {
    marker.file_name()?.to_str()?.replacen('-', ":", 1).parse().ok()
}

/// Whether a failure says something of the layer, and not of this process or the moment.
fn is_of_layer(error: &Error) -> bool {
    let of_moment = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::INTR];
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    let code = cause.and_then(std::io::Error::raw_os_error);
    !of_moment.iter().any(|errno| code == Some(errno.raw_os_error()))
}

impl Store {
    /// Looks at the layers of an earlier boot that may have holes, and takes back those that do.
    pub(super) fn check_unsettled(&self) -> Result<()> {
        let boot = boot_id().map_err(|e| Error::host("read the number of this boot", e))?;
        for marker in self.markers()? {
            while is_of_another_boot(&marker, &boot) {
                if self.decide(&marker)? {
                    break;
                }
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Whether layers may not be on the disk yet.
    pub(super) fn has_unsettled(&self) -> bool {
        self.markers().is_ok_and(|markers| !markers.is_empty())
    }

    /// Removes a marker, and its layer unless that is whole; `false` if another process is at it.
    fn decide(&self, marker: &Path) -> Result<bool> {
        if let Some(diff_id) = diff_id_of(marker) {
            let Some(ingest) = self.lock_ingest(&diff_id)? else {
                return Ok(false);
            };
            let dir = self.layer_dir(&diff_id);
            let whole = match verify_layer(&dir, &diff_id) {
                Ok(report) => report.is_sound() && report.rehash == Rehash::Equal && has_whole_list(&dir),
                Err(error) if is_of_layer(&error) => false,
                Err(error) => return Err(error),
            };
            tracing::debug!(%diff_id, whole, "the host went down before this layer was known to be on the disk");
            if !whole {
                ingest.revoke()?;
            }
        }
        match std::fs::remove_file(marker) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::host(format!("remove {}", marker.display()), e))
            }
            _ => Ok(true),
        }
    }

    fn markers(&self) -> Result<Vec<PathBuf>> {
        let dir = self.root.join(DIRECTORY);
        let failed = |e| Error::host(format!("read the directory {}", dir.display()), e);
        let entries = std::fs::read_dir(&dir).map_err(failed)?;
        entries.map(|entry| entry.map(|e| e.path()).map_err(failed)).collect()
    }

    /// Waits until all that has been pulled so far is on the disk. Pulls do not wait for that, and it
    /// happens by itself some seconds after one; if the host goes down before, the layers in question are
    /// hashed again. Blocks.
    ///
    /// # Errors
    /// `DiskFull`, `Host`.
    pub fn settle(&self) -> Result<()> {
        let read = |path: PathBuf| read(&path).ok().map(|text| (path, text));
        let markers: Vec<(PathBuf, String)> = self.markers()?.into_iter().filter_map(read).collect();
        if markers.is_empty() {
            return Ok(());
        }
        let root =
            File::open(&self.root).map_err(|e| Error::host(format!("open {}", self.root.display()), e))?;
        rustix::fs::syncfs(&root).map_err(|e| Error::host(format!("syncfs {}", self.root.display()), e))?;
        // One that stays has the layer hashed again after the next boot, and nothing worse.
        markers.iter().for_each(|(marker, text)| Self::remove_settled(marker, text));
        Ok(())
    }

    /// Removes a marker, unless its layer has been made anew since it was read.
    fn remove_settled(marker: &Path, text: &str) {
        // Between these two a layer would have to be removed, fetched again and unpacked.
        if read(marker).is_ok_and(|now| now == text) {
            let _ = std::fs::remove_file(marker);
        }
    }

    /// Has [`Store::settle`] done in a while, once for all that comes until then. A process that ends
    /// before leaves it to the next.
    pub(crate) fn settle_later(self: &Arc<Self>) {
        if self.settling.swap(true, Ordering::AcqRel) {
            return;
        }
        let store = Arc::clone(self);
        let settle = move || {
            std::thread::sleep(SETTLE_AFTER);
            store.settling.store(false, Ordering::Release);
            if let Err(error) = store.settle() {
                tracing::debug!(%error, "layers stay marked as not yet on the disk");
            }
        };
        if std::thread::Builder::new().name("skiff-settle".into()).spawn(settle).is_err() {
            self.settling.store(false, Ordering::Release);
        }
    }
}
