//! However a run ends, it leaves nothing; what a crash leaves, the next run of the same directories
//! removes.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use skiff_tests::process::{self, Process};
use skiff_tests::{Baseline, Sandbox, Served, images, wait_for};

/// A sandbox whose store has the image already, so that only what a run makes is new afterwards.
fn warmed() -> Sandbox {
    let sandbox = Sandbox::new();
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    sandbox
}

/// What a run has while it runs; if this were nothing, the tests below could not fail.
#[track_caller]
fn assert_seen(baseline: &Baseline) {
    for kind in ["cgroup", "netns", "process", "loop", "file"] {
        assert!(baseline.count(kind) > 0, "no {kind} is seen while a container runs: {:?}", baseline.news());
    }
    assert_eq!(baseline.count("mount"), 0, "a container's mounts are on the host: {:?}", baseline.news());
}

/// Serves, makes sure that it works, and gives what can be killed.
#[track_caller]
fn serving(sandbox: &Sandbox) -> (Served, Process, Process) {
    let served = sandbox.serve_function(&[]);
    assert_eq!(served.get("/status/200").status, 200);
    let (keeper, init) = (served.keeper(), served.init());
    (served, keeper, init)
}

#[track_caller]
fn assert_dies(process: &Process) {
    let dead = wait_for(Duration::from_secs(20), || (!process.is_alive()).then_some(()));
    assert!(dead.is_some(), "{process:?} lives on");
}

#[test]
fn a_normal_end_leaves_nothing() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    baseline.assert_restored();
}

#[test]
fn the_first_run_leaves_only_the_image() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    baseline.assert_restored();
}

#[test]
fn signals_end_it_and_leave_nothing() {
    let sandbox = warmed();
    for signal in [Signal::TERM, Signal::INT] {
        let baseline = Baseline::take(&sandbox);
        let (served, keeper, init) = serving(&sandbox);
        assert_seen(&baseline);
        let socket = served.socket().to_owned();
        served.signal(signal);
        let _ = served.wait().ok();
        assert!(!socket.exists(), "the socket is left");
        assert!(!keeper.is_alive() && !init.is_alive(), "a process lives after skiff's end");
        baseline.assert_restored();
    }
}

#[test]
fn the_function_may_end_in_peace() {
    let sandbox = warmed();
    let served = sandbox.serve_function(&["--stop-timeout", "10s"]);
    let started = Instant::now();
    let outcome = served.stop();
    assert!(outcome.stderr.contains("SIGTERM: bye"), "{}", outcome.stderr);
    assert!(started.elapsed() < Duration::from_secs(8), "it waited although the function had ended");
}

#[test]
fn a_function_that_does_not_end_is_killed_in_time() {
    let sandbox = Sandbox::with_shared_images();
    let baseline = Baseline::take(&sandbox);
    // Process 1 without a handler does not see SIGTERM.
    let served = sandbox.serve(&images::oci("python"), &["--stop-timeout", "500ms"]);
    let started = Instant::now();
    let _ = served.stop();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    baseline.assert_restored();
}

#[test]
fn a_signal_during_a_request_and_a_second_one() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    let served = sandbox.serve_function(&["--timeout", "600s"]);
    let mut connection = served.connect();
    connection.send_head("GET", "/sleep/600000", &[]);
    std::thread::sleep(Duration::from_millis(300));
    served.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    served.signal(Signal::TERM);
    let _ = served.wait();
    baseline.assert_restored();
}

#[test]
fn a_signal_during_the_start() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    for wait in [0, 5, 20, 60, 150, 300] {
        let mut command = sandbox.skiff(&["run", &images::oci("hangs")]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("skiff");
        std::thread::sleep(Duration::from_millis(wait));
        process::send(child.id(), Signal::INT);
        let ended = wait_for(Duration::from_secs(20), || child.try_wait().expect("wait"));
        assert!(ended.is_some(), "it does not end after a signal at {wait} ms");
    }
    baseline.assert_restored();
}

#[test]
fn a_terminal_that_hangs_up() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    let (served, _, _) = serving(&sandbox);
    served.signal(Signal::HUP);
    let _ = served.wait();
    baseline.assert_restored();
}

#[test]
fn a_signal_to_the_keeper_alone_changes_nothing() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    let (served, keeper, init) = serving(&sandbox);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        process::send(keeper.pid, signal);
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(keeper.is_alive() && init.is_alive());
    assert_eq!(served.get("/status/200").status, 200);
    let _ = served.stop();
    baseline.assert_restored();
}

#[test]
fn a_failed_start_leaves_nothing() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    for image in ["hangs", "exits", "no-such-entrypoint", "unknown-user", "workdir-file", "not-executable"] {
        let _ = sandbox.event(&images::oci(image), &["--start-timeout", "1s"]).expect_code(3);
    }
    baseline.assert_restored();
}

