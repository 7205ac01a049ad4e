//! What an instance uses, told every so often.

use std::sync::Weak;
use std::time::Duration;

use skiff_runtime::{Stats, Traffic};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::shared::Shared;
use crate::platform::InstanceUse;

/// What had been used at some time.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    stats: Stats,
    traffic: Traffic,
}

impl Reading {
    fn of(shared: &Shared) -> Self {
        Self { at: Instant::now(), stats: shared.guest.stats(), traffic: shared.guest.traffic() }
    }

    /// What was used since an earlier reading; `quota` is in percent of a core.
    fn since(&self, before: &Self, quota: f64, running: usize) -> InstanceUse {
        let span = self.at.duration_since(before.at).as_secs_f64();
        let cpu = self.stats.cpu.saturating_sub(before.stats.cpu).as_secs_f64();
        let (now, then) = (self.traffic, before.traffic);
        InstanceUse {
            cpu_percent: if span > 0.0 { cpu / span * 100.0 } else { 0.0 },
            cpu_quota_percent: quota,
            memory_bytes: self.stats.memory_bytes,
            running,
            received: (now.received.saturating_sub(then.received), now.received),
            sent: (now.sent.saturating_sub(then.sent), now.sent),
        }
    }
}

/// Tells what it uses every `period`, until it is gone.
pub(super) async fn tell(shared: Weak<Shared>, period: Duration) {
    let Some(mut before) = shared.upgrade().map(|shared| Reading::of(&shared)) else { return };
    let mut ticks = interval_at(before.at + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let now = Reading::of(&shared);
        let used = now.since(&before, quota_percent(&shared), shared.activity.running());
        if let Some(record) = shared.config.platform.instance_metrics(&shared.config, &shared.id, &used) {
            shared.logs.metrics(record);
        }
        before = now;
    }
}

/// Without a limit all cores of the host.
fn quota_percent(shared: &Shared) -> f64 {
    match shared.config.cpu_millis {
        0 => std::thread::available_parallelism().map_or(100.0, |cores| cores.get() as f64 * 100.0),
        millis => f64::from(millis) / 10.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_its_own_use_and_the_whole() {
        let at = Instant::now();
        let reading = |seconds, cpu_ms, received, sent| Reading {
            at: at + Duration::from_secs(seconds),
            stats: Stats { cpu: Duration::from_millis(cpu_ms), memory_bytes: 7, ..Stats::default() },
            traffic: Traffic { received, sent },
        };
        let used = reading(12, 5500, 110, 220).since(&reading(10, 500, 100, 200), 35.0, 3);
        let expected = InstanceUse {
            cpu_percent: 250.0,
            cpu_quota_percent: 35.0,
            memory_bytes: 7,
            running: 3,
            received: (10, 110),
            sent: (20, 220),
        };
        assert_eq!(used, expected);
        // Nothing counts backwards, whatever the kernel says of a container that has ended.
        let ended = reading(10, 0, 0, 0).since(&reading(10, 500, 100, 200), 35.0, 0);
        assert_eq!((ended.cpu_percent, ended.received, ended.sent), (0.0, (0, 0), (0, 0)));
    }
}
