//! What is billed of the time that an instance works, in whole units of its platform.
//!
//! Sources are named as in `docs/contract.md`; where both vendors are silent the choice is said here.

use std::time::Duration;

use tokio::time::Instant;

/// How a platform bills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Billing {
    /// Time is billed in whole units of so many milliseconds; a unit that has begun counts.
    pub unit_ms: u64,
    /// Whether the time of an image's pull is billed too, with the memory of the function.
    pub pulls: bool,
}

impl Billing {
    /// The milliseconds that so much time is billed as.
    #[must_use]
    pub fn billed_ms(self, time: Duration) -> u64 {
        let unit = self.unit_ms.max(1);
        let units = time.as_nanos().div_ceil(u128::from(unit) * 1_000_000);
        u64::try_from(units).unwrap_or(u64::MAX).saturating_mul(unit)
    }
}

/// Memory and time in GB·s of 1024 MB: 1024 MB for 10 s are 10 GB·s (FC, billing of image pulls, in
/// "Custom Container: limits and billing").
#[must_use]
pub fn gb_s(memory_mib: u32, billed_ms: u64) -> f64 {
    mib_ms_as_gb_s(u128::from(memory_mib) * u128::from(billed_ms))
}

/// The same of a sum: whole numbers are added, so that a sum of many small ones is exact.
pub(super) fn mib_ms_as_gb_s(mib_ms: u128) -> f64 {
    mib_ms as f64 / (1024.0 * 1000.0)
}

/// The time in which one instance works on anything: what overlaps is billed once.
///
/// fc: "wall time from first start to last end" of an instance that works on several (R 04/034); scf:
/// overlapping time is counted once (multi-concurrency billing). Of which invocation that time is, neither
/// says. Here each is billed what has passed since the one before it ended, or since the instance began to
/// work: the sum of all records is the time that the vendors bill, and for an instance that works on one at
/// a time each is billed its own.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    running: usize,
    since: Option<Instant>,
    billed_ms: u64,
}

impl Busy {
    /// An invocation begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        if self.running == 0 {
            (self.since, self.billed_ms) = (Some(now), 0);
        }
        self.running += 1;
    }

    /// One ends; gives the milliseconds that it is billed.
    pub(crate) fn end(&mut self, now: Instant, billing: Billing) -> u64 {
        self.running = self.running.saturating_sub(1);
        let Some(since) = self.since else { return 0 };
        // Of the whole, so that rounding adds one unit to a span and not to each of its invocations.
        let whole = billing.billed_ms(now.saturating_duration_since(since));
        let billed = whole.saturating_sub(self.billed_ms);
        self.billed_ms = self.billed_ms.max(whole);
        billed
    }

    /// One ends that never reached the function: it is billed nothing.
    pub(crate) fn forget(&mut self) {
        self.running = self.running.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::platform::{all, fc, scf};

    #[test]
    fn both_vendors_bill_a_millisecond_that_has_begun() {
        let cases =
            [(0, 0), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (42_270, 43), (3_600_000_000, 3_600_000)];
        for platform in all() {
            for (micros, ms) in cases {
                let billed = platform.billing().billed_ms(Duration::from_micros(micros));
                assert_eq!(billed, ms, "{} of {micros} µs", platform.name());
            }
        }
    }

    #[test]
    fn units_of_more_than_a_millisecond_are_whole_too() {
        let old = Billing { unit_ms: 100, pulls: false };
        let billed = |ms| old.billed_ms(Duration::from_millis(ms));
        assert_eq!([0, 1, 100, 101].map(billed), [0, 100, 100, 200]);
        assert_eq!(Billing { unit_ms: 0, pulls: false }.billed_ms(Duration::from_millis(7)), 7);
    }

    #[test]
    fn ten_seconds_of_a_gigabyte_are_ten() {
        assert!((gb_s(1024, 10_000) - 10.0).abs() < f64::EPSILON);
        assert!((gb_s(128, 1) - 0.000_125).abs() < f64::EPSILON);
        assert!(fc().billing().pulls && !scf().billing().pulls);
    }

    fn at(begin: Instant, ms: u64) -> Instant {
        begin + Duration::from_millis(ms)
    }

    #[test]
    fn what_overlaps_is_billed_once() {
        let (mut busy, start, billing) = (Busy::default(), Instant::now(), fc().billing());
        busy.begin(start);
        busy.begin(at(start, 2));
        assert_eq!(busy.end(at(start, 4), billing), 4);
        busy.begin(at(start, 5));
        assert_eq!(busy.end(at(start, 10), billing), 6);
        assert_eq!(busy.end(at(start, 12), billing), 2);
        busy.begin(at(start, 100));
        assert_eq!(busy.end(at(start, 101), billing), 1, "idle time is not billed");
    }

    #[test]
    fn what_never_reached_the_function_is_billed_nothing() {
        let (mut busy, start, billing) = (Busy::default(), Instant::now(), fc().billing());
        busy.begin(start);
        busy.forget();
        busy.begin(at(start, 50));
        assert_eq!(busy.end(at(start, 53), billing), 3);
    }

    proptest! {
        /// The sum is the length of the union of all spans, each stretch of work rounded up once.
        #[test]
        fn the_sum_is_the_time_in_which_anything_ran(
            spans in prop::collection::vec((0_u64..2_000, 1_u64..500), 1..40)
        ) {
            let (mut busy, start, billing) = (Busy::default(), Instant::now(), fc().billing());
            let mut steps: Vec<(u64, bool)> = Vec::new();
            for (from, takes) in &spans {
                steps.extend([(*from, true), (from + takes, false)]);
            }
            // Ends last, so that what only touches is one stretch for both ways of counting.
            steps.sort_by_key(|(time, begins)| (*time, !begins));
            let mut billed = 0;
            for (time, begins) in steps {
                match begins {
                    true => busy.begin(at(start, time)),
                    false => billed += busy.end(at(start, time), billing),
                }
            }
            let ran = (0..2_500).filter(|ms| spans.iter().any(|(from, takes)| (*from..from + takes).contains(ms)));
            prop_assert_eq!(billed, ran.count() as u64);
        }
    }
}
