//! The list of what a start touches, as it is kept: JSON below `STATE_DIR/traces`, one directory for
//! each image and in it one file for each command.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::Recorded;
use crate::image::digest::Digest;
use crate::rundir::make_private;
use crate::{Error, ErrorKind, Result};

/// Of another version is as none.
const VERSION: u32 = 1;
/// Files and directories; a start of a large framework opens some thousands.
pub(super) const MAX_ENTRIES: usize = 20_000;
/// Bytes of all paths together.
pub(super) const MAX_PATH_BYTES: usize = 2 << 20;
/// The kernel's bound of one path (`PATH_MAX`).
pub(super) const MAX_PATH: usize = 4096;
/// Parts of one file.
pub(super) const MAX_RANGES: usize = 64;
/// Bytes that one start reads ahead.
pub(super) const MAX_BYTES: u64 = 256 << 20;
/// Bytes of a list: what the bounds above come to as JSON, or less.
const MAX_LIST_BYTES: u64 = 8 << 20;
/// Commands of one image that are remembered.
const MAX_COMMANDS: usize = 16;

/// A part of a file: offset and length in bytes.
pub(super) type Range = (u64, u64);

/// A file or directory that was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Relative to the image's root, without links on the way.
    pub(super) path: String,
    /// What was read of it, in order; empty for a directory.
    pub(super) ranges: Vec<Range>,
}

/// What one start opened, in the order of first opening.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct List {
    version: u32,
    pub(super) entries: Vec<Entry>,
}

impl List {
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        Self { version: VERSION, entries }
    }

    pub(super) fn summary(&self) -> Recorded {
        let ranges = self.entries.iter().flat_map(|entry| &entry.ranges);
        Recorded { files: self.entries.len(), bytes: ranges.map(|(_, length)| length).sum() }
    }

    /// Refuses what no recording makes.
    fn check(self) -> Result<Self, &'static str> {
        if self.version != VERSION {
            return Err("another version");
        }
        if self.entries.len() > MAX_ENTRIES {
            return Err("too many entries");
        }
        let mut bytes = 0u64;
        for entry in &self.entries {
            if !is_plain(&entry.path) {
                return Err("a path that is not plain");
            }
            if entry.ranges.len() > MAX_RANGES {
                return Err("too many parts of a file");
            }
            for (offset, length) in &entry.ranges {
                bytes = bytes.saturating_add(*length);
                if offset.checked_add(*length).is_none_or(|end| end > i64::MAX as u64) {
                    return Err("a part past every file's end");
                }
            }
        }
        if bytes > MAX_BYTES { Err("too many bytes") } else { Ok(self) }
    }
}

/// Relative, without `.`, `..`, empty components and NUL, and not too long.
pub(super) fn is_plain(path: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    path.len() <= MAX_PATH && !path.contains('\0') && path.split('/').all(plain)
}

/// Where the list of an image and a command is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ListPath {
    state_dir: PathBuf,
    image: String,
    command: String,
}

impl ListPath {
    /// Of an image by its digest, and a command with its arguments.
    pub(crate) fn new(state_dir: &Path, image_digest: &str, argv: &[String]) -> Self {
        let mut words = Vec::new();
        for word in argv {
            words.extend_from_slice(word.as_bytes());
            words.push(0);
        }
        Self {
            state_dir: state_dir.to_owned(),
            image: name_of(image_digest),
            command: Digest::sha256(&words).hex().to_owned(),
        }
    }

    fn dir(&self) -> PathBuf {
        self.state_dir.join("traces").join(&self.image)
    }

    fn file(&self) -> PathBuf {
        self.dir().join(format!("{}.json", self.command))
    }

    pub(crate) fn exists(&self) -> bool {
        self.file().exists()
    }

    /// The list, if there is one. One that is damaged is removed, so that it is made again.
    pub(super) fn load(&self) -> Option<List> {
        let path = self.file();
        let mut bytes = Vec::new();
        fs::File::open(&path).ok()?.take(MAX_LIST_BYTES + 1).read_to_end(&mut bytes).ok()?;
        match parse(&bytes) {
            Ok(list) => Some(list),
            Err(why) => {
                tracing::debug!(list = %path.display(), why, "a damaged list of files is removed");
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps a list in place of what is there: whole, or not at all.
    pub(super) fn save(&self, list: &List) -> Result<()> {
        let failed = |e: io::Error| Error::host(format!("cannot write {}", self.file().display()), e);
        let dir = self.dir();
        make_private(&self.state_dir.join("traces"))?;
        make_private(&dir)?;
        if !self.exists() && fs::read_dir(&dir).map_err(failed)?.count() >= MAX_COMMANDS {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{MAX_COMMANDS} commands of the image have been recorded; no more are kept"),
            ));
        }
        let bytes = serde_json::to_vec(list).map_err(|e| failed(e.into()))?;
        write(&dir, &self.file(), &bytes).map_err(failed)
    }
}

/// Forgets what was recorded of an image, by its digest. Nothing recorded is fine.
///
/// # Errors
/// `Host`.
pub fn remove(state_dir: &Path, image_digest: &str) -> Result<()> {
    let dir = state_dir.join("traces").join(name_of(image_digest));
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::host(format!("cannot remove {}", dir.display()), e))
        }
        _ => Ok(()),
    }
}

