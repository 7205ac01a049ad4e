//! Which cgroup hierarchies this host has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind, Result};

/// The controllers that a container's limits need.
pub(crate) const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];
/// The controllers of version 1 that containers have groups of. `cpuset` is here for those who look at
/// how many processors they have, as the JVM does. A group of any other hierarchy would limit nothing,
/// and every one costs each start.
const USED: [&str; 7] = ["memory", "cpu", "pids", "cpuacct", "cpuset", "freezer", "devices"];

/// How the host's controllers are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Version {
    /// A hierarchy per controller.
    V1,
    /// One hierarchy for all.
    V2,
}

/// The mounted hierarchies.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Hierarchy {
    version: Version,
    /// Controller to mount point; on version 2 the one entry `""`.
    mounts: BTreeMap<String, PathBuf>,
    /// Controllers that can be used.
    controllers: Vec<String>,
    /// The group below which Skiff makes its own, from the root of each hierarchy; empty is the root.
    base: PathBuf,
    /// Where version 2 is mounted, in use or not.
    #[serde(default)]
    unified: Option<PathBuf>,
}

/// The group of Skiff's own below the base.
const PARENT: &str = "skiff";

impl Hierarchy {
    /// Finds them in `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// `NoCgroup` when none is mounted or a controller is missing that limits need.
    pub(crate) fn detect() -> Result<Self> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(|e| Error::host("cannot read /proc/self/mountinfo", e))?;
        let found = Self::parse(&mountinfo, &|root| {
            std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
        });
        found.check()
    }

    fn parse(mountinfo: &str, v2_controllers: &dyn Fn(&Path) -> String) -> Self {
        let mut v1 = BTreeMap::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            let Some((mount_point, fs_type, options)) = parse_line(line) else { continue };
            match fs_type {
                "cgroup" => {
                    for option in options.split(',') {
                        if USED.contains(&option) {
                            v1.entry(option.to_owned()).or_insert_with(|| mount_point.clone());
                        }
                    }
                }
                "cgroup2" if v2.is_none() => v2 = Some(mount_point),
                _ => {}
            }
        }
        if v1.contains_key("memory") || v2.is_none() {
            let controllers = v1.keys().cloned().collect();
            return Self { version: Version::V1, mounts: v1, controllers, base: PathBuf::new(), unified: v2 };
        }
        let unified = v2.clone();
        let root = v2.unwrap_or_default();
        let controllers = v2_controllers(&root).split_whitespace().map(str::to_owned).collect();
        let mounts = BTreeMap::from([(String::new(), root)]);
        Self { version: Version::V2, mounts, controllers, base: PathBuf::new(), unified }
    }

    /// The same hierarchies, with Skiff's groups below this group (from each root, relative).
    #[must_use]
    pub(crate) fn based_on(&self, base: &Path) -> Self {
        Self { base: base.to_owned(), ..self.clone() }
    }

    /// The group below which Skiff makes its own, from each root; empty is the root.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    /// The group that holds the groups of all runs, from each root.
    pub(super) fn parent(&self) -> PathBuf {
        self.base.join(PARENT)
    }

    fn check(self) -> Result<Self> {
        if self.mounts.is_empty() {
            return Err(Error::new(ErrorKind::NoCgroup, "no cgroup hierarchy is mounted at /sys/fs/cgroup").advise(
                "mount cgroup version 2 with `mount -t cgroup2 none /sys/fs/cgroup`, or boot with systemd",
            ));
        }
        let missing: Vec<_> =
            NEEDED.iter().filter(|n| !self.controllers.iter().any(|c| c == *n)).copied().collect();
        if missing.is_empty() {
            return Ok(self);
        }
        Err(Error::new(
            ErrorKind::NoCgroup,
            format!("the cgroup controllers {} are missing; limits cannot be set", missing.join(", ")),
        )
        .advise("enable them in the kernel's command line or in the parent group's cgroup.subtree_control"))
    }

    /// Where version 2 is mounted, also on a hybrid host.
    pub(super) fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// The version in use. A hybrid host, whose controllers are in version 1 hierarchies, is 1.
    #[must_use]
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Whether groups can be given other names.
    pub(crate) fn renames(&self) -> bool {
        self.version() == Version::V1
    }

    /// Each hierarchy's root directory, once.
    pub(crate) fn roots(&self) -> impl Iterator<Item = &Path> {
        let mut seen: Vec<&Path> = self.mounts.values().map(PathBuf::as_path).collect();
        seen.sort_unstable();
        seen.dedup();
        seen.into_iter()
    }

    /// Each controller of version 1 with the root of its hierarchy.
    pub(super) fn controllers(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.mounts.iter().map(|(name, root)| (name.as_str(), root.as_path()))
    }

    /// Only the hierarchy with this controller.
    #[cfg(test)]
    pub(super) fn only(&self, controller: &str) -> Self {
        let mounts = self.mounts.iter().filter(|(name, _)| name.is_empty() || *name == controller);
        Self { mounts: mounts.map(|(n, p)| (n.clone(), p.clone())).collect(), ..self.clone() }
    }

    /// A version 2 hierarchy at `root`.
    #[cfg(test)]
    pub(super) fn unified_at(root: &Path) -> Self {
        let mounts = BTreeMap::from([(String::new(), root.to_owned())]);
        let controllers = NEEDED.map(str::to_owned).to_vec();
        Self {
            version: Version::V2,
            mounts,
            controllers,
            base: PathBuf::new(),
            unified: Some(root.to_owned()),
        }
    }

    /// A version 1 hierarchy for each controller that is needed, at `root`.
    #[cfg(test)]
    pub(super) fn split_at(root: &Path) -> Self {
        let controllers = [NEEDED[0], NEEDED[1], NEEDED[2], "freezer"].map(str::to_owned).to_vec();
        let mounts = controllers.iter().map(|c| (c.clone(), root.join(c))).collect();
        Self { version: Version::V1, mounts, controllers, base: PathBuf::new(), unified: None }
    }

    /// The root of the hierarchy with this controller.
    pub(crate) fn root_of(&self, controller: &str) -> Option<&Path> {
        self.mounts.get(controller).or_else(|| self.mounts.get("")).map(PathBuf::as_path)
    }
}

