//! What the tests of containers share: a runtime in directories of its own, and what must be gone
//! after it.
#![allow(dead_code, reason = "not every test binary uses all of it")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skiff_runtime::image::{Image, ImageConfig};
use skiff_runtime::{Container, ContainerSpec, Exit, Runtime, RuntimeOptions};
use tokio::io::AsyncReadExt;

pub(crate) mod exec;

const APPLETS: [&str; 16] = [
    "sh", "cat", "ls", "id", "sleep", "echo", "dd", "httpd", "mkdir", "touch", "kill", "env", "pwd",
    "hostname", "df", "readlink",
];

/// A runtime in directories of its own, and one root filesystem for its images.
pub(crate) struct Bench {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests start containers and need root");
        Self::below(&std::env::temp_dir()).await
    }

    /// One on the filesystem of a directory.
    pub(crate) async fn below(dir: &Path) -> Self {
        let dir = tempfile::tempdir_in(dir).expect("tempdir");
        let runtime = open(dir.path()).await;
        let bench = Self { runtime, dir };
        bench.fill_rootfs();
        bench
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    pub(crate) fn fill_rootfs(&self) {
        fill(&self.rootfs());
    }

    pub(crate) fn image(&self) -> Image {
        image_in(self.dir.path())
    }

    pub(crate) async fn start(&self, spec: ContainerSpec) -> skiff_runtime::Result<Container> {
        self.runtime.start(&self.image(), spec).await
    }

    /// Runs a shell script to its end: exit, standard output, standard error.
    pub(crate) async fn sh(
        &self,
        script: &str,
        change: impl FnOnce(&mut ContainerSpec),
    ) -> (Exit, String, String) {
        let mut spec = shell(script);
        change(&mut spec);
        let container = self.start(spec).await.expect("starts");
        finish(&container).await
    }

    /// Ends the runtime and checks that nothing is left of it.
    pub(crate) async fn end(self) {
        let run = self.runtime.dir().to_owned();
        let name = run.file_name().expect("name").to_str().expect("utf-8").to_owned();
        self.runtime.shutdown().await.expect("clean shutdown");
        assert_gone(&run, &name);
    }
}

/// The directories of lasting runs. Where a test fails, its keepers end with them.
pub(crate) struct Fresh(tempfile::TempDir);

impl Fresh {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        for run in fs::read_dir(self.path().join("run")).into_iter().flatten().flatten() {
            if let Some(keeper) = run.path().join("lock").canonicalize().ok().and_then(|lock| holder(&lock)) {
                let pid = rustix::process::Pid::from_raw(keeper.cast_signed()).expect("pid");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// A directory with a root filesystem for [`image_in`].
pub(crate) fn fresh() -> Fresh {
    assert!(rustix::process::geteuid().is_root(), "these tests start containers and need root");
    let dir = tempfile::tempdir().expect("tempdir");
    fill(&dir.path().join("rootfs"));
    Fresh(dir)
}

pub(crate) fn image_in(dir: &Path) -> Image {
    Image::unmanaged("test", ImageConfig::default(), vec![dir.join("rootfs")])
}

fn fill(rootfs: &Path) {
    let bin = rootfs.join("bin");
    fs::create_dir_all(&bin).expect("mkdir");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).exists());
    fs::copy(busybox.expect("busybox-static is installed by scripts/setup"), bin.join("busybox"))
        .expect("copy");
    for applet in APPLETS {
        symlink("busybox", bin.join(applet)).expect("symlink");
    }
}

pub(crate) async fn open(dir: &Path) -> Arc<Runtime> {
    let options = RuntimeOptions {
        containers_ahead: 0,
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        keeper: Some(env!("CARGO_BIN_EXE_skiff-keeper").into()),
        lasting: None,
        network: skiff_runtime::NetworkOptions::default(),
        cgroup: skiff_runtime::CgroupParent::Auto,
    };
    Runtime::open(options).await.expect("a runtime on this host")
}

pub(crate) fn shell(script: &str) -> ContainerSpec {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    ContainerSpec {
        id: format!("t{number}"),
        hostname: "inside".into(),
        entrypoint: Some(vec!["/bin/sh".into(), "-c".into(), script.into()]),
        memory_bytes: 256 << 20,
        cpu_millis: 2000,
        pids: 64,
        nofile: 1024,
        writable_bytes: 32 << 20,
        tmp_bytes: 16 << 20,
        ..ContainerSpec::default()
    }
}

pub(crate) async fn finish(container: &Container) -> (Exit, String, String) {
    let (mut stdout, mut stderr) = container.take_output().expect("not yet taken");
    let (mut out, mut err) = (String::new(), String::new());
    let ended = async {
        tokio::try_join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err)).expect("output");
        container.wait().await.expect("exit")
    };
    let exit = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it ends");
    (exit, out, err)
}

pub(crate) fn assert_gone(run: &Path, name: &str) {
    assert!(!run.exists(), "{} is left", run.display());
    assert_eq!(directories(Path::new("/sys/fs/cgroup"), name), Vec::<PathBuf>::new(), "cgroups are left");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(name), "a mount of the run is left");
}

/// A file of the container's group.
pub(crate) fn group_file(container: &Container, v1: (&str, &str), v2: &str) -> String {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).expect("cgroup");
    let line = |controller: &str| {
        let found = groups
            .lines()
            .find(|l| l.split(':').nth(1).is_some_and(|c| c.split(',').any(|c| c == controller)));
        found.and_then(|l| l.splitn(3, ':').nth(2)).map(|path| path.trim_start_matches('/').to_owned())
    };
    let path: PathBuf = match line(v1.0) {
        Some(path) => ["/sys/fs/cgroup", v1.0, &path, v1.1].iter().collect(),
        None => ["/sys/fs/cgroup", &line("").expect("version 2"), v2].iter().collect(),
    };
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

/// All directories of that name below `dir`.
pub(crate) fn directories(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // Groups come and go meanwhile.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name() == name {
                found.push(entry.path());
            }
            found.extend(directories(&entry.path(), name));
        }
    }
    found
}

pub(crate) fn loops_of(id: &str) -> usize {
    let devices = fs::read_dir("/sys/block").expect("sysfs").flatten();
    devices
        .filter(|d| fs::read_to_string(d.path().join("loop/backing_file")).is_ok_and(|f| f.contains(id)))
        .count()
}

pub(crate) fn keeper_of(run: &Path) -> u32 {
    let lock = fs::canonicalize(run.join("lock")).expect("lock");
    holder(&lock).expect("the keeper holds the lock")
}

/// The keeper that holds a lock.
fn holder(lock: &Path) -> Option<u32> {
    let own = std::process::id();
    // A daemon of its own process holds the lock too.
    let is_keeper = |pid: u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "skiff-keeper")
    };
    let holds = |pid: u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|p| p == lock))
    };
    let pids =
        fs::read_dir("/proc").expect("proc").flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid| *pid != own && is_keeper(*pid) && holds(*pid))
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

pub(crate) async fn wait_until_gone(pid: u32) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while Path::new(&format!("/proc/{pid}")).exists() {
        let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(tokio::time::Instant::now() < deadline, "process {pid} lives on: {}", stat());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
