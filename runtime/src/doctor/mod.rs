//! What this host must have, and had better have.
//!
//! [`examine`] looks and changes nothing, but for one directory each that the probes of overlay and
//! of project quotas make and remove. It needs no root: what cannot be seen without it is said to be unseen. Every check
//! reads through a [`host::Host`], whose root a test may move elsewhere.

mod apparmor;
mod cgroup;
mod host;
mod keeper;
mod kernel;
mod mounts;
mod overlay;
mod privileges;
mod program;
mod state_dir;
#[cfg(test)]
mod testing;
mod tools;

use std::path::Path;

use host::Host;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Skiff runs; something is missing that it had better have.
    Warn,
    /// Skiff cannot run.
    Fail,
}

/// One line of the doctor's report.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// Stable short name, such as `cgroup`.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it, unless it is as it should be.
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), advice: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Looks at the host; `state_dir` and `keeper` as in [`crate::RuntimeOptions`].
///
/// Blocks while it asks `skiff-keeper` and `nft`, at most 2 s each.
#[must_use]
pub fn examine(state_dir: &Path, keeper: Option<&Path>) -> Vec<Check> {
    let host = Host::real();
    let mut checks = examine_kernel(&host);
    checks.push(overlay::check(&host, state_dir));
    checks.push(tools::loop_devices(&host));
    checks.push(state_dir::quota(&host, state_dir));
    checks.push(state_dir::writable(&host, state_dir));
    checks.push(state_dir::check(&host, state_dir));
    checks.push(tools::nftables(&host));
    checks.push(keeper::check(&host, keeper));
    checks
}

/// Whether this host has loop devices for writable layers.
pub(crate) fn loop_devices() -> Check {
    tools::loop_devices(&Host::real())
}

/// What the kernel and the rights of this process decide alone.
fn examine_kernel(host: &Host) -> Vec<Check> {
    vec![
        privileges::check(host),
        kernel::version(host),
        cgroup::check(host),
        kernel::namespaces(host),
        kernel::seccomp(host),
        apparmor::check(host),
        privileges::open_files(host),
    ]
}
