//! `docker-archive:FILE`: what `docker save` writes (Docker image specification v1.2, *Combined
//! Image JSON + Filesystem Changeset Format*): a tar with `manifest.json`, a configuration and the
//! layers.
//!
//! The archive names no digests but the configuration's: layers are verified by their DiffIDs, which
//! it holds. Newer versions of Docker put an OCI layout into the same file; `manifest.json` is there
//! as well and is what is read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::digest::Digest;
use super::limits::{self, Limits};
use super::unpack::{Entries, Kind, clean_path};
use super::{config, layout};
use crate::{Error, ErrorKind, Result};

/// Files that an archive may have: a few per layer.
const MAX_FILES: u64 = 10_000;
/// Links to follow: old versions of Docker link a layer that comes twice.
const MAX_LINKS: usize = 8;

/// Where a file is inside the archive.
#[derive(Clone, Debug)]
enum Slot {
    File(Section),
    Link(PathBuf),
}

/// Some bytes of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The one image of an archive.
pub(crate) struct Archive {
    pub(crate) config_digest: Digest,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) configuration: config::Configuration,
    /// Lowest first; as many as DiffIDs.
    pub(crate) layers: Vec<Section>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    layers: Vec<String>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

fn invalid(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidImage, format!("the archive {}: {why}", path.display()))
}

impl Archive {
    /// Reads everything but the layers. Blocks.
    ///
    /// # Errors
    /// `ImageNotFound`, `InvalidImage`, `CorruptImage`, `LimitExceeded`, `DigestMismatch`.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let mut file = layout::open(path)?;
        refuse_compressed(&mut file, path)?;
        let slots = Slots { map: scan(&mut file, path)?, path };
        let item = slots.item(&mut file)?;
        limits.check_layers(item.layers.len() as u64)?;
        let section = slots.section(&item.config)?;
        limits::check("bytes of the image configuration", section.length, limits::MAX_CONFIG_BYTES)?;
        let config_bytes = read(&mut file, section, path)?;
        let config_digest = verified_digest(&item.config, &config_bytes)?;
        let configuration = config::parse(&config_bytes)?;
        let layers = item.layers.iter().map(|name| slots.section(name)).collect::<Result<Vec<_>>>()?;
        let packed = layers.iter().fold(0u64, |sum, s| sum.saturating_add(s.length));
        limits.check_packed(packed)?;
        Ok(Self { config_digest, config_bytes, configuration, layers })
    }
}

fn refuse_compressed(file: &mut File, path: &Path) -> Result<()> {
    let mut head = [0u8; 4];
    let whole = file.read_exact(&mut head).is_ok();
    file.rewind().map_err(|e| Error::host(format!("read {}", path.display()), e))?;
    if whole && (head.starts_with(&[0x1f, 0x8b]) || head == [0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(invalid(path, "it is compressed")
            .advise("decompress it first; the layers inside may be compressed"));
    }
    Ok(())
}

/// Says which file it is that cannot be walked.
fn broken(path: &Path, error: Error) -> Error {
    if !matches!(error.kind(), ErrorKind::CorruptImage | ErrorKind::InvalidImage) {
        return error;
    }
    Error::new(error.kind(), format!("the archive {} cannot be read", path.display()))
        .advise("is this a file of docker save, and whole?")
        .because(error)
}

/// Notes where each file is; the data is skipped.
fn scan(file: &mut File, path: &Path) -> Result<HashMap<PathBuf, Slot>> {
    let failed = |e| Error::host(format!("read {}", path.display()), e);
    let end = file.metadata().map_err(failed)?.len();
    let mut slots = HashMap::new();
    let mut entries = Entries::new(&mut *file);
    while let Some(entry) = entries.next().map_err(|e| broken(path, e))? {
        let name = clean_path(&entry.path)?;
        let (file, length) = entries.take_data();
        let offset = file.stream_position().map_err(failed)?;
        let after = offset.checked_add(length).filter(|after| *after <= end).ok_or_else(|| {
            Error::new(ErrorKind::CorruptImage, format!("the archive {} is truncated", path.display()))
                .advise("save the image again")
        })?;
        file.seek(SeekFrom::Start(after)).map_err(failed)?;
        let slot = match entry.kind {
            Kind::Regular => Slot::File(Section { offset, length }),
            Kind::Symlink => {
                let parent = name.parent().unwrap_or(Path::new(""));
                let mut target = parent.as_os_str().as_encoded_bytes().to_vec();
                target.push(b'/');
                target.extend_from_slice(&entry.link);
                Slot::Link(clean_path(&target)?)
            }
            Kind::HardLink => Slot::Link(clean_path(&entry.link)?),
            _ => continue,
        };
        slots.insert(name, slot);
        limits::check("files of the archive", slots.len() as u64, MAX_FILES)?;
    }
    Ok(slots)
}

struct Slots<'a> {
    map: HashMap<PathBuf, Slot>,
    path: &'a Path,
}

impl Slots<'_> {
    fn section(&self, name: &str) -> Result<Section> {
        let mut at = clean_path(name.as_bytes())?;
        for _ in 0..MAX_LINKS {
            match self.map.get(&at) {
                Some(Slot::File(section)) => return Ok(*section),
                Some(Slot::Link(target)) => at.clone_from(target),
                None => break,
            }
        }
        Err(invalid(self.path, format!("it has no file {name:.200}"))
            .advise("is this a file of docker save, and whole?"))
    }

    fn item(&self, file: &mut File) -> Result<Item> {
        let section = self.section("manifest.json")?;
        limits::check("bytes of manifest.json", section.length, limits::MAX_MANIFEST_BYTES)?;
        let bytes = read(file, section, self.path)?;
        let mut items: Vec<Item> = serde_json::from_slice(&bytes)
            .map_err(|e| invalid(self.path, format!("manifest.json cannot be read: {e}")))?;
        match (items.pop(), items.len()) {
            (Some(item), 0) if !item.layers.is_empty() => Ok(item),
            (Some(_), 0) => Err(invalid(self.path, "the image has no layers, so there is nothing to run")),
            (None, _) => Err(invalid(self.path, "manifest.json lists no image")),
            (Some(last), before) => {
                let tags = items.iter().chain([&last]).filter_map(|i| i.repo_tags.as_ref()).flatten();
                let tags: Vec<&str> = tags.map(String::as_str).take(16).collect();
                Err(invalid(self.path, format!("it has {} images: {}", before + 1, tags.join(", ")))
                    .advise("save one image to each archive"))
            }
        }
    }
}

fn read(file: &mut File, section: Section, path: &Path) -> Result<Vec<u8>> {
    let failed = |e| Error::host(format!("read {}", path.display()), e);
    file.seek(SeekFrom::Start(section.offset)).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(section.length).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// The configuration's digest; where its name says it (`HEX.json`, `blobs/sha256/HEX`), it must be so.
fn verified_digest(name: &str, bytes: &[u8]) -> Result<Digest> {
    let stem = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if let Ok(named) = format!("sha256:{stem}").parse::<Digest>() {
        named.verify(bytes, "image configuration")?;
    }
    Ok(Digest::sha256(bytes))
}
