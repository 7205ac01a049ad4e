//! The function's and the platform's log lines.

use std::io::{self, Write};
use std::time::UNIX_EPOCH;

use serde_json::json;
use skiff::{LogLine, LogSink, LogStream};

use super::paint::{Paint, paint};
use super::{Console, with_event};

/// Writes log lines to the standard error, each after its instance's name.
#[derive(Debug)]
pub(crate) struct Logs(pub(crate) Console);

impl LogSink for Logs {
    fn line(&self, line: &LogLine) {
        self.lines(std::slice::from_ref(line));
    }

    fn lines(&self, lines: &[LogLine]) {
        let bytes: Vec<u8> = lines.iter().filter_map(|line| self.written(line)).flatten().collect();
        // In one call, so that lines do not mix. Where it fails there is no one to tell.
        let _ = io::stderr().lock().write_all(&bytes);
    }
}

impl Logs {
    /// A line as it is written, if it is.
    fn written(&self, line: &LogLine) -> Option<Vec<u8>> {
        let console = self.0;
        if console.is_json() {
            return Some(json_line(line));
        }
        let for_programs =
            matches!(line.stream, LogStream::Events | LogStream::Requests | LogStream::Metrics);
        (!for_programs).then(|| text_line(line, console.stderr.terminal, console.stderr.colors))
    }
}

/// `INSTANCE | LINE`. A terminal gets control characters escaped: what a function writes must not
/// steer it. Files and pipes get the bytes as they are.
fn text_line(line: &LogLine, terminal: bool, colors: bool) -> Vec<u8> {
    let color = if line.stream == LogStream::Platform { Paint::Dim } else { Paint::Cyan };
    let mut out = paint(colors, color, &format!("{} |", line.instance_id)).into_bytes();
    out.push(b' ');
    if terminal {
        let escape =
            |c: char| if c.is_control() && c != '\t' { c.escape_default().to_string() } else { c.into() };
        // A carriage return before the line feed is a line end of its own kind.
        let text = line.text();
        out.extend(text.trim_end_matches('\r').chars().map(escape).collect::<String>().into_bytes());
    } else {
        out.extend_from_slice(&line.bytes);
    }
    out.push(b'\n');
    out
}

fn json_line(line: &LogLine) -> Vec<u8> {
    // Before 1970 only if the clock is wrong.
    let unix_ms = line.time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis());
    let fields = json!({
        "instance": &*line.instance_id,
        "stream": line.stream.as_str(),
        "unix_ms": unix_ms as u64,
        "line": line.text(),
    });
    super::json_line(&with_event("log", fields)).into_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(bytes: &'static [u8]) -> LogLine {
        LogLine {
            instance_id: "c-1".into(),
            stream: LogStream::Stdout,
            time: UNIX_EPOCH + Duration::from_millis(1500),
            request_id: None,
            bytes: bytes::Bytes::from_static(bytes),
        }
    }

    #[test]
    fn a_pipe_gets_the_bytes_as_they_are() {
        assert_eq!(text_line(&line(b"\x1b[1mhi\xff\t"), false, false), b"c-1 | \x1b[1mhi\xff\t\n");
    }

    #[test]
    fn a_terminal_is_not_steered() {
        assert_eq!(
            String::from_utf8(text_line(&line(b"a\x1b[2Jb\tc\xff\r"), true, false)).as_deref(),
            Ok("c-1 | a\\u{1b}[2Jb\tc\u{fffd}\n")
        );
    }

    #[test]
    fn only_the_name_is_coloured() {
        assert_eq!(text_line(&line(b"hi"), true, true), b"\x1b[36mc-1 |\x1b[0m hi\n");
    }

    #[test]
    fn json_has_one_object_in_a_line() {
        let bytes = json_line(&line(b"two\\ \"q\" \xff"));
        assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(
            value,
            json!({"event": "log", "instance": "c-1", "stream": "stdout", "unix_ms": 1500, "line": "two\\ \"q\" \u{fffd}"})
        );
    }
}
