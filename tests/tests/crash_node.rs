//! A node (`skiff serve`), its keeper, which outlives it, and a container are killed at each step of the
//! start of a function, of its end and of the node's own end. The next node serves the same functions, and in the end everything
//! is as it was.
//!
//! What is built for tests stops itself where `SKIFF_BREAK_AT` says (`skiff_runtime::breakpoint`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use skiff_tests::process::{self, Process};
use skiff_tests::{Baseline, Node, Sandbox, deploy_as, images, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Node,
    Keeper,
    /// All children of the keeper.
    Container,
}

const VICTIMS: [&[Role]; 4] =
    [&[Role::Node], &[Role::Keeper], &[Role::Container], &[Role::Keeper, Role::Node, Role::Container]];

/// The keepers that have something of this directory open; they are nobody's children.
fn keepers(run_dir: &Path) -> Vec<Process> {
    let is_ours = |process: &Process| {
        let fds = fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten();
        fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(run_dir)))
    };
    let all = Process::all().into_iter().filter(|process| process.name.starts_with("skiff-keeper"));
    all.filter(is_ours).collect()
}

/// A node and its keeper's family, as they were seen at some moment.
struct Family(Vec<(Role, Process)>);

impl Family {
    fn of(node: u32, run_dir: &Path) -> Self {
        let keepers = keepers(run_dir);
        let pids: BTreeSet<u32> = keepers.iter().map(|keeper| keeper.pid).collect();
        let mut all: Vec<_> = Process::of(node).into_iter().map(|node| (Role::Node, node)).collect();
        // Before it has forked, a keeper is the node's child and holds nothing of the directory.
        all.extend(Process::children_of(node).into_iter().map(|child| (Role::Keeper, child)));
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        for keeper in keepers {
            // Start processes have what their keeper has.
            let role = if pids.contains(&keeper.parent) { &mut inner } else { &mut outer };
            role.push(keeper);
        }
        for keeper in &outer {
            inner.extend(Process::children_of(keeper.pid).into_iter().filter(|c| !pids.contains(&c.pid)));
        }
        all.extend(outer.into_iter().map(|keeper| (Role::Keeper, keeper)));
        all.extend(inner.into_iter().map(|container| (Role::Container, container)));
        Self(all)
    }

    fn stopped(&self) -> bool {
        self.0.iter().any(|(_, process)| process.state == 'T')
    }

    fn signal(&self, roles: &[Role], signal: Signal) {
        self.0
            .iter()
            .filter(|(role, _)| roles.contains(role))
            .for_each(|(_, process)| process.signal(signal));
    }

    fn go_on(&self) {
        self.0.iter().filter(|(_, process)| process.state == 'T').for_each(|(_, p)| p.signal(Signal::CONT));
    }
}

/// Lets go on whoever stops at the place again, while `work` is done: a keeper keeps its place for the next
/// node.
fn going_on<T>(node: u32, run_dir: &Path, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                Family::of(node, run_dir).go_on();
                thread::sleep(Duration::from_millis(50));
            }
        });
        // Also when it panics.
        let ends = Ends(&over);
        let done = work();
        drop(ends);
        done
    })
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What brings somebody to a place.
#[derive(Clone, Copy)]
enum Cause<'a> {
    /// These commands, one after the other and anew.
    Commands(&'a [&'a [&'a str]]),
    /// The node's end with all instances, once this command has succeeded.
    End(&'a [&'a str]),
}

/// A node that stops at a place, and what is asked of it, whose outcome is the place's matter.
struct Doomed {
    node: Child,
    asked: Vec<Child>,
}

impl Doomed {
    fn new(sandbox: &Sandbox, place: &str) -> Self {
        let mut command = sandbox.skiff(&["serve"]);
        let log = fs::File::create(sandbox.path().join("doomed.log")).expect("a file");
        command.env("SKIFF_BREAK_AT", place).stdout(Stdio::null()).stderr(log);
        Self { node: command.spawn().expect("skiff"), asked: Vec::new() }
    }

