//! What the keeper does for its peers: reads what they ask, and tells what is long piece by piece.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::peers::{Peer, Standing, Tale};
use super::protocol::{FromKeeper, Instance, Label, PROTOCOL, Role, ToKeeper, receive};
use super::records::{FailedStart, Records};
use super::server::Server;
use super::starts::{Order, Running};
use crate::{Error, ErrorKind};

/// Messages read of one peer before it is the next one's turn.
const TURN: usize = 32;
/// Messages read of an owner when the next one has come; its socket holds some hundreds.
const MAX_LAST_WORDS: usize = 4096;
/// Clients at once; there is always room for one who comes to be the owner.
const MAX_CLIENTS: usize = 48;
/// Starts at once; more of them would only hinder each other.
const MAX_STARTING: usize = 512;

impl Server {
    pub(super) fn take_messages(&mut self) {
        for index in 0..self.peers.all.len() {
            self.read(index, TURN);
        }
    }

    /// Reads what a peer has said, at most so many messages.
    fn read(&mut self, index: usize, most: usize) {
        for _ in 0..most {
            let peer = &mut self.peers.all[index];
            if !peer.is_listened_to() || self.stopping {
                return;
            }
            match receive::<ToKeeper>(peer.socket()) {
                Ok(Some((message, fds))) => self.answer(index, message, fds),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    return;
                }
                Ok(None) => peer.close(),
                // Without an owner that can be understood there is none.
                Err(_) if peer.standing == Standing::Owner => peer.close(),
                Err(e) => peer.refuse(
                    &Error::new(ErrorKind::InvalidArgument, "the keeper cannot read a message").because(e),
                ),
            }
        }
    }

    /// Parts with an owner that has died, if there is one, before the next is greeted: it may have said more than
    /// was read yet, and whoever starts it again is quick.
    fn part_with_owner(&mut self) {
        let is_owner = |peer: &Peer| peer.standing == Standing::Owner;
        let Some(index) = self.peers.all.iter().position(is_owner) else { return };
        self.read(index, MAX_LAST_WORDS);
        let owner = &mut self.peers.all[index];
        if owner.is_gone() || owner.has_died() {
            owner.close();
            // Told now, and not when the next one is there.
            owner.standing = Standing::Leaving(Instant::now());
            self.owner_left();
        }
    }

    fn answer(&mut self, index: usize, message: ToKeeper, fds: Vec<OwnedFd>) {
        let peer = &mut self.peers.all[index];
        match (peer.standing, message) {
            (Standing::New(_), ToKeeper::Hello { protocol, version, role }) => {
                self.greet(index, protocol, &version, role);
            }
            (
                Standing::Owner,
                ToKeeper::Start { id, deadline_ms, leased, claimed, address, network, oom, label, slot },
            ) => {
                let limit = Duration::from_millis(deadline_ms);
                self.start(Order { id, limit, leased, claimed, address, network, oom, label, slot }, fds);
            }
            (Standing::Owner, ToKeeper::Prepare { slot }) => self.make_ahead(slot, fds),
            (Standing::Owner, ToKeeper::Forget { id, pid }) => self.forget(&id, pid),
            (Standing::Owner, ToKeeper::Hold { name }) => self.sockets.hold(name, fds),
            (Standing::Owner, ToKeeper::Release { name }) => self.sockets.release(&name),
            (Standing::Owner, ToKeeper::Detach) => peer.close(),
            (Standing::Owner, ToKeeper::Shutdown) => self.stopping = true,
            (Standing::Client, ToKeeper::List) => {
                let pids = self.running.keys().map(|pid| Tale::Listed(pid.as_raw_nonzero().get()));
                peer.tales.extend(pids.chain([Tale::ListEnd]));
            }
            (Standing::Owner, _) => {}
            _ => peer.refuse(&Error::new(ErrorKind::InvalidArgument, "this is not for the peer to ask")),
        }
    }

    fn greet(&mut self, index: usize, protocol: u32, version: &str, role: Role) {
        if role == Role::Owner {
            self.part_with_owner();
        }
        let owner = self.peers.owner().map(|owner| owner.pid);
        let clients = self.peers.clients();
        let lock = if role == Role::Owner { self.lock.try_clone().map(Some) } else { Ok(None) };
        let refusal = match (role, owner, lock) {
            _ if protocol != PROTOCOL => Error::new(
                ErrorKind::KeeperNotFound,
                format!("skiff {version} speaks protocol {protocol}, and its keeper {PROTOCOL}"),
            ),
            (Role::Owner, Some(pid), _) => Error::new(
                ErrorKind::Host,
                format!("the run {} is already owned by pid {pid}", self.run.name()),
            )
            .advise(format!("end process {pid} first, or use another name")),
            (Role::Client, ..) if clients >= MAX_CLIENTS => {
                Error::new(ErrorKind::Host, format!("the keeper has {clients} clients already"))
                    .advise("try again when some have ended")
            }
            (.., Err(e)) => Error::host("the keeper cannot copy its lock", e),
            (.., Ok(lock)) => {
                self.peers.all[index].welcome(role, lock);
                if role == Role::Owner {
                    self.tell_all(index);
                }
                return;
            }
        };
        self.peers.all[index].refuse(&refusal);
    }

    /// Has a new owner told of everything.
    fn tell_all(&mut self, index: usize) {
        let running = self.running.iter().map(|(pid, running)| (running.order.id.clone(), *pid));
        let mut tales: Vec<_> =
            running.map(|(id, pid)| Tale::Adopted(id, pid.as_raw_nonzero().get())).collect();
        let ended = self.records.ended.iter().map(|ended| &ended.instance);
        tales.extend(ended.map(|instance| Tale::Adopted(instance.id.clone(), instance.pid)));
        tales.extend(self.records.failed.iter().map(|failed| Tale::Failed(failed.id.clone())));
        tales.extend(self.sockets.names().map(Tale::Held));
        tales.push(Tale::Attached);
        self.sockets.owner_came();
        self.peers.all[index].tales.extend(tales);
    }

    fn start(&mut self, order: Order, fds: Vec<OwnedFd>) {
        let named = |id: &str| id == order.id;
        let exists = self.running.values().any(|running| named(&running.order.id))
            || self.starting.iter().any(|starting| named(&starting.order.id));
        let error = if exists {
            Error::new(ErrorKind::InvalidArgument, format!("a container named {} exists already", order.id))
        } else if self.starting.len() >= MAX_STARTING {
            Error::new(ErrorKind::Host, format!("{MAX_STARTING} starts are under way already"))
                .advise("start fewer at once; if they hang, see `skiff doctor`")
        } else if order.label.0.len() > Label::MAX {
            Error::new(ErrorKind::InvalidArgument, "the label of a container is too long")
        } else {
            return self.begin(order, fds);
        };
        self.let_slot_go(order.slot);
        if let Some(owner) = self.peers.owner() {
            owner.post(FromKeeper::Failed { id: order.id, failure: (&error).into() }, Vec::new());
        }
    }

    fn forget(&mut self, id: &str, pid: i32) {
        let running = Pid::from_raw(pid).and_then(|pid| self.running.get_mut(&pid));
        match running.filter(|running| running.order.id == id) {
            Some(running) => running.forgotten = true,
            None => self.records.forget(id, pid),
        }
    }

    /// What the former owner was to be told waits for the next one; without a next one, all ends.
    pub(super) fn owner_left(&mut self) {
        self.stopping |= !self.lasting;
        self.let_all_go();
        self.sockets.owner_left();
        for starting in &mut self.starting {
            starting.orphan = true;
        }
    }

    /// Sends what waits, and tells the tales as fast as they are taken.
    pub(super) fn flush(&mut self) {
        for index in 0..self.peers.all.len() {
            while self.peers.all[index].flush() {
                let Some(tale) = self.peers.all[index].tales.pop_front() else { break };
                self.tell(index, tale);
            }
        }
    }

    fn tell(&mut self, index: usize, tale: Tale) {
        let peer = &mut self.peers.all[index];
        match tale {
            Tale::Adopted(id, pid) => match found(&self.running, &self.records, &id, pid) {
                Some((instance, Ok(fds))) => peer.post(FromKeeper::Adopted(instance), fds),
                // Without descriptors it cannot be handed over: another connection may.
                Some((_, Err(_))) => peer.close(),
                None => {}
            },
            Tale::Failed(id) => {
                if let Some(failed) = self.records.failed.iter().find(|failed| failed.id == id).cloned() {
                    let FailedStart { id, label, failure } = failed;
                    peer.post(FromKeeper::AdoptedFailure { id, label, failure }, Vec::new());
                }
            }
            Tale::Held(name) => {
                // One that cannot be copied is made anew by its owner.
                if let Some(socket) = self.sockets.copy(&name) {
                    peer.post(FromKeeper::Held { name }, vec![socket]);
                }
            }
            Tale::Attached => {
                let starting = self.starting.iter().filter(|starting| starting.orphan).count();
                let starting = u32::try_from(starting).unwrap_or(u32::MAX);
                let forgotten = std::mem::take(&mut self.records.given_up);
                peer.post(FromKeeper::Attached { starting, forgotten }, Vec::new());
            }
            Tale::Listed(pid) => {
                let running = Pid::from_raw(pid).and_then(|pid| Some((pid, self.running.get(&pid)?)));
                if let Some((pid, running)) = running {
                    peer.post(FromKeeper::Listed(running.instance(pid)), Vec::new());
                }
            }
            Tale::ListEnd => peer.post(FromKeeper::ListEnd, Vec::new()),
        }
    }
}

type Found = (Instance, io::Result<Vec<OwnedFd>>);

/// A container that runs or has ended, and what an owner needs of it.
fn found(running: &HashMap<Pid, Running>, records: &Records, id: &str, pid: i32) -> Option<Found> {
    let copies = |fds: &[&OwnedFd]| fds.iter().map(|fd| fd.try_clone()).collect();
    let alive = Pid::from_raw(pid).and_then(|pid| Some((pid, running.get(&pid)?)));
    if let Some((pid, running)) = alive.filter(|(_, running)| running.order.id == id) {
        let held = &running.held;
        let fds = [&held.stdout.0, &held.stderr.0, &held.network, &running.pidfd];
        return Some((running.instance(pid), copies(&fds)));
    }
    let ended = records.ended.iter().find(|ended| ended.instance.pid == pid && ended.instance.id == id)?;
    Some((ended.instance.clone(), copies(&[&ended.stdout, &ended.stderr])))
}
