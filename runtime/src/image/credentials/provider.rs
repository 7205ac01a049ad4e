//! The credentials for one repository of one registry: asked for when the registry wants them, kept
//! until they run out, asked for again then or when they are refused.

use std::path::PathBuf;
use std::time::SystemTime;

use tokio::sync::Mutex;

use super::{CredentialRequest, CredentialSources, Credentials, Lease, docker, file, from_pair, helper};
use crate::Result;
use crate::image::registry::proxies::Proxies;
use crate::image::registry::transport::Times;

/// One registry's credentials.
pub(crate) struct Provider {
    sources: CredentialSources,
    request: CredentialRequest,
    /// Whether it is the reference's registry and not a mirror: file and pair are for that alone.
    home: bool,
    ca_files: Vec<PathBuf>,
    proxies: Proxies,
    times: Times,
    held: Mutex<Option<Lease>>,
}

impl Provider {
    pub(crate) fn new(sources: &CredentialSources, registry: &str, repository: &str, home: bool) -> Self {
        Self {
            sources: sources.clone(),
            request: CredentialRequest::new(registry, repository),
            home,
            ca_files: Vec::new(),
            proxies: Proxies::default(),
            times: Times::default(),
            held: Mutex::default(),
        }
    }

    /// How a credentials service is reached, and how long sources may take.
    pub(crate) fn over(mut self, ca_files: &[PathBuf], proxies: &Proxies, times: &Times) -> Self {
        (self.ca_files, self.proxies, self.times) = (ca_files.to_vec(), proxies.clone(), times.clone());
        self
    }

    /// Whether what is given at hand can be used, before anything is sent.
    ///
    /// # Errors
    /// `InvalidCredentials`.
    pub(crate) async fn check(&self) -> Result<()> {
        let local = self.home && self.sources.callback.is_none();
        if local && (self.sources.file.is_some() || self.sources.pair.is_some()) {
            self.current().await?;
        }
        Ok(())
    }

    /// Credentials that have not expired.
    ///
    /// # Errors
    /// `InvalidCredentials`.
    pub(crate) async fn current(&self) -> Result<Credentials> {
        let mut held = self.held.lock().await;
        if let Some(lease) = held.as_ref().filter(|lease| !lease.is_over(SystemTime::now())) {
            return Ok(lease.credentials.clone());
        }
        let lease = self.ask().await?;
        Ok(held.insert(lease).credentials.clone())
    }

    /// When what is held runs out, if that is known.
    pub(crate) async fn expiry(&self) -> Option<SystemTime> {
        self.held.lock().await.as_ref()?.expiry
    }

    /// Credentials in place of those that were refused; `None` if the sources have no others.
    ///
    /// # Errors
    /// `InvalidCredentials`.
    pub(crate) async fn instead_of(&self, refused: &Credentials) -> Result<Option<Credentials>> {
        if *refused == Credentials::Anonymous {
            return Ok(None);
        }
        let mut held = self.held.lock().await;
        if let Some(lease) = held.as_ref().filter(|lease| lease.credentials != *refused) {
            return Ok(Some(lease.credentials.clone()));
        }
        let lease = self.ask().await?;
        let other = lease.credentials != *refused && lease.credentials != Credentials::Anonymous;
        let credentials = held.insert(lease).credentials.clone();
        Ok(other.then_some(credentials))
    }

    async fn ask(&self) -> Result<Lease> {
        let sources = &self.sources;
        let registry = self.request.registry.clone();
        if let Some(callback) = &sources.callback {
            return callback.ask(self.request.clone()).await;
        }
        if let Some(path) = sources.file.clone().filter(|_| self.home) {
            return crate::image::blocking(move || file::from_file(&path, SystemTime::now())).await;
        }
        if let Some(program) = sources.helper.clone() {
            let limit = self.times.helper;
            return crate::image::blocking(move || helper::from_helper(&program, &registry, limit)).await;
        }
        if let Some(endpoint) = &sources.endpoint {
            return endpoint.ask(&self.request, &self.ca_files, &self.proxies, &self.times).await;
        }
        if let Some((username, password)) = sources.pair.as_ref().filter(|_| self.home) {
            return from_pair(username, password, "given credentials").map(Lease::lasting);
        }
        // With a file or a pair for the registry, Docker's configuration is not asked for a mirror.
        let given = sources.file.is_some() || sources.pair.is_some();
        if sources.docker_config
            && !given
            && let Some(config) = docker::docker_config_file()
        {
            let limit = self.times.helper;
            let find = move || docker::from_docker(&config, &registry, limit);
            return crate::image::blocking(find).await;
        }
        Ok(Lease::lasting(Credentials::Anonymous))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::super::{CredentialCallback, Secret, TemporaryCredentials};
    use super::*;
    use crate::image::credentials::file::tests::written;

    fn password(text: &str) -> Credentials {
        Credentials::Password { username: Secret::new("u".into()), password: Secret::new(text.into()) }
    }

    fn provider(sources: &CredentialSources, home: bool) -> Provider {
        Provider::new(sources, "r.example", "a/b", home)
    }

    #[tokio::test]
    async fn file_and_pair_are_for_the_registry_alone() {
        let file = written(r#"{"username":"u","password":"p"}"#, 0o600);
        let pair = Some(("other".into(), "other".into()));
        let sources =
            CredentialSources { file: Some(file.path().to_owned()), pair, ..CredentialSources::default() };
        assert_eq!(provider(&sources, true).current().await.expect("file"), password("p"));
        assert_eq!(provider(&sources, false).current().await.expect("none"), Credentials::Anonymous);
        let none = CredentialSources::default();
        assert_eq!(provider(&none, true).current().await.expect("none"), Credentials::Anonymous);
    }

    #[tokio::test]
    async fn a_callback_is_asked_again_after_expiry_and_refusal() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let callback = CredentialCallback::blocking(move |request| {
            assert_eq!((request.registry.as_str(), request.repository.as_str()), ("r.example", "a/b"));
            let call = counted.fetch_add(1, Ordering::SeqCst);
            let given = TemporaryCredentials::new("u", format!("p{call}"));
            let life = Duration::from_millis(if call == 0 { 50 } else { 600_000 });
            Ok(Some(given.expires_at(SystemTime::now() + life)))
        });
        let provider = provider(&CredentialSources { callback: Some(callback), ..Default::default() }, true);
        assert_eq!(provider.current().await.expect("first"), password("p0"));
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(provider.current().await.expect("after expiry"), password("p1"));
        assert_eq!(provider.current().await.expect("kept"), password("p1"));
        let other = provider.instead_of(&password("p1")).await.expect("asked");
        assert_eq!(other, Some(password("p2")));
        let other = provider.instead_of(&password("p1")).await.expect("there is one already");
        assert_eq!((other, calls.load(Ordering::SeqCst)), (Some(password("p2")), 3));
    }

    #[tokio::test]
    async fn a_file_that_was_rotated_is_read_again() {
        let file = written(r#"{"username":"u","password":"p0"}"#, 0o600);
        let sources =
            CredentialSources { file: Some(file.path().to_owned()), ..CredentialSources::default() };
        let provider = provider(&sources, true);
        assert_eq!(provider.current().await.expect("first"), password("p0"));
        assert_eq!(provider.instead_of(&password("p0")).await.expect("read"), None, "nothing new in it");
        std::fs::write(file.path(), r#"{"username":"u","password":"p1"}"#).expect("write");
        assert_eq!(provider.instead_of(&password("p0")).await.expect("read"), Some(password("p1")));
    }
}