    fn ask(&mut self, sandbox: &Sandbox, args: &[&str]) {
        let mut command = sandbox.skiff(args);
        self.asked.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("skiff"));
    }

    /// Waits until somebody has stopped, and sees to the cause meanwhile: there may be no node yet.
    fn comes_to(&mut self, sandbox: &Sandbox, cause: Cause<'_>, what: &str) -> Family {
        let run_dir = sandbox.run_dir();
        let mut ends = false;
        let found = wait_for(PATIENCE, || {
            let family = Family::of(self.node.id(), &run_dir);
            if family.stopped() {
                return Some(family);
            }
            assert_eq!(self.node.try_wait().expect("wait"), None, "{what}: the node ended before");
            let last = self.asked.last_mut().map(|last| last.try_wait().expect("wait"));
            match (cause, last) {
                (_, Some(None)) => {}
                (Cause::Commands(all), _) => self.ask(sandbox, all[self.asked.len() % all.len()]),
                (Cause::End(_), Some(Some(status))) if status.success() => {
                    if !std::mem::replace(&mut ends, true) {
                        process::send(self.node.id(), Signal::INT);
                    }
                }
                (Cause::End(first), _) => self.ask(sandbox, first),
            }
            None
        });
        found.unwrap_or_else(|| panic!("{what}: nobody comes there"))
    }

    /// Kills what is left of it, but for the keeper and its containers.
    fn end(mut self) {
        for child in self.asked.iter_mut().chain([&mut self.node]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

fn function_file(sandbox: &Sandbox) -> PathBuf {
    sandbox.write("demo.toml", format!("name = \"demo\"\nimage = \"{}\"\n", images::oci("function")))
}

/// Asks a node for something at which somebody stops, kills, and has the next node serve and end.
fn crash(sandbox: &Sandbox, place: &str, victims: &[Role], cause: Cause<'_>) {
    let what = format!("{victims:?} at {place}");
    let run_dir = sandbox.run_dir();
    let mut doomed = Doomed::new(sandbox, place);
    let family = doomed.comes_to(sandbox, cause, &what);
    family.signal(victims, Signal::KILL);
    family.go_on();
    let pid = doomed.node.id();
    going_on(pid, &run_dir, || {
        // It goes on a while with what is left; then the next comes.
        thread::sleep(Duration::from_millis(100));
        doomed.end();
        let node = Node::start(sandbox, &[]);
        if is_deployed(&node) {
            assert_eq!(node.invoke("demo", &json!({ "k": 2 })).ok().json()["event"]["k"], 2, "{what}");
        }
        let _ = deploy_as(sandbox, "demo", "function", "", &[]).ok();
        assert_eq!(node.invoke("demo", &json!({ "k": 3 })).ok().json()["event"]["k"], 3, "{what}");
        let _ = sandbox.run(&["delete", "demo"]).ok();
        node.stop();
    });
    let gone = wait_for(PATIENCE, || keepers(&run_dir).is_empty().then_some(()));
    assert!(gone.is_some(), "{what}: a keeper lives on: {:?}", keepers(&run_dir));
}

/// Whether the node has the function. One whose first deployment was cut off is taken up again, and takes no calls
/// before it has ended.
fn is_deployed(node: &Node<'_>) -> bool {
    let known = wait_for(PATIENCE, || {
        let answer = node.ask("GET", "/v1/functions/demo", "");
        let known = answer.status == 200;
        (!known || answer.json()["state"] != "Pending").then_some(known)
    });
    known.unwrap_or_else(|| panic!("it stays pending: {}", node.log()))
}

fn scene() -> (Sandbox, String) {
    let sandbox = Sandbox::new();
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    let file = function_file(&sandbox).display().to_string();
    (sandbox, file)
}

fn crash_in(sandbox: &Sandbox, places: &[&str], cause: Cause<'_>) {
    for place in places {
        let baseline = Baseline::take(sandbox);
        for victims in VICTIMS {
            crash(sandbox, place, victims, cause);
        }
        baseline.assert_restored();
    }
}

fn crash_at(places: &[&str]) {
    let (sandbox, file) = scene();
    crash_in(&sandbox, places, Cause::Commands(&[&["deploy", &file]]));
}

#[test]
fn at_each_step_of_a_node_until_it_serves() {
    crash_at(&["daemon-executed", "daemon-prepared", "keeper-configured"]);
}

#[test]
fn at_each_step_of_a_start_by_a_nodes_keeper() {
    crash_at(&["keeper-forked", "start-joined", "start-mounted"]);
}

#[test]
fn at_each_step_of_a_start_of_a_node() {
    crash_at(&["start-created", "start-executed", "keeper-told", "daemon-started", "daemon-connected"]);
}

#[test]
fn at_each_step_of_the_end_of_an_instance() {
    let (sandbox, file) = scene();
    let commands: [&[&str]; 2] = [&["deploy", &file], &["delete", "demo"]];
    let places = ["daemon-stops", "daemon-stopped", "keeper-reaped"];
    crash_in(&sandbox, &places, Cause::Commands(&commands));
}

#[test]
fn at_each_step_of_the_end_of_a_node() {
    let (sandbox, file) = scene();
    let deploy: &[&str] = &["deploy", &file];
    crash_in(
        &sandbox,
        &["daemon-stops", "daemon-shuts-down", "daemon-kept-nothing", "keeper-cleans", "keeper-killed"],
        Cause::End(deploy),
    );
}
