//! Limits of real containers: what happens at each, what is told of it, and what is left. Needs
//! root, and `busybox` from Debian's package `busybox-static`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use skiff_runtime::{Container, ContainerSpec, ErrorKind, ExecSpec, OomPolicy, Stats, Writable};

mod bench;
use bench::{Bench, finish, group_file, keeper_of, kill, shell, wait_until_gone};

const MIB: u64 = 1 << 20;
/// More than the memory of [`small`], in memory that the kernel cannot take back.
const EAT: &str = "dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null";

fn small(script: &str, oom: OomPolicy) -> ContainerSpec {
    ContainerSpec { memory_bytes: 16 * MIB, oom, ..shell(script) }
}

async fn until(container: &Container, what: &str, reached: impl Fn(&Stats) -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !reached(&container.stats()) {
        assert!(container.exited().is_none(), "it ended before {what}: {:?}", container.exited());
        assert!(tokio::time::Instant::now() < deadline, "no {what}: {:?}", container.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_init_without_memory_is_killed_and_that_is_told() {
    let bench = Bench::new().await;
    for oom in [OomPolicy::KillContainer, OomPolicy::KillProcess] {
        let container = bench.start(small(&format!("exec {EAT}"), oom)).await.expect("starts");
        let (exit, ..) = finish(&container).await;
        assert!(exit.oom_killed && exit.signal == Some(9), "{oom:?}: {exit:?}");
        let stats = container.stats();
        assert!(stats.oom_kills > 0, "{stats:?}");
        assert!(stats.memory_peak_bytes <= 16 * MIB, "{stats:?}");
        // Debian 12's kernel and later tell the peak; older ones of version 2 do not.
        assert!(stats.memory_peak_bytes > 12 * MIB, "{stats:?}");
        assert!(stats.cpu > Duration::ZERO, "{stats:?}");
    }
    bench.end().await;
}

#[tokio::test]
async fn a_child_without_memory_takes_the_container_with_it() {
    let bench = Bench::new().await;
    let script = format!("({EAT}); echo lived on; while :; do sleep 1; done");
    let container = bench.start(small(&script, OomPolicy::KillContainer)).await.expect("starts");
    let (exit, ..) = finish(&container).await;
    assert!(exit.oom_killed && exit.signal == Some(9), "{exit:?}");
    assert!(container.stats().oom_kills > 0);
    // The usual init of an image without one: a shell that ends with its command's code.
    let (exit, ..) = bench.sh(&format!("({EAT}); exit $?"), |s| s.memory_bytes = 16 * MIB).await;
    assert!(exit.oom_killed && exit.shell_code() == 137, "{exit:?}");
    bench.end().await;
}

#[tokio::test]
async fn an_init_that_outlives_its_child_is_not_said_to_be_killed() {
    let bench = Bench::new().await;
    let script = format!("({EAT}); echo child $?; busybox rm -f /dev/shm/x; read line < /tmp/go; exit 7");
    let script = format!("busybox mkfifo /tmp/go; {script}");
    let one = bench.start(small(&script, OomPolicy::KillProcess)).await.expect("starts");
    until(&one, "kill", |stats| stats.oom_kills == 1).await;
    fs::write(format!("/proc/{}/root/tmp/go", one.pid()), "\n").expect("go");
    let (exit, out, _) = finish(&one).await;
    assert_eq!((exit.code, exit.oom_killed), (Some(7), false), "{exit:?}");
    assert_eq!(out, "child 137\n");
    assert_eq!(one.stats().oom_kills, 1);

    // What kills it later is told from that.
    let other = bench.start(small(&script, OomPolicy::KillProcess)).await.expect("starts");
    until(&other, "kill", |stats| stats.oom_kills == 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    kill(other.pid());
    let (exit, ..) = finish(&other).await;
    assert_eq!((exit.signal, exit.oom_killed), (Some(9), false), "{exit:?}");
    bench.end().await;
}

#[tokio::test]
async fn a_kill_from_outside_is_not_one_for_want_of_memory() {
    let bench = Bench::new().await;
    for oom in [OomPolicy::KillContainer, OomPolicy::KillProcess] {
        let container = bench.start(small("sleep 1000", oom)).await.expect("starts");
        kill(container.pid());
        let (exit, ..) = finish(&container).await;
        assert_eq!((exit.signal, exit.oom_killed), (Some(9), false), "{exit:?}");
        assert_eq!(container.stats().oom_kills, 0);
        let container = bench.start(small("sleep 1000", oom)).await.expect("starts");
        let exit = container.stop(Duration::ZERO).await.expect("stops");
        assert_eq!((exit.signal, exit.oom_killed), (Some(9), false), "{exit:?}");
    }
    bench.end().await;
}

#[tokio::test]
async fn what_is_written_to_a_tmpfs_is_the_containers_memory() {
    let bench = Bench::new().await;
    for dir in ["/", "/tmp/"] {
        let script = format!("exec dd if=/dev/zero of={dir}x bs=1M count=60");
        let spec = ContainerSpec {
            writable: Writable::Tmpfs,
            writable_bytes: 100 * MIB,
            tmp_bytes: 100 * MIB,
            ..small(&script, OomPolicy::KillContainer)
        };
        let container = bench.start(spec).await.expect("starts");
        let (exit, ..) = finish(&container).await;
        assert!(exit.oom_killed, "{dir}: {exit:?}");
    }
    bench.end().await;
}

#[tokio::test]
async fn a_fork_bomb_is_held_and_killed() {
    let bench = Bench::new().await;
    // A shell that cannot fork ends, so the init is none.
    let script = "(b() { b & b & }; b) & exec sleep 1000";
    let bomb = || ContainerSpec { pids: 60, ..shell(script) };
    let container = bench.start(bomb()).await.expect("starts");
    until(&container, "bomb", |stats| stats.forks_refused > 0).await;
    // The kernel counts a process before it refuses it, so a moment may show more.
    until(&container, "limit", |stats| stats.processes <= 60).await;
    let stopped = tokio::time::timeout(Duration::from_secs(60), container.stop(Duration::ZERO));
    stopped.await.expect("within a minute").expect("stops");
    assert!(container.stats().forks_refused > 0, "{:?}", container.stats());
    // Beside one that is frozen, and one that nobody stops before the runtime ends.
    let frozen = bench.start(bomb()).await.expect("starts");
    until(&frozen, "bomb", |stats| stats.forks_refused > 0).await;
    frozen.freeze().await.expect("freezes");
    let left = bench.start(bomb()).await.expect("starts");
    until(&left, "bomb", |stats| stats.forks_refused > 0).await;
    bench.end().await;
}

#[tokio::test]
async fn the_least_limit_of_processes_lets_a_command_run() {
    let bench = Bench::new().await;
    let (exit, ..) = bench.sh("exit 3", |s| s.pids = 2).await;
    assert_eq!(exit.code, Some(3));
    let error = bench.start(ContainerSpec { pids: 1, ..shell("true") }).await.expect_err("too little");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    bench.end().await;
}

#[tokio::test]
async fn the_weight_is_in_the_group() {
    let bench = Bench::new().await;
    let weight = |cpu_weight| ContainerSpec { cpu_weight, ..shell("sleep 1000") };
    for (given, v1, v2) in
        [(0, "1024", "100"), (1, "10", "1"), (250, "2560", "250"), (10_000, "102400", "10000")]
    {
        let container = bench.start(weight(given)).await.expect("starts");
        let found = group_file(&container, ("cpu", "cpu.shares"), "cpu.weight");
        assert!(found == v1 || found == v2, "{given} is {found}");
    }
    let error = bench.start(weight(10_001)).await.expect_err("too much");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    bench.end().await;
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "why it is skipped")]
async fn devices_are_those_of_dev_where_the_kernel_has_a_list() {
    if !Path::new("/sys/fs/cgroup/devices").is_dir() {
        eprintln!("skipped: cgroup version 2 has no list of devices");
        return;
    }
    let bench = Bench::new().await;
    let container = bench.start(shell("sleep 1000")).await.expect("starts");
    let mut list: Vec<_> =
        group_file(&container, ("devices", "devices.list"), "").lines().map(str::to_owned).collect();
    list.sort();
    let devices = ["136:* rw", "1:3 rwm", "1:5 rwm", "1:7 rwm", "1:8 rwm", "1:9 rwm", "5:0 rwm", "5:2 rw"];
    assert_eq!(list, devices.map(|device| format!("c {device}")));
    bench.end().await;
}

#[tokio::test]
async fn the_limit_of_processes_is_exact_when_the_start_has_ended() {
    let bench = Bench::new().await;
    let container = bench.start(ContainerSpec { pids: 17, ..shell("sleep 1000") }).await.expect("starts");
    let limit = || group_file(&container, ("pids", "pids.max"), "pids.max");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while limit() != "17" {
        assert!(tokio::time::Instant::now() < deadline, "it is {}", limit());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    until(&container, "end of the start", |stats| stats.processes == 1).await;
    bench.end().await;
}

/// The kernel's notes of processes that were moved to other groups, while this lives.
struct Moves(PathBuf);

impl Moves {
    fn watch() -> Self {
        let dir = PathBuf::from(format!("/sys/kernel/tracing/instances/skiff-test-{}", std::process::id()));
        fs::create_dir(&dir).expect("tracefs is mounted at /sys/kernel/tracing");
        let moves = Self(dir);
        fs::write(moves.0.join("events/cgroup/cgroup_attach_task/enable"), "1").expect("an event");
        moves
    }

    fn to(&self, group: &str) -> Vec<String> {
        let notes = fs::read_to_string(self.0.join("trace")).expect("notes");
        notes.lines().filter(|line| line.contains(group)).map(str::to_owned).collect()
    }
}

impl Drop for Moves {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A move waits for an RCU grace period, milliseconds.
#[tokio::test]
#[expect(clippy::print_stderr, reason = "why it is skipped")]
async fn a_start_moves_no_process_where_one_can_be_forked_into_its_group() {
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        eprintln!("skipped: processes are forked into groups of cgroup version 2 only");
        return;
    }
    let bench = Bench::new().await;
    let run = bench.runtime.dir().file_name().and_then(|name| name.to_str()).expect("utf-8").to_owned();
    let moves = Moves::watch();
    let container = bench.start(shell("exec sleep 1000")).await.expect("starts");
    assert_eq!(moves.to(&run), Vec::<String>::new());
    // One of another program is: there are notes.
    let spec = ExecSpec { argv: vec!["pwd".into()], ..ExecSpec::default() };
    let keeper = Path::new(env!("CARGO_BIN_EXE_skiff-keeper"));
    container.exec(spec, Some(keeper)).await.expect("starts").wait().await.expect("ends");
    assert_eq!(moves.to(&run).len(), 1, "{:?}", moves.to(&run));
    drop(container);
    bench.end().await;
}

/// Two processes that count, each into a file.
const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n > /tmp/a; done & \
                     trap 'exit 5' TERM; n=0; while :; do n=$((n+1)); echo $n > /tmp/b; done";

fn counts(container: &Container) -> [String; 2] {
    ["a", "b"]
        .map(|f| fs::read_to_string(format!("/proc/{}/root/tmp/{f}", container.pid())).unwrap_or_default())
}

async fn counting(container: &Container) {
    let before = counts(container);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let now = counts(container);
        if now.iter().zip(&before).all(|(now, before)| !now.is_empty() && now != before) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "it does not count: {now:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_frozen_container_stands_still_until_it_is_thawed() {
    let bench = Bench::new().await;
    let container = bench.start(shell(COUNT)).await.expect("starts");
    counting(&container).await;
    container.freeze().await.expect("freezes");
    container.freeze().await.expect("is frozen");
    let (before, used) = (counts(&container), container.stats().cpu);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(counts(&container), before);
    assert!(container.stats().cpu - used < Duration::from_millis(100), "the frozen use CPU time");
    container.thaw().expect("thaws");
    container.thaw().expect("is thawed");
    counting(&container).await;

    // A stop reaches the frozen: its handler runs.
    container.freeze().await.expect("freezes");
    let exit = container.stop(Duration::from_secs(60)).await.expect("stops");
    assert_eq!(exit.code, Some(5), "{exit:?}");
    for error in [container.freeze().await.expect_err("ended"), container.thaw().expect_err("ended")] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("has ended"), "{error}");
    }
    bench.end().await;
}

#[tokio::test]
async fn frozen_containers_end_in_every_way() {
    let bench = Bench::new().await;
    let frozen = async || {
        let container = bench.start(shell(COUNT)).await.expect("starts");
        counting(&container).await;
        container.freeze().await.expect("freezes");
        container
    };
    let stopped = frozen().await;
    let exit = stopped.stop(Duration::ZERO).await.expect("stops");
    assert_eq!(exit.signal, Some(Signal::KILL.as_raw()));
    let dropped = frozen().await;
    let pid = dropped.pid();
    drop(dropped);
    wait_until_gone(pid).await;
    let killed = frozen().await;
    kill(killed.pid());
    // In version 2 it ends though it is frozen, and may have ended by now.
    if let Err(error) = killed.thaw() {
        assert!(error.to_string().contains("has ended"), "{error}");
    }
    assert_eq!(killed.wait().await.expect("ends").signal, Some(Signal::KILL.as_raw()));
    let _left = frozen().await;
    bench.end().await;
}

#[tokio::test]
async fn a_frozen_container_of_a_dead_keeper_is_removed() {
    let bench = Bench::new().await;
    let container = bench.start(shell(COUNT)).await.expect("starts");
    counting(&container).await;
    container.freeze().await.expect("freezes");
    let pid = container.pid();
    kill(keeper_of(bench.runtime.dir()));
    let error = container.wait().await.expect_err("the keeper is dead");
    assert_eq!(error.kind(), ErrorKind::KeeperLost);
    bench.end().await;
    wait_until_gone(pid).await;
}

#[tokio::test]
async fn a_name_is_used_again_without_what_was_before() {
    let bench = Bench::new().await;
    let named =
        |script: &str| ContainerSpec { id: "again".into(), ..small(script, OomPolicy::KillContainer) };
    for _ in 0..5 {
        let first = bench.start(named(&format!("exec {EAT}"))).await.expect("starts");
        assert!(finish(&first).await.0.oom_killed);
        let second = bench.start(named("exec sleep 1000")).await.expect("starts");
        drop(first);
        second.freeze().await.expect("freezes");
        let exit = second.stop(Duration::ZERO).await.expect("stops");
        assert!(!exit.oom_killed, "{exit:?}");
        assert_eq!(second.stats().oom_kills, 0);
        let third = bench.start(named("exit 3")).await.expect("starts");
        let (exit, ..) = finish(&third).await;
        assert_eq!((exit.code, exit.oom_killed), (Some(3), false), "{exit:?}");
    }
    bench.end().await;
}

#[tokio::test]
async fn freezing_beside_a_stop_does_not_keep_it_from_ending() {
    let bench = Bench::new().await;
    for _ in 0..20 {
        let container = bench.start(shell(COUNT)).await.expect("starts");
        let stop = tokio::time::timeout(Duration::from_secs(60), container.stop(Duration::ZERO));
        let (frozen, stopped) = tokio::join!(container.freeze(), stop);
        stopped.expect("ends").expect("stops");
        if let Err(error) = frozen {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
        }
    }
    bench.end().await;
}

/// How long freezing and thawing take. Nothing is judged: `cargo test --release -- --ignored
/// --nocapture freeze_takes`.
#[tokio::test]
#[ignore = "measures"]
#[expect(clippy::print_stdout, reason = "what it measures")]
async fn freeze_takes() {
    const ROUNDS: usize = 500;
    let bench = Bench::new().await;
    for processes in [1, 10, 100] {
        let script =
            format!("i=1; while [ $i -lt {processes} ]; do sleep 1000 & i=$((i+1)); done; exec sleep 1000");
        let container = bench.start(ContainerSpec { pids: 200, ..shell(&script) }).await.expect("starts");
        until(&container, "processes", |stats| stats.processes == processes).await;
        let (mut freezes, mut thaws) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let began = std::time::Instant::now();
            container.freeze().await.expect("freezes");
            freezes.push(began.elapsed());
            let began = std::time::Instant::now();
            container.thaw().expect("thaws");
            thaws.push(began.elapsed());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for (what, mut times) in [("freeze", freezes), ("thaw", thaws)] {
            times.sort();
            println!(
                "{what} {processes} processes: median {:?}, p99 {:?}, most {:?}",
                times[ROUNDS / 2],
                times[ROUNDS * 99 / 100],
                times[ROUNDS - 1]
            );
        }
    }
    bench.end().await;
}
