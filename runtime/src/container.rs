//! A running container, as its owner sees it.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::acceleration::{Recorded, Recording};
use crate::awake::Awake;
use crate::cgroup::{Group, Peak};
use crate::exec::{Exec, ExecSpec, Target};
use crate::keeper::{AdoptedContainer, Ended, Kept, Process, Started};
use crate::network::{Dialer, Forwarder, Resolver};
use crate::output::Output;
use crate::rundir::RunDir;
use crate::{Error, ErrorKind, Network, Result};

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// The exit code, when it exited by itself.
    pub code: Option<i32>,
    /// The signal that ended it, else.
    pub signal: Option<i32>,
    /// Whether it ended because memory ran out: its first process was killed for want of memory, or
    /// all of it by [`OomPolicy::KillContainer`](crate::OomPolicy). False when something else ended
    /// it, even if a process of it had been killed for want of memory before
    /// ([`Stats::oom_kills`]).
    pub oom_killed: bool,
}

impl Exit {
    /// The code as shells and both clouds report it: the exit code, or 128 + signal.
    #[must_use]
    pub fn shell_code(&self) -> i32 {
        self.code.unwrap_or_else(|| 128 + self.signal.unwrap_or(0))
    }
}

/// How long each step of a start took.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct StartTimings {
    /// Writable layer and `/tmp` made ready.
    pub rootfs: Duration,
    /// Network namespace made ready.
    pub network: Duration,
    /// From the request to the keeper until the command was executed.
    pub spawn: Duration,
    /// Of `spawn`: mounts and specification.
    pub mounts: Duration,
    /// Of `spawn`: libcontainer's create.
    pub create: Duration,
    /// Of `spawn`: from libcontainer's start to the execution of the command.
    pub exec: Duration,
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    /// Memory in use now, in bytes.
    pub memory_bytes: u64,
    /// Highest memory use so far, in bytes. With cgroup version 2 the kernel tells it from Linux 5.19
    /// on; before, it is not more than `memory_bytes`.
    pub memory_peak_bytes: u64,
    /// CPU time used so far.
    pub cpu: Duration,
    /// How many of its processes the kernel has killed for want of memory so far.
    pub oom_kills: u64,
    /// Processes and threads now.
    pub processes: u64,
    /// How many processes and threads it could not make so far, for its limit of them.
    pub forks_refused: u64,
}

/// Bytes that a container has exchanged with the world outside of it; its own loopback does not count, and so
/// connections to its server ([`Container::connect`]) do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Received so far.
    pub received: u64,
    /// Sent so far.
    pub sent: u64,
}

impl Traffic {
    /// Of all interfaces but `lo` in a `/proc/PID/net/dev`.
    fn parse(text: &str) -> Self {
        let interfaces = text.lines().filter_map(|line| line.split_once(':'));
        interfaces.filter(|(name, _)| name.trim() != "lo").fold(Self::default(), |sum, (_, counts)| {
            let count = |column| counts.split_whitespace().nth(column).and_then(|word| word.parse().ok());
            Self {
                received: sum.received.saturating_add(count(0).unwrap_or(0)),
                sent: sum.sent.saturating_add(count(8).unwrap_or(0)),
            }
        })
    }
}

/// How long freezing may take: it is a matter of microseconds, unless a process waits for a device
/// or gets no CPU on a host that has too much to do.
const FREEZE_PATIENCE: Duration = Duration::from_secs(5);

/// What a container is made of.
pub(crate) struct Parts {
    pub(crate) id: String,
    pub(crate) group: Group,
    pub(crate) awake: Awake,
    pub(crate) address: Ipv4Addr,
    /// None when it has ended under a former owner.
    pub(crate) network: Option<Arc<OwnedFd>>,
    pub(crate) names: Option<Forwarder>,
    pub(crate) dialer: Dialer,
    pub(crate) timings: StartTimings,
    pub(crate) started: Started,
    pub(crate) label: Vec<u8>,
    /// How long it had run when this was made.
    pub(crate) ran: Duration,
    pub(crate) recording: Option<Recording>,
    /// Whether its output is for later owners too.
    pub(crate) lasting: bool,
}

