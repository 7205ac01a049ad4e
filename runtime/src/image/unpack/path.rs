//! Paths inside a layer: cleaned as text, then resolved by the kernel below the layer's root.
//!
//! The rule is Docker's and containerd's: `/` at the front is the layer's root; `.`, `..` and double
//! slashes are taken out as text (a name that then still begins with `..` is refused, where
//! containerd would clamp it); directories on the way that the layer itself made into symbolic
//! links are followed, with `RESOLVE_IN_ROOT`, so that even `..` and absolute targets stay inside.
//! The last component is never followed.
//!
//! Directories that a layer has entries in but no entry for are made with mode 0755 for root, and
//! marked ([`super::implied`]): layers are unpacked without the ones below them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::entries::invalid;
use super::implied::Implied;
use super::{meta, remove};
use crate::image::limits;
use crate::{Error, Result};

/// How often a resolution is tried again that raced with a rename or mount elsewhere on the host
/// (`openat2` says EAGAIN then, openat2(2)).
const RESOLVE_TRIES: u32 = 1000;
/// Directories that no entry describes.
pub(super) const PARENT_MODE: Mode = Mode::from_raw_mode(0o755);
/// Open parents that are kept. With ten layers at once they are well below the usual 1024
/// descriptors of a process.
const MAX_PARENTS: usize = 16;

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

/// A directory that entries are put into.
pub(super) struct Dir {
    pub(super) fd: OwnedFd,
    /// New files may get this group instead of the process's: if the directory has the set-group-ID
    /// bit, or the filesystem is mounted with `grpid` (mount(8)).
    gid: u32,
    set_gid: bool,
    pub(super) inode: u64,
}

impl Dir {
    pub(super) fn new(fd: OwnedFd) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self { fd, gid: stat.st_gid, set_gid: stat.st_mode & 0o2000 != 0, inode: stat.st_ino })
    }
}

/// Where an entry goes: an open directory and a name in it that is one component.
pub(super) struct Place<'a> {
    pub(super) dir: Rc<Dir>,
    pub(super) name: &'a OsStr,
    pub(super) path: &'a Path,
}

impl Place<'_> {
    /// What is there now, without following a link.
    pub(super) fn stat(&self) -> Result<Option<Stat>> {
        match rustix::fs::statat(&self.dir.fd, self.name, AtFlags::SYMLINK_NOFOLLOW) {
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

    /// Whether what is made here belongs to root's group without more ado.
    pub(super) fn gives_root(&self) -> bool {
        self.dir.gid == 0
    }

    /// Whether directories that are made here get more mode bits than they are made with.
    pub(super) fn gives_set_gid(&self) -> bool {
        self.dir.set_gid
    }

    /// Opens the directory that is here.
    pub(super) fn open_dir(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir.fd, self.name, flags, Mode::empty()).map_err(|e| self.failed("open", e))
    }
}

pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The root directory of a layer.
pub(super) struct Root {
    fd: OwnedFd,
    /// Parents that were wanted last, the latest first: entries of one directory follow each other,
    /// with those of its subdirectories in between.
    parents: Vec<(PathBuf, Rc<Dir>)>,
    /// Whether anything has been removed.
    replaced: bool,
    implied: Implied,
}

