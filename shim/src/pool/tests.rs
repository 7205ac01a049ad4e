//! Pools of instances in front of one real server.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use std::sync::Mutex;

use super::inner::{BACK_OFF, lock};
use super::room::Room;
use super::*;
use crate::api::Function as _;
use crate::instance::guest::Guest as _;
use crate::instance::testing::{self, TestGuest};
use crate::platform::{StartCause, StartFailure, fc, scf};
use crate::{ErrorKind, EventResult, InvokeOptions};

pub(super) const SOON: Duration = Duration::from_secs(20);

/// Starts instances after a while, unless told to fail.
pub(super) struct Server {
    listener: TcpListener,
    pub(super) config: Arc<FunctionConfig>,
    takes: Duration,
    failures: AtomicUsize,
    starts: AtomicUsize,
    guests: Mutex<Vec<TestGuest>>,
}

impl Launch for Server {
    fn start(&self) -> BoxFuture<'_, Result<Instance>> {
        async {
            let number = self.starts.fetch_add(1, Ordering::SeqCst);
            sleep(self.takes).await;
            let fails =
                self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if fails.is_ok() {
                let failure = StartFailure {
                    request_id: "1".into(),
                    cause: StartCause::NotListening("refused".into()),
                    command: vec!["serve".into()],
                    address: None,
                    port: 9000,
                    deadline: SOON,
                    elapsed: SOON,
                    logs: Vec::new(),
                };
                let error = Error::new(ErrorKind::StartFailed, "it does not listen");
                return Err(error.with_start(self.config.platform, failure));
            }
            let guest = TestGuest::at(self.listener.local_addr().expect("an address"));
            lock(&self.guests).push(guest.clone());
            Ok(testing::named(&format!("i-{number}"), &guest, FunctionConfig::clone(&self.config)).await)
        }
        .boxed()
    }
}

impl Server {
    pub(super) async fn of(config: FunctionConfig) -> Arc<Self> {
        Arc::new(Self {
            listener: TcpListener::bind("127.0.0.1:0").await.expect("bound"),
            config: Arc::new(config),
            takes: Duration::from_millis(50),
            failures: AtomicUsize::new(0),
            starts: AtomicUsize::new(0),
            guests: Mutex::default(),
        })
    }

    async fn with(concurrency: u32) -> Arc<Self> {
        let mut config = FunctionConfig::new("f", fc());
        config.concurrency = concurrency;
        Self::of(config).await
    }

    pub(super) fn pool(self: &Arc<Self>, options: PoolOptions) -> Pool {
        self.pool_in(None, options)
    }

    pub(super) fn pool_in(self: &Arc<Self>, room: Option<&Arc<Room>>, options: PoolOptions) -> Pool {
        let known = Known { room: room.cloned(), ..Known::default() };
        Pool::of(Arc::clone(self) as Arc<dyn Launch>, &self.config, options, known)
    }

    pub(super) fn starts(&self) -> usize {
        self.starts.load(Ordering::SeqCst)
    }

    /// So many of the next starts fail.
    pub(super) fn fail(&self, starts: usize) {
        self.failures.store(starts, Ordering::SeqCst);
    }

    pub(super) fn guest(&self, number: usize) -> TestGuest {
        lock(&self.guests)[number].clone()
    }
}

pub(super) fn at_most(max_instances: usize) -> PoolOptions {
    PoolOptions { max_instances, ..PoolOptions::default() }
}

pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(SOON, waiting).await.is_ok(), "never {what}");
}

