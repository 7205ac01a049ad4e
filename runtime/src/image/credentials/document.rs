//! The JSON of a credentials file and of a credentials service: `username`, `password`, `expiry`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::time::parse_rfc3339;
use super::{Lease, from_pair, invalid};
use crate::{Error, Result};

/// Bytes of a document; temporary tokens of the vendors have about 1 KiB.
pub(super) const MAX_BYTES: usize = 64 << 10;

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    expiry: Option<String>,
}

/// Reads a document; `what` names where it is from. Any bytes may come.
///
/// # Errors
/// `InvalidCredentials`, which shows nothing of the document but its expiry.
pub(crate) fn parse(bytes: &[u8], what: &str, now: SystemTime) -> Result<Lease> {
    if bytes.len() > MAX_BYTES {
        return Err(invalid(format!("{what} is over {MAX_BYTES} bytes")));
    }
    // Only the position: serde's own message may quote a value.
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| not_json(what, &e))?;
    let credentials = from_pair(&raw.username, &raw.password, &format!("credentials of {what}"))?;
    let expiry = raw.expiry.as_deref().map(|text| expiry(text, what)).transpose()?;
    let lease = Lease { credentials, expiry };
    lease.check(what, now)?;
    Ok(lease)
}

/// An error that names the place in a document and not what is there.
fn not_json(what: &str, error: &serde_json::Error) -> Error {
    invalid(format!(
        "{what} is not JSON with username, password and optional expiry (line {}, column {})",
        error.line(),
        error.column()
    ))
}

/// Reads the text of an expiry.
pub(super) fn expiry(text: &str, what: &str) -> Result<SystemTime> {
    let seconds = parse_rfc3339(text).ok_or_else(|| {
        invalid(format!("the expiry in {what} is not an RFC 3339 time"))
            .advise("write it like 2026-01-31T12:00:00Z")
    })?;
    // A time before 1970 has passed, whichever it was.
    let seconds = u64::try_from(seconds).unwrap_or(0);
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .ok_or_else(|| invalid(format!("the expiry in {what} is out of range")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn from_text(text: &str) -> Result<Lease> {
        parse(text.as_bytes(), "the file f", UNIX_EPOCH + Duration::from_secs(1_000_000_000))
    }

    fn message(text: &str) -> String {
        let error = from_text(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidCredentials);
        error.chain()
    }

    #[test]
    fn nothing_secret_is_shown() {
        for text in [r#"{"username":5,"password":"s3cret"}"#, r#"{"password":"s3cret"}"#, r#""s3cret"#] {
            assert!(!message(text).contains("s3cret"), "{text}");
        }
        let lease = from_text(r#"{"username":"us3cret","password":"s3cret"}"#).expect("whole");
        assert!(!format!("{lease:?}").contains("s3cret"));
    }

    #[test]
    fn the_missing_half_is_named() {
        assert!(message(r#"{"username":"u"}"#).contains("a user name but no password"));
        assert!(message(r#"{"password":"p"}"#).contains("a password but no user name"));
        assert!(message("{}").contains("neither"));
    }

    #[test]
    fn expiry_is_honoured() {
        let with = |expiry: &str| format!(r#"{{"username":"u","password":"p","expiry":"{expiry}"}}"#);
        from_text(&with("2001-09-09T01:46:41Z")).expect("one second left");
        assert!(message(&with("2001-09-09T01:46:40Z")).contains("expired"));
        assert!(message(&with("yesterday")).contains("not an RFC 3339 time"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = parse(&bytes, "x", UNIX_EPOCH);
        }
    }
}
