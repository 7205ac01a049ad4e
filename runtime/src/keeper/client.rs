//! The daemon's side of the keeper.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::launch::{execute, find};
use super::peers::{address, credentials, new_socket, open_dir};
use super::protocol::{FromKeeper, Label, PROTOCOL, Role, ToKeeper, VERSION, receive, send};
use super::table::{AdoptedContainer, AdoptedFailure, Ended, Started, Table, dispatch};
use crate::rootfs::KeptDisks;
use crate::rundir::RunDir;
use crate::{Error, ErrorKind, Network, OomPolicy, Result, breakpoint};

/// How long a keeper may take to say hello, and to tell of what it keeps.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// How much longer than its deadline the daemon waits for the keeper to tell of a start.
const DEADLINE_GRACE: Duration = Duration::from_secs(15);
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(30);

/// How many starts of former owners are under way, once that is known.
type Pending = watch::Receiver<Option<u32>>;

/// A connection to a keeper. The keeper of an ordinary run ends, and kills its containers, when this
/// is dropped; that of a lasting run goes on.
#[derive(Debug)]
pub(crate) struct Keeper {
    socket: Arc<UnixStream>,
    table: Arc<Mutex<Table>>,
    process: Mutex<Option<Child>>,
    tasks: [tokio::task::JoinHandle<()>; 2],
    gone: watch::Receiver<bool>,
    pending: Pending,
    lasting: bool,
    left: Arc<AtomicBool>,
    last_words: mpsc::UnboundedSender<ToKeeper>,
}

