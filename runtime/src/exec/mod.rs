//! Another process in a running container, with the ids, capabilities, limits, filter and profile of
//! the container's own.
//!
//! ```text
//! caller (threads) ── seqpacket ── helper (`skiff-keeper exec`, sealed, one thread)
//!                                     │ setns(pid), fork
//!                                  child: cgroup, namespaces, user, terminal ── execve
//! ```
//!
//! `target` finds a container, `facts` reads from the host's `/proc` what its init has, `helper` is the
//! program between, `enter` the child's way in. The helper ends, and kills the process, when its
//! caller is gone; the process is killed with its helper, and with its container.

mod enter;
mod facts;
mod helper;
mod target;
mod terminal;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

pub(crate) use helper::main;
pub use rustix::process::Signal;
pub use target::Target;
pub use terminal::RawTerminal;

use crate::keeper::protocol::{Failure, receive, send, to_memory};
use crate::keeper::{execute, find as find_keeper};
use crate::sys::pty;
use crate::{Error, ErrorKind, Exit, Result};

/// How long a process may take until it has executed its command.
const DEADLINE: Duration = Duration::from_secs(10);
/// How much longer the caller waits for the helper to say so.
const GRACE: Duration = Duration::from_secs(5);

/// Rows and columns of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

impl Default for TerminalSize {
    fn default() -> Self {
        Self { rows: 24, columns: 80 }
    }
}

/// What to run in a container. What is not given is as the container's first process has it.
#[derive(Clone, Default)]
pub struct ExecSpec {
    /// The command and its arguments; looked for in the container's `PATH`.
    pub argv: Vec<String>,
    /// Added to the environment that the container was started with; wins over it.
    pub env: Vec<(String, String)>,
    /// Another user than the first process's: `name|uid[:group|gid]`, by the container's own files.
    pub user: Option<String>,
    /// Where it starts; absolute. Else where the first process is.
    pub working_dir: Option<String>,
    /// With a terminal of the container's own devpts, of this size.
    pub terminal: Option<TerminalSize>,
}

impl std::fmt::Debug for ExecSpec {
    /// Arguments and values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecSpec").field("command", &self.argv.first()).finish_non_exhaustive()
    }
}

/// All that the helper needs, in a memfd.
#[derive(Serialize, Deserialize)]
struct Request {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    user: Option<String>,
    working_dir: Option<String>,
    terminal: Option<TerminalSize>,
    /// The container's init, which also comes as a pidfd.
    init: i32,
    /// See [`Group::join_files`](crate::cgroup::Group::join_files).
    join: Vec<PathBuf>,
}

/// To the helper.
#[derive(Debug, Serialize, Deserialize)]
enum ToHelper {
    /// The first message, with the request, the init's pidfd and, without a terminal, standard
    /// input, output and error.
    Run,
    /// Send the process a signal.
    Signal(i32),
}

/// From the helper, and of the child before its command.
#[derive(Debug, Serialize, Deserialize)]
enum FromHelper {
    /// With the master of the process's terminal.
    Terminal,
    /// The command has been executed.
    Started { pid: i32 },
    /// It was not.
    Failed(Failure),
    /// The process has ended.
    Exited { code: Option<i32>, signal: Option<i32> },
}

/// A process that runs in a container. Dropping it kills the process (not what it has left in the
/// background, which ends with the container).
#[derive(Debug)]
pub struct Exec {
    socket: UnixStream,
    helper: Option<Child>,
    pid: u32,
    streams: Option<Streams>,
    terminal: Option<OwnedFd>,
    exit: Option<Exit>,
    /// The container is not frozen before this is closed.
    _awake: OwnedFd,
}

/// The caller's ends of a process's standard streams, in blocking mode.
#[derive(Debug)]
pub struct Streams {
    /// Where it reads from.
    pub stdin: OwnedFd,
    /// What it writes.
    pub stdout: OwnedFd,
    /// What it writes to its standard error.
    pub stderr: OwnedFd,
}

impl Exec {
    /// Runs a process in a container; `keeper` is as in [`RuntimeOptions`](crate::RuntimeOptions).
    /// Returns when its command has been executed. A container that is frozen is thawed, and is not
    /// frozen again while the process runs.
    ///
    /// # Errors
    /// `InvalidArgument` for a container that has ended; `NoCommand`, `CommandNotFound`,
    /// `CommandNotExecutable`, `UnknownUser`, `InvalidWorkingDirectory`; `StartTimedOut`, `Host`,
    /// `KeeperNotFound`.
    pub async fn start(target: &Target, spec: ExecSpec, keeper: Option<&Path>) -> Result<Self> {
        if spec.argv.first().is_none_or(String::is_empty) {
            return Err(Error::new(ErrorKind::NoCommand, "no command was given")
                .advise("give it after --, as in `skiff exec INSTANCE -- ls /`"));
        }
        let awake = target.keep_awake().await?;
        let (terminal, request) = (spec.terminal.is_some(), target.request(spec));
        let (streams, theirs) = if terminal { (None, Vec::new()) } else { pipes()? };
        let request = to_memory(&request).map_err(|e| Error::host("cannot write a request", e))?;
        let mut fds = vec![request, target.pidfd()?];
        fds.extend(theirs);
        let (socket, helper) = launch(&find_keeper(keeper)?, &fds)?;
        drop(fds);
        let helper = Some(helper);
        let mut exec = Self { socket, helper, pid: 0, streams, terminal: None, exit: None, _awake: awake };
        match tokio::time::timeout(DEADLINE + GRACE, exec.started()).await {
            Ok(result) => result.map(|()| exec),
            Err(_) => Err(timed_out()),
        }
    }

