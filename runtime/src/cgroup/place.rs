//! Where Skiff's groups go: below the process's own group where systemd has delegated that, else at
//! the top.
//!
//! On version 2 a group with processes cannot pass controllers on, so the processes of a delegated
//! group go into a leaf beside Skiff's groups:
//!
//! ```text
//! /system.slice/example.service          delegated; holds no process any more
//! ├── daemon                             the unit's own processes
//! └── skiff/RUN/CONTAINER                limits
//! ```

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use super::{Hierarchy, NEEDED, Version, has_needed, processes};
use crate::{Error, ErrorKind, Result};

/// The leaf for the processes of a delegated group.
const LEAF: &str = "daemon";
/// How often a delegated group is emptied: its processes may be forking.
const MOVE_ROUNDS: usize = 100;
const MOVE_PAUSE: Duration = Duration::from_millis(1);
/// What systemd marks a delegated group with, as root and else (systemd.resource-control(5)).
const MARKS: [&str; 2] = ["trusted.delegate", "user.delegate"];
/// Kinds of units that have groups: a group that is named so belongs to a unit.
const UNITS: [&str; 3] = [".service", ".scope", ".slice"];
const DELEGATE: &str = "let systemd delegate all controllers: `Delegate=yes` in the unit";

/// Below which cgroup the groups of containers are made.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum CgroupParent {
    /// Below the process's own group, if that is version 2 and systemd has delegated it
    /// (`Delegate=yes`), or has put the process into a leaf of a delegated one
    /// (`DelegateSubgroup=`). In the first case all processes of the group, this one among them, are
    /// moved to its child `daemon`: the kernel allows processes in leaves only. Else `/skiff`, and
    /// no process is moved.
    #[default]
    Auto,
    /// Below this group: absolute, as in `/proc/self/cgroup`. It must exist; on version 2 it must
    /// have the controllers memory, cpu and pids, and no processes. No process of the caller is moved;
    /// the keeper of a lasting run goes to its child `daemon`, where there is one (version 2).
    Below(PathBuf),
}

/// Decides where groups go, and empties a delegated group for them. Blocks.
///
/// # Errors
/// `InvalidArgument`, `NoCgroup`, `Host`.
pub(crate) fn settle(hierarchy: &Hierarchy, parent: &CgroupParent) -> Result<Hierarchy> {
    match parent {
        CgroupParent::Below(path) => {
            let base = relative(path).ok_or_else(|| {
                Error::new(ErrorKind::InvalidArgument, format!("{} is no path of a cgroup", path.display()))
                    .advise("give it as in /proc/PID/cgroup, from the root of the hierarchy: /a/b")
            })?;
            check_given(hierarchy, &base)?;
            Ok(hierarchy.based_on(&base))
        }
        CgroupParent::Auto => {
            let text = fs::read_to_string("/proc/self/cgroup")
                .map_err(|e| Error::host("cannot read /proc/self/cgroup", e))?;
            settle_auto(hierarchy, &text)
        }
    }
}

/// On version 1 nothing is delegated: a unit's group is another one, or none, in each hierarchy, and
/// systemd leaves groups alone that it did not make.
fn settle_auto(hierarchy: &Hierarchy, text: &str) -> Result<Hierarchy> {
    let own = own_path(text, hierarchy.version());
    let (Version::V2, Some(root), Some(own)) = (hierarchy.version(), hierarchy.root_of(""), own) else {
        return Ok(hierarchy.clone());
    };
    let Some(base) = delegated(&own, &|group| is_marked(&root.join(group))) else {
        return Ok(hierarchy.clone());
    };
    check_controllers(&root.join(&base))?;
    if base == own {
        empty(&root.join(&base))?;
    }
    Ok(hierarchy.based_on(&base))
}

/// The path of a process's group from the root of the hierarchy, out of its `/proc/PID/cgroup`; on
/// version 1 in the hierarchy with the pids controller. `None` when it is out of reach.
pub(crate) fn own_path(text: &str, version: Version) -> Option<PathBuf> {
    let wanted = match version {
        Version::V1 => "pids",
        Version::V2 => "",
    };
    // `NUMBER:CONTROLLER,…:/PATH` (cgroups(7))
    let path = text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let here = fields.next()?.split(',').any(|controller| controller == wanted);
        fields.next().filter(|_| here)
    })?;
    relative(Path::new(path))
}

