//! The state directory: there or to be made, on what, and with how much room.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};

use super::Check;
use super::host::Host;
use super::mounts::{self, Mount};
use crate::Writable;
use crate::rootfs::Choice;

/// Below this much room, a pull of a usual image of some hundred MiB may not fit.
const FREE_BYTES_BETTER: u64 = 2 << 30;

/// Below this much room, not even a small image fits.
const FREE_BYTES_NEEDED: u64 = 64 << 20;

pub(super) fn check(host: &Host, dir: &Path) -> Check {
    const NAME: &str = "state_dir";
    let shown = dir.display();
    let there = match nearest(dir) {
        Ok(there) => there,
        Err(e) => return Check::fail(NAME, format!("{shown}: {e}"), "give another directory by --state-dir"),
    };
    if access(&there, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let found = format!("{} cannot be written", there.display());
        return Check::fail(NAME, found, "run skiff as root, or give another directory by --state-dir");
    }
    let space = match statvfs(&there) {
        Ok(space) => space,
        Err(e) => return Check::fail(NAME, format!("statvfs {}: {e}", there.display()), "check its disk"),
    };
    if space.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let found = format!("{} is on a read-only filesystem", there.display());
        return Check::fail(NAME, found, "give another directory by --state-dir");
    }
    let fs_type = mount_of(host, &there).map_or_else(|| "unknown filesystem".to_owned(), |m| m.fs_type);
    let state = if there == dir { "" } else { " (to be made)" };
    let found = format!("{shown}{state} on {fs_type}");
    if space.f_blocks == 0 {
        // Filesystems without a size of their own, such as ramfs, count no blocks.
        return Check::warn(
            NAME,
            format!("{found}, free space unknown"),
            "better give one on ext4, XFS or btrfs",
        );
    }
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    judge_room(NAME, format!("{found}, {} MiB free", free >> 20), free)
}

fn judge_room(name: &'static str, found: String, free: u64) -> Check {
    const ADVICE: &str = "free space there, or give another directory by --state-dir";
    if free < FREE_BYTES_NEEDED {
        Check::fail(name, found, ADVICE)
    } else if free < FREE_BYTES_BETTER {
        Check::warn(name, found, ADVICE)
    } else {
        Check::ok(name, found)
    }
}

/// Whether disk quotas for directories (project quotas) could cap writable layers.
pub(super) fn quota(host: &Host, dir: &Path) -> Check {
    const NAME: &str = "quota";
    const ADVICE: &str = "nothing needs to be done: loop devices or a tmpfs cap what is written";
    let Some(mount) = nearest(dir).ok().and_then(|there| mount_of(host, &there)) else {
        return Check::warn(NAME, format!("the filesystem of {} is not known", dir.display()), ADVICE);
    };
    // XFS shows `prjquota`; ext4 shows `prjquota` only when it is mounted with it.
    if mount.has("prjquota") || mount.has("pquota") {
        Check::ok(NAME, format!("{} with project quotas", mount.fs_type))
    } else {
        Check::warn(NAME, format!("{} without project quotas", mount.fs_type), ADVICE)
    }
}

/// What holds written bytes unless `--writable` says it, and why nothing better.
pub(super) fn writable(host: &Host, dir: &Path) -> Check {
    const NAME: &str = "writable";
    let there = match nearest(dir) {
        Ok(there) if host.is_root => there,
        _ => return Check::warn(NAME, "not tried", "run skiff doctor as root to try it"),
    };
    let (kind, why) = Choice::of_host(&there).auto();
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    match kind {
        Writable::Quota => Check::ok(NAME, "quota: tried, and enforced"),
        Writable::Loop | Writable::Auto => Check::ok(NAME, format!("loop{why}")),
        Writable::Tmpfs => Check::warn(
            NAME,
            format!("tmpfs{why}"),
            "what a function writes is charged to its memory; provide one of the others",
        ),
    }
}

