//! The keeper program: where it is, and whether it is of this version.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Check;
use super::host::{Host, is_executable};

const NAME: &str = "keeper";
const PROGRAM: &str = "skiff-keeper";

/// A keeper that has not told its version by then is not one.
const VERSION_DEADLINE: Duration = Duration::from_secs(2);

/// How often its end is looked for.
const VERSION_POLL: Duration = Duration::from_millis(5);

/// Most bytes of its answer that are read.
const VERSION_BYTES_MAX: u64 = 256;

pub(super) fn check(host: &Host, given: Option<&Path>) -> Check {
    let Some(path) = find(host, given) else {
        let found = format!("no {PROGRAM} beside skiff or in PATH");
        return Check::fail(NAME, found, "install it beside skiff, or name it by --keeper");
    };
    let shown = path.display();
    if !is_executable(&path) {
        let found = format!("{shown} is not an executable file");
        return Check::fail(NAME, found, format!("name {PROGRAM} by --keeper"));
    }
    let expected = format!("{PROGRAM} {}", env!("CARGO_PKG_VERSION"));
    match version(&path) {
        Ok(version) if version == expected => Check::ok(NAME, format!("{shown}, {version}")),
        Ok(version) => Check::fail(
            NAME,
            format!("{shown} says `{version}`"),
            format!("install `{expected}`, which was built with this skiff"),
        ),
        Err(e) => Check::fail(NAME, format!("{shown} --version: {e}"), format!("install `{expected}`")),
    }
}

/// The given one, else the one beside the running program, else the one in `PATH`.
fn find(host: &Host, given: Option<&Path>) -> Option<PathBuf> {
    let beside = || host.exe_dir.as_ref().map(|dir| dir.join(PROGRAM)).filter(|path| path.exists());
    given.map(Path::to_owned).or_else(beside).or_else(|| host.program(PROGRAM))
}

/// What it says of itself, in one bounded line.
fn version(path: &Path) -> io::Result<String> {
    let mut child = Command::new(path)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let ended = wait(&mut child, Instant::now() + VERSION_DEADLINE);
    if !matches!(ended, Ok(true)) {
        child.kill()?;
        child.wait()?;
        ended?;
        let text = format!("no answer within {} s", VERSION_DEADLINE.as_secs());
        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
    }
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        // A descendant may still hold the pipe: what is in it now is the answer.
        rustix::io::ioctl_fionbio(&output, true)?;
        let read = output.take(VERSION_BYTES_MAX).read_to_end(&mut answer);
        read.map(drop).or_else(|e| if e.kind() == io::ErrorKind::WouldBlock { Ok(()) } else { Err(e) })?;
    }
    let answer = String::from_utf8_lossy(&answer);
    let line = answer.lines().next().unwrap_or_default().trim();
    Ok(line.chars().filter(|c| !c.is_control()).collect())
}

/// Whether it ended in time.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<bool> {
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(VERSION_POLL);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::Fake;
    use super::*;

    fn checked(script: &str) -> Check {
        check(&Fake::new().script(PROGRAM, script).host(), None)
    }

    #[test]
    fn the_right_version_is_ok() {
        let check = checked(&format!("echo skiff-keeper {}", env!("CARGO_PKG_VERSION")));
        assert_eq!(check.status, Status::Ok, "{check:?}");
    }

    #[test]
    fn another_version_fails_and_is_shown() {
        let check = checked("echo skiff-keeper 0.0.1; echo more");
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.ends_with("/skiff-keeper says `skiff-keeper 0.0.1`"), "{check:?}");
    }

    #[test]
    fn no_keeper_fails_and_says_where_it_was_looked_for() {
        let check = check(&Fake::new().host(), None);
        assert_eq!(check.found, "no skiff-keeper beside skiff or in PATH");
    }

    #[test]
    fn a_given_file_that_is_none_or_not_executable_fails() {
        let fake = Fake::new().file("keeper", "text");
        for name in ["keeper", "missing", "."] {
            let check = check(&fake.host(), Some(&fake.root().join(name)));
            assert!(check.found.ends_with("is not an executable file"), "{check:?}");
        }
    }

    #[test]
    fn a_keeper_that_hangs_is_given_up_and_killed() {
        let start = Instant::now();
        let check = checked("exec sleep 60");
        assert!(check.found.ends_with("no answer within 2 s"), "{check:?}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_babbling_keeper_is_cut_and_cleaned() {
        let check = checked("head -c 9000 /dev/zero | tr '\\0' a; printf '\\033[31m'");
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.len() < 600 && !check.found.contains('\u{1b}'));
    }
}
