//! Credentials: where they are looked for, and types that cannot be shown by mistake.
//!
//! ```text
//! CredentialSources ─ callback | file | helper | endpoint | pair | Docker's config.json ─ Lease
//!                                                      Provider: one lease for one registry ┘
//! ```
//! The first source that is given is the one that is asked. They stay in memory; no error or debug
//! text holds them.

mod callback;
pub(crate) mod docker;
pub(crate) mod document;
mod endpoint;
mod file;
pub(crate) mod helper;
mod provider;
mod time;

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

pub use self::callback::{CredentialCallback, CredentialRequest, TemporaryCredentials};
pub use self::endpoint::{CredentialEndpoint, EndpointToken};
pub use self::file::read_private;
pub(crate) use self::provider::Provider;
pub use self::time::parse_time;
use crate::{Error, ErrorKind, Result};

/// Where credentials are looked for. The first that is given is asked: callback, file, helper,
/// endpoint, pair, Docker's `config.json`. They are asked again when what they gave has expired or was
/// refused by the registry.
///
/// Callback, helper, endpoint and Docker's configuration are asked for each registry by its name, so
/// mirrors get credentials of their own. File and pair are for the registry of the reference alone.
#[derive(Clone, Default)]
pub struct CredentialSources {
    /// A function of the embedding program.
    pub callback: Option<CredentialCallback>,
    /// A JSON file: `username`, `password`, optional `expiry` (RFC 3339). Others than its owner and
    /// group must not be able to read it.
    pub file: Option<PathBuf>,
    /// A program that speaks Docker's credential-helper protocol: a path, or the NAME of a
    /// `docker-credential-NAME` in `PATH`.
    pub helper: Option<PathBuf>,
    /// A service that answers with credentials.
    pub endpoint: Option<CredentialEndpoint>,
    /// User name and password (or token).
    pub pair: Option<(String, String)>,
    /// Whether Docker's configuration (`$DOCKER_CONFIG` or `~/.docker`) is read.
    pub docker_config: bool,
}

impl fmt::Debug for CredentialSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialSources")
            .field("callback", &self.callback)
            .field("file", &self.file)
            .field("helper", &self.helper)
            .field("endpoint", &self.endpoint)
            .field("pair", &self.pair.as_ref().map(|_| "(redacted)"))
            .field("docker_config", &self.docker_config)
            .finish()
    }
}

/// A secret text.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one place that sends it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// What a registry is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    Anonymous,
    Password {
        username: Secret,
        password: Secret,
    },
    /// A refresh token of Docker's `identitytoken`.
    Identity(Secret),
}

/// Credentials and until when they are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) credentials: Credentials,
    /// None: not known, until they are refused.
    pub(crate) expiry: Option<SystemTime>,
}

impl Lease {
    fn lasting(credentials: Credentials) -> Self {
        Self { credentials, expiry: None }
    }

    fn is_over(&self, now: SystemTime) -> bool {
        self.expiry.is_some_and(|expiry| expiry <= now)
    }

    /// Whether it is good at all.
    ///
    /// # Errors
    /// `InvalidCredentials` that says how long they are over.
    fn check(&self, what: &str, now: SystemTime) -> Result<()> {
        if !self.is_over(now) {
            return Ok(());
        }
        let over = self.expiry.and_then(|at| now.duration_since(at).ok()).unwrap_or_default().as_secs();
        Err(invalid(format!("the credentials of {what} expired {over} seconds ago"))
            .advise("fetch new temporary credentials, and check this host's clock"))
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidCredentials, message)
}

fn from_pair(username: &str, password: &str, what: &str) -> Result<Credentials> {
    let missing = match (username.is_empty(), password.is_empty()) {
        (false, false) => {
            return Ok(Credentials::Password {
                username: Secret::new(username.to_owned()),
                password: Secret::new(password.to_owned()),
            });
        }
        (true, false) => "a password but no user name",
        (false, true) => "a user name but no password",
        (true, true) => "neither user name nor password",
    };
    Err(invalid(format!("the {what} have {missing}")).advise("give both, or none for an anonymous pull"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_shown() {
        let sources = CredentialSources {
            pair: Some(("me".into(), "s3cret".into())),
            endpoint: Some(CredentialEndpoint {
                url: "https://h/p?key=s3cret".into(),
                token: Some(EndpointToken::Value("s3cret".into())),
            }),
            callback: Some(CredentialCallback::blocking(|_| {
                Ok(Some(TemporaryCredentials::new("s3cret", "s3cret")))
            })),
            ..Default::default()
        };
        let shown = format!("{sources:?} {:?}", TemporaryCredentials::new("s3cret", "s3cret"));
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("https://h/p"), "{shown}");
    }
}
