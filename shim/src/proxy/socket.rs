//! The sockets that invocations come from.

use std::net::SocketAddr;
use std::path::Path;

use crate::Result;

/// A listening socket that the caller owns until it is served.
#[derive(Debug)]
pub struct Listener {
    _private: (),
}

impl Listener {
    /// Listens on a Unix socket with mode 0600. A dead socket in its place is replaced; a live one
    /// and any other file are not. The file is removed when this is dropped.
    ///
    /// # Errors
    /// `AddressInUse`, `Listen`.
    pub fn unix(_path: impl AsRef<Path>) -> Result<Self> {
        unimplemented!("skeleton")
    }

    /// Listens on a TCP address; port 0 takes a free one.
    ///
    /// # Errors
    /// `AddressInUse`, `Listen`.
    pub async fn tcp(_address: SocketAddr) -> Result<Self> {
        unimplemented!("skeleton")
    }

    /// Where it listens: `unix:/path` or `http://127.0.0.1:8080`.
    #[must_use]
    pub fn address(&self) -> String {
        unimplemented!("skeleton")
    }
}
