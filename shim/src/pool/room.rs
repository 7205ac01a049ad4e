//! The room of a node: how many instances, and how much memory, all its functions may have together.
//!
//! ```text
//! claim ─ there is room ─ a share, held until its instance has ended
//!   └─ none: stands in line ─ idle instances of all functions give way, least recently used first
//!                   └──────── told when there is room
//! ```
//!
//! Who stands first in line has what becomes free, so that a large function is not kept out by small ones; but
//! one that nothing fits stands first for a while only, so that it keeps nobody out either.
//!
//! Locks: a pool may hold its own books while it calls here; nothing here holds the room's while it calls a pool.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long one whose turn it is keeps others from what it cannot use.
const FIRST_AT_MOST: Duration = Duration::from_secs(5);

/// What all functions of a node may have together; `None` sets no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct NodeLimits {
    /// Instances at once, those that start and those that stop among them. Jobs are instances.
    pub max_instances: Option<usize>,
    /// Sum of the memory sizes of their functions, in MiB.
    pub memory_mib: Option<u64>,
    /// Idle instances stop, one a second and the least recently used first, while the host has less memory
    /// available than so many MiB (`MemAvailable` of `/proc/meminfo`).
    pub reserve_mib: Option<u64>,
}

impl NodeLimits {
    /// Whether an instance of this size could ever be.
    #[must_use]
    pub fn allow(&self, memory_mib: u64) -> bool {
        self.memory_mib.is_none_or(|limit| memory_mib <= limit)
    }

    /// How many more instances of a size fit beside others.
    pub(crate) fn room_for(&self, instances: usize, used_mib: u64, memory_mib: u64) -> usize {
        self.left(Size { instances, memory_mib: used_mib }, memory_mib)
    }

    /// How many more of a size fit beside what there is.
    fn left(&self, used: Size, memory_mib: u64) -> usize {
        let instances = self.max_instances.map_or(usize::MAX, |limit| limit.saturating_sub(used.instances));
        let by_memory = self.memory_mib.map_or(u64::MAX, |limit| {
            limit.saturating_sub(used.memory_mib).checked_div(memory_mib).unwrap_or(u64::MAX)
        });
        instances.min(usize::try_from(by_memory).unwrap_or(usize::MAX))
    }
}

/// What a node's instances have together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) instances: usize,
    pub(crate) memory_mib: u64,
}

impl Size {
    const fn one(memory_mib: u64) -> Self {
        Self { instances: 1, memory_mib }
    }

    fn add(&mut self, other: Self) {
        self.instances += other.instances;
        self.memory_mib += other.memory_mib;
    }

    fn subtract(&mut self, other: Self) {
        self.instances = self.instances.saturating_sub(other.instances);
        self.memory_mib = self.memory_mib.saturating_sub(other.memory_mib);
    }
}

/// Who has instances.
pub(crate) trait Tenant: Send + Sync {
    /// There may be room now. May be called with anybody's locks held: it only has somebody look.
    fn room_again(self: Arc<Self>);

    /// Since when each of the instances works on nothing that may stop, least recently used first.
    fn idle(&self) -> Vec<Instant> {
        Vec::new()
    }

    /// Memory of each of its instances in MiB.
    fn memory_mib(&self) -> u64 {
        0
    }

    /// Stops the first of the idle ones; whether there was one.
    fn give_way(&self) -> bool {
        false
    }
}

/// One who stands in line.
struct Waits {
    id: u64,
    memory_mib: u64,
    tenant: Weak<dyn Tenant>,
    first_since: Option<Instant>,
}

#[derive(Default)]
struct Books {
    used: Size,
    /// What of it stops.
    leaving: Size,
    line: VecDeque<Waits>,
}

impl Books {
    /// Who is first. Those that are gone are forgotten.
    fn first(&mut self) -> Option<(u64, Arc<dyn Tenant>)> {
        loop {
            let first = self.line.front_mut()?;
            if let Some(tenant) = first.tenant.upgrade() {
                first.first_since.get_or_insert_with(Instant::now);
                return Some((first.id, tenant));
            }
            self.line.pop_front();
        }
    }

    /// Who is first by now, where it was another before.
    fn new_first(&mut self, before: Option<u64>) -> Option<Arc<dyn Tenant>> {
        self.first().filter(|(id, _)| Some(*id) != before).map(|(_, tenant)| tenant)
    }

