//! The way into a container, in a process of its own that the container cannot look into: it is not
//! dumpable, and has more capabilities than anything inside, until it has become the command.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use caps::{CapSet, CapsHashSet};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstatfs, openat2};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};

use super::facts::Facts;
use super::target::has_ended;
use super::{FromHelper, Request, TerminalSize};
use crate::keeper::protocol::send;
use crate::rootfs::path::Root;
use crate::sandbox::{DEFAULT_PATH, Program, User, apparmor, filter, is_inside, resolve_user};
use crate::sys::{close_on_exec, pty};
use crate::{Error, ErrorKind, Result};

const DEVPTS_SUPER_MAGIC: i64 = 0x1CD1;

pub(super) struct Job {
    pub(super) request: Request,
    pub(super) facts: Facts,
    /// The container's init.
    pub(super) init: OwnedFd,
    /// The process that forked this one.
    pub(super) helper: OwnedFd,
    /// Standard input, output and error; none with a terminal.
    pub(super) stdio: Vec<OwnedFd>,
}

/// Returns only the reason why the command was not executed.
pub(super) fn run(socket: &OwnedFd, job: &Job, report: OwnedFd) -> Error {
    let error = match prepare(socket, job) {
        Ok(program) => filter().map_or_else(|e| e, |()| program.run()),
        Err(e) => e,
    };
    // Not before: its end says that the command was executed.
    drop(report);
    error
}

fn prepare(socket: &OwnedFd, job: &Job) -> Result<Program> {
    let (request, facts) = (&job.request, &job.facts);
    tie_to(&job.helper)?;
    join(job)?;
    // The host's procfs: that of the container is the container's.
    let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::host("cannot open /proc", e))?;
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    setns(&job.init, flags).map_err(|e| Error::host("cannot enter the namespaces of the container", e))?;
    let user = user(request, facts)?;
    give_streams(job, &user)?;
    if facts.first_id.is_some() {
        enter_userns(job)?;
    }
    if let Some(profile) = &facts.profile {
        apparmor::take_on(&proc, profile)?;
    }
    // Nothing that leads to a directory of the host is open from here on (CVE-2024-21626).
    drop(proc);
    become_user(&user, facts.bounding)?;
    connect(socket, job)?;
    enter_dir(request, facts)?;
    restrict(&user, facts.bounding)?;
    // Changing credentials has loosened it.
    tie_to(&job.helper)?;
    close_on_exec().map_err(|e| Error::host("cannot close descriptors", e))?;
    let env = environment(request, facts, &user);
    Program::new("command", &request.argv, &env, None)
}

/// Has this process killed with its helper.
fn tie_to(helper: &OwnedFd) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Error::host("cannot tie a process to its helper", e))?;
    if has_ended(helper) {
        return Err(Error::new(ErrorKind::KeeperLost, "the helper has died"));
    }
    Ok(())
}

/// Takes on the cgroup and the limits of the container, as the host's root.
fn join(job: &Job) -> Result<()> {
    for file in &job.request.join {
        fs::write(file, "0").map_err(|e| Error::host(format!("cannot join {}", file.display()), e))?;
    }
    let limits = &job.facts.limits;
    limits.take_on().map_err(|e| Error::host("cannot take on the limits of the container", e))?;
    if has_ended(&job.init) {
        return Err(Error::new(ErrorKind::InvalidArgument, "the instance has ended"));
    }
    Ok(())
}

fn user(request: &Request, facts: &Facts) -> Result<User> {
    let Some(text) = &request.user else {
        let home = String::new();
        return Ok(User { uid: facts.uid, gid: facts.gid, groups: facts.groups.clone(), home });
    };
    resolve_user(text, &Root::open(Path::new("/"))?)
}

/// A program that runs as another user may open `/dev/stdout` again.
fn give_streams(job: &Job, user: &User) -> Result<()> {
    let first = job.facts.first_id.unwrap_or(0);
    let host_id =
        |id: u32| first.checked_add(id).ok_or_else(|| Error::host("no such id", rustix::io::Errno::INVAL));
    let (uid, gid) = (host_id(user.uid)?, host_id(user.gid)?);
    for pipe in &job.stdio {
        rustix::fs::fchown(pipe, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))
            .map_err(|e| Error::host("cannot give the streams to the user", e))?;
    }
    Ok(())
}

fn enter_userns(job: &Job) -> Result<()> {
    setns(&job.init, CloneFlags::CLONE_NEWUSER)
        .and_then(|()| setgroups(&[]))
        .and_then(|()| setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)))
        .and_then(|()| setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)))
        .map_err(|e| Error::host("cannot enter the user namespace of the container", e))
}

