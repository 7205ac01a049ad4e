//! The signature of API 2016-08-15: `FC ID:BASE64`, HMAC-SHA256 of method, some headers, all `x-fc-*` and
//! the path; of calls to a function's own paths also the parameters.

use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use http::request::Parts;
use percent_encoding::percent_decode_str;

use super::{AccessKeys, Denied, check_time, text, verify};

pub(super) fn check(
    keys: &AccessKeys,
    authorization: &str,
    parts: &Parts,
    now: SystemTime,
) -> Result<(), Denied> {
    let (id, signature) = authorization.split_once(':').ok_or(Denied::Malformed)?;
    let secret = keys.secret(id)?;
    let signature = BASE64_STANDARD.decode(signature).map_err(|_| Denied::Malformed)?;
    let date = text(&parts.headers, "date")?;
    check_time(httpdate::parse_http_date(date).map_err(|_| Denied::Malformed)?, now)?;
    verify(secret.expose().as_bytes(), to_sign(parts)?.as_bytes(), &signature)
}

fn to_sign(parts: &Parts) -> Result<String, Denied> {
    let header = |name: &'static str| match text(&parts.headers, name) {
        Err(Denied::MissingHeader(_)) => Ok(""),
        other => other,
    };
    let path = decoded(parts.uri.path());
    let mut resource = path.clone();
    if path.split('/').nth(2) == Some("proxy") {
        let mut parameters: Vec<String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|part| !part.is_empty())
            .map(plus)
            .collect();
        parameters.sort_unstable();
        resource = format!("{path}\n{}", parameters.join("\n"));
    }
    Ok(format!(
        "{}\n{}\n{}\n{}\n{}{resource}",
        parts.method,
        header("content-md5")?,
        header("content-type")?,
        header("date")?,
        own_headers(&parts.headers)?
    ))
}

/// All `x-fc-*`, one line each, by their names.
fn own_headers(headers: &HeaderMap) -> Result<String, Denied> {
    let mut lines = Vec::new();
    for (name, value) in headers.iter().filter(|(name, _)| name.as_str().starts_with("x-fc-")) {
        lines.push(format!("{name}:{}\n", value.to_str().map_err(|_| Denied::Malformed)?));
    }
    lines.sort_unstable();
    Ok(lines.concat())
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Of a parameter, where `+` is a space.
fn plus(text: &str) -> String {
    decoded(&text.replace('+', " "))
}
