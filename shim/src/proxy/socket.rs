//! The sockets that invocations come from.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{
    AtFlags, FlockOperation, Gid, Mode, OFlags, chmodat, chownat, flock, open, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::peers::Peers;
use super::tls::{self, TlsOptions};
use crate::{Error, ErrorKind, Result};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Longest path that fits into a socket address.
const MAX_ADDRESS_BYTES: usize = 107;

/// How often, and after which pause, the lock of a directory is tried.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A listening socket that the caller owns until it is served.
#[derive(Debug)]
pub struct Listener(Socket);

#[derive(Debug)]
enum Socket {
    Unix(std::os::unix::net::UnixListener, SocketFile, Peers),
    Tcp(std::net::TcpListener, SocketAddr, Tls),
}

/// How connections over TCP are encrypted, if they are.
type Tls = Option<Arc<rustls::ServerConfig>>;

/// A listening socket that is being served.
pub(super) enum Acceptor {
    Unix(UnixListener, Peers),
    Tcp(TcpListener, Tls),
}

/// An accepted connection.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr, Tls),
}

impl Acceptor {
    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener, peers) => loop {
                let (stream, _) = listener.accept().await?;
                if peers.admit(&stream) {
                    return Ok(Stream::Unix(stream));
                }
            },
            Self::Tcp(listener, tls) => {
                listener.accept().await.map(|(stream, client)| Stream::Tcp(stream, client, tls.clone()))
            }
        }
    }
}

impl Listener {
    /// Listens on a Unix socket with mode 0600; its directory must exist. A dead socket in its place
    /// is replaced; a live one and any other file are not. The file is removed when this is dropped.
    ///
    /// # Errors
    /// `AddressInUse`, `Listen`.
    pub fn unix(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (socket, file) = open_unix(path)?;
        Ok(Self(Socket::Unix(socket.into(), file, Peers::Unchecked)))
    }

