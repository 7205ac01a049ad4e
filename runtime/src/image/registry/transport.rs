//! Connections: trust, client certificates, times.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;

use super::proxies::Proxies;
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
    /// Longest wait where the registry does not ask for one.
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
    if let Some(proxy) = proxies.chosen()? {
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
