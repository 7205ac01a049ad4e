//! Messages to and from the keeper: JSON over `SOCK_SEQPACKET` sockets, descriptors beside them. Start requests are larger than a packet may be and come in a memfd.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::MemfdFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recv, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cgroup::Hierarchy;
use crate::rootfs::Cap;
use crate::{Error, ErrorKind, Exit, Network, OomPolicy, Stats};

/// The version of this build. A daemon starts keepers of its own version only.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What daemon and keeper speak. A daemon that comes to a keeper of another build needs the same
/// number. It is increased by every change that one side must not miss: a message or field that is
/// new and may be ignored (`#[serde(default)]`) is none. `Hello` and `Refused` never change.
pub(crate) const PROTOCOL: u32 = 4;

/// Largest packet; errors with long causes are cut to fit.
const MAX_PACKET: usize = 48 << 10;
/// Most descriptors beside a packet.
const MAX_FDS: usize = 7;
/// Largest start request: 2 MiB of arguments and environment is the kernel's own bound.
const MAX_REQUEST: u64 = 8 << 20;
/// Longest text of an error that crosses a pipe or socket.
const MAX_TEXT: usize = 4096;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// The daemon: starts containers and is told of their ends. There is one at a time.
    Owner,
    /// Somebody who asks, and goes.
    Client,
}

/// To the keeper. All but `Configure` and `Hello` come after its own `Hello`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToKeeper {
    /// The first message of the daemon that started the keeper; with the lock of the run's directory.
    Configure { protocol: u32, run: String, dir: PathBuf, hierarchy: Hierarchy, lasting: bool },
    /// The first message of everybody else.
    Hello { protocol: u32, version: String, role: Role },
    /// Start a container; with the request, the network namespace, the lease on its image if it has
    /// one, the claim on its range of ids if it has one, and the group of a recording and the disks,
    /// as the request names them. Of the owner.
    Start {
        id: String,
        deadline_ms: u64,
        leased: bool,
        claimed: bool,
        address: Ipv4Addr,
        network: Network,
        oom: OomPolicy,
        label: Label,
        /// The container that was made for it ahead.
        slot: Option<u64>,
    },
    /// Make a container ahead of its order, in the network namespace that comes along. Of the owner.
    Prepare { slot: u64 },
    /// The owner needs nothing more of a container: its pipes and its end need not be kept. `pid`
    /// tells it from others of its name; 0 is a start that failed.
    Forget { id: String, pid: i32 },
    /// Keep a copy of this socket, which comes with it, for the next owner; one of that name is let go. Of
    /// the owner.
    Hold { name: String },
    /// Let the socket of that name go. Of the owner.
    Release { name: String },
    /// Tell of all containers. Of anybody.
    List,
    /// The owner leaves: what runs stays, if the run is a lasting one.
    Detach,
    /// Kill all containers, clean, and end. Of the owner.
    Shutdown,
}

/// From the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromKeeper {
    /// The answer to `Configure` and `Hello`; to an owner with the lock of the run's directory.
    Hello { protocol: u32, version: String, pid: i32 },
    /// The connection is not accepted and ends.
    Refused { protocol: u32, version: String, pid: i32, failure: Failure },
    /// The container that was to be made ahead waits for its order, or is gone.
    Prepared { slot: u64, waits: bool, failure: Option<Failure> },
    /// With pidfd, standard output and standard error.
    Started { id: String, pid: i32, steps: SpawnSteps },
    /// Nothing is left of it.
    Failed { id: String, failure: Failure },
    /// A started container has ended.
    Exited { id: String, pid: i32, exit: Exit, stats: Stats },
    /// What a former owner started; with standard output and standard error, and where it runs its
    /// network namespace and its pidfd.
    Adopted(Instance),
    /// A start of a former owner that failed.
    AdoptedFailure { id: String, label: Label, failure: Failure },
    /// A socket that a former owner had kept; it comes with it.
    Held { name: String },
    /// All that there was has been told, but this many starts of former owners are under way.
    /// `forgotten` ends were too many to keep.
    Attached { starting: u32, forgotten: u64 },
    /// One container, in answer to `List`.
    Listed(Instance),
    /// The end of the answer to `List`.
    ListEnd,
}