    fn first_id(&self) -> Option<u64> {
        self.line.front().map(|first| first.id)
    }

    /// One that stands first for long goes to the end.
    fn rotate(&mut self, at_most: Duration) {
        let long = |first: &Waits| first.first_since.is_some_and(|since| since.elapsed() > at_most);
        if self.line.len() > 1 && self.line.front().is_some_and(long) {
            self.line.rotate_left(1);
            self.line.iter_mut().for_each(|waits| waits.first_since = None);
        }
    }
}

/// What the functions of a node share.
pub(crate) struct Room {
    limits: NodeLimits,
    first_at_most: Duration,
    books: Mutex<Books>,
    tenants: Mutex<Vec<Weak<dyn Tenant>>>,
    next: AtomicU64,
    gave_way: AtomicU64,
    making_way: Mutex<()>,
    /// Somebody stands in line: for those who need not know more.
    wanted: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(tenant: Option<Arc<dyn Tenant>>) {
    if let Some(tenant) = tenant {
        tenant.room_again();
    }
}

impl Room {
    pub(crate) fn new(limits: NodeLimits) -> Arc<Self> {
        Self::with(limits, FIRST_AT_MOST)
    }

    pub(super) fn with(limits: NodeLimits, first_at_most: Duration) -> Arc<Self> {
        let (books, tenants) = (Mutex::default(), Mutex::default());
        let (next, gave_way) = (AtomicU64::new(0), AtomicU64::new(0));
        let (making_way, wanted) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { limits, first_at_most, books, tenants, next, gave_way, making_way, wanted })
    }

    pub(crate) fn limits(&self) -> NodeLimits {
        self.limits
    }

    pub(crate) fn used(&self) -> Size {
        lock(&self.books).used
    }

    /// Idle instances that were stopped for others.
    pub(crate) fn gave_way(&self) -> u64 {
        self.gave_way.load(Ordering::Relaxed)
    }

    /// Whether somebody stands in line.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// By what one who claims is known.
    pub(crate) fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// One whose idle instances may be stopped for others.
    pub(crate) fn enter(&self, tenant: Weak<dyn Tenant>) {
        let mut tenants = lock(&self.tenants);
        tenants.retain(|tenant| tenant.strong_count() > 0);
        tenants.push(tenant);
    }

    /// How many instances of a size could start now.
    pub(crate) fn left(&self, memory_mib: u64) -> usize {
        let books = lock(&self.books);
        if books.line.is_empty() { self.limits.left(books.used, memory_mib) } else { 0 }
    }

    /// A share for an instance. Where there is none, the claimant stands in line from now on, until it has one
    /// or goes ([`Room::forget`]), and [`Room::make_way`] has idle instances stop for it.
    pub(crate) fn claim(
        self: &Arc<Self>,
        id: u64,
        memory_mib: u64,
        tenant: &Weak<dyn Tenant>,
    ) -> Option<Share> {
        let (share, first) = {
            let mut books = lock(&self.books);
            let before = books.first_id();
            books.rotate(self.first_at_most);
            let place = books.line.iter().position(|waits| waits.id == id);
            let is_first = books.line.is_empty() || place == Some(0);
            let share = if is_first && self.limits.left(books.used, memory_mib) > 0 {
                books.line.pop_front();
                Some(self.share(&mut books, memory_mib))
            } else {
                if place.is_none() {
                    let tenant = Weak::clone(tenant);
                    books.line.push_back(Waits { id, memory_mib, tenant, first_since: None });
                }
                None
            };
            self.wanted.store(!books.line.is_empty(), Ordering::SeqCst);
            // One that has come first by coming need not be told.
            let before = before.or_else(|| books.first_id());
            (share, books.new_first(before))
        };
        tell(first);
        share
    }

    /// A share, if there is room and nobody waits for it.
    pub(crate) fn try_take(self: &Arc<Self>, memory_mib: u64) -> Option<Share> {
        let mut books = lock(&self.books);
        let is_room = books.line.is_empty() && self.limits.left(books.used, memory_mib) > 0;
        is_room.then(|| self.share(&mut books, memory_mib))
    }

    /// A share for an instance that is there already, whether there is room or not.
    pub(crate) fn take(self: &Arc<Self>, memory_mib: u64) -> Share {
        let mut books = lock(&self.books);
        self.share(&mut books, memory_mib)
    }

