//! Directories and files of logs, opened so that nothing that somebody has put there leads elsewhere.
//!
//! Every name is resolved beneath a directory that is open already, without links. What is opened is a plain
//! file with one name, or it is not used.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::SystemTime;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rustix::fs::{AtFlags, Dir as Entries, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat2, unlinkat};
use rustix::io::Errno;

/// What names of functions and namespaces do not have.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// A directory that is open.
#[derive(Debug)]
pub(super) struct Dir(OwnedFd);

impl Dir {
    /// A directory of the host, made if it is missing; it is the owner's alone then.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        rustix::fs::fchmod(&fd, Mode::RWXU)?;
        Ok(Self(fd))
    }

    fn at(&self, name: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // A FIFO without a reader must not hold up its writer, nor one without a writer its reader.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(openat2(&self.0, name, flags, mode, resolve)?)
    }

    /// A directory in it.
    pub(super) fn below(&self, name: &str) -> io::Result<Self> {
        self.at(name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).map(Self)
    }

    /// The same, made if it is missing.
    pub(super) fn make_below(&self, name: &str) -> io::Result<Self> {
        match mkdirat(&self.0, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => self.below(name),
            Err(error) => Err(error.into()),
        }
    }

    /// A new file, to append to; `None` when there is something of this name.
    pub(super) fn create(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::RDWR;
        match self.at(name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A file to append to; `None` when it is no plain file that has this name alone.
    pub(super) fn append(&self, name: &str) -> io::Result<Option<File>> {
        plain(self.at(name, OFlags::APPEND | OFlags::RDWR, Mode::empty()))
    }

    /// A file to read, in the same way.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<File>> {
        plain(self.at(name, OFlags::RDONLY, Mode::empty()))
    }

    /// All names in it.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Entries::read_from(&self.0)? {
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    /// Removes a file.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        gone(unlinkat(&self.0, name, AtFlags::empty()))
    }

    /// Removes a directory in it, with the files that it has.
    pub(super) fn remove_below(&self, name: &str) -> io::Result<()> {
        match self.below(name) {
            Ok(dir) => dir.names()?.iter().try_for_each(|file| dir.remove(file))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        gone(unlinkat(&self.0, name, AtFlags::REMOVEDIR))
    }

    /// Removes a directory in it, unless that has something.
    pub(super) fn remove_empty(&self, name: &str) {
        // Another function's logs may be in it.
        let _ = unlinkat(&self.0, name, AtFlags::REMOVEDIR);
    }

    /// When something in it was made or removed last.
    pub(super) fn changed(&self) -> SystemTime {
        let seconds = rustix::fs::fstat(&self.0).map_or(0, |stat| u64::try_from(stat.st_mtime).unwrap_or(0));
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
    }
}

fn plain(opened: io::Result<OwnedFd>) -> io::Result<Option<File>> {
    let fd = match opened {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => match Errno::from_io_error(&error) {
            // A link, a directory, or a FIFO that nobody reads.
            Some(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Ok(None),
            _ => return Err(error),
        },
    };
    let stat = rustix::fs::fstat(&fd)?;
    let is_plain = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1;
    Ok(is_plain.then(|| fd.into()))
}

fn gone(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The name of a directory for a namespace or a function. The platforms' rules leave nothing to escape;
/// whatever else came would not leave the directory.
pub(super) fn dir_name(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// The opposite.
pub(super) fn text_of(dir_name: &str) -> String {
    percent_decode_str(dir_name).decode_utf8_lossy().into_owned()
}
