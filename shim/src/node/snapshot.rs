//! What a scheduler places calls and functions by.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::{Stream, stream};
use serde::Serialize;

use super::revisions::blocking;
use super::{FunctionState, Node, NodeLimits};
use crate::Result;
use crate::pool::PoolStatus;

/// How often a watch looks for changes, and how often at the store, which is read from the disk.
const LOOK: Duration = Duration::from_millis(250);
const LOOK_AT_STORE: Duration = Duration::from_secs(5);

/// A node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// What all its functions may have together.
    pub limits: NodeLimits,
    /// Instances, those that start and stop and jobs among them.
    pub instances: usize,
    /// Sum of their memory sizes in MiB.
    pub memory_mib: u64,
    /// Functions that are deployed, by namespace and name.
    pub functions: Vec<FunctionSlots>,
    /// Names and digests of the images that are whole here.
    pub images: BTreeSet<String>,
}

/// What a node has of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FunctionSlots {
    /// scf namespace or fc 2.0 service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it can be called.
    pub state: FunctionState,
    /// The revision that takes calls.
    pub revision: Option<u64>,
    /// Memory of an instance in MiB.
    pub memory_mib: u32,
    /// Its instances and slots.
    pub slots: PoolStatus,
}

impl Snapshot {
    /// How many more instances of so many MiB fit beside those that there are; idle ones would give way to more.
    #[must_use]
    pub fn room_for(&self, memory_mib: u64) -> usize {
        self.limits.room_for(self.instances, self.memory_mib, memory_mib)
    }

    /// What the node has of a function, if it is deployed here.
    #[must_use]
    pub fn function(&self, namespace: Option<&str>, name: &str) -> Option<&FunctionSlots> {
        let is_it = |function: &&FunctionSlots| {
            function.name == name && namespace.is_none_or(|namespace| function.namespace == namespace)
        };
        self.functions.iter().find(is_it)
    }

    /// Slots of warm instances of a function that work on nothing.
    #[must_use]
    pub fn free_slots(&self, namespace: Option<&str>, name: &str) -> usize {
        self.function(namespace, name).map_or(0, |function| function.slots.free)
    }

    /// Whether an image is here, by a name in its full form (`docker.io/library/debian:12`) or by its digest.
    #[must_use]
    pub fn holds(&self, image: &str) -> bool {
        self.images.contains(image)
    }
}

impl Node {
    /// What there is now. Reads the store's lists.
    ///
    /// # Errors
    /// `Runtime(Host)` when the store cannot be read.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        Ok(self.snapshot_with(self.images().await?))
    }

    /// Names and digests of the images that are whole.
    async fn images(&self) -> Result<BTreeSet<String>> {
        let store = Arc::clone(self.runtime.store());
        let stored = blocking(move || Ok(store.images()?)).await?;
        let whole = stored.into_iter().filter(|image| image.complete);
        Ok(whole.flat_map(|image| image.names.into_iter().chain([image.digest])).collect())
    }

    fn snapshot_with(&self, images: BTreeSet<String>) -> Snapshot {
        let (used, limits) = (self.room.used(), self.room.limits());
        let slots = |info: super::FunctionInfo| FunctionSlots {
            namespace: info.namespace,
            name: info.name,
            state: info.state,
            revision: info.revision,
            memory_mib: info.memory_mib,
            slots: info.instances,
        };
        let functions = self.functions().into_iter().map(slots).collect();
        let (instances, memory_mib) = (used.instances, used.memory_mib);
        Snapshot { limits, instances, memory_mib, functions, images }
    }

    /// What there is now, and again whenever it has changed, at most four times a second: what a slow reader does
    /// not take is left out, and images are told within five seconds. It keeps no node open, and ends with it. A
    /// store that cannot be read ends it too.
    pub fn watch(self: &Arc<Self>) -> impl Stream<Item = Arc<Snapshot>> + Send + use<> {
        let begin = Watch { node: Arc::downgrade(self), last: None, read: Instant::now() };
        stream::unfold(begin, |mut watch| async move {
            let now = Arc::new(watch.next().await?);
            watch.last = Some(Arc::clone(&now));
            Some((now, watch))
        })
    }
}

/// Who follows a node.
struct Watch {
    node: Weak<Node>,
    last: Option<Arc<Snapshot>>,
    /// When the store was read last.
    read: Instant,
}

impl Watch {
    /// The next that is different; `None` when no more can come.
    async fn next(&mut self) -> Option<Snapshot> {
        loop {
            let Some(last) = self.last.clone() else {
                return self.node.upgrade()?.snapshot().await.ok();
            };
            tokio::time::sleep(LOOK).await;
            let node = self.node.upgrade()?;
            let images = if self.read.elapsed() >= LOOK_AT_STORE {
                self.read = Instant::now();
                node.images().await.ok()?
            } else {
                last.images.clone()
            };
            let now = node.snapshot_with(images);
            if now != *last {
                return Some(now);
            }
        }
    }
}
