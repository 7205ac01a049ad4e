//! Docker's `config.json` and the helpers that it names.

use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};

use super::file::open_regular;
use super::{Credentials, Secret, from_pair, invalid};
use crate::Result;

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

pub(crate) fn from_docker(config: &Path, registry: &str) -> Result<Credentials> {
    let shown = config.display();
    let file = open_regular(config)
        .map_err(|e| invalid(format!("Docker's configuration {shown} cannot be read")).because(e))?;
    let server = server_name(registry);
    let found = docker_credential::get_credential_from_reader(BufReader::new(file.take(1 << 20)), server);
    match found {
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            // Helpers give an identity token under this name (docker-credential-helpers protocol).
            if username == "<token>" {
                return Ok(Credentials::Identity(Secret::new(password)));
            }
            from_pair(&username, &password, &format!("credentials for {server} in {shown}"))
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(Credentials::Identity(Secret::new(token))),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(Credentials::Anonymous),
        Err(e) => docker_failure(&e, config, server),
    }
}

/// A helper's output may hold anything, so it is read here and not shown.
fn docker_failure(error: &CredentialRetrievalError, config: &Path, server: &str) -> Result<Credentials> {
    let why = match error {
        CredentialRetrievalError::HelperFailure { stdout, stderr, .. }
            if [stdout, stderr].iter().any(|text| text.contains("credentials not found")) =>
        {
            return Ok(Credentials::Anonymous);
        }
        CredentialRetrievalError::HelperFailure { helper, .. } => {
            format!("the credential helper {helper} failed")
        }
        other => other.to_string(),
    };
    Err(invalid(format!(
        "Docker's configuration {} has no usable credentials for {server}: {why}",
        config.display()
    ))
    .advise("run docker login again, or give a credentials file"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::image::credentials::file::tests::written;

    #[test]
    fn dockers_configuration() {
        // "me:pw" in Base64.
        let text = r#"{"auths":{"r.example:5000":{"auth":"bWU6cHc="},"https://index.docker.io/v1/":{"identitytoken":"t"}}}"#;
        let file = written(text, 0o600);
        let password =
            Credentials::Password { username: Secret::new("me".into()), password: Secret::new("pw".into()) };
        let find = |name: &str| from_docker(file.path(), name);
        assert_eq!(find("r.example:5000").expect("found"), password);
        assert_eq!(find("docker.io").expect("found"), Credentials::Identity(Secret::new("t".into())));
        assert_eq!(find("other.example").expect("none"), Credentials::Anonymous);
        let broken = written("{", 0o600);
        assert_eq!(
            from_docker(broken.path(), "x").expect_err("broken").kind(),
            ErrorKind::InvalidCredentials
        );
    }
}
