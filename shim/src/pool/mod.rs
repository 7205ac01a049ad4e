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

mod function;
mod jobs;
mod launch;
pub(crate) mod observe;
mod slots;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinSet;

pub use self::jobs::Jobs;
use self::launch::Containers;
pub(crate) use self::launch::{Identity, Known, Launch};
pub(crate) use self::observe::Member;
use self::observe::{Unwatched, Watch};
use self::slots::{Bounds, Slots, Taken};
use crate::instance::{LogSink, State};
use crate::{Error, FunctionConfig, Image, Instance, Result, Runtime};

/// How often it is looked for instances that have been idle too long.
const LOOK: Duration = Duration::from_secs(1);

/// Ends that a slow listener may lag behind before it misses some.
const MAX_ENDS: usize = 64;

/// The wait before a provisioned instance that did not come up is tried again, at first and at most.
const BACK_OFF: Duration = Duration::from_secs(1);
const MAX_BACK_OFF: Duration = Duration::from_secs(60);

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
}

type Caller = oneshot::Sender<std::result::Result<Slot, Refusal>>;

/// The instances of one function. Clones are the same pool; when the last one is dropped, its instances are
/// killed.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    config: Arc<FunctionConfig>,
    options: PoolOptions,
    launch: Arc<dyn Launch>,
    watch: Arc<dyn Watch>,
    slots: Mutex<Slots<Arc<Instance>, Caller>>,
    /// Where its tasks run.
    runtime: Handle,
    /// Starts, and who looks after instances: ended with the pool.
    tasks: Mutex<JoinSet<()>>,
    /// Waited for by [`Pool::close`].
    stops: Mutex<JoinSet<()>>,
    /// When a provisioned instance may be started, and the wait after the next failure.
    provision: Mutex<(Instant, Duration)>,
    closed: watch::Sender<bool>,
    /// Instances that ended by themselves.
    ended: broadcast::Sender<(Arc<str>, State)>,
}

/// The right to one invocation of an instance, until it is dropped.
pub(crate) struct Slot {
    instance: Arc<Instance>,
    number: u64,
    pool: Option<Weak<Inner>>,
}

