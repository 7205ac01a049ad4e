//! The rules of mode, callbacks, health checks and concurrency.

use std::time::Duration;

use super::validate::short;
use super::{Callback, Callbacks, FunctionConfig, HealthCheck, Mode};
use crate::platform::{InstanceUse, Limits};

/// Longest path of a health check, in characters.
const MAX_CHECK_PATH: usize = 2048;

/// How often what an instance uses can be told.
const METRICS_PERIODS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);

/// Adds what is wrong with them to `faults`.
pub(super) fn check(config: &FunctionConfig, limits: &Limits, faults: &mut Vec<String>) {
    let platform = config.platform.name();
    for callback in Callback::ALL {
        let Some(limit) = config.callbacks.limit(callback) else { continue };
        let (name, range) = match callback {
            Callback::Initializer => ("initializer", &limits.initializer_s),
            Callback::PreFreeze => ("pre-freeze", &limits.callback_s),
            Callback::PreStop => ("pre-stop", &limits.callback_s),
        };
        if config.platform.callback(callback).is_none() {
            faults.push(format!("{name}: platform {platform} has no such callback"));
        } else if limit < Duration::from_secs(*range.start()) || limit > Duration::from_secs(*range.end()) {
            faults.push(format!("{name} time {limit:?}: must be {} s to {} s", range.start(), range.end()));
        }
    }
    if !limits.concurrency.contains(&config.concurrency) {
        let (least, most) = (limits.concurrency.start(), limits.concurrency.end());
        faults.push(format!("concurrency {}: must be {least} to {most}", config.concurrency));
    }
    super::affinity::check(config, faults);
    if let Some(check) = &config.health_check {
        health_check(check, limits, platform, faults);
    }
    if let Some(period) = config.metrics_period {
        metrics(config, period, faults);
    }
    if config.http_event.is_some() && !config.platform.has_http_events() {
        faults
            .push(format!("HTTP events: platform {platform} has none, its HTTP requests are passed through"));
    }
    if config.mode == Mode::Job {
        job(config, faults);
    }
}

fn metrics(config: &FunctionConfig, period: Duration, faults: &mut Vec<String>) {
    if config.platform.instance_metrics(config, "", &InstanceUse::default()).is_none() {
        faults.push(format!("metrics period: platform {} has no such metrics", config.platform.name()));
    } else if !METRICS_PERIODS.contains(&period) {
        faults.push(format!("metrics period {period:?}: must be 1 s to 3600 s"));
    }
}

fn health_check(check: &HealthCheck, limits: &Limits, platform: &str, faults: &mut Vec<String>) {
    if !limits.health_checks {
        faults.push(format!("health check: platform {platform} has none"));
    }
    let path = &check.path;
    let of_a_url = path.is_ascii() && path.parse::<http::Uri>().is_ok();
    if !path.starts_with('/') || path.len() > MAX_CHECK_PATH || !of_a_url {
        faults.push(format!(
            "health check path {:?}: must begin with \"/\" and have at most {MAX_CHECK_PATH} characters \
             that a URL can have",
            short(path)
        ));
    }
    let times = [
        ("initial delay", check.initial_delay, 0..=120),
        ("period", check.period, 1..=120),
        ("timeout", check.timeout, 1..=3),
    ];
    for (what, time, range) in times {
        if time < Duration::from_secs(*range.start()) || time > Duration::from_secs(*range.end()) {
            let (least, most) = (range.start(), range.end());
            faults.push(format!("health check {what} {time:?}: must be {least} s to {most} s"));
        }
    }
    let thresholds = [("failure", check.failure_threshold), ("success", check.success_threshold)];
    for (what, count) in thresholds.into_iter().filter(|(_, count)| !(1..=120).contains(count)) {
        faults.push(format!("health check {what} threshold {count}: must be 1 to 120"));
    }
}

