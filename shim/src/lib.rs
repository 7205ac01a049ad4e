//! Custom-container functions on a plain Linux host, as Alibaba FC and Tencent SCF run them.
//!
//! A [`FunctionConfig`] says what to run and under which [`platform`]; [`Instance::start`] starts one
//! container of it on a [`Runtime`]; [`Instance::invoke_event`] invokes it once, and
//! [`proxy::serve`] passes HTTP requests to it from a Unix socket or a TCP port.
//!
//! Library manners: no signal handlers, no loggers, no `process::exit`; the caller owns listeners
//! and shutdown. Nothing here makes a system call on a container's behalf: that is the crate
//! `skiff-runtime`, the parts of which an embedder needs are exported again from here.

#![forbid(unsafe_code)]

pub mod api;
mod base64;
mod error;
pub mod function;
pub mod instance;
pub mod meter;
pub mod node;
pub mod platform;
pub mod pool;
pub mod proxy;
pub mod telemetry;
pub mod units;

pub use base64::base64;
pub(crate) use base64::from_base64;
pub use error::{Error, ErrorKind, ExitCode, Result};
pub use function::{
    Callback, Callbacks, Credentials, FunctionConfig, HealthCheck, Mode, RoleCallback, RoleLease,
    RoleRequest, RoleSource, Secret,
};
pub use instance::{
    Ending, EventOutcome, EventResult, Instance, InvokeOptions, Job, LogLine, LogSink, LogStream, Rehearsal,
    State, Timeline,
};
pub use platform::{HttpEvent, InstanceEvent, InvocationKind, Platform, PlatformAnswer, Trigger, Warning};
pub use skiff_runtime::doctor;
pub use skiff_runtime::exec;
pub use skiff_runtime::image::{
    ClientCertificate, CredentialCallback, CredentialEndpoint, CredentialRequest, CredentialSources,
    EndpointToken, GcOptions, GcReport, Image, Proxies, PullEvent, PullOptions, PullPolicy, PullTimings,
    Reference, Removal, RemovedImage, Source, Store, StoredImage, TemporaryCredentials, VerifyOptions,
    VerifyReport, bound_allocator, give_back_memory,
};
pub use skiff_runtime::service;
pub use skiff_runtime::{
    CgroupParent, Cidr, Error as RuntimeError, ErrorKind as RuntimeErrorKind, Exit, Fault, Network,
    NetworkOptions, Recorded, Runtime, RuntimeOptions, StartTimings, Stats, Writable,
};
