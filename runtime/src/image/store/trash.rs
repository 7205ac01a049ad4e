//! Deleting trees so that a crash leaves nothing that is believed: renamed away first, deleted then.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Store, ingest, usage};
use crate::image::unpack::remove_all;
use crate::{Error, Result};

/// Makes names of one process differ.
static NUMBER: AtomicU64 = AtomicU64::new(0);

impl Store {
    /// Takes a directory of the store out of use. `false` if it is gone already.
    pub(super) fn discard(&self, path: &Path) -> Result<bool> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "{}-{number}-{}",
            std::process::id(),
            crate::image::digest::Digest::sha256(
                // A process of this number may have left such a name.
                format!("{}{:?}", path.display(), std::time::SystemTime::now()).as_bytes(),
            )
            .hex()
        );
        match std::fs::rename(path, self.root.join("trash").join(name)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::host(format!("rename {} into the trash", path.display()), e)),
        }
    }

    /// Deletes what is in the trash, unless another process is at it, and gives the bytes of the disk
    /// that came free. Goes on after a failure; tells the first.
    pub(super) fn empty_trash(&self) -> Result<u64> {
        let dir = self.root.join("trash");
        let trash = std::fs::File::open(&dir)
            .map_err(|e| Error::host(format!("open the directory {}", dir.display()), e))?;
        let (mut freed, mut first) = (0u64, None);
        for path in super::entries(&dir)? {
            match ingest::lock(&path) {
                Ok(Some(item)) => {
                    let bytes = usage::measure(item.as_fd()).map_or(0, |usage| usage.disk_bytes);
                    let name = path.file_name().unwrap_or_default();
                    match remove_all(trash.as_fd(), name) {
                        Ok(()) => freed = freed.saturating_add(bytes),
                        Err(e) => {
                            first = first.or(Some(Error::host(format!("delete {}", path.display()), e)));
                        }
                    }
                }
                Ok(None) => {}
                Err(e) => first = first.or(Some(e)),
            }
        }
        first.map_or(Ok(freed), Err)
    }
}
