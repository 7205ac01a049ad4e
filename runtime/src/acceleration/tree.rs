//! The layers of an image, looked into without trusting them or the paths.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;

/// The open directories of an image's layers, highest first.
#[derive(Debug)]
pub(super) struct Tree(Vec<OwnedFd>);

/// What a path is in the highest layer that has it.
#[derive(Debug)]
pub(super) enum Found {
    /// A regular file, open for reading, with its size in bytes.
    File(OwnedFd, u64),
    Directory,
}

impl Tree {
    /// Opens the layers, lowest first; those that are gone are left out.
    pub(super) fn open(layers: &[PathBuf]) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self(layers.iter().rev().filter_map(|layer| open(layer, flags, Mode::empty()).ok()).collect())
    }

    /// What the container sees at a path: `None` for links, devices, FIFOs, sockets and whiteouts,
    /// which are not opened, and for what is not there.
    pub(super) fn find(&self, path: &str) -> Option<Found> {
        for layer in &self.0 {
            match resolve(layer, path) {
                Ok(place) => return found(&place),
                Err(Errno::NOENT) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// The directory of that path in each layer that has one, open for reading.
    pub(super) fn directories(&self, path: &str) -> impl Iterator<Item = OwnedFd> {
        self.0.iter().filter_map(move |layer| {
            let place = if path.is_empty() { layer.try_clone().ok()? } else { resolve(layer, path).ok()? };
            is(&place, FileType::Directory).then(|| reopen(&place, OFlags::DIRECTORY).ok()).flatten()
        })
    }
}

/// A descriptor that only names the place: nothing is opened, whatever it is.
fn resolve(layer: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(layer, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), inside)
}

fn found(place: &OwnedFd) -> Option<Found> {
    let stat = fstat(place).ok()?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Some(Found::Directory),
        FileType::RegularFile => {
            let size = u64::try_from(stat.st_size).ok()?;
            reopen(place, OFlags::empty()).ok().map(|file| Found::File(file, size))
        }
        _ => None,
    }
}

fn is(place: &OwnedFd, kind: FileType) -> bool {
    fstat(place).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind)
}

/// Opens for reading what has been looked at, not what is at its path by now.
fn reopen(place: &OwnedFd, more: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC | more;
    open(path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, makedev, mkfifoat, mknodat};

    #[test]
    fn the_highest_layer_wins_and_only_plain_files_are_opened() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (low, high) = (dir.path().join("low"), dir.path().join("high"));
        for (file, text) in
            [("low/d/a", "old"), ("low/d/b", "below"), ("low/d/c", "x"), ("high/d/a", "newer")]
        {
            let file = dir.path().join(file);
            fs::create_dir_all(file.parent().expect("parent")).expect("mkdir");
            fs::write(file, text).expect("written");
        }
        symlink("/etc/shadow", high.join("link")).expect("symlink");
        symlink("/etc", high.join("etc")).expect("symlink");
        let mode = Mode::from_raw_mode(0o600);
        mkfifoat(CWD, high.join("fifo"), mode).expect("fifo");
        mknodat(CWD, high.join("d/c"), FileType::CharacterDevice, mode, makedev(0, 0)).expect("whiteout");
        mknodat(CWD, high.join("device"), FileType::CharacterDevice, mode, makedev(1, 3)).expect("device");
        let tree = Tree::open(&[low, high, dir.path().join("gone")]);
        let size = |path: &str| match tree.find(path) {
            Some(Found::File(_, size)) => Some(size),
            _ => None,
        };
        assert_eq!((size("d/a"), size("d/b")), (Some(5), Some(5)));
        assert!(matches!(tree.find("d"), Some(Found::Directory)));
        assert_eq!((tree.directories("d").count(), tree.directories("").count()), (2, 2));
        for path in ["d/c", "link", "etc", "etc/shadow", "fifo", "device", "none", "d/a/x", "../low/d/a"] {
            assert!(tree.find(path).is_none(), "{path}");
            assert_eq!(tree.directories(path).count(), 0, "{path}");
        }
    }
}
