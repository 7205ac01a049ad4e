//! Where the image comes from, and with which credentials.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use skiff::{ClientCertificate, CredentialEndpoint, CredentialSources, EndpointToken, PullOptions, Source};

use crate::cli::failure::Failure;
use crate::cli::values::TimeLimit;

/// User name for the registry.
const USERNAME: &str = "SKIFF_REGISTRY_USERNAME";

/// Password or token for the registry.
const PASSWORD: &str = "SKIFF_REGISTRY_PASSWORD";

/// Token for the credentials service.
const TOKEN: &str = "SKIFF_CREDENTIALS_TOKEN";

/// The way to the image.
#[derive(Debug, Args)]
#[command(next_help_heading = "Image")]
pub(crate) struct SourceArgs {
    /// Talk to the registry over HTTP instead of HTTPS.
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Trust these certificate authorities too (a PEM file; may be given again).
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Vec<PathBuf>,
    /// Show this certificate to the registry (a PEM file).
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub(crate) client_cert: Option<PathBuf>,
    /// The key of the certificate (a PEM file, not encrypted).
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub(crate) client_key: Option<PathBuf>,
    /// Mirrors of registries: a directory of HOST[:PORT]/hosts.toml files, as containerd has it.
    #[arg(long, value_name = "DIR", env = "SKIFF_HOSTS_DIR", hide_env_values = true)]
    #[arg(default_value = "/etc/skiff/hosts")]
    pub(crate) hosts_dir: PathBuf,
    /// Time for the pull in all, such as 5m; 0 for no limit but that on 30 s without a byte.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub(crate) pull_timeout: TimeLimit,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
}

/// Where credentials come from: one of these, or else variables or Docker's configuration. Never
/// the secrets themselves: arguments can be seen by every user of the host.
#[derive(Debug, Args)]
#[command(next_help_heading = "Image")]
pub(crate) struct CredentialArgs {
    /// A JSON file with username, password and, if they expire, expiry.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["credential_helper", "credentials_url"])]
    pub(crate) credentials_file: Option<PathBuf>,
    /// A program that speaks Docker's credential-helper protocol: a path, or NAME for
    /// docker-credential-NAME.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "credentials_url")]
    pub(crate) credential_helper: Option<PathBuf>,
    /// A service that answers ?registry=…&repository=… with the JSON of a credentials file:
    /// https://…, http://127.0.0.1…, or unix:/PATH.
    #[arg(long, value_name = "URL")]
    pub(crate) credentials_url: Option<String>,
    /// A file with the token that the service is shown.
    #[arg(long, value_name = "FILE", requires = "credentials_url")]
    pub(crate) credentials_token_file: Option<PathBuf>,
}

/// Where an image comes from, by its name.
pub(crate) fn source(image: &str) -> Result<Source, Failure> {
    image.parse::<Source>().map_err(|error| skiff::Error::from(error).into())
}

impl SourceArgs {
    /// How it is pulled. User name and password come from the environment alone: arguments can be
    /// seen by every user of the host.
    pub(crate) fn pull_options(
        &self,
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Result<PullOptions, Failure> {
        let credentials = self.credentials.sources(lookup)?;
        let pair = self.client_cert.clone().zip(self.client_key.clone());
        Ok(PullOptions {
            plain_http: self.plain_http,
            ca_files: self.ca_file.clone(),
            client_certificate: pair.map(|(certificate, key)| ClientCertificate { certificate, key }),
            hosts_dir: Some(self.hosts_dir.clone()),
            timeout: self.pull_timeout.0,
            credentials,
            ..PullOptions::default()
        })
    }
}

impl CredentialArgs {
    fn sources(&self, lookup: impl Fn(&str) -> Option<OsString>) -> Result<CredentialSources, Failure> {
        let token = match &self.credentials_token_file {
            Some(file) => Some(EndpointToken::File(file.clone())),
            None => variable(&lookup, TOKEN)?.map(EndpointToken::Value),
        };
        let endpoint = self.credentials_url.clone().map(|url| CredentialEndpoint { url, token });
        Ok(CredentialSources {
            file: self.credentials_file.clone(),
            helper: self.credential_helper.clone(),
            endpoint,
            pair: credentials_pair(lookup)?,
            docker_config: true,
            ..CredentialSources::default()
        })
    }
}

/// User name and password, when both are set. An empty variable is not set.
fn credentials_pair(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Option<(String, String)>, Failure> {
    let username = variable(&lookup, USERNAME)?;
    let password = variable(&lookup, PASSWORD)?;
    match (username, password) {
        (Some(username), Some(password)) => Ok(Some((username, password))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(half(USERNAME, PASSWORD)),
        (None, Some(_)) => Err(half(PASSWORD, USERNAME)),
    }
}

/// The text of a variable that is set and not empty; its value is never part of an error.
pub(super) fn variable(
    lookup: impl Fn(&str) -> Option<OsString>,
    name: &str,
) -> Result<Option<String>, Failure> {
    let Some(value) = lookup(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    value.into_string().map(Some).map_err(|_| Failure::usage(format!("the value of {name} is not UTF-8")))
}

fn half(set: &str, missing: &str) -> Failure {
    Failure::usage(format!("{set} is set, but {missing} is not"))
        .advise(format!("set {missing} too, or unset {set}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn pair(username: Option<&str>, password: Option<&str>) -> Result<Option<(String, String)>, Failure> {
        credentials_pair(|name| if name == USERNAME { username } else { password }.map(OsString::from))
    }

    #[test]
    fn both_halves_are_a_pair_and_none_is_none() {
        assert_eq!(pair(Some("u"), Some("p")).ok(), Some(Some(("u".into(), "p".into()))));
        assert_eq!(pair(None, None).ok(), Some(None));
        assert_eq!(pair(Some(""), Some("")).ok(), Some(None));
    }

    #[test]
    fn half_a_pair_names_the_missing_half_and_no_value() {
        let failure = pair(None, Some("hunter2")).expect_err("half");
        assert_eq!(failure.message, "SKIFF_REGISTRY_PASSWORD is set, but SKIFF_REGISTRY_USERNAME is not");
        assert_eq!(failure.exit, 2);
        assert!(!format!("{failure:?}").contains("hunter2"));
        let failure = pair(Some("bob"), Some("")).expect_err("half");
        assert_eq!(failure.message, "SKIFF_REGISTRY_USERNAME is set, but SKIFF_REGISTRY_PASSWORD is not");
    }

    #[test]
    fn a_value_that_is_no_text_is_refused() {
        let lookup = |_: &str| Some(OsString::from_vec(vec![0xff]));
        assert!(credentials_pair(lookup).is_err_and(|f| f.message.contains("is not UTF-8")));
    }
}
