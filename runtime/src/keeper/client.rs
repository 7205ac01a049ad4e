//! The daemon's side of the keeper.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use super::protocol::{FromKeeper, SpawnSteps, ToKeeper, VERSION, receive, send};
use crate::rundir::RunDir;
use crate::{Error, ErrorKind, Exit, Result, Stats};

const BINARY: &str = "skiff-keeper";
/// How long a keeper may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// How much longer than its deadline the daemon waits for the keeper to tell of a start.
const DEADLINE_GRACE: Duration = Duration::from_secs(15);
/// Attempts at sealing the keeper's copy after the first, and the wait before each.
const SEAL_TRIES: u32 = 20;
const SEAL_WAIT: Duration = Duration::from_millis(5);
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(30);

/// How a container ended, and what it used until then.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// By itself, or killed.
    Exited(Exit, Stats),
    /// With its keeper.
    KeeperLost,
}

/// A container's init; killed, and with it all processes of the container, when this is dropped.
#[derive(Debug)]
pub(crate) struct Process(Arc<OwnedFd>);

impl Process {
    /// Sends a signal. One that has ended already is fine.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.0, signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// What the keeper tells of a container that runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) process: Process,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) steps: SpawnSteps,
    pub(crate) ended: watch::Receiver<Option<Ended>>,
}

type Starting = oneshot::Sender<Result<Started>>;

#[derive(Default)]
struct Table {
    starting: HashMap<String, Starting>,
    running: HashMap<String, (Arc<OwnedFd>, watch::Sender<Option<Ended>>)>,
    lost: bool,
}

/// A connection to a keeper. The keeper ends, and kills its containers, when this is dropped.
#[derive(Debug)]
pub(crate) struct Keeper {
    socket: Arc<UnixStream>,
    table: Arc<Mutex<Table>>,
    process: Mutex<Option<Child>>,
    reader: tokio::task::JoinHandle<()>,
    gone: watch::Receiver<bool>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} starting, {} running", self.starting.len(), self.running.len())
    }
}

impl Keeper {
    /// Starts a keeper for a run and waits until it is ready.
    pub(crate) async fn spawn(binary: Option<&Path>, run: &RunDir, lock: &OwnedFd) -> Result<Self> {
        let path = find(binary)?;
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|e| Error::host("cannot make a socket pair", e))?;
        let process = execute(&path, theirs)?;
        let configure = ToKeeper::Configure {
            run: run.name().to_owned(),
            dir: run.path().to_owned(),
            hierarchy: run.hierarchy().clone(),
        };
        send(&ours, &configure, &[lock.as_fd()]).map_err(|e| not_a_keeper(&path).because(e))?;
        // Tokio has no type for seqpacket sockets; only readiness is asked of this one.
        let socket = UnixStream::from_std(std::os::unix::net::UnixStream::from(ours))
            .map(Arc::new)
            .map_err(|e| Error::host("cannot watch the keeper's socket", e))?;
        let hello = tokio::time::timeout(HELLO_PATIENCE, next(&socket)).await;
        match hello {
            Ok(Ok(Some((FromKeeper::Hello { version }, _)))) if version == VERSION => {}
            Ok(Ok(Some((FromKeeper::Hello { version }, _)))) => {
                return Err(Error::new(
                    ErrorKind::KeeperNotFound,
                    format!("{} is version {version}, and this is {VERSION}", path.display()),
                )
                .advise("install skiff and skiff-keeper of one version"));
            }
            _ => return Err(not_a_keeper(&path)),
        }
        let table = Arc::new(Mutex::new(Table::default()));
        let (gone_sender, gone) = watch::channel(false);
        let reader = tokio::spawn(read(Arc::clone(&socket), Arc::clone(&table), gone_sender));
        Ok(Self { socket, table, process: Mutex::new(Some(process)), reader, gone })
    }

    /// Starts a container. `fds` are the request, the network namespace, the lease on the image and
    /// the claim on ids if there are such, the group of a recording if the request says so, and the disks.
    pub(crate) async fn start(
        &self,
        id: &str,
        deadline: Duration,
        (leased, claimed): (bool, bool),
        fds: &[OwnedFd],
    ) -> Result<Started> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut table = lock(&self.table);
            if table.lost {
                return Err(lost());
            }
            if table.starting.contains_key(id) || table.running.contains_key(id) {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("a container named {id} exists already"),
                ));
            }
            table.starting.insert(id.to_owned(), sender);
        }
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let message = ToKeeper::Start { id: id.to_owned(), deadline_ms, leased, claimed };
        if let Err(e) = self.send(&message, fds).await {
            lock(&self.table).starting.remove(id);
            return Err(lost().because(e));
        }
        match tokio::time::timeout(deadline + DEADLINE_GRACE, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(lost()),
            Err(_) => {
                lock(&self.table).starting.remove(id);
                Err(lost().because("it did not tell how a start came out"))
            }
        }
    }

    async fn send(&self, message: &ToKeeper, fds: &[OwnedFd]) -> io::Result<()> {
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.socket.async_io(Interest::WRITABLE, || send(&*self.socket, message, &borrowed)).await
    }

    /// Has the keeper kill its containers, clean up and end. True when it did so in time.
    pub(crate) async fn shutdown(&self) -> bool {
        let _ = self.send(&ToKeeper::Shutdown, &[]).await;
        let mut gone = self.gone.clone();
        // Only the answer: the guard inside would keep this future from being sent to a thread.
        let ended =
            matches!(tokio::time::timeout(SHUTDOWN_PATIENCE, gone.wait_for(|gone| *gone)).await, Ok(Ok(_)));
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut process) = process else { return true };
        if !ended {
            let _ = process.kill();
        }
        // It has closed its socket, which it does last.
        tokio::task::spawn_blocking(move || process.wait().is_ok_and(|s| s.success())).await.unwrap_or(false)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.reader.abort();
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut process) = process {
            // The keeper sees the socket close and needs a moment to clean; somebody must collect
            // it when it is done.
            let _ =
                std::thread::Builder::new().name("skiff-keeper-wait".into()).spawn(move || process.wait());
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> Error {
    Error::new(ErrorKind::KeeperLost, "skiff-keeper has died; its containers were killed")
        .advise("start again")
}

fn not_a_keeper(path: &Path) -> Error {
    Error::new(
        ErrorKind::KeeperNotFound,
        format!("{} does not answer as skiff-keeper {VERSION}", path.display()),
    )
    .advise("install skiff and skiff-keeper of one version, or give --keeper")
}

/// The given binary, or the one beside this program, or the one in `PATH`.
pub(crate) fn find(given: Option<&Path>) -> Result<PathBuf> {
    let missing = |text: String| {
        Error::new(ErrorKind::KeeperNotFound, text)
            .advise("install skiff-keeper beside skiff, or tell where it is with --keeper or SKIFF_KEEPER")
    };
    let exe = std::env::current_exe().ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = candidate(given, exe.as_deref().and_then(Path::parent), std::env::split_paths(&path));
    match found {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => Err(missing(format!("there is no keeper at {}", path.display()))),
        None => Err(missing(format!("{BINARY} is neither beside this program nor in PATH"))),
    }
}

/// Where the keeper is looked for: the given place, whatever is there; else the directory of the
/// running program, then the directories of programs.
pub(crate) fn candidate(
    given: Option<&Path>,
    exe_dir: Option<&Path>,
    dirs: impl Iterator<Item = PathBuf>,
) -> Option<PathBuf> {
    if let Some(given) = given {
        return Some(given.to_owned());
    }
    let all = exe_dir.map(Path::to_owned).into_iter().chain(dirs);
    all.map(|dir| dir.join(BINARY)).find(|path| path.is_file())
}

/// Executes a sealed copy of the binary, so that no container can ever write to the file on disk
/// through `/proc/PID/exe` (CVE-2019-5736).
fn execute(path: &Path, socket: OwnedFd) -> Result<Child> {
    let failed = |what: &str, e: io::Error| {
        Error::new(ErrorKind::KeeperNotFound, format!("cannot {what} {}", path.display()))
            .because(e)
            .advise("check the file and its permissions, or give another with --keeper")
    };
    let copy = sealed_copy(path).map_err(|e| failed("read", e))?;
    use std::os::fd::AsRawFd;
    Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()))
        .arg0(BINARY)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|e| failed("execute", e))
}

