//! What a container may do: its runtime specification, user, capabilities and seccomp filter, and
//! the last steps inside it before its command.

mod executor;
mod seccomp;
mod spec;
mod user;

pub(crate) use executor::CommandExecutor;
pub(crate) use spec::{SpecInput, Swap, build as build_spec};
pub(crate) use user::{User, resolve as resolve_user};
