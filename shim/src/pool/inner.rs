//! What goes on in a pool beside its callers: who is served, started, stopped and watched.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinSet;

use super::launch::{Known, Launch};
use super::observe::{Unwatched, Watch};
use super::room::{Room, Share, Tenant};
use super::sessions::{Place, Sessions, Use};
use super::slots::{Bounds, Need, Slots, Waits};
use super::{PoolOptions, Refusal};
use crate::instance::State;
use crate::{Error, ErrorKind, FunctionConfig, Instance};

/// How often it is looked for instances that have been idle too long.
const LOOK: Duration = Duration::from_secs(1);

/// Ends that a slow listener may lag behind before it misses some.
const MAX_ENDS: usize = 64;

/// The wait before a provisioned instance that did not come up is tried again, at first and at most.
pub(super) const BACK_OFF: Duration = Duration::from_secs(1);
const MAX_BACK_OFF: Duration = Duration::from_secs(60);

/// One who waits for a slot.
pub(super) struct Caller {
    pub(super) answer: oneshot::Sender<std::result::Result<Slot, Refusal>>,
    pub(super) need: Need,
}

impl Caller {
    pub(super) fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }
}

impl Waits for Caller {
    fn need(&self) -> Need {
        self.need
    }
}

pub(super) struct Inner {
    pub(super) config: Arc<FunctionConfig>,
    pub(super) options: PoolOptions,
    pub(super) launch: Arc<dyn Launch>,
    pub(super) watch: Arc<dyn Watch>,
    pub(super) slots: Mutex<Slots<Arc<Instance>, Caller>>,
    /// Of a function with session affinity, and the callers that wait for the instance of theirs.
    pub(super) sessions: Option<Arc<Sessions>>,
    pub(super) session_waiting: AtomicUsize,
    /// Where its tasks run.
    runtime: Handle,
    /// Starts, and who looks after instances: ended with the pool.
    pub(super) tasks: Mutex<JoinSet<()>>,
    /// Waited for by [`Pool::close`].
    pub(super) stops: Mutex<JoinSet<()>>,
    /// When a provisioned instance may be started, and the wait after the next failure.
    provision: Mutex<(Instant, Duration)>,
    /// It takes no more calls; told under the lock of the slots.
    pub(super) closed: AtomicBool,
    /// Instances that ended by themselves.
    pub(super) ended: broadcast::Sender<(Arc<str>, State)>,
    tenancy: Option<Tenancy>,
}

/// What a pool has to do with its node's room.
struct Tenancy {
    room: Arc<Room>,
    id: u64,
    /// It stands in line, or has been told to.
    in_line: AtomicBool,
}

/// The right to one invocation of an instance, until it is dropped.
pub(crate) struct Slot {
    instance: Arc<Instance>,
    number: u64,
    pool: Option<Weak<Inner>>,
    /// A place for a session that has no instance yet; the session that it is used for. They go after the slot.
    pub(super) place: Option<Place>,
    pub(super) session: Option<Use>,
}

