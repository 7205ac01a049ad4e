//! A layer, from its bytes as fetched to a directory in overlay form, in one pass.
//!
//! ```text
//! packed bytes ─ count, hash ─ inflate ─ pipe ─ count, hash ─ archive entries ─ files below the layer's root
//!               └────── one thread ───────┘      └───────────────── another ───────────────────┘
//! ```
//! Nothing is held but a few buffers. The bytes are verified when they have all come, so the caller
//! must throw the directory away on any error.

mod beside;
mod compare;
mod copy;
mod decompress;
mod entries;
mod extract;
mod fields;
mod hashing;
mod implied;
mod journal;
mod meta;
mod names;
mod noted;
mod path;
mod pax;
mod pipe;
mod reading;
mod rebuild;
mod recipe;
mod redirect;
mod remove;
mod sparse;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_disk;
mod verify;
mod whiteout;
mod window;

use std::io::Read;
use std::os::fd::OwnedFd;

pub(crate) use copy::DirMeta;
pub(crate) use entries::{Entries, Kind};
pub(crate) use implied::{NAME as IMPLIED, inherits, is_whole as has_whole_list, read as read_implied};
pub(crate) use noted::note;
pub(crate) use path::clean as clean_path;
pub(crate) use recipe::{NAME as RECIPE, Recipe};
pub(crate) use redirect::redirect;
pub(crate) use remove::remove_all;
pub(crate) use verify::{Difference, LayerReport, Rehash, verify_layer};
pub(crate) use whiteout::OPAQUE_XATTR;

use self::hashing::{Packed, Unpacked};
use super::digest::Digest;
use super::limits::{Budget, Flow};
use super::manifest::Packing;
use super::store::LayerRecord;
use crate::{Error, ErrorKind, Result};

/// What is known of a layer before its bytes come.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// Digest of the bytes as fetched; `docker save` archives do not say it.
    pub(crate) digest: Option<Digest>,
    /// How many bytes come.
    pub(crate) size: u64,
    /// Digest of the archive (OCI image configuration, `rootfs.diff_ids`).
    pub(crate) diff_id: Digest,
    pub(crate) packing: Packing,
}

impl Expected {
    /// What an error calls it.
    pub(crate) fn name(&self) -> String {
        match &self.digest {
            Some(digest) => format!("layer {digest}"),
            None => format!("layer with DiffID {}", self.diff_id),
        }
    }

    /// What the store notes of it when it is made.
    pub(crate) fn record(&self, archive_bytes: u64) -> LayerRecord {
        LayerRecord {
            diff_id: self.diff_id.to_string(),
            packed_digest: self.digest.as_ref().map(ToString::to_string),
            packed_bytes: self.size,
            archive_bytes,
        }
    }
}

/// What came of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unpacking {
    /// Bytes of its archive.
    pub(crate) archive_bytes: u64,
    /// Whether a name came twice, so that the archive cannot be put together again from its files.
    pub(crate) replaced: bool,
}

/// Unpacks one layer into the empty directory `root` and verifies its size and both digests. With a
/// `recipe`, writes down what `image verify` needs.
///
/// # Errors
/// `CorruptImage`, `InvalidImage`, `LimitExceeded`, `DigestMismatch`, `DiskFull`, `Host`, or what
/// `input` wrapped into its `io::Error`.
pub(crate) fn unpack(
    input: impl Read + Send,
    expected: &Expected,
    budget: &Budget,
    root: OwnedFd,
    recipe: Option<Recipe>,
) -> Result<Unpacking> {
    let flow = Flow::new(budget);
    let made = unpack_counted(input, expected, &flow, root, recipe);
    if made.is_err() {
        flow.give_back();
    }
    made
}

fn unpack_counted(
    input: impl Read + Send,
    expected: &Expected,
    flow: &Flow<'_>,
    root: OwnedFd,
    recipe: Option<Recipe>,
) -> Result<Unpacking> {
    let mut packed = Packed::new(input, expected, flow);
    match unpack_stream(&mut packed, expected, flow, root, recipe) {
        Ok((unpacked, made)) => {
            packed.finish()?;
            let what = format!("archive in {}", expected.name());
            let verified = expected.diff_id.verify_hash(unpacked, &what);
            verified.map(|()| made).map_err(|e| unlike_configuration(e, expected))
        }
        // Wrong bytes are the registry's fault and not the image's: see which of both it is.
        Err(error) if matches!(error.kind(), ErrorKind::CorruptImage | ErrorKind::InvalidImage) => {
            match packed.drain().and_then(|()| packed.finish()) {
                Err(worse) if worse.kind() == ErrorKind::DigestMismatch => Err(worse.because(error)),
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

fn unpack_stream(
    packed: &mut (impl Read + Send),
    expected: &Expected,
    flow: &Flow<'_>,
    root: OwnedFd,
    recipe: Option<Recipe>,
) -> Result<(super::digest::Hasher, Unpacking)> {
    std::thread::scope(|scope| {
        let (inlet, outlet) = pipe::pipe();
        let inflater = std::thread::Builder::new()
            .name("skiff-inflate".into())
            .spawn_scoped(scope, || inflate(packed, expected, flow, inlet))
            .map_err(|e| Error::host("start a thread that inflates a layer", e))?;
        let unpacked = write_files(outlet, expected, flow, root, recipe);
        // The outlet is gone, so the thread ends even if it has more.
        inflater.join().map_err(|_| Error::new(ErrorKind::Internal, "inflating a layer panicked"))?;
        unpacked
    })
}

fn inflate(packed: &mut impl Read, expected: &Expected, flow: &Flow<'_>, inlet: pipe::Inlet) {
    match decompress::open(packed, expected.packing, flow.windows()) {
        Ok(mut inflated) => inlet.fill_from(&mut inflated),
        Err(error) => inlet.fail(error),
    }
}

fn write_files(
    archive: impl Read,
    expected: &Expected,
    flow: &Flow<'_>,
    root: OwnedFd,
    recipe: Option<Recipe>,
) -> Result<(super::digest::Hasher, Unpacking)> {
    let mut unpacked = Unpacked::new(archive, expected.diff_id.algorithm(), flow);
    let replaced = extract::extract(&mut unpacked, flow, root, recipe).map_err(|e| within(e, expected))?;
    let (hasher, archive_bytes) = unpacked.finish();
    Ok((hasher, Unpacking { archive_bytes, replaced }))
}

/// Where the packed bytes have been verified, an archive of another DiffID is the image's fault: its
/// configuration names what its layers do not hold.
fn unlike_configuration(error: Error, expected: &Expected) -> Error {
    if expected.digest.is_none() {
        return error;
    }
    let message = format!("{} is not the one that the image configuration names", expected.name());
    Error::new(ErrorKind::InvalidImage, message).because(error).advise("build the image again and push it")
}

/// Says in which layer it happened, where that is the image's matter.
fn within(error: Error, expected: &Expected) -> Error {
    match error.kind() {
        ErrorKind::InvalidImage => {
            Error::new(error.kind(), format!("{} breaks the rules", expected.name())).because(error)
        }
        _ => error,
    }
}

/// The error that a reader below wrapped, or a broken archive.
fn broken(error: std::io::Error, what: &str) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => own,
        Err(other) => Error::new(ErrorKind::CorruptImage, format!("the {what} is truncated or broken"))
            .because(other)
            .advise("push the image again"),
    }
}
