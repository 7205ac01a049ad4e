//! Calls of sessions in front of one real server.

use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::tests::{SOON, Server, at_most, until};
use super::*;
use crate::function::SessionAffinity;
use crate::platform::fc;

/// A function with so many sessions, and calls, for each instance.
async fn with_sessions(sessions: u32, concurrency: u32, idle: Duration) -> Arc<Server> {
    let mut config = FunctionConfig::new("f", fc());
    config.concurrency = concurrency;
    config.session_affinity = Some(SessionAffinity { sessions, idle, ..SessionAffinity::default() });
    Server::of(config).await
}

/// A call of a session: its slot, and whether it has a new instance.
async fn of_session(pool: &Pool, id: &str) -> std::result::Result<(Slot, bool), Refusal> {
    let sessions = pool.0.sessions.clone().expect("affinity");
    timeout(SOON, pool.acquire_for(&sessions, id)).await.expect("in time")
}

fn id(slot: &Slot) -> String {
    slot.instance().id().to_owned()
}

#[tokio::test]
async fn a_session_has_one_instance_and_an_instance_so_many_sessions() {
    let server = with_sessions(2, 10, SOON).await;
    let pool = server.pool(at_most(3));
    // At once: one looks for an instance, the others wait for what it finds.
    let calls = join_all((0..5).map(|_| of_session(&pool, "one"))).await;
    let slots: Vec<(Slot, bool)> = calls.into_iter().map(|call| call.expect("a slot")).collect();
    let first = id(&slots[0].0);
    assert!(slots.iter().all(|(slot, _)| id(slot) == first));
    assert_eq!((slots.iter().filter(|(_, new)| *new).count(), server.starts()), (1, 1));
    drop(slots);
    let (two, new) = of_session(&pool, "two").await.expect("a slot");
    assert_eq!((id(&two), new), (first.clone(), true));
    let (three, _) = of_session(&pool, "three").await.expect("a slot");
    assert_ne!(id(&three), first, "it has two already");
    for _ in 0..3 {
        let (again, new) = of_session(&pool, "one").await.expect("a slot");
        assert_eq!((id(&again), new), (first.clone(), false));
    }
    // A call without a session goes anywhere.
    drop(pool.acquire().await.expect("a slot"));
    assert_eq!(server.starts(), 2);
    drop((two, three));
    assert_eq!(pool.status().running, 0);
}

#[tokio::test]
async fn a_call_waits_for_the_instance_of_its_session_and_not_for_ever() {
    let server = with_sessions(1, 1, SOON).await;
    let patience = Duration::from_millis(100);
    let mut config = FunctionConfig::clone(&server.config);
    config.start_deadline = Some(Duration::from_millis(200));
    let pool = Pool::of(
        Arc::clone(&server) as Arc<dyn Launch>,
        &Arc::new(config),
        PoolOptions { patience, max_waiting: 1, ..at_most(2) },
        Known::default(),
    );
    let (held, _) = of_session(&pool, "one").await.expect("a slot");
    let (other, _) = of_session(&pool, "two").await.expect("a slot");
    let first = id(&held);
    drop(other);
    // There is a free slot of the other instance.
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { of_session(&pool, "one").await }
    });
    sleep(Duration::from_millis(20)).await;
    assert!(matches!(of_session(&pool, "one").await, Err(Refusal::Throttled)), "one waits already");
    drop(held);
    let (slot, new) = waiting.await.expect("ended").expect("a slot");
    assert_eq!((id(&slot), new), (first, false));
    let begun = Instant::now();
    assert!(matches!(of_session(&pool, "one").await, Err(Refusal::Throttled)));
    assert!(begun.elapsed() >= patience);
    drop(slot);
    of_session(&pool, "one").await.expect("nobody waits any more");
}

/// The same beside the test, once it stands in line behind so many.
async fn waits(pool: &Pool, id: &'static str, before: usize) -> JoinHandle<(Slot, bool)> {
    let call = tokio::spawn({
        let pool = pool.clone();
        async move { of_session(&pool, id).await.expect("a slot") }
    });
    until("in line", || pool.status().waiting == before + 1).await;
    call
}

