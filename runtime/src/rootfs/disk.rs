//! Size-capped disks: a copy of an empty, formatted ext4 image in an unnamed file, on a loop
//! device that clears itself at its last use, mounted nowhere. Nothing of it has a name, so a crash leaves
//! nothing.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::Cap;
use super::mount::{INERT, UPPER, WORK};
use crate::sys::{LoopConfig, loop_clear, loop_configure, loop_get_free};
use crate::{Error, ErrorKind, Result};

/// Smallest disk that ext4 can be made on with room to speak of.
pub(crate) const MIN_BYTES: u64 = 4 << 20;
/// Largest: FC's 10 GB disk, with room to grow.
pub(crate) const MAX_BYTES: u64 = 64 << 30;
const BLOCK: u64 = 4096;
/// Least inodes: ext4 keeps eleven for itself, an overlay takes five.
const MIN_INODES: u64 = 64;
/// How long it is looked for a free device: many processes may want one at once, and on a host that has too much
/// to do the node of a new one comes late. The deadline of the start bounds it too.
const FREE_DEVICE_PATIENCE: Duration = Duration::from_secs(10);
const FREE_DEVICE_PAUSE: Duration = Duration::from_millis(1);
/// Devices that others were quicker to take before there is a pause.
const QUICK_ATTEMPTS: usize = 20;

/// What a disk is for, and so what is in it from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Use {
    /// What a container writes to its root filesystem: the directories of an overlay.
    Writable,
    /// `/tmp`: everybody may write to its root (mode 1777).
    Tmp,
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Self::Writable => "writable",
            Self::Tmp => "tmp",
        }
    }
}

/// Makes disks; keeps one formatted template for each cap and use.
#[derive(Debug)]
pub(super) struct Maker {
    dir: PathBuf,
    formatting: Mutex<()>,
}

impl Maker {
    /// Templates are kept in `dir`.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, formatting: Mutex::new(()) }
    }

    /// A mount of a new ext4 filesystem of `cap` (ext4 may round its inodes up), which can be attached
    /// once, in any mount namespace. The filesystem is gone when the descriptor is closed and it is
    /// attached nowhere.
    ///
    /// # Errors
    /// `InvalidArgument` for a cap out of bounds; `Host`, `DiskFull`.
    pub(super) fn make(&self, cap: Cap, purpose: Use) -> Result<OwnedFd> {
        let device = self.device(cap, purpose)?;
        mount(&device).map_err(|e| Error::host("cannot mount an empty disk", e))
    }

    /// The filesystem on a loop device, which is detached when the descriptor is closed and no mount
    /// uses it.
    fn device(&self, cap: Cap, purpose: Use) -> Result<OwnedFd> {
        check(cap)?;
        let template = self.template(Cap { bytes: cap.bytes / BLOCK * BLOCK, ..cap }, purpose)?;
        let file = unnamed_copy(&template, &self.dir)
            .map_err(|e| Error::host(format!("cannot copy an empty disk in {}", self.dir.display()), e))?;
        attached(&file)
    }

    fn template(&self, cap: Cap, purpose: Use) -> Result<File> {
        let name = format!("ext4-{}-{}-{}", cap.bytes, cap.inodes, purpose.name());
        let path = self.dir.join(format!("{name}.img"));
        if let Ok(file) = File::open(&path) {
            return Ok(file);
        }
        let _one_at_a_time = self.formatting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Ok(file) = File::open(&path) {
            return Ok(file);
        }
        let temporary = self.dir.join(format!(".{name}-{}.new", std::process::id()));
        let made = format(&temporary, cap).and_then(|file| furnished(&file, purpose)).and_then(|()| {
            fs::rename(&temporary, &path)
                .map_err(|e| Error::host(format!("cannot rename to {}", path.display()), e))
        });
        if made.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        made?;
        File::open(&path).map_err(|e| Error::host(format!("cannot open {}", path.display()), e))
    }
}

