//! What the daemon knows of its containers, and what it does with what the keeper tells.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};

use super::protocol::{FromKeeper, Instance, Label, SpawnSteps, ToKeeper};
use crate::rootfs::KeptDisks;
use crate::{Error, Exit, Result, Stats};

/// How a container ended, and what it used until then.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// By itself, or killed.
    Exited(Exit, Stats),
    /// With its keeper.
    KeeperLost,
}

/// A container's init; killed, and with it all processes of the container, when this is dropped,
/// unless the run was left before.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: Option<Arc<OwnedFd>>,
    left: Arc<AtomicBool>,
}

impl Process {
    /// Sends a signal. One that has ended already is fine.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pidfd) = &self.pidfd {
            let _ = rustix::process::pidfd_send_signal(pidfd, signal);
        }
    }
}

impl Process {
    /// Whether the run was left, so that it goes on without this process.
    pub(crate) fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.left.load(Ordering::Acquire) {
            self.signal(Signal::KILL);
        }
    }
}

/// As long as this is there, the keeper of a lasting run keeps the end and the pipes of a container
/// for the next owner.
#[derive(Debug)]
pub(crate) struct Kept {
    id: String,
    pid: i32,
    forget: mpsc::UnboundedSender<ToKeeper>,
    left: Arc<AtomicBool>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.left.load(Ordering::Acquire) {
            let id = std::mem::take(&mut self.id);
            // A keeper that is gone has forgotten.
            let _ = self.forget.send(ToKeeper::Forget { id, pid: self.pid });
        }
    }
}

/// What the keeper tells of a container that runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) process: Process,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) steps: SpawnSteps,
    pub(crate) ended: watch::Receiver<Option<Ended>>,
    pub(crate) kept: Arc<Kept>,
}

/// A container that a former owner started.
#[derive(Debug)]
pub(crate) struct AdoptedContainer {
    pub(crate) started: Started,
    pub(crate) instance: Instance,
    /// None when it has ended.
    pub(crate) network: Option<OwnedFd>,
}

/// A start of a former owner that failed.
#[derive(Debug)]
pub(crate) struct AdoptedFailure {
    pub(crate) id: String,
    pub(crate) label: Label,
    pub(crate) error: Error,
    pub(crate) _kept: Kept,
}

/// Who waits for a start, and the disks of the container.
pub(super) type Starting = (oneshot::Sender<Result<Started>>, Option<KeptDisks>);

/// A container whose end is awaited: its pid, its pidfd, who waits, and its disks.
pub(super) struct Running {
    pid: i32,
    pub(super) pidfd: Arc<OwnedFd>,
    pub(super) ended: watch::Sender<Option<Ended>>,
    _disks: Option<KeptDisks>,
}

pub(super) struct Table {
    pub(super) starting: HashMap<String, Starting>,
    pub(super) running: HashMap<String, Running>,
    pub(super) adopted: Vec<AdoptedContainer>,
    pub(super) failures: Vec<AdoptedFailure>,
    /// Of former owners.
    pub(super) sockets: Vec<(String, OwnedFd)>,
    /// Containers made ahead that no order has taken: who is told whether each waits.
    pub(super) prepared: HashMap<u64, watch::Sender<Option<bool>>>,
    forget: mpsc::UnboundedSender<ToKeeper>,
    pub(super) left: Arc<AtomicBool>,
    pub(super) lost: bool,
}

impl Table {
    /// `forget` sends to the keeper what it need not keep any more.
    pub(super) fn new(forget: mpsc::UnboundedSender<ToKeeper>, left: Arc<AtomicBool>) -> Self {
        Self {
            starting: HashMap::new(),
            running: HashMap::new(),
            adopted: Vec::new(),
            failures: Vec::new(),
            sockets: Vec::new(),
            prepared: HashMap::new(),
            forget,
            left,
            lost: false,
        }
    }

    /// What is given to whoever holds a container.
    fn handles(&self, id: &str, pid: i32, pidfd: Option<Arc<OwnedFd>>) -> (Process, Kept) {
        let left = || Arc::clone(&self.left);
        let kept = Kept { id: id.to_owned(), pid, forget: self.forget.clone(), left: left() };
        (Process { pidfd, left: left() }, kept)
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} starting, {} running", self.starting.len(), self.running.len())
    }
}

