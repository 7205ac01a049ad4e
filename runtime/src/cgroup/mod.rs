//! Control groups, version 1 and 2: one group per container at `BASE/skiff/RUN/CONTAINER` of every
//! hierarchy that is used. libcontainer is shown none and does nothing with them: its process is in the
//! group already when it is called, and the group's limits are set.

mod alarm;
pub(crate) mod freeze;
mod hierarchy;
mod kill;
mod limits;
mod members;
mod place;
mod stats;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

pub(crate) use alarm::OomAlarm;
pub(crate) use hierarchy::{Hierarchy, NEEDED, Version};
pub use place::CgroupParent;
pub(crate) use place::{delegated, is_marked, join_leaf, own_path, relative, settle};
pub(crate) use stats::Peak;

use crate::{Error, Result};

/// A group of one run or of one container, in every hierarchy of the host.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    hierarchy: Hierarchy,
    path: PathBuf,
}

impl Group {
    /// The group of a run: the parent of its containers' groups.
    pub(crate) fn of_run(hierarchy: Hierarchy, run: &str) -> Self {
        let path = hierarchy.parent().join(run);
        Self { hierarchy, path }
    }

    /// The group of a container of this run.
    pub(crate) fn child(&self, container: &str) -> Self {
        Self { hierarchy: self.hierarchy.clone(), path: self.path.join(container) }
    }

    /// The group of that name with the same group above it.
    pub(crate) fn beside(&self, name: &str) -> Self {
        Self { hierarchy: self.hierarchy.clone(), path: self.path.with_file_name(name) }
    }

    /// Whether both are the same group.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.path == other.path
    }

    /// The last part of its path: a container's name.
    pub(crate) fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Whether limits are those of version 2, where swap is limited by itself.
    pub(crate) fn is_unified(&self) -> bool {
        self.hierarchy.version() == Version::V2
    }

    /// Its path from the hierarchy's root, as in `/proc/PID/cgroup`.
    #[cfg(test)]
    pub(crate) fn path_from_root(&self) -> PathBuf {
        Path::new("/").join(&self.path)
    }

    /// Each controller of version 1 with the group's directory; controllers that are mounted together
    /// have the same one. None on version 2.
    pub(crate) fn v1_dirs(&self) -> Vec<(&str, PathBuf)> {
        if self.is_unified() {
            return Vec::new();
        }
        self.hierarchy.controllers().map(|(name, root)| (name, root.join(&self.path))).collect()
    }

    /// Where version 2 is mounted, also on a hybrid host, where it limits nothing.
    pub(crate) fn unified_root(&self) -> Option<&Path> {
        self.hierarchy.unified()
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

    /// Gives the group another's name, in every hierarchy or in none; processes in it stay where they are. Only
    /// version 1 can.
    pub(crate) fn rename(&self, to: &Self) -> io::Result<()> {
        let pairs: Vec<_> = self.dirs().zip(to.dirs()).collect();
        for (index, (from, to)) in pairs.iter().enumerate() {
            if let Err(e) = fs::rename(from, to) {
                for (from, to) in &pairs[..index] {
                    let _ = fs::rename(to, from);
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// On version 2 a group has those controllers that every group above it passes on; nobody else
    /// does this: libcontainer leaves a group that exists as it is. The groups above hold no
    /// processes (or are the root), as the kernel demands. Above the base they are not Skiff's.
    fn enable_controllers(&self) -> Result<()> {
        let Some(root) = self.hierarchy.root_of("") else { return Ok(()) };
        let there = fs::read_to_string(root.join(&self.path).join("cgroup.controllers")).unwrap_or_default();
        if has_needed(&there) {
            return Ok(());
        }
        let wanted = NEEDED.map(|controller| format!("+{controller}")).join(" ");
        let base = self.hierarchy.base();
        let mut above: Vec<_> = self.path.ancestors().skip(1).filter(|a| a.starts_with(base)).collect();
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

    /// The directory of a group of version 2, into which a process can be forked; none on version 1.
    pub(crate) fn v2_dir(&self) -> Option<PathBuf> {
        self.is_unified().then(|| self.dirs().next()).flatten()
    }

    /// The processes of the group and of the groups below it, as they are now.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let mut all = Vec::new();
        if let Some(root) = self.hierarchy.root_of("pids") {
            for_each_below(&root.join(&self.path), &mut |dir| all.extend(processes(dir)));
        }
        all
    }
}

/// Whether a list of controllers has those that limits need.
fn has_needed(list: &str) -> bool {
    NEEDED.iter().all(|needed| list.split_whitespace().any(|c| c == *needed))
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(container.is(&run.child("c")) && !container.is(&run));
    }

    #[test]
    fn nothing_above_the_base_is_touched() {
        let root = tempfile::tempdir().expect("tempdir");
        let hierarchy = Hierarchy::unified_at(root.path()).based_on(Path::new("a.slice/b.service"));
        let container = Group::of_run(hierarchy, "run").child("c");
        assert_eq!(container.path_from_root(), Path::new("/a.slice/b.service/skiff/run/c"));
        container.create().expect("created");
        for (group, written) in [
            ("", false),
            ("a.slice", false),
            ("a.slice/b.service", true),
            ("a.slice/b.service/skiff/run", true),
        ] {
            assert_eq!(root.path().join(group).join("cgroup.subtree_control").exists(), written, "{group}");
        }
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
