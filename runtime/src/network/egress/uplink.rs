//! Forwarding on the interfaces that lead out.
//!
//! A host that forwards already is left as it is. On one that does not, forwarding is turned on for
//! the interfaces of the default routes only, and a table ([`GUARD`]) keeps dropping what comes in
//! there for anybody but a container, so that the host is a router for nobody else. The last run
//! that has rules undoes both. Runs do this one after the other, under one lock.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::host::{is_on, is_plain, set, set_if_known, sysctl};
use super::nft;
use super::rules::{GUARD, delete, guard};
use crate::{Error, ErrorKind, Result};

/// Of the whole host: runs of different directories share its interfaces.
const LOCK: &str = "/run/skiff-uplink.lock";
/// Whoever holds it is done in some tens of milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// The settings of each family that make an interface forward.
const SETTINGS: [(&str, &str); 2] = [("ipv4", "forwarding"), ("ipv6", "force_forwarding")];

/// Interfaces of IPv4 and of IPv6.
pub(super) type Links = [BTreeSet<String>; 2];

/// Which interfaces Skiff has to make forward, or has already for another run.
#[derive(Debug)]
pub(super) struct Opening {
    links: Links,
    /// Whether there is a way out over IPv6.
    pub(super) v6: bool,
    /// Whether IPv6 is forwarded for single interfaces only.
    pub(super) force_v6: bool,
}

impl Opening {
    /// Looks at the interfaces of the default routes of both families.
    pub(super) fn plan(out4: Vec<String>, out6: Vec<String>) -> Result<Self> {
        if out4.is_empty() && out6.is_empty() {
            return Err(Error::new(
                ErrorKind::Host,
                "this host has no default route, so there is no way out",
            )
            .advise("give the host a network, or run without --network bridge"));
        }
        let all6 = is_on(&sysctl("ipv6", "all", "forwarding")).unwrap_or(false);
        // Before Linux 6.17 IPv6 is forwarded everywhere or nowhere, and turning it on everywhere
        // would make the host deaf to its router's advertisements.
        let single6 = is_on(&sysctl("ipv6", "all", "force_forwarding")).is_some();
        let v6 = !out6.is_empty() && (all6 || single6);
        let force_v6 = v6 && !all6;
        let guarded = guarded();
        let closed = |names: Vec<String>, family: usize| -> BTreeSet<String> {
            let (of, setting) = SETTINGS[family];
            let is_off = |link: &String| is_on(&sysctl(of, link, setting)) == Some(false);
            names.into_iter().filter(|link| is_off(link) || guarded[family].contains(link)).collect()
        };
        let links = [closed(out4, 0), if force_v6 { closed(out6, 1) } else { BTreeSet::new() }];
        Ok(Self { links, v6, force_v6 })
    }

    /// The guard, where something has to be opened. Changes nothing where it is there.
    pub(super) fn script(&self) -> Option<String> {
        let [v4, v6] = &self.links;
        (!v4.is_empty() || !v6.is_empty()).then(|| guard(v4, v6))
    }

    /// What is to be undone, for [`close_if_last`].
    pub(super) fn note(&self) -> String {
        let lines = |family: usize| {
            self.links[family].iter().map(move |link| format!("{} {link}\n", SETTINGS[family].0))
        };
        lines(0).chain(lines(1)).collect()
    }

    /// Turns forwarding on, when the guard is there.
    pub(super) fn open(&self) -> Result<()> {
        for ((family, setting), links) in SETTINGS.iter().zip(&self.links) {
            for link in links {
                set(&sysctl(family, link, setting), "1")?;
            }
        }
        Ok(())
    }
}

/// Undoes what [`Opening`] did, unless another run has rules. `note` is the run's own, for the case
/// that the guard was removed by somebody else.
pub(super) fn close_if_last(_lock: &Lock, note: &str) -> Result<()> {
    let tables = nft::ask(&["list", "tables"])?;
    let mut names = objects(&tables, "table").filter_map(|table| table["name"].as_str());
    if names.any(is_of_run) {
        return Ok(());
    }
    let mut links = guarded();
    for (links, (family, _)) in links.iter_mut().zip(SETTINGS) {
        let noted = note.lines().filter_map(|line| line.strip_prefix(family)?.strip_prefix(' '));
        links.extend(noted.filter(|link| is_plain(link)).map(str::to_owned));
    }
    // First forwarding, then the guard. An owner who has made the host a router meanwhile wants it so.
    for ((family, setting), links) in SETTINGS.iter().zip(&links) {
        if is_on(&sysctl(family, "all", setting)) != Some(true) {
            for link in links {
                set_if_known(&sysctl(family, link, setting), "0")?;
            }
        }
    }
    if links.iter().any(|links| !links.is_empty()) {
        nft::apply(&delete(GUARD))?;
    }
    Ok(())
}

