//! The vendor-neutral half of Skiff: from an image reference to a running container.
//!
//! ```text
//! image reference ─ pull ─ unpack ─ rootfs ─ network ─ spec ─ spawn ─ (the container runs) ─ reap
//! ```
//!
//! [`Runtime`] is the entry point: it owns the image store and the keeper process, pulls images and
//! starts containers. Nothing here knows a cloud vendor; the crate `skiff` puts functions on top.
//!
//! Library manners: no signal handlers, no loggers, no `process::exit`; every error is an [`Error`].

#![deny(unsafe_code)]

pub mod acceleration;
mod awake;
#[doc(hidden)]
pub mod breakpoint;
mod cgroup;
mod container;
pub mod doctor;
mod error;
pub mod exec;
pub mod image;
#[doc(hidden)]
pub mod keeper;
mod network;
mod output;
mod rootfs;
mod rundir;
mod runtime;
mod sandbox;
pub mod service;
mod spec;
mod sys;

pub use acceleration::{Acceleration, Recorded};
pub use cgroup::CgroupParent;
pub use container::{Container, Exit, StartTimings, Stats, Traffic};
pub use error::{Error, ErrorKind, Fault, Result};
pub use exec::{Exec, ExecSpec};
pub use network::{Cidr, Network, NetworkOptions};
pub use output::Output;
pub use runtime::{FailedStart, Runtime, RuntimeOptions};
pub use spec::{ContainerSpec, OomPolicy, Writable};
