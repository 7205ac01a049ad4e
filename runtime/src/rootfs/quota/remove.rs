//! Removal of capped directories, in which a container may have made anything.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::project::Quotas;
use crate::image::remove_all;

pub(super) fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// The names in a directory that Skiff made itself: few.
pub(super) fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Removes `area/name`, the directories of one container, and the limits of their projects. Goes on
/// after a failure; tells the first. It is fine if there is nothing.
pub(super) fn remove_container(area: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let dir = match open_dir(area, name) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Not a directory: nothing that Skiff made, but in its place.
        Err(_) => return remove_all(area, name),
    };
    let mut first = Ok(());
    for space in names(dir.as_fd())? {
        first = first.and(remove_space(dir.as_fd(), &space));
    }
    first?;
    match rustix::fs::unlinkat(area, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn remove_space(container: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    if let Ok(space) = open_dir(container, name) {
        // Before the removal, which moves directories and may need a block more for that. The
        // project stays known by its directory until it is empty. Where quotas are off now, there
        // is no limit to take away.
        let _ = Quotas::of(space.as_fd()).and_then(|quotas| quotas.release(space.as_fd()));
    }
    remove_all(container, name)
}
