//! Paths that tell what the function sees of its container.

use std::ffi::OsString;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::OnceLock;

use hyper::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::http::{Body, full, json, text};
use crate::load::errno;
use crate::query::Query;

/// What the process was started with, before it opened anything itself.
struct Start {
    descriptors: Value,
    environment: Vec<(OsString, OsString)>,
}

static START: OnceLock<Start> = OnceLock::new();

/// To be called first in `main`.
pub(crate) fn remember_start() {
    START.get_or_init(|| Start { descriptors: descriptors(), environment: std::env::vars_os().collect() });
}

/// Answers `path`, if it is one of these.
pub(crate) fn answer(path: &str, query: &Query) -> Option<Response<Body>> {
    Some(match path {
        "env" => json(&environment()),
        "ids" => json(&ids()),
        "descriptors" => json(START.get().map_or(&Value::Null, |start| &start.descriptors)),
        "mounts" => file("/proc/self/mountinfo"),
        "limits" => file("/proc/self/limits"),
        "read" => file(&query.text("path", "/")),
        "write" => json(&write(&query.text("path", ""), &query.text("text", ""))),
        "ls" => json(&list(&query.text("dir", "/"))),
        "disk" => json(&disk(&query.text("dir", "/"))),
        _ => return None,
    })
}

fn environment() -> Value {
    let pairs = START.get().map(|start| start.environment.as_slice()).unwrap_or_default();
    let text = |value: &OsString| value.to_string_lossy().into_owned();
    Value::Object(pairs.iter().map(|(name, value)| (text(name), Value::String(text(value)))).collect())
}

/// Open descriptors as `{"number": "target"}`, without the one that lists them.
fn descriptors() -> Value {
    let mut found = Map::new();
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Value::Null };
    for entry in entries.flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let target = target.to_string_lossy().into_owned();
        if !target.starts_with("/proc/") {
            found.insert(entry.file_name().to_string_lossy().into_owned(), Value::String(target));
        }
    }
    Value::Object(found)
}

/// Identity, capabilities, seccomp state, working directory and arguments.
fn ids() -> Value {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut found = Map::new();
    for line in status.lines() {
        if let Some((name, value)) = line.split_once(':') {
            let words: Vec<&str> = value.split_whitespace().collect();
            found.insert(name.to_owned(), Value::String(words.join(" ")));
        }
    }
    found.insert("cwd".to_owned(), json!(std::env::current_dir().unwrap_or_default().to_string_lossy()));
    found.insert("args".to_owned(), std::env::args().collect());
    Value::Object(found)
}

fn file(path: &str) -> Response<Body> {
    match std::fs::read(path) {
        Ok(bytes) => full(StatusCode::OK, "application/octet-stream", bytes),
        Err(error) => text(StatusCode::NOT_FOUND, errno(&error)),
    }
}

fn write(path: &str, content: &str) -> Value {
    let result = std::fs::write(path, content);
    json!({ "error": result.err().map(|error| errno(&error)) })
}

/// Names in a directory with type, mode, owner and size.
fn list(dir: &str) -> Value {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return json!({ "error": errno(&error) }),
    };
    let mut found = Map::new();
    for entry in entries.flatten() {
        found.insert(entry.file_name().to_string_lossy().into_owned(), describe(&entry.path()));
    }
    Value::Object(found)
}

fn describe(path: &Path) -> Value {
    let Ok(meta) = path.symlink_metadata() else { return Value::Null };
    let kind = meta.file_type();
    let name = match () {
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symlink",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () => "file",
    };
    json!({
        "type": name,
        "mode": format!("{:o}", meta.mode() & 0o7777),
        "uid": meta.uid(),
        "gid": meta.gid(),
        "size": meta.size(),
        "rdev": [meta.rdev() >> 8 & 0xfff, meta.rdev() & 0xff],
        "target": std::fs::read_link(path).ok().map(|target| target.to_string_lossy().into_owned()),
    })
}

/// The device number of a directory, and its mount options by way of `/proc/self/mountinfo`.
fn disk(dir: &str) -> Value {
    let device = std::fs::metadata(dir).map(|meta| meta.dev()).unwrap_or(0);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let line = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some(dir));
    json!({ "device": device, "mount": line })
}