/// What the keeper knows of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) address: Ipv4Addr,
    pub(crate) network: Network,
    pub(crate) label: Label,
    /// Since its command was executed, until its end.
    pub(crate) ran_ms: u64,
    pub(crate) ended: Option<(Exit, Stats)>,
}

/// Bytes by which an owner knows a container again.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Label(pub(crate) Vec<u8>);

impl Label {
    /// Longest label; with it, every message fits a packet.
    pub(crate) const MAX: usize = 4096;
}

impl std::fmt::Debug for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Label {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}", Hex(&self.0)))
    }
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let bytes = text.as_bytes();
        let even = bytes.len().is_multiple_of(2) && bytes.len() <= 2 * Self::MAX;
        let parsed: Option<Vec<u8>> =
            bytes.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect();
        parsed
            .filter(|_| even)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("a label is hexadecimal, and bounded"))
    }
}

/// What a start process that was forked ahead of its order says when its container waits.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Waiting {
    /// Of the container's init.
    pub(crate) pid: i32,
}

/// Its order, with the request, unless that was there when it was forked, and the disks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HandOver {
    /// The name of the group that it is in by now.
    pub(crate) group: String,
}

/// What a start process says at its end, through a pipe.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// `pids` is the limit of processes to be set when the start process has left the group; 0 is none.
    Started {
        pid: i32,
        pids: u32,
        steps: SpawnSteps,
    },
    Failed(Failure),
}

/// How long the parts of a spawn took, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SpawnSteps {
    pub(crate) mounts_us: u64,
    pub(crate) create_us: u64,
    pub(crate) exec_us: u64,
}

/// Limits of a container; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_millis: u32,
    pub(crate) cpu_weight: u32,
    pub(crate) pids: u32,
    pub(crate) nofile: u64,
    pub(crate) oom: OomPolicy,
}

/// What holds written bytes, on the wire.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum SpaceKind {
    /// The next descriptor is a mount that is attached nowhere.
    Disk,
    /// A tmpfs of this cap.
    Memory(Cap),
    /// A directory that the start process makes, with a project quota.
    Quota(Cap),
    /// None: a read-only root filesystem.
    None,
}

/// Everything about a container to start.
#[derive(Serialize, Deserialize)]
pub(crate) struct StartRequest {
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) layers: Vec<PathBuf>,
    /// A fanotify group comes before the disks: it is to be told what is opened.
    pub(crate) record: bool,
    pub(crate) writable: SpaceKind,
    pub(crate) tmp: SpaceKind,
    pub(crate) read_only: bool,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) user: String,
    /// The host's id of root in a user namespace; `None` is no such namespace.
    pub(crate) first_id: Option<u32>,
    /// AppArmor's.
    pub(crate) profile: Option<String>,
    pub(crate) working_dir: String,
    pub(crate) limits: Limits,
    pub(crate) address: Ipv4Addr,
    pub(crate) resolv_conf: String,
}

impl StartRequest {
    /// Writes it to memory that only its descriptor reaches.
    pub(crate) fn to_memfd(&self) -> crate::Result<OwnedFd> {
        to_memory(self).map_err(|e| Error::host("cannot write a start request", e))
    }

    /// Reads it back.
    pub(crate) fn from_memfd(fd: OwnedFd) -> crate::Result<Self> {
        from_memory(fd).map_err(|e| Error::host("cannot read a start request", e))
    }
}

/// Writes a request to memory that only its descriptor reaches.
pub(crate) fn to_memory(request: &impl Serialize) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("skiff-request", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(&serde_json::to_vec(request)?)?;
    Ok(file.into())
}

