//! What there was before, to be compared with what there is after.
//!
//! Other tests run at the same time, so counts alone tell nothing. What is compared is what is new:
//! every mount, cgroup, network namespace, loop device, process and file that is there after a run
//! and was not before must vanish soon. What belongs to other tests vanishes with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::Process;
use crate::{Sandbox, wait_for};

/// How long other tests' containers may live on after this one has ended, in a slow machine too.
const PATIENCE: Duration = Duration::from_secs(90);

/// A snapshot of everything that a run could leave behind.
#[derive(Debug)]
pub struct Baseline {
    seen: BTreeSet<String>,
    state: PathBuf,
    run: PathBuf,
}

impl Baseline {
    /// Takes the snapshot; `sandbox`'s directories are looked through, images aside.
    #[must_use]
    pub fn take(sandbox: &Sandbox) -> Self {
        let (state, run) = (sandbox.state_dir().to_owned(), sandbox.run_dir());
        Self { seen: everything(&state, &run), state, run }
    }

    /// What is there now and was not then.
    #[must_use]
    pub fn news(&self) -> BTreeSet<String> {
        everything(&self.state, &self.run).difference(&self.seen).cloned().collect()
    }

    /// How many of the new things are of one kind: `mount`, `cgroup`, `netns`, `loop`, `process`,
    /// `file` or `directory`.
    #[must_use]
    pub fn count(&self, kind: &str) -> usize {
        let prefix = format!("{kind} ");
        self.news().iter().filter(|line| line.starts_with(&prefix)).count()
    }

    /// Waits until nothing of what is new now is left.
    ///
    /// # Panics
    /// With the list of what is left behind.
    #[track_caller]
    pub fn assert_restored(&self) {
        let mut left = self.news();
        let gone = wait_for(PATIENCE, || {
            if !left.is_empty() {
                let now = everything(&self.state, &self.run);
                left.retain(|line| now.contains(line));
            }
            left.is_empty().then_some(())
        });
        let list: Vec<String> = left.into_iter().collect();
        assert!(gone.is_some(), "left behind:\n  {}", list.join("\n  "));
    }
}

fn everything(state: &Path, run: &Path) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let processes = Process::all();
    mounts(&mut lines);
    cgroups(&mut lines);
    loop_devices(&mut lines);
    network_namespaces(&processes, &mut lines);
    skiff_processes(&processes, &mut lines);
    files(state, state, &mut lines);
    files(state, run, &mut lines);
    for dir in ["/run", "/tmp", "/var/tmp", "/dev/shm"] {
        temporary(Path::new(dir), &mut lines);
    }
    lines
}

fn mounts(lines: &mut BTreeSet<String>) {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    lines.extend(text.lines().map(|line| format!("mount {line}")));
}

/// Skiff's groups, in every hierarchy. The common parent of all runs counts when it is empty: else
/// it belongs to whoever runs.
fn cgroups(lines: &mut BTreeSet<String>) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    for mount in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        let Some(root) = mount.split(' ').nth(4) else { continue };
        for parent in parents(Path::new(root)) {
            let mut groups = Vec::new();
            for_each_directory(&parent, &mut |path| groups.push(path.to_owned()));
            if groups.len() > 1 {
                groups.retain(|path| *path != parent);
            }
            lines.extend(groups.iter().map(|path| format!("cgroup {}", path.display())));
        }
    }
}

/// Where Skiff's groups may be in a hierarchy: at the top, or in the group that systemd has delegated to
/// the tests, which are in it or in a leaf of it.
fn parents(root: &Path) -> BTreeSet<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").expect("cgroup");
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    [Path::new(""), Path::new(own), Path::new(own).parent().unwrap_or(Path::new(""))]
        .map(|group| root.join(group).join("skiff"))
        .into()
}

fn for_each_directory(dir: &Path, call: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    call(dir);
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            for_each_directory(&entry.path(), call);
        }
    }
}

fn loop_devices(lines: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir("/sys/block") else { return };
    for entry in entries.flatten() {
        if let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) {
            lines.insert(format!("loop {} {}", entry.file_name().display(), file.trim()));
        }
    }
}

/// Namespaces that a process is in or that are mounted; others cannot outlive their descriptors,
/// which are their process's. The kernel gives the number of an ended namespace to a new one at
/// once, so a namespace is told by its number and its oldest process.
fn network_namespaces(processes: &[Process], lines: &mut BTreeSet<String>) {
    let mut oldest: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    for process in processes {
        if let Ok(meta) = fs::metadata(format!("/proc/{}/ns/net", process.pid)) {
            let this = (process.started, process.pid);
            oldest.entry(meta.ino()).and_modify(|known| *known = this.min(*known)).or_insert(this);
        }
    }
    lines.extend(oldest.iter().map(|(number, (started, pid))| format!("netns {number} of {pid} {started}")));
}

/// Skiff's own processes and those in its cgroups; zombies too.
fn skiff_processes(processes: &[Process], lines: &mut BTreeSet<String>) {
    for process in processes {
        let own = process.name == "skiff" || process.name.starts_with("skiff-keeper");
        if own || process.cgroups().contains("/skiff/") {
            let Process { pid, started, name, .. } = process;
            lines.insert(format!("process {pid} {name} {started}"));
        }
    }
}

/// Files and directories of the state directory that are about images.
const IMAGES: [&str; 11] = [
    "chains",
    "layers",
    "blobs",
    "images",
    "manifests",
    "leases",
    "pins",
    "unsettled",
    "traces",
    "gc.lock",
    "documents.lock",
];

/// What a state directory is meant to keep: images and what is known of them, what their starts
/// touched, records of what is billed, and an empty formatted disk of each cap (bytes and inodes) and use.
fn is_kept(state: &Path, path: &Path) -> bool {
    let Ok(name) = path.strip_prefix(state) else { return false };
    let image = IMAGES.iter().any(|dir| name.starts_with(dir));
    let record = name.starts_with("meter") && name.extension().is_some_and(|end| end == "meter");
    let name = name.to_string_lossy();
    let disk = name.strip_prefix("disks/ext4-").and_then(|rest| rest.strip_suffix(".img"));
    let disk = disk.and_then(|disk| disk.strip_suffix("-writable").or(disk.strip_suffix("-tmp")));
    let numbers = |cap: &str| cap.split('-').all(|number| number.parse::<u64>().is_ok());
    image || record || disk.is_some_and(numbers)
}

/// Everything below a directory, except what is meant to stay and the state directory's own first
/// level.
fn files(state: &Path, dir: &Path, lines: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if is_kept(state, &path) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if dir != state {
                lines.insert(format!("directory {}", path.display()));
            }
            files(state, &path, lines);
        } else {
            lines.insert(format!("file {}", path.display()));
        }
    }
}

/// Names in directories for temporary files that Skiff or libcontainer could have made.
fn temporary(dir: &Path, lines: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = ["skiff", "youki", "libcontainer"].iter().any(|part| name.contains(part));
        // What user namespaces' ids are claimed by; empty, and meant to stay.
        if ours && !name.starts_with("skiff-test") && name != "skiff.ids" {
            lines.insert(format!("file {}", entry.path().display()));
        }
    }
}
