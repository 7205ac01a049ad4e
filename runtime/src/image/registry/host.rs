//! One host that has a repository: requests, redirects, refusals, statuses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use oci_client::errors::OciEnvelope;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, LOCATION, RANGE};
use reqwest::{Response, StatusCode, Url};

use super::auth::{Auth, Ways};
use super::retry::{self, Failure, transport};
use super::transport::Times;
use crate::image::limits;
use crate::{Error, ErrorKind};

/// Redirects that are followed: one to a mirror and one to its storage are usual.
const MAX_REDIRECTS: usize = 5;
/// Refusals of one request that are answered: for a token that ran out, and for credentials that did.
const MAX_ANSWERS: usize = 2;
/// Bytes of an error's body that are read.
const MAX_ERROR_BYTES: u64 = 16 << 10;

/// A registry or a mirror, and one repository in it.
pub(super) struct Host {
    /// `HOST[:PORT]`, for errors.
    pub(super) name: String,
    /// `scheme://host[/path]/v2/repository`.
    pub(super) base: Url,
    /// The registry that a mirror stands for, as containerd tells it (`?ns=`).
    pub(super) namespace: Option<String>,
    /// More headers, for this host alone.
    pub(super) headers: HeaderMap,
    /// Whether it may say which manifest a tag is.
    pub(super) resolve: bool,
    /// Whether it may be asked for what a digest names.
    pub(super) pull: bool,
    /// Connections with this host's client certificate.
    pub(super) own: reqwest::Client,
    /// Connections to where it redirects.
    pub(super) away: reqwest::Client,
    pub(super) auth: Auth,
    pub(super) times: Times,
    /// A mirror that failed is not asked again in this pull.
    pub(super) down: AtomicBool,
}

/// What is wanted of a host.
pub(super) struct Get<'a> {
    /// Below the repository, such as `blobs/sha256:…`.
    pub(super) path: &'a str,
    pub(super) accept: Option<&'a str>,
    pub(super) offset: u64,
    /// The image or blob, for errors.
    pub(super) what: &'a str,
}