/// Reads it back.
pub(crate) fn from_memory<T: DeserializeOwned>(fd: OwnedFd) -> io::Result<T> {
    let mut file = File::from(fd);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(MAX_REQUEST).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// An [`Error`] on its way to another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    kind: ErrorKind,
    message: String,
    advice: Option<String>,
    cause: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let chain = error.chain();
        let message = error.to_string();
        let cause =
            chain.strip_prefix(&message).map(|c| c.trim_start_matches(": ")).filter(|c| !c.is_empty());
        Self {
            kind: error.kind(),
            cause: cause.map(cut),
            message: cut(&message),
            advice: error.advice().map(cut),
        }
    }
}

/// Cut to its bound; control characters escaped, which an image may have put there for the
/// operator's terminal and which would make the text too long for a packet.
fn cut(text: &str) -> String {
    let mut clean = String::new();
    for c in text.chars() {
        let before = clean.len();
        if c.is_control() && c != '\n' {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
        if clean.len() > MAX_TEXT {
            clean.truncate(before);
            break;
        }
    }
    clean
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let mut error = Self::new(failure.kind, failure.message);
        if let Some(advice) = failure.advice {
            error = error.advise(advice);
        }
        if let Some(cause) = failure.cause {
            error = error.because(cause);
        }
        error
    }
}

/// Sends one message. `WouldBlock` when the socket is full.
pub(crate) fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Receives one message; `None` when the other side is gone. `WouldBlock` when there is none yet.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    // Its size first: the keeper's memory is to stay small.
    let peek = RecvFlags::DONTWAIT | RecvFlags::PEEK | RecvFlags::TRUNC;
    let size = match recv(&socket, &mut [0u8; 1], peek) {
        Ok((_, size)) => size,
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    if size > MAX_PACKET {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; size.max(1)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
        Ok(received) => received,
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn messages_and_descriptors_cross_and_the_end_is_seen() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("socketpair");
        let file = File::open("/dev/null").expect("open");
        let start = ToKeeper::Start {
            id: "x".into(),
            deadline_ms: 5,
            leased: false,
            claimed: false,
            address: Ipv4Addr::LOCALHOST,
            network: Network::None,
            oom: OomPolicy::KillProcess,
            label: Label(vec![0, 127, 255]),
            slot: None,
        };
        send(&a, &start, &[file.as_fd()]).expect("send");
        let (message, fds) = receive::<ToKeeper>(&b).expect("receive").expect("a message");
        let ToKeeper::Start { id, deadline_ms: 5, label, .. } = message else { panic!("{message:?}") };
        assert_eq!((id.as_str(), label.0.as_slice()), ("x", [0, 127, 255].as_slice()));
        assert_eq!(fds.len(), 1);
        assert_eq!(receive::<ToKeeper>(&b).expect_err("none yet").kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert!(receive::<ToKeeper>(&b).expect("end").is_none());
    }

    #[test]
    fn failures_keep_kind_message_advice_and_cause_within_bounds() {
        let long = "ü".repeat(MAX_TEXT);
        let error = Error::new(ErrorKind::UnknownUser, "user 'x'").advise("do y").because(long);
        let back = Error::from(Failure::from(&error));
        assert_eq!(back.kind(), ErrorKind::UnknownUser);
        assert_eq!(back.to_string(), "user 'x'");
        assert_eq!(back.advice(), Some("do y"));
        assert!(back.chain().len() <= MAX_TEXT + 16);
    }

    #[test]
    fn failures_fit_a_packet_and_hold_nothing_for_a_terminal() {
        let (a, _b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("socketpair");
        for text in ["\u{1b}[2J\u{1}", "\"\\", "\n", "\u{9b}"] {
            let text = text.repeat(MAX_TEXT);
            let error = Error::new(ErrorKind::CommandNotFound, text.clone())
                .advise(text.clone())
                .because(text.clone());
            let failure = Failure::from(&error);
            assert!(!failure.message.contains(['\u{1b}', '\u{1}', '\u{9b}']));
            send(&a, &FromKeeper::Failed { id: "x".repeat(64), failure }, &[]).expect("fits");
        }
    }
}
