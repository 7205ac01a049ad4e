//! Pools that share a node's room.

use futures_util::future::{FutureExt as _, join_all};
use proptest::prelude::*;
use tokio::time::{sleep, timeout};

use super::room::{NodeLimits, Room, Share, Size, Tenant};
use super::tests::{SOON, Server, at_most, until};
use super::*;
use crate::platform::fc;

const A_WHILE: Duration = Duration::from_millis(50);

fn room(max_instances: Option<usize>, memory_mib: Option<u64>) -> Arc<Room> {
    Room::with(NodeLimits { max_instances, memory_mib, reserve_mib: None }, A_WHILE)
}

async fn server(memory_mib: u32) -> Arc<Server> {
    let mut config = FunctionConfig::new("f", fc());
    config.memory_mib = memory_mib;
    Server::of(config).await
}

#[tokio::test]
async fn the_least_recently_used_idle_instance_of_all_gives_way() {
    let room = room(Some(3), None);
    let servers = join_all((0..4).map(|_| server(512))).await;
    let pools: Vec<Pool> = servers.iter().map(|server| server.pool_in(Some(&room), at_most(5))).collect();
    for used in [1, 0, 2] {
        drop(pools[used].acquire().await.expect("room"));
        sleep(Duration::from_millis(2)).await;
    }
    drop(pools[1].acquire().await.expect("it is warm"));
    assert_eq!(room.used(), Size { instances: 3, memory_mib: 3 * 512 });
    let slot = pools[3].acquire().await.expect("what the first has");
    let warm: Vec<usize> = pools.iter().map(|pool| pool.status().warm).collect();
    assert_eq!((warm, room.gave_way()), (vec![0, 1, 1, 1], 1));
    drop(slot);
    // And back: nobody keeps what another needs more.
    drop(pools[0].acquire().await.expect("what the third has"));
    assert_eq!(pools[2].status().warm, 0);
    join_all(pools.iter().map(Pool::close)).await;
    assert_eq!(room.used(), Size::default());
}

#[tokio::test]
async fn as_many_give_way_as_a_large_one_needs_and_no_more() {
    let room = room(None, Some(4096));
    let (small, large) = (server(1024).await, server(2048).await);
    let (small, large) = (small.pool_in(Some(&room), at_most(9)), large.pool_in(Some(&room), at_most(9)));
    drop(join_all((0..4).map(|_| small.acquire())).await);
    assert_eq!((small.status().warm, room.used().memory_mib), (4, 4096));
    drop(large.acquire().await.expect("room"));
    assert_eq!((small.status().warm, large.status().warm, room.gave_way()), (2, 1, 2));
}

#[tokio::test]
async fn who_works_or_is_provisioned_stays() {
    let room = room(Some(2), None);
    let kept = server(512).await.pool_in(Some(&room), PoolOptions { provisioned: 1, ..at_most(1) });
    until("provisioned", || kept.status().warm == 1).await;
    let busy = server(512).await.pool_in(Some(&room), at_most(2));
    let slot = busy.acquire().await.expect("room");
    let options = PoolOptions { patience: A_WHILE, ..at_most(1) };
    let late = server(512).await.pool_in(Some(&room), options);
    assert!(matches!(late.acquire().await, Err(Refusal::Throttled)));
    assert_eq!((kept.status().warm, room.gave_way()), (1, 0));
    // It waits for nothing any more, and so comes in nobody's way.
    let waits = busy.acquire();
    drop(slot);
    drop(timeout(SOON, waits).await.expect("served").expect("by the same instance"));
    assert_eq!(busy.status().warm, 1);
}

#[tokio::test]
async fn callers_beyond_the_room_are_bounded() {
    let room = room(Some(1), None);
    let server = server(512).await;
    let pool = server.pool_in(Some(&room), PoolOptions { max_waiting: 2, ..at_most(5) });
    let slot = pool.acquire().await.expect("room");
    let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(pool.acquire())).collect();
    assert!(waiting.iter_mut().all(|waits| waits.now_or_never().is_none()));
    assert!(matches!(pool.acquire().now_or_never(), Some(Err(Refusal::Throttled))));
    drop(slot);
    for waits in waiting {
        drop(timeout(SOON, waits).await.expect("served").expect("a slot"));
    }
    assert_eq!(server.starts(), 1);
}

