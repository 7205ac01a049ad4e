//! The container as an instance needs it; a seam, so that everything above can be tested against
//! real servers without a container.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use skiff_runtime::{Container, Exit, Stats, Traffic};
use tokio::net::TcpStream;

/// A running container. Dropping it kills it.
pub(crate) trait Guest: fmt::Debug + Send + Sync + 'static {
    /// As [`Container::address`].
    fn address(&self, port: u16) -> SocketAddr;
    /// As [`Container::connect`].
    fn connect(&self, port: u16) -> BoxFuture<'_, io::Result<TcpStream>>;
    /// As [`Container::wait`].
    fn wait(&self) -> BoxFuture<'_, skiff_runtime::Result<Exit>>;
    /// As [`Container::stop`].
    fn stop(&self, grace: Duration) -> BoxFuture<'_, skiff_runtime::Result<Exit>>;
    /// As [`Container::terminate`].
    fn terminate(&self) -> bool;
    /// As [`Container::stats`].
    fn stats(&self) -> Stats;
    /// As [`Container::traffic`].
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
    /// As [`Container::memory_peak_bytes`].
    fn memory_peak_bytes(&self) -> u64;
    /// As [`Container::ready`].
    fn ready(&self) {}
    /// As [`Container::freeze`].
    fn freeze(&self) -> BoxFuture<'_, skiff_runtime::Result<()>>;
    /// As [`Container::thaw`].
    fn thaw(&self) -> skiff_runtime::Result<()>;
    /// As [`Container::is_frozen`].
    fn is_frozen(&self) -> bool;
}

impl Guest for Container {
    fn address(&self, port: u16) -> SocketAddr {
        Self::address(self, port)
    }

    fn connect(&self, port: u16) -> BoxFuture<'_, io::Result<TcpStream>> {
        Self::connect(self, port).boxed()
    }

    fn wait(&self) -> BoxFuture<'_, skiff_runtime::Result<Exit>> {
        Self::wait(self).boxed()
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'_, skiff_runtime::Result<Exit>> {
        Self::stop(self, grace).boxed()
    }

    fn terminate(&self) -> bool {
        Self::terminate(self)
    }

    fn stats(&self) -> Stats {
        Self::stats(self)
    }

    fn memory_peak_bytes(&self) -> u64 {
        Self::memory_peak_bytes(self)
    }

    fn traffic(&self) -> Traffic {
        Self::traffic(self)
    }

    fn ready(&self) {
        Self::ready(self);
    }

    fn freeze(&self) -> BoxFuture<'_, skiff_runtime::Result<()>> {
        Self::freeze(self).boxed()
    }

    fn thaw(&self) -> skiff_runtime::Result<()> {
        Self::thaw(self)
    }

    fn is_frozen(&self) -> bool {
        Self::is_frozen(self)
    }
}

/// What is said of a container whose keeper died: the kernel has killed it.
pub(crate) const KILLED: Exit = Exit { code: None, signal: Some(9), oom_killed: false };
