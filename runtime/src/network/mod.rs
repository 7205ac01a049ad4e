//! The network namespace of a container: made by the host, with `lo` up and the container's own
//! address on it, and entered by the host only to dial. No veth, bridge or NAT is needed to invoke.

mod dial;
mod netlink;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};

pub(crate) use dial::Dialer;

use crate::{Error, ErrorKind, Result};

/// The address of a container that was given none: link-local space (RFC 3927), which no service
/// of the outside can have.
pub(crate) const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 2);

/// Makes a network namespace with `lo` up and `address` on it. The namespace lives as long as the
/// descriptor, or a process in it; nothing is mounted for it.
///
/// # Errors
/// `Host` when the kernel refuses a namespace.
pub(crate) fn create_namespace(address: Ipv4Addr) -> Result<OwnedFd> {
    let thread = std::thread::Builder::new()
        .name("skiff-netns".into())
        .spawn(move || on_own_thread(address))
        .map_err(|e| Error::host("cannot start a thread to make a network namespace", e))?;
    thread
        .join()
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the network namespace thread panicked")))
}

/// Runs on a thread that ends afterwards: it stays in the new namespace.
fn on_own_thread(address: Ipv4Addr) -> Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::host("cannot make a network namespace", e))?;
    let socket = netlink::Socket::open().map_err(|e| Error::host("cannot open a netlink socket", e))?;
    socket
        .loopback_up()
        .and_then(|()| socket.add_loopback_address(address))
        .map_err(|e| Error::host(format!("cannot set up lo with the address {address}"), e))?;
    rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::host("cannot open the new network namespace", e))
}
