//! One entry of an archive and the file that it became.

mod marks;

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::BuildHasher as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use self::marks::Marks;
use super::entries::{Entry, Kind};
use super::implied;
use super::meta::{self, through_proc};
use super::path::{self, Place, Root, file_type, show};
use super::reading;
use super::verify::{Difference, Directories};
use super::whiteout::{self, OPAQUE_XATTR, Whiteout};
use crate::image::limits;
use crate::{Error, Result};

/// Times that every filesystem can hold; others are cut off.
const TIMES: std::ops::Range<i64> = -(1 << 31)..1 << 31;

/// Directories that a later entry could still explain; that many are wrong.
const MAX_DOUBTFUL: usize = 10_000;

/// The comparison of a layer's entries with its files.
pub(super) struct Comparison {
    root: Root,
    /// Every name that an entry is about, as a hash of its directory's inode and itself; `false` where
    /// there is only a whiteout for it.
    names: HashMap<u64, bool>,
    keys: RandomState,
    last_parent: Option<PathBuf>,
    /// Directories that are not as an entry says, by their inodes. A later entry may name them by
    /// another path through a link, and is what counts.
    doubtful: HashMap<u64, (u64, Difference)>,
    marks: Marks,
}

impl Comparison {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root: Root::new(root),
            names: HashMap::new(),
            keys: RandomState::new(),
            last_parent: None,
            doubtful: HashMap::new(),
            marks: Marks::default(),
        }
    }

    /// Notes what the layer's list of implied directories has.
    pub(super) fn listed(&mut self, path: &Path) -> Result<()> {
        let inode = self.inode(path)?;
        self.marks.list(path, inode);
        Ok(())
    }

    /// What is wrong with the `number`th entry. `data` is how many bytes of data it has, and `from`
    /// the file that all of these come from.
    pub(super) fn entry(
        &mut self,
        entry: &Entry,
        number: u64,
        directories: &Directories,
        data: u64,
        from: Option<&Path>,
    ) -> Result<Option<Difference>> {
        let path = path::clean(&entry.path)?;
        let what = match whiteout::parse(&path)? {
            Whiteout::Ignored => None,
            Whiteout::Opaque(dir) => self.opaque(dir)?,
            Whiteout::Remove(dir, name) => self.whiteout(&dir.join(name))?,
            Whiteout::No if entry.kind == Kind::Directory && !directories.is_last(&path, number) => None,
            Whiteout::No if entry.kind == Kind::Directory => return self.directory(entry, path, number),
            Whiteout::No if entry.kind == Kind::Regular && data > 0 && from != Some(path.as_path()) => {
                Some("its content is not in the recipe as that of a file".to_owned())
            }
            Whiteout::No => self.file(entry, &path)?,
        };
        Ok(what.map(|what| Difference { path, what }))
    }

    fn name(&self, dir: u64, name: &OsStr) -> u64 {
        self.keys.hash_one((dir, name))
    }

    /// Notes that an entry is about this path, and whether it put something there, as it did with the
    /// directories on the way.
    fn seen(&mut self, path: &Path, mut put: bool) -> Result<()> {
        let (whole, parent) = (path, path.parent().unwrap_or(Path::new("")));
        let known = self.last_parent.as_deref().is_some_and(|last| last.as_os_str() == parent.as_os_str());
        let mut at = Some(path);
        while let Some(path) = at.filter(|path| !path.as_os_str().is_empty()) {
            if let Some(place) = self.root.find(path)? {
                let name = self.name(place.dir.inode, place.name);
                let noted = self.names.entry(name).or_default();
                *noted |= put && (path == whole || is_directory(&place)?);
            }
            if known {
                return Ok(());
            }
            put = true;
            at = path.parent();
        }
        self.last_parent = Some(parent.to_owned());
        Ok(())
    }

    fn opaque(&mut self, dir: &Path) -> Result<Option<String>> {
        self.seen(dir, true)?;
        let inside = dir.join("x");
        let Some(place) = self.root.find(&inside)? else {
            return Ok(None);
        };
        self.marks.opaque.insert(place.dir.inode);
        let here = Place { dir: place.dir, name: OsStr::new("."), path: dir };
        Ok(not_opaque(&here))
    }

    fn whiteout(&mut self, path: &Path) -> Result<Option<String>> {
        self.seen(path, false)?;
        let Some(place) = self.root.find(path)? else {
            return Ok(None);
        };
        Ok(match place.stat()? {
            None => Some("its whiteout is missing".to_owned()),
            Some(stat) if file_type(&stat) == FileType::Directory => {
                self.marks.opaque.insert(stat.st_ino);
                not_opaque(&place)
            }
            // Another entry may have put something there; [`Comparison::foreign`] knows of all.
            Some(_) => None,
        })
    }

    fn file(&mut self, entry: &Entry, path: &Path) -> Result<Option<String>> {
        if path.as_os_str().is_empty() {
            return self.root_directory(entry);
        }
        self.seen(path, true)?;
        let Some(place) = self.root.find(path)? else {
            return Ok(Some("it is missing".to_owned()));
        };
        let Some(stat) = place.stat()? else {
            return Ok(Some("it is missing".to_owned()));
        };
        if entry.kind == Kind::HardLink {
            return self.hard_link(entry, &stat);
        }
        if let Some(what) = status(entry, &stat) {
            return Ok(Some(what));
        }
        if entry.kind == Kind::Symlink {
            let target = rustix::fs::readlinkat(&place.dir.fd, place.name, Vec::new())
                .map_err(|e| place.failed("readlink", e))?;
            if target.as_bytes() != entry.link {
                let (found, wanted) = (show(target.as_bytes()), show(&entry.link));
                return Ok(Some(format!("it is a link to {found}, not to {wanted}")));
            }
        }
        Ok(attributes(entry, &place))
    }

    fn directory(&mut self, entry: &Entry, path: PathBuf, number: u64) -> Result<Option<Difference>> {
        let what = self.file(entry, &path)?;
        let Some(inode) = self.inode(&path)? else {
            return Ok(what.map(|what| Difference { path, what }));
        };
        self.marks.described.insert(inode);
        let Some(what) = what else {
            self.doubtful.remove(&inode);
            return Ok(None);
        };
        self.doubtful.insert(inode, (number, Difference { path, what }));
        Ok(if self.doubtful.len() > MAX_DOUBTFUL { self.wrong_directory() } else { None })
    }

    fn inode(&mut self, path: &Path) -> Result<Option<u64>> {
        if path.as_os_str().is_empty() {
            let stat = rustix::fs::fstat(self.root.fd());
            return Ok(Some(stat.map_err(|e| Error::host("stat the root of a layer", e))?.st_ino));
        }
        let stat = self.root.find(path)?.map(|place| place.stat()).transpose()?;
        Ok(stat.flatten().map(|stat| stat.st_ino))
    }

    /// After all entries: the first directory that is not as its last entry says.
    pub(super) fn wrong_directory(&mut self) -> Option<Difference> {
        let doubtful = std::mem::take(&mut self.doubtful);
        doubtful.into_values().min_by_key(|(number, _)| *number).map(|(_, difference)| difference)
    }

    fn root_directory(&mut self, entry: &Entry) -> Result<Option<String>> {
        let failed = |e| Error::host("stat the root of a layer", e);
        let stat = rustix::fs::fstat(self.root.fd()).map_err(failed)?;
        let dir = self.root.resolve(Path::new("")).and_then(path::Dir::new).map_err(failed)?;
        let place = Place { dir: std::rc::Rc::new(dir), name: OsStr::new("."), path: Path::new(".") };
        Ok(status(entry, &stat).or_else(|| attributes(entry, &place)))
    }

    fn hard_link(&mut self, entry: &Entry, stat: &Stat) -> Result<Option<String>> {
        let target = path::clean(&entry.link)?;
        let there = match self.root.find(&target)? {
            Some(place) => place.stat()?,
            None => None,
        };
        if there.is_some_and(|there| there.st_ino == stat.st_ino) {
            return Ok(None);
        }
        Ok(Some(format!("it is not the same file as {}", show(&entry.link))))
    }

    /// A name that no entry put there, or a directory that is not what it should be without an entry.
    pub(super) fn foreign(&mut self) -> Result<Option<Difference>> {
        let mut todo = vec![PathBuf::new()];
        while let Some(dir) = todo.pop() {
            let failed = |e: Errno| {
                Error::host(format!("read the directory {} of a layer", show(dir.as_os_str().as_bytes())), e)
            };
            let handle = self.root.resolve(&dir).map_err(failed)?;
            let stat = rustix::fs::fstat(&handle).map_err(failed)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let listed = rustix::fs::openat(&handle, ".", flags, Mode::empty()).map_err(failed)?;
            for file in Dir::new(listed).map_err(failed)? {
                let file = file.map_err(failed)?;
                let name = OsStr::from_bytes(file.file_name().to_bytes());
                if name == "." || name == ".." {
                    continue;
                }
                let path = dir.join(name);
                let what = match self.names.get(&self.name(stat.st_ino, name)) {
                    None => "it is not of this layer",
                    Some(false) if !is_whiteout(&handle, name).map_err(failed)? => "it should be a whiteout",
                    Some(_) => {
                        if file.file_type() == FileType::Directory {
                            todo.push(path);
                        }
                        continue;
                    }
                };
                return Ok(Some(Difference { path, what: what.to_owned() }));
            }
            if let Some(what) = self.marks.look(&dir, &handle, &stat).map_err(failed)? {
                return Ok(Some(Difference { path: dir, what }));
            }
        }
        Ok(self.marks.missing())
    }
}