/// The interfaces that the guard names; none without a guard.
fn guarded() -> Links {
    let mut links = Links::default();
    let Ok(table) = nft::ask(&["list", "table", "inet", GUARD]) else { return links };
    for set in objects(&table, "set") {
        let place = ["uplinks4", "uplinks6"].iter().position(|name| set["name"].as_str() == Some(*name));
        let Some(place) = place else { continue };
        let names = set["elem"].as_array().into_iter().flatten().filter_map(|elem| elem.as_str());
        links[place].extend(names.filter(|link| is_plain(link)).map(str::to_owned));
    }
    links
}

/// The objects of a kind in an answer of `nft -j`.
fn objects<'a>(answer: &'a serde_json::Value, kind: &'a str) -> impl Iterator<Item = &'a serde_json::Value> {
    answer["nftables"].as_array().into_iter().flatten().filter_map(move |object| object.get(kind))
}

fn is_of_run(table: &str) -> bool {
    table
        .strip_prefix("skiff-")
        .is_some_and(|run| run.len() == 12 && run.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The right to change what runs share. The file is root's, and is there only while somebody has it:
/// whoever waits for it meanwhile makes another.
#[derive(Debug)]
pub(super) struct Lock {
    /// Open for as long as it is locked.
    _file: File,
}

impl Lock {
    /// Waits for its turn.
    pub(super) fn take() -> Result<Self> {
        let until = Instant::now() + PATIENCE;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(LOCK)
                .map_err(|e| Error::host(format!("cannot open {LOCK}"), e))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at_its_place(&file) => return Ok(Self { _file: file }),
                Ok(()) | Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(POLL),
                other => {
                    return Err(Error::host(
                        format!("cannot lock {LOCK}"),
                        other.err().unwrap_or(Errno::AGAIN),
                    )
                    .advise("another Skiff that is just starting or ending holds it; try again"));
                }
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked, so the file of that name is this one.
        let _ = fs::remove_file(LOCK);
    }
}

/// Whether a file has not been removed since it was opened.
fn is_at_its_place(file: &File) -> bool {
    let ids = |meta: fs::Metadata| (meta.dev(), meta.ino());
    fs::symlink_metadata(LOCK).map(ids).ok() == file.metadata().map(ids).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_runs_are_told_from_others() {
        assert!(is_of_run("skiff-0123456789ab"));
        for name in ["skiff-uplink", "skiff-0123456789a", "filter", "skiff-0123456789xy", ""] {
            assert!(!is_of_run(name), "{name}");
        }
    }

    #[test]
    fn what_is_to_be_undone_is_noted_by_family() {
        let links = [BTreeSet::from(["eth0".to_owned()]), BTreeSet::from(["eth1".to_owned()])];
        let opening = Opening { links, v6: true, force_v6: true };
        assert_eq!(opening.note(), "ipv4 eth0\nipv6 eth1\n");
        assert!(opening.script().is_some_and(|script| script.contains("uplinks6 { \"eth1\" }")));
        let nothing = Opening { links: Links::default(), v6: false, force_v6: false };
        assert_eq!((nothing.note(), nothing.script()), (String::new(), None));
    }

    #[test]
    fn a_host_without_a_default_route_has_no_way_out() {
        let error = Opening::plan(Vec::new(), Vec::new()).expect_err("no way");
        assert!(error.to_string().contains("no default route"), "{error}");
        assert!(error.advice().is_some());
    }

    #[test]
    fn objects_of_a_kind_are_found_in_any_answer() {
        let answer = serde_json::json!({"nftables": [{"metainfo": {}}, {"table": {"name": "x"}}, 7]});
        assert_eq!(objects(&answer, "table").count(), 1);
        assert_eq!(objects(&serde_json::json!([]), "table").count(), 0);
    }
}
