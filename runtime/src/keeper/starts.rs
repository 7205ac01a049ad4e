//! Starts, from the owner's order to a container that runs, a failure, or the deadline.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::fork::{Forked, order_sockets};
use super::peers::Tale;
use super::protocol::{Failure, FromKeeper, HandOver, Instance, Label, Report, SpawnSteps, send};
use super::records::FailedStart;
use super::server::{Removing, Server, interval};
use crate::cgroup::Group;
use crate::{Error, ErrorKind, Network, OomPolicy, Result, breakpoint};

/// Report bytes kept of one start.
const MAX_REPORT: usize = 64 << 10;
/// How long the processes of a start that was killed may take to die before its owner is told. Those
/// that wait for a filesystem (state D) die when it answers, and nobody waits for that.
const DEATH_PATIENCE: Duration = Duration::from_millis(500);
/// How long a start waits for the processes of a former container of its name.
const NAME_PATIENCE: Duration = Duration::from_secs(1);

/// What an owner says of a container to start, beside its request.
#[derive(Clone)]
pub(super) struct Order {
    pub(super) id: String,
    pub(super) limit: Duration,
    pub(super) leased: bool,
    pub(super) claimed: bool,
    pub(super) address: Ipv4Addr,
    pub(super) network: Network,
    pub(super) oom: OomPolicy,
    pub(super) label: Label,
    /// The container that was made for it ahead.
    pub(super) slot: Option<u64>,
}

/// A start that has not reported yet.
pub(super) struct Starting {
    pub(super) order: Order,
    pub(super) child: Pid,
    pub(super) report: OwnedFd,
    bytes: Vec<u8>,
    pub(super) began: Instant,
    pub(super) deadline: Instant,
    /// Since when it is being killed.
    timed_out: Option<Instant>,
    /// The owner has been told already; what is left of it does not go.
    pub(super) told: bool,
    /// The start process has ended; its report must be complete then.
    pub(super) child_gone: bool,
    /// Who wanted it has left.
    pub(super) orphan: bool,
    group: Group,
    held: Held,
}

impl Starting {
    /// One whose start process was forked when it says.
    pub(super) fn new(order: Order, group: Group, forked: Forked, kept: Kept, began: Instant) -> Self {
        let Forked { child, report, stdout, stderr, network } = forked;
        let held = Held { stdout, stderr, network, _kept: kept };
        Self {
            child,
            report,
            bytes: Vec::new(),
            began,
            deadline: Instant::now() + order.limit,
            timed_out: None,
            told: false,
            child_gone: false,
            orphan: false,
            group,
            held,
            order,
        }
    }
}

/// The descriptors that come with an order.
pub(super) struct Given {
    request: OwnedFd,
    network: OwnedFd,
    lease: Option<OwnedFd>,
    claim: Option<OwnedFd>,
    /// The group of a recording too.
    disks: Vec<OwnedFd>,
}

impl Given {
    fn new(order: &Order, fds: Vec<OwnedFd>) -> Result<Self> {
        let mut fds = fds.into_iter();
        let (Some(request), Some(network)) = (fds.next(), fds.next()) else {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the start of {} came without its descriptors", order.id),
            ));
        };
        let lease = if order.leased { fds.next() } else { None };
        let claim = if order.claimed { fds.next() } else { None };
        Ok(Self { request, network, lease, claim, disks: fds.collect() })
    }

    pub(super) fn kept(self) -> Kept {
        (self.lease, self.claim)
    }

    /// What a start process needs of them, where it has its network already.
    pub(super) fn for_start_process(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(&self.request).chain(&self.disks).map(AsFd::as_fd)
    }
}

/// What the keeper holds of a container besides its process.
pub(super) struct Held {
    pub(super) stdout: (OwnedFd, OwnedFd),
    pub(super) stderr: (OwnedFd, OwnedFd),
    /// Keeps the namespace for a daemon that connects anew.
    pub(super) network: OwnedFd,
    _kept: Kept,
}

/// The lease that keeps the image in the store, and the claim that keeps others from the ids of its user
/// namespace.
type Kept = (Option<OwnedFd>, Option<OwnedFd>);

pub(super) struct Running {
    pub(super) order: Order,
    pub(super) pidfd: OwnedFd,
    pub(super) since: Instant,
    /// The owner has said that it needs nothing more of it.
    pub(super) forgotten: bool,
    pub(super) held: Held,
    pub(super) group: Group,
    /// The start process while it is still in the group, and the limit of processes for after that.
    pub(super) starter: Option<(Pid, u32)>,
}

