//! Paths inside a layer: cleaned as text, then resolved by the kernel below the layer's root.
//!
//! The rule is Docker's and containerd's: `/` at the front is the layer's root; `.`, `..` and double
//! slashes are taken out as text (a name that then still begins with `..` is refused, where
//! containerd would clamp it); directories on the way that the layer itself made into symbolic
//! links are followed, with `RESOLVE_IN_ROOT`, so that even `..` and absolute targets stay inside.
//! The last component is never followed.
//!
//! Directories that a layer has entries in but no entry for are made with mode 0755 for root, as
//! Docker's overlay2 driver does it: layers are unpacked without the ones below them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::entries::invalid;
use super::remove;
use crate::image::limits;
use crate::{Error, Result};

/// How often a resolution is tried again that raced with a rename or mount elsewhere on the host
/// (`openat2` says EAGAIN then, openat2(2)).
const RESOLVE_TRIES: u32 = 1000;
/// Directories that no entry describes.
const PARENT_MODE: Mode = Mode::from_raw_mode(0o755);

/// The name of an entry as a relative path without `.` and `..`; empty for the root.
pub(crate) fn clean(name: &[u8]) -> Result<PathBuf> {
    limits::check("bytes of a path in a layer", name.len() as u64, limits::MAX_PATH_BYTES)?;
    if name.contains(&0) {
        return Err(invalid(format!("the path {} has a zero byte", show(name))));
    }
    let mut clean = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => {
                limits::check("bytes of a file name in a layer", part.len() as u64, limits::MAX_NAME_BYTES)?;
                clean.push(part);
            }
            Component::ParentDir => {
                if !clean.pop() {
                    return Err(invalid(format!("the path {} leads out of the layer", show(name))));
                }
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    limits::check("depth of a path in a layer", clean.components().count() as u64, limits::MAX_DEPTH)?;
    Ok(clean)
}

/// A foreign path in an error: quoted and not too long.
pub(super) fn show(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name).chars().take(256).collect();
    format!("{text:?}")
}

/// Where an entry goes: an open directory and a name in it that is one component.
pub(super) struct Place<'a> {
    pub(super) dir: Rc<OwnedFd>,
    pub(super) name: &'a OsStr,
    pub(super) path: &'a Path,
}

impl Place<'_> {
    /// What is there now, without following a link.
    pub(super) fn stat(&self) -> Result<Option<Stat>> {
        match rustix::fs::statat(&*self.dir, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.failed("stat", e)),
        }
    }

    /// The error of a system call on this place.
    pub(super) fn failed(&self, call: &str, errno: Errno) -> Error {
        let path = show(self.path.as_os_str().as_bytes());
        Error::host(format!("{call} {path} while unpacking a layer"), errno)
    }

    /// Makes a directory here and opens it.
    pub(super) fn make_dir(&self, mode: Mode) -> Result<OwnedFd> {
        rustix::fs::mkdirat(&*self.dir, self.name, Mode::RWXU).map_err(|e| self.failed("mkdir", e))?;
        let dir = self.open_dir()?;
        rustix::fs::fchmod(&dir, mode).map_err(|e| self.failed("chmod", e))?;
        Ok(dir)
    }

    /// Opens the directory that is here.
    pub(super) fn open_dir(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&*self.dir, self.name, flags, Mode::empty()).map_err(|e| self.failed("open", e))
    }
}

pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The root directory of a layer.
pub(super) struct Root {
    fd: OwnedFd,
    /// The parent that was wanted last: entries of one directory follow each other.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
}

impl Root {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd, last: None }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The place of `path`, with its parents made where they are missing. `None` for the root.
    ///
    /// # Errors
    /// `InvalidImage` if something on the way is not a directory.
    pub(super) fn place<'a>(&mut self, path: &'a Path) -> Result<Option<Place<'a>>> {
        match self.place_if_free(path)? {
            None if path.file_name().is_some() => Err(no_directory(path.parent().unwrap_or(path))),
            place => Ok(place),
        }
    }

    /// As [`Root::place`], and `None` also if something on the way is not a directory.
    pub(super) fn place_if_free<'a>(&mut self, path: &'a Path) -> Result<Option<Place<'a>>> {
        let Some((parent, name)) = path.parent().zip(path.file_name()) else {
            return Ok(None);
        };
        let dir = match &self.last {
            Some((known, dir)) if known == parent => Rc::clone(dir),
            _ => {
                let Some(dir) = self.make_parents(parent)? else {
                    return Ok(None);
                };
                let dir = Rc::new(dir);
                self.last = Some((parent.to_owned(), Rc::clone(&dir)));
                dir
            }
        };
        Ok(Some(Place { dir, name, path }))
    }

    /// The place of `path` if its parent is there; nothing is made.
    pub(super) fn find<'a>(&self, path: &'a Path) -> Result<Option<Place<'a>>> {
        let Some((parent, name)) = path.parent().zip(path.file_name()) else {
            return Ok(None);
        };
        match self.resolve(parent) {
            Ok(dir) => Ok(Some(Place { dir: Rc::new(dir), name, path })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(failed_to_resolve(parent, e)),
        }
    }

    /// Removes what is at `place`, with everything below it.
    pub(super) fn remove(&mut self, place: &Place<'_>) -> Result<()> {
        // A directory on the way to the remembered parent may be gone now.
        self.last = None;
        remove::remove_all(place.dir.as_fd(), place.name)
            .map_err(|e| Error::host(format!("remove {:?} while unpacking a layer", place.path), e))
    }

    fn resolve(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < RESOLVE_TRIES => tries += 1,
                other => return other,
            }
        }
    }

    /// `None` if a file or a dead link is in the way.
    fn make_parents(&self, path: &Path) -> Result<Option<OwnedFd>> {
        match self.resolve(path) {
            Ok(dir) => return Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::LOOP) => return Ok(None),
            Err(e) => return Err(failed_to_resolve(path, e)),
        }
        let mut prefix = PathBuf::new();
        for component in path.components() {
            let dir = Rc::new(self.resolve(&prefix).map_err(|e| failed_to_resolve(&prefix, e))?);
            prefix.push(component);
            match self.resolve(&prefix) {
                Ok(_) => continue,
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(Errno::LOOP) => return Ok(None),
                Err(e) => return Err(failed_to_resolve(&prefix, e)),
            }
            let place = Place { dir, name: component.as_os_str(), path: &prefix };
            if place.stat()?.is_some() {
                return Ok(None);
            }
            place.make_dir(PARENT_MODE)?;
        }
        self.resolve(path).map(Some).map_err(|e| failed_to_resolve(path, e))
    }
}

fn no_directory(path: &Path) -> Error {
    let path = show(path.as_os_str().as_bytes());
    invalid(format!("{path} should be a directory, but the layer has a file or a dead link there"))
}

fn failed_to_resolve(path: &Path, errno: Errno) -> Error {
    let path = show(path.as_os_str().as_bytes());
    Error::host(format!("openat2 {path} while unpacking a layer"), errno)
}