fn is_directory(place: &Place<'_>) -> Result<bool> {
    Ok(place.stat()?.is_some_and(|stat| file_type(&stat) == FileType::Directory))
}

/// Whether overlayfs takes it for a whiteout.
fn is_whiteout(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<bool> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(file_type(&stat) == FileType::CharacterDevice && stat.st_rdev == 0)
}

fn not_opaque(place: &Place<'_>) -> Option<String> {
    let mut value = [0u8; 2];
    match rustix::fs::lgetxattr(through_proc(place), OPAQUE_XATTR, &mut value[..]) {
        Ok(1) if value[0] == b'y' => None,
        _ => Some("it should hide the layers below, and does not".to_owned()),
    }
}

fn kind_of(kind: Kind) -> FileType {
    match kind {
        Kind::Regular | Kind::HardLink => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
    }
}

/// What `stat` tells.
fn status(entry: &Entry, stat: &Stat) -> Option<String> {
    let (wanted, found) = (kind_of(entry.kind), file_type(stat));
    if wanted != found {
        return Some(format!("it is a {found:?}, not a {wanted:?}"));
    }
    let mode = stat.st_mode & 0o7777;
    if entry.kind != Kind::Symlink && mode != entry.mode {
        return Some(format!("its mode is {mode:04o}, not {:04o}", entry.mode));
    }
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        return Some(format!("its owner is {uid}:{gid}, not {}:{}", entry.uid, entry.gid));
    }
    if entry.kind == Kind::Regular && stat.st_size.cast_unsigned() != entry.size {
        return Some(format!("it has {} bytes, not {}", stat.st_size, entry.size));
    }
    let device = rustix::fs::makedev(entry.device.0, entry.device.1);
    if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) && stat.st_rdev != device {
        return Some("it is another device".to_owned());
    }
    let (wanted, found) =
        ((entry.mtime.tv_sec, entry.mtime.tv_nsec), (stat.st_mtime, stat.st_mtime_nsec as i64));
    if TIMES.contains(&wanted.0) && wanted != found {
        return Some(format!("its time is {}.{:09}, not {}.{:09}", found.0, found.1, wanted.0, wanted.1));
    }
    None
}

