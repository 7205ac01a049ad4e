//! The entries of a tar archive, one after the other, with all that precedes each put together.
//!
//! The `tar` crate knows the header's fields; the walk is here because every length must be bounded
//! before it is read, and because it follows Go's `archive/tar`, with which most images are made
//! and run: links, directories and devices have no data whatever their size field says, an empty
//! number is 0, one zero block must be followed by another.

use std::io::Read;

use rustix::fs::Timespec;
use tar::{EntryType, GnuExtSparseHeader, Header};

use super::pax::Extended;
use crate::image::limits;
use crate::{Error, ErrorKind, Result};

const BLOCK: usize = 512;
/// Data runs of a GNU sparse file.
const MAX_SPARSE_RUNS: u64 = 1 << 16;

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
    pub(crate) sparse: Option<Sparse>,
}

/// A sparse file: its size and where the data goes.
#[derive(Debug)]
pub(crate) struct Sparse {
    pub(crate) size: u64,
    /// Offset and length of each run, ascending.
    pub(crate) runs: Vec<(u64, u64)>,
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

fn broken(error: std::io::Error) -> Error {
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

    fn entry(&mut self, header: &Header, size: u64, extended: Extended) -> Result<Entry> {
        let path = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = kind(header, &path)?;
        let size = if has_data(header.entry_type()) { extended.size.unwrap_or(size) } else { 0 };
        let sparse = match header.entry_type() {
            EntryType::GNUSparse => Some(self.sparse(header, size)?),
            _ => None,
        };
        self.expect(size);
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
        std::io::copy(&mut self.data(), &mut std::io::sink()).map_err(broken)?;
        let mut padding = Vec::with_capacity(BLOCK);
        let length = std::mem::take(&mut self.padding);
        self.reader.by_ref().take(length).read_to_end(&mut padding).map_err(broken)?;
        if padding.is_empty() || padding.len() as u64 == length {
            return Ok(());
        }
        Err(broken(std::io::ErrorKind::UnexpectedEof.into()))
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = Vec::with_capacity(BLOCK);
        self.reader.by_ref().take(BLOCK as u64).read_to_end(&mut block).map_err(broken)?;
        if block.is_empty() {
            return Ok(None);
        }
        let whole = block.try_into().map_err(|_| broken(std::io::ErrorKind::UnexpectedEof.into()))?;
        Ok(Some(whole))
    }

    fn header(&mut self) -> Result<Option<Header>> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block == [0; BLOCK] {
            return match self.block()? {
                Some(second) if second != [0; BLOCK] => {
                    Err(invalid("the archive goes on after a zero block"))
                }
                _ => Ok(None),
            };
        }
        let header = Header::from_byte_slice(&block).clone();
        if checksum(&block) != number(&header.as_old().cksum)? {
            return Err(invalid("a header of the archive has a wrong checksum"));
        }
        Ok(Some(header))
    }

    /// The runs of an old GNU sparse file; more of them may follow the header.
    fn sparse(&mut self, header: &Header, stored: u64) -> Result<Sparse> {
        let gnu = header.as_gnu().ok_or_else(|| invalid("a sparse file has no GNU header"))?;
        let size = number(&gnu.realsize)?;
        limits::check("bytes of a sparse file", size, limits::MAX_UNPACKED_BYTES)?;
        let mut runs = Vec::new();
        let mut push = |part: &tar::GnuSparseHeader| -> Result<()> {
            if !part.is_empty() {
                runs.push((number(&part.offset)?, number(&part.numbytes)?));
            }
            limits::check("runs of a sparse file", runs.len() as u64, MAX_SPARSE_RUNS)
        };
        gnu.sparse.iter().try_for_each(&mut push)?;
        let mut more = gnu.is_extended();
        while more {
            let block = self.block()?.ok_or_else(|| broken(std::io::ErrorKind::UnexpectedEof.into()))?;
            let mut next = GnuExtSparseHeader::new();
            next.as_mut_bytes().copy_from_slice(&block);
            next.sparse().iter().try_for_each(&mut push)?;
            more = next.is_extended();
        }
        check_runs(&runs, size, stored)?;
        Ok(Sparse { size, runs })
    }
}

fn check_runs(runs: &[(u64, u64)], size: u64, stored: u64) -> Result<()> {
    let (mut end, mut sum) = (0u64, 0u64);
    for &(offset, length) in runs {
        let next = offset.checked_add(length).filter(|next| offset >= end && *next <= size);
        end = next.ok_or_else(|| invalid("a sparse file has a broken map"))?;
        sum += length;
    }
    if sum == stored { Ok(()) } else { Err(invalid("a sparse file has more or less data than its map")) }
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

/// Whether data follows the header. Two readers that differ here would see two archives in one.
fn has_data(entry_type: EntryType) -> bool {
    matches!(entry_type, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse)
}

fn kind(header: &Header, path: &[u8]) -> Result<Kind> {
    // Before POSIX.1-1988 a directory was a file of type 0 whose name ends with a slash.
    let is_old = header.as_old().linkflag[0] == 0;
    Ok(match header.entry_type() {
        EntryType::Regular if is_old && path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::Regular,
        EntryType::Directory => Kind::Directory,
        EntryType::Link => Kind::HardLink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char => Kind::CharDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Fifo => Kind::Fifo,
        other => {
            let name = String::from_utf8_lossy(path);
            let byte = other.as_byte();
            return Err(invalid(format!("{name:.200} is of the unknown type {byte:#04x}")));
        }
    })
}

fn device(header: &Header, kind: Kind) -> Result<(u32, u32)> {
    if !matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
        return Ok((0, 0));
    }
    let read = || Some((header.device_major().ok()??, header.device_minor().ok()??));
    read().ok_or_else(|| invalid("a device has no valid number"))
}

fn until_zero(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

/// A user or group that Linux can have; the highest number means "no change" to `chown`.
fn id(number: u64) -> Result<u32> {
    u32::try_from(number)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| invalid(format!("the owner {number} is out of range")))
}

/// The sum of the header's bytes with the checksum's own taken as spaces.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let own = 148..156;
    block.iter().enumerate().map(|(i, b)| if own.contains(&i) { 32 } else { u64::from(*b) }).sum()
}

/// A number in octal digits, or binary (base 256) with the first bit set.
fn number(field: &[u8]) -> Result<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // 0xff is a negative number; its low 64 bits are kept, the caller knows the sign.
        let start = if first & 0x40 != 0 { u64::MAX } else { u64::from(first & 0x7f) };
        return Ok(rest.iter().fold(start, |n, b| (n << 8) | u64::from(*b)));
    }
    let text = field.split(|b| *b == 0).next().unwrap_or_default().trim_ascii();
    let digit = |n: u64, b: &u8| {
        matches!(b, b'0'..=b'7').then(|| n.checked_mul(8)?.checked_add(u64::from(b - b'0'))).flatten()
    };
    text.iter().try_fold(0, digit).ok_or_else(|| invalid("a number in a header of the archive is broken"))
}
