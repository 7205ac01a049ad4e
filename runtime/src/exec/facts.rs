//! What a container's init has, read by the host's root from the host's `/proc`. Ids, capabilities
//! and environment are those of a hostile process: they are used for a process of the same container
//! alone, and never for more than Skiff gives to one.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::process::Pid;

use crate::sandbox::CAPABILITY_MASK;
use crate::sys::Limits;
use crate::{Error, ErrorKind, Result};

/// Twice what the kernel lets a process start with.
const MAX_ENVIRONMENT: u64 = 4 << 20;
const MAX_STATUS: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Facts {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    /// The bounding set, as the kernel counts capabilities.
    pub(super) bounding: u64,
    pub(super) env: Vec<(String, String)>,
    pub(super) working_dir: PathBuf,
    /// The host's id of its root, where it has a user namespace of its own.
    pub(super) first_id: Option<u32>,
    pub(super) limits: Limits,
    /// Its AppArmor profile; `None` where it has none.
    pub(super) profile: Option<String>,
}

impl Facts {
    /// # Errors
    /// `Host` when it has ended, or has changed itself beyond what is understood.
    pub(super) fn of(pid: Pid) -> Result<Self> {
        read(pid).map_err(|e| {
            Error::new(ErrorKind::Host, "cannot read what the container's first process has").because(e)
        })
    }
}

fn read(pid: Pid) -> io::Result<Facts> {
    let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let text = |name: &str, limit: u64| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(proc.join(name))?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let status = String::from_utf8_lossy(&text("status", MAX_STATUS)?).into_owned();
    let own = fs::read_link(proc.join("ns/user"))? != fs::read_link("/proc/self/ns/user")?;
    let map = String::from_utf8_lossy(&text("uid_map", MAX_STATUS)?).into_owned();
    let first_id = if own { Some(first_of(&map).ok_or_else(odd)?) } else { None };
    let inside = |id: u32| id.checked_sub(first_id.unwrap_or(0)).ok_or_else(odd);
    let ids = |name: &str| numbers(&status, name, 10);
    // Effective, as it is what the process acts as.
    let second =
        |name: &str| ids(name)?.get(1).copied().ok_or_else(odd).and_then(|id| narrow(id).and_then(inside));
    let groups = ids("Groups:")?.into_iter().map(|id| narrow(id).and_then(inside));
    Ok(Facts {
        uid: second("Uid:")?,
        gid: second("Gid:")?,
        groups: groups.collect::<io::Result<_>>()?,
        bounding: numbers(&status, "CapBnd:", 16)?.first().copied().unwrap_or(0) & CAPABILITY_MASK,
        env: variables(&text("environ", MAX_ENVIRONMENT)?),
        working_dir: fs::read_link(proc.join("cwd"))?,
        first_id,
        limits: Limits::parse(&String::from_utf8_lossy(&text("limits", MAX_STATUS)?)).ok_or_else(odd)?,
        profile: profile(
            &text("attr/apparmor/current", 4096).or_else(|_| text("attr/current", 4096)).unwrap_or_default(),
        ),
    })
}

fn odd() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its ids are not understood")
}

fn narrow(id: u64) -> io::Result<u32> {
    u32::try_from(id).map_err(|_| odd())
}

fn numbers(status: &str, name: &str, radix: u32) -> io::Result<Vec<u64>> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(odd)?;
    line.split_whitespace().map(|word| u64::from_str_radix(word, radix).map_err(|_| odd())).collect()
}

/// The second number of a map that begins at 0.
fn first_of(map: &str) -> Option<u32> {
    let mut words = map.split_whitespace();
    (words.next()? == "0").then_some(())?;
    words.next()?.parse().ok()
}

fn variables(bytes: &[u8]) -> Vec<(String, String)> {
    let pairs = bytes.split(|byte| *byte == 0).filter_map(|pair| std::str::from_utf8(pair).ok());
    let split = pairs.filter_map(|pair| pair.split_once('='));
    split
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The name in `NAME (enforce)`.
fn profile(current: &[u8]) -> Option<String> {
    let text = OsString::from_vec(current.to_vec()).into_string().ok()?;
    let text = text.trim_end_matches(['\n', '\0']);
    let name = text.rsplit_once(" (").map_or(text, |(name, _)| name);
    (!name.is_empty() && name != "unconfined").then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_understood() {
        let own = Facts::of(rustix::process::getpid()).expect("facts");
        assert_eq!(own.uid, rustix::process::geteuid().as_raw());
        assert_eq!(own.first_id, None);
        assert!(own.working_dir.is_absolute());
        assert_eq!(own.bounding & !CAPABILITY_MASK, 0);
    }

    #[test]
    fn what_a_process_made_of_its_environment_is_taken_or_left() {
        let found = variables(b"A=1\0=x\0B\0C=2=3\0\xFF=1\0D=\0");
        let own = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(found, [own("A", "1"), own("C", "2=3"), own("D", "")]);
    }

    #[test]
    fn profiles_and_maps_are_read() {
        assert_eq!(profile(b"unconfined\n"), None);
        assert_eq!(profile(b""), None);
        assert_eq!(profile(b"skiff-default (enforce)\n").as_deref(), Some("skiff-default"));
        assert_eq!(first_of("         0 1879048192      65536\n"), Some(1_879_048_192));
        assert_eq!(first_of("1 5 1\n"), None);
        assert!(numbers("Uid:\t0\tx\n", "Uid:", 10).is_err());
    }
}
