//! The keeper's side: one thread, one loop, no async runtime.
//!
//! ```text
//! Start ──► Starting ──report──► Running ──exit──► Removing ──► gone
//!               └──failure, deadline──────────────────▲
//! ```
//!
//! When the daemon's end of the socket closes, the keeper kills all containers, removes what the
//! run made, and ends.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, setrlimit,
    wait, waitpid,
};

use super::oom::OomWatch;
use super::protocol::{Failure, FromKeeper, Report, ToKeeper, receive, send};
use super::spawn::{self, Inputs};
use crate::cgroup::Group;
use crate::rundir::RunDir;
use crate::sys::{ForkResult, close_all_except, exit_now, fork_single_threaded};
use crate::{Error, ErrorKind, Exit, OomPolicy, Result};

/// Report bytes kept of one start.
const MAX_REPORT: usize = 64 << 10;
/// How long the processes of a removed cgroup may take to leave it.
const REMOVE_PATIENCE: Duration = Duration::from_secs(10);
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

/// A start that has not reported yet.
struct Starting {
    id: String,
    child: Pid,
    report: OwnedFd,
    bytes: Vec<u8>,
    began: Instant,
    deadline: Instant,
    limit: Duration,
    timed_out: bool,
    /// The start process has ended; its report must be complete then.
    child_gone: bool,
    group: Group,
    oom: OomPolicy,
    held: Held,
}

impl Starting {
    fn kill_once(&self) {
        self.group.starter().kill_once();
        self.group.kill_once();
    }
}

/// What the keeper holds of a container besides its process.
struct Held {
    stdout: (OwnedFd, OwnedFd),
    stderr: (OwnedFd, OwnedFd),
    /// Keeps the namespace for a daemon that connects anew.
    _network: OwnedFd,
    /// Keeps the image in the store; the start process closes its copy.
    _lease: Option<OwnedFd>,
}

struct Running {
    id: String,
    group: Group,
    _held: Held,
}

pub(super) struct Server {
    run: RunDir,
    _lock: OwnedFd,
    /// The limit of descriptors that the keeper was started with, and containers have by default.
    nofile: Rlimit,
    group: Group,
    starting: Vec<Starting>,
    running: HashMap<Pid, Running>,
    /// Start processes that have reported and are ending.
    leaving: Vec<Pid>,
    removing: Vec<(Group, Instant)>,
    oom: OomWatch,
    /// Children that are neither start processes nor known inits, and since when that is known.
    strangers: HashMap<Pid, Instant>,
    next_look: Instant,
    outbox: VecDeque<(FromKeeper, Vec<OwnedFd>)>,
    stopping: bool,
}

impl Server {
    pub(super) fn new(run: RunDir, lock: OwnedFd, nofile: Rlimit) -> Self {
        Self {
            group: run.group(),
            run,
            _lock: lock,
            nofile,
            starting: Vec::new(),
            running: HashMap::new(),
            leaving: Vec::new(),
            removing: Vec::new(),
            oom: OomWatch::new(),
            strangers: HashMap::new(),
            next_look: Instant::now(),
            outbox: VecDeque::new(),
            stopping: false,
        }
    }

    /// Keeps containers until the daemon is gone or asks for the end; then cleans.
    pub(super) fn serve(mut self, socket: &OwnedFd, signals: SignalFd) -> Result<()> {
        self.run(socket, signals);
        self.clean()
    }

    fn run(&mut self, socket: &OwnedFd, signals: SignalFd) {
        let signals = OwnedFd::from(signals);
        while !self.stopping {
            self.flush(socket);
            self.wait(socket, &signals);
            drain(&signals);
            self.read_reports();
            // Before deaths are looked at, so that it is known what explains them.
            self.oom.attend();
            self.reap();
            self.expire();
            self.remove();
            self.take_messages(socket);
        }
        self.flush(socket);
    }

