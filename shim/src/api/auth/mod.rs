//! Who calls: signatures by access keys, as each vendor's SDKs make them. No key, no check.

mod acs3;
mod fc;
mod tc3;

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::request::Parts;
use ring::{digest, hmac};

use crate::{Error, ErrorKind, Result, Secret};

/// How far a signature's time may be from this host's, in both directions (both vendors: 15 minutes, and
/// 5 at Tencent's; the wider one).
const SKEW: Duration = Duration::from_secs(15 * 60);

/// Access keys of callers: id (fc AccessKey ID, scf SecretId) and secret.
#[derive(Clone, Default)]
pub struct AccessKeys(HashMap<String, Secret>);

impl AccessKeys {
    /// Reads keys: one in each line, id and secret with white space between them; empty lines and lines
    /// that begin with `#` are passed over.
    ///
    /// # Errors
    /// `InvalidArgument` that names the first line that is none; never what stands in it.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let mut keys = HashMap::new();
        for (number, line) in lines {
            let mut words = line.split_whitespace();
            let (Some(id), Some(secret), None) = (words.next(), words.next(), words.next()) else {
                return Err(invalid(format!("line {number} is no access key")));
            };
            if keys.insert(id.to_owned(), Secret::new(secret)).is_some() {
                return Err(invalid(format!("line {number} has the id of a line before")));
            }
        }
        if keys.is_empty() {
            return Err(invalid("there is no access key".to_owned()));
        }
        Ok(Self(keys))
    }

    /// Whether there is none, so that nothing is checked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn secret(&self, id: &str) -> std::result::Result<&Secret, Denied> {
        self.0.get(id).ok_or_else(|| Denied::UnknownKey(id.chars().take(128).collect()))
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Runtime(skiff_runtime::ErrorKind::InvalidArgument), message)
        .advise("write one key in each line: its id, a space, its secret")
}

impl fmt::Debug for AccessKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessKeys({})", self.0.len())
    }
}

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// A header that a signature needs is not there.
    MissingHeader(&'static str),
    /// The authorization is of no form that is known.
    Malformed,
    /// No key has this id.
    UnknownKey(String),
    /// The signature is another one.
    Mismatch,
    /// The signature's time is too far from this host's.
    Expired,
}

/// Checks a call of Alibaba's API: `FC …` or `ACS3-HMAC-SHA256 …`. The body is checked by
/// [`check_body`] when it has been read.
pub(crate) fn check_alibaba(keys: &AccessKeys, parts: &Parts) -> std::result::Result<(), Denied> {
    if keys.is_empty() {
        return Ok(());
    }
    let authorization = text(&parts.headers, "authorization")?;
    match authorization.split_once(' ') {
        Some(("FC", rest)) => fc::check(keys, rest, parts, now()),
        Some((acs3::ALGORITHM, rest)) => acs3::check(keys, rest, parts, now()),
        _ => Err(Denied::Malformed),
    }
}

/// Checks that a body is the one that was signed, where its hash was.
pub(crate) fn check_body(
    keys: &AccessKeys,
    headers: &HeaderMap,
    body: &[u8],
) -> std::result::Result<(), Denied> {
    let Some(told) = headers.get(acs3::CONTENT_HASH) else { return Ok(()) };
    if keys.is_empty() || told.as_bytes().eq_ignore_ascii_case(hash(body).as_bytes()) {
        return Ok(());
    }
    Err(Denied::Mismatch)
}

/// Checks a call of Tencent's API: `TC3-HMAC-SHA256 …`.
pub(crate) fn check_tencent(
    keys: &AccessKeys,
    parts: &Parts,
    body: &[u8],
) -> std::result::Result<(), Denied> {
    if keys.is_empty() { Ok(()) } else { tc3::check(keys, parts, body, now()) }
}

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> std::result::Result<&'a str, Denied> {
    let value = headers.get(name).ok_or(Denied::MissingHeader(name))?;
    value.to_str().map_err(|_| Denied::Malformed)
}

/// `Credential=…, SignedHeaders=…, Signature=…`, in any order.
struct Fields<'a> {
    credential: &'a str,
    signed_headers: &'a str,
    signature: Vec<u8>,
}

impl<'a> Fields<'a> {
    fn parse(text: &'a str) -> std::result::Result<Self, Denied> {
        let field = |name: &str| {
            let fields = text.split(',').map(str::trim);
            let found = fields.filter_map(|field| field.split_once('=')).find(|(key, _)| *key == name);
            found.map(|(_, value)| value).ok_or(Denied::Malformed)
        };
        let signature = unhex(field("Signature")?).ok_or(Denied::Malformed)?;
        Ok(Self { credential: field("Credential")?, signed_headers: field("SignedHeaders")?, signature })
    }
}

fn now() -> SystemTime {
    SystemTime::now()
}

/// Whether a time is near enough to this host's.
fn check_time(told: SystemTime, now: SystemTime) -> std::result::Result<(), Denied> {
    let apart = now.duration_since(told).or_else(|_| told.duration_since(now)).unwrap_or_default();
    if apart > SKEW { Err(Denied::Expired) } else { Ok(()) }
}

/// In a time that tells nothing of where they differ.
fn verify(key: &[u8], message: &[u8], signature: &[u8]) -> std::result::Result<(), Denied> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::verify(&key, message, signature).map_err(|_| Denied::Mismatch)
}

fn sign(key: &[u8], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
}

/// SHA-256 in hexadecimal digits.
fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// The lines `name:value` of signed headers, in the order of their names, and the names.
fn canonical_headers(signed: &str, headers: &HeaderMap) -> std::result::Result<String, Denied> {
    let mut lines = String::new();
    for name in signed.split(';') {
        let mut values = Vec::new();
        for value in headers.get_all(name) {
            values.push(value.to_str().map_err(|_| Denied::Malformed)?.trim());
        }
        values.sort_unstable();
        lines.extend([name, ":", &values.join(","), "\n"]);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests;
