//! Why a command ends without what was asked of it.

use std::error::Error as StdError;
use std::ops::{Deref, DerefMut};

use serde::Serialize;
use skiff::{ErrorKind, EventOutcome, EventResult, ExitCode, Fault, InvocationKind};

use super::interrupt::Signal;
use super::values::Invalid;

/// Most causes that are shown; a longer chain is a loop.
const CAUSES_MAX: usize = 16;

/// A failure; small, for it is carried by every result.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Failure(Box<Report>);

impl Deref for Failure {
    type Target = Report;
    fn deref(&self) -> &Report {
        &self.0
    }
}

impl DerefMut for Failure {
    fn deref_mut(&mut self) -> &mut Report {
        &mut self.0
    }
}

/// All that is told about a failure, in the order in which it is told.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Stable name for machines.
    pub(crate) kind: &'static str,
    /// What failed, on which value.
    pub(crate) message: String,
    /// Why, from near to far.
    pub(crate) causes: Vec<String>,
    /// All faults of a function that breaks its platform's rules.
    pub(crate) faults: Vec<String>,
    /// What to do about it.
    pub(crate) advice: Option<String>,
    /// Who has to act: caller, image, registry, host or skiff.
    pub(crate) fault: &'static str,
    /// Whether the same may work later with nothing changed.
    pub(crate) retryable: bool,
    /// What the platform would have told its caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) answer: Option<Answer>,
    /// How the program exits.
    #[serde(skip)]
    pub(crate) exit: u8,
}

/// The platform's answer to the caller for whom the function was started.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    /// The platform's name.
    pub(crate) platform: &'static str,
    /// HTTP status.
    pub(crate) status: u16,
    /// The error's code in the platform's documentation.
    pub(crate) code: &'static str,
    /// Body; what is not UTF-8 is U+FFFD.
    pub(crate) body: String,
}

impl Failure {
    fn new(kind: &'static str, fault: Fault, exit: ExitCode, message: impl Into<String>) -> Self {
        Self(Box::new(Report {
            kind,
            message: message.into(),
            causes: Vec::new(),
            faults: Vec::new(),
            advice: None,
            fault: fault_name(fault),
            retryable: false,
            answer: None,
            exit: exit as u8,
        }))
    }

    /// An argument, variable or file that cannot be used.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new("usage", Fault::Caller, ExitCode::Usage, message)
    }

    /// An operation of the host that failed.
    pub(crate) fn host(operation: &str, error: &(dyn StdError + 'static)) -> Self {
        let mut failure = Self::new("host_error", Fault::Host, ExitCode::Platform, operation);
        failure.causes = causes(Some(error));
        failure
    }

    /// The function ended by itself while it served; `how` it ended.
    pub(crate) fn ended(instance: &str, how: &str) -> Self {
        let message = format!("the function ended by itself while it served: {how} (instance {instance})");
        Self::new("instance_ended", Fault::Image, ExitCode::FunctionError, message)
            .advise("its last lines above may tell why")
    }

    /// An event call without success; `None` for one with.
    pub(crate) fn of_event(outcome: &EventOutcome) -> Option<Self> {
        let (kind, fault, message) = match &outcome.result {
            EventResult::Success => return None,
            EventResult::FunctionError(error) => {
                ("function_error", Fault::Image, format!("the function reported an error: {error}"))
            }
            EventResult::PlatformError(error) => {
                ("platform_error", Fault::Image, format!("the function could not be invoked: {error}"))
            }
        };
        Some(Self::new(kind, fault, outcome.exit_code(), message))
    }

    /// A signal came before there was a result.
    pub(crate) fn interrupted(signal: Signal) -> Self {
        let mut failure = Self::new(
            "interrupted",
            Fault::Caller,
            ExitCode::Platform,
            format!("interrupted by {}", signal.name()),
        );
        failure.exit = signal.exit_code();
        failure.retryable = true;
        failure
    }

    /// What a node says that it cannot do.
    pub(crate) fn of_node(error: &serde_json::Value) -> Self {
        let text = |key: &str| error[key].as_str().map(ToOwned::to_owned);
        let kind = text("kind").unwrap_or_else(|| "node_error".to_owned());
        let usage = ["invalid_function", "function_not_found", "busy", "invalid_reference"];
        let (fault, exit) = match usage.contains(&kind.as_str()) {
            true => (Fault::Caller, ExitCode::Usage),
            false => (Fault::Host, ExitCode::Platform),
        };
        let message = text("message").unwrap_or_else(|| "the node gave no reason".to_owned());
        let mut failure = Self::new("node_error", fault, exit, message);
        let faults = error["faults"].as_array().into_iter().flatten();
        failure.faults = faults.filter_map(|fault| fault.as_str().map(ToOwned::to_owned)).collect();
        failure.advice = text("advice");
        failure.retryable = error["retryable"] == true;
        failure
    }

    /// Adds what to do about it.
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Adds what the platform tells its caller, where `error` is a failed start.
    pub(crate) fn of_start(error: &skiff::Error, platform: &'static str, kind: InvocationKind) -> Self {
        let mut failure = Self::from_error(error);
        failure.answer = error.answer(kind).map(|answer| Answer {
            platform,
            status: answer.status.as_u16(),
            code: answer.code,
            body: String::from_utf8_lossy(&answer.body).into_owned(),
        });
        failure
    }

    fn from_error(error: &skiff::Error) -> Self {
        let kind: ErrorKind = error.kind();
        let mut failure = Self::new(kind.as_str(), error.fault(), error.exit_code(), error.to_string());
        failure.causes = causes(error.source());
        failure.faults = error.faults().to_vec();
        // The message of such an error lists its faults too; they are told one by one.
        let listed = format!(": {}", failure.faults.join("; "));
        if let Some(head) = failure.message.strip_suffix(&listed) {
            failure.message = head.to_owned();
        }
        failure.advice = error.advice().map(ToOwned::to_owned);
        failure.retryable = error.is_retryable();
        failure
    }
}

