//! Credentials from a function of the embedding program.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Credentials, Lease, from_pair, invalid};
use crate::Result;

type Cause = Box<dyn std::error::Error + Send + Sync>;
type Answer = Result<Option<TemporaryCredentials>, Cause>;
type Call = dyn Fn(CredentialRequest) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync;

/// For which repository credentials are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CredentialRequest {
    /// `HOST[:PORT]` of the registry or mirror; `docker.io` for Docker Hub.
    pub registry: String,
    /// The repository, such as `team/app`.
    pub repository: String,
}

impl CredentialRequest {
    pub(super) fn new(registry: &str, repository: &str) -> Self {
        Self { registry: registry.to_owned(), repository: repository.to_owned() }
    }
}

/// User name and password that may expire. Debug shows neither.
#[derive(Clone)]
pub struct TemporaryCredentials {
    username: String,
    password: String,
    expiry: Option<SystemTime>,
}

impl TemporaryCredentials {
    /// Credentials that are good until they are refused.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { username: username.into(), password: password.into(), expiry: None }
    }

    /// When they stop being good; they are asked for again from then on.
    #[must_use]
    pub fn expires_at(mut self, expiry: SystemTime) -> Self {
        self.expiry = Some(expiry);
        self
    }
}

impl fmt::Debug for TemporaryCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TemporaryCredentials").field("expiry", &self.expiry).finish_non_exhaustive()
    }
}

/// A function that gives credentials. `None` means an anonymous pull. The text of an error becomes
/// part of the pull's error, so it must hold no secret.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use skiff_runtime::image::{CredentialCallback, CredentialSources, TemporaryCredentials};
///
/// let callback = CredentialCallback::new(|request| async move {
///     // Ask the vendor's service for a token for `request.registry` here.
///     let soon = SystemTime::now() + Duration::from_secs(900);
///     Ok(Some(TemporaryCredentials::new("cr_temp_user", request.repository).expires_at(soon)))
/// });
/// let sources = CredentialSources { callback: Some(callback), ..Default::default() };
/// # let _ = sources;
/// ```
#[derive(Clone)]
pub struct CredentialCallback(Arc<Call>);

impl CredentialCallback {
    /// From an asynchronous function; it runs on the runtime of the pull.
    pub fn new<F, A>(call: F) -> Self
    where
        F: Fn(CredentialRequest) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Option<TemporaryCredentials>, Cause>> + Send + 'static,
    {
        Self(Arc::new(move |request| Box::pin(call(request))))
    }

    /// From a function that may block; it runs on a thread for that.
    pub fn blocking<F>(call: F) -> Self
    where
        F: Fn(CredentialRequest) -> Result<Option<TemporaryCredentials>, Cause> + Send + Sync + 'static,
    {
        let call = Arc::new(call);
        Self::new(move |request| {
            let call = Arc::clone(&call);
            async move { tokio::task::spawn_blocking(move || call(request)).await? }
        })
    }

    pub(super) async fn ask(&self, request: CredentialRequest) -> Result<Lease> {
        let what = format!("the credential callback for {}", request.registry);
        let answer = (self.0)(request).await.map_err(|e| invalid(format!("{what} failed")).because(e))?;
        let Some(answer) = answer else { return Ok(Lease::lasting(Credentials::Anonymous)) };
        let credentials = from_pair(&answer.username, &answer.password, &format!("credentials of {what}"))?;
        let lease = Lease { credentials, expiry: answer.expiry };
        lease.check(&what, SystemTime::now())?;
        Ok(lease)
    }
}

impl fmt::Debug for CredentialCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialCallback")
    }
}
