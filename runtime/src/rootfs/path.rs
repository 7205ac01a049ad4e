//! Looking into a root filesystem without trusting it: every path is resolved by the kernel with
//! the root filesystem as its root (`openat2(2)`, `RESOLVE_IN_ROOT`), so no link leads out.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fstat, mkdirat, open, openat2};
use rustix::io::Errno;
use rustix::mount::mount_bind;

use crate::{Error, ErrorKind, Result};

/// Bytes of `/etc/passwd` or `/etc/group` that are read; more lines count as not there.
const MAX_DATABASE_BYTES: u64 = 4 << 20;
/// Symbolic links that are followed by the kernel are bounded by it (40); components by this.
const MAX_COMPONENTS: usize = 256;

/// As the kernel bounds them.
const MAX_LINKS: usize = 40;

/// The directories of the runtime itself: a link there would move its mounts elsewhere in the
/// root filesystem, or out of it (CVE-2026-41579, CVE-2025-54867).
const RUNTIME_DIRS: [&str; 3] = ["dev", "proc", "sys"];

/// Those of `/dev` in which a program may have something to do.
const DEV_DIRS: [&str; 2] = ["dev/shm", "dev/mqueue"];

/// An open root filesystem.
pub(crate) struct Root {
    dir: OwnedFd,
    /// The host's id of whom what is made in it belongs to; `None` is this process.
    owner: Option<u32>,
}

