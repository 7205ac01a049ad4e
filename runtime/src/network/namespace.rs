//! Network namespaces: made when they are needed, or before, by a thread that keeps some ready.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::egress::Egress;
use super::netlink::{self, Socket};
use super::{DEFAULT_ADDRESS, Network, NetworkOptions};
use crate::{Error, ErrorKind, Result};

/// Most namespaces that are kept ready: each costs some 100 KiB of the kernel's memory.
const READY_MAX: usize = 1024;
/// More are made when none was taken for so long.
const QUIET: Duration = Duration::from_millis(100);

/// What makes a run's namespaces.
#[derive(Debug)]
pub(crate) struct Namespaces {
    shared: Arc<Shared>,
    /// Wakes the thread that refills; gone when nothing is kept ready.
    refill: Mutex<Option<SyncSender<()>>>,
}

#[derive(Debug)]
struct Shared {
    home: OwnedFd,
    egress: Egress,
    size: usize,
    /// Namespaces that no container had yet, with the usual address. Each lives as long as its descriptors or
    /// a process in it; nothing is mounted for it, and it has no name.
    none: Mutex<VecDeque<OwnedFd>>,
    bridge: Mutex<VecDeque<OwnedFd>>,
    /// Whether a container had a way out yet: without one, none is kept ready.
    bridge_used: AtomicBool,
    closed: AtomicBool,
}

impl Namespaces {
    /// Starts to make what is to be ready. `run` and `dir` are the run's name and directory.
    ///
    /// # Errors
    /// `InvalidArgument` for options out of their bounds; `Host`.
    pub(crate) fn new(run: &str, dir: &Path, options: NetworkOptions) -> Result<Self> {
        if options.ready > READY_MAX {
            let message = format!("{} ready network namespaces are more than {READY_MAX}", options.ready);
            return Err(Error::new(ErrorKind::InvalidArgument, message).advise("ask for fewer"));
        }
        let shared = Arc::new(Shared {
            home: own_namespace().map_err(|e| Error::host("cannot open the host's network namespace", e))?,
            egress: Egress::new(run, dir, options.egress_range)?,
            size: options.ready,
            none: Mutex::default(),
            bridge: Mutex::default(),
            bridge_used: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let refill = if options.ready == 0 { None } else { Some(start_refilling(&shared)?) };
        let this = Self { shared, refill: Mutex::new(refill) };
        this.wake();
        Ok(this)
    }

    /// A namespace for one container, with the address that it is dialled at, if one is ready; none is with
    /// another address than the usual. Does not wait for the kernel's lock of network devices, which ending
    /// containers hold for milliseconds.
    ///
    /// # Errors
    /// `Host` when a descriptor cannot be copied.
    pub(crate) fn take_ready(&self, network: Network, address: Ipv4Addr) -> Result<Option<OwnedFd>> {
        let shared = &self.shared;
        if network == Network::Host {
            let home = shared.home.try_clone();
            return home.map(Some).map_err(|e| Error::host("cannot keep the host's network namespace", e));
        }
        if network == Network::Bridge {
            shared.bridge_used.store(true, Ordering::Relaxed);
        }
        if address != DEFAULT_ADDRESS {
            return Ok(None);
        }
        let ready = lock(shared.queue(network)).pop_front();
        self.wake();
        Ok(ready)
    }

    /// Makes one, which takes a millisecond. Blocks.
    ///
    /// # Errors
    /// `Host` when the kernel refuses a namespace or the way out.
    pub(crate) fn make(&self, network: Network, address: Ipv4Addr) -> Result<OwnedFd> {
        self.shared.make_elsewhere(network, address)
    }

    #[cfg(test)]
    fn take(&self, network: Network, address: Ipv4Addr) -> Result<OwnedFd> {
        self.take_ready(network, address)?.map_or_else(|| self.make(network, address), Ok)
    }

    /// Takes over the way out of containers that a former owner of the run started. Blocks.
    ///
    /// # Errors
    /// `Host`.
    pub(crate) fn resume(&self) -> Result<()> {
        self.shared.egress.resume()
    }

    /// Lets go of what is ready, and makes no more.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        lock(&self.refill).take();
        lock(&self.shared.none).clear();
        lock(&self.shared.bridge).clear();
        self.shared.egress.close();
    }

    fn wake(&self) {
        if let Some(refill) = &*lock(&self.refill) {
            // Full means that it has been woken already.
            let _ = refill.try_send(());
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.close();
    }
}

fn start_refilling(shared: &Arc<Shared>) -> Result<SyncSender<()>> {
    let (sender, receiver) = sync_channel(1);
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name("skiff-netns".into())
        .spawn(move || refill(&shared, &receiver))
        .map_err(|e| Error::host("cannot start a thread to make network namespaces", e))?;
    Ok(sender)
}

fn refill(shared: &Shared, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        // While some are left, not in the midst of the starts that took others.
        while !shared.is_low() {
            match woken.recv_timeout(QUIET) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        for network in [Network::None, Network::Bridge] {
            if let Err(error) = shared.fill(network) {
                // The next container makes its own, and tells what is wrong.
                tracing::debug!(
                    ?network,
                    error = error.chain(),
                    "a network namespace could not be made ready"
                );
            }
        }
    }
}

impl Shared {
    fn queue(&self, network: Network) -> &Mutex<VecDeque<OwnedFd>> {
        if network == Network::Bridge { &self.bridge } else { &self.none }
    }

    /// Whether fewer than half are ready of a kind that is used.
    fn is_low(&self) -> bool {
        let low = |network| lock(self.queue(network)).len() * 2 < self.size;
        low(Network::None) || self.bridge_used.load(Ordering::Relaxed) && low(Network::Bridge)
    }

    fn fill(&self, network: Network) -> Result<()> {
        if network == Network::Bridge && !self.bridge_used.load(Ordering::Relaxed) {
            return Ok(());
        }
        while lock(self.queue(network)).len() < self.size && !self.closed.load(Ordering::Relaxed) {
            let fresh = self.make(network, DEFAULT_ADDRESS)?;
            let mut queue = lock(self.queue(network));
            // Checked under the lock that closing takes to empty it.
            if !self.closed.load(Ordering::Relaxed) {
                queue.push_back(fresh);
            }
        }
        Ok(())
    }

    /// Makes one on a thread that ends, so that whatever goes wrong the caller's stays where it is.
    fn make_elsewhere(&self, network: Network, address: Ipv4Addr) -> Result<OwnedFd> {
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("skiff-netns".into())
                .spawn_scoped(scope, || self.make(network, address))
                .map_err(|e| Error::host("cannot start a thread to make a network namespace", e))?
                .join()
                .unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::Internal, "the network namespace thread panicked"))
                })
        })
    }

    /// Makes one. The calling thread leaves the host's namespace and comes back.
    fn make(&self, network: Network, address: Ipv4Addr) -> Result<OwnedFd> {
        let made = enter_new();
        // Staying there would keep it alive, and make the next rules and links in it.
        move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| Error::host("cannot return to the host's network namespace", e))?;
        let (namespace, inside) = made?;
        inside
            .all([netlink::loopback_up(), netlink::loopback_address(address)])
            .map_err(|e| Error::host(format!("cannot set up lo with the address {address}"), e))?;
        if network == Network::Bridge {
            self.egress.wire(namespace.as_fd(), &inside)?;
        }
        Ok(namespace)
    }
}

