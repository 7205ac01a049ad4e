//! What a name was when it was last pulled, so that a name with a digest needs no network again.

use std::io::Read as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Store;
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
}

impl Store {
    fn record_path(&self, name: &str) -> PathBuf {
        self.root.join("images").join(format!("{}.json", Digest::sha256(name.as_bytes()).hex()))
    }

    /// The record of a name; `None` if there is none or it is damaged.
    pub(crate) fn record(&self, name: &str) -> Option<Record> {
        let file = std::fs::File::open(self.record_path(name)).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_RECORD_BYTES).read_to_end(&mut bytes).ok()?;
        let record: Record = serde_json::from_slice(&bytes).ok()?;
        (record.name == name).then_some(record)
    }

    /// Keeps a record, unless the same is there.
    pub(crate) fn put_record(&self, record: &Record) -> Result<()> {
        if self.record(&record.name).as_ref() == Some(record) {
            return Ok(());
        }
        let bytes = serde_json::to_vec(record).map_err(|e| {
            Error::new(ErrorKind::Internal, format!("write the record of {}", record.name)).because(e)
        })?;
        self.write(&self.record_path(&record.name), &bytes)
    }
}
