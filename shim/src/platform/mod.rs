//! Platforms: one vendor's contract each, one folder each.
//!
//! A [`Platform`] turns facts (a configuration, a failed start, a finished invocation) into that
//! vendor's words: variables, headers, ids, error texts, log lines. It knows no kernel and does no
//! I/O. Where a contract is silent the choice is documented at the place where it is made.
//!
//! A third platform is one new folder here and one line in [`by_name`].

mod fc;
mod id;
mod scf;
mod types;

use std::fmt;

use http::{HeaderMap, StatusCode};

pub use types::{
    Defaults, InvocationContext, InvocationFailure, InvocationKind, InvocationReport, Limits, PlatformAnswer,
    StartCause, StartFailure, TailLine,
};

use crate::FunctionConfig;

/// A vendor's contract.
pub trait Platform: fmt::Debug + Send + Sync + 'static {
    /// Its short name, as [`by_name`] takes it.
    fn name(&self) -> &'static str;

    /// What a function has unless it says otherwise.
    fn defaults(&self) -> &'static Defaults;

    /// The bounds of what a function may ask for and may do.
    fn limits(&self) -> &'static Limits;

    /// Prefixes of environment variables that users may not set.
    fn reserved_env_prefixes(&self) -> &'static [&'static str];

    /// A new request id.
    fn new_request_id(&self) -> String;

    /// A new instance id, which is the container's host name too.
    fn new_instance_id(&self) -> String;

    /// The variables that the platform adds to the container's environment.
    fn environment(&self, config: &FunctionConfig, instance_id: &str) -> Vec<(String, String)>;

    /// The path that an event is posted to.
    fn event_path(&self) -> &'static str;

    /// Adds the headers of an event call that an HTTP client would send itself (content type and
    /// the like). [`Platform::prepare_request`] adds the rest.
    fn event_headers(&self, headers: &mut HeaderMap);

    /// Drops the headers that clients may not send to the container and adds the platform's own.
    fn prepare_request(&self, context: &InvocationContext<'_>, headers: &mut HeaderMap);

    /// Drops the headers that the container may not send to clients and adds the platform's own.
    fn finish_response(&self, context: &InvocationContext<'_>, headers: &mut HeaderMap);

    /// Whether the container's answer to an event call reports a function error.
    fn is_function_error(&self, status: StatusCode, headers: &HeaderMap) -> bool;

    /// The answer to the caller for whom an instance was started that did not come up.
    fn start_failure(&self, failure: &StartFailure, kind: InvocationKind) -> PlatformAnswer;

    /// The answer to the caller whose invocation failed on the way.
    fn invocation_failure(
        &self,
        context: &InvocationContext<'_>,
        failure: &InvocationFailure,
        report: &InvocationReport<'_>,
    ) -> PlatformAnswer;

    /// The log lines that come before an invocation's own.
    fn log_start(&self, context: &InvocationContext<'_>) -> Vec<String>;

    /// The log lines that come after an invocation's own.
    fn log_end(&self, context: &InvocationContext<'_>, report: &InvocationReport<'_>) -> Vec<String>;
}

/// Alibaba Cloud Function Compute 3.0 (API 2023-03-30).
#[must_use]
pub fn fc() -> &'static dyn Platform {
    &fc::FC_3
}

/// Alibaba Cloud Function Compute 2.0, the service and function model (API 2021-04-06).
#[must_use]
pub fn fc2() -> &'static dyn Platform {
    &fc::FC_2
}

/// Tencent Cloud Serverless Cloud Function, WebServer image functions.
#[must_use]
pub fn scf() -> &'static dyn Platform {
    &scf::SCF
}

/// All platforms.
#[must_use]
pub fn all() -> [&'static dyn Platform; 3] {
    [fc(), fc2(), scf()]
}

/// The platform of that name: `fc`, `fc2` or `scf`.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static dyn Platform> {
    all().into_iter().find(|platform| platform.name() == name)
}
