//! Who talks to the keeper: its owner, and clients that come to the socket `keeper.sock` of the run.
//!
//! ```text
//! accepted ──Hello──► Owner | Client ──closed, detached, refused──► gone
//!     └────late, foreign user──────────────────────────────────────▲
//! ```
//!
//! Nobody stalls the keeper: nothing is read from a peer that does not take its answers, and what is
//! long (all containers) is made as fast as it is taken.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Pid;

use super::protocol::{FromKeeper, PROTOCOL, Role, VERSION, send};
use crate::{Error, Result};

/// The socket's name in the directory of its run.
pub(crate) const SOCKET: &str = "keeper.sock";
/// Connections at once, beside the owner's. Each costs a descriptor and what waits for it.
const MAX_PEERS: usize = 64;
/// Connections that wait to be accepted; others see that the keeper is busy.
const BACKLOG: i32 = 64;
/// How long a connection may take to say what it is for.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Messages that may wait for a peer before nothing more is read from it. What is told unasked, the
/// ends of containers, is bounded by their number.
const MAX_WAITING: usize = 64;

/// One message with its descriptors.
pub(super) type Letter = (FromKeeper, Vec<OwnedFd>);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Has not said what it is for, and has until then to do so.
    New(Instant),
    Owner,
    Client,
    /// To be closed as soon as it has taken what waits for it.
    Leaving(Instant),
}

/// What is told one by one, as it is taken.
pub(super) enum Tale {
    /// A container of a former owner, running or ended.
    Adopted(String, i32),
    /// A start of a former owner that failed.
    Failed(String),
    /// A socket of a former owner.
    Held(String),
    /// That all has been told.
    Attached,
    /// A container, for a list.
    Listed(i32),
    ListEnd,
}

pub(super) struct Peer {
    socket: OwnedFd,
    pub(super) pid: i32,
    pub(super) standing: Standing,
    outbox: VecDeque<Letter>,
    pub(super) tales: VecDeque<Tale>,
    gone: bool,
}

impl Peer {
    fn new(socket: OwnedFd, pid: i32, standing: Standing) -> Self {
        Self { socket, pid, standing, outbox: VecDeque::new(), tales: VecDeque::new(), gone: false }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    pub(super) fn post(&mut self, message: FromKeeper, fds: Vec<OwnedFd>) {
        self.outbox.push_back((message, fds));
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether its process has ended, also where somebody has the socket still: a child that it was making.
    pub(super) fn has_died(&self) -> bool {
        let pid = Pid::from_raw(self.pid);
        pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(Errno::SRCH))
    }

    /// Ends the connection at once.
    pub(super) fn close(&mut self) {
        self.gone = true;
    }

    /// Says hello, or why not; the latter ends the connection.
    pub(super) fn welcome(&mut self, role: Role, lock: Option<OwnedFd>) {
        let pid = own_pid();
        self.standing = if role == Role::Owner { Standing::Owner } else { Standing::Client };
        let hello = FromKeeper::Hello { protocol: PROTOCOL, version: VERSION.into(), pid };
        self.post(hello, lock.into_iter().collect());
    }

    pub(super) fn refuse(&mut self, error: &Error) {
        self.standing = Standing::Leaving(Instant::now() + HELLO_PATIENCE);
        let (failure, pid) = (error.into(), own_pid());
        let refused = FromKeeper::Refused { protocol: PROTOCOL, version: VERSION.into(), pid, failure };
        self.post(refused, Vec::new());
    }

    /// Whether its next message is wanted now.
    pub(super) fn is_listened_to(&self) -> bool {
        if self.gone || self.outbox.len() >= MAX_WAITING {
            return false;
        }
        match self.standing {
            Standing::Leaving(_) => false,
            // It must be able to have all ended, also while it is told of what there is.
            Standing::Owner => true,
            Standing::New(_) | Standing::Client => self.tales.is_empty(),
        }
    }

    fn events(&self) -> PollFlags {
        let mut events = PollFlags::empty();
        if self.is_listened_to() {
            events |= PollFlags::IN;
        }
        if !self.outbox.is_empty() || !self.tales.is_empty() {
            events |= PollFlags::OUT;
        }
        events
    }

    /// Sends what waits, until the peer does not take more. True when there is room for a tale.
    pub(super) fn flush(&mut self) -> bool {
        while let Some((message, fds)) = self.outbox.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match send(&self.socket, message, &borrowed) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Ok(()) => {}
                Err(_) => self.gone = true,
            }
            self.outbox.pop_front();
        }
        if matches!(self.standing, Standing::Leaving(_)) {
            self.gone = true;
        }
        !self.gone
    }

    fn until(&self) -> Option<Instant> {
        match self.standing {
            Standing::New(until) | Standing::Leaving(until) => Some(until),
            Standing::Owner | Standing::Client => None,
        }
    }
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// The listening socket and who came to it.
pub(super) struct Peers {
    listener: OwnedFd,
    pub(super) all: Vec<Peer>,
}