    /// Its process id on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The ends of its streams; `None` when they were taken, or when it has a terminal.
    pub fn take_streams(&mut self) -> Option<Streams> {
        self.streams.take()
    }

    /// A copy of its terminal's master; `None` without a terminal.
    ///
    /// # Errors
    /// `Host` when it cannot be copied.
    pub fn terminal(&self) -> Result<Option<OwnedFd>> {
        let copy = self.terminal.as_ref().map(OwnedFd::try_clone).transpose();
        copy.map_err(|e| Error::host("cannot copy a terminal", e))
    }

    /// Tells its terminal a new size. Without a terminal, nothing.
    pub fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = &self.terminal {
            // One that has ended has no size.
            let _ = pty::set_size(terminal, size.rows, size.columns);
        }
    }

    /// Sends it a signal. One that has ended is fine.
    ///
    /// # Errors
    /// `KeeperLost` when the helper is gone, and the process with it.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        let message = ToHelper::Signal(signal.as_raw());
        let sent = self.socket.async_io(Interest::WRITABLE, || send(&self.socket, &message, &[])).await;
        if self.exit.is_some() { Ok(()) } else { sent.map_err(|e| lost().because(e)) }
    }

    /// Waits until it has ended. Cancel safe.
    ///
    /// # Errors
    /// `KeeperLost` when the helper was killed, and the process with it.
    pub async fn wait(&mut self) -> Result<Exit> {
        loop {
            if let Some(exit) = self.exit {
                return Ok(exit);
            }
            if let (FromHelper::Exited { code, signal }, _) = self.next().await? {
                self.exit = Some(Exit { code, signal, oom_killed: false });
            }
        }
    }

    async fn started(&mut self) -> Result<()> {
        loop {
            match self.next().await? {
                (FromHelper::Terminal, mut fds) => self.terminal = fds.pop(),
                (FromHelper::Started { pid }, _) => {
                    self.pid = pid.unsigned_abs();
                    return Ok(());
                }
                (FromHelper::Failed(failure), _) => return Err(failure.into()),
                (FromHelper::Exited { .. }, _) => return Err(lost()),
            }
        }
    }

    async fn next(&self) -> Result<(FromHelper, Vec<OwnedFd>)> {
        let received = self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await;
        received.map_err(|e| lost().because(e))?.ok_or_else(lost)
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        let Some(mut helper) = self.helper.take() else { return };
        // It sees the socket close, in a moment; somebody must collect it.
        let _ = std::thread::Builder::new().name("skiff-exec-wait".into()).spawn(move || helper.wait());
    }
}

type Pipes = (Option<Streams>, Vec<OwnedFd>);

fn pipes() -> Result<Pipes> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::host("cannot make a pipe", e));
    let (input, output, errors) = (pipe()?, pipe()?, pipe()?);
    let streams = Streams { stdin: input.1, stdout: output.0, stderr: errors.0 };
    Ok((Some(streams), vec![input.0, output.1, errors.1]))
}

fn launch(keeper: &Path, fds: &[OwnedFd]) -> Result<(UnixStream, Child)> {
    let failed = |e: io::Error| Error::host("cannot talk to a helper", e);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(|e| failed(e.into()))?;
    let child = execute(keeper, &[helper::ARGUMENT], theirs)?;
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    send(&ours, &ToHelper::Run, &borrowed).map_err(failed)?;
    // Tokio has no type for seqpacket sockets; only readiness is asked of this one.
    let socket = UnixStream::from_std(std::os::unix::net::UnixStream::from(ours)).map_err(failed)?;
    Ok((socket, child))
}

fn lost() -> Error {
    Error::new(ErrorKind::KeeperLost, "the process between Skiff and the container has died")
        .advise("the container may have ended; try again")
}

fn timed_out() -> Error {
    let limit = DEADLINE.as_secs();
    Error::new(ErrorKind::StartTimedOut, format!("the command was not running within {limit} s"))
        .advise("the container may be frozen by somebody else, or the host overloaded")
}
