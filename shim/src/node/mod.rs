//! One host's functions: deployed, called, replaced, deleted, and there again after a restart.
//!
//! ```text
//! deploy ─ parse ─ pull ─ start one instance ─ keep on disk ─ switch ─ drain the former revision
//!                  └── a failure: told, kept nowhere; the former revision goes on
//! ```
//!
//! Every deploy makes a revision, which never changes. Calls go to the current one. [`Node`] is what
//! `skiff serve` serves, and what an embedder opens in its own program.

pub mod control;
mod deployed;
mod deployment;
mod info;
mod inherited;
mod logs;
mod metrics;
mod shelf;
mod sockets;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use skiff_runtime::Container;
use tokio::sync::{Semaphore, broadcast};

use self::deployed::{Call, Calls, Deployed, Revision};
pub use self::deployment::{Deployment, Scaling};
pub use self::info::{
    FunctionInfo, FunctionState, InstanceInfo, InstanceState, LastUpdate, NodeEvent, NodeEventKind,
    UpdateStatus,
};
use self::inherited::{Inherited, Mark};
use self::logs::Book;
pub use self::logs::{LineForm, LogFiles, LogQuery, LogTarget, NodeLogs};
use self::metrics::{NodeCollector, NodeCounted, Seen};
use self::shelf::{Record, Shelf};
use self::sockets::Sockets;
use crate::api::{Function, Functions, Missing, Target};
use crate::function::Mode;
use crate::meter::{Meter, MeterOptions, Tap};
use crate::platform::Warning;
use crate::pool::observe::Watch;
use crate::pool::{Identity, Jobs, Known, Pool};
use crate::proxy::Listener;
use crate::{
    Error, ErrorKind, EventOutcome, FunctionConfig, Image, Instance, InvokeOptions, PullOptions, Result,
    Runtime, RuntimeOptions, Source,
};

/// Events that a slow subscriber may lag behind before it misses some.
const EVENTS: usize = 1024;

/// How long the former revision may take for its last calls, besides the function's own time limit.
const DRAIN_GRACE: Duration = Duration::from_secs(10);

/// How a node works.
#[derive(Clone)]
pub struct NodeOptions {
    /// Where it keeps its things. The instances of a lasting run ([`RuntimeOptions::lasting`]) outlive this
    /// process, and the next node of that name takes them over; those of another end with it.
    pub runtime: RuntimeOptions,
    /// How images are pulled.
    pub pull: PullOptions,
    /// Where log lines go.
    pub logs: NodeLogs,
    /// A directory with a socket for each function, `NAME.sock` (fc) or `NAMESPACE.NAME.sock` (fc2, scf), to
    /// pass HTTP requests on; `None` has none.
    pub sockets: Option<PathBuf>,
    /// A directory with a record of each invocation and pull, for billing; see [`meter`](crate::meter).
    /// `None` keeps none.
    pub metering: Option<PathBuf>,
}

impl fmt::Debug for NodeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeOptions").field("runtime", &self.runtime).finish_non_exhaustive()
    }
}

/// One host's functions.
pub struct Node {
    runtime: Arc<Runtime>,
    pull: PullOptions,
    logs: Arc<Book>,
    shelf: Shelf,
    /// With a file for each instance that a later node may take over; `None` where there will be none.
    marks: Option<PathBuf>,
    /// Of former nodes.
    inherited: Inherited,
    sockets: Option<Sockets>,
    meter: Option<Meter>,
    sums: Semaphore,
    streams: Arc<Semaphore>,
    functions: Mutex<BTreeMap<Key, Arc<Deployed>>>,
    events: broadcast::Sender<NodeEvent>,
    counted: NodeCounted,
}

/// Namespace (fc 2.0: service) and name. fc 3.0 has one namespace.
type Key = (String, String);

fn key(config: &FunctionConfig) -> Key {
    (config.namespace.clone(), config.name.clone())
}

