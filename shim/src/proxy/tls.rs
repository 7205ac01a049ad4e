//! TLS on a TCP address: the server's certificate, and where only some clients may come, theirs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::{Error, ErrorKind, Result};

/// How a TCP address speaks TLS (1.2 and 1.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificate of the server with those that lead to its authority, as PEM.
    pub certificate: PathBuf,
    /// Its key, as PEM, not encrypted.
    pub key: PathBuf,
    /// Authorities as PEM; clients without a certificate of one of them are turned away. `None` asks for none.
    pub client_ca: Option<PathBuf>,
}

fn invalid(what: &str, file: &Path, why: impl std::fmt::Display) -> Error {
    let message = format!("the {what} {} cannot be used: {why}", file.display());
    Error::new(ErrorKind::Listen, message).advise("name a PEM file that is there and whole")
}

fn certificates(what: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let certificates: Vec<_> = read.map_err(|error| invalid(what, file, error))?;
    if certificates.is_empty() {
        Err(invalid(what, file, "no certificate is in it"))
    } else {
        Ok(certificates)
    }
}

/// Reads the files.
pub(super) fn config(options: &TlsOptions) -> Result<Arc<ServerConfig>> {
    let failed = |error: rustls::Error| {
        let key = options.key.display();
        let message =
            format!("TLS with {} and {key} cannot be set up: {error}", options.certificate.display());
        Error::new(ErrorKind::Listen, message).advise("check that the key is the certificate's")
    };
    let chain = certificates("certificate file", &options.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&options.key)
        .map_err(|error| invalid("key file", &options.key, error))?;
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let builder = match &options.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates("client authority file", file)? {
                roots.add(authority).map_err(|error| invalid("client authority file", file, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| invalid("client authority file", file, error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(failed)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
