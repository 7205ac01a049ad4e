//! Control groups, version 1 and 2: one group per container at `/skiff/RUN/CONTAINER` of every
//! hierarchy. libcontainer joins the group and writes the limits; making, reading, killing and
//! removing it is here, because a group must be removed also after libcontainer's own process died.

mod hierarchy;
mod members;
mod stats;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use hierarchy::NEEDED;
pub(crate) use hierarchy::{Hierarchy, Version};

use crate::{Error, Result};

/// The group below which all groups of all runs live.
pub(crate) const PARENT: &str = "skiff";

/// A group of one run or of one container, in every hierarchy of the host.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    hierarchy: Hierarchy,
    path: PathBuf,
}

impl Group {
    /// The group of a run: the parent of its containers' groups.
    pub(crate) fn of_run(hierarchy: Hierarchy, run: &str) -> Self {
        Self { hierarchy, path: Path::new(PARENT).join(run) }
    }

    /// The group of a container of this run.
    pub(crate) fn child(&self, container: &str) -> Self {
        Self { hierarchy: self.hierarchy.clone(), path: self.path.join(container) }
    }

    /// The group of the process that starts this container, in the one hierarchy that is enough to
    /// find and kill it and all that it forks. It is beside the container's own group, because
    /// libcontainer kills all in that one when a start fails, before it has told why. No container
    /// is named so: `@` is not allowed in names.
    pub(crate) fn starter(&self) -> Self {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push("@");
        Self { hierarchy: self.hierarchy.only("pids"), path: self.path.with_file_name(name) }
    }

    /// Whether both are the same group.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.path == other.path
    }

    /// Whether limits are those of version 2, where swap is limited by itself.
    pub(crate) fn is_unified(&self) -> bool {
        self.hierarchy.version() == Version::V2
    }

    /// The path for the runtime specification's `cgroupsPath`: absolute, from the hierarchy's root.
    pub(crate) fn spec_path(&self) -> PathBuf {
        Path::new("/").join(&self.path)
    }

    /// Its directory in each version 1 hierarchy; none on version 2.
    pub(crate) fn v1_dirs(&self) -> Vec<PathBuf> {
        if self.hierarchy.version() == Version::V2 { Vec::new() } else { self.dirs().collect() }
    }

    fn dirs(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.hierarchy.roots().map(|root| root.join(&self.path))
    }

    /// Makes the group in every hierarchy.
    pub(crate) fn create(&self) -> Result<()> {
        for dir in self.dirs() {
            create_dir_racing(&dir)
                .map_err(|e| Error::host(format!("cannot make the cgroup {}", dir.display()), e))?;
        }
        if self.is_unified() { self.enable_controllers() } else { Ok(()) }
    }

    /// On version 2 a group has those controllers that every group above it passes on; nobody else
    /// does this: libcontainer leaves a group that exists as it is. The groups above hold no
    /// processes (or are the root), as the kernel demands.
    fn enable_controllers(&self) -> Result<()> {
        let Some(root) = self.hierarchy.root_of("") else { return Ok(()) };
        let there = fs::read_to_string(root.join(&self.path).join("cgroup.controllers")).unwrap_or_default();
        if NEEDED.iter().all(|needed| there.split_whitespace().any(|c| c == *needed)) {
            return Ok(());
        }
        let wanted = NEEDED.map(|controller| format!("+{controller}")).join(" ");
        let mut above: Vec<_> = self.path.ancestors().skip(1).collect();
        above.reverse();
        for group in above {
            let file = root.join(group).join("cgroup.subtree_control");
            fs::write(&file, &wanted).map_err(|e| {
                Error::host(format!("cannot write '{wanted}' to {}", file.display()), e)
                    .advise("the cgroup above must have these controllers and no processes of its own")
            })?;
        }
        Ok(())
    }

    /// Moves this process into the group, in the hierarchy of a [`Group::starter`] (libcontainer
    /// joins the container's group).
    pub(crate) fn join(&self) -> Result<()> {
        let Some(root) = self.hierarchy.root_of("pids") else {
            return Err(Error::new(crate::ErrorKind::NoCgroup, "the cgroup controller pids is missing"));
        };
        // On version 1 a thread that moves itself takes no global lock; a whole process waits for
        // an RCU grace period, milliseconds. The caller has one thread, so both are the same.
        let name = if self.hierarchy.version() == Version::V1 { "tasks" } else { "cgroup.procs" };
        let file = root.join(&self.path).join(name);
        fs::write(&file, "0")
            .map_err(|e| Error::host(format!("cannot join the cgroup {}", file.display()), e))
    }

    /// Makes the next joins of cgroups on this host quick, for some milliseconds. Blocks for about
    /// as long: call it beside other work, when a start begins.
    ///
    /// libcontainer moves its process by `cgroup.procs`, for which the kernel takes a global lock
    /// that waits for an RCU grace period, 10 ms, unless the lock was held shortly before. This
    /// process moves into the group that it is in, which changes nothing and has waited already.
    pub(crate) fn hasten_joins(hierarchy: &Hierarchy) {
        let Some(file) = own_group(hierarchy) else { return };
        // Where it cannot be written, starts only take longer.
        let _ = fs::write(file.join("cgroup.procs"), "0");
    }

    /// The processes of the group and of the groups below it, as they are now.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let mut all = Vec::new();
        if let Some(root) = self.hierarchy.root_of("pids") {
            for_each_below(&root.join(&self.path), &mut |dir| all.extend(processes(dir)));
        }
        all
    }

    /// Sends SIGKILL to every process of the group and of the groups below it; tells how many
    /// there were.
    pub(crate) fn kill_once(&self) -> usize {
        self.dirs().map(|dir| kill_tree(&dir)).sum()
    }

    /// Kills every process of the group and of the groups below it. Processes that fork while this
    /// runs are found by repeating until none is left, for at most `patience`.
    pub(crate) fn kill(&self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        loop {
            let alive = self.kill_once();
            if alive == 0 {
                return Ok(());
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
            let _ = fs::remove_dir(root.join(PARENT));
        }
    }
}

