//! Removing a tree that someone hostile may have made.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Removes `name` in `parent` and everything below it, without following links. It is fine if there
/// is nothing.
///
/// Trees of any depth and width: subdirectories are moved up to the top before they are emptied, and
/// names are removed while they are read, so that neither stack nor descriptors nor memory grow.
///
/// # Errors
/// The first that the kernel gives.
pub(crate) fn remove_all(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    let top = open_dir(parent, name)?;
    let mut moved = 0;
    until_empty(&top, |child| {
        if remove_simple(top.as_fd(), child)? { Ok(()) } else { flatten(&top, child, &mut moved) }
    })?;
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(io::Error::from)
}

fn open_dir(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Gives each name to `take`, which takes it out of the directory, until there is none. Names that
/// come or go while a directory is read may be missed, so it is read until a pass finds nothing.
fn until_empty(dir: &OwnedFd, mut take: impl FnMut(&CStr) -> io::Result<()>) -> io::Result<()> {
    loop {
        let mut found = false;
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                found = true;
                take(entry.file_name())?;
            }
        }
        if !found {
            return Ok(());
        }
    }
}

/// Removes a file or an empty directory; `false` for a directory that is not empty.
fn remove_simple(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Empties a subdirectory of `top`, moving its own subdirectories into `top`, and removes it.
fn flatten(top: &OwnedFd, child: &CStr, moved: &mut u64) -> io::Result<()> {
    let dir = open_dir(top.as_fd(), child)?;
    until_empty(&dir, |name| {
        if remove_simple(dir.as_fd(), name)? {
            return Ok(());
        }
        loop {
            *moved += 1;
            match rustix::fs::renameat(&dir, name, top, format!(".removing-{moved}")) {
                Ok(()) => return Ok(()),
                // The tree has such a name itself.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    })?;
    rustix::fs::unlinkat(top, child, AtFlags::REMOVEDIR).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remove(dir: &std::path::Path, name: &str) {
        let parent = std::fs::File::open(dir).expect("open");
        remove_all(parent.as_fd(), OsStr::new(name)).expect("removed");
    }

    #[test]
    fn removes_deep_and_wide_trees() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut fd = OwnedFd::from(std::fs::File::open(dir.path()).expect("open"));
        // Far deeper than PATH_MAX and than a process may have descriptors.
        for _ in 0..1200 {
            rustix::fs::mkdirat(&fd, "deeper", Mode::RWXU).expect("mkdir");
            rustix::fs::mkdirat(&fd, ".removing-1", Mode::RWXU).expect("mkdir");
            rustix::fs::openat(&fd, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).expect("file");
            fd = open_dir(fd.as_fd(), "deeper").expect("open");
        }
        drop(fd);
        remove(dir.path(), "deeper");
        assert!(!dir.path().join("deeper").exists());
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir_all(dir.path().join("keep/x")).expect("mkdir");
        std::fs::create_dir(dir.path().join("t")).expect("mkdir");
        std::os::unix::fs::symlink("../keep", dir.path().join("t/link")).expect("symlink");
        std::os::unix::fs::symlink("keep", dir.path().join("l")).expect("symlink");
        remove(dir.path(), "t");
        remove(dir.path(), "l");
        remove(dir.path(), "missing");
        assert!(dir.path().join("keep/x").exists());
        assert!(!dir.path().join("t").exists() && !dir.path().join("l").is_symlink());
    }
}
