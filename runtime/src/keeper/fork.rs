//! The forking of start processes, and what the keeper has of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Signal, set_parent_process_death_signal, setrlimit};

use super::protocol::{Failure, Report};
use super::server::Server;
use super::spawn::{self, Inputs};
use super::starts::read_to_end;
use crate::cgroup::Group;
use crate::sys::{ForkResult, close_all_except, exit_now, fork_into_group, fork_single_threaded};
use crate::{Error, Result};

/// A start process, and the keeper's ends of what it has.
pub(super) struct Forked {
    pub(super) child: Pid,
    pub(super) report: OwnedFd,
    pub(super) stdout: (OwnedFd, OwnedFd),
    pub(super) stderr: (OwnedFd, OwnedFd),
    pub(super) network: OwnedFd,
}

impl Forked {
    /// Why it failed, if it has told.
    pub(super) fn failure(&self) -> Option<Failure> {
        let mut bytes = Vec::new();
        read_to_end(&self.report, &mut bytes);
        match serde_json::from_slice(&bytes) {
            Ok(Report::Failed(failure)) => Some(failure),
            _ => None,
        }
    }
}

impl Server {
    /// Forks a start process into its group, which is made.
    pub(super) fn fork(
        &self,
        group: &Group,
        request: Option<OwnedFd>,
        socket: OwnedFd,
        network: OwnedFd,
    ) -> Result<Forked> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::host("cannot make a pipe", e));
        let (stdout, stderr, (report, report_write)) = (pipe()?, pipe()?, pipe()?);
        rustix::io::ioctl_fionbio(&report, true).map_err(|e| Error::host("cannot set up a pipe", e))?;
        let keeper = rustix::process::getpid();
        group.create()?;
        let (forked, joined) = fork_in(group).map_err(|e| Error::host("cannot fork", e))?;
        match forked {
            ForkResult::Parent(child) => Ok(Forked { child, report, stdout, stderr, network }),
            ForkResult::Child => {
                // Lowering it cannot fail.
                let _ = setrlimit(Resource::Nofile, self.nofile);
                let inputs = Inputs {
                    keeper,
                    group: group.clone(),
                    joined,
                    mount_point: self.run.mount_point(),
                    request,
                    socket,
                    network,
                    area: self.area.as_ref().map(|area| area.path().to_owned()),
                    stdout: stdout.1,
                    stderr: stderr.1,
                    report: report_write,
                };
                start_process(inputs)
            }
        }
    }
}

/// The keeper's end and the start process's, for an order.
pub(super) fn order_sockets() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| Error::host("cannot make a socket", e))
}

/// Forks a start process, on version 2 into its container's group; tells whether it is there.
fn fork_in(group: &Group) -> io::Result<(ForkResult, bool)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = group.v2_dir().and_then(|dir| rustix::fs::open(dir, flags, Mode::empty()).ok());
    if let Some(forked) = dir.and_then(|dir| fork_into_group(dir.as_fd()).ok()) {
        return Ok((forked, true));
    }
    // Version 1, or a kernel that cannot: it joins by itself.
    fork_single_threaded().map(|forked| (forked, false))
}

/// The child's side of a fork: never returns.
fn start_process(inputs: Inputs) -> ! {
    // First of all: until the descriptors are closed, it holds the run's lock and the owner's socket.
    // (Whether the keeper has died before is looked at later.)
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let mut keep: Vec<i32> = inputs.request.iter().map(AsRawFd::as_raw_fd).collect();
    for fd in [&inputs.socket, &inputs.network, &inputs.stdout, &inputs.stderr, &inputs.report] {
        keep.push(fd.as_raw_fd());
    }
    let code = match close_all_except(&keep) {
        Ok(()) => {
            spawn::run(inputs);
            0
        }
        Err(_) => 1,
    };
    exit_now(code)
}
