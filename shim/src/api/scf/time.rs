//! Times of Tencent's API. They are those of its consoles, UTC+8: the documentation names no zone, and its samples
//! show it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Fault;
use crate::platform::rfc3339;
use crate::units::unix_time;

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
    Err(no_time(text, name))
}

fn no_time(text: &str, name: &str) -> Fault {
    let shown = text.escape_default();
    Fault::new("InvalidParameterValue", format!("{name} '{shown}' is no time like 2017-05-16 20:00:00"))
}

/// `2017-05-16 20:00:00.123456`, or as much of it.
pub(super) fn local(time: SystemTime, bytes: usize) -> String {
    let text = rfc3339(time + ZONE).replace('T', " ");
    text.get(..bytes).unwrap_or(&text).to_owned()
}

/// Seconds since 1970 of a time of UTC+8.
pub(super) fn seconds_of_local(text: &str, name: &str) -> Result<u64, Fault> {
    seconds(&format!("{}+08:00", moment(text, name)?)).ok_or_else(|| no_time(text, name))
}

/// The same of a time as RFC 3339 has it.
pub(super) fn seconds(text: &str) -> Option<u64> {
    unix_time(text)?.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
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
            assert_eq!(seconds(&rfc3339(time)), Some(second));
            assert_eq!(seconds_of_local(&local(time, SECONDS), "x"), Ok(second));
        }
        // No months, no years before 1970, no numbers.
        for odd in ["0000-00-00 00:00:00", "9999-99-99 99:99:99", "1969-12-31 23:59:59", "", "yyyy-mm-dd"] {
            assert_eq!(seconds(odd), None, "{odd}");
            assert!(seconds_of_local(odd, "x").is_err(), "{odd}");
        }
    }
}
