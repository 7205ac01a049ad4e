//! How revisions of functions come and go.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use skiff_runtime::Container;

use super::deployed::{Calls, Deployed, Revision};
use super::inherited::{self, Mark};
use super::shelf::Record;
use super::{Call, Deployment, FunctionInfo, Key, Node, NodeEventKind, Scaling, key, not_found};
use crate::function::Mode;
use crate::meter::Tap;
use crate::platform::Warning;
use crate::pool::observe::Watch;
use crate::pool::{Identity, Jobs, Known, Pool};
use crate::{Error, ErrorKind, FunctionConfig, Image, Instance, PullOptions, Result, Source};

/// How long the former revision may take for its last calls, besides the function's own time limit.
const DRAIN_GRACE: Duration = Duration::from_secs(10);

impl Node {
    /// Makes a revision of a function and switches to it when an instance of it is ready; the former one
    /// ends after its last call. Deploys of one function wait for each other.
    ///
    /// # Errors
    /// `InvalidFunction`; as [`Store::pull`](crate::Store::pull) and [`Instance::start`]. The former
    /// revision goes on then.
    pub async fn deploy(self: &Arc<Self>, deployment: Deployment) -> Result<(FunctionInfo, Vec<Warning>)> {
        let file = deployment.read()?;
        let image = file.image.ok_or_else(|| {
            let message = format!("the file of function {} names no image", file.config.name);
            Error::new(ErrorKind::InvalidFunction, message)
                .advise("add a line such as image = \"HOST/NAME:TAG\"")
        })?;
        let config = Arc::new(file.config);
        loop {
            let deployed = self.entry(&config);
            let _turn = deployed.turn().await;
            // One that was deleted meanwhile is not in the table any more.
            if !deployed.is_gone() {
                let info = self.replace(&deployed, &config, &image, &deployment).await?;
                return Ok((info, file.warnings));
            }
        }
    }

    /// In the function's turn.
    async fn replace(
        &self,
        deployed: &Arc<Deployed>,
        config: &Arc<FunctionConfig>,
        image: &str,
        deployment: &Deployment,
    ) -> Result<FunctionInfo> {
        let number = deployed.begin();
        self.tell(config, NodeEventKind::Deploying { revision: number, image: image.to_owned() });
        let made = Box::pin(self.make(deployed, number, image, config, deployment.scaling)).await;
        let kept = match made {
            Ok(revision) => self.keep(deployed, &revision, deployment).await.map(|()| revision),
            Err(error) => Err(error),
        };
        self.counted.deployed(kept.is_ok());
        match kept {
            Ok(revision) => {
                self.switch(deployed, revision);
                Ok(deployed.info())
            }
            Err(error) => {
                self.failed(deployed, config, number, &error);
                self.forget_if_empty(config, deployed);
                Err(error)
            }
        }
    }

    fn failed(&self, deployed: &Deployed, config: &FunctionConfig, revision: u64, error: &Error) {
        let reason = error.chain();
        deployed.failed(revision, reason.clone());
        self.tell(config, NodeEventKind::DeployFailed { revision, reason });
    }