impl Node {
    /// Opens the node of these directories. Functions that were deployed there are started again, beside
    /// everything else; until they are, calls wait for them.
    ///
    /// # Errors
    /// `Busy` when another node has the state directory; as [`Runtime::open`]; `Runtime(Host)` when what was deployed cannot be read.
    pub async fn open(options: NodeOptions) -> Result<Arc<Self>> {
        // First: nobody else's things are touched.
        let shelf = Shelf::open(&options.runtime.state_dir)?;
        let meter = options.metering.map(|dir| Meter::open(&dir, MeterOptions::default())).transpose()?;
        let lasts = options.runtime.lasting.is_some();
        let logs = Arc::new(Book::open(options.logs, &options.runtime.state_dir)?);
        let runtime = Runtime::open(options.runtime).await?;
        let marks = if lasts { Some(inherited::marks(&runtime)?) } else { None };
        let (inherited, containers) = Inherited::of(&runtime)?;
        let open = |dir| Sockets::open(dir, Arc::clone(&runtime), &inherited);
        let sockets = options.sockets.map(open).transpose()?;
        let mut containers = inherited::by_mark(containers, marks.as_deref());
        let node = Arc::new(Self {
            runtime,
            pull: options.pull,
            logs,
            shelf,
            marks,
            inherited,
            sockets,
            meter,
            sums: Semaphore::new(usage::SUMS),
            streams: Arc::new(Semaphore::new(usage::STREAMS)),
            functions: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            counted: NodeCounted::default(),
        });
        for record in node.shelf.records()? {
            let mark = Mark::new(&(record.namespace.clone(), record.name.clone()), record.revision);
            node.put_back(record, containers.remove(&mark).unwrap_or_default());
        }
        // What is of no current revision is killed by being dropped here, and so are starts that former
        // nodes had under way.
        drop(containers);
        let runtime = Arc::clone(&node.runtime);
        tokio::spawn(async move {
            runtime.starts_settled().await;
            drop((runtime.adopted(), runtime.failed_starts()));
        });
        node.sweep_logs();
        Ok(node)
    }

    /// Makes a revision of a function and switches to it when an instance of it is ready; the former one
    /// ends after its last call. Deploys of one function wait for each other.
    ///
    /// # Errors
    /// `InvalidFunction`; as [`Store::pull`](crate::Store::pull) and [`Instance::start`]. The former
    /// revision goes on then.
    pub async fn deploy(self: &Arc<Self>, deployment: Deployment) -> Result<(FunctionInfo, Vec<Warning>)> {
        let file = deployment.read()?;
        let image = file.image.clone().ok_or_else(|| {
            let message = format!("the file of function {} names no image", file.config.name);
            Error::new(ErrorKind::InvalidFunction, message)
                .advise("add a line such as image = \"HOST/NAME:TAG\"")
        })?;
        let config = Arc::new(file.config);
        let deployed = self.entry(&config);
        let _turn = deployed.turn().await;
        if deployed.is_gone() {
            return Err(Error::new(ErrorKind::Busy, format!("function {} is being deleted", config.name))
                .advise("deploy it again"));
        }
        let number = deployed.begin();
        self.tell(&config, NodeEventKind::Deploying { revision: number, image: image.clone() });
        let made = Box::pin(self.make(number, &image, &config, deployment.scaling)).await;
        let kept = match made {
            Ok(revision) => self.keep(&revision, &deployment).map(|()| revision),
            Err(error) => Err(error),
        };
        self.counted.deployed(kept.is_ok());
        match kept {
            Ok(revision) => {
                self.switch(&deployed, revision);
                Ok((deployed.info(), file.warnings))
            }
            Err(error) => {
                deployed.failed(number, error.chain());
                self.tell(&config, NodeEventKind::DeployFailed { revision: number, reason: error.chain() });
                self.forget_if_empty(&config, &deployed);
                Err(error)
            }
        }
    }

    /// All functions, by namespace and name.
    #[must_use]
    pub fn functions(&self) -> Vec<FunctionInfo> {
        let all: Vec<Arc<Deployed>> = self.table().values().cloned().collect();
        all.iter().map(|deployed| deployed.info()).collect()
    }

