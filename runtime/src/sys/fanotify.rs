//! Being told which files are opened (`fanotify(7)`).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};

/// A group that watches nothing yet. Its events bring a descriptor of the file that was opened,
/// which is opened by whoever reads them: without waiting for the writer of a FIFO.
///
/// The queue is bounded by the kernel (16,384 events, unless the host says otherwise); what comes
/// while it is full is lost. Nobody waits for the reader.
///
/// # Errors
/// As `fanotify_init(2)`: `ENOSYS`, `EPERM`, `EMFILE`.
pub(crate) fn new_watch() -> io::Result<Fanotify> {
    let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
    let opens = EventFFlags::O_RDONLY
        | EventFFlags::O_CLOEXEC
        | EventFFlags::O_NONBLOCK
        | EventFFlags::O_NOATIME
        | EventFFlags::O_LARGEFILE;
    Ok(Fanotify::init(flags, opens)?)
}

/// Has a group watch all opening of files and directories in the filesystem that `path` is in.
/// The group's descriptor, which another process may have made, is closed then.
///
/// # Errors
/// As `fanotify_mark(2)`.
pub(crate) fn watch_filesystem(group: OwnedFd, path: &Path) -> io::Result<()> {
    // SAFETY: the type asks that the descriptor is a fanotify group; with any other, the kernel
    // refuses the call below and nothing else is done with it.
    let group = unsafe { Fanotify::from_owned_fd(group) };
    let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
    let opens = MaskFlags::FAN_OPEN | MaskFlags::FAN_ONDIR;
    Ok(group.mark(flags, opens, rustix::fs::CWD, Some(path))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_no_group_is_refused() {
        let other = std::fs::File::open("/dev/null").expect("open");
        watch_filesystem(other.into(), Path::new("/")).expect_err("no group");
    }
}
