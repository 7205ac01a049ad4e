//! `skiff serve` as a service: a manager's socket and its questions, a group for the sockets, and `skiff stop`.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use skiff_tests::http::Connection;
use skiff_tests::{Baseline, Node, Sandbox, wait_for};

const SOON: Duration = Duration::from_secs(60);

/// A group that nobody has.
const GROUP: &str = "54321";

/// Opens 3 from what is its standard input, as a service manager would have it, and becomes `skiff serve`.
const HAND_OVER: &str =
    r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=skiff.socket exec "$@""#;

/// What systemd does: it listens itself, and hears when the node is ready.
struct Manager<'a> {
    sandbox: &'a Sandbox,
    listener: UnixListener,
    told: UnixDatagram,
}

impl<'a> Manager<'a> {
    fn new(sandbox: &'a Sandbox) -> Self {
        fs::create_dir(sandbox.run_dir()).expect("a directory");
        let listener = UnixListener::bind(sandbox.run_dir().join("skiff.sock")).expect("bound");
        let told = UnixDatagram::bind(sandbox.path().join("notify")).expect("bound");
        told.set_read_timeout(Some(SOON)).expect("a timeout");
        Self { sandbox, listener, told }
    }

    #[track_caller]
    fn start(&self) -> Node<'a> {
        let program = Sandbox::program("skiff").display().to_string();
        let mut shell = self.sandbox.command(Path::new("sh"), &["-c", HAND_OVER, "sh", &program, "serve"]);
        for (name, value) in self.sandbox.skiff(&[]).get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        shell.env("NOTIFY_SOCKET", self.sandbox.path().join("notify"));
        shell.stdin(OwnedFd::from(self.listener.try_clone().expect("a copy")));
        Node::start_by(self.sandbox, shell)
    }

    #[track_caller]
    fn hears(&self, wanted: &str) {
        let mut text = [0; 256];
        let length = self.told.recv(&mut text).expect("told in time");
        assert_eq!(String::from_utf8_lossy(&text[..length]), wanted);
    }
}

#[test]
fn the_socket_of_a_service_manager_is_served_and_stays() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let manager = Manager::new(&sandbox);
    let node = manager.start();
    manager.hears("READY=1");
    assert!(node.stdout().contains("skiff.sock"), "{}", node.stdout());
    let flags = fs::read_to_string(format!("/proc/{}/fdinfo/3", node.pid())).expect("it is open");
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags").trim();
    let flags = u32::from_str_radix(flags, 8).expect("octal");
    assert_eq!(flags & 0o2_000_000, 0o2_000_000, "a child would have it: {flags:o}");
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let id = |node: &Node<'_>| {
        node.get("demo", "/status/200").header("x-fc-instance-id").expect("an id").to_owned()
    };
    let first = id(&node);
    assert_eq!(node.end(Signal::TERM), Some(0));
    manager.hears("STOPPING=1");
    // Nobody serves, and who connects waits for the next node.
    let mut waiting = Connection::unix(&sandbox.run_dir().join("skiff.sock")).expect("somebody listens");
    let event = json!({ "k": 1 }).to_string();
    let target = "/2023-03-30/functions/demo/invocations";
    waiting.send_head("POST", target, &[("content-length", &event.len().to_string())]);
    waiting.send(event.as_bytes());
    let node = manager.start();
    assert_eq!(waiting.read_response("POST").ok().json()["event"]["k"], 1);
    manager.hears("READY=1");
    assert_eq!(id(&node), first, "another instance: {}", node.log());
    node.stop();
    let socket = sandbox.run_dir().join("skiff.sock");
    assert!(socket.exists(), "the manager's socket was removed");
    fs::remove_file(socket).expect("removed");
    let _ = fs::remove_dir_all(sandbox.state_dir());
    baseline.assert_restored();
}

