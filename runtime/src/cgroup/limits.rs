//! The limits of a container, written to its group by Skiff itself: a few writes, where libcontainer
//! would look for each file along the whole path, and join each group by a way that makes it wait.

use std::io;
use std::path::Path;

use super::freeze::write_existing;
use super::{Group, Version};
use crate::keeper::protocol::Limits;
use crate::{Error, OomPolicy, Result};

/// The default of both versions, which no group has been given another of.
const CPU_PERIOD_US: u64 = 100_000;
/// A twentieth of the usual.
const LEAST_SHARES: &str = "51";
const USUAL_SHARES: &str = "1024";
/// Processes of a start that are in the group beside the container's: the start process, and
/// libcontainer's between that and the init.
const STARTERS: u32 = 2;

/// What `/dev` of any container has: null, zero, full, tty, random, urandom, ptmx, pts. The init makes
/// the first six of them (`m`); version 2 has no such list, and no container may make device nodes.
const DEVICES: [&str; 8] =
    ["c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 5:0 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:2 rw", "c 136:* rw"];

impl Group {
    /// Sets the limits of a group that is new. There may be a few more processes than the limit says
    /// until [`Group::limit_processes`]: those of its start.
    ///
    /// # Errors
    /// `Host`, naming file and value.
    pub(crate) fn limit(&self, limits: &Limits) -> Result<()> {
        self.limit_memory(limits)?;
        self.limit_cpu(limits)?;
        match limits.pids {
            0 => Ok(()),
            pids => self.set("pids", "pids.max", &pids.saturating_add(STARTERS).to_string()),
        }
    }

    /// Has its processes give way to all others, or not any more. Only version 1 is asked for it.
    ///
    /// # Errors
    /// `Host`.
    pub(crate) fn give_way(&self, yes: bool) -> Result<()> {
        self.set("cpu", "cpu.shares", if yes { LEAST_SHARES } else { USUAL_SHARES })
    }

    /// Has exactly so many processes at most from now on.
    ///
    /// # Errors
    /// `Host`; when the group is gone too.
    pub(crate) fn limit_processes(&self, pids: u32) -> Result<()> {
        self.set("pids", "pids.max", &pids.to_string())
    }

    /// Swap is off wherever it can be limited.
    fn limit_memory(&self, limits: &Limits) -> Result<()> {
        let v2 = self.is_unified();
        if v2 && limits.oom == OomPolicy::KillContainer {
            // Since Linux 4.19; without it the keeper looks.
            self.set_if_there("memory", "memory.oom.group", "1")?;
        }
        if limits.memory_bytes == 0 {
            return Ok(());
        }
        let bytes = limits.memory_bytes.to_string();
        if v2 {
            self.set("memory", "memory.max", &bytes)?;
            self.set_if_there("memory", "memory.swap.max", "0")
        } else {
            self.set("memory", "memory.limit_in_bytes", &bytes)?;
            // Of memory and swap together, and not less than that of memory.
            self.set_if_there("memory", "memory.memsw.limit_in_bytes", &bytes)
        }
    }

