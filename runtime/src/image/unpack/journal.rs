//! What must be done to directories when nothing more is put into them: their times, and default
//! ACLs, which new files would inherit.
//!
//! A layer may have any number of directories, so the notes are in memory only up to a bound and then
//! in a file without a name. They are replayed in order: the last of a name wins.

use std::fs::File;
use std::io::{BufReader, Read, Seek as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, Timespec};
use rustix::io::Errno;

use crate::{Error, Result};

/// Bytes in memory; notes of some 1000 directories.
const MEMORY_BYTES: usize = 64 << 10;

/// One directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// Clean path from the layer's root.
    pub(super) path: Vec<u8>,
    pub(super) mtime: Timespec,
    /// `system.posix_acl_default`; empty if there is none.
    pub(super) acl: Vec<u8>,
}

/// The notes of a layer.
#[derive(Default)]
pub(super) struct Journal {
    memory: Vec<u8>,
    file: Option<File>,
}

impl Journal {
    /// Adds a note; `place` is a directory where a file without a name may be made.
    pub(super) fn add(&mut self, path: &[u8], mtime: Timespec, acl: &[u8], place: &OwnedFd) -> Result<()> {
        let length = |bytes: &[u8]| (bytes.len() as u32).to_le_bytes();
        self.memory.extend_from_slice(&mtime.tv_sec.to_le_bytes());
        self.memory.extend_from_slice(&mtime.tv_nsec.to_le_bytes());
        self.memory.extend_from_slice(&length(path));
        self.memory.extend_from_slice(&length(acl));
        self.memory.extend_from_slice(path);
        self.memory.extend_from_slice(acl);
        if self.memory.len() >= MEMORY_BYTES { self.spill(place).map_err(failed) } else { Ok(()) }
    }

    fn spill(&mut self, place: &OwnedFd) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(nameless(place)?),
        };
        file.write_all(&self.memory)?;
        self.memory.clear();
        Ok(())
    }

    /// Gives all notes in the order in which they came.
    pub(super) fn replay(self, mut each: impl FnMut(Note) -> Result<()>) -> Result<()> {
        if let Some(mut file) = self.file {
            file.rewind().map_err(failed)?;
            let mut reader = BufReader::with_capacity(MEMORY_BYTES, file);
            while let Some(note) = read(&mut reader).map_err(failed)? {
                each(note)?;
            }
        }
        let mut rest = self.memory.as_slice();
        while let Some(note) = read(&mut rest).map_err(failed)? {
            each(note)?;
        }
        Ok(())
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::host("keep the times of a layer's directories in a temporary file", error)
}

/// A file that vanishes with its descriptor, on the filesystem of `place`.
fn nameless(place: &OwnedFd) -> std::io::Result<File> {
    let open = |name: &str, flags: OFlags| {
        let flags = flags | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::openat(place, name, flags, Mode::RUSR | Mode::WUSR)
    };
    match open(".", OFlags::TMPFILE) {
        Ok(fd) => Ok(fd.into()),
        // A filesystem that has none of those. No entry of a layer is called so: whiteouts of aufs
        // are left out.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let name = ".wh..wh.skiff";
            let fd = open(name, OFlags::CREATE | OFlags::EXCL)?;
            rustix::fs::unlinkat(place, name, rustix::fs::AtFlags::empty())?;
            Ok(fd.into())
        }
        Err(e) => Err(e.into()),
    }
}

fn read(from: &mut impl Read) -> std::io::Result<Option<Note>> {
    let mut head = [0u8; 24];
    match from.read(&mut head[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut head[1..])?,
    }
    let long = |at: usize| i64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
    let length = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| head[at + i])) as usize;
    let mut note = Note {
        mtime: Timespec { tv_sec: long(0), tv_nsec: long(8) },
        path: vec![0; length(16)],
        acl: vec![0; length(20)],
    };
    from.read_exact(&mut note.path)?;
    from.read_exact(&mut note.acl)?;
    Ok(Some(note))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_in_order() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let place = OwnedFd::from(File::open(dir.path()).expect("open"));
        for count in [0usize, 1, 3000] {
            let mut journal = Journal::default();
            let note = |n: usize| Note {
                path: format!("directory/{n}").into_bytes(),
                mtime: Timespec { tv_sec: n as i64 - 5, tv_nsec: 999_999_999 },
                acl: vec![1; n % 3],
            };
            for n in 0..count {
                let Note { path, mtime, acl } = note(n);
                journal.add(&path, mtime, &acl, &place).expect("kept");
            }
            assert_eq!(journal.file.is_some(), count > 1000, "only many notes need a file");
            let mut back = Vec::new();
            let keep = |note| {
                back.push(note);
                Ok(())
            };
            journal.replay(keep).expect("replayed");
            assert_eq!(back, (0..count).map(note).collect::<Vec<_>>());
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("read").count(), 0);
    }
}
