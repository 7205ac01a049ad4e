//! How a registry is shown who asks: Basic, or a token from the realm that its challenge names
//! (distribution specification, *Token Authentication*; RFC 9110, section 11).
//!
//! Only the answer of the registry's own host gets here; which realm may be spoken to is decided in
//! [`realm`](super::realm). What is shown runs out and is refused in the middle of a pull: one request
//! renews it while the others wait, a little before its end where that is known. Renewals are counted,
//! so that a registry that refuses whatever it is shown comes to an end.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use super::challenge::Challenge;
use super::header::{basic, sensitive};
use super::retry::Failure;
use super::token;
use crate::image::credentials::{Credentials, Provider};
use crate::{Error, ErrorKind};

/// Headers made for one registry in one pull: an hour of tokens that live for a minute, and some.
const MAX_RENEWALS: u64 = 100;
/// A token is renewed this long before its end, or a tenth of its life if that is less.
const EARLY: Duration = Duration::from_secs(10);

/// Who asks for tokens, and as whom.
pub(super) struct Auth {
    provider: Provider,
    /// `HOST[:PORT]` of the registry.
    pub(super) host: String,
    pub(super) scope: String,
    pub(super) plain_http: bool,
    shown: Mutex<Shown>,
    /// Held by the one who renews.
    renewing: tokio::sync::Mutex<()>,
}

/// What the registry is shown at present.
#[derive(Clone, Default)]
struct Shown {
    header: Option<HeaderValue>,
    /// How many there have been.
    generation: u64,
    /// When it is to be renewed without being refused.
    renew_at: Option<Instant>,
    challenge: Option<Challenge>,
}

/// Whose connections may be used for a token: see [`token::fetch`].
pub(super) struct Ways<'a> {
    /// With this host's certificate.
    pub(super) own: &'a reqwest::Client,
    pub(super) away: &'a reqwest::Client,
    pub(super) limit: Duration,
}

impl Auth {
    pub(super) fn new(provider: Provider, host: &str, repository: &str, plain_http: bool) -> Self {
        let scope = format!("repository:{repository}:pull");
        Self {
            provider,
            host: host.to_owned(),
            scope,
            plain_http,
            shown: Mutex::default(),
            renewing: tokio::sync::Mutex::default(),
        }
    }

    /// Whether credentials at hand can be used, before anything is sent.
    pub(super) async fn check(&self) -> Result<(), Error> {
        self.provider.check().await
    }

    /// The header for the next request and its generation; no header before the registry asked.
    pub(super) async fn header(&self, ways: &Ways<'_>) -> (u64, Option<HeaderValue>) {
        let due = |shown: &Shown| shown.renew_at.is_some_and(|at| at <= Instant::now());
        if due(&self.shown()) {
            let _one = self.renewing.lock().await;
            let shown = self.shown();
            if let Some(challenge) = shown.challenge.clone().filter(|_| due(&shown)) {
                // What is held may be good still: if there is no other, the registry shall decide.
                if self.renew(ways, challenge, false).await.is_err() {
                    self.change(|shown| shown.renew_at = None);
                }
            }
        }
        let shown = self.shown();
        (shown.generation, shown.header)
    }

    /// Answers a refusal of what had `generation`; `false` if there is nothing more to show. `again`:
    /// what was refused had been made for this same request.
    pub(super) async fn answer(
        &self,
        ways: &Ways<'_>,
        headers: &HeaderMap,
        generation: u64,
        again: bool,
    ) -> Result<bool, Failure> {
        let Some(challenge) = choose(headers) else { return Ok(false) };
        let _one = self.renewing.lock().await;
        if self.shown().generation != generation {
            return Ok(true);
        }
        self.renew(ways, challenge, again).await
    }

    async fn renew(&self, ways: &Ways<'_>, challenge: Challenge, again: bool) -> Result<bool, Failure> {
        self.count()?;
        let mut credentials = self.provider.current().await.map_err(Failure::last)?;
        if again {
            match self.provider.instead_of(&credentials).await.map_err(Failure::last)? {
                Some(other) => credentials = other,
                None => return Ok(false),
            }
        }
        let (header, life) = if challenge.scheme == "bearer" {
            let got = match token::fetch(self, ways, &challenge, &credentials).await {
                Err(failure) if failure.error.kind() == ErrorKind::Unauthorized => {
                    let other = self.provider.instead_of(&credentials).await.map_err(Failure::last)?;
                    let Some(other) = other else { return Err(failure) };
                    token::fetch(self, ways, &challenge, &other).await
                }
                got => got,
            }?;
            (sensitive(&format!("Bearer {}", got.token.reveal())), got.life)
        } else {
            let Credentials::Password { username, password } = &credentials else { return Ok(false) };
            let expiry = self.provider.expiry().await;
            let life = expiry.and_then(|at| at.duration_since(SystemTime::now()).ok());
            (basic(username, password), life)
        };
        let header = header.ok_or_else(|| {
            Failure::last(Error::new(
                ErrorKind::InvalidCredentials,
                "the credentials or the token have characters that HTTP does not allow",
            ))
        })?;
        let renew_at = life.and_then(|life| Instant::now().checked_add(life - EARLY.min(life / 10)));
        self.change(|shown| {
            *shown = Shown {
                header: Some(header),
                generation: shown.generation + 1,
                renew_at,
                challenge: Some(challenge),
            };
        });
        Ok(true)
    }

    fn count(&self) -> Result<(), Failure> {
        if self.shown().generation < MAX_RENEWALS {
            return Ok(());
        }
        let message = format!("the registry {} refused {MAX_RENEWALS} tokens of one pull", self.host);
        Err(Failure::last(Error::new(ErrorKind::RegistryFailed, message)))
    }

    /// What to do about a refusal.
    pub(super) async fn advice(&self) -> &'static str {
        match self.provider.current().await {
            Ok(Credentials::Anonymous) => {
                "give credentials for this registry; many registries also refuse a repository that does not exist"
            }
            _ => {
                "check user name and password, whether they have expired, and that they may pull this repository"
            }
        }
    }

    fn shown(&self) -> Shown {
        // A panic elsewhere cannot have left it half-changed: it is replaced as a whole.
        self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

/// The best of the challenges.
fn choose(headers: &HeaderMap) -> Option<Challenge> {
    let challenges: Vec<Challenge> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok().and_then(Challenge::parse))
        .collect();
    let of = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme).cloned();
    of("bearer").or_else(|| of("basic"))
}