    fn limit_cpu(&self, limits: &Limits) -> Result<()> {
        let v2 = self.is_unified();
        if limits.cpu_millis > 0 {
            let quota = u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000;
            if v2 {
                self.set("cpu", "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
            } else {
                self.set("cpu", "cpu.cfs_quota_us", &quota.to_string())?;
            }
        }
        match limits.cpu_weight {
            0 => Ok(()),
            weight if v2 => self.set("cpu", "cpu.weight", &weight.to_string()),
            weight => self.set("cpu", "cpu.shares", &shares(weight).to_string()),
        }
    }

    /// Makes the group of a run, before those of its containers: these have what version 1 lets them
    /// take over. The kernel takes one rule on devices at a time.
    ///
    /// # Errors
    /// `Host`, naming file and value.
    pub(crate) fn prepare(&self) -> Result<()> {
        self.create()?;
        if self.is_unified() {
            return Ok(());
        }
        if let Some(root) = self.hierarchy.root_of("cpuset") {
            self.fill_cpuset(root)?;
        }
        if self.file("devices", "").is_some() {
            self.set("devices", "devices.deny", "a")?;
            DEVICES.iter().try_for_each(|rule| self.set("devices", "devices.allow", rule))?;
        }
        Ok(())
    }

    /// A group of version 1's cpuset that is just made has neither processors nor memory nodes, and takes
    /// no process. Gives all groups on the way those of the group above, and has Skiff's next groups get
    /// theirs when they are made.
    fn fill_cpuset(&self, root: &Path) -> Result<()> {
        let mut groups: Vec<_> =
            self.path.ancestors().filter(|group| !group.as_os_str().is_empty()).collect();
        groups.reverse();
        for group in groups {
            let dir = root.join(group);
            for name in ["cpuset.cpus", "cpuset.mems"] {
                let read = |dir: &Path| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
                if let (true, Some(above)) = (read(&dir).trim().is_empty(), dir.parent()) {
                    let (file, value) = (dir.join(name), read(above));
                    write_existing(&file, value.trim()).map_err(|e| not_written(&file, value.trim(), e))?;
                }
            }
            if group.starts_with(self.hierarchy.parent()) {
                let file = dir.join("cgroup.clone_children");
                write_existing(&file, "1").map_err(|e| not_written(&file, "1", e))?;
            }
        }
        Ok(())
    }

    fn set(&self, controller: &str, name: &str, value: &str) -> Result<()> {
        let file = self.file(controller, name).ok_or_else(|| {
            Error::new(crate::ErrorKind::NoCgroup, format!("the cgroup controller {controller} is missing"))
        })?;
        write_existing(&file, value).map_err(|e| not_written(&file, value, e))
    }

    /// For files that not every kernel has.
    fn set_if_there(&self, controller: &str, name: &str, value: &str) -> Result<()> {
        let Some(file) = self.file(controller, name) else { return Ok(()) };
        match write_existing(&file, value) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(not_written(&file, value, e)),
            _ => Ok(()),
        }
    }

    /// Moves this process, which has one thread, into the group of the one hierarchy that is enough to
    /// find and kill it and all that it forks. On version 2 that is the only one.
    pub(crate) fn join_first(&self) -> Result<()> {
        self.join(&["pids"])
    }

    /// Moves this process into the group of the other hierarchies. In that of devices it can use none
    /// but a container's from now on.
    pub(crate) fn join_rest(&self) -> Result<()> {
        match self.hierarchy.version() {
            Version::V1 => self.join(&["memory", "cpu", "cpuacct", "cpuset", "freezer", "devices"]),
            Version::V2 => Ok(()),
        }
    }

    fn join(&self, controllers: &[&str]) -> Result<()> {
        let mut joined: Vec<&Path> = Vec::new();
        for root in controllers.iter().filter_map(|controller| self.hierarchy.root_of(controller)) {
            // Controllers may be mounted together.
            if !joined.contains(&root) {
                joined.push(root);
                self.join_in(root)?;
            }
        }
        Ok(())
    }

    /// On version 1 a thread that moves itself takes no global lock; a whole process waits for an RCU
    /// grace period, milliseconds. The caller has one thread, so both are the same.
    fn join_in(&self, root: &Path) -> Result<()> {
        let name = if self.is_unified() { "cgroup.procs" } else { "tasks" };
        let file = root.join(&self.path).join(name);
        write_existing(&file, "0")
            .map_err(|e| Error::host(format!("cannot join the cgroup {}", file.display()), e))
    }
}

fn not_written(file: &Path, value: &str, e: io::Error) -> Error {
    Error::host(format!("cannot write '{value}' to {}", file.display()), e)
}

/// The shares of version 1 with the effect of a weight of version 2: the kernel counts a weight of
/// 100 as 1024 shares (`cpu_weight_write_u64`), and so does systemd.
fn shares(weight: u32) -> u64 {
    const MIN_SHARES: u64 = 2;
    ((u64::from(weight) * 1024 + 50) / 100).max(MIN_SHARES)
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
