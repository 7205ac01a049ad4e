//! From entries to files. The same name twice: the last wins, and two directories become one.

use std::io::{Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, OFlags, XattrFlags};
use rustix::io::Errno;

use super::beside::{self, Filler};
use super::broken;
use super::entries::{Entries, Entry, Kind, invalid};
use super::implied;
use super::journal::{Journal, Note};
use super::meta::{self, Process};
use super::path::{self, Place, Root, file_type, show};
use super::recipe::{Recipe, Tap};
use super::sparse::Sparse;
use super::whiteout::{self, Whiteout, Whiteouts};
use crate::image::limits::{self, Flow};
use crate::{Error, Result};

const COPY_BYTES: usize = 256 << 10;
/// Longest target of a symbolic link: `PATH_MAX` with its zero byte.
const MAX_TARGET_BYTES: u64 = limits::MAX_PATH_BYTES - 1;

/// Unpacks all entries of an archive below the empty directory `root`, and reads what follows them
/// to the end. With a `recipe`, writes down how to put the archive together again. Tells
/// whether a name came twice, which makes that impossible.
///
/// # Errors
/// `CorruptImage`, `InvalidImage`, `LimitExceeded`, `DiskFull`, `Host`, or what `archive` wrapped
/// into its `io::Error`.
pub(super) fn extract(
    archive: &mut impl Read,
    flow: &Flow<'_>,
    root: OwnedFd,
    mut recipe: Option<Recipe>,
) -> Result<bool> {
    let beside = recipe.as_mut().and_then(Recipe::take_beside);
    let mut entries = Entries::new(Tap::new(archive, recipe));
    let mut extractor = Extractor::new(root, flow)?;
    beside::with(|files| {
        while let Some(entry) = entries.next()? {
            flow.entry()?;
            extractor.entry(&entry, &mut entries, &files)?;
        }
        Ok(())
    })?;
    // What follows the archive's end belongs to its digest as well.
    std::io::copy(entries.reader(), &mut std::io::sink()).map_err(|e| broken(e, "archive in a layer"))?;
    let replaced = extractor.root.replaced();
    extractor.finish(beside)?;
    entries.into_reader().finish(replaced).map(|()| replaced)
}

struct Extractor<'a> {
    root: Root,
    process: Process,
    /// Times of directories, set when nothing more is put into them.
    journal: Journal,
    /// Whether a directory has a default ACL, which a later entry of the same directory takes away.
    default_acls: bool,
    whiteouts: Whiteouts,
    flow: &'a Flow<'a>,
    buffer: Vec<u8>,
}

impl<'a> Extractor<'a> {
    fn new(root: OwnedFd, flow: &'a Flow<'a>) -> Result<Self> {
        meta::plain(&root)?;
        implied::mark_root(&root)?;
        Ok(Self {
            root: Root::new(root),
            process: Process::new(),
            journal: Journal::default(),
            default_acls: false,
            whiteouts: Whiteouts::default(),
            flow,
            buffer: vec![0; COPY_BYTES],
        })
    }

    fn entry<R: Read>(&mut self, entry: &Entry, entries: &mut Entries<Tap<R>>, files: &Filler) -> Result<()> {
        let path = path::clean(&entry.path)?;
        match whiteout::parse(&path)? {
            Whiteout::No => {}
            Whiteout::Ignored => return Ok(()),
            Whiteout::Opaque(dir) => {
                self.count_whiteout(dir)?;
                self.whiteouts.opaque(dir);
                return Ok(());
            }
            Whiteout::Remove(dir, name) => {
                let path = dir.join(name);
                self.count_whiteout(&path)?;
                self.whiteouts.remove(&path);
                return Ok(());
            }
        }
        let Some(place) = self.root.place(&path)? else {
            return self.root_entry(entry);
        };
        match entry.kind {
            Kind::Directory => self.directory(entry, &place),
            Kind::HardLink => self.hard_link(entry, &place),
            Kind::Regular => self.regular(entry, &place, entries, files),
            Kind::Symlink => self.symlink(entry, &place),
            Kind::CharDevice => self.node(entry, &place, FileType::CharacterDevice),
            Kind::BlockDevice => self.node(entry, &place, FileType::BlockDevice),
            Kind::Fifo => self.node(entry, &place, FileType::Fifo),
        }
    }

    fn count_whiteout(&mut self, path: &Path) -> Result<()> {
        let bytes = (path.as_os_str().len() + whiteout::PATH_OVERHEAD) as u64;
        self.flow.whiteout(bytes)
    }

    /// Keeps what is done to a directory at the end.
    fn note(&mut self, entry: &Entry, path: &Path) -> Result<()> {
        let acl = meta::default_acl(entry);
        self.default_acls |= !acl.is_empty();
        self.journal.add(path.as_os_str().as_bytes(), entry.mtime, acl, self.root.fd())
    }

