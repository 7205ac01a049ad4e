//! The kernel's own filesystems of a container that does not need its namespaces to be mounted: `/dev`,
//! `/sys` and the groups of version 1. libcontainer would mount each of them as well, at five times the cost:
//! it asks anew for each whether what it mounts on is what it seems to be. `/proc` and `/dev/mqueue` show
//! namespaces that the init makes, and are libcontainer's.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::mount::INERT;
use super::path::Root;
use crate::{Error, Result};

/// As Docker's.
const DEV_SIZE: &str = "65536k";
const NOT_EXECUTED: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
const READ_ONLY: MountAttrFlags =
    INERT.union(MountAttrFlags::MOUNT_ATTR_NOEXEC).union(MountAttrFlags::MOUNT_ATTR_RDONLY);

/// Mounts `/dev`, without devices, and `/sys` as the calling process's network namespace shows it.
///
/// # Errors
/// `Host`.
pub(crate) fn mount(root: &Root) -> Result<()> {
    let mounted = || -> Result<(), Errno> {
        let dev_flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
        let dev = new("tmpfs", &[("mode", "755"), ("size", DEV_SIZE)], dev_flags)?;
        root.attach(&dev, "dev")?;
        let terminals = [("mode", "0620"), ("ptmxmode", "0666"), ("gid", "5")];
        below(&dev, "pts", &new("devpts", &terminals, NOT_EXECUTED)?)?;
        let shared = [("source", "shm"), ("mode", "1777"), ("size", DEV_SIZE)];
        below(&dev, "shm", &new("tmpfs", &shared, INERT.union(NOT_EXECUTED))?)?;
        root.attach(&new("sysfs", &[], READ_ONLY)?, "sys")
    };
    mounted().map_err(|e| Error::host("cannot mount /dev and /sys of a container", e))
}

fn new(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if !options.iter().any(|(name, _)| *name == "source") {
        fsconfig_set_string(&fs, "source", kind)?;
    }
    options.iter().try_for_each(|(name, value)| fsconfig_set_string(&fs, *name, *value))?;
    if kind == "devpts" {
        // What every one is since Linux 4.7.
        fsconfig_set_flag(&fs, "newinstance")?;
    }
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// Mounts on a new directory of a filesystem that is attached.
fn below(parent: &OwnedFd, name: &str, mounted: &OwnedFd) -> Result<(), Errno> {
    mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = openat(parent, name, flags, Mode::empty())?;
    attach(mounted, &target)
}

/// Attaches a mount to an open directory, so that nothing can be put in its place meanwhile.
pub(super) fn attach(mounted: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mounted.as_fd(), "", target.as_fd(), "", flags)
}
