//! A node for one test: `skiff serve` with the sandbox's directories.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::http::{Connection, Response};
use crate::{Outcome, Sandbox, images, process, wait_for};

const SOON: Duration = Duration::from_secs(60);

/// A node that serves. It is stopped when it is dropped.
#[derive(Debug)]
pub struct Node<'a> {
    sandbox: &'a Sandbox,
    child: Child,
}

impl<'a> Node<'a> {
    /// Starts one with these options of `skiff serve`; returns when it serves.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    #[must_use]
    pub fn start(sandbox: &'a Sandbox, options: &[&str]) -> Self {
        let mut command = sandbox.skiff(&[&["serve"], options].concat());
        command.stdin(Stdio::null());
        Self::start_by(sandbox, command)
    }

    /// Starts one by this command, which serves on [`Node::socket`]; returns when somebody listens there.
    ///
    /// # Panics
    /// When nobody does.
    #[track_caller]
    #[must_use]
    pub fn start_by(sandbox: &'a Sandbox, mut command: Command) -> Self {
        let file = |name: &str| {
            File::options().create(true).append(true).open(sandbox.path().join(name)).expect("a file")
        };
        command.stdout(file("node.out")).stderr(file("node.log"));
        let mut node = Self { sandbox, child: command.spawn().expect("skiff") };
        let up = wait_for(SOON, || {
            assert_eq!(node.child.try_wait().expect("wait"), None, "{}", node.log());
            Connection::unix(&node.socket()).ok().map(drop)
        });
        assert!(up.is_some(), "it does not serve: {}", node.log());
        node
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.sandbox.run_dir().join("skiff.sock")
    }

    /// Its standard error.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.sandbox.path().join("node.log")).unwrap_or_default()
    }

    /// Its standard output.
    #[must_use]
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.sandbox.path().join("node.out")).unwrap_or_default()
    }

    /// A request to its socket.
    #[track_caller]
    #[must_use]
    pub fn ask(&self, method: &str, target: &str, body: &str) -> Response {
        self.connection().request(method, target, &[], body.as_bytes())
    }

    /// A connection to its socket.
    ///
    /// # Panics
    /// When it does not listen.
    #[track_caller]
    #[must_use]
    pub fn connection(&self) -> Connection {
        Connection::unix(&self.socket()).expect("it listens")
    }

    /// Calls a function of fc by the invoke API.
    #[track_caller]
    #[must_use]
    pub fn invoke(&self, name: &str, event: &Value) -> Response {
        self.ask("POST", &format!("/2023-03-30/functions/{name}/invocations"), &event.to_string())
    }

    /// Sends a request with a body to a function by its own socket.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    #[must_use]
    pub fn pass(&self, name: &str, method: &str, target: &str, body: &str) -> Response {
        self.own(name).request(method, target, &[], body.as_bytes())
    }

    /// A connection to a function's own socket.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    #[must_use]
    pub fn own(&self, name: &str) -> Connection {
        let socket = self.sandbox.run_dir().join(format!("functions/{name}.sock"));
        Connection::unix(&socket).expect("it listens")
    }

    /// As [`deploy`].
    #[track_caller]
    pub fn deploy(&self, name: &str, image: &str, more: &str, options: &[&str]) -> Outcome {
        deploy(self.sandbox, name, image, more, options)
    }

    /// GET of a function by its own socket.
    #[track_caller]
    #[must_use]
    pub fn get(&self, name: &str, target: &str) -> Response {
        self.pass(name, "GET", target, "")
    }

    /// What the control API tells of a function.
    #[track_caller]
    #[must_use]
    pub fn info(&self, name: &str) -> Value {
        self.ask("GET", &format!("/v1/functions/{name}"), "").json()
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn end(mut self, signal: Signal) -> Option<i32> {
        process::send(self.child.id(), signal);
        let status = wait_for(SOON, || self.child.try_wait().expect("wait"));
        status.unwrap_or_else(|| panic!("it does not end: {}", self.log())).code()
    }

    /// Tells it to end with its instances, which must work.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn stop(self) {
        let log = self.sandbox.path().join("node.log");
        let code = self.end(Signal::INT);
        assert_eq!(code, Some(0), "{}", fs::read_to_string(log).unwrap_or_default());
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            process::send(self.child.id(), Signal::INT);
            if wait_for(SOON, || self.child.try_wait().ok().flatten()).is_none() {
                let _ = self.child.kill();
            }
            let _ = self.child.wait();
        }
    }
}

/// Deploys an image as the function `name`, with some lines more in its file and options of `skiff deploy`.
#[track_caller]
pub fn deploy(sandbox: &Sandbox, name: &str, image: &str, more: &str, options: &[&str]) -> Outcome {
    let text = format!("name = \"{name}\"\nimage = \"{}\"\n{more}\n", images::oci(image));
    let file = sandbox.write(&format!("{name}.toml"), text).display().to_string();
    sandbox.run(&[&["deploy", &file], options].concat())
}
