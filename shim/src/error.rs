//! The one error type of this crate: an error of the runtime, or a kind of its own.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use skiff_runtime::Fault;

use crate::instance::Logs;
use crate::platform::{InvocationKind, Platform, PlatformAnswer, StartCause, StartFailure};

/// Result of a fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn StdError + Send + Sync + 'static>;

/// What failed, why, whose fault it is and what to do about it.
///
/// Callers decide by [`ErrorKind`]; people read the message, the causes (`source()`) and the advice.
/// It never holds a secret.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    advice: Option<Cow<'static, str>>,
    cause: Option<Cause>,
    faults: Vec<String>,
    start: Option<FailedStart>,
}

/// A start that failed, with all that the platform needs to word its answer.
struct FailedStart {
    platform: &'static dyn Platform,
    failure: StartFailure,
    /// Those of the instance that did not come up.
    logs: Option<Arc<Logs>>,
}

/// What sort of thing failed. New kinds may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A function configuration that breaks rules of its platform; [`Error::faults`] lists them all.
    InvalidFunction,
    /// The event of a job that no environment variable can hold.
    InvalidEvent,
    /// An instance did not come up; [`Error::answer`] is what the platform tells its caller.
    StartFailed,
    /// A socket path or TCP port that is in use.
    AddressInUse,
    /// A socket path or address that cannot be listened on.
    Listen,
    /// There is no function of that name.
    NotFound,
    /// All instances of a function are busy, and too many callers wait.
    Busy,
    /// An error of the runtime.
    Runtime(skiff_runtime::ErrorKind),
}

impl ErrorKind {
    /// Who has to act.
    #[must_use]
    pub fn fault(self) -> Fault {
        match self {
            Self::InvalidFunction
            | Self::InvalidEvent
            | Self::AddressInUse
            | Self::Listen
            | Self::NotFound
            | Self::Busy => Fault::Caller,
            Self::StartFailed => Fault::Image,
            Self::Runtime(kind) => kind.fault(),
        }
    }

    /// Whether the same call may succeed later without anything being changed.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        match self {
            Self::AddressInUse | Self::Busy => true,
            Self::InvalidFunction
            | Self::InvalidEvent
            | Self::StartFailed
            | Self::Listen
            | Self::NotFound => false,
            Self::Runtime(kind) => kind.is_retryable(),
        }
    }

    /// A stable name for machines, in snake case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidFunction => "invalid_function",
            Self::InvalidEvent => "invalid_event",
            Self::StartFailed => "start_failed",
            Self::AddressInUse => "address_in_use",
            Self::Listen => "listen_failed",
            Self::NotFound => "function_not_found",
            Self::Busy => "busy",
            Self::Runtime(kind) => kind.as_str(),
        }
    }

    /// How a program that fails with it should exit.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        use skiff_runtime::ErrorKind as R;
        match self {
            Self::InvalidFunction
            | Self::InvalidEvent
            | Self::NotFound
            | Self::Runtime(R::InvalidReference | R::InvalidArgument | R::InvalidCredentials) => {
                ExitCode::Usage
            }
            _ => ExitCode::Platform,
        }
    }
}

/// Exit codes of a program that runs a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The function answered and reported success.
    Success = 0,
    /// The function answered and reported an error, or ended while it served.
    FunctionError = 1,
    /// The caller asked for something that cannot be.
    Usage = 2,
    /// Pull, start or host failed, or the function's time was up.
    Platform = 3,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            advice: None,
            cause: None,
            faults: Vec::new(),
            start: None,
        }))
    }

    pub(crate) fn advise(mut self, advice: impl Into<Cow<'static, str>>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    pub(crate) fn because(mut self, cause: impl Into<Cause>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// The same error again, for another who is told of it. Its causes are part of the message.
    pub(crate) fn copy(&self) -> Self {
        let inner = &self.0;
        let start = inner.start.as_ref().map(|start| FailedStart {
            platform: start.platform,
            failure: start.failure.clone(),
            logs: start.logs.clone(),
        });
        Self(Box::new(Inner {
            kind: inner.kind,
            message: self.chain().into(),
            advice: inner.advice.clone(),
            cause: None,
            faults: inner.faults.clone(),
            start,
        }))
    }

    pub(crate) fn with_faults(mut self, faults: Vec<String>) -> Self {
        self.0.faults = faults;
        self
    }

    pub(crate) fn with_start(mut self, platform: &'static dyn Platform, failure: StartFailure) -> Self {
        self.0.start = Some(FailedStart { platform, failure, logs: None });
        self
    }

    /// Of a failed start: where its instance's lines went, and those of its callers go.
    pub(crate) fn with_logs(mut self, logs: &Arc<Logs>) -> Self {
        if let Some(start) = &mut self.0.start {
            start.logs = Some(Arc::clone(logs));
        }
        self
    }

    /// What sort of thing failed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Who has to act.
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.0.kind.fault()
    }

    /// Whether the same call may succeed later without anything being changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.kind.is_retryable()
    }

    /// What to do about it, where there is something to say.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.0.advice.as_deref()
    }

    /// All faults of a function configuration, one text each; empty for other kinds.
    #[must_use]
    pub fn faults(&self) -> &[String] {
        &self.0.faults
    }

    /// How a program that fails with this should exit.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        self.0.kind.exit_code()
    }

    /// What the platform tells the caller of the invocation for which the instance was started;
    /// `None` when this is not a failed start.
    #[must_use]
    pub fn answer(&self, kind: InvocationKind) -> Option<PlatformAnswer> {
        self.0.start.as_ref().map(|start| start.platform.start_failure(&start.failure, kind))
    }

    /// The same for another invocation that waited for that start.
    pub(crate) fn answer_to(&self, request_id: &str, kind: InvocationKind) -> Option<PlatformAnswer> {
        let start = self.0.start.as_ref()?;
        let failure = StartFailure { request_id: request_id.to_owned(), ..start.failure.clone() };
        Some(start.platform.start_failure(&failure, kind))
    }

    /// Whether it is a failed start whose callers are not told why: their platform has an answer for all of its own faults.
    pub(crate) fn is_kept_from_callers(&self) -> bool {
        let cause = self.0.start.as_ref().map(|start| &start.failure.cause);
        matches!(cause, Some(StartCause::Internal(_) | StartCause::OutOfResources(_)))
    }

    /// The logs of the instance that did not come up, if it began to.
    pub(crate) fn logs(&self) -> Option<&Logs> {
        self.0.start.as_ref()?.logs.as_deref()
    }

    /// The message and all its causes on one line, for logs and single-line outputs.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            next = cause.source();
        }
        text
    }
}

