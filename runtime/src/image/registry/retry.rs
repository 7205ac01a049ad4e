//! Which failures are tried again, and how long to wait before that.

use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

use crate::{Error, ErrorKind, Result};

/// Attempts after the first.
const MAX_RETRIES: u32 = 4;
/// Wait before the first retry; it doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Longest wait, also when the registry asks for more.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

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
#[derive(Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Waits before the next attempt, or gives the error if there is to be none.
    pub(crate) async fn after(&mut self, failure: Failure) -> Result<()> {
        if !failure.again || self.failures >= MAX_RETRIES {
            return Err(failure.error);
        }
        let wait = failure.wait.map_or_else(|| backoff(self.failures), |wait| wait.min(LONGEST_WAIT));
        self.failures += 1;
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// There was progress: the count begins anew.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// The wait before retry number `failures`: doubled each time, and half of it by chance, so that
/// many nodes do not come at once.
fn backoff(failures: u32) -> Duration {
    let whole = FIRST_WAIT.saturating_mul(1 << failures.min(10)).min(LONGEST_WAIT);
    // Each new state is keyed at random.
    let random = std::hash::RandomState::new().build_hasher().finish() % 1000;
    whole / 2 + whole / 2 * u32::try_from(random).unwrap_or_default() / 1000
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
    if connect { Failure::last(failed) } else { Failure::again(failed) }
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
            let wait = backoff(failures);
            let whole = FIRST_WAIT.saturating_mul(1 << failures.min(10)).min(LONGEST_WAIT);
            assert!(wait >= whole / 2 && wait <= whole, "{failures}: {wait:?}");
        }
    }
}
