//! Sparse files, in all forms that GNU tar writes (GNU tar manual, *Storing Sparse Files*).
//!
//! | form | where the map is |
//! |---|---|
//! | old GNU | in a header of type `S` and blocks after it |
//! | PAX 0.0 | pairs of records `GNU.sparse.offset` and `GNU.sparse.numbytes` |
//! | PAX 0.1 | one record `GNU.sparse.map` |
//! | PAX 1.0 | decimal lines at the beginning of the data, up to a full block |
//!
//! An unknown version is refused: a reader that knows it would see another file.

use std::io::Read;

use tar::{GnuExtSparseHeader, Header};

use super::entries::{BLOCK, Entries, broken, invalid};
use super::fields::number;
use crate::Result;
use crate::image::limits;

/// Data runs of a sparse file.
const MAX_RUNS: u64 = 1 << 16;

/// A sparse file: its size and where the data goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) size: u64,
    /// Offset and length of each run, ascending.
    pub(crate) runs: Vec<(u64, u64)>,
}

impl Sparse {
    /// # Errors
    /// `LimitExceeded`; `InvalidImage` if the runs overlap, leave the file, or are not `stored` bytes.
    fn new(size: u64, runs: Vec<(u64, u64)>, stored: u64) -> Result<Self> {
        limits::check("bytes of a sparse file", size, limits::MAX_UNPACKED_BYTES)?;
        let (mut end, mut sum) = (0u64, 0u64);
        for &(offset, length) in &runs {
            let next = offset.checked_add(length).filter(|next| offset >= end && *next <= size);
            end = next.ok_or_else(|| invalid("a sparse file has a broken map"))?;
            sum += length;
        }
        if sum == stored {
            return Ok(Self { size, runs });
        }
        Err(invalid("a sparse file has more or less data than its map"))
    }
}

/// What `GNU.sparse.*` records say.
#[derive(Debug, Default)]
pub(super) struct Records {
    major: Option<u64>,
    minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    /// How many runs the map should have.
    count: Option<u64>,
    offset: Option<u64>,
    runs: Vec<(u64, u64)>,
}

impl Records {
    /// Adds one record; `key` comes without `GNU.sparse.`.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"numblocks" => self.count = Some(decimal(value)?),
            b"offset" if self.offset.is_none() => self.offset = Some(decimal(value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or_else(|| invalid("a sparse map has no offset"))?;
                self.runs.push((offset, decimal(value)?));
            }
            b"map" => self.runs = map(value)?,
            _ => return Err(invalid("a sparse file has records that are not known")),
        }
        limits::check("runs of a sparse file", self.runs.len() as u64, MAX_RUNS)
    }
}

fn map(value: &[u8]) -> Result<Vec<(u64, u64)>> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let mut numbers = value.split(|b| *b == b',').map(decimal);
    let mut runs = Vec::new();
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or_else(|| invalid("a sparse map has no length at its end"))?;
        runs.push((offset?, length?));
        limits::check("runs of a sparse file", runs.len() as u64, MAX_RUNS)?;
    }
    Ok(runs)
}

fn decimal(value: &[u8]) -> Result<u64> {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let parsed = digits.and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| invalid("a number of a sparse file is broken"))
}

impl<R: Read> Entries<R> {
    /// The runs of an old GNU sparse file; more of them may follow the header.
    pub(super) fn gnu_sparse(&mut self, header: &Header, stored: u64) -> Result<Sparse> {
        let gnu = header.as_gnu().ok_or_else(|| invalid("a sparse file has no GNU header"))?;
        let mut runs = Vec::new();
        let mut push = |part: &tar::GnuSparseHeader| -> Result<()> {
            if !part.is_empty() {
                runs.push((number(&part.offset)?, number(&part.numbytes)?));
            }
            limits::check("runs of a sparse file", runs.len() as u64, MAX_RUNS)
        };
        gnu.sparse.iter().try_for_each(&mut push)?;
        let mut more = gnu.is_extended();
        while more {
            let mut next = GnuExtSparseHeader::new();
            if !self.block(next.as_mut_bytes())? {
                return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
            next.sparse().iter().try_for_each(&mut push)?;
            more = next.is_extended();
        }
        Sparse::new(number(&gnu.realsize)?, runs, stored)
    }

    /// The runs of a sparse file in PAX form. The entry's data must be next.
    pub(super) fn pax_sparse(&mut self, records: Records, stored: u64) -> Result<Sparse> {
        let size = records.size.ok_or_else(|| invalid("a sparse file has no size"))?;
        match (records.major, records.minor) {
            (Some(1), Some(0)) => {
                let (runs, map_bytes) = self.map_in_data()?;
                // The reader has given these bytes out of what is stored.
                Sparse::new(size, runs, stored - map_bytes)
            }
            (None, None) | (Some(0), Some(0 | 1)) => {
                if records.offset.is_some() || records.count.is_some_and(|n| n != records.runs.len() as u64) {
                    return Err(invalid("a sparse map is not complete"));
                }
                Sparse::new(size, records.runs, stored)
            }
            _ => Err(invalid("a sparse file is of an unknown version")
                .advise("build the image again with a tar that writes PAX version 1.0, or without --sparse")),
        }
    }

    /// The map before the data, and the bytes that it took.
    fn map_in_data(&mut self) -> Result<(Vec<(u64, u64)>, u64)> {
        let mut numbers = Numbers { entries: self, block: [0; BLOCK], at: BLOCK, blocks: 0 };
        let count = numbers.next()?;
        limits::check("runs of a sparse file", count, MAX_RUNS)?;
        let mut runs = Vec::new();
        for _ in 0..count {
            runs.push((numbers.next()?, numbers.next()?));
        }
        Ok((runs, numbers.blocks * BLOCK as u64))
    }
}

/// Decimal numbers, each with a line end, read block by block.
struct Numbers<'a, R> {
    entries: &'a mut Entries<R>,
    block: [u8; BLOCK],
    at: usize,
    blocks: u64,
}

impl<R: Read> Numbers<'_, R> {
    fn byte(&mut self) -> Result<u8> {
        if self.at == BLOCK {
            self.entries.data().read_exact(&mut self.block).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => invalid("a sparse file ends in its map"),
                _ => broken(e),
            })?;
            self.at = 0;
            self.blocks += 1;
        }
        self.at += 1;
        Ok(self.block[self.at - 1])
    }

    fn next(&mut self) -> Result<u64> {
        // The longest number has 20 digits.
        let mut digits = [0u8; 21];
        for length in 0..digits.len() {
            match self.byte()? {
                b'\n' if length > 0 => return decimal(&digits[..length]),
                digit => digits[length] = digit,
            }
        }
        Err(invalid("a number of a sparse file is broken"))
    }
}
