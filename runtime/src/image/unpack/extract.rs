//! From entries to files. The same name twice: the last wins, and two directories become one.

use std::collections::HashMap;
use std::io::{Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timestamps};
use rustix::io::Errno;

use super::entries::{Entries, Entry, Kind, Sparse, invalid};
use super::path::{self, Place, Root, file_type, show};
use super::whiteout::{self, Whiteout, Whiteouts};
use super::{broken, meta};
use crate::image::limits::{self, Budget};
use crate::{Error, Result};

const COPY_BYTES: usize = 256 << 10;
/// Longest target of a symbolic link: `PATH_MAX` with its zero byte.
const MAX_TARGET_BYTES: u64 = limits::MAX_PATH_BYTES - 1;

/// Names of directories and whiteouts are kept until the layer's end: this many bytes of them, which
/// is for half a million directories.
const MAX_REMEMBERED_BYTES: u64 = 64 << 20;
/// What each costs beside its bytes.
const REMEMBERED_OVERHEAD: usize = 64;

/// Unpacks all entries of an archive below `root`.
pub(super) fn extract(archive: &mut impl Read, budget: &Budget, root: OwnedFd) -> Result<()> {
    let mut entries = Entries::new(archive);
    let mut extractor = Extractor::new(root);
    while let Some(entry) = entries.next()? {
        budget.entry()?;
        extractor.entry(&entry, &mut entries)?;
    }
    extractor.finish()
}

struct Extractor {
    root: Root,
    /// Times of directories, set when nothing more is put into them.
    times: HashMap<PathBuf, Timestamps>,
    whiteouts: Whiteouts,
    /// Bytes of paths in the two above.
    remembered: u64,
    buffer: Vec<u8>,
}

impl Extractor {
    fn new(root: OwnedFd) -> Self {
        Self {
            root: Root::new(root),
            times: HashMap::new(),
            whiteouts: Whiteouts::default(),
            remembered: 0,
            buffer: vec![0; COPY_BYTES],
        }
    }

    /// Counts a path that is kept until the end.
    fn remember(&mut self, path: &Path) -> Result<PathBuf> {
        self.remembered += (path.as_os_str().len() + REMEMBERED_OVERHEAD) as u64;
        limits::check("bytes of the names of a layer's directories", self.remembered, MAX_REMEMBERED_BYTES)?;
        Ok(path.to_owned())
    }

    fn entry<R: Read>(&mut self, entry: &Entry, entries: &mut Entries<R>) -> Result<()> {
        let path = path::clean(&entry.path)?;
        match whiteout::parse(&path)? {
            Whiteout::No => {}
            Whiteout::Ignored => return Ok(()),
            Whiteout::Opaque(dir) => {
                let dir = self.remember(dir)?;
                self.whiteouts.opaque(dir);
                return Ok(());
            }
            Whiteout::Remove(dir, name) => {
                let path = self.remember(&dir.join(name))?;
                self.whiteouts.remove(path);
                return Ok(());
            }
        }
        let Some(place) = self.root.place(&path)? else {
            return self.root_entry(entry);
        };
        match entry.kind {
            Kind::Directory => self.directory(entry, &place),
            Kind::HardLink => self.hard_link(entry, &place),
            Kind::Regular => self.regular(entry, &place, entries),
            Kind::Symlink => self.symlink(entry, &place),
            Kind::CharDevice => self.node(entry, &place, FileType::CharacterDevice),
            Kind::BlockDevice => self.node(entry, &place, FileType::BlockDevice),
            Kind::Fifo => self.node(entry, &place, FileType::Fifo),
        }
    }