impl Slot {
    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take().and_then(|pool| pool.upgrade()) {
            let last = {
                let mut slots = pool.slots();
                let last = slots.release(self.number);
                // Somebody may wait for their places.
                drop((self.session.take(), self.place.take()));
                // Before anybody comes who has not waited.
                pool.serve(&mut slots);
                last
            };
            pool.stop(last);
            pool.go_on();
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spawns a task, from wherever, and forgets those that have ended.
fn spawn(set: &Mutex<JoinSet<()>>, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
    let mut tasks = lock(set);
    while tasks.try_join_next().is_some() {}
    tasks.spawn_on(task, runtime);
}

impl Inner {
    /// Begins with what there is already. Must be called in a tokio runtime.
    pub(super) fn new(
        launch: Arc<dyn Launch>,
        config: &Arc<FunctionConfig>,
        options: PoolOptions,
        known: Known,
    ) -> Arc<Self> {
        let Known { adopted, watch, room, .. } = known;
        let bounds = Bounds {
            concurrency: usize::try_from(config.concurrency).unwrap_or(usize::MAX).max(1),
            instances: options.max_instances.max(1),
            sessions: config.session_affinity.as_ref().map_or(usize::MAX, |affinity| {
                usize::try_from(affinity.sessions).unwrap_or(usize::MAX).max(1)
            }),
            waiting: options.max_waiting,
        };
        let inner = Arc::new(Self {
            config: Arc::clone(config),
            options,
            launch,
            watch: watch.unwrap_or_else(|| Arc::new(Unwatched)),
            slots: Mutex::new(Slots::new(bounds)),
            sessions: config.session_affinity.as_ref().map(Sessions::new),
            session_waiting: AtomicUsize::new(0),
            runtime: Handle::current(),
            tasks: Mutex::default(),
            stops: Mutex::default(),
            provision: Mutex::new((Instant::now(), BACK_OFF)),
            closed: AtomicBool::new(false),
            ended: broadcast::Sender::new(MAX_ENDS),
            tenancy: room.map(|room| Tenancy { id: room.id(), room, in_line: AtomicBool::new(false) }),
        });
        if let Some(tenancy) = &inner.tenancy {
            let tenant: Weak<Self> = Arc::downgrade(&inner);
            tenancy.room.enter(tenant);
        }
        for instance in adopted {
            if let Some(tenancy) = &inner.tenancy {
                instance.hold(tenancy.room.take(inner.memory_mib()));
            }
            inner.add(Arc::new(instance), Slots::add);
        }
        inner.keep_provisioned();
        inner.go_on();
        spawn(&inner.tasks, &inner.runtime, look_after(Arc::downgrade(&inner)));
        inner
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots<Arc<Instance>, Caller>> {
        lock(&self.slots)
    }

    /// With the place that [`Inner::has_room`] has kept, if it is for a new session.
    pub(super) fn slot(self: &Arc<Self>, number: u64, instance: Arc<Instance>, need: Need) -> Slot {
        let sessions = self.sessions.as_ref().filter(|_| need == Need::Place);
        let place = sessions.map(|sessions| sessions.place(instance.id()));
        Slot { instance, number, pool: Some(Arc::downgrade(self)), place, session: None }
    }

    /// Whether an instance takes an invocation. For a new session it has a place then, and keeps it: it is asked last,
    /// and whoever asks takes the first that says yes.
    pub(super) fn has_room(&self, instance: &Instance, need: Need) -> bool {
        let sessions = self.sessions.as_ref().filter(|_| need == Need::Place);
        instance.is_usable() && sessions.is_none_or(|sessions| sessions.keep(instance.id()))
    }

    /// How many instances are to be there without a call, now.
    fn least(&self) -> usize {
        let due = lock(&self.provision).0 <= Instant::now();
        if due { self.options.provisioned.min(self.options.max_instances) } else { 0 }
    }

    /// Serves those that wait, and begins the starts that are needed and that there is room for.
    pub(super) fn go_on(self: &Arc<Self>) {
        let least = self.least();
        let (lacking, shares) = {
            let mut slots = self.slots();
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            self.serve(&mut slots);
            let (lacking, wanted) = (slots.lacking(least), slots.wanted(least));
            let shares = self.claim(wanted);
            slots.begin(shares.len());
            (lacking, shares)
        };
        // What has become idle here may be what another waits for.
        if let Some(tenancy) = self.tenancy.as_ref().filter(|tenancy| tenancy.room.is_wanted()) {
            tenancy.room.make_way();
        }
        for (index, share) in shares.into_iter().enumerate() {
            let provisioned = index < lacking;
            let start = start_one(Arc::downgrade(self), Arc::clone(&self.launch), share, provisioned);
            spawn(&self.tasks, &self.runtime, start);
        }
    }

    /// What is to be had of the node's room for so many instances. For those that get none it stands in line.
    fn claim(self: &Arc<Self>, wanted: usize) -> Vec<Option<Share>> {
        if wanted == 0 {
            self.leave_line();
            return Vec::new();
        }
        let Some(tenancy) = &self.tenancy else {
            return (0..wanted).map(|_| None).collect();
        };
        let tenant: Weak<Self> = Arc::downgrade(self);
        let tenant: Weak<dyn Tenant> = tenant;
        let one = |_| tenancy.room.claim(tenancy.id, self.memory_mib(), &tenant).map(Some);
        let shares: Vec<_> = (0..wanted).map_while(one).collect();
        if shares.len() < wanted {
            tenancy.in_line.store(true, Ordering::SeqCst);
        } else {
            self.leave_line();
        }
        shares
    }

    /// Needs no more instances.
    pub(super) fn leave_line(&self) {
        if let Some(tenancy) =
            self.tenancy.as_ref().filter(|tenancy| tenancy.in_line.swap(false, Ordering::SeqCst))
        {
            tenancy.room.forget(tenancy.id);
        }
    }

    /// How many more instances the node lets it have now.
    pub(super) fn room(&self) -> usize {
        self.tenancy.as_ref().map_or(usize::MAX, |tenancy| tenancy.room.left(self.memory_mib()))
    }

    /// Hands free slots to those that wait. Who has gone meanwhile is passed over.
    pub(super) fn serve(self: &Arc<Self>, slots: &mut Slots<Arc<Instance>, Caller>) {
        loop {
            slots.forget(Caller::is_gone);
            let served = slots.serve(|instance, need| self.has_room(instance, need));
            let mut gone = Vec::new();
            for (number, instance, caller) in served {
                let slot = self.slot(number, instance, caller.need);
                if let Err(Ok(mut slot)) = caller.answer.send(Ok(slot)) {
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
            if self.closed.load(Ordering::SeqCst) {
                // Dropped, and so killed.
                return;
            }
            add(&mut slots, Arc::clone(&instance))
        };
        spawn(&self.tasks, &self.runtime, watch_over(Arc::downgrade(self), number, instance));
    }

    fn failed(&self, error: Error) {
        let wait = {
            let mut provision = lock(&self.provision);
            let wait = provision.1;
            *provision = (Instant::now() + wait, (wait * 2).min(MAX_BACK_OFF));
            wait
        };
        let (function, chain) = (&self.config.name, error.chain());
        // The first says it for those that follow: callers can bring many about.
        if error.is_kept_from_callers() && wait == BACK_OFF {
            tracing::warn!(function, error = chain, "an instance did not come up");
        } else {
            tracing::debug!(function, error = chain, "an instance did not come up");
        }
        self.watch.failed(&error);
        let told = self.slots().failed();
        let error = Arc::new(error);
        for caller in told {
            // Who has gone need not know.
            let _ = caller.answer.send(Err(Refusal::Start(Arc::clone(&error))));
        }
    }

    /// Whether an instance does not go for being idle: it is provisioned, or there are sessions whose calls must find it.
    fn stays(&self, instance: &Instance) -> bool {
        instance.is_provisioned()
            || self.sessions.as_ref().is_some_and(|sessions| sessions.has(instance.id()))
    }

    /// Has as many instances as are provisioned count as such: those that were started for calls take the places of
    /// others that have gone, for which no more are started.
    fn keep_provisioned(&self) {
        let provisioned = self.options.provisioned;
        if provisioned == 0 {
            return;
        }
        let all = {
            let slots = self.slots();
            // One that starts may be to count.
            if slots.status().starting > 0 {
                return;
            }
            slots.all()
        };
        let warm = all.into_iter().filter_map(|(one, leaving)| (!leaving).then_some(one));
        let (kept, others): (Vec<_>, Vec<_>) = warm.partition(|one| one.is_provisioned());
        others.iter().take(provisioned.saturating_sub(kept.len())).for_each(|one| one.keep(true));
        kept.iter().skip(provisioned).for_each(|one| one.keep(false));
    }

    /// Stops an instance beside everything else.
    fn stop(&self, instance: Option<Arc<Instance>>) {
        let Some(instance) = instance else { return };
        instance.gives_way();
        spawn(&self.stops, &self.runtime, async move { stop(&instance).await });
    }
}

/// Stops an instance with its function's grace.
pub(super) async fn stop(instance: &Instance) {
    let lost = ErrorKind::Runtime(skiff_runtime::ErrorKind::KeeperLost);
    // One whose keeper has died has ended, and all others with it.
    if let Err(error) = instance.stop().await
        && error.kind() != lost
    {
        tracing::warn!(error = error.chain(), "an instance could not be stopped");
    }
}

impl Tenant for Inner {
    fn room_again(self: Arc<Self>) {
        let runtime = self.runtime.clone();
        runtime.spawn(async move { self.go_on() });
    }

    fn idle(&self) -> Vec<Instant> {
        self.slots().idle(self.options.provisioned, |instance| self.stays(instance))
    }

    fn memory_mib(&self) -> u64 {
        self.config.memory_mib.into()
    }

    fn give_way(&self) -> bool {
        let stays = |instance: &Arc<Instance>| self.stays(instance);
        let spared = self.slots().reap(Instant::now(), self.options.provisioned, 1, stays).pop();
        let had = spared.is_some();
        self.stop(spared);
        had
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.leave_line();
    }
}

/// The pool may be gone before the start has ended, and ends it then.
async fn start_one(pool: Weak<Inner>, launch: Arc<dyn Launch>, share: Option<Share>, provisioned: bool) {
    let result = launch.start().await;
    let Some(pool) = pool.upgrade() else { return };
    match result {
        Ok(instance) => {
            share.into_iter().for_each(|share| instance.hold(share));
            if provisioned {
                instance.provision();
            }
            pool.started(Arc::new(instance));
        }
        Err(error) => {
            drop(share);
            pool.failed(error);
        }
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
    if let Some(sessions) = &pool.sessions {
        sessions.forget(instance.id());
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
        if let Some(sessions) = &pool.sessions {
            sessions.sweep();
        }
        pool.keep_provisioned();
        if let Some(before) = pool.options.idle.and_then(|idle| Instant::now().checked_sub(idle)) {
            let reaped =
                pool.slots().reap(before, pool.options.provisioned, usize::MAX, |one| pool.stays(one));
            reaped.into_iter().for_each(|instance| pool.stop(Some(instance)));
        }
        pool.go_on();
    }
}
