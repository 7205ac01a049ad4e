//! What is deployed, on disk: one file for each function, which a crash leaves whole or as it was.
//!
//! A file holds the function's file, its variables among them: it is its owner's alone, in a directory that
//! is root's alone. Credentials are in neither: a function names where its role's come from.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Key;
use super::deployed::Revision;
use super::deployment::{Deployment, Scaling};
use super::info::millis;
use crate::{Error, ErrorKind, Result};

/// Bytes of a record at most: a file has 256 KiB, which JSON may escape.
const MAX_BYTES: u64 = 4 << 20;

/// What names do not have.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// One function as it was deployed last.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) revision: u64,
    pub(super) image: String,
    pub(super) digest: String,
    pub(super) scaling: Scaling,
    since_unix_ms: u64,
    deployment: Deployment,
}

impl Record {
    pub(super) fn of(revision: &Revision, deployment: &Deployment) -> Self {
        Self {
            namespace: revision.config.namespace.clone(),
            name: revision.config.name.clone(),
            revision: revision.number,
            image: revision.image.clone(),
            digest: revision.held.digest.clone(),
            scaling: revision.scaling,
            since_unix_ms: millis(revision.since),
            deployment: deployment.clone(),
        }
    }

    pub(super) fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    pub(super) fn since(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.since_unix_ms)
    }
}

/// The directory of all records, locked for one node.
pub(super) struct Shelf {
    dir: PathBuf,
    _lock: File,
}

impl Shelf {
    /// Makes the directory if it is missing.
    ///
    /// # Errors
    /// `Busy` when another node has it; `Runtime(Host)`.
    pub(super) fn open(state_dir: &Path) -> Result<Self> {
        let dir = state_dir.join("functions");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|error| host(format!("cannot make {}", dir.display()), error))?;
        let lock = File::open(&dir).map_err(|error| host(format!("cannot open {}", dir.display()), error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { dir, _lock: lock }),
            Err(Errno::WOULDBLOCK) => {
                let message = format!("another node serves what is deployed in {}", dir.display());
                Err(Error::new(ErrorKind::Busy, message)
                    .advise("end it first, or give this one a state directory of its own"))
            }
            Err(error) => Err(host(format!("cannot lock {}", dir.display()), error.into())),
        }
    }

    /// All records; one that cannot be read is told and left where it is.
    pub(super) fn records(&self) -> Result<Vec<Record>> {
        let failed = |error| host(format!("cannot read {}", self.dir.display()), error);
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => records.push(record),
                Err(why) => tracing::error!(path = %path.display(), why, "a deployed function is not known"),
            }
        }
        records.sort_by(|a: &Record, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(records)
    }

    pub(super) fn put(&self, key: &Key, record: &Record) -> Result<()> {
        let path = self.path(key);
        let staged = path.with_extension("new");
        let failed = |error| host(format!("cannot write {}", path.display()), error);
        let bytes = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&staged)
            .map_err(failed)?;
        let written = file.write_all(&bytes).and_then(|()| file.sync_all());
        written.and_then(|()| fs::rename(&staged, &path)).and_then(|()| self.sync()).map_err(|error| {
            // What is half written is worth nothing.
            let _ = fs::remove_file(&staged);
            failed(error)
        })
    }

    pub(super) fn remove(&self, key: &Key) -> Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => self.sync().map_err(|error| host(format!("cannot remove {}", path.display()), error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(host(format!("cannot remove {}", path.display()), error)),
        }
    }

    fn sync(&self) -> std::io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// Names have letters, digits, `-` and `_`; whatever else came would not leave the directory.
    fn path(&self, key: &Key) -> PathBuf {
        let part = |text: &str| utf8_percent_encode(text, ESCAPED).to_string();
        self.dir.join(format!("{}.{}.json", part(&key.0), part(&key.1)))
    }
}

fn read(path: &Path) -> std::result::Result<Record, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes).map_err(|error| format!("it is no record of this version: {error}"))
}

fn host(what: String, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull => skiff_runtime::ErrorKind::DiskFull,
        _ => skiff_runtime::ErrorKind::Host,
    };
    Error::new(ErrorKind::Runtime(kind), what).because(error)
}
