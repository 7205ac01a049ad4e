//! A layer's archive, put together again from its recipe and its files.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::path::{Root, file_type};
use super::recipe::{CONTENT, END, MAX_RAW_BYTES, RAW};
use crate::image::limits;
use crate::{Error, ErrorKind, Result};

/// More than [`super::recipe`] makes, so that a later version may.
const ZSTD_WINDOW_LOG: u32 = 20;

/// Where the content of files comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// From the files; what a file does not have is zeros, so that the archive can be read on.
    Files,
    /// Zeros: only the headers are wanted.
    Zeros,
}

/// Reads as the archive did.
pub(super) struct Rebuilt {
    records: zstd::stream::read::Decoder<'static, BufReader<File>>,
    root: Root,
    from: Content,
    raw: u64,
    content: u64,
    offset: u64,
    path: PathBuf,
    file: Option<File>,
    /// Bytes of content so far.
    passed: u64,
    end: Option<bool>,
}

impl Rebuilt {
    /// `root` is the directory `fs` of the layer.
    pub(super) fn new(recipe: File, root: OwnedFd, from: Content) -> Result<Self> {
        let failed = |e| Error::host("read the recipe of a layer", e);
        let mut records = zstd::stream::read::Decoder::new(recipe).map_err(failed)?;
        records.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
        Ok(Self {
            records,
            root: Root::new(root),
            from,
            raw: 0,
            content: 0,
            offset: 0,
            path: PathBuf::new(),
            file: None,
            passed: 0,
            end: None,
        })
    }

    /// How many bytes of content have been read, and of which file the last were.
    pub(super) fn passed(&self) -> (u64, &Path) {
        (self.passed, &self.path)
    }

    /// After the end: whether a name came twice.
    pub(super) fn replaced(&self) -> Option<bool> {
        self.end
    }

    fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.records.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn record(&mut self) -> io::Result<()> {
        match self.number::<1>()? {
            [RAW] => {
                self.raw = u64::from(u32::from_le_bytes(self.number()?));
                if self.raw <= MAX_RAW_BYTES as u64 { Ok(()) } else { Err(broken()) }
            }
            [CONTENT] => {
                self.offset = u64::from_le_bytes(self.number()?);
                self.content = u64::from_le_bytes(self.number()?);
                let length = u16::from_le_bytes(self.number()?);
                if self.offset.checked_add(self.content).is_none()
                    || u64::from(length) > limits::MAX_PATH_BYTES
                {
                    return Err(broken());
                }
                if length > 0 {
                    let mut path = vec![0; usize::from(length)];
                    self.records.read_exact(&mut path)?;
                    self.path = super::path::clean(&path).map_err(io::Error::other)?;
                    self.file = None;
                }
                self.open()
            }
            [END] => {
                self.end = Some(self.number::<1>()? != [0]);
                if self.records.read(&mut [0])? == 0 { Ok(()) } else { Err(broken()) }
            }
            _ => Err(broken()),
        }
    }

    fn open(&mut self) -> io::Result<()> {
        if self.from == Content::Files && self.file.is_none() {
            self.file = open_regular(&mut self.root, &self.path).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn content(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        let read = match &self.file {
            Some(file) => file.read_at(&mut buffer[..wanted], self.offset)?,
            None => 0,
        };
        let read = if read == 0 {
            buffer[..wanted].fill(0);
            wanted
        } else {
            read
        };
        self.offset += read as u64;
        self.content -= read as u64;
        self.passed += read as u64;
        Ok(read)
    }
}

impl Read for Rebuilt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.raw == 0 && self.content == 0 && self.end.is_none() {
            self.record()?;
        }
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.content > 0 {
            return self.content(buffer);
        }
        let wanted = buffer.len().min(usize::try_from(self.raw).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        self.records.read_exact(&mut buffer[..wanted])?;
        self.raw -= wanted as u64;
        Ok(wanted)
    }
}

fn broken() -> io::Error {
    let error = Error::new(ErrorKind::CorruptImage, "the recipe of a layer is broken");
    io::Error::other(error.advise("remove the image and pull it again"))
}

/// Opens the file of an entry; `None` if it is no longer there, or something else is.
fn open_regular(root: &mut Root, path: &Path) -> Result<Option<File>> {
    let Some(place) = root.find(path)? else {
        return Ok(None);
    };
    match place.stat()? {
        Some(stat) if file_type(&stat) == rustix::fs::FileType::RegularFile => {}
        _ => return Ok(None),
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(&place.dir.fd, place.name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd.into())),
        Err(e) => {
            let path = super::path::show(path.as_os_str().as_bytes());
            Err(Error::host(format!("open {path} in a layer"), e))
        }
    }
}
