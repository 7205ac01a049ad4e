//! Images that mean harm, by the files in them: what a container of one is, and what the host is
//! afterwards. Needs root, and `busybox` from Debian's package `busybox-static`.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use skiff_runtime::{Container, ContainerSpec, ErrorKind, ExecSpec, Writable};

mod bench;
use bench::{Bench, finish, shell};

#[tokio::test]
async fn links_into_the_runtimes_directories_are_refused() {
    for (link, target) in [
        ("tmp", "/proc"),
        ("tmp", "/proc/self"),
        ("tmp", "proc/1/root"),
        ("tmp", "/"),
        ("tmp", "/sys/fs/cgroup"),
        ("etc", "/dev"),
        ("etc", "/proc/self/cwd"),
        ("etc/hosts", "/proc/sysrq-trigger"),
        ("etc/hosts", "/proc/self/cwd/../../etc/shadow"),
    ] {
        let bench = Bench::new().await;
        let path = bench.rootfs().join(link);
        fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        symlink(target, &path).expect("symlink");
        let error = bench.start(shell("true")).await.expect_err(target);
        assert_eq!(error.kind(), ErrorKind::InvalidImage, "{link} -> {target}: {error:?}");
        assert!(error.to_string().contains(link), "{error}");
        bench.end().await;
    }
}

/// CVE-2024-21626.
#[tokio::test]
async fn working_directories_do_not_reach_descriptors() {
    let bench = Bench::new().await;
    for fd in 0..=20 {
        fs::create_dir_all(bench.rootfs().join(format!("proc/self/fd/{fd}"))).expect("mkdir");
    }
    symlink("/proc/self/fd", bench.rootfs().join("a")).expect("symlink");
    for fd in 0..=20 {
        for dir in [
            format!("/a/{fd}"),
            format!("/dev/fd/{fd}"),
            format!("/proc/self/fd/{fd}"),
            format!("/proc/1/fd/{fd}"),
        ] {
            let spec = ContainerSpec { working_dir: Some(dir.clone()), ..shell("ls") };
            let error = bench.start(spec).await.expect_err(&dir);
            assert_eq!(error.kind(), ErrorKind::InvalidWorkingDirectory, "{error:?}");
        }
    }
    bench.end().await;
}

#[tokio::test]
async fn a_working_directory_below_tmp_is_there() {
    let bench = Bench::new().await;
    for dir in ["/tmp/a/b", "/tmp", "/dev/shm"] {
        let (exit, out, _) = bench.sh("pwd", |s| s.working_dir = Some(dir.into())).await;
        assert_eq!((exit.code, out.trim()), (Some(0), dir));
    }
    bench.end().await;
}

/// A database of a gigabyte, nearly all of it a hole: one line at its beginning, one at its end.
fn write_huge(path: &Path, first: &str, last: &str) {
    let mut file = fs::File::create(path).expect("a file");
    file.write_all(first.as_bytes()).expect("written");
    file.seek(SeekFrom::Start(1 << 30)).expect("a hole");
    file.write_all(format!("\n{last}").as_bytes()).expect("written");
}

#[tokio::test]
async fn of_databases_of_a_gigabyte_a_bounded_part_is_read() {
    const MEMORY: u64 = 64 << 20;
    let bench = Bench::new().await;
    let etc = bench.rootfs().join("etc");
    fs::create_dir(&etc).expect("mkdir");
    write_huge(&etc.join("passwd"), "app:x:1000:1001::/home/app:/bin/sh\n", "late:x:7:7::/:/bin/sh\n");
    write_huge(&etc.join("group"), "video:x:44:app\n", "lates:x:8:app\n");
    let spec = |user: &str, script: &str| ContainerSpec {
        user: Some(user.into()),
        memory_bytes: MEMORY,
        ..shell(script)
    };
    let container = bench.start(spec("app", "cat /proc/self/status")).await.expect("starts");
    let (exit, out, err) = finish(&container).await;
    assert_eq!(exit.code, Some(0), "{err}");
    for ids in ["Uid:\t1000\t1000", "Gid:\t1001\t1001", "Groups:\t44 "] {
        assert!(out.contains(ids), "{ids}: {out}");
    }
    assert!(container.stats().memory_peak_bytes < MEMORY, "{:?}", container.stats());
    // Who is only at the end is not in it: the end has not been read, which would take longer than a start may.
    for user in ["late", "app:lates"] {
        let error = bench.start(spec(user, "true")).await.expect_err(user);
        assert_eq!(error.kind(), ErrorKind::UnknownUser, "{error:?}");
    }
    let container = bench.start(spec("0", "exec sleep 1000")).await.expect("starts");
    for (user, wanted) in [("app", None), ("late", Some(ErrorKind::UnknownUser))] {
        let spec = ExecSpec { argv: vec!["pwd".into()], user: Some(user.into()), ..ExecSpec::default() };
        let started = container.exec(spec, Some(Path::new(env!("CARGO_BIN_EXE_skiff-keeper")))).await;
        assert_eq!(started.as_ref().err().map(skiff_runtime::Error::kind), wanted, "{user}: {started:?}");
    }
    drop(container);
    bench.end().await;
}

