//! Which failures are tried again, and how long to wait before that.

use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::host::shown_time;
use super::transport::Times;
use crate::image::DEFAULT_PULL_TIMEOUT;
use crate::image::deadline::Deadline;
use crate::{Error, ErrorKind, Result};

/// Attempts after the first.
const MAX_RETRIES: u32 = 4;
/// The longest wait that a registry may ask of a pull without an end: what others have in all.
const MAX_ASKED: Duration = DEFAULT_PULL_TIMEOUT;

/// A failed attempt.
pub(crate) struct Failure {
    pub(crate) error: Error,
    again: bool,
    wait: Option<Duration>,
}

impl Failure {
    /// It would fail again.
    pub(crate) fn last(error: Error) -> Self {
        Self { error, again: false, wait: None }
    }

    /// It may go better the next time.
    pub(crate) fn again(error: Error) -> Self {
        Self { error, again: true, wait: None }
    }

    /// As [`Failure::again`], and the registry said when.
    pub(crate) fn again_after(error: Error, wait: Option<Duration>) -> Self {
        Self { error, again: true, wait }
    }
}

/// Counts the failures of one operation.
pub(crate) struct Backoff {
    failures: u32,
    first: Duration,
    longest: Duration,
    /// The end of the pull that it belongs to.
    deadline: Deadline,
}

impl Backoff {
    pub(crate) fn new(times: &Times, deadline: Deadline) -> Self {
        Self { failures: 0, first: times.first_wait, longest: times.longest_wait, deadline }
    }

