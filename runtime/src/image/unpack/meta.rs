//! Owner, mode, extended attributes and times of what was unpacked.
//!
//! In this order, since `chown` takes set-user-ID bits and file capabilities away again.
//!
//! Attributes: `security.capability`, `user.*`, `trusted.*` and `system.*` are kept; the rest of
//! `security.*` (labels, IMA, EVM) belongs to the host and is dropped, and so are `trusted.overlay.*`
//! and `user.overlay.*`, with which an image could redirect a directory to another. A filesystem
//! that does not know an attribute goes without, as in Docker and containerd.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Gid, Mode, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::entries::Entry;
use super::path::Place;
use crate::Result;

/// Sets all but the times of a directory, which change as long as entries come.
pub(super) fn set_open(fd: &OwnedFd, entry: &Entry, place: &Place<'_>) -> Result<()> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
        .map_err(|e| place.failed("chown", e))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(|e| place.failed("chmod", e))?;
    set_xattrs(entry, place, |name, value| rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()))
}

/// Sets everything on a file that is open.
pub(super) fn set_file(fd: &OwnedFd, entry: &Entry, place: &Place<'_>) -> Result<()> {
    set_open(fd, entry, place)?;
    rustix::fs::futimens(fd, &times(entry)).map_err(|e| place.failed("set the times of", e))
}

/// Sets everything on what must not be opened: links, devices, FIFOs.
pub(super) fn set_closed(entry: &Entry, place: &Place<'_>, has_mode: bool) -> Result<()> {
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    rustix::fs::chownat(&*place.dir, place.name, Some(uid), Some(gid), nofollow)
        .map_err(|e| place.failed("chown", e))?;
    if has_mode {
        rustix::fs::chmodat(&*place.dir, place.name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(|e| place.failed("chmod", e))?;
    }
    // There is no lsetxattr relative to a directory before Linux 6.13.
    let path: PathBuf =
        [OsStr::new("/proc/self/fd"), OsStr::new(&place.dir.as_fd().as_raw_fd().to_string()), place.name]
            .iter()
            .collect();
    set_xattrs(entry, place, |name, value| rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty()))?;
    rustix::fs::utimensat(&*place.dir, place.name, &times(entry), nofollow)
        .map_err(|e| place.failed("set the times of", e))
}

/// The entry's modification time, for both times.
pub(super) fn times(entry: &Entry) -> Timestamps {
    Timestamps { last_access: entry.mtime, last_modification: entry.mtime }
}

fn set_xattrs(
    entry: &Entry,
    place: &Place<'_>,
    mut set: impl FnMut(&OsStr, &[u8]) -> rustix::io::Result<()>,
) -> Result<()> {
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_kept(name)) {
        match set(OsStr::from_bytes(name), value) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            // user.* is for files and directories only.
            Err(Errno::PERM) if name.starts_with(b"user.") => {}
            Err(e) => {
                let name = String::from_utf8_lossy(name);
                return Err(place.failed(&format!("set the extended attribute {name} of"), e));
            }
        }
    }
    Ok(())
}

fn is_kept(name: &[u8]) -> bool {
    let overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    let foreign = name.starts_with(b"security.") && name != b"security.capability";
    !overlay && !foreign
}
