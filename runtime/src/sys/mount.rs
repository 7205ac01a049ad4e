//! Mounts: what no safe wrapper has yet.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// Has a mount that is attached nowhere show the ids of files as a user namespace maps them.
///
/// # Errors
/// As `mount_setattr(2)`: `EINVAL` where the filesystem cannot do that.
pub(crate) fn set_idmap(mount: impl AsFd, userns: impl AsFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(userns.as_fd().as_raw_fd().unsigned_abs()),
    };
    // SAFETY: path and attributes live until after the call, which only reads them; the size is
    // that of the structure.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
