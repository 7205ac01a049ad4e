//! Other processes in running containers: what they are, what they may do, and what is left of the
//! host's in them. Needs root, and `busybox` from Debian's package `busybox-static`.
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use skiff_runtime::exec::{Signal, Target, TerminalSize};
use skiff_runtime::{ErrorKind, Exec, ExecSpec};

mod bench;
use bench::exec::{KEEPER, command, read_all, run, script, sleeper, start};
use bench::{Bench, shell, wait_until_gone};

fn field(status: &str, name: &str) -> String {
    let line =
        status.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {status}"));
    line.split_once(':').expect("a value").1.trim().to_owned()
}

#[tokio::test]
async fn it_has_what_the_first_process_has_and_no_more() {
    let bench = Bench::new().await;
    for (userns, user) in [(false, ""), (false, "1000:1001"), (true, ""), (true, "1000:1001")] {
        let container = sleeper(&bench, |s| {
            s.userns = userns;
            s.user = Some(user.into());
            s.env = vec![("A".into(), "b c".into())];
            s.working_dir = Some("/made/here".into());
        })
        .await;
        let text = "cat /proc/self/status; echo ENV:$A; echo CWD:$(pwd)";
        let (exit, out, err) = run(&container, script(text)).await;
        assert_eq!((exit.code, err.as_str()), (Some(0), ""), "{out}");
        let init = fs::read_to_string(format!("/proc/{}/status", container.pid())).expect("status");
        for name in
            ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"]
        {
            assert_eq!(field(&out, name), field(&init, name), "{name} {userns} {user}");
        }
        assert_eq!((field(&out, "CapInh"), field(&out, "Seccomp").as_str()), ("0".repeat(16), "2"));
        let uid = if user.is_empty() { "0" } else { "1000" };
        assert_eq!(field(&out, "Uid").split_whitespace().next(), Some(uid));
        assert_eq!(field(&out, "Groups"), "", "{userns} {user}");
        assert_eq!((field(&out, "ENV"), field(&out, "CWD")), ("b c".into(), "/made/here".into()));
        assert_ne!(field(&out, "Pid"), "1");
        drop(container);
    }
    bench.end().await;
}

#[tokio::test]
async fn limits_groups_and_namespaces_are_the_containers() {
    let bench = Bench::new().await;
    for userns in [false, true] {
        let container = sleeper(&bench, |s| s.userns = userns).await;
        let mut exec = start(&container, command(&["sleep", "1000"])).await.expect("starts");
        let of = |name: &str, pid: u32| fs::read_to_string(format!("/proc/{pid}/{name}")).expect("proc");
        assert_eq!(of("limits", exec.pid()), of("limits", container.pid()), "{userns}");
        assert_eq!(of("cgroup", exec.pid()), of("cgroup", container.pid()));
        assert!(of("cgroup", exec.pid()).contains(container.id()));
        for name in ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"] {
            let link = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("ns");
            assert_eq!(link(exec.pid()), link(container.pid()), "{name}");
        }
        let fds = fs::read_dir(format!("/proc/{}/fd", exec.pid())).expect("fds").flatten();
        let mut fds: Vec<_> = fds.map(|e| e.file_name().into_string().expect("number")).collect();
        fds.sort();
        assert_eq!(fds, ["0", "1", "2"]);
        assert_eq!(fs::read_link(format!("/proc/{}/root", exec.pid())).expect("root"), Path::new("/"));
        exec.signal(Signal::TERM).await.expect("sent");
        let exit = exec.wait().await.expect("ends");
        assert_eq!((exit.signal, exit.shell_code()), (Some(15), 143));
        drop(container);
    }
    bench.end().await;
}

#[tokio::test]
async fn memory_of_it_is_the_containers() {
    let bench = Bench::new().await;
    let container = sleeper(&bench, |s| s.memory_bytes = 32 << 20).await;
    let (exit, _, _) =
        run(&container, command(&["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"])).await;
    assert_eq!(exit.signal, Some(9), "killed for want of memory");
    drop(container);
    bench.end().await;
}

#[tokio::test]
async fn exits_output_and_input_are_passed() {
    let bench = Bench::new().await;
    let container = sleeper(&bench, |_| {}).await;
    let (exit, out, err) =
        run(&container, script("echo out; echo err >&2; echo more > /dev/stdout; exit 7")).await;
    assert_eq!((exit.code, out.as_str(), err.as_str()), (Some(7), "out\nmore\n", "err\n"));
    let (exit, _, _) = run(&container, script("kill -9 $$")).await;
    assert_eq!((exit.code, exit.signal, exit.shell_code()), (None, Some(9), 137));
    let (exit, out, _) = run(&container, command(&["dd", "if=/dev/zero", "bs=1M", "count=20"])).await;
    assert_eq!((exit.code, out.len()), (Some(0), 20 << 20));
    let mut exec = start(&container, command(&["cat"])).await.expect("starts");
    let streams = exec.take_streams().expect("streams");
    let writer = std::thread::spawn(move || File::from(streams.stdin).write_all(&[b'x'; 3 << 20]));
    let (out, exit) = tokio::join!(read_all(streams.stdout), exec.wait());
    writer.join().expect("a thread").expect("written");
    assert_eq!((out.len(), exit.expect("an exit").code), (3 << 20, Some(0)));
    drop(container);
    bench.end().await;
}