#[tokio::test]
async fn first_calls_at_once_start_no_more_than_they_need() {
    for (calls, concurrency, starts) in [(1, 1, 1), (20, 1, 20), (20, 10, 2), (21, 10, 3)] {
        let server = Server::with(concurrency).await;
        let pool = server.pool(at_most(100));
        let slots = join_all((0..calls).map(|_| pool.acquire())).await;
        assert!(slots.iter().all(std::result::Result::is_ok));
        assert_eq!(server.starts(), starts, "{calls} calls, concurrency {concurrency}");
        assert_eq!(pool.status().running, calls);
        drop(slots);
        assert_eq!((pool.status().running, pool.status().warm), (0, starts));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_instance_ever_works_on_more_than_it_may() {
    let server = Server::with(3).await;
    let pool = server.pool(at_most(2));
    let most = Arc::new(AtomicUsize::new(0));
    let callers = (0..100).map(|number: u64| {
        let (pool, most) = (pool.clone(), Arc::clone(&most));
        tokio::spawn(async move {
            let slot = pool.acquire().await.expect("a slot");
            most.fetch_max(pool.status().running, Ordering::SeqCst);
            sleep(Duration::from_millis(number % 7)).await;
            drop(slot);
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("served");
    }
    assert_eq!((most.load(Ordering::SeqCst), server.starts()), (6, 2));
}

#[tokio::test]
async fn a_start_that_fails_is_the_callers_answer_and_the_next_call_starts_anew() {
    let server = Server::with(1).await;
    server.failures.store(1, Ordering::SeqCst);
    let pool = server.pool(at_most(1));
    let outcome = pool.invoke("{}".into(), InvokeOptions::default()).await;
    assert_eq!(outcome.status, 412);
    assert!(matches!(outcome.result, EventResult::PlatformError(_)), "{outcome:?}");
    assert!(String::from_utf8_lossy(&outcome.body).contains("FunctionNotStarted"), "{outcome:?}");
    pool.acquire().await.expect("a slot");
    assert_eq!(server.starts(), 2);
}

#[tokio::test]
async fn callers_that_go_are_in_nobodys_way() {
    let server = Server::with(1).await;
    let pool = server.pool(PoolOptions { max_waiting: 2, ..at_most(1) });
    let held = pool.acquire().await.expect("a slot");
    for _ in 0..5 {
        let two = join_all([pool.acquire(), pool.acquire()]);
        assert!(timeout(Duration::from_millis(20), two).await.is_err());
    }
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await.map(drop) }
    });
    until("waiting", || pool.status().waiting >= 1).await;
    drop(held);
    waiting.await.expect("ended").expect("served");
    assert_eq!((pool.status().free, server.starts()), (1, 1));
}

#[tokio::test]
async fn too_many_and_too_long_are_the_platforms_throttling() {
    for (platform, status, code) in [(fc(), 429, "ResourceExhausted"), (scf(), 432, "concurrency exceeded")] {
        let server = Server::of(FunctionConfig::new("f", platform)).await;
        let patience = Duration::from_millis(50);
        let pool = server.pool(PoolOptions { max_waiting: 1, patience, ..at_most(1) });
        let _held = pool.acquire().await.expect("a slot");
        let calls = (0..2).map(|_| pool.invoke("{}".into(), InvokeOptions::default()));
        let outcomes = timeout(SOON, join_all(calls)).await.expect("in time");
        // One at once, since another waits, and that one when it has waited long enough.
        for outcome in outcomes {
            assert_eq!(outcome.status, status);
            assert!(String::from_utf8_lossy(&outcome.body).contains(code), "{outcome:?}");
        }
    }
}

#[tokio::test]
async fn what_has_ended_or_failed_is_replaced() {
    let server = Server::with(1).await;
    let pool = server.pool(at_most(1));
    let mut ends = pool.ends();
    drop(pool.acquire().await.expect("a slot"));
    let exit = skiff_runtime::Exit { code: Some(3), signal: None, oom_killed: false };
    server.guest(0).end(exit);
    let (_, state) = timeout(SOON, ends.recv()).await.expect("in time").expect("told");
    assert_eq!(state, State::Ended(exit));
    let slot = pool.acquire().await.expect("another");
    slot.instance().shared.condemn();
    until("retired", || pool.status().leaving == 1).await;
    // It keeps its place until its invocation has ended.
    assert!(timeout(Duration::from_millis(100), pool.acquire()).await.is_err());
    drop(slot);
    drop(timeout(SOON, pool.acquire()).await.expect("in time").expect("a third"));
    assert_eq!(server.starts(), 3);
    timeout(SOON, server.guest(1).wait()).await.expect("the second is stopped").expect("ended");
}

#[tokio::test]
async fn the_idle_are_stopped_and_the_provisioned_stay() {
    let server = Server::with(1).await;
    let idle = Some(Duration::from_millis(10));
    let pool = server.pool(PoolOptions { provisioned: 1, idle, ..at_most(3) });
    until("provisioned", || pool.status().warm == 1).await;
    let all = join_all((0..3).map(|_| pool.acquire())).await;
    assert_eq!((all.len(), server.starts()), (3, 3));
    drop(all);
    until("reaped", || pool.status().warm == 1).await;
    let kept: Vec<_> = pool.0.slots().all().into_iter().map(|(one, _)| one).collect();
    assert_eq!((kept[0].id(), kept[0].is_provisioned()), ("i-0", true), "not the one that was used last");
    server.guest(0).end(crate::instance::guest::KILLED);
    server.guest(1).end(crate::instance::guest::KILLED);
    server.guest(2).end(crate::instance::guest::KILLED);
    until("replaced", || server.starts() == 4 && pool.status().warm == 1).await;
}

#[tokio::test]
async fn provisioned_instances_that_fail_are_tried_again_after_a_while() {
    let server = Server::with(1).await;
    server.failures.store(1, Ordering::SeqCst);
    let pool = server.pool(PoolOptions { provisioned: 1, ..at_most(1) });
    until("failed", || server.starts() == 1 && pool.status().starting == 0).await;
    sleep(BACK_OFF / 4).await;
    assert_eq!(server.starts(), 1, "not at once");
    until("tried again", || pool.status().warm == 1).await;
    assert_eq!(server.starts(), 2);
}

#[tokio::test]
async fn one_that_was_started_for_a_call_takes_the_place_of_a_provisioned_one() {
    let server = Server::with(1).await;
    server.failures.store(1, Ordering::SeqCst);
    let idle = Some(Duration::from_millis(10));
    let pool = server.pool(PoolOptions { provisioned: 1, idle, ..at_most(3) });
    until("failed", || server.starts() == 1 && pool.status().starting == 0).await;
    let slots = join_all((0..2).map(|_| pool.acquire())).await;
    assert!(slots.iter().all(std::result::Result::is_ok));
    let provisioned = || {
        let all = pool.0.slots().all();
        all.iter().filter(|(one, _)| one.is_provisioned()).count()
    };
    until("one counts as such", || provisioned() == 1).await;
    drop(slots);
    until("the other is reaped", || pool.status().warm == 1).await;
    assert_eq!((provisioned(), server.starts()), (1, 3));
}

#[tokio::test]
async fn closing_stops_all_and_refuses_the_rest() {
    let server = Server::with(1).await;
    let pool = server.pool(at_most(2));
    let held = pool.acquire().await.expect("a slot");
    let _other = pool.acquire().await.expect("a slot");
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await.map(drop) }
    });
    until("waiting", || pool.status().waiting == 1).await;
    pool.close().await;
    assert!(matches!(waiting.await.expect("ended"), Err(Refusal::Throttled)));
    assert!(matches!(pool.acquire().await, Err(Refusal::Throttled)));
    for number in 0..2 {
        timeout(SOON, server.guest(number).wait()).await.expect("stopped").expect("ended");
    }
    drop(held);
    assert_eq!(pool.status(), PoolStatus::default());
}

