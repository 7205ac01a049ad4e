//! A fresh place for one test: directories of its own and the `skiff` program set up to use them.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::{Served, images, process, wait_for};

/// No command that ends by itself takes longer.
const PATIENCE: Duration = Duration::from_secs(150);

/// Directories and programs for one test. What is below them goes with it.
#[derive(Debug)]
pub struct Sandbox {
    dir: TempDir,
    state: PathBuf,
    commands: AtomicU32,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// With a state directory of its own, empty.
    ///
    /// # Panics
    /// When the tests do not run as root.
    #[must_use]
    pub fn new() -> Self {
        process::require_root();
        // Not below the checkout: a socket's path may have 107 bytes. Not in /tmp, which may be a
        // tmpfs too small for images.
        let dir = tempfile::Builder::new().prefix("skiff-test.").tempdir_in("/var/tmp").expect("a directory");
        Self { state: dir.path().join("state"), dir, commands: AtomicU32::new(0) }
    }

    /// With the state directory that other tests use too, so that Debian's images are unpacked once.
    #[must_use]
    pub fn with_shared_images() -> Self {
        Self { state: images::target_dir().join("test-state"), ..Self::new() }
    }

    /// The directory that everything of this test is in.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `--state-dir`.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// `--run-dir`.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.path().join("run")
    }

    /// Writes a file into the directory of this test and gives its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(&path, content).expect("a file");
        path
    }

    /// A program of this workspace: `skiff`, `skiff-keeper`, `examples/embed`.
    ///
    /// # Panics
    /// When it has not been built.
    #[must_use]
    pub fn program(name: &str) -> PathBuf {
        let dir = std::env::var_os("SKIFF_BIN_DIR").map_or_else(beside_this_test, PathBuf::from);
        let path = dir.join(name);
        assert!(
            path.exists(),
            "{} is missing: run cargo build --workspace --bins --examples",
            path.display()
        );
        path
    }

    /// The `skiff` program with this sandbox's directories; nothing of the caller's environment
    /// reaches it but PATH.
    #[must_use]
    pub fn skiff(&self, args: &[&str]) -> Command {
        let mut command = self.command(&Self::program("skiff"), args);
        command.env("SKIFF_KEEPER", Self::program("skiff-keeper"));
        command.env("SKIFF_STATE_DIR", self.state_dir()).env("SKIFF_RUN_DIR", self.run_dir());
        command
    }

    /// Any program, with an environment of this sandbox.
    #[must_use]
    pub fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).env_clear().current_dir(self.path()).stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.path()).env("DOCKER_CONFIG", self.path().join("docker"));
        command
    }

    /// Runs `skiff` to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.finish(self.skiff(args))
    }

    /// Invokes an image once with the event `{"k":1}`.
    #[track_caller]
    pub fn event(&self, image: &str, options: &[&str]) -> Outcome {
        self.run(&[&["run", image, "--event", r#"{"k":1}"#], options].concat())
    }

    /// Serves an image; returns when it can be invoked.
    #[track_caller]
    pub fn serve(&self, image: &str, options: &[&str]) -> Served {
        Served::start(self, self.skiff(&[&["run", image], options].concat()))
    }

    /// Serves the image `function`.
    #[track_caller]
    pub fn serve_function(&self, options: &[&str]) -> Served {
        self.serve(&images::oci("function"), options)
    }

    /// Starts a `skiff run` that serves; returns when it can be invoked.
    #[track_caller]
    pub fn start(&self, command: Command) -> Served {
        Served::start(self, command)
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn finish(&self, command: Command) -> Outcome {
        let mut running = self.spawn(command);
        let ended = wait_for(PATIENCE, || running.child.try_wait().expect("wait"));
        if ended.is_none() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        let outcome = running.outcome(ended.unwrap_or_default());
        assert!(ended.is_some(), "not ended after {PATIENCE:?}: {outcome:?}");
        outcome
    }

    /// Starts a command whose output goes to files.
    #[track_caller]
    pub(crate) fn spawn(&self, mut command: Command) -> Running {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let (stdout, stderr) =
            (self.path().join(format!("stdout.{number}")), self.path().join(format!("stderr.{number}")));
        command.stdout(File::create(&stdout).expect("a file"));
        command.stderr(File::create(&stderr).expect("a file"));
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Running { child, stdout, stderr }
    }
}

/// `target/debug` for a test in `target/debug/deps`.
fn beside_this_test() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of this program");
    exe.parent().and_then(Path::parent).expect("the build directory").to_owned()
}

/// A command that runs, with the files of its output.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdout: PathBuf,
    pub(crate) stderr: PathBuf,
}

impl Running {
    pub(crate) fn outcome(&self, status: ExitStatus) -> Outcome {
        Outcome { status, stdout: fs::read(&self.stdout).unwrap_or_default(), stderr: text(&self.stderr) }
    }
}

/// A file's text; empty when it is missing.
pub(crate) fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// How a command ended and what it wrote.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// The exit code; 128 + signal when a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Standard output as text.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Every line of standard error that is JSON.
    #[must_use]
    pub fn json_events(&self) -> Vec<Value> {
        self.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What the platform answers the caller for whom the function was started, as standard error
    /// shows it: status and code, and the body.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[must_use]
    pub fn platform_answer(&self) -> (String, String) {
        let mut lines = self.stderr.lines();
        let head = lines.find_map(|line| line.split_once(" answers its caller: "));
        let (_, status) = head.unwrap_or_else(|| panic!("no answer in: {}", self.stderr));
        (status.to_owned(), lines.next().unwrap_or_default().trim_start().to_owned())
    }

    /// Itself, if it ended with this code.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "stdout: {}\nstderr: {}", self.stdout(), self.stderr);
        self
    }

    /// Itself, if it ended with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect_code(0)
    }

    /// Checks that it ended with this code, and that standard error has all these texts.
    ///
    /// # Panics
    /// When not.
    #[track_caller]
    pub fn fails(self, code: i32, texts: &[&str]) -> Self {
        let outcome = self.expect_code(code);
        for text in texts {
            assert!(outcome.stderr.contains(text), "{text:?} is not in: {}", outcome.stderr);
        }
        outcome
    }
}
