//! A stand-in for the container only: the servers behind it are real TCP servers on loopback.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use skiff_runtime::{ErrorKind, Exit, Stats};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::guest::{Guest, KILLED};
use super::logs::Stream;
use super::start::Launch;
use super::{Instance, LogLine, Timeline};
use crate::FunctionConfig;

/// Reaches one loopback address, whatever the port; ends when told.
#[derive(Clone, Debug)]
pub(crate) struct TestGuest {
    address: SocketAddr,
    exit: Arc<watch::Sender<Option<Exit>>>,
    frozen: Arc<AtomicBool>,
    freezes: Arc<AtomicUsize>,
    awake: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    terms: Arc<AtomicUsize>,
}

impl TestGuest {
    pub(crate) fn at(address: SocketAddr) -> Self {
        let exit = Arc::new(watch::Sender::new(None));
        Self {
            address,
            exit,
            frozen: Arc::default(),
            freezes: Arc::default(),
            awake: Arc::default(),
            connections: Arc::default(),
            terms: Arc::default(),
        }
    }

    /// Nothing listens there.
    pub(crate) async fn refusing() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        Self::at(listener.local_addr().expect("address"))
    }

    pub(crate) fn frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    /// How often it has been frozen.
    pub(crate) fn freezes(&self) -> usize {
        self.freezes.load(Ordering::SeqCst)
    }

    /// How often it has been sent SIGTERM alone.
    pub(crate) fn terms(&self) -> usize {
        self.terms.load(Ordering::SeqCst)
    }

    /// Thaws it and keeps it awake, or no longer, as a command in the container does.
    pub(crate) fn keep_awake(&self, awake: bool) {
        self.awake.store(awake, Ordering::SeqCst);
        self.frozen.fetch_and(!awake, Ordering::SeqCst);
    }

    /// How many connections have been made to it.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn end(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }
}

impl Guest for TestGuest {
    fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address.ip(), port)
    }

    fn connect(&self, _port: u16) -> BoxFuture<'_, io::Result<TcpStream>> {
        self.connections.fetch_add(1, Ordering::SeqCst);
        TcpStream::connect(self.address).boxed()
    }

    fn wait(&self) -> BoxFuture<'_, skiff_runtime::Result<Exit>> {
        let mut exit = self.exit.subscribe();
        async move { Ok(exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit).unwrap_or(KILLED)) }
            .boxed()
    }

    fn stop(&self, _grace: Duration) -> BoxFuture<'_, skiff_runtime::Result<Exit>> {
        self.exit.send_if_modified(|exit| {
            let alive = exit.is_none();
            exit.get_or_insert(KILLED);
            alive
        });
        self.wait()
    }

    fn terminate(&self) -> bool {
        self.terms.fetch_add(1, Ordering::SeqCst);
        self.exit.borrow().is_none()
    }

    fn freeze(&self) -> BoxFuture<'_, skiff_runtime::Result<()>> {
        if self.awake.load(Ordering::SeqCst) {
            let error = skiff_runtime::Error::new(ErrorKind::ContainerInUse, "a command runs in it");
            return std::future::ready(Err(error)).boxed();
        }
        self.freezes.fetch_add(1, Ordering::SeqCst);
        self.frozen.store(true, Ordering::SeqCst);
        std::future::ready(Ok(())).boxed()
    }

    fn thaw(&self) -> skiff_runtime::Result<()> {
        self.frozen.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn is_frozen(&self) -> bool {
        self.frozen()
    }

    fn stats(&self) -> Stats {
        Stats { memory_peak_bytes: self.memory_peak_bytes(), ..Stats::default() }
    }

    fn memory_peak_bytes(&self) -> u64 {
        10 * 1024 * 1024
    }
}

/// An instance in front of a server that listens already.
pub(crate) async fn instance(guest: &TestGuest, config: FunctionConfig) -> Instance {
    named("the-instance", guest, config).await
}

/// The same with this id.
pub(crate) async fn named(id: &str, guest: &TestGuest, config: FunctionConfig) -> Instance {
    let launch = Launch::new(id.into(), &Arc::new(config), vec!["serve".to_owned()]);
    let launch = launch.with_role().await.expect("a role");
    let output: Option<(Stream<tokio::io::Empty>, Stream<tokio::io::Empty>)> = None;
    let logs = launch.logs(Arc::new(|_: &LogLine| ()));
    launch.bring_up(Arc::new(guest.clone()), output, Timeline::default(), logs).await.expect("up")
}
