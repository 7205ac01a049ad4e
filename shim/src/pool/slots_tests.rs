//! The books of a pool: who gets what, who waits, and what is to be started.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// A caller for a session, of those that are numbers.
const FOR_SESSION: u32 = 1_000_000;

/// A caller for one instance: so many of each.
const FOR_ONE: u32 = 2_000_000;
const OF_EACH: u32 = 1000;

impl Waits for u32 {
    fn need(&self) -> Need {
        match *self {
            FOR_ONE.. => Need::Of(u64::from((*self - FOR_ONE) / OF_EACH)),
            FOR_SESSION.. => Need::Place,
            _ => Need::Slot,
        }
    }
}

fn slots(concurrency: usize, instances: usize, waiting: usize) -> Slots<u32, u32> {
    Slots::new(Bounds { concurrency, instances, sessions: 1, waiting })
}

fn any(_: &u32, _: Need) -> bool {
    true
}

fn plenty() -> usize {
    usize::MAX
}

/// Starts what is wanted.
fn start(slots: &mut Slots<u32, u32>, least: usize) -> usize {
    let wanted = slots.wanted(least);
    slots.begin(wanted);
    wanted
}

/// A caller that comes; what it gets.
fn call(slots: &mut Slots<u32, u32>, caller: u32) -> Taken<u32> {
    let taken = slots.take(caller.need(), any, plenty);
    if matches!(taken, Taken::Wait { .. }) {
        slots.wait(caller);
    }
    taken
}

#[test]
fn first_calls_start_as_many_as_they_need() {
    for (calls, concurrency, starts) in [(1, 1, 1), (5, 1, 5), (20, 10, 2), (21, 10, 3), (3, 100, 1)] {
        let mut slots = slots(concurrency, 100, 0);
        let mut started = 0;
        for caller in 0..calls {
            assert_eq!(call(&mut slots, caller), Taken::Wait { covered: true });
            started += start(&mut slots, 0);
        }
        assert_eq!(started, starts, "{calls} calls of a function with concurrency {concurrency}");
    }
}

#[test]
fn the_newest_used_comes_first_and_the_others_stay_idle() {
    let mut slots = slots(1, 3, 0);
    assert_eq!(start(&mut slots, 3), 3);
    let numbers: Vec<u64> = (0..3).map(|instance| slots.started(instance)).collect();
    assert_eq!(slots.take(Need::Slot, any, plenty), Taken::Slot(numbers[2], 2));
    assert_eq!(slots.take(Need::Slot, any, plenty), Taken::Slot(numbers[1], 1));
    assert_eq!(slots.release(numbers[2]), None);
    assert_eq!(slots.release(numbers[1]), None);
    // The one that was taken last, whichever ended last.
    assert_eq!(slots.take(Need::Slot, any, plenty), Taken::Slot(numbers[1], 1));
    slots.release(numbers[1]);
    assert_eq!(slots.reap(Instant::now() + Duration::from_secs(1), 1, 9, |_| false), [0, 2]);
}

#[test]
fn what_cannot_be_used_is_passed_over() {
    let mut slots = slots(1, 2, 5);
    start(&mut slots, 2);
    let good = slots.started(1);
    slots.started(2);
    assert_eq!(slots.take(Need::Slot, |instance, _| *instance != 2, plenty), Taken::Slot(good, 1));
    assert_eq!(slots.take(Need::Slot, |instance, _| *instance != 2, plenty), Taken::Wait { covered: false });
}

#[test]
fn too_many_are_refused() {
    let mut slots = slots(2, 1, 3);
    for caller in 0..5 {
        assert_eq!(call(&mut slots, caller), Taken::Wait { covered: caller < 2 }, "{caller}");
    }
    assert_eq!(call(&mut slots, 5), Taken::Full);
    assert_eq!(start(&mut slots, 0), 1);
    assert_eq!(start(&mut slots, 0), 0, "no more than there may be");
    let number = slots.started(7);
    assert_eq!(slots.serve(any), [(number, 7, 0), (number, 7, 1)]);
    assert_eq!(call(&mut slots, 6), Taken::Full);
    slots.release(number);
    assert_eq!(slots.serve(any), [(number, 7, 2)]);
    assert_eq!(call(&mut slots, 7), Taken::Wait { covered: false });
}

