//! HTTP from host sockets to an instance: both bodies stream, nothing is retried that a server may
//! have seen.
//!
//! ```text
//! socket ─ server ─ forward ─ (headers) ─ pool ─ the container's server
//!             answer ◀──────────────────────┘        (tunnel, after an upgrade)
//! ```

mod answer;
mod as_event;
#[cfg(test)]
mod as_event_tests;
pub(crate) mod body;
mod crowd;
mod forward;
mod gather;
#[cfg(test)]
mod gather_tests;
mod guard;
pub(crate) mod headers;
#[cfg(test)]
mod hostile_tests;
mod http2;
#[cfg(test)]
mod http2_tests;
#[cfg(test)]
mod limits_tests;
mod patience;
mod peers;
pub(crate) mod pool;
mod server;
mod socket;
#[cfg(test)]
mod socket_tests;
#[cfg(test)]
mod tests;
mod tls;
mod tunnel;
mod version;
mod websocket;

pub(crate) use forward::{Later, Meaning, forward, of_platform, over_a_limit, over_http};
pub(crate) use guard::Guarded;
pub use server::serve;
pub(crate) use server::{Handler, serve_with};
pub use socket::Listener;
pub use tls::TlsOptions;