    /// Sleeps until there is something to do.
    fn wait(&self, socket: &OwnedFd, signals: &OwnedFd) {
        let mut wanted = PollFlags::IN;
        if !self.outbox.is_empty() {
            wanted |= PollFlags::OUT;
        }
        let mut fds = vec![PollFd::new(socket, wanted), PollFd::new(signals, PollFlags::IN)];
        fds.extend(self.starting.iter().map(|s| PollFd::new(&s.report, PollFlags::IN)));
        fds.extend(self.oom.descriptor().map(|alarms| PollFd::new(alarms, PollFlags::IN)));
        let now = Instant::now();
        let deadlines = self.starting.iter().map(|s| s.deadline.saturating_duration_since(now));
        let mut timeout = deadlines.chain(self.oom.timeout(now)).min();
        if !self.removing.is_empty() || self.starting.iter().any(|s| s.child_gone) {
            timeout = Some(timeout.map_or(REMOVE_INTERVAL, |t| t.min(REMOVE_INTERVAL)));
        }
        // An interrupted or failed poll only means that everything is looked at now.
        let _ = poll(&mut fds, timeout.map(timespec).as_ref());
    }

    fn take_messages(&mut self, socket: &OwnedFd) {
        loop {
            match receive::<ToKeeper>(socket) {
                Ok(Some((ToKeeper::Start { id, deadline_ms, leased, oom }, fds))) => {
                    self.begin(id, deadline_ms, leased, oom, fds);
                }
                Ok(Some((ToKeeper::Configure { .. }, _))) => {}
                Ok(None | Some((ToKeeper::Shutdown, _))) => {
                    self.stopping = true;
                    return;
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    return;
                }
                Err(_) => {
                    // Without a daemon that can be understood there is nobody to keep for.
                    self.stopping = true;
                    return;
                }
            }
        }
    }

    fn begin(&mut self, id: String, deadline_ms: u64, leased: bool, oom: OomPolicy, fds: Vec<OwnedFd>) {
        let began = Instant::now();
        let group = self.group.child(&id);
        self.finish_removing(&group);
        self.finish_removing(&group.starter());
        match self.fork_start(&id, &group, leased, fds) {
            Ok((child, report, held)) => {
                let limit = Duration::from_millis(deadline_ms);
                self.starting.push(Starting {
                    id,
                    child,
                    report,
                    bytes: Vec::new(),
                    began,
                    deadline: Instant::now() + limit,
                    limit,
                    timed_out: false,
                    child_gone: false,
                    group,
                    oom,
                    held,
                });
            }
            Err(e) => {
                self.retire(group.starter());
                self.retire(group);
                self.outbox.push_back((FromKeeper::Failed { id, failure: Failure::from(&e) }, Vec::new()));
            }
        }
    }

    /// What a former container of the name left is not removed under the new one's feet; and its
    /// group is made anew: limits, counts and a freeze are its own.
    fn finish_removing(&mut self, group: &Group) {
        if self.removing.iter().any(|(removed, _)| removed.is(group)) {
            let _ = group.kill(NAME_PATIENCE).and(group.remove(NAME_PATIENCE));
            self.removing.retain(|(removed, _)| !removed.is(group));
        }
    }

