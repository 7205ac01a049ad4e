//! Credentials from a service: `GET URL?registry=HOST&repository=NAME`, answered by the JSON of a
//! credentials file.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use reqwest::Url;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};

use super::document::{self, MAX_BYTES};
use super::file::open_regular;
use super::{CredentialRequest, Credentials, Lease, invalid};
use crate::image::registry::proxies::Proxies;
use crate::image::registry::transport::{self, Times, Tls};
use crate::{Error, Result};

/// A service that gives credentials: `GET URL?registry=HOST&repository=NAME`, answered with the JSON
/// of a credentials file, or 404 for an anonymous pull. Redirects are not followed.
#[derive(Clone)]
pub struct CredentialEndpoint {
    /// `https://…`, `http://…` of this host's own loopback, or `unix:/PATH` of a socket.
    pub url: String,
    /// What the service is shown as `Authorization: Bearer`.
    pub token: Option<EndpointToken>,
}

/// The token that a credentials service is shown.
#[derive(Clone)]
pub enum EndpointToken {
    /// The token itself.
    Value(String),
    /// A file that has it, read each time; white space around it is dropped.
    File(PathBuf),
}

impl fmt::Debug for CredentialEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialEndpoint")
            .field("url", &shown(&self.url))
            .field("token", &self.token)
            .finish()
    }
}

impl fmt::Debug for EndpointToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("(redacted)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// An address without its query and user, which may be secret.
fn shown(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    match (plain.split_once("://"), plain.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{rest}"),
        _ => plain.to_owned(),
    }
}

impl CredentialEndpoint {
    /// Asks the service.
    ///
    /// # Errors
    /// `InvalidCredentials`, which shows nothing of the answer.
    pub(super) async fn ask(
        &self,
        request: &CredentialRequest,
        ca_files: &[PathBuf],
        proxies: &Proxies,
        times: &Times,
    ) -> Result<Lease> {
        let query = [("registry", request.registry.as_str()), ("repository", request.repository.as_str())];
        let what = self.what();
        match self.get(&query, ca_files, proxies, times).await? {
            Some(body) => document::parse(&body, &what, SystemTime::now()),
            None => Ok(Lease::lasting(Credentials::Anonymous)),
        }
    }

    /// Asks the service for a document about something else, by these parameters. `None` is its 404.
    ///
    /// # Errors
    /// `InvalidCredentials`, which shows nothing of the answer.
    pub async fn document(&self, query: &[(&str, &str)]) -> Result<Option<Vec<u8>>> {
        self.get(query, &[], &Proxies::from_env(), &Times::default()).await
    }

    fn what(&self) -> String {
        format!("the credentials service {}", shown(&self.url))
    }

    async fn get(
        &self,
        query: &[(&str, &str)],
        ca_files: &[PathBuf],
        proxies: &Proxies,
        times: &Times,
    ) -> Result<Option<Vec<u8>>> {
        let what = self.what();
        let (url, socket) = self.address(query, &what)?;
        let tls = Tls { ca_files: ca_files.to_vec(), identity: None };
        let http = transport::build(&tls, proxies, times, socket.as_deref())?;
        let mut get = http.get(url).header(ACCEPT, "application/json");
        if let Some(token) = self.token(&what)? {
            get = get.header(AUTHORIZATION, token);
        }
        let answer = tokio::time::timeout(times.document, read(get, &what)).await;
        answer.map_err(|_| invalid(format!("{what} answers too slowly")))?
    }

    /// The address to get, and the socket to get it by.
    fn address(&self, query: &[(&str, &str)], what: &str) -> Result<(Url, Option<PathBuf>)> {
        let refused = |why: &str| {
            invalid(format!("{what} {why}"))
                .advise("give https://HOST/PATH, http://127.0.0.1:PORT/PATH or unix:/PATH")
        };
        let socket = self.url.strip_prefix("unix:").map(PathBuf::from);
        let text = if socket.is_some() { "http://localhost/" } else { self.url.as_str() };
        if socket.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(refused("is not an absolute path"));
        }
        let mut url = Url::parse(text).map_err(|_| refused("is not an address"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("has a user or a password in its address")
                .advise("give its token by a variable or a file"));
        }
        match url.scheme() {
            "https" => {}
            "http" if url.host_str().is_some_and(transport::is_loopback) => {}
            "http" => return Err(refused("is not on this host, so it must be reached over HTTPS")),
            _ => return Err(refused("is neither HTTPS nor a Unix socket")),
        }
        url.query_pairs_mut().extend_pairs(query);
        Ok((url, socket))
    }

    fn token(&self, what: &str) -> Result<Option<HeaderValue>> {
        let text = match &self.token {
            None => return Ok(None),
            Some(EndpointToken::Value(text)) => text.clone(),
            Some(EndpointToken::File(path)) => read_token(path)?,
        };
        let value = HeaderValue::from_str(&format!("Bearer {}", text.trim()));
        let mut value = value
            .map_err(|_| invalid(format!("the token for {what} has characters that HTTP does not allow")))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn read_token(path: &std::path::Path) -> Result<String> {
    use std::io::Read as _;
    let unreadable =
        |e: std::io::Error| invalid(format!("the token file {} cannot be read", path.display())).because(e);
    let mut text = String::new();
    let file = open_regular(path).map_err(unreadable)?;
    file.take(MAX_BYTES as u64).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

/// The body of a good answer; none if there are no credentials.
async fn read(get: reqwest::RequestBuilder, what: &str) -> Result<Option<Vec<u8>>> {
    let broken = |e: reqwest::Error| -> Error {
        invalid(format!("{what} cannot be reached")).because(e.without_url())
    };
    let mut response = get.send().await.map_err(broken)?;
    match response.status().as_u16() {
        200 => {}
        404 => return Ok(None),
        status => return Err(invalid(format!("{what} answered {status}"))),
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BYTES {
            return Err(invalid(format!("{what} answered more than {MAX_BYTES} bytes")));
        }
    }
    Ok(Some(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let address = |url: &str| {
            CredentialEndpoint { url: url.into(), token: None }
                .address(&[("registry", "[::1]:5000"), ("repository", "a/b")], "x")
                .map(|(url, socket)| (url.to_string(), socket))
        };
        let (url, _) = address("https://h/p?k=v").expect("https");
        assert_eq!(url, "https://h/p?k=v&registry=%5B%3A%3A1%5D%3A5000&repository=a%2Fb");
        address("http://127.0.0.1:80/").expect("loopback");
        address("http://[::1]/").expect("loopback");
        assert_eq!(address("unix:/run/x").expect("socket").1, Some("/run/x".into()));
        for bad in ["http://10.0.0.1/", "http://h/", "ftp://h/", "x", "unix:rel", "https://u:s3cret@h/"] {
            let error = address(bad).expect_err(bad);
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        assert_eq!(shown("https://u:s3cret@h/p?s3cret#s3cret"), "https://h/p");
    }
}
