//! The life of an instance: how it takes its work, callbacks, health checks, freezing.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use skiff::{FunctionConfig, HealthCheck, HttpEvent, Mode};

use super::replace;
use crate::cli::values::Time;

/// What comes before, between and after invocations.
#[derive(Debug, Args)]
#[command(next_help_heading = "Lifecycle")]
pub(crate) struct LifecycleArgs {
    /// The function has no server: the event is in its environment, and it ends when it is done
    /// (fc2 without web server, scf job images).
    #[arg(long)]
    pub(crate) job: bool,
    /// Call the initializer (fc: POST /initialize) before anything else, and give it this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) initializer_timeout: Option<Time>,
    /// Call GET /pre-freeze before each freeze (fc2), and give it this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) pre_freeze_timeout: Option<Time>,
    /// Call GET /pre-stop before the end (fc), and give it this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) pre_stop_timeout: Option<Time>,
    /// Check the server's health by GET of this path (fc).
    #[arg(long, value_name = "PATH")]
    pub(crate) health_check: Option<String>,
    /// Before the first check, up to 120s [default: none].
    #[arg(long, value_name = "TIME", requires = "health_check")]
    pub(crate) health_delay: Option<Time>,
    /// Between checks, 1s to 120s [default: 3s].
    #[arg(long, value_name = "TIME", requires = "health_check")]
    pub(crate) health_period: Option<Time>,
    /// For one check, 1s to 3s [default: 1s].
    #[arg(long, value_name = "TIME", requires = "health_check")]
    pub(crate) health_timeout: Option<Time>,
    /// Failures in a row that make it unhealthy, 1 to 120 [default: 3].
    #[arg(long, value_name = "COUNT", requires = "health_check")]
    pub(crate) health_failures: Option<u32>,
    /// Successes in a row that make it healthy again, 1 to 120 [default: 1].
    #[arg(long, value_name = "COUNT", requires = "health_check")]
    pub(crate) health_successes: Option<u32>,
    /// Turn HTTP requests into events and answers back, as a function URL or API Gateway does it (scf)
    /// [default: pass them through].
    #[arg(long, value_name = "FORM", value_parser = http_event_parser())]
    pub(crate) http_event: Option<HttpEvent>,
    /// Requests that one instance works on at once, as its function is configured [default: 1].
    #[arg(long, value_name = "COUNT")]
    pub(crate) concurrency: Option<u32>,
    /// Tell so often what each instance uses, 1s or more (fc, with --output json).
    #[arg(long, value_name = "TIME")]
    pub(crate) metrics_period: Option<Time>,
    /// Let the function's processes run between invocations too; the clouds freeze them.
    #[arg(long)]
    pub(crate) no_freeze: bool,
}

fn http_event_parser() -> impl TypedValueParser<Value = HttpEvent> {
    PossibleValuesParser::new(HttpEvent::ALL.map(|(name, _)| name))
        .try_map(|name| HttpEvent::by_name(&name).ok_or("no such form"))
}

impl LifecycleArgs {
    pub(super) fn apply(&self, config: &mut FunctionConfig) {
        if self.job {
            config.mode = Mode::Job;
        }
        let or = |time: Option<Time>, has| time.map(|time| time.0).or(has);
        let callbacks = &mut config.callbacks;
        callbacks.initializer = or(self.initializer_timeout, callbacks.initializer);
        callbacks.pre_freeze = or(self.pre_freeze_timeout, callbacks.pre_freeze);
        callbacks.pre_stop = or(self.pre_stop_timeout, callbacks.pre_stop);
        if let Some(path) = &self.health_check {
            config.health_check = Some(self.check(path));
        }
        config.http_event = self.http_event.or(config.http_event);
        replace(&mut config.concurrency, self.concurrency);
        config.metrics_period = or(self.metrics_period, config.metrics_period);
        config.freeze &= !self.no_freeze;
    }

    fn check(&self, path: &str) -> HealthCheck {
        let mut check = HealthCheck::new(path);
        replace(&mut check.initial_delay, self.health_delay.map(|time| time.0));
        replace(&mut check.period, self.health_period.map(|time| time.0));
        replace(&mut check.timeout, self.health_timeout.map(|time| time.0));
        replace(&mut check.failure_threshold, self.health_failures);
        replace(&mut check.success_threshold, self.health_successes);
        check
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use skiff::platform;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        lifecycle: LifecycleArgs,
        #[arg(long)]
        event: Option<String>,
    }

    fn config(args: &str) -> Result<FunctionConfig, clap::Error> {
        let program = Program::try_parse_from(std::iter::once("skiff").chain(args.split_whitespace()))?;
        let mut config = FunctionConfig::new("f", platform::fc2());
        program.lifecycle.apply(&mut config);
        Ok(config)
    }

    #[test]
    fn what_is_not_given_is_not_called() {
        let (given, own) = (config("").expect("valid"), FunctionConfig::new("f", platform::fc2()));
        assert_eq!(format!("{given:?}"), format!("{own:?}"));
    }

    #[test]
    fn what_is_given_is_taken() {
        let second = Duration::from_secs(1);
        let given = config(
            "--initializer-timeout 30s --pre-freeze-timeout 1s --pre-stop-timeout 3 --health-check /ok?x \
             --health-delay 1s --health-period 2s --health-timeout 3s --health-failures 4 \
             --health-successes 5 --concurrency 20 --no-freeze --http-event gateway",
        )
        .expect("valid");
        assert_eq!(given.callbacks.initializer, Some(second * 30));
        assert_eq!((given.callbacks.pre_freeze, given.callbacks.pre_stop), (Some(second), Some(second * 3)));
        let check = HealthCheck {
            path: "/ok?x".into(),
            initial_delay: second,
            period: second * 2,
            timeout: second * 3,
            failure_threshold: 4,
            success_threshold: 5,
        };
        assert_eq!(given.health_check, Some(check));
        assert_eq!(given.http_event, Some(HttpEvent::Gateway));
        assert_eq!((given.concurrency, given.freeze, given.mode), (20, false, Mode::WebServer));
        assert_eq!(config("--job --event x").expect("valid").mode, Mode::Job);
    }

    #[test]
    fn what_makes_no_sense_alone_is_refused() {
        for args in
            ["--health-period 2s", "--health-failures 2", "--http-event lambda", "--initializer-timeout soon"]
        {
            assert!(config(args).is_err(), "{args}");
        }
    }
}
