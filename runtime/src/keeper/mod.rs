//! The keeper: a small single-threaded process that is the parent of all containers of a run.
//!
//! `client` is the daemon's side, `program` and `server` the keeper's; `protocol` is what they say to
//! each other over a seqpacket socket; `succession` has another keeper where one has died; `spawn` is one start, in a process of its own.

mod ahead;
mod client;
mod confine;
mod fork;
mod launch;
mod oom;
mod peers;
mod program;
pub(crate) mod protocol;
mod records;
mod requests;
mod server;
mod sockets;
mod spawn;
mod starts;
mod succession;
mod table;

pub(crate) use ahead::MAX as MAX_PREPARED;
pub(crate) use client::{Keeper, Order};
pub(crate) use launch::{candidate, execute, find};
pub(crate) use peers::SOCKET;
pub use program::main;
pub(crate) use program::take_socket;
pub(crate) use succession::Succession;
pub(crate) use table::{AdoptedContainer, Ended, Kept, Process, Started};
