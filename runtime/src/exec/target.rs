//! Finding a container that runs: by its cgroup, which has its name.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{DEADLINE, ExecSpec, Request};
use crate::awake::Awake;
use crate::cgroup::{Group, Hierarchy};
use crate::rundir::RunDir;
use crate::{Error, ErrorKind, Result};

/// Names that an error lists.
const MAX_LISTED: usize = 10;
/// Between looks at whether one that is being frozen is frozen.
const PAUSE: Duration = Duration::from_millis(5);

/// A container that runs.
#[derive(Debug)]
pub struct Target {
    id: String,
    init: Pid,
    pidfd: OwnedFd,
    group: Group,
    awake: Awake,
}

impl Target {
    /// Finds a container of any run below the run directory, by its whole name or by a beginning that
    /// only one has.
    ///
    /// # Errors
    /// `InvalidArgument` when there is none or more than one; the message lists them.
    pub fn find(run_dir: &Path, name: &str) -> Result<Self> {
        let hierarchy = Hierarchy::detect()?;
        let mut all = Vec::new();
        for run in RunDir::all(run_dir, &hierarchy)? {
            let (group, awake) = (run.group(), run.awake());
            all.extend(group.containers().into_iter().map(|id| (group.child(&id), id, awake.clone())));
        }
        all.sort_by(|a, b| a.1.cmp(&b.1));
        let exact: Vec<_> = all.iter().filter(|(_, id, _)| id == name).collect();
        let beginning = all.iter().filter(|(_, id, _)| id.starts_with(name));
        let found = if exact.is_empty() { beginning.collect() } else { exact };
        match found.as_slice() {
            [(group, id, awake)] => Self::in_group(id.clone(), group.clone(), awake.clone()),
            [] => Err(none(run_dir, name, all.iter().map(|c| &c.1))),
            several => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "'{name}' is the beginning of {} instances: {}",
                    several.len(),
                    listed(several.iter().map(|c| &c.1))
                ),
            )
            .advise("give more of its name")),
        }
    }

    fn in_group(id: String, group: Group, awake: Awake) -> Result<Self> {
        let init = group.processes().into_iter().find(|pid| is_init(*pid)).ok_or_else(|| ended(&id))?;
        Self::new(id, init, group, awake)
    }

    /// The container of this init.
    pub(crate) fn new(id: String, init: Pid, group: Group, awake: Awake) -> Result<Self> {
        let pidfd = pidfd_open(init, PidfdFlags::empty()).map_err(|e| match e {
            Errno::SRCH => ended(&id),
            e => Error::host(format!("cannot open the process of {id}"), e),
        })?;
        // Of a process that is still in the group now, and so was when the descriptor was opened.
        if !group.processes().contains(&init) {
            return Err(ended(&id));
        }
        Ok(Self { id, init, pidfd, group, awake })
    }

    /// Its whole name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn pidfd(&self) -> Result<OwnedFd> {
        self.pidfd.try_clone().map_err(|e| Error::host("cannot copy a descriptor", e))
    }

    /// Thaws it if it is frozen between invocations, and keeps it awake until what is returned is dropped.
    ///
    /// # Errors
    /// `InvalidArgument` when no process can run in it; `Host`.
    pub(super) async fn keep_awake(&self) -> Result<OwnedFd> {
        let until = tokio::time::Instant::now() + DEADLINE;
        loop {
            if has_ended(&self.pidfd) {
                return Err(ended(&self.id));
            }
            // The group goes with the container.
            let kept = self.awake.keep(self.init, &self.group);
            match kept.map_err(|error| if has_ended(&self.pidfd) { ended(&self.id) } else { error })? {
                Some(lock) => return Ok(lock),
                None if tokio::time::Instant::now() >= until => return Err(frozen(&self.id)),
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    pub(super) fn request(&self, spec: ExecSpec) -> Request {
        Request {
            argv: spec.argv,
            env: spec.env,
            user: spec.user,
            working_dir: spec.working_dir,
            terminal: spec.terminal,
            init: self.init.as_raw_nonzero().get(),
            join: self.group.join_files(self.init),
        }
    }
}

/// Whether a process has ended.
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Whether a process is the first of a pid namespace below this one (`NSpid` of
/// proc_pid_status(5)).
fn is_init(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let ids: Vec<_> = line.split_whitespace().collect();
    ids.len() > 1 && ids.last() == Some(&"1")
}

fn frozen(id: &str) -> Error {
    let message = format!("instance {id} is being frozen and stays so");
    Error::new(ErrorKind::InvalidArgument, message).advise(
        "a process of it waits for a device or a filesystem that does not answer; try again, or end it",
    )
}

fn ended(id: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("instance {id} has ended, or is just being started"))
}

fn none<'a>(run_dir: &Path, name: &str, all: impl ExactSizeIterator<Item = &'a String>) -> Error {
    let message = format!("no instance named '{}' runs below {}", name.escape_default(), run_dir.display());
    let advice = if all.len() == 0 {
        "none runs there; give the daemon's --run-dir".to_owned()
    } else {
        format!("there are: {}", listed(all))
    };
    Error::new(ErrorKind::InvalidArgument, message).advise(advice)
}

fn listed<'a>(ids: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = ids.len().saturating_sub(MAX_LISTED);
    let shown: Vec<_> = ids.take(MAX_LISTED).map(String::as_str).collect();
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
