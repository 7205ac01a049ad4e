//! The image configuration: the part that Skiff uses, read leniently where Docker writes `null`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::bounded;
use super::digest::Digest;
use super::limits;
use super::manifest::{Platform, shown};
use crate::{Error, ErrorKind, Result};

/// Bytes of `User`: two names of 32 characters, as Linux has them, and room.
const MAX_USER_BYTES: u64 = 256;
/// Bytes of `StopSignal`: a name such as `SIGRTMIN+15`, and room.
const MAX_SIGNAL_BYTES: u64 = 32;

/// What an image says about how it is run (OCI image configuration, `config`).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all(deserialize = "PascalCase"), default)]
#[non_exhaustive]
pub struct ImageConfig {
    /// The command's fixed beginning.
    #[serde(deserialize_with = "bounded::list")]
    pub entrypoint: Vec<String>,
    /// Arguments after the entrypoint, or the command without one.
    #[serde(deserialize_with = "bounded::list")]
    pub cmd: Vec<String>,
    /// `NAME=VALUE` pairs.
    #[serde(deserialize_with = "bounded::list")]
    pub env: Vec<String>,
    /// `USER`, `UID`, `USER:GROUP` or `UID:GID`; empty is root.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// Absolute directory; empty is `/`.
    #[serde(deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// Name or number of the signal that asks the container to stop.
    pub stop_signal: Option<String>,
    /// Ports as the image declares them, `PORT/PROTOCOL`.
    #[serde(deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// Labels.
    #[serde(deserialize_with = "bounded::map")]
    pub labels: BTreeMap<String, String>,
}

/// The whole document, as far as it matters.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) config: ImageConfig,
    pub(crate) platform: Platform,
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, deserialize_with = "null_is_default")]
    os: String,
    #[serde(default, deserialize_with = "null_is_default")]
    architecture: String,
    variant: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    config: ImageConfig,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "bounded::list")]
    diff_ids: Vec<String>,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The keys of a map whose values are empty objects.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map: BTreeMap<String, serde::de::IgnoredAny> = bounded::map(deserializer)?;
    Ok(map.into_keys().collect())
}

/// Reads a configuration document that has been verified.
///
/// # Errors
/// `InvalidImage`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Configuration> {
    let invalid =
        |why: String| Error::new(ErrorKind::InvalidImage, format!("the image configuration: {why}"));
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| invalid(shown(&unquoted(&e))))?;
    if raw.rootfs.kind != "layers" {
        return Err(invalid(format!("rootfs.type is {:?}, not \"layers\"", shown(&raw.rootfs.kind))));
    }
    if raw.os.is_empty() || raw.architecture.is_empty() {
        return Err(invalid("os or architecture is missing".into()));
    }
    check_texts(&raw.config).map_err(invalid)?;
    let diff_ids = raw.rootfs.diff_ids.iter().map(|id| id.parse()).collect::<Result<_>>()?;
    let platform = Platform { os: raw.os, architecture: raw.architecture, variant: raw.variant };
    Ok(Configuration { config: raw.config, platform, diff_ids })
}

/// The parser's error without the text that it may quote, which can be of a variable.
fn unquoted(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match (text.starts_with("invalid"), text.find('"'), text.rfind('"')) {
        (true, Some(first), Some(last)) => format!("{}…{}", &text[..first], &text[last + 1..]),
        _ => text,
    }
}

/// What no kernel would take: told at the pull, not by each start. Values are not shown, since images
/// keep secrets in variables.
fn check_texts(config: &ImageConfig) -> std::result::Result<(), String> {
    for (what, texts) in [("Entrypoint", &config.entrypoint), ("Cmd", &config.cmd), ("Env", &config.env)] {
        if let Some(at) = texts.iter().position(|text| text.contains('\0')) {
            return Err(format!("{what}[{at}] has a NUL character"));
        }
    }
    let single = [
        ("User", config.user.as_str(), MAX_USER_BYTES),
        ("WorkingDir", &config.working_dir, limits::MAX_PATH_BYTES),
        ("StopSignal", config.stop_signal.as_deref().unwrap_or_default(), MAX_SIGNAL_BYTES),
    ];
    for (what, text, limit) in single {
        if text.contains('\0') {
            return Err(format!("{what} has a NUL character"));
        }
        if text.len() as u64 > limit {
            return Err(format!("{what} has {} bytes, more than {limit}", text.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(config: &str) -> String {
        format!(
            r#"{{"os":"linux","architecture":"amd64","config":{config},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}},"history":null}}"#,
            "0".repeat(64)
        )
    }

    #[test]
    fn reads_what_docker_writes() {
        let text = document(
            r#"{"Hostname":"","Volumes":null,"Entrypoint":null,"Cmd":["/bin/sh","-c"],"Env":["A=b"],
            "User":"1:2","WorkingDir":"/srv","StopSignal":"SIGINT","Labels":null,"OnBuild":null,
            "ExposedPorts":{"9000/tcp":{}}}"#,
        );
        let parsed = parse(text.as_bytes()).expect("valid");
        assert_eq!(parsed.config.cmd, ["/bin/sh", "-c"]);
        assert!(parsed.config.entrypoint.is_empty());
        assert_eq!(parsed.config.user, "1:2");
        assert_eq!(parsed.config.working_dir, "/srv");
        assert_eq!(parsed.config.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(parsed.config.exposed_ports, ["9000/tcp"]);
        assert_eq!(parsed.diff_ids.len(), 1);
    }

    #[test]
    fn a_config_may_be_null() {
        let parsed = parse(document("null").as_bytes()).expect("valid");
        assert_eq!(parsed.config, ImageConfig::default());
    }

    #[test]
    fn bad_documents_are_errors() {
        let deep = "[".repeat(100_000);
        let id = document("{}").replace(&"0".repeat(64), "../../etc");
        let kind = document("{}").replace("layers\"", "other\"");
        for text in ["", "null", "{}", "[]", &deep, &id, &kind, &document(r#"{"Env":"x"}"#)] {
            assert_eq!(parse(text.as_bytes()).expect_err("bad").kind(), ErrorKind::InvalidImage);
        }
    }

    #[test]
    fn texts_that_no_kernel_takes_are_refused_and_not_shown() {
        for (config, what) in [
            (r#"{"Env":["A=1","SECRET=hunter2\u0000"]}"#.to_owned(), "Env[1] has a NUL"),
            (r#"{"Cmd":["hunter2\u0000"]}"#.to_owned(), "Cmd[0] has a NUL"),
            (r#"{"Entrypoint":["hunter2\u0000"]}"#.to_owned(), "Entrypoint[0] has a NUL"),
            (r#"{"User":"hunter2\u0000"}"#.to_owned(), "User has a NUL"),
            (r#"{"Env":"SECRET=hunter2"}"#.to_owned(), "invalid type: string …, expected a list"),
            (format!(r#"{{"User":"{}"}}"#, "hunter2".repeat(1000)), "User has 7000 bytes, more than 256"),
            (format!(r#"{{"WorkingDir":"/{}"}}"#, "hunter2".repeat(1000)), "WorkingDir has 7001 bytes"),
            (format!(r#"{{"StopSignal":"{}"}}"#, "hunter2".repeat(10)), "StopSignal has 70 bytes"),
        ] {
            let error = parse(document(&config).as_bytes()).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::InvalidImage);
            assert!(error.to_string().contains(what) && !error.chain().contains("hunter2"), "{error}");
        }
        parse(document(r#"{"Labels":{"a":"any\u0000thing"}}"#).as_bytes()).expect("labels do nothing");
    }
}
