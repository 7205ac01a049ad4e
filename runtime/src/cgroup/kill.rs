//! The end of a group: every process in it killed, however quickly it forks, and the group removed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::{Group, Hierarchy, for_each_below, processes};
use crate::{Error, Result};

/// How long a round of killing waits until nobody forks any more. What is not frozen by then (a
/// process that is dying already cannot be) is killed as it runs, and looked for again.
const FREEZE_PATIENCE: Duration = Duration::from_millis(20);
/// Rounds before forks are stopped first: mostly there is nobody left to fork.
const QUICK_ROUNDS: usize = 2;

impl Group {
    /// Sends SIGKILL to every process of the group and of the groups below it; tells how many
    /// were seen: at most those of version 2 that are still dying, as it kills all at once. Frozen ones
    /// die too.
    pub(crate) fn kill_once(&self) -> usize {
        let mut seen = HashSet::new();
        for dir in self.dirs() {
            kill_tree(&dir, &mut seen);
        }
        if !seen.is_empty() {
            self.thaw_dying();
        }
        seen.len()
    }

    /// Kills every process of the group and of the groups below it, for at most `patience`.
    /// Processes that fork while this runs are found by repeating until none is left; those that
    /// fork as quickly as they are killed are frozen first.
    pub(crate) fn kill(&self, patience: Duration) -> Result<()> {
        let killed = self.kill_rounds(patience);
        // A container of the same name may begin in it. Where this fails nothing is frozen.
        let _ = self.thaw();
        killed
    }

    fn kill_rounds(&self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        for round in 0.. {
            if round >= QUICK_ROUNDS {
                // Killing works without it too, only not against everybody.
                let _ = self.stop_forks(FREEZE_PATIENCE);
            }
            let alive = self.kill_once();
            if alive == 0 {
                break;
            }
            if Instant::now() >= until {
                return Err(Error::host(
                    format!("{alive} processes of the cgroup {} do not die", self.path.display()),
                    Errno::BUSY,
                ));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Removes the group and those below it, if no process is left in them. `Ok(false)` means that
    /// a process is still leaving: try again.
    pub(crate) fn try_remove(&self) -> Result<bool> {
        for dir in self.dirs() {
            match remove_tree(&dir) {
                Ok(()) => {}
                Err(e) if is_busy(&e) => return Ok(false),
                Err(e) => return Err(Error::host(format!("cannot remove the cgroup {}", dir.display()), e)),
            }
        }
        Ok(true)
    }

    /// Removes the group, waiting at most `patience` for its last processes to leave; what still
    /// joins it is killed.
    pub(crate) fn remove(&self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        while !self.try_remove()? {
            if Instant::now() >= until {
                return Err(Error::host(
                    format!("the cgroup {} does not become empty", self.path.display()),
                    Errno::BUSY,
                ));
            }
            self.kill_once();
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Removes the common parent of all runs if no run is left.
    pub(crate) fn remove_parent_if_empty(hierarchy: &Hierarchy) {
        for root in hierarchy.roots() {
            // Not empty means that another run lives; it or a later one removes it.
            let _ = fs::remove_dir(root.join(hierarchy.parent()));
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::BUSY | Errno::NOTEMPTY))
}

/// Sends SIGKILL to every process at and below `dir` that is not among `seen`, and adds it.
fn kill_tree(dir: &Path, seen: &mut HashSet<Pid>) {
    // Version 2 from Linux 5.14 on: all at once, also what is just being forked.
    let killed = fs::write(dir.join("cgroup.kill"), "1").is_ok();
    for_each_below(dir, &mut |d| {
        for pid in processes(d) {
            if seen.insert(pid) && !killed {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    });
}

/// Removes `dir` bottom-up. A directory that is gone already is fine.
fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Processes in it, or groups below it.
        Err(e) if is_busy(&e) => {}
        result => return result,
    }
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                remove_tree(&entry.path())?;
            }
        }
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "kill_tests.rs"]
mod tests;