/// The namespace, and a socket inside.
fn enter_new() -> Result<(OwnedFd, Socket)> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::host("cannot make a network namespace", e))?;
    let inside = Socket::open().map_err(|e| Error::host("cannot open a netlink socket", e))?;
    let namespace = own_namespace().map_err(|e| Error::host("cannot open the new network namespace", e))?;
    Ok((namespace, inside))
}

/// The network namespace of the calling thread.
fn own_namespace() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())?)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "says why it skips, and what it measured")]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn namespaces(ready: usize, dir: &tempfile::TempDir) -> Option<Namespaces> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making network namespaces needs root");
            return None;
        }
        let options = NetworkOptions { ready, ..NetworkOptions::default() };
        Some(Namespaces::new("0123456789ab", dir.path(), options).expect("namespaces"))
    }

    fn number(namespace: &OwnedFd) -> u64 {
        rustix::fs::fstat(namespace).expect("fstat").st_ino
    }

    /// Waits until so many are ready.
    fn filled(all: &Namespaces, count: usize) -> bool {
        let until = Instant::now() + Duration::from_secs(20);
        while lock(&all.shared.none).len() != count && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        lock(&all.shared.none).len() == count
    }

    #[test]
    fn ready_namespaces_are_bounded_and_each_is_given_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let Some(all) = namespaces(3, &dir) else { return };
        assert!(filled(&all, 3), "filled before anybody asks");
        let taken: Vec<_> = (0..8).map(|_| all.take(Network::None, DEFAULT_ADDRESS).expect("one")).collect();
        let mut numbers: Vec<_> = taken.iter().map(number).collect();
        numbers.push(number(&own_namespace().expect("own")));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 9, "one of them is the host's or was given twice");
        assert!(filled(&all, 3), "filled again, and not over");
        assert!(lock(&all.shared.bridge).is_empty(), "nobody wants a way out");
        all.close();
        assert!(lock(&all.shared.none).is_empty());
        all.take(Network::None, DEFAULT_ADDRESS).expect("one is still made on demand");
        assert!(lock(&all.shared.none).is_empty(), "and none is kept");
    }

    #[test]
    fn without_a_pool_each_is_made_when_it_is_needed() {
        let dir = tempfile::tempdir().expect("a directory");
        let Some(all) = namespaces(0, &dir) else { return };
        let one = all.take(Network::None, DEFAULT_ADDRESS).expect("one");
        assert_ne!(number(&one), number(&all.shared.home));
        assert!(lock(&all.shared.none).is_empty());
        let host = all.take(Network::Host, Ipv4Addr::LOCALHOST).expect("the host's");
        assert_eq!(number(&host), number(&all.shared.home));
    }

    #[test]
    fn too_many_ready_ones_are_refused() {
        let options = NetworkOptions { ready: READY_MAX + 1, ..NetworkOptions::default() };
        let error = Namespaces::new("0123456789ab", Path::new("/"), options).expect_err("too many");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }

    /// Not a test: what a start waits for its network. For `bridge` run it in a namespace of its own
    /// that has a default route, such as
    /// `unshare -n sh -c 'ip link set lo up; ip route add default dev lo; ip link add u type veth; …'`.
    #[test]
    #[ignore = "measures, and changes the rules of the namespace it runs in"]
    fn how_long_a_namespace_takes() {
        for network in [Network::None, Network::Bridge] {
            for ready in [0, 8] {
                let dir = tempfile::tempdir().expect("a directory");
                let Some(all) = namespaces(ready, &dir) else { return };
                // The first makes the rules.
                let mut kept = vec![all.take(network, DEFAULT_ADDRESS).expect("a first one")];
                let mut took: Vec<Duration> = (0..100)
                    .map(|_| {
                        std::thread::sleep(Duration::from_millis(20));
                        let began = Instant::now();
                        kept.push(all.take(network, DEFAULT_ADDRESS).expect("one"));
                        began.elapsed()
                    })
                    .collect();
                took.sort_unstable();
                eprintln!("{network:?}, {ready} ready: median {:?}, 99th {:?}", took[50], took[98]);
                all.close();
            }
        }
    }
}
