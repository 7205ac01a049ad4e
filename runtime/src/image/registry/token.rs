//! A token from the realm that a challenge names.

use std::time::Duration;

use bytes::BytesMut;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};

use super::auth::{Auth, Ways};
use super::challenge::Challenge;
use super::header::{basic, encode_form};
use super::realm;
use super::retry::{self, Failure, transport};
use crate::image::credentials::{Credentials, Secret};
use crate::{Error, ErrorKind};

/// Bytes of a token realm's answer.
const MAX_TOKEN_BYTES: usize = 64 << 10;

/// A token and how long it lives, if the realm says so.
pub(crate) struct Token {
    pub(super) token: Secret,
    pub(super) life: Option<Duration>,
}

/// Asks the realm of `challenge` for a token. Redirects are not followed: one could carry a refresh
/// token in a body to another host. The client's certificate is shown to the registry's host alone.
pub(super) async fn fetch(
    auth: &Auth,
    ways: &Ways<'_>,
    challenge: &Challenge,
    credentials: &Credentials,
) -> Result<Token, Failure> {
    let text = challenge.realm.as_deref().unwrap_or_default();
    let anonymous = *credentials == Credentials::Anonymous;
    let url = realm::check(text, &auth.host, anonymous, auth.plain_http).map_err(Failure::last)?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let http = if host == realm::host_of(&auth.host) { ways.own } else { ways.away };
    let request = request(auth, http, url, challenge, credentials);
    match tokio::time::timeout(ways.limit, read(auth, &host, request)).await {
        Ok(token) => token,
        Err(_) => {
            let message = format!("the token realm of {} answers too slowly", auth.host);
            Err(Failure::again(Error::new(ErrorKind::RegistryUnreachable, message)))
        }
    }
}

fn request(
    auth: &Auth,
    http: &reqwest::Client,
    mut realm: Url,
    challenge: &Challenge,
    credentials: &Credentials,
) -> reqwest::RequestBuilder {
    let scope = challenge.scope.as_deref().unwrap_or(&auth.scope);
    let service = challenge.service.as_deref().unwrap_or_default();
    if let Credentials::Identity(token) = credentials {
        // OAuth2 (distribution specification, *OAuth2 Token Authentication*): in the body, not the address.
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", "skiff"),
            ("service", service),
            ("scope", scope),
            ("refresh_token", token.reveal()),
        ];
        return http
            .post(realm)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(encode_form(&form));
    }
    realm.query_pairs_mut().append_pair("service", service).append_pair("scope", scope);
    let request = http.get(realm);
    match credentials {
        Credentials::Password { username, password } => match basic(username, password) {
            Some(header) => request.header(AUTHORIZATION, header),
            None => request,
        },
        _ => request,
    }
}

async fn read(auth: &Auth, host: &str, request: reqwest::RequestBuilder) -> Result<Token, Failure> {
    let failed = |kind, why: String| Error::new(kind, format!("the token realm {host} {why}"));
    let mut response = request.send().await.map_err(|e| transport(e, host))?;
    let (status, wait) = (response.status(), retry::asked_by(response.headers()));
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| transport(e, host))? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_TOKEN_BYTES {
            let why = format!("answered more than {MAX_TOKEN_BYTES} bytes");
            return Err(Failure::last(failed(ErrorKind::RegistryFailed, why)));
        }
    }
    let said = format!("answered {} for {}", status.as_u16(), auth.host);
    match status.as_u16() {
        200 => parse(&body)
            .ok_or_else(|| Failure::last(failed(ErrorKind::RegistryFailed, "answered no token".into()))),
        400 | 401 | 403 => {
            Err(Failure::last(failed(ErrorKind::Unauthorized, said).advise(auth.advice().await)))
        }
        429 => Err(Failure::again_after(failed(ErrorKind::RegistryThrottled, said), wait)),
        500.. => Err(Failure::again_after(failed(ErrorKind::RegistryFailed, said), wait)),
        _ => Err(Failure::last(failed(ErrorKind::RegistryFailed, said))),
    }
}

/// Reads a realm's answer. Any bytes may come.
pub(crate) fn parse(body: &[u8]) -> Option<Token> {
    #[derive(serde::Deserialize)]
    struct Body {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    let token = body.token.or(body.access_token).filter(|t| !t.is_empty())?;
    // A day is for ever in a pull. Without a life, the registry's refusal is waited for.
    let life = body.expires_in.map(|seconds| Duration::from_secs(seconds.clamp(1, 86_400)));
    Some(Token { token: Secret::new(token), life })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_two_names() {
        let read = |text: &str| parse(text.as_bytes()).map(|t| t.token.reveal().to_owned());
        assert_eq!(read(r#"{"token":"a","access_token":"a","expires_in":300}"#).as_deref(), Some("a"));
        assert_eq!(read(r#"{"access_token":"b"}"#).as_deref(), Some("b"));
        assert_eq!(read("{}"), None);
        assert_eq!(read("<html>"), None);
    }
}