    /// Takes over a socket that listens at this path already, as somebody else has made it
    /// ([`Listener::descriptor`]).
    ///
    /// # Errors
    /// `Listen` when it is no socket that listens, or its file is not there any more.
    pub fn inherited(path: impl AsRef<Path>, socket: OwnedFd) -> Result<Self> {
        let path = path.as_ref();
        let failed = |cause: io::Error| {
            let message = format!("the socket that listened on unix:{} cannot be taken over", path.display());
            Error::new(ErrorKind::Listen, message).because(cause)
        };
        let listens = rustix::net::sockopt::socket_acceptconn(&socket).map_err(|e| failed(e.into()))?;
        let name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = path.parent().unwrap_or(Path::new("/"));
        let dir = open(parent, flags, Mode::empty()).map(File::from).map_err(|e| failed(e.into()))?;
        let found = std::fs::symlink_metadata(path).map_err(failed)?;
        if !listens || !found.file_type().is_socket() {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let identity = (found.dev(), found.ino());
        // Whoever made it may wait for connections.
        rustix::io::ioctl_fionbio(&socket, true).map_err(|e| failed(e.into()))?;
        let file = SocketFile { path: path.to_owned(), name, dir, stays: Arc::default(), identity };
        Ok(Self(Socket::Unix(socket.into(), file, Peers::Unchecked)))
    }

    /// Takes over a Unix socket that a service manager listens on. Its file is the manager's, and stays.
    ///
    /// # Errors
    /// As [`Listener::inherited`]; `Listen` when it is no Unix socket with a file.
    pub fn handed_over(socket: OwnedFd) -> Result<Self> {
        let path = bound_path(&socket).ok_or_else(|| {
            Error::new(ErrorKind::Listen, "the socket of the service manager is no Unix socket with a file")
                .advise("give the socket unit ListenStream= with a path")
        })?;
        let listener = Self::inherited(path, socket)?;
        listener.stays().store(true, Ordering::SeqCst);
        Ok(listener)
    }

    /// Lets only root, this process's user and, if there is one, the members of a group connect to a Unix socket:
    /// by its file's owner and mode, and by what the kernel says of each peer. Does nothing to a TCP address.
    ///
    /// # Errors
    /// `Listen` when the group cannot be given the file.
    pub fn for_group(mut self, group: Option<u32>) -> Result<Self> {
        if let Socket::Unix(_, file, peers) = &mut self.0 {
            *peers = Peers::Checked { group };
            if let Some(group) = group {
                file.give_to(group)?;
            }
        }
        Ok(self)
    }

    /// The listening socket itself, for who keeps a copy of it.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Socket::Unix(listener, ..) => listener.as_fd(),
            Socket::Tcp(listener, ..) => listener.as_fd(),
        }
    }

    /// What keeps the file of a Unix socket where it is when this is dropped, or has been served: once it is
    /// true, somebody else has the socket.
    #[must_use]
    pub fn stays(&self) -> Arc<AtomicBool> {
        match &self.0 {
            Socket::Unix(_, file, _) => Arc::clone(&file.stays),
            Socket::Tcp(..) => Arc::default(),
        }
    }

    /// Listens on a TCP address; port 0 takes a free one.
    ///
    /// # Errors
    /// `AddressInUse`, `Listen`.
    pub async fn tcp(address: SocketAddr) -> Result<Self> {
        let open = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let local = listener.local_addr()?;
            Ok((listener, local))
        };
        match open() {
            Ok((listener, local)) => Ok(Self(Socket::Tcp(listener, local, None))),
            Err(error) => Err(tcp_error(address, error)),
        }
    }

    /// The same with TLS.
    ///
    /// # Errors
    /// As [`Listener::tcp`]; `Listen` for files that cannot be used.
    pub async fn tls(address: SocketAddr, options: &TlsOptions) -> Result<Self> {
        let config = tls::config(options)?;
        let mut listener = Self::tcp(address).await?;
        if let Socket::Tcp(.., tls) = &mut listener.0 {
            *tls = Some(config);
        }
        Ok(listener)
    }

    /// Where it listens: `unix:/path`, `http://127.0.0.1:8080` or `https://…`.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.0 {
            Socket::Unix(_, file, _) => format!("unix:{}", file.path.display()),
            Socket::Tcp(_, address, None) => format!("http://{address}"),
            Socket::Tcp(_, address, Some(_)) => format!("https://{address}"),
        }
    }

    /// Registers it with the runtime; the file is removed when the second value is dropped.
    pub(super) fn into_acceptor(self) -> Result<(Acceptor, Option<SocketFile>)> {
        let address = self.address();
        let made = match self.0 {
            Socket::Unix(listener, file, peers) => {
                UnixListener::from_std(listener).map(|l| (Acceptor::Unix(l, peers), Some(file)))
            }
            Socket::Tcp(listener, _, tls) => {
                TcpListener::from_std(listener).map(|l| (Acceptor::Tcp(l, tls), None))
            }
        };
        made.map_err(|error| {
            Error::new(ErrorKind::Listen, format!("cannot listen on {address}")).because(error)
        })
    }
}

fn tcp_error(address: SocketAddr, error: io::Error) -> Error {
    let (kind, message, advice) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            ErrorKind::AddressInUse,
            format!("address {address} is in use"),
            format!(
                "end the program that listens there (`ss -ltnp 'sport = :{}'` shows it) or choose another port",
                address.port()
            ),
        ),
        io::ErrorKind::AddrNotAvailable => (
            ErrorKind::Listen,
            format!("address {address} is not one of this host's"),
            "choose an address of this host, such as 127.0.0.1".to_owned(),
        ),
        _ => (ErrorKind::Listen, format!("cannot listen on {address}"), "choose another address".to_owned()),
    };
    Error::new(kind, message).advise(advice).because(error)
}

