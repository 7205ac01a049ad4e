//! What libcontainer's init does when it is told to start: it learns the command, becomes its user, and
//! executes it. Failures are told through a pipe that a successful `execve` closes, so the other side knows
//! which it was.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use oci_spec::runtime::Spec;
use rustix::process::{Resource, Rlimit, Signal, chdir, set_parent_process_death_signal, setrlimit};
use serde::{Deserialize, Serialize};

use super::{Program, User, filter};
use crate::keeper::protocol::Failure;
use crate::sys::close_all_except;
use crate::{Error, ErrorKind, Result};

/// As a start request's.
const MAX_COMMAND: usize = 8 << 20;

/// What a container is to execute, and as whom.
#[derive(Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: String,
    pub(crate) user: User,
    /// AppArmor's.
    pub(crate) profile: Option<String>,
    /// Most descriptors of a process, and most processes of its user; 0 is as they are.
    pub(crate) nofile: u64,
    pub(crate) nproc: u64,
}

impl Command {
    /// Puts it where the executor finds it: memory that only descriptors reach.
    ///
    /// # Errors
    /// As `pwrite(2)`.
    pub(crate) fn put(&self, into: &OwnedFd) -> io::Result<()> {
        File::from(into.try_clone()?).write_all_at(&serde_json::to_vec(self)?, 0)
    }

    fn take(from: &OwnedFd) -> io::Result<Self> {
        let file = File::from(from.try_clone()?);
        let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        if size > MAX_COMMAND {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

/// Executes the [`Command`] that has been put into a file by the time of the container's start. The container
/// is root's until then.
#[derive(Clone)]
pub(crate) struct CommandExecutor {
    inner: Arc<(OwnedFd, OwnedFd)>,
}

impl CommandExecutor {
    /// `report` is closed by a successful execution and carries a [`Failure`] else.
    pub(crate) fn new(command: OwnedFd, report: OwnedFd) -> Self {
        Self { inner: Arc::new((command, report)) }
    }

    /// Returns only the reason why the command could not be executed.
    fn run(&self) -> Error {
        let command = Command::take(&self.inner.0).map_err(|e| Error::host("cannot read the command", e));
        // Now, and not by the execution: that looks for programs and interpreters by paths, which may name
        // descriptors (`/proc/self/fd/N`), before it closes any.
        if let Err(e) = close_all_except(&[self.inner.1.as_raw_fd()]) {
            return Error::host("cannot close the runtime's descriptors", e);
        }
        let ready = command.and_then(|command| {
            let Command { argv, env, profile, .. } = &command;
            let program = Program::new("start command", argv, env, profile.as_deref())?;
            enter_dir(&command.working_dir)?;
            limit(&command)?;
            become_user(&command.user)?;
            Ok(program)
        });
        match ready {
            Ok(program) => program.run(),
            Err(e) => e,
        }
    }
}

impl Executor for CommandExecutor {
    fn exec(&self, _spec: &Spec) -> std::result::Result<(), ExecutorError> {
        let error = self.run();
        let failure = serde_json::to_vec(&Failure::from(&error)).unwrap_or_default();
        if let Ok(pipe) = self.inner.1.as_fd().try_clone_to_owned() {
            // Nobody else could be told.
            let _ = File::from(pipe).write_all(&failure);
        }
        Err(ExecutorError::Other(error.chain()))
    }

    /// The execution itself tells what is wrong, exactly. This is called when the container has been made, and may
    /// be long before it is started: it dies with its keeper from here on, and has no more calls than its command.
    fn validate(&self, _spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|e| Error::host("cannot tie the container to its keeper", e))
            .and_then(|()| filter())
            .map_err(|e| ExecutorValidationError::ArgValidationError(e.chain()))
    }

    /// The environment is handed to `execve`.
    fn setup_envs(&self, _envs: HashMap<String, String>) -> std::result::Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

/// As root: the container's user may not be allowed to pass through what leads to it, as with Docker.
fn enter_dir(dir: &str) -> Result<()> {
    let refuse = |e: io::Error| {
        Error::new(ErrorKind::InvalidWorkingDirectory, format!("working directory '{dir}'"))
            .because(e)
            .advise("set WORKDIR in the image, or --workdir, to a directory")
    };
    chdir(dir).map_err(|e| refuse(e.into()))?;
    if is_inside() { Ok(()) } else { Err(refuse(io::Error::other("it is outside of the container"))) }
}

/// Whether the working directory is in the container: the kernel says "(unreachable)" of one that is not below the
/// root (CVE-2024-21626).
pub(crate) fn is_inside() -> bool {
    rustix::process::getcwd(Vec::new()).is_ok_and(|dir| dir.to_bytes().starts_with(b"/"))
}

/// Lowers limits; they have been raised as far as they go.
fn limit(command: &Command) -> Result<()> {
    for (resource, name, most) in
        [(Resource::Nofile, "open files", command.nofile), (Resource::Nproc, "processes", command.nproc)]
    {
        if most > 0 {
            setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(|e| {
                Error::host(format!("cannot limit {name} to {most}"), e)
                    .advise("give a lower limit, or start skiff with a higher one (ulimit -H)")
            })?;
        }
    }
    Ok(())
}

/// Leaves root for the user, and with it all capabilities, where that is another.
fn become_user(user: &User) -> Result<()> {
    let failed = |e: nix::Error| Error::host("cannot become the container's user", e);
    let groups: Vec<_> = user.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(failed)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid).map_err(failed)?;
    setresuid(uid, uid, uid).map_err(failed)
}
