//! Which failures are tried again, and how long to wait before that.

use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, SystemTime};

use super::transport::Times;
use crate::{Error, ErrorKind, Result};

/// Attempts after the first.
const MAX_RETRIES: u32 = 4;

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
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(&Times::default())
    }
}

impl Backoff {
    pub(crate) fn new(times: &Times) -> Self {
        Self { failures: 0, first: times.first_wait, longest: times.longest_wait }
    }

    /// Waits before the next attempt, or gives the error if there is to be none.
    pub(crate) async fn after(&mut self, failure: Failure) -> Result<()> {
        if !failure.again || self.failures >= MAX_RETRIES {
            return Err(failure.error);
        }
        let wait = self.wait(failure.wait);
        self.failures += 1;
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// The time before the next attempt. Without a wish of the registry it is doubled each time, and
    /// half of it is chance, so that many nodes do not come at once; what the registry wishes is
    /// exceeded by up to a quarter for the same reason.
    fn wait(&self, asked: Option<Duration>) -> Duration {
        match asked {
            Some(asked) => {
                let asked = asked.min(self.longest);
                (asked + chance(asked / 4)).min(self.longest)
            }
            None => {
                let whole = self.first.saturating_mul(1 << self.failures.min(10)).min(self.longest);
                whole / 2 + chance(whole / 2)
            }
        }
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

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3); one in the past is now.
pub(super) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// An attempt that brought no answer. A connection that broke is tried again; a name that does not
/// resolve, a port that refuses or a certificate that does not fit is not.
pub(super) fn transport(error: reqwest::Error, host: &str) -> Failure {
    // The address may hold a signature after a redirect.
    let error = error.without_url();
    let text = chain(&error);
    if error.is_redirect() {
        let message = format!("the registry {host} redirects where Skiff does not follow");
        return Failure::last(Error::new(ErrorKind::RegistryFailed, message).because(error));
    }
    let connect = error.is_connect();
    let message = if connect {
        format!("the registry {host} cannot be reached")
    } else {
        format!("the connection to the registry {host} broke")
    };
    let mut failed = Error::new(ErrorKind::RegistryUnreachable, message).because(error);
    if let Some(advice) = advice(&text) {
        failed = failed.advise(advice);
    }
    // A port that refuses will refuse again; one that resets or does not answer in time may be busy.
    let passing = ["reset by peer", "timed out"].iter().any(|part| text.contains(part));
    if connect && !passing { Failure::last(failed) } else { Failure::again(failed) }
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

    #[test]
    fn waits_grow_and_are_bounded() {
        for failures in 0..40 {
            let backoff = Backoff { failures, ..Backoff::default() };
            let whole = backoff.first.saturating_mul(1 << failures.min(10)).min(backoff.longest);
            let wait = backoff.wait(None);
            assert!(wait >= whole / 2 && wait <= whole, "{failures}: {wait:?}");
        }
        let backoff = Backoff::default();
        let four = Duration::from_secs(4);
        let wait = backoff.wait(Some(four));
        assert!(wait >= four && wait <= four * 5 / 4, "{wait:?}");
        assert_eq!(backoff.wait(Some(Duration::from_secs(100_000))), backoff.longest);
        assert_eq!(backoff.wait(Some(Duration::ZERO)), Duration::ZERO);
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
