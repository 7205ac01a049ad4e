//! What is known of the images that are here.
//!
//! ```text
//! images/HEX(name).json           what a name was when it was last pulled or imported
//! manifests/HEX(digest).json      an image, whether a name leads to it or not
//! ```
//! A name with a digest needs no network again. The time of last use is the time of the file in
//! `manifests/`, which each use sets.

use std::fs::{File, FileTimes};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Store;
use super::lease::Parts;
use crate::image::digest::Digest;
use crate::{Error, ErrorKind, Result};

/// Bytes of a record: 128 digests and a name fit well.
const MAX_RECORD_BYTES: u64 = 256 << 10;

/// A complete image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) manifest: String,
    pub(crate) config: String,
    /// Lowest first.
    pub(crate) diff_ids: Vec<String>,
    pub(crate) packed_bytes: u64,
    /// An attestation that the name's index lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) attestation: Option<String>,
}

impl Record {
    fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| {
            Error::new(ErrorKind::Internal, format!("write the record of {}", self.name)).because(e)
        })
    }

    /// What a lease on it lists.
    pub(crate) fn parts(&self) -> Parts {
        Parts {
            manifest: self.manifest.clone(),
            config: self.config.clone(),
            diff_ids: self.diff_ids.clone(),
        }
    }
}

/// A record and when its file was written or touched.
#[derive(Clone, Debug)]
pub(super) struct Dated {
    pub(super) record: Record,
    pub(super) path: PathBuf,
    pub(super) used: SystemTime,
}

impl Store {
    fn record_path(&self, name: &str) -> PathBuf {
        self.root.join("images").join(file_name(name))
    }

    fn manifest_path(&self, digest: &str) -> PathBuf {
        self.root.join("manifests").join(file_name(digest))
    }

    /// The record of a name; `None` if there is none or it is damaged.
    pub(crate) fn record(&self, name: &str) -> Option<Record> {
        let record = read(&self.record_path(name))?;
        (record.name == name).then_some(record)
    }

    /// Keeps a record under its name and its digest, unless the same is there, and notes the use. The
    /// caller has a lease on the image.
    ///
    /// # Errors
    /// `DiskFull`, `Host`.
    pub(crate) fn put_record(&self, record: &Record) -> Result<()> {
        // By digest first: a name never leads to an image that is not listed.
        self.note_use(record)?;
        if self.record(&record.name).as_ref() != Some(record) {
            self.write_held(&self.record_path(&record.name), &record.to_bytes()?)?;
        }
        Ok(())
    }

    /// Notes the use of an image, and not that a name leads to it: another process may have changed
    /// that since. The caller has a lease on the image.
    ///
    /// # Errors
    /// `DiskFull`, `Host`.
    pub(super) fn note_use(&self, record: &Record) -> Result<()> {
        let by_digest = self.manifest_path(&record.manifest);
        let known = read(&by_digest).is_some_and(|r| r.parts() == record.parts());
        if !(known && touch(&by_digest)) {
            self.write_held(&by_digest, &record.to_bytes()?)?;
        }
        Ok(())
    }

    /// As [`Store::write`]; the file appears while no remover looks at it.
    fn write_held(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let staged = self.stage(path, bytes)?;
        let _hold = self.hold()?;
        staged.publish()
    }

    /// Records by name, damaged ones left out.
    pub(super) fn named_records(&self) -> Result<Vec<Dated>> {
        let all = dated(&self.root.join("images"))?;
        Ok(all.into_iter().filter(|d| d.path == self.record_path(&d.record.name)).collect())
    }

    /// Records by digest, damaged ones left out.
    pub(super) fn image_records(&self) -> Result<Vec<Dated>> {
        let all = dated(&self.root.join("manifests"))?;
        Ok(all.into_iter().filter(|d| d.path == self.manifest_path(&d.record.manifest)).collect())
    }
}

pub(super) fn file_name(key: &str) -> String {
    format!("{}.json", Digest::sha256(key.as_bytes()).hex())
}

fn dated(dir: &Path) -> Result<Vec<Dated>> {
    let records = super::entries(dir)?.into_iter().filter_map(|path| {
        let record = read(&path)?;
        let used = std::fs::metadata(&path).and_then(|m| m.modified()).ok()?;
        Some(Dated { record, path, used })
    });
    Ok(records.collect())
}

fn read(path: &Path) -> Option<Record> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_RECORD_BYTES).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Sets a file's time to now; a time that is lost in a crash does no harm. `false` if that failed.
fn touch(path: &Path) -> bool {
    let times = FileTimes::new().set_modified(SystemTime::now());
    File::options().write(true).open(path).and_then(|file| file.set_times(times)).is_ok()
}
