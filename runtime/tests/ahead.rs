//! Containers that are made before there are orders for them. Needs root, and `busybox` from Debian's package
//! `busybox-static`; cgroup version 1.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use skiff_runtime::{Container, ContainerSpec, ErrorKind, Network, Runtime, RuntimeOptions};

mod bench;
use bench::{Bench, directories, finish, group_file, keeper_of, kill, shell, wait_until_gone};

/// What a process sees of itself and of its container.
const LOOK: &str = "cat /proc/self/status /proc/self/limits /proc/self/mountinfo; id; pwd; hostname; env; \
                    ls -la / /dev /etc; echo fds= /proc/1/fd/*; cat /etc/hosts /proc/1/cgroup";

#[allow(clippy::print_stderr, reason = "why a test is skipped is part of the result")]
fn version_1() -> bool {
    let there = Path::new("/sys/fs/cgroup/pids").exists();
    if !there {
        eprintln!("skipped: groups of cgroup version 2 cannot be renamed, so nothing is made ahead");
    }
    there
}

async fn with(containers_ahead: usize) -> Bench {
    let bench = Bench::new().await;
    bench.runtime.shutdown().await.expect("clean shutdown");
    let dir = bench.dir.path();
    let runtime = Runtime::open(RuntimeOptions {
        containers_ahead,
        keeper: Some(env!("CARGO_BIN_EXE_skiff-keeper").into()),
        ..RuntimeOptions::new(dir.join("state"), dir.join("run"))
    });
    Bench { runtime: runtime.await.expect("a runtime on this host"), ..bench }
}

