//! Directories that a layer implies: it has entries in them, and none for them.
//!
//! They are in the layer's directory, or nothing could be in them, but say nothing of their own: what
//! a lower layer said of them holds. So each bears a mark while it is implied. An entry for it, which
//! may come later in the archive, takes the mark away. overlayfs hides the mark, and no entry can
//! forge it, as an entry's own `trusted.overlay.*` attributes are renamed.
//!
//! The paths of all that are implied in the end are in a file beside the layer's root:
//! ```text
//! (path, zero byte)*, zero byte, digest of all before
//! ```
//! The root itself is not in it. A layer with no such path has no such file.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Timespec, XattrFlags};
use rustix::io::Errno;

use super::journal::Journal;
use super::meta;
use super::path::{Root, file_type};
use crate::image::digest::{Algorithm, Hasher};
use crate::image::limits;
use crate::{Error, ErrorKind, Result};

/// The file's name, beside `fs` in the layer's directory.
pub(crate) const NAME: &str = "implied";
/// Marks a directory while it is implied.
pub(super) const MARK: &str = "trusted.overlay.skiff.implied";
/// Lower layers say what it is.
pub(super) const INHERITS: &[u8] = b"y";
/// The layer removed those below, so it is what every new directory is.
pub(super) const ANEW: &[u8] = b"n";
/// The time of a directory that nothing describes: the same in every run.
pub(super) const TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What a layer has implied so far.
#[derive(Default)]
pub(super) struct Implied {
    /// On disk where it is long.
    paths: Journal,
    bytes: u64,
}

impl Implied {
    /// Notes and marks a directory that was made at `path`; `root` is that of the layer.
    pub(super) fn add(&mut self, path: &[u8], dir: &OwnedFd, root: &OwnedFd) -> Result<()> {
        self.bytes += path.len() as u64 + 1;
        let what = "bytes of the paths of directories that no entry of a layer describes";
        limits::check(what, self.bytes, limits::MAX_IMPLIED_BYTES)?;
        mark(dir, INHERITS)?;
        self.paths.add(path, TIME, &[], root)
    }
}

/// Marks the root of a layer, which no entry describes yet.
pub(super) fn mark_root(root: &OwnedFd) -> Result<()> {
    mark(root, INHERITS)
}

/// The layer removes what is below this directory: if it is implied, it is what a new one is.
pub(super) fn renew(dir: &OwnedFd) -> Result<()> {
    match read_mark(dir)? {
        Some(_) => mark(dir, ANEW),
        None => Ok(()),
    }
}

/// Whether lower layers say what this directory of a layer is.
pub(crate) fn inherits(dir: impl AsFd) -> Result<bool> {
    Ok(read_mark(dir)? == Some(INHERITS[0]))
}

/// Whether this directory of a layer has no entry.
pub(super) fn is_marked(dir: &OwnedFd) -> Result<bool> {
    Ok(read_mark(dir)?.is_some())
}

fn mark(dir: &OwnedFd, value: &[u8]) -> Result<()> {
    rustix::fs::fsetxattr(dir, MARK, value, XattrFlags::empty())
        .map_err(|e| Error::host(format!("set {MARK} on a directory of a layer"), e))
}

fn read_mark(dir: impl AsFd) -> Result<Option<u8>> {
    let mut value = [0u8; 1];
    match rustix::fs::fgetxattr(dir, MARK, &mut value[..]) {
        Ok(1) => Ok(Some(value[0])),
        Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
        Err(e) => Err(Error::host(format!("read {MARK} of a directory of a layer"), e)),
    }
}

