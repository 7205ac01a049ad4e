//! Whether overlay takes the filesystem of the state directory for its layers.
//!
//! The probe makes an overlay superblock of two empty directories there by the new mount API, and
//! never attaches it: nothing is mounted anywhere, and closing the descriptor ends it.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_string, fsopen};

use super::Check;
use super::host::Host;
use super::state_dir::{mount_of, nearest};

const NAME: &str = "overlay";

/// Most bytes of one message that the kernel leaves in a filesystem context.
const KERNEL_MESSAGE_MAX: usize = 1024;

pub(super) fn check(host: &Host, state_dir: &Path) -> Check {
    if !host.is_root {
        return registered(host);
    }
    let there = match nearest(state_dir) {
        Ok(there) => there,
        Err(e) => {
            let found = format!("not probed: {}: {e}", state_dir.display());
            return Check::fail(NAME, found, "give another directory by --state-dir");
        }
    };
    let fs_type = mount_of(host, &there).map_or_else(|| "unknown".to_owned(), |m| m.fs_type);
    match ProbeDir::make(&there).and_then(|dir| probe(&dir)) {
        Ok(()) => Check::ok(NAME, format!("accepts {fs_type} as a lower layer")),
        Err(e) => Check::fail(
            NAME,
            format!("refuses {} ({fs_type}): {e}", there.display()),
            "put --state-dir on ext4, XFS or btrfs; if overlay itself is missing: modprobe overlay",
        ),
    }
}

/// What can be told without root: whether the kernel knows overlay at all.
fn registered(host: &Host) -> Check {
    let known = host.read("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        Check::warn(NAME, "known to the kernel; not probed", "run skiff doctor as root to probe it")
    } else {
        Check::warn(NAME, "not loaded; not probed", "modprobe overlay, then run skiff doctor as root")
    }
}

fn probe(dir: &ProbeDir) -> io::Result<()> {
    let (lower, upper) = (open_dir(&dir.lower)?, open_dir(&dir.upper)?);
    // Opaque directories are marked so in every layer.
    rustix::fs::fsetxattr(&lower, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(|e| io::Error::other(format!("no trusted extended attributes: {e}")))?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // By descriptor: a path may hold what the option's syntax gives a meaning.
    let layers = format!("/proc/self/fd/{}:/proc/self/fd/{}", upper.as_raw_fd(), lower.as_raw_fd());
    fsconfig_set_string(&context, "lowerdir", layers)
        .and_then(|()| fsconfig_create(&context))
        .map_err(|e| explain(e, context))
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Adds what the kernel itself says about a failure: a line as `e overlay: No changes allowed`.
fn explain(errno: rustix::io::Errno, context: OwnedFd) -> io::Error {
    let mut message = [0; KERNEL_MESSAGE_MAX];
    let length = File::from(context).read(&mut message).unwrap_or(0);
    let message = String::from_utf8_lossy(&message[..length]);
    let message = message.trim().trim_start_matches("e ");
    if message.is_empty() { errno.into() } else { io::Error::other(format!("{errno}: {message}")) }
}

/// Two empty directories that are gone when it is dropped.
struct ProbeDir {
    dir: PathBuf,
    lower: PathBuf,
    upper: PathBuf,
}

impl ProbeDir {
    fn make(parent: &Path) -> io::Result<Self> {
        let dir = parent.join(format!(".skiff-doctor-{}", std::process::id()));
        let this = Self { lower: dir.join("lower"), upper: dir.join("upper"), dir };
        for dir in [&this.dir, &this.lower, &this.upper] {
            DirBuilder::new().mode(0o700).create(dir)?;
        }
        Ok(this)
    }
}

impl Drop for ProbeDir {
    fn drop(&mut self) {
        // Best effort: empty directories, and nothing to do about one that stays.
        for dir in [&self.lower, &self.upper, &self.dir] {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::Fake;
    use super::*;

    fn mounts() -> String {
        std::fs::read_to_string("/proc/self/mountinfo").expect("a mount table")
    }

    #[test]
    fn the_probe_leaves_nothing_behind() {
        let fake = Fake::new();
        let before = mounts();
        let check = check(&fake.host(), fake.root());
        if rustix::process::geteuid().is_root() {
            assert_eq!(check.status, Status::Ok, "{check:?}");
        }
        assert_eq!(std::fs::read_dir(fake.root()).expect("the root").count(), 0);
        assert_eq!(mounts(), before);
    }

    #[test]
    fn a_filesystem_without_what_overlay_needs_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // proc has no directories to be made in it.
        let check = check(&Fake::new().host(), Path::new("/proc/skiff"));
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.starts_with("refuses /proc (unknown): "), "{check:?}");
    }

    #[test]
    fn a_state_directory_under_a_file_is_not_probed() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let fake = Fake::new().file("file", "");
        let check = check(&fake.host(), &fake.root().join("file/state"));
        assert!(check.found.starts_with("not probed: "), "{check:?}");
    }

    #[test]
    fn without_root_the_kernel_is_asked_what_it_knows() {
        let known = Fake::new().file("proc/filesystems", "nodev\tproc\n\text4\nnodev\toverlay\n");
        assert_eq!(registered(&known.host()).found, "known to the kernel; not probed");
        let unknown = Fake::new().file("proc/filesystems", "nodev\tproc\n\text4\n");
        assert_eq!(registered(&unknown.host()).found, "not loaded; not probed");
    }

    #[test]
    fn probe_directories_are_not_shared() {
        let fake = Fake::new();
        let first = ProbeDir::make(fake.root()).expect("a probe directory");
        assert!(first.lower.is_dir() && first.upper.is_dir());
        drop(first);
        assert!(ProbeDir::make(&fake.root().join("missing")).is_err());
    }
}
