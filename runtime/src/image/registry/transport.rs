//! Connections: trust, client certificates, proxies, times.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{NoProxy, Url};

use crate::{Error, ErrorKind, Result};

/// Bytes of a CA or certificate file; the whole list of Mozilla has 220 KiB.
const MAX_PEM_BYTES: u64 = 4 << 20;

/// How long things may take.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Times {
    /// Until the registry's port accepts.
    pub connect: Duration,
    /// Longest time without a byte.
    pub progress: Duration,
    /// Longest time for a manifest, a configuration or a token as a whole.
    pub document: Duration,
    /// Wait before the first retry; it doubles each time.
    pub first_wait: Duration,
    /// Longest wait, also when the registry asks for more.
    pub longest_wait: Duration,
    /// Longest time for a credential helper.
    pub helper: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            progress: Duration::from_secs(30),
            document: Duration::from_secs(60),
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(20),
            helper: Duration::from_secs(30),
        }
    }
}

/// A certificate that this host shows to a registry, and its key (PEM files).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key, not encrypted. May be the same file.
    pub key: PathBuf,
}

/// Proxies on the way to registries, as the usual variables have them. Loopback addresses are never
/// asked for by a proxy. Debug shows no user and no password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For plain HTTP: `http://[USER:PASSWORD@]HOST:PORT`.
    pub http: Option<String>,
    /// For HTTPS.
    pub https: Option<String>,
    /// Hosts, domains and networks that are reached without, separated by commas; `*` for all.
    pub no_proxy: Option<String>,
}

impl Proxies {
    /// From `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`; the names in lower case win. `HTTP_PROXY` does
    /// not count in a CGI program, where a client sets it (CVE-2016-5385).
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let either = |lower: &str, upper: &str| set(lower).or_else(|| set(upper));
        let http = match set("REQUEST_METHOD") {
            None => either("http_proxy", "HTTP_PROXY"),
            Some(_) => set("http_proxy"),
        };
        Self { http, https: either("https_proxy", "HTTPS_PROXY"), no_proxy: either("no_proxy", "NO_PROXY") }
    }

    fn all(&self) -> Result<Vec<reqwest::Proxy>> {
        let own = "localhost,127.0.0.0/8,::1";
        let direct = match &self.no_proxy {
            Some(more) => format!("{own},{more}"),
            None => own.to_owned(),
        };
        let mut found = Vec::new();
        for (name, text) in [("HTTP_PROXY", &self.http), ("HTTPS_PROXY", &self.https)] {
            let Some(text) = text else { continue };
            let url = proxy_address(name, text)?;
            let proxy =
                if name == "HTTP_PROXY" { reqwest::Proxy::http(url) } else { reqwest::Proxy::https(url) };
            let proxy = proxy.map_err(|_| not_a_proxy(name))?;
            found.push(proxy.no_proxy(NoProxy::from_string(&direct)));
        }
        Ok(found)
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = |text: &Option<String>| {
            text.as_ref().map(|text| match proxy_address("", text) {
                Ok(url) => url.host_str().unwrap_or_default().to_owned(),
                Err(_) => "(not an address)".to_owned(),
            })
        };
        f.debug_struct("Proxies")
            .field("http", &host(&self.http))
            .field("https", &host(&self.https))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// As curl and Go read it, `HOST:PORT` is an HTTP proxy.
fn proxy_address(name: &str, text: &str) -> Result<Url> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&whole).map_err(|_| not_a_proxy(name))?;
    if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() {
        Ok(url)
    } else {
        Err(not_a_proxy(name))
    }
}

/// The value is not shown: it may have a password.
fn not_a_proxy(name: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the value of {name} is no address of an HTTP proxy"))
        .advise("write http://[USER:PASSWORD@]HOST:PORT, or unset it")
}

/// Whether a host of an address is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Whom to trust, and what to show.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tls {
    pub(crate) ca_files: Vec<PathBuf>,
    pub(crate) identity: Option<ClientCertificate>,
}