impl Running {
    /// The start process has been waited for.
    pub(super) fn starter_left(&mut self) {
        if let Some((_, pids)) = self.starter.take().filter(|(_, pids)| *pids > 0) {
            // If the group is gone, so is the container.
            let _ = self.group.limit_processes(pids);
        }
    }

    pub(super) fn instance(&self, pid: Pid) -> Instance {
        Instance {
            id: self.order.id.clone(),
            pid: pid.as_raw_nonzero().get(),
            address: self.order.address,
            network: self.order.network,
            label: self.order.label.clone(),
            ran_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            ended: None,
        }
    }
}

impl Server {
    pub(super) fn begin(&mut self, order: Order, fds: Vec<OwnedFd>) {
        let group = self.group.child(&order.id);
        let given = Given::new(&order, fds);
        // What a former container of that name left is not removed under the new one's feet.
        let given =
            given.and_then(|given| self.make_ready().and_then(|()| self.free_name(&group)).map(|()| given));
        let given = match given {
            Ok(given) => given,
            Err(error) => {
                self.let_slot_go(order.slot);
                return self.failed(order, false, Failure::from(&error));
            }
        };
        self.discard(&group);
        match self.hand_over(&order, &group, given).or_else(|given| self.begin_anew(&order, &group, given)) {
            Ok(starting) => {
                breakpoint::reach("keeper-forked");
                self.starting.push(starting);
            }
            Err(e) => {
                self.retire(group);
                self.failed(order, false, Failure::from(&e));
            }
        }
    }

    /// A start from the beginning.
    fn begin_anew(&self, order: &Order, group: &Group, given: Given) -> Result<Starting> {
        let began = Instant::now();
        let Given { request, network, lease, claim, disks } = given;
        let (own, its) = order_sockets()?;
        // It waits in the socket.
        let fds: Vec<_> = disks.iter().map(AsFd::as_fd).collect();
        send(&own, &HandOver { group: group.name().to_owned() }, &fds)
            .map_err(|e| Error::host("cannot hand over a start's disks", e))?;
        drop(disks);
        let forked = self.fork(group, Some(request), its, network)?;
        Ok(Starting::new(order.clone(), group.clone(), forked, (lease, claim), began))
    }

    /// Makes the group of the run ready for those of its containers, once.
    pub(super) fn make_ready(&mut self) -> Result<()> {
        if !self.ready {
            self.group.prepare()?;
            self.ready = true;
        }
        Ok(())
    }