#[test]
fn variables_for_another_process_are_not_taken() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.skiff(&["serve"]);
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    let node = Node::start_by(&sandbox, command);
    assert_eq!(node.ask("GET", "/v1/functions", "").ok().json(), json!({ "functions": [] }));
    node.stop();
    let mut command =
        sandbox.command(Path::new("sh"), &["-c", r#"LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&-"#, "sh"]);
    command.arg(Sandbox::program("skiff")).arg("serve");
    let _ = sandbox.finish(command).fails(2, &["descriptors that are not open"]);
}

/// A request by curl, as a stranger with these groups.
fn ask_as(groups: &[&str], socket: &Path) -> Output {
    Command::new("setpriv")
        .args(["--reuid", "65534"])
        .args(groups)
        .args(["curl", "--silent", "--show-error", "--max-time", "20", "--unix-socket"])
        .arg(socket)
        .arg("http://skiff/v1/functions")
        .output()
        .expect("setpriv and curl")
}

#[test]
fn a_group_may_use_the_sockets_and_strangers_are_refused() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.run_dir()).expect("a directory");
    for dir in [sandbox.path(), &sandbox.run_dir()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).expect("set");
    }
    let node = Node::start(&sandbox, &["--socket-group", GROUP]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let group: u32 = GROUP.parse().expect("a number");
    let own = sandbox.run_dir().join("functions/demo.sock");
    for (path, mode) in
        [(&node.socket(), 0o660), (&own, 0o660), (&sandbox.run_dir().join("functions"), 0o750)]
    {
        let found = fs::symlink_metadata(path).expect("there");
        assert_eq!((found.mode() & 0o777, found.uid(), found.gid()), (mode, 0, group), "{}", path.display());
    }
    let first = ["--regid", GROUP, "--clear-groups"];
    let another = ["--regid", "65534", "--groups", GROUP];
    let none = ["--regid", "65534", "--clear-groups"];
    for groups in [first.as_slice(), another.as_slice()] {
        let answer = ask_as(groups, &node.socket());
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert!(answer.status.success() && text.contains("demo"), "{groups:?}: {answer:?}");
    }
    assert!(!ask_as(&none, &node.socket()).status.success(), "the file's mode lets nobody else in");
    // Somebody opens it to all: the peers are looked at too.
    for socket in [&node.socket(), &own] {
        fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).expect("set");
    }
    fs::set_permissions(sandbox.run_dir().join("functions"), fs::Permissions::from_mode(0o755)).expect("set");
    for socket in [&node.socket(), &own] {
        let answer = ask_as(&none, socket);
        assert!(!answer.status.success() && answer.stdout.is_empty(), "{answer:?}");
    }
    let told = || node.log().matches("a connection is refused").count() == 2;
    assert!(wait_for(SOON, || told().then_some(())).is_some(), "{}", node.log());
    assert!(node.log().contains("uid=65534"), "{}", node.log());
    assert!(ask_as(&another, &node.socket()).status.success(), "the group may still");
    node.stop();
    let _ = sandbox.run(&["serve", "--socket-group", "no-such-group"]).fails(2, &["no group no-such-group"]);
}

#[test]
fn what_a_node_has_left_is_stopped() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    assert_eq!(sandbox.run(&["stop"]).ok().stdout().trim(), "no instance was left");
    for signal in [Signal::TERM, Signal::KILL] {
        let node = Node::start(&sandbox, &[]);
        let _ = node.deploy("demo", "function", "", &[]).ok();
        assert_eq!(node.get("demo", "/status/200").status, 200);
        let _ = sandbox.run(&["stop"]).fails(3, &["another node"]);
        assert_eq!(node.get("demo", "/status/200").status, 200, "{}", node.log());
        node.end(signal);
        let stopped = sandbox.run(&["stop", "--output", "json"]).ok().json();
        assert_eq!(stopped, json!({ "event": "stopped", "instances": 1 }));
        assert!(!sandbox.run_dir().join("node").exists(), "its run goes on");
        assert!(!sandbox.run_dir().join("skiff.sock").exists(), "its socket is left");
        assert_eq!(sandbox.run(&["stop"]).ok().stdout().trim(), "no instance was left");
    }
    // What is deployed is there still.
    let node = Node::start(&sandbox, &[]);
    assert_eq!(node.get("demo", "/status/200").status, 200);
    let _ = sandbox.run(&["delete", "demo"]).ok();
    node.stop();
    baseline.assert_restored();
}

#[test]
fn an_address_that_is_taken_costs_no_instance() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let id = |node: &Node<'_>| {
        node.get("demo", "/status/200").header("x-fc-instance-id").expect("an id").to_owned()
    };
    let first = id(&node);
    node.end(Signal::TERM);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("an address").to_string();
    let _ = sandbox.run(&["serve", "--api-listen", &address]).fails(3, &["is in use"]);
    let node = Node::start(&sandbox, &[]);
    assert_eq!(id(&node), first, "another instance: {}", node.log());
    node.stop();
}
