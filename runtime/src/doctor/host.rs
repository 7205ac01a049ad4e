//! How the checks see the host.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Most bytes that are read of one file of `/proc` or `/sys`. The longest is `mountinfo`, some
/// 150 bytes for each mount.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Where system programs are that the `PATH` of an ordinary user does not name.
const SYSTEM_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The host, or a directory that looks like one.
pub(super) struct Host {
    root: PathBuf,
    /// The directories of `PATH`.
    path_dirs: Vec<PathBuf>,
    /// Directory of the running program.
    pub(super) exe_dir: Option<PathBuf>,
    /// Whether this process is root's.
    pub(super) is_root: bool,
}

impl Host {
    /// This host, its `PATH` and its running program.
    pub(super) fn real() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let exe = std::env::current_exe().ok();
        Self {
            root: "/".into(),
            path_dirs: std::env::split_paths(&path).collect(),
            exe_dir: exe.and_then(|exe| exe.parent().map(Path::to_owned)),
            is_root: rustix::process::geteuid().is_root(),
        }
    }

    /// A host below `root`, whose programs are in `root/bin`.
    #[cfg(test)]
    pub(super) fn below(root: &Path) -> Self {
        Self { root: root.to_owned(), path_dirs: vec![root.join("bin")], exe_dir: None, is_root: true }
    }

    /// The place of an absolute path.
    pub(super) fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// The text of a file of `/proc` or `/sys`, without the line end.
    ///
    /// # Errors
    /// As `open(2)` and `read(2)`; `InvalidData` when it is not UTF-8 or too long.
    pub(super) fn read(&self, absolute: &str) -> io::Result<String> {
        let mut text = String::new();
        let mut file = File::open(self.path(absolute))?.take(FILE_BYTES_MAX + 1);
        file.read_to_string(&mut text)?;
        if file.limit() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too long"));
        }
        Ok(text.trim_end().to_owned())
    }

    /// The directories of `PATH`, in order.
    pub(super) fn path_dirs(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.path_dirs.iter().cloned()
    }

    /// An executable file of that name in `PATH` or the directories of system programs.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        let system = SYSTEM_DIRS.map(|dir| self.path(dir));
        self.path_dirs().chain(system).map(|dir| dir.join(name)).find(|path| is_executable(path))
    }
}

/// Whether `path` is a file that this process may execute.
pub(super) fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}
