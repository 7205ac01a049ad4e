//! What a container writes: capped, in bytes and inodes, on every kind of writable layer, without
//! harm to the host or to other containers, and gone with it.
//!
//! Quotas are tried on the filesystems that `SKIFF_TEST_EXT4_QUOTA` and `SKIFF_TEST_XFS_QUOTA` name.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a skipped test says why; a benchmark prints")]

mod bench;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bench::{Bench, finish, shell};
use skiff_runtime::{ContainerSpec, ErrorKind, Writable};

const CAP: u64 = 16 << 20;

/// The kinds that can be had here, each with the directory to have it in.
fn kinds() -> Vec<(Writable, PathBuf)> {
    let mut kinds = vec![(Writable::Loop, std::env::temp_dir()), (Writable::Tmpfs, std::env::temp_dir())];
    kinds.extend(quota_dirs().into_iter().map(|dir| (Writable::Quota, dir)));
    kinds
}

fn quota_dirs() -> Vec<PathBuf> {
    let dir = |name: &&str| {
        let dir = std::env::var_os(name);
        if dir.is_none() {
            eprintln!("skipped: {name} names no directory on a filesystem with project quotas");
        }
        dir.map(PathBuf::from)
    };
    ["SKIFF_TEST_EXT4_QUOTA", "SKIFF_TEST_XFS_QUOTA"].iter().filter_map(dir).collect()
}

fn capped(writable: Writable, script: &str) -> ContainerSpec {
    ContainerSpec { writable, writable_bytes: CAP, tmp_bytes: CAP, ..shell(script) }
}

fn is_full(stderr: &str) -> bool {
    stderr.contains("No space left on device") || stderr.contains("quota exceeded")
}