/// Sets the times of all that is implied in the end, and lists it in `beside`, if given.
pub(super) fn finish(root: &mut Root, beside: Option<OwnedFd>) -> Result<()> {
    let times = meta::times(TIME);
    let timed = |dir: &OwnedFd| {
        rustix::fs::futimens(dir, &times)
            .map_err(|e| Error::host("set the times of a directory that a layer implies", e))
    };
    if read_mark(root.fd())?.is_some() {
        timed(root.fd())?;
    }
    let implied = std::mem::take(root.implied());
    let mut list = beside.map(List::new);
    implied.paths.replay(|note| {
        let path = Path::new(OsStr::from_bytes(&note.path));
        let Some(place) = root.find(path)? else { return Ok(()) };
        if place.stat()?.is_none_or(|stat| file_type(&stat) != FileType::Directory) {
            return Ok(());
        }
        let dir = place.open_dir()?;
        let Some(mark) = read_mark(&dir)? else { return Ok(()) };
        timed(&dir)?;
        match &mut list {
            Some(list) if mark == INHERITS[0] => list.add(&note.path).map_err(unwritten),
            _ => Ok(()),
        }
    })?;
    list.map_or(Ok(()), |list| list.finish().map_err(unwritten))
}

fn unwritten(error: std::io::Error) -> Error {
    Error::host("write down which directories a layer implies", error)
}

/// The file in the making, made with its first path.
struct List {
    beside: OwnedFd,
    file: Option<BufWriter<File>>,
    hasher: Hasher,
}

impl List {
    fn new(beside: OwnedFd) -> Self {
        Self { beside, file: None, hasher: Hasher::new(Algorithm::Sha256) }
    }

    fn add(&mut self, path: &[u8]) -> std::io::Result<()> {
        if self.file.is_none() {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(&self.beside, NAME, flags, Mode::RUSR | Mode::WUSR)?;
            self.file = Some(BufWriter::new(made.into()));
        }
        self.put(path)?;
        self.put(b"\0")
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
    }

    fn finish(mut self) -> std::io::Result<()> {
        self.put(b"\0")?;
        let Some(mut file) = self.file else { return Ok(()) };
        file.write_all(self.hasher.finish().to_string().as_bytes())?;
        file.flush()
    }
}

/// Gives each path that a layer implies, parents first. `false` if there is none. `layer_dir` holds
/// `fs`.
///
/// # Errors
/// `CorruptImage` if the list is broken, possibly after some paths; `Host`; those of `each`.
pub(crate) fn read(layer_dir: &Path, mut each: impl FnMut(&Path) -> Result<()>) -> Result<bool> {
    let shown = layer_dir.display();
    let failed = |e: std::io::Error| Error::host(format!("read {NAME} of the layer {shown}"), e);
    let broken = || {
        Error::new(ErrorKind::CorruptImage, format!("the list {NAME} of the layer {shown} is broken"))
            .advise("remove the image and pull it again")
    };
    let Some(file) = open(layer_dir).map_err(|e| failed(e.into()))? else { return Ok(false) };
    let mut file = std::io::Read::take(BufReader::new(file), limits::MAX_IMPLIED_BYTES + 1024);
    let (mut hasher, mut path) = (Hasher::new(Algorithm::Sha256), Vec::new());
    loop {
        path.clear();
        file.read_until(0, &mut path).map_err(failed)?;
        hasher.update(&path);
        if path.pop() != Some(0) {
            return Err(broken());
        }
        if path.is_empty() {
            break;
        }
        let clean = super::path::clean(&path).map_err(|_| broken())?;
        each(&clean)?;
    }
    path.clear();
    std::io::Read::read_to_end(&mut file, &mut path).map_err(failed)?;
    if path == hasher.finish().to_string().as_bytes() { Ok(true) } else { Err(broken()) }
}

/// Whether a layer in the store has no list of implied directories, or a whole one.
pub(crate) fn is_whole(layer_dir: &Path) -> bool {
    read(layer_dir, |_| Ok(())).is_ok()
}

fn open(layer_dir: &Path) -> rustix::io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let dir = rustix::fs::open(layer_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(&dir, NAME, flags, Mode::empty(), resolve) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}