/// A container that had been made ahead.
async fn start_waiting(bench: &Bench, spec: &ContainerSpec) -> Container {
    for attempt in 0..200 {
        // The name of one that is ending is not free yet.
        let spec = ContainerSpec { id: format!("{}-{attempt}", spec.id), ..spec.clone() };
        let container = bench.start(spec).await.expect("starts");
        if container.timings().create.is_zero() {
            return container;
        }
        drop(container);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no container is made ahead");
}

/// The processes in groups of waiting containers.
fn waiting(bench: &Bench) -> BTreeSet<u32> {
    let run = bench.runtime.dir().file_name().expect("a name").to_str().expect("utf-8").to_owned();
    let groups = directories(Path::new("/sys/fs/cgroup/pids"), &run);
    let below = groups.iter().flat_map(|group| fs::read_dir(group).into_iter().flatten().flatten());
    let ahead = below.filter(|entry| entry.file_name().to_string_lossy().starts_with('@'));
    let texts = ahead.map(|entry| fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default());
    texts.flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

async fn until_waiting(bench: &Bench, processes: usize) -> BTreeSet<u32> {
    let mut before = BTreeSet::new();
    for _ in 0..200 {
        let found = waiting(bench);
        // One that is being made has as many for a moment, others.
        if found.len() == processes && found == before {
            return found;
        }
        before = found;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} processes wait, not {processes}", waiting(bench).len());
}

/// Without what differs from one container to the next: numbers of mounts, processes and devices, and names of disks.
fn comparable(text: &str) -> Vec<String> {
    let words = |line: &str, skip: usize| line.split_whitespace().skip(skip).collect::<Vec<_>>().join(" ");
    let mut lines = Vec::new();
    for line in text.lines() {
        let is_mount = line.split_whitespace().nth(2).is_some_and(|device| {
            device.split_once(':').is_some_and(|(major, _)| major.bytes().all(|b| b.is_ascii_digit()))
        });
        if is_mount {
            let (mount, kind) = line.split_once(" - ").expect("a line of mountinfo");
            let kind = kind.split_whitespace().next().expect("a kind");
            lines.push(format!("{} {kind}", words(mount, 4)));
        } else if line.starts_with(['C', 'U', 'G', 'N', 'S', 'M', 'u']) && !line.contains("Pid") {
            let of_state =
                ["ctxt", "VmPeak", "State", "Signal", "Shmem", "SigQ", "Mems", "Cpus", "Speculation"];
            if !of_state.iter().any(|name| line.contains(name)) {
                lines.push(line.to_owned());
            }
        } else if line.starts_with(['d', 'l', 'c', '-']) {
            // Of `ls`: without sizes and times, and without links, of which /proc has one for each process of the host.
            let parts: Vec<_> = line.split_whitespace().collect();
            if let [mode, _, owner, group, .., name] = parts.as_slice() {
                lines.push(format!("{mode} {owner} {group} {name}"));
            }
        } else if line.contains('=') || line.contains("ip6") || line.contains(":/") {
            lines.push(line.to_owned());
        }
    }
    lines
}

#[tokio::test]
async fn what_was_made_ahead_is_as_any_other() {
    if !version_1() {
        return;
    }
    let (bench, other) = (with(2).await, Bench::new().await);
    fs::create_dir_all(bench.rootfs().join("etc")).expect("mkdir");
    fs::create_dir_all(other.rootfs().join("etc")).expect("mkdir");
    let passwd = "app:x:1000:1001::/home/app:/bin/sh\n";
    let groups = "app:x:1001:\nvideo:x:44:app\n";
    for rootfs in [bench.rootfs(), other.rootfs()] {
        fs::write(rootfs.join("etc/passwd"), passwd).expect("write");
        fs::write(rootfs.join("etc/group"), groups).expect("write");
    }
    let plain = shell(LOOK);
    let user = ContainerSpec { user: Some("app".into()), working_dir: Some("/srv/a".into()), ..shell(LOOK) };
    let rigid = ContainerSpec { read_only: true, nofile: 77, pids: 20, hostname: "b".into(), ..shell(LOOK) };
    for spec in [plain, user, rigid] {
        let ahead = start_waiting(&bench, &spec).await;
        assert_eq!(group_file(&ahead, ("memory", "memory.limit_in_bytes"), "memory.max"), "268435456");
        assert_eq!(
            group_file(&ahead, ("pids", "pids.max"), "pids.max")
                .parse::<u32>()
                .ok()
                .map(|n| n - spec.pids < 3),
            Some(true)
        );
        let (exit, seen, err) = finish(&ahead).await;
        assert_eq!((exit.code, err.as_str()), (Some(0), ""), "{seen}");
        let anew = other.start(spec).await.expect("starts");
        assert!(!anew.timings().create.is_zero(), "nothing is made ahead without being asked for");
        let (_, expected, _) = finish(&anew).await;
        assert!(comparable(&seen).len() > 60, "{seen}");
        assert_eq!(comparable(&seen), comparable(&expected));
    }
    bench.end().await;
    other.end().await;
}

#[tokio::test]
async fn those_that_are_taken_are_replaced_and_none_is_taken_twice() {
    if !version_1() {
        return;
    }
    let bench = Arc::new(with(3).await);
    until_waiting(&bench, 6).await;
    let starts = (0..12).map(|_| {
        let bench = Arc::clone(&bench);
        tokio::spawn(async move {
            let (exit, out, _) = bench.sh("hostname; cat /proc/net/fib_trie | id -u", |_| {}).await;
            (exit.code, out)
        })
    });
    for start in starts.collect::<Vec<_>>() {
        assert_eq!(start.await.expect("no panic"), (Some(0), "inside\n0\n".into()));
    }
    until_waiting(&bench, 6).await;
    Arc::into_inner(bench).expect("the last").end().await;
}

#[tokio::test]
async fn one_whose_process_dies_costs_nobody_a_start() {
    if !version_1() {
        return;
    }
    let bench = with(1).await;
    for victim in [0, 1] {
        let processes: Vec<u32> = until_waiting(&bench, 2).await.into_iter().collect();
        kill(processes[victim]);
        wait_until_gone(processes[victim]).await;
        let (exit, out, _) = bench.sh("echo well", |_| {}).await;
        assert_eq!((exit.code, out.as_str()), (Some(0), "well\n"));
        wait_until_gone(processes[1 - victim]).await;
    }
    until_waiting(&bench, 2).await;
    bench.end().await;
}

#[tokio::test]
async fn they_die_with_their_keeper_and_the_next_one_makes_others() {
    if !version_1() {
        return;
    }
    let bench = with(2).await;
    let before = until_waiting(&bench, 4).await;
    kill(keeper_of(bench.runtime.dir()));
    for process in before {
        wait_until_gone(process).await;
    }
    let (exit, ..) = bench.sh("true", |_| {}).await;
    assert_eq!(exit.code, Some(0));
    until_waiting(&bench, 4).await;
    let container = start_waiting(&bench, &shell("true")).await;
    finish(&container).await;
    bench.end().await;
}

#[tokio::test]
async fn a_start_that_needs_another_network_takes_none() {
    if !version_1() {
        return;
    }
    let bench = with(1).await;
    let before = until_waiting(&bench, 2).await;
    for spec in [
        ContainerSpec { network: Network::Host, ..shell("true") },
        ContainerSpec { address: Some("169.254.7.7".parse().expect("address")), ..shell("true") },
        ContainerSpec { userns: true, ..shell("true") },
    ] {
        let container = bench.start(spec).await.expect("starts");
        assert!(!container.timings().create.is_zero());
        finish(&container).await;
    }
    assert_eq!(waiting(&bench), before);
    bench.end().await;
}

#[tokio::test]
async fn starts_that_fail_leave_nothing_of_what_was_made_for_them() {
    if !version_1() {
        return;
    }
    let bench = with(2).await;
    for _ in 0..3 {
        until_waiting(&bench, 4).await;
        for (spec, kind) in [
            (ContainerSpec { user: Some("nobody".into()), ..shell("true") }, ErrorKind::UnknownUser),
            (
                ContainerSpec { entrypoint: Some(vec!["/none".into()]), ..shell("true") },
                ErrorKind::CommandNotFound,
            ),
        ] {
            assert_eq!(bench.start(spec).await.expect_err("fails").kind(), kind);
        }
    }
    until_waiting(&bench, 4).await;
    bench.end().await;
}

#[tokio::test]
async fn too_many_are_refused_by_number() {
    let bench = Bench::new().await;
    let options = RuntimeOptions {
        containers_ahead: 65,
        keeper: Some(env!("CARGO_BIN_EXE_skiff-keeper").into()),
        ..RuntimeOptions::new(bench.dir.path().join("state"), bench.dir.path().join("run"))
    };
    let error = Runtime::open(options).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("65"), "{error}");
    bench.end().await;
}
