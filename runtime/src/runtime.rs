//! The entry point: one [`Runtime`] is one run's store, keeper and namespaces.

mod ahead;
mod open;
mod supplies;

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::ahead::{Ahead, Taken};
use self::open::{Opened, namespaces, open_blocking, open_run, require_root};
use self::supplies::Supplies;
use crate::acceleration::{Acceleration, ListPath, ReadAhead, Recorder, Recordings, Subject, rootfs_of};
use crate::cgroup::{CgroupParent, Hierarchy};
use crate::container::{Parts, StartTimings};
use crate::image::{Image, Store};
use crate::keeper::protocol::Label;
use crate::keeper::{Order, Succession};
use crate::network::{Dialer, Forwarder, Namespaces, Resolver};
use crate::rootfs::quota::Area;
use crate::rootfs::{Choice, Disks};
use crate::rundir::RunDir;
use crate::sandbox::Claim;
use crate::{Container, ContainerSpec, Error, ErrorKind, NetworkOptions, Result, breakpoint};

/// Longest name of a socket that is kept for the next owner, bytes.
const MAX_SOCKET_NAME: usize = 512;

/// Where a runtime keeps its things.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Images and what must survive a reboot; made with mode 0700 if missing.
    pub state_dir: PathBuf,
    /// Sockets and locks of what runs now; made with mode 0700 if missing.
    pub run_dir: PathBuf,
    /// The `skiff-keeper` program; `None` looks beside the running executable, then in `PATH`.
    pub keeper: Option<PathBuf>,
    /// The name of a lasting run: 1 to 32 of `a-z`, `0-9` and `-`. Its keeper and containers outlive
    /// this process; the next [`Runtime::open`] with the same name and run directory adopts them.
    /// Several names may share a run directory. `None`: all ends with this process.
    pub lasting: Option<String>,
    /// How the containers' network namespaces are made.
    pub network: NetworkOptions,
    /// How many containers are made before there are orders for them, 0 to 64: what does not depend on image and
    /// command is done by then, which is about half of a start. Each that waits has two processes, some
    /// 0.7 MiB of memory, and a network namespace; starts with a user namespace, a way out or an own address
    /// take none. There are none on cgroup version 2.
    pub containers_ahead: usize,
    /// The cgroup below which those of the containers are made. With [`CgroupParent::Auto`] this
    /// process is moved if systemd has delegated its cgroup.
    pub cgroup: CgroupParent,
}

impl RuntimeOptions {
    /// A run that ends with this process, with the keeper that is found beside it, and what else the
    /// host decides.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            run_dir: run_dir.into(),
            keeper: None,
            lasting: None,
            network: NetworkOptions::default(),
            containers_ahead: 0,
            cgroup: CgroupParent::default(),
        }
    }
}

/// One run: image store, keeper process, and the containers started through them.
///
/// Dropping it ends the keeper, which kills the containers and cleans up by itself;
/// [`Runtime::shutdown`] also waits for that. Dropping a lasting run leaves all running, and so does
/// the end of this process, whatever ends it.
#[derive(Debug)]
pub struct Runtime {
    store: Arc<Store>,
    disks: Arc<Disks>,
    /// What can hold written bytes on this host.
    choice: Choice,
    /// Held by the keeper too.
    _area: Option<Area>,
    dialer: Dialer,
    namespaces: Arc<Namespaces>,
    keepers: Arc<Succession>,
    ahead: Arc<Ahead>,
    run: RunDir,
    dir: PathBuf,
    state_dir: PathBuf,
    /// AppArmor's, of all containers.
    profile: Option<String>,
    read_ahead: ReadAhead,
    recordings: Recordings,
}