#[tokio::test]
async fn calls_with_and_without_a_session_have_their_turns() {
    let server = with_sessions(1, 1, SOON).await;
    let pool = server.pool(at_most(1));
    drop(of_session(&pool, "one").await.expect("a slot"));
    // The instance of the session works on a call that has none.
    let other = pool.acquire().await.expect("a slot");
    let bound = waits(&pool, "one", 0).await;
    let later = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await.expect("a slot") }
    });
    until("in line", || pool.status().waiting == 2).await;
    drop(other);
    let (slot, new) = timeout(SOON, bound).await.expect("in time").expect("ended");
    assert!(!new && pool.status().waiting == 1, "who came later has to wait");
    // One for whose session there is no place keeps nobody from a slot.
    let second = waits(&pool, "two", 1).await;
    drop(slot);
    drop(timeout(SOON, later).await.expect("in time").expect("ended"));
    assert_eq!((pool.status().waiting, server.starts()), (1, 1));
    drop(pool.acquire().await.expect("a slot"));
    second.abort();
}

#[tokio::test]
async fn who_waits_for_an_instance_that_ends_has_another() {
    let server = with_sessions(1, 1, SOON).await;
    let pool = server.pool(at_most(2));
    let (held, _) = of_session(&pool, "one").await.expect("a slot");
    let waiting = waits(&pool, "one", 0).await;
    server.guest(0).end(crate::instance::guest::KILLED);
    let (slot, new) = timeout(SOON, waiting).await.expect("in time").expect("ended");
    assert!(new && id(&slot) != id(&held));
}

#[tokio::test]
async fn each_session_is_told_of_the_start_that_was_for_it() {
    let server = with_sessions(1, 10, SOON).await;
    let pool = server.pool(at_most(4));
    server.fail(2);
    for call in join_all([of_session(&pool, "one"), of_session(&pool, "two")]).await {
        assert!(matches!(call, Err(Refusal::Start(_))));
    }
    assert_eq!((server.starts(), pool.status().waiting), (2, 0), "at once, and no more");
}

#[tokio::test]
async fn a_session_whose_instance_is_gone_has_another() {
    let server = with_sessions(5, 10, SOON).await;
    let pool = server.pool(at_most(1));
    let (slot, _) = of_session(&pool, "one").await.expect("a slot");
    let first = id(&slot);
    drop(slot);
    server.guest(0).end(crate::instance::guest::KILLED);
    until("gone", || pool.status().warm == 0).await;
    let (slot, new) = of_session(&pool, "one").await.expect("a slot");
    assert!(new && id(&slot) != first);
    // One that is to leave gets no new calls of its sessions either.
    slot.instance().shared.condemn();
    drop(slot);
    until("retired", || pool.status().warm == 0).await;
    let (slot, new) = of_session(&pool, "one").await.expect("a slot");
    assert!(new && server.starts() == 3, "{}", id(&slot));
    server.fail(1);
    server.guest(2).end(crate::instance::guest::KILLED);
    drop(slot);
    until("gone", || pool.status().warm == 0).await;
    assert!(matches!(of_session(&pool, "one").await, Err(Refusal::Start(_))));
    of_session(&pool, "one").await.expect("the next call looks again");
}

#[tokio::test]
async fn an_instance_with_sessions_is_not_idle() {
    let server = with_sessions(1, 1, Duration::from_secs(2)).await;
    let pool = server.pool(PoolOptions { idle: Some(Duration::from_millis(1)), ..at_most(2) });
    let (slot, _) = of_session(&pool, "one").await.expect("a slot");
    let first = id(&slot);
    drop(slot);
    sleep(Duration::from_millis(1500)).await;
    let (slot, new) = of_session(&pool, "one").await.expect("a slot");
    assert_eq!((id(&slot), new), (first, false));
    drop(slot);
    until("reaped when its session is over", || pool.status().warm == 0).await;
}