#[test]
fn kill_9_of_the_container() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    let (served, keeper, init) = serving(&sandbox);
    process::send(init.pid, Signal::KILL);
    let _ = served.wait().fails(1, &["9"]);
    assert_dies(&keeper);
    baseline.assert_restored();
}

#[test]
fn kill_9_of_the_keeper() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    let (served, keeper, init) = serving(&sandbox);
    process::send(keeper.pid, Signal::KILL);
    let outcome = served.wait();
    assert_ne!(outcome.code(), 0, "{outcome:?}");
    assert_dies(&init);
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    baseline.assert_restored();
}

#[test]
fn kill_9_of_skiff() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    let (served, keeper, init) = serving(&sandbox);
    served.signal(Signal::KILL);
    assert_eq!(served.wait().code(), 137);
    assert_dies(&keeper);
    assert_dies(&init);
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    baseline.assert_restored();
}

#[test]
fn kill_9_of_skiff_and_keeper() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    let (served, keeper, init) = serving(&sandbox);
    // Stopped first, so that neither can clean up after the other.
    process::send(keeper.pid, Signal::STOP);
    served.signal(Signal::KILL);
    process::send(keeper.pid, Signal::KILL);
    assert_eq!(served.wait().code(), 137);
    // Whether the container has died by itself or not: the next run removes it.
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    assert_dies(&init);
    baseline.assert_restored();
}

#[test]
fn kill_9_of_all_three_under_a_full_layer() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    let served = sandbox.serve_function(&["--writable-size", "64MiB", "--timeout", "60s"]);
    let (keeper, init) = (served.keeper(), served.init());
    let _ = served.get("/fill?dir=/&mib=100").ok();
    for process in [keeper.pid, served.pid(), init.pid] {
        process::send(process, Signal::KILL);
    }
    let _ = served.wait();
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    baseline.assert_restored();
}

#[test]
fn kill_9_at_any_moment_of_a_start() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    for wait in [0, 3, 8, 15, 25, 40, 60, 90, 130] {
        let mut command = sandbox.skiff(&["run", &images::oci("function")]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("skiff");
        std::thread::sleep(Duration::from_millis(wait));
        process::send(child.id(), Signal::KILL);
        let _ = child.wait();
    }
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    baseline.assert_restored();
}

#[test]
fn kill_9_during_a_pull_leaves_a_store_that_works() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    for wait in [5, 30, 100, 300, 700] {
        let mut command = sandbox.skiff(&["pull", &images::oci("python")]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("skiff");
        std::thread::sleep(Duration::from_millis(wait));
        let _ = child.kill();
        let _ = child.wait();
    }
    let answer = sandbox.event(&images::oci("python"), &[]).ok().json();
    assert_eq!(answer["server"], "python");
    baseline.assert_restored();
}

#[test]
fn a_run_does_not_touch_another_that_lives() {
    let sandbox = warmed();
    let (one, keeper, init) = serving(&sandbox);
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    let (two, _, _) = serving(&sandbox);
    two.signal(Signal::KILL);
    let _ = two.wait();
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    assert!(keeper.is_alive() && init.is_alive());
    assert_eq!(one.get("/status/200").status, 200);
    let _ = one.stop();
}

#[test]
fn fifty_runs_in_a_row_leave_nothing() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    for _ in 0..50 {
        let _ = sandbox.event(&images::oci("function"), &["--quiet"]).ok();
    }
    baseline.assert_restored();
}

#[test]
fn ten_runs_at_once_leave_nothing() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    std::thread::scope(|scope| {
        for number in 0..10 {
            let sandbox = &sandbox;
            let platform = if number % 2 == 0 { "fc" } else { "scf" };
            scope.spawn(move || {
                let options = ["--platform", platform, "--timeout", "60s"];
                let answer = sandbox.event(&images::oci("function"), &options).ok().json();
                assert_eq!(answer["event"]["k"], 1);
            });
        }
    });
    baseline.assert_restored();
}

#[test]
fn ten_first_runs_at_once_share_one_pull() {
    let sandbox = Sandbox::new();
    std::thread::scope(|scope| {
        for _ in 0..10 {
            let sandbox = &sandbox;
            scope.spawn(move || sandbox.event(&images::oci("layered"), &[]).ok());
        }
    });
    let baseline = Baseline::take(&sandbox);
    let _ = sandbox.event(&images::oci("layered"), &[]).ok();
    baseline.assert_restored();
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let sandbox = warmed();
    let baseline = Baseline::take(&sandbox);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = sandbox.skiff(&["run", &images::oci("function"), "--event", "{}"]);
    let errors = sandbox.path().join("errors");
    command.stdout(writer).stderr(std::fs::File::create(&errors).expect("a file"));
    let mut child = command.spawn().expect("skiff");
    drop(command);
    let ended = wait_for(Duration::from_secs(30), || child.try_wait().expect("wait"));
    assert!(ended.is_some(), "it does not end");
    let text = std::fs::read_to_string(errors).expect("errors");
    assert!(!text.contains("panicked"), "{text}");
    baseline.assert_restored();
}