impl Host {
    /// Notes why a mirror is passed over.
    pub(super) fn pass_over(&self, failure: &Failure) {
        if failure.error.kind() != ErrorKind::ImageNotFound {
            self.down.store(true, Ordering::Relaxed);
        }
        tracing::info!(mirror = %self.name, why = %failure.error.chain(), "a mirror is passed over");
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// The answer to a request, with the headers of a success.
    pub(super) async fn get(&self, get: &Get<'_>) -> Result<Response, Failure> {
        let url = self.url(get.path)?;
        let ways = Ways { own: &self.own, away: &self.away, limit: self.times.document };
        for round in 0.. {
            let (generation, authorization) = self.auth.header(&ways).await;
            let (response, home) = self.send(get, &url, authorization).await?;
            // Only the registry itself may ask for credentials, not where it redirects.
            let asks = response.status() == StatusCode::UNAUTHORIZED && home && round < MAX_ANSWERS;
            if !asks || !self.auth.answer(&ways, response.headers(), generation, round > 0).await? {
                return self.check(response, get, home).await;
            }
        }
        Err(Failure::last(Error::new(ErrorKind::Internal, "a request had no last round")))
    }

    fn url(&self, path: &str) -> Result<Url, Failure> {
        let text = format!("{}/{path}", self.base.as_str().trim_end_matches('/'));
        let mut url = Url::parse(&text).map_err(|e| {
            Failure::last(Error::new(ErrorKind::Internal, format!("no address: {text}")).because(e))
        })?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// Sends a request and follows where it leads. The second value tells whether the answer is the
    /// host's own: credentials, certificate and headers of its own go nowhere else, and not back.
    async fn send(
        &self,
        get: &Get<'_>,
        url: &Url,
        authorization: Option<reqwest::header::HeaderValue>,
    ) -> Result<(Response, bool), Failure> {
        let (mut url, mut home) = (url.clone(), true);
        for _ in 0..=MAX_REDIRECTS {
            let mut request = if home { &self.own } else { &self.away }.get(url.clone());
            if home {
                request = request.headers(self.headers.clone());
                if let Some(authorization) = &authorization {
                    request = request.header(AUTHORIZATION, authorization.clone());
                }
            }
            if let Some(accept) = get.accept {
                request = request.header(ACCEPT, accept);
            }
            if get.offset > 0 {
                request = request.header(RANGE, format!("bytes={}-", get.offset));
            }
            let response = match tokio::time::timeout(self.times.progress, request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(e)) => return Err(transport(e, &self.name)),
                Err(_) => return Err(Failure::again(self.stalled())),
            };
            let Some(next) = self.redirect(&response)? else { return Ok((response, home)) };
            home = home && next.origin() == self.base.origin();
            url = next;
        }
        Err(self.not_followed(&format!("more than {MAX_REDIRECTS} times")))
    }

    /// Where an answer leads, if it does.
    fn redirect(&self, response: &Response) -> Result<Option<Url>, Failure> {
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let Some(location) = response.headers().get(LOCATION) else { return Ok(None) };
        let next = location.to_str().ok().and_then(|text| response.url().join(text).ok());
        let Some(next) = next.filter(|url| url.has_host()) else {
            return Err(self.not_followed("to what is no address"));
        };
        match (response.url().scheme(), next.scheme()) {
            ("http", "http") | (_, "https") => {}
            _ => return Err(self.not_followed("from HTTPS to another scheme")),
        }
        if !next.username().is_empty() || next.password().is_some() {
            return Err(self.not_followed("to an address with a user in it"));
        }
        Ok(Some(next))
    }

    fn not_followed(&self, why: &str) -> Failure {
        let message = format!("the registry {} redirects where Skiff does not follow: {why}", self.name);
        Failure::last(Error::new(ErrorKind::RegistryFailed, message))
    }

    /// Turns a status that is no success into an error.
    async fn check(&self, response: Response, get: &Get<'_>, home: bool) -> Result<Response, Failure> {
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        if status == StatusCode::PARTIAL_CONTENT {
            return self.check_range(response, get);
        }
        let wait = retry::asked_by(response.headers());
        let host = self.shown(&response, home);
        let said = self.bounded(response, "error", MAX_ERROR_BYTES).await;
        let said = said.map(|body| said_by(&body)).unwrap_or_default();
        let error = |kind, text: String| Error::new(kind, format!("{text}{said}"));
        let number = status.as_u16();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::last(
                error(ErrorKind::Unauthorized, format!("{host} refused {} ({number})", get.what))
                    .advise(self.auth.advice().await),
            )),
            StatusCode::NOT_FOUND => Err(Failure::last(
                error(ErrorKind::ImageNotFound, format!("{host} has no {}", get.what))
                    .advise("check the repository, and the tag or digest"),
            )),
            StatusCode::TOO_MANY_REQUESTS => Err(Failure::again_after(
                error(ErrorKind::RegistryThrottled, format!("{host} asks to slow down (429)")),
                wait,
            )),
            status if status.is_server_error() => Err(Failure::again_after(
                error(ErrorKind::RegistryFailed, format!("{host} failed ({number})")),
                wait,
            )),
            _ => Err(Failure::last(error(
                ErrorKind::RegistryFailed,
                format!("{host} answered {number} for {}", get.what),
            ))),
        }
    }

    /// A part must begin where it was asked for (RFC 9110, section 14.4): others would be put together
    /// to a layer that nobody has.
    fn check_range(&self, response: Response, get: &Get<'_>) -> Result<Response, Failure> {
        let header = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let start = header.and_then(range_start);
        if get.offset > 0 && start == Some(get.offset) {
            return Ok(response);
        }
        let came = start.map_or_else(|| "no place".to_owned(), |start| format!("byte {start}"));
        let message = format!(
            "the registry {} answered a part of {} from {came} on, asked for byte {}",
            self.name, get.what, get.offset
        );
        Err(Failure::last(Error::new(ErrorKind::RegistryFailed, message)))
    }

    /// Reads a body of at most `limit` bytes.
    pub(super) async fn bounded(&self, response: Response, what: &str, limit: u64) -> Result<Bytes, Failure> {
        match tokio::time::timeout(self.times.document, self.read(response, what, limit)).await {
            Ok(read) => read,
            Err(_) => Err(Failure::again(self.too_slow())),
        }
    }

    async fn read(&self, mut response: Response, what: &str, limit: u64) -> Result<Bytes, Failure> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            body.extend_from_slice(&chunk);
            limits::check(&format!("bytes of the {what}"), body.len() as u64, limit)
                .map_err(Failure::last)?;
        }
        Ok(body.freeze())
    }

    /// The next bytes of an answer.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(self.times.progress, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(e)) => {
                let message = format!("the connection to the registry {} broke", self.name);
                let error = Error::new(ErrorKind::RegistryUnreachable, message);
                Err(Failure::again(error.because(e.without_url())))
            }
            Err(_) => Err(Failure::again(self.stalled())),
        }
    }

    /// The error of a connection that brings next to nothing.
    pub(super) fn too_slow(&self) -> Error {
        let message = format!("the registry {} sends too slowly", self.name);
        Error::new(ErrorKind::RegistryUnreachable, message)
    }

    fn stalled(&self) -> Error {
        let time = shown_time(self.times.progress);
        let message = format!("the registry {} sent nothing for {time}", self.name);
        Error::new(ErrorKind::RegistryUnreachable, message)
    }

    /// Who answered, for errors.
    fn shown(&self, response: &Response, home: bool) -> String {
        let registry = format!("the registry {}", self.name);
        if home {
            return registry;
        }
        let storage = response.url().host_str().unwrap_or_default();
        format!("{storage}, where {registry} redirects,")
    }
}

/// A time in words.
pub(crate) fn shown_time(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{} seconds", time.as_secs())
    } else {
        format!("{} ms", time.as_millis())
    }
}

/// The first byte's place of `bytes FIRST-LAST/SIZE`.
fn range_start(text: &str) -> Option<u64> {
    let (unit, range) = text.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, _) = range.split_once('-')?;
    first.trim().parse().ok()
}

/// What the registry says about an error (OCI distribution specification, *Error Codes*).
fn said_by(body: &[u8]) -> String {
    let Ok(body) = serde_json::from_slice::<OciEnvelope>(body) else { return String::new() };
    let Some(first) = body.errors.first() else { return String::new() };
    let message: String = first.message.chars().filter(|c| !c.is_control()).take(200).collect();
    // The code as it is on the wire, `MANIFEST_UNKNOWN`.
    let code = serde_json::to_value(&first.code).ok();
    let code = code.as_ref().and_then(|code| code.as_str()).unwrap_or_default();
    format!(": {code} {message}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_parts() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("Bytes 5-9/*"), Some(5));
        for text in ["", "bytes */10", "items 5-9/10", "bytes -5/10", "bytes 99999999999999999999-/1"] {
            assert_eq!(range_start(text), None, "{text}");
        }
    }
}
