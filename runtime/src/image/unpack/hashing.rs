//! The two readers that count and hash: around the packed bytes, and around the archive.

use std::io::{self, Read};

use super::Expected;
use crate::image::digest::{Algorithm, Hasher};
use crate::image::limits::Flow;
use crate::{Error, ErrorKind, Result};

/// The bytes as fetched: never more than the manifest says, and an end before that is an error.
pub(super) struct Packed<'a, R> {
    inner: R,
    expected: &'a Expected,
    hasher: Option<Hasher>,
    count: u64,
    flow: &'a Flow<'a>,
}

impl<'a, R: Read> Packed<'a, R> {
    pub(super) fn new(inner: R, expected: &'a Expected, flow: &'a Flow<'a>) -> Self {
        let hasher = expected.digest.as_ref().map(|d| Hasher::new(d.algorithm()));
        Self { inner, expected, hasher, count: 0, flow }
    }

    /// Reads what is left, so that the digest can be told.
    pub(super) fn drain(&mut self) -> Result<()> {
        io::copy(self, &mut io::sink()).map(drop).map_err(|e| super::broken(e, "layer"))
    }

    /// Checks size and digest.
    pub(super) fn finish(mut self) -> Result<()> {
        self.drain()?;
        match (&self.expected.digest, self.hasher) {
            (Some(digest), Some(hasher)) => digest.verify_hash(hasher, "layer"),
            _ => Ok(()),
        }
    }

    fn wrong_size(&self, how: &str) -> io::Error {
        let message = format!(
            "the {} {how} the {} bytes that its manifest says",
            self.expected.name(),
            self.expected.size
        );
        io::Error::other(
            Error::new(ErrorKind::CorruptImage, message)
                .advise("push the image again, or pull from elsewhere"),
        )
    }
}

impl<R: Read> Read for Packed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        self.flow.packed(read as u64);
        if self.count > self.expected.size {
            return Err(self.wrong_size("has more than"));
        }
        if read == 0 && !buffer.is_empty() && self.count < self.expected.size {
            return Err(self.wrong_size(&format!("is truncated: it ended after {} of", self.count)));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        Ok(read)
    }
}

/// The archive's bytes: hashed for the DiffID and counted against the image's budget.
pub(super) struct Unpacked<'a, R> {
    inner: R,
    hasher: Hasher,
    flow: &'a Flow<'a>,
    count: u64,
}

impl<'a, R: Read> Unpacked<'a, R> {
    pub(super) fn new(inner: R, algorithm: Algorithm, flow: &'a Flow<'a>) -> Self {
        Self { inner, hasher: Hasher::new(algorithm), flow, count: 0 }
    }

    /// The digest in the making, and how many bytes there were.
    pub(super) fn finish(self) -> (Hasher, u64) {
        (self.hasher, self.count)
    }
}

impl<R: Read> Read for Unpacked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        self.flow.unpacked(read as u64).map_err(io::Error::other)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
