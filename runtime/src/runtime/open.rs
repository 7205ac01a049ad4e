//! Opening a run: what a host must have, the store, and a keeper, new or found.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{RuntimeOptions, panicked};
use crate::cgroup::Hierarchy;
use crate::image::Store;
use crate::keeper::Keeper;
use crate::network::Namespaces;
use crate::rootfs::quota::{Area, sweep};
use crate::rootfs::{Choice, Disks};
use crate::rundir::{RunDir, make_private};
use crate::sandbox::apparmor;
use crate::{Error, ErrorKind, NetworkOptions, Result};

pub(super) fn require_root() -> Result<()> {
    let admin =
        caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap_or(false);
    if rustix::process::geteuid().is_root() && admin {
        return Ok(());
    }
    if rustix::process::geteuid().is_root() {
        return Err(Error::new(
            ErrorKind::NotRoot,
            "this root has no CAP_SYS_ADMIN, so it cannot make namespaces",
        )
        .advise("run Skiff on the host and not inside a container, or give the container --privileged"));
    }
    let uid = rustix::process::geteuid().as_raw();
    Err(Error::new(
        ErrorKind::NotRoot,
        format!("containers can be started by root only, and this is uid {uid}"),
    )
    .advise("run it with sudo"))
}

/// A run with its keeper.
pub(super) struct Opened {
    pub(super) keeper: Keeper,
    pub(super) run: RunDir,
    pub(super) lock: OwnedFd,
    pub(super) area: Option<Area>,
    pub(super) choice: Choice,
}

/// Makes a run with its keeper, or comes to those that live.
pub(super) async fn open_run(options: &RuntimeOptions, hierarchy: &Hierarchy) -> Result<Opened> {
    let binary = options.keeper.as_deref();
    let until = Instant::now() + LIVE_PATIENCE;
    loop {
        let (given, hierarchy) = (options.clone(), hierarchy.clone());
        let found = tokio::task::spawn_blocking(move || find_run(&given, &hierarchy));
        let (run, lock, area, choice) = found.await.map_err(panicked)??;
        if let Some(lock) = lock {
            return match Keeper::spawn(binary, &run, &lock, options.lasting.is_some()).await {
                Ok(keeper) => Ok(Opened { keeper, run, lock, area, choice }),
                Err(error) => {
                    // The first failure is the one to tell.
                    let _ = tokio::task::spawn_blocking(move || run.remove()).await;
                    Err(error)
                }
            };
        }
        if let Some((keeper, lock)) = Keeper::attach(&run).await? {
            return Ok(Opened { keeper, run, lock, area, choice });
        }
        // Its keeper is only just being started, or has died and its daemon has not.
        if Instant::now() >= until {
            return Err(Error::new(
                ErrorKind::KeeperLost,
                format!("the run {} is in use, but its keeper does not listen", run.path().display()),
            )
            .advise(
                "its keeper has died: end the process that holds the file `lock` in it, then start again",
            ));
        }
        tokio::time::sleep(LIVE_INTERVAL).await;
    }
}

/// Of a new run, or of one that lives, whose containers may have a way out.
pub(super) fn namespaces(run: &str, dir: &Path, options: NetworkOptions) -> Result<Namespaces> {
    let namespaces = Namespaces::new(run, dir, options)?;
    if let Err(error) = namespaces.resume() {
        tracing::warn!(error = error.chain(), "the way out of adopted containers is not looked after");
    }
    Ok(namespaces)
}

type Found = (RunDir, Option<OwnedFd>, Option<Area>, Choice);

/// The run, with its lock if it is a new one, and where its directories with quotas are.
fn find_run(options: &RuntimeOptions, hierarchy: &Hierarchy) -> Result<Found> {
    let hierarchy = crate::cgroup::settle(hierarchy, &options.cgroup)?;
    let (run, lock) = match &options.lasting {
        None => RunDir::create(&options.run_dir, &hierarchy).map(|(run, lock)| (run, Some(lock)))?,
        Some(name) => RunDir::lasting(&options.run_dir, name, &hierarchy)?,
    };
    if let Err(error) = sweep(&options.state_dir) {
        // As for a dead run: the next start tries again.
        tracing::warn!(error = error.chain(), "what a dead run wrote could not be removed");
    }
    // Before the keeper is there, which looks for it.
    let (area, quota) = match Area::create(&options.state_dir, run.name(), &run.writable_link()) {
        Ok(area) => (Some(area), Ok(())),
        Err(error) => (None, Err(error)),
    };
    Ok((run, lock, area, Choice::new(quota)))
}

/// How long a keeper that is being started may take to listen, and how often it is looked.
const LIVE_PATIENCE: Duration = Duration::from_secs(10);
const LIVE_INTERVAL: Duration = Duration::from_millis(10);

/// Overlayfs reads a backslash in a path as an escape.
fn refuse_backslash(dir: &Path) -> Result<()> {
    if dir.as_os_str().as_encoded_bytes().contains(&b'\\') {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("the directory {} has a backslash", dir.display()),
        )
        .advise("choose a path without backslashes"));
    }
    Ok(())
}

/// What does not depend on a run: the store, the disks, the AppArmor profile.
pub(super) type Ground = (Arc<Store>, Arc<Disks>, Option<String>);

pub(super) fn open_blocking(state_dir: &Path, run_dir: &Path) -> Result<Ground> {
    refuse_backslash(state_dir)?;
    refuse_backslash(run_dir)?;
    make_private(state_dir)?;
    let store = Store::open(state_dir)?;
    let disks_dir = state_dir.join("disks");
    make_private(&disks_dir)?;
    Ok((store, Arc::new(Disks::new(disks_dir)), profile()))
}

/// A host where it cannot be had is no worse than one without AppArmor.
fn profile() -> Option<String> {
    apparmor::prepare().unwrap_or_else(|error| {
        tracing::warn!(error = error.chain(), "containers run without an AppArmor profile");
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_overlayfs_cannot_name_are_refused() {
        refuse_backslash(Path::new("/var/lib/skiff")).expect("an ordinary path");
        let error = refuse_backslash(Path::new("/var/a\\b")).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("/var/a\\b"), "{error}");
    }
}
