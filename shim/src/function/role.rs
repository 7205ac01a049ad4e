//! Where the temporary credentials of a function's role come from.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::{BoxFuture, FutureExt as _};
use serde::Deserialize;
use serde_json::Value;
use skiff_runtime::image::{CredentialEndpoint, parse_time, read_private};

use super::{Credentials, FunctionConfig, Secret};

/// Temporary credentials, and when they expire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleLease {
    /// The credentials.
    pub credentials: Credentials,
    /// When they are worth nothing any more; `None` is never.
    pub expiry: Option<SystemTime>,
}

/// For which function credentials are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoleRequest {
    /// The function's name.
    pub function: String,
    /// Its namespace or service.
    pub namespace: String,
    /// Its platform: `fc`, `fc2` or `scf`.
    pub platform: &'static str,
}

type Asked = BoxFuture<'static, Result<RoleLease, Box<dyn std::error::Error + Send + Sync>>>;

/// A program's own source of credentials. Its errors are told: they must show no secret.
#[derive(Clone)]
pub struct RoleCallback(Arc<dyn Fn(RoleRequest) -> Asked + Send + Sync>);

impl RoleCallback {
    /// Of an asynchronous function.
    pub fn new<F, A>(call: F) -> Self
    where
        F: Fn(RoleRequest) -> A + Send + Sync + 'static,
        A: Future<Output = Result<RoleLease, Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        Self(Arc::new(move |request| call(request).boxed()))
    }
}

impl fmt::Debug for RoleCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RoleCallback")
    }
}

/// Where they come from. They are asked for when an instance starts, and again before they expire.
#[derive(Clone, Debug)]
pub enum RoleSource {
    /// A JSON file that only its owner and group can read; read again after a minute when it names no expiry.
    File(PathBuf),
    /// A service, asked by `GET URL?function=NAME&namespace=NAMESPACE&platform=PLATFORM`, which answers with
    /// the JSON of such a file; again after a quarter of an hour when that names no expiry.
    Endpoint(CredentialEndpoint),
    /// The embedding program.
    Callback(RoleCallback),
}

impl RoleSource {
    /// Asks for credentials; the error shows nothing of them.
    pub(crate) async fn ask(&self, config: &FunctionConfig) -> Result<RoleLease, String> {
        let lease = match self {
            Self::File(path) => {
                let path = path.clone();
                let read =
                    tokio::task::spawn_blocking(move || read_private(&path).map(|bytes| (bytes, path)));
                let (bytes, path) = read.await.map_err(|e| e.to_string())?.map_err(|e| e.chain())?;
                parse(&bytes, &format!("the role's file {}", path.display()))?
            }
            Self::Endpoint(endpoint) => {
                let query = [
                    ("function", config.name.as_str()),
                    ("namespace", config.namespace.as_str()),
                    ("platform", config.platform.name()),
                ];
                let answer = endpoint.document(&query).await.map_err(|e| e.chain())?;
                parse(&answer.ok_or("the credentials service knows no role of this function")?, "its answer")?
            }
            Self::Callback(callback) => {
                let (function, namespace) = (config.name.clone(), config.namespace.clone());
                let request = RoleRequest { function, namespace, platform: config.platform.name() };
                (callback.0)(request).await.map_err(|error| error.to_string())?
            }
        };
        check(&lease)?;
        Ok(lease)
    }

    /// After which time one without an expiry is asked for again.
    pub(crate) fn asked_again(&self) -> Duration {
        match self {
            Self::File(_) => Duration::from_secs(60),
            Self::Endpoint(_) | Self::Callback(_) => Duration::from_secs(15 * 60),
        }
    }
}

/// What goes into headers and variables.
fn check(lease: &RoleLease) -> Result<(), String> {
    if let Some(fault) = lease.credentials.faults().next() {
        return Err(format!("the role's {fault}"));
    }
    match lease.expiry {
        Some(expiry) if expiry <= SystemTime::now() => Err("the role's credentials have expired".to_owned()),
        _ => Ok(()),
    }
}

/// As Alibaba's STS and metadata service, Tencent's, and Skiff's own files name the fields.
#[derive(Deserialize)]
struct Document {
    #[serde(alias = "AccessKeyId", alias = "TmpSecretId")]
    access_key_id: Option<Value>,
    #[serde(alias = "AccessKeySecret", alias = "TmpSecretKey")]
    access_key_secret: Option<Value>,
    #[serde(alias = "SecurityToken", alias = "Token")]
    security_token: Option<Value>,
    #[serde(alias = "Expiration", alias = "ExpiredTime")]
    expiry: Option<Value>,
}

