//! Whether overlay takes the filesystem of the state directory for its layers: tried by the probe
//! of the image store, on the nearest directory that is there.

use std::path::Path;

use super::Check;
use super::host::Host;
use super::state_dir::{mount_of, nearest};
use crate::image::probe_overlay;

const NAME: &str = "overlay";

pub(super) fn check(host: &Host, state_dir: &Path) -> Check {
    const ADVICE: &str = "give another directory by --state-dir";
    if !host.is_root {
        return registered(host);
    }
    let there = match nearest(state_dir) {
        Ok(there) => there,
        Err(e) => return Check::fail(NAME, format!("not tried: {}: {e}", state_dir.display()), ADVICE),
    };
    match probe_overlay(state_dir, &there) {
        Ok(()) => {
            let fs_type = mount_of(host, &there).map_or_else(|| "it".to_owned(), |mount| mount.fs_type);
            Check::ok(NAME, format!("accepts {fs_type} as a lower layer"))
        }
        Err(e) => Check::fail(NAME, e.chain(), e.advice().unwrap_or(ADVICE)),
    }
}

/// What can be told without root: whether the kernel knows overlay at all.
fn registered(host: &Host) -> Check {
    let known = host.read("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        Check::warn(NAME, "known to the kernel; not tried", "run skiff doctor as root to try it")
    } else {
        Check::warn(NAME, "not loaded; not tried", "modprobe overlay, then run skiff doctor as root")
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::Fake;
    use super::*;

    #[test]
    fn the_probe_leaves_nothing_behind() {
        let fake = Fake::new();
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
        let before = mounts();
        let check = check(&fake.host(), &fake.root().join("not/there"));
        if rustix::process::geteuid().is_root() {
            assert_eq!(check.status, Status::Ok, "{check:?}");
        } else {
            assert_eq!(check.status, Status::Fail, "trusted attributes need root: {check:?}");
        }
        assert_eq!(std::fs::read_dir(fake.root()).expect("the root").count(), 0);
        // Other tests of this process mount in namespaces of their own, if at all.
        assert_eq!(mounts(), before);
    }

    #[test]
    fn a_filesystem_without_what_overlay_needs_fails() {
        // proc has no directories to be made in it.
        let check = check(&Fake::new().host(), Path::new("/proc/skiff"));
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.contains(" in /proc: "), "{check:?}");
        assert!(check.advice.is_some());
    }

    #[test]
    fn a_state_directory_under_a_file_is_not_tried() {
        let fake = Fake::new().file("file", "");
        let check = check(&fake.host(), &fake.root().join("file/state"));
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.starts_with("not tried: "), "{check:?}");
    }

    #[test]
    fn without_root_the_kernel_is_asked_what_it_knows() {
        let without_root = |fake: &Fake| {
            let mut host = fake.host();
            host.is_root = false;
            check(&host, fake.root()).found
        };
        let known = Fake::new().file("proc/filesystems", "nodev\tproc\n\text4\nnodev\toverlay\n");
        assert_eq!(without_root(&known), "known to the kernel; not tried");
        let unknown = Fake::new().file("proc/filesystems", "nodev\tproc\n\text4\n");
        assert_eq!(without_root(&unknown), "not loaded; not tried");
    }
}
