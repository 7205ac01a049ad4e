//! A time in the past: how long ago it was, or when.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
        rfc3339(text).map(Self).ok_or_else(|| {
            Invalid::new("not a time such as 2026-01-01T12:00:00Z, nor a whole number of s, m, h, d or w")
        })
    }
}

/// A time with seconds, perhaps a fraction of them, and `Z` or an offset.
fn rfc3339(text: &str) -> Option<SystemTime> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let (time, offset_s) = zone(time)?;
    let (whole, fraction) = time.split_once('.').unwrap_or((time, ""));
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(whole, ':', [2, 2, 2])?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let of_day = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second) - offset_s;
    let seconds = u64::try_from(days(year, month, day) * 86_400 + of_day).ok()?;
    let millis: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    Some(UNIX_EPOCH + Duration::from_millis(seconds * 1000 + millis))
}

/// The time without its zone, and the zone's seconds east of Greenwich.
fn zone(time: &str) -> Option<(&str, i64)> {
    if let Some(time) = time.strip_suffix(['Z', 'z']) {
        return Some((time, 0));
    }
    let sign = time.rfind(['+', '-'])?;
    let [hours, minutes] = numbers(&time[sign + 1..], ':', [2, 2])?;
    let seconds = i64::from(hours) * 3600 + i64::from(minutes) * 60;
    (hours < 24 && minutes < 60)
        .then(|| (&time[..sign], if time[sign..].starts_with('-') { -seconds } else { seconds }))
}

/// Numbers of so many digits each.
fn numbers<const COUNT: usize>(text: &str, between: char, digits: [usize; COUNT]) -> Option<[u32; COUNT]> {
    let mut parts = text.split(between);
    let mut numbers = [0; COUNT];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Days since 1970 (Howard Hinnant's `days_from_civil`).
fn days(year: u32, month: u32, day: u32) -> i64 {
    let year = i64::from(year) - i64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let shifted = (i64::from(month) + 9) % 12;
    let of_year = (153 * shifted + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
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
        // Every day of four hundred years is the one after the day before.
        let mut before = days(1970, 1, 1) - 1;
        for (year, month) in (1970..2370).flat_map(|year| (1..=12).map(move |month| (year, month))) {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            for day in 1..=length[month as usize - 1] {
                assert_eq!(days(year, month, day), before + 1, "{year}-{month}-{day}");
                before += 1;
            }
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
