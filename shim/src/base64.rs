//! Bytes that are no text, inside JSON and headers.

use ::base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ::base64::prelude::BASE64_STANDARD;
use ::base64::{Engine as _, alphabet};

/// Padding may be missing: many encoders leave it out.
const STANDARD_LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Base64 with padding (RFC 4648, section 4).
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// The bytes of such a text, with or without padding.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD_LENIENT.decode(text).ok()
}
