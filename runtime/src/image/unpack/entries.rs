//! The entries of a tar archive, one after the other, with all that precedes each put together.
//!
//! The `tar` crate knows the header's fields; the walk is here because every length must be bounded
//! before it is read, and because it follows Go's `archive/tar`, with which most images are made
//! and run: links, directories and devices have no data whatever their size field says, an empty
//! number is 0, one zero block must be followed by another.

use std::io::Read;

use rustix::fs::Timespec;
use tar::{EntryType, Header};

use super::fields::{checksum, device, has_data, id, kind, number, until_zero};
use super::pax::Extended;
use super::sparse::Sparse;
use crate::image::limits;
use crate::{Error, ErrorKind, Result};

pub(super) const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    Directory,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// One entry; its data is read from [`Entries::data`].
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timespec,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the file, holes included; 0 for what is not a file.
    pub(crate) size: u64,
    pub(crate) sparse: Option<Sparse>,
}

/// The walk over an archive.
pub(crate) struct Entries<R> {
    reader: R,
    /// Data of the present entry that has not been read.
    data: u64,
    padding: u64,
}

/// An archive that breaks the rules.
pub(super) fn invalid(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidImage, why.into())
}

pub(super) fn broken(error: std::io::Error) -> Error {
    super::broken(error, "archive in a layer")
}

impl<R: Read> Entries<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, data: 0, padding: 0 }
    }

    /// The data of the entry that came last.
    pub(super) fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// The reader and the bytes of data before it that the present entry still has; the caller skips
    /// or reads them itself.
    pub(crate) fn take_data(&mut self) -> (&mut R, u64) {
        (&mut self.reader, std::mem::take(&mut self.data))
    }

    /// What is read from.
    pub(super) fn reader(&mut self) -> &mut R {
        &mut self.reader
    }

    pub(super) fn into_reader(self) -> R {
        self.reader
    }

    /// The next entry, or the end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extended = Extended::default();
        let mut extended_bytes = 0u64;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = number(&header.as_old().size)?;
            let kind = header.entry_type();
            let is_extension = matches!(
                kind,
                EntryType::XHeader
                    | EntryType::XGlobalHeader
                    | EntryType::GNULongName
                    | EntryType::GNULongLink
            );
            if !is_extension {
                return self.entry(&header, size, extended).map(Some);
            }
            extended_bytes = extended_bytes.saturating_add(size).saturating_add(BLOCK as u64);
            limits::check("bytes of the headers of an entry", extended_bytes, limits::MAX_HEADER_BYTES)?;
            self.expect(size);
            let mut bytes = Vec::new();
            self.data().read_to_end(&mut bytes).map_err(broken)?;
            match kind {
                EntryType::XHeader => extended.add_pax(&bytes)?,
                EntryType::GNULongName => extended.path = Some(until_zero(&bytes)),
                EntryType::GNULongLink => extended.link = Some(until_zero(&bytes)),
                // Global headers carry comments (git archive); Go and Docker do not apply them.
                _ => {}
            }
        }
    }

    fn entry(&mut self, header: &Header, size: u64, mut extended: Extended) -> Result<Entry> {
        let entry_type = header.entry_type();
        let stored = if has_data(entry_type) { extended.size.unwrap_or(size) } else { 0 };
        let records = extended.sparse.take();
        let sparse_name = records.as_ref().and_then(|records| records.name.clone());
        let path = sparse_name.or(extended.path).unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = kind(header, &path)?;
        let sparse = match (entry_type, records) {
            (EntryType::GNUSparse, None) => Some(self.gnu_sparse(header, stored)?),
            (_, None) => None,
            (EntryType::Regular | EntryType::Continuous, Some(_)) if kind == Kind::Directory => {
                return Err(invalid("a directory has a sparse map"));
            }
            (EntryType::Regular | EntryType::Continuous, Some(records)) => {
                self.expect(stored);
                Some(self.pax_sparse(*records, stored)?)
            }
            _ => return Err(invalid("what has a sparse map in PAX form is not a regular file")),
        };
        if sparse.is_none() || entry_type == EntryType::GNUSparse {
            self.expect(stored);
        }
        let old = header.as_old();
        let link = || header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default();
        let mtime = match extended.mtime {
            Some(mtime) => mtime,
            // As binary numbers may be negative, this one is taken as signed.
            None => Timespec { tv_sec: number(&old.mtime)?.cast_signed(), tv_nsec: 0 },
        };
        Ok(Entry {
            kind,
            link: extended.link.unwrap_or_else(link),
            // The type bits that some writers add are not wanted.
            mode: (number(&old.mode)? & 0o7777) as u32,
            uid: id(extended.uid.map_or_else(|| number(&old.uid), Ok)?)?,
            gid: id(extended.gid.map_or_else(|| number(&old.gid), Ok)?)?,
            mtime,
            device: device(header, kind)?,
            xattrs: extended.xattrs,
            size: if kind == Kind::Regular { sparse.as_ref().map_or(stored, |s| s.size) } else { 0 },
            sparse,
            path,
        })
    }

    fn expect(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Skips what is left of the present entry. An archive may end right after its last byte of
    /// data (those of `umoci insert` do, and Go reads them), but not within the padding.
    fn skip(&mut self) -> Result<()> {
        if self.data > 0 {
            std::io::copy(&mut self.data(), &mut std::io::sink()).map_err(broken)?;
        }
        let length = std::mem::take(&mut self.padding) as usize;
        let mut padding = [0; BLOCK];
        match self.fill(&mut padding[..length])? {
            0 => Ok(()),
            read if read == length => Ok(()),
            _ => Err(broken(std::io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Reads until `bytes` are full or the archive ends.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.reader.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(broken(e)),
            }
        }
        Ok(filled)
    }

    /// Reads a whole block, or finds the archive's end.
    pub(super) fn block(&mut self, block: &mut [u8]) -> Result<bool> {
        match self.fill(block)? {
            0 => Ok(false),
            read if read == block.len() => Ok(true),
            _ => Err(broken(std::io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? {
            return Ok(None);
        }
        let block = header.as_bytes();
        if block == &[0; BLOCK] {
            return match self.block(header.as_mut_bytes())? {
                true if header.as_bytes() != &[0; BLOCK] => {
                    Err(invalid("the archive goes on after a zero block"))
                }
                _ => Ok(None),
            };
        }
        if checksum(block) != number(&header.as_old().cksum)? {
            return Err(invalid("a header of the archive has a wrong checksum"));
        }
        Ok(Some(header))
    }
}

/// The data of one entry.
pub(crate) struct Data<'a, R>(&'a mut Entries<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let entries = &mut *self.0;
        let wanted = usize::try_from(entries.data).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let read = entries.reader.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        entries.data -= read as u64;
        Ok(read)
    }
}
