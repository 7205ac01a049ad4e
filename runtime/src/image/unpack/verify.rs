//! Whether a layer in the store is still what was pulled.
//!
//! The archive is put together again from the recipe and the files, and hashed against its DiffID:
//! that finds every changed byte of every file. Then each of its entries is compared with what is on
//! the disk, and the disk is searched for what no entry put there. A layer in which a name comes twice is
//! compared with what was noted of its files when it was unpacked ([`super::noted`]).

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::compare::Comparison;
use super::entries::Entries;
use super::rebuild::{Content, Rebuilt};
use super::{broken, implied, noted, path, recipe};
use crate::image::digest::{Algorithm, Digest, Hasher};
use crate::{Error, ErrorKind, Result};

/// What was found of one layer.
#[derive(Debug)]
pub(crate) struct LayerReport {
    /// Entries of its archive.
    pub(crate) entries: u64,
    /// Bytes of its archive.
    pub(crate) bytes: u64,
    pub(crate) rehash: Rehash,
    /// The first path that is not as the archive says.
    pub(crate) difference: Option<Difference>,
}

/// Whether the archive that was put together again has the DiffID.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rehash {
    Equal,
    Differs {
        found: Digest,
    },
    /// A name comes twice in the archive, so what it held first is not there to be hashed. The files were
    /// compared with what was noted of them.
    Noted,
    /// As before, and nothing was noted: an older version of Skiff unpacked it.
    Impossible,
}

/// A path in a layer, and what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// From the layer's root.
    pub(crate) path: PathBuf,
    /// For example "its mode is 0600, not 0644".
    pub(crate) what: String,
}

impl LayerReport {
    /// Whether nothing was found to be wrong.
    pub(crate) fn is_sound(&self) -> bool {
        self.difference.is_none() && !matches!(self.rehash, Rehash::Differs { .. })
    }
}

/// Compares a layer in the store with what was unpacked there. `layer_dir` holds `fs` and `recipe`.
///
/// # Errors
/// `CorruptImage` if there is no recipe or it is broken; `Host`.
pub(crate) fn verify_layer(layer_dir: &Path, diff_id: &Digest) -> Result<LayerReport> {
    let layer = Layer::open(layer_dir)?;
    let first = layer.hash(diff_id)?;
    let mut report = LayerReport {
        entries: first.entries,
        bytes: first.bytes,
        rehash: Rehash::Impossible,
        difference: None,
    };
    if first.replaced {
        if let Some(difference) = noted::compare(&layer, layer_dir)? {
            report.rehash = Rehash::Noted;
            report.difference = difference;
        }
        return Ok(report);
    }
    let found = first.hasher.finish();
    report.rehash = if found == *diff_id { Rehash::Equal } else { Rehash::Differs { found } };
    report.difference = layer.compare(&first.directories)?;
    Ok(report)
}

/// A layer in the store.
pub(super) struct Layer {
    dir: OwnedFd,
    path: PathBuf,
    shown: String,
}

struct First {
    entries: u64,
    bytes: u64,
    hasher: Hasher,
    replaced: bool,
    directories: Directories,
}

/// Which entry of a directory is the last: the one that counts. Paths are kept as hashes with a
/// random key.
pub(super) struct Directories {
    last: HashMap<u64, u32>,
    keys: RandomState,
}

impl Directories {
    pub(super) fn is_last(&self, path: &Path, entry: u64) -> bool {
        self.last.get(&self.keys.hash_one(path.as_os_str())).is_none_or(|last| u64::from(*last) == entry)
    }
}

