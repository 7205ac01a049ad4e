//! Runs that outlive their owners: what the next owner finds, what is lost (nothing), what is left
//! (nothing). Owners that are killed are processes of their own: this test program, called anew.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use skiff_runtime::{Container, ContainerSpec, ErrorKind, Output, Runtime, RuntimeOptions};
use tokio::io::AsyncReadExt;

mod bench;
use bench::{assert_gone, finish, fresh, image_in, keeper_of, kill, shell, wait_until_gone};

const DIR: &str = "SKIFF_TEST_LASTING_DIR";
const WORK: &str = "SKIFF_TEST_LASTING_WORK";
const NAME: &str = "node";

async fn open_as(dir: &Path, name: &str) -> skiff_runtime::Result<Arc<Runtime>> {
    let options = RuntimeOptions {
        containers_ahead: 0,
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        keeper: Some(env!("CARGO_BIN_EXE_skiff-keeper").into()),
        lasting: Some(name.into()),
        network: skiff_runtime::NetworkOptions::default(),
        cgroup: skiff_runtime::CgroupParent::Auto,
    };
    Runtime::open(options).await
}

async fn open(dir: &Path) -> Arc<Runtime> {
    open_as(dir, NAME).await.expect("a lasting runtime")
}

/// The directory of the run, with its name of this life.
fn run_of(runtime: &Runtime) -> (PathBuf, String) {
    let run = fs::canonicalize(runtime.dir()).expect("the run's directory");
    let name = run.file_name().and_then(|n| n.to_str()).expect("utf-8").to_owned();
    (run, name)
}

async fn end(runtime: &Runtime) {
    let (run, name) = run_of(runtime);
    runtime.shutdown().await.expect("clean shutdown");
    assert_gone(&run, &name);
    assert!(fs::symlink_metadata(runtime.dir()).is_err(), "the name {} is left", runtime.dir().display());
}

/// Another process that does a work below with the run in `dir`.
fn owner(dir: &Path, work: &str) -> Child {
    Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "owner_in_a_process_of_its_own", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .env(WORK, work)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("another process")
}

/// Waits for a line that begins so; gives the rest of it.
fn heard(child: &mut Child, wanted: &str) -> String {
    let out = child.stdout.as_mut().expect("piped");
    let mut lines = BufReader::with_capacity(1, out).lines();
    lines.find_map(|line| line.ok()?.strip_prefix(wanted).map(str::to_owned)).expect(wanted)
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a process"), signal).expect("sent");
}

fn say(text: &str) {
    writeln!(std::io::stdout(), "\n{text}").expect("heard");
}

/// Not a test of its own: what owners do that are killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "other tests call it in a process of its own"]
async fn owner_in_a_process_of_its_own() {
    let (Ok(dir), Ok(work)) = (std::env::var(DIR), std::env::var(WORK)) else { return };
    let dir = Path::new(&dir);
    let runtime = open(dir).await;
    match work.as_str() {
        "serve" => {
            let container =
                runtime.start(&image_in(dir), labelled("sleep 1000", b"\0\xff!")).await.expect("starts");
            say(&format!("pid {}", container.pid()));
            std::future::pending::<()>().await;
        }
        "end" => {
            let script = "sleep 0.5; echo last words; echo of both >&2; exit 9";
            let container = runtime.start(&image_in(dir), labelled(script, b"x")).await.expect("starts");
            say(&format!("pid {}", container.pid()));
            std::future::pending::<()>().await;
        }
        "hang" => {
            let image = image_in(dir);
            let good = runtime.start(&image, labelled("sleep 1000", b"good"));
            let bad = ContainerSpec { entrypoint: Some(vec!["/none".into()]), ..labelled("", b"bad") };
            let bad = runtime.start(&image, bad);
            say("opened");
            let _ = tokio::join!(good, bad);
            std::future::pending::<()>().await;
        }
        "logs" => {
            let seen = dir.join("seen");
            let container = match runtime.adopted().expect("adopted").pop() {
                Some(container) => container,
                None => runtime.start(&image_in(dir), labelled(NUMBERS, b"logs")).await.expect("starts"),
            };
            let (stdout, stderr) = container.take_output().expect("output");
            say("following");
            let (a, b) = (seen.with_extension("out"), seen.with_extension("err"));
            tokio::join!(follow(stdout, &a), follow(stderr, &b));
            let exit = container.wait().await.expect("ends");
            assert_eq!(exit.code, Some(0));
            drop(container);
            runtime.shutdown().await.expect("clean");
            say("finished");
        }
        other => panic!("no work named {other}"),
    }
}

