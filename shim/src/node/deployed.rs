//! One function: its current revision, those that are being made, and who uses what.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::{Request, Response};
use tokio::sync::watch;

use super::deployment::Scaling;
use super::info::{FunctionInfo, FunctionState, InstanceInfo, LastUpdate, UpdateStatus};
use super::metrics::{Counted, Running};
use crate::api::Function;
use crate::platform::{InvocationKind, PlatformAnswer, StartCause, StartFailure};
use crate::pool::{Jobs, Member, Pool, PoolOptions, PoolStatus};
use crate::proxy::body::Body;
use crate::proxy::{Later, of_platform, over_http};
use crate::{EventOutcome, FunctionConfig, Image, InvokeOptions, Result};

/// How often it is looked whether a former revision works on something still.
const DRAIN_INTERVAL: Duration = Duration::from_millis(20);

/// What runs a revision.
pub(super) enum Calls {
    Pool(Pool),
    Jobs(Arc<Jobs>),
}

impl Calls {
    pub(super) fn function(&self) -> Arc<dyn Function> {
        match self {
            Self::Pool(pool) => Arc::new(pool.clone()),
            Self::Jobs(jobs) => Arc::clone(jobs) as Arc<dyn Function>,
        }
    }

    /// Starts an instance, if there is none. What has a container for each event is taken as it is.
    pub(super) async fn prove(&self) -> Result<()> {
        match self {
            Self::Pool(pool) => pool.prove().await,
            Self::Jobs(_) => Ok(()),
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Pool(pool) => pool.close().await,
            Self::Jobs(jobs) => jobs.close().await,
        }
    }

    fn status(&self) -> PoolStatus {
        match self {
            Self::Pool(pool) => pool.status(),
            Self::Jobs(jobs) => jobs.status(),
        }
    }

    fn members(&self) -> Vec<Member> {
        match self {
            Self::Pool(pool) => pool.members(),
            Self::Jobs(jobs) => jobs.members(),
        }
    }
}

/// One version of a function, which never changes.
pub(super) struct Revision {
    pub(super) number: u64,
    pub(super) config: Arc<FunctionConfig>,
    /// The image's name as it was deployed.
    pub(super) image: String,
    /// What the name meant then.
    pub(super) held: Image,
    pub(super) scaling: Scaling,
    pub(super) since: SystemTime,
    pub(super) calls: Calls,
}

impl Revision {
    /// Waits until it works on nothing any more, as long as its calls may take and `grace` longer; then
    /// stops its instances. Nobody may begin to use it any more.
    pub(super) async fn drain(self: Arc<Self>, grace: Duration) {
        let until = Instant::now() + self.config.timeout + grace;
        let busy = || {
            let status = self.calls.status();
            // One is the caller's own.
            Arc::strong_count(&self) > 1 || status.running > 0 || status.waiting > 0
        };
        while busy() && Instant::now() < until {
            tokio::time::sleep(DRAIN_INTERVAL).await;
        }
        self.calls.close().await;
    }
}

/// One function of a node.
pub(super) struct Deployed {
    /// Held by who deploys or deletes.
    turn: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
    /// What has happened to it since the node has it.
    counted: Arc<Counted>,
}

struct Inner {
    /// Of the current revision, or of the one that is to be the first.
    config: Arc<FunctionConfig>,
    current: Option<Arc<Revision>>,
    /// Revisions that may work on their last calls still.
    former: Vec<Weak<Revision>>,
    last_number: u64,
    update: Option<LastUpdate>,
    /// It was deployed by a former process and is being started: calls wait.
    awaited: bool,
    gone: bool,
}

impl Deployed {
    pub(super) fn new(config: &Arc<FunctionConfig>) -> Self {
        let inner = Inner {
            config: Arc::clone(config),
            current: None,
            former: Vec::new(),
            last_number: 0,
            update: None,
            awaited: false,
            gone: false,
        };
        Self {
            turn: tokio::sync::Mutex::default(),
            inner: Mutex::new(inner),
            changed: watch::Sender::new(()),
            counted: Arc::default(),
        }
    }

    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a revision that is to be made.
    pub(super) fn begin(&self) -> u64 {
        let mut inner = self.inner();
        inner.last_number += 1;
        let revision = inner.last_number;
        inner.update = Some(LastUpdate { revision, status: UpdateStatus::InProgress, reason: None });
        revision
    }

