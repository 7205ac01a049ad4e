//! Times such as `3s`, `500ms` or `2m`.

use std::str::FromStr;
use std::time::Duration;

use super::Invalid;

/// No platform lets anything take longer: fc's 24 hours.
const MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A time from 1 ms to 24 h. A number without a unit is seconds, as both platforms write theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

impl FromStr for Time {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let millis_per_unit: u64 = match unit {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(Invalid::new("not a whole number of ms, s, m or h, such as 30s")),
        };
        if number.is_empty() {
            return Err(Invalid::new("not a whole number of ms, s, m or h, such as 30s"));
        }
        let millis = number.parse::<u64>().ok().and_then(|n| n.checked_mul(millis_per_unit));
        match millis.map(Duration::from_millis) {
            Some(time) if !time.is_zero() && time <= MAX => Ok(Self(time)),
            _ => Err(Invalid::new("not between 1ms and 24h")),
        }
    }
}

/// A time, or no limit (`0`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimit(pub Option<Duration>);

impl FromStr for TimeLimit {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "0" => Ok(Self(None)),
            _ => text.parse::<Time>().map(|time| Self(Some(time.0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(text: &str) -> Result<u128, String> {
        text.parse::<Time>().map(|time| time.0.as_millis()).map_err(|e| e.to_string())
    }

    #[test]
    fn units_are_known_and_seconds_are_meant() {
        for (text, expected) in
            [("3", 3_000), ("3s", 3_000), ("500ms", 500), ("2m", 120_000), ("24h", 86_400_000)]
        {
            assert_eq!(millis(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_explained() {
        for text in ["", "s", "-1s", "1.5s", "3 s", "3d"] {
            assert_eq!(
                millis(text),
                Err("not a whole number of ms, s, m or h, such as 30s".into()),
                "{text}"
            );
        }
        for text in ["0", "0ms", "25h", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(millis(text), Err("not between 1ms and 24h".into()), "{text}");
        }
    }

    #[test]
    fn no_limit_is_asked_for_by_zero_alone() {
        assert_eq!("0".parse(), Ok(TimeLimit(None)));
        assert_eq!("5m".parse(), Ok(TimeLimit(Some(Duration::from_secs(300)))));
        for text in ["", "0s", "none", "25h"] {
            assert!(text.parse::<TimeLimit>().is_err(), "{text}");
        }
    }
}