    /// `./` describes the root; nothing else may be there.
    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            let path = show(&entry.path);
            return Err(invalid(format!("{path} is not a directory, but the root must be one")));
        }
        let failed = |e| Error::host("open the root directory of a layer", e);
        let dir = self.root.resolve(Path::new("")).and_then(path::Dir::new).map_err(failed)?;
        let place = Place { dir: Rc::new(dir), name: std::ffi::OsStr::new("."), path: Path::new(".") };
        meta::set_again(self.root.fd(), entry, &place)?;
        self.root.forget_parents();
        self.note(entry, Path::new(""))
    }

    fn directory(&mut self, entry: &Entry, place: &Place<'_>) -> Result<()> {
        let (mode, mode_is_right) = self.process.dir_mode(entry, place);
        let make = || rustix::fs::mkdirat(&place.dir.fd, place.name, mode);
        match make() {
            Err(Errno::EXIST)
                if place.stat()?.is_some_and(|stat| file_type(&stat) == FileType::Directory) =>
            {
                meta::set_again(&place.open_dir()?, entry, place)?;
                // Its group may be another now, and new files may get that.
                self.root.forget_parents();
            }
            Err(Errno::EXIST) => {
                self.root.remove(place)?;
                make().map_err(|e| place.failed("mkdir", e))?;
                self.new_directory(entry, place, mode_is_right)?;
            }
            Err(e) => return Err(place.failed("mkdir", e)),
            Ok(()) => self.new_directory(entry, place, mode_is_right)?,
        }
        self.note(entry, place.path)
    }

    fn new_directory(&self, entry: &Entry, place: &Place<'_>, mode_is_right: bool) -> Result<()> {
        if self.process.is_complete(entry, place, mode_is_right) {
            return Ok(());
        }
        self.process.set_new(&place.open_dir()?, entry, place, mode_is_right)
    }

    /// Makes something that is not a directory, in place of whatever was there.
    fn make<T>(
        &mut self,
        call: &str,
        place: &Place<'_>,
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T> {
        let made = match make() {
            Err(Errno::EXIST) => {
                self.root.remove(place)?;
                make()
            }
            other => other,
        };
        made.map_err(|e| place.failed(call, e))
    }

    fn regular<R: Read>(
        &mut self,
        entry: &Entry,
        place: &Place<'_>,
        entries: &mut Entries<Tap<R>>,
        files: &Filler,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (mode, mode_is_right) = self.process.file_mode(entry);
        let fd = self.make("create", place, || rustix::fs::openat(&place.dir.fd, place.name, flags, mode))?;
        let mut file = std::fs::File::from(fd);
        let is_small = entry.sparse.is_none() && entry.size <= beside::MAX_BYTES;
        if is_small && self.process.is_complete(entry, place, mode_is_right) {
            entries.reader().content(place.path, 0, entry.size)?;
            files.fill(file, entry.size, entry.mtime, place.path, entries.data())?;
            entries.reader().raw();
            return Ok(());
        }
        match &entry.sparse {
            None => self.run(0, entry.size, entries, &mut file, place)?,
            Some(sparse) => self.sparse(sparse, entries, &mut file, place)?,
        }
        let fd = file.into();
        self.process.set_new(&fd, entry, place, mode_is_right)?;
        rustix::fs::futimens(&fd, &meta::times(entry.mtime)).map_err(|e| place.failed("set the times of", e))
    }

    /// Copies `length` bytes of data to the file, which is at `offset`.
    fn run<R: Read>(
        &mut self,
        offset: u64,
        length: u64,
        entries: &mut Entries<Tap<R>>,
        file: &mut std::fs::File,
        place: &Place<'_>,
    ) -> Result<()> {
        entries.reader().content(place.path, offset, length)?;
        let mut left = length;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = match entries.data().read(&mut self.buffer[..wanted]) {
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(broken(e, "archive in a layer")),
            };
            if read == 0 {
                return Err(broken(std::io::ErrorKind::UnexpectedEof.into(), "archive in a layer"));
            }
            file.write_all(&self.buffer[..read]).map_err(|e| unwritable(place, e))?;
            left -= read as u64;
        }
        entries.reader().raw();
        Ok(())
    }

    fn sparse<R: Read>(
        &mut self,
        sparse: &Sparse,
        entries: &mut Entries<Tap<R>>,
        file: &mut std::fs::File,
        place: &Place<'_>,
    ) -> Result<()> {
        for &(offset, length) in &sparse.runs {
            file.seek(SeekFrom::Start(offset)).map_err(|e| unwritable(place, e))?;
            self.run(offset, length, entries, file, place)?;
        }
        file.set_len(sparse.size).map_err(|e| unwritable(place, e))
    }

    /// The target is a name of this layer, as the specification wants it, and is not followed.
    fn hard_link(&mut self, entry: &Entry, place: &Place<'_>) -> Result<()> {
        let target = path::clean(&entry.link)?;
        if target == place.path {
            return Ok(());
        }
        let (name, shown) = (show(&entry.path), show(&entry.link));
        let missing = || {
            invalid(format!("{name} is a hard link to {shown}, which is not in this layer"))
                .advise("build the image with a tool whose layers hold every file that they link to (docker build, buildah and kaniko do)")
        };
        let from = self.root.find(&target)?.ok_or_else(missing)?;
        let link =
            || rustix::fs::linkat(&from.dir.fd, from.name, &place.dir.fd, place.name, AtFlags::empty());
        let linked = match link() {
            Err(Errno::EXIST) => {
                self.root.remove(place)?;
                link()
            }
            other => other,
        };
        match linked {
            Ok(()) => Ok(()),
            // Also if the target was below what the link replaces.
            Err(Errno::NOENT) => Err(missing()),
            Err(Errno::PERM) => {
                Err(invalid(format!("{name} is a hard link to {shown}, which is a directory")))
            }
            Err(e) => Err(place.failed("link", e)),
        }
    }

    fn symlink(&mut self, entry: &Entry, place: &Place<'_>) -> Result<()> {
        limits::check("bytes of a symbolic link's target", entry.link.len() as u64, MAX_TARGET_BYTES)?;
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(invalid(format!("the symbolic link {} has no valid target", show(&entry.path))));
        }
        let target = entry.link.as_slice();
        self.make("symlink", place, || rustix::fs::symlinkat(target, &place.dir.fd, place.name))?;
        self.process.set_closed(entry, place, true)
    }

    /// Devices are made as the archive says: the container's root is mounted `nodev`.
    fn node(&mut self, entry: &Entry, place: &Place<'_>, kind: FileType) -> Result<()> {
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        let (mode, mode_is_right) = self.process.file_mode(entry);
        self.make("mknod", place, || rustix::fs::mknodat(&place.dir.fd, place.name, kind, mode, device))?;
        self.process.set_closed(entry, place, mode_is_right)
    }

    fn finish(mut self, beside: Option<OwnedFd>) -> Result<()> {
        self.whiteouts.apply(&mut self.root)?;
        self.flow.whiteouts_done();
        implied::finish(&mut self.root, beside)?;
        let (root, acls) = (&mut self.root, self.default_acls);
        self.journal.replay(|note| finish_directory(root, &note, acls))?;
        self.process.check_unchanged()
    }
}

