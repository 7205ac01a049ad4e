//! How a registry is shown who asks: Basic, or a token from the realm that its challenge names
//! (distribution specification, *Token Authentication*; RFC 9110, section 11).
//!
//! A challenge comes from the network and names any address it likes, so:
//! - a realm is spoken to over HTTPS, or over HTTP only where plain HTTP was asked for;
//! - credentials go to a realm only if its host is the registry's, or both are below the same
//!   registrable domain (`registry-1.docker.io` and `auth.docker.io`);
//! - an anonymous token may come from a foreign realm that has a domain name, so that a challenge
//!   cannot make this host ask an address inside its own network.

use std::net::IpAddr;
use std::sync::Mutex;

use bytes::BytesMut;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use super::retry::{Failure, transport};
use super::{DOCUMENT_TIMEOUT, Reference};
use crate::image::credentials::{Credentials, Secret};
use crate::{Error, ErrorKind};

/// Bytes of a token realm's answer.
const MAX_TOKEN_BYTES: usize = 64 << 10;

/// The credentials of one repository and what they were turned into.
pub(super) struct Auth {
    credentials: Credentials,
    host: String,
    scope: String,
    plain_http: bool,
    header: Mutex<Option<HeaderValue>>,
}

impl Auth {
    pub(super) fn new(credentials: Credentials, reference: &Reference, plain_http: bool) -> Self {
        let scope = format!("repository:{}:pull", reference.repository());
        Self { credentials, host: reference.host().to_owned(), scope, plain_http, header: Mutex::default() }
    }

    /// The header for the next request to the registry; none before it asked.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        self.header.lock().map_or(None, |header| header.clone())
    }

    /// What to do about a refusal.
    pub(super) fn advice(&self) -> &'static str {
        match self.credentials {
            Credentials::Anonymous => {
                "give credentials for this registry; many registries also refuse a repository that does not exist"
            }
            _ => {
                "check user name and password, whether they have expired, and that they may pull this repository"
            }
        }
    }

    /// Answers a challenge; `false` if there is nothing more to show.
    pub(super) async fn answer(&self, http: &reqwest::Client, headers: &HeaderMap) -> Result<bool, Failure> {
        let challenges: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().and_then(Challenge::parse))
            .collect();
        let header = if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") {
            let token = tokio::time::timeout(DOCUMENT_TIMEOUT, self.token(http, bearer)).await;
            let token = token.map_err(|_| {
                let message = format!("the token realm of {} answers too slowly", self.host);
                Failure::again(Error::new(ErrorKind::RegistryUnreachable, message))
            })??;
            sensitive(&format!("Bearer {}", token.reveal()))
        } else if challenges.iter().any(|c| c.scheme == "basic") {
            match &self.credentials {
                Credentials::Password { username, password } => basic(username, password),
                _ => return Ok(false),
            }
        } else {
            return Ok(false);
        };
        let header = header.ok_or_else(|| {
            Failure::last(Error::new(
                ErrorKind::InvalidCredentials,
                "the credentials or the token have characters that HTTP does not allow",
            ))
        })?;
        let mut slot = self.header.lock().map_err(|_| {
            Failure::last(Error::new(ErrorKind::Internal, "a thread panicked with the registry's token"))
        })?;
        *slot = Some(header);
        Ok(true)
    }

    async fn token(&self, http: &reqwest::Client, challenge: &Challenge) -> Result<Secret, Failure> {
        let realm = self.realm(challenge).map_err(Failure::last)?;
        let host = realm.host_str().unwrap_or_default().to_owned();
        let request = self.token_request(http, realm, challenge);
        let failed = |kind, why: String| Error::new(kind, format!("the token realm {host} {why}"));
        let mut response = request.send().await.map_err(|e| transport(e, &host))?;
        let status = response.status();
        let mut body = BytesMut::new();
        loop {
            let Some(chunk) = response.chunk().await.map_err(|e| transport(e, &host))? else { break };
            body.extend_from_slice(&chunk);
            if body.len() > MAX_TOKEN_BYTES {
                let why = format!("answered more than {MAX_TOKEN_BYTES} bytes");
                return Err(Failure::last(failed(ErrorKind::RegistryFailed, why)));
            }
        }
        let said = format!("answered {} for {}", status.as_u16(), self.host);
        match status.as_u16() {
            200 => read_token(&body)
                .ok_or_else(|| Failure::last(failed(ErrorKind::RegistryFailed, "answered no token".into()))),
            400 | 401 | 403 => {
                Err(Failure::last(failed(ErrorKind::Unauthorized, said).advise(self.advice())))
            }
            429 => Err(Failure::again(failed(ErrorKind::RegistryThrottled, said))),
            500.. => Err(Failure::again(failed(ErrorKind::RegistryFailed, said))),
            _ => Err(Failure::last(failed(ErrorKind::RegistryFailed, said))),
        }
    }

    fn token_request(
        &self,
        http: &reqwest::Client,
        mut realm: Url,
        challenge: &Challenge,
    ) -> reqwest::RequestBuilder {
        let scope = challenge.scope.as_deref().unwrap_or(&self.scope);
        let service = challenge.service.as_deref().unwrap_or_default();
        if let Credentials::Identity(token) = &self.credentials {
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
        match &self.credentials {
            Credentials::Password { username, password } => match basic(username, password) {
                Some(header) => request.header(AUTHORIZATION, header),
                None => request,
            },
            _ => request,
        }
    }

    /// The realm of a challenge, if it may be spoken to.
    fn realm(&self, challenge: &Challenge) -> Result<Url, Error> {
        let refused = |why: String| {
            Error::new(
                ErrorKind::Unauthorized,
                format!("the registry {} names a token realm that {why}", self.host),
            )
        };
        let text = challenge.realm.as_deref().unwrap_or_default();
        let realm = Url::parse(text).map_err(|_| refused("is not an address".into()))?;
        let Some(host) = realm.host_str() else {
            return Err(refused("has no host".into()));
        };
        if !(realm.scheme() == "https" || realm.scheme() == "http" && self.plain_http) {
            return Err(refused(format!("is not reached over HTTPS ({host})")));
        }
        let registry = host_of(&self.host);
        if host == registry {
            return Ok(realm);
        }
        if self.credentials == Credentials::Anonymous {
            if is_address(host) || !host.contains('.') {
                return Err(refused(format!("is the address {host}, which is not the registry's own")));
            }
            return Ok(realm);
        }
        if same_site(host, registry) {
            return Ok(realm);
        }
        Err(refused(format!("is foreign to it ({host}), so the credentials are not sent there"))
            .advise("pull from a registry whose token realm is of its own domain"))
    }
}