/// Keeps the runtime's kind, message, advice and causes.
impl From<skiff_runtime::Error> for Error {
    fn from(error: skiff_runtime::Error) -> Self {
        let mut wrapped = Self::new(ErrorKind::Runtime(error.kind()), error.to_string());
        wrapped.0.advice = error.advice().map(|advice| Cow::Owned(advice.to_owned()));
        wrapped.0.cause = Some(Box::new(error));
        wrapped
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let cause = self.0.cause.as_deref()?;
        // A wrapped runtime error says the same as this one: its causes are ours.
        match cause.downcast_ref::<skiff_runtime::Error>() {
            Some(error) if self.0.kind == ErrorKind::Runtime(error.kind()) => error.source(),
            _ => Some(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn runtime_error() -> skiff_runtime::Error {
        skiff_runtime::Error::new(skiff_runtime::ErrorKind::ImageNotFound, "no tag \"x\"")
            .because(io::Error::other("404"))
            .advise("name another tag")
    }

    #[test]
    fn an_error_of_the_runtime_keeps_all_it_says() {
        let error = Error::from(runtime_error());
        assert_eq!(error.kind().as_str(), "image_not_found");
        assert_eq!((error.fault(), error.is_retryable()), (Fault::Caller, false));
        assert_eq!(error.advice(), Some("name another tag"));
        assert_eq!(error.chain(), "no tag \"x\": 404");
        assert_eq!(error.source().expect("cause").to_string(), "404");
        assert_eq!(error.exit_code(), ExitCode::Platform);
        assert!(error.answer(InvocationKind::Event).is_none());
    }

    #[test]
    fn a_failed_pull_has_the_platforms_answer() {
        let config = crate::FunctionConfig::new("resize", crate::platform::scf());
        let error = crate::Instance::pull_failed(&config, runtime_error());
        assert_eq!(error.kind().as_str(), "image_not_found");
        let answer = error.answer(InvocationKind::Event).expect("answer");
        assert_eq!((answer.status.as_u16(), answer.code), (444, "PullImageFailed"));
        assert!(answer.message.contains("no tag \"x\""), "{}", answer.message);
    }

    #[test]
    fn a_pull_that_takes_too_long_is_told_from_one_that_fails() {
        let config = crate::FunctionConfig::new("resize", crate::platform::scf());
        let late = skiff_runtime::Error::new(
            skiff_runtime::ErrorKind::PullTimedOut,
            "the pull did not end within 5s: 1 of 3 layers are here",
        );
        let error = crate::Instance::pull_failed(&config, late);
        let answer = error.answer(InvocationKind::Event).expect("answer");
        assert_eq!((answer.status.as_u16(), answer.code), (447, "PullImageTimeOut"));
        assert!(answer.message.contains("within 5s"), "{}", answer.message);
    }

    #[test]
    fn bad_usage_is_told_from_failure() {
        use skiff_runtime::ErrorKind as R;
        for kind in [R::InvalidReference, R::InvalidArgument, R::InvalidCredentials] {
            assert_eq!(ErrorKind::Runtime(kind).exit_code(), ExitCode::Usage);
        }
        assert_eq!(ErrorKind::InvalidFunction.exit_code(), ExitCode::Usage);
        for kind in [R::Unauthorized, R::ImageNotFound, R::NotRoot, R::StartTimedOut] {
            assert_eq!(ErrorKind::Runtime(kind).exit_code(), ExitCode::Platform);
        }
        assert_eq!(ErrorKind::AddressInUse.exit_code(), ExitCode::Platform);
    }
}
