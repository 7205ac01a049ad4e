//! Times such as `2026-01-01T12:00:00Z`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time of RFC 3339 from 1970 on: with seconds, perhaps a fraction of them (milliseconds count), and `Z` or an
/// offset. A day that its month has not is one of the next.
#[must_use]
pub fn unix_time(text: &str) -> Option<SystemTime> {
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

    #[test]
    fn every_day_is_the_one_after_the_day_before() {
        // Of four hundred years.
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
    fn what_is_written_can_be_read_again() {
        for second in [0, 951_782_400, 951_868_799, 1_494_936_000, 4_102_444_799] {
            let time = UNIX_EPOCH + Duration::from_secs(second);
            assert_eq!(unix_time(&crate::platform::rfc3339(time)), Some(time));
        }
    }
}
