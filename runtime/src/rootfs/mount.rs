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
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
    mount_bind, mount_bind_recursive, mount_change, mount_remount, move_mount, unmount,
};

use super::{Cap, LAYERS_ONE_BY_ONE, kernel_version};
use crate::{Error, ErrorKind, Result};

/// Room for the bundle, the state of libcontainer and the files of `/etc`.
const SCRATCH_BYTES: u64 = 4 << 20;
const SCRATCH_INODES: u64 = 512;
/// Room for the mount points that a read-only root filesystem lacks.
const MOUNT_POINTS_BYTES: u64 = 1 << 20;
/// For what is not the root filesystem itself: binds of it have these flags too.
pub(super) const INERT: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NODEV.union(MountAttrFlags::MOUNT_ATTR_NOSUID);

/// The directories of an overlay in what holds its written bytes.
pub(super) const UPPER: &str = "u";
pub(super) const WORK: &str = "w";

/// Where the root filesystem is, below the scratch directory and in the namespace that is left of it.
pub(crate) const ROOTFS: &str = "skiff-rootfs";
/// The root that a container is made with, until it gets its image's.
pub(crate) const SANDBOX: &str = "sandbox";
/// `sys/fs/cgroup` and `group` are for libcontainer, see [`Scratch::pose_as_unified`].
const DIRECTORIES: [&str; 13] = [
    "bundle",
    "state",
    "etc",
    "upper",
    "tmp",
    ROOTFS,
    SANDBOX,
    "sandbox/skiff-rootfs",
    "proc",
    "sys",
    "sys/fs",
    "sys/fs/cgroup",
    GROUP,
];
const CGROUP: &str = "sys/fs/cgroup";
/// `CGROUP2_SUPER_MAGIC` (statfs(2)).
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// What libcontainer takes for the container's group.
const GROUP: &str = "group";
/// Its path from `sys/fs/cgroup`, as the specification has it.
pub(crate) const GROUP_PATH: &str = "/../../../group";