#[test]
fn one_without_a_session_does_not_wait_for_a_place_of_one() {
    let mut slots = slots(5, 1, 9);
    for caller in [FOR_SESSION, FOR_SESSION + 1, 2, 3] {
        assert_eq!(call(&mut slots, caller), Taken::Wait { covered: caller != FOR_SESSION + 1 });
    }
    assert_eq!(start(&mut slots, 0), 1);
    let number = slots.started(7);
    // The instance has a place for one session.
    let places = std::cell::Cell::new(1);
    let usable = |_: &u32, need: Need| {
        need == Need::Slot || {
            let left = places.get();
            places.set(left.max(1) - 1);
            left > 0
        }
    };
    let served: Vec<u32> = slots.serve(usable).into_iter().map(|(_, _, caller)| caller).collect();
    assert_eq!((served, slots.status().waiting), (vec![FOR_SESSION, 2, 3], 1));
    assert_eq!(slots.serve(any), [(number, 7, FOR_SESSION + 1)]);
}

#[test]
fn a_failed_start_is_told_to_as_many_as_it_was_for() {
    // One session each: two starts, of which one is for each caller.
    let mut slots = slots(100, 9, 9);
    for caller in [1, FOR_SESSION, FOR_SESSION + 1] {
        call(&mut slots, caller);
    }
    assert_eq!(start(&mut slots, 0), 2);
    assert_eq!(slots.failed(), [FOR_SESSION]);
    assert_eq!(start(&mut slots, 0), 0, "the other start is for those that are left");
    assert_eq!(slots.failed(), [FOR_SESSION + 1, 1]);
    assert_eq!((start(&mut slots, 0), slots.status().waiting), (0, 0));
}

#[test]
fn who_waits_for_an_instance_is_served_in_turn_or_looks_again() {
    struct One(u32, Need);
    impl Waits for One {
        fn need(&self) -> Need {
            self.1
        }
    }
    let bounds = Bounds { concurrency: 1, instances: 2, sessions: 1, waiting: 9 };
    let mut slots: Slots<u32, One> = Slots::new(bounds);
    slots.begin(2);
    let (one, two) = (slots.started(1), slots.started(2));
    assert_eq!(slots.number_of(|instance| *instance == 2), Some(two));
    assert_eq!(slots.take(Need::Of(one), |_, _| true, plenty), Taken::Slot(one, 1));
    assert_eq!(slots.take(Need::Of(one), |_, _| true, plenty), Taken::Wait { covered: false });
    slots.wait(One(0, Need::Of(one)));
    assert_eq!(slots.take(Need::Slot, |_, _| true, plenty), Taken::Slot(two, 2));
    slots.wait(One(1, Need::Slot));
    slots.wait(One(2, Need::Of(one)));
    assert_eq!(slots.wanted(0), 0, "both are there");
    let served = |slots: &mut Slots<u32, One>| {
        let served = slots.serve(|_, _| true);
        served.into_iter().map(|(number, _, caller)| (number, caller.0)).collect::<Vec<_>>()
    };
    assert_eq!(served(&mut slots), []);
    // The oldest first, though others could use it too.
    slots.release(one);
    assert_eq!(served(&mut slots), [(one, 0)]);
    slots.release(two);
    assert_eq!(served(&mut slots), [(two, 1)]);
    // Its instance gets no more: it looks again.
    assert_eq!(slots.retire(one), None);
    assert_eq!((served(&mut slots), slots.status().waiting), (vec![], 0));
    // And one that cannot be used.
    slots.wait(One(3, Need::Of(two)));
    assert!(slots.serve(|_, _| false).is_empty() && slots.status().waiting == 0);
}

#[test]
fn those_that_wait_are_bounded_by_what_they_wait_for() {
    let mut slots = slots(1, 1, 2);
    assert_eq!(start(&mut slots, 1), 1);
    let number = slots.started(7);
    assert_eq!(call(&mut slots, 0), Taken::Slot(number, 7));
    for caller in [FOR_SESSION, FOR_SESSION + 1] {
        assert_eq!(call(&mut slots, caller), Taken::Wait { covered: false });
    }
    assert_eq!(call(&mut slots, FOR_SESSION + 2), Taken::Full);
    assert_eq!(call(&mut slots, 1), Taken::Wait { covered: false });
    let of = |slots: &mut Slots<u32, u32>| slots.take(Need::Of(number), any, plenty);
    assert_eq!(of(&mut slots), Taken::Wait { covered: false });
}

#[test]
fn sessions_start_as_many_as_have_places_for_them() {
    let mut slots = slots(100, 3, 9);
    for (caller, starts) in [(1, 1), (2, 0), (FOR_SESSION, 0), (FOR_SESSION + 1, 1), (FOR_SESSION + 2, 1)] {
        call(&mut slots, caller);
        assert_eq!(start(&mut slots, 0), starts, "{caller}");
    }
    call(&mut slots, FOR_SESSION + 3);
    assert_eq!(start(&mut slots, 0), 0, "there may be three");
}