    /// Waits before the next attempt, or gives the error if there is to be none: also when the registry
    /// asks for a wait that is longer than the pull may take.
    pub(crate) async fn after(&mut self, failure: Failure) -> Result<()> {
        if !failure.again || self.failures >= MAX_RETRIES {
            return Err(failure.error);
        }
        let wait = match failure.wait {
            None => self.own(),
            Some(asked) => self.asked(asked).ok_or_else(|| self.too_long(&failure.error, asked))?,
        };
        self.failures += 1;
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// The time before the next attempt without a wish of the registry. It is doubled each time, and
    /// half of it is chance, so that many nodes do not come at once.
    fn own(&self) -> Duration {
        let whole = self.first.saturating_mul(1 << self.failures.min(10)).min(self.longest);
        whole / 2 + chance(whole / 2)
    }

    /// The time before the next attempt where the registry asks for one; never less than that. It is
    /// exceeded by up to a quarter, so that many nodes do not come at once. `None` if there is not so
    /// much time.
    fn asked(&self, asked: Duration) -> Option<Duration> {
        let rest = self.left().checked_sub(asked).filter(|rest| !rest.is_zero())?;
        // The attempt itself needs some of what is left.
        Some(asked + chance((asked / 4).min(self.longest).min(rest / 2)))
    }

    fn left(&self) -> Duration {
        self.deadline.left().unwrap_or(MAX_ASKED)
    }

    fn too_long(&self, error: &Error, asked: Duration) -> Error {
        let asked = asked.as_secs() + u64::from(asked.subsec_nanos() > 0);
        let most = match self.deadline.left() {
            Some(left) => format!("the pull has {} s left", left.as_secs()),
            None => format!("Skiff waits for {} at most", shown_time(MAX_ASKED)),
        };
        let message = format!("{error}; it asks for {asked} s before the next attempt, and {most}");
        Error::new(error.kind(), message).advise("pull again later, or allow the pull more time")
    }

    /// There was progress: the count begins anew.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Between nothing and `most`.
fn chance(most: Duration) -> Duration {
    // Each new state is keyed at random.
    let random = std::hash::RandomState::new().build_hasher().finish() % 1000;
    most * u32::try_from(random).unwrap_or_default() / 1000
}

/// The wait that an answer asks for.
pub(super) fn asked_by(headers: &HeaderMap) -> Option<Duration> {
    retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3); one in the past is now.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// An attempt that brought no answer. A connection that broke is tried again, and so is one that could
/// not be made because the other side reset it, hung up or took too long: it may be busy. A name that
/// does not resolve, a port that refuses or a certificate that does not fit will be no better.
pub(super) fn transport(error: reqwest::Error, host: &str) -> Failure {
    // The address may hold a signature after a redirect.
    let error = error.without_url();
    let text = chain(&error);
    if error.is_redirect() {
        let message = format!("the registry {host} redirects where Skiff does not follow");
        return Failure::last(Error::new(ErrorKind::RegistryFailed, message).because(error));
    }
    let connect = error.is_connect();
    let passing = error.is_timeout() || is_passing(&error);
    let message = if connect {
        format!("the registry {host} cannot be reached")
    } else {
        format!("the connection to the registry {host} broke")
    };
    let mut failed = Error::new(ErrorKind::RegistryUnreachable, message).because(error);
    if let Some(advice) = advice(&text) {
        failed = failed.advise(advice);
    }
    if connect && !passing { Failure::last(failed) } else { Failure::again(failed) }
}

/// Whether a connection that could not be made may be made a moment later.
fn is_passing(error: &(dyn std::error::Error + 'static)) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    let passes = |error: &io::Error| {
        matches!(error.kind(), ConnectionReset | ConnectionAborted | BrokenPipe | TimedOut | UnexpectedEof)
            // An error that is wrapped in one of the other kinds is not among the sources.
            || error.get_ref().is_some_and(|inner| is_passing(inner))
    };
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| error.downcast_ref().is_some_and(passes))
}

fn advice(text: &str) -> Option<&'static str> {
    let has = |part: &str| text.contains(part);
    if has("certificate") || has("UnknownIssuer") {
        Some("if the registry has a certificate of your own authority, name its CA file")
    } else if has("InvalidContentType") || has("corrupt message") {
        Some("the port does not speak TLS; if the registry has HTTP only, ask for plain HTTP")
    } else if has("dns error") || has("lookup") {
        Some("check the registry's name and this host's DNS")
    } else if has("refused") {
        Some("check the registry's host and port")
    } else {
        None
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff(pull: Option<Duration>) -> Backoff {
        Backoff::new(&Times::default(), Deadline::new(pull))
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        for failures in 0..40 {
            let backoff = Backoff { failures, ..backoff(None) };
            let whole = backoff.first.saturating_mul(1 << failures.min(10)).min(backoff.longest);
            let wait = backoff.own();
            assert!(wait >= whole / 2 && wait <= whole, "{failures}: {wait:?}");
        }
    }

    #[test]
    fn what_the_registry_asks_for_is_waited_or_refused() {
        let seconds = Duration::from_secs;
        let hour = backoff(Some(seconds(3600)));
        for asked in [seconds(4), seconds(25), seconds(600), seconds(3500)] {
            let wait = hour.asked(asked).expect("there is time");
            let most = asked + (asked / 4).min(hour.longest).min(seconds(50));
            assert!(wait >= asked && wait <= most, "{asked:?}: {wait:?}");
        }
        assert_eq!(hour.asked(Duration::ZERO), Some(Duration::ZERO));
        assert_eq!(hour.asked(seconds(3600)), None);
        assert_eq!(backoff(Some(Duration::ZERO)).asked(Duration::ZERO), None);
        // A pull without an end is not held for ever either.
        assert!(backoff(None).asked(seconds(3599)).is_some());
        for asked in [MAX_ASKED, seconds(100_000), seconds(u64::MAX)] {
            assert_eq!(backoff(None).asked(asked), None, "{asked:?}");
        }
    }

    #[tokio::test]
    async fn a_wait_that_is_too_long_is_said_at_once() {
        let busy = || Error::new(ErrorKind::RegistryThrottled, "the registry r asks to slow down (429)");
        let failure = |seconds| Failure::again_after(busy(), Some(Duration::from_secs(seconds)));
        let mut short = backoff(Some(Duration::from_secs(60)));
        let error = short.after(failure(86_400)).await.expect_err("a day");
        assert_eq!(error.kind(), ErrorKind::RegistryThrottled);
        let wanted = "slow down (429); it asks for 86400 s before the next attempt, and the pull has ";
        assert!(error.to_string().contains(wanted), "{error}");
        let error = backoff(None).after(failure(u64::MAX)).await.expect_err("for ever");
        assert!(error.to_string().ends_with("and Skiff waits for 3600 seconds at most"), "{error}");
    }

    #[test]
    fn what_may_pass_is_known_by_its_kind() {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, InvalidData, Other, TimedOut};
        let error = |kind| io::Error::new(kind, "in other words");
        for passing in [
            error(ConnectionReset),
            error(TimedOut),
            io::Error::from_raw_os_error(rustix::io::Errno::CONNRESET.raw_os_error()),
            io::Error::new(Other, error(ConnectionReset)),
            io::Error::other(Error::new(ErrorKind::Internal, "x").because(error(ConnectionReset))),
        ] {
            assert!(is_passing(&passing), "{passing:?}");
        }
        for lasting in [error(ConnectionRefused), error(InvalidData), io::Error::other("reset by peer")] {
            assert!(!is_passing(&lasting), "{lasting:?}");
        }
    }

    #[test]
    fn both_forms_of_retry_after() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let read = |text: &str| retry_after(text, now).map(|d| d.as_secs());
        assert_eq!(read("120"), Some(120));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(7));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:20 GMT"), Some(0));
        for text in ["", "-1", "soon", "99999999999999999999999"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
