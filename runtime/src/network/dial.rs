//! Dialling into network namespaces: one thread enters a namespace, makes a socket there, and
//! leaves; the socket stays in the namespace and is used from anywhere.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

/// Requests waiting for the thread; more wait in their callers.
const QUEUE: usize = 64;

/// Makes sockets; runs inside the namespace, and must not block.
type Make = fn() -> io::Result<Vec<OwnedFd>>;

struct Request {
    namespace: Arc<OwnedFd>,
    make: Make,
    answer: oneshot::Sender<io::Result<Vec<OwnedFd>>>,
}

/// Makes sockets inside network namespaces. The thread ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    requests: SyncSender<Request>,
}

impl Dialer {
    /// Starts the thread.
    ///
    /// # Errors
    /// As starting a thread, or opening its own namespace.
    pub(crate) fn start() -> io::Result<Self> {
        let (requests, receiver) = sync_channel(QUEUE);
        let home = rustix::fs::open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        std::thread::Builder::new().name("skiff-dial".into()).spawn(move || serve(&receiver, &home))?;
        Ok(Self { requests })
    }

    /// A TCP socket that lives in `namespace`.
    ///
    /// # Errors
    /// As `setns(2)` and `socket(2)`.
    pub(crate) async fn socket(&self, namespace: Arc<OwnedFd>) -> io::Result<TcpSocket> {
        let made = self.sockets(namespace, tcp_socket).await?.pop().ok_or_else(thread_gone)?;
        Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(made)))
    }

    /// What `make` makes inside `namespace`.
    ///
    /// # Errors
    /// As `setns(2)` and `make`.
    pub(super) async fn sockets(&self, namespace: Arc<OwnedFd>, make: Make) -> io::Result<Vec<OwnedFd>> {
        let (answer, answered) = oneshot::channel();
        let mut request = Request { namespace, make, answer };
        // Full means a burst of dials; the thread frees a place within microseconds.
        while let Err(e) = self.requests.try_send(request) {
            match e {
                std::sync::mpsc::TrySendError::Full(back) => request = back,
                std::sync::mpsc::TrySendError::Disconnected(_) => return Err(thread_gone()),
            }
            tokio::task::yield_now().await;
        }
        answered.await.map_err(|_| thread_gone())?
    }
}

fn thread_gone() -> io::Error {
    io::Error::other("the dialling thread has ended")
}

fn serve(requests: &Receiver<Request>, home: &OwnedFd) {
    while let Ok(request) = requests.recv() {
        let made = made_in(&request.namespace, request.make);
        // Staying in a container's namespace would keep it alive.
        let back = move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network));
        let failed = back.is_err();
        let _ = request.answer.send(made.and_then(|s| back.map(|()| s).map_err(io::Error::from)));
        if failed {
            return;
        }
    }
}

fn made_in(namespace: &OwnedFd, make: Make) -> io::Result<Vec<OwnedFd>> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    make()
}

fn tcp_socket() -> io::Result<Vec<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(vec![rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?])
}
