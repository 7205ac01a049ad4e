//! Containers through the library, with real kernel objects: what runs, what is refused, what is
//! left behind. Needs root, and `busybox` from Debian's package `busybox-static`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skiff_runtime::{ContainerSpec, ErrorKind};

mod bench;
use bench::{Bench, assert_gone, finish, keeper_of, kill, loops_of, shell, wait_until_gone};

#[tokio::test]
async fn a_command_runs_with_its_streams_exit_and_limits() {
    let bench = Bench::new().await;
    let (exit, out, err) = bench
        .sh("hostname; id -u; pwd; echo $A; echo oops >&2; exit 7", |s| {
            s.env = vec![("A".into(), "b c".into())];
            s.working_dir = Some("/made/here".into());
        })
        .await;
    assert_eq!((exit.code, exit.signal), (Some(7), None));
    assert_eq!(out, "inside\n0\n/made/here\nb c\n");
    assert_eq!(err, "oops\n");
    bench.end().await;
}

#[tokio::test]
async fn a_container_holds_no_descriptor_of_the_host() {
    let bench = Bench::new().await;
    let (_, out, _) = bench.sh("ls /proc/1/fd; true", |_| {}).await;
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2"]);
    bench.end().await;
}

#[tokio::test]
async fn capabilities_filter_and_cgroups_are_closed() {
    let bench = Bench::new().await;
    let script = "cat /proc/self/status; for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/x 2>/dev/null && echo WROTE $d; done; \
                  echo x > /proc/sys/kernel/hostname; echo b > /proc/sysrq-trigger";
    let (_, out, _) = bench.sh(script, |_| {}).await;
    let field = |name: &str| {
        let line = out.lines().find(|l| l.starts_with(name)).expect(name);
        line.split_whitespace().nth(1).expect("value").to_owned()
    };
    let docker = 0xa804_25fb_u64;
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let held = u64::from_str_radix(&field(set), 16).expect("hex");
        assert_eq!(held & !docker, 0, "{set} {held:x} is more than Docker's");
    }
    for set in ["CapInh:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
    assert!(!out.contains("WROTE"), "{out}");
    let (_, out, _) = bench.sh("cat /proc/self/status", |s| s.user = Some("1000:1000".into())).await;
    assert!(out.contains("CapEff:\t0000000000000000"), "{out}");
    bench.end().await;
}

/// CVE-2022-0492: the host executes what is in `release_agent` of a hierarchy of version 1.
#[tokio::test]
async fn no_file_of_a_cgroup_is_written_from_inside() {
    let agents = || {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("cgroups are mounted").flatten();
        let agents = hierarchies.map(|entry| entry.path().join("release_agent"));
        agents.map(|path| (fs::read_to_string(&path).ok(), path)).collect::<Vec<_>>()
    };
    let before = agents();
    let bench = Bench::new().await;
    let script = "for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do \
                  for f in $d/*; do [ -f $f ] && echo 1 > $f && echo WROTE $f; done; \
                  for f in release_agent notify_on_release cgroup.procs cgroup.subtree_control memory.max tasks; do \
                  echo /tmp/x > $d/$f && echo WROTE $d/$f; done; done; \
                  for o in memory pids rdma none,name=skiff-test; do \
                  busybox mount -t cgroup -o $o cgroup /tmp && echo MOUNTED $o; done; \
                  busybox mount -t cgroup2 cgroup /tmp && echo MOUNTED 2; \
                  busybox mount -o remount,rw /sys/fs/cgroup && echo REMOUNTED; \
                  busybox umount /sys/fs/cgroup && echo UNMOUNTED; \
                  busybox unshare -U true && echo UNSHARED; busybox unshare -m true && echo UNSHARED; echo end";
    for userns in [false, true] {
        let (_, out, err) = bench.sh(script, |s| s.userns = userns).await;
        assert_eq!(out, "end\n", "{userns}: {err}");
    }
    assert_eq!(agents(), before);
    bench.end().await;
}

