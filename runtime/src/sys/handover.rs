//! What a service manager hands over to a process: descriptors, and variables that are its own.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};

use super::process::thread_count;

/// The first descriptor that is handed over (sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// Groups of a peer at most; the kernel's own bound (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// Takes the descriptors from 3 on that this process was started with, once, and has them closed by `execve`.
/// The caller knows by LISTEN_PID that they were opened for this very process.
///
/// # Errors
/// `EBADF` when one of them is not open; `EALREADY` the second time.
pub(crate) fn take_descriptors(count: u8) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(Errno::ALREADY.into());
    }
    (FIRST..FIRST + RawFd::from(count)).map(take).collect()
}

fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the number is not -1, and is looked at only; one that is not open is answered with EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(borrowed)?;
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and was so when this program began: whoever started it says so. What is open is never
    // given to another `open`, so no object of this process owns it; and it is taken once, by `take_descriptors`.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes variables out of the environment, so that no child is given them. Does nothing beside other threads,
/// which might be reading it.
///
/// # Errors
/// `EBUSY` when this process has more than one thread.
pub(crate) fn forget_variables(names: &[&str]) -> io::Result<()> {
    if names.iter().all(|name| std::env::var_os(name).is_none()) {
        return Ok(());
    }
    if thread_count()? != 1 {
        return Err(Errno::BUSY.into());
    }
    for name in names {
        // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    Ok(())
}

/// The supplementary groups that a peer of a Unix socket had when it connected (`SO_PEERGROUPS`, Linux 4.13).
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<u32> = vec![0; 64];
    loop {
        let room = groups.len() * size_of::<u32>();
        let mut length = libc::socklen_t::try_from(room).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the kernel writes at most `length` bytes, for which there is room, and then how many there
        // are to `length`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let wanted = usize::try_from(length).unwrap_or_default() / size_of::<u32>();
        match result {
            0 => {
                groups.truncate(wanted);
                return Ok(groups);
            }
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() != Some(libc::ERANGE) => return Err(error),
                error if wanted <= groups.len() || wanted > MAX_GROUPS => return Err(error),
                _ => groups.resize(wanted, 0),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_groups_of_a_peer_are_those_of_this_process() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let mut found = peer_groups(one.as_fd()).expect("groups");
        let mut own: Vec<u32> =
            nix::unistd::getgroups().expect("groups").into_iter().map(nix::unistd::Gid::as_raw).collect();
        found.sort_unstable();
        own.sort_unstable();
        assert_eq!(found, own);
    }

    #[test]
    fn what_is_no_socket_has_no_peer() {
        let file = std::fs::File::open("/dev/null").expect("a file");
        let error = peer_groups(file.as_fd()).expect_err("no socket");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn the_environment_is_not_touched_beside_other_threads() {
        // Tests run in threads; this one needs its own.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv());
        assert!(std::env::var_os("PATH").is_some());
        let error = forget_variables(&["PATH"]).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        assert!(std::env::var_os("PATH").is_some());
        forget_variables(&["SKIFF_NO_SUCH_VARIABLE"]).expect("nothing to do");
        drop(stop);
        assert!(thread.join().expect("ended").is_err());
    }
}
