//! Containers in user namespaces: whose files and processes are whose, inside and on the host. Needs
//! root, and `busybox` from Debian's package `busybox-static`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use skiff_runtime::{ContainerSpec, ErrorKind, Writable};

mod bench;
use bench::{Bench, finish, shell};

const FIRST: u32 = 0x7000_0000;
const END: u32 = 0x7FFE_0000;

fn mapped(script: &str) -> ContainerSpec {
    ContainerSpec { userns: true, ..shell(script) }
}

/// Owner, mode and times of everything below a directory, and what is in its files.
fn picture(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).expect("there");
        let content = if meta.is_file() { fs::read(&path).expect("read").len() } else { 0 };
        all.push(format!(
            "{} {}:{} {:o} {}.{} {content}",
            path.display(),
            meta.uid(),
            meta.gid(),
            meta.mode(),
            meta.ctime(),
            meta.ctime_nsec()
        ));
        if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("dir").flatten().map(|entry| entry.path()));
        }
    }
    all.sort();
    all
}

fn with_owned_files(bench: &Bench) {
    let app = bench.rootfs().join("app");
    fs::create_dir_all(&app).expect("mkdir");
    fs::write(app.join("roots"), "r").expect("write");
    fs::write(app.join("users"), "u").expect("write");
    fs::write(app.join("foreign"), "f").expect("write");
    chown(app.join("users"), Some(1000), Some(1001)).expect("chown");
    chown(app.join("foreign"), Some(70_000), Some(70_000)).expect("chown");
    fs::set_permissions(app.join("roots"), fs::Permissions::from_mode(0o4755)).expect("chmod");
}

#[tokio::test]
async fn root_inside_is_nobody_outside_and_the_image_stays_as_it_is() {
    for writable in [Writable::Loop, Writable::Tmpfs] {
        let bench = Bench::new().await;
        with_owned_files(&bench);
        let before = picture(&bench.rootfs());
        let script = "id -u; busybox stat -c '%u:%g:%n' / /app /app/roots /app/users /app/foreign /tmp /etc/hosts; \
                      echo x >> /app/users && echo y > /app/new && busybox chown 1000:1000 /app/new \
                      && echo z > /tmp/t && busybox stat -c '%u:%g:%n' /app/users /app/new /tmp/t; \
                      cat /proc/self/uid_map; echo hosts >> /etc/hosts && echo ok";
        let (exit, out, err) = bench.sh(script, |s| (s.userns, s.writable) = (true, writable)).await;
        assert_eq!((exit.code, err.as_str()), (Some(0), ""), "{out}");
        let lines: Vec<_> = out.lines().collect();
        let nobody = "65534:65534:/app/foreign";
        let owners = [
            "0:0:/",
            "0:0:/app",
            "0:0:/app/roots",
            "1000:1001:/app/users",
            nobody,
            "0:0:/tmp",
            "0:0:/etc/hosts",
        ];
        assert_eq!(lines[0], "0");
        assert_eq!(lines[1..8], owners);
        assert_eq!(lines[8..11], ["1000:1001:/app/users", "1000:1000:/app/new", "0:0:/tmp/t"]);
        let map: Vec<u32> = lines[11].split_whitespace().map(|n| n.parse().expect("number")).collect();
        assert!(map[0] == 0 && map[1] >= FIRST && map[1] < END && map[2] == 65_536, "{map:?}");
        assert_eq!(lines[12], "ok");
        assert_eq!(picture(&bench.rootfs()), before, "files of the image were touched");
        bench.end().await;
    }
}

#[tokio::test]
async fn processes_and_new_files_have_high_ids_on_the_host() {
    let bench = Bench::new().await;
    let script = "echo x > /new; echo ready; exec sleep 100";
    let (one, two) = (bench.start(mapped(script)).await, bench.start(mapped(script)).await);
    let (one, two) = (one.expect("starts"), two.expect("starts"));
    let owner = |pid: u32| fs::metadata(format!("/proc/{pid}")).expect("proc").uid();
    let uid_of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let line = status.lines().find(|l| l.starts_with("Uid:")).expect("uid").to_owned();
        line.split_whitespace().nth(1).expect("real").parse::<u32>().expect("number")
    };
    let (a, b) = (uid_of(one.pid()), uid_of(two.pid()));
    assert!(a >= FIRST && b >= FIRST && a.abs_diff(b) >= 65_536, "{a} {b} {}", owner(one.pid()));
    for (container, uid) in [(&one, a), (&two, b)] {
        let made = format!("/proc/{}/root/new", container.pid());
        for _ in 0..1000 {
            if Path::new(&made).exists() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(fs::metadata(&made).expect("made").uid(), uid);
    }
    drop((one, two));
    bench.end().await;
}

