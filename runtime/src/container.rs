//! A running container, as its owner sees it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::Result;

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// The exit code, when it exited by itself.
    pub code: Option<i32>,
    /// The signal that ended it, else.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
}

impl Exit {
    /// The code as shells and both clouds report it: the exit code, or 128 + signal.
    #[must_use]
    pub fn shell_code(&self) -> i32 {
        self.code.unwrap_or_else(|| 128 + self.signal.unwrap_or(0))
    }
}

/// How long each step of a start took.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct StartTimings {
    /// Writable layer and `/tmp` made ready.
    pub rootfs: Duration,
    /// Network namespace made ready.
    pub network: Duration,
    /// From the request to the keeper until the command was executed.
    pub spawn: Duration,
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Stats {
    /// Memory in use now, in bytes.
    pub memory_bytes: u64,
    /// Highest memory use so far, in bytes.
    pub memory_peak_bytes: u64,
    /// CPU time used so far.
    pub cpu: Duration,
}

/// A running (or ended) container. Dropping it kills it.
#[derive(Debug)]
pub struct Container {
    _private: (),
}

impl Container {
    /// The name given at the start.
    #[must_use]
    pub fn id(&self) -> &str {
        unimplemented!("skeleton")
    }

    /// The process id of its init on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        unimplemented!("skeleton")
    }

    /// How long the start took.
    #[must_use]
    pub fn timings(&self) -> StartTimings {
        unimplemented!("skeleton")
    }

    /// Its standard output and standard error; `None` when they were already taken. Each ends when
    /// the container has ended and all that it wrote has been read.
    pub fn take_output(&self) -> Option<(Output, Output)> {
        unimplemented!("skeleton")
    }

    /// The address where a server inside is dialled.
    #[must_use]
    pub fn address(&self, _port: u16) -> SocketAddr {
        unimplemented!("skeleton")
    }

    /// Connects to a port of the container, from inside its network namespace.
    ///
    /// # Errors
    /// As `connect(2)`; `ConnectionRefused` while nothing listens there.
    pub async fn connect(&self, _port: u16) -> std::io::Result<TcpStream> {
        unimplemented!("skeleton")
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// `KeeperLost` when the keeper died; the container has been killed then.
    pub async fn wait(&self) -> Result<Exit> {
        unimplemented!("skeleton")
    }

    /// The exit, if it has ended.
    #[must_use]
    pub fn exited(&self) -> Option<Exit> {
        unimplemented!("skeleton")
    }

    /// Sends SIGTERM, waits for `grace`, then kills every process of it and waits for the end.
    ///
    /// # Errors
    /// `KeeperLost`.
    pub async fn stop(&self, _grace: Duration) -> Result<Exit> {
        unimplemented!("skeleton")
    }

    /// What it uses now.
    ///
    /// # Errors
    /// `Host` when its cgroup cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        unimplemented!("skeleton")
    }
}

/// One output stream of a container.
#[derive(Debug)]
pub struct Output {
    _private: (),
}

impl AsyncRead for Output {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        unimplemented!("skeleton")
    }
}