fn check(cap: Cap) -> Result<()> {
    let Cap { bytes, inodes } = cap;
    let refuse = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
    if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) {
        return refuse(format!("a disk of {bytes} bytes is out of bounds ({MIN_BYTES} to {MAX_BYTES})"));
    }
    // More than one for each block would leave no room for files.
    if !(MIN_INODES..=bytes / BLOCK).contains(&inodes) {
        let most = bytes / BLOCK;
        return refuse(format!("a disk with {inodes} inodes is out of bounds ({MIN_INODES} to {most})"));
    }
    Ok(())
}

fn format(path: &Path, cap: Cap) -> Result<File> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .and_then(|file| file.set_len(cap.bytes).map(|()| file))
        .map_err(|e| Error::host(format!("cannot make {}", path.display()), e))?;
    let output = Command::new("mkfs.ext4")
        // No journal: the disk dies with the container. uninit_bg with lazy tables: the inode
        // tables stay holes, so that a copy is a few hundred KiB.
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode,^metadata_csum,uninit_bg"])
        .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "-b", "4096"])
        .args(["-N", &cap.inodes.to_string()])
        .arg(path)
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| {
            Error::host("cannot run mkfs.ext4", e)
                .advise("install it (package e2fsprogs), or use `--writable tmpfs`")
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // mkfs has no exit status of its own for it.
        let errno = if said.contains("No space left on device") { Errno::NOSPC } else { Errno::IO };
        return Err(Error::host(
            format!("mkfs.ext4 failed on {} ({}): {}", path.display(), output.status, said.trim()),
            errno,
        ));
    }
    Ok(file)
}

/// Has what is in the filesystem from the start put into a template, once for all its copies, and on disk.
fn furnished(file: &File, purpose: Use) -> Result<()> {
    let device = attached(file)?;
    let mounted = mount(&device).map_err(|e| Error::host("cannot mount an empty disk", e))?;
    furnish(&mounted, purpose).map_err(|e| Error::host("cannot furnish an empty disk", e))?;
    // Unmounted with its last descriptor, of which a process that is being started may have a copy.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&mounted, ".", flags, Mode::empty())
        .and_then(|root| rustix::fs::syncfs(&root))
        .map_err(|e| Error::host("cannot write an empty disk", e))?;
    drop(mounted);
    drop(device);
    file.sync_all().map_err(|e| Error::host("cannot write an empty disk", e))
}

/// mkfs lives in sbin, which an unprivileged user's `PATH` may lack.
fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Copies only what is not a hole into a file without a name in `dir`.
fn unnamed_copy(template: &File, dir: &Path) -> io::Result<File> {
    let len = template.metadata()?.len();
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let copy = File::from(rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?);
    copy.set_len(len)?;
    let mut at = 0;
    while at < len {
        // The template may be in use by other threads: every copy is by explicit offset, and the
        // shared file position is only moved by these seeks, whose result is returned.
        let Some(start) = seek(template, SeekFrom::Data(at))? else { break };
        let end = seek(template, SeekFrom::Hole(start))?.unwrap_or(len);
        copy_range(template, &copy, start, end)?;
        at = end;
    }
    Ok(copy)
}

fn seek(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut write) = (start, start);
    while read < end {
        let wanted = usize::try_from(end - read).unwrap_or(usize::MAX);
        if rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), wanted)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

fn attached(file: &File) -> Result<OwnedFd> {
    attach(file, "skiff").map_err(|e| {
        Error::host("cannot attach a loop device", e)
            .advise("load the loop module with `modprobe loop`, or use `--writable tmpfs`")
    })
}

fn attach(file: &File, name: &str) -> io::Result<OwnedFd> {
    let control = rustix::fs::open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let config = LoopConfig::autoclear(file.as_fd(), name);
    let until = Instant::now() + FREE_DEVICE_PATIENCE;
    let mut attempts = 0;
    loop {
        let number = loop_get_free(&control)?;
        let missed = match take(number, &config)? {
            Ok(device) => return Ok(device),
            Err(missed) => missed,
        };
        if Instant::now() >= until {
            return Err(missed.into());
        }
        if missed != Errno::BUSY || attempts >= QUICK_ATTEMPTS {
            std::thread::sleep(FREE_DEVICE_PAUSE);
        }
        attempts += 1;
    }
}

