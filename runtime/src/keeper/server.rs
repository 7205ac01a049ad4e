//! The keeper's side: one thread, one loop, no async runtime.
//!
//! ```text
//! Start ──► Starting ──report──► Running ──exit──► Removing ──► gone
//!               └──failure, deadline──────────────────▲
//! ```
//!
//! When the owner's connection closes, the keeper kills all containers, removes what the run made,
//! and ends. That of a lasting run goes on without an owner as long as there is something to keep:
//! containers, or ends that no owner has taken. What its peers say is in `requests`.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open,
    set_parent_process_death_signal, setrlimit, wait, waitpid,
};

use super::peers::{Peers, Tale};
use super::protocol::{Failure, FromKeeper, Instance, Label, Report};
use super::records::{Ended, FailedStart, Records};
use super::spawn::{self, Inputs};
use crate::cgroup::Group;
use crate::rundir::RunDir;
use crate::sys::{ForkResult, close_all_except, exit_now, fork_single_threaded};
use crate::{Error, ErrorKind, Exit, Result};

/// Report bytes kept of one start.
const MAX_REPORT: usize = 64 << 10;
/// How long the processes of a removed cgroup may take to leave it.
const REMOVE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the processes of a start that was killed may take to die before its owner is told. Those
/// that wait for a filesystem (state D) die when it answers, and nobody waits for that.
const DEATH_PATIENCE: Duration = Duration::from_millis(500);
/// How often it is tried again to kill and remove what does not go, at least.
const MAX_INTERVAL: Duration = Duration::from_millis(500);
/// How long a start waits for the processes of a former container of its name.
const NAME_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked for dead children that nobody waits for.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const REMOVE_INTERVAL: Duration = Duration::from_millis(1);

