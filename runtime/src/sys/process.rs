//! Processes: fork, signals, seccomp.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use rustix::process::Pid;

/// Which side of a fork this is.
pub(crate) enum ForkResult {
    /// The parent, with the child's process id.
    Parent(Pid),
    /// The child.
    Child,
}

/// Forks this process, which must have one thread.
///
/// # Errors
/// As `fork(2)`; `EBUSY` when the process has more than one thread.
pub(crate) fn fork_single_threaded() -> io::Result<ForkResult> {
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: with one thread, no lock can be held by another thread at the time of the fork, so
    // the child may allocate and run any code.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => Ok(ForkResult::Child),
        nix::unistd::ForkResult::Parent { child } => Pid::from_raw(child.as_raw())
            .map(ForkResult::Parent)
            .ok_or_else(|| io::Error::other("fork returned pid 0")),
    }
}

/// Forks this process, which must have one thread, into a cgroup of version 2, by a descriptor of its
/// directory. Moving it there afterwards would wait for an RCU grace period, milliseconds.
///
/// # Errors
/// As `clone3(2)` (`ENOSYS` before Linux 5.3, `EINVAL` before 5.7) and [`fork_single_threaded`].
pub(crate) fn fork_into_group(group: BorrowedFd<'_>) -> io::Result<ForkResult> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000; // linux/sched.h; more than a C int holds
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: a structure of integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    // SAFETY: without CLONE_VM and with no stack of its own the child goes on here on a copy of
    // everything, as after fork(2). With one thread, no lock can be held by another. What fork(2) does
    // besides is to call handlers, of which this crate sets none, and to note the thread's new number
    // for robust mutexes and raise(3), which it does not use.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(ForkResult::Child),
        pid => i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .map(ForkResult::Parent)
            .ok_or_else(|| io::Error::other("clone3 returned no pid")),
    }
}

pub(super) fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Ends the process at once: no destructors, no `atexit` handlers. For a forked child, whose
/// copies of its parent's objects are not its own to tear down.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes any integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives every signal its default action and unblocks all: what a program expects at its start.
/// (Rust ignores SIGPIPE, and the keeper blocks SIGCHLD; both would be inherited through `execve`.)
pub(crate) fn reset_signals() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: the default action installs no handler, so no code can run in signal context.
        unsafe { sigaction(signal, &default) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Loads a compiled classic BPF program as seccomp filter of this process. `no_new_privs` must be
/// set. `program` is an array of `struct sock_filter` as bytes, as libseccomp exports it.
pub(crate) fn load_seccomp_filter(program: &[u8]) -> io::Result<()> {
    const INSTRUCTION: usize = size_of::<libc::sock_filter>();
    const SECCOMP_SET_MODE_FILTER: libc::c_long = 1;
    if program.is_empty() || !program.len().is_multiple_of(INSTRUCTION) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let filter: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION)
        .map(|b| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let fprog = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `fprog` points to `len` instructions that live until after the call; the kernel
    // copies and verifies them and writes nothing.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const fprog) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from 3 on that is not in `keep`. For a forked child, which must not
/// hold what belongs to its parent and never touches those objects again.
pub(crate) fn close_all_except(keep: &[i32]) -> io::Result<()> {
    let mut keep: Vec<libc::c_uint> = keep.iter().filter_map(|fd| libc::c_uint::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 3;
    for kept in keep {
        close_range(first, kept)?;
        first = first.max(kept.saturating_add(1));
    }
    close_range(first, libc::c_uint::MAX)
}

/// Closes the descriptors from `first` on and below `end`; `MAX` is without an end.
fn close_range(first: libc::c_uint, end: libc::c_uint) -> io::Result<()> {
    let last = if end == libc::c_uint::MAX { end } else { end.saturating_sub(1) };
    if first >= end {
        return Ok(());
    }
    // SAFETY: the caller gave up every owner of these descriptors: it ends by `exit_now`, without
    // running their destructors.
    let result = unsafe { libc::close_range(first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has every descriptor from 3 on closed by the next successful `execve`.
pub(crate) fn close_on_exec() -> io::Result<()> {
    // SAFETY: nothing is closed now: the descriptors stay valid for their owners until the process
    // image, and its owners with it, is replaced.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The limits of a process, by the kernel's numbers of resources.
pub(crate) struct Limits(Vec<libc::rlimit>);

impl Limits {
    /// Those in the text of `/proc/PID/limits`: a line for each, in the order of the numbers, with name
    /// (26 characters), soft and hard limit. (prlimit(2) tells less privileged callers less.)
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let number = |word: &str| match word {
            "unlimited" => Some(libc::RLIM_INFINITY),
            word => word.parse().ok(),
        };
        let lines = text.lines().skip(1).map(|line| {
            let mut words = line.get(26..)?.split_whitespace();
            Some(libc::rlimit { rlim_cur: number(words.next()?)?, rlim_max: number(words.next()?)? })
        });
        lines.collect::<Option<Vec<_>>>().filter(|all| all.len() == RESOURCES as usize).map(Self)
    }

    /// Takes them on. Where one may not be raised so far, it is raised as far as it may.
    pub(crate) fn take_on(&self) -> io::Result<()> {
        for (resource, wanted) in (0..RESOURCES).zip(&self.0) {
            match limit(resource, Some(*wanted)) {
                Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                    let hard = wanted.rlim_max.min(limit(resource, None)?.rlim_max);
                    let soft = wanted.rlim_cur.min(hard);
                    limit(resource, Some(libc::rlimit { rlim_cur: soft, rlim_max: hard }))?;
                }
                other => other.map(|_| ())?,
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|limit| (limit.rlim_cur, limit.rlim_max))).finish()
    }
}

/// `RLIM_NLIMITS` of the kernel, which knows no others.
const RESOURCES: libc::__rlimit_resource_t = 16;

/// Sets a limit of this process, if there is a new one, and gives the old one.
fn limit(resource: libc::__rlimit_resource_t, new: Option<libc::rlimit>) -> io::Result<libc::rlimit> {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `new` is null or points to a limit, which outlives the call and is only read; `old` is
    // written.
    let result = unsafe { libc::prlimit(0, resource, new, &raw mut old) };
    if result == 0 { Ok(old) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_in_proc_are_those_that_the_kernel_tells() {
        let text = std::fs::read_to_string("/proc/self/limits").expect("limits");
        let read = Limits::parse(&text).expect("understood");
        for (resource, read) in (0..RESOURCES).zip(&read.0) {
            let told = limit(resource, None).expect("told");
            assert_eq!((read.rlim_cur, read.rlim_max), (told.rlim_cur, told.rlim_max), "{resource}");
        }
        let cut: String = text.lines().take(9).map(|line| format!("{line}\n")).collect();
        assert!(Limits::parse("").is_none() && Limits::parse(&cut).is_none());
    }
}
