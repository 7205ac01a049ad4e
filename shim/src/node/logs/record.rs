//! One line of a function as it is kept: a JSON object in a line of its own.

use std::borrow::Cow;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Key, LineForm};
use crate::platform::rfc3339;
use crate::{LogLine, LogStream};

/// What is kept of a line, in this order. Times have one length, so that they compare as text.
#[derive(Serialize)]
struct Record<'a> {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    stream: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    line: Cow<'a, str>,
}

/// What a reader looks at.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    request_id: Option<Cow<'a, str>>,
}

/// Adds a line of a revision to `text`.
pub(super) fn add(text: &mut Vec<u8>, key: &Key, revision: u64, form: LineForm, line: &LogLine) {
    if form == LineForm::Journal {
        return add_for_journal(text, key, line);
    }
    let with_name = form == LineForm::Json;
    let record = Record {
        time: rfc3339(line.time),
        namespace: with_name.then_some(&key.0),
        function: with_name.then_some(&key.1),
        instance: Some(&line.instance_id),
        revision: Some(revision),
        stream: line.stream.as_str(),
        request_id: line.request_id.as_deref(),
        line: line.text(),
    };
    push(text, &record);
}

fn push(text: &mut Vec<u8>, record: &Record<'_>) {
    // Texts and numbers become JSON, and memory can be written.
    let _ = serde_json::to_writer(&mut *text, record);
    text.push(b'\n');
}

/// A line of the node's own: what has been lost.
pub(super) fn note(key: &Key, form: LineForm, what: &str) -> Vec<u8> {
    let mut text = Vec::new();
    if form == LineForm::Journal {
        text.extend_from_slice(format!("<4>{}/{} | {what}\n", key.0, key.1).as_bytes());
        return text;
    }
    let with_name = form == LineForm::Json;
    let record = Record {
        time: rfc3339(SystemTime::now()),
        namespace: with_name.then_some(&key.0),
        function: with_name.then_some(&key.1),
        instance: None,
        revision: None,
        stream: LogStream::Platform.as_str(),
        request_id: None,
        line: what.into(),
    };
    push(&mut text, &record);
    text
}

/// `<PRIORITY>NAMESPACE/NAME INSTANCE | LINE`, as sd-daemon(3) has it: journald makes a level of the number.
fn add_for_journal(text: &mut Vec<u8>, key: &Key, line: &LogLine) {
    let priority = if line.stream == LogStream::Stderr { 5 } else { 6 };
    let head = format!("<{priority}>{}/{} {} | ", key.0, key.1, line.instance_id);
    text.extend_from_slice(head.as_bytes());
    // One that has no line feed has no other way to begin an entry of another level.
    text.extend_from_slice(&line.bytes);
    text.push(b'\n');
}

/// Which lines a reader wants.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    /// As records have it.
    since: Option<String>,
    request_id: Option<String>,
}

impl Filter {
    pub(super) fn new(since: Option<SystemTime>, request_id: Option<String>) -> Self {
        Self { since: since.map(rfc3339), request_id }
    }

    /// Whether it is a line that is wanted; what is no record is none.
    pub(super) fn wants(&self, line: &[u8]) -> bool {
        let Ok(head) = serde_json::from_slice::<Head<'_>>(line) else { return false };
        self.since.as_deref().is_none_or(|since| &*head.time >= since)
            && self.request_id.as_deref().is_none_or(|id| head.request_id.as_deref() == Some(id))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn line(stream: LogStream, bytes: &'static [u8]) -> LogLine {
        LogLine {
            instance_id: "c-1".into(),
            stream,
            time: UNIX_EPOCH + Duration::from_millis(1500),
            request_id: Some("r-1".into()),
            bytes: bytes.into(),
        }
    }

    fn text(form: LineForm, stream: LogStream, bytes: &'static [u8]) -> String {
        let mut text = Vec::new();
        add(&mut text, &("ns".to_owned(), "f".to_owned()), 3, form, &line(stream, bytes));
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn a_line_is_one_object_in_each_form() {
        assert_eq!(
            text(LineForm::File, LogStream::Stdout, b"a\"\x1b\xff\r"),
            "{\"time\":\"1970-01-01T00:00:01.500000000Z\",\"instance\":\"c-1\",\"revision\":3,\
             \"stream\":\"stdout\",\"request_id\":\"r-1\",\"line\":\"a\\\"\\u001b\u{fffd}\\r\"}\n"
        );
        let json: serde_json::Value =
            serde_json::from_str(&text(LineForm::Json, LogStream::Platform, b"x")).expect("JSON");
        assert_eq!((&json["namespace"], &json["function"]), (&"ns".into(), &"f".into()));
        assert_eq!(text(LineForm::Journal, LogStream::Stderr, b"<0>x"), "<5>ns/f c-1 | <0>x\n");
    }

    #[test]
    fn a_filter_wants_what_it_says() {
        let kept = text(LineForm::File, LogStream::Stdout, b"x");
        let wants = |since: Option<u64>, request: Option<&str>| {
            let since = since.map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
            Filter::new(since, request.map(str::to_owned)).wants(kept.trim_end().as_bytes())
        };
        assert!(wants(None, None) && wants(Some(1500), Some("r-1")));
        assert!(!wants(Some(1501), None) && !wants(None, Some("r-2")));
        for other in [&b"half"[..], b"", b"{}", b"{\"time\":7}", b"\xff"] {
            assert!(!Filter::default().wants(other), "{other:?}");
        }
    }
}