    /// A revision that a former process made is being started.
    pub(super) fn awaited(&self, revision: u64) {
        let mut inner = self.inner();
        (inner.awaited, inner.last_number) = (true, revision);
        inner.update = Some(LastUpdate { revision, status: UpdateStatus::InProgress, reason: None });
    }

    pub(super) fn failed(&self, revision: u64, reason: String) {
        {
            let mut inner = self.inner();
            inner.awaited = false;
            inner.update = Some(LastUpdate { revision, status: UpdateStatus::Failed, reason: Some(reason) });
        }
        self.changed.send_replace(());
    }

    /// Makes a revision the current one; gives the former.
    pub(super) fn switch(&self, revision: Arc<Revision>) -> Option<Arc<Revision>> {
        let former = {
            let mut inner = self.inner();
            let (number, status) = (revision.number, UpdateStatus::Successful);
            inner.update = Some(LastUpdate { revision: number, status, reason: None });
            (inner.awaited, inner.config) = (false, Arc::clone(&revision.config));
            let former = inner.current.replace(revision);
            inner.former.retain(|revision| revision.strong_count() > 0);
            inner.former.extend(former.as_ref().map(Arc::downgrade));
            former
        };
        self.changed.send_replace(());
        former
    }

    /// Takes the current revision away for good.
    pub(super) fn take(&self) -> Option<Arc<Revision>> {
        let former = {
            let mut inner = self.inner();
            (inner.gone, inner.awaited) = (true, false);
            inner.current.take()
        };
        self.changed.send_replace(());
        former
    }

    /// What has happened to it since the node has it.
    pub(super) fn counted(&self) -> &Arc<Counted> {
        &self.counted
    }

    /// The instances of all its revisions; one without an id starts.
    pub(super) fn instances(&self) -> Vec<InstanceInfo> {
        let (current, former) = {
            let inner = self.inner();
            (inner.current.clone(), inner.former.iter().filter_map(Weak::upgrade).collect::<Vec<_>>())
        };
        let mut instances = Vec::new();
        for revision in current.iter().chain(&former) {
            let leaves = !current.as_ref().is_some_and(|current| Arc::ptr_eq(current, revision));
            let of = |member| InstanceInfo::of(&revision.config, revision.number, member, leaves);
            instances.extend(revision.calls.members().into_iter().map(of));
            let starting = revision.calls.status().starting;
            instances
                .extend((0..starting).map(|_| InstanceInfo::starting(&revision.config, revision.number)));
        }
        instances
    }

    /// The image of the current revision.
    pub(super) fn image(&self) -> Option<Image> {
        self.inner().current.as_ref().map(|revision| revision.held.clone())
    }

    pub(super) fn is_gone(&self) -> bool {
        self.inner().gone
    }

    pub(super) fn is_empty(&self) -> bool {
        let inner = self.inner();
        inner.current.is_none() && !inner.awaited
    }

    pub(super) fn config(&self) -> Arc<FunctionConfig> {
        Arc::clone(&self.inner().config)
    }

    /// How many calls its current revision can work on at once; one, where there is none.
    fn places(&self) -> usize {
        let inner = self.inner();
        let of =
            |revision: &Revision| revision.scaling.pool(revision.config.memory_mib).places(&revision.config);
        inner.current.as_deref().map_or(1, of)
    }

