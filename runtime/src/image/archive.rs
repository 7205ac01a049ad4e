//! `docker-archive:FILE[:TAG]`: what `docker save` writes (Docker image specification v1.2, *Combined
//! Image JSON + Filesystem Changeset Format*): a tar with `manifest.json`, a configuration and the
//! layers.
//!
//! The archive names no digests but the configuration's: layers are verified by their DiffIDs, which
//! it holds. Newer versions of Docker put an OCI layout into the same file; `manifest.json` is there
//! as well and is what is read.

use std::path::Path;

use serde::Deserialize;

use super::config;
use super::digest::Digest;
use super::limits::{self, Limits};
use super::source::Reference;
use super::tarball::{Links, LocalFile, Section, Tarball, invalid};
use crate::{Error, ErrorKind, Result};

/// Tags that an error lists.
const SHOWN_TAGS: usize = 16;

/// An image of an archive.
pub(crate) struct Archive {
    pub(crate) config_digest: Digest,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) configuration: config::Configuration,
    /// Lowest first; as many as DiffIDs.
    pub(crate) layers: Vec<(LocalFile, Section)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    layers: Vec<String>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

impl Item {
    fn tags(&self) -> impl Iterator<Item = &str> {
        self.repo_tags.iter().flatten().map(String::as_str)
    }

    /// Whether a person who writes `wanted` means this one: `app:1`, its canonical form, or `1`.
    fn is_called(&self, wanted: &str) -> bool {
        let canonical = |text: &str| text.parse::<Reference>().ok().map(|reference| reference.to_string());
        let name = canonical(wanted);
        self.tags().any(|tag| {
            tag == wanted
                || tag.rsplit(':').next() == Some(wanted)
                || (name.is_some() && name == canonical(tag))
        })
    }
}

impl Archive {
    /// Reads everything but the layers: of the image with a tag, or of the only image. Blocks.
    ///
    /// # Errors
    /// `ImageNotFound`, `InvalidReference`, `InvalidImage`, `CorruptImage`, `LimitExceeded`,
    /// `DigestMismatch`.
    pub(crate) fn open(path: &Path, tag: Option<&str>, limits: &Limits) -> Result<Self> {
        let tarball = Tarball::open(path, Links::Follow)?;
        let bytes = tarball.read("manifest.json", limits::MAX_MANIFEST_BYTES)?;
        let items: Vec<Item> = serde_json::from_slice(&bytes)
            .map_err(|e| invalid(path, format!("manifest.json cannot be read: {e}")))?;
        let item = choose(&items, tag, path)?;
        if item.layers.is_empty() {
            return Err(invalid(path, "the image has no layers, so there is nothing to run"));
        }
        limits.check_layers(item.layers.len() as u64)?;
        let config_bytes = tarball.read(&item.config, limits::MAX_CONFIG_BYTES)?;
        let config_digest = verified_digest(&item.config, &config_bytes)?;
        let configuration = config::parse(&config_bytes)?;
        let layer = |name: &String| Ok((tarball.find(name)?, tarball.section(name)?));
        let layers = item.layers.iter().map(layer).collect::<Result<Vec<_>>>()?;
        let packed = layers.iter().fold(0u64, |sum, (_, s)| sum.saturating_add(s.length));
        limits.check_packed(packed)?;
        Ok(Self { config_digest, config_bytes, configuration, layers })
    }
}

fn choose<'a>(items: &'a [Item], tag: Option<&str>, path: &Path) -> Result<&'a Item> {
    let found: Vec<&Item> = items.iter().filter(|item| tag.is_none_or(|tag| item.is_called(tag))).collect();
    let tags: Vec<&str> = items.iter().flat_map(Item::tags).take(SHOWN_TAGS).collect();
    let tags = if tags.is_empty() { "no tags".to_owned() } else { tags.join(", ") };
    let shown = path.display();
    match (found.as_slice(), tag) {
        ([item], _) => Ok(item),
        ([], None) => Err(invalid(path, "manifest.json lists no image")),
        ([], Some(tag)) => Err(Error::new(
            ErrorKind::ImageNotFound,
            format!("the archive {shown} has no image with the tag {tag:?}"),
        )
        .advise(format!("it has: {tags}"))),
        (many, _) => {
            let which = tag.map_or_else(String::new, |tag| format!(" with the tag {tag:?}"));
            let message = format!("the archive {shown} has {} images{which}: {tags}", many.len());
            Err(Error::new(ErrorKind::InvalidReference, message)
                .advise(format!("write docker-archive:{shown}:TAG")))
        }
    }
}

/// The configuration's digest; where its name says it (`HEX.json`, `blobs/sha256/HEX`), it must be so.
fn verified_digest(name: &str, bytes: &[u8]) -> Result<Digest> {
    let stem = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if let Ok(named) = format!("sha256:{stem}").parse::<Digest>() {
        named.verify(bytes, "image configuration")?;
    }
    Ok(Digest::sha256(bytes))
}
