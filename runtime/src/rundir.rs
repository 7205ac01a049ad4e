//! The directory of one run below the run directory, and everything that belongs to the run
//! outside of memory: `RUN_DIR/RUN/{lock,awake,mnt,keeper.sock,sockets,cgroup}` and the cgroup `BASE/skiff/RUN`.
//!
//! Daemon and keeper hold one lock on it together. When nobody holds it, both are dead, and the
//! next start removes the run.
//!
//! A lasting run has a name: the link `RUN_DIR/NAME` leads to the directory. The directory itself and
//! the cgroup have a name of their own also then, so that nodes with one name in different run
//! directories do not meet, and a new keeper need not wait for what a dead one's processes still do.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::awake::Awake;
use crate::cgroup::{Group, Hierarchy, relative};
use crate::keeper::SOCKET;
use crate::network::egress;
use crate::rootfs::quota::{clear_area, remove_area};
use crate::{Error, ErrorKind, Result};

const LOCK: &str = "lock";
const MOUNT_POINT: &str = "mnt";
/// Where who freezes containers and who runs commands in them see each other.
const AWAKE: &str = "awake";
/// Paths of sockets elsewhere that belong to the run, one per line.
const SOCKETS: &str = "sockets";
/// Leads to the run's directories with quotas, where it has them.
const WRITABLE: &str = "writable";
/// Where the link of a lasting run is made, before it gets its place.
const NEW_LINK: &str = "link";
/// Longest name of a lasting run.
const MAX_NAME: usize = 32;
/// Below which cgroup those of the run are, where that is not the root.
const BASE: &str = "cgroup";
/// Longest path that the kernel takes (`PATH_MAX`).
const MAX_BASE_BYTES: u64 = 4096;
const MAX_SOCKETS_BYTES: u64 = 1 << 20;
/// How long killed processes may take to leave.
const PATIENCE: Duration = Duration::from_secs(10);
const NAME_ATTEMPTS: usize = 16;

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    run: String,
    dir: PathBuf,
    hierarchy: Hierarchy,
}

impl RunDir {
    /// Makes the directory of a new run, locked, and removes what dead runs left beside it.
    pub(crate) fn create(run_dir: &Path, hierarchy: &Hierarchy) -> Result<(Self, OwnedFd)> {
        make_private(run_dir)?;
        // Held while directories appear and disappear, so that nobody takes a directory that is
        // just being made for a dead one.
        let gate = lock_dir(run_dir)?;
        let dead = dead_runs(run_dir, hierarchy)?;
        let made = Self::make(run_dir, hierarchy)?;
        drop(gate);
        remove_dead(dead);
        Ok(made)
    }

