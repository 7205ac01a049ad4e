//! What option values mean: sizes, times, environment variables, events, names.

mod age;
mod command;
pub(crate) mod env;
mod event;
mod group;
mod listen;
mod since;
mod trigger;

pub(crate) use age::Age;
pub(crate) use command::Words;
pub(crate) use event::EventSource;
pub(crate) use group::Group;
pub(crate) use listen::Listen;
pub(crate) use since::Since;
pub(crate) use skiff::units::{Cpus, DiskSize, Invalid, Memory, StoreSize, Time, TimeLimit};
pub(crate) use trigger::TriggerArg;
