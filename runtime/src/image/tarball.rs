//! Files of local sources, by themselves or inside an archive, which is read in one bounded pass to
//! learn where each file is.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::limits;
use super::unpack::{Entries, Kind, clean_path};
use crate::{Error, ErrorKind, Result};

/// Files that an archive may have: a few per layer.
const MAX_FILES: u64 = 10_000;
/// Links to follow: old versions of Docker link a layer that comes twice.
const MAX_LINKS: usize = 8;

/// Whether a file of an archive may be a link to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// Links lead to other files of the archive.
    Follow,
    /// A link is an error.
    Refuse,
}

/// A file to be read, when it is its turn.
#[derive(Clone, Debug)]
pub(crate) enum LocalFile {
    /// All of a file.
    Whole(PathBuf),
    /// A part of an archive that is open.
    Part(Arc<File>, Section),
}

/// Some bytes of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl LocalFile {
    /// Opens it.
    ///
    /// # Errors
    /// `ImageNotFound`, `Host`.
    pub(crate) fn open(&self) -> Result<Part> {
        Ok(match self {
            Self::Whole(path) => Part { file: Arc::new(open(path)?), offset: 0, left: u64::MAX },
            Self::Part(file, section) => {
                Part { file: Arc::clone(file), offset: section.offset, left: section.length }
            }
        })
    }
}

/// Reads a part of a file that others read too: the file's own position is neither used nor moved.
#[derive(Debug)]
pub(crate) struct Part {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// What stands under a name.
#[derive(Clone, Debug)]
enum Slot {
    File(Section),
    Link(PathBuf),
}

/// An archive of which it is known where each file is.
#[derive(Debug)]
pub(crate) struct Tarball {
    file: Arc<File>,
    path: PathBuf,
    slots: HashMap<PathBuf, Slot>,
}

impl Tarball {
    /// Opens an archive and notes where its files are; their data is skipped. Blocks.
    ///
    /// # Errors
    /// `ImageNotFound`; `InvalidImage` for one that is compressed, names a file twice, or has a link
    /// where there may be none; `CorruptImage`, `LimitExceeded`, `Host`.
    pub(crate) fn open(path: &Path, links: Links) -> Result<Self> {
        let mut file = open(path)?;
        refuse_compressed(&file, path)?;
        let slots = scan(&mut file, path, links)?;
        Ok(Self { file: Arc::new(file), path: path.to_owned(), slots })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file of the archive.
    ///
    /// # Errors
    /// `InvalidImage` if there is none.
    pub(crate) fn find(&self, name: &str) -> Result<LocalFile> {
        self.section(name).map(|section| LocalFile::Part(Arc::clone(&self.file), section))
    }

    /// Where a file is.
    ///
    /// # Errors
    /// `InvalidImage` if there is none.
    pub(crate) fn section(&self, name: &str) -> Result<Section> {
        let mut at = clean_path(name.as_bytes())?;
        for _ in 0..MAX_LINKS {
            match self.slots.get(&at) {
                Some(Slot::File(section)) => return Ok(*section),
                Some(Slot::Link(target)) => at.clone_from(target),
                None => break,
            }
        }
        Err(invalid(&self.path, format!("it has no file {name:.200}"))
            .advise("is this an archive of an image, and whole?"))
    }

    /// A small file of the archive.
    ///
    /// # Errors
    /// `InvalidImage` if there is none, `LimitExceeded`, `Host`.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let section = self.section(name)?;
        limits::check(&format!("bytes of {name:.200}"), section.length, limit)?;
        let mut bytes = Vec::new();
        let mut part = LocalFile::Part(Arc::clone(&self.file), section).open()?;
        part.read_to_end(&mut bytes).map_err(|e| Error::host(format!("read {}", self.path.display()), e))?;
        Ok(bytes)
    }
}

/// An error about an archive.
pub(crate) fn invalid(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidImage, format!("the archive {}: {why}", path.display()))
}

/// Opens a regular file of a local source; a FIFO neither blocks nor passes.
///
/// # Errors
/// `ImageNotFound`, `Host`.
pub(crate) fn open(path: &Path) -> Result<File> {
    use rustix::fs::{Mode, OFlags};
    let shown = path.display();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(e @ (rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR)) => {
            return Err(Error::new(ErrorKind::ImageNotFound, format!("there is no file {shown}"))
                .because(std::io::Error::from(e)));
        }
        Err(e) => return Err(Error::host(format!("open {shown}"), e)),
    };
    if file.metadata().is_ok_and(|m| m.is_file()) {
        Ok(file)
    } else {
        Err(Error::new(ErrorKind::ImageNotFound, format!("{shown} is not a regular file")))
    }
}

fn refuse_compressed(file: &File, path: &Path) -> Result<()> {
    let mut head = [0u8; 4];
    let whole = file.read_exact_at(&mut head, 0).is_ok();
    if whole && (head.starts_with(&[0x1f, 0x8b]) || head == [0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(invalid(path, "it is compressed")
            .advise("decompress it first; the layers inside may be compressed"));
    }
    Ok(())
}

/// Says which file it is that cannot be walked.
fn broken(path: &Path, error: Error) -> Error {
    if !matches!(error.kind(), ErrorKind::CorruptImage | ErrorKind::InvalidImage) {
        return error;
    }
    Error::new(error.kind(), format!("the archive {} cannot be read", path.display()))
        .advise("is this an archive of an image, and whole?")
        .because(error)
}

fn scan(file: &mut File, path: &Path, links: Links) -> Result<HashMap<PathBuf, Slot>> {
    let failed = |e| Error::host(format!("read {}", path.display()), e);
    let end = file.metadata().map_err(failed)?.len();
    let mut slots = HashMap::new();
    let mut seen: u64 = 0;
    let mut entries = Entries::new(&mut *file);
    while let Some(entry) = entries.next().map_err(|e| broken(path, e))? {
        seen += 1;
        limits::check("files of the archive", seen, MAX_FILES)?;
        let name = clean_path(&entry.path)?;
        let (file, length) = entries.take_data();
        let offset = file.stream_position().map_err(failed)?;
        let after = offset.checked_add(length).filter(|after| *after <= end).ok_or_else(|| {
            Error::new(ErrorKind::CorruptImage, format!("the archive {} is truncated", path.display()))
                .advise("save the image again")
        })?;
        file.seek(SeekFrom::Start(after)).map_err(failed)?;
        let target = match entry.kind {
            Kind::Regular => None,
            Kind::Symlink => Some(beside(&name, &entry.link)?),
            Kind::HardLink => Some(clean_path(&entry.link)?),
            _ => continue,
        };
        if target.is_some() && links == Links::Refuse {
            return Err(invalid(path, format!("{:.200} is a link", name.display())));
        }
        let slot = target.map_or(Slot::File(Section { offset, length }), Slot::Link);
        if slots.insert(name.clone(), slot).is_some() {
            // Another program might read the other one.
            return Err(invalid(path, format!("{:.200} is in it twice", name.display())));
        }
    }
    Ok(slots)
}

/// Where a symbolic link leads.
fn beside(name: &Path, link: &[u8]) -> Result<PathBuf> {
    let parent = name.parent().unwrap_or(Path::new(""));
    let mut target = parent.as_os_str().as_encoded_bytes().to_vec();
    target.push(b'/');
    target.extend_from_slice(link);
    clean_path(&target)
}