#[test]
fn who_has_no_room_for_an_instance_waits_as_for_a_busy_one() {
    let mut slots = slots(2, 5, 1);
    assert_eq!(slots.take(Need::Slot, any, || 1), Taken::Wait { covered: true });
    slots.wait(0);
    slots.wait(1);
    assert_eq!(slots.take(Need::Slot, any, || 1), Taken::Wait { covered: false });
    assert_eq!(slots.take(Need::Slot, any, || 2), Taken::Wait { covered: true });
    slots.wait(2);
    assert_eq!(slots.take(Need::Slot, any, || 1), Taken::Full);
    assert_eq!(slots.wanted(0), 2, "as before");
    slots.begin(1);
    assert_eq!(slots.wanted(0), 1, "the other one still");
}

#[test]
fn the_oldest_idle_ones_can_be_spared_but_for_those_that_are_kept() {
    let mut slots = slots(1, 5, 0);
    start(&mut slots, 3);
    let numbers: Vec<u64> = (0..3).map(|instance| slots.started(instance)).collect();
    assert_eq!(slots.take(Need::Slot, any, plenty), Taken::Slot(numbers[2], 2));
    let idle = |least| slots.idle(least, |_| false);
    assert_eq!((idle(0).len(), idle(2).len(), idle(3).len()), (2, 1, 0));
    assert!(idle(0).is_sorted());
    assert_eq!(slots.idle(0, |instance| *instance == 0).len(), 1);
    assert_eq!(slots.reap(Instant::now(), 0, 1, |_| false), [0]);
    assert_eq!(slots.reap(Instant::now(), 0, 1, |_| false), [1]);
    assert_eq!(slots.reap(Instant::now(), 0, 1, |_| false), [0; 0], "the last one works");
}

#[test]
fn a_failed_start_is_told_those_that_it_was_for() {
    let mut slots = slots(2, 2, 10);
    for caller in 0..5 {
        call(&mut slots, caller);
    }
    assert_eq!(start(&mut slots, 0), 2);
    assert_eq!(slots.failed(), [0, 1]);
    // The other start is for two, and another may come for the last.
    assert_eq!(start(&mut slots, 0), 1);
    slots.started(1);
    slots.started(2);
    assert_eq!(slots.serve(any).len(), 3);
}

#[test]
fn one_that_is_broken_leaves_with_its_last_invocation() {
    let mut slots = slots(2, 1, 1);
    start(&mut slots, 1);
    let number = slots.started(9);
    assert_eq!(
        (slots.take(Need::Slot, any, plenty), slots.take(Need::Slot, any, plenty)),
        (Taken::Slot(number, 9), Taken::Slot(number, 9))
    );
    assert_eq!(slots.retire(number), None);
    assert_eq!(slots.all(), [(9, true)]);
    // It still has its memory.
    assert_eq!((call(&mut slots, 1), start(&mut slots, 0)), (Taken::Wait { covered: false }, 0));
    assert_eq!(slots.release(number), None);
    assert_eq!(slots.release(number), Some(9));
    assert_eq!((slots.all(), start(&mut slots, 0)), (Vec::new(), 1));
    assert_eq!(slots.retire(number), None, "twice");
}