/// Attributes that the entry has and the file has not, or the other way round.
fn attributes(entry: &Entry, place: &Place<'_>) -> Option<String> {
    let path = through_proc(place);
    if !entry.xattrs.is_empty() {
        let mut found = vec![0u8; limits::MAX_XATTR_BYTES as usize];
        for (name, value) in meta::kept(entry) {
            let wanted = reading::of(entry, &name, value);
            match rustix::fs::lgetxattr(&path, OsStr::from_bytes(&name), &mut found[..]) {
                Ok(length) if wanted.as_deref() == Some(&found[..length]) => {}
                Err(Errno::NODATA) if wanted.is_none() => {}
                // As while unpacking: this filesystem, or this kind of file, has none of these.
                Err(Errno::OPNOTSUPP) => {}
                Err(Errno::NODATA | Errno::PERM) if name.starts_with(b"user.") && is_special(entry) => {}
                _ => return Some(format!("its extended attribute {} is missing or another", show(&name))),
            }
        }
    }
    // What cannot be listed has been looked at above as far as the entry goes.
    let names = names_of(&path).unwrap_or_default();
    let foreign = |name: &Vec<u8>| is_own(name) && !meta::kept(entry).any(|(kept, _)| *kept == **name);
    names.iter().find(|name| !is_mark(name) && foreign(name)).map(|name| foreign_attribute(name))
}

fn foreign_attribute(name: &[u8]) -> String {
    format!("its extended attribute {} is not of this layer", show(name))
}

/// Whether only an unpacked layer can have put it there: those of the host's security modules are not
/// kept from archives either.
pub(super) fn is_own(name: &[u8]) -> bool {
    !name.starts_with(b"security.") || name == b"security.capability"
}

/// What the extractor itself puts on directories, which is looked at with them.
fn is_mark(name: &[u8]) -> bool {
    name == OPAQUE_XATTR.as_bytes() || name == implied::MARK.as_bytes()
}

/// The names of a file's extended attributes.
pub(super) fn names_of(path: &Path) -> rustix::io::Result<Vec<Vec<u8>>> {
    let length = match rustix::fs::llistxattr_query(path) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        length => length?,
    };
    let mut names = vec![0; length];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    Ok(names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

fn is_special(entry: &Entry) -> bool {
    !matches!(entry.kind, Kind::Regular | Kind::Directory)
}
