//! Whether an instance has something to do, and its freezing when it has not.
//!
//! An invocation is counted before it looks whether the instance is cool; the one that freezes says that
//! it is cool before it looks whether anything is counted. So at least one of them sees the other: an
//! invocation never runs into a container that freezes under it, it waits at the gate and thaws it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};

use super::callbacks;
use super::guest::Guest;
use super::shared::Shared;
use crate::function::Callback;

/// How long nothing must have run before it is frozen: calls that follow one another closely need
/// neither wait.
const LINGER: Duration = Duration::from_millis(50);

/// How long a freeze may keep an invocation waiting before it is broken off.
const NUDGE: Duration = Duration::from_millis(10);

/// How often one that is idle is looked at: a command that somebody ran in it thaws it, and keeps it from
/// being frozen until it has ended.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What runs in an instance.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    running: AtomicUsize,
    /// How many have begun in all.
    begun: AtomicU64,
    /// It is frozen, or about to be.
    cool: AtomicBool,
    /// Held by whoever freezes or thaws.
    gate: Mutex<()>,
    idle: Notify,
}

/// Something that runs. The instance is not frozen before it is dropped.
///
/// Callbacks need none: the initializer runs before anything freezes, PreFreeze in the one that freezes,
/// and a stop holds one around PreStop.
#[derive(Debug)]
pub(crate) struct Active(Arc<Activity>);

impl Activity {
    /// Counts something that is to run; [`Activity::wake`] must come before it reaches the container.
    pub(crate) fn begin(self: &Arc<Self>) -> Active {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        Active(Arc::clone(self))
    }

    /// Thaws the container if it is frozen. A caller that has an [`Active`] finds it awake until it
    /// drops that.
    pub(crate) async fn wake(&self, guest: &dyn Guest) {
        if !self.cool.load(Ordering::SeqCst) {
            return;
        }
        let _gate = loop {
            match tokio::time::timeout(NUDGE, self.gate.lock()).await {
                Ok(gate) => break gate,
                // A process that does not freeze: thawing breaks the freeze off.
                Err(_) => drop(guest.thaw()),
            }
        };
        if self.cool.load(Ordering::SeqCst) {
            // One that cannot be thawed has ended or is being stopped, and the caller will see that.
            let _ = guest.thaw();
            self.cool.store(false, Ordering::SeqCst);
        }
    }

    /// How many run.
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// Whether it is frozen or about to be.
    pub(crate) fn is_cool(&self) -> bool {
        self.cool.load(Ordering::SeqCst)
    }

    /// Says that it is cool, then looks whether it may be: nothing runs or has begun since `begun`.
    fn close(&self, begun: u64) -> bool {
        self.cool.store(true, Ordering::SeqCst);
        self.running() == 0 && self.begun.load(Ordering::SeqCst) == begun
    }

    /// Freezes it, unless it is frozen, something runs or has begun since `begun`.
    async fn cool_down(&self, guest: &dyn Guest, begun: u64) {
        let _gate = self.gate.lock().await;
        if self.is_cool() && guest.is_frozen() {
            // To say that it is not cool would let one that waits at the gate run into it.
            return;
        }
        let frozen = if self.close(begun) { guest.freeze().await.map(|()| true) } else { Ok(false) };
        if let Err(error) = &frozen {
            tracing::debug!(%error, "an idle instance is not frozen");
        }
        if !frozen.unwrap_or(false) {
            self.cool.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_one();
        }
    }
}

