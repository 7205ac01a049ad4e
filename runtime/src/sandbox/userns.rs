//! A user namespace for a container: its own range of the host's ids, claimed by the daemon, and the
//! namespace that maps it, made by the start process.
//!
//! Ranges lie where neither users, nor `/etc/subuid` as distributions fill it, nor systemd have
//! theirs (<https://systemd.io/UIDS-GIDS>), and below 2^31. A range is claimed by a lock on one byte
//! of a file that all daemons of the host share; keeper and daemon hold it, so it is free when the
//! container is gone, however that came about.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::User;
use crate::awake::byte;
use crate::sys::{ForkResult, exit_now, fork_single_threaded};
use crate::{Error, ErrorKind, Result};

/// Ids of a range: all that images use, `nobody` (65534) included.
pub(crate) const IDS: u32 = 65_536;
const FIRST: u32 = 0x7000_0000;
/// Up to 0x7FFE_0000, where systemd's range of foreign images begins.
const RANGES: u32 = 4094;
/// Beside the run directories, which a daemon may have anywhere.
const CLAIMS: &str = "/run/skiff.ids";

/// A range that no other container of this host has while this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The host's id of the container's root.
    pub(crate) first: u32,
    pub(crate) lock: OwnedFd,
}

impl Claim {
    /// # Errors
    /// `LimitExceeded` when all ranges are in use.
    pub(crate) fn new() -> Result<Self> {
        Self::from_file(Path::new(CLAIMS))
    }

    fn from_file(path: &Path) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A description of its own: locks belong to it.
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| Error::host(format!("cannot open {}", path.display()), e))?;
        let start = random()?;
        for step in 0..RANGES {
            let number = (start + step) % RANGES;
            match lock_byte(&file, number) {
                Ok(()) => return Ok(Self { first: FIRST + number * IDS, lock: file }),
                Err(nix::Error::EAGAIN | nix::Error::EACCES) => {}
                Err(e) => return Err(Error::host(format!("cannot lock {}", path.display()), e)),
            }
        }
        Err(Error::new(
            ErrorKind::LimitExceeded,
            format!("all {RANGES} ranges of ids for user namespaces are in use on this host"),
        )
        .advise("start fewer containers with user namespaces at once"))
    }
}

fn random() -> Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::host("cannot get random bytes", e))?;
    Ok(u32::from_ne_bytes(bytes) % RANGES)
}

fn lock_byte(file: &OwnedFd, number: u32) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&byte(number.into(), true))).map(|_| ())
}

/// A namespace in which the ids from 0 on are a range of the host's.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    first: u32,
    namespace: OwnedFd,
}

impl UserNamespace {
    /// Makes one. The caller has one thread.
    ///
    /// # Errors
    /// `Host`, with advice where the host forbids them.
    pub(crate) fn new(first: u32) -> Result<Self> {
        let failed = |e: io::Error| {
            let error = Error::host("cannot make a user namespace", e);
            error.advise("see sysctl user.max_user_namespaces, or run without --userns")
        };
        let namespace = make(first).map_err(failed)?;
        Ok(Self { first, namespace })
    }

    /// The host's id of an id inside.
    pub(crate) fn host_id(&self, inside: u32) -> u32 {
        self.first.saturating_add(inside.min(IDS - 1))
    }

    /// For `setns(2)` while this lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.namespace.as_raw_fd()).into()
    }

    /// # Errors
    /// `UnknownUser` for ids that the namespace does not have.
    pub(crate) fn check(&self, user: &User) -> Result<()> {
        let ids = [user.uid, user.gid].into_iter().chain(user.groups.iter().copied());
        match ids.into_iter().find(|id| *id >= IDS) {
            None => Ok(()),
            Some(id) => Err(Error::new(
                ErrorKind::UnknownUser,
                format!(
                    "the id {id} of the image's user is not in the user namespace, which has 0 to {}",
                    IDS - 1
                ),
            )
            .advise("give another with --user, or run without --userns")),
        }
    }
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// A child makes the namespace and stays until its ids are mapped and somebody else holds it.
fn make(first: u32) -> io::Result<OwnedFd> {
    let (ready, ready_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (done, done_write) = pipe_with(PipeFlags::CLOEXEC)?;
    match fork_single_threaded()? {
        ForkResult::Child => {
            drop((ready, done_write));
            hold(ready_write.into(), done.into())
        }
        ForkResult::Parent(child) => {
            drop((ready_write, done));
            let mapped = map(child, first, ready.into());
            drop(done_write);
            waitpid(Some(child), WaitOptions::empty())?;
            mapped
        }
    }
}

fn hold(mut ready: fs::File, mut done: fs::File) -> ! {
    let errno = unshare(CloneFlags::CLONE_NEWUSER).err().map_or(0, |e| e as i32);
    // Nobody is left to be told of a failure.
    let _ = ready.write_all(&errno.to_ne_bytes());
    let _ = done.read(&mut [0]);
    exit_now(0)
}

fn map(child: Pid, first: u32, mut ready: fs::File) -> io::Result<OwnedFd> {
    let mut errno = [0; 4];
    ready.read_exact(&mut errno)?;
    match i32::from_ne_bytes(errno) {
        0 => {}
        errno => return Err(Errno::from_raw_os_error(errno).into()),
    }
    let proc = PathBuf::from(format!("/proc/{}", child.as_raw_nonzero()));
    for name in ["uid_map", "gid_map"] {
        fs::write(proc.join(name), format!("0 {first} {IDS}\n"))?;
    }
    Ok(fs::File::open(proc.join("ns/user"))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_meet_each_other_and_come_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("ids");
        let mut all: Vec<_> = (0..RANGES).map(|_| Claim::from_file(&path).expect("free")).collect();
        let error = Claim::from_file(&path).expect_err("all in use");
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        let mut firsts: Vec<_> = all.iter().map(|claim| claim.first).collect();
        firsts.sort_unstable();
        assert!(firsts.windows(2).all(|pair| pair[1] - pair[0] == IDS));
        assert!(firsts[0] >= 0x7000_0000 && firsts[firsts.len() - 1] + IDS <= 0x7FFE_0000);
        // A copy of the descriptor holds it too, as the keeper's does.
        let given_up = all.pop().expect("one");
        let copy = given_up.lock.try_clone().expect("copy");
        drop(given_up);
        Claim::from_file(&path).expect_err("still held");
        drop(copy);
        Claim::from_file(&path).expect("free again");
    }

    #[test]
    fn users_outside_of_the_range_are_refused() {
        let namespace =
            UserNamespace { first: FIRST, namespace: fs::File::open("/dev/null").expect("open").into() };
        let user = |uid, gid, groups| User { uid, gid, groups, home: "/".into() };
        namespace.check(&user(65_535, 0, vec![1])).expect("inside");
        for user in [user(65_536, 0, vec![]), user(0, 70_000, vec![]), user(0, 0, vec![1 << 20])] {
            let error = namespace.check(&user).expect_err("outside");
            assert_eq!(error.kind(), ErrorKind::UnknownUser, "{error}");
        }
        assert_eq!(namespace.host_id(1000), FIRST + 1000);
    }
}