fn parse(bytes: &[u8], what: &str) -> Result<RoleLease, String> {
    // Only the position: the error's own words may quote a value.
    let document: Document = serde_json::from_slice(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("{what} is no JSON with access_key_id, access_key_secret and security_token (line {line}, column {column})")
    })?;
    let text = |value: Option<Value>, name: &str| match value {
        Some(Value::String(text)) if text.is_empty() => Err(format!("{name} of {what} is empty")),
        Some(Value::String(text)) => Ok(Secret::new(text)),
        Some(_) => Err(format!("{name} of {what} is no text")),
        None => Err(format!("{what} has no {name}")),
    };
    let expiry = match document.expiry {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => {
            Some(parse_time(&text).ok_or_else(|| format!("the expiry of {what} is not an RFC 3339 time"))?)
        }
        Some(Value::Number(seconds)) => {
            let seconds = seconds.as_u64().map(Duration::from_secs);
            let time = seconds.and_then(|seconds| UNIX_EPOCH.checked_add(seconds));
            Some(time.ok_or_else(|| format!("the expiry of {what} is no time"))?)
        }
        Some(_) => return Err(format!("the expiry of {what} is no time")),
    };
    let credentials = Credentials {
        access_key_id: text(document.access_key_id, "access_key_id")?,
        access_key_secret: text(document.access_key_secret, "access_key_secret")?,
        security_token: text(document.security_token, "security_token")?,
    };
    Ok(RoleLease { credentials, expiry })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_of_every_vendor_are_read() {
        for text in [
            r#"{"access_key_id":"i","access_key_secret":"s","security_token":"t","expiry":"2100-01-01T00:00:00Z"}"#,
            r#"{"AccessKeyId":"i","AccessKeySecret":"s","SecurityToken":"t","Expiration":"2100-01-01T00:00:00Z","Code":"Success"}"#,
            r#"{"TmpSecretId":"i","TmpSecretKey":"s","Token":"t","ExpiredTime":4102444800}"#,
        ] {
            let lease = parse(text.as_bytes(), "it").expect(text);
            let role = &lease.credentials;
            let secrets =
                [&role.access_key_id, &role.access_key_secret, &role.security_token].map(Secret::expose);
            assert_eq!(secrets, ["i", "s", "t"]);
            assert_eq!(lease.expiry, UNIX_EPOCH.checked_add(Duration::from_secs(4_102_444_800)));
            check(&lease).expect("good");
        }
    }

    #[test]
    fn what_is_no_document_is_told_without_what_it_has() {
        for (text, told) in [
            ("s3cret-91bc", "line 1"),
            (r#"{"access_key_id":"s3cret-91bc"}"#, "has no access_key_secret"),
            (
                r#"{"access_key_id":"s3cret-91bc","access_key_secret":"","security_token":"t"}"#,
                "access_key_secret of it is empty",
            ),
            (
                r#"{"access_key_id":["s3cret-91bc"],"access_key_secret":"s","security_token":"t"}"#,
                "access_key_id of it is no text",
            ),
            (
                r#"{"access_key_id":"i","access_key_secret":"s","security_token":"t","expiry":"s3cret-91bc"}"#,
                "RFC 3339",
            ),
            (
                r#"{"access_key_id":"i","access_key_secret":"s","security_token":"t","expiry":-1}"#,
                "is no time",
            ),
        ] {
            let error = parse(text.as_bytes(), "it").expect_err(text);
            assert!(error.contains(told) && !error.contains("91bc"), "{error}");
        }
        for (text, told) in [
            (
                r#"{"access_key_id":"s3cret 91bc","access_key_secret":"s","security_token":"t"}"#,
                "access key id: must be",
            ),
            (
                r#"{"access_key_id":"i","access_key_secret":"s","security_token":"t","expiry":"2001-01-01T00:00:00Z"}"#,
                "have expired",
            ),
        ] {
            let error = check(&parse(text.as_bytes(), "it").expect("a document")).expect_err(text);
            assert!(error.contains(told) && !error.contains("91bc"), "{error}");
        }
    }
}
