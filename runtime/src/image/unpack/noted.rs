//! What the files of a layer were when it was unpacked, for one whose archive cannot be made again: a
//! name comes twice in it, and what the first of both held is gone.
//!
//! A file beside the layer's root has one record for each name, in any order:
//! ```text
//! (path, zero byte, digest)*, zero byte, digest of all before
//! ```
//! The digest of a record is of all that can be told of the file: kind, mode, owner, time, attributes,
//! content. The path of the root is `.`, and the list of implied directories beside it is `../implied`. Neither memory nor descriptors grow with the layer.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io::{BufRead as _, BufReader, BufWriter, Read, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::compare::{is_own, names_of};
use super::implied;
use super::journal::Journal;
use super::path::{Root, file_type, show};
use super::verify::{Difference, Layer};
use crate::image::limits;
use crate::{Error, ErrorKind, Result};

/// The file's name, beside `fs` in the layer's directory.
pub(crate) const NAME: &str = "noted";
const DIGEST_BYTES: usize = 32;

type Record = [u8; DIGEST_BYTES];

/// Writes down the files of the layer in `layer_dir`.
///
/// # Errors
/// `DiskFull`, `Host`.
pub(crate) fn note(layer_dir: &Path) -> Result<()> {
    let layer = Layer::open(layer_dir)?;
    let failed =
        |e: std::io::Error| Error::host(format!("write {NAME} of the layer {}", layer_dir.display()), e);
    let mut file = BufWriter::new(File::create_new(layer_dir.join(NAME)).map_err(failed)?);
    let mut all = Sha256::new();
    let mut put = |bytes: &[u8]| {
        all.update(bytes);
        file.write_all(bytes).map_err(failed)
    };
    walk(&layer, |path, record| {
        [path.as_os_str().as_bytes(), b"\0", &record].iter().try_for_each(|part| put(part))
    })?;
    put(b"\0")?;
    let digest = all.finalize();
    file.write_all(&digest).and_then(|()| file.flush()).map_err(failed)
}

/// The first difference between a layer and what was written down; `None` if nothing was.
///
/// # Errors
/// `CorruptImage` if what was written down is broken; `Host`.
pub(super) fn compare(layer: &Layer, layer_dir: &Path) -> Result<Option<Option<Difference>>> {
    let (keys, mut wanted) = (RandomState::new(), HashMap::new());
    let key = |path: &Path| keys.hash_one(path.as_os_str());
    if !read(layer_dir, |path, record| {
        let _ = wanted.insert(key(path), record);
    })? {
        return Ok(None);
    }
    let mut first = None;
    walk(layer, |path, record| {
        let what = match wanted.remove(&key(path)) {
            Some(wanted) if wanted == record => return Ok(()),
            Some(_) => "it is not what was unpacked",
            None => "it is not of this layer",
        };
        first.get_or_insert_with(|| Difference { path: path.to_owned(), what: what.to_owned() });
        Ok(())
    })?;
    if first.is_none() && !wanted.is_empty() {
        read(layer_dir, |path, _| {
            if wanted.contains_key(&key(path)) {
                let what = "it is missing".to_owned();
                first.get_or_insert_with(|| Difference { path: path.to_owned(), what });
            }
        })?;
    }
    Ok(Some(first))
}

/// Gives all records; `false` if there are none.
fn read(layer_dir: &Path, mut each: impl FnMut(&Path, Record)) -> Result<bool> {
    let shown = layer_dir.display();
    let failed = |e: std::io::Error| Error::host(format!("read {NAME} of the layer {shown}"), e);
    let broken = || {
        Error::new(ErrorKind::CorruptImage, format!("the list {NAME} of the layer {shown} is broken"))
            .advise("remove the image and pull it again")
    };
    let mut file = match File::open(layer_dir.join(NAME)) {
        Ok(file) => BufReader::new(file),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(failed(e)),
    };
    let (mut all, mut path) = (Sha256::new(), Vec::new());
    loop {
        path.clear();
        let mut bounded = Read::take(&mut file, limits::MAX_PATH_BYTES + 1);
        bounded.read_until(0, &mut path).map_err(failed)?;
        all.update(&path);
        if path.pop() != Some(0) {
            return Err(broken());
        }
        if path.is_empty() {
            break;
        }
        let mut record = [0; DIGEST_BYTES];
        file.read_exact(&mut record).map_err(|_| broken())?;
        all.update(record);
        each(Path::new(OsStr::from_bytes(&path)), record);
    }
    path.clear();
    file.read_to_end(&mut path).map_err(failed)?;
    if path == all.finalize()[..] { Ok(true) } else { Err(broken()) }
}

