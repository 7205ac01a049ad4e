//! Containers that are made before anybody orders them. Each waits in a group `@NUMBER`, with a start
//! process that waits for its order: the half of a start that does not depend on image and command is done by then.
//!
//! ```text
//! Prepare ──► being made ──Waiting──► waiting ──Start──► Starting
//!                 └──failure, death, patience, no owner──► gone
//! ```
//!
//! One that fails is let go without a word: the start that comes for it makes its own, and tells what is wrong.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::fork::{Forked, order_sockets};
use super::protocol::{Failure, FromKeeper, HandOver, Waiting, receive, send};
use super::server::Server;
use super::starts::{Given, Order, Starting};
use crate::Result;
use crate::cgroup::Group;

/// Most at once.
pub(crate) const MAX: usize = 64;
/// How long one may take to be made.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Prepared {
    slot: u64,
    /// The container's init, once it waits.
    init: Option<Pid>,
    /// To the start process.
    socket: OwnedFd,
    began: Instant,
    group: Group,
    forked: Forked,
}

impl Prepared {
    pub(super) fn child(&self) -> Pid {
        self.forked.child
    }

    /// Since when its init may be there, as long as that is not known.
    pub(super) fn unknown_since(&self) -> Option<Instant> {
        self.init.is_none().then_some(self.began)
    }

    pub(super) fn is_process(&self, pid: Pid) -> bool {
        pid == self.child() || Some(pid) == self.init
    }

    /// When it is given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.unknown_since().map(|began| began + PATIENCE)
    }

    pub(super) fn polled(&self) -> PollFd<'_> {
        PollFd::new(&self.socket, PollFlags::IN)
    }
}

impl Server {
    /// Makes a container for an order to come, in the network namespace that comes with the message.
    pub(super) fn make_ahead(&mut self, slot: u64, fds: Vec<OwnedFd>) {
        let Some(network) = fds.into_iter().next().filter(|_| self.prepared.len() < MAX) else {
            return self.tell_of_slot(slot, false, None);
        };
        self.made_ahead += 1;
        // Not by the slot: an owner counts anew, and the group of a former owner's may be there still.
        let group = self.group.child(&format!("@{}", self.made_ahead));
        match self.fork_ahead(&group, network) {
            Ok((forked, socket)) => {
                let began = Instant::now();
                self.prepared.push(Prepared { slot, init: None, socket, began, group, forked });
            }
            Err(error) => {
                self.retire(group);
                self.tell_of_slot(slot, false, Some((&error).into()));
            }
        }
    }

    fn tell_of_slot(&mut self, slot: u64, waits: bool, failure: Option<Failure>) {
        if let Some(owner) = self.peers.owner() {
            owner.post(FromKeeper::Prepared { slot, waits, failure }, Vec::new());
        }
    }

    fn fork_ahead(&mut self, group: &Group, network: OwnedFd) -> Result<(Forked, OwnedFd)> {
        self.make_ready()?;
        let (own, its) = order_sockets()?;
        group.create()?;
        group.give_way(true)?;
        Ok((self.fork(group, None, its, network)?, own))
    }

    /// Hears of those that have been made, and lets go of those that will not be.
    pub(super) fn attend_prepared(&mut self) {
        let now = Instant::now();
        let mut index = 0;
        while let Some(prepared) = self.prepared.get_mut(index) {
            let lost = match receive::<Waiting>(&prepared.socket) {
                Ok(Some((Waiting { pid }, _))) => {
                    prepared.init = Pid::from_raw(pid);
                    let (slot, waits) = (prepared.slot, prepared.init.is_some());
                    if let Some(init) = prepared.init {
                        self.strangers.remove(&init);
                        self.tell_of_slot(slot, true, None);
                    }
                    !waits
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    prepared.deadline().is_some_and(|deadline| deadline <= now)
                }
                Ok(None) | Err(_) => true,
            };
            if lost {
                let prepared = self.prepared.swap_remove(index);
                self.let_go(prepared, true);
            } else {
                index += 1;
            }
        }
    }

    /// `started`: the start process has not been waited for.
    fn let_go(&mut self, prepared: Prepared, started: bool) {
        if started {
            let _ = kill_process(prepared.child(), Signal::KILL);
            self.leaving.push(prepared.child());
        }
        self.retire(prepared.group);
        self.tell_of_slot(prepared.slot, false, prepared.forked.failure());
    }

    /// The order that it was taken for is refused: its network namespace is not to be another's.
    pub(super) fn let_slot_go(&mut self, slot: Option<u64>) {
        let index = slot.and_then(|slot| self.prepared.iter().position(|prepared| prepared.slot == slot));
        if let Some(index) = index {
            let prepared = self.prepared.swap_remove(index);
            self.let_go(prepared, true);
        }
    }

    /// There is nobody to order anything.
    pub(super) fn let_all_go(&mut self) {
        for prepared in std::mem::take(&mut self.prepared) {
            self.let_go(prepared, true);
        }
    }

    /// A child has been waited for: it may have been one of these.
    pub(super) fn prepared_ended(&mut self, pid: Pid) {
        if let Some(index) = self.prepared.iter().position(|prepared| prepared.is_process(pid)) {
            let prepared = self.prepared.swap_remove(index);
            let started = prepared.child() != pid;
            self.let_go(prepared, started);
        }
    }

    /// Gives the order to a container that waits for it. The descriptors come back if there is none.
    pub(super) fn hand_over(
        &mut self,
        order: &Order,
        group: &Group,
        given: Given,
    ) -> std::result::Result<Starting, Given> {
        let Some(prepared) = order.slot.and_then(|slot| self.take_prepared(slot)) else { return Err(given) };
        if prepared.group.give_way(false).is_err() || prepared.group.rename(group).is_err() {
            self.let_go(prepared, true);
            return Err(given);
        }
        let message = HandOver { group: group.name().to_owned() };
        let fds: Vec<_> = given.for_start_process().collect();
        if send(&prepared.socket, &message, &fds).is_err() {
            drop(fds);
            let _ = group.rename(&prepared.group);
            self.let_go(prepared, true);
            return Err(given);
        }
        drop(fds);
        Ok(Starting::new(order.clone(), group.clone(), prepared.forked, given.kept(), prepared.began))
    }

    /// One that waits and lives. Another is let go: its network namespace is the order's now.
    fn take_prepared(&mut self, slot: u64) -> Option<Prepared> {
        let index = self.prepared.iter().position(|prepared| prepared.slot == slot)?;
        let prepared = self.prepared.swap_remove(index);
        let ended = |pid: Pid| !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None));
        let child_ended = ended(prepared.child());
        if child_ended || prepared.init.is_none_or(ended) {
            self.let_go(prepared, !child_ended);
            return None;
        }
        Some(prepared)
    }
}