    /// The lasting run of a name: the live one, without its lock, or a new one. Removes what dead
    /// runs left, this one's predecessor among them.
    pub(crate) fn lasting(
        run_dir: &Path,
        name: &str,
        hierarchy: &Hierarchy,
    ) -> Result<(Self, Option<OwnedFd>)> {
        check_name(name)?;
        make_private(run_dir)?;
        let gate = lock_dir(run_dir)?;
        let link = run_dir.join(name);
        let failed =
            |what: &str, e: std::io::Error| Error::host(format!("cannot {what} {}", link.display()), e);
        let target = match fs::read_link(&link) {
            Ok(target) => target.to_str().filter(|t| is_run_name(t)).map(str::to_owned),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed("read the link", e)),
        };
        let dead = dead_runs(run_dir, hierarchy)?;
        if let Some(run) = target {
            let dir = run_dir.join(&run);
            let this = Self { hierarchy: Self::noted_base(&dir, hierarchy), dir, run };
            if this.dir.exists() && !dead.iter().any(|(run, _)| run.run == this.run) {
                return Ok((this, None));
            }
        }
        let (made, lock) = Self::make(run_dir, hierarchy)?;
        let new_link = made.dir.join(NEW_LINK);
        let linked = symlink(&made.run, &new_link).and_then(|()| fs::rename(&new_link, &link));
        drop(gate);
        remove_dead(dead);
        if let Err(e) = linked {
            let _ = made.remove();
            return Err(failed("make the link", e));
        }
        Ok((made, Some(lock)))
    }

    fn make(run_dir: &Path, hierarchy: &Hierarchy) -> Result<(Self, OwnedFd)> {
        for _ in 0..NAME_ATTEMPTS {
            let run = random_name()?;
            let dir = run_dir.join(&run);
            match fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::host(format!("cannot make {}", dir.display()), e)),
            }
            let this = Self { run, dir, hierarchy: hierarchy.clone() };
            let lock = this
                .open_lock(OFlags::CREATE | OFlags::EXCL)
                .map_err(|e| Error::host(format!("cannot make a lock in {}", this.dir.display()), e))?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)
                .map_err(|e| Error::host(format!("cannot lock {}", this.dir.display()), e))?;
            this.note_base()?;
            let mount_point = this.mount_point();
            fs::create_dir(&mount_point)
                .map_err(|e| Error::host(format!("cannot make {}", mount_point.display()), e))?;
            return Ok((this, lock));
        }
        Err(Error::host(format!("no free name for a run in {}", run_dir.display()), Errno::EXIST))
    }

    /// Notes where the groups of the run are: who removes it may have its own elsewhere.
    fn note_base(&self) -> Result<()> {
        let base = self.hierarchy.base().as_os_str();
        if base.is_empty() {
            return Ok(());
        }
        let path = self.dir.join(BASE);
        fs::write(&path, base.as_bytes())
            .map_err(|e| Error::host(format!("cannot write {}", path.display()), e))
    }

    /// The hierarchies with the base that a run has noted.
    fn noted_base(dir: &Path, hierarchy: &Hierarchy) -> Hierarchy {
        use std::io::Read;
        let mut base = Vec::new();
        let read =
            fs::File::open(dir.join(BASE)).and_then(|file| file.take(MAX_BASE_BYTES).read_to_end(&mut base));
        let base = Path::new("/").join(OsStr::from_bytes(&base));
        match (read, relative(&base)) {
            (Ok(_), Some(base)) => hierarchy.based_on(&base),
            _ => hierarchy.based_on(Path::new("")),
        }
    }

    /// The runs below a run directory, alive or dead. None where there is no such directory.
    pub(crate) fn all(run_dir: &Path, hierarchy: &Hierarchy) -> Result<Vec<Self>> {
        let entries = match fs::read_dir(run_dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| Error::host(format!("cannot read {}", run_dir.display()), e))?,
        };
        let runs = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| is_run_name(name))?;
            let noted = Self::noted_base(&entry.path(), hierarchy);
            Some(Self::adopt(name, entry.path(), noted))
        });
        Ok(runs.collect())
    }

    /// The run that another process made.
    pub(crate) fn adopt(run: String, dir: PathBuf, hierarchy: Hierarchy) -> Self {
        Self { run, dir, hierarchy }
    }

    pub(crate) fn name(&self) -> &str {
        &self.run
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// The parent of the cgroups of the run's containers.
    pub(crate) fn group(&self) -> Group {
        Group::of_run(self.hierarchy.clone(), &self.run)
    }

    /// What keeps containers of the run from being frozen.
    pub(crate) fn awake(&self) -> Awake {
        Awake::new(self.dir.join(AWAKE))
    }

    /// An empty directory that starts mount on, each in its own mount namespace.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.dir.join(MOUNT_POINT)
    }

    /// The link to the run's directories with quotas.
    pub(crate) fn writable_link(&self) -> PathBuf {
        self.dir.join(WRITABLE)
    }

    /// Has a socket outside of the directory removed with the run.
    pub(crate) fn owns_socket(&self, socket: &Path) -> Result<()> {
        let path = self.dir.join(SOCKETS);
        let absolute = std::path::absolute(socket)
            .map_err(|e| Error::host(format!("cannot make {} absolute", socket.display()), e))?;
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{}", absolute.display()))
            .map_err(|e| Error::host(format!("cannot write {}", path.display()), e))
    }

    /// Kills what runs in it and removes all of it. Goes on after a failure; tells the first.
    pub(crate) fn remove(&self) -> Result<()> {
        let group = self.group();
        let mut first = group.kill(PATIENCE).and(group.remove(PATIENCE)).err();
        Group::remove_parent_if_empty(&self.hierarchy);
        self.remove_sockets();
        first = first.or(remove_area(&self.writable_link()).err());
        // Its note is in the directory: kept for the next try when the rules could not be removed.
        if let Err(error) = egress::remove(&self.run, &self.dir) {
            return Err(first.unwrap_or(error));
        }
        // While the lock is there: without it, another may already make a new run of that name.
        self.remove_links();
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                first = first.or(Some(Error::host(format!("cannot remove {}", self.dir.display()), e)));
            }
            _ => {}
        }
        first.map_or(Ok(()), Err)
    }

    /// Removes what a dead keeper has left, for the next one: processes, groups, directories with quotas, its
    /// socket. The run goes on.
    pub(crate) fn clear(&self) -> Result<()> {
        let group = self.group();
        group.kill(PATIENCE).and(group.remove(PATIENCE))?;
        clear_area(&self.writable_link())?;
        match fs::remove_file(self.dir.join(SOCKET)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::host(format!("cannot remove {SOCKET} in {}", self.dir.display()), e))
            }
            _ => Ok(()),
        }
    }

    fn remove_sockets(&self) {
        use std::io::Read;
        let mut text = String::new();
        let read = fs::File::open(self.dir.join(SOCKETS))
            .and_then(|file| file.take(MAX_SOCKETS_BYTES).read_to_string(&mut text));
        if read.is_err() {
            return;
        }
        for socket in text.lines().map(Path::new) {
            // Another run may have replaced it by its own, live one.
            let dead = fs::symlink_metadata(socket).is_ok_and(|m| m.file_type().is_socket())
                && std::os::unix::net::UnixStream::connect(socket).is_err();
            if dead {
                let _ = fs::remove_file(socket);
            }
        }
    }

    /// Removes the names of a lasting run.
    fn remove_links(&self) {
        let Some(run_dir) = self.dir.parent() else { return };
        for entry in fs::read_dir(run_dir).into_iter().flatten().flatten() {
            let leads_here = fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(&self.run));
            if leads_here {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn open_lock(&self, how: OFlags) -> Result<OwnedFd, Errno> {
        let flags = how | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::open(self.dir.join(LOCK), flags, Mode::RUSR | Mode::WUSR)
    }
}

/// Makes a directory with mode 0700, or checks that an existing one is root's own.
pub(crate) fn make_private(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::host(format!("cannot make the directory {}", dir.display()), e))?;
    let meta =
        fs::symlink_metadata(dir).map_err(|e| Error::host(format!("cannot look at {}", dir.display()), e))?;
    let owner = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != owner || meta.mode() & 0o022 != 0 {
        return Err(Error::new(
            ErrorKind::Host,
            format!("{} must be a directory that only its owner (uid {owner}) can write", dir.display()),
        )
        .advise(format!("chown {owner} and chmod 700 it, or choose another directory")));
    }
    Ok(())
}

