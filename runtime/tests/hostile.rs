//! Containers that mean harm, requests out of bounds, and deaths at the worst moments; hostile images are in
//! `hostile_image.rs`. Needs root, and `busybox` from Debian's package `busybox-static`.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use skiff_runtime::{ContainerSpec, ErrorKind, Writable};

mod bench;
use bench::{Bench, assert_gone, finish, keeper_of, kill, open, shell, wait_until_gone};

/// The children of a process, with the states of `proc_pid_stat(5)`.
fn children(pid: u32) -> Vec<(u32, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let state = |child: u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next().map(|state| (child, state))
    };
    text.split_whitespace().filter_map(|c| state(c.parse().ok()?)).collect()
}

/// What the container has there is only known inside it.
#[tokio::test]
async fn a_directory_that_is_not_in_sys_is_told() {
    let bench = Bench::new().await;
    let spec = ContainerSpec { working_dir: Some("/sys/none".into()), ..shell("true") };
    let error = bench.start(spec).await.expect_err("no such directory");
    assert_eq!(error.kind(), ErrorKind::InvalidWorkingDirectory, "{error:?}");
    assert!(error.chain().contains("'/sys/none': No such file"), "{error:?}");
    bench.end().await;
}

#[tokio::test]
async fn errors_hold_no_control_characters_of_the_image() {
    let bench = Bench::new().await;
    for command in ["/\u{1b}[2J\u{1}".repeat(2000), "\u{1b}]0;x\u{7}".into()] {
        let spec = ContainerSpec { entrypoint: Some(vec![command]), ..shell("") };
        let error = bench.start(spec).await.expect_err("no such command");
        assert!(!error.chain().contains(char::is_control), "{error:?}");
    }
    bench.end().await;
}

#[tokio::test]
async fn fork_bombs_and_floods_stay_inside() {
    let bench = Bench::new().await;
    // The shell itself goes on without forking: it would end when that fails.
    let script = "f() { f | f & }; (f) & i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done; echo done";
    let (_, out, err) = bench.sh(script, |s| s.pids = 20).await;
    assert!(out.contains("done") && err.contains("fork"), "{out} {err}");
    let (exit, out, _) = bench.sh("exec dd if=/dev/zero bs=1M count=20", |_| {}).await;
    assert_eq!((exit.code, out.len()), (Some(0), 20 << 20));
    bench.end().await;
}

#[tokio::test]
async fn many_layers_and_long_paths_are_mounted() {
    for name in ["a:b,c d", &"x".repeat(240)] {
        let dir = tempfile::tempdir().expect("tempdir");
        let base = dir.path().join(name);
        fs::create_dir(&base).expect("mkdir");
        let bench = Bench { runtime: open(&base).await, dir };
        bench.fill_rootfs();
        let mut image = bench.image();
        for number in 0..127 {
            let layer = base.join(format!("layer{number}"));
            fs::create_dir(&layer).expect("mkdir");
            fs::write(layer.join("which"), number.to_string()).expect("write");
            image.layers.push(layer);
        }
        let container = bench.runtime.start(&image, shell("cat /which")).await.expect("starts");
        assert_eq!(finish(&container).await.1, "126");
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zombies_do_not_gather_while_there_is_always_a_start() {
    const TASKS: usize = 6;
    const STARTS: usize = 40;
    let bench = Arc::new(Bench::new().await);
    let keeper = keeper_of(bench.runtime.dir());
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                for _ in 0..STARTS {
                    let spec = ContainerSpec { writable: Writable::Tmpfs, ..shell("true") };
                    bench.start(spec).await.expect("starts").wait().await.expect("ends");
                }
            })
        })
        .collect();
    let mut most = 0;
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        most = most.max(children(keeper).iter().filter(|(_, state)| *state == 'Z').count());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    assert!(most < TASKS * STARTS / 3, "{most} zombies at once of {} starts", TASKS * STARTS);
    Arc::into_inner(bench).expect("last owner").end().await;
}

