//! Health checks of an instance (fc).

use std::sync::Weak;
use std::sync::atomic::Ordering;

use http::header::HOST;
use http::{HeaderMap, HeaderValue, Request, Uri};
use tokio::time::{sleep, timeout};

use super::callbacks::status_of;
use super::shared::Shared;
use crate::function::HealthCheck;
use crate::platform::{InvocationContext, InvocationKind};
use crate::proxy::body;

/// The check before the first invocation; the error ends what fc says of it.
pub(super) async fn first(shared: &Shared, check: &HealthCheck) -> Result<(), String> {
    sleep(check.initial_delay).await;
    once(shared, check).await
}

/// Checks it until it is gone, but never while it is frozen or would be: an instance that freezes when it
/// is idle is looked at while invocations run in it.
pub(super) async fn watch(shared: Weak<Shared>, check: HealthCheck) {
    let mut counts = Counts::default();
    loop {
        sleep(check.period).await;
        let Some(shared) = shared.upgrade() else { return };
        if shared.config.freeze && shared.activity.running() == 0 {
            continue;
        }
        // It stays awake during the check; one that froze just before is left alone.
        let _active = shared.activity.begin();
        if shared.activity.is_cool() {
            continue;
        }
        let healthy = once(&shared, &check).await.is_ok();
        if let Some(healthy) = counts.note(healthy, &check) {
            shared.healthy.store(healthy, Ordering::Relaxed);
        }
    }
}

/// Checks in a row with the same result.
#[derive(Default)]
struct Counts {
    failures: u32,
    successes: u32,
}

impl Counts {
    /// What the check makes of the instance, if it has reached a threshold.
    fn note(&mut self, healthy: bool, check: &HealthCheck) -> Option<bool> {
        if healthy {
            (self.failures, self.successes) = (0, self.successes.saturating_add(1));
            return (self.successes >= check.success_threshold).then_some(true);
        }
        (self.failures, self.successes) = (self.failures.saturating_add(1), 0);
        (self.failures >= check.failure_threshold).then_some(false)
    }
}

async fn once(shared: &Shared, check: &HealthCheck) -> Result<(), String> {
    let config = &shared.config;
    let uri = check.path.parse::<Uri>().map_err(|error| error.to_string())?;
    let request_id = config.platform.new_callback_id();
    let credentials = shared.role.current();
    let context = InvocationContext {
        config,
        instance_id: &shared.id,
        request_id: &request_id,
        kind: InvocationKind::Http,
        path: uri.path(),
        client: None,
        origin: None,
        retries: 0,
        asynchronous: false,
        code_checksum: &shared.code_checksum,
        trigger: None,
        credentials: credentials.as_deref(),
    };
    let mut headers = HeaderMap::new();
    let address = shared.guest.address(config.port()).to_string();
    headers.insert(HOST, HeaderValue::from_str(&address).unwrap_or(HeaderValue::from_static("localhost")));
    config.platform.prepare_request(&context, &mut headers);
    let mut request = Request::new(body::empty());
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = headers;
    match timeout(check.timeout, status_of(shared, request)).await {
        Ok(Ok(status)) if (200..400).contains(&status.as_u16()) => Ok(()),
        Ok(Ok(status)) => Err(format!("status code: {} ", status.as_u16())),
        Ok(Err(error)) => Err(format!("error: {error}")),
        Err(_) => Err(format!("error: no answer within {} seconds", check.timeout.as_secs_f64())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_results_in_a_row() {
        let check = HealthCheck { failure_threshold: 2, success_threshold: 2, ..HealthCheck::new("/") };
        let mut counts = Counts::default();
        let noted: Vec<_> = [false, true, false, false, false, true, false, true, true, true]
            .map(|healthy| counts.note(healthy, &check))
            .to_vec();
        let (good, bad) = (Some(true), Some(false));
        assert_eq!(noted, [None, None, None, bad, bad, None, None, None, good, good]);
    }
}
