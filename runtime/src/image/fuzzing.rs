//! Entry points for the fuzz targets in `runtime/fuzz` and the test that replays their corpus. Not
//! part of the interface of this crate.

use std::borrow::Cow;
use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use reqwest::Url;
use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::digest::Digest;
use super::limits::{Budget, Limits};
use super::manifest::{self, Packing};
use super::unpack::{self, Difference, Expected, LayerReport, Recipe, Rehash};
use super::{Reference, Source, config, credentials, registry};
use crate::Result;

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
    let list_here = OwnedFd::from(std::fs::File::open(dir).expect("it is there"));
    let recipe = recipe.map(|recipe| recipe.with_implied(list_here));
    let expected = Expected {
        digest: None,
        size: packed.len() as u64,
        diff_id: Digest::sha256(packed),
        packing: Packing::ByMagic,
    };
    let made = unpack::unpack(packed, &expected, &Budget::new(limits), root, recipe.ok());
    let lists = usize::from(dir.join(unpack::IMPLIED).exists());
    let beside = std::fs::read_dir(dir).expect("it is there").count();
    assert_eq!(beside, 2 + lists, "something is beside the layer");
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
        (None, Rehash::Equal | Rehash::Noted | Rehash::Impossible) => String::new(),
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

/// What stands for a secret in the inputs of [`credentials`]. No host's name can hold it.
const SECRET: &str = "s3cret%";
/// All of it but what encoding may add.
const LIKE_SECRET: &str = "s3cret";

/// Reads credentials as files, helpers, endpoints and Docker give them, a registry's challenge and
/// token, and a hosts file. All of them are written to or said to be at `path`.
///
/// # Panics
/// If what was read, or the error, shows a secret.
pub fn credentials(bytes: &[u8], path: &Path) {
    documents(bytes, path);
    if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
        // The same document, all of whose texts are secrets but for times.
        documents(marked(value).to_string().as_bytes(), path);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        challenge(text);
    }
    hosts(bytes, path);
}

/// All that reads JSON with secrets: nothing of it may be shown.
fn documents(bytes: &[u8], path: &Path) {
    let now = SystemTime::UNIX_EPOCH;
    hidden(&credentials::document::parse(bytes, "credentials", now));
    hidden(&credentials::helper::parse(bytes, "the helper", now));
    let _ = registry::token::parse(bytes);
    // Docker's configuration names programs, which are not to be run here. Escapes could hide that.
    let calls_helpers = bytes.windows(4).any(|window| window == b"cred" || window[0] == b'\\');
    if !calls_helpers && std::fs::write(path, bytes).is_ok() {
        hidden(&credentials::docker::from_docker(path, "r.example", Duration::ZERO));
    }
}

fn marked(value: Value) -> Value {
    match value {
        Value::String(_) => Value::String(SECRET.into()),
        Value::Array(items) => Value::Array(items.into_iter().map(marked).collect()),
        Value::Object(fields) => Value::Object(fields.into_iter().map(marked_field).collect()),
        other => other,
    }
}

fn marked_field((key, value): (String, Value)) -> (String, Value) {
    let value = if key.eq_ignore_ascii_case("expiry") { value } else { marked(value) };
    (key, value)
}

/// An address of a realm may hold anything; only its host is shown.
fn challenge(text: &str) {
    let challenge = registry::challenge::Challenge::parse(text);
    let realm = challenge.and_then(|challenge| challenge.realm);
    for anonymous in [true, false] {
        let realm = registry::realm::check(realm.as_deref().unwrap_or(text), "r.example", anonymous, false);
        match realm {
            Ok(realm) => {
                assert_eq!(realm.scheme(), "https");
                let host = realm.host_str().unwrap_or_default();
                let own = host == "r.example" || host.ends_with(".r.example");
                assert!(own || anonymous, "credentials would go to {realm}");
            }
            Err(error) => hidden::<()>(&Err(error)),
        }
    }
}

/// Values of headers are secrets, users in addresses as well; the rest of the file may be shown.
fn hosts(bytes: &[u8], path: &Path) {
    let read = registry::hosts::parse(bytes, path);
    let text = String::from_utf8_lossy(bytes);
    let Ok(table) = DeTable::parse(&text) else { return };
    // Counted where escapes have been resolved; an address shows a space as "%20".
    if in_table(table.get_ref()) == in_hidden(table.get_ref()) {
        hidden(&read);
    }
}

/// How often what may be shown as a secret is in a table, keys and values.
fn in_table(table: &DeTable<'_>) -> usize {
    let each = |(key, value): (&Spanned<Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
        key.get_ref().matches(LIKE_SECRET).count() + in_any(value)
    };
    table.iter().map(each).sum()
}

fn in_any(value: &Spanned<DeValue<'_>>) -> usize {
    match value.get_ref() {
        DeValue::String(text) => text.matches(LIKE_SECRET).count(),
        DeValue::Array(items) => items.iter().map(in_any).sum(),
        DeValue::Table(table) => in_table(table),
        _ => 0,
    }
}

/// How often a secret is in the values of a table's headers, and as a password in its addresses.
fn in_hidden(table: &DeTable<'_>) -> usize {
    let below = |(key, value): (&Spanned<Cow<'_, str>>, &Spanned<DeValue<'_>>)| match value.get_ref() {
        DeValue::Table(headers) if key.get_ref() == "header" => headers.values().map(in_value).sum(),
        DeValue::Table(inner) => in_address(key.get_ref()) + in_hidden(inner),
        _ => 0,
    };
    table.iter().map(below).sum()
}

/// In the password and nowhere else: what looks like one in a path is shown.
fn in_address(text: &str) -> usize {
    let password = Url::parse(text).is_ok_and(|url| url.password() == Some(SECRET));
    usize::from(password && text.matches(SECRET).count() == 1)
}

fn in_value(value: &Spanned<DeValue<'_>>) -> usize {
    match value.get_ref() {
        DeValue::String(text) => text.matches(SECRET).count(),
        DeValue::Array(items) => items.iter().map(in_value).sum(),
        _ => 0,
    }
}

/// Looks for a secret in all that a result could be shown as.
fn hidden<T: Debug>(result: &Result<T>) {
    let shown = match result {
        Ok(read) => format!("{read:?} {read:#?}"),
        Err(error) => format!("{error:?} {} {}", error.chain(), error.advice().unwrap_or_default()),
    };
    assert!(!shown.contains(SECRET), "a secret is shown: {shown}");
}
