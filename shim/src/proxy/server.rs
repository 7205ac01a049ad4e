//! The accept loop: HTTP/1.1 and HTTP/2, with TLS or without, on a Unix or TCP socket, with every count and time
//! bounded.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::body::{self, Body, Keeping};
use super::crowd::{Crowd, Present};
use super::http2;
use super::patience::{GRACE, Patience};
use super::socket::{Acceptor, Listener, Stream};
use super::version::{self, Version};
use crate::api::Function;
use crate::{Error, ErrorKind, Result};

/// Connections at once; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 10_000;

/// How long a client may take for its request's headers.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Header fields of a request at most.
const MAX_HEADERS: usize = 256;

/// Bytes buffered of a connection, which bounds a request's headers too.
const MAX_BUFFER: usize = 128 * 1024;

/// How long requests that run may take to end at a shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Pause after an accept that failed (descriptors may be free again then).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Failures of accept in a row, after which the listener counts as broken.
const ACCEPT_FAILURES: u32 = 600;

/// Serves HTTP/1.1 and HTTP/2 on `listener` and passes every request to the function until `shutdown`
/// resolves; then takes no more connections and lets running requests end within a grace of 10 s.
/// Removes the socket file at the end. Must be called in a tokio runtime.
///
/// # Errors
/// `Listen` when the listener itself fails; broken connections and requests are not errors.
pub async fn serve(
    listener: Listener,
    function: Arc<dyn Function>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    serve_with(listener, Arc::new(Through(function)), shutdown).await
}

/// What answers the requests of a listener.
pub(crate) trait Handler: Send + Sync + 'static {
    /// How long a request and its answer may take.
    fn time(&self) -> Duration;

    /// The answer to one request, of a client that is known when it came over TCP.
    fn answer(
        self: Arc<Self>,
        client: Option<SocketAddr>,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Response<Body>>;
}

/// Passes requests on to a function.
struct Through(Arc<dyn Function>);

impl Handler for Through {
    fn time(&self) -> Duration {
        self.0.longest()
    }

    fn answer(
        self: Arc<Self>,
        client: Option<SocketAddr>,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Response<Body>> {
        self.0.forward(client, body::arriving(request))
    }
}

/// As [`serve`], for anything that answers.
pub(crate) async fn serve_with(
    listener: Listener,
    handler: Arc<dyn Handler>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let address = listener.address();
    let (acceptor, _file) = listener.into_acceptor()?;
    let (stop, _) = watch::channel(());
    let mut connections = JoinSet::new();
    let served = {
        let accepting = accept(&acceptor, &handler, &stop, &mut connections);
        tokio::select! {
            error = accepting => Err(error),
            () = shutdown => Ok(()),
        }
    };
    drop(acceptor);
    stop.send_replace(());
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(SHUTDOWN_GRACE, ended).await;
    connections.shutdown().await;
    served.map_err(|error: io::Error| {
        Error::new(ErrorKind::Listen, format!("cannot accept connections on {address}")).because(error)
    })
}

/// Accepts until it cannot.
async fn accept(
    acceptor: &Acceptor,
    handler: &Arc<dyn Handler>,
    stop: &watch::Sender<()>,
    connections: &mut JoinSet<()>,
) -> io::Error {
    let (places, crowd) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Arc::<Crowd>::default());
    let mut failures = 0;
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return io::Error::other("closed");
        };
        // Tasks that have ended are forgotten.
        while connections.try_join_next().is_some() {}
        match acceptor.accept().await {
            Ok(stream) => {
                failures = 0;
                let held = (place, crowd.join());
                connections.spawn(connection(stream, Arc::clone(handler), stop.subscribe(), held));
            }
            Err(error) if failures >= ACCEPT_FAILURES => return error,
            Err(error) => {
                failures += u32::from(!passes_by_itself(&error));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether a failure of accept is about one connection, or about what the host is short of: clients
/// can bring both about, and must not end the listener by them.
fn passes_by_itself(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::CONNABORTED | Errno::INTR)
    )
}