/// The directory of this process's own group, in the hierarchy with the pids controller.
fn own_group(hierarchy: &Hierarchy) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let wanted = match hierarchy.version() {
        Version::V1 => "pids",
        Version::V2 => "",
    };
    // `NUMBER:CONTROLLER,…:/PATH` (cgroups(7))
    let path = text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let here = fields.next()?.split(',').any(|controller| controller == wanted);
        fields.next().filter(|_| here)
    })?;
    Some(hierarchy.root_of("pids")?.join(path.trim_start_matches('/')))
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::BUSY | Errno::NOTEMPTY))
}

/// `mkdir -p`, where another run may remove an empty parent at the same moment.
fn create_dir_racing(dir: &Path) -> io::Result<()> {
    const ATTEMPTS: usize = 100;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for _ in 0..ATTEMPTS {
        match fs::create_dir_all(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

/// Sends SIGKILL to every process at and below `dir`; tells how many there were.
fn kill_tree(dir: &Path) -> usize {
    let mut seen = 0;
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return count_tree(dir);
    }
    for_each_below(dir, &mut |d| {
        for pid in processes(d) {
            seen += 1;
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    seen
}

fn count_tree(dir: &Path) -> usize {
    let mut seen = 0;
    for_each_below(dir, &mut |d| seen += processes(d).len());
    seen
}

fn processes(dir: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw).collect()
}

/// Calls `f` for `dir` and every directory below it.
fn for_each_below(dir: &Path, f: &mut dyn FnMut(&Path)) {
    f(dir);
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            for_each_below(&entry.path(), f);
        }
    }
}

/// Removes `dir` bottom-up. A directory that is gone already is fine.
fn remove_tree(dir: &Path) -> io::Result<()> {
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
mod tests {
    use super::*;

    #[test]
    fn hastening_changes_no_group() {
        let hierarchy = Hierarchy::detect().expect("this host has cgroups");
        let read = || fs::read_to_string("/proc/self/cgroup").expect("cgroup");
        let before = read();
        let own = own_group(&hierarchy).expect("this process is in a group");
        assert!(own.join("cgroup.procs").exists(), "{}", own.display());
        Group::hasten_joins(&hierarchy);
        assert_eq!(read(), before);
    }

    #[test]
    fn groups_above_pass_the_controllers_on_in_version_2() {
        let root = tempfile::tempdir().expect("tempdir");
        let run = Group::of_run(Hierarchy::unified_at(root.path()), "run");
        let container = run.child("c");
        container.create().expect("created");
        for above in ["", "skiff", "skiff/run"] {
            let file = root.path().join(above).join("cgroup.subtree_control");
            assert_eq!(fs::read_to_string(&file).expect(above), "+memory +cpu +pids");
        }
        let own = root.path().join("skiff/run/c/cgroup.subtree_control");
        assert!(!own.exists(), "a group with processes may not pass controllers on");
        let starter = container.starter();
        starter.create().expect("created");
        assert!(root.path().join("skiff/run/c@").is_dir());
        assert!(starter.is(&run.child("c").starter()) && !starter.is(&container));
    }

    #[test]
    fn controllers_that_are_there_are_not_enabled_again() {
        let root = tempfile::tempdir().expect("tempdir");
        let container = Group::of_run(Hierarchy::unified_at(root.path()), "run").child("c");
        let dir = root.path().join("skiff/run/c");
        fs::create_dir_all(&dir).expect("mkdir");
        fs::write(dir.join("cgroup.controllers"), "cpuset cpu io memory pids\n").expect("write");
        container.create().expect("created");
        assert!(!root.path().join("cgroup.subtree_control").exists());
    }
}
