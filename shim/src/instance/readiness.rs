//! Waiting until an instance's server listens: connect, pause, connect again.
//!
//! The connection that succeeds is kept: the first request goes out on it. The container's end
//! ends the wait at once.

use std::time::Duration;

use skiff_runtime::Exit;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::guest::Guest;

/// Shortest pause.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// A pause is this part of what has been waited so far, which is what a start can lose by pausing: doubling
/// pauses cost half of it. A try takes some 20 microseconds.
const PART: u32 = 50;

/// Longest pause.
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// Why a server was not reached.
#[derive(Debug)]
pub(super) enum NotReady {
    /// The deadline has passed; the last error.
    Deadline(String),
    /// The container has ended.
    Exited(Exit),
    /// Nobody knows how it has ended.
    Lost(skiff_runtime::Error),
    /// Its initializer failed; why.
    Initializer(String),
    /// Its first health check failed; how.
    Unhealthy(String),
}

impl NotReady {
    /// By the container's end.
    pub(super) fn ended(exit: skiff_runtime::Result<Exit>) -> Self {
        exit.map_or_else(Self::Lost, Self::Exited)
    }
}

/// Connects to the server as soon as it listens.
pub(super) async fn first_connection(
    guest: &dyn Guest,
    port: u16,
    deadline: Instant,
) -> Result<TcpStream, NotReady> {
    tokio::select! {
        biased;
        exit = guest.wait() => Err(NotReady::ended(exit)),
        connected = connect(guest, port, deadline) => connected.map_err(NotReady::Deadline),
    }
}

async fn connect(guest: &dyn Guest, port: u16, deadline: Instant) -> Result<TcpStream, String> {
    let begun = Instant::now();
    let mut last = "no answer".to_owned();
    loop {
        match timeout_at(deadline, guest.connect(port)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => return Err(last),
        }
        let pause = (begun.elapsed() / PART).clamp(FIRST_PAUSE, LAST_PAUSE);
        if timeout_at(deadline, sleep(pause)).await.is_err() {
            return Err(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::instance::testing::TestGuest;

    fn within(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    #[tokio::test]
    async fn a_server_that_listens_late_is_found_and_seen_once() {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = free.local_addr().expect("address");
        drop(free);
        let guest = TestGuest::at(address);
        let server = tokio::spawn(async move {
            sleep(Duration::from_millis(120)).await;
            let listener = TcpListener::bind(address).await.expect("bound again");
            let first = listener.accept().await.expect("accepted");
            let second = tokio::time::timeout(Duration::from_millis(150), listener.accept()).await;
            (first, second.is_err())
        });
        let stream = first_connection(&guest, 9000, within(5000)).await.expect("listens");
        let ((_, seen), alone) = server.await.expect("served");
        assert_eq!(stream.local_addr().expect("address"), seen);
        assert!(alone, "probed only until the first success");
    }

    #[tokio::test]
    async fn nothing_listens_by_the_deadline() {
        let guest = TestGuest::refusing().await;
        let started = Instant::now();
        let error = first_connection(&guest, 9000, within(200)).await.expect_err("nothing listens");
        assert!(matches!(&error, NotReady::Deadline(text) if text.contains("refused")), "{error:?}");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(2), "{took:?}");
    }

    #[tokio::test]
    async fn the_end_of_the_container_ends_the_wait_at_once() {
        let guest = TestGuest::refusing().await;
        let exit = Exit { code: Some(3), signal: None, oom_killed: false };
        let ending = guest.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(50)).await;
            ending.end(exit);
        });
        let started = Instant::now();
        let error = first_connection(&guest, 9000, within(60_000)).await.expect_err("it ends");
        assert!(matches!(error, NotReady::Exited(found) if found == exit), "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}