    /// One function. Without a namespace the only one of that name is meant.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn function(&self, namespace: Option<&str>, name: &str) -> Result<FunctionInfo> {
        self.named(namespace, name).map(|(_, deployed)| deployed.info())
    }

    /// Takes a function away: no more calls, and its instances end after their last ones.
    ///
    /// # Errors
    /// `NotFound`; `Runtime(Host)` when it cannot be removed from the disk.
    pub async fn delete(&self, namespace: Option<&str>, name: &str) -> Result<()> {
        let (key, deployed) = self.named(namespace, name)?;
        let _turn = deployed.turn().await;
        self.shelf.remove(&key)?;
        self.unpin(&key);
        if let Some(sockets) = &self.sockets {
            sockets.end(&key).await;
        }
        let former = deployed.take();
        self.table().remove(&key);
        if let Some(revision) = former {
            self.tell(&revision.config, NodeEventKind::Deleted);
            revision.drain(DRAIN_GRACE).await;
        }
        let removed = {
            let table = self.table();
            // One that has been deployed again meanwhile goes on with the log of the former.
            (!table.contains_key(&key)).then(|| self.logs.remove(&key))
        };
        if let Some(removed) = removed {
            removed.await;
        }
        Ok(())
    }

    /// The log of a function, as a stream of parts of whole lines; each line is a JSON object with `time`,
    /// `instance`, `revision`, `stream`, `request_id` (where it is known) and `line`. It ends when the function
    /// is deleted. A function whose first deploy has failed has a log too.
    ///
    /// # Errors
    /// `NotFound`, also where the node keeps no logs; `Runtime(Host)`.
    pub async fn logs(
        &self,
        namespace: Option<&str>,
        name: &str,
        query: LogQuery,
    ) -> Result<impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + use<>> {
        let key = match self.named(namespace, name) {
            Ok((key, _)) => key,
            Err(error) => match self.logs.named(namespace, name).as_slice() {
                [key] => key.clone(),
                _ => return Err(error),
            },
        };
        logs::lines(&self.logs, key, query).await
    }

    fn sweep_logs(&self) {
        let deployed: BTreeSet<Key> = self.table().keys().cloned().collect();
        self.logs.sweep(&deployed);
    }

    /// Invokes a function with an event.
    ///
    /// # Errors
    /// `NotFound`. What fails later is an outcome.
    pub async fn invoke(
        &self,
        namespace: Option<&str>,
        name: &str,
        event: Bytes,
        options: InvokeOptions,
    ) -> Result<EventOutcome> {
        let (_, deployed) = self.named(namespace, name)?;
        Ok(Call::of(&deployed).invoke(event, options).await)
    }

    /// All instances, by function; those of former revisions that work on their last calls too. Reads what they
    /// use from their cgroups.
    #[must_use]
    pub fn instances(&self) -> Vec<InstanceInfo> {
        let all: Vec<Arc<Deployed>> = self.table().values().cloned().collect();
        all.iter().flat_map(|deployed| deployed.instances()).collect()
    }

    /// What the node and its functions count, as the OpenMetrics text that Prometheus reads. Reads what instances
    /// use from their cgroups.
    #[must_use]
    pub fn metrics(self: &Arc<Self>) -> String {
        // Memory can be written.
        metrics::text(self).unwrap_or_default()
    }

    /// The same for a registry of the caller's. It keeps no node open.
    #[must_use]
    pub fn collector(self: &Arc<Self>) -> Box<dyn prometheus_client::collector::Collector> {
        Box::new(NodeCollector(Arc::downgrade(self)))
    }

    fn counted(&self) -> &NodeCounted {
        &self.counted
    }

    fn seen(&self) -> Vec<Seen> {
        let all: Vec<(Key, Arc<Deployed>)> =
            self.table().iter().map(|(key, deployed)| (key.clone(), Arc::clone(deployed))).collect();
        let seen = |(key, deployed): &(Key, Arc<Deployed>)| Seen {
            info: deployed.info(),
            instances: deployed.instances(),
            counted: Arc::clone(deployed.counted()),
            lost_lines: self.logs.lost(key),
        };
        all.iter().map(seen).collect()
    }

    /// What happens to functions from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.events.subscribe()
    }

    /// The runtime below.
    #[must_use]
    pub fn runtime(&self) -> &Arc<Runtime> {
        &self.runtime
    }

    /// Stops all instances with their functions' grace and cleans up. What is deployed stays so, for the next
    /// [`Node::open`].
    ///
    /// # Errors
    /// As [`Runtime::shutdown`].
    pub async fn shutdown(&self) -> Result<()> {
        if let Some(sockets) = &self.sockets {
            sockets.close().await;
        }
        let all: Vec<Arc<Deployed>> = self.table().values().cloned().collect();
        let ends = all.iter().filter_map(|deployed| deployed.take());
        futures_util::future::join_all(ends.map(|revision| async move { revision.calls.close().await }))
            .await;
        let ended = self.runtime.shutdown().await;
        self.logs.close().await;
        // Last: what ended just now is noted too.
        if let Some(meter) = &self.meter {
            meter.close().await;
        }
        Ok(ended?)
    }

    /// Leaves everything to the next node of a lasting run: takes no more calls here, lets those that run end
    /// within a grace of 10 s, and lets instances go on. Whoever connects meanwhile waits for the next node.
    /// Of a run that is not lasting, this is as [`Node::shutdown`].
    ///
    /// # Errors
    /// As [`Runtime::shutdown`].
    pub async fn detach(&self) -> Result<()> {
        if self.marks.is_none() {
            return self.shutdown().await;
        }
        if let Some(sockets) = &self.sockets {
            sockets.leave().await;
        }
        let all: Vec<Arc<Deployed>> = self.table().values().cloned().collect();
        let revisions: Vec<Arc<Revision>> = all.iter().filter_map(|deployed| deployed.take()).collect();
        // First: to the instances the end of the keeper's connection would be their own. And held until then,
        // since dropping one kills it.
        let leave = |revision: &Arc<Revision>| match &revision.calls {
            Calls::Pool(pool) => pool.leave(),
            Calls::Jobs(_) => Vec::new(),
        };
        let held: Vec<Vec<Arc<Instance>>> = revisions.iter().map(leave).collect();
        self.runtime.detach().await;
        drop((held, revisions));
        // The logs are not closed: what their writer has not taken is in the pipes still, for the next node.
        if let Some(meter) = &self.meter {
            meter.close().await;
        }
        Ok(())
    }

    /// A socket that a former node kept ([`Node::keep_socket`]) and that nobody has taken yet.
    #[must_use]
    pub fn inherited_socket(&self, name: &str) -> Option<OwnedFd> {
        self.inherited.take(name)
    }

    /// Keeps a listening socket for the next node, if there will be one.
    ///
    /// # Errors
    /// As [`Runtime::hold_socket`].
    pub async fn keep_socket(&self, name: &str, listener: &Listener) -> Result<()> {
        Ok(self.runtime.hold_socket(name, listener.descriptor()).await?)
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Deployed>>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, config: &Arc<FunctionConfig>) -> Arc<Deployed> {
        let mut table = self.table();
        Arc::clone(table.entry(key(config)).or_insert_with(|| Arc::new(Deployed::new(config))))
    }

    fn named(&self, namespace: Option<&str>, name: &str) -> Result<(Key, Arc<Deployed>)> {
        let table = self.table();
        let is_it = |key: &Key| key.1 == name && namespace.is_none_or(|namespace| key.0 == namespace);
        let mut found = table.iter().filter(|(key, _)| is_it(key));
        let (key, deployed) = found.next().ok_or_else(|| not_found(namespace, name))?;
        if found.next().is_some() {
            let message = format!("there are functions named {name} in several namespaces");
            return Err(Error::new(ErrorKind::NotFound, message).advise("name the namespace too"));
        }
        Ok((key.clone(), Arc::clone(deployed)))
    }

    /// Pulls and starts; whatever fails leaves nothing.
    async fn make(
        &self,
        number: u64,
        image: &str,
        config: &Arc<FunctionConfig>,
        scaling: Scaling,
    ) -> Result<Revision> {
        let source: Source = image.parse().map_err(Error::from)?;
        let options = PullOptions { limits: config.platform.image_limits(), ..self.pull.clone() };
        let begun = SystemTime::now();
        let clock = Instant::now();
        let pulled = self.runtime.store().pull(&source, &options).await;
        self.counted.pulled(pulled.is_ok(), clock.elapsed());
        let pulled = pulled.map_err(|error| Instance::pull_failed(config, error))?;
        self.entry(config).counted().pulled(&pulled.timings);
        if let Some(tap) = self.tap(number) {
            tap.pull(config, &pulled, begun);
        }
        let calls = self.calls(number, pulled.clone(), config, scaling, Vec::new()).await?;
        if let Err(error) = calls.prove().await {
            calls.close().await;
            return Err(error);
        }
        Ok(Revision {
            number,
            config: Arc::clone(config),
            image: image.to_owned(),
            held: pulled,
            scaling,
            since: SystemTime::now(),
            calls,
        })
    }

    fn tap(&self, revision: u64) -> Option<Tap> {
        self.meter.as_ref().map(|meter| Tap::new(meter, revision))
    }

    /// What runs a revision, with the containers of it that a former node has left.
    async fn calls(
        &self,
        number: u64,
        image: Image,
        config: &Arc<FunctionConfig>,
        scaling: Scaling,
        containers: Vec<Container>,
    ) -> Result<Calls> {
        let (runtime, options) = (&self.runtime, scaling.pool());
        let logs = self.logs.sink(&key(config), config, number);
        let watch: Arc<dyn Watch> = Arc::clone(self.entry(config).counted()) as _;
        let tap = self.tap(number);
        if config.mode == Mode::Job {
            containers.into_iter().for_each(|job| Jobs::go_on(job, config, Arc::clone(&logs)));
            let known = Known { tap, watch: Some(watch), ..Known::default() };
            return Ok(Calls::Jobs(Arc::new(Jobs::open_known(
                runtime, image, config, logs, options, known,
            )?)));
        }
        let label = Mark::new(&key(config), number).label();
        let identity = self.marks.clone().map(|marks| Identity { label, marks });
        let adopted = inherited::adopt(containers, &image, config, &logs, tap.as_ref()).await;
        let known = Known { identity, tap, adopted, watch: Some(watch) };
        Ok(Calls::Pool(Pool::open_known(runtime, image, config, logs, options, known)?))
    }

    /// Makes a revision outlast this process: its image and its record.
    fn keep(&self, revision: &Revision, deployment: &Deployment) -> Result<()> {
        let key = key(&revision.config);
        // Blocks for some file operations, as everything of a deploy may.
        self.runtime.store().pin(&owner(&key), &revision.held)?;
        self.shelf.put(&key, &Record::of(revision, deployment))
    }

    fn unpin(&self, key: &Key) {
        if let Err(error) = self.runtime.store().unpin(&owner(key)) {
            tracing::warn!(function = key.1, error = error.chain(), "its image stays in the store");
        }
    }

    fn switch(&self, deployed: &Arc<Deployed>, revision: Revision) {
        let (config, number) = (Arc::clone(&revision.config), revision.number);
        self.open_socket(&config, deployed);
        let former = deployed.switch(Arc::new(revision));
        self.tell(&config, NodeEventKind::Deployed { revision: number });
        if let Some(former) = former {
            tokio::spawn(async move { former.drain(DRAIN_GRACE).await });
        }
    }

    /// A socket that cannot be had keeps no function from being called otherwise.
    fn open_socket(&self, config: &FunctionConfig, deployed: &Arc<Deployed>) {
        let Some(sockets) = &self.sockets else { return };
        let namespaced = config.platform.name() != crate::platform::fc().name();
        let call = Arc::new(Call::of(deployed));
        if let Err(error) = sockets.serve(&key(config), namespaced, call, &self.inherited) {
            tracing::error!(function = config.name, error = error.chain(), "a function has no socket");
        }
    }

    /// A function whose first deploy failed is none.
    fn forget_if_empty(&self, config: &FunctionConfig, deployed: &Arc<Deployed>) {
        if deployed.is_empty() {
            deployed.take();
            self.table().remove(&key(config));
            self.sweep_logs();
        }
    }

    /// Starts a function that was deployed by a former process.
    fn put_back(self: &Arc<Self>, record: Record, containers: Vec<Container>) {
        let node = Arc::clone(self);
        let file = match record.deployment().read() {
            Ok(file) => file,
            Err(error) => {
                tracing::error!(
                    function = record.name,
                    error = error.chain(),
                    "what was deployed is not understood"
                );
                return;
            }
        };
        let config = Arc::new(file.config);
        let deployed = self.entry(&config);
        deployed.awaited(record.revision);
        self.open_socket(&config, &deployed);
        tokio::spawn(async move {
            let _turn = deployed.turn().await;
            match Box::pin(node.revive(&record, &config, containers)).await {
                Ok(revision) => node.switch(&deployed, revision),
                Err(error) => {
                    deployed.failed(record.revision, error.chain());
                    let reason = error.chain();
                    tracing::error!(
                        function = config.name,
                        error = reason,
                        "a deployed function is not there"
                    );
                    node.tell(&config, NodeEventKind::DeployFailed { revision: record.revision, reason });
                }
            }
        });
    }

    /// From the image that is here, whatever its name means by now.
    async fn revive(
        &self,
        record: &Record,
        config: &Arc<FunctionConfig>,
        containers: Vec<Container>,
    ) -> Result<Revision> {
        let (store, digest) = (Arc::clone(self.runtime.store()), record.digest.clone());
        let found = tokio::task::spawn_blocking(move || store.image(&digest)).await;
        let found = found.map_err(|error| {
            Error::new(ErrorKind::Runtime(skiff_runtime::ErrorKind::Internal), "looking for an image failed")
                .because(error)
        })??;
        let Some(image) = found else {
            // It was pinned: somebody removed it by hand.
            return Box::pin(self.make(record.revision, &record.image, config, record.scaling)).await;
        };
        let calls = self.calls(record.revision, image.clone(), config, record.scaling, containers).await?;
        Ok(Revision {
            number: record.revision,
            config: Arc::clone(config),
            image: record.image.clone(),
            held: image,
            scaling: record.scaling,
            since: record.since(),
            calls,
        })
    }

    fn tell(&self, config: &FunctionConfig, kind: NodeEventKind) {
        let event = NodeEvent::new(config, kind);
        tracing::info!(function = config.name, event = ?event.kind, "function");
        // Nobody need listen.
        let _ = self.events.send(event);
    }
}

