//! Mounts that only the container's mount namespace sees. Runs in the start process, after it has
//! left the host's mount namespace; every mount dies with the namespace.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_bind,
    mount_change, mount_move, mount_remount, move_mount,
};

use super::Cap;
use crate::{Error, ErrorKind, Result};

/// Room for the bundle, the state of libcontainer and the files of `/etc`.
const SCRATCH_BYTES: u64 = 4 << 20;
const SCRATCH_INODES: u64 = 512;
/// Room for the mount points that a read-only root filesystem lacks.
const MOUNT_POINTS_BYTES: u64 = 1 << 20;
/// For what is not the root filesystem itself: binds of it have these flags too.
const INERT: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV.union(MountAttrFlags::MOUNT_ATTR_NOSUID);

/// What holds the bytes of a mount that can be written.
#[derive(Debug)]
pub(crate) enum Space {
    /// An ext4 filesystem on this loop device.
    Disk(OwnedFd),
    /// A tmpfs of this cap.
    Memory(Cap),
    /// A directory that is capped itself.
    Dir(PathBuf),
}

/// The directories of a start, in a tmpfs of its own.
pub(crate) struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// Leaves the host's mount namespace and mounts an empty tmpfs on `dir`, which is an empty
    /// directory of the host and stays one.
    pub(crate) fn enter(dir: &Path) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|e| Error::host("cannot make a mount namespace", e))?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(|e| Error::host("cannot make the mounts private", e))?;
        mount_tmpfs(dir, SCRATCH_BYTES, SCRATCH_INODES, 0o700)?;
        let scratch = Self { dir: dir.to_owned() };
        for name in ["bundle", "state", "etc", "upper", "tmp", "rootfs", "cgroup", "l", "i", "sys"] {
            make_dir(&scratch.path(name))?;
        }
        Ok(scratch)
    }

    /// A path below it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes it reachable for the root of a user namespace, who may enter no directory that only the
    /// host's root may: moves it up to the first such directory on its way, which is hidden by it from
    /// now on, in this mount namespace.
    pub(crate) fn expose(self) -> Result<Self> {
        let failed = |e| Error::host("cannot move the mounts of a start", e);
        let mut above: Vec<_> = self.dir.ancestors().skip(1).collect();
        above.reverse();
        let closed = |dir: &&Path| fs::metadata(dir).is_ok_and(|m| m.permissions().mode() & 0o001 == 0);
        let dir = match above.into_iter().find(closed) {
            Some(closed) => {
                mount_move(&self.dir, closed).map_err(failed)?;
                closed.to_owned()
            }
            None => self.dir.clone(),
        };
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))
            .map_err(|e| Error::host("cannot open the mounts of a start", e))?;
        Ok(Self { dir })
    }

    /// Mounts sysfs as this network namespace shows it. The root of a user namespace may not, where
    /// the network namespace is not its own.
    pub(crate) fn mount_sysfs(&self) -> Result<PathBuf> {
        let target = self.path("sys");
        let mounted = || -> Result<(), Errno> {
            let fs = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            let flags = INERT | MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_RDONLY;
            attach(fs.as_fd(), &target, flags)
        };
        mounted().map_err(|e| Error::host("cannot mount sysfs", e))?;
        Ok(target)
    }

    /// Mounts `space` where `/tmp` will be taken from; mode 1777 as everywhere.
    pub(crate) fn mount_tmp(&self, space: &Space) -> Result<PathBuf> {
        let target = self.path("tmp");
        mount_space(space, &target, 0o1777)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o1777))
            .map_err(|e| Error::host("cannot set the mode of /tmp", e))?;
        remove_lost_and_found(&target);
        Ok(target)
    }

    /// Puts version 1 groups (`/sys/fs/cgroup/memory/skiff/RUN/CONTAINER` and so on) together as a
    /// container sees them, all read-only: libcontainer mounts them writable whatever the options
    /// say (CVE-2022-0492), and each of its mounts costs as much as all of these.
    pub(crate) fn mount_cgroups_v1(&self, groups: &[PathBuf]) -> Result<PathBuf> {
        let failed = |e| Error::host("cannot put the cgroup mounts together", e);
        let dir = self.path("cgroup");
        mount_tmpfs(&dir, 4096, 64, 0o755)?;
        let read_only = MountFlags::BIND
            | MountFlags::RDONLY
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC;
        for group in groups {
            let Some(name) = group.ancestors().nth(3).and_then(Path::file_name) else { continue };
            let target = dir.join(name);
            make_dir(&target)?;
            mount_bind(group, &target).map_err(failed)?;
            mount_remount(&target, read_only, c"").map_err(failed)?;
        }
        mount_remount(&dir, read_only, c"").map_err(failed)?;
        Ok(dir)
    }

    /// Mounts the overlay of `layers` (lowest first). Without `space` only mount points can be
    /// written, for a root filesystem that libcontainer makes read-only afterwards.
    pub(crate) fn mount_overlay(&self, layers: &[PathBuf], space: Option<&Space>) -> Result<PathBuf> {
        let holder = self.path("upper");
        match space {
            Some(space) => mount_space(space, &holder, 0o700)?,
            None => mount_tmpfs(&holder, MOUNT_POINTS_BYTES, SCRATCH_INODES, 0o700)?,
        }
        let (upper, work) = (holder.join("u"), holder.join("w"));
        make_dir(&upper)?;
        make_dir(&work)?;
        // The root directory of the container is the upper directory: give it the image's.
        if let Some(top) = layers.last() {
            copy_ownership(top, &upper)?;
        }
        let target = self.path("rootfs");
        match mount_overlay_new(layers, &upper, &work, &target) {
            Ok(()) => Ok(target),
            Err(e) if falls_back(&e) => {
                self.mount_overlay_old(layers, &upper, &work, &target).map(|()| target)
            }
            Err(e) => Err(overlay_error(layers, e)),
        }
    }

    /// For kernels before 6.5, without `lowerdir+`: mount(2) takes a page of options, so all
    /// directories get short names. Their own may also hold what ends an option, `,` or `:`.
    fn mount_overlay_old(&self, layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<()> {
        let links = self.path("l");
        let link = |to: &Path, name: &str| {
            symlink(to, links.join(name)).map_err(|e| Error::host("cannot link a layer", e))
        };
        for (index, layer) in layers.iter().enumerate() {
            link(layer, &index.to_string())?;
        }
        link(upper, "upper")?;
        link(work, "work")?;
        std::env::set_current_dir(&links).map_err(|e| Error::host("cannot enter the links of layers", e))?;
        let lower: Vec<_> = (0..layers.len()).rev().map(|i| i.to_string()).collect();
        let options = format!("lowerdir={},upperdir=upper,workdir=work,volatile", lower.join(":"));
        let options = std::ffi::CString::new(options)
            .map_err(|e| Error::new(ErrorKind::Internal, "a layer's path holds NUL").because(e))?;
        mount("overlay", target, "overlay", MountFlags::NODEV, Some(options.as_c_str()))
            .map_err(|e| overlay_error(layers, e))?;
        std::env::set_current_dir("/").map_err(|e| Error::host("cannot enter /", e))
    }
}

