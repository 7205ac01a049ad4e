//! The node's API for other hosts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use skiff::Secret;
use skiff::proxy::TlsOptions;

use super::api::private_text;
use crate::cli::failure::Failure;
use crate::cli::values::Listen;

/// Characters of a token: fewer can be guessed.
const TOKEN_LENGTH: std::ops::RangeInclusive<usize> = 16..=4096;

/// Options of the node's TCP address.
#[derive(Debug, Args)]
#[command(next_help_heading = "Remote control")]
pub(crate) struct RemoteArgs {
    /// Serve control API and invoke APIs on a TCP address too, IP:PORT, or PORT on 127.0.0.1, for
    /// clients with --listen-token or a certificate of --listen-client-ca.
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<Listen>,
    /// A file with the token that clients show (Authorization: Bearer), its owner's alone; without
    /// TLS on a loopback address only.
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub(crate) listen_token: Option<PathBuf>,
    /// Certificate of the address (a PEM file): it speaks TLS.
    #[arg(long, value_name = "FILE", requires = "listen", requires = "listen_key")]
    pub(crate) listen_cert: Option<PathBuf>,
    /// The key of the certificate (a PEM file, not encrypted).
    #[arg(long, value_name = "FILE", requires = "listen_cert")]
    pub(crate) listen_key: Option<PathBuf>,
    /// Turn clients away that show no certificate of these authorities (a PEM file).
    #[arg(long, value_name = "FILE", requires = "listen_cert")]
    pub(crate) listen_client_ca: Option<PathBuf>,
}

/// Where the node listens for other hosts, and whom it lets in.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<TlsOptions>,
    pub(crate) token: Option<Secret>,
}

impl RemoteArgs {
    pub(crate) fn remote(&self) -> Result<Option<Remote>, Failure> {
        let Some(Listen(address)) = self.listen else { return Ok(None) };
        let tls = match (&self.listen_cert, &self.listen_key) {
            (Some(certificate), Some(key)) => Some(TlsOptions {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: self.listen_client_ca.clone(),
            }),
            _ => None,
        };
        let token = self.listen_token.as_deref().map(token).transpose()?;
        if token.is_none() && self.listen_client_ca.is_none() {
            return Err(Failure::usage(format!("--listen {address} would let everybody control this host"))
                .advise("give --listen-token, or --listen-client-ca with --listen-cert and --listen-key"));
        }
        if tls.is_none() && !address.ip().is_loopback() {
            return Err(Failure::usage(format!(
                "--listen {address} would send the token where others can read it"
            ))
            .advise("give --listen-cert and --listen-key too, or listen on 127.0.0.1"));
        }
        Ok(Some(Remote { address, tls, token }))
    }
}

fn token(path: &Path) -> Result<Secret, Failure> {
    let text = private_text("--listen-token", path)?;
    let token = text.trim();
    if !TOKEN_LENGTH.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let why = "must hold 16 to 4096 visible ASCII characters without spaces";
        return Err(Failure::usage(format!("--listen-token {}: {why}", path.display()))
            .advise("make one: (umask 077; openssl rand -hex 32 > FILE)"));
    }
    Ok(Secret::new(token))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn of(listen: &str, text: Option<(&str, u32)>) -> Result<Option<Remote>, String> {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("token");
        if let Some((text, mode)) = text {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        }
        let args = RemoteArgs {
            listen: Some(listen.parse().expect("an address")),
            listen_token: text.map(|_| path),
            listen_cert: None,
            listen_key: None,
            listen_client_ca: None,
        };
        args.remote().map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn a_token_is_long_private_and_not_shown() {
        let good = of("0", Some(("0123456789abcdef\n", 0o600))).expect("taken").expect("listens");
        assert_eq!(good.token.as_ref().map(Secret::expose), Some("0123456789abcdef"));
        assert!(!format!("{good:?}").contains("0123"));
        for (text, mode, why) in [
            ("0123456789abcde", 0o600, "16 to 4096"),
            ("0123456789 abcdef", 0o600, "without spaces"),
            ("0123456789abcdef", 0o644, "chmod 600"),
        ] {
            let error = of("0", Some((text, mode))).expect_err(text);
            assert!(error.contains(why) && !error.contains("0123"), "{error}");
        }
    }

    #[test]
    fn nobody_is_let_in_unseen() {
        assert!(of("0", None).expect_err("open").contains("everybody"));
        let error = of("0.0.0.0:0", Some(("0123456789abcdef", 0o600))).expect_err("readable");
        assert!(error.contains("others can read it") && error.contains("--listen-cert"), "{error}");
    }
}
