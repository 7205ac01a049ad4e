//! Recordings of containers' starts, with real kernel objects. Needs root and `busybox`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, makedev, mkfifoat, mknodat};
use skiff_runtime::{Acceleration, Container, ContainerSpec, acceleration};
use tokio::io::AsyncReadExt;

mod bench;
use bench::{Bench, finish, loops_of, shell};

const PATIENCE: Duration = Duration::from_secs(20);

fn accelerated(script: &str) -> ContainerSpec {
    ContainerSpec { acceleration: Acceleration::On, ..shell(script) }
}

fn lists(bench: &Bench) -> Vec<PathBuf> {
    let Ok(dirs) = fs::read_dir(bench.dir.path().join("state/traces")) else { return Vec::new() };
    let files = dirs.flatten().filter_map(|dir| fs::read_dir(dir.path()).ok());
    files.flat_map(|entries| entries.flatten().map(|entry| entry.path())).collect()
}

/// The fanotify groups of this process.
fn groups() -> usize {
    let entries = fs::read_dir("/proc/self/fd").expect("fds").flatten();
    let is_group =
        |path: &Path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("fanotify"));
    entries.filter(|entry| is_group(&entry.path())).count()
}

/// Waits for the line that the script ends with, tells that the container serves, and waits until
/// the recording is kept: the output, and the list as text.
async fn record(bench: &Bench, container: &Container) -> (String, String) {
    let (mut stdout, _stderr) = container.take_output().expect("not yet taken");
    let mut out = Vec::new();
    while !out.ends_with(b"serves\n") {
        let read =
            tokio::time::timeout(PATIENCE, stdout.read_buf(&mut out)).await.expect("in time").expect("read");
        assert!(read > 0, "{}", String::from_utf8_lossy(&out));
    }
    container.ready();
    let recorded = tokio::time::timeout(PATIENCE, container.recorded()).await.expect("in time");
    assert!(recorded.is_some_and(|recorded| recorded.files > 0), "{recorded:?}");
    let [list] = &lists(bench)[..] else { panic!("{:?}", lists(bench)) };
    (String::from_utf8_lossy(&out).into_owned(), fs::read_to_string(list).expect("a list"))
}

#[tokio::test]
async fn what_is_opened_is_kept_and_the_container_sees_nothing_of_it() {
    let bench = Bench::new().await;
    fs::create_dir(bench.rootfs().join("data")).expect("mkdir");
    for name in ["used", "unused"] {
        fs::write(bench.rootfs().join("data").join(name), "text").expect("written");
    }
    let script = "ls /proc/1/fd; cat /data/used /etc/hostname; echo new > /data/own; cat /data/own; \
                  ls /proc/self/fd >/dev/null; echo serves; exec sleep 1000";
    let container = bench.start(accelerated(script)).await.expect("starts");
    assert!(groups() > 0, "it is recorded");
    let (out, list) = record(&bench, &container).await;
    assert!(out.starts_with("0\n1\n2\n"), "{out}");
    for path in ["\"bin/busybox\"", "\"data/used\""] {
        assert!(list.contains(path), "{path}: {list}");
    }
    // What is not the image's, or was never opened, is not kept.
    for path in ["unused", "data/own", "proc/1", "hostname", "rootfs"] {
        assert!(!list.contains(path), "{path}: {list}");
    }
    assert_eq!(groups(), 0);
    container.stop(Duration::ZERO).await.expect("stopped");
    bench.end().await;
}

#[tokio::test]
async fn a_container_that_ends_before_it_serves_keeps_nothing_and_holds_nothing() {
    let bench = Bench::new().await;
    let container = bench.start(accelerated("ls /bin; exit 3")).await.expect("starts");
    let (exit, _, _) = finish(&container).await;
    assert_eq!(exit.code, Some(3));
    let recorded = tokio::time::timeout(PATIENCE, container.recorded()).await.expect("in time");
    assert_eq!((recorded, groups(), lists(&bench).len()), (None, 0, 0));
    let id = container.id().to_owned();
    let free = async {
        while loops_of(&id) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("its disks are free");
    bench.end().await;
}

#[tokio::test]
async fn one_that_serves_shortly_is_kept_by_the_shutdown() {
    let bench = Bench::new().await;
    let container = bench.start(accelerated("exec sleep 1000")).await.expect("starts");
    container.ready();
    container.stop(Duration::ZERO).await.expect("stopped");
    drop(container);
    bench.runtime.shutdown().await.expect("clean");
    assert_eq!((lists(&bench).len(), groups()), (1, 0));
    let state = bench.dir.path().join("state");
    acceleration::remove(&state, "").expect("removed with the image");
    assert!(lists(&bench).is_empty());
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_group() {
    let bench = Bench::new().await;
    let spec = ContainerSpec { entrypoint: Some(vec!["/none".into()]), ..accelerated("") };
    bench.start(spec).await.expect_err("no such command");
    assert_eq!(groups(), 0);
    bench.end().await;
}

#[tokio::test]
async fn off_makes_no_group_and_no_list() {
    let bench = Bench::new().await;
    let container = bench.start(shell("exec sleep 1000")).await.expect("starts");
    container.ready();
    assert_eq!((groups(), container.recorded().await, lists(&bench).len()), (0, None, 0));
    drop(container);
    bench.end().await;
}

#[tokio::test]
async fn fifos_and_devices_are_neither_kept_nor_waited_for() {
    let bench = Bench::new().await;
    let mode = Mode::from_raw_mode(0o666);
    mkfifoat(CWD, bench.rootfs().join("fifo"), mode).expect("fifo");
    mknodat(CWD, bench.rootfs().join("device"), FileType::CharacterDevice, mode, makedev(1, 5))
        .expect("device");
    let script =
        "exec 3<>/fifo; (cat </fifo >/dev/null &) ; cat /device; ls -d /bin; echo serves; exec sleep 1000";
    let container = bench.start(accelerated(script)).await.expect("starts");
    let (_, list) = record(&bench, &container).await;
    assert!(!list.contains("fifo") && !list.contains("device"), "{list}");
    drop(container);
    // As if they had been plain files when they were recorded.
    let path = &lists(&bench)[0];
    fs::write(path, list.replace("bin/busybox", "fifo").replace("\"bin\"", "\"device\"")).expect("written");
    let container = bench.start(accelerated(script)).await.expect("starts");
    let (mut stdout, _) = container.take_output().expect("output");
    let mut first = [0; 1];
    tokio::time::timeout(PATIENCE, stdout.read_exact(&mut first)).await.expect("in time").expect("output");
    drop(container);
    bench.end().await;
}

#[tokio::test]
async fn a_container_that_opens_without_end_is_bounded() {
    let bench = Bench::new().await;
    let script = "mkdir /many; i=0; while [ $i -lt 500 ]; do echo > /many/$i; i=$((i+1)); done; echo serves; \
                  while true; do cat /bin/busybox >/dev/null; done";
    let container = bench.start(accelerated(script)).await.expect("starts");
    let (_, list) = record(&bench, &container).await;
    // All of those are in the writable layer, and no next start has them.
    assert!(!list.contains("many/") && list.contains("bin/busybox"), "{list}");
    container.stop(Duration::ZERO).await.expect("stopped");
    bench.end().await;
}
