//! `Authorization` and the form of a token request.

use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::image::credentials::Secret;

/// A header that no debug text shows.
pub(super) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// RFC 7617.
pub(super) fn basic(username: &Secret, password: &Secret) -> Option<HeaderValue> {
    let pair = format!("{}:{}", username.reveal(), password.reveal());
    sensitive(&format!("Basic {}", base64(pair.as_bytes())))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let number = (0..3).fold(0u32, |n, i| n << 8 | u32::from(group.get(i).copied().unwrap_or_default()));
        for i in 0..4 {
            let six = (number >> (18 - 6 * i)) as usize & 63;
            text.push(if i <= group.len() { char::from(ALPHABET[six]) } else { '=' });
        }
    }
    text
}

/// `application/x-www-form-urlencoded`.
pub(super) fn encode_form(pairs: &[(&str, &str)]) -> String {
    // Any base will do: only the query is taken.
    let Ok(mut url) = Url::parse("http://form/") else { return String::new() };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_right_and_not_shown() {
        let header =
            basic(&Secret::new("Aladdin".into()), &Secret::new("open sesame".into())).expect("valid");
        // RFC 7617, section 2.
        assert_eq!(header.to_str().expect("text"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(format!("{header:?}"), "Sensitive");
        assert_eq!(base64(b"a"), "YQ==");
        assert_eq!(base64(b"ab"), "YWI=");
        assert_eq!(base64(b""), "");
        assert_eq!(encode_form(&[("a", "b c&d=")]), "a=b+c%26d%3D");
    }
}
