//! What this host must have, and had better have.

use std::path::Path;

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
#[derive(Clone, Debug, serde::Serialize)]
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

/// Looks at the host; `state_dir` and `keeper` as in [`crate::RuntimeOptions`].
#[must_use]
pub fn examine(_state_dir: &Path, _keeper: Option<&Path>) -> Vec<Check> {
    unimplemented!("skeleton")
}