/// The bounding set first: changing it takes a capability.
fn become_user(user: &User, bounding: u64) -> Result<()> {
    let failed =
        |e: caps::errors::CapsError| Error::new(ErrorKind::Host, "cannot give up capabilities").because(e);
    for capability in caps::runtime::thread_all_supported() {
        if capability.bitmask() & bounding == 0 {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
        }
    }
    let groups: Vec<_> = user.groups.iter().map(|id| Gid::from_raw(*id)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setgroups(&groups)
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid))
        .map_err(|e| Error::host(format!("cannot become user {}:{}", user.uid, user.gid), e))?;
    // On a host with fs.suid_dumpable=1, changing credentials has opened it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| Error::host("cannot close this process to others", e))
}

/// A new session, with a terminal or with the caller's pipes.
fn connect(socket: &OwnedFd, job: &Job) -> Result<()> {
    rustix::process::setsid().map_err(|e| Error::host("cannot make a session", e))?;
    if let Some(size) = job.request.terminal {
        return connect_terminal(socket, size);
    }
    let [stdin, stdout, stderr] = job.stdio.as_slice() else {
        return Err(Error::new(ErrorKind::Internal, "a request came without its streams"));
    };
    replace_streams(stdin, stdout, stderr)
}

fn replace_streams(stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd) -> Result<()> {
    rustix::stdio::dup2_stdin(stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(stderr))
        .map_err(|e| Error::host("cannot replace the standard streams", e))
}

/// A terminal of the container's own: what is pushed back into it (TIOCSTI) stays inside.
fn connect_terminal(socket: &OwnedFd, size: TerminalSize) -> Result<()> {
    let failed = |e: std::io::Error| Error::host("cannot make a terminal in the container", e);
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = openat2(CWD, "/dev/pts/ptmx", flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        .map_err(|e| failed(e.into()))?;
    if fstatfs(&master).map_err(|e| failed(e.into()))?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(failed(rustix::io::Errno::XDEV.into()));
    }
    rustix::io::ioctl_fionbio(&master, false).map_err(|e| failed(e.into()))?;
    let slave = pty::open_slave(&master).map_err(failed)?;
    pty::set_size(&master, size.rows, size.columns).map_err(failed)?;
    send(socket, &FromHelper::Terminal, &[master.as_fd()]).map_err(failed)?;
    replace_streams(&slave, &slave, &slave)?;
    pty::take_terminal(&slave).map_err(failed)
}

/// As the user, so that it enters nothing that the user may not. Where the first process is, is only a
/// wish: it may have left for a directory that is gone.
fn enter_dir(request: &Request, facts: &Facts) -> Result<()> {
    let refuse = |dir: &str, e: std::io::Error| {
        Error::new(ErrorKind::InvalidWorkingDirectory, format!("working directory '{dir}'"))
            .because(e)
            .advise("give another with --workdir")
    };
    let entered = match &request.working_dir {
        Some(dir) if !dir.starts_with('/') => Err(refuse(dir, std::io::ErrorKind::InvalidInput.into())),
        Some(dir) => rustix::process::chdir(dir.as_str()).map_err(|e| refuse(dir, e.into())),
        None => rustix::process::chdir(&facts.working_dir)
            .or_else(|_| rustix::process::chdir("/"))
            .map_err(|e| refuse("/", e.into())),
    };
    entered?;
    let escaped = || refuse("/", std::io::Error::other("it is outside of the container"));
    if is_inside() { Ok(()) } else { Err(escaped()) }
}

/// Capabilities as the container's first process got them: none inheritable, none for others than
/// root (CVE-2025-27612).
fn restrict(user: &User, bounding: u64) -> Result<()> {
    let failed =
        |e: caps::errors::CapsError| Error::new(ErrorKind::Host, "cannot give up capabilities").because(e);
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let all = caps::runtime::thread_all_supported();
    let held: CapsHashSet =
        all.into_iter().filter(|capability| user.uid == 0 && capability.bitmask() & bounding != 0).collect();
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)?;
    caps::set(None, CapSet::Effective, &held).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &held).map_err(failed)?;
    rustix::thread::set_no_new_privs(true).map_err(|e| Error::host("cannot set no-new-privileges", e))
}

/// The first process's, then what the user and the terminal bring, then what was asked for.
fn environment(request: &Request, facts: &Facts, user: &User) -> Vec<(String, String)> {
    let mut env = facts.env.clone();
    let mut set =
        |name: &str, value: &str, replace: bool| match env.iter_mut().find(|(known, _)| known == name) {
            Some(known) if replace => value.clone_into(&mut known.1),
            Some(_) => {}
            None => env.push((name.to_owned(), value.to_owned())),
        };
    set("PATH", DEFAULT_PATH, false);
    if request.user.is_some() {
        set("HOME", &user.home, true);
    }
    if request.terminal.is_some() {
        set("TERM", "xterm", false);
    }
    for (name, value) in &request.env {
        set(name, value, true);
    }
    env
}