/// A running (or ended) container. Dropping it kills it, unless its runtime is a lasting one and was
/// left before ([`Runtime::detach`](crate::Runtime::detach)).
#[derive(Debug)]
pub struct Container {
    id: String,
    pid: u32,
    process: Process,
    group: Group,
    /// Opened when it is asked for, which every invocation does.
    peak: OnceLock<Option<Peak>>,
    awake: Awake,
    address: Ipv4Addr,
    network: Option<Arc<OwnedFd>>,
    dialer: Dialer,
    /// A socket that was refused, for the next try: to make one takes longer than to try.
    refused: Mutex<Option<OwnedFd>>,
    timings: StartTimings,
    label: Vec<u8>,
    ran: Duration,
    since: Instant,
    ended: watch::Receiver<Option<Ended>>,
    _kept: Arc<Kept>,
    output: Mutex<Option<(Output, Output)>>,
    recording: Option<Recording>,
    /// It is being ended: nothing may be frozen any more.
    stopping: AtomicBool,
}

impl Container {
    pub(crate) fn new(parts: Parts) -> Result<Self> {
        let Started { pid, process, stdout, stderr, ended, kept, .. } = parts.started;
        if let Some(names) = parts.names {
            names.end_with(over(ended.clone()));
        }
        let output = |pipe| Output::new(pipe, ended.clone(), &kept, parts.lasting);
        let output = (output(stdout)?, output(stderr)?);
        Ok(Self {
            id: parts.id,
            pid,
            process,
            group: parts.group,
            peak: OnceLock::new(),
            awake: parts.awake,
            address: parts.address,
            network: parts.network,
            dialer: parts.dialer,
            refused: Mutex::default(),
            timings: parts.timings,
            label: parts.label,
            ran: parts.ran,
            since: Instant::now(),
            ended,
            _kept: kept,
            output: Mutex::new(Some(output)),
            recording: parts.recording,
            stopping: AtomicBool::new(false),
        })
    }

    /// The name given at the start.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The process id of its init on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A container that a former owner of the run started.
    pub(crate) fn adopted(found: AdoptedContainer, run: &RunDir, dialer: Dialer) -> Result<Self> {
        let AdoptedContainer { started, instance, network } = found;
        let network = network.map(Arc::new);
        if let Some(namespace) = network.as_ref().filter(|_| instance.network == Network::Bridge) {
            forward_names_again(&dialer, namespace, started.ended.clone());
        }
        Self::new(Parts {
            group: run.group().child(&instance.id),
            awake: run.awake(),
            address: instance.address,
            network,
            names: None,
            dialer,
            timings: StartTimings::default(),
            started,
            label: instance.label.0,
            ran: Duration::from_millis(instance.ran_ms),
            recording: None,
            lasting: true,
            id: instance.id,
        })
    }

    /// What its owner gave it at the start, to know it again.
    #[must_use]
    pub fn label(&self) -> &[u8] {
        &self.label
    }

    /// How long its command has run; of one that ended under a former owner, until its end.
    #[must_use]
    pub fn age(&self) -> Duration {
        if self.network.is_none() { self.ran } else { self.ran + self.since.elapsed() }
    }

    /// How long the start took; nothing where a former owner started it.
    #[must_use]
    pub fn timings(&self) -> StartTimings {
        self.timings
    }