fn job(config: &FunctionConfig, faults: &mut Vec<String>) {
    if config.platform.job().is_none() {
        faults.push(format!(
            "mode job: platform {} has none (fc: it went with API 3.0, use fc2)",
            config.platform.name()
        ));
    }
    if config.callbacks != Callbacks::default() || config.health_check.is_some() {
        faults.push("mode job: has neither callbacks nor health checks, which need a server".to_owned());
    }
    if config.http_event.is_some() {
        faults.push("HTTP events: a job takes no HTTP requests".to_owned());
    }
    if config.concurrency != 1 {
        faults.push(format!("concurrency {}: a job works on one event", config.concurrency));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Platform;
    use crate::platform::{HttpEvent, fc, fc2, scf};

    const SECOND: Duration = Duration::from_secs(1);

    fn faults(platform: &'static dyn Platform, change: impl FnOnce(&mut FunctionConfig)) -> Vec<String> {
        let mut config = FunctionConfig::new("resize", platform);
        change(&mut config);
        config.validate().err().map(|error| error.faults().to_vec()).unwrap_or_default()
    }

    fn with_check(change: impl FnOnce(&mut HealthCheck)) -> Vec<String> {
        let mut check = HealthCheck::new("/health?deep=1");
        change(&mut check);
        faults(fc(), |config| config.health_check = Some(check))
    }

    #[test]
    fn callbacks_have_the_times_of_their_platform() {
        let all = |time| Callbacks { initializer: time, pre_freeze: time, pre_stop: time };
        assert!(faults(fc2(), |config| config.callbacks = all(Some(SECOND))).is_empty());
        assert!(faults(fc2(), |config| config.callbacks = all(Some(90 * SECOND))).is_empty());
        let late = faults(fc2(), |config| config.callbacks = all(Some(91 * SECOND)));
        assert_eq!(late.len(), 2, "an initializer may take 300 s: {late:?}");
        let longest = faults(fc(), |config| config.callbacks.initializer = Some(301 * SECOND));
        assert_eq!(longest, ["initializer time 301s: must be 1 s to 300 s"]);
        assert_eq!(faults(scf(), |config| config.callbacks = all(Some(SECOND))).len(), 3);
        assert_eq!(
            faults(fc(), |config| config.callbacks.pre_freeze = Some(SECOND)),
            ["pre-freeze: platform fc has no such callback"]
        );
    }

    #[test]
    fn each_field_of_a_health_check_has_its_range() {
        assert!(with_check(|_| ()).is_empty(), "the defaults");
        type Change = fn(&mut HealthCheck, u32);
        let fields: [(Change, u32, u32); 5] = [
            (|check, n| check.initial_delay = Duration::from_secs(n.into()), 0, 120),
            (|check, n| check.period = Duration::from_secs(n.into()), 1, 120),
            (|check, n| check.timeout = Duration::from_secs(n.into()), 1, 3),
            (|check, n| check.failure_threshold = n, 1, 120),
            (|check, n| check.success_threshold = n, 1, 120),
        ];
        for (index, (change, least, most)) in fields.into_iter().enumerate() {
            for (count, valid) in [(least, true), (most, true), (most + 1, false)] {
                let found = with_check(|check| change(check, count));
                assert_eq!(found.is_empty(), valid, "field {index}: {count}: {found:?}");
            }
            if let Some(below) = least.checked_sub(1) {
                assert_eq!(with_check(|check| change(check, below)).len(), 1, "field {index}");
            }
        }
        assert_eq!(faults(scf(), |config| config.health_check = Some(HealthCheck::new("/"))).len(), 1);
    }

    #[test]
    fn the_path_of_a_health_check_is_one_of_a_url() {
        let long = format!("/{}", "x".repeat(2047));
        assert!(with_check(|check| check.path = long.clone()).is_empty());
        for path in [&format!("{long}x"), "", "health", "http://a/b", "/a b", "/\u{e9}"] {
            assert_eq!(with_check(|check| check.path = path.to_owned()).len(), 1, "{path:?}");
        }
    }

    #[test]
    fn concurrency_is_within_the_platforms() {
        for (platform, most) in [(fc(), 200), (scf(), 100)] {
            for (count, valid) in [(0, false), (1, true), (most, true), (most + 1, false)] {
                let found = faults(platform, |config| config.concurrency = count);
                assert_eq!(found.is_empty(), valid, "{count}: {found:?}");
            }
        }
    }

    #[test]
    fn a_job_has_nothing_that_needs_a_server() {
        let job = |config: &mut FunctionConfig| config.mode = Mode::Job;
        assert!(faults(fc2(), job).is_empty() && faults(scf(), job).is_empty());
        assert!(faults(fc(), job)[0].contains("use fc2"));
        let busy = faults(fc2(), |config| {
            job(config);
            config.callbacks.pre_stop = Some(SECOND);
            config.concurrency = 2;
        });
        assert_eq!(busy.len(), 2, "{busy:?}");
    }

    #[test]
    fn http_events_are_of_scfs_servers_alone() {
        let url = |config: &mut FunctionConfig| config.http_event = Some(HttpEvent::Url);
        assert!(faults(scf(), url).is_empty());
        assert_eq!(faults(fc(), url).len(), 1);
        let job = faults(scf(), |config| {
            url(config);
            config.mode = Mode::Job;
        });
        assert_eq!(job, ["HTTP events: a job takes no HTTP requests"]);
    }
}
