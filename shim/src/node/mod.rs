//! One host's functions: deployed, called, replaced, deleted, and there again after a restart.
//!
//! ```text
//! deploy ─ parse ─ pull ─ start one instance ─ keep on disk ─ switch ─ drain the former revision
//!                  └── a failure: told, kept nowhere; the former revision goes on
//! ```
//!
//! Every deploy makes a revision, which never changes. Calls go to the current one. [`Node`] is what
//! `skiff serve` serves, and what an embedder opens in its own program:
//!
//! ```no_run
//! use futures_util::StreamExt as _;
//! use skiff::InvokeOptions;
//! use skiff::node::{Deployment, Node, NodeLimits, NodeOptions};
//!
//! # async fn example() -> skiff::Result<()> {
//! let mut options = NodeOptions::new("/var/lib/my-scheduler", "/run/my-scheduler");
//! options.limits = NodeLimits { max_instances: Some(100), memory_mib: Some(16 * 1024), ..NodeLimits::default() };
//! let node = Node::open(options).await?;
//! let file = "name = \"resize\"\nimage = \"registry.example.com/team/resize:1.0\"\n";
//! node.deploy(Deployment::new(file, "resize.toml")).await?;
//! let outcome = node.invoke(None, "resize", "{}".into(), InvokeOptions::default()).await?;
//! println!("{}", outcome.status);
//! let mut changes = std::pin::pin!(node.watch());
//! while let Some(now) = changes.next().await {
//!     println!("{} free slots, room for {}", now.free_slots(None, "resize"), now.room_for(512));
//! #   break;
//! }
//! node.shutdown().await
//! # }
//! ```

pub mod control;
mod deployed;
mod deployment;
mod functions;
mod info;
mod inherited;
mod logs;
mod metrics;
mod options;
mod pressure;
mod revisions;
mod shelf;
mod snapshot;
mod sockets;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
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
pub use self::options::NodeOptions;
use self::shelf::Shelf;
pub use self::snapshot::{FunctionSlots, Snapshot};
use self::sockets::Sockets;
use crate::api::{AccessKeys, Api, AsyncCalls, Function, Functions};
use crate::instance::Trace;
use crate::instance::traces::Traces;
use crate::meter::{Meter, MeterOptions};
pub use crate::pool::room::NodeLimits;
use crate::pool::room::Room;
use crate::proxy::Listener;
use crate::{
    Error, ErrorKind, EventOutcome, FunctionConfig, Instance, InvokeOptions, PullOptions, Result, Runtime,
};

/// Events that a slow subscriber may lag behind before it misses some.
const EVENTS: usize = 1024;

/// One host's functions.
pub struct Node {
    runtime: Arc<Runtime>,
    pull: PullOptions,
    logs: Arc<Book>,
    room: Arc<Room>,
    shelf: Arc<Shelf>,
    /// With a file for each instance that a later node may take over; `None` where there will be none.
    marks: Option<PathBuf>,
    /// Of former nodes.
    inherited: Inherited,
    sockets: Option<Sockets>,
    /// Of the invoke APIs and of the functions' own sockets.
    async_calls: AsyncCalls,
    meter: Option<Meter>,
    sums: Semaphore,
    streams: Arc<Semaphore>,
    functions: Mutex<BTreeMap<Key, Arc<Deployed>>>,
    events: broadcast::Sender<NodeEvent>,
    counted: NodeCounted,
    traces: Traces,
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
    /// `Busy` when another node has the state directory; as [`Runtime::open`]; `Runtime(Host)` when what was
    /// deployed cannot be read.
    pub async fn open(options: NodeOptions) -> Result<Arc<Self>> {
        // First: nobody else's things are touched.
        let shelf = Arc::new(Shelf::open(&options.runtime.state_dir)?);
        let meter = options.metering.map(|dir| Meter::open(&dir, MeterOptions::default())).transpose()?;
        let lasts = options.runtime.lasting.is_some();
        let logs = Arc::new(Book::open(options.logs, &options.runtime.state_dir)?);
        let runtime = Runtime::open(options.runtime).await?;
        let marks = if lasts { Some(inherited::marks(&runtime)?) } else { None };
        let (inherited, containers) = Inherited::of(&runtime)?;
        let (group, async_calls) = (options.socket_group, AsyncCalls::new(options.asynchronous));
        let open = |dir| Sockets::open(dir, group, Arc::clone(&runtime), async_calls.clone(), &inherited);
        let sockets = options.sockets.map(open).transpose()?;
        let mut containers = inherited::by_mark(containers, marks.as_deref());
        let node = Arc::new(Self {
            runtime,
            pull: options.pull,
            logs,
            room: Room::new(options.limits),
            shelf,
            marks,
            inherited,
            sockets,
            async_calls,
            meter,
            sums: Semaphore::new(usage::SUMS),
            streams: Arc::new(Semaphore::new(usage::STREAMS)),
            functions: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            counted: NodeCounted::default(),
            traces: Traces::exported(options.trace_export),
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
        if let Some(reserve_mib) = options.limits.reserve_mib {
            tokio::spawn(pressure::relieve(Arc::downgrade(&node.room), reserve_mib));
        }
        Ok(node)
    }

    /// All functions, by namespace and name.
    #[must_use]
    pub fn functions(&self) -> Vec<FunctionInfo> {
        self.all().iter().map(|deployed| deployed.info()).collect()
    }

    /// One function. Without a namespace the only one of that name is meant.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn function(&self, namespace: Option<&str>, name: &str) -> Result<FunctionInfo> {
        self.named(namespace, name).map(|(_, deployed)| deployed.info())
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

    /// The vendors' invoke APIs of its functions; signatures are checked when there are keys. What they take for
    /// later ends with the node, so nobody need close them.
    #[must_use]
    pub fn api(self: &Arc<Self>, keys: AccessKeys) -> Arc<Api> {
        Api::sharing(Arc::clone(self) as Arc<dyn Functions>, keys, &self.async_calls)
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
        self.all().iter().flat_map(|deployed| deployed.instances()).collect()
    }

    /// What one of the last 4,096 invocations took, step by step; of one that was tried again, its last try.
    #[must_use]
    pub fn trace(&self, request_id: &str) -> Option<Trace> {
        self.traces.find(request_id)
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

    fn room(&self) -> &Arc<Room> {
        &self.room
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
        self.async_calls.close().await;
        let all = std::mem::take(&mut *self.table());
        let ends = all.values().filter_map(|deployed| deployed.take());
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
        self.async_calls.close().await;
        let all = std::mem::take(&mut *self.table());
        let revisions: Vec<Arc<Revision>> = all.values().filter_map(|deployed| deployed.take()).collect();
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

    fn all(&self) -> Vec<Arc<Deployed>> {
        self.table().values().cloned().collect()
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

    fn tell(&self, config: &FunctionConfig, kind: NodeEventKind) {
        let event = NodeEvent::new(config, kind);
        tracing::info!(function = config.name, event = ?event.kind, "function");
        // Nobody need listen.
        let _ = self.events.send(event);
    }
}

fn not_found(namespace: Option<&str>, name: &str) -> Error {
    let place = namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    Error::new(ErrorKind::NotFound, format!("there is no function {name}{place}"))
        .advise("`skiff functions` lists those that are deployed")
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("functions", &self.table().len()).finish_non_exhaustive()
    }
}
