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

/// What a caller needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// A slot of any instance.
    Slot,
    /// A slot of an instance that has a place for another session.
    Place,
    /// A slot of this instance.
    Of(u64),
}

/// One who waits.
pub(super) trait Waits {
    fn need(&self) -> Need;
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
    /// [`Slots::wait`]. `usable` tells whether an instance fits the need, `room` how many more instances the node lets
    /// it have.
    pub(super) fn take(
        &mut self,
        need: Need,
        usable: impl Fn(&I, Need) -> bool,
        room: impl Fn() -> usize,
    ) -> Taken<I> {
        let like = |caller: &W| match (caller.need(), need) {
            (Need::Of(_), Need::Of(_)) => true,
            (its, need) => its == need,
        };
        let waiting = self.waiting.iter().filter(|caller| like(caller)).count();
        // Nobody overtakes those that wait for the same.
        if !self.waiting.iter().any(|caller| caller.need() == need)
            && let Some((number, instance)) = self.take_free(need, usable)
        {
            return Taken::Slot(number, instance);
        }
        // Those that starts are for, or will be, are not in anybody's way.
        let may_start = self.bounds.instances.saturating_sub(self.alive()).min(room());
        let starts = self.starting + may_start;
        let (all, for_places) = self.lines();
        // Those of the other kind have slots of them too.
        let left = |others: usize| starts.saturating_mul(self.bounds.concurrency).saturating_sub(others);
        let places = starts.saturating_mul(self.places());
        let covered = match need {
            Need::Slot => left(for_places.min(places)),
            Need::Place => left(all - for_places).min(places),
            Need::Of(_) => 0,
        };
        if waiting >= covered.saturating_add(self.bounds.waiting) {
            Taken::Full
        } else {
            Taken::Wait { covered: waiting < covered }
        }
    }

    /// How many sessions a new instance has places and slots for.
    fn places(&self) -> usize {
        self.bounds.sessions.min(self.bounds.concurrency)
    }

    /// The instance that is this one, if it gets invocations.
    pub(super) fn number_of(&self, is_it: impl Fn(&I) -> bool) -> Option<u64> {
        self.warm.iter().find(|warm| is_it(&warm.instance)).map(|warm| warm.number)
    }

    fn take_free(&mut self, need: Need, usable: impl Fn(&I, Need) -> bool) -> Option<(u64, I)> {
        let limit = self.bounds.concurrency;
        let fits = |warm: &Warm<I>| match need {
            Need::Of(number) => warm.number == number,
            Need::Slot | Need::Place => true,
        };
        let free = |warm: &Warm<I>| warm.used < limit && fits(warm) && usable(&warm.instance, need);
        let free = self.warm.iter().rposition(free)?;
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

    /// Gives free slots to those that wait, oldest first: each caller with its instance. Who finds none that fits lets
    /// others pass. Those whose instance is not there any more, or cannot be used, are let go.
    pub(super) fn serve(&mut self, usable: impl Fn(&I, Need) -> bool) -> Vec<(u64, I, W)> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let limit = self.bounds.concurrency;
        let stays = |warm: &[Warm<I>], number: u64, need: Need| {
            warm.iter().any(|warm| warm.number == number && usable(&warm.instance, need))
        };
        let goes = |caller: &W| matches!(caller.need(), Need::Of(number) if !stays(&self.warm, number, caller.need()));
        if self.warm.iter().all(|warm| warm.used >= limit) && !self.waiting.iter().any(goes) {
            return Vec::new();
        }
        let waiting = std::mem::take(&mut self.waiting);
        let (mut served, mut in_vain) = (Vec::new(), Vec::new());
        for caller in waiting {
            let need = caller.need();
            if let Need::Of(number) = need {
                let its = self.warm.iter().find(|warm| warm.number == number);
                match its {
                    Some(warm) if usable(&warm.instance, need) => {
                        if warm.used >= limit {
                            self.waiting.push_back(caller);
                            continue;
                        }
                    }
                    // It is to look for another.
                    Some(_) | None => continue,
                }
            }
            let taken = if in_vain.contains(&need) { None } else { self.take_free(need, &usable) };
            match taken {
                Some((number, instance)) => served.push((number, instance, caller)),
                None => {
                    if !in_vain.contains(&need) {
                        in_vain.push(need);
                    }
                    self.waiting.push_back(caller);
                }
            }
        }
        served
    }

    /// How many wait that a start can serve, and how many of them for a place.
    fn lines(&self) -> (usize, usize) {
        self.waiting.iter().fold((0, 0), |(all, places), caller| match caller.need() {
            Need::Slot => (all + 1, places),
            Need::Place => (all + 1, places + 1),
            Need::Of(_) => (all, places),
        })
    }

    /// How many instances have to start for so many of them.
    fn needed_for(&self, (all, places): (usize, usize)) -> usize {
        all.div_ceil(self.bounds.concurrency).max(places.div_ceil(self.places()))
    }

    /// How many instances are to be started now for those that wait, and to have `least` of them.
    pub(super) fn wanted(&self, least: usize) -> usize {
        let wanted = self.needed_for(self.lines()).saturating_sub(self.starting).max(self.lacking(least));
        wanted.min(self.bounds.instances.saturating_sub(self.alive()))
    }

    /// How many of those are started whether anybody waits or not.
    pub(super) fn lacking(&self, least: usize) -> usize {
        least.saturating_sub(self.warm.len() + self.starting)
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
        let (mut told, mut told_of_places) = (Vec::new(), 0);
        let (mut all, mut places) = self.lines();
        while told.len() < self.bounds.concurrency && self.needed_for((all, places)) > self.starting {
            let place_alone = places.div_ceil(self.places()) > self.starting;
            let is_told = |need: Need| match need {
                Need::Place => told_of_places < self.places(),
                Need::Slot => !place_alone,
                Need::Of(_) => false,
            };
            let Some(next) = self.waiting.iter().position(|caller| is_told(caller.need())) else { break };
            let Some(caller) = self.waiting.remove(next) else { break };
            let for_place = usize::from(caller.need() == Need::Place);
            (all, places, told_of_places) = (all - 1, places - for_place, told_of_places + for_place);
            told.push(caller);
        }
        told
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
#[path = "slots_tests.rs"]
mod tests;
