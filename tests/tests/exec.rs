//! `skiff exec` as people and scripts use it: streams, signals, exit codes, terminals.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use skiff_tests::{Sandbox, Served, images, wait_for};

/// The function's id, which its cgroup is named after.
fn instance(served: &Served) -> String {
    let group = served.init().cgroup_dir("pids");
    group.file_name().and_then(|name| name.to_str()).expect("utf-8").to_owned()
}

fn serve(sandbox: &Sandbox, options: &[&str]) -> (Served, String) {
    let served = sandbox.serve(&images::oci("python"), options);
    let id = instance(&served);
    (served, id)
}

#[test]
fn output_errors_and_codes_are_the_commands() {
    let sandbox = Sandbox::with_shared_images();
    let (served, id) = serve(&sandbox, &["--env", "A=from-start"]);
    let run = |words: &[&str]| sandbox.run(&[&["exec", &id, "--"], words].concat());
    let outcome = run(&["sh", "-c", "echo $A; echo bad >&2; exit 42"]).expect_code(42);
    assert_eq!((outcome.stdout(), outcome.stderr.clone()), ("from-start\n".into(), "bad\n".into()));
    run(&["sh", "-c", "kill -TERM $$"]).expect_code(143);
    assert!(run(&["/no/such"]).expect_code(127).stderr.contains("/no/such"));
    assert!(run(&["/etc/passwd"]).expect_code(126).stderr.contains("/etc/passwd"));
    let prefix = &id[..id.len() - 2];
    assert_eq!(sandbox.run(&["exec", prefix, "--user", "1000", "--", "id", "-u"]).ok().stdout(), "1000\n");
    assert_eq!(
        sandbox
            .run(&["exec", &id, "-w", "/usr", "-e", "B=2", "--", "sh", "-c", "pwd; echo $B"])
            .ok()
            .stdout(),
        "/usr\n2\n"
    );
    sandbox.run(&["exec", &id, "--user", "nobody-such", "--", "id"]).expect_code(2);
    let missing = sandbox.run(&["exec", "zzz", "--", "id"]).expect_code(2);
    assert!(missing.stderr.contains("'zzz'") && missing.stderr.contains(&id), "{}", missing.stderr);
    // Without -i the standard input is nobody's; with it, it is passed on to its end.
    let mut command = sandbox.skiff(&["exec", "-i", &id, "--", "cat"]);
    let input = sandbox.write("input", vec![b'y'; 1 << 20]);
    command.stdin(fs::File::open(input).expect("open"));
    assert_eq!(sandbox.finish(command).ok().stdout().len(), 1 << 20);
    drop(served);
}

#[test]
fn signals_are_passed_on_and_a_killed_client_takes_its_command_with_it() {
    let sandbox = Sandbox::with_shared_images();
    let (served, id) = serve(&sandbox, &[]);
    let script = "trap 'exit 9' TERM; touch /tmp/trapped; while :; do sleep 0.05; done";
    let child = sandbox.skiff(&["exec", &id, "--", "sh", "-c", script]).spawn().expect("runs");
    let wait = |path: &str| {
        wait_for(Duration::from_secs(20), || {
            (served.shell(&format!("ls {path} 2>/dev/null || true")).contains(path)).then_some(())
        })
    };
    assert!(wait("/tmp/trapped").is_some());
    let send = |child: &std::process::Child, signal| {
        kill_process(Pid::from_raw(child.id().cast_signed()).expect("pid"), signal).expect("sent");
    };
    send(&child, Signal::TERM);
    let mut child = child;
    assert_eq!(child.wait().expect("ends").code(), Some(9));
    let mut child = sandbox
        .skiff(&[
            "exec",
            &id,
            "--",
            "sh",
            "-c",
            "echo $$ > /tmp/pid.new; mv /tmp/pid.new /tmp/pid; exec sleep 1000",
        ])
        .stdout(Stdio::null())
        .spawn()
        .expect("runs");
    assert!(wait("/tmp/pid").is_some());
    send(&child, Signal::KILL);
    assert_eq!(child.wait().expect("ends").signal(), Some(9));
    let gone = wait_for(Duration::from_secs(20), || {
        served.shell("[ -e /proc/$(cat /tmp/pid) ] && echo lives || echo gone").contains("gone").then_some(())
    });
    assert!(gone.is_some(), "the command outlives its client");
}

