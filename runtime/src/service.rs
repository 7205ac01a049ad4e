//! What a service manager such as systemd has for a program that it starts: listening sockets (sd_listen_fds(3)),
//! somebody to tell when it is ready (sd_notify(3)); and who is at the other end of a socket.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::{Error, ErrorKind, Result, sys};

/// What a manager tells by, and no child of this process is to see.
const VARIABLES: [&str; 6] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Descriptors at most.
const MAX_DESCRIPTORS: u8 = 16;

/// The manager that started this process, if one did.
#[derive(Debug, Default)]
pub struct ServiceManager {
    sockets: Vec<OwnedFd>,
    notify: Option<SocketAddr>,
}

impl ServiceManager {
    /// Takes what is there for this process, and removes the variables that told of it. To be called once, before
    /// there are other threads.
    ///
    /// # Errors
    /// `InvalidArgument` when the variables say what is not so; `Host` beside other threads.
    pub fn take() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let count = descriptors(&variable, std::process::id())?;
        let notify = variable("NOTIFY_SOCKET").and_then(|name| address(&name).ok());
        sys::forget_variables(&VARIABLES)
            .map_err(|e| Error::host("cannot remove the service manager's variables", e))?;
        let sockets = match count {
            0 => Vec::new(),
            count => sys::take_descriptors(count).map_err(|e| {
                Error::new(ErrorKind::InvalidArgument, "LISTEN_FDS tells of descriptors that are not open")
                    .because(e)
            })?,
        };
        Ok(Self { sockets, notify })
    }

    /// The one socket that it listens on for this process, if it does. Gives it once.
    ///
    /// # Errors
    /// `InvalidArgument` when there are several.
    pub fn socket(&mut self) -> Result<Option<OwnedFd>> {
        if self.sockets.len() > 1 {
            let message = format!("{} sockets were handed over, and one is of use", self.sockets.len());
            return Err(Error::new(ErrorKind::InvalidArgument, message)
                .advise("give the socket unit one ListenStream=, for the node's socket"));
        }
        Ok(self.sockets.pop())
    }

    /// Tells that the service is ready.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// Tells that the service ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, state: &str) {
        let Some(address) = &self.notify else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            // A manager that does not read holds up nothing.
            socket.set_nonblocking(true)?;
            socket.send_to_addr(state.as_bytes(), address)
        });
        if let Err(error) = sent {
            tracing::warn!(state, %error, "the service manager cannot be told");
        }
    }
}

/// How many descriptors there are for the process with this id.
fn descriptors(variable: &dyn Fn(&str) -> Option<OsString>, pid: u32) -> Result<u8> {
    let number = |name: &str| -> Result<Option<u32>> {
        let Some(text) = variable(name) else { return Ok(None) };
        let number = text.to_str().and_then(|text| text.parse().ok());
        let wrong = || {
            Error::new(ErrorKind::InvalidArgument, format!("{name}={} is no number", text.to_string_lossy()))
        };
        number.map(Some).ok_or_else(wrong)
    };
    // Another process's, which this one has only inherited.
    if number("LISTEN_PID")? != Some(pid) {
        return Ok(0);
    }
    let count = number("LISTEN_FDS")?.unwrap_or(0);
    u8::try_from(count).ok().filter(|count| *count <= MAX_DESCRIPTORS).ok_or_else(|| {
        let message = format!("LISTEN_FDS={count} is more than {MAX_DESCRIPTORS}");
        Error::new(ErrorKind::InvalidArgument, message)
    })
}

/// A path, or with `@` before it a name without a file.
fn address(name: &OsString) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
        _ => SocketAddr::from_pathname(name),
    }
}

/// The supplementary groups of the process that connected to a Unix socket, as they were then.
///
/// # Errors
/// `Host` for what is no connected Unix socket.
pub fn peer_groups(socket: BorrowedFd<'_>) -> Result<Vec<u32>> {
    sys::peer_groups(socket).map_err(|e| Error::host("cannot ask for the groups of a peer", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(pid: &str, fds: &str) -> Result<u8> {
        let variable = |name: &str| match name {
            "LISTEN_PID" => Some(pid.into()),
            "LISTEN_FDS" => Some(fds.into()),
            _ => None,
        };
        descriptors(&variable, 7)
    }

    #[test]
    fn descriptors_are_taken_by_the_process_that_they_are_for() {
        assert_eq!(descriptors(&|_| None, 7).expect("none"), 0);
        assert_eq!(count("7", "1").expect("one"), 1);
        assert_eq!(count("8", "1").expect("another's"), 0);
        assert_eq!(count("7", "0").expect("none"), 0);
        for (pid, fds) in [("7", "17"), ("7", "-1"), ("seven", "1"), ("7", "one")] {
            let error = count(pid, fds).expect_err(fds);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        }
    }

    #[test]
    fn the_manager_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let abstract_name = format!("@skiff-test-{}", std::process::id());
        for name in [path.clone().into_os_string(), abstract_name.into()] {
            let address = address(&name).expect("an address");
            let socket = UnixDatagram::bind_addr(&address).expect("bound");
            let manager = ServiceManager { sockets: Vec::new(), notify: Some(address) };
            manager.ready();
            manager.stopping();
            let mut text = [0; 64];
            for wanted in ["READY=1", "STOPPING=1"] {
                let length = socket.recv(&mut text).expect("told");
                assert_eq!(text.get(..length), Some(wanted.as_bytes()));
            }
        }
        // One that is gone, and none, are no failure.
        ServiceManager { sockets: Vec::new(), notify: address(&path.into_os_string()).ok() }.ready();
        ServiceManager::default().ready();
    }

    #[test]
    fn one_socket_is_of_use() {
        let socket = || OwnedFd::from(UnixDatagram::unbound().expect("a socket"));
        let mut one = ServiceManager { sockets: vec![socket()], notify: None };
        assert!(one.socket().expect("one").is_some() && one.socket().expect("given").is_none());
        let mut two = ServiceManager { sockets: vec![socket(), socket()], notify: None };
        assert_eq!(two.socket().expect_err("two").kind(), ErrorKind::InvalidArgument);
    }
}