fn unwritable(place: &Place<'_>, error: std::io::Error) -> Error {
    Error::host(format!("write {} while unpacking a layer", show(place.path.as_os_str().as_bytes())), error)
}

/// Sets what was kept for the end, unless something else took the directory's place.
pub(super) fn finish_directory(root: &mut Root, note: &Note, acls: bool) -> Result<()> {
    let path = Path::new(std::ffi::OsStr::from_bytes(&note.path));
    let shown = || show(&note.path);
    let times = meta::times(note.mtime);
    let timed = |result: rustix::io::Result<()>| {
        result.map_err(|e| Error::host(format!("set the times of {} while unpacking a layer", shown()), e))
    };
    if note.path.is_empty() {
        if acls {
            set_default_acl(root.fd(), note)?;
        }
        return timed(rustix::fs::futimens(root.fd(), &times));
    }
    let replaced = root.replaced();
    let Some(place) = root.find(path)? else {
        return Ok(());
    };
    if replaced && place.stat()?.is_none_or(|stat| file_type(&stat) != FileType::Directory) {
        return Ok(());
    }
    if acls {
        set_default_acl(&place.open_dir()?, note)?;
    }
    timed(rustix::fs::utimensat(&place.dir.fd, place.name, &times, AtFlags::SYMLINK_NOFOLLOW))
}

fn set_default_acl(dir: &OwnedFd, note: &Note) -> Result<()> {
    let set = if note.acl.is_empty() {
        rustix::fs::fremovexattr(dir, meta::DEFAULT_ACL)
    } else {
        rustix::fs::fsetxattr(dir, meta::DEFAULT_ACL, &note.acl, XattrFlags::empty())
    };
    match set {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NODATA) => Ok(()),
        Err(Errno::INVAL) => {
            Err(invalid(format!("the default ACL of {} has no valid value", show(&note.path))))
        }
        Err(e) => Err(Error::host(
            format!("set the default ACL of {} while unpacking a layer", show(&note.path)),
            e,
        )),
    }
}