/// Debian 12's kernel wrote a line at each start: it was asked for a way of mounting that is newer.
#[tokio::test]
#[expect(clippy::print_stderr, reason = "why it is skipped")]
async fn the_kernel_has_nothing_to_complain_of() {
    let complaints = || {
        let log = std::process::Command::new("dmesg").output().ok().filter(|log| log.status.success())?;
        let log = String::from_utf8_lossy(&log.stdout).into_owned();
        Some(
            log.lines()
                .filter(|line| line.contains("overlayfs: unrec"))
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    };
    let Some(before) = complaints() else {
        eprintln!("skipped: the kernel's log cannot be read");
        return;
    };
    let bench = Bench::new().await;
    let (exit, ..) = bench.sh("exit 3", |_| {}).await;
    assert_eq!((exit.code, complaints()), (Some(3), Some(before)));
    bench.end().await;
}

#[tokio::test]
async fn links_in_the_image_lead_nowhere_on_the_host() {
    let outside = tempfile::tempdir().expect("tempdir");
    for (link, target) in [
        ("etc", outside.path().join("etc")),
        ("etc/resolv.conf", outside.path().join("resolv")),
        (
            "etc/hosts",
            PathBuf::from("../../../../../../../../..")
                .join(outside.path().strip_prefix("/").expect("abs"))
                .join("hosts"),
        ),
        ("tmp", outside.path().join("tmp")),
        ("etc/hostname", PathBuf::from("/proc/self/cwd/hostname")),
    ] {
        let bench = Bench::new().await;
        let path = bench.rootfs().join(link);
        fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        symlink(&target, &path).expect("symlink");
        // Running with the link resolved inside, or being refused, are both right.
        if let Ok(container) = bench.start(shell("cat /etc/hosts; ls /tmp")).await {
            finish(&container).await;
        }
        let made: Vec<_> = fs::read_dir(outside.path()).expect("read").flatten().map(|e| e.path()).collect();
        assert!(made.is_empty(), "{link} made {made:?} on the host");
        bench.end().await;
    }
}

#[tokio::test]
async fn runtime_directories_that_are_links_or_files_are_refused() {
    let outside = tempfile::tempdir().expect("tempdir");
    for name in ["dev", "proc", "sys"] {
        for file in [false, true] {
            let bench = Bench::new().await;
            let path = bench.rootfs().join(name);
            if file {
                fs::write(&path, "").expect("write");
            } else {
                symlink(outside.path(), &path).expect("symlink");
            }
            let error = bench.start(shell("true")).await.expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error:?}");
            assert!(error.to_string().contains(&format!("/{name}")), "{error}");
            assert_eq!(fs::read_dir(outside.path()).expect("read").count(), 0, "{name}");
            bench.end().await;
        }
    }
}

#[tokio::test]
async fn commands_users_and_directories_that_cannot_be_are_named() {
    let bench = Bench::new().await;
    fs::create_dir_all(bench.rootfs().join("app")).expect("mkdir");
    fs::write(bench.rootfs().join("app/data"), "no program").expect("write");
    fs::write(bench.rootfs().join("app/script"), "#!/no/such/interpreter\n").expect("write");
    fs::write(bench.rootfs().join("app/garbage"), [0x7f, b'E', b'L', b'F', 0, 0, 0, 0]).expect("write");
    for name in ["script", "garbage"] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(bench.rootfs().join("app").join(name), fs::Permissions::from_mode(0o755))
            .expect("chmod");
    }
    let command = |c: &str| ContainerSpec { entrypoint: Some(vec![c.into()]), ..shell("") };
    let cases = [
        (command("/app/none"), ErrorKind::CommandNotFound, "/app/none"),
        (command("nothing-such"), ErrorKind::CommandNotFound, "nothing-such"),
        (command("/app/script"), ErrorKind::CommandNotFound, "interpreter"),
        (command("/app/data"), ErrorKind::CommandNotExecutable, "/app/data"),
        (command("/app"), ErrorKind::CommandNotExecutable, "/app"),
        (command("/app/garbage"), ErrorKind::CommandNotExecutable, "/app/garbage"),
        (
            ContainerSpec { user: Some("nobody-such".into()), ..shell("") },
            ErrorKind::UnknownUser,
            "nobody-such",
        ),
        (
            ContainerSpec { user: Some("4294967296:1".into()), ..shell("") },
            ErrorKind::UnknownUser,
            "4294967296",
        ),
        (
            ContainerSpec { working_dir: Some("/app/data".into()), ..shell("") },
            ErrorKind::InvalidWorkingDirectory,
            "/app/data",
        ),
        (
            ContainerSpec { working_dir: Some("/proc/self/fd/7".into()), ..shell("") },
            ErrorKind::InvalidWorkingDirectory,
            "/proc",
        ),
        (ContainerSpec { writable_bytes: 1, ..shell("") }, ErrorKind::InvalidArgument, "1 bytes"),
    ];
    for (spec, kind, named) in cases {
        let id = spec.id.clone();
        let error = bench.start(spec).await.expect_err(named);
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.chain().contains(named), "{error:?} does not name {named}");
        assert_eq!(loops_of(&format!("skiff-{id}-")), 0, "a loop device of {named} is left");
    }
    bench.end().await;
}

#[tokio::test]
async fn written_bytes_are_capped_inside_and_free_afterwards() {
    let bench = Bench::new().await;
    let script = "dd if=/dev/zero of=/big bs=1M 2>&1; dd if=/dev/zero of=/tmp/big bs=1M 2>&1";
    let (_, out, err) = bench.sh(script, |_| {}).await;
    assert_eq!(out.matches("No space left on device").count(), 2, "{out} {err}");
    let (exit, _, err) = bench.sh("touch /x || exit 3", |s| s.read_only = true).await;
    assert_eq!(exit.code, Some(3));
    assert!(err.contains("Read-only file system"), "{err}");
    let (exit, ..) = bench.sh("touch /tmp/x", |s| s.read_only = true).await;
    assert_eq!(exit.code, Some(0), "/tmp stays writable");
    bench.end().await;
}