    /// Its standard output and standard error; `None` when they were already taken. Each ends when
    /// the container has ended and all that it wrote has been read.
    pub fn take_output(&self) -> Option<(Output, Output)> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The address where a server inside is dialled.
    #[must_use]
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }

    /// Connects to a port of the container, from inside its network namespace.
    ///
    /// # Errors
    /// As `connect(2)`; `ConnectionRefused` while nothing listens there.
    pub async fn connect(&self, port: u16) -> std::io::Result<TcpStream> {
        let Some(network) = &self.network else { return Err(std::io::ErrorKind::ConnectionRefused.into()) };
        self.dialer.connect(network, self.address(port), &self.refused).await
    }

    /// Says that it serves: what it has touched until a second from now, or until its end, is what
    /// its start touches. Only matters while it is recorded ([`Acceleration`](crate::Acceleration)).
    pub fn ready(&self) {
        if let Some(recording) = &self.recording {
            recording.ready();
        }
    }

    /// Waits until the recording of its start is kept. `None` where there is none: it was not to be
    /// recorded, the host has no fanotify, or it ended before [`Container::ready`].
    pub async fn recorded(&self) -> Option<Recorded> {
        self.recording.as_ref()?.done().await
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// `KeeperLost` when the keeper died; the container has been killed then.
    pub async fn wait(&self) -> Result<Exit> {
        let mut ended = self.ended.clone();
        let found = ended.wait_for(Option::is_some).await.ok().and_then(|e| *e);
        match found {
            Some(Ended::Exited(exit, _)) => Ok(exit),
            Some(Ended::KeeperLost) | None => Err(Error::new(
                ErrorKind::KeeperLost,
                format!("skiff-keeper has died, and container {} was killed with it", self.id),
            )
            .advise("start again")),
        }
    }

    /// The exit, if it has ended.
    #[must_use]
    pub fn exited(&self) -> Option<Exit> {
        match *self.ended.borrow() {
            Some(Ended::Exited(exit, _)) => Some(exit),
            Some(Ended::KeeperLost) => {
                Some(Exit { code: None, signal: Some(Signal::KILL.as_raw()), oom_killed: false })
            }
            None => None,
        }
    }

    /// Freezes all processes of it: they get no CPU until [`Container::thaw`], and keep their memory
    /// and connections. Returns when all are frozen, which takes well under a millisecond for some
    /// tens of processes. Freezing a frozen one is fine.
    ///
    /// # Errors
    /// `InvalidArgument` when it has ended or is being stopped; `ContainerInUse` while a command runs in
    /// it ([`Exec`](crate::Exec)), of whichever program; `Host` when a process was not frozen
    /// within five seconds, because it waits for a device or filesystem that does not answer: all are
    /// thawed again then.
    pub async fn freeze(&self) -> Result<()> {
        self.check_lives("frozen")?;
        let (awake, group, init) = (self.awake.clone(), self.group.clone(), self.init()?);
        let frozen = tokio::task::spawn_blocking(move || awake.freeze(init, &group, FREEZE_PATIENCE)).await;
        let frozen = frozen.unwrap_or_else(|e| {
            Err(Error::new(ErrorKind::Internal, "freezing a container did not end").because(e))
        });
        if self.stopping.load(Ordering::SeqCst) {
            // A stop that came meanwhile may have thawed it before it was frozen.
            let _ = self.group.thaw();
        }
        // Where it has ended, its group is gone.
        frozen.map_err(|error| self.of_its_group("frozen", error))
    }

    /// Lets frozen processes go on. Thawing one that is not frozen is fine.
    ///
    /// # Errors
    /// `InvalidArgument` when it has ended; `Host`.
    pub fn thaw(&self) -> Result<()> {
        self.check_lives("thawed")?;
        self.group.thaw().map_err(|error| self.of_its_group("thawed", error))
    }

    /// Whether its processes are frozen, or are being frozen. A command that somebody runs in it thaws it.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.group.is_stopped()
    }

    fn check_lives(&self, done: &str) -> Result<()> {
        let why = match self.exited() {
            Some(_) => "has ended",
            None if self.stopping.load(Ordering::SeqCst) => "is being stopped",
            None => return Ok(()),
        };
        Err(self.cannot_be(done, why))
    }

    fn cannot_be(&self, done: &str, why: &str) -> Error {
        Error::new(ErrorKind::InvalidArgument, format!("container {} {why} and cannot be {done}", self.id))
    }

    /// What its group answered. Where that is gone it has ended, which its keeper knows before anybody is told.
    fn of_its_group(&self, done: &str, error: Error) -> Error {
        let cause =
            std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
        let is_gone = |code| [Errno::NOENT, Errno::NODEV].iter().any(|gone| gone.raw_os_error() == code);
        let is_gone = cause.and_then(std::io::Error::raw_os_error).is_some_and(is_gone);
        match self.check_lives(done) {
            Err(ended) => ended,
            Ok(()) if is_gone => self.cannot_be(done, "has ended"),
            Ok(()) => error,
        }
    }

    /// Sends SIGTERM, waits for `grace`, then kills every process of it and waits for the end. A
    /// frozen one is thawed first.
    ///
    /// # Errors
    /// `KeeperLost`.
    pub async fn stop(&self, grace: Duration) -> Result<Exit> {
        self.stopping.store(true, Ordering::SeqCst);
        if self.exited().is_none() {
            // Where this fails it has just ended.
            let _ = self.group.thaw();
        }
        if !grace.is_zero() && self.exited().is_none() {
            self.process.signal(Signal::TERM);
            if let Ok(exit) = tokio::time::timeout(grace, self.wait()).await {
                return exit;
            }
        }
        self.process.signal(Signal::KILL);
        self.wait().await
    }

    /// Sends SIGTERM to its init, which a frozen one gets when it is thawed. Whether there was one to send it to.
    pub fn terminate(&self) -> bool {
        let lives = self.exited().is_none();
        if lives {
            self.process.signal(Signal::TERM);
        }
        lives
    }

    /// Runs another process in it, as [`Exec::start`].
    ///
    /// # Errors
    /// As [`Exec::start`].
    pub async fn exec(&self, spec: ExecSpec, keeper: Option<&Path>) -> Result<Exec> {
        let target = Target::new(self.id.clone(), self.init()?, self.group.clone(), self.awake.clone())?;
        Exec::start(&target, spec, keeper).await
    }

    fn init(&self) -> Result<Pid> {
        let init = Pid::from_raw(self.pid.cast_signed());
        init.ok_or_else(|| Error::new(ErrorKind::Internal, "a container without a process"))
    }

    /// What it has received and sent so far; nothing when it has ended, and where its network is the host's.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net"));
        let pid = self.pid.to_string();
        let own = matches!((of(&pid), of("self")), (Ok(own), Ok(host)) if own != host);
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
        // Looked at last: by then the process may be another's.
        if own && self.exited().is_none() { Traffic::parse(&text) } else { Traffic::default() }
    }

    /// What it uses now, or used until its end.
    #[must_use]
    pub fn stats(&self) -> Stats {
        if let Some(Ended::Exited(_, stats)) = *self.ended.borrow() {
            return stats;
        }
        self.group.stats()
    }

    /// [`Stats::memory_peak_bytes`] alone, which costs a look at one file that is open already.
    #[must_use]
    pub fn memory_peak_bytes(&self) -> u64 {
        if let Some(Ended::Exited(_, stats)) = *self.ended.borrow() {
            return stats.memory_peak_bytes;
        }
        let peak = self.peak.get_or_init(|| self.group.open_peak()).as_ref().and_then(Peak::bytes);
        peak.filter(|bytes| *bytes > 0).unwrap_or_else(|| self.group.memory_peak_bytes())
    }
}