impl Keeper {
    /// Starts a keeper for a run and waits until it is ready.
    pub(crate) async fn spawn(
        binary: Option<&Path>,
        run: &RunDir,
        lock: &OwnedFd,
        lasting: bool,
    ) -> Result<Self> {
        let path = find(binary)?;
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|e| Error::host("cannot make a socket pair", e))?;
        let process = execute(&path, &[], theirs)?;
        breakpoint::reach("daemon-executed");
        let configure = ToKeeper::Configure {
            protocol: PROTOCOL,
            run: run.name().to_owned(),
            dir: run.path().to_owned(),
            hierarchy: run.hierarchy().clone(),
            lasting,
        };
        send(&ours, &configure, &[lock.as_fd()]).map_err(|e| not_a_keeper(&path).because(e))?;
        let socket = watched(ours)?;
        let hello = tokio::time::timeout(HELLO_PATIENCE, next(&socket)).await;
        match hello {
            Ok(Ok(Some((FromKeeper::Hello { protocol: PROTOCOL, version, .. }, _))))
                if version == VERSION => {}
            Ok(Ok(Some((FromKeeper::Hello { version, .. }, _)))) => {
                return Err(Error::new(
                    ErrorKind::KeeperNotFound,
                    format!("{} is version {version}, and this is {VERSION}", path.display()),
                )
                .advise("install skiff and skiff-keeper of one version"));
            }
            _ => return Err(not_a_keeper(&path)),
        }
        let keeper = Self::new(socket, Some(process), lasting);
        Ok(keeper)
    }

    /// Comes to the keeper of a lasting run as its new owner, and is told of what there is. With the
    /// lock of the run's directory. `None` when nobody listens there (yet, or any more).
    pub(crate) async fn attach(run: &RunDir) -> Result<Option<(Self, OwnedFd)>> {
        let Some(socket) = connect(run)? else { return Ok(None) };
        let hello = ToKeeper::Hello { protocol: PROTOCOL, version: VERSION.into(), role: Role::Owner };
        if send(&*socket, &hello, &[]).is_err() {
            return Ok(None);
        }
        let answer = tokio::time::timeout(HELLO_PATIENCE, next(&socket)).await;
        let lock = match answer {
            Ok(Ok(Some((FromKeeper::Hello { version, pid, .. }, mut fds)))) => {
                tracing::debug!(run = run.name(), version, pid, "came to a living keeper");
                fds.pop().ok_or_else(|| lost().because("it gave no lock"))?
            }
            Ok(Ok(Some((FromKeeper::Refused { protocol, version, pid, failure }, _)))) => {
                return Err(if protocol == PROTOCOL {
                    failure.into()
                } else {
                    other_protocol(run, protocol, &version, pid)
                });
            }
            // It was about to end.
            Ok(Ok(None)) => return Ok(None),
            Ok(Ok(Some(_)) | Err(_)) => return Err(silent(run)),
            Err(_) => return Err(silent(run)),
        };
        let keeper = Self::new(socket, None, true);
        let mut pending = keeper.pending.clone();
        match tokio::time::timeout(HELLO_PATIENCE, pending.wait_for(Option::is_some)).await {
            Ok(Ok(_)) => {}
            _ => return Err(silent(run)),
        }
        Ok(Some((keeper, lock)))
    }

    fn new(socket: Arc<UnixStream>, process: Option<Child>, lasting: bool) -> Self {
        let left = Arc::new(AtomicBool::new(false));
        let (forget, forgotten) = mpsc::unbounded_channel();
        let table = Arc::new(Mutex::new(Table::new(forget.clone(), Arc::clone(&left))));
        let (gone_sender, gone) = watch::channel(false);
        let (pending_sender, pending) = watch::channel(None);
        let reader = tokio::spawn(read(Arc::clone(&socket), Arc::clone(&table), gone_sender, pending_sender));
        let writer = tokio::spawn(write(Arc::clone(&socket), forgotten));
        Self {
            socket,
            table,
            process: Mutex::new(process),
            tasks: [reader, writer],
            gone,
            pending,
            lasting,
            left,
            last_words: forget,
        }
    }

    pub(crate) fn is_lasting(&self) -> bool {
        self.lasting
    }

    /// Whether it has died. Its containers have been killed by then, and who waits for them has been told.
    pub(crate) fn is_lost(&self) -> bool {
        lock(&self.table).lost
    }

    /// Ready when it has died, or this is dropped.
    pub(crate) fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut gone = self.gone.clone();
        async move {
            let _ = gone.wait_for(|gone| *gone).await;
        }
    }

    /// What former owners started, as far as it was not taken yet.
    pub(crate) fn adopted(&self) -> Vec<AdoptedContainer> {
        std::mem::take(&mut lock(&self.table).adopted)
    }

    /// The starts of former owners that failed, as far as they were not taken yet.
    pub(crate) fn failures(&self) -> Vec<AdoptedFailure> {
        std::mem::take(&mut lock(&self.table).failures)
    }

    /// The sockets of former owners, as far as they were not taken yet.
    pub(crate) fn sockets(&self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut lock(&self.table).sockets)
    }

    /// Has the keeper of a lasting run keep a copy of a socket for the next owner.
    pub(crate) async fn hold(&self, name: String, socket: OwnedFd) -> Result<()> {
        self.send(&ToKeeper::Hold { name }, &[socket]).await.map_err(|e| lost().because(e))
    }

    /// Has it let that go.
    pub(crate) async fn release(&self, name: String) -> Result<()> {
        self.send(&ToKeeper::Release { name }, &[]).await.map_err(|e| lost().because(e))
    }

    /// Waits until no start of a former owner is under way.
    pub(crate) async fn settled(&self) {
        let mut pending = self.pending.clone();
        // A keeper that is gone starts nothing.
        let _ = pending.wait_for(|pending| pending.is_none_or(|count| count == 0)).await;
    }

    /// Leaves the keeper and its containers to the next owner, at once.
    pub(crate) async fn detach(&self) {
        if !self.lasting {
            return;
        }
        self.left.store(true, Ordering::Release);
        // After what it was told to forget.
        let _ = self.last_words.send(ToKeeper::Detach);
        // The keeper closes its end when nobody is its owner any more.
        let mut gone = self.gone.clone();
        let _ = tokio::time::timeout(HELLO_PATIENCE, gone.wait_for(|gone| *gone)).await.is_ok();
    }

    /// Starts a container. `fds` are the request, the network namespace, the lease on the image if
    /// there is one, the claim on ids if there is one, the group of a recording if the request says so,
    /// and the disks, as mounts that are attached nowhere.
    pub(crate) async fn start(&self, order: Order<'_>, fds: Vec<OwnedFd>) -> Result<Started> {
        let Order { id, deadline, leased, claimed, address, network, oom, label, disks, slot } = order;
        // Closed before what is kept of the disks is let go, and that elsewhere: to end one takes milliseconds.
        let fds = fds;
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
            table.starting.insert(id.to_owned(), (sender, disks));
        }
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let name = id.to_owned();
        let message =
            ToKeeper::Start { id: name, deadline_ms, leased, claimed, address, network, oom, label, slot };
        let mut unsent = Unsent { table: &self.table, id: Some(id) };
        let fds = fds;
        self.send(&message, &fds).await.map_err(|e| lost().because(e))?;
        unsent.id = None;
        slot.and_then(|slot| lock(&self.table).prepared.remove(&slot));
        drop(fds);
        match tokio::time::timeout(deadline + DEADLINE_GRACE, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(lost()),
            Err(_) => {
                lock(&self.table).starting.remove(id);
                Err(lost().because("it did not tell how a start came out"))
            }
        }
    }

    /// Has it make a container ahead of an order, in that network namespace. Tells whether it waits, `None` as
    /// long as it is being made; the end of the channel is the end of the keeper, or an order.
    pub(crate) async fn prepare(&self, slot: u64, network: OwnedFd) -> Result<watch::Receiver<Option<bool>>> {
        let (sender, receiver) = watch::channel(None);
        lock(&self.table).prepared.insert(slot, sender);
        let sent = self.send(&ToKeeper::Prepare { slot }, &[network]).await;
        if sent.is_err() || self.is_lost() {
            lock(&self.table).prepared.remove(&slot);
        }
        sent.map(|()| receiver).map_err(|e| lost().because(e))
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
        let Some(mut process) = process else { return ended };
        if !ended {
            let _ = process.kill();
        }
        // It has closed its socket, which it does last.
        tokio::task::spawn_blocking(move || process.wait().is_ok_and(|s| s.success())).await.unwrap_or(false)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.lasting {
            self.left.store(true, Ordering::Release);
        }
        for task in &self.tasks {
            task.abort();
        }
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut process) = process {
            // The keeper sees the socket close and needs a moment to clean; somebody must collect
            // it when it is done. (That of a lasting run has ended long ago, for a child of its own.)
            let _ =
                std::thread::Builder::new().name("skiff-keeper-wait".into()).spawn(move || process.wait());
        }
    }
}