    fn share(self: &Arc<Self>, books: &mut Books, memory_mib: u64) -> Share {
        books.used.add(Size::one(memory_mib));
        Share { room: Arc::clone(self), memory_mib, leaves: AtomicBool::new(false) }
    }

    /// Leaves the line.
    pub(crate) fn forget(&self, id: u64) {
        let first = {
            let mut books = lock(&self.books);
            let before = books.first_id();
            books.line.retain(|waits| waits.id != id);
            self.wanted.store(!books.line.is_empty(), Ordering::SeqCst);
            books.new_first(before)
        };
        tell(first);
    }

    /// Waits for a share; who is dropped leaves the line.
    pub(crate) async fn wait(self: &Arc<Self>, memory_mib: u64) -> Share {
        let waits = InLine { room: self, id: self.id(), told: Arc::new(Told::default()) };
        let tenant: Weak<Told> = Arc::downgrade(&waits.told);
        let tenant: Weak<dyn Tenant> = tenant;
        loop {
            if let Some(share) = self.claim(waits.id, memory_mib, &tenant) {
                return share;
            }
            self.make_way();
            // The line moves by itself too.
            let _ = tokio::time::timeout(self.first_at_most, waits.told.0.notified()).await;
        }
    }

    /// Has idle instances stop, as many as the first in line needs; none where all of them would not do.
    pub(crate) fn make_way(&self) {
        // Two at once would each send one away for the same need.
        let _one_at_a_time = lock(&self.making_way);
        let needed = {
            let books = lock(&self.books);
            let Some(first) = books.line.front() else { return };
            let mut stays = books.used;
            stays.subtract(books.leaving);
            (stays, first.memory_mib)
        };
        let (mut stays, memory_mib) = needed;
        let mut going = 0;
        let idle = self.idle();
        for (_, tenant) in &idle {
            if self.limits.left(stays, memory_mib) > 0 {
                break;
            }
            stays.subtract(Size::one(tenant.memory_mib()));
            going += 1;
        }
        if self.limits.left(stays, memory_mib) > 0 {
            idle.iter().take(going).for_each(|(_, tenant)| self.send_away(tenant));
        }
    }

    /// Has the least recently used idle instance of all stop.
    pub(crate) fn relieve(&self) {
        if let Some((_, tenant)) = self.idle().first() {
            self.send_away(tenant);
        }
    }

    fn send_away(&self, tenant: &Arc<dyn Tenant>) {
        if tenant.give_way() {
            self.gave_way.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All idle instances that may stop, least recently used first.
    fn idle(&self) -> Vec<(Instant, Arc<dyn Tenant>)> {
        let tenants: Vec<Arc<dyn Tenant>> = lock(&self.tenants).iter().filter_map(Weak::upgrade).collect();
        let of = |tenant: &Arc<dyn Tenant>| {
            let since = tenant.idle().into_iter();
            since.map(|since| (since, Arc::clone(tenant))).collect::<Vec<_>>()
        };
        let mut idle: Vec<_> = tenants.iter().flat_map(of).collect();
        idle.sort_by_key(|(since, _)| *since);
        idle
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("limits", &self.limits)
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

/// What one instance has of the room, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    room: Arc<Room>,
    memory_mib: u64,
    leaves: AtomicBool,
}

impl Share {
    /// Its instance stops: no other need stop for what it has.
    pub(crate) fn leaves(&self) {
        let mut books = lock(&self.room.books);
        if !self.leaves.swap(true, Ordering::SeqCst) {
            books.leaving.add(Size::one(self.memory_mib));
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let first = {
            let mut books = lock(&self.room.books);
            let size = Size::one(self.memory_mib);
            books.used.subtract(size);
            if self.leaves.load(Ordering::SeqCst) {
                books.leaving.subtract(size);
            }
            books.new_first(None)
        };
        tell(first);
    }
}

/// One that waits by itself.
#[derive(Default)]
struct Told(Notify);

impl Tenant for Told {
    fn room_again(self: Arc<Self>) {
        self.0.notify_one();
    }
}

struct InLine<'a> {
    room: &'a Room,
    id: u64,
    told: Arc<Told>,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.room.forget(self.id);
    }
}