#[derive(Clone, Debug)]
enum Step {
    Call,
    Started,
    Failed,
    Release(usize),
    Retire(usize),
    Reap,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => Just(Step::Call),
        3 => Just(Step::Started),
        1 => Just(Step::Failed),
        4 => (0..50_usize).prop_map(Step::Release),
        1 => (0..50_usize).prop_map(Step::Retire),
        1 => Just(Step::Reap),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// Whatever comes in whichever order: the bounds hold, nobody waits beside a free slot or an
    /// instance that could be started, nothing is lost, and every caller is heard in the turn of its kind.
    #[test]
    fn the_books_are_right(
        steps in steps(), concurrency in 1..4_usize, instances in 1..5_usize, waiting in 0..6_usize, least in 0..2_usize,
        // Of all callers, so many in four are for a session.
        sessions in 1..4_usize, share in 0..4_u32,
    ) {
        let mut slots = Slots::new(Bounds { concurrency, instances, sessions, waiting });
        let (mut running, mut callers, mut refused, mut heard): (Vec<u64>, u32, u32, Vec<u32>) =
            (Vec::new(), 0, 0, Vec::new());
        let (mut given_at_once, mut gone) = (0, 0);
        for step in steps {
            match step {
                Step::Call => {
                    let kind = if callers % 4 < share { FOR_SESSION } else { 0 };
                    match call(&mut slots, callers + kind) {
                        Taken::Slot(number, _) => {
                            running.push(number);
                            given_at_once += 1;
                        }
                        Taken::Wait { .. } => {}
                        Taken::Full => refused += 1,
                    }
                    callers += 1;
                }
                Step::Started if slots.status().starting > 0 => drop(slots.started(callers)),
                Step::Failed if slots.status().starting > 0 => {
                    let told = slots.failed();
                    gone += told.len();
                    heard.extend(told);
                }
                Step::Release(which) if !running.is_empty() => {
                    let number = running.swap_remove(which % running.len());
                    slots.release(number);
                }
                Step::Retire(which) if !running.is_empty() => drop(slots.retire(running[which % running.len()])),
                Step::Reap => drop(slots.reap(Instant::now(), least, 9, |_| false)),
                _ => {}
            }
            for (number, _, caller) in slots.serve(any) {
                running.push(number);
                heard.push(caller);
            }
            start(&mut slots, least);
            let counts = slots.status();
            prop_assert!(counts.warm + counts.starting + counts.leaving <= instances);
            prop_assert_eq!(counts.running, running.len());
            prop_assert!(counts.waiting == 0 || counts.free == 0);
            let may_start = instances - (counts.warm + counts.starting + counts.leaving);
            prop_assert!(counts.waiting <= counts.starting * concurrency || may_start == 0);
            prop_assert!(slots.needed_for(slots.lines()) <= counts.starting || may_start == 0);
            for kind in [Need::Slot, Need::Place] {
                let heard = heard.iter().filter(|caller| caller.need() == kind);
                prop_assert!(heard.is_sorted(), "in their turn: {:?}", kind);
            }
            let all = given_at_once + heard.len() + counts.waiting;
            prop_assert_eq!(all + refused as usize, callers as usize, "nobody is lost ({} failed)", gone);
        }
    }

    /// Callers that want one instance and no other wait for that one alone, as long as it gets invocations, and keep
    /// nobody from the others.
    #[test]
    fn who_wants_one_instance_waits_for_that_one(
        steps in steps(), concurrency in 1..4_usize, instances in 1..5_usize, share in 1..4_u32, pick in 0..5_usize,
    ) {
        let mut slots = Slots::new(Bounds { concurrency, instances, sessions: 1, waiting: 9 });
        let (mut running, mut calls): (Vec<u64>, u32) = (Vec::new(), 0);
        for step in steps {
            match step {
                Step::Call => {
                    let numbers: Vec<u64> = slots.warm.iter().map(|warm| warm.number).collect();
                    let one = numbers.get(pick % numbers.len().max(1)).filter(|_| calls % 4 < share);
                    let of = |number: &u64| FOR_ONE + u32::try_from(*number).expect("few") * OF_EACH;
                    if let Taken::Slot(number, _) = call(&mut slots, one.map_or(0, of) + calls) {
                        prop_assert!(one.is_none_or(|one| *one == number));
                        running.push(number);
                    }
                    calls += 1;
                }
                Step::Started if slots.status().starting > 0 => drop(slots.started(calls)),
                Step::Failed if slots.status().starting > 0 => {
                    let told = slots.failed();
                    prop_assert!(told.iter().all(|caller| *caller < FOR_ONE), "no start was for them");
                }
                Step::Release(which) if !running.is_empty() => {
                    let number = running.swap_remove(which % running.len());
                    slots.release(number);
                }
                Step::Retire(which) if !running.is_empty() => drop(slots.retire(running[which % running.len()])),
                Step::Reap => drop(slots.reap(Instant::now(), 0, 9, |_| false)),
                _ => {}
            }
            for (number, _, caller) in slots.serve(any) {
                prop_assert!(!matches!(caller.need(), Need::Of(its) if its != number));
                running.push(number);
            }
            start(&mut slots, 0);
            prop_assert_eq!(slots.status().running, running.len());
            let is_free = |number: u64| slots.warm.iter().any(|w| w.number == number && w.used < concurrency);
            for caller in &slots.waiting {
                match caller.need() {
                    Need::Of(its) => prop_assert!(slots.warm.iter().any(|w| w.number == its) && !is_free(its)),
                    _ => prop_assert!(slots.warm.iter().all(|w| w.used >= concurrency)),
                }
            }
        }
    }
}
