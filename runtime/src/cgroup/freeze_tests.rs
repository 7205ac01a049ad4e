use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::cgroup::Hierarchy;

/// A container's group in directories that no kernel looks after.
fn fake(version: Version, root: &Path) -> (Group, PathBuf) {
    let (hierarchy, dir) = match version {
        Version::V1 => (Hierarchy::split_at(root), root.join("freezer/skiff/run/c")),
        Version::V2 => (Hierarchy::unified_at(root), root.join("skiff/run/c")),
    };
    fs::create_dir_all(&dir).expect("mkdir");
    (Group::of_run(hierarchy, "run").child("c"), dir)
}

#[test]
fn what_does_not_freeze_in_time_is_thawed_and_told() {
    let root = tempfile::tempdir().expect("tempdir");
    let (group, dir) = fake(Version::V2, root.path());
    fs::write(dir.join("cgroup.freeze"), "0").expect("write");
    fs::write(dir.join("cgroup.events"), "populated 1\nfrozen 0\n").expect("write");
    let error = group.freeze(Duration::from_millis(5)).expect_err("never frozen");
    assert!(error.to_string().contains("skiff/run/c") && error.advice().is_some(), "{error}");
    assert_eq!(fs::read_to_string(dir.join("cgroup.freeze")).expect("read"), "0");
    fs::write(dir.join("cgroup.events"), "populated 1\nfrozen 1\n").expect("write");
    group.freeze(Duration::from_secs(9)).expect("frozen");
    assert_eq!(fs::read_to_string(dir.join("cgroup.freeze")).expect("read"), "1");
}

#[test]
fn thawing_breaks_a_freeze_off() {
    let root = tempfile::tempdir().expect("tempdir");
    let (group, dir) = fake(Version::V2, root.path());
    fs::write(dir.join("cgroup.freeze"), "0").expect("write");
    fs::write(dir.join("cgroup.events"), "populated 1\nfrozen 0\n").expect("write");
    let freezes = std::thread::spawn({
        let group = group.clone();
        move || group.freeze(Duration::from_secs(1000))
    });
    let until = Instant::now() + Duration::from_secs(20);
    while !freezes.is_finished() {
        assert!(Instant::now() < until, "it waits on");
        if group.is_stopped() {
            group.thaw().expect("thawed");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    freezes.join().expect("no panic").expect_err("broken off");
    assert!(!group.is_stopped());
}

#[test]
fn a_group_that_is_gone_or_cannot_freeze_is_told() {
    for version in [Version::V1, Version::V2] {
        let root = tempfile::tempdir().expect("tempdir");
        let (group, dir) = fake(version, root.path());
        for error in [group.freeze(Duration::ZERO).expect_err("no file"), group.thaw().expect_err("no file")]
        {
            assert!(error.to_string().contains(&dir.display().to_string()), "{error}");
        }
        assert_eq!(fs::read_dir(&dir).expect("read").count(), 0, "no file is made");
    }
    let root = tempfile::tempdir().expect("tempdir");
    let group = Group::of_run(Hierarchy::split_at(root.path()).only("pids"), "run");
    let error = group.freeze(Duration::ZERO).expect_err("no controller");
    assert_eq!(error.kind(), ErrorKind::NoCgroup);
}

/// A real group with real processes; killed and removed at the end.
pub(crate) struct Real(pub(crate) Group, Vec<Child>);

impl Real {
    pub(crate) fn new(name: &str) -> Self {
        let hierarchy = Hierarchy::detect().expect("this host has cgroups");
        let group = Group::of_run(hierarchy, &format!("test-{}-{name}", std::process::id())).child("c");
        group.create().expect("this test makes cgroups and needs root");
        Self(group, Vec::new())
    }

    /// Its directories in the hierarchies by which processes are found and frozen. (A group of
    /// cpuset takes nobody before it has been told its CPUs.)
    pub(crate) fn dirs(&self) -> [PathBuf; 2] {
        ["pids", "freezer"].map(|c| self.0.file(c, "").expect(c))
    }

    /// Runs a shell script in the group.
    pub(crate) fn run(&mut self, script: &str) {
        let joins = self.dirs().map(|dir| format!("echo $$ > {}/cgroup.procs", dir.display()));
        let script = format!("{} || exit 1\n{script}", joins.join(" && "));
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::null()).stderr(Stdio::null());
        self.1.push(command.spawn().expect("sh"));
    }

    /// Waits for the shells themselves, not for what they have started.
    pub(crate) fn shells_ended(&mut self) {
        for shell in &mut self.1 {
            shell.wait().expect("the end of a shell");
        }
    }

    pub(crate) fn wait_for(&self, what: &str, done: impl Fn(&Group) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !done(&self.0) {
            assert!(Instant::now() < until, "{what} does not come");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The group above, as of a run.
    fn run_group(&self) -> Group {
        let run = self.0.path.parent().and_then(|p| p.file_name()?.to_str()).expect("a name");
        Group::of_run(self.0.hierarchy.clone(), run)
    }

    /// CPU time that the processes have used, in the kernel's ticks.
    fn ticks(&self) -> u64 {
        let ticks_of = |pid: rustix::process::Pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum::<u64>()
        };
        self.0.processes().into_iter().map(ticks_of).sum()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let patience = Duration::from_secs(20);
        let ended = self.0.kill(patience).and_then(|()| self.0.remove(patience));
        for child in &mut self.1 {
            let _ = child.kill();
            let _ = child.wait();
        }
        let removed = self.run_group().remove(patience);
        Group::remove_parent_if_empty(&self.0.hierarchy);
        if !std::thread::panicking() {
            ended.and(removed).expect("killed and removed");
        }
    }
}

#[test]
fn the_frozen_get_no_cpu_until_they_are_thawed() {
    let mut real = Real::new("freeze");
    let dir = tempfile::tempdir().expect("tempdir");
    let joined = ["a", "b"].map(|name| dir.path().join(name));
    for file in &joined {
        real.run(&format!(": > {}; while :; do :; done", file.display()));
    }
    // One that joins later would bring the time with it that it has had.
    real.wait_for("work", |_| joined.iter().all(|file| file.exists()) && real.ticks() > 2);
    real.0.freeze(Duration::from_secs(5)).expect("frozen");
    real.0.freeze(Duration::from_secs(5)).expect("frozen still");
    let before = real.ticks();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(real.ticks(), before, "the frozen work");
    real.0.thaw().expect("thawed");
    real.0.thaw().expect("thawed already");
    real.wait_for("more work", |_| real.ticks() > before);
}

#[test]
fn the_frozen_are_killed() {
    let mut real = Real::new("kill-frozen");
    real.run("exec sleep 1000");
    real.wait_for("a process", |group| !group.processes().is_empty());
    real.0.freeze(Duration::from_secs(5)).expect("frozen");
    // By the group above, as a run is killed.
    let seen = real.run_group().kill_once();
    // Version 2 kills all at once, before they are counted.
    assert!(seen <= 1, "{seen}");
    real.wait_for("its end", |group| group.processes().is_empty());
}
