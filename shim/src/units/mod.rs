//! Sizes, times and shares of cores as people write them: on the command line and in function files.

mod cpus;
mod moment;
mod size;
mod time;

use std::fmt;

pub use cpus::Cpus;
pub use moment::unix_time;
pub use size::{DiskSize, Memory, StoreSize};
pub use time::{Time, TimeLimit};

/// A time as `2026-01-01T12:00:00.123Z`.
#[must_use]
pub fn rfc3339_millis(time: std::time::SystemTime) -> String {
    let mut text = crate::platform::rfc3339(time);
    text.truncate("2026-01-01T12:00:00.123".len());
    text + "Z"
}

/// A value that cannot be taken, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(String);

impl Invalid {
    /// With the reason in words.
    #[must_use]
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}
