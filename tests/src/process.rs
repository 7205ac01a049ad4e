//! Processes, as `/proc` shows them.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// One process. Its start time tells it from another that gets the same number later.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub started: u64,
    /// Name, at most 15 bytes.
    pub name: String,
    /// Parent process id.
    pub parent: u32,
    /// State letter; `Z` is a zombie.
    pub state: char,
}

impl Process {
    /// The process of this id, if there is one.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split_whitespace().collect();
        Some(Self {
            pid,
            name,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }

    /// All processes.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::of).collect()
    }

    /// The children of a process.
    #[must_use]
    pub fn children_of(pid: u32) -> Vec<Self> {
        Self::all().into_iter().filter(|process| process.parent == pid).collect()
    }

    /// Whether this very process is still there, as more than a zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now.started == self.started && now.state != 'Z')
    }

    /// Sends it a signal, if it is still there.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw).filter(|_| self.is_alive()) {
            // It may end at any moment.
            let _ = kill_process(pid, signal);
        }
    }

    /// Its cgroup paths, one line for each hierarchy.
    #[must_use]
    pub fn cgroups(&self) -> String {
        fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default()
    }

    /// The directory of its cgroup in the hierarchy of version 1 with this controller, or in that of
    /// version 2 where the controller is in none of those.
    ///
    /// # Panics
    /// When it has ended, or the hierarchy is not mounted.
    #[track_caller]
    #[must_use]
    pub fn cgroup_dir(&self, controller: &str) -> PathBuf {
        let groups = self.cgroups();
        // `NUMBER:CONTROLLER,…:/PATH` (cgroups(7)), without controllers for version 2.
        let of = |controller: &str| {
            groups.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let here = fields.next()?.split(',').any(|name| name == controller);
                fields.next().filter(|_| here).map(|path| path.trim_start_matches('/').to_owned())
            })
        };
        let v1 = of(controller);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mount = mounts.lines().find(|line| match v1 {
            Some(_) => line.contains(" - cgroup ") && line.rsplit([' ', ',']).any(|name| name == controller),
            None => line.contains(" - cgroup2 "),
        });
        let root = mount.and_then(|line| line.split(' ').nth(4)).expect("a hierarchy");
        let path = v1.or_else(|| of("")).unwrap_or_else(|| panic!("no cgroup in: {groups}"));
        Path::new(root).join(path)
    }
}

/// Sends a signal to a process that the caller started or found as a descendant of one.
///
/// # Panics
/// When the id is none or the signal cannot be sent.
pub fn send(pid: u32, signal: Signal) {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(raw, signal).unwrap_or_else(|error| panic!("cannot send {signal:?} to {pid}: {error}"));
}

/// Whether the tests run as root; they cannot do without.
///
/// # Panics
/// When they do not.
pub fn require_root() {
    let root = rustix::process::geteuid().is_root();
    assert!(root, "integration tests start containers: run them as root (sudo scripts/test)");
}

/// Bytes that are free on the filesystem of a path.
///
/// # Panics
/// When the path cannot be asked.
#[must_use]
pub fn free_bytes(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).expect("statvfs");
    stat.f_bfree * stat.f_frsize
}

/// Whether this process may raise limits over its own (`CAP_SYS_RESOURCE`, number 24).
#[must_use]
pub fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits >> 24 & 1 == 1)
}
