//! Bytes that are no text, inside JSON and headers.

use ::base64::Engine as _;
use ::base64::prelude::BASE64_STANDARD;

/// Base64 with padding (RFC 4648, section 4).
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}