fn lock_dir(dir: &Path) -> Result<OwnedFd> {
    let failed = |e: Errno| Error::host(format!("cannot lock {}", dir.display()), e);
    let fd = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed)?;
    flock(&fd, FlockOperation::LockExclusive).map_err(failed)?;
    Ok(fd)
}

/// Not being able to clean up after another run is no reason not to start this one; the next start
/// tries again.
fn remove_dead(dead: Vec<(RunDir, Option<OwnedFd>)>) {
    for (run, _lock) in dead {
        if let Err(error) = run.remove() {
            tracing::warn!(run = run.run, error = error.chain(), "a dead run could not be removed");
        }
    }
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed) && !is_run_name(name) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!("'{}' is no name for a lasting run", name.escape_debug()),
    )
    .advise(format!("use 1 to {MAX_NAME} of a-z, 0-9 and '-', and not 12 hexadecimal digits")))
}

/// Runs whose lock nobody holds, with their locks taken where they have one.
fn dead_runs(run_dir: &Path, hierarchy: &Hierarchy) -> Result<Vec<(RunDir, Option<OwnedFd>)>> {
    let entries =
        fs::read_dir(run_dir).map_err(|e| Error::host(format!("cannot read {}", run_dir.display()), e))?;
    let mut dead = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|n| is_run_name(n)) else { continue };
        let (dir, run) = (entry.path(), name.to_owned());
        let run = RunDir { run, hierarchy: RunDir::noted_base(&dir, hierarchy), dir };
        // Not made here: a lock file that appears in a directory which its owner is just removing
        // keeps it from being removed. Without one, the maker died at once, or the removal is at
        // its end; neither minds another removal.
        let lock = match run.open_lock(OFlags::empty()) {
            Ok(lock) => Some(lock),
            Err(Errno::NOENT) => None,
            // Nothing is known of it: leave it alone.
            Err(_) => continue,
        };
        if lock.as_ref().is_none_or(|lock| flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok()) {
            dead.push((run, lock));
        }
    }
    Ok(dead)
}