#[tokio::test]
async fn a_keeper_killed_in_mid_start_leaves_nothing_for_the_next_run() {
    for stopped in [false, true] {
        for micros in [0, 2000, 5000, 10_000, 20_000] {
            let bench = Bench::new().await;
            let keeper = keeper_of(bench.runtime.dir());
            let run = bench.runtime.dir().to_owned();
            let (runtime, image) = (Arc::clone(&bench.runtime), bench.image());
            let spec = ContainerSpec { writable: Writable::Tmpfs, ..shell("sleep 1000") };
            let start = tokio::spawn(async move { runtime.start(&image, spec).await.map(|c| c.pid()) });
            tokio::time::sleep(Duration::from_micros(micros)).await;
            let forked: Vec<_> = children(keeper).into_iter().map(|(pid, _)| pid).collect();
            // One that has not executed its first instruction yet has all that its keeper has. Stopped
            // there and orphaned, only who stopped it can end it; it is not what this is about.
            let begun = |pid: u32| {
                let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
                !fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("lock")))
            };
            for pid in forked.iter().filter(|pid| stopped && begun(**pid)) {
                signal(*pid, rustix::process::Signal::STOP);
            }
            kill(keeper);
            // A start that was just reported is as right as one that was lost.
            let _ = start.await.expect("no panic");
            let Bench { runtime, dir } = bench;
            drop(runtime);
            let next = open(dir.path()).await;
            let name = run.file_name().and_then(|n| n.to_str()).expect("name");
            assert_gone(&run, name);
            for pid in forked {
                wait_until_gone(pid).await;
            }
            next.shutdown().await.expect("clean shutdown");
        }
    }
}

/// Stops the first child that is seen, unless what makes it is over before.
async fn stop_first_child(of: u32, over: impl Fn() -> bool) -> Option<u32> {
    while !over() {
        if let Some((pid, _)) = children(of).first() {
            signal(*pid, rustix::process::Signal::STOP);
            return Some(*pid);
        }
        tokio::task::yield_now().await;
    }
    None
}

#[tokio::test]
async fn a_stopped_start_is_ended_by_its_deadline_and_its_name_is_free_again() {
    let bench = Bench::new().await;
    let keeper = keeper_of(bench.runtime.dir());
    let spec = || ContainerSpec {
        id: "same".into(),
        writable: Writable::Tmpfs,
        deadline: Duration::from_millis(1500),
        ..shell("sleep 1; echo alive")
    };
    let mut tries = 0;
    let stopped = loop {
        let (runtime, image, first) = (Arc::clone(&bench.runtime), bench.image(), spec());
        let start = tokio::spawn(async move { runtime.start(&image, first).await });
        let stopped = stop_first_child(keeper, || start.is_finished()).await;
        match start.await.expect("no panic") {
            // On a busy host the start may be over, or nearly, when this comes to stop it.
            Ok(_) if tries < 20 => tries += 1,
            started => {
                let error = started.expect_err("it was stopped");
                assert_eq!(error.kind(), ErrorKind::StartTimedOut, "{error:?}");
                break stopped.expect("a process");
            }
        }
    };
    let again = bench.start(ContainerSpec { deadline: Duration::ZERO, ..spec() }).await.expect("starts");
    assert_eq!(finish(&again).await.1, "alive\n");
    wait_until_gone(stopped).await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_runtimes_at_once_share_a_run_directory() {
    let dir = tempfile::tempdir().expect("tempdir");
    for _ in 0..3 {
        let opens: Vec<_> = (0..10)
            .map(|_| {
                let dir = dir.path().to_owned();
                tokio::spawn(async move { open(&dir).await.shutdown().await })
            })
            .collect();
        for opened in opens {
            opened.await.expect("no panic").expect("clean shutdown");
        }
        assert_eq!(fs::read_dir(dir.path().join("run")).expect("read").count(), 0);
    }
}

#[tokio::test]
async fn secrets_are_in_no_process_but_the_containers_own() {
    let bench = Bench::new().await;
    let keeper = keeper_of(bench.runtime.dir());
    let secret = "hunter2-in-the-environment";
    let spec = ContainerSpec { env: vec![("KEY".into(), secret.into())], ..shell("exec sleep 1000") };
    let container = bench.start(spec).await.expect("starts");
    let holds = |pid: u32, file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).expect("readable by root");
        String::from_utf8_lossy(&bytes).contains(secret)
    };
    // The command has been executed; its environment is readable a moment later.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !holds(container.pid(), "environ") {
        assert!(std::time::Instant::now() < deadline, "the container has no environment");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for (pid, file) in [(keeper, "environ"), (keeper, "cmdline"), (container.pid(), "cmdline")] {
        assert!(!holds(pid, file), "{pid} {file}");
    }
    let grep =
        std::process::Command::new("grep").args(["-rqsF", "--", secret]).arg(bench.dir.path()).status();
    assert_eq!(grep.expect("grep runs").code(), Some(1), "the secret is in a file");
    bench.end().await;
}