impl Runtime {
    /// Opens the store, removes what crashed runs left behind, and starts a keeper.
    ///
    /// # Errors
    /// `NotRoot`, `NoCgroup`, `KeeperNotFound`, `OverlayUnsupported`, `InvalidArgument`, `Host`.
    pub async fn open(options: RuntimeOptions) -> Result<Arc<Self>> {
        require_root()?;
        let hierarchy = Hierarchy::detect()?;
        // Before anything is made: a missing keeper leaves nothing to clean.
        crate::keeper::find(options.keeper.as_deref())?;
        let (run_dir, state_dir) = (options.run_dir.clone(), options.state_dir.clone());
        let opened = tokio::task::spawn_blocking(move || open_blocking(&state_dir, &run_dir));
        let state_dir = std::path::absolute(&options.state_dir).unwrap_or_else(|_| options.state_dir.clone());
        let (store, disks, profile) = opened.await.map_err(panicked)??;
        let dialer = Dialer::start().map_err(|e| Error::host("cannot start the dialling thread", e))?;
        let Opened { keeper, run, lock, area, choice } = open_run(&options, &hierarchy).await?;
        let (name, place) = (run.name().to_owned(), run.path().to_owned());
        let namespaces = tokio::task::spawn_blocking(move || namespaces(&name, &place, options.network));
        let namespaces = Arc::new(namespaces.await.map_err(panicked)??);
        let keepers = Succession::new(keeper, run.clone(), lock, options.keeper);
        let dir = options.lasting.map_or_else(|| run.path().to_owned(), |name| options.run_dir.join(name));
        Ok(Arc::new(Self {
            store,
            disks,
            choice,
            _area: area,
            dialer,
            ahead: Ahead::new(options.containers_ahead, &hierarchy, &namespaces, &keepers)?,
            namespaces,
            keepers,
            run,
            dir,
            state_dir,
            profile,
            read_ahead: ReadAhead::default(),
            recordings: Recordings::default(),
        }))
    }

    /// The image store.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The directory of this run below the run directory: sockets of its owner may live here; it
    /// is removed by [`Runtime::shutdown`], and by the next start after a crash. That of a lasting run
    /// is always at `run_dir/NAME`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The containers that former owners of this lasting run started, running or ended meanwhile.
    /// Each is given once; dropping one kills it as ever, and lets the keeper forget how it ended.
    /// Their output goes on where it was last consumed ([`Output`](crate::Output)).
    ///
    /// # Errors
    /// `Host` when an output cannot be watched.
    pub fn adopted(&self) -> Result<Vec<Container>> {
        let found = self.keepers.now().adopted().into_iter();
        found.map(|found| Container::adopted(found, &self.run, self.dialer.clone())).collect()
    }

    /// The starts that former owners had under way and that failed. Each is given once.
    #[must_use]
    pub fn failed_starts(&self) -> Vec<FailedStart> {
        let failures = self.keepers.now().failures().into_iter();
        failures.map(|f| FailedStart { id: f.id, label: f.label.0, error: f.error }).collect()
    }

    /// Waits until every start that a former owner had under way is among [`Runtime::adopted`] or
    /// [`Runtime::failed_starts`]; at most as long as their deadlines.
    pub async fn starts_settled(&self) {
        self.keepers.now().settled().await;
    }

