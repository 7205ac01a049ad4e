//! What Skiff tells of its own work: `tracing` events on the standard error.

use std::fmt;

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::args::LogLevel;
use super::console::{Console, Stderr};

/// Installs the subscriber of this program.
pub(crate) fn install(level: LogLevel, console: Console) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives(level)))
        .with_writer(|| Stderr)
        .with_ansi(console.colors_stderr());
    // There is no other subscriber in this program that could be in the way.
    let _ = if console.is_json() {
        builder.event_format(JsonLines).try_init()
    } else {
        builder.with_target(level >= LogLevel::Debug).without_time().try_init()
    };
}

/// Skiff's own parts at the level; others say nothing below warnings, for some show the headers of
/// requests, and credentials are headers.
fn directives(level: LogLevel) -> String {
    let own = match level {
        LogLevel::Off => return "off".into(),
        LogLevel::Error => return "error".into(),
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    format!("warn,skiff={own},skiff_runtime={own}")
}

/// One JSON object in a line: `{"event":"trace","level":…,"target":…,"message":…,…}`.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        // The event's own names come last: a field of the same name must not stand for them.
        fields.0.insert("event".into(), json!("trace"));
        fields.0.insert("level".into(), json!(level));
        fields.0.insert("target".into(), json!(event.metadata().target()));
        writeln!(writer, "{}", Value::Object(fields.0))
    }
}

struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), json!(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), json!(value));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), json!(value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), json!(value));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), json!(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("a lock").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(level: LogLevel, work: impl FnOnce()) -> Vec<Value> {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(directives(level)))
            .with_writer(move || writer.clone())
            .event_format(JsonLines)
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        let bytes = buffer.0.lock().expect("a lock").clone();
        String::from_utf8(bytes)
            .expect("text")
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    #[test]
    fn an_event_is_one_line_of_json() {
        let lines = lines(LogLevel::Info, || {
            tracing::info!(target: "skiff_runtime::store", layers = 3, event = "mine", "two\nlines");
        });
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["message"], "two\nlines");
        assert_eq!((&lines[0]["event"], &lines[0]["layers"]), (&json!("trace"), &json!(3)));
    }

    #[test]
    fn others_stay_quiet_below_warnings() {
        let lines = lines(LogLevel::Trace, || {
            tracing::trace!(target: "hyper::client", "Authorization: Basic abc");
            tracing::trace!(target: "skiff", "own");
            tracing::warn!(target: "hyper::client", "trouble");
        });
        let messages: Vec<_> = lines.iter().map(|line| line["message"].clone()).collect();
        assert_eq!(messages, ["own", "trouble"]);
    }

    #[test]
    fn off_is_off() {
        assert!(lines(LogLevel::Off, || tracing::error!(target: "skiff", "x")).is_empty());
    }
}