/// A file by which whoever writes it runs programs on the host.
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// What the runtime makes in `/dev`, or what programs look for there.
const DEVICES: [&str; 17] = [
    "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "mqueue", "fd",
    "stdin", "stdout", "stderr", "kcore", "core",
];

/// What the host has where such links lead, and where a mount of the runtime would be seen.
fn host(outside: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let entries = fs::read_dir(outside).expect("dir").flatten().map(|entry| entry.path());
    let known =
        ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/ptmx", "/proc/sysrq-trigger", CORE_PATTERN];
    for path in entries.chain(known.map(Into::into)) {
        // Not every kernel has all of them.
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let content = if meta.is_file() { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        let (mode, uid, gid, device) = (meta.mode(), meta.uid(), meta.gid(), meta.rdev());
        all.push(format!("{} {mode:o} {uid}:{gid} {device} {content:?}", path.display()));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let of_runtime = |line: &&str| {
        line.split(' ').nth(4).is_some_and(|at| at.starts_with("/dev") || at.starts_with("/proc"))
    };
    all.extend(mounts.lines().filter(of_runtime).map(str::to_owned));
    all.sort();
    all
}

/// Links and files below `dev` and `proc` of a directory, as `shell` sees them: where they lead, and
/// what is in them.
fn prepared(shell: &mut Command) -> String {
    let script = "busybox find dev proc ! -type d | busybox sort | while read -r f; do \
                  if [ -L \"$f\" ]; then echo \"$f -> $(busybox readlink \"$f\")\"; \
                  else echo \"$f = $(busybox cat \"$f\")\"; fi; done";
    let seen = shell.arg(script).output().expect("a shell");
    assert!(seen.status.success(), "{seen:?}");
    String::from_utf8(seen.stdout).expect("utf-8")
}

/// The same below what is mounted there: in a mount namespace of its own, where the container's root is
/// mounted once more, alone.
fn prepared_beneath(container: &Container) -> String {
    let pid = container.pid().to_string();
    let script = "busybox mount -o bind / /tmp && cd /tmp && eval \"$0\"";
    prepared(Command::new("nsenter").args([
        "-t",
        &pid,
        "-m",
        "/bin/busybox",
        "unshare",
        "-m",
        "/bin/sh",
        "-c",
        script,
    ]))
}

/// Devices of the container's own, what Docker masks masked, and what it makes read-only not written.
const LOOK: &str = "busybox stat -c '%F %t:%T' /dev/null /dev/zero /dev/pts /dev/shm; readlink /dev/ptmx; readlink /dev/fd; \
                    for f in kcore keys interrupts timer_list; do \
                    [ ! -e /proc/$f ] || busybox stat -c '%t:%T' /proc/$f; done | busybox sort -u; \
                    echo h > /proc/sysrq-trigger && echo WROTE; echo x > /proc/sys/kernel/core_pattern && echo WROTE; \
                    echo x > /dev/null && echo y > /dev/zero && echo end";
const SEEN: &str = "character special file 1:3\ncharacter special file 1:5\ndirectory 0:0\ndirectory 0:0\n\
                    pts/ptmx\n/proc/self/fd\n1:3\nend\n";

async fn look_and_compare(bench: &Bench, outside: &Path, what: &str) {
    let image = prepared(Command::new("/bin/busybox").args(["sh", "-c"]).current_dir(bench.rootfs()));
    assert!(image.lines().count() > 4, "{image}");
    let before = host(outside);
    for userns in [false, true] {
        let script = format!("{LOOK}; exec sleep 1000");
        let container = bench.start(ContainerSpec { userns, ..shell(&script) }).await.expect(what);
        let (mut out, _err) = container.take_output().expect("output");
        let mut seen = Vec::new();
        while !seen.ends_with(b"end\n") {
            let now = out.look(seen.len()).await.expect("looked").to_vec();
            assert!(now.len() > seen.len(), "{what}: {}", String::from_utf8_lossy(&now));
            seen = now;
        }
        assert_eq!(String::from_utf8_lossy(&seen), SEEN, "{what} {userns}");
        // In a user namespace the kernel keeps covered what is mounted over.
        if !userns {
            assert_eq!(prepared_beneath(&container), image, "{what}: the image's files were used");
        }
        drop(container);
    }
    assert_eq!(host(outside), before, "{what}");
}

/// CVE-2025-31133, CVE-2025-52565: what the runtime covers or mounts by was a link in the image.
#[tokio::test]
async fn what_an_image_has_prepared_in_dev_is_not_used() {
    let outside = tempfile::tempdir().expect("tempdir");
    fs::write(outside.path().join("file"), "the host's").expect("write");
    fs::create_dir(outside.path().join("dir")).expect("mkdir");
    let inside = |name: &str| outside.path().join(name).to_str().expect("utf-8").to_owned();
    for target in [inside("file"), inside("dir"), inside("absent"), CORE_PATTERN.into()] {
        let bench = Bench::new().await;
        let dev = bench.rootfs().join("dev");
        fs::create_dir(&dev).expect("mkdir");
        for name in DEVICES {
            symlink(&target, dev.join(name)).expect("symlink");
        }
        look_and_compare(&bench, outside.path(), &target).await;
        bench.end().await;
    }
}

/// CVE-2025-52881: what the runtime writes to procfs went to another file.
#[tokio::test]
async fn what_an_image_has_prepared_in_proc_is_not_used() {
    let outside = tempfile::tempdir().expect("tempdir");
    fs::write(outside.path().join("file"), "the host's").expect("write");
    let bench = Bench::new().await;
    let proc = bench.rootfs().join("proc");
    for dir in ["self/attr/apparmor", "self/fd", "thread-self/attr", "1/attr", "sys/kernel", "sys/net/ipv4"] {
        fs::create_dir_all(proc.join(dir)).expect("mkdir");
    }
    let files = [
        "self/attr/exec",
        "self/attr/current",
        "self/attr/apparmor/exec",
        "self/oom_score_adj",
        "self/setgroups",
        "self/uid_map",
        "self/gid_map",
        "thread-self/attr/exec",
        "1/attr/exec",
        "sys/kernel/hostname",
        "sys/net/ipv4/ping_group_range",
        "sysrq-trigger",
        "keys",
    ];
    for file in files {
        fs::write(proc.join(file), "the image's").expect("write");
    }
    for link in ["self/exe", "self/fd/0", "self/fd/3", "kcore", "interrupts", "timer_list"] {
        symlink(outside.path().join("file"), proc.join(link)).expect("symlink");
    }
    look_and_compare(&bench, outside.path(), "proc").await;
    bench.end().await;
}

/// Programs and interpreters are found by paths, which may name what the runtime has open (CVE-2024-21626).
#[tokio::test]
async fn no_program_is_found_through_a_descriptor_of_the_runtime() {
    let bench = Bench::new().await;
    // The host's busybox is the program that would be found; the container's own is elsewhere.
    let own = bench.rootfs().join("bin/busybox");
    fs::create_dir_all(bench.rootfs().join("own")).expect("mkdir");
    fs::rename(&own, bench.rootfs().join("own/sh")).expect("rename");
    let up = "../".repeat(14);
    let through = |number: u32| format!("/proc/self/fd/{number}/{up}");
    let path = (0..64).flat_map(|n| [format!("{}bin", through(n)), format!("{}usr/bin", through(n))]);
    let path = path.collect::<Vec<_>>().join(":");
    for writable in [Writable::Loop, Writable::Tmpfs] {
        let spec = ContainerSpec {
            entrypoint: Some(vec!["busybox".into(), "true".into()]),
            env: vec![("PATH".into(), path.clone())],
            writable,
            ..shell("")
        };
        let error = bench.start(spec).await.expect_err("no such program inside");
        assert_eq!(error.kind(), ErrorKind::CommandNotFound, "{error:?}");
    }
    for number in 0..64 {
        let script = format!("#!{}bin/busybox sh\n", through(number));
        fs::write(bench.rootfs().join("script"), script).expect("write");
        std::os::unix::fs::chown(bench.rootfs().join("script"), Some(0), Some(0)).expect("chown");
        fs::set_permissions(bench.rootfs().join("script"), fs::Permissions::from_mode(0o755)).expect("chmod");
        let spec =
            ContainerSpec { entrypoint: Some(vec!["/script".into()]), writable: Writable::Loop, ..shell("") };
        let error = bench.start(spec).await.expect_err("no such interpreter inside");
        assert_eq!(error.kind(), ErrorKind::CommandNotFound, "{number}: {error:?}");
    }
    bench.end().await;
}