/// Notes what the keeper tells. `pending` is the number of starts of former owners.
pub(super) fn dispatch(
    table: &mut Table,
    pending: &watch::Sender<Option<u32>>,
    message: FromKeeper,
    fds: Vec<OwnedFd>,
) {
    match message {
        FromKeeper::Started { id, pid, steps } => {
            let Ok([pidfd, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) else { return };
            let pidfd = Arc::new(pidfd);
            let (sender, ended) = watch::channel(None);
            let (process, kept) = table.handles(&id, pid, Some(Arc::clone(&pidfd)));
            let (pid_shown, kept) = (pid.unsigned_abs(), Arc::new(kept));
            let started = Started { pid: pid_shown, process, stdout, stderr, steps, ended, kept };
            // Where nobody waits for it any more, dropping it kills it.
            let disks = table.starting.remove(&id).and_then(|(waiting, disks)| {
                let _ = waiting.send(Ok(started));
                disks
            });
            table.running.insert(id, Running { pid, pidfd, ended: sender, _disks: disks });
        }
        FromKeeper::Prepared { slot, waits, failure } => {
            if let Some(failure) = failure {
                let error = Error::from(failure);
                tracing::debug!(error = error.chain(), "a container could not be made ahead");
            }
            if let Some(state) = table.prepared.get(&slot) {
                let _ = state.send(Some(waits));
            }
            if !waits {
                table.prepared.remove(&slot);
            }
        }
        FromKeeper::Failed { id, failure } => {
            if let Some((waiting, _)) = table.starting.remove(&id) {
                let _ = waiting.send(Err(failure.into()));
            }
        }
        FromKeeper::Exited { id, pid, exit, stats } => {
            if table.running.get(&id).is_some_and(|running| running.pid == pid)
                && let Some(running) = table.running.remove(&id)
            {
                let _ = running.ended.send(Some(Ended::Exited(exit, stats)));
            }
        }
        FromKeeper::Adopted(instance) => {
            adopt(table, instance, fds);
            one_less(pending);
        }
        FromKeeper::AdoptedFailure { id, label, failure } => {
            let (_, kept) = table.handles(&id, 0, None);
            table.failures.push(AdoptedFailure { id, label, error: failure.into(), _kept: kept });
            one_less(pending);
        }
        FromKeeper::Held { name } => {
            table.sockets.extend(fds.into_iter().next().map(|socket| (name, socket)));
        }
        FromKeeper::Attached { starting, forgotten } => {
            if forgotten > 0 {
                tracing::warn!(forgotten, "more containers ended without an owner than the keeper keeps");
            }
            pending.send_replace(Some(starting));
        }
        FromKeeper::Hello { .. }
        | FromKeeper::Refused { .. }
        | FromKeeper::Listed(_)
        | FromKeeper::ListEnd => {}
    }
}

/// Counts the starts of former owners that have come out, once their number is known.
fn one_less(pending: &watch::Sender<Option<u32>>) {
    pending.send_if_modified(|pending| match pending {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    });
}

fn adopt(table: &mut Table, instance: Instance, fds: Vec<OwnedFd>) {
    let mut fds = fds.into_iter();
    let (Some(stdout), Some(stderr)) = (fds.next(), fds.next()) else { return };
    let (network, pidfd) = (fds.next(), fds.next().map(Arc::new));
    let (process, kept) = table.handles(&instance.id, instance.pid, pidfd.clone());
    let exit = instance.ended.map(|(exit, stats)| Ended::Exited(exit, stats));
    let (sender, ended) = watch::channel(exit);
    if let (Some(pidfd), None) = (pidfd, exit) {
        let running = Running { pid: instance.pid, pidfd, ended: sender, _disks: None };
        table.running.insert(instance.id.clone(), running);
    }
    let started = Started {
        pid: instance.pid.unsigned_abs(),
        process,
        stdout,
        stderr,
        steps: SpawnSteps::default(),
        ended,
        kept: Arc::new(kept),
    };
    table.adopted.push(AdoptedContainer { started, instance, network });
}
