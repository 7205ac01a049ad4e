//! What is known of a layer from when it was made: `layer.json` beside its `fs/`.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::image::digest::Digest;
use crate::{Error, ErrorKind, Result};

/// The file's name in the layer's directory.
pub(crate) const LAYER_FILE: &str = "layer.json";
/// Bytes of the file: two digests and two numbers fit well.
const MAX_LAYER_FILE_BYTES: u64 = 4 << 10;

/// How a layer came and what it became. A layer of an older version of Skiff has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Digest of the archive.
    pub(crate) diff_id: String,
    /// Digest of the bytes as fetched; `docker save` archives do not say it.
    pub(crate) packed_digest: Option<String>,
    /// Bytes as fetched.
    pub(crate) packed_bytes: u64,
    /// Bytes of the archive.
    pub(crate) archive_bytes: u64,
}

impl LayerRecord {
    /// Writes it into the directory of a layer in the making, in place of one that an earlier maker
    /// left. Whoever commits the layer syncs it.
    ///
    /// # Errors
    /// `DiskFull`, `Host`.
    pub(crate) fn write(&self, dir: BorrowedFd<'_>) -> Result<()> {
        let failed = |e: std::io::Error| Error::host(format!("write {LAYER_FILE} of {}", self.diff_id), e);
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::new(ErrorKind::Internal, "write a layer's record").because(e))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, LAYER_FILE, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| failed(e.into()))?;
        File::from(file).write_all(&bytes).map_err(failed)
    }

    /// Reads that of a layer's directory; `None` if there is none, or if it is damaged or another's.
    pub(crate) fn read(layer_dir: &Path, diff_id: &Digest) -> Option<Self> {
        let mut bytes = Vec::new();
        let file = File::open(layer_dir.join(LAYER_FILE)).ok()?;
        file.take(MAX_LAYER_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        let record: Self = serde_json::from_slice(&bytes).ok()?;
        (record.diff_id == diff_id.to_string()).then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_another_layers_is_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (mine, other) = (Digest::sha256(b"mine"), Digest::sha256(b"other"));
        let record = LayerRecord {
            diff_id: mine.to_string(),
            packed_digest: Some(other.to_string()),
            packed_bytes: 1,
            archive_bytes: 2,
        };
        assert_eq!(LayerRecord::read(dir.path(), &mine), None);
        let opened = File::open(dir.path()).expect("open");
        record.write(opened.as_fd()).expect("written");
        record.write(opened.as_fd()).expect("written again");
        assert_eq!(LayerRecord::read(dir.path(), &mine), Some(record));
        assert_eq!(LayerRecord::read(dir.path(), &other), None);
        std::fs::write(dir.path().join(LAYER_FILE), "{").expect("damaged");
        assert_eq!(LayerRecord::read(dir.path(), &mine), None);
    }
}