/// The host of `HOST[:PORT]`.
fn host_of(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    }
}

fn is_address(host: &str) -> bool {
    host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

/// Whether two host names are below one domain that someone registered: the last two labels, or
/// three where the last two are of a country's second level (`com.cn`, `co.uk`).
fn same_site(a: &str, b: &str) -> bool {
    match (site(a), site(b)) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        _ => false,
    }
}

fn site(host: &str) -> Option<&str> {
    if is_address(host) {
        return None;
    }
    let starts: Vec<usize> =
        std::iter::once(0).chain(host.match_indices('.').map(|(at, _)| at + 1)).collect();
    let label = |from_end: usize| starts.len().checked_sub(from_end).map(|at| &host[starts[at]..]);
    let two = label(2)?;
    let (second, top) = two.split_once('.')?;
    let labels = if top.len() == 2 && second.len() <= 3 { 3 } else { 2 };
    label(labels)
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn basic(username: &Secret, password: &Secret) -> Option<HeaderValue> {
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

fn encode_form(pairs: &[(&str, &str)]) -> String {
    // Any base will do: only the query is taken.
    let Ok(mut url) = Url::parse("http://form/") else { return String::new() };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

fn read_token(body: &[u8]) -> Option<Secret> {
    #[derive(serde::Deserialize)]
    struct Body {
        token: Option<String>,
        access_token: Option<String>,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    body.token.or(body.access_token).filter(|t| !t.is_empty()).map(Secret::new)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    realm: Option<String>,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// `SCHEME NAME="VALUE",NAME=VALUE…`, one challenge per header as all registries send it.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut challenge = Self { scheme: scheme.to_ascii_lowercase(), ..Self::default() };
        while let Some((name, value, after)) = parameter(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => challenge.realm = Some(value),
                "service" => challenge.service = Some(value),
                "scope" => challenge.scope = Some(value),
                _ => {}
            }
            rest = after;
        }
        (!challenge.scheme.is_empty()).then_some(challenge)
    }
}

fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = text.trim_start_matches([',', ' ', '\t']).split_once('=')?;
    let rest = rest.trim_start();
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find([',', ' ']).unwrap_or(rest.len());
        return Some((name.trim(), rest[..end].to_owned(), &rest[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((name.trim(), value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(registry: &str, credentials: Credentials, plain_http: bool) -> Auth {
        Auth::new(credentials, &format!("{registry}/a/b").parse().expect("reference"), plain_http)
    }

    fn password() -> Credentials {
        Credentials::Password { username: Secret::new("u".into()), password: Secret::new("p".into()) }
    }

    fn challenge(realm: &str) -> Challenge {
        Challenge { scheme: "bearer".into(), realm: Some(realm.into()), ..Challenge::default() }
    }

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io", scope="repository:a/b:pull,push""#;
        let read = Challenge::parse(text).expect("valid");
        assert_eq!(read.scheme, "bearer");
        assert_eq!(read.realm.as_deref(), Some("https://auth.docker.io/token"));
        assert_eq!(read.scope.as_deref(), Some("repository:a/b:pull,push"));
        let read = Challenge::parse(r#"BASIC realm="a \"b\" c""#).expect("valid");
        assert_eq!((read.scheme.as_str(), read.realm.as_deref()), ("basic", Some("a \"b\" c")));
        assert_eq!(Challenge::parse("Negotiate").expect("valid").realm, None);
        assert_eq!(Challenge::parse(r#"Bearer realm="open"#).expect("valid").realm, None);
        assert_eq!(Challenge::parse(""), None);
    }

    #[test]
    fn credentials_stay_on_their_site() {
        let may = |registry: &str, realm: &str| {
            auth(registry, password(), false).realm(&challenge(realm)).map(drop).map_err(|e| e.to_string())
        };
        for (registry, realm) in [
            ("docker.io", "https://auth.docker.io/token"),
            ("registry.cn-hangzhou.aliyuncs.com", "https://dockerauth.cn-hangzhou.aliyuncs.com/auth"),
            ("r.example:5000", "https://r.example:5001/token"),
            ("registry.example.com.cn", "https://auth.example.com.cn/"),
            ("127.0.0.1:5000", "https://127.0.0.1:5001/"),
        ] {
            may(registry, realm).expect(realm);
        }
        for (registry, realm) in [
            ("docker.io", "https://auth.evil.io/token"),
            ("docker.io", "http://auth.docker.io/token"),
            ("a.com.cn", "https://b.com.cn/"),
            ("a.co.uk", "https://b.co.uk/"),
            ("127.0.0.1", "https://127.0.0.2/"),
            ("10.0.0.1", "https://1.0.0.1/"),
            ("docker.io", "https://docker.io.evil.com/"),
            ("docker.io", "https://docker.io@evil.com/"),
            ("docker.io", "file:///etc/passwd"),
            ("docker.io", "nonsense"),
        ] {
            let error = may(registry, realm).expect_err(realm);
            assert!(error.contains("token realm"), "{error}");
        }
    }

    #[test]
    fn anonymous_tokens_do_not_come_from_inside() {
        let may =
            |realm: &str| auth("lscr.io", Credentials::Anonymous, false).realm(&challenge(realm)).map(drop);
        may("https://ghcr.io/token").expect("another registry's realm");
        for realm in ["https://169.254.169.254/", "https://[::1]/", "https://localhost/", "http://ghcr.io/"] {
            may(realm).expect_err(realm);
        }
        auth("10.0.0.1", Credentials::Anonymous, true)
            .realm(&challenge("http://10.0.0.1:8080/"))
            .expect("own host");
    }

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

    #[test]
    fn tokens_have_two_names() {
        let read = |text: &str| read_token(text.as_bytes()).map(|t| t.reveal().to_owned());
        assert_eq!(read(r#"{"token":"a","access_token":"a","expires_in":300}"#).as_deref(), Some("a"));
        assert_eq!(read(r#"{"access_token":"b"}"#).as_deref(), Some("b"));
        assert_eq!(read("{}"), None);
        assert_eq!(read("<html>"), None);
    }
}
