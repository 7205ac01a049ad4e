//! Owner, mode, extended attributes and times of what was unpacked.
//!
//! Owner, attributes, mode, times, in this order: `chown` takes set-user-ID bits and file capabilities
//! away again, and an ACL changes the mode, which is to be the archive's (as in containerd). What a new
//! file has already is not set again: nothing costs a pull more time than these calls.
//!
//! Attributes: `security.capability`, `user.*`, `trusted.*` and `system.*` are kept; the rest of
//! `security.*` (labels, IMA, EVM) belongs to the host and is dropped. `trusted.overlay.X`, with which
//! an image could redirect a directory to another, becomes `trusted.overlay.overlay.X`, which
//! overlayfs shows as `trusted.overlay.X` again from Linux 6.7 on (*Nesting overlayfs mounts*) and
//! hides before. `user.overlay.*` is kept as it is: it means something only to mounts with
//! `userxattr`, which Skiff never makes. A filesystem that does not know an attribute goes without,
//! as in Docker and containerd.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::entries::{Entry, Kind, invalid};
use super::path::{PARENT_MODE, Place, show};
use crate::image::limits;
use crate::{Error, ErrorKind, Result};

/// Default ACLs are set when a layer is complete; files made earlier would inherit them.
pub(super) const DEFAULT_ACL: &str = "system.posix_acl_default";
pub(super) const ACCESS_ACL: &str = "system.posix_acl_access";
/// The most that the kernel lists (Linux `XATTR_LIST_MAX`).
const LIST_BYTES: usize = 64 << 10;
const OVERLAY_PREFIX: &[u8] = b"trusted.overlay.";
const OVERLAY_ESCAPE: &[u8] = b"trusted.overlay.overlay.";

/// What new files get from the process that makes them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    umask: u32,
    is_root: bool,
}

impl Process {
    /// Reads the umask from proc(5): the call that tells it changes it for all threads.
    pub(super) fn new() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        let umask = line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
        let is_root = rustix::process::geteuid().is_root() && rustix::process::getegid().is_root();
        // Unknown: nothing that is made has the right mode.
        Self { umask: umask.unwrap_or(0o777), is_root }
    }

    /// # Errors
    /// `Host` if the umask was changed meanwhile: modes may be wrong.
    pub(super) fn check_unchanged(self) -> Result<()> {
        if self == Self::new() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Host,
            "the umask or user of the process changed while a layer was unpacked",
        )
        .advise("set the umask before images are pulled"))
    }

    /// The mode to make a file with, and whether that makes it right.
    pub(super) fn file_mode(self, entry: &Entry) -> (Mode, bool) {
        self.mode(entry, 0o777)
    }

    /// As [`Process::file_mode`], for a directory.
    pub(super) fn dir_mode(self, entry: &Entry, place: &Place<'_>) -> (Mode, bool) {
        let (mode, right) = self.mode(entry, 0o1777);
        (mode, right && !place.gives_set_gid())
    }

    fn mode(self, entry: &Entry, possible: u32) -> (Mode, bool) {
        if entry.mode & !possible == 0 && entry.mode & self.umask == 0 {
            return (Mode::from_raw_mode(entry.mode), true);
        }
        (Mode::from_raw_mode(entry.mode & 0o700 | 0o600), false)
    }

    /// Whether a new file here has the entry's owner.
    fn gives_owner(self, entry: &Entry, place: &Place<'_>) -> bool {
        self.is_root && entry.uid == 0 && entry.gid == 0 && place.gives_root()
    }

    /// Sets all but the times of a new file or directory that is open.
    pub(super) fn set_new(
        self,
        fd: &OwnedFd,
        entry: &Entry,
        place: &Place<'_>,
        mode_is_right: bool,
    ) -> Result<()> {
        if !self.gives_owner(entry, place) {
            chown(fd, entry, place)?;
        }
        set_xattrs(entry, place, |name, value| rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()))?;
        if mode_is_right && !has_access_acl(entry) { Ok(()) } else { chmod(fd, entry, place) }
    }

    /// Whether a new directory or file needs nothing more than to be there, and its bytes and time.
    pub(super) fn is_complete(self, entry: &Entry, place: &Place<'_>, mode_is_right: bool) -> bool {
        mode_is_right && entry.xattrs.is_empty() && self.gives_owner(entry, place)
    }

    /// Sets everything on something new that must not be opened: links, devices, FIFOs.
    pub(super) fn set_closed(self, entry: &Entry, place: &Place<'_>, mode_is_right: bool) -> Result<()> {
        let (dir, nofollow) = (&place.dir.fd, AtFlags::SYMLINK_NOFOLLOW);
        if !self.gives_owner(entry, place) {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            rustix::fs::chownat(dir, place.name, Some(uid), Some(gid), nofollow)
                .map_err(|e| place.failed("chown", e))?;
        }
        if !entry.xattrs.is_empty() {
            let path = through_proc(place);
            set_xattrs(entry, place, |name, value| {
                rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty())
            })?;
        }
        // Links have neither mode nor ACL.
        if entry.kind != Kind::Symlink && (!mode_is_right || has_access_acl(entry)) {
            rustix::fs::chmodat(dir, place.name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(|e| place.failed("chmod", e))?;
        }
        rustix::fs::utimensat(dir, place.name, &times(entry.mtime), nofollow)
            .map_err(|e| place.failed("set the times of", e))
    }
}

/// There is no lsetxattr relative to a directory before Linux 6.13.
pub(super) fn through_proc(place: &Place<'_>) -> PathBuf {
    let number = place.dir.fd.as_fd().as_raw_fd().to_string();
    [OsStr::new("/proc/self/fd"), OsStr::new(&number), place.name].iter().collect()
}

