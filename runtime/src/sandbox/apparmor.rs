//! The AppArmor profile of containers, where the host has AppArmor. It is one layer of several: a host
//! without AppArmor, or without the program that loads profiles, runs containers without it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, Mode, OFlags, fstatfs, openat};
use sha2::{Digest, Sha256};

use crate::{Error, ErrorKind, Result};

/// Whether the kernel enforces profiles.
pub(crate) const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// The profiles that are loaded, one in a line; for root.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// A thread's own profile: since Linux 5.8, and before.
const OWN: [&str; 2] = ["thread-self/attr/apparmor/current", "thread-self/attr/current"];
const PROC_SUPER_MAGIC: i64 = 0x9FA0;
/// What loads them.
pub(crate) const PARSER: &str = "apparmor_parser";
const SYSTEM_DIRS: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];
const TEXT: &str = include_str!("apparmor.profile");
/// Hosts have some hundred profiles.
const MAX_LOADED: u64 = 4 << 20;
/// Loading takes some 20 ms.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);
const MAX_SAID: u64 = 1024;

/// The profile that containers get, loaded if it was not. `None` where AppArmor is off.
///
/// # Errors
/// `Host` when it is on and the profile cannot be loaded.
pub(crate) fn prepare() -> Result<Option<String>> {
    if !fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y')) {
        return Ok(None);
    }
    let name = name();
    if !is_loaded(&name) {
        load(&name)?;
    }
    Ok(Some(name))
}

/// With a hash of the profile, so that a new version of it is another profile.
fn name() -> String {
    let hash = Sha256::digest(TEXT);
    let short: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("skiff-default-{short}")
}

fn is_loaded(name: &str) -> bool {
    let mut text = String::new();
    let read = File::open(LOADED).and_then(|file| file.take(MAX_LOADED).read_to_string(&mut text));
    read.is_ok() && text.lines().any(|line| line.split(' ').next() == Some(name))
}

fn load(name: &str) -> Result<()> {
    let advice = "install the package apparmor; see `skiff doctor`";
    let failed = |e: io::Error| Error::host("cannot load the AppArmor profile", e).advise(advice);
    let parser = SYSTEM_DIRS.iter().map(|dir| Path::new(dir).join(PARSER)).find(|path| path.is_file());
    let parser = parser.unwrap_or_else(|| PathBuf::from(PARSER));
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache", "--quiet"])
        .env_clear()
        .stdin(Stdio::from(text(name).map_err(failed)?))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if wait(&mut child).map_err(failed)? {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MAX_SAID).read_to_string(&mut said);
    }
    let message = format!("{PARSER} does not load the profile: {}", said.trim().escape_debug());
    Err(Error::new(ErrorKind::Host, message).advise(advice))
}

/// Puts the calling thread under a profile at once. Not from its next `execve` on, as is usual: a
/// change of profile in an `execve` makes the kernel forget the signal for the parent's death, and the
/// container would outlive its keeper. `proc` is a procfs, which what is opened in it surely is
/// (CVE-2025-52881).
///
/// # Errors
/// `Host`.
pub(crate) fn take_on(proc: &OwnedFd, profile: &str) -> Result<()> {
    let mut last = rustix::io::Errno::NOENT;
    for name in OWN {
        let changed = openat(proc, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).and_then(|file| {
            if fstatfs(&file)?.f_type != PROC_SUPER_MAGIC {
                return Err(rustix::io::Errno::XDEV);
            }
            rustix::io::write(&file, format!("changeprofile {profile}").as_bytes())
        });
        match changed {
            Ok(_) => return Ok(()),
            Err(e) => last = e,
        }
    }
    Err(Error::host(format!("cannot take on the AppArmor profile {profile}"), last))
}

/// The profile in memory, as a file that is read from its beginning.
fn text(name: &str) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("skiff-apparmor", MemfdFlags::CLOEXEC)?);
    file.write_all(TEXT.replace("NAME", name).as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Whether it ended well, in time.
fn wait(child: &mut Child) -> io::Result<bool> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_which_profile_it_is() {
        let name = name();
        assert!(name.starts_with("skiff-default-") && name.len() == 22, "{name}");
        let mut file = text(&name).expect("a file");
        let mut loaded = String::new();
        file.read_to_string(&mut loaded).expect("text");
        assert!(loaded.contains(&format!("profile {name} flags")));
        assert!(loaded.contains(&format!("peer={name},")));
    }

    #[test]
    fn the_profile_is_loaded_where_the_host_has_apparmor() {
        match prepare() {
            Ok(None) => {
                let _ = writeln!(io::stderr(), "skipped: this host has no AppArmor");
            }
            Ok(Some(name)) => assert!(is_loaded(&name)),
            Err(e) => assert!(e.advice().is_some(), "{e:?}"),
        }
    }
}