fn is_run_name(name: &str) -> bool {
    name.len() == 12 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn random_name() -> Result<String> {
    let mut bytes = [0; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::host("cannot get random bytes", e))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_runs_are_removed_and_live_ones_stay() {
        let dir = tempfile::tempdir().expect("tempdir");
        let run_dir = dir.path().join("run");
        let hierarchy = Hierarchy::detect().expect("this host has cgroups");
        let (live, _live_lock) = RunDir::create(&run_dir, &hierarchy).expect("first");
        let (dead, dead_lock) = RunDir::create(&run_dir, &hierarchy).expect("second");
        let socket = dir.path().join("x.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).expect("bind"));
        dead.owns_socket(&socket).expect("noted");
        drop(dead_lock);
        let (third, _third_lock) = RunDir::create(&run_dir, &hierarchy).expect("third");
        assert!(live.path().exists() && third.path().exists());
        assert!(!dead.path().exists(), "the dead run is gone");
        assert!(!socket.exists(), "and its socket");
    }

    #[test]
    fn a_dead_run_is_removed_where_its_groups_are() {
        let dir = tempfile::tempdir().expect("tempdir");
        let hierarchy = Hierarchy::detect().expect("this host has cgroups");
        // A group that has controllers, as a delegated one.
        let owner = Group::of_run(hierarchy.clone(), &format!("owner-{}", std::process::id()));
        owner.child("made").create().expect("this test makes cgroups and needs root");
        let base = relative(&owner.path_from_root()).expect("a path");
        let (dead, lock) = RunDir::create(dir.path(), &hierarchy.based_on(&base)).expect("a run");
        dead.group().child("c").create().expect("a group");
        let parent = hierarchy.root_of("pids").expect("pids").join(&base).join("skiff");
        assert!(parent.join(dead.name()).join("c").is_dir());
        drop(lock);
        RunDir::create(dir.path(), &hierarchy).expect("another run");
        assert!(!parent.exists(), "the dead run's group is left");
        owner.remove(PATIENCE).expect("there still, and removed");
        Group::remove_parent_if_empty(&hierarchy);
    }

    #[test]
    fn a_run_without_a_lock_is_dead_and_gets_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        let hierarchy = Hierarchy::detect().expect("this host has cgroups");
        let half_made = dir.path().join("0123456789ab");
        fs::create_dir(&half_made).expect("mkdir");
        let dead = dead_runs(dir.path(), &hierarchy).expect("read");
        assert_eq!(dead.len(), 1);
        assert!(!half_made.join(LOCK).exists(), "a lock would keep its owner from removing it");
        RunDir::create(dir.path(), &hierarchy).expect("another run");
        assert!(!half_made.exists());
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("tempdir");
        let open = dir.path().join("open");
        fs::create_dir(&open).expect("mkdir");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("chmod");
        let error = make_private(&open).expect_err("refused");
        assert!(error.to_string().contains("open"), "{error}");
    }
}
