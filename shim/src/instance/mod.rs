//! An instance: one running container of a function.
//!
//! ```text
//!              server listens             stop
//!   Starting ───────────────▶ Ready ─────────────▶ Stopping
//!      │                        │                     │
//!      │ exit, deadline         │ exit                │ exit
//!      ▼                        ▼                     ▼
//!    Failed                   Ended ◀─────────────────┘
//! ```

mod logs;
mod timeline;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
pub use logs::{LogLine, LogSink, LogStream};
use skiff_runtime::{Exit, Runtime, Stats};
pub use timeline::Timeline;

use crate::{Error, FunctionConfig, Image, Result};

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The container starts, or runs and does not listen yet.
    Starting,
    /// Its server listens; it takes invocations.
    Ready,
    /// It has been told to stop.
    Stopping,
    /// It has ended after it had been ready.
    Ended(Exit),
    /// It never became ready.
    Failed,
}

/// How an event call went.
#[derive(Clone, Debug)]
pub struct EventOutcome {
    /// The request's id.
    pub request_id: String,
    /// How it went.
    pub result: EventResult,
    /// The status that the caller of the platform's invoke call sees.
    pub status: StatusCode,
    /// The headers that the caller sees.
    pub headers: HeaderMap,
    /// The function's answer, or the platform's error body.
    pub body: Bytes,
    /// From the call to the answer's last byte.
    pub duration: Duration,
}

/// Who says what about an event call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventResult {
    /// The function answered and reported success.
    Success,
    /// The function answered and reported an error, or ended while it served; the text.
    FunctionError(String),
    /// The platform could not get an answer (time limit, broken connection, size limit); the text.
    PlatformError(String),
}

impl EventOutcome {
    /// How a program that made only this call should exit.
    #[must_use]
    pub fn exit_code(&self) -> crate::ExitCode {
        match self.result {
            EventResult::Success => crate::ExitCode::Success,
            EventResult::FunctionError(_) => crate::ExitCode::FunctionError,
            EventResult::PlatformError(_) => crate::ExitCode::Platform,
        }
    }
}

/// One running container of a function. Dropping it kills the container.
#[derive(Debug)]
pub struct Instance {
    _private: (),
}

impl Instance {
    /// Starts a container of `image` for the function and waits until its server listens. What it
    /// writes to stdout and stderr, and the platform's log lines, go to `logs`.
    ///
    /// # Errors
    /// `InvalidFunction`; `StartFailed` when the image's command or server does not come up (see
    /// [`Error::answer`]); `Runtime` for what the host or the keeper could not do.
    pub async fn start(
        _runtime: &Arc<Runtime>,
        _image: &Image,
        _config: &Arc<FunctionConfig>,
        _logs: Arc<dyn LogSink>,
    ) -> Result<Self> {
        unimplemented!("skeleton")
    }

    /// The error for an image that could not be pulled, with the platform's answer to the caller.
    #[must_use]
    pub fn pull_failed(_config: &FunctionConfig, _error: skiff_runtime::Error) -> Error {
        unimplemented!("skeleton")
    }

    /// Its id, which is its host name too.
    #[must_use]
    pub fn id(&self) -> &str {
        unimplemented!("skeleton")
    }

    /// Its function.
    #[must_use]
    pub fn config(&self) -> &Arc<FunctionConfig> {
        unimplemented!("skeleton")
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> State {
        unimplemented!("skeleton")
    }

    /// How long each step of its start took, the pull of its image included.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        unimplemented!("skeleton")
    }

    /// What it uses now.
    ///
    /// # Errors
    /// `Runtime(Host)` when its cgroup cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        unimplemented!("skeleton")
    }

    /// Waits until it has ended, by itself or by [`Instance::stop`]. Cancel safe.
    pub async fn wait(&self) -> State {
        unimplemented!("skeleton")
    }

    /// Invokes it as the platform's event call does. Never fails: every failure is an answer.
    pub async fn invoke_event(&self, _event: Bytes) -> EventOutcome {
        unimplemented!("skeleton")
    }

    /// Stops it (SIGTERM, the function's grace, kill) and waits until its output has been passed
    /// on. May be called again; every call returns when it has ended.
    ///
    /// # Errors
    /// `Runtime(KeeperLost)`.
    pub async fn stop(&self) -> Result<State> {
        unimplemented!("skeleton")
    }
}
