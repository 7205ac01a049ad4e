//! How many instances a run may have.

use clap::Args;
use skiff::pool::PoolOptions;

use crate::cli::values::Time;

/// Options of a function's instances.
#[derive(Debug, Args)]
#[command(next_help_heading = "Instances")]
pub(crate) struct PoolArgs {
    /// Instances at once, 1 to 1000. One is started at the beginning, the others when calls come that no
    /// instance has a free place for (--concurrency). With 1, the run ends when the function ends by itself.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    #[arg(conflicts_with = "event")]
    pub(crate) max_instances: u32,
    /// Stop an instance that has had no invocation for so long; the next call starts one [default: never].
    #[arg(long, value_name = "TIME", conflicts_with = "event")]
    pub(crate) idle_timeout: Option<Time>,
    /// Calls that may wait while all instances are busy; more get the platform's throttling error.
    #[arg(long, value_name = "COUNT", default_value_t = 1000, conflicts_with = "event")]
    pub(crate) max_waiting: u32,
    /// How long they wait before they get it.
    #[arg(long, value_name = "TIME", default_value = "60s", conflicts_with = "event")]
    pub(crate) max_wait: Time,
}

impl PoolArgs {
    pub(crate) fn options(&self) -> PoolOptions {
        PoolOptions {
            max_instances: usize::try_from(self.max_instances).unwrap_or(usize::MAX),
            provisioned: 0,
            idle: self.idle_timeout.map(|time| time.0),
            max_waiting: usize::try_from(self.max_waiting).unwrap_or(usize::MAX),
            patience: self.max_wait.0,
        }
    }
}
