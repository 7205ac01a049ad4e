//! A registry, spoken to as the OCI distribution specification says (*Pull*).
//!
//! References, media types and the registry's errors are `oci-client`'s. The transport is `reqwest`
//! and not `oci_client::Client` (0.18): Skiff must bound manifests before they are in memory, must
//! see `Retry-After` and resume a broken layer, and must decide itself which host is shown
//! credentials; that client reads whole bodies, hides headers and sends the password to whatever
//! token realm the registry names.
//!
//! Where credentials go:
//! - to the registry's host and port, after it asked for them, over the scheme that was chosen;
//! - to the token realm of its challenge, under the rule in [`auth`];
//! - nowhere else. On a redirect to another host, port or scheme `reqwest` 0.13 takes
//!   `Authorization` off (`redirect.rs`, `remove_sensitive_headers`); a redirect from HTTPS to HTTP
//!   is refused here, and token realms are not followed at all. Layer descriptors' `urls` are never read.

mod auth;
mod retry;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use oci_client::errors::OciEnvelope;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use self::auth::Auth;
use self::retry::transport;
use super::credentials::Credentials;
use super::digest::Digest;
use super::source::Reference;
use super::{PullOptions, limits, manifest};
use crate::{Error, ErrorKind, Result};

pub(crate) use retry::{Backoff, Failure};

/// Until the registry's port accepts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time without a byte.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for a manifest, a configuration or a token as a whole.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Redirects that are followed: one to a mirror and one to its storage are usual.
const MAX_REDIRECTS: usize = 5;
/// Bytes of an error's body that are read.
const MAX_ERROR_BYTES: u64 = 16 << 10;

/// One repository of one registry.
pub(crate) struct Client {
    http: reqwest::Client,
    /// For token realms: a redirect could carry a refresh token in a body to another host.
    straight: reqwest::Client,
    reference: Reference,
    /// `scheme://host/v2/repository`.
    base: String,
    auth: Auth,
}

impl Client {
    /// A client for `reference`; nothing is sent yet.
    ///
    /// # Errors
    /// `InvalidArgument` for a CA file that cannot be used.
    pub(crate) fn new(
        reference: &Reference,
        options: &PullOptions,
        credentials: Credentials,
    ) -> Result<Self> {
        install_crypto_provider();
        let scheme = if options.plain_http { "http" } else { "https" };
        let http = build(options, redirects())?;
        let straight = build(options, reqwest::redirect::Policy::none())?;
        let base = format!("{scheme}://{}/v2/{}", reference.host(), reference.repository());
        let auth = Auth::new(credentials, reference, options.plain_http);
        Ok(Self { http, straight, reference: reference.clone(), base, auth })
    }

    /// A manifest under a tag or digest, and what the registry calls its type.
    pub(crate) async fn manifest(&self, target: &str) -> Result<(Bytes, Option<String>)> {
        let url = format!("{}/manifests/{target}", self.base);
        let accept = manifest::ACCEPTED.join(", ");
        let get = Get { url: &url, accept: Some(&accept), offset: 0, what: &format!("{}", self.reference) };
        let mut backoff = Backoff::default();
        loop {
            let answer = async {
                let response = self.get(&get).await?;
                let declared = content_type(response.headers());
                let body = self.bounded(response, "manifest", limits::MAX_MANIFEST_BYTES).await?;
                Ok((body, declared))
            };
            match answer.await {
                Ok(answer) => return Ok(answer),
                Err(failure) => backoff.after(failure).await?,
            }
        }
    }

    /// A small blob, such as a configuration.
    pub(crate) async fn blob(&self, digest: &Digest, size: u64) -> Result<Bytes> {
        let mut backoff = Backoff::default();
        loop {
            let answer = async {
                let response = self.blob_from(digest, 0).await?;
                self.bounded(response, "configuration", size).await
            };
            match answer.await {
                Ok(answer) => return Ok(answer),
                Err(failure) => backoff.after(failure).await?,
            }
        }
    }

    /// The answer with a blob's bytes from `offset` on; all of them if the status is not 206.
    pub(crate) async fn blob_from(&self, digest: &Digest, offset: u64) -> Result<Response, Failure> {
        let url = format!("{}/blobs/{digest}", self.base);
        let what = format!("{digest} of {}", self.reference);
        self.get(&Get { url: &url, accept: None, offset, what: &what }).await
    }

