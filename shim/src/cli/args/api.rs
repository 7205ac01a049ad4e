//! The invoke API: where it listens, who may call, what becomes of asynchronous events.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use skiff::api::{AccessKeys, ApiOptions, AsyncOptions, Destination, MAX_RETRIES};

use crate::cli::failure::Failure;
use crate::cli::values::{Listen, Time};

/// Bytes of a file of access keys at most.
const MAX_KEYS_BYTES: u64 = 1 << 20;

/// Options of the invoke API.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Invoke API")]
pub(crate) struct ApiArgs {
    /// Serve the platform's invoke API on this Unix socket instead of one below the run directory.
    #[arg(long, value_name = "PATH", conflicts_with = "event")]
    pub(crate) api_socket: Option<PathBuf>,
    /// Serve it on a TCP address too: IP:PORT, or PORT on 127.0.0.1.
    #[arg(long, value_name = "ADDR", conflicts_with = "event")]
    pub(crate) api_listen: Option<Listen>,
    /// Check the callers' signatures against the access keys in this file: in each line an id, a
    /// space and its secret. Without it, any signature will do.
    #[arg(long, value_name = "FILE", conflicts_with = "event")]
    pub(crate) api_keys: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) asynchronous: AsyncArgs,
}

/// What becomes of asynchronous events.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Invoke API")]
pub(crate) struct AsyncArgs {
    /// How often an asynchronous event that failed is tried again, 0 to 8 [default: fc 3, scf 2].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_RETRIES)))]
    pub(crate) async_retries: Option<u32>,
    /// How old one may become before it is given up [default: fc 24h, scf 6h].
    #[arg(long, value_name = "TIME")]
    pub(crate) async_max_age: Option<Time>,
    /// Where one that succeeded is told of: a file, to which a line of JSON is added, or http://….
    #[arg(long, value_name = "DEST")]
    pub(crate) async_on_success: Option<Destination>,
    /// Where one that failed for good is told of.
    #[arg(long, value_name = "DEST")]
    pub(crate) async_on_failure: Option<Destination>,
}

impl AsyncArgs {
    pub(crate) fn options(&self) -> AsyncOptions {
        AsyncOptions {
            retries: self.async_retries,
            max_age: self.async_max_age.map(|time| time.0),
            on_success: self.async_on_success.clone(),
            on_failure: self.async_on_failure.clone(),
        }
    }
}

impl ApiArgs {
    pub(crate) fn options(&self) -> Result<ApiOptions, Failure> {
        let keys = self.api_keys.as_deref().map(keys).transpose()?.unwrap_or_default();
        Ok(ApiOptions { keys, asynchronous: self.asynchronous.options() })
    }
}

/// Reads the keys of a file that others cannot read.
fn keys(path: &Path) -> Result<AccessKeys, Failure> {
    let text = private_text("--api-keys", path)?;
    AccessKeys::parse(&text)
        .map_err(|error| Failure::usage(format!("--api-keys {}: {error}", path.display())))
}

/// Reads a file of secrets, which others cannot read.
pub(super) fn private_text(option: &str, path: &Path) -> Result<String, Failure> {
    let failed = |why: String| Failure::usage(format!("{option} {}: {why}", path.display()));
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let meta = file.metadata().map_err(|e| failed(e.to_string()))?;
    if !meta.is_file() {
        return Err(failed("is not a file".to_owned()));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(failed(format!(
            "has mode {:03o}: secrets must be its owner's alone (chmod 600)",
            meta.mode() & 0o777
        )));
    }
    if meta.len() > MAX_KEYS_BYTES {
        return Err(failed(format!("has {} bytes; {MAX_KEYS_BYTES} are allowed", meta.len())));
    }
    let mut text = String::new();
    // What is no text is not quoted: it may be a secret all the same.
    file.take(MAX_KEYS_BYTES)
        .read_to_string(&mut text)
        .map_err(|_| failed("is not a text in UTF-8".to_owned()))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn with_mode(text: &str, mode: u32) -> Result<AccessKeys, String> {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("keys");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        keys(&path).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn keys_are_their_owners_alone() {
        assert!(!with_mode("id secret\n", 0o600).expect("read").is_empty());
        for mode in [0o640, 0o604, 0o644] {
            let error = with_mode("id s3cret-91bc\n", mode).expect_err("readable");
            assert!(error.contains("chmod 600") && !error.contains("91bc"), "{error}");
        }
    }

    #[test]
    fn what_is_no_key_is_told_by_its_line_and_never_shown() {
        for (text, told) in [
            ("", "no access key"),
            ("# only a remark\n\n", "no access key"),
            ("id s3cret-91bc\nid2\n", "line 2"),
            ("id s3cret-91bc more\n", "line 1"),
            ("id s3cret-91bc\nid other\n", "line 2"),
        ] {
            let error = with_mode(text, 0o600).expect_err(text);
            assert!(error.contains(told) && !error.contains("91bc"), "{error}");
        }
    }
}
