//! A directory that looks like a host.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::host::Host;

pub(super) struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(super) fn host(&self) -> Host {
        Host::below(self.dir.path())
    }

    pub(super) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn file(self, path: &str, text: &str) -> Self {
        fs::write(self.make_place(path), text).expect("a file");
        self
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        symlink(target, self.make_place(path)).expect("a link");
        self
    }

    /// A shell script in the directory of programs. Another process writes it: were it open for
    /// writing here while another test's thread forks, executing it could fail with ETXTBSY.
    pub(super) fn script(self, name: &str, text: &str) -> Self {
        let place = self.make_place(&format!("bin/{name}"));
        let mut writer = Command::new("install")
            .args(["-m", "755", "/dev/stdin"])
            .arg(&place)
            .stdin(Stdio::piped())
            .spawn()
            .expect("the program install");
        let mut input = writer.stdin.take().expect("a pipe");
        write!(input, "#!/bin/sh\n{text}\n").expect("a script");
        drop(input);
        assert!(writer.wait().expect("an end").success());
        self
    }

    fn make_place(&self, path: &str) -> PathBuf {
        let place = self.dir.path().join(path);
        fs::create_dir_all(place.parent().expect("a parent")).expect("a directory");
        place
    }
}
