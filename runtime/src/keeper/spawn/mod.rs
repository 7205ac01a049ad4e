//! One start, in a process of its own: mounts, specification, libcontainer, exec. Whatever
//! libcontainer does to its caller (working directory, dumpable flag, leaked descriptors) ends
//! with this process; the container's init is the keeper's child.
//!
//! ```text
//! create: a container without an image ──order──► fill: image, limits, command ──► start ──► report
//! ```
//!
//! The order is there from the beginning, or comes when the container has been waiting for it.

mod create;
mod fill;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sched::{CloneFlags, setns};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::confine;
use super::protocol::{Failure, HandOver, Limits, Report, SpawnSteps, StartRequest, Waiting, receive, send};
use crate::cgroup::Group;
use crate::rootfs::mount::Scratch;
use crate::sandbox::UserNamespace;
use crate::{Error, ErrorKind, Result, breakpoint};
use create::{Created, Parts, create, create_error};
use fill::{Filling, fill};

/// Longest failure that the executor writes.
const MAX_FAILURE: u64 = 64 << 10;

/// What a start needs besides its request.
pub(super) struct Inputs {
    /// The process that forked this one.
    pub(super) keeper: Pid,
    pub(super) group: Group,
    /// Whether this process is in the group already.
    pub(super) joined: bool,
    /// An empty directory of the host to mount on.
    pub(super) mount_point: PathBuf,
    /// What is known of the order, if it is there already; the rest of it, or all, comes by the socket.
    pub(super) request: Option<OwnedFd>,
    pub(super) socket: OwnedFd,
    pub(super) network: OwnedFd,
    /// Where directories with quotas are made.
    pub(super) area: Option<PathBuf>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) report: OwnedFd,
}

/// Runs the start and tells how it came out.
pub(super) fn run(inputs: Inputs) {
    let report = inputs.report.try_clone();
    let result = match start(inputs) {
        Ok(Some(started)) => started,
        // Nobody wants it any more.
        Ok(None) => return,
        Err(e) => Report::Failed(Failure::from(&e)),
    };
    if let (Ok(report), Ok(bytes)) = (report, serde_json::to_vec(&result)) {
        // If it cannot be written, the keeper is gone and kills by the cgroup.
        let _ = File::from(report).write_all(&bytes);
    }
}

fn start(inputs: Inputs) -> Result<Option<Report>> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Error::host("cannot tie a start to its keeper", e))?;
    let mut began = Instant::now();
    // The keeper may have died before that.
    if getppid() != Some(inputs.keeper) {
        return Err(Error::new(ErrorKind::KeeperLost, "the keeper died"));
    }
    if !inputs.joined {
        inputs.group.join_first()?;
    }
    breakpoint::reach("start-joined");
    let known = inputs.request.map(StartRequest::from_memfd).transpose()?;
    let first_id = known.as_ref().and_then(|request| request.first_id);
    confine::leave_groups()?;
    confine::raise_limits(known.as_ref().map_or(&Limits::default(), |request| &request.limits));
    let userns = first_id.map(UserNamespace::new).transpose()?;
    let scratch = Scratch::enter(&inputs.mount_point)?;
    let creating = Instant::now();
    let copied = |fd: &OwnedFd| fd.try_clone().map_err(|e| Error::host("cannot copy a descriptor", e));
    let mut created = create(Parts {
        scratch: &scratch,
        group: &inputs.group,
        network: &inputs.network,
        userns: userns.as_ref(),
        stdout: copied(&inputs.stdout)?,
        stderr: copied(&inputs.stderr)?,
    })?;
    let mut create_us = micros(creating);
    breakpoint::reach("start-created");
    let ahead = known.is_none();
    let Some(order) = wait_for_order(&inputs.socket, created.pid, &inputs.group, known)? else {
        return Ok(None);
    };
    if ahead {
        (began, create_us) = (Instant::now(), 0);
    }
    let (group, request, disks) = order;
    let filling = Filling {
        scratch: &scratch,
        group: &group,
        userns: userns.as_ref(),
        request: &request,
        disks,
        area: inputs.area,
        stdout: &inputs.stdout,
        stderr: &inputs.stderr,
    };
    fill(filling, &created)?;
    let mounts_us = micros(began).saturating_sub(create_us);
    let exec_us = execute(&mut created)?;
    let steps = SpawnSteps { mounts_us, create_us, exec_us };
    let pid = created.pid;
    // Its end takes all the host's mounts of a namespace apart: after the report, with this process.
    std::mem::forget(created);
    Ok(Some(Report::Started { pid, pids: request.limits.pids, steps }))
}

/// Has the container execute its command.
fn execute(created: &mut Created) -> Result<u64> {
    let began = Instant::now();
    enter_mounts(&created.own)?;
    created.container.start().map_err(create_error)?;
    wait_for_exec(&created.exec_failed)?;
    breakpoint::reach("start-executed");
    Ok(micros(began))
}

type Order = (Group, StartRequest, Vec<OwnedFd>);

/// Waits for what is not known of the order, `None` when the keeper has no use for the container. Disks come only
/// now: nothing of the host or of the image is open when libcontainer makes the init, which would inherit it and have it
/// open while it executes its command.
fn wait_for_order(
    socket: &OwnedFd,
    pid: i32,
    group: &Group,
    known: Option<StartRequest>,
) -> Result<Option<Order>> {
    let failed = |e| Error::host("cannot talk with the keeper", e);
    if known.is_none() {
        send(socket, &Waiting { pid }, &[]).map_err(failed)?;
    }
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    while poll(&mut polled, None) == Err(rustix::io::Errno::INTR) {}
    let Some((HandOver { group: name }, fds)) = receive(socket.as_fd()).map_err(failed)? else {
        return Ok(None);
    };
    let mut fds = fds.into_iter();
    let missing = || Error::new(ErrorKind::Internal, "an order has no request");
    let request = match known {
        Some(request) => request,
        None => StartRequest::from_memfd(fds.next().ok_or_else(missing)?)?,
    };
    Ok(Some((group.beside(&name), request, fds.collect())))
}

fn enter_mounts(namespace: &OwnedFd) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNS).map_err(|e| Error::host("cannot enter a mount namespace", e))
}

/// What was made for the container becomes its root's.
fn give(id: u32, path: &Path) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(id), Some(id))
        .map_err(|e| Error::host(format!("cannot chown {}", path.display()), e))
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Returns when the command has been executed (or the container died, which its exit tells).
fn wait_for_exec(pipe: &OwnedFd) -> Result<()> {
    let mut bytes = Vec::new();
    pipe.try_clone()
        .and_then(|pipe| File::from(pipe).take(MAX_FAILURE).read_to_end(&mut bytes))
        .map_err(|e| Error::host("cannot read from a starting container", e))?;
    if bytes.is_empty() {
        return Ok(());
    }
    match serde_json::from_slice::<Failure>(&bytes) {
        Ok(failure) => Err(failure.into()),
        Err(e) => {
            Err(Error::new(ErrorKind::Internal, "a starting container sent an unreadable failure").because(e))
        }
    }
}