impl Root {
    /// Opens it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map(|dir| Self { dir, owner: None })
            .map_err(|e| Error::host(format!("cannot open the root filesystem {}", path.display()), e))
    }

    /// What is made in it belongs to this id of the host.
    pub(crate) fn owned_by(self, id: u32) -> Self {
        Self { owner: Some(id), ..self }
    }

    fn give(&self, made: &OwnedFd) -> Result<(), Errno> {
        let Some(id) = self.owner else { return Ok(()) };
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        rustix::fs::chownat(made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // A rename raced with the walk.
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// Refuses an image in which a directory of the runtime is something else than a directory.
    pub(crate) fn check_runtime_dirs(&self) -> Result<()> {
        for name in RUNTIME_DIRS {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                other => other.map_err(|e| Error::host(format!("cannot look at /{name} of the image"), e))?,
            };
            if file_type(found.as_fd())? != FileType::Directory {
                return Err(Error::new(
                    ErrorKind::InvalidImage,
                    format!("/{name} in the image is not a directory; it must be one, or not exist"),
                )
                .advise("rebuild the image without replacing that path"));
            }
        }
        Ok(())
    }

    /// Attaches a mount to a directory of the runtime itself, made if missing.
    pub(super) fn attach(&self, mounted: &OwnedFd, name: &str) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                mkdirat(&self.dir, name, Mode::from_raw_mode(0o755))?;
                let made = rustix::fs::openat(&self.dir, name, flags, Mode::empty())?;
                self.give(&made)?;
                made
            }
            other => other?,
        };
        super::system::attach(mounted, &target)
    }

    /// Where a path leads when every link on it is followed inside: relative to the root, whether
    /// it exists or not. The tree must not be changing.
    ///
    /// # Errors
    /// `LOOP` after too many links; `XDEV` when it leads through a directory of the runtime; else as `readlinkat(2)`.
    pub(crate) fn destination(&self, path: &Path) -> Result<PathBuf, Errno> {
        let mut waiting = reversed_parts(path);
        let mut at = PathBuf::new();
        let mut links = 0;
        while let Some(part) = waiting.pop() {
            if part == ".." {
                at.pop();
                continue;
            }
            at.push(&part);
            if RUNTIME_DIRS.iter().any(|dir| at == Path::new(dir)) {
                // What is below is not the image's: what leads out again cannot be told from here.
                if waiting.iter().any(|part| part == "..") {
                    return Err(Errno::XDEV);
                }
                at.extend(waiting.iter().rev());
                return Ok(at);
            }
            // Its parents are no links: they have been followed.
            match rustix::fs::readlinkat(&self.dir, &at, Vec::new()) {
                Ok(target) => {
                    links += 1;
                    if links > MAX_LINKS || waiting.len() > MAX_COMPONENTS * MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        at.clear();
                    } else {
                        at.pop();
                    }
                    waiting.extend(reversed_parts(&target));
                }
                Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(at)
    }

    /// Refuses an image in which a path that the runtime mounts on leads into a directory of the
    /// runtime itself: what is mounted there would hide or replace a part of it (CVE-2023-27561).
    pub(crate) fn check_mount_points(&self, paths: &[&str]) -> Result<()> {
        for path in paths {
            let refuse = |why: String| {
                Error::new(ErrorKind::InvalidImage, format!("{path} in the image {why}"))
                    .advise("rebuild the image without that symbolic link")
            };
            let leads = self
                .destination(Path::new(path))
                .map_err(|e| refuse(format!("cannot be followed: {}", io::Error::from(e))))?;
            if leads.as_os_str().is_empty() || runtime_dir(&leads).is_some() {
                return Err(refuse(format!("leads to /{}", leads.display())));
            }
        }
        Ok(())
    }

    /// A small text database, as `/etc/passwd`; empty if there is none. Only a regular file is
    /// read, and only its first 4 MiB.
    pub(crate) fn database(&self, path: &str) -> String {
        let Ok(file) = self.resolve(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK) else {
            return String::new();
        };
        if file_type(file.as_fd()).ok() != Some(FileType::RegularFile) {
            return String::new();
        }
        let mut bytes = Vec::new();
        // What could be read before an error is as good as a shorter file.
        let _ = File::from(file).take(MAX_DATABASE_BYTES).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Makes sure that a working directory is there, making what is missing of it (owned by root,
    /// mode 0755) as Docker does.
    pub(crate) fn ensure_dir(&self, path: &str) -> Result<()> {
        let refuse = |why: String| {
            Error::new(ErrorKind::InvalidWorkingDirectory, format!("working directory '{path}': {why}"))
                .advise("set WORKDIR in the image, or --workdir, to a directory")
        };
        let parts: Vec<_> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
        if parts.len() > MAX_COMPONENTS || parts.contains(&"..") {
            return Err(refuse("it has '..' or too many components".into()));
        }
        let leads = self.destination(Path::new(path)).map_err(|e| refuse(io::Error::from(e).to_string()))?;
        match runtime_dir(&leads) {
            Some("proc") => {
                return Err(refuse("it is in /proc, where the runtime's descriptors are".into()));
            }
            // Links to /proc are there (/dev/fd).
            Some("dev") if !DEV_DIRS.iter().any(|dir| leads.starts_with(dir)) => {
                return Err(refuse("of /dev, only /dev/shm and /dev/mqueue can be one".into()));
            }
            // Made by the runtime after this; entering them is checked by the kernel then.
            Some(_) => return Ok(()),
            None => {}
        }
        let mut so_far = String::from("/");
        let mut parent = self
            .resolve(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|e| refuse(e.to_string()))?;
        for part in parts {
            so_far.push_str(part);
            parent = self.step(&parent, &so_far, part).map_err(|e| match e {
                Errno::NOTDIR => refuse(format!("'{so_far}' is a file, not a directory")),
                e => refuse(format!("'{so_far}': {}", io::Error::from(e))),
            })?;
            so_far.push('/');
        }
        Ok(())
    }

    /// Binds a directory of the host on a directory of the image, made if missing.
    pub(crate) fn bind_dir(&self, source: &Path, path: &str) -> Result<()> {
        self.ensure_dir(path)?;
        let target = self
            .resolve(Path::new(path), OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|e| Error::host(format!("cannot open {path} of the image"), e))?;
        bind(source, &target, path)
    }

    /// Binds a file of the host on a file of the image, made if missing. What stands there and is
    /// no file (or a link that leads nowhere) is replaced in the writable layer.
    pub(crate) fn bind_file(&self, source: &Path, dir: &str, name: &str) -> Result<()> {
        let path = format!("{dir}/{name}");
        self.ensure_dir(dir)?;
        let regular = |fd: &OwnedFd| file_type(fd.as_fd()).ok() == Some(FileType::RegularFile);
        let target = match self.resolve(Path::new(&path), OFlags::PATH) {
            Ok(found) if regular(&found) => found,
            _ => self
                .replace_by_file(dir, name)
                .map_err(|e| Error::host(format!("cannot make {path} in the root filesystem"), e))?,
        };
        bind(source, &target, &path)
    }

    fn replace_by_file(&self, dir: &str, name: &str) -> Result<OwnedFd, Errno> {
        let parent = self.resolve(Path::new(dir), OFlags::PATH | OFlags::DIRECTORY)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?,
            Err(e) => return Err(e),
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
        self.give(&made).map(|()| made)
    }

    fn step(&self, parent: &OwnedFd, path: &str, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.resolve(Path::new(path), flags) {
            Err(Errno::NOENT) => match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    let made = self.resolve(Path::new(path), flags)?;
                    self.give(&made).map(|()| made)
                }
                Err(Errno::EXIST) => self.resolve(Path::new(path), flags),
                Err(e) => Err(e),
            },
            other => other,
        }
    }
}

/// Binds on an open target, so that nothing can be put in its place meanwhile.
fn bind(source: &Path, target: &OwnedFd, shown: &str) -> Result<()> {
    mount_bind(source, format!("/proc/self/fd/{}", target.as_raw_fd()))
        .map_err(|e| Error::host(format!("cannot mount on {shown} of the image"), e))
}

