//! A program that speaks Docker's credential-helper protocol: `PROGRAM get`, the server's name on the
//! standard input, JSON on the standard output. `Expiry` (RFC 3339) is Skiff's own addition.
//!
//! Its output may hold anything, so none of it is shown; its standard error is thrown away.

use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use super::docker::server_name;
use super::document::{self, MAX_BYTES};
use super::{Credentials, Lease, Secret, from_pair, invalid};
use crate::{Error, Result};

/// How often to look whether a helper that closed its output has ended.
const POLL: Duration = Duration::from_millis(5);

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
    #[serde(rename = "Expiry")]
    expiry: Option<String>,
}

/// Asks a helper. Blocks for at most `limit`.
///
/// # Errors
/// `InvalidCredentials`.
pub(super) fn from_helper(program: &Path, registry: &str, limit: Duration) -> Result<Lease> {
    let command = command_of(program);
    let what = format!("the credential helper {}", command.display());
    let (status, output) = run(&command, server_name(registry), limit, &what)?;
    if status.success() {
        return parse(&output, &what, SystemTime::now());
    }
    // How every helper says that it knows nothing of a server (docker-credential-helpers, `errors.go`).
    if String::from_utf8_lossy(&output).contains("credentials not found") {
        return Ok(Lease::lasting(Credentials::Anonymous));
    }
    Err(failed(&what, &format!("failed for {registry} ({status})")))
}

/// A bare name is that of `docker-credential-NAME`, as in Docker's configuration.
fn command_of(program: &Path) -> PathBuf {
    let text = program.as_os_str();
    if text.as_encoded_bytes().contains(&b'/') {
        return program.to_owned();
    }
    if text.as_encoded_bytes().starts_with(b"docker-credential-") {
        return program.to_owned();
    }
    let mut name = std::ffi::OsString::from("docker-credential-");
    name.push(text);
    name.into()
}

fn failed(what: &str, why: &str) -> Error {
    invalid(format!("{what} {why}")).advise("run it by hand: echo REGISTRY | PROGRAM get")
}

fn run(command: &Path, server: &str, limit: Duration, what: &str) -> Result<(ExitStatus, Vec<u8>)> {
    let begin = Instant::now();
    let child = Command::new(command)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|e| invalid(format!("{what} cannot be run")).because(e))?;
    let mut running = Running(child);
    if let Some(mut input) = running.0.stdin.take() {
        // A name fits into the pipe. A helper that does not read it will say so by its status.
        let _ = input.write_all(server.as_bytes());
    }
    let late = || failed(what, &format!("did not answer within {} ms", limit.as_millis()));
    let mut output = Vec::new();
    if let Some(pipe) = running.0.stdout.take() {
        read(&OwnedFd::from(pipe), &mut output, begin + limit, what)?.ok_or_else(late)?;
    }
    loop {
        let ended = running.0.try_wait().map_err(|e| Error::host(format!("wait for {what}"), e))?;
        if let Some(status) = ended {
            return Ok((status, output));
        }
        if begin.elapsed() >= limit {
            return Err(late());
        }
        std::thread::sleep(POLL);
    }
}

/// Reads to the end; `None` if that does not come in time.
fn read(pipe: &OwnedFd, output: &mut Vec<u8>, until: Instant, what: &str) -> Result<Option<()>> {
    let broken = |e: rustix::io::Errno| Error::host(format!("read from {what}"), e);
    let mut buffer = [0u8; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(broken(e)),
        }
        let count = rustix::io::read(pipe, &mut buffer).map_err(broken)?;
        if count == 0 {
            return Ok(Some(()));
        }
        output.extend_from_slice(&buffer[..count]);
        if output.len() > MAX_BYTES {
            return Err(failed(what, &format!("wrote more than {MAX_BYTES} bytes")));
        }
    }
}