    /// Takes a function away: no more calls, and its instances end after their last ones.
    ///
    /// # Errors
    /// `NotFound`; `Runtime(Host)` when it cannot be removed from the disk.
    pub async fn delete(&self, namespace: Option<&str>, name: &str) -> Result<()> {
        let (key, deployed) = self.named(namespace, name)?;
        let former = {
            let _turn = deployed.turn().await;
            // What is of that name by now is another.
            if deployed.is_gone() {
                return Err(not_found(namespace, name));
            }
            let (shelf, store, of) = (Arc::clone(&self.shelf), Arc::clone(self.runtime.store()), key.clone());
            let unpinned = blocking(move || shelf.remove(&of).map(|()| store.unpin(&owner(&of)))).await?;
            if let Err(error) = unpinned {
                tracing::warn!(function = key.1, error = error.chain(), "its image stays in the store");
            }
            if let Some(sockets) = &self.sockets {
                sockets.end(&key).await;
            }
            let former = deployed.take();
            self.table().remove(&key);
            former
        };
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

    /// Pulls and starts; whatever fails leaves nothing.
    async fn make(
        &self,
        deployed: &Deployed,
        number: u64,
        image: &str,
        config: &Arc<FunctionConfig>,
        scaling: Scaling,
    ) -> Result<Revision> {
        let source: Source = image.parse().map_err(Error::from)?;
        let options = PullOptions { limits: config.platform.image_limits(), ..self.pull.clone() };
        let (begun, clock) = (SystemTime::now(), Instant::now());
        let pulled = self.runtime.store().pull(&source, &options).await;
        self.counted.pulled(pulled.is_ok(), clock.elapsed());
        let pulled = match pulled {
            Ok(pulled) => pulled,
            Err(error) => {
                let logs = self.logs.sink(&key(config), config, number);
                return Err(Instance::pull_failed_told(config, error, logs).await);
            }
        };
        deployed.counted().pulled(&pulled.timings);
        if let Some(tap) = self.tap(number) {
            tap.pull(config, &pulled, begun);
        }
        let calls = self.calls(deployed, number, pulled.clone(), config, scaling, Vec::new()).await?;
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

    /// One whose instances could never be is told so at once.
    fn check_room(&self, config: &FunctionConfig) -> Result<()> {
        let (limits, memory_mib) = (self.room.limits(), config.memory_mib);
        let Some(limit) = limits.memory_mib.filter(|_| !limits.allow(memory_mib.into())) else {
            return Ok(());
        };
        let message = format!(
            "an instance of function {} has {memory_mib} MiB, all functions of the node together {limit} MiB",
            config.name
        );
        Err(Error::new(ErrorKind::InvalidFunction, message)
            .advise("give the function less memory, or the node more (`skiff serve --max-memory`)"))
    }

    /// What runs a revision, with the containers of it that a former node has left.
    async fn calls(
        &self,
        deployed: &Deployed,
        number: u64,
        image: Image,
        config: &Arc<FunctionConfig>,
        scaling: Scaling,
        containers: Vec<Container>,
    ) -> Result<Calls> {
        self.check_room(config)?;
        let (runtime, options) = (&self.runtime, scaling.pool(config.memory_mib));
        let logs = self.logs.sink(&key(config), config, number);
        let watch: Arc<dyn Watch> = Arc::clone(deployed.counted()) as _;
        let room = Some(Arc::clone(&self.room));
        let (tap, tracer) = (self.tap(number), Some(self.traces.of(number)));
        let mut known = Known { tap, tracer, watch: Some(watch), room, ..Known::default() };
        if config.mode == Mode::Job {
            containers.into_iter().for_each(|job| Jobs::go_on(job, config, Arc::clone(&logs)));
            let jobs = Jobs::open_known(runtime, image, config, logs, options, known)?;
            return Ok(Calls::Jobs(Arc::new(jobs)));
        }
        let label = Mark::new(&key(config), number).label();
        known.identity = self.marks.clone().map(|marks| Identity { label, marks });
        known.adopted = inherited::adopt(containers, &image, config, &logs, &known.ties()).await;
        Ok(Calls::Pool(Pool::open_known(runtime, image, config, logs, options, known)?))
    }

    /// Makes a revision outlast this process: its image and its record. What fails leaves the former's.
    async fn keep(&self, deployed: &Deployed, revision: &Revision, deployment: &Deployment) -> Result<()> {
        let (key, record) = (key(&revision.config), Record::of(revision, deployment));
        let (shelf, store) = (Arc::clone(&self.shelf), Arc::clone(self.runtime.store()));
        let (image, former) = (revision.held.clone(), deployed.image());
        blocking(move || {
            store.pin(&owner(&key), &image)?;
            shelf.put(&key, &record).inspect_err(|_| {
                // The error at hand is the one to tell.
                let _ = match former {
                    Some(former) => store.pin(&owner(&key), &former),
                    None => store.unpin(&owner(&key)).map(drop),
                };
            })
        })
        .await
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
    pub(super) fn put_back(self: &Arc<Self>, record: Record, containers: Vec<Container>) {
        let node = Arc::clone(self);
        let file = match record.deployment().read() {
            Ok(file) => file,
            Err(error) => {
                let error = error.chain();
                tracing::error!(function = record.name, error, "what was deployed is not understood");
                return;
            }
        };
        let config = Arc::new(file.config);
        let deployed = self.entry(&config);
        deployed.awaited(record.revision);
        self.open_socket(&config, &deployed);
        tokio::spawn(async move {
            let _turn = deployed.turn().await;
            match Box::pin(node.revive(&deployed, &record, &config, containers)).await {
                Ok(revision) => node.switch(&deployed, revision),
                Err(error) => {
                    let reason = error.chain();
                    tracing::error!(function = config.name, reason, "a deployed function is not there");
                    node.failed(&deployed, &config, record.revision, &error);
                }
            }
        });
    }

    /// From the image that is here, whatever its name means by now.
    async fn revive(
        &self,
        deployed: &Deployed,
        record: &Record,
        config: &Arc<FunctionConfig>,
        containers: Vec<Container>,
    ) -> Result<Revision> {
        let (store, digest) = (Arc::clone(self.runtime.store()), record.digest.clone());
        let (number, scaling) = (record.revision, record.scaling);
        let Some(image) = blocking(move || Ok(store.image(&digest)?)).await? else {
            // It was pinned: somebody removed it by hand.
            return Box::pin(self.make(deployed, number, &record.image, config, scaling)).await;
        };
        let calls = self.calls(deployed, number, image.clone(), config, scaling, containers).await?;
        Ok(Revision {
            number,
            config: Arc::clone(config),
            image: record.image.clone(),
            held: image,
            scaling,
            since: record.since(),
            calls,
        })
    }
}

/// For whom an image is pinned.
fn owner(key: &Key) -> String {
    format!("function {}/{}", key.0, key.1)
}

/// Does what waits for the disk, and not in the way of calls.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        let kind = ErrorKind::Runtime(skiff_runtime::ErrorKind::Internal);
        Err(Error::new(kind, "work on the disk did not end").because(error))
    })
}
