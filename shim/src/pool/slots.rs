//! Who has which instance: warm instances with their slots, starts under way, and callers that wait.
//!
//! Nothing here waits, starts or stops anything; every method says what is to be done. So the rules can be
//! tested by themselves: the newest used instance with a free slot first, never more starts than the callers
//! that wait need, callers in the order in which they came.

use std::collections::VecDeque;
use std::time::Instant;

use super::PoolStatus;

/// The bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Invocations that one instance works on at once; at least 1.
    pub(super) concurrency: usize,
    /// Instances at once, those that start among them; at least 1.
    pub(super) instances: usize,
    /// Sessions that one instance may have; at least 1.
    pub(super) sessions: usize,
    /// Callers that may wait besides those that some start is for.
    pub(super) waiting: usize,
}

/// One who waits.
pub(super) trait Waits {
    /// Whether it needs a place for a session too.
    fn for_session(&self) -> bool;
}

/// An instance that takes invocations.
struct Warm<I> {
    number: u64,
    instance: I,
    /// Invocations that it works on.
    used: usize,
    /// Since when it works on none.
    idle_since: Instant,
}

/// The books of a pool; `I` is an instance, `W` a caller that waits.
pub(super) struct Slots<I, W> {
    bounds: Bounds,
    /// Least recently used first.
    warm: Vec<Warm<I>>,
    /// Instances that get no more invocations and still work on some.
    leaving: Vec<Warm<I>>,
    starting: usize,
    waiting: VecDeque<W>,
    next: u64,
}

/// What a caller gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken<I> {
    /// A slot of this instance.
    Slot(u64, I),
    /// A place in the queue; whether a start is, or can be, for it.
    Wait { covered: bool },
    /// Nothing: too many wait already.
    Full,
}

impl<I: Clone, W: Waits> Slots<I, W> {
    pub(super) fn new(bounds: Bounds) -> Self {
        let (warm, leaving, waiting) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { bounds, warm, leaving, starting: 0, waiting, next: 0 }
    }

    /// Takes a free slot, or says whether there is a place to wait; the caller joins the queue by
    /// [`Slots::wait`]. `room` tells how many more instances the node lets it have.
    pub(super) fn take(&mut self, usable: impl Fn(&I) -> bool, room: impl Fn() -> usize) -> Taken<I> {
        if let Some((number, instance)) = self.take_free(usable) {
            return Taken::Slot(number, instance);
        }
        // Those that starts are for, or will be, are not in anybody's way.
        let may_start = self.bounds.instances.saturating_sub(self.alive()).min(room());
        let covered = (self.starting + may_start) * self.bounds.concurrency;
        match self.waiting.len() {
            waiting if waiting >= covered + self.bounds.waiting => Taken::Full,
            waiting => Taken::Wait { covered: waiting < covered },
        }
    }

    pub(super) fn take_free(&mut self, usable: impl Fn(&I) -> bool) -> Option<(u64, I)> {
        let limit = self.bounds.concurrency;
        let free = self.warm.iter().rposition(|warm| warm.used < limit && usable(&warm.instance))?;
        let mut warm = self.warm.remove(free);
        warm.used += 1;
        let taken = (warm.number, warm.instance.clone());
        self.warm.push(warm);
        Some(taken)
    }

    /// Adds a caller that waits.
    pub(super) fn wait(&mut self, caller: W) {
        self.waiting.push_back(caller);
    }

    /// Removes the callers that have left.
    pub(super) fn forget(&mut self, gone: impl Fn(&W) -> bool) {
        self.waiting.retain(|caller| !gone(caller));
    }

    /// Gives free slots to those that wait, oldest first: each caller with its instance. Where no instance has a place
    /// for a session, others go first. `usable` is asked whether an instance can be used, for a session or not.
    pub(super) fn serve(&mut self, usable: impl Fn(&I, bool) -> bool) -> Vec<(u64, I, W)> {
        let (mut served, mut next, mut places) = (Vec::new(), 0, true);
        while let Some(caller) = self.waiting.get(next) {
            let for_session = caller.for_session();
            if for_session && !places {
                next += 1;
                continue;
            }
            match self.take_free(|instance| usable(instance, for_session)) {
                Some((number, instance)) => {
                    served.extend(self.waiting.remove(next).map(|caller| (number, instance, caller)));
                }
                None if for_session => places = false,
                None => break,
            }
        }
        served
    }

