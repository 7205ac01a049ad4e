//! What a container may do: its runtime specification, user, capabilities and seccomp filter, and
//! the last steps inside it before its command.

mod executor;
mod seccomp;
mod spec;
mod user;
mod userns;

pub(crate) use executor::CommandExecutor;
pub(crate) use spec::{SpecInput, Swap, Userns, build as build_spec};
pub(crate) use user::{User, resolve as resolve_user};
pub(crate) use userns::{Claim, UserNamespace};