fn falls_back(error: &Errno) -> bool {
    matches!(*error, Errno::INVAL | Errno::NOSYS)
}

fn overlay_error(layers: &[PathBuf], error: Errno) -> Error {
    Error::host(format!("cannot mount an overlay of {} layers", layers.len()), error)
}

fn mount_overlay_new(layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<(), Errno> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers.iter().rev() {
        fsconfig_set_string(&fs, "lowerdir+", layer)?;
    }
    fsconfig_set_string(&fs, "upperdir", upper)?;
    fsconfig_set_string(&fs, "workdir", work)?;
    // The upper layer dies with the container: never sync it.
    fsconfig_set_flag(&fs, "volatile")?;
    // Set-user-ID programs of the image are no danger: no-new-privileges is set.
    attach(fs.as_fd(), target, MountAttrFlags::MOUNT_ATTR_NODEV)
}

fn attach(fs: BorrowedFd<'_>, target: &Path, flags: MountAttrFlags) -> Result<(), Errno> {
    fsconfig_create(fs)?;
    let mounted = fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    move_mount(mounted, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn mount_space(space: &Space, target: &Path, mode: u32) -> Result<()> {
    match space {
        Space::Memory(cap) => mount_tmpfs(target, cap.bytes, cap.inodes, mode),
        Space::Dir(dir) => mount_bind(dir, target)
            .and_then(|()| {
                mount_remount(target, MountFlags::BIND | MountFlags::NODEV | MountFlags::NOSUID, c"")
            })
            .map_err(|e| Error::host(format!("cannot bind {} on {}", dir.display(), target.display()), e)),
        Space::Disk(device) => mount_ext4(device.as_fd(), target)
            .map_err(|e| Error::host(format!("cannot mount the disk for {}", target.display()), e)),
    }
}

fn mount_ext4(device: BorrowedFd<'_>, target: &Path) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let fs = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // The name that the descriptor was opened by, which is what `mount` will show inside.
    let source =
        rustix::fs::readlinkat(rustix::fs::CWD, format!("/proc/self/fd/{}", device.as_raw_fd()), Vec::new())?;
    fsconfig_set_string(&fs, "source", source)?;
    // The tables of unused inodes are zero already: they are holes.
    fsconfig_set_flag(&fs, "noinit_itable")?;
    // The disk dies with the container: waiting for the host's disk protects nothing.
    fsconfig_set_flag(&fs, "nobarrier")?;
    attach(fs.as_fd(), target, INERT)
}

fn mount_tmpfs(target: &Path, bytes: u64, inodes: u64, mode: u32) -> Result<()> {
    let mounted = || -> Result<(), Errno> {
        let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "size", bytes.to_string())?;
        fsconfig_set_string(&fs, "nr_inodes", inodes.to_string())?;
        fsconfig_set_string(&fs, "mode", format!("{mode:o}"))?;
        attach(fs.as_fd(), target, INERT)
    };
    mounted().map_err(|e| Error::host(format!("cannot mount a tmpfs on {}", target.display()), e))
}

fn make_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .mode(0o755)
        .create(path)
        .map_err(|e| Error::host(format!("cannot make the directory {}", path.display()), e))
}

fn copy_ownership(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let copied = || -> io::Result<()> {
        let meta = fs::symlink_metadata(from)?;
        std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))?;
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))
    };
    copied().map_err(|e| Error::host("cannot copy the root directory's owner and mode", e))
}

/// mkfs makes it; nobody expects it in `/tmp`.
fn remove_lost_and_found(dir: &Path) {
    let _ = fs::remove_dir(dir.join("lost+found"));
}
