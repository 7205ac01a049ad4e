//! Where records of asynchronous events go.

use std::path::PathBuf;
use std::str::FromStr;

use skiff::api::Destination;

use super::Invalid;

/// A file's path, or `http://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DestinationArg(pub(crate) Destination);

impl FromStr for DestinationArg {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Some((scheme, _)) = text.split_once("://") {
            let address =
                text.parse::<http::Uri>().ok().filter(|uri| uri.host().is_some_and(|h| !h.is_empty()));
            return match (scheme, address) {
                ("http", Some(address)) => Ok(Self(Destination::Http(address))),
                ("http", None) => Err(Invalid::new("not an address such as http://127.0.0.1:8080/path")),
                _ => Err(Invalid::new("only files and http:// addresses are possible")),
            };
        }
        if text.is_empty() {
            return Err(Invalid::new("the file's name is missing"));
        }
        Ok(Self(Destination::File(PathBuf::from(text))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_addresses_are_told_apart() {
        let parse = |text: &str| text.parse::<DestinationArg>().map(|arg| arg.0);
        assert_eq!(parse("a/b.jsonl"), Ok(Destination::File("a/b.jsonl".into())));
        assert!(matches!(parse("http://[::1]:80/a?b"), Ok(Destination::Http(uri)) if uri.path() == "/a"));
        for text in ["", "https://host/", "ftp://host/", "http://", "http:// /"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
