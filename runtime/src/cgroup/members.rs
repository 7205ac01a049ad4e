//! What is in a run's group, and joining a container's.

use std::fs;
use std::path::PathBuf;

use rustix::process::Pid;

use super::hierarchy::Version;
use super::{Group, processes};

impl Group {
    /// The names of the containers of this run that have a group.
    pub(crate) fn containers(&self) -> Vec<String> {
        let Some(root) = self.hierarchy.root_of("pids") else { return Vec::new() };
        let entries = fs::read_dir(root.join(&self.path)).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            // Groups of processes that start containers.
            .filter(|name| !name.contains('@'))
            .collect()
    }

    /// The files that a process with one thread writes "0" to in order to be where `member` is, which
    /// is in the group in most hierarchies.
    pub(crate) fn join_files(&self, member: Pid) -> Vec<PathBuf> {
        let name = if self.hierarchy.version() == Version::V1 { "tasks" } else { "cgroup.procs" };
        let joined = self.dirs().filter(|dir| processes(dir).contains(&member));
        joined.map(|dir| dir.join(name)).collect()
    }
}