/// The digest comes from outside the library too: its hash is a file name whatever it is.
fn name_of(image_digest: &str) -> String {
    Digest::sha256(image_digest.as_bytes()).hex().to_owned()
}

fn parse(bytes: &[u8]) -> Result<List, &'static str> {
    if bytes.len() as u64 > MAX_LIST_BYTES {
        return Err("too long");
    }
    serde_json::from_slice::<List>(bytes).map_err(|_| "not a list")?.check()
}

/// A temporary name beside the file, then its own. Those of a process that died are replaced by the
/// next one of its number and go with the image at the latest.
fn write(dir: &Path, file: &Path, bytes: &[u8]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temporary = dir.join(format!(".{}-{number}", std::process::id()));
    let written = (|| {
        let mut out = fs::File::create(&temporary)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        fs::rename(&temporary, file)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, ranges: &[Range]) -> Entry {
        Entry { path: path.into(), ranges: ranges.to_vec() }
    }

    fn at(dir: &Path, command: &str) -> ListPath {
        ListPath::new(dir, "sha256:../..", &[command.to_owned()])
    }

    #[test]
    fn a_list_comes_back_and_goes_with_its_image() {
        let dir = tempfile::tempdir().expect("tempdir");
        let list = List::new(vec![entry("usr/bin", &[]), entry("usr/bin/x", &[(0, 4096), (8192, 1)])]);
        let path = at(dir.path(), "x");
        assert!(!path.exists() && path.load().is_none());
        path.save(&list).expect("saved");
        path.save(&list).expect("saved again");
        assert_eq!(path.load(), Some(list.clone()));
        assert_eq!(list.summary(), Recorded { files: 2, bytes: 4097 });
        assert!(at(dir.path(), "y").load().is_none(), "another command");
        let kept: Vec<_> = fs::read_dir(path.dir()).expect("read").flatten().collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
        remove(dir.path(), "sha256:../..").expect("removed");
        remove(dir.path(), "sha256:../..").expect("gone already");
        assert!(!path.exists());
    }

    #[test]
    fn hostile_lists_are_refused_and_removed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = at(dir.path(), "x");
        let one = |entry: Entry| serde_json::to_vec(&List::new(vec![entry])).expect("json");
        let many = List::new(vec![entry("a", &[]); 1_000_000]);
        let cases = [
            b"\x00\xff\x13binary".to_vec(),
            Vec::new(),
            b"[".repeat(100_000),
            br#"{"version":2,"entries":[]}"#.to_vec(),
            serde_json::to_vec(&many).expect("json"),
            serde_json::to_vec(&List::new(vec![entry("a", &[]); MAX_ENTRIES + 1])).expect("json"),
            one(entry("/etc/shadow", &[(0, 1)])),
            one(entry("../etc/shadow", &[(0, 1)])),
            one(entry("a/../../b", &[(0, 1)])),
            one(entry("a//b", &[(0, 1)])),
            one(entry("a\0b", &[(0, 1)])),
            one(entry("", &[(0, 1)])),
            one(entry(&"a".repeat(MAX_PATH + 1), &[(0, 1)])),
            one(entry("a", &[(u64::MAX, 2)])),
            one(entry("a", &[(i64::MAX as u64, 1)])),
            one(entry("a", &[(0, MAX_BYTES + 1)])),
            one(entry("a", &[(0, u64::MAX), (0, u64::MAX)])),
            one(entry("a", &[(0, 1); MAX_RANGES + 1])),
        ];
        for (number, bytes) in cases.iter().enumerate() {
            fs::create_dir_all(path.dir()).expect("mkdir");
            fs::write(path.file(), bytes).expect("written");
            assert_eq!(path.load(), None, "case {number}");
            assert!(!path.exists(), "case {number}");
        }
    }

    #[test]
    fn the_number_of_commands_is_bounded() {
        let dir = tempfile::tempdir().expect("tempdir");
        for number in 0..MAX_COMMANDS {
            at(dir.path(), &number.to_string()).save(&List::new(Vec::new())).expect("saved");
        }
        let error = at(dir.path(), "one more").save(&List::new(Vec::new())).expect_err("full");
        assert!(error.to_string().contains("16 commands"), "{error}");
        at(dir.path(), "0").save(&List::new(Vec::new())).expect("one that is there is replaced");
    }
}
