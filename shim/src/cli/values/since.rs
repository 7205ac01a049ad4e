//! A time in the past: how long ago it was, or when.

use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use skiff::units::unix_time;

use super::{Age, Invalid};

/// `10m`, or `2026-01-01T12:00:00Z` (RFC 3339).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Since(SystemTime);

impl Since {
    /// Milliseconds since 1970.
    pub(crate) fn unix_ms(self) -> u128 {
        self.0.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis())
    }
}

impl FromStr for Since {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Ok(Age(ago)) = text.parse() {
            return Ok(Self(SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH)));
        }
        unix_time(text).map(Self).ok_or_else(|| {
            Invalid::new("not a time such as 2026-01-01T12:00:00Z, nor a whole number of s, m, h, d or w")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix_ms(text: &str) -> Option<u128> {
        text.parse::<Since>().ok().map(Since::unix_ms)
    }

    #[test]
    fn times_of_rfc_3339_are_known() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2019-11-29T09:53:30.859837462Z", 1_575_021_210_859),
            ("2000-02-29T12:34:56.5+01:00", 951_824_096_500),
            ("2099-12-31 23:59:59-00:30", 4_102_446_599_000),
        ] {
            assert_eq!(unix_ms(text), Some(ms), "{text}");
        }
    }

    #[test]
    fn ages_count_from_now() {
        let now = Since(SystemTime::now()).unix_ms();
        let then = unix_ms("10m").expect("an age");
        assert!(then.abs_diff(now - 600_000) < 60_000, "{then} {now}");
    }

    #[test]
    fn what_is_no_time_is_explained() {
        for text in [
            "",
            "yesterday",
            "10",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-1-1T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-01-01T00:00:00.x1Z",
            "2026-01-01T00:00:00+24:00",
        ] {
            let error = text.parse::<Since>().expect_err(text).to_string();
            assert!(error.starts_with("not a time such as"), "{text}: {error}");
        }
    }
}