/// `dir`, or the nearest of its ancestors that is there.
///
/// # Errors
/// `InvalidInput` for a relative path, `NotADirectory` when something else is in the way, and as
/// `stat(2)`.
pub(super) fn nearest(dir: &Path) -> io::Result<PathBuf> {
    if !dir.is_absolute() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is not absolute"));
    }
    for candidate in dir.ancestors() {
        match candidate.metadata() {
            Ok(found) if found.is_dir() => return Ok(candidate.to_owned()),
            Ok(_) => {
                let text = format!("{} is not a directory", candidate.display());
                return Err(io::Error::new(io::ErrorKind::NotADirectory, text));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The mount on which a directory that exists is.
pub(super) fn mount_of(host: &Host, dir: &Path) -> Option<Mount> {
    let dir = dir.canonicalize().ok()?;
    mounts::holding(&mounts::read(host).ok()?, &dir).cloned()
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::Fake;
    use super::*;

    const XFS: &str = "27 1 8:1 / / rw,relatime - xfs /dev/sda1 rw,prjquota\n";
    const EXT4: &str = "27 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n";

    #[test]
    fn a_directory_that_is_there_names_its_filesystem() {
        let fake = Fake::new().file("proc/self/mountinfo", XFS);
        let check = check(&fake.host(), fake.root());
        assert!(check.found.contains(" on xfs, "), "{check:?}");
        assert!(!check.found.contains("to be made"));
    }

    #[test]
    fn a_directory_to_be_made_is_judged_by_its_ancestor() {
        let fake = Fake::new().file("proc/self/mountinfo", XFS);
        let check = check(&fake.host(), &fake.root().join("a/b"));
        assert!(check.found.contains("/a/b (to be made) on xfs"), "{check:?}");
    }

    #[test]
    fn a_file_in_the_way_fails_and_is_named() {
        let fake = Fake::new().file("file", "");
        for below in ["file", "file/state"] {
            let check = check(&fake.host(), &fake.root().join(below));
            assert_eq!(check.status, Status::Fail, "{below}");
            assert!(check.found.contains("file"), "{check:?}");
        }
    }

    #[test]
    fn a_relative_path_fails() {
        let check = check(&Fake::new().host(), Path::new("state"));
        assert_eq!((check.status, check.found.as_str()), (Status::Fail, "state: the path is not absolute"));
    }

    #[test]
    fn a_filesystem_without_blocks_is_warned_of() {
        let check = check(&Fake::new().host(), Path::new("/proc/skiff"));
        assert_ne!(check.status, Status::Ok, "{check:?}");
    }

    #[test]
    fn little_room_warns_and_less_fails() {
        let status = |free| judge_room("state_dir", String::new(), free).status;
        assert_eq!(status(FREE_BYTES_BETTER), Status::Ok);
        assert_eq!(status(FREE_BYTES_BETTER - 1), Status::Warn);
        assert_eq!(status(FREE_BYTES_NEEDED - 1), Status::Fail);
    }

    #[test]
    fn what_auto_takes_is_told_with_the_reason_and_leaves_nothing() {
        let fake = Fake::new();
        let told = writable(&fake.host(), fake.root());
        if rustix::process::geteuid().is_root() {
            assert!(["quota", "loop", "tmpfs"].iter().any(|kind| told.found.starts_with(kind)), "{told:?}");
        }
        assert_eq!(std::fs::read_dir(fake.root()).expect("the root").count(), 0);
        let mut host = fake.host();
        host.is_root = false;
        assert_eq!(writable(&host, fake.root()).found, "not tried");
    }

    #[test]
    fn quotas_are_seen_and_missed_ones_only_warned_of() {
        let with = Fake::new().file("proc/self/mountinfo", XFS);
        assert_eq!(quota(&with.host(), with.root()).found, "xfs with project quotas");
        let without = Fake::new().file("proc/self/mountinfo", EXT4);
        let check = quota(&without.host(), without.root());
        assert_eq!((check.status, check.found.as_str()), (Status::Warn, "ext4 without project quotas"));
        assert_eq!(quota(&Fake::new().host(), without.root()).status, Status::Warn);
    }
}
