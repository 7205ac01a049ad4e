//! Texts that must not be shown.

use std::fmt;

/// A secret text: its `Debug` form does not show it and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; never to be logged, written to disk or put into an error.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Temporary credentials of the role that a function runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Access key id (fc), secret id (scf).
    pub access_key_id: Secret,
    /// Access key secret (fc), secret key (scf).
    pub access_key_secret: Secret,
    /// Security token (fc), session token (scf).
    pub security_token: Secret,
}

/// Longest secret, in bytes.
const MAX_SECRET_BYTES: usize = 4096;

impl Credentials {
    /// What cannot go into headers and variables. Shows no secret.
    pub(super) fn faults(&self) -> impl Iterator<Item = String> + '_ {
        let secrets = [
            ("access key id", &self.access_key_id),
            ("access key secret", &self.access_key_secret),
            ("security token", &self.security_token),
        ];
        let bad = |secret: &Secret| {
            let text = secret.expose();
            text.len() > MAX_SECRET_BYTES || !text.bytes().all(|b| b.is_ascii_graphic())
        };
        secrets.into_iter().filter(move |(_, secret)| bad(secret)).map(|(what, _)| {
            format!("{what}: must be at most {MAX_SECRET_BYTES} visible ASCII characters without spaces")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let secret = |text: &str| Secret::new(text);
        let credentials = Credentials {
            access_key_id: secret("STS.id-7f3a"),
            access_key_secret: secret("key-91bc"),
            security_token: secret("token-55de"),
        };
        let shown = format!("{credentials:?} {:?}", Some(&credentials));
        for part in ["7f3a", "91bc", "55de"] {
            assert!(!shown.contains(part), "{shown}");
        }
        assert_eq!(credentials.access_key_secret.expose(), "key-91bc");
    }
}
