//! The role's credentials of one instance, kept fresh.

use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use super::shared::Shared;
use crate::function::{Credentials, FunctionConfig, RoleLease};

/// How long a start may wait for credentials.
const PATIENCE: Duration = Duration::from_secs(30);

/// They are asked for again when this part of their time is left, and never later than so long before its end.
const LAST_PART: u32 = 5;
const LAST: Duration = Duration::from_secs(300);

/// Pauses after a failure: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What an instance has of its role.
#[derive(Debug, Default)]
pub(crate) struct Role(RwLock<Option<(Arc<Credentials>, Option<SystemTime>)>>);

impl Role {
    /// Asks for what the function's role has; a function without a role has none.
    pub(super) async fn obtain(config: &FunctionConfig) -> Result<Self, String> {
        let role = Self::default();
        if let Some(source) = &config.role {
            let asked = tokio::time::timeout(PATIENCE, source.ask(config)).await;
            role.set(asked.map_err(|_| "the role's credentials did not come in time".to_owned())??);
        } else if let Some(fixed) = &config.credentials {
            role.set(RoleLease { credentials: fixed.clone(), expiry: None });
        }
        Ok(role)
    }

    /// Those that are good now.
    pub(crate) fn current(&self) -> Option<Arc<Credentials>> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (credentials, expiry) = held.as_ref()?;
        expiry.is_none_or(|expiry| SystemTime::now() < expiry).then(|| Arc::clone(credentials))
    }

    fn set(&self, lease: RoleLease) {
        let held = (Arc::new(lease.credentials), lease.expiry);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// How long until they are to be asked for again, when nothing else is known for so long.
    fn rest(&self, otherwise: Duration) -> Duration {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(expiry) = held.as_ref().and_then(|(_, expiry)| *expiry) else { return otherwise };
        let left = expiry.duration_since(SystemTime::now()).unwrap_or_default();
        left.saturating_sub((left / LAST_PART).min(LAST))
    }
}

/// Asks again before they expire, until the instance is gone. Those that are there stay until they expire.
pub(super) async fn refresh(shared: Weak<Shared>) {
    let mut pause = Duration::ZERO;
    loop {
        let rest = {
            let Some(shared) = shared.upgrade() else { return };
            let Some(source) = &shared.config.role else { return };
            if pause.is_zero() { shared.role.rest(source.asked_again()) } else { pause }
        };
        tokio::time::sleep(rest.max(Duration::from_millis(10))).await;
        let Some(shared) = shared.upgrade() else { return };
        let Some(source) = &shared.config.role else { return };
        let asked = tokio::time::timeout(PATIENCE, source.ask(&shared.config)).await;
        match asked.unwrap_or_else(|_| Err("they did not come in time".to_owned())) {
            Ok(lease) => {
                shared.role.set(lease);
                pause = Duration::ZERO;
            }
            Err(error) => {
                tracing::warn!(
                    instance = &*shared.id,
                    error,
                    "the role's credentials could not be refreshed"
                );
                pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::Secret;
    use crate::function::{RoleCallback, RoleSource};
    use crate::instance::testing::{self, TestGuest};
    use crate::platform::{fc, scf};

    fn lease(number: u64, life: Duration) -> RoleLease {
        let secret = |name: &str| Secret::new(format!("{name}-{number}"));
        let (access_key_id, access_key_secret) = (secret("id"), secret("key"));
        let credentials = Credentials { access_key_id, access_key_secret, security_token: secret("token") };
        RoleLease { credentials, expiry: SystemTime::now().checked_add(life) }
    }

    fn id(role: &Role) -> Option<String> {
        role.current().map(|role| role.access_key_id.expose().to_owned())
    }

    /// Gives credentials of 400 ms; those that `fails` says fail.
    fn source(fails: fn(u64) -> bool) -> RoleSource {
        let count = Arc::new(AtomicU64::new(0));
        RoleSource::Callback(RoleCallback::new(move |request| {
            assert_eq!((request.function.as_str(), request.platform), ("f", "fc"));
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let answer =
                if fails(number) { Err("no".into()) } else { Ok(lease(number, Duration::from_millis(400))) };
            std::future::ready(answer)
        }))
    }

    #[tokio::test]
    async fn they_are_asked_for_again_before_they_expire() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let guest = TestGuest::at(server.local_addr().expect("address"));
        let mut config = FunctionConfig::new("f", fc());
        config.role = Some(source(|_| false));
        let instance = testing::instance(&guest, config).await;
        let role = &instance.shared.role;
        let until = tokio::time::Instant::now() + Duration::from_secs(20);
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 4 {
            assert!(tokio::time::Instant::now() < until, "{seen:?}");
            // Never without any: each comes before the one before has expired.
            seen.insert(id(role).unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_failure_leaves_those_that_are_there_until_they_expire() {
        let mut config = FunctionConfig::new("f", fc());
        config.role = Some(source(|number| number > 1));
        let role = Role::obtain(&config).await.expect("the first");
        assert_eq!(id(&role).as_deref(), Some("id-1"));
        tokio::time::sleep(Duration::from_millis(450)).await;
        assert_eq!(id(&role), None, "expired");
        let error = Role::obtain(&config).await.expect_err("the second fails");
        assert_eq!(error, "no");
    }

    #[tokio::test]
    async fn what_is_fixed_stays_and_none_is_none() {
        let mut config = FunctionConfig::new("f", scf());
        assert_eq!(id(&Role::obtain(&config).await.expect("no role")), None);
        config.credentials = Some(lease(7, Duration::ZERO).credentials);
        assert_eq!(id(&Role::obtain(&config).await.expect("fixed")).as_deref(), Some("id-7"));
    }

    #[test]
    fn a_fifth_of_their_time_is_left_and_five_minutes_at_most() {
        let role = Role::default();
        let hour = Duration::from_secs(3600);
        assert_eq!(role.rest(hour), hour, "nothing is known");
        let near = |rest: Duration, seconds: u64| rest.as_secs().abs_diff(seconds) <= 1;
        role.set(lease(1, Duration::from_secs(100)));
        assert!(near(role.rest(hour), 80));
        role.set(lease(1, Duration::from_secs(36_000)));
        assert!(near(role.rest(hour), 35_700));
        role.set(lease(1, Duration::ZERO));
        assert_eq!(role.rest(hour), Duration::ZERO);
    }
}