/// The delegated group that a process of the group `own` may use. Only what is the process's own:
/// what is further below a delegated group has another manager, like a user's session.
pub(crate) fn delegated(own: &Path, marked: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let name = own.file_name()?.to_str()?;
    if marked(own) {
        return Some(own.to_owned());
    }
    let above = own.parent().filter(|above| above.file_name().is_some())?;
    let is_leaf = !UNITS.iter().any(|suffix| name.ends_with(suffix));
    (is_leaf && marked(above)).then(|| above.to_owned())
}

/// Whether systemd has marked a group's directory as delegated.
pub(crate) fn is_marked(dir: &Path) -> bool {
    MARKS.iter().any(|mark| {
        let mut value = [0; 8];
        rustix::fs::getxattr(dir, *mark, &mut value).is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

/// An absolute path without its slash at the beginning; `None` where it is not, or leads upwards.
pub(crate) fn relative(path: &Path) -> Option<PathBuf> {
    let mut rest = path.components();
    (rest.next() == Some(Component::RootDir)).then_some(())?;
    rest.clone().all(|c| matches!(c, Component::Normal(_))).then(|| rest.as_path().to_owned())
}

fn check_given(hierarchy: &Hierarchy, base: &Path) -> Result<()> {
    for root in hierarchy.roots() {
        let dir = root.join(base);
        if !dir.is_dir() {
            return Err(Error::new(ErrorKind::NoCgroup, format!("there is no cgroup {}", dir.display()))
                .advise("make it first, or leave the parent cgroup out"));
        }
        if hierarchy.version() == Version::V2 && !base.as_os_str().is_empty() {
            check_controllers(&dir)?;
            if let Some(pid) = processes(&dir).first() {
                let message = format!("the cgroup {} has processes, {pid} among them", dir.display());
                return Err(Error::new(ErrorKind::NoCgroup, message)
                    .advise("move them to a group below it: only leaves may hold processes"));
            }
        }
    }
    Ok(())
}

fn check_controllers(dir: &Path) -> Result<()> {
    let file = dir.join("cgroup.controllers");
    let list =
        fs::read_to_string(&file).map_err(|e| Error::host(format!("cannot read {}", file.display()), e))?;
    if has_needed(&list) {
        return Ok(());
    }
    let message = format!("the cgroup {} has the controllers '{}' only", dir.display(), list.trim());
    Err(Error::new(ErrorKind::NoCgroup, message)
        .advise(format!("limits need {}; {DELEGATE}", NEEDED.join(", "))))
}

/// Puts this process beside the groups of a run, where there is a leaf for processes: the group may be another
/// unit's, with which it ends then, and not with the one that it was started from.
pub(crate) fn join_leaf(hierarchy: &Hierarchy) -> Result<()> {
    let (Version::V2, Some(root)) = (hierarchy.version(), hierarchy.root_of("")) else { return Ok(()) };
    let leaf = root.join(hierarchy.base()).join(LEAF);
    if hierarchy.base().as_os_str().is_empty() || !leaf.is_dir() {
        return Ok(());
    }
    // 0 is who writes.
    fs::write(leaf.join("cgroup.procs"), "0")
        .map_err(|e| Error::host(format!("cannot enter the cgroup {}", leaf.display()), e))
}

/// Moves all processes of a group to its leaf.
fn empty(dir: &Path) -> Result<()> {
    let leaf = dir.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Error::host(format!("cannot make the cgroup {}", leaf.display()), e));
        }
        _ => {}
    }
    let procs = leaf.join("cgroup.procs");
    let mut last = None;
    for _ in 0..MOVE_ROUNDS {
        let left = processes(dir);
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            // One that has ended meanwhile needs no move.
            last = fs::write(&procs, pid.to_string()).err().or(last);
        }
        std::thread::sleep(MOVE_PAUSE);
    }
    let cause = last.unwrap_or_else(|| Errno::BUSY.into());
    Err(Error::host(format!("cannot move the processes of {} to {}", dir.display(), leaf.display()), cause)
        .advise("they keep the cgroup from passing controllers on; name another parent cgroup"))
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