async fn connection(
    stream: Stream,
    handler: Arc<dyn Handler>,
    stop: watch::Receiver<()>,
    held: (OwnedSemaphorePermit, Present),
) {
    match stream {
        Stream::Unix(stream) => http(stream, None, handler, stop).await,
        Stream::Tcp(stream, client, tls) => {
            // A streamed chunk must not wait for the next.
            let _ = stream.set_nodelay(true);
            match tls {
                None => http(stream, Some(client), handler, stop).await,
                Some(config) => encrypted(stream, client, config, handler, stop).await,
            }
        }
    }
    drop(held);
}

/// A connection with TLS. One that does not come about concerns the client alone.
async fn encrypted(
    stream: TcpStream,
    client: SocketAddr,
    config: Arc<rustls::ServerConfig>,
    handler: Arc<dyn Handler>,
    mut stop: watch::Receiver<()>,
) {
    let handshake = timeout(HEADER_READ_TIMEOUT, TlsAcceptor::from(config).accept(stream));
    let shaken = tokio::select! {
        shaken = handshake => shaken,
        _ = stop.changed() => return,
    };
    match shaken {
        Ok(Ok(stream)) => http(stream, Some(client), handler, stop).await,
        Ok(Err(error)) => tracing::debug!(%client, %error, "no TLS connection"),
        Err(_) => tracing::debug!(%client, "no TLS connection in time"),
    }
}

/// Serves a connection until it ends: by itself, when its time is over, or when `stop` says so. A macro,
/// since the connections of both versions have no trait in common.
macro_rules! to_its_end {
    ($connection:expr, $patience:ident, $stop:ident) => {{
        let mut connection = pin!($connection);
        let over = tokio::select! {
            // How a client's connection ends concerns the client alone.
            _ = connection.as_mut() => return,
            () = $patience.over() => true,
            _ = $stop.changed() => false,
        };
        if over && !$patience.is_idle() {
            return;
        }
        // A client of HTTP/2 is told, so that it sends nothing more on it.
        connection.as_mut().graceful_shutdown();
        let patience = async {
            match over {
                true => tokio::time::sleep(GRACE).await,
                false => $patience.over().await,
            }
        };
        tokio::select! {
            _ = connection => {}
            () = patience => {}
        }
    }};
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    client: Option<SocketAddr>,
    handler: Arc<dyn Handler>,
    mut stop: watch::Receiver<()>,
) {
    let found = tokio::select! {
        found = timeout(HEADER_READ_TIMEOUT, version::find(stream)) => found,
        _ = stop.changed() => return,
    };
    let Ok(Ok((version, stream))) = found else { return };
    let patience = Patience::new();
    let watched = Arc::clone(&patience);
    let service = service_fn(move |request| {
        let turn = watched.begin(handler.time());
        let answer = Arc::clone(&handler).answer(client, request);
        async move {
            let answer = answer.await;
            // The end of the body is that of the request.
            Ok::<_, std::convert::Infallible>(answer.map(|body| Keeping::new(body, turn)))
        }
    });
    let stream = TokioIo::new(stream);
    match version {
        Version::One => {
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT);
            server.max_headers(MAX_HEADERS).max_buf_size(MAX_BUFFER);
            to_its_end!(server.serve_connection(stream, service).with_upgrades(), patience, stop);
        }
        Version::Two => {
            patience.wait_for_first(HEADER_READ_TIMEOUT);
            to_its_end!(http2::server().serve_connection(stream, service), patience, stop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_descriptors_does_not_end_a_listener() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::CONNABORTED] {
            assert!(passes_by_itself(&errno.into()), "{errno}");
        }
        for errno in [Errno::BADF, Errno::INVAL, Errno::NOTSOCK] {
            assert!(!passes_by_itself(&errno.into()), "{errno}");
        }
    }
}
