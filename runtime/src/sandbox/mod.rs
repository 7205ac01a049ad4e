//! What a container may do: its runtime specification, user, capabilities and seccomp filter, and
//! the last steps inside it before its command.

pub(crate) mod apparmor;
mod executor;
mod program;
mod seccomp;
mod spec;
mod user;
mod userns;

/// Where commands are looked for in an image that says nothing of it.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) use executor::{Command, CommandExecutor, is_inside};
pub(crate) use program::Program;
pub(crate) use seccomp::filter;
pub(crate) use spec::{CAPABILITY_MASK, Mounted, SpecInput, build as build_spec};
pub(crate) use user::{User, resolve as resolve_user};
pub(crate) use userns::{Claim, UserNamespace};
