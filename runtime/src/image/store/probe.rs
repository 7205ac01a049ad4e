//! Whether the state directory can hold layers for overlayfs: tried, not guessed.

use std::path::Path;

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};

use crate::{Error, ErrorKind, Result};

/// Makes an overlay of two empty directories, which is never attached anywhere, and sets an
/// attribute as whiteouts need it. The directories are made in `place`, which is the state directory
/// or on the same filesystem, and removed.
///
/// # Errors
/// `OverlayUnsupported`, `Host`.
pub(crate) fn overlay(state_dir: &Path, place: &Path) -> Result<()> {
    let failed = |call: &str, e: std::io::Error| Error::host(format!("{call} in {}", place.display()), e);
    let probe = ProbeDir::new(place).map_err(|e| failed("make a directory for a probe", e))?;
    let dir = open(&probe.0).map_err(|e| failed("open the probe directory", e.into()))?;
    let set = rustix::fs::fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty());
    match set {
        Ok(()) => {}
        Err(e @ (Errno::OPNOTSUPP | Errno::PERM)) => {
            return Err(unsupported(state_dir, &dir, "has no trusted extended attributes", e));
        }
        Err(e) => return Err(failed("set an extended attribute", e.into())),
    }
    match mount(&probe.0) {
        Ok(()) => Ok(()),
        Err(Errno::NODEV) => {
            Err(Error::new(ErrorKind::OverlayUnsupported, "this kernel has no overlay filesystem")
                .because(std::io::Error::from(Errno::NODEV))
                .advise("run: modprobe overlay"))
        }
        Err(e) => Err(unsupported(state_dir, &dir, "cannot be a lower layer of overlayfs", e)),
    }
}

fn open(path: &Path) -> rustix::io::Result<rustix::fd::OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn mount(probe: &Path) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let lower = [open(&probe.join("a"))?, open(&probe.join("b"))?];
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // By descriptor: option strings have 255 bytes at most, and colons in a path would split it.
    let option = format!("/proc/self/fd/{}:/proc/self/fd/{}", lower[0].as_raw_fd(), lower[1].as_raw_fd());
    fsconfig_set_string(&overlay, "lowerdir", option)?;
    fsconfig_set_flag(&overlay, "ro")?;
    fsconfig_create(&overlay)
}

fn unsupported(state_dir: &Path, dir: &rustix::fd::OwnedFd, why: &str, errno: Errno) -> Error {
    let name = filesystem(dir);
    Error::new(
        ErrorKind::OverlayUnsupported,
        format!("the state directory {} is on {name}, which {why}", state_dir.display()),
    )
    .because(std::io::Error::from(errno))
    .advise("choose a state directory on ext4, XFS or btrfs")
}

/// The filesystem's name (statfs(2)), or its number.
fn filesystem(dir: &rustix::fd::OwnedFd) -> String {
    const NAMES: [(u32, &str); 12] = [
        (0xef53, "ext4"),
        (0x5846_5342, "XFS"),
        (0x9123_683e, "btrfs"),
        (0x0102_1994, "tmpfs"),
        (0x794c_7630, "overlay"),
        (0x4d44, "FAT"),
        (0x2011_bab0, "exFAT"),
        (0x6969, "NFS"),
        (0xff53_4d42, "CIFS"),
        (0x6573_5546, "FUSE"),
        (0x0102_1997, "9p"),
        (0x5346_544e, "NTFS"),
    ];
    let Ok(stat) = rustix::fs::fstatfs(dir) else { return "an unknown filesystem".into() };
    let magic = stat.f_type as u32;
    match NAMES.iter().find(|(number, _)| *number == magic) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("a filesystem of type {magic:#x}"),
    }
}

/// A directory of this probe alone, removed with it.
struct ProbeDir(std::path::PathBuf);

impl ProbeDir {
    fn new(place: &Path) -> std::io::Result<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = place.join(format!(".skiff-probe-{}-{number}", std::process::id()));
        // A process of this number died here once.
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::create_dir(&path)?;
        let probe = Self(path);
        std::fs::create_dir(probe.0.join("a"))?;
        std::fs::create_dir(probe.0.join("b"))?;
        Ok(probe)
    }
}

impl Drop for ProbeDir {
    fn drop(&mut self) {
        // An empty directory too many does no harm, and the next probe of this name removes it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