/// A socket's file, removed when dropped if it is still the same.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    name: std::ffi::OsString,
    dir: File,
    /// Whether it stays when this is dropped.
    stays: Arc<AtomicBool>,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// First the group, then the mode: meanwhile nobody is let in who is not to be.
    fn give_to(&self, group: u32) -> Result<()> {
        let given =
            chownat(&self.dir, &self.name, None, Some(Gid::from_raw(group)), AtFlags::SYMLINK_NOFOLLOW);
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
        given.and_then(|()| chmodat(&self.dir, &self.name, mode, AtFlags::empty())).map_err(|error| {
            let message = format!("cannot give {} to the group {group}", self.path.display());
            Error::new(ErrorKind::Listen, message).because(io::Error::from(error))
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.stays.load(Ordering::SeqCst) {
            return;
        }
        let _lock = lock(&self.dir);
        if let Ok(found) = statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW)
            && (found.st_dev, found.st_ino) == self.identity
        {
            let _ = unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
    }
}

fn open_unix(path: &Path) -> Result<(OwnedFd, SocketFile)> {
    let failed = |what: &str, cause: io::Error| {
        Error::new(ErrorKind::Listen, format!("cannot listen on unix:{}: {what}", path.display()))
            .because(cause)
    };
    let name = path.file_name().map(ToOwned::to_owned).ok_or_else(|| {
        failed("the path names no file", io::ErrorKind::InvalidInput.into())
            .advise("give the path of a file in a directory that exists")
    })?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // `DIRECTORY`: to open a FIFO would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(parent, flags, Mode::empty()).map(File::from).map_err(|error| {
        failed("its directory cannot be opened", error.into())
            .advise(format!("make the directory {}", parent.display()))
    })?;
    // Two that start at once must not each remove the other's socket.
    let _lock = lock(&dir);
    remove_dead(path, &dir, &name)?;
    let socket = bound(path, &dir, &name).map_err(|error| failed("bind", error.into()))?;
    let identity = std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
    let identity = identity.map_err(|error| failed("stat", error))?;
    let file = SocketFile { path: path.to_owned(), name, dir, stays: Arc::default(), identity };
    listen(&socket, BACKLOG).map_err(|error| failed("listen", error.into()))?;
    Ok((socket, file))
}

/// The file of a Unix socket that is bound to one.
fn bound_path(socket: &OwnedFd) -> Option<PathBuf> {
    let address = SocketAddrUnix::try_from(rustix::net::getsockname(socket).ok()?).ok()?;
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(address.path_bytes()?));
    path.is_absolute().then_some(path)
}

/// A bound socket on which nobody can connect yet. Its mode is set before it has a name.
fn bound(path: &Path, dir: &File, name: &std::ffi::OsStr) -> rustix::io::Result<OwnedFd> {
    let socket = stream_socket()?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &address(path, dir, name)?)?;
    Ok(socket)
}

fn stream_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// The socket's address; a path that is too long goes by way of its directory's descriptor.
fn address(path: &Path, dir: &File, name: &std::ffi::OsStr) -> rustix::io::Result<SocketAddrUnix> {
    if path.as_os_str().as_bytes().len() <= MAX_ADDRESS_BYTES {
        return SocketAddrUnix::new(path);
    }
    SocketAddrUnix::new(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
}

/// Removes a socket that nobody listens on; anything else in the way is an error.
fn remove_dead(path: &Path, dir: &File, name: &std::ffi::OsStr) -> Result<()> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(found) if found.file_type().is_socket() => {}
        found => {
            let error = Error::new(ErrorKind::Listen, format!("{shown} exists and is not a socket"))
                .advise("remove it or choose another path");
            return Err(match found {
                Ok(_) => error,
                Err(cause) => error.because(cause),
            });
        }
    }
    let tried = stream_socket().and_then(|probe| connect(&probe, &address(path, dir, name)?));
    match tried {
        Err(Errno::CONNREFUSED) => match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => {
                Err(Error::new(ErrorKind::Listen, format!("cannot remove the dead socket {shown}"))
                    .because(io::Error::from(error)))
            }
        },
        // EAGAIN: somebody listens and has a full backlog.
        Ok(()) | Err(Errno::AGAIN) => {
            Err(Error::new(ErrorKind::AddressInUse, format!("socket {shown} is in use"))
                .advise("end the program that listens there or choose another path"))
        }
        Err(error) => {
            Err(Error::new(ErrorKind::Listen, format!("cannot tell whether socket {shown} is in use"))
                .because(io::Error::from(error))
                .advise("remove it or choose another path"))
        }
    }
}

/// Locks a directory against others that make sockets in it, until dropped. One that holds the lock
/// for longer than a socket needs is not waited for.
fn lock(dir: &File) -> Option<DirLock> {
    let held = dir.try_clone().ok()?;
    for _ in 0..LOCK_TRIES {
        match flock(&held, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(DirLock(held)),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(_) => return None,
        }
    }
    None
}

struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