/// For whom an image is pinned.
fn owner(key: &Key) -> String {
    format!("function {}/{}", key.0, key.1)
}

fn not_found(namespace: Option<&str>, name: &str) -> Error {
    let place = namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    Error::new(ErrorKind::NotFound, format!("there is no function {name}{place}"))
        .advise("`skiff functions` lists those that are deployed")
}

/// The invoke APIs find functions here.
impl Functions for Node {
    fn find(&self, target: &Target) -> std::result::Result<Arc<dyn Function>, Missing> {
        let table = self.table();
        let named: Vec<&Arc<Deployed>> = table
            .iter()
            .filter(|(key, _)| target.namespace.as_ref().is_none_or(|namespace| key.0 == *namespace))
            .map(|(_, deployed)| deployed)
            .collect();
        if named.is_empty() && target.namespace.is_some() {
            return Err(Missing::Namespace);
        }
        let mut missing = Missing::Function;
        for deployed in named {
            match crate::api::matches(&deployed.config(), target) {
                Ok(()) => return Ok(Arc::new(Call::of(deployed))),
                Err(Missing::Qualifier) => missing = Missing::Qualifier,
                Err(_) => {}
            }
        }
        Err(missing)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("functions", &self.table().len()).finish_non_exhaustive()
    }
}
