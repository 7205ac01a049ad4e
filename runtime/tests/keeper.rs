//! What the keeper bears: starts that hang, many that fail, many containers, and bad company.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use skiff_runtime::{Container, ContainerSpec, ErrorKind, Writable};

mod bench;
use bench::{Bench, directories, keeper_of, shell};

fn children(of: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn light(script: &str) -> ContainerSpec {
    ContainerSpec { writable: Writable::Tmpfs, ..shell(script) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_stopped_ends_at_its_deadline() {
    let bench = Bench::new().await;
    let keeper = keeper_of(bench.runtime.dir());
    for _ in 0..5 {
        let spec = ContainerSpec { deadline: Duration::from_secs(2), ..light("sleep 1000") };
        let stop = async {
            until("no start process", || !children(keeper).is_empty()).await;
            for pid in children(keeper) {
                let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
                let _ = kill_process(pid, Signal::STOP);
            }
        };
        let (started, ()) = tokio::join!(bench.start(spec), stop);
        match started {
            Err(error) => assert_eq!(error.kind(), ErrorKind::StartTimedOut, "{error:?}"),
            // The init had been executing its command already when it was stopped.
            Ok(container) => drop(container),
        }
        until("something is left", || children(keeper).is_empty()).await;
    }
    bench.end().await;
}

/// What the sockets of the domain UNIX are called that a process has (`proc_net_unix(5)`).
fn socket_names(pid: u32) -> Vec<String> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("fds").flatten();
    let links: Vec<_> = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).expect("a table");
    let name = |line: &str| {
        let mut words = line.split_whitespace().skip(6);
        let link = PathBuf::from(format!("socket:[{}]", words.next()?));
        links.contains(&link).then(|| words.next().map(str::to_owned))?
    };
    table.lines().filter_map(name).collect()
}

/// How long a connection that says nothing lives, if it comes about.
fn lifetime(socket: &Path, patience: Duration) -> std::io::Result<Option<Duration>> {
    use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketType};
    let connection = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    let began = std::time::Instant::now();
    rustix::net::connect(&connection, &SocketAddrUnix::new(socket)?)?;
    let timeout = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&connection, timeout, Some(patience))?;
    let mut byte = [0; 1];
    match rustix::net::recv(&connection, &mut byte, RecvFlags::empty()) {
        Ok((0, 0)) => Ok(Some(began.elapsed())),
        Ok(answer) => panic!("it was answered: {answer:?}"),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The same as `nobody`, which only this thread becomes.
fn lifetime_for_nobody(socket: &Path, patience: Duration) -> std::io::Result<Option<Duration>> {
    let socket = socket.to_owned();
    let thread = std::thread::spawn(move || {
        let (uid, gid) = (rustix::process::Uid::from_raw(65534), rustix::process::Gid::from_raw(65534));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        lifetime(&socket, patience)
    });
    thread.join().expect("no panic")
}

/// CVE-2020-15257.
#[tokio::test]
async fn its_socket_has_a_path_and_answers_nobody_else() {
    // Before its own patience with who says nothing ends, 5 s.
    const PATIENCE: Duration = Duration::from_secs(3);
    let bench = Bench::new().await;
    let container = bench.start(light("exec sleep 1000")).await.expect("starts");
    let run = fs::canonicalize(bench.runtime.dir()).expect("a directory");
    let socket = run.join("keeper.sock");
    let mode = |path: &Path| fs::symlink_metadata(path).expect("there").permissions().mode() & 0o7777;
    assert_eq!((mode(&socket), mode(&run)), (0o600, 0o700));
    let names = socket_names(keeper_of(&run));
    assert!(names.iter().any(|name| name.ends_with("keeper.sock")), "{names:?}");
    for pid in [keeper_of(&run), std::process::id(), container.pid()] {
        let names = socket_names(pid);
        assert!(!names.iter().any(|name| name.starts_with('@')), "{pid}: {names:?}");
    }
    let refused = lifetime_for_nobody(&socket, PATIENCE).expect_err("the directories are closed");
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    // Also where all of them are open.
    for dir in run.ancestors().take_while(|dir| dir.starts_with(bench.dir.path())) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let refused = lifetime_for_nobody(&socket, PATIENCE).expect_err("the socket is closed");
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("chmod");
    let lived = lifetime_for_nobody(&socket, PATIENCE).expect("a connection");
    assert!(lived.is_some(), "it waits for what nobody says");
    assert_eq!(lifetime(&socket, Duration::from_millis(500)).expect("a connection"), None, "root may speak");
    drop(container);
    bench.end().await;
}

/// An ext4 filesystem on a loop device that can be frozen; thawed and unmounted when this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(dir: &Path) -> Self {
        let at = dir.join("ice");
        fs::create_dir(&at).expect("mkdir");
        let image = dir.join("ice.ext4");
        fs::File::create(&image).and_then(|f| f.set_len(256 << 20)).expect("a file");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        Self(at)
    }

    fn freeze(&self) {
        run(Command::new("fsfreeze").arg("-f").arg(&self.0));
    }

    /// As soon as no disk is in it any more.
    fn unmount(&self) -> bool {
        Command::new("umount").arg(&self.0).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    }

    fn thaw(&self) {
        run(Command::new("fsfreeze").arg("-u").arg(&self.0));
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for undo in [["fsfreeze", "-u"], ["umount", "-l"]] {
            let _ = Command::new(undo[0]).arg(undo[1]).arg(&self.0).stderr(Stdio::null()).status();
        }
    }
}