/// A start that the keeper does not know of yet: forgotten when it is given up.
struct Unsent<'a> {
    table: &'a Mutex<Table>,
    id: Option<&'a str>,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            lock(self.table).starting.remove(id);
        }
    }
}

/// A container to start, beside its request.
pub(crate) struct Order<'a> {
    pub(crate) id: &'a str,
    pub(crate) deadline: Duration,
    pub(crate) leased: bool,
    pub(crate) claimed: bool,
    pub(crate) address: std::net::Ipv4Addr,
    pub(crate) network: Network,
    pub(crate) oom: OomPolicy,
    pub(crate) label: Label,
    /// Kept until the container has ended, where it has any.
    pub(crate) disks: Option<KeptDisks>,
    /// The container that was made for it ahead.
    pub(crate) slot: Option<u64>,
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

fn other_protocol(run: &RunDir, protocol: u32, version: &str, pid: i32) -> Error {
    Error::new(
        ErrorKind::KeeperNotFound,
        format!(
            "the keeper of {} (pid {pid}, version {version}) speaks protocol {protocol}, and skiff \
             {VERSION} speaks {PROTOCOL}",
            run.path().display()
        ),
    )
    .advise(format!(
        "let skiff {version} end its containers, or end them all with `kill {pid}`; then start again"
    ))
}

fn silent(run: &RunDir) -> Error {
    Error::new(
        ErrorKind::KeeperLost,
        format!("what listens on {}/keeper.sock does not answer as a keeper", run.path().display()),
    )
    .advise("look at the process that holds the lock beside it; end it, then start again")
}

/// Tokio has no type for seqpacket sockets; only readiness is asked of this one.
fn watched(socket: OwnedFd) -> Result<Arc<UnixStream>> {
    UnixStream::from_std(std::os::unix::net::UnixStream::from(socket))
        .map(Arc::new)
        .map_err(|e| Error::host("cannot watch the keeper's socket", e))
}

/// A connection to the keeper of a run; `None` when nobody listens.
fn connect(run: &RunDir) -> Result<Option<Arc<UnixStream>>> {
    let failed =
        |e: io::Error| Error::host(format!("cannot connect to {}/keeper.sock", run.path().display()), e);
    let dir = match open_dir(run.path()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        dir => dir.map_err(failed)?,
    };
    let socket = new_socket().map_err(failed)?;
    match rustix::net::connect(&socket, &address(&dir).map_err(failed)?) {
        Ok(()) => {}
        // AGAIN: many wait to be accepted.
        Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN) => return Ok(None),
        Err(e) => return Err(failed(e.into())),
    }
    let own = rustix::process::geteuid().as_raw();
    match credentials(&socket) {
        Some((_, uid)) if uid == 0 || uid == own => watched(socket).map(Some),
        _ => Err(silent(run)),
    }
}

async fn write(socket: Arc<UnixStream>, mut messages: mpsc::UnboundedReceiver<ToKeeper>) {
    while let Some(message) = messages.recv().await {
        if socket.async_io(Interest::WRITABLE, || send(&*socket, &message, &[])).await.is_err() {
            return;
        }
    }
}

async fn next(socket: &UnixStream) -> io::Result<Option<(FromKeeper, Vec<OwnedFd>)>> {
    socket.async_io(Interest::READABLE, || receive(socket)).await
}

/// Reads until the keeper is gone.
async fn read(
    socket: Arc<UnixStream>,
    table: Arc<Mutex<Table>>,
    gone: watch::Sender<bool>,
    pending: watch::Sender<Option<u32>>,
) {
    while let Ok(Some((message, fds))) = next(&socket).await {
        dispatch(&mut lock(&table), &pending, message, fds);
    }
    let mut table = lock(&table);
    table.lost = true;
    table.prepared.clear();
    for (_, (starting, _)) in table.starting.drain() {
        let _ = starting.send(Err(lost()));
    }
    let left = table.left.load(Ordering::Acquire);
    for (_, running) in table.running.drain().filter(|_| !left) {
        // The kernel does so too, unless the container cleared its parent-death signal.
        let _ = rustix::process::pidfd_send_signal(&running.pidfd, Signal::KILL);
        let _ = running.ended.send(Some(Ended::KeeperLost));
    }
    let _ = gone.send(true);
}