const LINES: usize = 30_000;
const NUMBERS: &str = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo o$i; echo e$i >&2; done";

/// Hands on whole lines, then consumes them.
async fn follow(mut output: Output, to: &Path) {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(to).expect("a file");
    let mut rest = 0;
    loop {
        let seen = output.look(rest).await.expect("looked");
        let lines = seen.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        assert!(lines > 0 || seen.len() < 4096, "a line of 4096 bytes");
        file.write_all(&seen[..lines]).expect("handed on");
        rest = seen.len() - lines;
        output.consume(lines).expect("consumed");
        if output.is_over() {
            assert_eq!(rest, 0, "ends with a line");
            return;
        }
    }
}

fn labelled(script: &str, label: &[u8]) -> ContainerSpec {
    ContainerSpec { label: label.to_vec(), ..shell(script) }
}

fn one(mut containers: Vec<Container>) -> Container {
    assert_eq!(containers.len(), 1, "{containers:?}");
    containers.remove(0)
}

#[tokio::test]
async fn a_new_owner_finds_what_a_killed_one_left() {
    let dir = fresh();
    let mut first = owner(dir.path(), "serve");
    let pid: u32 = heard(&mut first, "pid ").trim().parse().expect("a pid");
    let keeper = keeper_of(&dir.path().join("run").join(NAME));
    first.kill().expect("killed");
    first.wait().expect("collected");
    let runtime = open(dir.path()).await;
    assert_eq!(keeper_of(runtime.dir()), keeper, "the same keeper");
    let container = one(runtime.adopted().expect("adopted"));
    assert!(runtime.adopted().expect("adopted").is_empty(), "each is given once");
    assert_eq!((container.pid(), container.label()), (pid, b"\0\xff!".as_slice()));
    assert!(container.exited().is_none() && container.age() > Duration::ZERO);
    assert!(container.stats().memory_bytes > 0);
    // Its namespace: nothing listens there, which only its own lo can tell.
    let error = container.connect(9000).await.expect_err("nothing listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    let exit = container.stop(Duration::ZERO).await.expect("stops");
    assert_eq!(exit.signal, Some(9));
    drop(container);
    end(&runtime).await;
}

#[tokio::test]
async fn an_end_without_an_owner_is_kept_with_its_last_words() {
    let dir = fresh();
    let mut first = owner(dir.path(), "end");
    let pid: u32 = heard(&mut first, "pid ").trim().parse().expect("a pid");
    first.kill().expect("killed");
    first.wait().expect("collected");
    wait_until_gone(pid).await;
    for taken in [false, true] {
        let runtime = open(dir.path()).await;
        let container = one(runtime.adopted().expect("adopted"));
        let exit = container.exited().expect("has ended");
        assert_eq!((exit.code, container.label()), (Some(9), b"x".as_slice()));
        let error = container.connect(9000).await.expect_err("ended");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        if taken {
            let (exit, out, err) = finish(&container).await;
            assert_eq!((exit.code, out.as_str(), err.as_str()), (Some(9), "last words\n", "of both\n"));
            let (run, _) = run_of(&runtime);
            drop(container);
            runtime.detach().await;
            // Nothing is kept any more: the keeper ends by itself.
            gone_by_itself(&runtime, &run).await;
        } else {
            // An owner that dies with it in its hands has not taken it.
            runtime.detach().await;
            drop(container);
        }
    }
}

async fn gone_by_itself(runtime: &Runtime, run: &Path) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while fs::symlink_metadata(runtime.dir()).is_ok() || run.exists() {
        assert!(tokio::time::Instant::now() < deadline, "a keeper of nothing lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn starts_under_way_come_out_for_the_next_owner() {
    let dir = fresh();
    let mut first = owner(dir.path(), "hang");
    heard(&mut first, "opened");
    let keeper = keeper_of(&dir.path().join("run").join(NAME));
    let children = || fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).expect("children");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while children().split_whitespace().count() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "no starts");
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    first.kill().expect("killed");
    first.wait().expect("collected");
    let runtime = open(dir.path()).await;
    runtime.starts_settled().await;
    let mut containers = runtime.adopted().expect("adopted");
    assert_eq!(keeper_of(runtime.dir()), keeper);
    // The one that failed may have been told to the first owner before it was killed.
    for failed in runtime.failed_starts() {
        assert_eq!(
            (failed.label.as_slice(), failed.error.kind()),
            (b"bad".as_slice(), ErrorKind::CommandNotFound)
        );
    }
    // Two children may also have been of one start.
    if let Some(good) = containers.pop() {
        assert_eq!(good.label(), b"good");
    }
    end(&runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_line_is_lost_over_owners_that_are_killed() {
    let dir = fresh();
    let mut killed = 0;
    loop {
        let mut owner = owner(dir.path(), "logs");
        heard(&mut owner, "following");
        let enough = killed >= 5;
        if enough {
            let out = owner.stdout.take().expect("piped");
            let lines: Vec<_> = BufReader::new(out).lines().map_while(Result::ok).collect();
            assert!(lines.iter().any(|line| line == "finished"), "{lines:?}");
            assert!(owner.wait().expect("collected").success());
            break;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
        owner.kill().expect("killed");
        owner.wait().expect("collected");
        killed += 1;
    }
    for (extension, letter) in [("out", 'o'), ("err", 'e')] {
        let text = fs::read_to_string(dir.path().join("seen").with_extension(extension)).expect("lines");
        let mut last = 0;
        for line in text.lines() {
            // An owner that was killed in the middle of a write may have left the beginning of a line, which
            // the next one writes again with all that was not consumed.
            let number = line.rsplit(letter).next().expect("one part");
            let number: usize = number.parse().expect(line);
            assert!(number <= last + 1, "{letter}{} to {letter}{number} are lost", last + 1);
            last = last.max(number);
        }
        assert_eq!(last, LINES);
    }
    assert_eq!(fs::read_dir(dir.path().join("run")).expect("run").count(), 0);
}

/// The keeper is slow and has not read all that the former owner said when the next one is there already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_comes_at_once_waits_for_the_last_words_of_the_former() {
    const SOCKETS: usize = 60;
    let dir = fresh();
    let first = open(dir.path()).await;
    let keeper = keeper_of(first.dir());
    signal(keeper, Signal::STOP);
    let path = dir.path().join("x.sock");
    let socket = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    for number in 0..SOCKETS {
        first.hold_socket(&number.to_string(), socket.as_fd()).await.expect("told");
    }
    drop(first);
    let place = dir.path().to_owned();
    let second = tokio::spawn(async move { open_as(&place, NAME).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    signal(keeper, Signal::CONT);
    let second = second.await.expect("no panic").expect("nobody owns it");
    assert_eq!(second.held_sockets().len(), SOCKETS);
    end(&second).await;
}

#[tokio::test]
async fn a_run_has_one_owner_at_a_time_and_other_names_their_own() {
    let dir = fresh();
    let first = open(dir.path()).await;
    let error = open_as(dir.path(), NAME).await.expect_err("owned");
    let own = std::process::id();
    assert!(error.to_string().contains(&format!("already owned by pid {own}")), "{error:?}");
    let other = open_as(dir.path(), "node-2").await.expect("another name");
    assert_ne!(keeper_of(first.dir()), keeper_of(other.dir()));
    end(&other).await;
    for name in ["", "Node", "a/b", "..", &"x".repeat(33), "0123456789ab"] {
        let error = open_as(dir.path(), name).await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
    }
    let container = first.start(&image_in(dir.path()), shell("sleep 1000")).await.expect("starts");
    first.detach().await;
    let error = first.start(&image_in(dir.path()), shell("true")).await.expect_err("left");
    assert_eq!(error.kind(), ErrorKind::KeeperLost);
    let second = open(dir.path()).await;
    let adopted = one(second.adopted().expect("adopted"));
    drop((container, first));
    assert!(adopted.exited().is_none(), "what was left is not killed");
    assert_eq!(adopted.stop(Duration::ZERO).await.expect("stops").signal, Some(9));
    end(&second).await;
}

#[tokio::test]
async fn a_keeper_without_an_owner_ends_when_it_is_asked_to() {
    let dir = fresh();
    let runtime = open(dir.path()).await;
    let container = runtime.start(&image_in(dir.path()), shell("sleep 1000")).await.expect("starts");
    let (run, name) = run_of(&runtime);
    let keeper = keeper_of(runtime.dir());
    let ask = || {
        let pid = rustix::process::Pid::from_raw(keeper.cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("sent");
    };
    ask();
    let other = runtime.start(&image_in(dir.path()), shell("exit 3")).await.expect("an owner decides");
    assert_eq!(other.wait().await.expect("ends").code, Some(3));
    runtime.detach().await;
    ask();
    wait_until_gone(container.pid()).await;
    gone_by_itself(&runtime, &run).await;
    assert_gone(&run, &name);
}

#[tokio::test]
async fn owner_and_keeper_killed_in_any_order_leave_nothing() {
    for keeper_first in [true, false] {
        let dir = fresh();
        let mut first = owner(dir.path(), "serve");
        let pid: u32 = heard(&mut first, "pid ").trim().parse().expect("a pid");
        let link = dir.path().join("run").join(NAME);
        let keeper = keeper_of(&link);
        let run = fs::canonicalize(&link).expect("run");
        let name = run.file_name().and_then(|n| n.to_str()).expect("utf-8").to_owned();
        if keeper_first {
            kill(keeper);
            wait_until_gone(pid).await;
        }
        first.kill().expect("killed");
        first.wait().expect("collected");
        if !keeper_first {
            assert!(Path::new(&format!("/proc/{pid}")).exists(), "lives without its owner");
            kill(keeper);
            wait_until_gone(pid).await;
        }
        let runtime = open(dir.path()).await;
        assert!(runtime.adopted().expect("adopted").is_empty());
        assert_gone(&run, &name);
        let container = runtime.start(&image_in(dir.path()), shell("exit 4")).await.expect("starts");
        assert_eq!(container.wait().await.expect("ends").code, Some(4));
        end(&runtime).await;
    }
}

#[tokio::test]
async fn looking_consumes_nothing_and_reading_goes_on_after_it() {
    let dir = fresh();
    let runtime = open(dir.path()).await;
    // One write that is more than the pipe holds: nobody is told when it is full.
    let script = "echo one; echo two; sleep 0.5; dd if=/dev/zero bs=200000 count=1 2>/dev/null";
    let container = runtime.start(&image_in(dir.path()), shell(script)).await.expect("starts");
    let (mut out, _err) = container.take_output().expect("output");
    assert!(out.look(7).await.expect("looked").starts_with(b"one\ntwo\n"));
    out.consume(4).expect("consumed");
    assert!(out.look(0).await.expect("looked").starts_with(b"two\n"));
    // A pipe that is full shows no more, and says so by returning. In a task of its own: waiting with a
    // time limit would look again when the time is over.
    let filled = tokio::spawn(async move {
        let mut seen = 4;
        loop {
            let now = out.look(seen).await.expect("looked").len();
            if now <= seen {
                return (out, seen);
            }
            seen = now;
        }
    });
    let filled = tokio::time::timeout(Duration::from_secs(20), filled).await;
    let (mut out, seen) = filled.expect("a look ends").expect("no panic");
    assert!((32 << 10..=64 << 10).contains(&seen) && !out.is_over(), "{seen}");
    let mut text = String::new();
    out.read_to_string(&mut text).await.expect("read");
    assert_eq!(text.len(), 4 + 200_000);
    assert!(text.starts_with("two\n\0"));
    end(&runtime).await;
}
