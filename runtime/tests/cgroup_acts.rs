//! That limits of CPU time act, and where the groups are on a host without systemd. Needs root, and
//! `busybox` from Debian's package `busybox-static`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use skiff_runtime::{Container, ContainerSpec};

mod bench;
use bench::{Bench, finish, group_file, shell};

/// How long CPU time is counted.
const WINDOW: Duration = Duration::from_secs(3);
const BUSY: &str = "while :; do :; done";

async fn until_busy(container: &Container) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while container.stats().cpu < Duration::from_millis(20) {
        assert!(container.exited().is_none(), "{:?}", container.exited());
        assert!(tokio::time::Instant::now() < deadline, "{:?}", container.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_cpu_quota_is_held_by_all_processes_together() {
    let bench = Bench::new().await;
    let script = format!("for i in 1 2 3; do ({BUSY}) & done; wait");
    let container = bench.start(ContainerSpec { cpu_millis: 200, ..shell(&script) }).await.expect("starts");
    until_busy(&container).await;
    let (before, began) = (container.stats().cpu, Instant::now());
    tokio::time::sleep(WINDOW).await;
    let used = container.stats().cpu - before;
    let wall = began.elapsed();
    // A fifth of one processor, which three processes would use up; a period (100 ms) more at each end, and
    // less where others have the processors.
    assert!(used < wall * 3 / 10 && used > wall / 100, "{used:?} of {wall:?}");
    drop(container);
    bench.end().await;
}

/// Binds the first process to one processor that this one may use.
fn pin(container: &Container) {
    let own = sched_getaffinity(None).expect("processors");
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|cpu| own.is_set(*cpu)).expect("one at least"));
    let pid = Pid::from_raw(container.pid().cast_signed()).expect("a pid");
    sched_setaffinity(Some(pid), &one).expect("bound");
}

#[tokio::test]
async fn who_has_more_weight_gets_more_of_a_processor() {
    let bench = Bench::new().await;
    let mut containers = Vec::new();
    for cpu_weight in [100, 1000] {
        let container = bench.start(ContainerSpec { cpu_weight, cpu_millis: 0, ..shell(BUSY) }).await;
        let container = container.expect("starts");
        pin(&container);
        containers.push(container);
    }
    for container in &containers {
        until_busy(container).await;
    }
    let used = || [0, 1].map(|number: usize| containers[number].stats().cpu);
    let before = used();
    tokio::time::sleep(WINDOW).await;
    let after = used();
    let (light, heavy) = (after[0] - before[0], after[1] - before[1]);
    assert!(heavy > light * 4, "{light:?} with a weight of 100, {heavy:?} with 1000");
    assert!(light > Duration::ZERO, "it gets nothing at all");
    drop(containers);
    bench.end().await;
}

/// This process in a group of its own at the top, as where nobody delegates; back again when dropped.
struct Alone {
    group: PathBuf,
    was: PathBuf,
}

impl Alone {
    fn new() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let was = root.join(own_group().trim_start_matches('/'));
        let group = root.join(format!("skiff-test-{}", std::process::id()));
        fs::create_dir(&group).expect("a group");
        let alone = Self { group, was };
        fs::write(alone.group.join("cgroup.procs"), "0").expect("moved");
        alone
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = fs::write(self.was.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.group);
    }
}

fn own_group() -> String {
    let text = fs::read_to_string("/proc/self/cgroup").expect("cgroup");
    text.lines().find_map(|line| line.strip_prefix("0::")).expect("version 2").to_owned()
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "why it is skipped")]
async fn without_a_delegated_group_all_is_below_skiff() {
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        eprintln!("skipped: cgroup version 2 only");
        return;
    }
    let alone = Alone::new();
    let own = own_group();
    assert!(alone.group.ends_with(own.trim_start_matches('/')), "{own}");
    let bench = Bench::new().await;
    let run = bench.runtime.dir().file_name().and_then(|name| name.to_str()).expect("utf-8").to_owned();
    let spec =
        || ContainerSpec { memory_bytes: 16 << 20, cpu_millis: 200, pids: 17, ..shell("exec sleep 1000") };
    let container = bench.start(spec()).await.expect("starts");
    let group = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).expect("cgroup");
    assert_eq!(group.trim(), format!("0::/skiff/{run}/{}", container.id()));
    assert_eq!(own_group(), own, "nobody is moved");
    let value = |file: &str| group_file(&container, ("memory", ""), file);
    assert_eq!((value("memory.max").as_str(), value("cpu.max").as_str()), ("16777216", "20000 100000"));
    assert_eq!(value("memory.swap.max"), "0");
    container.freeze().await.expect("freezes");
    assert_eq!(value("cgroup.freeze"), "1");
    container.stop(Duration::ZERO).await.expect("stops");
    let eat = ContainerSpec {
        entrypoint: Some(
            ["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=60"].map(str::to_owned).to_vec(),
        ),
        ..spec()
    };
    let eater = bench.start(eat).await.expect("starts");
    assert!(finish(&eater).await.0.oom_killed, "{:?}", eater.stats());
    drop((container, eater));
    bench.end().await;
    assert!(!Path::new("/sys/fs/cgroup/skiff").exists(), "the parent of all runs is left");
}