impl Root {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd, parents: Vec::with_capacity(MAX_PARENTS), replaced: false, implied: Implied::default() }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(super) fn implied(&mut self) -> &mut Implied {
        &mut self.implied
    }

    /// Whether a name came twice, and the last of it took the first one's place.
    pub(super) fn replaced(&self) -> bool {
        self.replaced
    }

    /// Looks at all parents anew: links on the way, groups or modes may have changed.
    pub(super) fn forget_parents(&mut self) {
        self.parents.clear();
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
        self.place_by(path, |root, parent| root.make_parents(parent))
    }

    /// The place of `path` if its parent is there; nothing is made.
    pub(super) fn find<'a>(&mut self, path: &'a Path) -> Result<Option<Place<'a>>> {
        self.place_by(path, |root, parent| match root.resolve(parent) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(failed_to_resolve(parent, e)),
        })
    }

    fn place_by<'a>(
        &mut self,
        path: &'a Path,
        open: impl FnOnce(&mut Self, &Path) -> Result<Option<OwnedFd>>,
    ) -> Result<Option<Place<'a>>> {
        let Some((parent, name)) = path.parent().zip(path.file_name()) else {
            return Ok(None);
        };
        if let Some(dir) = self.known(parent) {
            return Ok(Some(Place { dir, name, path }));
        }
        let Some(fd) = open(self, parent)? else {
            return Ok(None);
        };
        let dir = Rc::new(Dir::new(fd).map_err(|e| failed_to_resolve(parent, e))?);
        self.parents.truncate(MAX_PARENTS - 1);
        self.parents.insert(0, (parent.to_owned(), Rc::clone(&dir)));
        Ok(Some(Place { dir, name, path }))
    }

    fn known(&mut self, parent: &Path) -> Option<Rc<Dir>> {
        // As bytes: clean paths are equal if these are, and comparing components is slow.
        let at = self.parents.iter().position(|(known, _)| known.as_os_str() == parent.as_os_str())?;
        self.parents[..=at].rotate_right(1);
        Some(Rc::clone(&self.parents[0].1))
    }

    /// Removes what is at `place`, with everything below it.
    pub(super) fn remove(&mut self, place: &Place<'_>) -> Result<()> {
        // A directory on the way to a remembered parent may be gone now.
        self.forget_parents();
        self.replaced = true;
        remove::remove_all(place.dir.fd.as_fd(), place.name)
            .map_err(|e| Error::host(format!("remove {:?} while unpacking a layer", place.path), e))
    }

    pub(super) fn resolve(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
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
    fn make_parents(&mut self, path: &Path) -> Result<Option<OwnedFd>> {
        match self.resolve(path) {
            Ok(dir) => return Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::LOOP) => return Ok(None),
            Err(e) => return Err(failed_to_resolve(path, e)),
        }
        let mut prefix = PathBuf::new();
        for component in path.components() {
            let dir = self.resolve(&prefix).and_then(Dir::new).map_err(|e| failed_to_resolve(&prefix, e))?;
            prefix.push(component);
            match self.resolve(&prefix) {
                Ok(_) => continue,
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(Errno::LOOP) => return Ok(None),
                Err(e) => return Err(failed_to_resolve(&prefix, e)),
            }
            let place = Place { dir: Rc::new(dir), name: component.as_os_str(), path: &prefix };
            if place.stat()?.is_some() {
                return Ok(None);
            }
            let made = make_parent(&place)?;
            let real = self.real_path(&prefix, &made);
            self.implied.add(real.as_os_str().as_bytes(), &made, &self.fd)?;
        }
        self.resolve(path).map(Some).map_err(|e| failed_to_resolve(path, e))
    }

    /// Where a directory is below the root when links on the way are followed; `path` as it is where
    /// the kernel cannot tell.
    fn real_path(&self, path: &Path, dir: &OwnedFd) -> PathBuf {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        if rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve).is_ok() {
            return path.to_owned();
        }
        let shown = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let (root, real) = (shown(&self.fd), shown(dir));
        let below = root
            .ok()
            .zip(real.ok())
            .and_then(|(root, real)| real.strip_prefix(root).map(Path::to_owned).ok());
        below.unwrap_or_else(|| path.to_owned())
    }
}

/// Makes a directory of root that no entry describes, whatever umask and group the process has.
fn make_parent(place: &Place<'_>) -> Result<OwnedFd> {
    rustix::fs::mkdirat(&place.dir.fd, place.name, Mode::RWXU).map_err(|e| place.failed("mkdir", e))?;
    let dir = place.open_dir()?;
    meta::plain(&dir)?;
    Ok(dir)
}

pub(super) fn no_directory(path: &Path) -> Error {
    let path = show(path.as_os_str().as_bytes());
    invalid(format!("{path} should be a directory, but the layer has a file or a dead link there"))
}

fn failed_to_resolve(path: &Path, errno: Errno) -> Error {
    let path = show(path.as_os_str().as_bytes());
    Error::host(format!("openat2 {path} while unpacking a layer"), errno)
}