#[tokio::test]
async fn memory_over_the_limit_is_told_from_other_deaths() {
    let bench = Bench::new().await;
    let (exit, ..) =
        bench.sh("exec dd if=/dev/zero of=/dev/shm/x bs=1M count=60", |s| s.memory_bytes = 16 << 20).await;
    assert!(exit.oom_killed && exit.signal == Some(9), "{exit:?}");
    assert_eq!(exit.shell_code(), 137);
    let (exit, ..) = bench.sh("kill -9 $$; sleep 1", |_| {}).await;
    assert!(!exit.oom_killed, "{exit:?}");
    bench.end().await;
}

#[tokio::test]
async fn only_a_server_on_all_addresses_is_reached() {
    let bench = Bench::new().await;
    let open = bench.start(shell("exec httpd -f -p 0.0.0.0:9000")).await.expect("starts");
    let local = bench.start(shell("exec httpd -f -p 127.0.0.1:9000")).await.expect("starts");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while let Err(e) = open.connect(9000).await {
        assert!(tokio::time::Instant::now() < deadline, "{e}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = local.connect(9000).await.expect_err("bound to 127.0.0.1");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    open.stop(Duration::ZERO).await.expect("stops");
    local.stop(Duration::from_secs(5)).await.expect("stops");
    bench.end().await;
}

#[tokio::test]
async fn a_start_past_its_deadline_is_killed_and_leaves_nothing() {
    let bench = Bench::new().await;
    for _ in 0..5 {
        let spec = ContainerSpec { deadline: Duration::from_micros(1000), ..shell("sleep 60") };
        let error = bench.start(spec).await.expect_err("one millisecond is not enough");
        assert_eq!(error.kind(), ErrorKind::StartTimedOut, "{error:?}");
        assert!(error.is_retryable());
    }
    bench.end().await;
}

#[tokio::test]
async fn failed_starts_leave_no_descriptor_or_zombie_in_the_keeper() {
    let bench = Bench::new().await;
    let keeper = keeper_of(bench.runtime.dir());
    let count = |what: &str| fs::read_dir(format!("/proc/{keeper}/{what}")).expect("keeper lives").count();
    let fail = || async {
        let spec = ContainerSpec { entrypoint: Some(vec!["/none".into()]), ..shell("") };
        bench.start(spec).await.expect_err("no such command");
    };
    fail().await;
    let before = count("fd");
    for _ in 0..20 {
        fail().await;
    }
    assert_eq!(count("task"), 1);
    let children = || fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).expect("children");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    // The keeper reaps after it has answered, and closes the process's descriptor then.
    while !children().trim().is_empty() || count("fd") > before {
        let left = (children(), count("fd"));
        assert!(tokio::time::Instant::now() < deadline, "zombies and descriptors, {before} before: {left:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_starts_at_once_all_run() {
    let bench = Arc::new(Bench::new().await);
    let runs: Vec<_> = (0..16)
        .map(|i| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move { bench.sh(&format!("echo {i}; sleep 0.1"), |_| {}).await })
        })
        .collect();
    let mut seen = BTreeSet::new();
    for run in runs {
        let (exit, out, _) = run.await.expect("no panic");
        assert_eq!(exit.code, Some(0));
        seen.insert(out.trim().parse::<u32>().expect("a number"));
    }
    assert_eq!(seen, (0..16).collect());
    Arc::into_inner(bench).expect("last owner").end().await;
}

#[tokio::test]
async fn the_end_of_the_keeper_is_the_end_of_its_containers_and_another_comes() {
    let bench = Bench::new().await;
    let container = bench.start(shell("sleep 1000")).await.expect("starts");
    let (pid, keeper) = (container.pid(), keeper_of(bench.runtime.dir()));
    kill(keeper);
    let error = container.wait().await.expect_err("keeper lost");
    assert_eq!(error.kind(), ErrorKind::KeeperLost);
    wait_until_gone(pid).await;
    let (exit, out, _) = bench.sh("echo again", |_| {}).await;
    assert_eq!((exit.code, out.as_str()), (Some(0), "again\n"));
    assert_ne!(keeper_of(bench.runtime.dir()), keeper);
    bench.end().await;
}

#[tokio::test]
async fn dropping_containers_and_runtime_ends_everything() {
    let bench = Bench::new().await;
    let first = bench.start(shell("sleep 1000")).await.expect("starts");
    let pid = first.pid();
    drop(first);
    wait_until_gone(pid).await;
    let second = bench.start(shell("sleep 1000")).await.expect("starts");
    let pid = second.pid();
    let run = bench.runtime.dir().to_owned();
    let Bench { runtime, dir } = bench;
    drop(runtime);
    drop(second);
    wait_until_gone(pid).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while run.exists() {
        assert!(tokio::time::Instant::now() < deadline, "the keeper does not clean up");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_gone(&run, run.file_name().and_then(|n| n.to_str()).expect("name"));
    drop(dir);
}
