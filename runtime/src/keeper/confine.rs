//! What a start process does to itself so that the container, which comes from it, has it so.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

use super::protocol::Limits;
use crate::{Error, Result};

const NAMESPACE: &str = "/proc/thread-self/ns/net";
/// As Docker: the root of a user namespace has no capabilities over a network namespace that is not
/// its own, and would neither bind port 80 nor ping.
const OPEN_TO_ALL: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Leaves the daemon's supplementary groups: libcontainer keeps them where an image's user has none.
pub(super) fn leave_groups() -> Result<()> {
    rustix::thread::set_thread_groups(&[]).map_err(|e| Error::host("cannot leave the daemon's groups", e))
}

/// Raises limits that can only be lowered later: that of open files as far as the container's goes,
/// which is set in its user namespace; that of a user's processes altogether, as it counts what has
/// this id anywhere on the host. Without CAP_SYS_RESOURCE they stay.
pub(super) fn raise_limits(limits: &Limits) {
    let all = Rlimit { current: None, maximum: None };
    if setrlimit(Resource::Nproc, all).is_err() {
        let maximum = getrlimit(Resource::Nproc).maximum;
        let _ = setrlimit(Resource::Nproc, Rlimit { current: maximum, maximum });
    }
    let own = getrlimit(Resource::Nofile);
    if own.maximum.is_some_and(|maximum| maximum < limits.nofile) {
        let _ = setrlimit(Resource::Nofile, Rlimit { maximum: Some(limits.nofile), ..own });
    }
}

/// Raises the limit of open files of a container's init, where [`raise_limits`] did not know how far it must go.
/// Without CAP_SYS_RESOURCE it stays.
pub(super) fn raise_open_files(init: i32, nofile: u64) {
    let own = getrlimit(Resource::Nofile);
    if let (true, Some(init)) = (own.maximum.is_some_and(|maximum| maximum < nofile), Pid::from_raw(init)) {
        let _ = prlimit(Some(init), Resource::Nofile, Rlimit { maximum: Some(nofile), ..own });
    }
}

/// Enters the container's network namespace.
pub(super) fn enter(network: &OwnedFd) -> Result<()> {
    setns(network, CloneFlags::CLONE_NEWNET)
        .map_err(|e| Error::host("cannot enter the network namespace", io::Error::from(e)))
}

/// Enters the container's network namespace, for a container whose user namespace cannot.
pub(super) fn enter_network(network: &OwnedFd) -> Result<()> {
    let failed = |e: io::Error| Error::host("cannot enter the network namespace", e);
    let host = fs::read_link(NAMESPACE).map_err(failed)?;
    enter(network)?;
    if fs::read_link(NAMESPACE).map_err(failed)? == host {
        // Not one of its own: its settings are the host's.
        return Ok(());
    }
    for (file, value) in OPEN_TO_ALL {
        fs::write(file, value).map_err(|e| Error::host(format!("cannot write '{value}' to {file}"), e))?;
    }
    Ok(())
}
