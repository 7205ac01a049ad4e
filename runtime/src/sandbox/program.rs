//! The last step inside a container: to become the command.

use std::ffi::CString;

use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::apparmor;
use crate::sys::reset_signals;
use crate::{Error, ErrorKind, Result};

/// A command, ready to be executed.
pub(crate) struct Program {
    /// What messages call the command.
    noun: &'static str,
    argv: Vec<CString>,
    env: Vec<CString>,
    search_path: String,
    /// The AppArmor profile to take on.
    profile: Option<String>,
}

fn c_string(what: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        // The value may be a secret: name the variable only.
        let name = text.split('=').next().unwrap_or_default().replace('\0', "\\0");
        Error::new(ErrorKind::InvalidArgument, format!("{what} '{name}' holds a NUL byte"))
    })
}

impl Program {
    /// `env` is the whole environment; `profile` is one of AppArmor's, which is loaded, unless it has been
    /// taken on already.
    ///
    /// # Errors
    /// `InvalidArgument` when an argument or variable holds a NUL byte.
    pub(crate) fn new(
        noun: &'static str,
        argv: &[String],
        env: &[(String, String)],
        profile: Option<&str>,
    ) -> Result<Self> {
        let search_path = env.iter().rfind(|(k, _)| k == "PATH").map(|(_, v)| v.clone()).unwrap_or_default();
        let argv = argv.iter().map(|a| c_string("argument", a)).collect::<Result<_>>()?;
        let env = env
            .iter()
            .map(|(k, v)| c_string("environment variable", &format!("{k}={v}")))
            .collect::<Result<_>>()?;
        Ok(Self { noun, argv, env, search_path, profile: profile.map(str::to_owned) })
    }

    /// Becomes the command, under the filter that has been loaded; returns only the reason why it could not.
    pub(crate) fn run(&self) -> Error {
        if let Err(e) = self.prepare() {
            return e;
        }
        let Some(command) = self.argv.first() else {
            return Error::new(ErrorKind::NoCommand, format!("the {} is empty", self.noun));
        };
        let name = command.to_string_lossy().into_owned();
        if name.contains('/') {
            return self.explain(&name, execute(command, &self.argv, &self.env));
        }
        let mut denied = None;
        for dir in self.search_path.split(':').map(|d| if d.is_empty() { "." } else { d }) {
            let Ok(candidate) = CString::new(format!("{dir}/{name}")) else { continue };
            match execute(&candidate, &self.argv, &self.env) {
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES => denied = Some(format!("{dir}/{name}")),
                errno => return self.explain(&format!("{dir}/{name}"), errno),
            }
        }
        match denied {
            Some(path) => self.explain(&path, Errno::EACCES),
            None => Error::new(
                ErrorKind::CommandNotFound,
                format!("the {} '{name}' is not in the image's PATH ({})", self.noun, self.search_path),
            )
            .because(std::io::Error::from(Errno::ENOENT))
            .advise("check ENTRYPOINT and CMD of the image, or give its absolute path"),
        }
    }

    fn prepare(&self) -> Result<()> {
        if let Some(profile) = &self.profile {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let proc = rustix::fs::open("/proc", flags, Mode::empty())
                .map_err(|e| Error::host("cannot open /proc of the container", e))?;
            apparmor::take_on(&proc, profile)?;
        }
        // Changing credentials cleared it: a container never outlives its keeper.
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|e| Error::host("cannot tie the container to its keeper", e))?;
        reset_signals().map_err(|e| Error::host("cannot reset signals", e))
    }

    fn explain(&self, path: &str, errno: Errno) -> Error {
        let exists = std::path::Path::new(path).exists();
        let noun = self.noun;
        let (kind, message, advice) = match errno {
            Errno::ENOENT | Errno::ENOTDIR if exists => (
                ErrorKind::CommandNotFound,
                format!("the {noun} '{path}' is there, its interpreter or loader is not"),
                "check the '#!' line, or whether a dynamically linked program's libraries are in the image",
            ),
            Errno::ENOENT | Errno::ENOTDIR => (
                ErrorKind::CommandNotFound,
                format!("the {noun} '{path}' does not exist in the image"),
                "check ENTRYPOINT and CMD of the image, or the overrides",
            ),
            Errno::EACCES | Errno::EPERM => (
                ErrorKind::CommandNotExecutable,
                format!("the {noun} '{path}' may not be executed"),
                "it must be a file with execute permission for the image's user: chmod +x it",
            ),
            Errno::ENOEXEC => (
                ErrorKind::CommandNotExecutable,
                format!("the {noun} '{path}' is no program for linux/amd64 and has no '#!' line"),
                "build the image with --platform linux/amd64; start scripts with '#!/bin/sh'",
            ),
            _ => (ErrorKind::CommandNotExecutable, format!("the {noun} '{path}' cannot be executed"), ""),
        };
        let error = Error::new(kind, message).because(std::io::Error::from(errno));
        if advice.is_empty() { error } else { error.advise(advice) }
    }
}

fn execute(path: &CString, argv: &[CString], env: &[CString]) -> Errno {
    match nix::unistd::execve(path, argv, env) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}