    /// `./` describes the root; nothing else may be there.
    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(invalid(format!(
                "{} is not a directory, but the root must be one",
                show(&entry.path)
            )));
        }
        let dir = std::rc::Rc::new(
            self.root.fd().try_clone().map_err(|e| Error::host("duplicate the descriptor of a layer", e))?,
        );
        let place = Place { dir, name: std::ffi::OsStr::new("."), path: Path::new(".") };
        meta::set_open(self.root.fd(), entry, &place)?;
        self.times.insert(PathBuf::new(), meta::times(entry));
        Ok(())
    }

    fn directory(&mut self, entry: &Entry, place: &Place<'_>) -> Result<()> {
        let mode = Mode::from_raw_mode(entry.mode);
        let dir = match place.stat()? {
            Some(stat) if file_type(&stat) == FileType::Directory => place.open_dir()?,
            Some(_) => {
                self.root.remove(place)?;
                place.make_dir(mode)?
            }
            None => place.make_dir(mode)?,
        };
        meta::set_open(&dir, entry, place)?;
        let path = self.remember(place.path)?;
        self.times.insert(path, meta::times(entry));
        Ok(())
    }

    /// Makes the place free for something that is not a directory.
    fn clear(&mut self, place: &Place<'_>) -> Result<()> {
        match place.stat()? {
            Some(_) => self.root.remove(place),
            None => Ok(()),
        }
    }

    fn regular<R: Read>(&mut self, entry: &Entry, place: &Place<'_>, entries: &mut Entries<R>) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(&*place.dir, place.name, flags, Mode::RUSR | Mode::WUSR);
        let fd = match create() {
            Err(Errno::EXIST) => {
                self.root.remove(place)?;
                create()
            }
            other => other,
        };
        let mut file = std::fs::File::from(fd.map_err(|e| place.failed("create", e))?);
        match &entry.sparse {
            None => self.copy(&mut entries.data(), &mut file, place)?,
            Some(sparse) => self.copy_sparse(sparse, entries, &mut file, place)?,
        }
        meta::set_file(&file.into(), entry, place)
    }

    fn copy(&mut self, data: &mut impl Read, file: &mut std::fs::File, place: &Place<'_>) -> Result<()> {
        loop {
            let read = match data.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(broken(e, "archive in a layer")),
            };
            file.write_all(&self.buffer[..read])
                .map_err(|e| Error::host(format!("write {:?} while unpacking a layer", place.path), e))?;
        }
    }

    fn copy_sparse<R: Read>(
        &mut self,
        sparse: &Sparse,
        entries: &mut Entries<R>,
        file: &mut std::fs::File,
        place: &Place<'_>,
    ) -> Result<()> {
        let failed = |e| Error::host(format!("write {:?} while unpacking a layer", place.path), e);
        for &(offset, length) in &sparse.runs {
            file.seek(SeekFrom::Start(offset)).map_err(failed)?;
            self.copy(&mut entries.data().take(length), file, place)?;
        }
        file.set_len(sparse.size).map_err(failed)
    }

    /// The target is a name of this layer, as the specification wants it, and is not followed.
    fn hard_link(&mut self, entry: &Entry, place: &Place<'_>) -> Result<()> {
        let target = path::clean(&entry.link)?;
        if target == place.path {
            return Ok(());
        }
        let missing = || {
            let (name, target) = (show(&entry.path), show(&entry.link));
            invalid(format!("{name} is a hard link to {target}, which is not in this layer"))
        };
        let from = self.root.find(&target)?.ok_or_else(missing)?;
        let found = from.stat()?.ok_or_else(missing)?;
        if file_type(&found) == FileType::Directory {
            return Err(invalid(format!(
                "{} is a hard link to {}, which is a directory",
                show(&entry.path),
                show(&entry.link)
            )));
        }
        self.clear(place)?;
        match rustix::fs::linkat(&*from.dir, from.name, &*place.dir, place.name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            // The target was below what the link replaces.
            Err(Errno::NOENT) => Err(missing()),
            Err(e) => Err(place.failed("link", e)),
        }
    }

    fn symlink(&mut self, entry: &Entry, place: &Place<'_>) -> Result<()> {
        limits::check("bytes of a symbolic link's target", entry.link.len() as u64, MAX_TARGET_BYTES)?;
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(invalid(format!("the symbolic link {} has no valid target", show(&entry.path))));
        }
        self.clear(place)?;
        rustix::fs::symlinkat(entry.link.as_slice(), &*place.dir, place.name)
            .map_err(|e| place.failed("symlink", e))?;
        meta::set_closed(entry, place, false)
    }

    /// Devices are made as the archive says: the container's root is mounted `nodev`.
    fn node(&mut self, entry: &Entry, place: &Place<'_>, kind: FileType) -> Result<()> {
        self.clear(place)?;
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        rustix::fs::mknodat(&*place.dir, place.name, kind, Mode::RUSR | Mode::WUSR, device)
            .map_err(|e| place.failed("mknod", e))?;
        meta::set_closed(entry, place, true)
    }

    fn finish(mut self) -> Result<()> {
        self.whiteouts.apply(&mut self.root)?;
        for (path, times) in &self.times {
            let set = |dir: &OwnedFd, name: &std::ffi::OsStr| {
                rustix::fs::utimensat(dir, name, times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| Error::host(format!("set the times of {path:?} while unpacking a layer"), e))
            };
            if path.as_os_str().is_empty() {
                set(self.root.fd(), std::ffi::OsStr::new("."))?;
            } else if let Some(place) = self.root.find(path)?
                && place.stat()?.is_some_and(|stat| file_type(&stat) == FileType::Directory)
            {
                set(&place.dir, place.name)?;
            }
        }
        Ok(())
    }
}
