//! Listening sockets that the keeper has copies of, so that who connects while there is no owner waits for the
//! next one instead of being refused.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Sockets at most; each costs a descriptor. Others are made anew by the next owner.
const MAX_SOCKETS: usize = 4096;
/// How long they are kept without an owner. Who connects must not wait for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// By the names that their owner gave them.
#[derive(Default)]
pub(super) struct Sockets {
    held: BTreeMap<String, OwnedFd>,
    /// When they are let go, while there is no owner.
    until: Option<Instant>,
}

impl Sockets {
    pub(super) fn hold(&mut self, name: String, fds: Vec<OwnedFd>) {
        let Some(socket) = fds.into_iter().next() else { return };
        if self.held.len() < MAX_SOCKETS || self.held.contains_key(&name) {
            self.held.insert(name, socket);
        }
    }

    pub(super) fn release(&mut self, name: &str) {
        self.held.remove(name);
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.held.keys().cloned()
    }

    pub(super) fn copy(&self, name: &str) -> Option<OwnedFd> {
        self.held.get(name)?.try_clone().ok()
    }

    pub(super) fn owner_left(&mut self) {
        self.until = Some(Instant::now() + PATIENCE);
    }

    pub(super) fn owner_came(&mut self) {
        self.until = None;
    }

    /// When there is something to do, if ever.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until.filter(|_| !self.held.is_empty())
    }

    pub(super) fn expire(&mut self) {
        if self.until.is_some_and(|until| until <= Instant::now()) {
            self.held.clear();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> OwnedFd {
        std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket").into()
    }

    #[test]
    fn they_are_kept_for_the_next_owner_and_not_for_ever() {
        let mut sockets = Sockets::default();
        sockets.hold("a".into(), vec![socket()]);
        sockets.hold("b".into(), vec![socket()]);
        sockets.hold("none".into(), Vec::new());
        sockets.release("b");
        assert_eq!(sockets.names().collect::<Vec<_>>(), ["a"]);
        assert!(sockets.copy("a").is_some() && sockets.copy("b").is_none() && sockets.until().is_none());
        sockets.owner_left();
        sockets.expire();
        assert!(sockets.until().is_some() && !sockets.is_empty());
        sockets.until = Some(Instant::now());
        sockets.expire();
        assert!(sockets.is_empty() && sockets.until().is_none());
        sockets.owner_came();
        sockets.hold("a".into(), vec![socket()]);
        sockets.hold("a".into(), vec![socket()]);
        assert_eq!(sockets.names().count(), 1);
    }
}
