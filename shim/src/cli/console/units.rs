//! Times and sizes as people read them.

use std::time::Duration;

use skiff::Timeline;

/// `4.2 ms`, `143 ms`, `2.51 s`, `3 min 7 s`.
pub(crate) fn time(time: Duration) -> String {
    let micros = time.as_micros();
    match micros {
        0..9_950 => format!("{:.1} ms", micros as f64 / 1e3),
        // What would round up to 1000 ms is a second.
        9_950..999_500 => format!("{:.0} ms", micros as f64 / 1e3),
        999_500..59_995_000 => format!("{:.2} s", micros as f64 / 1e6),
        _ => format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60),
    }
}

/// `512 B`, `4.0 KiB`, `52.3 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would round up to 1024.0 is one of the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `started in 143 ms: resolve 1.2 ms · pull 0.0 ms · …`.
pub(crate) fn timeline(timeline: &Timeline) -> String {
    let steps = timeline.steps().map(|(name, took)| format!("{name} {}", time(took)));
    format!("started in {}: {}", time(timeline.total()), steps.join(" · "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_two_or_three_digits() {
        for (micros, text) in [
            (0, "0.0 ms"),
            (49, "0.0 ms"),
            (4_240, "4.2 ms"),
            (9_949, "9.9 ms"),
            (9_960, "10 ms"),
            (143_400, "143 ms"),
            (999_499, "999 ms"),
            (999_600, "1.00 s"),
            (2_514_000, "2.51 s"),
            (59_999_000, "0 min 59 s"),
            (187_000_000, "3 min 7 s"),
        ] {
            assert_eq!(time(Duration::from_micros(micros)), text, "{micros}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (54_840_000, "52.3 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (10 << 30, "10.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(bytes(size), text, "{size}");
        }
    }

    #[test]
    fn the_timeline_is_one_line_in_the_order_of_the_steps() {
        let ms = Duration::from_millis;
        let line = timeline(&Timeline {
            resolve: ms(12),
            pull: ms(1_500),
            unpack: ms(300),
            rootfs: ms(2),
            network: Duration::ZERO,
            spawn: Duration::from_micros(4_200),
            listen: ms(80),
        });
        assert_eq!(
            line,
            "started in 1.90 s: resolve 12 ms · pull 1.50 s · unpack 300 ms · rootfs 2.0 ms · \
             network 0.0 ms · spawn 4.2 ms · listen 80 ms"
        );
    }
}