#[tokio::test]
async fn devices_mounts_limits_and_privileges_are_as_without() {
    let bench = Bench::new().await;
    let script = "cat /proc/self/status; for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/x 2>/dev/null && echo WROTE $d; done; \
                  echo x > /proc/sys/kernel/hostname; echo b > /proc/sysrq-trigger; \
                  for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo MISSING $d; done; \
                  echo data > /dev/null && dd if=/dev/zero of=/dev/shm/x bs=1k count=1 2>/dev/null || echo BAD; \
                  ls /sys/class/net; busybox unshare -U true && echo NEWNS; \
                  busybox mount -t tmpfs x /mnt 2>/dev/null && echo MOUNTED; \
                  [ -s /proc/kcore ] && echo KCORE; ls /proc/1/fd; ulimit -u; ulimit -n";
    let (_, out, _) = bench.sh(script, |s| s.userns = true).await;
    for word in ["WROTE", "MISSING", "BAD", "NEWNS", "MOUNTED", "KCORE"] {
        assert!(!out.contains(word), "{out}");
    }
    let field = |name: &str| {
        let line = out.lines().find(|l| l.starts_with(name)).expect(name);
        line.split_whitespace().nth(1).expect("value").to_owned()
    };
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
    for set in ["CapInh:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
    }
    let end: Vec<_> = out.lines().rev().take(6).collect();
    assert_eq!(end, ["1024", "64", "2", "1", "0", "lo"], "{out}");
    bench.end().await;
}

#[tokio::test]
async fn users_of_the_image_and_low_ports_work() {
    let bench = Bench::new().await;
    let user = |s: &mut ContainerSpec| (s.userns, s.user) = (true, Some("1000:1000".into()));
    let (_, out, _) = bench
        .sh("id -u; id -g; id -G; echo again > /dev/stdout; mkdir /x 2>/dev/null || echo no", user)
        .await;
    assert_eq!(out, "1000\n1000\n1000\nagain\nno\n");
    let (_, out, _) = bench.sh("httpd -p 80 -h / && echo bound", user).await;
    assert_eq!(out, "bound\n");
    let (_, out, _) = bench
        .sh("pwd; touch x && echo made", |s| {
            (s.userns, s.working_dir) = (true, Some("/made/here".into()));
        })
        .await;
    assert_eq!(out, "/made/here\nmade\n");
    let (_, out, _) = bench
        .sh("touch /x 2>/dev/null || echo no; touch /tmp/x && echo tmp", |s| {
            (s.userns, s.read_only) = (true, true);
        })
        .await;
    assert_eq!(out, "no\ntmp\n");
    let error = bench.start(ContainerSpec { user: Some("70000".into()), ..mapped("true") }).await;
    let error = error.expect_err("outside of the namespace");
    assert_eq!(error.kind(), ErrorKind::UnknownUser, "{error:?}");
    assert!(error.to_string().contains("70000"), "{error}");
    bench.end().await;
}

#[tokio::test]
async fn a_filesystem_that_maps_no_ids_is_named() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().expect("tempdir");
    let lower = dir.path().join("lower");
    let merged = dir.path().join("merged");
    fs::create_dir_all(lower.join("bin")).expect("mkdir");
    fs::create_dir(&merged).expect("mkdir");
    let options = format!("lowerdir={}:{}", lower.display(), bench.rootfs().display());
    let mounted = std::process::Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(&merged)
        .status()
        .expect("mount runs");
    assert!(mounted.success(), "an overlay");
    let image = skiff_runtime::image::Image::unmanaged("x", Default::default(), vec![merged.clone()]);
    let error = bench.runtime.start(&image, mapped("true")).await.expect_err("refused");
    let unmounted = std::process::Command::new("umount").arg(&merged).status().expect("umount runs");
    assert!(unmounted.success());
    assert!(error.to_string().contains("overlayfs") && error.advice().is_some(), "{error:?}");
    // Nothing of the failed start is in the way of the next.
    let container = bench.start(mapped("echo fine")).await.expect("starts");
    assert_eq!(finish(&container).await.1, "fine\n");
    drop(container);
    bench.end().await;
}

#[tokio::test]
async fn supplementary_groups_of_the_daemon_are_not_the_containers() {
    let bench = Bench::new().await;
    for userns in [false, true] {
        let (_, out, _) = bench.sh("busybox grep Groups /proc/self/status", |s| s.userns = userns).await;
        assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["Groups:"]);
    }
    bench.end().await;
}