/// Gives every name in a layer with its record, directories before what is in them.
fn walk(layer: &Layer, mut each: impl FnMut(&Path, Record) -> Result<()>) -> Result<()> {
    let mut files =
        Files { root: Root::new(layer.root()?), buffer: vec![0; limits::MAX_XATTR_BYTES as usize] };
    if let Some(list) = layer.list()? {
        let mut record = Sha256::new();
        files.content(&mut record, list).map_err(|e| Error::host("read a list of a layer", e))?;
        each(&Path::new("..").join(implied::NAME), record.finalize().into())?;
    }
    each(Path::new("."), files.record(Path::new(""))?.0)?;
    let mut journal = Journal::default();
    journal.add(b"", implied::TIME, &[], files.root.fd())?;
    // One level after the other, with the directories of each in a journal.
    loop {
        let mut next = Journal::default();
        let mut found = false;
        let place = files.root.fd().try_clone().map_err(|e| Error::host("copy a descriptor", e))?;
        journal.replay(|note| {
            files.names(Path::new(OsStr::from_bytes(&note.path)), |files, path| {
                let (record, is_dir) = files.record(path)?;
                if is_dir {
                    found = true;
                    next.add(path.as_os_str().as_bytes(), implied::TIME, &[], &place)?;
                }
                each(path, record)
            })
        })?;
        if !found {
            return Ok(());
        }
        journal = next;
    }
}

struct Files {
    root: Root,
    buffer: Vec<u8>,
}

impl Files {
    /// Gives the paths of what is in a directory.
    fn names(&mut self, dir: &Path, mut each: impl FnMut(&mut Self, &Path) -> Result<()>) -> Result<()> {
        let failed = |e| failed("read the directory", dir, e);
        let handle = self.root.resolve(dir).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listed = rustix::fs::openat(&handle, ".", flags, Mode::empty()).map_err(failed)?;
        for entry in Dir::new(listed).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                each(self, &dir.join(name))?;
            }
        }
        Ok(())
    }

    /// The record of a name, and whether it is a directory.
    fn record(&mut self, path: &Path) -> Result<(Record, bool)> {
        let failed = |e| failed("look at", path, e);
        // The root is a name in itself.
        let (parent, name) = path.parent().zip(path.file_name()).unwrap_or((Path::new(""), OsStr::new(".")));
        let dir = self.root.resolve(parent).map_err(failed)?;
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let mut record = Sha256::new();
        let numbers = [
            u64::from(stat.st_mode),
            u64::from(stat.st_uid),
            u64::from(stat.st_gid),
            stat.st_rdev,
            stat.st_mtime.cast_unsigned(),
            stat.st_mtime_nsec,
        ];
        numbers.iter().for_each(|number| record.update(number.to_le_bytes()));
        self.attributes(&mut record, &dir, name).map_err(failed)?;
        match file_type(&stat) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&dir, name, Vec::new()).map_err(failed)?;
                text(&mut record, target.as_bytes());
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&dir, name, flags, Mode::empty()).map_err(failed)?;
                self.content(&mut record, File::from(file))
                    .map_err(|e| Error::host(format!("read {path:?} in a layer"), e))?;
            }
            _ => {}
        }
        Ok((record.finalize().into(), file_type(&stat) == FileType::Directory))
    }

    fn attributes(&mut self, record: &mut Sha256, dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
        let number = dir.as_raw_fd().to_string();
        let through_proc: PathBuf = [OsStr::new("/proc/self/fd"), OsStr::new(&number), name].iter().collect();
        let mut names = names_of(&through_proc)?;
        names.retain(|name| is_own(name));
        names.sort_unstable();
        for name in &names {
            let length = rustix::fs::lgetxattr(&through_proc, OsStr::from_bytes(name), &mut self.buffer[..])?;
            text(record, name);
            text(record, &self.buffer[..length]);
        }
        Ok(())
    }

    fn content(&mut self, record: &mut Sha256, mut file: File) -> std::io::Result<()> {
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => record.update(&self.buffer[..read]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// A text whose end cannot be taken for the beginning of the next.
fn text(record: &mut Sha256, bytes: &[u8]) {
    record.update((bytes.len() as u64).to_le_bytes());
    record.update(bytes);
}

fn failed(call: &str, path: &Path, error: Errno) -> Error {
    if error == Errno::NAMETOOLONG {
        // Only links of the layer can have made it.
        let bytes = path.as_os_str().len() as u64;
        return limits::check("bytes of a path in a layer", bytes, limits::MAX_PATH_BYTES - 1)
            .err()
            .unwrap_or_else(|| Error::host("look at a path of a layer", error));
    }
    Error::host(format!("{call} {} of a layer", show(path.as_os_str().as_bytes())), error)
}
