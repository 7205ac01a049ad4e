//! A container's root filesystem, put into a container that has been made without one. libcontainer makes it with
//! an empty root, on which `/proc`, `/dev` and `/sys` are mounted as ever; nothing of the image is there to be
//! looked at then. The start process enters the container's mount namespace, attaches the image's root filesystem,
//! moves the three mounts onto that, and makes it the root: of the namespace, and of the init that waits in it.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount_remount, move_mount, open_tree};

use super::mount::{ROOTFS, pivot};
use super::path::Root;
use crate::{Error, Result};

/// What moves along; mounts on them come with them.
const SYSTEM: [&str; 3] = ["proc", "dev", "sys"];

/// A copy of a root filesystem with all that is mounted on it, which no namespace has yet.
///
/// # Errors
/// `Host`.
pub(crate) fn copy(rootfs: &Path) -> Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(rustix::fs::CWD, rootfs, flags)
        .map_err(|e| Error::host("cannot copy the mounts of a root filesystem", e))
}

/// Enters `namespace`, the mount namespace of a container that has not been started, and makes `tree` its root.
/// `owner`: whom directories that the image lacks belong to, if not the host's root.
///
/// # Errors
/// `Host`.
pub(crate) fn install(
    tree: &OwnedFd,
    namespace: &OwnedFd,
    read_only: bool,
    owner: Option<u32>,
) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNS)
        .map_err(|e| Error::host("cannot enter the mount namespace of a container", e))?;
    let target = Path::new("/").join(ROOTFS);
    let failed = |e: Errno| Error::host("cannot put the root filesystem into its container", e);
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, "", rustix::fs::CWD, &target, flags).map_err(failed)?;
    let root = Root::open(&target)?;
    let root = owner.into_iter().fold(root, Root::owned_by);
    for name in SYSTEM {
        open_tree(rustix::fs::CWD, Path::new("/").join(name), OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .and_then(|mounted| root.attach(&mounted, name))
            .map_err(|e| Error::host(format!("cannot mount /{name} in the root filesystem"), e))?;
    }
    drop(root);
    if read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV;
        mount_remount(&target, flags, c"")
            .map_err(|e| Error::host("cannot make the root filesystem read-only", e))?;
    }
    pivot(&target).map_err(failed)
}
