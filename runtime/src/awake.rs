//! What may run in a container while its owner would freeze it: commands that somebody else, perhaps
//! another program, runs there.
//!
//! Each of the two holds a lock on one byte of a file of the run, that of the container's process id: who
//! runs a command until it has ended (shared), who freezes until all is frozen (exclusive). So each sees
//! the other, and the lock of one that dies is gone with it. The file is out of the containers' reach:
//! locks on their groups' directories would not be, and could keep them from being frozen.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use crate::cgroup::Group;
use crate::{Error, ErrorKind, Result};

/// The file of a run in which locks are held; made by who needs it first, empty.
#[derive(Clone, Debug)]
pub(crate) struct Awake(PathBuf);

impl Awake {
    pub(crate) fn new(file: PathBuf) -> Self {
        Self(file)
    }

    /// Thaws a container, and keeps it from being frozen until what is returned is dropped. `None` while
    /// somebody freezes it: a matter of a moment.
    ///
    /// # Errors
    /// As [`Group::thaw`].
    pub(crate) fn keep(&self, init: Pid, group: &Group) -> Result<Option<OwnedFd>> {
        let lock = self.lock(init, false)?;
        if lock.is_some() {
            group.thaw()?;
        }
        Ok(lock)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// `ContainerInUse` while somebody keeps it awake; else as [`Group::freeze`].
    pub(crate) fn freeze(&self, init: Pid, group: &Group, patience: Duration) -> Result<()> {
        let Some(_lock) = self.lock(init, true)? else {
            let message = format!("a command runs in container {} and keeps it awake", group.name());
            return Err(Error::new(ErrorKind::ContainerInUse, message)
                .advise("try again when `skiff exec` has ended"));
        };
        group.freeze(patience)
    }

    fn lock(&self, init: Pid, exclusive: bool) -> Result<Option<OwnedFd>> {
        let failed =
            |e: std::io::Error| Error::host(format!("cannot lock a byte of {}", self.0.display()), e);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A description of its own: locks belong to it.
        let file = rustix::fs::open(&self.0, flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
        let byte = byte(init.as_raw_nonzero().get().into(), exclusive);
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&byte)) {
            Ok(_) => Ok(Some(file)),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }
}

/// The lock of one byte of a file; whether it is there does not matter.
pub(crate) fn byte(number: libc::off_t, exclusive: bool) -> libc::flock {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: number,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::freeze::tests::Real;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn who_keeps_a_container_awake_and_who_freezes_it_see_each_other() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (awake, other) = (Awake::new(dir.path().join("awake")), Pid::from_raw(1).expect("a pid"));
        let mut real = Real::new("awake");
        real.run("exec sleep 1000");
        real.wait_for("a process", |group| !group.processes().is_empty());
        let (group, init) = (&real.0, real.0.processes()[0]);
        awake.freeze(init, group, PATIENCE).expect("frozen");
        let first = awake.keep(init, group).expect("no error").expect("nobody freezes it");
        assert!(!group.is_stopped(), "it is thawed");
        let second = awake.keep(init, group).expect("no error").expect("nobody freezes it");
        drop(first);
        let error = awake.freeze(init, group, PATIENCE).expect_err("one is left");
        assert_eq!(error.kind(), ErrorKind::ContainerInUse);
        assert!(!group.is_stopped(), "{error}");
        awake.freeze(other, group, PATIENCE).expect("nobody is in that one");
        group.thaw().expect("thawed");
        drop(second);
        let freezing = awake.lock(init, true).expect("locked");
        assert!(awake.keep(init, group).expect("no error").is_none(), "it is being frozen");
        drop(freezing);
        awake.freeze(init, group, PATIENCE).expect("frozen");
    }

    #[test]
    fn a_run_that_is_gone_is_told() {
        let dir = tempfile::tempdir().expect("tempdir");
        let awake = Awake::new(dir.path().join("gone/awake"));
        let error = awake.lock(Pid::from_raw(7).expect("a pid"), true).expect_err("no directory");
        assert!(error.to_string().contains("gone/awake"), "{error}");
    }
}
