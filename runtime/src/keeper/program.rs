//! The program `skiff-keeper`: takes its socket, leaves what it inherited, and serves.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};

use super::peers::Peers;
use super::protocol::{PROTOCOL, Role, ToKeeper, VERSION, receive};
use super::server::{Server, timespec};
use crate::cgroup::join_leaf;
use crate::rundir::RunDir;
use crate::sys::{ForkResult, close_all_except, exit_now, fork_single_threaded};
use crate::{Error, ErrorKind, Result, breakpoint};

/// How long the daemon may take to say what the keeper is for.
const CONFIGURE_PATIENCE: Duration = Duration::from_secs(10);

/// The program `skiff-keeper`: `--version`, the helper of `skiff exec`, or the keeper of the daemon at standard input.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).as_deref() == Some(OsStr::new("--version")) {
        let written = writeln!(io::stdout(), "skiff-keeper {VERSION}");
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let Some(code) = crate::exec::main() {
        return code;
    }
    let nofile = raise_nofile();
    match take_socket().and_then(|socket| keep(socket, nofile)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "skiff-keeper: {}", e.chain());
            let _ = e.advice().map(|a| writeln!(io::stderr(), "  help: {a}"));
            ExitCode::FAILURE
        }
    }
}

/// Raises the soft limit of descriptors to the hard one: the keeper holds five for each container.
/// Gives the limit as it was.
fn raise_nofile() -> Rlimit {
    let was = getrlimit(Resource::Nofile);
    // A lower limit only means fewer containers.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: was.maximum, maximum: was.maximum });
    was
}

/// Takes the socket from standard input and leaves all else that was inherited.
pub(crate) fn take_socket() -> Result<OwnedFd> {
    let failed = |what: &'static str| move |e: io::Error| Error::host(what, e);
    close_all_except(&[]).map_err(failed("cannot close inherited descriptors"))?;
    let stdin = io::stdin();
    rustix::net::sockopt::socket_type(&stdin).map_err(|_| {
        Error::new(ErrorKind::InvalidArgument, "standard input is not a socket")
            .advise("skiff-keeper is started by skiff; do not run it by hand")
    })?;
    let socket = stdin.as_fd().try_clone_to_owned().map_err(failed("cannot take the socket"))?;
    let null = File::open("/dev/null").map_err(failed("cannot open /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| Error::host("cannot replace standard input", e))?;
    Ok(socket)
}

/// Becomes what a keeper is to the kernel: a parent of orphans that no terminal reaches.
fn settle() -> Result<SignalFd> {
    // A signal for the daemon's terminal is not for the containers.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"skiff-keeper");
    rustix::process::set_child_subreaper(Pid::from_raw(1))
        .map_err(|e| Error::host("cannot become the parent of orphans", e))?;
    std::env::set_current_dir("/").map_err(|e| Error::host("cannot enter /", e))?;
    let mut mask = SigSet::empty();
    for signal in [NixSignal::SIGCHLD, NixSignal::SIGINT, NixSignal::SIGTERM, NixSignal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block().map_err(|e| Error::host("cannot block signals", e))?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| Error::host("cannot make a signalfd", e))
}

fn keep(socket: OwnedFd, nofile: Rlimit) -> Result<()> {
    let Some(work) = configured(&socket)? else { return Ok(()) };
    breakpoint::reach("keeper-configured");
    if work.lasting {
        // Not the daemon's child any more: nobody need wait for a keeper that outlives many.
        let forked = fork_single_threaded().map_err(|e| Error::host("cannot fork", e))?;
        if let ForkResult::Parent(_) = forked {
            exit_now(0);
        }
        join_leaf(work.run.hierarchy())?;
    }
    let signals = settle()?;
    let mut peers = Peers::listen(work.run.path(), socket)?;
    if let Some(owner) = peers.owner() {
        owner.welcome(Role::Owner, None);
    }
    Server::new(work.run, work.lock, nofile, work.lasting, peers).serve(signals)
}

/// What a keeper is for.
struct Work {
    run: RunDir,
    lock: OwnedFd,
    lasting: bool,
}

fn configured(socket: &OwnedFd) -> Result<Option<Work>> {
    wait_readable(socket.as_fd(), CONFIGURE_PATIENCE)?;
    let first = receive::<ToKeeper>(socket).map_err(|e| Error::host("cannot read from the daemon", e))?;
    match first {
        None => Ok(None),
        Some((ToKeeper::Configure { protocol: PROTOCOL, run, dir, hierarchy, lasting }, mut fds))
            if fds.len() == 1 =>
        {
            Ok(fds.pop().map(|lock| Work { run: RunDir::adopt(run, dir, hierarchy), lock, lasting }))
        }
        Some(_) => Err(Error::new(ErrorKind::Internal, "the daemon did not configure its keeper first")),
    }
}

fn wait_readable(fd: BorrowedFd<'_>, patience: Duration) -> Result<()> {
    let timeout = timespec(patience);
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout))
        .map(|_| ())
        .map_err(|e| Error::host("cannot wait for the daemon", e))
}
