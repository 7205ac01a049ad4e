//! What the program writes: results to the standard output, everything else to the standard error.

mod error;
mod logs;
mod paint;
mod progress;
mod stderr;
mod units;

use std::io::{self, IsTerminal, Write};

use serde_json::{Value, json};

use super::args::{Color, Global, Output};
use super::failure::Failure;
pub(crate) use logs::Logs;
pub(crate) use paint::{Paint, paint};
pub(crate) use progress::Progress;
pub(crate) use stderr::Stderr;
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

    /// Whether somebody looks at the standard output.
    pub(crate) fn is_terminal(self) -> bool {
        self.stdout.terminal
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
        let line = if self.is_json() { json_line(&value()) } else { text() + "\n" };
        write_result(line.as_bytes())
    }

    /// As [`Console::result`], for one line of many: whether there is a reader still.
    ///
    /// # Errors
    /// As [`Console::result`].
    pub(crate) fn line(
        self,
        text: impl FnOnce() -> String,
        value: impl FnOnce() -> Value,
    ) -> Result<bool, Failure> {
        let line = if self.is_json() { json_line(&value()) } else { text() + "\n" };
        write_stdout(line.as_bytes())
    }

    /// What others wrote, as the standard output may show it: a terminal gets control characters escaped.
    pub(crate) fn shown(self, text: &str) -> String {
        if self.stdout.terminal { printable(text) } else { text.to_owned() }
    }

    /// Writes bytes as they are. Only a terminal gets control characters escaped, and a line feed
    /// after the last line.
    ///
    /// # Errors
    /// As [`Console::result`].
    pub(crate) fn body(self, bytes: &[u8]) -> Result<(), Failure> {
        if !self.stdout.terminal {
            return write_result(bytes);
        }
        let mut text = printable(&String::from_utf8_lossy(bytes));
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        write_result(text.as_bytes())
    }

    /// Tells of a step: a line of text, or a JSON object with `event`; nothing when quiet.
    pub(crate) fn note(self, event: &str, text: impl FnOnce() -> String, fields: impl FnOnce() -> Value) {
        match self.output {
            _ if self.quiet => {}
            Output::Text => write_stderr(&format!("{}\n", text())),
            Output::Json => self.event(event, fields()),
        }
    }

    /// Tells of what the platform advises against; nothing when quiet.
    pub(crate) fn warn(self, warning: &skiff::Warning) {
        let text = || error::render_warning(warning, self.stderr.colors);
        self.note("warning", text, || serde_json::to_value(warning).unwrap_or_default());
    }

    /// The same for one that came as JSON.
    pub(crate) fn warn_json(self, warning: &Value) {
        let text = |key: &str| warning[key].as_str().unwrap_or_default();
        let line = || format!("warning: {}\n  help: {}", text("message"), text("advice"));
        self.note("warning", line, || warning.clone());
    }

    /// Writes a JSON object with `event` in it to the standard error.
    fn event(self, event: &str, fields: Value) {
        write_stderr(&json_line(&with_event(event, fields)));
    }

    /// Tells of a failure.
    pub(crate) fn fail(self, failure: &Failure) {
        match self.output {
            Output::Text => write_stderr(&error::render(failure, self.stderr.colors)),
            Output::Json => write_stderr(&json_line(&json!({ "error": failure }))),
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
    write_stdout(bytes).map(drop)
}

/// Whether there is a reader still.
fn write_stdout(bytes: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::host("writing to the standard output", &e)),
    }
}

/// In one call, so that lines of several writers do not mix.
fn write_stderr(text: &str) {
    stderr::write(text.as_bytes());
}

/// JSON in one line. Its texts have none of the control characters that JSON allows (DEL and C1): a
/// terminal would obey them.
fn json_line(value: &Value) -> String {
    let mut line = String::new();
    for c in value.to_string().chars() {
        match c {
            '\u{7f}'..='\u{9f}' => line += &format!("\\u{:04x}", u32::from(c)),
            c => line.push(c),
        }
    }
    line.push('\n');
    line
}

/// Text for a terminal: what others wrote must not steer it.
fn printable(text: &str) -> String {
    let escape = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
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
    fn a_terminal_is_not_steered_by_answers_or_json() {
        assert_eq!(printable("a\x1b[2J\u{9b}m\n\tä\r"), "a\\u{1b}[2J\\u{9b}m\n\tä\\r");
        let value = json!({ "a": "\u{1b}[2J\u{9b}\u{7f}\nä" });
        let line = json_line(&value);
        assert!(line.trim_end().chars().all(|c| !c.is_control()), "{line:?}");
        assert_eq!(serde_json::from_str::<Value>(&line).ok(), Some(value));
    }

    #[test]
    fn an_event_keeps_its_name() {
        assert_eq!(with_event("log", json!({"line": "x"})), json!({"event": "log", "line": "x"}));
        assert_eq!(with_event("log", json!(7)), json!({"event": "log"}));
    }
}