/// A client that follows no redirects: whoever uses it decides what may follow.
///
/// # Errors
/// `InvalidArgument` for a file or proxy that cannot be used.
pub(crate) fn build(
    tls: &Tls,
    proxies: &Proxies,
    times: &Times,
    socket: Option<&Path>,
) -> Result<reqwest::Client> {
    install_crypto_provider();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("skiff/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(times.connect)
        .redirect(Policy::none())
        .no_proxy();
    for proxy in proxies.all()? {
        builder = builder.proxy(proxy);
    }
    for file in &tls.ca_files {
        builder = builder.tls_certs_merge(certificates(file)?);
    }
    if let Some(certificate) = &tls.identity {
        builder = builder.identity(identity(certificate)?);
    }
    if let Some(socket) = socket {
        builder = builder.unix_socket(socket);
    }
    builder.build().map_err(|e| {
        let error = Error::new(ErrorKind::Host, "set up TLS").because(e.without_url());
        match &tls.identity {
            Some(_) => error.advise("check that the client's key fits its certificate"),
            None => error.advise("install ca-certificates"),
        }
    })
}

/// TLS needs a process-wide cryptography provider; where the program has not chosen one, it is ring.
fn install_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn invalid(what: &str, file: &Path, why: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the {what} file {} {why}", file.display()))
}

fn read_pem(what: &str, file: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut pem = Vec::new();
    std::fs::File::open(file)
        .and_then(|f| f.take(MAX_PEM_BYTES).read_to_end(&mut pem))
        .map_err(|e| invalid(what, file, "cannot be read").because(e))?;
    Ok(pem)
}

fn certificates(file: &Path) -> Result<Vec<reqwest::Certificate>> {
    let advice = "name a file with certificates in PEM form";
    let pem = read_pem("CA", file).map_err(|e| e.advise(advice))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem)
        .map_err(|e| invalid("CA", file, "is broken").because(e.without_url()).advise(advice))?;
    if found.is_empty() { Err(invalid("CA", file, "has no certificates").advise(advice)) } else { Ok(found) }
}

fn identity(pair: &ClientCertificate) -> Result<reqwest::Identity> {
    let mut pem = read_pem("client certificate", &pair.certificate)?;
    if pair.key != pair.certificate {
        pem.push(b'\n');
        pem.extend(read_pem("client key", &pair.key)?);
    }
    // The cause is left out: nothing of a key may be shown.
    reqwest::Identity::from_pem(&pem).map_err(|_| {
        let why = format!("and the key {} are no pair in PEM form", pair.key.display());
        invalid("client certificate", &pair.certificate, &why)
            .advise("name a certificate and its key, not encrypted, both in PEM form")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &'static [(&str, &str)]) -> Proxies {
        Proxies::from_lookup(|name| {
            pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_of_both_cases() {
        let proxies = from(&[("HTTP_PROXY", "a:1"), ("http_proxy", "b:1"), ("HTTPS_PROXY", "c:1")]);
        assert_eq!((proxies.http.as_deref(), proxies.https.as_deref()), (Some("b:1"), Some("c:1")));
        assert_eq!(from(&[("HTTP_PROXY", "a"), ("REQUEST_METHOD", "GET")]), Proxies::default());
        assert_eq!(from(&[("https_proxy", "")]), Proxies::default());
    }

    #[test]
    fn a_proxys_password_is_not_shown() {
        let proxies = from(&[("http_proxy", "http://u:s3cret@p:1"), ("https_proxy", "u:s3cret@p")]);
        let shown = format!("{proxies:?}");
        assert!(!shown.contains("s3cret") && shown.contains("\"p\""), "{shown}");
        proxies.all().expect("two proxies");
        for bad in ["ftp://u:s3cret@p", "http://", "http://u:s3cret@p:99999", "socks5://u:s3cret@p"] {
            let error = Proxies { https: Some(bad.into()), ..Proxies::default() }.all().expect_err(bad);
            assert!(error.to_string().contains("HTTPS_PROXY"), "{error}");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn loopback() {
        for host in ["localhost", "127.0.0.1", "127.8.8.8", "[::1]", "::1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "10.0.0.1", "[::2]", "0.0.0.0"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
