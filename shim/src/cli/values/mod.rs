//! What option values mean: sizes, times, environment variables, events, names.

mod age;
mod command;
mod cpus;
mod destination;
pub(crate) mod env;
mod event;
mod listen;
pub(crate) mod name;
mod size;
mod time;

use std::fmt;

pub(crate) use age::Age;
pub(crate) use command::Words;
pub(crate) use cpus::Cpus;
pub(crate) use destination::DestinationArg;
pub(crate) use event::EventSource;
pub(crate) use listen::Listen;
pub(crate) use size::{DiskSize, Memory, StoreSize};
pub(crate) use time::{Time, TimeLimit};

/// A value that cannot be taken, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid(String);

impl Invalid {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}
