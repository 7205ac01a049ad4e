//! `skiff-keeper exec`: the small program between a caller with threads and a process in a container.
//! It stays outside: only its child joins the container.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal,
    set_dumpable_behavior, waitpid,
};

use super::enter::{self, Job};
use super::facts::Facts;
use super::target::has_ended;
use super::{DEADLINE, FromHelper, Request, ToHelper, timed_out};
use crate::keeper::protocol::{Failure, from_memory, receive, send};
use crate::keeper::take_socket;
use crate::sys::{ForkResult, exit_now, fork_single_threaded};
use crate::{Error, ErrorKind, Result};

/// What makes `skiff-keeper` this program.
pub(super) const ARGUMENT: &str = "exec";
/// Longest failure that the child writes.
const MAX_FAILURE: usize = 64 << 10;
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// The program; `None` for other arguments than its own.
pub(crate) fn main() -> Option<ExitCode> {
    if std::env::args_os().nth(1).is_none_or(|argument| argument != ARGUMENT) {
        return None;
    }
    Some(match take_socket().and_then(|socket| serve(&socket)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "skiff-keeper: {}", e.chain());
            ExitCode::FAILURE
        }
    })
}

fn serve(socket: &OwnedFd) -> Result<()> {
    // Keys of the caller's terminal are for the process, if for anybody.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"skiff-exec");
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| Error::host("cannot close this process to others", e))?;
    wait(&[(socket.as_fd(), PollFlags::IN)], Some(REQUEST_PATIENCE));
    let fds = match receive::<ToHelper>(socket) {
        Ok(Some((ToHelper::Run, fds))) => fds,
        Ok(None) => return Ok(()),
        _ => return Err(Error::new(ErrorKind::Internal, "there was no request")),
    };
    match begin(socket, fds) {
        Ok(child) => child.follow(socket),
        Err(e) => tell(socket, &FromHelper::Failed(Failure::from(&e))),
    }
    Ok(())
}

/// The process that enters the container, or has entered it.
struct Running {
    pid: Pid,
    pidfd: OwnedFd,
    /// Tells why the command was not executed; ends when it was. Gone when that is known.
    report: Option<OwnedFd>,
    bytes: Vec<u8>,
}

fn begin(socket: &OwnedFd, fds: Vec<OwnedFd>) -> Result<Running> {
    let mut fds = fds.into_iter();
    let (Some(request), Some(init)) = (fds.next(), fds.next()) else {
        return Err(Error::new(ErrorKind::Internal, "a request came without its descriptors"));
    };
    let request: Request = from_memory(request).map_err(|e| Error::host("cannot read a request", e))?;
    let ended = || Error::new(ErrorKind::InvalidArgument, "the instance has ended");
    let facts = Pid::from_raw(request.init).ok_or_else(ended).and_then(Facts::of);
    if has_ended(&init) {
        return Err(ended());
    }
    let facts = facts?;
    let helper =
        pidfd_open(getpid(), PidfdFlags::empty()).map_err(|e| Error::host("cannot open this process", e))?;
    let (report, report_write) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::host("cannot make a pipe", e))?;
    // Of the children of this process from now on.
    setns(&init, CloneFlags::CLONE_NEWPID)
        .map_err(|e| Error::host("cannot enter the pid namespace of the container", e))?;
    match fork_single_threaded().map_err(|e| Error::host("cannot fork into the container", e))? {
        ForkResult::Child => {
            drop(report);
            let job = Job { request, facts, init, helper, stdio: fds.collect() };
            exit_now(enter_or_tell(socket, &job, report_write))
        }
        ForkResult::Parent(pid) => {
            drop(report_write);
            let pidfd = pidfd_open(pid, PidfdFlags::empty())
                .map_err(|e| Error::host("cannot watch the process in the container", e))?;
            Ok(Running { pid, pidfd, report: Some(report), bytes: Vec::new() })
        }
    }
}

fn enter_or_tell(socket: &OwnedFd, job: &Job, report: OwnedFd) -> i32 {
    let Ok(copy) = report.try_clone() else { return 1 };
    let error = enter::run(socket, job, report);
    let failure = serde_json::to_vec(&Failure::from(&error)).unwrap_or_default();
    // Nobody else could be told.
    let _ = File::from(copy).write_all(&failure);
    1
}

impl Running {
    /// Passes signals on until the process has ended or the caller is gone, which ends it.
    fn follow(mut self, socket: &OwnedFd) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = self.report.as_ref().map(|_| deadline.saturating_duration_since(Instant::now()));
            let report = self.report.as_ref().map_or(self.pidfd.as_fd(), AsFd::as_fd);
            wait(&[(socket.as_fd(), PollFlags::IN), (report, PollFlags::IN)], left);
            if !self.take_messages(socket) {
                return self.kill();
            }
            if self.report.is_some() {
                if let Some(outcome) = self.read_report() {
                    let failed = matches!(outcome, FromHelper::Failed(_));
                    tell(socket, &outcome);
                    if failed {
                        return self.kill();
                    }
                } else if Instant::now() >= deadline {
                    tell(socket, &FromHelper::Failed(Failure::from(&timed_out())));
                    return self.kill();
                }
            } else if let Ok(Some((_, status))) = waitpid(Some(self.pid), WaitOptions::NOHANG) {
                let (code, signal) = (status.exit_status(), status.terminating_signal());
                return tell(socket, &FromHelper::Exited { code, signal });
            }
        }
    }

    /// False when the caller is gone, or cannot be understood.
    fn take_messages(&self, socket: &OwnedFd) -> bool {
        loop {
            match receive::<ToHelper>(socket) {
                Ok(Some((ToHelper::Signal(raw), _))) => {
                    if let Some(signal) = Signal::from_named_raw(raw) {
                        // It may have ended.
                        let _ = pidfd_send_signal(&self.pidfd, signal);
                    }
                }
                Ok(Some((ToHelper::Run, _)) | None) => return false,
                Err(e) => {
                    return matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                }
            }
        }
    }

    /// How it came out, when that is known.
    fn read_report(&mut self) -> Option<FromHelper> {
        let report = self.report.as_ref()?;
        if !wait(&[(report.as_fd(), PollFlags::IN)], Some(Duration::ZERO)) {
            return None;
        }
        let mut chunk = [0; 4096];
        match rustix::io::read(report, &mut chunk) {
            Ok(read) if read > 0 && self.bytes.len() < MAX_FAILURE => {
                self.bytes.extend_from_slice(&chunk[..read]);
                return None;
            }
            Err(rustix::io::Errno::INTR) => return None,
            _ => self.report = None,
        }
        if self.bytes.is_empty() {
            return Some(FromHelper::Started { pid: self.pid.as_raw_nonzero().get() });
        }
        let unreadable =
            || Error::new(ErrorKind::Internal, "an unreadable failure came out of the container");
        let failure = serde_json::from_slice(&self.bytes).unwrap_or_else(|_| Failure::from(&unreadable()));
        Some(FromHelper::Failed(failure))
    }

    fn kill(self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}

/// A caller that is gone is seen by the next read.
fn tell(socket: &OwnedFd, message: &FromHelper) {
    let _ = send(socket, message, &[]);
}

/// Sleeps until something is readable; true then.
fn wait(fds: &[(std::os::fd::BorrowedFd<'_>, PollFlags)], patience: Option<Duration>) -> bool {
    let mut fds: Vec<_> = fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    let timeout = patience.map(|patience| Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(patience.subsec_nanos()),
    });
    poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}
