//! Docker's `config.json` and the helpers that it names.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;

use super::file::open_regular;
use super::{Credentials, Lease, Secret, from_pair, helper, invalid};
use crate::{Error, Result};

/// Bytes of the file that are read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The name under which Docker keeps the credentials of a registry.
pub(super) fn server_name(registry: &str) -> &str {
    match registry {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    }
}

pub(super) fn docker_config_file() -> Option<PathBuf> {
    let dir = std::env::var_os("DOCKER_CONFIG")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")))?;
    let file = dir.join("config.json");
    file.exists().then_some(file)
}

/// What is read here of the file; what `auths` holds is read by the crate.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    auths: Option<serde_json::Value>,
    creds_store: Option<String>,
    cred_helpers: Option<HashMap<String, String>>,
}

/// Looks for credentials in the file, and asks the helper that it names for at most `limit`: a helper
/// for this registry, else `auths`, else the helper for all.
///
/// # Errors
/// `InvalidCredentials`.
pub(crate) fn from_docker(config: &Path, registry: &str, limit: Duration) -> Result<Lease> {
    look(config, registry, &|name| {
        helper::from_helper(Path::new(&format!("docker-credential-{name}")), registry, limit)
    })
}

/// `ask` asks the helper of a name.
fn look(config: &Path, registry: &str, ask: &dyn Fn(&str) -> Result<Lease>) -> Result<Lease> {
    let shown = config.display();
    let server = server_name(registry);
    let mut bytes = Vec::new();
    open_regular(config)
        .and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_end(&mut bytes))
        .map_err(|e| invalid(format!("Docker's configuration {shown} cannot be read")).because(e))?;
    let read: Config = serde_json::from_slice(&bytes)
        .map_err(|_| unusable(config, server, &CredentialRetrievalError::ConfigReadError.to_string()))?;
    let asked = |name: &str| {
        let why = format!("the credential helper docker-credential-{name} failed");
        ask(name).map_err(|e| unusable(config, server, &why).because(e))
    };
    let own = read.cred_helpers.as_ref().and_then(|helpers| helpers.get(server));
    if let Some(name) = own.filter(|name| !name.is_empty()) {
        return asked(name);
    }
    let auths = serde_json::json!({ "auths": read.auths }).to_string();
    match docker_credential::get_credential_from_reader(auths.as_bytes(), server) {
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            // Helpers give an identity token under this name (docker-credential-helpers protocol).
            if username == "<token>" {
                return Ok(Lease::lasting(Credentials::Identity(Secret::new(password))));
            }
            let what = format!("credentials for {server} in {shown}");
            from_pair(&username, &password, &what).map(Lease::lasting)
        }
        Ok(DockerCredential::IdentityToken(token)) => {
            Ok(Lease::lasting(Credentials::Identity(Secret::new(token))))
        }
        Err(CredentialRetrievalError::NoCredentialConfigured) => {
            match read.creds_store.filter(|name| !name.is_empty()) {
                Some(name) => asked(&name),
                None => Ok(Lease::lasting(Credentials::Anonymous)),
            }
        }
        Err(e) => Err(unusable(config, server, &e.to_string())),
    }
}

fn unusable(config: &Path, server: &str, why: &str) -> Error {
    invalid(format!(
        "Docker's configuration {} has no usable credentials for {server}: {why}",
        config.display()
    ))
    .advise("run docker login again, or give a credentials file")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::ErrorKind;
    use crate::image::credentials::file::tests::written;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Looks with a script in place of the helper; also the names that were asked for.
    fn with_helper(text: &str, registry: &str, script: &str, limit: Duration) -> (Result<Lease>, String) {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("chmod");
        let names = std::cell::RefCell::new(String::new());
        let found = look(written(text, 0o600).path(), registry, &|name| {
            names.borrow_mut().push_str(name);
            helper::from_helper(&path, registry, limit)
        });
        (found, names.into_inner())
    }

    const HELPERS: &str = r#"{"auths":{"r.example":{"auth":"bWU6cHc="},"own.example":{}},
        "credHelpers":{"own.example":"own","none.example":""},"credsStore":"all"}"#;

    #[test]
    fn helpers_are_asked_in_dockers_order() {
        let answer = r#"read server; printf '{"Username":"u","Secret":"%s"}' "$server""#;
        let pair = |username: &str, password: &str| Credentials::Password {
            username: Secret::new(username.into()),
            password: Secret::new(password.into()),
        };
        for (registry, asked, wanted) in [
            ("own.example", "own", pair("u", "own.example")),
            ("r.example", "", pair("me", "pw")),
            ("none.example", "all", pair("u", "none.example")),
            ("docker.io", "all", pair("u", "https://index.docker.io/v1/")),
        ] {
            let (found, names) = with_helper(HELPERS, registry, answer, LIMIT);
            assert_eq!((found.expect(registry).credentials, names.as_str()), (wanted, asked), "{registry}");
        }
        let find =
            |script| with_helper(HELPERS, "own.example", script, LIMIT).0.map(|lease| lease.credentials);
        let token = find(r#"echo '{"Username":"<token>","Secret":"t"}'"#).expect("token");
        assert_eq!(token, Credentials::Identity(Secret::new("t".into())));
        let none = find("echo 'credentials not found in native keychain'; exit 1").expect("none");
        assert_eq!(none, Credentials::Anonymous);
    }

    #[test]
    fn helpers_are_bounded_and_their_output_is_not_shown() {
        for (script, limit, wanted) in [
            ("sleep 600", Duration::from_millis(300), "did not answer within 300 ms"),
            ("exec cat /dev/zero", LIMIT, "wrote more than"),
            ("echo s3cret; exit 2", LIMIT, "exit status: 2"),
        ] {
            let error = with_helper(HELPERS, "own.example", script, limit).0.expect_err(script);
            assert_eq!(error.kind(), ErrorKind::InvalidCredentials);
            let text = error.chain();
            assert!(text.contains("docker-credential-own failed") && text.contains(wanted), "{text}");
            assert!(!text.contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn dockers_configuration() {
        // "me:pw" in Base64.
        let text = r#"{"auths":{"r.example:5000":{"auth":"bWU6cHc="},"https://index.docker.io/v1/":{"identitytoken":"t"}}}"#;
        let file = written(text, 0o600);
        let password =
            Credentials::Password { username: Secret::new("me".into()), password: Secret::new("pw".into()) };
        let find = |name: &str| from_docker(file.path(), name, LIMIT).map(|lease| lease.credentials);
        assert_eq!(find("r.example:5000").expect("found"), password);
        assert_eq!(find("docker.io").expect("found"), Credentials::Identity(Secret::new("t".into())));
        assert_eq!(find("other.example").expect("none"), Credentials::Anonymous);
        let broken = written("{", 0o600);
        assert_eq!(
            from_docker(broken.path(), "x", LIMIT).expect_err("broken").kind(),
            ErrorKind::InvalidCredentials
        );
    }
}