/// Mount point, type and super options of a line of `mountinfo` (proc_pid_mountinfo(5)).
fn parse_line(line: &str) -> Option<(PathBuf, &str, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let mount_point = left.split(' ').nth(4)?;
    let mut right = right.split(' ');
    let fs_type = right.next()?;
    let options = right.nth(1)?;
    Some((PathBuf::from(mount_point), fs_type, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
35 30 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
    const UNIFIED: &str = "31 30 0:27 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn hybrid_is_version_1() {
        let found = Hierarchy::parse(HYBRID, &|_| String::new()).check().expect("usable");
        assert_eq!(found.version(), Version::V1);
        assert_eq!(found.root_of("memory"), Some(Path::new("/sys/fs/cgroup/memory")));
        assert_eq!(found.roots().count(), 3, "nothing is done in the one without a controller");
        assert_eq!(found.unified(), Some(Path::new("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn unified_is_version_2() {
        let found =
            Hierarchy::parse(UNIFIED, &|_| "cpuset cpu io memory pids".into()).check().expect("usable");
        assert_eq!(found.version(), Version::V2);
        assert_eq!(found.root_of("memory"), Some(Path::new("/sys/fs/cgroup")));
        assert_eq!(found.unified(), found.root_of("memory"));
    }

    #[test]
    fn nothing_mounted_and_missing_controllers_are_told() {
        let none = Hierarchy::parse("", &|_| String::new()).check().expect_err("nothing mounted");
        assert_eq!(none.kind(), ErrorKind::NoCgroup);
        let some = Hierarchy::parse(UNIFIED, &|_| "cpu io".into()).check().expect_err("missing");
        assert!(some.to_string().contains("memory, pids"), "{some}");
    }
}