impl Peers {
    /// Listens in the directory of a run. `owner` is the daemon that started the keeper.
    pub(super) fn listen(dir: &Path, owner: OwnedFd) -> Result<Self> {
        let listener =
            bind(dir).map_err(|e| Error::host(format!("cannot listen on {}/{SOCKET}", dir.display()), e))?;
        let pid = credentials(&owner).map_or(0, |(pid, _)| pid);
        Ok(Self { listener, all: vec![Peer::new(owner, pid, Standing::Owner)] })
    }

    pub(super) fn owner(&mut self) -> Option<&mut Peer> {
        self.all.iter_mut().find(|peer| peer.standing == Standing::Owner && !peer.gone)
    }

    pub(super) fn clients(&self) -> usize {
        self.all.iter().filter(|peer| peer.standing == Standing::Client).count()
    }

    /// Whether somebody has come who may still become the owner.
    pub(super) fn awaits_hello(&self) -> bool {
        self.all.iter().any(|peer| matches!(peer.standing, Standing::New(_)))
    }

    pub(super) fn poll_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        if self.all.len() < MAX_PEERS {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        fds.extend(self.all.iter().map(|peer| PollFd::new(&peer.socket, peer.events())));
    }

    /// When a peer's time is over, if one has a bound.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.all.iter().filter_map(Peer::until).min()
    }

    /// Takes who has come, as long as there is room. Foreign users are turned away.
    pub(super) fn accept(&mut self) {
        while self.all.len() < MAX_PEERS {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let Ok(socket) = rustix::net::accept_with(&self.listener, flags) else { return };
            let own = rustix::process::geteuid().as_raw();
            if let Some((pid, _)) = credentials(&socket).filter(|(_, uid)| *uid == 0 || *uid == own) {
                self.all.push(Peer::new(socket, pid, Standing::New(Instant::now() + HELLO_PATIENCE)));
            }
        }
    }

    /// Leaves those who are gone or late; true when the owner is among them.
    pub(super) fn sweep(&mut self) -> bool {
        let now = Instant::now();
        let mut owner_lost = false;
        self.all.retain(|peer| {
            let ends = peer.gone || peer.until().is_some_and(|until| until <= now);
            owner_lost |= ends && peer.standing == Standing::Owner;
            !ends
        });
        owner_lost
    }
}

/// Process and user at the other end.
pub(super) fn credentials(socket: impl AsFd) -> Option<(i32, u32)> {
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    Some((peer.pid.as_raw_nonzero().get(), peer.uid.as_raw()))
}

/// The address of the socket in a directory. It goes through the directory's descriptor, which must
/// stay open meanwhile: an address has 108 bytes, a path may have more.
pub(super) fn address(dir: &OwnedFd) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?)
}

pub(super) fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}

pub(super) fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn bind(dir: &Path) -> io::Result<OwnedFd> {
    let (dir, socket) = (open_dir(dir)?, new_socket()?);
    // The file of the socket gets this mode from its first moment.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address(&dir)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
