//! How to put a layer's archive together again from its files, as tar-split does for
//! containers/storage: all bytes that are not the content of a file, and where that content goes.
//!
//! ```text
//! recipe = zstd(record…)
//! record = 0, length u32, bytes                              of the archive itself
//!        | 1, offset u64, length u64, length u16, path       content of a file in fs/
//!        | 2, replaced u8                                    the end
//! ```
//! Numbers are little-endian. An empty path is the one before. `replaced` is 1 if a name came twice:
//! what the first of both held is gone, and so the archive cannot be made again.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The file's name, beside `fs` in the layer's directory.
pub(crate) const NAME: &str = "recipe";

pub(super) const RAW: u8 = 0;
pub(super) const CONTENT: u8 = 1;
pub(super) const END: u8 = 2;
/// Bytes of one raw record at most.
pub(super) const MAX_RAW_BYTES: usize = 32 << 10;
/// Headers compress well at any level, and this one costs next to nothing.
const ZSTD_LEVEL: i32 = 1;
/// Keeps the compressor's memory small: some 600 KiB.
const ZSTD_WINDOW_LOG: u32 = 17;

/// A recipe in the making.
pub(crate) struct Recipe {
    encoder: zstd::stream::write::Encoder<'static, File>,
    raw: Vec<u8>,
    path: PathBuf,
    /// The directory for the list of implied directories.
    beside: Option<OwnedFd>,
}

impl Recipe {
    /// Writes to an empty file.
    ///
    /// # Errors
    /// `Host`.
    pub(crate) fn new(file: File) -> Result<Self> {
        let mut encoder = zstd::stream::write::Encoder::new(file, ZSTD_LEVEL).map_err(failed)?;
        encoder.window_log(ZSTD_WINDOW_LOG).map_err(failed)?;
        Ok(Self { encoder, raw: Vec::with_capacity(MAX_RAW_BYTES), path: PathBuf::new(), beside: None })
    }

    /// Has the directories that the layer implies listed in a file in `beside`.
    #[must_use]
    pub(crate) fn with_implied(mut self, beside: OwnedFd) -> Self {
        self.beside = Some(beside);
        self
    }

    pub(super) fn take_beside(&mut self) -> Option<OwnedFd> {
        self.beside.take()
    }

    fn add(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(MAX_RAW_BYTES - self.raw.len()));
            self.raw.extend_from_slice(now);
            bytes = rest;
            if self.raw.len() == MAX_RAW_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let length = (self.raw.len() as u32).to_le_bytes();
        self.write(&[RAW])?;
        self.write(&length)?;
        self.encoder.write_all(&self.raw).map_err(failed)?;
        self.raw.clear();
        Ok(())
    }

    fn content(&mut self, path: &Path, offset: u64, length: u64) -> Result<()> {
        self.flush()?;
        let same = self.path.as_os_str() == path.as_os_str();
        let shown = if same { &[] } else { path.as_os_str().as_bytes() };
        self.write(&[CONTENT])?;
        self.write(&offset.to_le_bytes())?;
        self.write(&length.to_le_bytes())?;
        // Paths are at most 4096 bytes long.
        self.write(&(shown.len() as u16).to_le_bytes())?;
        self.write(shown)?;
        if !same {
            path.clone_into(&mut self.path);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.encoder.write_all(bytes).map_err(failed)
    }

    fn finish(mut self, replaced: bool) -> Result<()> {
        self.flush()?;
        self.write(&[END, u8::from(replaced)])?;
        self.encoder.finish().map(drop).map_err(failed)
    }
}

fn failed(error: io::Error) -> Error {
    Error::host("write the recipe of a layer", error)
}

/// An archive that notes in a recipe what passes, but for the content of files.
pub(super) struct Tap<R> {
    inner: R,
    recipe: Option<Recipe>,
    is_content: bool,
}

impl<R: Read> Tap<R> {
    pub(super) fn new(inner: R, recipe: Option<Recipe>) -> Self {
        Self { inner, recipe, is_content: false }
    }

    /// What comes is content of the file at `path`, until [`Tap::raw`].
    pub(super) fn content(&mut self, path: &Path, offset: u64, length: u64) -> Result<()> {
        self.is_content = true;
        match &mut self.recipe {
            Some(recipe) if length > 0 => recipe.content(path, offset, length),
            _ => Ok(()),
        }
    }

    /// What comes is the archive itself.
    pub(super) fn raw(&mut self) {
        self.is_content = false;
    }

    /// Completes the recipe.
    pub(super) fn finish(self, replaced: bool) -> Result<()> {
        self.recipe.map_or(Ok(()), |recipe| recipe.finish(replaced))
    }
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let (Some(recipe), false) = (&mut self.recipe, self.is_content) {
            recipe.add(&buffer[..read]).map_err(io::Error::other)?;
        }
        Ok(read)
    }
}