    /// How many instances are to be started now for those that wait, and to have `least` of them.
    pub(super) fn wanted(&self, least: usize) -> usize {
        let for_sessions = self.waiting.iter().filter(|caller| caller.for_session()).count();
        let needed = self.waiting.len().div_ceil(self.bounds.concurrency);
        let needed = needed.max(for_sessions.div_ceil(self.bounds.sessions));
        let kept = least.saturating_sub(self.warm.len());
        let wanted = needed.max(kept).saturating_sub(self.starting);
        wanted.min(self.bounds.instances.saturating_sub(self.alive()))
    }

    /// So many of those that are wanted count as starting from now on.
    pub(super) fn begin(&mut self, starts: usize) {
        self.starting += starts;
    }

    /// A start has succeeded.
    pub(super) fn started(&mut self, instance: I) -> u64 {
        self.starting -= 1;
        self.add(instance)
    }

    /// An instance is there that nobody here has started.
    pub(super) fn add(&mut self, instance: I) -> u64 {
        self.next += 1;
        let (number, idle_since) = (self.next, Instant::now());
        self.warm.push(Warm { number, instance, used: 0, idle_since });
        number
    }

    /// A start has failed: the callers that are to be told, those that no other start is for, at most as
    /// many as it was for.
    pub(super) fn failed(&mut self) -> Vec<W> {
        self.starting -= 1;
        let covered = self.starting * self.bounds.concurrency;
        let told = self.waiting.len().saturating_sub(covered).min(self.bounds.concurrency);
        self.waiting.drain(..told).collect()
    }

    /// All instances, and whether they get no more invocations.
    pub(super) fn all(&self) -> Vec<(I, bool)> {
        let warm = self.warm.iter().map(|warm| (warm.instance.clone(), false));
        warm.chain(self.leaving.iter().map(|warm| (warm.instance.clone(), true))).collect()
    }

    /// An invocation has ended: the instance, if it was the last of one that gets no more.
    pub(super) fn release(&mut self, number: u64) -> Option<I> {
        if let Some(warm) = self.warm.iter_mut().find(|warm| warm.number == number) {
            warm.used -= 1;
            warm.idle_since = Instant::now();
            return None;
        }
        let place = self.leaving.iter().position(|warm| warm.number == number)?;
        self.leaving[place].used -= 1;
        (self.leaving[place].used == 0).then(|| self.leaving.remove(place).instance)
    }

    /// Gives this instance no more invocations: the instance, if it works on none.
    pub(super) fn retire(&mut self, number: u64) -> Option<I> {
        let place = self.warm.iter().position(|warm| warm.number == number)?;
        let warm = self.warm.remove(place);
        if warm.used == 0 {
            return Some(warm.instance);
        }
        self.leaving.push(warm);
        None
    }

    /// Since when those work on nothing that can be spared while `least` are left, least recently used first; one
    /// that `stays` is passed over.
    pub(super) fn idle(&self, least: usize, stays: impl Fn(&I) -> bool) -> Vec<Instant> {
        let idle = self.warm.iter().filter(|warm| warm.used == 0 && !stays(&warm.instance));
        idle.map(|warm| warm.idle_since).take(self.warm.len().saturating_sub(least)).collect()
    }

    /// Takes out those that have been idle since before `before`, `most` at most, least recently used first, as
    /// long as `least` are left; one that `stays` is passed over.
    pub(super) fn reap(
        &mut self,
        before: Instant,
        least: usize,
        most: usize,
        stays: impl Fn(&I) -> bool,
    ) -> Vec<I> {
        let mut reaped = Vec::new();
        let mut place = 0;
        while place < self.warm.len() && self.warm.len() > least && reaped.len() < most {
            let warm = &self.warm[place];
            if warm.used == 0 && warm.idle_since <= before && !stays(&warm.instance) {
                reaped.push(self.warm.remove(place).instance);
            } else {
                place += 1;
            }
        }
        reaped
    }

    /// Takes out everything: all instances, and all that wait.
    pub(super) fn clear(&mut self) -> (Vec<I>, Vec<W>) {
        let all = self.warm.drain(..).chain(self.leaving.drain(..));
        (all.map(|warm| warm.instance).collect(), self.waiting.drain(..).collect())
    }

    pub(super) fn status(&self) -> PoolStatus {
        let used = |all: &[Warm<I>]| all.iter().map(|warm| warm.used).sum::<usize>();
        PoolStatus {
            warm: self.warm.len(),
            starting: self.starting,
            leaving: self.leaving.len(),
            running: used(&self.warm) + used(&self.leaving),
            free: self.warm.len() * self.bounds.concurrency - used(&self.warm),
            waiting: self.waiting.len(),
        }
    }