/// What holds the bytes of a mount that can be written.
#[derive(Debug)]
pub(crate) enum Space {
    /// A mount that is attached nowhere, of a filesystem that has been furnished for its use.
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
        // What is mounted here is not seen on the host; what the host mounts and unmounts meanwhile happens here
        // too, so that a container that waits keeps no filesystem of the host busy.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .map_err(|e| Error::host("cannot part the mounts from the host's", e))?;
        mount_tmpfs(dir, SCRATCH_BYTES, SCRATCH_INODES, 0o700)?;
        let scratch = Self { dir: dir.to_owned() };
        for name in DIRECTORIES {
            make_dir(&scratch.path(name))?;
        }
        Ok(scratch)
    }

    /// A path below it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes a directory below it.
    pub(crate) fn make(&self, name: &str) -> Result<PathBuf> {
        let dir = self.path(name);
        make_dir(&dir).map(|()| dir)
    }

    /// Leaves this mount namespace for a copy of it.
    pub(crate) fn part(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|e| Error::host("cannot make a mount namespace", e))?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(|e| Error::host("cannot make the mounts private", e))
    }

    /// Leaves everything of the host but its `/proc`: the scratch directory becomes the root. What is
    /// copied, listed and detached from here on is a handful of mounts, however many the host has. The
    /// root of a user namespace, who could not pass through the directories of a run, has no need to.
    /// `devices`: with the host's `/dev`, to bind single devices from.
    pub(crate) fn become_root(&self, devices: bool) -> Result<Self> {
        let failed = |e| Error::host("cannot leave the host's mounts", e);
        let mut kept = vec![("/proc", self.path("proc"))];
        if devices {
            make_dir(&self.path("dev"))?;
            kept.push(("/dev", self.path("dev")));
        }
        for (host, here) in kept {
            mount_bind_recursive(host, here).map_err(failed)?;
        }
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o711))
            .map_err(|e| Error::host("cannot open the mounts of a start", e))?;
        pivot(&self.dir).map_err(failed)?;
        Ok(Self { dir: "/".into() })
    }

    /// Mounts sysfs as this network namespace shows it. The root of a user namespace may not, where
    /// the network namespace is not its own.
    pub(crate) fn mount_sysfs(&self) -> Result<()> {
        let target = self.make("sysfs")?;
        let mounted = || -> Result<(), Errno> {
            let fs = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            let flags = INERT | MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_RDONLY;
            attach(fs.as_fd(), &target, flags)
        };
        mounted().map_err(|e| Error::host("cannot mount sysfs", e))
    }

    /// Has libcontainer find a host of cgroup version 2 (`root` is where that is mounted), and a group that is a
    /// directory of files which do nothing: Skiff has joined and limited the real one. Where it finds no
    /// cgroups it looks for twelve controllers of version 1, and reads the mount table anew for each of them;
    /// so it does on a host without version 2.
    pub(crate) fn pose_as_unified(&self, root: &Path) -> Result<()> {
        // Something else may have been mounted over it.
        if !rustix::fs::statfs(root).is_ok_and(|found| found.f_type == CGROUP2_MAGIC) {
            return Ok(());
        }
        let group = self.path(GROUP);
        fs::write(group.join("cgroup.procs"), "")
            .map_err(|e| Error::host("cannot make a start's files", e))?;
        // After a failure libcontainer writes to it. As it cannot, it neither kills what the other lists
        // nor tries for 100 ms to remove the group.
        make_dir(&group.join("cgroup.kill"))?;
        // Bound: a new mount of this kind would set the options of all of them anew (cgroups(7)), and wait.
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        let target = self.path(CGROUP);
        mount_bind(root, &target)
            .and_then(|()| mount_remount(&target, flags | MountFlags::NOEXEC, c""))
            .map_err(|e| Error::host(format!("cannot bind {}", root.display()), e))
    }

    /// Mounts `space` where `/tmp` will be taken from; mode 1777 as everywhere.
    pub(crate) fn mount_tmp(&self, space: &Space) -> Result<PathBuf> {
        let target = self.path("tmp");
        mount_space(space, &target, 0o1777)?;
        if let Space::Dir(_) = space {
            fs::set_permissions(&target, fs::Permissions::from_mode(0o1777))
                .map_err(|e| Error::host("cannot set the mode of /tmp", e))?;
        }
        Ok(target)
    }

    /// Puts version 1 groups (`memory` at `/sys/fs/cgroup/memory/skiff/RUN/CONTAINER` and so on) together
    /// in `dir` as a container sees them, all read-only: libcontainer mounts them writable whatever the options
    /// say (CVE-2022-0492), and each of its mounts costs as much as all of these. Controllers are links
    /// to the mounts: libcontainer would know one of its name for a hierarchy to make groups in.
    pub(crate) fn mount_cgroups_v1(&self, groups: &[(&str, PathBuf)], dir: &Path) -> Result<()> {
        let failed = |e| Error::host("cannot put the cgroup mounts together", e);
        mount_tmpfs(dir, 4096, 64, 0o755)?;
        let read_only = MountFlags::BIND
            | MountFlags::RDONLY
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC;
        let mut mounted: Vec<&Path> = Vec::new();
        for (controller, group) in groups {
            let known = mounted.iter().position(|other| other == group);
            let number = known.unwrap_or(mounted.len());
            let name = format!("v1-{number}");
            if known.is_none() {
                let target = dir.join(&name);
                make_dir(&target)?;
                mount_bind(group, &target).map_err(failed)?;
                mount_remount(&target, read_only, c"").map_err(failed)?;
                mounted.push(group);
            }
            symlink(name, dir.join(controller)).map_err(|e| Error::host("cannot link a cgroup", e))?;
        }
        mount_remount(dir, read_only, c"").map_err(failed)
    }

    /// Mounts the overlay of `layers` (lowest first). Without `space` only mount points can be
    /// written, for a root filesystem that is made read-only afterwards.
    pub(crate) fn mount_overlay(&self, layers: &[PathBuf], space: Option<&Space>) -> Result<PathBuf> {
        let holder = self.path("upper");
        match space {
            Some(space) => mount_space(space, &holder, 0o700)?,
            None => mount_tmpfs(&holder, MOUNT_POINTS_BYTES, SCRATCH_INODES, 0o700)?,
        }
        let (upper, work) = (holder.join(UPPER), holder.join(WORK));
        if !matches!(space, Some(Space::Disk(_))) {
            make_dir(&upper)?;
            make_dir(&work)?;
        }
        // The root directory of the container is the upper directory: give it the image's.
        if let Some(top) = layers.last() {
            copy_ownership(top, &upper)?;
        }
        let target = self.path(ROOTFS);
        // Asked for the new way, an older kernel would write a line of its log at each start.
        let mounted = if takes_layers_one_by_one() {
            mount_overlay_new(layers, &upper, &work, &target)
        } else {
            Err(Errno::NOSYS)
        };
        match mounted {
            Ok(()) => Ok(target),
            Err(e) if falls_back(&e) => {
                self.mount_overlay_old(layers, &upper, &work, &target).map(|()| target)
            }
            Err(e) => Err(overlay_error(layers, e)),
        }
    }

    /// For kernels without `lowerdir+`: mount(2) takes a page of options, so all
    /// directories get short names. Their own may also hold what ends an option, `,` or `:`.
    fn mount_overlay_old(&self, layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<()> {
        let links = self.path("l");
        make_dir(&links)?;
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

/// Makes `dir`, which something is mounted on, the root of this mount namespace and of who has its root.
pub(super) fn pivot(dir: &Path) -> Result<(), Errno> {
    rustix::process::chdir(dir)?;
    // The old root comes to lie upon the new one (pivot_root(2)).
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// Also where the version cannot be told.
fn takes_layers_one_by_one() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    kernel_version(&release).is_none_or(|version| version >= LAYERS_ONE_BY_ONE)
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
        Space::Disk(mounted) => {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(mounted, "", rustix::fs::CWD, target, flags)
                .map_err(|e| Error::host(format!("cannot attach the disk to {}", target.display()), e))
        }
    }
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

pub(super) fn make_dir(path: &Path) -> Result<()> {
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
