//! Dialling into network namespaces: one thread enters a namespace, makes a socket there, and
//! leaves; the socket stays in the namespace and is used from anywhere.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpStream;
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

    /// Connects to an address of `namespace` from inside it. `refused` keeps a socket that was refused for
    /// the next try: to make one takes longer than to try.
    ///
    /// # Errors
    /// As `setns(2)`, `socket(2)` and `connect(2)`.
    pub(crate) async fn connect(
        &self,
        namespace: &Arc<OwnedFd>,
        address: SocketAddr,
        refused: &Mutex<Option<OwnedFd>>,
    ) -> io::Result<TcpStream> {
        let lock = || refused.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().take();
        let socket = match kept {
            Some(socket) => socket,
            None => self.sockets(Arc::clone(namespace), tcp_socket).await?.pop().ok_or_else(thread_gone)?,
        };
        let connected = match connect(&socket, address) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                *lock() = Some(socket);
                return Err(e);
            }
            connected => connected?,
        };
        let stream = TcpStream::from_std(std::net::TcpStream::from(socket))?;
        if !connected {
            stream.writable().await?;
            stream.take_error()?.map_or(Ok(()), Err)?;
        }
        stream.set_nodelay(true)?;
        Ok(stream)
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

/// Connects a socket that does not block, to an address of its own namespace: the answer is there at once,
/// unless the server does not take what comes (`false`). After `ConnectionRefused` the socket can be used again.
///
/// # Errors
/// As `connect(2)`.
fn connect(socket: &OwnedFd, address: SocketAddr) -> io::Result<bool> {
    match rustix::net::connect(socket, &address) {
        Ok(()) => return Ok(true),
        Err(Errno::INPROGRESS) => {}
        Err(e) => return Err(e.into()),
    }
    // Tells how that came out, and after a refusal leaves the socket as it was before.
    match rustix::net::connect(socket, &address) {
        Ok(()) | Err(Errno::ISCONN) => Ok(true),
        Err(Errno::ALREADY | Errno::INPROGRESS) => Ok(false),
        Err(e) => Err(e.into()),
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_socket_that_was_refused_connects_when_somebody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let socket = tcp_socket().expect("a socket").remove(0);
        for _ in 0..3 {
            let refused = connect(&socket, address).expect_err("nobody listens");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        let listener = TcpListener::bind(address).expect("bound again");
        assert!(connect(&socket, address).expect("somebody listens"));
        let (accepted, _) = listener.accept().expect("accepted");
        let stream = std::net::TcpStream::from(socket);
        assert_eq!(stream.local_addr().expect("bound"), accepted.peer_addr().expect("connected"));
    }
}