fn file_type(fd: BorrowedFd<'_>) -> Result<FileType> {
    let stat = fstat(fd).map_err(|e| Error::host("cannot stat a file of the image", e))?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// The components of a path, the first at the end; those that mean nothing left out.
fn reversed_parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    parts
        .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir))
        .map(|c| c.as_os_str().to_owned())
        .collect()
}

/// The directory of the runtime that a path below the root lies in.
fn runtime_dir(path: &Path) -> Option<&'static str> {
    RUNTIME_DIRS.into_iter().find(|dir| path.starts_with(dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = Root::open(dir.path()).expect("open");
        (dir, root)
    }

    #[test]
    fn working_directory_is_made_and_links_stay_inside() {
        let (dir, root) = root();
        let outside = tempfile::tempdir().expect("tempdir");
        symlink(outside.path(), dir.path().join("out")).expect("symlink");
        root.ensure_dir("/a/b/../c").expect_err("dots");
        root.ensure_dir("/a/b/c").expect("made");
        assert!(dir.path().join("a/b/c").is_dir());
        root.ensure_dir("/out/x").expect_err("the link's target does not exist inside");
        assert!(!outside.path().join("x").exists());
    }

    #[test]
    fn working_directory_that_is_a_file_or_in_proc_is_refused() {
        let (dir, root) = root();
        std::fs::write(dir.path().join("file"), "x").expect("write");
        for path in ["/file", "/file/below", "/proc/self/fd/7", "//proc/self/fd/7", "/./proc/1/cwd"] {
            let error = root.ensure_dir(path).expect_err(path);
            assert_eq!(error.kind(), ErrorKind::InvalidWorkingDirectory, "{error}");
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn runtime_directories_may_not_be_links() {
        let (dir, root) = root();
        root.check_runtime_dirs().expect("none exists");
        symlink("/tmp", dir.path().join("dev")).expect("symlink");
        let error = root.check_runtime_dirs().expect_err("link");
        assert_eq!(error.kind(), ErrorKind::InvalidImage);
        assert!(error.to_string().contains("/dev"), "{error}");
    }

    #[test]
    fn databases_are_bounded_and_regular() {
        let (dir, root) = root();
        assert_eq!(root.database("/etc/passwd"), "");
        std::fs::create_dir(dir.path().join("etc")).expect("mkdir");
        symlink("/etc/real", dir.path().join("etc/passwd")).expect("symlink");
        std::fs::write(dir.path().join("etc/real"), "root:x:0:0::/root:/bin/sh\n").expect("write");
        assert_eq!(root.database("/etc/passwd"), "root:x:0:0::/root:/bin/sh\n");
        symlink("/dev/zero", dir.path().join("etc/group")).expect("symlink");
        assert_eq!(root.database("/etc/group"), "");
        std::fs::write(dir.path().join("etc/real"), "a\n".repeat(8 << 20)).expect("write");
        assert_eq!(root.database("/etc/passwd").len() as u64, MAX_DATABASE_BYTES);
    }

    #[test]
    fn mount_points_that_lead_into_the_runtimes_directories_are_refused() {
        for (link, target) in [
            ("tmp", "/proc"),
            ("tmp", "/"),
            ("tmp", "proc/self"),
            ("tmp", "../../sys/fs/cgroup"),
            ("tmp", "/a/../dev"),
            ("tmp", "tmp"),
            ("etc", "/dev"),
            ("etc", "a/b/../../proc"),
        ] {
            let (dir, root) = root();
            symlink("/", dir.path().join("a")).expect("symlink");
            symlink(target, dir.path().join(link)).expect("symlink");
            let error = root.check_mount_points(&["/tmp", "/etc/hosts"]).expect_err(target);
            assert_eq!(error.kind(), ErrorKind::InvalidImage);
            assert!(error.to_string().contains(link), "{error}");
        }
        let (dir, root) = root();
        symlink("var/tmp", dir.path().join("tmp")).expect("symlink");
        symlink("/run/resolv.conf", dir.path().join("resolv.conf")).expect("symlink");
        root.check_mount_points(&["/tmp", "/resolv.conf", "/none/such"]).expect("links inside");
    }

    #[test]
    fn working_directory_that_a_link_leads_into_proc_is_refused() {
        let (dir, root) = root();
        std::fs::create_dir_all(dir.path().join("proc/self/fd/7")).expect("mkdir");
        symlink("/proc/self/fd", dir.path().join("a")).expect("symlink");
        symlink("a/7", dir.path().join("b")).expect("symlink");
        symlink("/proc/self/fd/7/../../../etc", dir.path().join("c")).expect("symlink");
        for path in ["/a/7", "/a", "/b", "/b/x", "/c", "/dev/fd/7", "/dev"] {
            let error = root.ensure_dir(path).expect_err(path);
            assert_eq!(error.kind(), ErrorKind::InvalidWorkingDirectory, "{error}");
        }
    }
}
