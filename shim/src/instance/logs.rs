//! A container's output, line by line.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

/// Where a log line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// The container's standard output.
    Stdout,
    /// The container's standard error.
    Stderr,
    /// The platform: `FC Invoke Start …`, `START RequestId:…` and the like.
    Platform,
}

impl LogStream {
    /// A stable name for machines.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Platform => "platform",
        }
    }
}

/// One line.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// The instance's id.
    pub instance_id: Arc<str>,
    /// Where it comes from.
    pub stream: LogStream,
    /// When it was read.
    pub time: SystemTime,
    /// The line without its line feed, as it was written; not necessarily UTF-8.
    pub bytes: Bytes,
}

impl LogLine {
    /// The line as text; what is not UTF-8 becomes U+FFFD. Control characters are kept: a sink that
    /// writes to a terminal must escape them.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

/// Takes the log lines of instances.
///
/// Lines come in order, one at a time per instance, on a thread that may block. A sink that is too
/// slow does not slow the container: lines over the queue's bound are dropped and counted, and a
/// platform line says how many.
pub trait LogSink: Send + Sync + 'static {
    /// Takes one line.
    fn line(&self, line: &LogLine);
}

impl<F: Fn(&LogLine) + Send + Sync + 'static> LogSink for F {
    fn line(&self, line: &LogLine) {
        self(line);
    }
}
