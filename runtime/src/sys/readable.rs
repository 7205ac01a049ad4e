//! Waiting for a descriptor of a kind that tokio has no type for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when there is something to read. Must be called in a tokio runtime; the descriptor is in
/// non-blocking mode.
///
/// # Errors
/// As `epoll_ctl(2)`.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is returned, which neither closes nor replaces it
    // before it has taken it out of epoll.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}
