//! The directory of a run's capped directories, and the removal of what dead runs left.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, flock, renameat};
use rustix::io::Errno;

use super::probe::probe;
use super::remove::{names, open_dir, remove_container};
use crate::rundir::make_private;
use crate::{Error, Result};

/// Below the state directory.
const PARENT: &str = "writable";

/// `STATE_DIR/writable/RUN`, held against those who remove what dead runs left.
#[derive(Debug)]
pub(crate) struct Area {
    path: PathBuf,
    dir: OwnedFd,
    taken: u64,
}

impl AsRawFd for Area {
    fn as_raw_fd(&self) -> i32 {
        self.dir.as_raw_fd()
    }
}

impl Area {
    /// Makes the area of a run, if project quotas work there; `link` will lead to it. The area of a
    /// run that has one already is the same.
    ///
    /// # Errors
    /// Why they do not, or `Host`.
    pub(crate) fn create(state_dir: &Path, run: &str, link: &Path) -> Result<Self> {
        // Without making anything, first: most hosts have no quotas.
        super::probe::look(state_dir)?;
        let parent = state_dir.join(PARENT);
        make_private(&parent)?;
        let path = parent.join(run);
        let failed = |e: io::Error| Error::host(format!("cannot make {}", path.display()), e);
        let made = || -> io::Result<OwnedFd> {
            let _gate = locked(&parent, FlockOperation::LockExclusive)?;
            there(fs::DirBuilder::new().mode(0o700).create(&path))?;
            locked(&path, FlockOperation::LockShared)
        };
        let area = Self { dir: made().map_err(failed)?, path: path.clone(), taken: 0 };
        if let Err(error) = probe(&area.path) {
            // If something is in it, it goes with the run.
            let _ = fs::remove_dir(&area.path);
            return Err(error);
        }
        std::path::absolute(&path).and_then(|path| there(symlink(path, link))).map_err(failed)?;
        Ok(area)
    }

    /// Holds the area of a run that has one.
    pub(crate) fn hold(link: &Path) -> Option<Self> {
        let path = fs::read_link(link).ok()?;
        let dir = locked(&path, FlockOperation::NonBlockingLockShared).ok()?;
        Some(Self { path, dir, taken: 0 })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the directories of a container out of the way of another one of its name; gives what
    /// is to be removed, if there is something.
    pub(crate) fn take(&mut self, container: &str) -> Option<String> {
        self.taken += 1;
        // No container is named so.
        let name = format!("@{}", self.taken);
        renameat(&self.dir, container, &self.dir, &name).is_ok().then_some(name)
    }

    /// Removes what [`Area::take`] gave.
    pub(crate) fn remove_taken(&self, name: &str) -> io::Result<()> {
        remove_container(self.dir.as_fd(), OsStr::new(name))
    }
}

/// Removes the area that `link` leads to with all in it, if there is one.
pub(crate) fn remove_area(link: &Path) -> Result<()> {
    match fs::read_link(link) {
        Ok(area) => remove_dir(&area),
        Err(_) => Ok(()),
    }
}

/// Removes all that is in the area that `link` leads to, if there is one.
pub(crate) fn clear_area(link: &Path) -> Result<()> {
    match fs::read_link(link) {
        Ok(area) => clear_dir(&area),
        Err(_) => Ok(()),
    }
}

/// Removes what dead runs left below the state directory.
pub(crate) fn sweep(state_dir: &Path) -> Result<()> {
    let parent = state_dir.join(PARENT);
    let failed = |e: io::Error| Error::host(format!("cannot look into {}", parent.display()), e);
    let gate = match locked(&parent, FlockOperation::LockExclusive) {
        Ok(gate) => gate,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let all = names(gate.as_fd()).map_err(failed)?;
    let areas = all.into_iter().map(|name| parent.join(name));
    let hold =
        |path: PathBuf| locked(&path, FlockOperation::NonBlockingLockExclusive).ok().map(|lock| (path, lock));
    // The locks keep another start from removing the same.
    let dead: Vec<_> = areas.filter_map(hold).collect();
    drop(gate);
    let mut first = Ok(());
    for (path, _lock) in dead {
        first = first.and(remove_dir(&path));
    }
    first
}

/// A daemon that takes over a run finds what the one before it made.
fn there(made: io::Result<()>) -> io::Result<()> {
    match made {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

fn locked(dir: &Path, how: FlockOperation) -> io::Result<OwnedFd> {
    let dir = open_dir(CWD, dir.as_os_str())?;
    flock(&dir, how)?;
    Ok(dir)
}

fn remove_dir(path: &Path) -> Result<()> {
    clear_dir(path)?;
    match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::host(format!("cannot remove {}", path.display()), e)),
    }
}

fn clear_dir(path: &Path) -> Result<()> {
    let failed = |e: io::Error| Error::host(format!("cannot remove what is in {}", path.display()), e);
    let dir = match open_dir(CWD, path.as_os_str()) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let mut first = Ok(());
    for container in names(dir.as_fd()).map_err(failed)? {
        first = first.and(remove_container(dir.as_fd(), &container));
    }
    first.map_err(failed)
}
