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

use super::Store;
use crate::image::digest::Digest;
use crate::image::unpack::{Rehash, has_whole_list, verify_layer};
use crate::{Error, Result};

/// The markers' directory.
pub(super) const DIRECTORY: &str = "unsettled";
/// Bytes of a marker that are read; the number of a boot has 36.
const MAX_MARKER_BYTES: u64 = 64;
/// A function that was just pulled starts now, and shall have the disk for itself.
const SETTLE_AFTER: Duration = Duration::from_secs(3);
/// Waiting for another process that handles the same marker.
const POLL: Duration = Duration::from_millis(5);

/// Marks a layer that is about to be committed.
pub(super) fn mark(marker: &Path) -> Result<()> {
    let write = || File::create(marker)?.write_all(boot_id()?.as_bytes());
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

impl Store {
    /// Looks at the layers of an earlier boot that may have holes, and takes back those that do.
    pub(super) fn check_unsettled(&self) -> Result<()> {
        let boot = boot_id().map_err(|e| Error::host("read the number of this boot", e))?;
        for marker in self.markers()? {
            while read(&marker).is_ok_and(|id| id != boot) {
                if self.decide(&marker)? {
                    break;
                }
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Removes a marker, and its layer unless that is whole; `false` if another process is at it.
    fn decide(&self, marker: &Path) -> Result<bool> {
        let name = marker.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Ok(diff_id) = name.replacen('-', ":", 1).parse::<Digest>() {
            let Some(ingest) = self.lock_ingest(&diff_id)? else {
                return Ok(false);
            };
            let whole = verify_layer(&self.layer_dir(&diff_id), &diff_id)
                .is_ok_and(|report| report.is_sound() && report.rehash == Rehash::Equal)
                && has_whole_list(&self.layer_dir(&diff_id));
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
        let markers = self.markers()?;
        if markers.is_empty() {
            return Ok(());
        }
        let root =
            File::open(&self.root).map_err(|e| Error::host(format!("open {}", self.root.display()), e))?;
        rustix::fs::syncfs(&root).map_err(|e| Error::host(format!("syncfs {}", self.root.display()), e))?;
        for marker in markers {
            // Another process may have been faster; one too many costs a pull after a crash.
            let _ = std::fs::remove_file(marker);
        }
        Ok(())
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