    /// The next bytes of an answer.
    pub(crate) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(PROGRESS_TIMEOUT, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(e)) => Err(Failure::again(self.broken_off(e))),
            Err(_) => Err(Failure::again(self.stalled())),
        }
    }

    async fn get(&self, get: &Get<'_>) -> Result<Response, Failure> {
        let response = self.send(get).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.check(response, get).await;
        }
        if !self.auth.answer(&self.straight, response.headers()).await? {
            return self.check(response, get).await;
        }
        let response = self.send(get).await?;
        self.check(response, get).await
    }

    async fn send(&self, get: &Get<'_>) -> Result<Response, Failure> {
        let mut request = self.http.get(get.url);
        if let Some(accept) = get.accept {
            request = request.header(ACCEPT, accept);
        }
        if get.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", get.offset));
        }
        if let Some(authorization) = self.auth.header() {
            request = request.header(reqwest::header::AUTHORIZATION, authorization);
        }
        match tokio::time::timeout(PROGRESS_TIMEOUT, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => Err(transport(e, self.reference.host())),
            Err(_) => Err(Failure::again(self.stalled())),
        }
    }

    /// Turns a status that is no success into an error.
    async fn check(&self, response: Response, get: &Get<'_>) -> Result<Response, Failure> {
        let status = response.status();
        if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(response);
        }
        let wait = retry_after(response.headers());
        let said =
            self.bounded(response, "error", MAX_ERROR_BYTES).await.map(|b| said(&b)).unwrap_or_default();
        let host = self.reference.host();
        let error = |kind, text: String| Error::new(kind, format!("{text}{said}"));
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::last(
                error(
                    ErrorKind::Unauthorized,
                    format!("the registry {host} refused {} ({})", get.what, status.as_u16()),
                )
                .advise(self.auth.advice()),
            )),
            StatusCode::NOT_FOUND => Err(Failure::last(
                error(ErrorKind::ImageNotFound, format!("the registry {host} has no {}", get.what))
                    .advise("check the repository, and the tag or digest"),
            )),
            StatusCode::TOO_MANY_REQUESTS => Err(Failure::again_after(
                error(ErrorKind::RegistryThrottled, format!("the registry {host} asks to slow down (429)")),
                wait,
            )),
            status if status.is_server_error() => Err(Failure::again_after(
                error(ErrorKind::RegistryFailed, format!("the registry {host} failed ({})", status.as_u16())),
                wait,
            )),
            status => Err(Failure::last(error(
                ErrorKind::RegistryFailed,
                format!("the registry {host} answered {} for {}", status.as_u16(), get.what),
            ))),
        }
    }

    async fn bounded(&self, response: Response, what: &str, limit: u64) -> Result<Bytes, Failure> {
        match tokio::time::timeout(DOCUMENT_TIMEOUT, self.read(response, what, limit)).await {
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

    fn broken_off(&self, error: reqwest::Error) -> Error {
        let message = format!("the connection to the registry {} broke", self.reference.host());
        Error::new(ErrorKind::RegistryUnreachable, message).because(error.without_url())
    }

    /// The error of a connection that brings next to nothing.
    pub(crate) fn too_slow(&self) -> Error {
        let message = format!("the registry {} sends too slowly", self.reference.host());
        Error::new(ErrorKind::RegistryUnreachable, message)
    }

    fn stalled(&self) -> Error {
        let (host, seconds) = (self.reference.host(), PROGRESS_TIMEOUT.as_secs());
        Error::new(
            ErrorKind::RegistryUnreachable,
            format!("the registry {host} sent nothing for {seconds} seconds"),
        )
    }
}

struct Get<'a> {
    url: &'a str,
    accept: Option<&'a str>,
    offset: u64,
    /// The image or blob, for errors.
    what: &'a str,
}

/// TLS needs a process-wide cryptography provider; where the program has not chosen one, it is ring.
fn install_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let from_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
        if from_https && attempt.url().scheme() != "https" {
            return attempt.error("a redirect from HTTPS to HTTP is refused");
        }
        if attempt.previous().len() > MAX_REDIRECTS {
            return attempt.error("too many redirects");
        }
        attempt.follow()
    })
}

fn build(options: &PullOptions, redirects: reqwest::redirect::Policy) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("skiff/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(redirects);
    for file in &options.ca_files {
        builder = builder.tls_certs_merge(certificates(file)?);
    }
    builder.build().map_err(|e| {
        Error::new(ErrorKind::Host, "set up TLS").because(e.without_url()).advise("install ca-certificates")
    })
}

/// Bytes of a CA file; the whole list of Mozilla has 220 KiB.
const MAX_CA_BYTES: u64 = 4 << 20;

fn certificates(file: &std::path::Path) -> Result<Vec<reqwest::Certificate>> {
    use std::io::Read as _;
    let invalid = |why: &str| {
        Error::new(ErrorKind::InvalidArgument, format!("the CA file {} {why}", file.display()))
            .advise("name a file with certificates in PEM form")
    };
    let mut pem = Vec::new();
    std::fs::File::open(file)
        .and_then(|f| f.take(MAX_CA_BYTES).read_to_end(&mut pem))
        .map_err(|e| invalid("cannot be read").because(e))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem)
        .map_err(|e| invalid("is broken").because(e.without_url()))?;
    if found.is_empty() { Err(invalid("has no certificates")) } else { Ok(found) }
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next()?.trim().to_owned())
}

/// `Retry-After` in seconds; its other form, a date, is not used by registries.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// What the registry says about an error (OCI distribution specification, *Error Codes*).
fn said(body: &[u8]) -> String {
    let Ok(body) = serde_json::from_slice::<OciEnvelope>(body) else { return String::new() };
    let Some(first) = body.errors.first() else { return String::new() };
    let message: String = first.message.chars().filter(|c| !c.is_control()).take(200).collect();
    // The code as it is on the wire, `MANIFEST_UNKNOWN`.
    let code = serde_json::to_value(&first.code).ok();
    let code = code.as_ref().and_then(|code| code.as_str()).unwrap_or_default();
    format!(": {code} {message}").trim_end().to_owned()
}
