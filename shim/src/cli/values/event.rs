//! Where the event of a single invocation comes from.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::str::FromStr;

use bytes::Bytes;

use super::Invalid;

/// An event as it is given: the text itself, `-` for the standard input, `@FILE` for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EventSource {
    Text(String),
    Stdin,
    File(PathBuf),
}

impl FromStr for EventSource {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.strip_prefix('@') {
            Some("") => Err(Invalid::new("the file's name is missing after @")),
            Some(file) => Ok(Self::File(file.into())),
            None if text == "-" => Ok(Self::Stdin),
            None => Ok(Self::Text(text.to_owned())),
        }
    }
}

impl EventSource {
    /// All its bytes, whatever they are; at most `max`.
    ///
    /// # Errors
    /// When it cannot be read, or is larger.
    pub(crate) fn read(&self, max: usize) -> Result<Bytes, Invalid> {
        match self {
            Self::Text(text) => read_bounded(text.as_bytes(), max, "the event"),
            Self::Stdin => read_bounded(io::stdin().lock(), max, "the event on the standard input"),
            Self::File(path) => {
                let name = format!("the event file {}", path.display());
                let file = File::open(path).map_err(|e| Invalid::new(format!("{name}: {e}")))?;
                read_bounded(file, max, &name)
            }
        }
    }
}

fn read_bounded(source: impl Read, max: usize, name: &str) -> Result<Bytes, Invalid> {
    let mut bytes = Vec::new();
    let mut source = source.take(max as u64 + 1);
    source.read_to_end(&mut bytes).map_err(|e| Invalid::new(format!("{name}: {e}")))?;
    if bytes.len() > max {
        return Err(Invalid::new(format!("{name} is larger than the platform's limit of {max} bytes")));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<EventSource, Invalid> {
        text.parse()
    }

    #[test]
    fn the_three_kinds_are_told_apart() {
        assert_eq!(parse("-"), Ok(EventSource::Stdin));
        assert_eq!(parse("@-"), Ok(EventSource::File("-".into())));
        assert_eq!(parse("@a b"), Ok(EventSource::File("a b".into())));
        assert_eq!(parse(r#"{"k":1}"#), Ok(EventSource::Text(r#"{"k":1}"#.into())));
        assert_eq!(parse(""), Ok(EventSource::Text(String::new())));
        assert_eq!(parse("@"), Err(Invalid::new("the file's name is missing after @")));
    }

    #[test]
    fn a_file_is_read_as_bytes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("event");
        std::fs::write(&path, [0, 255, b'\n']).expect("a file");
        assert_eq!(EventSource::File(path).read(3), Ok(Bytes::from_static(&[0, 255, b'\n'])));
    }

    #[test]
    fn one_byte_over_the_limit_is_refused() {
        let event = EventSource::Text("12345".into());
        assert_eq!(event.read(5).map(|b| b.len()), Ok(5));
        assert_eq!(
            event.read(4),
            Err(Invalid::new("the event is larger than the platform's limit of 4 bytes"))
        );
    }

    #[test]
    fn an_endless_file_is_cut_off() {
        let error = EventSource::File("/dev/zero".into()).read(1 << 20).expect_err("too large");
        assert_eq!(
            error.to_string(),
            "the event file /dev/zero is larger than the platform's limit of 1048576 bytes"
        );
    }

    #[test]
    fn a_missing_file_and_a_directory_are_named() {
        let text = |path: &str| EventSource::File(path.into()).read(9).expect_err("no file").to_string();
        assert!(text("/no/such/file").starts_with("the event file /no/such/file: No such file"));
        assert!(text("/").starts_with("the event file /: Is a directory"));
    }
}
