//! `skiff run` while it serves.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::http::{Connection, Response};
use crate::process::{self, Process};
use crate::sandbox::{Running, text};
use crate::{Outcome, Sandbox, wait_for};

/// How long it may take until it serves, the pull of a large image included.
const START: Duration = Duration::from_secs(150);
/// How long it may take to end.
const END: Duration = Duration::from_secs(30);

/// A `skiff run` that serves; ended when dropped.
#[derive(Debug)]
pub struct Served {
    running: Running,
    ended: bool,
    socket: PathBuf,
}

impl Served {
    #[track_caller]
    pub(crate) fn start(sandbox: &Sandbox, command: Command) -> Self {
        let mut served = Self { running: sandbox.spawn(command), ended: false, socket: PathBuf::new() };
        let line = wait_for(START, || {
            let ended = served.running.child.try_wait().expect("wait");
            if let Some(status) = ended {
                served.ended = true;
                panic!("it ended before it served: {:?}", served.running.outcome(status));
            }
            address_in(&text(&served.running.stdout))
        });
        served.socket = line.unwrap_or_else(|| panic!("it does not serve: {}", served.stderr()));
        served
    }

    /// The path of its Unix socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has written to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        text(&self.running.stdout)
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        text(&self.running.stderr)
    }

    /// Waits until standard error has a text.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn wait_for_stderr(&self, wanted: &str) {
        let found = wait_for(Duration::from_secs(20), || self.stderr().contains(wanted).then_some(()));
        assert!(found.is_some(), "{wanted:?} is not in: {}", self.stderr());
    }

    /// A new connection to the TCP address that it has been given by `--listen`.
    ///
    /// # Panics
    /// When it tells of none, or does not accept one.
    #[track_caller]
    #[must_use]
    pub fn connect_tcp(&self) -> Connection {
        let address = wait_for(Duration::from_secs(20), || {
            let text = self.stdout();
            Some(text.split("listening on http://").nth(1)?.split_once('\n')?.0.to_owned())
        });
        Connection::tcp(&address.expect("an address")).expect("it listens")
    }

    /// A new connection to its socket.
    ///
    /// # Panics
    /// When it does not accept one.
    #[track_caller]
    #[must_use]
    pub fn connect(&self) -> Connection {
        Connection::unix(&self.socket)
            .unwrap_or_else(|error| panic!("{}: {error}: {}", self.socket.display(), self.stderr()))
    }

    /// A request with headers and body on a new connection.
    #[track_caller]
    #[must_use]
    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.connect().request(method, target, headers, body)
    }

    /// GET on a new connection.
    #[track_caller]
    #[must_use]
    pub fn get(&self, target: &str) -> Response {
        self.request("GET", target, &[], b"")
    }

    /// What a script of the shell prints in the container (images with `server.py`).
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    #[must_use]
    pub fn shell(&self, script: &str) -> String {
        let answer = self.request("POST", "/sh", &[], script.as_bytes()).ok().json();
        assert_eq!(answer["status"], 0, "{script}: {answer}");
        answer["stdout"].as_str().unwrap_or_default().to_owned()
    }

    /// What a Python script prints in the container (images with `server.py`).
    ///
    /// # Panics
    /// When it raises an exception.
    #[track_caller]
    #[must_use]
    pub fn python(&self, script: &str) -> String {
        let answer = self.request("POST", "/python", &[], script.as_bytes()).ok().json();
        assert!(answer["error"].is_null(), "{script}: {}", answer["error"].as_str().unwrap_or_default());
        answer["stdout"].as_str().unwrap_or_default().to_owned()
    }

    /// Process id of `skiff`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// Its keeper.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[must_use]
    pub fn keeper(&self) -> Process {
        only(Process::children_of(self.pid()), "keeper")
    }

    /// The container's first process.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[must_use]
    pub fn init(&self) -> Process {
        let keeper = self.keeper().pid;
        let alone =
            || Process::children_of(keeper).iter().filter(|process| process.state != 'Z').count() == 1;
        // The process that started it may still be ending.
        let _ = wait_for(END, || alone().then_some(()));
        only(Process::children_of(keeper), "container")
    }

    /// Whether the container is frozen.
    ///
    /// # Panics
    /// When its cgroup does not tell.
    #[track_caller]
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let dir = self.init().cgroup_dir("freezer");
        if let Ok(state) = std::fs::read_to_string(dir.join("freezer.state")) {
            return state.trim() == "FROZEN";
        }
        let events = std::fs::read_to_string(dir.join("cgroup.events"));
        events.expect("the events of the cgroup").contains("frozen 1")
    }

    /// Sends a signal to `skiff`.
    pub fn signal(&self, signal: Signal) {
        process::send(self.pid(), signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn wait(mut self) -> Outcome {
        let status = wait_for(END, || self.running.child.try_wait().expect("wait"));
        let status = status.unwrap_or_else(|| panic!("it does not end: {}", self.stderr()));
        self.ended = true;
        self.running.outcome(status)
    }

    /// Ends it by SIGTERM, as a service manager does; it must exit with 0.
    #[track_caller]
    pub fn stop(self) -> Outcome {
        self.signal(Signal::TERM);
        self.wait().ok()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let alive = |child: &mut std::process::Child| child.try_wait().ok().flatten().is_none();
        if alive(&mut self.running.child) {
            self.signal(Signal::TERM);
        }
        let ended = wait_for(END, || (!alive(&mut self.running.child)).then_some(()));
        if ended.is_none() {
            let _ = self.running.child.kill();
            let _ = self.running.child.wait();
        }
    }
}

#[track_caller]
fn only(mut processes: Vec<Process>, what: &str) -> Process {
    processes.retain(|process| process.state != 'Z');
    assert_eq!(processes.len(), 1, "not one {what}: {processes:?}");
    processes.remove(0)
}

/// The path in `listening on unix:PATH`, or in the same as JSON, once the line is whole.
fn address_in(stdout: &str) -> Option<PathBuf> {
    let whole = &stdout[..stdout.rfind('\n')?];
    let rest = whole.split("unix:").nth(1)?;
    Some(PathBuf::from(rest.split(['"', '\n']).next()?))
}