#[tokio::test]
async fn a_pool_that_is_dropped_kills_its_instances() {
    let server = Server::with(1).await;
    let pool = server.pool(at_most(1));
    drop(pool.acquire().await.expect("a slot"));
    let guest = server.guest(0);
    drop(pool);
    timeout(SOON, guest.wait()).await.expect("killed").expect("ended");
}

/// Counts what it is told.
#[derive(Default)]
struct Told {
    waited: AtomicUsize,
    throttled: AtomicUsize,
    started: AtomicUsize,
    failed: AtomicUsize,
}

impl observe::Watch for Told {
    fn waited(&self, _: Duration) {
        self.waited.fetch_add(1, Ordering::SeqCst);
    }

    fn throttled(&self) {
        self.throttled.fetch_add(1, Ordering::SeqCst);
    }

    fn started(&self, _: &crate::Timeline) {
        self.started.fetch_add(1, Ordering::SeqCst);
    }

    fn failed(&self, _: &Error) {
        self.failed.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn who_looks_is_told_of_waits_refusals_and_starts() {
    let server = Server::with(1).await;
    server.failures.store(1, Ordering::SeqCst);
    let told = Arc::<Told>::default();
    let options = PoolOptions { max_waiting: 1, patience: Duration::from_millis(50), ..at_most(1) };
    let launch = Arc::clone(&server) as Arc<dyn Launch>;
    let known = Known { watch: Some(Arc::clone(&told) as _), ..Known::default() };
    let pool = Pool::of(launch, &server.config, options, known);
    let seen = || {
        [&told.waited, &told.throttled, &told.started, &told.failed].map(|count| count.load(Ordering::SeqCst))
    };
    // One who is no caller has its start counted, not its wait.
    assert!(pool.warm_up().await.is_err());
    assert_eq!(seen(), [0, 0, 0, 1]);
    let held = pool.acquire().await.expect("a slot");
    assert_eq!(seen(), [1, 0, 1, 1]);
    // One is refused at once, the other when it has waited.
    let refused = join_all([pool.acquire(), pool.acquire()]).await;
    assert!(refused.iter().all(std::result::Result::is_err));
    assert_eq!(seen(), [2, 2, 1, 1]);
    drop(held);
    drop(pool.acquire().await.expect("a free slot"));
    pool.close().await;
    assert!(pool.acquire().await.is_err());
    assert_eq!(seen(), [2, 2, 1, 1]);
}
