//! What the program writes: results to the standard output, everything else to the standard error.

mod base64;
mod error;
mod logs;
mod paint;
mod progress;
mod units;

use std::io::{self, IsTerminal, Write};

use serde_json::{Value, json};

use super::args::{Color, Global, Output};
use super::failure::Failure;
pub(crate) use base64::base64;
pub(crate) use logs::Logs;
pub(crate) use paint::{Paint, paint};
pub(crate) use progress::Progress;
pub(crate) use units::{bytes, timeline};

/// How the program writes; decided once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    output: Output,
    quiet: bool,
    stdout: Stream,
    stderr: Stream,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    terminal: bool,
    colors: bool,
}

impl Console {
    /// By the options, the environment and what the two streams are.
    pub(crate) fn new(global: &Global) -> Self {
        let allowed = colors_allowed(|name| std::env::var_os(name));
        let stream = |terminal: bool| Stream {
            terminal,
            colors: match global.color {
                Color::Always => true,
                Color::Never => false,
                Color::Auto => terminal && allowed,
            },
        };
        Self {
            output: global.output,
            quiet: global.quiet,
            stdout: stream(io::stdout().is_terminal()),
            stderr: stream(io::stderr().is_terminal()),
        }
    }

    /// For errors of arguments that ask for JSON.
    pub(crate) fn json_errors() -> Self {
        Self { output: Output::Json, quiet: false, stdout: Stream::default(), stderr: Stream::default() }
    }

    /// Whether it writes JSON.
    pub(crate) fn is_json(self) -> bool {
        self.output == Output::Json
    }

    /// Whether the standard output shows colours.
    pub(crate) fn colors_stdout(self) -> bool {
        self.stdout.colors
    }

    /// Whether the standard error shows colours.
    pub(crate) fn colors_stderr(self) -> bool {
        self.stderr.colors
    }

    /// Writes a result: a line of text, or a JSON object in one line.
    ///
    /// # Errors
    /// When the standard output cannot be written; a reader that went away is none.
    pub(crate) fn result(
        self,
        text: impl FnOnce() -> String,
        value: impl FnOnce() -> Value,
    ) -> Result<(), Failure> {
        let mut line = if self.is_json() { value().to_string() } else { text() };
        line.push('\n');
        write_result(line.as_bytes())
    }

    /// Writes bytes as they are; a line feed after the last line only for a terminal.
    ///
    /// # Errors
    /// As [`Console::result`].
    pub(crate) fn body(self, bytes: &[u8]) -> Result<(), Failure> {
        write_result(bytes)?;
        let open_line = bytes.last().is_some_and(|last| *last != b'\n');
        if self.stdout.terminal && open_line { write_result(b"\n") } else { Ok(()) }
    }

    /// Tells of a step: a line of text, or a JSON object with `event`; nothing when quiet.
    pub(crate) fn note(self, event: &str, text: impl FnOnce() -> String, fields: impl FnOnce() -> Value) {
        match self.output {
            _ if self.quiet => {}
            Output::Text => write_stderr(&format!("{}\n", text())),
            Output::Json => self.event(event, fields()),
        }
    }

    /// Writes a JSON object with `event` in it to the standard error.
    fn event(self, event: &str, fields: Value) {
        write_stderr(&format!("{}\n", with_event(event, fields)));
    }

    /// Tells of a failure.
    pub(crate) fn fail(self, failure: &Failure) {
        match self.output {
            Output::Text => write_stderr(&error::render(failure, self.stderr.colors)),
            Output::Json => write_stderr(&format!("{}\n", json!({ "error": failure }))),
        }
    }
}

/// `{"event":EVENT}` and the fields of an object.
pub(crate) fn with_event(event: &str, fields: Value) -> Value {
    let mut object = json!({ "event": event });
    if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), fields) {
        object.extend(fields);
    }
    object
}

/// <https://no-color.org>: any value that is not empty; and terminals that cannot.
fn colors_allowed(lookup: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    lookup("NO_COLOR").is_none_or(|value| value.is_empty())
        && lookup("TERM").is_none_or(|term| term != "dumb")
}

fn write_result(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::host("writing to the standard output", &e))
        }
        _ => Ok(()),
    }
}

/// In one call, so that lines of several writers do not mix. Where it fails there is no one to tell.
fn write_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_and_dumb_terminals_are_respected() {
        let allowed = |variables: &[(&str, &str)]| {
            colors_allowed(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
        };
        assert!(allowed(&[]));
        assert!(allowed(&[("NO_COLOR", ""), ("TERM", "xterm")]));
        assert!(!allowed(&[("NO_COLOR", "1")]));
        assert!(!allowed(&[("TERM", "dumb")]));
    }

    #[test]
    fn an_event_keeps_its_name() {
        assert_eq!(with_event("log", json!({"line": "x"})), json!({"event": "log", "line": "x"}));
        assert_eq!(with_event("log", json!(7)), json!({"event": "log"}));
    }
}