impl Slot {
    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take().and_then(|pool| pool.upgrade()) {
            let last = pool.slots().release(self.number);
            pool.stop(last);
            pool.go_on();
        }
    }
}

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
        let Known { identity, tap, adopted, watch } = known;
        let watch = watch.unwrap_or_else(|| Arc::new(Unwatched));
        let containers = Containers { runtime, image, config: Arc::clone(&config), logs, identity, tap };
        Ok(Self::of(Arc::new(containers), &config, options, adopted, watch))
    }

    pub(crate) fn of(
        launch: Arc<dyn Launch>,
        config: &Arc<FunctionConfig>,
        options: PoolOptions,
        adopted: Vec<Instance>,
        watch: Arc<dyn Watch>,
    ) -> Self {
        let bounds = Bounds {
            concurrency: usize::try_from(config.concurrency).unwrap_or(usize::MAX).max(1),
            instances: options.max_instances.max(1),
            waiting: options.max_waiting,
        };
        let inner = Arc::new(Inner {
            config: Arc::clone(config),
            options,
            launch,
            watch,
            slots: Mutex::new(Slots::new(bounds)),
            runtime: Handle::current(),
            tasks: Mutex::default(),
            stops: Mutex::default(),
            provision: Mutex::new((Instant::now(), BACK_OFF)),
            closed: watch::Sender::new(false),
            ended: broadcast::Sender::new(MAX_ENDS),
        });
        for instance in adopted {
            inner.add(Arc::new(instance), Slots::add);
        }
        inner.go_on();
        spawn(&inner.tasks, &inner.runtime, look_after(Arc::downgrade(&inner)));
        Self(inner)
    }

    /// The function.
    #[must_use]
    pub fn config(&self) -> &Arc<FunctionConfig> {
        &self.0.config
    }

    /// What there is now.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let counts = self.0.slots().counts();
        PoolStatus {
            warm: counts.warm,
            starting: counts.starting,
            leaving: counts.leaving,
            running: counts.running,
            free: counts.free,
            waiting: counts.waiting,
        }
    }

    /// Has an instance started if there is none, and waits until there is one.
    ///
    /// # Errors
    /// As [`Instance::start`]; the same error may be another caller's too.
    pub async fn warm_up(&self) -> std::result::Result<Arc<Instance>, Arc<Error>> {
        match self.take().await.0 {
            Ok(slot) => Ok(Arc::clone(slot.instance())),
            Err(Refusal::Start(error)) => Err(error),
            Err(Refusal::Throttled) => {
                let error = Error::new(crate::ErrorKind::Busy, "all instances are busy");
                Err(Arc::new(error.advise("let it have more instances, or call it less often")))
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
        let (result, waited) = self.take().await;
        if waited {
            self.0.watch.waited(begun.elapsed());
        }
        // One that is refused because all ends is nobody's excess.
        if matches!(result, Err(Refusal::Throttled)) && !*self.0.closed.borrow() {
            self.0.watch.throttled();
        }
        result
    }

    /// The same for one who is no caller; and whether it had to wait.
    async fn take(&self) -> (std::result::Result<Slot, Refusal>, bool) {
        let (waits, covered) = {
            let mut slots = self.0.slots();
            if *self.0.closed.borrow() {
                return (Err(Refusal::Throttled), false);
            }
            // Who has gone keeps nobody out.
            slots.forget(Caller::is_closed);
            match slots.take(|instance| instance.is_usable()) {
                Taken::Slot(number) => {
                    if let Some(instance) = slots.get(number) {
                        return (Ok(self.0.slot(number, instance)), false);
                    }
                    return (Err(Refusal::Throttled), false);
                }
                Taken::Full => return (Err(Refusal::Throttled), false),
                Taken::Wait { covered } => {
                    let (caller, waits) = oneshot::channel();
                    slots.wait(caller);
                    (waits, covered)
                }
            }
        };
        self.0.go_on();
        // A start may take its time.
        let patience = if covered { self.longest_wait() } else { self.0.options.patience };
        match tokio::time::timeout(patience, waits).await {
            Ok(Ok(result)) => (result, true),
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
        self.0.closed.send_replace(true);
        let (instances, _) = self.0.slots().clear();
        instances.iter().for_each(|instance| instance.leave());
        lock(&self.0.tasks).abort_all();
        instances
    }

    /// Takes no more calls, tells those that wait, and stops all instances with the function's grace.
    /// Invocations that run end with their instance.
    pub async fn close(&self) {
        self.0.closed.send_replace(true);
        let (instances, waiting) = self.0.slots().clear();
        drop(waiting);
        let mut tasks = std::mem::take(&mut *lock(&self.0.tasks));
        // A container that only starts is killed by its start's end.
        tasks.shutdown().await;
        let stops: Vec<_> = instances.iter().map(|instance| instance.stop()).collect();
        for stopped in futures_util::future::join_all(stops).await {
            if let Err(error) = stopped {
                tracing::warn!(error = error.chain(), "an instance could not be stopped");
            }
        }
        let mut stops = std::mem::take(&mut *lock(&self.0.stops));
        while stops.join_next().await.is_some() {}
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spawns a task, from wherever, and forgets those that have ended.
fn spawn(set: &Mutex<JoinSet<()>>, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
    let mut tasks = lock(set);
    while tasks.try_join_next().is_some() {}
    tasks.spawn_on(task, runtime);
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, Slots<Arc<Instance>, Caller>> {
        lock(&self.slots)
    }

    fn slot(self: &Arc<Self>, number: u64, instance: Arc<Instance>) -> Slot {
        Slot { instance, number, pool: Some(Arc::downgrade(self)) }
    }

    /// How many instances are to be there without a call, now.
    fn least(&self) -> usize {
        let due = lock(&self.provision).0 <= Instant::now();
        if due { self.options.provisioned.min(self.options.max_instances) } else { 0 }
    }

    /// Serves those that wait, and begins the starts that are needed.
    fn go_on(self: &Arc<Self>) {
        let least = self.least();
        let starts = {
            let mut slots = self.slots();
            if *self.closed.borrow() {
                return;
            }
            self.serve(&mut slots);
            slots.start(least)
        };
        for _ in 0..starts {
            spawn(&self.tasks, &self.runtime, start_one(Arc::downgrade(self), Arc::clone(&self.launch)));
        }
    }

    /// Hands free slots to those that wait. Who has gone meanwhile is passed over.
    fn serve(self: &Arc<Self>, slots: &mut Slots<Arc<Instance>, Caller>) {
        loop {
            slots.forget(Caller::is_closed);
            let served = slots.serve(|instance| instance.is_usable());
            let mut gone = Vec::new();
            for (number, caller) in served {
                let Some(instance) = slots.get(number) else { continue };
                if let Err(Ok(mut slot)) = caller.send(Ok(self.slot(number, instance))) {
                    // Not by its drop, which would wait for what is held here.
                    slot.pool = None;
                    gone.push(number);
                }
            }
            if gone.is_empty() {
                return;
            }
            for number in gone {
                // It was taken out of the warm ones just now, so it is no last one of a retired instance.
                let _ = slots.release(number);
            }
        }
    }

    fn started(self: &Arc<Self>, instance: Arc<Instance>) {
        lock(&self.provision).1 = BACK_OFF;
        self.watch.started(&instance.timeline());
        self.add(instance, Slots::started);
    }

    fn add(
        self: &Arc<Self>,
        instance: Arc<Instance>,
        add: fn(&mut Slots<Arc<Instance>, Caller>, Arc<Instance>) -> u64,
    ) {
        let number = {
            let mut slots = self.slots();
            if *self.closed.borrow() {
                // Dropped, and so killed.
                return;
            }
            add(&mut slots, Arc::clone(&instance))
        };
        spawn(&self.tasks, &self.runtime, watch_over(Arc::downgrade(self), number, instance));
    }

    fn failed(&self, error: Error) {
        {
            let mut provision = lock(&self.provision);
            let wait = provision.1;
            *provision = (Instant::now() + wait, (wait * 2).min(MAX_BACK_OFF));
        }
        tracing::debug!(function = self.config.name, error = error.chain(), "an instance did not come up");
        self.watch.failed(&error);
        let told = self.slots().failed();
        let error = Arc::new(error);
        for caller in told {
            // Who has gone need not know.
            let _ = caller.send(Err(Refusal::Start(Arc::clone(&error))));
        }
    }

    /// Stops an instance beside everything else.
    fn stop(&self, instance: Option<Arc<Instance>>) {
        let Some(instance) = instance else { return };
        spawn(&self.stops, &self.runtime, async move {
            if let Err(error) = instance.stop().await {
                tracing::warn!(error = error.chain(), "an instance could not be stopped");
            }
        });
    }
}

/// The pool may be gone before the start has ended, and ends it then.
async fn start_one(pool: Weak<Inner>, launch: Arc<dyn Launch>) {
    let result = launch.start().await;
    let Some(pool) = pool.upgrade() else { return };
    match result {
        Ok(instance) => pool.started(Arc::new(instance)),
        Err(error) => pool.failed(error),
    }
    pool.go_on();
}

/// Waits until an instance can get no more invocations, and has it leave.
async fn watch_over(pool: Weak<Inner>, number: u64, instance: Arc<Instance>) {
    let ended_by_itself = instance.used_up().await;
    let Some(pool) = pool.upgrade() else { return };
    let last = pool.slots().retire(number);
    if let Some(state) = ended_by_itself {
        // Nobody need listen.
        let _ = pool.ended.send((instance.id().into(), state));
    }
    pool.launch.ended(instance.id());
    drop(instance);
    pool.stop(last);
    pool.go_on();
}

/// Stops what has been idle too long, keeps what is provisioned, and serves those whose instance has become
/// usable again.
async fn look_after(pool: Weak<Inner>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(pool) = pool.upgrade() else { return };
        if let Some(before) = pool.options.idle.and_then(|idle| Instant::now().checked_sub(idle)) {
            let reaped = pool.slots().reap(before, pool.options.provisioned);
            reaped.into_iter().for_each(|instance| pool.stop(Some(instance)));
        }
        pool.go_on();
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
