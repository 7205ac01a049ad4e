//! Alibaba's signature of API 2021-04-06 and later: `ACS3-HMAC-SHA256 Credential=…,SignedHeaders=…,
//! Signature=…` over method, path, parameters, the signed headers and the body's hash.

use std::time::SystemTime;

use http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use skiff_runtime::image::parse_time;

use super::{AccessKeys, Denied, Fields, canonical_headers, check_time, hash, text, verify};

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
    check_time(parse_time(date).ok_or(Denied::Malformed)?, now)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_one_form() {
        assert_eq!(parameters("b=2&a=%7e+x&a=%2F&c"), "a=%2F&a=~%20x&b=2&c=");
    }
}