impl Layer {
    /// # Errors
    /// `Host`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let shown = path.display().to_string();
        let dir = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| Error::host(format!("open the layer {shown}"), e))?;
        Ok(Self { dir, path: path.to_owned(), shown })
    }

    fn file(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(&self.dir, name, flags, Mode::empty(), resolve).map_err(|e| {
            Error::new(ErrorKind::CorruptImage, format!("the layer {} has no {name}", self.shown))
                .because(std::io::Error::from(e))
                .advise("remove the image and pull it again")
        })
    }

    /// Its archive, put together again.
    pub(super) fn rebuilt(&self, from: Content) -> Result<Rebuilt> {
        let recipe = File::from(self.file(recipe::NAME, OFlags::empty())?);
        Rebuilt::new(recipe, self.root()?, from)
    }

    /// Its own root directory.
    pub(super) fn root(&self) -> Result<OwnedFd> {
        self.file("fs", OFlags::DIRECTORY)
    }

    /// Its list of implied directories, if it has one.
    pub(super) fn list(&self) -> Result<Option<File>> {
        let has_none = matches!(self.path.join(implied::NAME).try_exists(), Ok(false));
        if has_none { Ok(None) } else { self.file(implied::NAME, OFlags::empty()).map(|fd| Some(fd.into())) }
    }

    /// The error for a recipe that makes no archive.
    pub(super) fn broken(&self, error: Error) -> Error {
        match error.kind() {
            ErrorKind::InvalidImage | ErrorKind::CorruptImage | ErrorKind::LimitExceeded => {
                let message = format!("the recipe of the layer {} is broken", self.shown);
                Error::new(ErrorKind::CorruptImage, message)
                    .because(error)
                    .advise("remove the image and pull it again")
            }
            _ => error,
        }
    }

    /// The first pass: hashes all bytes, and notes which entries count.
    fn hash(&self, diff_id: &Digest) -> Result<First> {
        let hashed = Hashed::new(self.rebuilt(Content::Files)?, diff_id.algorithm());
        let mut entries = Entries::new(hashed);
        let mut directories = Directories { last: HashMap::new(), keys: RandomState::new() };
        let mut count = 0u64;
        while let Some(entry) = entries.next().map_err(|e| self.broken(e))? {
            count += 1;
            if entry.kind == super::Kind::Directory {
                let path = path::clean(&entry.path).map_err(|e| self.broken(e))?;
                let index = u32::try_from(count).unwrap_or(u32::MAX);
                directories.last.insert(directories.keys.hash_one(path.as_os_str()), index);
            }
        }
        drain(entries.reader()).map_err(|e| self.broken(e))?;
        let (rebuilt, hasher, bytes) = entries.into_reader().into_parts();
        let replaced = rebuilt.replaced().unwrap_or(true);
        Ok(First { entries: count, bytes, hasher, replaced, directories })
    }

    /// The second pass: compares entries, and looks for what has none.
    fn compare(&self, directories: &Directories) -> Result<Option<Difference>> {
        let mut entries = Entries::new(self.rebuilt(Content::Zeros)?);
        let mut comparison = Comparison::new(self.root()?);
        implied::read(&self.path, |path| comparison.listed(path))?;
        let mut count = 0;
        while let Some(entry) = entries.next().map_err(|e| self.broken(e))? {
            count += 1;
            let before = entries.reader().passed().0;
            let data = drain(&mut entries.data())?;
            let (after, path) = entries.reader().passed();
            let from = (after - before == data).then(|| path.to_owned());
            if let Some(difference) = comparison.entry(&entry, count, directories, data, from.as_deref())? {
                return Ok(Some(difference));
            }
        }
        match comparison.wrong_directory() {
            Some(difference) => Ok(Some(difference)),
            None => comparison.foreign(),
        }
    }
}

fn drain(reader: &mut impl Read) -> Result<u64> {
    std::io::copy(reader, &mut std::io::sink()).map_err(|e| broken(e, "recipe of a layer"))
}

/// Bytes that are hashed and counted and nothing else.
struct Hashed<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
}

impl<R: Read> Hashed<R> {
    fn new(inner: R, algorithm: Algorithm) -> Self {
        Self { inner, hasher: Hasher::new(algorithm), count: 0 }
    }

    fn into_parts(self) -> (R, Hasher, u64) {
        (self.inner, self.hasher, self.count)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