fn chown(fd: &OwnedFd, entry: &Entry, place: &Place<'_>) -> Result<()> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
        .map_err(|e| place.failed("chown", e))
}

fn chmod(fd: &OwnedFd, entry: &Entry, place: &Place<'_>) -> Result<()> {
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(|e| place.failed("chmod", e))
}

/// Makes a directory that was there already what the entry says, but for its times.
pub(super) fn set_again(fd: &OwnedFd, entry: &Entry, place: &Place<'_>) -> Result<()> {
    clear(fd, place)?;
    chown(fd, entry, place)?;
    set_xattrs(entry, place, |name, value| rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()))?;
    chmod(fd, entry, place)
}

/// Takes away the extended attributes that an entry gave, and the marks of overlayfs.
pub(super) fn clear(fd: &OwnedFd, place: &Place<'_>) -> Result<()> {
    for name in kept_names(fd).map_err(|e| place.failed("read the extended attributes of", e))? {
        match rustix::fs::fremovexattr(fd, OsStr::from_bytes(&name)) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => return Err(place.failed("remove an extended attribute of", e)),
        }
    }
    Ok(())
}

/// Names of the extended attributes, each with a zero byte behind it.
fn list(fd: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    let mut names = vec![0u8; LIST_BYTES];
    match rustix::fs::flistxattr(fd, &mut names[..]) {
        Ok(length) => names.truncate(length),
        Err(Errno::OPNOTSUPP) => names.clear(),
        Err(e) => return Err(e),
    }
    Ok(names)
}

/// Names, as on the disk, of the attributes that an entry gave, with the marks of overlayfs.
pub(super) fn kept_names(fd: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    Ok(list(fd)?.split(|b| *b == 0).filter(|name| is_kept(name)).map(<[u8]>::to_vec).collect())
}

/// Names, as on the disk, of the attributes that an entry gave: no marks of overlayfs or the host.
pub(super) fn names(fd: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let is_mark = |name: &[u8]| name.starts_with(OVERLAY_PREFIX) && !name.starts_with(OVERLAY_ESCAPE);
    let all = list(fd)?;
    let given = all.split(|b| *b == 0).filter(|name| is_kept(name) && !is_mark(name));
    Ok(given.map(<[u8]>::to_vec).collect())
}

/// Makes a directory one of root with mode 0755, and takes away what it has from the directory that it
/// is in: a group, ACLs that files in it would inherit.
pub(super) fn plain(fd: &OwnedFd) -> Result<()> {
    let failed = |e| Error::host("prepare a directory of a layer", e);
    for name in [DEFAULT_ACL, ACCESS_ACL] {
        match rustix::fs::fremovexattr(fd, name) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    let stat = rustix::fs::fstat(fd).map_err(failed)?;
    if stat.st_uid == 0 && stat.st_gid == 0 && stat.st_mode & 0o7777 == PARENT_MODE.bits() {
        return Ok(());
    }
    rustix::fs::fchown(fd, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(failed)?;
    rustix::fs::fchmod(fd, PARENT_MODE).map_err(failed)
}

/// The modification time, for both times.
pub(super) fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

fn set_xattrs(
    entry: &Entry,
    place: &Place<'_>,
    mut set: impl FnMut(&OsStr, &[u8]) -> rustix::io::Result<()>,
) -> Result<()> {
    for (name, value) in kept(entry).filter(|(name, _)| name.as_ref() != DEFAULT_ACL.as_bytes()) {
        if name.len() as u64 > limits::MAX_NAME_BYTES {
            return Err(invalid(format!("the extended attribute {} has too long a name", show(&name))));
        }
        match set(OsStr::from_bytes(&name), value) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            // user.* is for files and directories only.
            Err(Errno::PERM) if name.starts_with(b"user.") => {}
            // An ACL or a capability that is none.
            Err(Errno::INVAL) => {
                let (name, path) = (show(&name), show(&entry.path));
                return Err(invalid(format!("the extended attribute {name} of {path} has no valid value")));
            }
            Err(e) => {
                let name = String::from_utf8_lossy(&name);
                return Err(place.failed(&format!("set the extended attribute {name} of"), e));
            }
        }
    }
    Ok(())
}

/// Whether the entry has an ACL, which changes its mode when it is set.
fn has_access_acl(entry: &Entry) -> bool {
    entry.xattrs.iter().any(|(name, _)| name == ACCESS_ACL.as_bytes())
}

/// The entry's default ACL, which is set at the end; empty if there is none.
pub(super) fn default_acl(entry: &Entry) -> &[u8] {
    let found = entry.xattrs.iter().find(|(name, _)| name == DEFAULT_ACL.as_bytes());
    found.map_or(&[], |(_, value)| value)
}

/// The attributes that a file gets, with the names that they have on the disk.
pub(super) fn kept(entry: &Entry) -> impl Iterator<Item = (Cow<'_, [u8]>, &[u8])> {
    let all = entry.xattrs.iter().filter(|(name, _)| is_kept(name));
    all.map(|(name, value)| (escaped(name), value.as_slice()))
}

fn is_kept(name: &[u8]) -> bool {
    !name.is_empty() && (!name.starts_with(b"security.") || name == b"security.capability")
}

fn escaped(name: &[u8]) -> Cow<'_, [u8]> {
    match name.strip_prefix(OVERLAY_PREFIX) {
        Some(rest) => Cow::Owned([OVERLAY_ESCAPE, rest].concat()),
        None => Cow::Borrowed(name),
    }
}
