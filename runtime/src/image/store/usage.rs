//! What a tree takes on the disk, without trusting who made it.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Deepest tree that is looked into: layers are no deeper than [`limits`](crate::image::limits) say.
const MAX_DEPTH: usize = 300;
/// `st_blocks` counts these, whatever the filesystem's own are (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Bytes on the disk; a file with several names in the tree counts once.
    pub(super) disk_bytes: u64,
    /// Bytes of the files' content.
    pub(super) content_bytes: u64,
}

/// Measures what is below a directory, and the directory. What vanishes meanwhile is left out.
///
/// # Errors
/// The first that the kernel gives; `FilesystemLoop` for a tree that is too deep.
pub(super) fn measure(dir: BorrowedFd<'_>) -> io::Result<Usage> {
    let mut walk = Walk::default();
    let stat = rustix::fs::fstat(dir)?;
    walk.count(&stat);
    let top = rustix::io::fcntl_dupfd_cloexec(dir, 0)?;
    walk.below(&top, 0)?;
    Ok(walk.usage)
}

#[derive(Default)]
struct Walk {
    usage: Usage,
    /// Files with several names that have been counted.
    seen: HashSet<(u64, u64)>,
}

impl Walk {
    fn below(&mut self, dir: &OwnedFd, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(Errno::LOOP.into());
        }
        for name in names(dir)? {
            let stat = match rustix::fs::statat(dir, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e.into()),
            };
            self.count(&stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(dir, name.as_c_str(), flags, Mode::empty()) {
                    Ok(child) => self.below(&child, depth + 1)?,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, stat: &rustix::fs::Stat) {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let linked = stat.st_nlink > 1 && kind != FileType::Directory;
        if linked && !self.seen.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        self.usage.disk_bytes += stat.st_blocks.unsigned_abs() * BLOCK_BYTES;
        if kind == FileType::RegularFile {
            self.usage.content_bytes += stat.st_size.unsigned_abs();
        }
    }
}

fn names(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut all = Vec::new();
    for entry in Dir::read_from(dir.as_fd())? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            all.push(name);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn linked_files_count_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("tree");
        std::fs::create_dir_all(path.join("a/b")).expect("mkdir");
        std::fs::write(path.join("a/one"), vec![1; 100_000]).expect("write");
        std::fs::hard_link(path.join("a/one"), path.join("a/b/two")).expect("link");
        std::fs::write(dir.path().join("outside"), vec![1; 500_000]).expect("write");
        symlink(dir.path(), path.join("a/up")).expect("symlink");
        let opened = std::fs::File::open(&path).expect("open");
        let usage = measure(opened.as_fd()).expect("measured");
        assert_eq!(usage.content_bytes, 100_000);
        assert!((100_000..400_000).contains(&usage.disk_bytes), "{usage:?}");
    }
}