    /// Those that have memory: an instance that leaves has it until its last invocation has ended.
    fn alive(&self) -> usize {
        self.warm.len() + self.leaving.len() + self.starting
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A caller for a session, of those that are numbers.
    const FOR_SESSION: u32 = 1_000_000;

    impl Waits for u32 {
        fn for_session(&self) -> bool {
            *self >= FOR_SESSION
        }
    }

    fn slots(concurrency: usize, instances: usize, waiting: usize) -> Slots<u32, u32> {
        Slots::new(Bounds { concurrency, instances, sessions: 1, waiting })
    }

    fn all(_: &u32) -> bool {
        true
    }

    fn any(_: &u32, _: bool) -> bool {
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
        let taken = slots.take(all, plenty);
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
        assert_eq!(slots.take(all, plenty), Taken::Slot(numbers[2], 2));
        assert_eq!(slots.take(all, plenty), Taken::Slot(numbers[1], 1));
        assert_eq!(slots.release(numbers[2]), None);
        assert_eq!(slots.release(numbers[1]), None);
        // The one that was taken last, whichever ended last.
        assert_eq!(slots.take(all, plenty), Taken::Slot(numbers[1], 1));
        slots.release(numbers[1]);
        assert_eq!(slots.reap(Instant::now() + Duration::from_secs(1), 1, 9, |_| false), [0, 2]);
    }

    #[test]
    fn what_cannot_be_used_is_passed_over() {
        let mut slots = slots(1, 2, 5);
        start(&mut slots, 2);
        let good = slots.started(1);
        slots.started(2);
        assert_eq!(slots.take(|instance| *instance != 2, plenty), Taken::Slot(good, 1));
        assert_eq!(slots.take(|instance| *instance != 2, plenty), Taken::Wait { covered: false });
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
            assert_eq!(call(&mut slots, caller), Taken::Wait { covered: true });
        }
        assert_eq!(start(&mut slots, 0), 1);
        let number = slots.started(7);
        // The instance has a place for one session.
        let places = std::cell::Cell::new(1);
        let usable = |_: &u32, for_session: bool| {
            !for_session || {
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
    fn sessions_start_as_many_as_have_places_for_them() {
        let mut slots = slots(100, 3, 9);
        for (caller, starts) in [(1, 1), (2, 0), (FOR_SESSION, 0), (FOR_SESSION + 1, 1), (FOR_SESSION + 2, 1)]
        {
            call(&mut slots, caller);
            assert_eq!(start(&mut slots, 0), starts, "{caller}");
        }
        call(&mut slots, FOR_SESSION + 3);
        assert_eq!(start(&mut slots, 0), 0, "there may be three");
    }

    #[test]
    fn who_has_no_room_for_an_instance_waits_as_for_a_busy_one() {
        let mut slots = slots(2, 5, 1);
        assert_eq!(slots.take(all, || 1), Taken::Wait { covered: true });
        slots.wait(0);
        slots.wait(1);
        assert_eq!(slots.take(all, || 1), Taken::Wait { covered: false });
        assert_eq!(slots.take(all, || 2), Taken::Wait { covered: true });
        slots.wait(2);
        assert_eq!(slots.take(all, || 1), Taken::Full);
        assert_eq!(slots.wanted(0), 2, "as before");
        slots.begin(1);
        assert_eq!(slots.wanted(0), 1, "the other one still");
    }

    #[test]
    fn the_oldest_idle_ones_can_be_spared_but_for_those_that_are_kept() {
        let mut slots = slots(1, 5, 0);
        start(&mut slots, 3);
        let numbers: Vec<u64> = (0..3).map(|instance| slots.started(instance)).collect();
        assert_eq!(slots.take(all, plenty), Taken::Slot(numbers[2], 2));
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
            (slots.take(all, plenty), slots.take(all, plenty)),
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
        /// instance that could be started, nothing is lost, and every caller is heard in its turn.
        #[test]
        fn the_books_are_right(
            steps in steps(), concurrency in 1..4_usize, instances in 1..5_usize, waiting in 0..6_usize, least in 0..2_usize,
        ) {
            let mut slots = slots(concurrency, instances, waiting);
            let (mut running, mut callers, mut refused, mut heard): (Vec<u64>, u32, u32, Vec<u32>) =
                (Vec::new(), 0, 0, Vec::new());
            let (mut given_at_once, mut gone) = (0, 0);
            for step in steps {
                match step {
                    Step::Call => {
                        match call(&mut slots, callers) {
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
                prop_assert!(heard.is_sorted(), "in their turn: {:?}", heard);
                let all = given_at_once + heard.len() + counts.waiting;
                prop_assert_eq!(all + refused as usize, callers as usize, "nobody is lost ({} failed)", gone);
            }
        }
    }
}
