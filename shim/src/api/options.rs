//! How asynchronous events are treated, and who is told of them.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::post;
use crate::units::Invalid;

/// The most that the platforms allow.
pub const MAX_RETRIES: u32 = 8;

/// Where what has become of an event goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A line of JSON is added to this file.
    File(PathBuf),
    /// It is posted to this address (`http://`), within 10 s, three times at most.
    Http(http::Uri),
}

/// How asynchronous events are treated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AsyncOptions {
    /// How often one that failed is tried again, 0 to [`MAX_RETRIES`]; as its platform does when `None` (fc 3, scf 2).
    pub retries: Option<u32>,
    /// How old one may become before it is given up; as its platform does when `None` (fc a day, scf six
    /// hours).
    pub max_age: Option<Duration>,
    /// Where one that succeeded is told of.
    pub on_success: Option<Destination>,
    /// Where one that failed for good is told of.
    pub on_failure: Option<Destination>,
}

impl AsyncOptions {
    /// These, and others where these say nothing.
    #[must_use]
    pub fn or(&self, others: &Self) -> Self {
        Self {
            retries: self.retries.or(others.retries),
            max_age: self.max_age.or(others.max_age),
            on_success: self.on_success.clone().or_else(|| others.on_success.clone()),
            on_failure: self.on_failure.clone().or_else(|| others.on_failure.clone()),
        }
    }
}

/// A file's path, or `http://HOST[:PORT][/PATH]`.
impl FromStr for Destination {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Some((scheme, _)) = text.split_once("://") {
            let address =
                text.parse::<http::Uri>().ok().filter(|uri| uri.host().is_some_and(|h| !h.is_empty()));
            return match (scheme, address) {
                ("http", Some(address)) => Ok(Self::Http(address)),
                ("http", None) => Err(Invalid::new("not an address such as http://127.0.0.1:8080/path")),
                _ => Err(Invalid::new("only files and http:// addresses are possible")),
            };
        }
        if text.is_empty() {
            return Err(Invalid::new("the file's name is missing"));
        }
        Ok(Self::File(PathBuf::from(text)))
    }
}

/// Tells a destination of what has become of an event.
pub(super) async fn deliver(destination: &Destination, record: &Value) -> Result<(), String> {
    match destination {
        Destination::File(path) => {
            let (path, line) = (path.clone(), format!("{record}\n"));
            let written = tokio::task::spawn_blocking(move || append(&path, &line)).await;
            written.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
        }
        Destination::Http(address) => post::record(address, record).await,
    }
}

/// In one write, so that lines of several writers do not mix.
fn append(path: &std::path::Path, line: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_addresses_are_told_apart() {
        let parse = |text: &str| text.parse::<Destination>();
        assert_eq!(parse("a/b.jsonl"), Ok(Destination::File("a/b.jsonl".into())));
        assert!(matches!(parse("http://[::1]:80/a?b"), Ok(Destination::Http(uri)) if uri.path() == "/a"));
        for text in ["", "https://host/", "ftp://host/", "http://", "http:// /"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_one_does_not_say_the_others_do() {
        let file = |name: &str| Some(Destination::File(name.into()));
        let one = AsyncOptions { retries: Some(0), on_failure: file("bad"), ..AsyncOptions::default() };
        let age = Some(Duration::from_secs(60));
        let others =
            AsyncOptions { retries: Some(5), max_age: age, on_success: file("good"), on_failure: file("x") };
        let both = AsyncOptions {
            retries: Some(0),
            max_age: age,
            on_success: file("good"),
            on_failure: file("bad"),
        };
        assert_eq!(one.or(&others), both);
    }
}