#[tokio::test]
async fn a_large_one_is_not_kept_out_by_small_ones() {
    let room = Room::with(NodeLimits { memory_mib: Some(2048), ..NodeLimits::default() }, SOON);
    let (small, large) = (server(1024).await, server(2048).await);
    let (small, large) = (small.pool_in(Some(&room), at_most(9)), large.pool_in(Some(&room), at_most(9)));
    let (first, second) = (small.acquire().await.expect("room"), small.acquire().await.expect("room"));
    let waits = tokio::spawn(async move { large.acquire().await.map(drop).is_ok() });
    sleep(A_WHILE).await;
    let late = tokio::spawn({
        let small = small.clone();
        async move { small.acquire().await.map(drop).is_ok() }
    });
    sleep(A_WHILE).await;
    drop(first);
    // The late one of the small has what was freed here: no instance, but a slot of one that is there.
    assert!(timeout(SOON, late).await.expect("served").expect("no panic"));
    drop(second);
    assert!(timeout(SOON, waits).await.expect("served").expect("no panic"));
    assert_eq!(small.status().warm, 0);
}

#[tokio::test]
async fn one_that_nothing_fits_keeps_nobody_out() {
    let room = room(None, Some(2048));
    let kept = server(1024).await.pool_in(Some(&room), PoolOptions { provisioned: 1, ..at_most(1) });
    until("provisioned", || kept.status().warm == 1).await;
    let large = server(2048).await.pool_in(Some(&room), at_most(1));
    let waits = tokio::spawn({
        let large = large.clone();
        async move { large.acquire().await.map(drop) }
    });
    until("in line", || large.status().waiting == 1).await;
    let small = server(512).await.pool_in(Some(&room), at_most(1));
    drop(timeout(SOON, small.acquire()).await.expect("its turn").expect("room"));
    assert_eq!((kept.status().warm, large.status().waiting), (1, 1));
    large.close().await;
    assert!(waits.await.expect("no panic").is_err());
}

#[tokio::test]
async fn what_a_failed_start_had_is_free_again() {
    let room = room(Some(1), None);
    let server = server(512).await;
    server.fail(1);
    let pool = server.pool_in(Some(&room), at_most(1));
    assert!(matches!(pool.acquire().await, Err(Refusal::Start(_))));
    assert_eq!(room.used(), Size::default());
    assert!(pool.acquire().await.is_ok());
}

#[tokio::test]
async fn who_waits_by_itself_has_what_is_freed_and_leaves_no_trace() {
    let room = room(Some(1), None);
    let share = room.try_take(512).expect("room");
    assert!(room.try_take(512).is_none());
    assert!(timeout(A_WHILE, room.wait(512)).await.is_err());
    assert_eq!((room.left(512), room.used().instances), (0, 1));
    let waits = room.wait(512);
    let freed = async {
        sleep(A_WHILE).await;
        drop(share);
    };
    let (second, ()) = tokio::join!(waits, freed);
    assert_eq!(room.used().instances, 1);
    drop(second);
    assert_eq!((room.left(512), room.used()), (1, Size::default()));
}

/// One who has nothing.
struct Nobody;

impl Tenant for Nobody {
    fn room_again(self: Arc<Self>) {}
}

proptest! {
    /// Whatever is claimed, given back and given up: the bounds hold, and nothing is lost.
    #[test]
    fn the_room_is_never_overdrawn(
        steps in prop::collection::vec((0..4_u8, 0..6_u64, 1..5_u64), 1..200),
        instances in prop::option::of(1..6_usize), memory in prop::option::of(1..12_u64),
    ) {
        let room = room(instances, memory);
        let nobody = Arc::new(Nobody);
        let tenant: std::sync::Weak<Nobody> = Arc::downgrade(&nobody);
        let tenant: std::sync::Weak<dyn Tenant> = tenant;
        let mut shares: Vec<Share> = Vec::new();
        for (step, id, mib) in steps {
            match step {
                0 | 1 => shares.extend(room.claim(id, mib, &tenant)),
                2 if !shares.is_empty() => {
                    let share = shares.swap_remove(usize::try_from(id).unwrap_or(0) % shares.len());
                    share.leaves();
                }
                _ => room.forget(id),
            }
            let used = room.used();
            prop_assert_eq!(used.instances, shares.len());
            prop_assert!(instances.is_none_or(|most| used.instances <= most));
            prop_assert!(memory.is_none_or(|most| used.memory_mib <= most));
        }
        shares.clear();
        (0..6).for_each(|id| room.forget(id));
        prop_assert_eq!(room.used(), Size::default());
        prop_assert!(room.left(1) > 0);
    }
}