/// Where names were forwarded by the former owner of a container, they are by this one from now on.
fn forward_names_again(dialer: &Dialer, namespace: &Arc<OwnedFd>, ended: watch::Receiver<Option<Ended>>) {
    let (dialer, namespace) = (dialer.clone(), Arc::clone(namespace));
    tokio::spawn(async move {
        let upstreams = Resolver::of(Network::Bridge).upstreams;
        if upstreams.is_empty() {
            return;
        }
        match Forwarder::start(&dialer, namespace, &upstreams).await {
            Ok(names) => names.end_with(over(ended)),
            Err(error) => {
                tracing::warn!(error = error.chain(), "names are not forwarded for an adopted container");
            }
        }
    });
}

/// Ready when a container has ended.
async fn over(mut ended: watch::Receiver<Option<Ended>>) {
    let _ = ended.wait_for(Option::is_some).await;
}

impl Drop for Container {
    /// The kill itself is [`Process`]'s; a frozen process of cgroup version 1 does not die of it.
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // One that has ended may have left its name, and so its group, to another.
        if self.exited().is_none() && !self.process.is_left() {
            self.process.signal(Signal::KILL);
            let _ = self.group.thaw();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_that_of_all_interfaces_but_the_loopback() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n    \
                    lo: 999 1 0 0 0 0 0 0 999 1 0 0 0 0 0 0\n  \
                    eth0: 1200 10 0 0 0 0 0 0 340 7 0 0 0 0 0 0\n  \
                    eth1:34 10 0 0 0 0 0 0 6 7 0 0 0 0 0 0\n";
        assert_eq!(Traffic::parse(text), Traffic { received: 1234, sent: 346 });
        assert_eq!(Traffic::parse(""), Traffic::default());
    }
}
