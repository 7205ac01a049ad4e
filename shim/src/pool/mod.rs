//! The instances of one function, from none to as many as its callers need.
//!
//! ```text
//!            free slot ────────────────────────────────┐
//! call ─ take ─ may wait ─ start for it ─ first free slot ─ invoke ─ release ─ idle ─ reap
//!            too many wait: the platform's throttling error        └─ broken: retire
//! ```
//!
//! A call takes a free slot of the instance that was used last. Where there is none it waits for the first
//! that becomes free, and an instance is started if those that start already are not enough: N first calls
//! of a function with concurrency C start N/C instances, rounded up. An instance never works on more than C.
//! On a node, what all functions have together is bounded too ([`room`]).

mod affinity;
mod function;
mod inner;
mod jobs;
mod launch;
mod mcp;
pub(crate) mod observe;
mod refused;
pub(crate) mod room;
#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod session_tests;
mod sessions;
mod slots;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, oneshot};

pub(crate) use self::inner::Slot;
use self::inner::{Caller, Inner, lock};
pub use self::jobs::Jobs;
use self::launch::Containers;
pub(crate) use self::launch::{Identity, Known, Launch};
pub(crate) use self::observe::Member;
use self::slots::{Need, Taken};
use crate::function::Mode;
use crate::instance::{LogSink, State};
use crate::{Error, FunctionConfig, Image, Instance, Result, Runtime};

/// How many instances a function may have, and when.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Instances at once, those that start among them; 0 counts as 1.
    pub max_instances: usize,
    /// Instances that are there without a call, at most `max_instances`.
    pub provisioned: usize,
    /// How long an instance may have no invocation before it is stopped; `None` keeps it.
    pub idle: Option<Duration>,
    /// Callers that may wait while all instances are busy; those that an instance starts for do not count.
    pub max_waiting: usize,
    /// How long they wait before they get the platform's throttling error.
    pub patience: Duration,
}

impl PoolOptions {
    /// How many calls all instances can work on at once; beyond one instance's, at most a quarter of those that may
    /// wait: the node may have no room for all instances, and callers have to get in beside them.
    pub(crate) fn places(&self, config: &FunctionConfig) -> usize {
        let each = if config.mode == Mode::Job { 1 } else { config.concurrency.max(1) };
        let each = usize::try_from(each).unwrap_or(usize::MAX);
        self.max_instances.max(1).saturating_mul(each).min(each.max(self.max_waiting / 4))
    }
}

impl Default for PoolOptions {
    /// One instance that stays, and 1,000 callers that wait for 60 s at most.
    fn default() -> Self {
        let (max_waiting, patience) = (1000, Duration::from_secs(60));
        Self { max_instances: 1, provisioned: 0, idle: None, max_waiting, patience }
    }
}

/// What a pool has now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PoolStatus {
    /// Instances that take invocations.
    pub warm: usize,
    /// Instances that start.
    pub starting: usize,
    /// Instances that get no more invocations and still work on some.
    pub leaving: usize,
    /// Invocations that run.
    pub running: usize,
    /// Slots that are free.
    pub free: usize,
    /// Callers that wait.
    pub waiting: usize,
}

/// Why a caller got no instance.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// The instance that was started for it did not come up.
    Start(Arc<Error>),
    /// All instances are busy, and too many wait or it has waited too long.
    Throttled,
    /// The session of this id is over, and begins no other.
    SessionOver(String),
}

/// What a caller wants a slot of.
#[derive(Clone, Copy, Debug)]
enum Wish<'a> {
    /// Any instance.
    Slot,
    /// One that has a place for a new session.
    Place,
    /// The instance of this id.
    Of(&'a str),
}

/// The instances of one function. Clones are the same pool; when the last one is dropped, its instances are
/// killed.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

impl Pool {
    /// A pool of containers of `image`. The provisioned ones are started at once, the others when calls
    /// come. What they write goes to `logs`. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// `InvalidFunction`.
    pub fn open(
        runtime: &Arc<Runtime>,
        image: Image,
        config: &Arc<FunctionConfig>,
        logs: Arc<dyn LogSink>,
        options: PoolOptions,
    ) -> Result<Self> {
        Self::open_known(runtime, image, config, logs, options, Known::default())
    }

    /// As [`Pool::open`], of a node.
    pub(crate) fn open_known(
        runtime: &Arc<Runtime>,
        image: Image,
        config: &Arc<FunctionConfig>,
        logs: Arc<dyn LogSink>,
        options: PoolOptions,
        known: Known,
    ) -> Result<Self> {
        config.validate()?;
        let (runtime, config) = (Arc::clone(runtime), Arc::clone(config));
        let (ties, identity) = (known.ties(), known.identity.clone());
        let containers = Containers { runtime, image, config: Arc::clone(&config), logs, identity, ties };
        Ok(Self::of(Arc::new(containers), &config, options, known))
    }

    pub(crate) fn of(
        launch: Arc<dyn Launch>,
        config: &Arc<FunctionConfig>,
        options: PoolOptions,
        known: Known,
    ) -> Self {
        Self(Inner::new(launch, config, options, known))
    }

    /// The function.
    #[must_use]
    pub fn config(&self) -> &Arc<FunctionConfig> {
        &self.0.config
    }