async fn run(bench: &Bench, spec: ContainerSpec) -> (String, String) {
    let container = bench.start(spec).await.expect("starts");
    let (_, out, err) = finish(&container).await;
    (out, err)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_capped_in_root_and_tmp_and_another_container_does_not_feel_it() {
    for (kind, dir) in kinds() {
        let bench = Bench::below(&dir).await;
        let other =
            "while dd if=/dev/zero of=/x bs=1M count=8 && dd if=/x of=/tmp/x bs=1M; do sleep 0.05; done";
        let other = bench.start(capped(kind, other)).await.expect("starts");
        for place in ["/", "/tmp/"] {
            let fill = format!(
                "dd if=/dev/zero of={place}fill bs=64k; busybox stat -c %s {place}fill; \
                 [ {place} = / ] && echo ok > /tmp/x || echo ok > /x"
            );
            let (out, err) = run(&bench, capped(kind, &fill)).await;
            assert!(is_full(&err), "{kind:?} {place}: {err}");
            let bytes: u64 = out.trim().parse().expect("a size");
            assert!((CAP / 2..=CAP).contains(&bytes), "{kind:?} {place}: {bytes}");
            assert!(!err.contains("create"), "the other place is full too: {err}");
        }
        // It goes on writing what its own cap allows.
        assert_eq!(other.exited(), None, "{kind:?}");
        drop(other);
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inodes_are_capped_in_root_and_tmp() {
    for (kind, dir) in kinds() {
        let bench = Bench::below(&dir).await;
        for place in ["/d", "/tmp/d"] {
            let script = format!(
                "mkdir {place}; i=0; while [ $i -lt 999 ] && echo > {place}/$i; do i=$((i+1)); done; echo $i"
            );
            let spec = ContainerSpec { writable_inodes: 128, tmp_inodes: 128, ..capped(kind, &script) };
            let (out, err) = run(&bench, spec).await;
            let made: u64 = out.trim().parse().expect("a count");
            assert!((96..=144).contains(&made), "{kind:?} {place}: {made}");
            assert!(is_full(&err), "{kind:?} {place}: {err}");
        }
        bench.end().await;
    }
}

/// Perl and its libraries: what the image needs to make any system call.
fn add_perl(rootfs: &Path) {
    let listed = Command::new("ldd").arg("/usr/bin/perl").output().expect("ldd runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/usr/bin/perl"]) {
        let to = rootfs.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a parent")).expect("mkdir");
        fs::copy(file, to).expect("copy");
    }
}

/// Tries to leave the project of a container: `FS_IOC_FSSETXATTR`, `FS_IOC_SETFLAGS` and
/// `FS_IOC32_SETFLAGS`, the request with a bit set that the kernel does not look at, and
/// file_setattr(2).
const LEAVE: &str = r#"
for my $dir ("/", "/tmp") {
    mkdir "$dir/mine";
    open(my $d, "<", "$dir/mine") or die $!;
    open(my $f, ">", "$dir/mine/file") or die $!;
    for my $fd (fileno($d), fileno($f)) {
        for my $request (0x401c5820, 0x1401c5820, 0x40086602, 0x8000000040086602, 0x40046602) {
            my $arg = "\0" x 28;
            my $r = syscall(16, $fd, $request, $arg);
            printf "%s %x %d %d\n", $dir, $request, $r, $! + 0;
        }
    }
    my $arg = "\0" x 24;
    my $r = syscall(469, -100, "$dir/mine", $arg, 24, 0);
    printf "%s file_setattr %d %d\n", $dir, $r, $! + 0;
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_container_cannot_leave_its_project() {
    const EPERM: &str = "-1 1";
    const EOPNOTSUPP: &str = "-1 95";
    for (kind, dir) in kinds() {
        let bench = Bench::below(&dir).await;
        add_perl(&bench.rootfs());
        fs::write(bench.rootfs().join("leave.pl"), LEAVE).expect("write");
        let (out, err) = run(&bench, capped(kind, "/usr/bin/perl /leave.pl")).await;
        assert_eq!(out.lines().count(), 2 * (2 * 5 + 1), "{kind:?}: {out}{err}");
        for line in out.lines() {
            let refused = if line.contains("file_setattr") { EPERM } else { EOPNOTSUPP };
            assert!(line.ends_with(refused), "{kind:?}: {line}");
        }
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_way_of_writing_gets_round_the_cap() {
    let script = "
        busybox fallocate -l 64m /reserved; busybox fallocate -l 64m /tmp/reserved; rm -f /reserved /tmp/reserved
        for place in / /tmp/; do
            busybox truncate -s 1g ${place}sparse
            dd if=/dev/zero of=${place}sparse bs=64k conv=notrunc
            echo full=$?
            echo more > ${place}small
            busybox ln ${place}sparse ${place}linked && busybox mv ${place}linked ${place}small
        done
        busybox ln /sparse /tmp/across; echo across=$?
        dd if=/dev/zero of=/again bs=64k count=400; echo again=$?";
    for (kind, dir) in kinds() {
        let bench = Bench::below(&dir).await;
        let (out, err) = run(&bench, capped(kind, script)).await;
        let said: Vec<_> = out.lines().collect();
        assert_eq!(said, ["full=1", "full=1", "across=1", "again=1"], "{kind:?}: {err}");
        assert!(is_full(&err) && err.to_lowercase().contains("cross-device"), "{kind:?}: {err}");
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statfs_shows_the_cap() {
    for (kind, dir) in kinds() {
        let bench = Bench::below(&dir).await;
        let (out, _) = run(&bench, capped(kind, "df -k / /tmp")).await;
        for line in out.lines().skip(1) {
            let total: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a size");
            assert!((CAP / 2..=CAP).contains(&(total * 1024)), "{kind:?}: {line}");
        }
        assert_eq!(out.lines().count(), 3, "{out}");
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tmpfs_is_charged_to_the_container() {
    let bench = Bench::new().await;
    let spec = ContainerSpec {
        memory_bytes: 32 << 20,
        writable_bytes: 256 << 20,
        ..capped(Writable::Tmpfs, "dd if=/dev/zero of=/fill bs=1M count=128")
    };
    let container = bench.start(spec).await.expect("starts");
    let (exit, ..) = finish(&container).await;
    assert!(exit.oom_killed || exit.code != Some(0), "{exit:?}");
    drop(container);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_where_there_are_none_are_refused_with_advice_and_auto_takes_another() {
    let bench = Bench::below(Path::new("/dev/shm")).await;
    let error = bench.start(capped(Writable::Quota, "true")).await.expect_err("a tmpfs has no quotas");
    assert_eq!(error.kind(), ErrorKind::Host);
    assert!(error.chain().contains("only ext4 and XFS"), "{error:?}");
    assert!(error.advice().is_some_and(|advice| advice.contains("prjquota")), "{error:?}");
    bench.end().await;
    let bench = Bench::new().await;
    let (out, err) = run(&bench, capped(Writable::Auto, "echo x > /x && echo written")).await;
    assert_eq!(out, "written\n", "{err}");
    bench.end().await;
}

fn free(dir: &Path) -> u64 {
    let space = rustix::fs::statvfs(dir).expect("statvfs");
    space.f_bfree * space.f_frsize
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_with_quotas_go_with_their_container_also_without_a_keeper() {
    for dir in quota_dirs() {
        let bench = Bench::below(&dir).await;
        let area = bench.dir.path().join("state/writable");
        let run = fs::read_dir(&area).expect("an area").flatten().next().expect("of this run").path();
        let left = || fs::read_dir(&run).map_or(0, Iterator::count);
        let script =
            "mkdir -p /a/b /tmp/c; dd if=/dev/zero of=/a/b/x bs=1M count=12; echo > /tmp/c/y; sleep 1000";
        let before = free(&dir);
        let container = bench.start(capped(Writable::Quota, script)).await.expect("starts");
        wait_for("it writes", || free(&dir) + (12 << 20) <= before + (1 << 20));
        assert_eq!(left(), 1);
        drop(container);
        wait_for("nothing is left of it", || left() == 0);
        wait_for("its space is free again", || free(&dir) + (2 << 20) >= before);
        // A start that fails leaves as little.
        let failing = ContainerSpec { entrypoint: Some(vec!["/none".into()]), ..capped(Writable::Quota, "") };
        bench.start(failing).await.expect_err("no such command");
        wait_for("nothing is left of it", || left() == 0);

        let container = bench.start(capped(Writable::Quota, script)).await.expect("starts");
        bench::kill(bench::keeper_of(bench.runtime.dir()));
        drop(container);
        bench.runtime.shutdown().await.expect("clean shutdown");
        assert_eq!(fs::read_dir(&area).expect("still there").count(), 0);
        wait_for("its space is free again", || free(&dir) + (2 << 20) >= before);
    }
}

/// Prints the median of starts (to the execution of the command) on each kind: run it alone, with
/// `--release --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a benchmark"]
async fn start_cost_of_each_kind() {
    const STARTS: usize = 60;
    for (kind, dir) in kinds() {
        let bench = Bench::below(&dir).await;
        let (mut rootfs, mut mounts, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..STARTS {
            let spec =
                ContainerSpec { writable_bytes: 512 << 20, tmp_bytes: 512 << 20, ..capped(kind, "true") };
            let began = Instant::now();
            let container = bench.start(spec).await.expect("starts");
            all.push(began.elapsed());
            rootfs.push(container.timings().rootfs);
            mounts.push(container.timings().mounts);
            container.wait().await.expect("ends");
            drop(container);
            // As between starts of a host that is not flooded with them.
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        println!(
            "{kind:?} in {}: made {:?}, mounts {:?}, whole start {:?}; the first one made {:?}",
            dir.display(),
            median(&rootfs),
            median(&mounts),
            median(&all),
            rootfs[0],
        );
        bench.end().await;
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}
