//! Tencent's signature: `TC3-HMAC-SHA256 Credential=ID/DATE/SERVICE/tc3_request, SignedHeaders=…,
//! Signature=…` with a key for each day and service. The service is as the caller says: some SDKs make it
//! of the host's name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{HOST, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::Authority;

use super::{AccessKeys, Denied, Fields, canonical_headers, check_time, hash, sign, text, verify};

const ALGORITHM: &str = "TC3-HMAC-SHA256";

pub(super) fn check(keys: &AccessKeys, parts: &Parts, body: &[u8], now: SystemTime) -> Result<(), Denied> {
    let authorization = text(&parts.headers, "authorization")?;
    let rest = authorization.strip_prefix(ALGORITHM).ok_or(Denied::Malformed)?;
    let fields = Fields::parse(rest)?;
    let (id, scope) = fields.credential.split_once('/').ok_or(Denied::Malformed)?;
    let (date, rest) = scope.split_once('/').ok_or(Denied::Malformed)?;
    let (service, end) = rest.split_once('/').ok_or(Denied::Malformed)?;
    let secret = keys.secret(id)?;
    let timestamp = text(&parts.headers, "x-tc-timestamp")?;
    let seconds = Duration::from_secs(timestamp.parse().map_err(|_| Denied::Malformed)?);
    check_time(UNIX_EPOCH.checked_add(seconds).ok_or(Denied::Malformed)?, now)?;
    if end != "tc3_request" || !fields.signed_headers.split(';').any(|name| name == "host") {
        return Err(Denied::Malformed);
    }
    let body = hash(body);
    let message = |headers: &HeaderMap| {
        let request = format!(
            "{}\n{}\n{}\n{}\n{}\n{body}",
            parts.method,
            parts.uri.path(),
            parts.uri.query().unwrap_or_default(),
            canonical_headers(fields.signed_headers, headers)?.to_lowercase(),
            fields.signed_headers,
        );
        Ok::<_, Denied>(format!("{ALGORITHM}\n{timestamp}\n{scope}\n{}", hash(request.as_bytes())))
    };
    let of_day = sign(format!("TC3{}", secret.expose()).as_bytes(), date.as_bytes());
    let of_service = sign(of_day.as_ref(), service.as_bytes());
    let key = sign(of_service.as_ref(), end.as_bytes());
    let checked = |headers: &HeaderMap| verify(key.as_ref(), message(headers)?.as_bytes(), &fields.signature);
    checked(&parts.headers).or_else(|_| checked(&without_port(&parts.headers)))
}

/// The SDK for Node.js signs the host's name alone, and sends it with the port: in the cloud both are the same.
fn without_port(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    if let Some(host) = host.and_then(|host| HeaderValue::from_str(host.host()).ok()) {
        headers.insert(HOST, host);
    }
    headers
}
