//! Containers that the keeper makes before there are orders for them, each in a network namespace of its own. A start
//! without user namespace and way out takes one, if one is there, and another is made when it has come out.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::cgroup::Hierarchy;
use crate::keeper::{Keeper, MAX_PREPARED, Succession};
use crate::network::{DEFAULT_ADDRESS, Namespaces};
use crate::{ContainerSpec, Error, ErrorKind, Network, Result};

/// More are made when none was taken for so long.
const QUIET: Duration = Duration::from_millis(100);

/// The keeper gives one up by then.
const PATIENCE: Duration = Duration::from_secs(15);

/// What makes a run's containers ahead.
#[derive(Debug)]
pub(super) struct Ahead {
    waiting: Mutex<VecDeque<Prepared>>,
    size: usize,
    /// More may be wanted, or no more at all.
    wanted: Arc<Notify>,
    over: AtomicBool,
}

/// One that waits, as far as is known.
#[derive(Debug)]
struct Prepared {
    slot: u64,
    network: OwnedFd,
    /// Whose it is, and what that says of it.
    keeper: Weak<Keeper>,
    state: watch::Receiver<Option<bool>>,
}

impl Prepared {
    /// Whether it waits; `None` as long as it is being made. One whose keeper is gone does not.
    fn state(&self) -> Option<bool> {
        if self.state.has_changed().is_err() { Some(false) } else { *self.state.borrow() }
    }
}

/// One that was taken; it goes back unless it is used.
#[derive(Debug)]
pub(super) struct Taken {
    prepared: Option<Prepared>,
    from: Arc<Ahead>,
}

impl Ahead {
    /// Begins to make as many as asked for. Must be called in a tokio runtime. On cgroup version 2, where groups
    /// cannot be renamed, there are none.
    ///
    /// # Errors
    /// `InvalidArgument` when they are too many.
    pub(super) fn new(
        size: usize,
        hierarchy: &Hierarchy,
        namespaces: &Arc<Namespaces>,
        keepers: &Arc<Succession>,
    ) -> Result<Arc<Self>> {
        if size > MAX_PREPARED {
            let message = format!("{size} containers made ahead are more than {MAX_PREPARED}");
            return Err(Error::new(ErrorKind::InvalidArgument, message).advise("ask for fewer"));
        }
        let size = if hierarchy.renames() { size } else { 0 };
        let this = Arc::new(Self {
            waiting: Mutex::default(),
            size,
            wanted: Arc::default(),
            over: AtomicBool::new(false),
        });
        if size > 0 {
            tokio::spawn(refill(Arc::downgrade(&this), Arc::downgrade(namespaces), Arc::downgrade(keepers)));
            this.wanted.notify_one();
        }
        Ok(this)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Prepared>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one that suits, if there is one.
    pub(super) fn take(self: &Arc<Self>, spec: &ContainerSpec) -> Option<Taken> {
        if spec.userns || spec.network != Network::None || spec.address() != DEFAULT_ADDRESS {
            return None;
        }
        let mut waiting = self.lock();
        let index = waiting.iter().position(|prepared| prepared.state() == Some(true))?;
        let prepared = waiting.remove(index)?;
        drop(waiting);
        Some(Taken { prepared: Some(prepared), from: Arc::clone(self) })
    }

    /// Whether fewer than half are left.
    fn is_low(&self) -> bool {
        self.lock().len() * 2 < self.size || self.over.load(Ordering::Relaxed)
    }

    /// A start has come out: another may be made.
    pub(super) fn refill(&self) {
        self.wanted.notify_one();
    }

    /// Makes no more.
    pub(super) fn close(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.lock().clear();
        self.wanted.notify_one();
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.wanted.notify_one();
    }
}

impl Taken {
    /// A descriptor of its network namespace.
    ///
    /// # Errors
    /// `Host` when it cannot be copied.
    pub(super) fn network(&self) -> Result<OwnedFd> {
        let network = self.prepared.as_ref().map(|prepared| prepared.network.try_clone());
        network
            .unwrap_or_else(|| Err(std::io::ErrorKind::NotFound.into()))
            .map_err(|e| Error::host("cannot copy a descriptor", e))
    }

    /// Its number, if this keeper has it. It is used up when the keeper has been sent an order with that.
    pub(super) fn slot(&self, keeper: &Arc<Keeper>) -> Option<u64> {
        let prepared = self.prepared.as_ref()?;
        prepared.keeper.upgrade().filter(|its| Arc::ptr_eq(its, keeper)).map(|_| prepared.slot)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(prepared) = self.prepared.take().filter(|prepared| prepared.state() == Some(true)) {
            self.from.lock().push_front(prepared);
        }
    }
}

/// Has containers made as long as the run is there. It is not kept by this: whatever is waited for, it may be dropped.
async fn refill(this: Weak<Ahead>, namespaces: Weak<Namespaces>, keepers: Weak<Succession>) {
    let mut slot = 0;
    loop {
        slot += 1;
        // One after the other: they are not to take all processors from the starts that there are.
        match one_more(slot, &this, &namespaces, &keepers).await {
            Some(Ok(mut state)) => {
                let told = tokio::time::timeout(PATIENCE, state.wait_for(Option::is_some)).await;
                // One that fails is not followed by the next before there is another start.
                if told.is_ok_and(|told| told.is_ok_and(|waits| *waits == Some(true))) {
                    continue;
                }
            }
            // A start makes its own, and tells what is wrong.
            Some(Err(error)) => {
                tracing::debug!(error = error.chain(), "a container could not be made ahead");
            }
            None => {}
        }
        let Some(wanted) = this.upgrade().map(|ahead| Arc::clone(&ahead.wanted)) else { return };
        wanted.notified().await;
        // While some are left, not in the midst of the starts that took others.
        while this.upgrade().is_some_and(|ahead| !ahead.is_low())
            && tokio::time::timeout(QUIET, wanted.notified()).await.is_ok()
        {}
    }
}

/// Has one more made, unless there are enough.
async fn one_more(
    slot: u64,
    this: &Weak<Ahead>,
    namespaces: &Weak<Namespaces>,
    keepers: &Weak<Succession>,
) -> Option<Result<watch::Receiver<Option<bool>>>> {
    let (ahead, namespaces, keeper) = (this.upgrade()?, namespaces.upgrade()?, keepers.upgrade()?.now());
    ahead.lock().retain(|prepared| prepared.state() != Some(false));
    let enough = || ahead.over.load(Ordering::Relaxed) || ahead.lock().len() >= ahead.size;
    if enough() || keeper.is_lost() {
        return None;
    }
    let made = make(slot, &namespaces, &keeper).await;
    Some(made.map(|prepared| {
        let state = prepared.state.clone();
        if !ahead.over.load(Ordering::Relaxed) {
            ahead.lock().push_back(prepared);
        }
        state
    }))
}

async fn make(slot: u64, namespaces: &Arc<Namespaces>, keeper: &Arc<Keeper>) -> Result<Prepared> {
    let network = match namespaces.take_ready(Network::None, DEFAULT_ADDRESS)? {
        Some(ready) => ready,
        None => {
            let namespaces = Arc::clone(namespaces);
            let made = tokio::task::spawn_blocking(move || namespaces.make(Network::None, DEFAULT_ADDRESS));
            made.await.map_err(super::panicked)??
        }
    };
    let copy = network.try_clone().map_err(|e| Error::host("cannot copy a descriptor", e))?;
    let state = keeper.prepare(slot, copy).await?;
    Ok(Prepared { slot, network, keeper: Arc::downgrade(keeper), state })
}