fn sealed_copy(path: &Path) -> io::Result<File> {
    let mut from = File::open(path)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Hosts with vm.memfd_noexec=1 execute only what asks for it; kernels before 6.3 know no such flag.
    let created = match rustix::fs::memfd_create(BINARY, flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(BINARY, flags),
        other => other,
    };
    let mut copy = File::from(created?);
    io::copy(&mut from, &mut copy)?;
    copy.rewind()?;
    seal(&copy)?;
    Ok(copy)
}

/// Takes away everybody's right to write. A busy host's kernel was once seen to refuse that (EBUSY),
/// although nobody else has the file; why is not known, so it is asked again for a moment.
fn seal(copy: &File) -> io::Result<()> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let mut tries = 0;
    loop {
        match rustix::fs::fcntl_add_seals(copy, seals) {
            Err(rustix::io::Errno::BUSY) if tries < SEAL_TRIES => {
                tries += 1;
                std::thread::sleep(SEAL_WAIT);
            }
            other => return Ok(other?),
        }
    }
}

async fn next(socket: &UnixStream) -> io::Result<Option<(FromKeeper, Vec<OwnedFd>)>> {
    socket.async_io(Interest::READABLE, || receive(socket)).await
}

/// Reads until the keeper is gone.
async fn read(socket: Arc<UnixStream>, table: Arc<Mutex<Table>>, gone: watch::Sender<bool>) {
    while let Ok(Some((message, fds))) = next(&socket).await {
        dispatch(&mut lock(&table), message, fds);
    }
    let mut table = lock(&table);
    table.lost = true;
    for (_, starting) in table.starting.drain() {
        let _ = starting.send(Err(lost()));
    }
    for (_, (pidfd, ended)) in table.running.drain() {
        // The kernel does so too, unless the container cleared its parent-death signal.
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        let _ = ended.send(Some(Ended::KeeperLost));
    }
    let _ = gone.send(true);
}

fn dispatch(table: &mut Table, message: FromKeeper, fds: Vec<OwnedFd>) {
    match message {
        FromKeeper::Hello { .. } => {}
        FromKeeper::Started { id, pid, steps } => {
            let Ok([pidfd, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) else { return };
            let pidfd = Arc::new(pidfd);
            let (sender, ended) = watch::channel(None);
            let started = Started {
                pid: pid.unsigned_abs(),
                process: Process(Arc::clone(&pidfd)),
                stdout,
                stderr,
                steps,
                ended,
            };
            // Where nobody waits for it any more, dropping it kills it.
            if let Some(waiting) = table.starting.remove(&id) {
                let _ = waiting.send(Ok(started));
            }
            table.running.insert(id, (pidfd, sender));
        }
        FromKeeper::Failed { id, failure } => {
            if let Some(waiting) = table.starting.remove(&id) {
                let _ = waiting.send(Err(failure.into()));
            }
        }
        FromKeeper::Exited { id, exit, stats } => {
            if let Some((_, ended)) = table.running.remove(&id) {
                let _ = ended.send(Some(Ended::Exited(exit, stats)));
            }
        }
    }
}
