//! Alibaba's signature of API 2021-04-06 and later: `ACS3-HMAC-SHA256 Credential=…,SignedHeaders=…,
//! Signature=…` over method, path, parameters, the signed headers and the body's hash.

use std::time::SystemTime;

use http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{AccessKeys, Denied, Fields, after_epoch, canonical_headers, check_time, hash, text, verify};

pub(super) const ALGORITHM: &str = "ACS3-HMAC-SHA256";

/// The body's hash.
pub(super) const CONTENT_HASH: &str = "x-acs-content-sha256";

/// What is encoded in parameters (RFC 3986).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub(super) fn check(
    keys: &AccessKeys,
    authorization: &str,
    parts: &Parts,
    now: SystemTime,
) -> Result<(), Denied> {
    let fields = Fields::parse(authorization)?;
    let secret = keys.secret(fields.credential)?;
    let content = text(&parts.headers, CONTENT_HASH)?;
    let date = text(&parts.headers, "x-acs-date")?;
    // Both are worth nothing where they are not signed.
    for name in [CONTENT_HASH, "x-acs-date"] {
        if !fields.signed_headers.split(';').any(|signed| signed == name) {
            return Err(Denied::Malformed);
        }
    }
    check_time(after_epoch(seconds_of(date).ok_or(Denied::Malformed)?)?, now)?;
    let request = format!(
        "{}\n{}\n{}\n{}\n{}\n{content}",
        parts.method,
        parts.uri.path(),
        parameters(parts.uri.query().unwrap_or_default()),
        canonical_headers(fields.signed_headers, &parts.headers)?,
        fields.signed_headers,
    );
    let message = format!("{ALGORITHM}\n{}", hash(request.as_bytes()));
    verify(secret.expose().as_bytes(), message.as_bytes(), &fields.signature)
}

/// Sorted, and encoded in one way.
fn parameters(query: &str) -> String {
    let encoded = |text: &str| {
        let text = text.replace('+', " ");
        utf8_percent_encode(&percent_decode_str(&text).decode_utf8_lossy(), ENCODED).to_string()
    };
    let parts = query.split('&').filter(|part| !part.is_empty());
    let mut all: Vec<(String, String)> = parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(key, value)| (encoded(key), encoded(value)))
        .collect();
    all.sort();
    all.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&")
}

/// Seconds since 1970 of `2023-10-26T10:22:32Z`.
fn seconds_of(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    if bytes.len() != 20 || bytes[19] != b'Z' {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 {
        return None;
    }
    // Days since 1970 (Howard Hinnant's `days_from_civil`).
    let year = year - u64::from(month <= 2);
    let shifted = (month + 9) % 12;
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    Some((days.checked_sub(719_468)?) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read() {
        assert_eq!(seconds_of("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds_of("2000-02-29T12:34:56Z"), Some(951_827_696));
        assert_eq!(seconds_of("2023-10-26T10:22:32Z"), Some(1_698_315_752));
        assert_eq!(seconds_of("2100-02-28T23:59:59Z"), Some(4_107_542_399));
        for text in
            ["", "2023-10-26", "2023-10-26T10:22:32", "2023-13-26T10:22:32Z", "20\u{e9}3-10-26T10:22:3Z"]
        {
            assert_eq!(seconds_of(text), None, "{text}");
        }
    }

    #[test]
    fn parameters_have_one_form() {
        assert_eq!(parameters("b=2&a=%7e+x&a=%2F&c"), "a=%2F&a=~%20x&b=2&c=");
    }
}