fn run(command: &mut Command) {
    let status = command.status().expect("util-linux and e2fsprogs are installed by scripts/setup");
    assert!(status.success(), "{command:?}: {status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_filesystem_ends_its_starts_and_no_others() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().expect("tempdir");
    let ice = Frozen::new(dir.path());
    let frozen = skiff_runtime::Runtime::open(skiff_runtime::RuntimeOptions {
        containers_ahead: 0,
        state_dir: ice.0.join("state"),
        run_dir: dir.path().join("run"),
        keeper: Some(env!("CARGO_BIN_EXE_skiff-keeper").into()),
        lasting: None,
        network: skiff_runtime::NetworkOptions::default(),
        cgroup: skiff_runtime::CgroupParent::Auto,
    })
    .await
    .expect("a runtime on the filesystem");
    let container = frozen.start(&bench.image(), shell("sleep 1000")).await.expect("starts before");
    let began = std::time::Instant::now();
    ice.freeze();
    let spec = ContainerSpec { deadline: Duration::from_secs(2), ..shell("sleep 1000") };
    let error = frozen.start(&bench.image(), spec).await.expect_err("its disks cannot be made");
    let took = began.elapsed();
    assert_eq!(error.kind(), ErrorKind::StartTimedOut, "{error:?}");
    // Others, with the disks of another filesystem, and of the same keeper without any.
    let (exit, ..) = bench.sh("exit 5", |_| {}).await;
    assert_eq!(exit.code, Some(5));
    let quick = frozen.start(&bench.image(), light("exit 6")).await.expect("starts");
    assert_eq!(quick.wait().await.expect("ends").code, Some(6));
    ice.thaw();
    stuck_in_the_kernel(&frozen, &bench).await;
    assert!(took >= Duration::from_secs(2), "{took:?}");
    assert_eq!(container.stop(Duration::ZERO).await.expect("stops").signal, Some(9));
    drop((container, quick));
    frozen.shutdown().await.expect("clean");
    until("a disk is left", || ice.unmount()).await;
    bench.end().await;
}

/// The roots of mounted disks that this process has open and that are larger than any other start's, by
/// their devices.
fn disks() -> BTreeMap<u64, fs::File> {
    const LOOP: u32 = 7;
    const ROOT: u64 = 2;
    let is_large = |disk: &fs::File| {
        let size = rustix::fs::fstatvfs(disk).map(|found| found.f_blocks * found.f_frsize);
        size.is_ok_and(|size| size > 33 << 20)
    };
    let fds = fs::read_dir("/proc/self/fd").expect("fds").flatten();
    let opened = fds.filter_map(|fd| {
        let found = fs::metadata(fd.path()).ok()?;
        let disk = found.is_dir() && found.ino() == ROOT && rustix::fs::major(found.dev()) == LOOP;
        Some((found.dev(), disk.then(|| fs::File::open(fd.path()).ok())??))
    });
    opened.filter(|(_, disk)| is_large(disk)).collect()
}

/// Disks that are frozen until this is dropped.
struct FrozenDisks(Vec<fs::File>);

impl FrozenDisks {
    fn fsfreeze(&self, option: &str) {
        for disk in &self.0 {
            let path = format!("/proc/{}/fd/{}", std::process::id(), disk.as_raw_fd());
            let done = Command::new("fsfreeze").args([option, &path]).status();
            assert!(std::thread::panicking() || done.is_ok_and(|s| s.success()), "{option}");
        }
    }
}

impl Drop for FrozenDisks {
    fn drop(&mut self) {
        self.fsfreeze("-u");
    }
}

/// Freezes the disks of a start between their making, which is the daemon's, and their use.
async fn stuck_in_the_kernel(frozen: &skiff_runtime::Runtime, bench: &Bench) {
    let keeper = keeper_of(frozen.dir());
    let before = children(keeper);
    let signal =
        |signal| kill_process(Pid::from_raw(keeper.cast_signed()).expect("a pid"), signal).expect("sent");
    // Caps that no start had before it: none of those disks are ready, and none are made beside its own.
    let spec = ContainerSpec {
        deadline: Duration::from_secs(6),
        writable_bytes: 48 << 20,
        tmp_bytes: 40 << 20,
        ..shell("sleep 1000")
    };
    signal(Signal::STOP);
    let _goes_on = GoesOn(keeper);
    assert!(disks().is_empty());
    let freeze = async {
        until("no disks", || disks().len() == 2).await;
        // Until the request has been sent.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let disks = FrozenDisks(disks().into_values().collect());
        disks.fsfreeze("-f");
        signal(Signal::CONT);
        disks
    };
    let image = bench.image();
    let (started, disks) = tokio::join!(frozen.start(&image, spec), freeze);
    let error = started.expect_err("its disk cannot be used");
    assert_eq!(error.kind(), ErrorKind::StartTimedOut, "{error:?}");
    assert!(error.chain().contains("wait in the kernel"), "{error:?}");
    let quick = frozen.start(&image, light("exit 7")).await.expect("others start");
    assert_eq!(quick.wait().await.expect("ends").code, Some(7));
    drop(disks);
    until("a process is left", || children(keeper).len() <= before.len()).await;
}

/// Has a process that was stopped go on, also when the test fails.
struct GoesOn(u32);

impl Drop for GoesOn {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.0.cast_signed()) {
            let _ = kill_process(pid, Signal::CONT);
        }
    }
}