/// Takes a device that was free; or why it cannot be had now, but may be later.
fn take(number: u32, config: &LoopConfig) -> io::Result<Result<OwnedFd, Errno>> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = match rustix::fs::open(format!("/dev/loop{number}"), flags, Mode::empty()) {
        Ok(device) => device,
        // The node of a new device comes a moment after its number.
        Err(e @ (Errno::NOENT | Errno::NXIO)) => return Ok(Err(e)),
        Err(e) => return Err(e.into()),
    };
    match loop_configure(&device, config) {
        Ok(()) => Ok(Ok(device)),
        // Another process took it first.
        Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(Err(Errno::BUSY)),
        Err(e) => {
            let _ = loop_clear(&device);
            Err(e)
        }
    }
}

fn mount(device: &OwnedFd) -> Result<OwnedFd, Errno> {
    let fs = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // The name that the descriptor was opened by, which is what `mount` will show inside.
    let descriptor = format!("/proc/self/fd/{}", device.as_raw_fd());
    let source = rustix::fs::readlinkat(rustix::fs::CWD, descriptor, Vec::new())?;
    fsconfig_set_string(&fs, "source", source)?;
    // The tables of unused inodes are zero already: they are holes.
    fsconfig_set_flag(&fs, "noinit_itable")?;
    // The disk dies with the container: waiting for the host's disk protects nothing.
    fsconfig_set_flag(&fs, "nobarrier")?;
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, INERT)
}

fn furnish(mounted: &OwnedFd, purpose: Use) -> Result<(), Errno> {
    // mkfs makes it; nobody expects it in `/tmp`.
    match rustix::fs::unlinkat(mounted, "lost+found", AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    match purpose {
        Use::Writable => [UPPER, WORK]
            .iter()
            .try_for_each(|name| rustix::fs::mkdirat(mounted, *name, Mode::from_raw_mode(0o755))),
        Use::Tmp => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::openat(mounted, ".", flags, Mode::empty())?;
            rustix::fs::fchmod(&root, Mode::from_raw_mode(0o1777))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_out_of_bounds_are_refused_by_value() {
        let maker = Maker::new(PathBuf::from("/nonexistent"));
        let refused = |cap: Cap, value: u64| {
            let error = maker.make(cap, Use::Tmp).expect_err("out of bounds");
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains(&value.to_string()), "{error}");
        };
        for bytes in [0, MIN_BYTES - 1, MAX_BYTES + 1] {
            refused(Cap::new(bytes, 0), bytes);
        }
        for inodes in [1, MIN_INODES - 1, (64 << 20) / BLOCK + 1] {
            refused(Cap { bytes: 64 << 20, inodes }, inodes);
        }
    }

    #[test]
    fn the_least_and_the_most_inodes_can_be_formatted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let maker = Maker::new(dir.path().to_owned());
        for bytes in [MIN_BYTES, 512 << 20] {
            for inodes in [MIN_INODES, bytes / BLOCK] {
                maker.template(Cap { bytes, inodes }, Use::Tmp).expect("mkfs.ext4 takes it");
            }
        }
    }

    #[test]
    fn copies_are_sparse_and_equal() {
        let dir = tempfile::tempdir().expect("tempdir");
        let maker = Maker::new(dir.path().to_owned());
        let template = maker.template(Cap::new(64 << 20, 0), Use::Writable).expect("mkfs.ext4 runs");
        let copy = unnamed_copy(&template, dir.path()).expect("copied");
        let (a, b) = (template.metadata().expect("stat"), copy.metadata().expect("stat"));
        assert_eq!(a.len(), b.len());
        use std::os::unix::fs::{FileExt, MetadataExt};
        assert!(b.blocks() * 512 < 1 << 20, "{} blocks", b.blocks());
        let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        template.read_exact_at(&mut left, 0).expect("read");
        copy.read_exact_at(&mut right, 0).expect("read");
        assert!(left == right);
    }
}