    /// Makes sure that nothing is left of a former container of that name.
    fn free_name(&mut self, group: &Group) -> Result<()> {
        let same = |removing: &Removing| removing.group.is(group);
        let Some(since) = self.removing.iter().filter(|r| same(r)).map(|r| r.since).min() else {
            return Ok(());
        };
        // What hangs is not waited for each time.
        if since.elapsed() < NAME_PATIENCE {
            let _ = group.kill(NAME_PATIENCE).and(group.remove(NAME_PATIENCE));
        }
        self.removing.retain(|removing| !same(removing) || !matches!(removing.group.try_remove(), Ok(true)));
        if !self.removing.iter().any(same) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Host, "processes of a former container of that name do not end")
            .advise("a filesystem hangs; see `skiff doctor`, or use another name"))
    }

    /// Reads what starts report, and settles those that have.
    pub(super) fn read_reports(&mut self) {
        let mut index = 0;
        while let Some(starting) = self.starting.get_mut(index) {
            if read_to_end(&starting.report, &mut starting.bytes) {
                let starting = self.starting.swap_remove(index);
                self.settle(starting);
                continue;
            }
            if starting.child_gone {
                // It died before it could report; an init that it left behind holds the pipe.
                starting.group.kill_once();
            }
            index += 1;
        }
    }

    fn settle(&mut self, starting: Starting) {
        breakpoint::reach("keeper-told");
        let report = serde_json::from_slice::<Report>(&starting.bytes);
        if !starting.child_gone {
            // It has closed its end of the pipe as its last act; one that is stopped stops no other.
            // Nobody waits for its end: the kernel takes milliseconds to tear its mounts down.
            let _ = kill_process(starting.child, Signal::KILL);
            self.leaving.push(starting.child);
        }
        let failure = match report {
            Ok(Report::Started { pid, pids, steps }) if starting.timed_out.is_none() => {
                match Pid::from_raw(pid).map(|p| (p, pidfd_open(p, PidfdFlags::empty()))) {
                    Some((pid, Ok(pidfd))) => return self.started(starting, (pid, pidfd), pids, steps),
                    _ => Failure::from(&Error::new(
                        ErrorKind::Internal,
                        "a started container cannot be watched",
                    )),
                }
            }
            Ok(Report::Failed(failure)) if starting.timed_out.is_none() => failure,
            _ if starting.timed_out.is_some() => Failure::from(&timed_out(&starting.order)),
            _ if starting.group.oom_kills() > 0 => Failure::from(&out_of_memory(&starting.order)),
            _ => Failure::from(
                &Error::new(
                    ErrorKind::KeeperLost,
                    format!("the process that started {} died", starting.order.id),
                )
                .advise("start it again"),
            ),
        };
        self.retire(starting.group);
        if !starting.told {
            self.failed(starting.order, starting.orphan, failure);
        }
    }

    fn started(&mut self, starting: Starting, init: (Pid, OwnedFd), pids: u32, steps: SpawnSteps) {
        let (pid, pidfd) = init;
        let held = &starting.held;
        let copies = (pidfd.try_clone(), held.stdout.0.try_clone(), held.stderr.0.try_clone());
        let (Ok(copy), Ok(stdout), Ok(stderr)) = copies else {
            let error = Error::host("cannot copy the output pipes", rustix::io::Errno::MFILE);
            self.retire(starting.group);
            return self.failed(starting.order, starting.orphan, Failure::from(&error));
        };
        let (order, raw) = (starting.order, pid.as_raw_nonzero().get());
        if let Some(owner) = self.peers.owner() {
            if starting.orphan {
                owner.tales.push_back(Tale::Adopted(order.id.clone(), raw));
            } else {
                let message = FromKeeper::Started { id: order.id.clone(), pid: raw, steps };
                owner.post(message, vec![copy, stdout, stderr]);
            }
        }
        let since = Instant::now();
        let (held, group, starter) = (starting.held, starting.group, Some((starting.child, pids)));
        self.oom.watch(pid, group.clone(), order.oom);
        let mut running = Running { order, pidfd, since, forgotten: false, held, group, starter };
        if starting.child_gone {
            running.starter_left();
        }
        self.running.insert(pid, running);
    }

    /// Tells the owner of a start that failed, or keeps that for the next one.
    fn failed(&mut self, order: Order, orphan: bool, failure: Failure) {
        if !orphan {
            if let Some(owner) = self.peers.owner() {
                owner.post(FromKeeper::Failed { id: order.id, failure }, Vec::new());
            }
            return;
        }
        if let Some(owner) = self.peers.owner() {
            owner.tales.push_back(Tale::Failed(order.id.clone()));
        }
        self.records.failed(FailedStart { id: order.id, label: order.label, failure });
    }

    /// Ends starts whose deadline has passed.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let mut late = Vec::new();
        for starting in self.starting.iter_mut().filter(|s| s.deadline <= now) {
            let since = *starting.timed_out.get_or_insert(now);
            // Looked at again soon, in case a process was just being forked.
            starting.deadline = now + interval(since, now).max(Duration::from_millis(10));
            let _ = kill_process(starting.child, Signal::KILL);
            starting.group.kill_once();
            if now - since >= DEATH_PATIENCE && !starting.told {
                starting.told = true;
                late.push((starting.order.clone(), starting.orphan));
            }
        }
        for (order, orphan) in late {
            let error =
                timed_out(&order).because("its processes wait in the kernel and die when they leave it");
            self.failed(order, orphan, Failure::from(&error));
        }
    }
}

fn timed_out(order: &Order) -> Error {
    Error::new(
        ErrorKind::StartTimedOut,
        format!("container {} was not running within {} ms", order.id, order.limit.as_millis()),
    )
    .advise("the host is overloaded, or a filesystem hangs; see `skiff doctor`")
}

fn out_of_memory(order: &Order) -> Error {
    Error::new(
        ErrorKind::LimitExceeded,
        format!("the memory of container {} ran out before its command was executed", order.id),
    )
    .advise("give it more memory")
}

/// Reads what is there; true at the end (or past the bound).
pub(super) fn read_to_end(pipe: &OwnedFd, bytes: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 4096];
    loop {
        match rustix::io::read(pipe, &mut chunk) {
            Ok(0) => return true,
            Ok(read) => {
                bytes.extend_from_slice(&chunk[..read]);
                if bytes.len() > MAX_REPORT {
                    return true;
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
