//! What each command does.

pub(crate) mod doctor;
pub(crate) mod documents;
pub(crate) mod pull;
pub(crate) mod run;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use skiff::{RuntimeError, RuntimeErrorKind};

use super::failure::Failure;

/// Refuses to go on without root.
fn require_root() -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let error = RuntimeError::new(
        RuntimeErrorKind::NotRoot,
        "skiff needs root: it makes namespaces, cgroups and mounts",
    )
    .advise("run it as root, for example by sudo");
    Err(skiff::Error::from(error).into())
}

/// A variable of this process.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// A path that means the same wherever a process stands.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| Failure::usage(format!("the path `{}`: {e}", path.display())))
}