#[tokio::test]
async fn another_user_directory_and_environment_can_be_had() {
    let bench = Bench::new().await;
    let etc = bench.rootfs().join("etc");
    fs::create_dir_all(&etc).expect("mkdir");
    fs::write(etc.join("passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n")
        .expect("write");
    fs::write(etc.join("group"), "video:x:44:app\n").expect("write");
    for userns in [false, true] {
        let container = sleeper(&bench, |s| s.userns = userns).await;
        let spec = ExecSpec {
            user: Some("app".into()),
            working_dir: Some("/bin".into()),
            env: vec![("NEW".into(), "1".into())],
            ..script("id -u; id -g; id -G; pwd; echo $HOME $NEW; echo again > /dev/stderr")
        };
        let (exit, out, err) = run(&container, spec).await;
        assert_eq!((exit.code, err.as_str()), (Some(0), "again\n"), "{out}");
        assert_eq!(out, "1000\n1001\n1001 44\n/bin\n/home/app 1\n");
        drop(container);
    }
    bench.end().await;
}

#[tokio::test]
async fn what_cannot_be_is_told() {
    let bench = Bench::new().await;
    fs::create_dir_all(bench.rootfs().join("app")).expect("mkdir");
    fs::write(bench.rootfs().join("app/data"), "no program").expect("write");
    let container = sleeper(&bench, |_| {}).await;
    let cases = [
        (command(&[]), ErrorKind::NoCommand, "no command"),
        (command(&[""]), ErrorKind::NoCommand, "no command"),
        (command(&["/none"]), ErrorKind::CommandNotFound, "/none"),
        (command(&["nothing-such"]), ErrorKind::CommandNotFound, "nothing-such"),
        (command(&["/app/data"]), ErrorKind::CommandNotExecutable, "/app/data"),
        (ExecSpec { user: Some("nobody-such".into()), ..script("") }, ErrorKind::UnknownUser, "nobody-such"),
        (ExecSpec { user: Some("4294967296:1".into()), ..script("") }, ErrorKind::UnknownUser, "4294967296"),
        (
            ExecSpec { working_dir: Some("/no".into()), ..script("") },
            ErrorKind::InvalidWorkingDirectory,
            "/no",
        ),
        (
            ExecSpec { working_dir: Some("rel".into()), ..script("") },
            ErrorKind::InvalidWorkingDirectory,
            "rel",
        ),
    ];
    for (spec, kind, word) in cases {
        let error = start(&container, spec).await.expect_err(word);
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(!error.to_string().contains("start command"), "{error}");
    }
    for fd in 0..40 {
        let dir = format!("/proc/self/fd/{fd}");
        let spec = ExecSpec { working_dir: Some(dir), ..script("ls -a /proc/self/cwd/") };
        if let Ok(mut exec) = start(&container, spec).await {
            let streams = exec.take_streams().expect("streams");
            let out = read_all(streams.stdout).await;
            panic!("descriptor {fd} is a directory: {out}");
        }
    }
    drop(container);
    bench.end().await;
}

#[tokio::test]
async fn one_that_has_ended_is_told_and_a_frozen_one_is_thawed() {
    let bench = Bench::new().await;
    let container = bench.start(shell("true")).await.expect("starts");
    container.wait().await.expect("ends");
    let error = start(&container, script("true")).await.expect_err("ended");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
    assert!(error.to_string().contains(container.id()), "{error}");
    let container = sleeper(&bench, |_| {}).await;
    container.freeze().await.expect("freezes");
    let mut exec = start(&container, script("exec sleep 1000")).await.expect("starts");
    assert!(!container.is_frozen());
    let error = container.freeze().await.expect_err("a command runs");
    assert!(error.kind() == ErrorKind::ContainerInUse && error.advice().is_some(), "{error:?}");
    exec.signal(Signal::KILL).await.expect("sent");
    assert_eq!(exec.wait().await.expect("ends").signal, Some(9));
    drop(exec);
    container.freeze().await.expect("freezes");
    assert_eq!(self::run(&container, script("exit 3")).await.0.code, Some(3));
    drop(container);
    bench.end().await;
}

#[tokio::test]
async fn a_terminal_is_one_of_the_container() {
    let bench = Bench::new().await;
    for (userns, user) in [(false, None), (true, Some("1000".to_owned()))] {
        let container = sleeper(&bench, |s| (s.userns, s.user) = (userns, user)).await;
        let spec = ExecSpec {
            terminal: Some(TerminalSize { rows: 33, columns: 77 }),
            ..script(
                "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo tty; readlink /proc/self/fd/0; busybox stty size; \
                      read x; busybox stty size; echo got $x; echo > /dev/tty && exec sleep 1000",
            )
        };
        let mut exec = start(&container, spec).await.expect("starts");
        assert!(exec.take_streams().is_none());
        let master = exec.terminal().expect("a copy").expect("a terminal");
        let mut keys = File::from(master.try_clone().expect("a copy"));
        exec.resize(TerminalSize { rows: 5, columns: 6 });
        exec.resize(TerminalSize { rows: 33, columns: 77 });
        let output = tokio::spawn(read_all(master));
        // The line is read only after the first size was told.
        tokio::time::sleep(Duration::from_millis(300)).await;
        exec.resize(TerminalSize { rows: 40, columns: 100 });
        keys.write_all(b"word\n").expect("written");
        tokio::time::sleep(Duration::from_millis(300)).await;
        keys.write_all(b"\x03").expect("written");
        let exit = tokio::time::timeout(Duration::from_secs(20), exec.wait()).await.expect("ctrl-C ends it");
        assert_eq!(exit.expect("an exit").signal, Some(2));
        drop(keys);
        let out = output.await.expect("output");
        let words: Vec<_> = out.split_whitespace().collect();
        assert_eq!(words[0], "tty", "{out}");
        assert!(words[1].starts_with("/dev/pts/"), "{out}");
        assert!(out.contains("33 77") && out.contains("40 100") && out.contains("got word"), "{out}");
        drop(container);
    }
    bench.end().await;
}

#[tokio::test]
async fn it_dies_with_its_caller_and_with_its_container() {
    let bench = Bench::new().await;
    let container = sleeper(&bench, |_| {}).await;
    let exec = start(&container, command(&["sleep", "1000"])).await.expect("starts");
    let pid = exec.pid();
    drop(exec);
    wait_until_gone(pid).await;
    let mut exec = start(&container, command(&["sleep", "1000"])).await.expect("starts");
    let pid = exec.pid();
    container.stop(Duration::ZERO).await.expect("stops");
    let exit = tokio::time::timeout(Duration::from_secs(20), exec.wait()).await.expect("it ends");
    assert_eq!(exit.expect("an exit").signal, Some(9));
    wait_until_gone(pid).await;
    drop(container);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_told_apart() {
    let bench = std::sync::Arc::new(Bench::new().await);
    let container = std::sync::Arc::new(sleeper(&bench, |_| {}).await);
    let runs = (0..20).map(|number: i32| {
        let container = container.clone();
        tokio::spawn(async move {
            let (exit, out, _) = run(&container, script(&format!("echo {number}; exit {number}"))).await;
            (exit.code, out) == (Some(number), format!("{number}\n"))
        })
    });
    for run in runs.collect::<Vec<_>>() {
        assert!(run.await.expect("a task"));
    }
    drop(container);
    std::sync::Arc::into_inner(bench).expect("the last").end().await;
}

#[tokio::test]
async fn instances_are_found_by_name_and_beginning() {
    let bench = Bench::new().await;
    let run_dir = bench.dir.path().join("run");
    let find = |name: &str| Target::find(&run_dir, name);
    let error = find("a").expect_err("none runs");
    assert!(error.to_string().contains("'a'") && error.advice().is_some(), "{error:?}");
    let mut containers = Vec::new();
    for id in ["abc", "abd", "ab"] {
        containers.push(sleeper(&bench, |s| s.id = id.into()).await);
    }
    assert_eq!(find("abc").expect("whole").id(), "abc");
    assert_eq!(find("ab").expect("whole, though a beginning too").id(), "ab");
    let error = find("a").expect_err("three");
    assert!(error.to_string().contains("ab, abc, abd"), "{error}");
    let error = find("x").expect_err("none");
    assert!(error.advice().is_some_and(|advice| advice.contains("abc")), "{error:?}");
    let target = find("abd").expect("one");
    let mut exec = Exec::start(&target, script("exit 5"), Some(Path::new(KEEPER))).await.expect("starts");
    assert_eq!(exec.wait().await.expect("ends").code, Some(5));
    assert_eq!(
        Target::find(Path::new("/no/such"), "x").expect_err("none").kind(),
        ErrorKind::InvalidArgument
    );
    drop(containers);
    bench.end().await;
}

#[tokio::test]
async fn every_process_is_under_the_apparmor_profile_where_the_host_has_it() {
    if !fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with('Y')) {
        eprintln!("skipped: AppArmor is not on");
        return;
    }
    let bench = Bench::new().await;
    for user in ["0", "1000:1000"] {
        let container = sleeper(&bench, |spec| spec.user = Some(user.into())).await;
        let init = fs::read_to_string(format!("/proc/{}/attr/current", container.pid())).expect("a label");
        assert!(init.starts_with("skiff-default-") && init.contains("(enforce)"), "{user}: {init}");
        let text = "cat /proc/self/attr/current; echo x > /proc/sys/kernel/hostname";
        let (_, own, refused) = self::run(&container, script(text)).await;
        assert_eq!(own.trim_end(), init.trim_end(), "{user}");
        assert!(!refused.is_empty(), "{user}: a setting of the kernel was written");
        drop(container);
    }
    bench.end().await;
}