/// Reads what a helper wrote; `what` names it. Any bytes may come.
///
/// # Errors
/// `InvalidCredentials`, which shows nothing of it.
pub(crate) fn parse(output: &[u8], what: &str, now: SystemTime) -> Result<Lease> {
    let raw: Raw = serde_json::from_slice(output).map_err(|e| {
        failed(what, &format!("wrote no JSON of the protocol (line {}, column {})", e.line(), e.column()))
    })?;
    let credentials = if raw.username == "<token>" && !raw.secret.is_empty() {
        // Helpers give an identity token under this name (docker-credential-helpers protocol).
        Credentials::Identity(Secret::new(raw.secret))
    } else {
        from_pair(&raw.username, &raw.secret, &format!("credentials of {what}"))?
    };
    let expiry = raw.expiry.as_deref().map(|text| document::expiry(text, what)).transpose()?;
    let lease = Lease { credentials, expiry };
    lease.check(what, now)?;
    Ok(lease)
}

/// A helper that does not outlive this value, nor do its children in its process group.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has been waited for may have given its number to another process.
        if matches!(self.0.try_wait(), Ok(None)) {
            if let Some(group) = Pid::from_raw(self.0.id().cast_signed()) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn ask_for(script: &str, limit: Duration) -> Result<Lease> {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("chmod");
        from_helper(&path, "r.example:5000", limit)
    }

    fn message(script: &str) -> String {
        let error = ask_for(script, LIMIT).expect_err(script);
        let text = format!("{error:?} {}", error.advice().unwrap_or_default());
        assert!(!text.contains("s3cret"), "{text}");
        text
    }

    #[test]
    fn it_is_asked_as_docker_asks() {
        let script = r#"read server; [ "$1" = get ] || exit 1
            printf '{"ServerURL":"%s","Username":"u","Secret":"s3cret-%s","Expiry":"2999-01-01T00:00:00Z"}' "$server" "$server""#;
        let lease = ask_for(script, LIMIT).expect("answer");
        let Credentials::Password { password, .. } = &lease.credentials else { panic!("{lease:?}") };
        assert_eq!(password.reveal(), "s3cret-r.example:5000");
        assert!(lease.expiry.is_some());
        let token = ask_for(r#"echo '{"Username":"<token>","Secret":"t"}'"#, LIMIT).expect("token");
        assert_eq!(token.credentials, Credentials::Identity(Secret::new("t".into())));
        let none = ask_for("echo 'credentials not found in native keychain'; exit 1", LIMIT).expect("none");
        assert_eq!(none.credentials, Credentials::Anonymous);
    }

    #[test]
    fn what_goes_wrong_is_said_without_the_output() {
        assert!(message("echo s3cret; echo s3cret >&2; exit 3").contains("exit status: 3"));
        assert!(message("echo s3cret").contains("no JSON"));
        assert!(message(r#"echo '{"Username":"u"}'"#).contains("no password"));
        assert!(message("exec head -c 200000 /dev/zero").contains("more than 65536 bytes"));
        let old = r#"echo '{"Username":"u","Secret":"s3cret","Expiry":"2001-01-01T00:00:00Z"}'"#;
        assert!(message(old).contains("expired"));
        let error = from_helper(Path::new("no-such-helper"), "r", LIMIT).expect_err("missing");
        assert!(error.to_string().contains("docker-credential-no-such-helper cannot be run"), "{error}");
    }

    #[test]
    fn one_that_hangs_is_ended_with_its_children() {
        let dir = tempfile::tempdir().expect("directory");
        let pid = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid.display());
        let error = ask_for(&script, Duration::from_millis(500)).expect_err("late");
        assert!(error.to_string().contains("did not answer within 500 ms"), "{error}");
        let child = std::fs::read_to_string(&pid).expect("pid");
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        assert!(
            (0..200).any(|_| gone() || {
                std::thread::sleep(POLL);
                false
            }),
            "the child lives"
        );
    }
}