    /// The current revision, in use as long as the caller has it; `None` where there is none.
    pub(super) async fn current(&self) -> Option<Arc<Revision>> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            {
                let inner = self.inner();
                if !inner.awaited {
                    return inner.current.clone();
                }
            }
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    pub(super) fn info(&self) -> FunctionInfo {
        let inner = self.inner();
        let config = &inner.config;
        let state = match (&inner.current, inner.update.as_ref().map(|update| update.status)) {
            (Some(_), _) => FunctionState::Active,
            (None, Some(UpdateStatus::Failed)) => FunctionState::Failed,
            (None, _) if config.acceleration => FunctionState::Preparing,
            (None, _) => FunctionState::Pending,
        };
        let current = inner.current.as_deref();
        FunctionInfo {
            namespace: config.namespace.clone(),
            name: config.name.clone(),
            platform: config.platform.name(),
            state,
            revision: current.map(|revision| revision.number),
            deployed: current.map(|revision| revision.since),
            image: current.map(|revision| revision.image.clone()),
            digest: current.map(|revision| revision.held.digest.clone()),
            memory_mib: config.memory_mib,
            concurrency: config.concurrency,
            timeout_s: config.timeout.as_secs(),
            scaling: current.map(|revision| revision.scaling).unwrap_or_default(),
            instances: current.map(|revision| revision.calls.status()).unwrap_or_default(),
            calls: self.counted.calls(),
            last_update: inner.update.clone(),
        }
    }

    fn why_not(&self) -> String {
        let inner = self.inner();
        let reason = inner.update.as_ref().and_then(|update| update.reason.as_deref());
        match reason {
            Some(reason) => format!("function {} is in state Failed: {reason}", inner.config.name),
            None => {
                let state = if inner.config.acceleration { "Preparing" } else { "Pending" };
                format!("function {} is in state {state}", inner.config.name)
            }
        }
    }
}

/// A function that was found for one call.
pub(super) struct Call {
    config: Arc<FunctionConfig>,
    deployed: Arc<Deployed>,
}

impl Call {
    pub(super) fn of(deployed: &Arc<Deployed>) -> Self {
        Self { config: deployed.config(), deployed: Arc::clone(deployed) }
    }
}

impl Function for Call {
    fn config(&self) -> &FunctionConfig {
        &self.config
    }

    fn by_now(&self) -> Option<Arc<dyn Function>> {
        Some(Arc::new(Self::of(&self.deployed)))
    }

    fn longest(&self) -> Duration {
        let config = self.deployed.config();
        config.start_deadline() + config.timeout + PoolOptions::default().patience
    }

    fn places(&self) -> usize {
        self.deployed.places()
    }

    fn invoke(&self, event: Bytes, options: InvokeOptions) -> BoxFuture<'_, EventOutcome> {
        async move {
            let mut running = Running::begin(self.deployed.counted());
            let outcome = match self.deployed.current().await {
                Some(revision) => revision.calls.function().invoke(event, options).await,
                None => not_active(&self.deployed, options.request_id),
            };
            running.answered(outcome.status);
            outcome
        }
        .boxed()
    }

    fn forward(
        &self,
        client: Option<SocketAddr>,
        request: Request<Body>,
    ) -> BoxFuture<'static, Response<Body>> {
        let deployed = Arc::clone(&self.deployed);
        async move {
            let running = Running::begin(deployed.counted());
            let told = request.extensions().get::<Later>().map(|later| later.request_id.clone());
            let response = match deployed.current().await {
                Some(revision) => revision.calls.function().forward(client, request).await,
                None => of_platform(over_http(&deployed.config(), |kind| {
                    answer_not_active(&deployed, told, kind).1
                })),
            };
            running.until_the_end_of(response)
        }
        .boxed()
    }
}

/// What a caller is told of a function that no instance could be started of. What FC says then is not documented: the
/// words of a failed start are used.
fn answer_not_active(
    deployed: &Deployed,
    request_id: Option<String>,
    kind: InvocationKind,
) -> (String, PlatformAnswer) {
    let config = deployed.config();
    let request_id = request_id.unwrap_or_else(|| config.platform.new_request_id());
    let failure = StartFailure::of(&config, request_id.clone(), StartCause::NotActive(deployed.why_not()));
    (request_id, config.platform.start_failure(&failure, kind))
}

pub(super) fn not_active(deployed: &Deployed, request_id: Option<String>) -> EventOutcome {
    let (request_id, answer) = answer_not_active(deployed, request_id, InvocationKind::Event);
    EventOutcome::refused(request_id, answer, Duration::ZERO)
}