    fn fork_start(
        &self,
        id: &str,
        group: &Group,
        leased: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<(Pid, OwnedFd, Held)> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::host("cannot make a pipe", e));
        let mut fds = fds.into_iter();
        let (Some(request), Some(network)) = (fds.next(), fds.next()) else {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the start of {id} came without its descriptors"),
            ));
        };
        let lease = if leased { fds.next() } else { None };
        let disks: Vec<_> = fds.collect();
        let (stdout, stderr, (report, report_write)) = (pipe()?, pipe()?, pipe()?);
        rustix::io::ioctl_fionbio(&report, true).map_err(|e| Error::host("cannot set up a pipe", e))?;
        let keeper = rustix::process::getpid();
        group.create()?;
        group.starter().create()?;
        match fork_single_threaded().map_err(|e| Error::host("cannot fork", e))? {
            ForkResult::Parent(child) => {
                Ok((child, report, Held { stdout, stderr, _network: network, _lease: lease }))
            }
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
            Ok(Report::Started { pid, steps }) if !starting.timed_out => {
                match Pid::from_raw(pid).map(|p| (p, pidfd_open(p, PidfdFlags::empty()))) {
                    Some((pid, Ok(pidfd))) => return self.started(starting, pid, pidfd, steps),
                    _ => Failure::from(&Error::new(
                        ErrorKind::Internal,
                        "a started container cannot be watched",
                    )),
                }
            }
            Ok(Report::Failed(failure)) if !starting.timed_out => failure,
            _ if starting.timed_out => Failure::from(&timed_out(&starting)),
            _ => Failure::from(
                &Error::new(ErrorKind::KeeperLost, format!("the process that started {} died", starting.id))
                    .advise("start it again"),
            ),
        };
        self.retire(starting.group);
        self.outbox.push_back((FromKeeper::Failed { id: starting.id, failure }, Vec::new()));
    }

    fn started(&mut self, starting: Starting, pid: Pid, pidfd: OwnedFd, steps: super::protocol::SpawnSteps) {
        let copies = (starting.held.stdout.0.try_clone(), starting.held.stderr.0.try_clone());
        let (Ok(stdout), Ok(stderr)) = copies else {
            let failure =
                Failure::from(&Error::host("cannot copy the output pipes", rustix::io::Errno::MFILE));
            self.retire(starting.group);
            self.outbox.push_back((FromKeeper::Failed { id: starting.id, failure }, Vec::new()));
            return;
        };
        let message = FromKeeper::Started { id: starting.id.clone(), pid: pid.as_raw_nonzero().get(), steps };
        self.outbox.push_back((message, vec![pidfd, stdout, stderr]));
        self.oom.watch(pid, starting.group.clone(), starting.oom);
        self.running.insert(pid, Running { id: starting.id, group: starting.group, _held: starting.held });
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
        let stats = running.group.stats();
        let (code, signal) = (status.exit_status(), status.terminating_signal());
        let exit = Exit { code, signal, oom_killed: self.oom.explains(pid, signal, stats.oom_kills) };
        self.retire(running.group);
        self.outbox.push_back((FromKeeper::Exited { id: running.id, exit, stats }, Vec::new()));
    }

    /// Ends starts whose deadline has passed.
    fn expire(&mut self) {
        let now = Instant::now();
        for starting in self.starting.iter_mut().filter(|s| s.deadline <= now) {
            starting.timed_out = true;
            // Looked at again soon, in case a process was just being forked.
            starting.deadline = now + Duration::from_millis(10);
            let _ = kill_process(starting.child, Signal::KILL);
            starting.kill_once();
        }
    }

    /// Removes a group now, or as soon as its last process has left.
    fn retire(&mut self, group: Group) {
        group.kill_once();
        if !matches!(group.try_remove(), Ok(true)) {
            self.removing.push((group, Instant::now() + REMOVE_PATIENCE));
        }
    }

    fn remove(&mut self) {
        let now = Instant::now();
        self.removing.retain(|(group, until)| {
            group.kill_once();
            // Past its time it is left to the removal of the whole run.
            !matches!(group.try_remove(), Ok(true)) && now < *until
        });
    }

    fn flush(&mut self, socket: &OwnedFd) {
        while let Some((message, fds)) = self.outbox.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match send(socket, message, &borrowed) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // A daemon that is gone is seen by the next read.
                _ => self.outbox.pop_front(),
            };
        }
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

fn timed_out(starting: &Starting) -> Error {
    Error::new(
        ErrorKind::StartTimedOut,
        format!("container {} was not running within {} ms", starting.id, starting.limit.as_millis()),
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

fn drain(signals: &OwnedFd) {
    let mut buffer = [0; 1024];
    while matches!(rustix::io::read(signals, &mut buffer), Ok(read) if read > 0) {}
}
