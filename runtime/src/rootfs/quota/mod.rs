//! Writable layers capped by project quotas: `STATE_DIR/writable/RUN/CONTAINER/{root,tmp}`, each a
//! project of its own.
//!
//! The process that starts a container makes its directories; the keeper removes them when the
//! container has ended, and whoever removes a run removes what is left of it. Daemon and keeper hold
//! a shared lock on `STATE_DIR/writable/RUN`; one that nobody holds is a dead run's, and goes at the
//! next start. So a run is found by its state directory alone, also after a reboot.

mod area;
mod probe;
mod project;
mod remove;
#[cfg(test)]
mod tests;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::Cap;
use crate::{Error, ErrorKind, Result};

pub(crate) use area::{Area, clear_area, remove_area, sweep};
pub(crate) use probe::probe;
use project::Quotas;

/// Smallest cap: directories of the overlay itself take some blocks.
const MIN_BYTES: u64 = 1 << 20;

/// Makes an empty directory for a container of a run, capped.
///
/// # Errors
/// `InvalidArgument` for a cap out of bounds; `Host`, `DiskFull`.
pub(crate) fn make(area: &Path, container: &str, what: &str, cap: Cap) -> Result<PathBuf> {
    if cap.bytes < MIN_BYTES {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("a project of {} bytes is out of bounds (at least {MIN_BYTES})", cap.bytes),
        ));
    }
    claim_dir(&area.join(container), what, cap)
}

fn claim_dir(container: &Path, what: &str, cap: Cap) -> Result<PathBuf> {
    let dir = container.join(what);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(container)
        .and_then(|()| fs::DirBuilder::new().mode(0o700).create(&dir))
        .map_err(|e| Error::host(format!("cannot make the directory {}", dir.display()), e))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&dir, flags, Mode::empty())
        .map_err(|e| Error::host(format!("cannot open {}", dir.display()), e))?;
    let quotas = Quotas::of(opened.as_fd())
        .map_err(|e| Error::host(format!("cannot use project quotas in {}", dir.display()), e))?;
    quotas.claim(opened.as_fd(), cap)?;
    Ok(dir)
}