pub(super) fn timespec(duration: Duration) -> rustix::event::Timespec {
    rustix::event::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// What an owner says of a container to start, beside its request.
#[derive(Clone)]
pub(super) struct Order {
    pub(super) id: String,
    pub(super) limit: Duration,
    pub(super) leased: bool,
    pub(super) address: Ipv4Addr,
    pub(super) label: Label,
}

/// A start that has not reported yet.
pub(super) struct Starting {
    pub(super) order: Order,
    child: Pid,
    report: OwnedFd,
    bytes: Vec<u8>,
    began: Instant,
    deadline: Instant,
    /// Since when it is being killed.
    timed_out: Option<Instant>,
    /// The owner has been told already; what is left of it does not go.
    told: bool,
    /// The start process has ended; its report must be complete then.
    child_gone: bool,
    /// Who wanted it has left.
    pub(super) orphan: bool,
    group: Group,
    held: Held,
}

impl Starting {
    fn kill_once(&self) {
        self.group.starter().kill_once();
        self.group.kill_once();
    }
}

/// What the keeper holds of a container besides its process.
pub(super) struct Held {
    pub(super) stdout: (OwnedFd, OwnedFd),
    pub(super) stderr: (OwnedFd, OwnedFd),
    /// Keeps the namespace for a daemon that connects anew.
    pub(super) network: OwnedFd,
    /// Keeps the image in the store; the start process closes its copy.
    _lease: Option<OwnedFd>,
}

pub(super) struct Running {
    pub(super) order: Order,
    pub(super) pidfd: OwnedFd,
    pub(super) since: Instant,
    /// The owner has said that it needs nothing more of it.
    pub(super) forgotten: bool,
    pub(super) held: Held,
    group: Group,
}

impl Running {
    pub(super) fn instance(&self, pid: Pid) -> Instance {
        Instance {
            id: self.order.id.clone(),
            pid: pid.as_raw_nonzero().get(),
            address: self.order.address,
            label: self.order.label.clone(),
            ran_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            ended: None,
        }
    }
}

/// A group that some process has not left yet.
struct Removing {
    group: Group,
    since: Instant,
    next: Instant,
}

/// How long to wait until the next attempt at something that is being tried since then.
fn interval(since: Instant, now: Instant) -> Duration {
    ((now - since) / 8).clamp(REMOVE_INTERVAL, MAX_INTERVAL)
}

pub(super) struct Server {
    pub(super) run: RunDir,
    pub(super) lock: OwnedFd,
    /// The limit of descriptors that the keeper was started with, and containers have by default.
    nofile: Rlimit,
    /// Whether it goes on without an owner.
    pub(super) lasting: bool,
    group: Group,
    pub(super) peers: Peers,
    pub(super) starting: Vec<Starting>,
    pub(super) running: HashMap<Pid, Running>,
    pub(super) records: Records,
    /// Start processes that have reported and are ending.
    leaving: Vec<Pid>,
    removing: Vec<Removing>,
    /// Children that are neither start processes nor known inits, and since when that is known.
    strangers: HashMap<Pid, Instant>,
    next_look: Instant,
    pub(super) stopping: bool,
}

impl Server {
    pub(super) fn new(run: RunDir, lock: OwnedFd, nofile: Rlimit, lasting: bool, peers: Peers) -> Self {
        Self {
            group: run.group(),
            run,
            lock,
            nofile,
            lasting,
            peers,
            starting: Vec::new(),
            running: HashMap::new(),
            records: Records::default(),
            leaving: Vec::new(),
            removing: Vec::new(),
            strangers: HashMap::new(),
            next_look: Instant::now(),
            stopping: false,
        }
    }

    /// Keeps containers until there is nobody to keep them for, or the owner asks for the end; then
    /// cleans.
    pub(super) fn serve(mut self, signals: SignalFd) -> Result<()> {
        self.run(signals);
        self.clean()
    }

    fn run(&mut self, signals: SignalFd) {
        let signals = OwnedFd::from(signals);
        while !self.stopping {
            self.flush();
            self.wait(&signals);
            if drain(&signals) {
                self.asked_to_end();
            }
            self.read_reports();
            self.reap();
            self.expire();
            self.remove();
            self.peers.accept();
            self.take_messages();
            if self.peers.sweep() {
                self.owner_left();
            }
            self.stopping |= self.is_useless();
        }
        self.flush();
    }

    /// By SIGTERM. A service manager sends it to a daemon and its keeper alike, so an owner decides.
    fn asked_to_end(&mut self) {
        self.stopping |= self.peers.owner().is_none();
    }

    /// Nobody who could ask for anything, and nothing to keep.
    fn is_useless(&mut self) -> bool {
        self.peers.owner().is_none()
            && !self.peers.awaits_hello()
            && self.starting.is_empty()
            && self.running.is_empty()
            && self.records.is_empty()
    }

    /// Sleeps until there is something to do.
    fn wait(&self, signals: &OwnedFd) {
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        self.peers.poll_fds(&mut fds);
        fds.extend(self.starting.iter().map(|s| PollFd::new(&s.report, PollFlags::IN)));
        let now = Instant::now();
        let deadlines = self.starting.iter().map(|s| s.deadline).chain(self.peers.next_deadline());
        let deadlines = deadlines.chain(self.removing.iter().map(|removing| removing.next));
        let mut timeout = deadlines.map(|deadline| deadline.saturating_duration_since(now)).min();
        if self.starting.iter().any(|s| s.child_gone && !s.told) {
            timeout = Some(timeout.map_or(REMOVE_INTERVAL, |t| t.min(REMOVE_INTERVAL)));
        }
        // An interrupted or failed poll only means that everything is looked at now.
        let _ = poll(&mut fds, timeout.map(timespec).as_ref());
    }

    pub(super) fn begin(&mut self, order: Order, fds: Vec<OwnedFd>) {
        let began = Instant::now();
        let group = self.group.child(&order.id);
        // What a former container of that name left is not removed under the new one's feet.
        if let Err(error) = self.free_name(&group) {
            return self.failed(order, false, Failure::from(&error));
        }
        match self.fork_start(&order, &group, fds) {
            Ok((child, report, held)) => {
                self.starting.push(Starting {
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
                });
            }
            Err(e) => {
                self.retire(group.starter());
                self.retire(group);
                self.failed(order, false, Failure::from(&e));
            }
        }
    }

    /// Makes sure that nothing is left of a former container of that name.
    fn free_name(&mut self, group: &Group) -> Result<()> {
        let starter = group.starter();
        let same = |removing: &Removing| removing.group.is(group) || removing.group.is(&starter);
        let Some(since) = self.removing.iter().filter(|r| same(r)).map(|r| r.since).min() else {
            return Ok(());
        };
        // What hangs is not waited for each time.
        if since.elapsed() < NAME_PATIENCE {
            let _ = group.remove(NAME_PATIENCE);
        }
        self.removing.retain(|removing| !same(removing) || !matches!(removing.group.try_remove(), Ok(true)));
        if !self.removing.iter().any(same) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Host, "processes of a former container of that name do not end")
            .advise("a filesystem hangs; see `skiff doctor`, or use another name"))
    }

    fn fork_start(&self, order: &Order, group: &Group, fds: Vec<OwnedFd>) -> Result<(Pid, OwnedFd, Held)> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::host("cannot make a pipe", e));
        let mut fds = fds.into_iter();
        let (Some(request), Some(network)) = (fds.next(), fds.next()) else {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the start of {} came without its descriptors", order.id),
            ));
        };
        let lease = if order.leased { fds.next() } else { None };
        let disks: Vec<_> = fds.collect();
        let (stdout, stderr, (report, report_write)) = (pipe()?, pipe()?, pipe()?);
        rustix::io::ioctl_fionbio(&report, true).map_err(|e| Error::host("cannot set up a pipe", e))?;
        let keeper = rustix::process::getpid();
        group.create()?;
        group.starter().create()?;
        match fork_single_threaded().map_err(|e| Error::host("cannot fork", e))? {
            ForkResult::Parent(child) => Ok((child, report, Held { stdout, stderr, network, _lease: lease })),
            ForkResult::Child => {
                // Lowering it cannot fail.
                let _ = setrlimit(Resource::Nofile, self.nofile);
                let inputs = Inputs {
                    keeper,
                    group: group.clone(),
                    mount_point: self.run.mount_point(),
                    request,
                    network,
                    disks,
                    stdout: stdout.1,
                    stderr: stderr.1,
                    report: report_write,
                };
                start_process(inputs)
            }
        }
    }

    /// Reads what starts report, and settles those that have.
    fn read_reports(&mut self) {
        let mut index = 0;
        while let Some(starting) = self.starting.get_mut(index) {
            if read_to_end(&starting.report, &mut starting.bytes) {
                let starting = self.starting.swap_remove(index);
                self.settle(starting);
                continue;
            }
            if starting.child_gone {
                // It died before it could report; an init that it left behind holds the pipe.
                starting.kill_once();
            }
            index += 1;
        }
    }

    fn settle(&mut self, starting: Starting) {
        let report = serde_json::from_slice::<Report>(&starting.bytes);
        if !starting.child_gone {
            // It has closed its end of the pipe as its last act; one that is stopped stops no other.
            // Nobody waits for its end: the kernel takes milliseconds to tear its mounts down.
            let _ = kill_process(starting.child, Signal::KILL);
            self.leaving.push(starting.child);
        }
        self.retire(starting.group.starter());
        let failure = match report {
            Ok(Report::Started { pid, steps }) if starting.timed_out.is_none() => {
                match Pid::from_raw(pid).map(|p| (p, pidfd_open(p, PidfdFlags::empty()))) {
                    Some((pid, Ok(pidfd))) => return self.started(starting, pid, pidfd, steps),
                    _ => Failure::from(&Error::new(
                        ErrorKind::Internal,
                        "a started container cannot be watched",
                    )),
                }
            }
            Ok(Report::Failed(failure)) if starting.timed_out.is_none() => failure,
            _ if starting.timed_out.is_some() => Failure::from(&timed_out(&starting.order)),
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

    fn started(&mut self, starting: Starting, pid: Pid, pidfd: OwnedFd, steps: super::protocol::SpawnSteps) {
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
        let (held, group) = (starting.held, starting.group);
        self.running.insert(pid, Running { order, pidfd, since, forgotten: false, held, group });
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

    /// Collects ended processes. While a start is under way, only processes that are known are
    /// collected: another may be an init whose report has not come yet.
    fn reap(&mut self) {
        for starting in self.starting.iter_mut().filter(|s| !s.child_gone) {
            starting.child_gone = matches!(waitpid(Some(starting.child), WaitOptions::NOHANG), Ok(Some(_)));
        }
        let lives = |pid: &Pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None));
        self.leaving.retain(lives);
        let known: Vec<Pid> = self.running.keys().copied().collect();
        for pid in known {
            if let Ok(Some((_, status))) = waitpid(Some(pid), WaitOptions::NOHANG) {
                self.ended(pid, status);
            }
        }
        if self.starting.is_empty() {
            // All that is dead is collected here, so their numbers may be given anew.
            self.strangers.clear();
        } else {
            self.reap_strangers();
        }
        while self.starting.is_empty() {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    // Its number may be given to another child from now on.
                    self.leaving.retain(|leaving| *leaving != pid);
                    self.ended(pid, status);
                }
                _ => break,
            }
        }
    }

    /// Collects what libcontainer's intermediate processes left, also where there is always some
    /// start under way: whoever was dead before the oldest of them began is nobody's init.
    fn reap_strangers(&mut self) {
        let now = Instant::now();
        if now < self.next_look {
            return;
        }
        self.next_look = now + LOOK_INTERVAL;
        let oldest = self.starting.iter().map(|s| s.began).min().unwrap_or(now);
        let starting: Vec<Pid> = self.starting.iter().map(|s| s.child).collect();
        let children = children();
        self.strangers.retain(|pid, seen| {
            let known = self.running.contains_key(pid) || !children.contains(pid);
            if !known && *seen < oldest {
                return !matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(Some(_)));
            }
            !known
        });
        for pid in children {
            if !starting.contains(&pid) && !self.leaving.contains(&pid) && !self.running.contains_key(&pid) {
                self.strangers.entry(pid).or_insert(now);
            }
        }
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) {
        let Some(running) = self.running.remove(&pid) else { return };
        let exit = Exit {
            code: status.exit_status(),
            signal: status.terminating_signal(),
            oom_killed: running.group.oom_kills() > 0,
        };
        let stats = running.group.stats();
        let mut instance = running.instance(pid);
        let (id, raw) = (instance.id.clone(), instance.pid);
        instance.ended = Some((exit, stats));
        self.retire(running.group);
        if self.lasting && !running.forgotten {
            self.records.ended(Ended {
                instance,
                stdout: running.held.stdout.0,
                stderr: running.held.stderr.0,
            });
        }
        // An owner that has not been told of the container yet is told of both at once.
        let untold = |tale: &Tale| matches!(tale, Tale::Adopted(_, pid) if *pid == raw);
        if let Some(owner) = self.peers.owner().filter(|owner| !owner.tales.iter().any(untold)) {
            owner.post(FromKeeper::Exited { id, pid: raw, exit, stats }, Vec::new());
        }
    }

    /// Ends starts whose deadline has passed.
    fn expire(&mut self) {
        let now = Instant::now();
        let mut late = Vec::new();
        for starting in self.starting.iter_mut().filter(|s| s.deadline <= now) {
            let since = *starting.timed_out.get_or_insert(now);
            // Looked at again soon, in case a process was just being forked.
            starting.deadline = now + interval(since, now).max(Duration::from_millis(10));
            let _ = kill_process(starting.child, Signal::KILL);
            starting.kill_once();
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

    /// Removes a group now, or as soon as its last process has left.
    fn retire(&mut self, group: Group) {
        group.kill_once();
        if !matches!(group.try_remove(), Ok(true)) {
            let now = Instant::now();
            self.removing.push(Removing { group, since: now, next: now + REMOVE_INTERVAL });
        }
    }

    fn remove(&mut self) {
        let now = Instant::now();
        self.removing.retain_mut(|removing| {
            if now < removing.next {
                return true;
            }
            removing.group.kill_once();
            removing.next = now + interval(removing.since, now);
            !matches!(removing.group.try_remove(), Ok(true))
        });
    }

    /// Kills what still runs and removes everything of the run.
    fn clean(mut self) -> Result<()> {
        for starting in &self.starting {
            let _ = kill_process(starting.child, Signal::KILL);
        }
        let killed = self.group.kill(REMOVE_PATIENCE);
        self.starting.clear();
        self.reap();
        self.running.clear();
        let removed = self.run.remove();
        killed.and(removed)
    }
}

/// The child's side of a fork: never returns.
fn start_process(inputs: Inputs) -> ! {
    // First of all: until the descriptors are closed, it holds the run's lock and the owner's socket.
    // (Whether the keeper has died before is looked at later.)
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let mut keep: Vec<i32> = inputs.disks.iter().map(AsRawFd::as_raw_fd).collect();
    for fd in [&inputs.request, &inputs.network, &inputs.stdout, &inputs.stderr, &inputs.report] {
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

fn timed_out(order: &Order) -> Error {
    Error::new(
        ErrorKind::StartTimedOut,
        format!("container {} was not running within {} ms", order.id, order.limit.as_millis()),
    )
    .advise("the host is overloaded, or a filesystem hangs; see `skiff doctor`")
}

/// The children of this process, dead ones too; none where the kernel does not tell.
fn children() -> Vec<Pid> {
    let text = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).filter_map(Pid::from_raw).collect()
}

/// Reads what is there; true at the end (or past the bound).
fn read_to_end(pipe: &OwnedFd, bytes: &mut Vec<u8>) -> bool {
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

/// Takes what signals there are; true when SIGTERM is among them. All are looked at by what they are
/// about, not by what they say.
fn drain(signals: &OwnedFd) -> bool {
    /// Bytes of `struct signalfd_siginfo`, which begins with the signal's number.
    const INFO: usize = 128;
    let mut buffer = [0; 8 * INFO];
    let mut term = false;
    while let Ok(read @ 1..) = rustix::io::read(signals, &mut buffer) {
        let number = |info: &[u8]| info.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
        term |= buffer[..read].chunks(INFO).any(|info| number(info) == Some(Signal::TERM.as_raw()));
    }
    term
}
