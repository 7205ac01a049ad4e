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
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, Rlimit, Signal, WaitOptions, WaitStatus, kill_process, set_parent_process_death_signal, wait,
    waitpid,
};

use super::ahead::Prepared;
use super::oom::OomWatch;
use super::peers::{Peers, Tale};
use super::protocol::FromKeeper;
use super::records::{Ended, Records};
use super::sockets::Sockets;
use super::starts::{Running, Starting};
use crate::cgroup::Group;
use crate::rootfs::quota::Area;
use crate::rundir::RunDir;
use crate::sys::{ForkResult, close_all_except, exit_now, fork_single_threaded};
use crate::{Exit, Result, breakpoint};

/// How long the processes of a removed cgroup may take to leave it.
const REMOVE_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried again to kill and remove what does not go, at least.
const MAX_INTERVAL: Duration = Duration::from_millis(500);
/// How often it is looked for dead children that nobody waits for.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const REMOVE_INTERVAL: Duration = Duration::from_millis(1);

pub(super) fn timespec(duration: Duration) -> rustix::event::Timespec {
    rustix::event::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// A group that some process has not left yet.
pub(super) struct Removing {
    pub(super) group: Group,
    pub(super) since: Instant,
    next: Instant,
}

/// How long to wait until the next attempt at something that is being tried since then.
pub(super) fn interval(since: Instant, now: Instant) -> Duration {
    ((now - since) / 8).clamp(REMOVE_INTERVAL, MAX_INTERVAL)
}

pub(super) struct Server {
    pub(super) run: RunDir,
    pub(super) lock: OwnedFd,
    /// The limit of descriptors that the keeper was started with, and containers have by default.
    pub(super) nofile: Rlimit,
    /// Whether it goes on without an owner.
    pub(super) lasting: bool,
    pub(super) group: Group,
    /// Whether groups of containers can be made in that.
    pub(super) ready: bool,
    /// Where directories with quotas are, if this run has them.
    pub(super) area: Option<Area>,
    pub(super) peers: Peers,
    /// Containers that wait for an order.
    pub(super) prepared: Vec<Prepared>,
    pub(super) made_ahead: u64,
    pub(super) starting: Vec<Starting>,
    pub(super) running: HashMap<Pid, Running>,
    pub(super) records: Records,
    pub(super) sockets: Sockets,
    /// Start processes that have reported and are ending.
    pub(super) leaving: Vec<Pid>,
    pub(super) removing: Vec<Removing>,
    pub(super) oom: OomWatch,
    /// Children that are neither start processes nor known inits, and since when that is known.
    pub(super) strangers: HashMap<Pid, Instant>,
    next_look: Instant,
    pub(super) stopping: bool,
}

impl Server {
    pub(super) fn new(run: RunDir, lock: OwnedFd, nofile: Rlimit, lasting: bool, peers: Peers) -> Self {
        Self {
            group: run.group(),
            ready: false,
            area: Area::hold(&run.writable_link()),
            run,
            lock,
            nofile,
            lasting,
            peers,
            prepared: Vec::new(),
            made_ahead: 0,
            starting: Vec::new(),
            running: HashMap::new(),
            records: Records::default(),
            sockets: Sockets::default(),
            leaving: Vec::new(),
            removing: Vec::new(),
            oom: OomWatch::new(),
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
            self.attend_prepared();
            self.read_reports();
            // Before deaths are looked at, so that it is known what explains them.
            self.oom.attend();
            self.reap();
            self.expire();
            self.remove();
            self.peers.accept();
            self.take_messages();
            if self.peers.sweep() {
                self.owner_left();
            }
            self.sockets.expire();
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
            && self.sockets.is_empty()
    }

    /// Sleeps until there is something to do.
    fn wait(&self, signals: &OwnedFd) {
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        self.peers.poll_fds(&mut fds);
        fds.extend(self.starting.iter().map(|s| PollFd::new(&s.report, PollFlags::IN)));
        fds.extend(self.prepared.iter().map(Prepared::polled));
        fds.extend(self.oom.descriptor().map(|alarms| PollFd::new(alarms, PollFlags::IN)));
        let now = Instant::now();
        let deadlines = self.starting.iter().map(|s| s.deadline).chain(self.peers.next_deadline());
        let deadlines = deadlines.chain(self.removing.iter().map(|removing| removing.next));
        let deadlines = deadlines.chain(self.sockets.until());
        let deadlines = deadlines.chain(self.prepared.iter().filter_map(Prepared::deadline));
        let deadlines = deadlines.map(|deadline| deadline.saturating_duration_since(now));
        let mut timeout = deadlines.chain(self.oom.timeout(now)).min();
        if self.starting.iter().any(|s| s.child_gone && !s.told) {
            timeout = Some(timeout.map_or(REMOVE_INTERVAL, |t| t.min(REMOVE_INTERVAL)));
        }
        // An interrupted or failed poll only means that everything is looked at now.
        let _ = poll(&mut fds, timeout.map(timespec).as_ref());
    }

    /// Collects ended processes. While a start is under way, only processes that are known are
    /// collected: another may be an init whose report has not come yet.
    fn reap(&mut self) {
        for starting in self.starting.iter_mut().filter(|s| !s.child_gone) {
            starting.child_gone = matches!(waitpid(Some(starting.child), WaitOptions::NOHANG), Ok(Some(_)));
        }
        let mut left = Vec::new();
        self.leaving.retain(|pid| {
            let lives = matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None));
            if !lives {
                left.push(*pid);
            }
            lives
        });
        left.into_iter().for_each(|starter| self.starter_left(starter));
        let known: Vec<Pid> = self.running.keys().copied().collect();
        for pid in known {
            if let Ok(Some((_, status))) = waitpid(Some(pid), WaitOptions::NOHANG) {
                self.ended(pid, status);
            }
        }
        if self.knows_all_inits() {
            // All that is dead is collected here, so their numbers may be given anew.
            self.strangers.clear();
        } else {
            self.reap_strangers();
        }
        while self.knows_all_inits() {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    self.prepared_ended(pid);
                    // Its number may be given to another child from now on.
                    self.leaving.retain(|leaving| *leaving != pid);
                    self.starter_left(pid);
                    self.ended(pid, status);
                }
                _ => break,
            }
        }
    }

    fn knows_all_inits(&self) -> bool {
        self.starting.is_empty() && self.prepared.iter().all(|prepared| prepared.unknown_since().is_none())
    }

    /// A start process has left the group of its container, if it is that of one that runs.
    fn starter_left(&mut self, pid: Pid) {
        let its = |running: &&mut Running| running.starter.is_some_and(|(starter, _)| starter == pid);
        if let Some(running) = self.running.values_mut().find(its) {
            running.starter_left();
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
        let unknown = self.prepared.iter().filter_map(Prepared::unknown_since);
        let oldest = self.starting.iter().map(|s| s.began).chain(unknown).min().unwrap_or(now);
        let starting: Vec<Pid> = self.starting.iter().map(|s| s.child).collect();
        let children = children();
        self.strangers.retain(|pid, seen| {
            let prepared = self.prepared.iter().any(|prepared| prepared.is_process(*pid));
            let known = self.running.contains_key(pid) || prepared || !children.contains(pid);
            if !known && *seen < oldest {
                return !matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(Some(_)));
            }
            !known
        });
        for pid in children {
            let prepared = self.prepared.iter().any(|prepared| prepared.is_process(pid));
            let known = starting.contains(&pid) || self.leaving.contains(&pid) || prepared;
            if !known && !self.running.contains_key(&pid) {
                self.strangers.entry(pid).or_insert(now);
            }
        }
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) {
        let Some(running) = self.running.remove(&pid) else { return };
        breakpoint::reach("keeper-reaped");
        let stats = running.group.stats();
        let (code, signal) = (status.exit_status(), status.terminating_signal());
        let exit = Exit { code, signal, oom_killed: self.oom.explains(pid, signal, stats.oom_kills) };
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

    /// Removes a group now, or as soon as its last process has left.
    pub(super) fn retire(&mut self, group: Group) {
        // Mostly there is nobody left to kill.
        if matches!(group.try_remove(), Ok(true)) {
            self.discard(&group);
        } else {
            group.kill_once();
            let now = Instant::now();
            self.removing.push(Removing { group, since: now, next: now + REMOVE_INTERVAL });
        }
    }

    /// Has what a container wrote to directories with quotas removed, by a process of its own: there
    /// may be as many files as its cap allows.
    pub(super) fn discard(&mut self, group: &Group) {
        let Some(area) = &mut self.area else { return };
        let Some(taken) = area.take(group.name()) else { return };
        match fork_single_threaded() {
            Ok(ForkResult::Parent(child)) => self.leaving.push(child),
            // Left to the removal of the whole run.
            Err(_) => {}
            Ok(ForkResult::Child) => {
                // Without the keeper it is the next start's, which must not meet this process.
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                // Sockets and pipes are to be seen to end when the keeper closes them.
                let removed = close_all_except(&[area.as_raw_fd()]).and_then(|()| area.remove_taken(&taken));
                exit_now(i32::from(removed.is_err()))
            }
        }
    }

    fn remove(&mut self) {
        let now = Instant::now();
        let mut removed = Vec::new();
        self.removing.retain_mut(|removing| {
            if now < removing.next {
                return true;
            }
            removing.group.kill_once();
            removing.next = now + interval(removing.since, now);
            let gone = matches!(removing.group.try_remove(), Ok(true));
            if gone {
                removed.push(removing.group.clone());
            }
            !gone
        });
        removed.iter().for_each(|group| self.discard(group));
    }

    /// Kills what still runs and removes everything of the run.
    fn clean(mut self) -> Result<()> {
        breakpoint::reach("keeper-cleans");
        for starting in &self.starting {
            let _ = kill_process(starting.child, Signal::KILL);
        }
        for prepared in std::mem::take(&mut self.prepared) {
            let _ = kill_process(prepared.child(), Signal::KILL);
        }
        let killed = self.group.kill(REMOVE_PATIENCE);
        self.starting.clear();
        for child in self.leaving.drain(..) {
            // One may be removing what the whole run's removal is about to remove.
            let _ = kill_process(child, Signal::KILL);
            let _ = waitpid(Some(child), WaitOptions::empty());
        }
        self.reap();
        self.running.clear();
        breakpoint::reach("keeper-killed");
        let removed = self.run.remove();
        killed.and(removed)
    }
}

/// The children of this process, dead ones too; none where the kernel does not tell.
fn children() -> Vec<Pid> {
    let text = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).filter_map(Pid::from_raw).collect()
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
