//! Entry points for the fuzz targets in `runtime/fuzz` and the test that replays their corpus. Not
//! part of the interface of this crate.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::SystemTime;

use super::digest::Digest;
use super::limits::{Budget, Limits};
use super::manifest::{self, Packing};
use super::unpack::{self, Difference, Expected, LayerReport, Recipe, Rehash};
use super::{Reference, Source, config, credentials, registry};

/// Small enough for thousands of runs a minute.
const LAYER_BYTES: u64 = 1 << 20;
const LAYER_ENTRIES: u64 = 200;

/// Unpacks an archive, packed or not, into `dir`, which must be empty, and verifies what was unpacked.
///
/// # Panics
/// If a layer that was unpacked is not sound, or something appears beside it.
pub fn layer(packed: &[u8], dir: &Path) {
    let limits = Limits { unpacked_bytes: LAYER_BYTES, entries: LAYER_ENTRIES, ..Limits::default() };
    let fs = dir.join("fs");
    std::fs::create_dir(&fs).expect("the directory is empty");
    let root = OwnedFd::from(std::fs::File::open(&fs).expect("just made"));
    let recipe =
        Recipe::new(std::fs::File::create(dir.join(unpack::RECIPE)).expect("the directory is empty"));
    let expected = Expected {
        digest: None,
        size: packed.len() as u64,
        diff_id: Digest::sha256(packed),
        packing: Packing::ByMagic,
    };
    let made = unpack::unpack(packed, &expected, &Budget::new(limits), root, recipe.ok());
    let beside = std::fs::read_dir(dir).expect("it is there").count();
    assert_eq!(beside, 2, "something is beside the layer");
    // What is compressed has another DiffID than the bytes here.
    if made.is_ok() {
        assert_eq!(verify(dir, &expected.diff_id.to_string()), "", "what was unpacked is not sound");
    }
}

/// What is wrong with a layer in the store: an empty text if nothing is.
pub fn verify(layer_dir: &Path, diff_id: &str) -> String {
    let diff_id = match diff_id.parse() {
        Ok(diff_id) => diff_id,
        Err(error) => return format!("{error:?}"),
    };
    match unpack::verify_layer(layer_dir, &diff_id) {
        Ok(report) => describe(&report),
        Err(error) => format!("{error:?}"),
    }
}

fn describe(report: &LayerReport) -> String {
    let LayerReport { entries, bytes, rehash, difference } = report;
    if report.is_sound() {
        return String::new();
    }
    match (difference, rehash) {
        (Some(Difference { path, what }), _) => format!("{}: {what}", path.display()),
        (None, Rehash::Differs { found }) => format!("{entries} entries in {bytes} bytes hash to {found}"),
        (None, Rehash::Equal | Rehash::Impossible) => String::new(),
    }
}

/// Reads a manifest, index or configuration, and chooses from an index.
pub fn manifest(bytes: &[u8]) {
    let read = manifest::parse(bytes, None, &Limits::default());
    if let Ok(manifest::Document::Index(entries)) = &read {
        // An error is a right answer, too.
        let _ = manifest::choose(entries, &Limits::default());
    }
    let _ = config::parse(bytes);
}

/// Reads a reference and a source; what is accepted must be read again from its own text.
///
/// # Panics
/// If that is not so.
pub fn reference(text: &str) {
    if let Ok(source) = text.parse::<Source>() {
        let again: Source = source.to_string().parse().expect("the canonical form is a source");
        assert_eq!(again.to_string(), source.to_string());
    }
    if let Ok(reference) = text.parse::<Reference>() {
        let _ = (reference.registry(), reference.repository(), reference.tag());
    }
    let _ = text.parse::<Digest>();
}

/// Reads credentials as files, helpers and endpoints give them, a registry's challenge, and a hosts file
/// that is said to be at `path`.
pub fn credentials(bytes: &[u8], path: &Path) {
    let lease = credentials::document::parse(bytes, "credentials", SystemTime::UNIX_EPOCH);
    let _ = format!("{lease:?}");
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = format!("{:?}", registry::challenge::Challenge::parse(text));
    }
    let _ = registry::hosts::parse(bytes, path);
}