    /// Has the keeper of a lasting run keep a copy of a listening socket: whoever connects while the run has
    /// no owner waits for the next one, up to 2 minutes. A socket that was kept under that name before is
    /// let go; there may be 4,096. Of a run that is not a lasting one nothing is kept.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is empty or longer than 512 bytes; `KeeperLost`; `Host`.
    pub async fn hold_socket(&self, name: &str, socket: BorrowedFd<'_>) -> Result<()> {
        if !self.keepers.now().is_lasting() {
            return Ok(());
        }
        if !(1..=MAX_SOCKET_NAME).contains(&name.len()) {
            let message = format!("a socket's name has {} bytes, not 1 to {MAX_SOCKET_NAME}", name.len());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let copy = socket.try_clone_to_owned().map_err(|e| Error::host("cannot copy a socket", e))?;
        self.keepers.hold(name.to_owned(), copy).await
    }

    /// Has the keeper let a socket go.
    ///
    /// # Errors
    /// `KeeperLost`.
    pub async fn release_socket(&self, name: &str) -> Result<()> {
        if self.keepers.now().is_lasting() { self.keepers.release(name.to_owned()).await } else { Ok(()) }
    }

    /// The sockets that former owners had kept, by their names. Each is given once; the keeper has it still.
    #[must_use]
    pub fn held_sockets(&self) -> Vec<(String, OwnedFd)> {
        self.keepers.now().sockets()
    }

    /// Leaves a lasting run to its next owner: keeper and containers go on, and dropping a
    /// [`Container`] does not kill it any more. Nothing can be started then. Of a run that is not a
    /// lasting one nothing is changed.
    pub async fn detach(&self) {
        self.ahead.close();
        self.keepers.detach().await;
    }

    /// Has a socket that its owner makes outside of [`Runtime::dir`] removed also after a crash.
    ///
    /// # Errors
    /// `Host` when it cannot be noted.
    pub fn owns_socket(&self, socket: &Path) -> Result<()> {
        self.run.owns_socket(socket)
    }

    /// Starts a container of `image`. Returns when its command has been executed.
    ///
    /// # Errors
    /// `NoCommand`, `CommandNotFound`, `CommandNotExecutable`, `UnknownUser`,
    /// `InvalidWorkingDirectory`, `InvalidImage`, `InvalidArgument`, `LimitExceeded`,
    /// `StartTimedOut`, `KeeperLost`, `DiskFull`, `Host`.
    pub async fn start(&self, image: &Image, mut spec: ContainerSpec) -> Result<Container> {
        spec.writable = self.choice.resolve(spec.writable)?;
        let mut request = spec.request(&image.config, &image.layers)?;
        let resolver = Resolver::of(spec.network);
        request.resolv_conf = resolver.text;
        let list = ListPath::new(&self.state_dir, &image.digest, &request.argv);
        let (recorder, group) = self.accelerate(spec.acceleration, &list, image).unzip();
        request.record = group.is_some();
        let claim = if spec.userns { Some(Claim::new()?) } else { None };
        request.profile.clone_from(&self.profile);
        request.first_id = claim.as_ref().map(|claim| claim.first);
        let deadline = spec.deadline();
        let taken = self.ahead.take(&spec);
        let namespace = taken.as_ref().map(Taken::network).transpose()?;
        let mut supplies = Supplies::ready(&request, &spec, namespace, &self.disks, &self.namespaces)?;
        if !supplies.are_complete() {
            supplies = self.complete(supplies, deadline).await?;
        }
        let mut timings = StartTimings {
            network: supplies.namespace_took,
            rootfs: supplies.disks_took,
            ..StartTimings::default()
        };
        let (network, disks) = supplies.take()?;
        let kept = self.disks.keep(&disks);
        // Closed before what is kept of them, whatever happens: to end a disk takes milliseconds.
        let disks = disks;
        breakpoint::reach("daemon-prepared");
        let copied = |fd: &OwnedFd| fd.try_clone().map_err(|e| Error::host("cannot copy a descriptor", e));
        let lease = image.lease.descriptor().map(copied).transpose()?;
        let order = Order {
            id: &spec.id,
            deadline,
            leased: lease.is_some(),
            claimed: claim.is_some(),
            address: spec.address(),
            network: spec.network,
            oom: spec.oom,
            label: Label(spec.label.clone()),
            disks: Some(kept),
            slot: None,
        };
        let mut fds = vec![request.to_memfd()?, copied(&network)?];
        fds.extend(lease.into_iter().chain(claim.map(|claim| claim.lock)).chain(group).chain(disks));
        let network = Arc::new(network);
        let names = self.forward_names(&network, &resolver.upstreams).await?;
        let began = Instant::now();
        let keeper = self.keepers.living().await?;
        let order = Order { slot: taken.as_ref().and_then(|taken| taken.slot(&keeper)), ..order };
        let started = keeper.start(order, fds).await;
        drop(taken);
        self.ahead.refill();
        let started = started?;
        breakpoint::reach("daemon-started");
        timings.spawn = began.elapsed();
        timings.mounts = micros(started.steps.mounts_us);
        timings.create = micros(started.steps.create_us);
        timings.exec = micros(started.steps.exec_us);
        tracing::debug!(container = spec.id, ?timings, "started");
        let group = self.run.group().child(&spec.id);
        let recording = recorder.map(|recorder| {
            let (layers, ended) = (image.layers.clone(), started.ended.clone());
            self.recordings.begin(recorder, Subject { list, layers, group: group.clone(), ended })
        });
        Container::new(Parts {
            group,
            awake: self.run.awake(),
            recording,
            address: spec.address(),
            id: spec.id,
            network: Some(network),
            names,
            dialer: self.dialer.clone(),
            timings,
            started,
            label: spec.label,
            ran: Duration::ZERO,
            lasting: keeper.is_lasting(),
        })
    }

    async fn complete(&self, supplies: Supplies, deadline: Duration) -> Result<Supplies> {
        let (disks, namespaces) = (Arc::clone(&self.disks), Arc::clone(&self.namespaces));
        let made = tokio::task::spawn_blocking(move || supplies.complete(&disks, &namespaces));
        // A thread that waits for a filesystem cannot be killed: it ends when that answers.
        tokio::time::timeout(deadline, made).await.map_err(|_| not_prepared(deadline))?.map_err(panicked)?
    }

    /// Starts a forwarder for names where only the host reaches its servers. Whoever takes over a
    /// container from another process starts one again.
    async fn forward_names(
        &self,
        network: &Arc<OwnedFd>,
        upstreams: &[SocketAddr],
    ) -> Result<Option<Forwarder>> {
        if upstreams.is_empty() {
            return Ok(None);
        }
        Forwarder::start(&self.dialer, Arc::clone(network), upstreams).await.map(Some)
    }

    /// Begins to read ahead what a former start of the image touched, or makes what records it.
    fn accelerate(&self, how: Acceleration, list: &ListPath, image: &Image) -> Option<(Recorder, OwnedFd)> {
        match how {
            Acceleration::Off => None,
            Acceleration::On if list.exists() => {
                self.read_ahead.begin(list.clone(), image.layers.clone());
                None
            }
            Acceleration::On | Acceleration::Record => Recorder::new(rootfs_of(&self.run.mount_point())),
        }
    }

    /// Kills what still runs, ends the keeper and removes what this run made outside the store.
    /// Gathers errors and goes on; returns the first.
    ///
    /// # Errors
    /// `Host` when something could not be removed.
    pub async fn shutdown(&self) -> Result<()> {
        breakpoint::reach("daemon-shuts-down");
        self.ahead.close();
        self.namespaces.close();
        self.keepers.shutdown().await;
        self.recordings.finish().await;
        breakpoint::reach("daemon-kept-nothing");
        let (run, disks) = (self.run.clone(), Arc::clone(&self.disks));
        let removed = tokio::task::spawn_blocking(move || {
            disks.close();
            // The keeper has done so, unless it died.
            run.remove()
        });
        removed.await.map_err(panicked)?
    }
}

fn not_prepared(deadline: Duration) -> Error {
    Error::new(
        ErrorKind::StartTimedOut,
        format!("disks and network of a container were not ready within {} ms", deadline.as_millis()),
    )
    .advise("the host is overloaded, or the filesystem of the state directory hangs; see `skiff doctor`")
}

fn micros(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn panicked(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "a blocking step did not end").because(error)
}

/// A start that a former owner of a lasting run had under way, and that failed.
#[derive(Debug)]
#[non_exhaustive]
pub struct FailedStart {
    /// The name given at the start.
    pub id: String,
    /// What the owner gave to know it again.
    pub label: Vec<u8>,
    /// Why it failed.
    pub error: Error,
}