/// The daemon of [`a_daemon_killed_at_any_moment_leaves_nothing`]: tells its keeper, the limit of
/// descriptors in a container, and that it is ready; then starts containers for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is run by another test, in a process of its own"]
async fn daemon() {
    let dir = std::path::PathBuf::from(std::env::var_os("SKIFF_TEST_DIR").expect("a directory"));
    let bench = Bench { runtime: open(&dir).await, dir: tempfile::tempdir_in(&dir).expect("tempdir") };
    bench.fill_rootfs();
    let spec = ContainerSpec { nofile: 0, ..shell("ulimit -n") };
    let (_, limit, _) = finish(&bench.start(spec).await.expect("starts")).await;
    fs::write(dir.join("limit"), limit).expect("write");
    fs::write(dir.join("run-path"), bench.runtime.dir().to_str().expect("utf-8")).expect("write");
    let mut kept = Vec::new();
    fs::write(dir.join("keeper"), keeper_of(bench.runtime.dir()).to_string()).expect("write");
    loop {
        kept.push(bench.start(shell("sleep 1000")).await.expect("starts"));
    }
}

#[tokio::test]
async fn a_daemon_killed_at_any_moment_leaves_nothing() {
    for (both, millis) in [(false, 0), (false, 7), (false, 13), (true, 3), (true, 11)] {
        let dir = tempfile::tempdir().expect("tempdir");
        let exe = std::env::current_exe().expect("own path");
        let command = "ulimit -Sn 128; exec \"$0\" --exact daemon --ignored";
        let mut daemon = std::process::Command::new("sh")
            .args(["-c", command, exe.to_str().expect("utf-8")])
            .env("SKIFF_TEST_DIR", dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("runs");
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        while read("keeper").is_empty() {
            assert!(daemon.try_wait().expect("a child").is_none(), "the daemon has died early");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(read("limit").trim(), "128", "containers keep the daemon's limit");
        let keeper: u32 = read("keeper").parse().expect("a pid");
        let limits = fs::read_to_string(format!("/proc/{keeper}/limits")).expect("keeper lives");
        let nofile = limits.lines().find(|l| l.starts_with("Max open files")).expect("a line");
        let words: Vec<_> = nofile.split_whitespace().collect();
        assert_eq!(words[3], words[4], "the keeper has as many descriptors as it may");
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let forked = children(keeper);
        if both {
            signal(keeper, rustix::process::Signal::STOP);
        }
        daemon.kill().expect("kill");
        daemon.wait().expect("wait");
        let run = std::path::PathBuf::from(read("run-path"));
        if both {
            kill(keeper);
        }
        wait_until_gone(keeper).await;
        // With both dead, an init that had not come to its command waits for the next start.
        let next = if both { Some(open(dir.path()).await) } else { None };
        for (pid, _) in forked {
            wait_until_gone(pid).await;
        }
        let next = match next {
            Some(next) => next,
            None => open(dir.path()).await,
        };
        assert_gone(&run, run.file_name().and_then(|n| n.to_str()).expect("name"));
        next.shutdown().await.expect("clean shutdown");
    }
}

/// A filesystem of 20 MiB, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let disk = Self(tempfile::tempdir().expect("tempdir"));
        let made = disk.sh("truncate -s 20M img && mkfs.ext4 -q -F img && mkdir m && mount -o loop img m");
        assert!(made, "a small disk");
        disk
    }

    fn sh(&self, command: &str) -> bool {
        let shell =
            std::process::Command::new("sh").args(["-c", command]).current_dir(self.0.path()).status();
        shell.is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.sh("umount m || umount -l m");
    }
}

#[tokio::test]
async fn a_full_disk_is_told() {
    let small = SmallDisk::new();
    let bench = Bench::new().await;
    let options = skiff_runtime::RuntimeOptions {
        containers_ahead: 0,
        state_dir: small.0.path().join("m/state"),
        run_dir: small.0.path().join("run"),
        keeper: Some(env!("CARGO_BIN_EXE_skiff-keeper").into()),
        lasting: None,
        network: skiff_runtime::NetworkOptions::default(),
        cgroup: skiff_runtime::CgroupParent::Auto,
    };
    let runtime = skiff_runtime::Runtime::open(options).await.expect("opens");
    let container = runtime.start(&bench.image(), shell("true")).await.expect("starts");
    container.wait().await.expect("ends");
    drop(container);
    small.sh("head -c 30M /dev/zero > m/fill 2>/dev/null");
    // The templates are there for the first, and are to be made for the second.
    for writable_bytes in [32 << 20, 64 << 20] {
        let spec = ContainerSpec { writable_bytes, ..shell("true") };
        let error = runtime.start(&bench.image(), spec).await.expect_err("full");
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{error:?}");
    }
    runtime.shutdown().await.expect("clean shutdown");
    bench.end().await;
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("pid");
    // It may have ended just now.
    let _ = rustix::process::kill_process(pid, signal);
}
