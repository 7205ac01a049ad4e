//! Times of Tencent's API. They are those of its consoles, UTC+8: the documentation names no zone, and its samples
//! show it.

use std::time::{Duration, SystemTime};

use super::Fault;
use crate::platform::rfc3339;

/// How far from UTC the times are.
const ZONE: Duration = Duration::from_secs(8 * 3600);

/// Bytes of a time in whole seconds, and with its microseconds.
pub(super) const SECONDS: usize = 19;
pub(super) const MICROSECONDS: usize = 26;

/// A time as it is written, `2017-05-16 20:00:00`. Such texts are in the order of their times.
pub(super) fn moment<'a>(text: &'a str, name: &str) -> Result<&'a str, Fault> {
    let form = b"0000-00-00 00:00:00";
    let fits = |(byte, form): (u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == *form };
    if text.len() == form.len() && text.bytes().zip(form).all(fits) {
        return Ok(text);
    }
    let shown = text.escape_default();
    Err(Fault::new("InvalidParameterValue", format!("{name} '{shown}' is no time like 2017-05-16 20:00:00")))
}

/// `2017-05-16 20:00:00.123456`, or as much of it.
pub(super) fn local(time: SystemTime, bytes: usize) -> String {
    let text = rfc3339(time + ZONE).replace('T', " ");
    text.get(..bytes).unwrap_or(&text).to_owned()
}

/// Seconds since 1970 of a time of UTC+8 that has the form of [`moment`]; days that no month has are those of the
/// next.
pub(super) fn seconds_of_local(text: &str) -> u64 {
    seconds(text).saturating_sub(ZONE.as_secs())
}

/// The same of a time in UTC that begins as RFC 3339 has it; 0 of what does not.
pub(super) fn seconds(text: &str) -> u64 {
    let number =
        |at: std::ops::Range<usize>| text.get(at).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let (year, month, day): (u64, u64, u64) = (number(0..4), number(5..7), number(8..10));
    days(year, month, day) * 86_400 + number(11..13) * 3600 + number(14..16) * 60 + number(17..19)
}

/// Days since 1970, and 0 before (Howard Hinnant's `days_from_civil`).
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month > 2 { year } else { year.saturating_sub(1) };
    let (era, of_era) = (year / 400, year % 400);
    let shifted = (month + 9) % 12;
    let of_year = (153 * shifted + 2) / 5 + day.saturating_sub(1);
    (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).saturating_sub(719_468)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn times_are_those_of_the_consoles() {
        let time = UNIX_EPOCH + Duration::new(1_494_936_000, 123_456_789);
        assert_eq!(local(time, SECONDS), "2017-05-16 20:00:00");
        assert_eq!(local(time, MICROSECONDS), "2017-05-16 20:00:00.123456");
        assert_eq!(moment("2017-05-16 20:00:00", "x"), Ok("2017-05-16 20:00:00"));
        for wrong in ["", "2017-05-16", "2017-05-16T20:00:00", "2017-05-16 20:00:00.1", "yyyy-05-16 20:00:00"]
        {
            moment(wrong, "x").expect_err(wrong);
        }
    }

    #[test]
    fn what_is_written_can_be_read_again() {
        for second in [0, 951_782_400, 951_868_799, 1_494_936_000, 4_102_444_799] {
            let time = UNIX_EPOCH + Duration::from_secs(second);
            assert_eq!(seconds(&rfc3339(time)), second);
            assert_eq!(seconds_of_local(&local(time, SECONDS)), second);
        }
        // No months, no years before 1970, no numbers: no panic either.
        for odd in ["0000-00-00 00:00:00", "9999-99-99 99:99:99", "1969-12-31 23:59:59", "", "yyyy-mm-dd"] {
            assert!(seconds(odd) < 400_000_000_000, "{odd}");
        }
    }
}
