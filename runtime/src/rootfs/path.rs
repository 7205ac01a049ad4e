//! Looking into a root filesystem without trusting it: every path is resolved by the kernel with
//! the root filesystem as its root (`openat2(2)`, `RESOLVE_IN_ROOT`), so no link leads out.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, open, openat2};
use rustix::io::Errno;
use rustix::mount::mount_bind;

use crate::{Error, ErrorKind, Result};

/// Bytes of `/etc/passwd` or `/etc/group` that are read; more lines count as not there.
const MAX_DATABASE_BYTES: u64 = 4 << 20;
/// Symbolic links that are followed by the kernel are bounded by it (40); components by this.
const MAX_COMPONENTS: usize = 256;

/// The directories of the runtime itself: a link there would move its mounts elsewhere in the
/// root filesystem, or out of it (CVE-2026-41579, CVE-2025-54867).
const RUNTIME_DIRS: [&str; 3] = ["dev", "proc", "sys"];

/// An open root filesystem.
pub(crate) struct Root(OwnedFd);

impl Root {
    /// Opens it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map(Self)
            .map_err(|e| Error::host(format!("cannot open the root filesystem {}", path.display()), e))
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
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
            let found = match rustix::fs::openat(&self.0, name, flags, Mode::empty()) {
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

    /// The lines of a small text database, as `/etc/passwd`; empty if there is none. Only a
    /// regular file is read, and only its first 4 MiB.
    pub(crate) fn database(&self, path: &str) -> Vec<String> {
        let Ok(file) = self.resolve(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK) else {
            return Vec::new();
        };
        if file_type(file.as_fd()).ok() != Some(FileType::RegularFile) {
            return Vec::new();
        }
        lines(File::from(file).take(MAX_DATABASE_BYTES)).unwrap_or_default()
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
        match parts.first() {
            Some(&"proc") => {
                return Err(refuse("it is in /proc, where the runtime's descriptors are".into()));
            }
            // Made by the runtime after this; entering them is checked by the kernel then.
            Some(&("dev" | "sys")) => return Ok(()),
            _ => {}
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
        rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))
    }

    fn step(&self, parent: &OwnedFd, path: &str, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.resolve(Path::new(path), flags) {
            Err(Errno::NOENT) => match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => self.resolve(Path::new(path), flags),
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

fn lines(reader: impl Read) -> io::Result<Vec<String>> {
    let mut reader = BufReader::new(reader);
    let mut all = Vec::new();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        all.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
    }
    Ok(all)
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
        assert!(root.database("/etc/passwd").is_empty());
        std::fs::create_dir(dir.path().join("etc")).expect("mkdir");
        symlink("/etc/real", dir.path().join("etc/passwd")).expect("symlink");
        std::fs::write(dir.path().join("etc/real"), "root:x:0:0::/root:/bin/sh\n").expect("write");
        assert_eq!(root.database("/etc/passwd"), ["root:x:0:0::/root:/bin/sh"]);
        symlink("/dev/zero", dir.path().join("etc/group")).expect("symlink");
        assert!(root.database("/etc/group").is_empty());
    }
}