/// What processes, descriptors, threads, mounts and groups there are of this process and a keeper.
#[derive(Debug, PartialEq)]
struct Inventory {
    own_fds: usize,
    own_threads: usize,
    keeper_fds: usize,
    keeper_threads: usize,
    keeper_children: Vec<u32>,
    mounts: usize,
    groups: usize,
}

/// Mounts that the keeper has below `dir`; others come and go with other tests.
fn mounts_below(keeper: u32, dir: &Path) -> usize {
    let mounts = fs::read_to_string(format!("/proc/{keeper}/mountinfo")).expect("mounts");
    mounts.lines().filter(|line| line.contains(dir.to_str().expect("utf-8"))).count()
}

fn inventory(keeper: u32, dir: &Path, run: &str) -> Inventory {
    let count = |path: String| fs::read_dir(path).expect("there").count();
    // Of every hierarchy of version 1; on version 2 perhaps below a group of systemd's.
    let groups = directories(Path::new("/sys/fs/cgroup"), run);
    let groups = groups.iter().filter_map(|group| fs::read_dir(group).ok());
    Inventory {
        own_fds: count("/proc/self/fd".into()),
        own_threads: count("/proc/self/task".into()),
        keeper_fds: count(format!("/proc/{keeper}/fd")),
        keeper_threads: count(format!("/proc/{keeper}/task")),
        keeper_children: children(keeper),
        mounts: mounts_below(keeper, dir),
        groups: groups.map(|dir| dir.flatten().filter(|e| e.path().is_dir()).count()).sum(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_failed_starts_leave_nothing() {
    let bench = Bench::new().await;
    let keeper = keeper_of(bench.runtime.dir());
    let run = bench.runtime.dir().file_name().and_then(|n| n.to_str()).expect("utf-8").to_owned();
    let fail = |number: usize| {
        let spec = match number % 5 {
            0 => ContainerSpec { entrypoint: Some(vec!["/none".into()]), ..light("") },
            1 => ContainerSpec { user: Some("nobody-such".into()), ..light("") },
            2 => ContainerSpec { working_dir: Some("/proc/1".into()), ..light("") },
            3 => ContainerSpec { entrypoint: Some(vec!["/bin".into()]), ..light("") },
            _ => ContainerSpec { deadline: Duration::from_millis(1), ..light("sleep 1000") },
        };
        let (runtime, image) = (std::sync::Arc::clone(&bench.runtime), bench.image());
        async move {
            let started = runtime.start(&image, spec).await;
            // A keeper that gets no time on a busy host may see the report before the deadline.
            assert!(started.is_err() || number % 5 == 4, "{started:?}");
        }
    };
    for number in 0..5 {
        fail(number).await;
    }
    until("the first left children", || children(keeper).is_empty()).await;
    // A group goes after its process, and what is there at first must not count as the baseline.
    until("the first left groups", || inventory(keeper, bench.dir.path(), &run).groups == 0).await;
    // Disks are made ready beside the starts, and each has a descriptor.
    let mut own = (0, 0);
    until("own descriptors stay", || {
        let now = inventory(keeper, bench.dir.path(), &run).own_fds;
        own = if now == own.0 { (now, own.1 + 1) } else { (now, 0) };
        own.1 > 50
    })
    .await;
    let before = inventory(keeper, bench.dir.path(), &run);
    for batch in 0..125 {
        let fails: Vec<_> = (0..8).map(|number| tokio::spawn(fail(batch * 8 + number))).collect();
        for fail in fails {
            fail.await.expect("no panic");
        }
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let mut now = inventory(keeper, bench.dir.path(), &run);
        // What was being made ready at first may be there no more, and threads that had nothing to do.
        now.own_fds = now.own_fds.max(before.own_fds);
        now.own_threads = now.own_threads.max(before.own_threads);
        if now == before {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "before: {before:?}, now: {now:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.end().await;
}

/// Resident and proportional memory in bytes.
fn memory(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let field = |name: &str| -> u64 {
        let line = text.lines().find(|l| l.starts_with(name)).expect(name);
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") * 1024
    };
    (field("Rss:"), field("Pss:"))
}

const INSTANCES: usize = 200;
/// Most resident memory of a keeper with so many containers, and of all of Skiff for each of them. Code
/// counts as memory, and a build without optimisation has more of it.
const KEEPER_BYTES: u64 = if cfg!(debug_assertions) { 10 } else { 8 } << 20;
const BYTES_EACH: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_instances_cost_little_memory() {
    let bench = Bench::new().await;
    let keeper = keeper_of(bench.runtime.dir());
    let mut containers: Vec<Container> = Vec::new();
    while containers.len() < INSTANCES {
        let starts: Vec<_> = (0..4)
            .map(|_| {
                let (runtime, image) = (std::sync::Arc::clone(&bench.runtime), bench.image());
                tokio::spawn(async move { runtime.start(&image, light("exec sleep 1000")).await })
            })
            .collect();
        for start in starts {
            containers.push(start.await.expect("no panic").expect("starts"));
        }
    }
    let (rss, pss) = memory(keeper);
    // This process is the daemon: the library with the test around it.
    let (own, _) = memory(std::process::id());
    let each = (rss + own) / INSTANCES as u64;
    let (rss_kib, pss_kib, each_kib) = (rss >> 10, pss >> 10, each >> 10);
    let mut out = std::io::stdout();
    writeln!(
        out,
        "keeper: {rss_kib} KiB resident, {pss_kib} KiB proportional; all of Skiff: {each_kib} KiB each"
    )
    .expect("told");
    assert!(rss < KEEPER_BYTES, "the keeper has {rss} bytes resident");
    assert!(each < BYTES_EACH, "{each} bytes for each container");
    for container in &containers {
        container.stop(Duration::ZERO).await.expect("stops");
    }
    drop(containers);
    bench.end().await;
}