    /// What there is now.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        self.0.slots().status()
    }

    /// Has an instance started if there is none, and waits until there is one.
    ///
    /// # Errors
    /// As [`Instance::start`]; the same error may be another caller's too.
    pub async fn warm_up(&self) -> std::result::Result<Arc<Instance>, Arc<Error>> {
        match self.take(Wish::Slot).await.0 {
            Ok(Some(slot)) => Ok(Arc::clone(slot.instance())),
            Err(Refusal::Start(error)) => Err(error),
            Ok(None) | Err(Refusal::Throttled | Refusal::SessionOver(_)) => {
                let message = "all instances are busy, or there is no room for another";
                let error = Error::new(crate::ErrorKind::Busy, message);
                Err(Arc::new(error.advise(
                    "let the function or the node have more instances or memory, or call less often",
                )))
            }
        }
    }

    /// As [`Pool::warm_up`], for one who keeps the error.
    pub(crate) async fn prove(&self) -> Result<()> {
        self.warm_up().await.map(drop).map_err(|error| error.copy())
    }

    /// The instances that end by themselves from now on: their ids and how.
    #[must_use]
    pub fn ends(&self) -> broadcast::Receiver<(Arc<str>, State)> {
        self.0.ended.subscribe()
    }

    /// A slot: a free one, or the first that becomes free.
    pub(crate) async fn acquire(&self) -> std::result::Result<Slot, Refusal> {
        let begun = Instant::now();
        let (result, waited) = self.take(Wish::Slot).await;
        let result = result.and_then(|slot| slot.ok_or(Refusal::Throttled));
        self.tell(&result, waited, begun);
        result
    }

    /// Tells who watches what came of a call for an instance.
    fn tell<T>(&self, result: &std::result::Result<T, Refusal>, waited: bool, begun: Instant) {
        if waited {
            self.0.watch.waited(begun.elapsed());
        }
        // One that is refused because all ends is nobody's excess.
        if matches!(result, Err(Refusal::Throttled)) && !self.0.closed.load(Ordering::SeqCst) {
            self.0.watch.throttled();
        }
    }

    /// What it wishes, for one who need be no caller; `None` when the instance is not there, or is no more. And
    /// whether it had to wait.
    async fn take(&self, wish: Wish<'_>) -> (std::result::Result<Option<Slot>, Refusal>, bool) {
        let (waits, need, covered) = {
            let mut slots = self.0.slots();
            if self.0.closed.load(Ordering::SeqCst) {
                return (Err(Refusal::Throttled), false);
            }
            // Neither who has gone keeps anybody out, nor who could be served by now.
            self.0.serve(&mut slots);
            let need = match wish {
                Wish::Slot => Need::Slot,
                Wish::Place => Need::Place,
                Wish::Of(id) => match slots.number_of(|one| one.id() == id && one.is_usable()) {
                    Some(number) => Need::Of(number),
                    None => return (Ok(None), false),
                },
            };
            match slots.take(need, |one, need| self.0.has_room(one, need), || self.0.room()) {
                Taken::Slot(number, instance) => {
                    return (Ok(Some(self.0.slot(number, instance, need))), false);
                }
                Taken::Full => return (Err(Refusal::Throttled), false),
                Taken::Wait { covered } => {
                    let (answer, waits) = oneshot::channel();
                    slots.wait(Caller { answer, need });
                    (waits, need, covered)
                }
            }
        };
        self.0.go_on();
        // A start may take its time; so may the instance that all its session's calls go to.
        let is_bound = matches!(need, Need::Of(_));
        let patience = if covered || is_bound { self.longest_wait() } else { self.0.options.patience };
        match tokio::time::timeout(patience, waits).await {
            Ok(Ok(result)) => (result.map(Some), true),
            // Let go: its instance is gone.
            Ok(Err(_)) if is_bound && !self.0.closed.load(Ordering::SeqCst) => (Ok(None), true),
            Ok(Err(_)) | Err(_) => (Err(Refusal::Throttled), true),
        }
    }

    /// Its instances that are ready. Reads what they use from their cgroups.
    pub(crate) fn members(&self) -> Vec<Member> {
        let all = self.0.slots().all();
        let member = |(instance, leaving): (Arc<Instance>, bool)| Member {
            id: instance.id().to_owned(),
            since: instance.since(),
            leaving,
            running: instance.running(),
            frozen: instance.is_frozen(),
            stats: instance.stats(),
        };
        all.into_iter().map(member).collect()
    }

    fn longest_wait(&self) -> Duration {
        self.0.options.patience + self.0.config.start_deadline()
    }

    /// Takes no more calls and looks after its instances no longer. They go on for a later process, if they are
    /// held until their runtime is left ([`Runtime::detach`]).
    pub(crate) fn leave(&self) -> Vec<Arc<Instance>> {
        self.0.closed.store(true, Ordering::SeqCst);
        let (instances, _) = self.0.slots().clear();
        self.0.leave_line();
        instances.iter().for_each(|instance| instance.leave());
        lock(&self.0.tasks).abort_all();
        instances
    }

    /// Takes no more calls, tells those that wait, and stops all instances with the function's grace.
    /// Invocations that run end with their instance.
    pub async fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        let (instances, waiting) = self.0.slots().clear();
        self.0.leave_line();
        drop(waiting);
        let mut tasks = std::mem::take(&mut *lock(&self.0.tasks));
        // A container that only starts is killed by its start's end.
        tasks.shutdown().await;
        instances.iter().for_each(|instance| instance.gives_way());
        futures_util::future::join_all(instances.iter().map(|instance| inner::stop(instance))).await;
        let mut stops = std::mem::take(&mut *lock(&self.0.stops));
        while stops.join_next().await.is_some() {}
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("function", &self.0.config.name)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
