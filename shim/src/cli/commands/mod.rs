//! What each command does.

mod client;
pub(crate) mod doctor;
pub(crate) mod documents;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod gc;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod logs;
pub(crate) mod node;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod rmi;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod stop;
pub(crate) mod top;
pub(crate) mod trace;
pub(crate) mod usage;
pub(crate) mod verify;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skiff::{RuntimeError, RuntimeErrorKind, Store};

use super::args::Global;
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

/// Opens the store below the state directory. Blocks for some file operations.
fn open_store(global: &Global) -> Result<Arc<Store>, Failure> {
    require_root()?;
    let state_dir = absolute(&global.state_dir)?;
    Ok(Store::open(&state_dir).map_err(skiff::Error::from)?)
}

/// As [`open_store`], for a look that removes nothing.
fn open_store_as_it_is(global: &Global) -> Result<Arc<Store>, Failure> {
    require_root()?;
    let state_dir = absolute(&global.state_dir)?;
    Ok(Store::open_as_it_is(&state_dir).map_err(skiff::Error::from)?)
}

/// A variable of this process.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// A path that means the same wherever a process stands.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| Failure::usage(format!("the path `{}`: {e}", path.display())))
}

/// Columns that are as wide as their widest text, two spaces apart.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let row = |name: &str, last: &str| vec![name.to_owned(), "x".to_owned(), last.to_owned()];
        assert_eq!(table(&[row("long name", ""), row("a", "in use")]), "long name  x\na          x  in use");
    }
}