/// Freezes an instance whenever it has been idle for [`LINGER`], until it is gone.
pub(super) async fn freeze_when_idle(shared: Weak<Shared>) {
    let Some(activity) = shared.upgrade().map(|shared| Arc::clone(&shared.activity)) else { return };
    // It is idle from its start on, before its first invocation too.
    activity.idle.notify_one();
    // What had begun when the function was last told that it would be frozen.
    let mut told = None;
    loop {
        let _ = tokio::time::timeout(LOOK_AGAIN, activity.idle.notified()).await;
        let begun = activity.begun.load(Ordering::SeqCst);
        tokio::time::sleep(LINGER).await;
        if activity.running() > 0 || activity.begun.load(Ordering::SeqCst) != begun {
            // Another end will come.
            continue;
        }
        let Some(shared) = shared.upgrade() else { return };
        if activity.is_cool() && shared.guest.is_frozen() {
            continue;
        }
        // Once, however often freezing is tried again. What comes meanwhile does not wait for it: the
        // container is awake.
        if told.replace(begun) != Some(begun) {
            let _ = callbacks::call(&shared, Callback::PreFreeze).await;
        }
        activity.cool_down(&*shared.guest, begun).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FunctionConfig;
    use crate::instance::testing::{self, TestGuest};
    use crate::platform::fc;

    async fn guest() -> TestGuest {
        TestGuest::refusing().await
    }

    #[tokio::test]
    async fn it_freezes_only_what_is_idle_and_thaws_what_begins() {
        let (activity, guest) = (Arc::new(Activity::default()), guest().await);
        let active = activity.begin();
        activity.cool_down(&guest, 1).await;
        assert_eq!((guest.frozen(), activity.is_cool()), (false, false), "something runs");
        drop(active);
        activity.cool_down(&guest, 0).await;
        assert!(!guest.frozen(), "something has begun since");
        activity.cool_down(&guest, 1).await;
        assert_eq!((guest.frozen(), activity.is_cool()), (true, true));
        let active = activity.begin();
        activity.wake(&guest).await;
        assert_eq!((guest.frozen(), activity.is_cool()), (false, false));
        drop(active);
    }

    #[tokio::test]
    async fn what_a_command_thawed_or_kept_awake_is_frozen_when_it_has_ended() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let guest = TestGuest::at(server.local_addr().expect("address"));
        let instance = testing::instance(&guest, FunctionConfig::new("f", fc())).await;
        let frozen = async |expected| {
            let frozen = async || {
                while !guest.frozen() {
                    tokio::time::sleep(LINGER / 10).await;
                }
            };
            let patience = if expected { 10 * LOOK_AGAIN } else { 4 * LINGER };
            assert_eq!(tokio::time::timeout(patience, frozen()).await.is_ok(), expected);
        };
        frozen(true).await;
        guest.keep_awake(true);
        frozen(false).await;
        guest.keep_awake(false);
        frozen(true).await;
        // One that an invocation thawed, and that could not be frozen after it.
        guest.keep_awake(true);
        drop(instance.shared.activity.begin());
        frozen(false).await;
        guest.keep_awake(false);
        frozen(true).await;
    }

    /// One that begins and one that freezes at the same moment: at least one of them sees the other.
    #[test]
    #[allow(clippy::print_stderr, reason = "a test that shows nothing says so")]
    fn who_begins_and_who_freezes_do_not_miss_each_other() {
        const ROUNDS: usize = 100_000;
        let activity: Vec<_> = (0..ROUNDS).map(|_| Arc::new(Activity::default())).collect();
        let meeting = AtomicUsize::new(0);
        let meet = |round: usize| {
            meeting.fetch_add(1, Ordering::SeqCst);
            while meeting.load(Ordering::SeqCst) < 2 * (round + 1) {
                std::thread::yield_now();
            }
        };
        let (saw_cool, may_freeze): (Vec<bool>, Vec<bool>) = std::thread::scope(|threads| {
            let caller = threads.spawn(|| {
                let calls = activity.iter().enumerate().map(|(round, activity)| {
                    meet(round);
                    let active = activity.begin();
                    let cool = activity.is_cool();
                    std::mem::forget(active);
                    cool
                });
                calls.collect()
            });
            let freezer = threads.spawn(|| {
                let closes = activity.iter().enumerate().map(|(round, activity)| {
                    meet(round);
                    activity.close(0)
                });
                closes.collect()
            });
            (caller.join().expect("joined"), freezer.join().expect("joined"))
        });
        let missed = saw_cool.iter().zip(&may_freeze).filter(|(cool, may)| !**cool && **may).count();
        assert_eq!(missed, 0, "of {ROUNDS}");
        let met = saw_cool.iter().filter(|cool| **cool).count();
        if met == 0 || met == ROUNDS {
            eprintln!("this machine let them never meet: the test has shown nothing");
        }
    }

    /// Bursts of callers and one that freezes all the time: no caller ever finds it frozen. Each burst sets
    /// out from a frozen one, so the test has seen as many freezes as bursts.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_caller_runs_into_a_frozen_container() {
        const CALLERS: usize = 4;
        const BURSTS: usize = 100;
        let (activity, guest) = (Arc::new(Activity::default()), guest().await);
        let freezer = tokio::spawn({
            let (activity, guest) = (Arc::clone(&activity), guest.clone());
            async move {
                loop {
                    let begun = activity.begun.load(Ordering::SeqCst);
                    activity.cool_down(&guest, begun).await;
                    tokio::task::yield_now().await;
                }
            }
        });
        let together = Arc::new(tokio::sync::Barrier::new(CALLERS));
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..CALLERS {
            let (activity, guest, together) = (Arc::clone(&activity), guest.clone(), Arc::clone(&together));
            callers.spawn(async move {
                for _ in 0..BURSTS {
                    if together.wait().await.is_leader() {
                        while !guest.frozen() {
                            tokio::task::yield_now().await;
                        }
                    }
                    together.wait().await;
                    for _ in 0..20 {
                        let _active = activity.begin();
                        activity.wake(&guest).await;
                        assert!(!guest.frozen());
                        tokio::task::yield_now().await;
                        assert!(!guest.frozen());
                    }
                }
            });
        }
        while let Some(caller) = callers.join_next().await {
            caller.expect("never frozen");
        }
        freezer.abort();
        assert!(guest.freezes() >= BURSTS, "the test has seen {} freezes", guest.freezes());
    }
}
