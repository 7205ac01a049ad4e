//! Layers whose names lead through links of the layers below them, made again for one image.
//!
//! ```text
//! chains/ALGORITHM/HEX/redirected/N/fs, implied     in place of the image's layer N, lowest 0
//! ```
//! What links the layers below show depends on all of them, so these are kept with the fix-up layer of
//! the image, by its DiffIDs, and come and go with it.

use std::path::{Path, PathBuf};

use super::chain::{Stack, parent};
use super::ingest::Ingest;
use super::stacked;
use crate::image::unpack;
use crate::{Error, ErrorKind, Result};

/// The directory in that of an image's fix-up layer.
pub(super) const DIRECTORY: &str = "redirected";

/// Makes again, in `ingest`, those of an image's layers that need it, and gives all layers for an overlay
/// mount.
pub(super) fn make(ingest: &Ingest, all: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut layers = Vec::with_capacity(all.len());
    let mut below = Stack::default();
    for (number, layer) in all.iter().enumerate() {
        let layer = match first_link(&below, layer)? {
            None => layer.clone(),
            Some(link) => make_one(ingest, &below, number, layer).map_err(|e| unlike(e, layer, &link))?,
        };
        below.push(&layer)?;
        layers.push(layer);
    }
    Ok(stacked(&layers))
}

/// A directory that a layer implies and that is a link in those below.
fn first_link(below: &Stack, layer: &Path) -> Result<Option<PathBuf>> {
    let mut found = None;
    if !below.is_empty() {
        unpack::read_implied(parent(layer), |path| {
            if found.is_none() && below.link(path)?.is_some() {
                found = Some(path.to_owned());
            }
            Ok(())
        })?;
    }
    Ok(found)
}

fn make_one(ingest: &Ingest, below: &Stack, number: usize, layer: &Path) -> Result<PathBuf> {
    let (path, beside, root) = ingest.prepare_below(&format!("{DIRECTORY}/{number}"))?;
    unpack::redirect(parent(layer), &|path| below.link(path), root, beside)?;
    Ok(path.join("fs"))
}

fn unlike(error: Error, layer: &Path, link: &Path) -> Error {
    if error.kind() != ErrorKind::InvalidImage {
        return error;
    }
    let name = parent(layer).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let link = link.display();
    let message =
        format!("the layer {name} has names below {link}, a link of a lower layer, and breaks the rules");
    Error::new(error.kind(), message).because(error)
}

/// An image's layers for an overlay mount, with those in the place of others that were made in `chain`.
pub(super) fn layers(chain: &Path, mut all: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let dir = chain.join(DIRECTORY);
    for path in list(&dir)? {
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let Some(layer) = number.and_then(|number: usize| all.get_mut(number)) else { continue };
        *layer = path.join("fs");
    }
    Ok(stacked(&all))
}

/// What is in a directory that may not be there.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    if matches!(dir.try_exists(), Ok(false)) { Ok(Vec::new()) } else { super::entries(dir) }
}
