//! Starts that fail: what is left is killed, and the error says what the platform tells its caller.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use skiff_runtime::{Exit, Fault};

use super::guest::Guest;
use super::logs::{LogSink, Logs};
use super::readiness::NotReady;
use super::start::{Launch, tell};
use crate::platform::{InstanceStep, StartCause, StartFailure};
use crate::{Error, ErrorKind, FunctionConfig};

/// How long the last output of a container that failed may take to arrive.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Causes of an error that are looked at; a longer chain is a loop.
const MAX_CAUSES: usize = 16;

/// The error for a container that did not start.
pub(super) fn failed_start(launch: &Launch, error: skiff_runtime::Error) -> Error {
    let cause = cause(&error, &launch.command);
    Error::from(error).with_start(launch.config.platform, launch.failure(cause, Vec::new(), None))
}

impl Launch {
    /// Kills what is left and words the error.
    pub(super) async fn give_up(&self, guest: &dyn Guest, logs: &Arc<Logs>, reason: NotReady) -> Error {
        // The error at hand is the one to tell; the runtime cleans up what it could not kill here.
        let _ = guest.stop(Duration::ZERO).await;
        logs.drained(LAST_OUTPUT).await;
        let port = self.config.port();
        let initializer = matches!(reason, NotReady::Initializer(_));
        let (error, cause) = match reason {
            NotReady::Deadline(last) => (self.not_listening(&last), StartCause::NotListening(last)),
            NotReady::Exited(exit) => (self.exited(exit), StartCause::Exited(exit)),
            NotReady::Lost(error) => {
                let why = error.to_string();
                (Error::from(error), StartCause::Internal(why))
            }
            NotReady::Initializer(why) => {
                (self.not_ready("initializer", &why), StartCause::InitializerFailed(why))
            }
            NotReady::Unhealthy(how) => {
                (self.not_ready("first health check", &how), StartCause::Unhealthy(how))
            }
        };
        let why = error.to_string();
        self.tell(
            logs,
            if initializer {
                InstanceStep::InitializerFailed(&why)
            } else {
                InstanceStep::ServerFailed(&why)
            },
        );
        self.tell(logs, InstanceStep::CreateFailed(&why));
        let failure = self.failure(cause, logs.tail(), Some(guest.address(port)));
        error.with_start(self.config.platform, failure).with_logs(logs)
    }

    fn not_listening(&self, last: &str) -> Error {
        let port = self.config.port();
        let message = format!(
            "the server of instance {} did not listen on port {port} within {:?} (last try: {last})",
            self.id,
            self.config.start_deadline()
        );
        Error::new(ErrorKind::StartFailed, message).advise(format!(
            "let it listen on 0.0.0.0:{port} (a server on 127.0.0.1 is not reached), name its port, \
             or give it more time to start"
        ))
    }

    fn not_ready(&self, what: &str, why: &str) -> Error {
        let message = format!("the {what} of instance {} failed: {}", self.id, why.trim_end());
        Error::new(ErrorKind::StartFailed, message)
            .advise("see what the server wrote last; give it more time, or do without it")
    }

    /// For a job that is not started because of its event.
    pub(super) fn refused(&self, cause: StartCause, why: String) -> Error {
        let error = Error::new(ErrorKind::InvalidEvent, why)
            .advise("send a smaller event, as text without NUL characters (scf: JSON)");
        error.with_start(self.config.platform, self.failure(cause, Vec::new(), None))
    }

    pub(super) fn exited(&self, exit: Exit) -> Error {
        let how = match (exit.code, exit.signal) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let port = self.config.port();
        let message = format!("the command of instance {} {how} before it listened on port {port}", self.id);
        let error = Error::new(ErrorKind::StartFailed, message);
        if exit.oom_killed {
            return error.advise(format!("give it more than {} MiB of memory", self.config.memory_mib));
        }
        error.advise("see what it wrote last; the command must stay in the foreground and serve HTTP")
    }

    pub(super) fn failure(
        &self,
        cause: StartCause,
        logs: Vec<crate::platform::TailLine>,
        address: Option<std::net::SocketAddr>,
    ) -> StartFailure {
        StartFailure {
            request_id: self.config.platform.new_request_id(),
            cause,
            command: self.command.clone(),
            address,
            port: self.config.port(),
            deadline: self.config.start_deadline(),
            elapsed: self.started.elapsed(),
            logs,
        }
    }
}

/// The error for an image that could not be pulled.
pub(super) fn pull_failed(config: &FunctionConfig, error: skiff_runtime::Error) -> Error {
    let reason = error.to_string();
    let cause = match error.kind() {
        skiff_runtime::ErrorKind::PullTimedOut => StartCause::PullTimedOut(reason),
        _ => StartCause::PullFailed(reason),
    };
    let failure = StartFailure::of(config, config.platform.new_request_id(), cause);
    Error::from(error).with_start(config.platform, failure)
}

/// Tells of an instance that was to have this image.
pub(super) async fn tell_pull_failed(
    config: &FunctionConfig,
    error: &skiff_runtime::Error,
    sink: Arc<dyn LogSink>,
) {
    let id: Arc<str> = config.platform.new_instance_id().into();
    let logs = Logs::new(Arc::clone(&id), config.platform.limits().log_line_bytes, sink);
    let why = error.to_string();
    for step in [InstanceStep::Creating, InstanceStep::ImageFailed(&why), InstanceStep::CreateFailed(&why)] {
        tell(config, &id, &logs, step);
    }
    logs.drained(LAST_OUTPUT).await;
}

/// What the platform says about a container that did not start.
fn cause(error: &skiff_runtime::Error, command: &[String]) -> StartCause {
    use skiff_runtime::ErrorKind as Kind;
    let program = || command.first().cloned().unwrap_or_default();
    match error.kind() {
        Kind::CommandNotFound => StartCause::CommandNotFound(program()),
        Kind::CommandNotExecutable => StartCause::CommandNotExecutable(program()),
        Kind::StartTimedOut => StartCause::TimedOut,
        Kind::DiskFull => StartCause::OutOfResources(error.to_string()),
        _ if lacks_resources(error) => StartCause::OutOfResources(error.to_string()),
        _ => match error.fault() {
            Fault::Host | Fault::Skiff => StartCause::Internal(error.to_string()),
            _ => StartCause::Other(error.to_string()),
        },
    }
}

/// Whether the host has run out of memory, processes or descriptors.
fn lacks_resources(error: &skiff_runtime::Error) -> bool {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source()).take(MAX_CAUSES);
    let errno = |cause: &(dyn StdError + 'static)| {
        cause.downcast_ref::<std::io::Error>().and_then(Errno::from_io_error)
    };
    causes.filter_map(errno).any(|errno| {
        matches!(
            errno,
            Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::NOSPC | Errno::DQUOT
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_resources_is_told_from_other_failures() {
        let host = |errno: Errno| skiff_runtime::Error::host("cannot fork", std::io::Error::from(errno));
        for errno in [Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOSPC, Errno::DQUOT] {
            let found = cause(&host(errno), &[]);
            assert!(matches!(found, StartCause::OutOfResources(_)), "{errno}: {found:?}");
        }
        for errno in [Errno::PERM, Errno::NOENT] {
            assert!(matches!(cause(&host(errno), &[]), StartCause::Internal(_)), "{errno}");
        }
        let of_caller = skiff_runtime::Error::new(skiff_runtime::ErrorKind::InvalidArgument, "no such user");
        assert!(matches!(cause(&of_caller, &[]), StartCause::Other(_)));
    }
}