impl From<skiff::Error> for Failure {
    fn from(error: skiff::Error) -> Self {
        Self::from_error(&error)
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::usage(invalid.to_string())
    }
}

/// The texts of a chain of causes; one that only repeats the end of the text before it is left out.
fn causes(first: Option<&(dyn StdError + 'static)>) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for cause in std::iter::successors(first, |cause| (*cause).source()).take(CAUSES_MAX) {
        let text = cause.to_string();
        if texts.last().is_none_or(|last| !last.ends_with(&text)) {
            texts.push(text);
        }
    }
    texts
}

fn fault_name(fault: Fault) -> &'static str {
    match fault {
        Fault::Caller => "caller",
        Fault::Image => "image",
        Fault::Registry => "registry",
        Fault::Host => "host",
        Fault::Skiff => "skiff",
    }
}

#[cfg(test)]
mod tests {
    use skiff::{RuntimeError, RuntimeErrorKind};

    use super::*;

    fn unauthorized() -> Failure {
        let cause = std::io::Error::other("401 Unauthorized");
        let error = RuntimeError::new(RuntimeErrorKind::Unauthorized, "the registry r refused u")
            .advise("check them")
            .because(cause);
        skiff::Error::from(error).into()
    }

    #[test]
    fn an_error_of_the_runtime_keeps_all_it_says() {
        let failure = unauthorized();
        assert_eq!(failure.kind, "unauthorized");
        assert_eq!(failure.message, "the registry r refused u");
        assert_eq!(failure.causes, ["401 Unauthorized"]);
        assert_eq!(failure.advice.as_deref(), Some("check them"));
        assert_eq!((failure.fault, failure.retryable, failure.exit), ("caller", false, 3));
    }

    #[test]
    fn a_wrong_reference_is_bad_usage() {
        let error = RuntimeError::new(RuntimeErrorKind::InvalidReference, "`UPPER` is no reference");
        assert_eq!(Failure::from(skiff::Error::from(error)).exit, 2);
    }

    #[test]
    fn a_signal_exits_as_shells_expect() {
        assert_eq!(Failure::interrupted(Signal::Interrupt).exit, 130);
        assert_eq!(Failure::interrupted(Signal::Terminate).exit, 143);
        assert_eq!(Failure::interrupted(Signal::Hangup).exit, 129);
    }

    #[test]
    fn a_function_that_ends_by_itself_exits_1() {
        let failure = Failure::ended("c-1", "exit code 3");
        assert_eq!(failure.exit, 1);
        assert!(failure.message.contains("exit code 3 (instance c-1)"));
    }

    #[test]
    fn the_same_text_is_not_told_twice() {
        let inner = std::io::Error::other("no route");
        let outer = RuntimeError::new(RuntimeErrorKind::Host, "connect: no route").because(inner);
        assert_eq!(causes(Some(&outer)), ["connect: no route"]);
    }
}
