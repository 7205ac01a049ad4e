//! What a function asks of its platform besides invocations: callbacks and health checks (fc).

use std::time::Duration;

/// How a function takes its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A server answers one request after another (fc's web-server mode, scf's WebServer image).
    #[default]
    WebServer,
    /// One container for each event, which is in its environment (fc 2.0 `webServerMode: false`, scf
    /// `ImagePort: -1`).
    Job,
}

/// A call of the platform to the function that is no invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Callback {
    /// Once for each instance, before its first invocation.
    Initializer,
    /// Before it is frozen.
    PreFreeze,
    /// Before it is stopped.
    PreStop,
}

impl Callback {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Initializer, Self::PreFreeze, Self::PreStop];
}

/// The callbacks that a function has, each with the time that it may take; `None` is not called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Callbacks {
    /// `POST /initialize` (fc: 1 to 300 s).
    pub initializer: Option<Duration>,
    /// `GET /pre-freeze` (fc 2.0: 1 to 90 s).
    pub pre_freeze: Option<Duration>,
    /// `GET /pre-stop` (fc: 1 to 90 s).
    pub pre_stop: Option<Duration>,
}

impl Callbacks {
    /// The time of one, if the function has it.
    #[must_use]
    pub fn limit(&self, callback: Callback) -> Option<Duration> {
        match callback {
            Callback::Initializer => self.initializer,
            Callback::PreFreeze => self.pre_freeze,
            Callback::PreStop => self.pre_stop,
        }
    }
}

/// fc's `customHealthCheckConfig`: a GET that must be answered with 200 to 399.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Path and query, from `/` on, 2048 characters at most.
    pub path: String,
    /// Before the first check: 0 to 120 s.
    pub initial_delay: Duration,
    /// Between checks: 1 to 120 s.
    pub period: Duration,
    /// Of one check: 1 to 3 s.
    pub timeout: Duration,
    /// So many failures in a row make it unhealthy: 1 to 120.
    pub failure_threshold: u32,
    /// So many successes in a row make it healthy again: 1 to 120.
    pub success_threshold: u32,
}

impl HealthCheck {
    /// One of that path, with fc's defaults.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(3),
            timeout: Duration::from_secs(1),
            failure_threshold: 3,
            success_threshold: 1,
        }
    }
}