#[test]
fn a_terminal_is_restored_and_keys_reach_the_command() {
    let sandbox = Sandbox::with_shared_images();
    let (_served, id) = serve(&sandbox, &[]);
    // script(1) gives skiff a terminal; what that is like before and after is compared.
    let skiff = Sandbox::program("skiff");
    let line = format!(
        "stty rows 31 cols 71; stty -g > before; {} exec -it {id} -- sh -c 'tty; stty size; read x; echo got $x; exit 5'; echo code $?; stty -g > after",
        skiff.display()
    );
    let mut command = sandbox.command(&PathBuf::from("script"), &["-qec", &line, "/dev/null"]);
    command.env("SKIFF_KEEPER", Sandbox::program("skiff-keeper")).env("SKIFF_RUN_DIR", sandbox.run_dir());
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script runs");
    std::thread::sleep(Duration::from_millis(1500));
    std::io::Write::write_all(&mut child.stdin.as_ref().expect("piped"), b"word\n").expect("written");
    let output = child.wait_with_output().expect("ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("/dev/pts/") && text.contains("31 71") && text.contains("got word"), "{text}");
    assert!(text.contains("code 5"), "{text}");
    let read = |name: &str| fs::read_to_string(sandbox.path().join(name)).expect("written");
    assert_eq!(read("before"), read("after"));
}

#[test]
fn a_function_in_a_user_namespace_serves() {
    let sandbox = Sandbox::with_shared_images();
    let (served, id) = serve(&sandbox, &["--userns"]);
    assert!(
        served
            .shell("cat /proc/self/uid_map")
            .split_whitespace()
            .nth(1)
            .is_some_and(|first| first.len() == 10)
    );
    assert_eq!(served.shell("id -u; stat -c %u /usr/bin/python3").trim(), "0\n0");
    let own = sandbox.run(&["exec", &id, "--", "sh", "-c", "id -u; cat /proc/self/uid_map"]).ok().stdout();
    assert!(own.starts_with("0\n") && own.contains("65536"), "{own}");
    let list = Command::new("ls").args(["-ln", "/run/skiff.ids"]).output().expect("ls");
    assert!(list.status.success());
}

#[test]
fn limits_are_the_platforms() {
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    for (platform, files) in [("scf", 1024), ("fc", 100_000)] {
        let sandbox = Sandbox::with_shared_images();
        let (served, id) = serve(&sandbox, &["--platform", platform]);
        let script =
            "ulimit -Sn; ulimit -Hn; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null";
        // Without CAP_SYS_RESOURCE, not more than this process has.
        let may_raise = caps_sys_resource();
        let files = if may_raise { files } else { own.min(files) };
        let expected = format!("{files}\n{files}\n1024\n");
        assert_eq!(served.shell(&format!("{script} || true")), expected, "{platform}");
        let inside =
            sandbox.run(&["exec", &id, "--", "sh", "-c", &format!("{script} || true")]).ok().stdout();
        assert_eq!(inside, expected, "{platform}");
    }
}

/// Whether this process may raise limits (bit 24 of its effective capabilities).
fn caps_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
    u64::from_str_radix(line.trim(), 16).expect("hexadecimal") >> 24 & 1 == 1
}

#[test]
fn an_idle_instance_is_thawed_for_a_command_and_frozen_after_it() {
    let sandbox = Sandbox::with_shared_images();
    let (served, id) = serve(&sandbox, &[]);
    let patience = Duration::from_secs(20);
    let frozen = |what: &str| {
        assert!(wait_for(patience, || served.is_frozen().then_some(())).is_some(), "{what}");
    };
    frozen("never frozen");
    let mut command = sandbox.skiff(&["exec", &id, "--", "sh", "-c", "echo runs; exec sleep 1000"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("skiff");
    let mut line = String::new();
    let mut output = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    std::io::BufRead::read_line(&mut output, &mut line).expect("read");
    assert_eq!(line, "runs\n");
    // It is looked at, called, and idle again meanwhile: nothing freezes the command.
    for _ in 0..3 {
        let _ = served.get("/").ok();
        std::thread::sleep(Duration::from_secs(1));
        assert!(!served.is_frozen(), "the command is frozen");
    }
    child.kill().expect("killed");
    child.wait().expect("waited");
    frozen("not frozen again");
    // It is thawed by a command that ends at once, too.
    sandbox.run(&["exec", &id, "--", "true"]).ok();
    frozen("not frozen after a short command");
    served.stop();
}
