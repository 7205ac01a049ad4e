//! Forwards a container's questions for names to servers that only the host reaches.
//!
//! The sockets are made inside the container's namespace, on an address of its loopback; what comes
//! is passed on from the host, as it is. Nothing is parsed: the answer is for the container alone.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::Dialer;
use super::resolver::FORWARDER;
use crate::{Error, Result};

/// Longest message over UDP: resolvers announce 4096 bytes at most.
const UDP_BYTES: usize = 4096;
/// Longest message over TCP: its length has two bytes.
const TCP_BYTES: usize = 65_535;
/// Questions of a container that are under way at once; further datagrams are dropped, as a busy
/// server drops them.
const UDP_QUESTIONS: usize = 64;
/// Connections of a container at once; more wait.
const TCP_CONNECTIONS: usize = 8;
/// Questions over one connection.
const TCP_QUESTIONS: usize = 100;
/// How long one server may take: a resolver asks again after 5 s.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 16;

/// The forwarder of one container; ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Forwarder {
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Forwarder {
    /// Starts to forward from `namespace` to `upstreams`, in their order.
    ///
    /// # Errors
    /// `Host` when the sockets cannot be made.
    pub(crate) async fn start(
        dialer: &Dialer,
        namespace: Arc<OwnedFd>,
        upstreams: &[SocketAddr],
    ) -> Result<Self> {
        let failed = |e| Error::host("cannot make the sockets of a forwarder for names", e);
        let mut made = dialer.sockets(namespace, sockets).await.map_err(failed)?.into_iter();
        let (Some(udp), Some(tcp)) = (made.next(), made.next()) else {
            return Err(failed(io::ErrorKind::NotFound.into()));
        };
        let udp = UdpSocket::from_std(udp.into()).map_err(failed)?;
        let tcp = TcpListener::from_std(tcp.into()).map_err(failed)?;
        let upstreams: Arc<[SocketAddr]> = upstreams.into();
        let tasks =
            [tokio::spawn(serve_udp(udp, Arc::clone(&upstreams))), tokio::spawn(serve_tcp(tcp, upstreams))];
        Ok(Self { tasks })
    }
}

impl Forwarder {
    /// Ends it when `end` comes, and not when this is dropped.
    pub(crate) fn end_with(self, end: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(async move {
            end.await;
            drop(self);
        });
    }
}

/// A socket for each protocol, bound; runs inside the namespace.
fn sockets() -> io::Result<Vec<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let udp = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    bind(&udp, &FORWARDER)?;
    let tcp = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    // A former forwarder's connections may linger.
    sockopt::set_socket_reuseaddr(&tcp, true)?;
    bind(&tcp, &FORWARDER)?;
    listen(&tcp, BACKLOG)?;
    Ok(vec![udp, tcp])
}

async fn serve_udp(socket: UdpSocket, upstreams: Arc<[SocketAddr]>) {
    let socket = Arc::new(socket);
    // Ends with this: a question under way must not keep the container's namespace alive.
    let mut questions = JoinSet::new();
    let mut buffer = [0; UDP_BYTES];
    loop {
        // An error is of one datagram, such as one that nobody waits for any more.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        while questions.try_join_next().is_some() {}
        if questions.len() >= UDP_QUESTIONS {
            continue;
        }
        let (question, socket, upstreams) =
            (buffer[..length].to_vec(), Arc::clone(&socket), Arc::clone(&upstreams));
        questions.spawn(async move {
            if let Some(answer) = ask_udp(&question, &upstreams).await {
                let _ = socket.send_to(&answer, from).await;
            }
        });
    }
}

/// The answer of the first server that gives one.
async fn ask_udp(question: &[u8], upstreams: &[SocketAddr]) -> Option<Vec<u8>> {
    for upstream in upstreams {
        if let Ok(Ok(answer)) = timeout(PATIENCE, ask_one(question, *upstream)).await {
            return Some(answer);
        }
    }
    None
}

/// From a port of its own for each question, and to one server: nobody else's answer is taken.
async fn ask_one(question: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if upstream.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(question).await?;
    let mut answer = vec![0; UDP_BYTES];
    loop {
        let length = socket.recv(&mut answer).await?;
        // The id tells an answer from a late one to somebody else.
        if length >= 2 && question.len() >= 2 && answer[..2] == question[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn serve_tcp(listener: TcpListener, upstreams: Arc<[SocketAddr]>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= TCP_CONNECTIONS {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, for one: not to be asked again at once.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let upstreams = Arc::clone(&upstreams);
        connections.spawn(async move {
            let _ = converse(stream, &upstreams).await;
        });
    }
}

/// Question by question; each has a length before it.
async fn converse(mut client: TcpStream, upstreams: &[SocketAddr]) -> io::Result<()> {
    let mut server = connect(upstreams).await?;
    for _ in 0..TCP_QUESTIONS {
        let question = timeout(IDLE, read_message(&mut client)).await??;
        timeout(IDLE, server.write_all(&question)).await??;
        let answer = timeout(IDLE, read_message(&mut server)).await??;
        timeout(IDLE, client.write_all(&answer)).await??;
    }
    Ok(())
}

async fn connect(upstreams: &[SocketAddr]) -> io::Result<TcpStream> {
    for upstream in upstreams {
        if let Ok(Ok(stream)) = timeout(PATIENCE, TcpStream::connect(upstream)).await {
            return Ok(stream);
        }
    }
    Err(io::ErrorKind::ConnectionRefused.into())
}

/// A message with its length.
async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = Vec::with_capacity(2 + usize::from(length).min(TCP_BYTES));
    message.extend_from_slice(&length.to_be_bytes());
    message.resize(2 + usize::from(length), 0);
    stream.read_exact(&mut message[2..]).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers what it is asked, with a mark; answers of another id come first.
    async fn udp_server() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = socket.local_addr().expect("an address");
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(b"\xff\xffother", from).await;
                let answer = [&buffer[..length], b"!"].concat();
                let _ = socket.send_to(&answer, from).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn the_first_server_that_answers_is_taken() {
        let dead = UdpSocket::bind("127.0.0.1:0").await.and_then(|s| s.local_addr()).expect("a free port");
        let live = udp_server().await;
        let answer = ask_udp(b"\x01\x02question", &[dead, live]).await;
        assert_eq!(answer.as_deref(), Some(&b"\x01\x02question!"[..]));
        assert_eq!(ask_udp(b"\x01\x02question", &[dead]).await, None);
    }

    #[tokio::test]
    async fn messages_over_tcp_are_passed_on_whole() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let upstream = server.local_addr().expect("an address");
        tokio::spawn(async move {
            let (mut stream, _) = server.accept().await.expect("a connection");
            while let Ok(message) = read_message(&mut stream).await {
                stream.write_all(&message).await.expect("an answer");
            }
        });
        let front = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = front.local_addr().expect("an address");
        tokio::spawn(serve_tcp(front, [upstream].into()));
        let mut client = TcpStream::connect(address).await.expect("a connection");
        for length in [0u16, 1, 300, 65_535] {
            let message = [&length.to_be_bytes()[..], &vec![7; usize::from(length)]].concat();
            client.write_all(&message).await.expect("a question");
            assert_eq!(read_message(&mut client).await.expect("an answer"), message);
        }
    }
}
