//! Where a node's functions log to, and reading it again.
//!
//! ```text
//! LogSink of a revision ─ record ─ writer (one thread) ─ segments: STATE_DIR/logs/NAMESPACE/NAME/*.jsonl
//!                                                     └─ or a stream: the standard output, for example
//! reader ─ GET /v1/functions/NAME/logs
//! ```

mod beneath;
mod reader;
mod record;
mod segments;
mod sink;
mod stream;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use self::beneath::Dir;
use self::sink::{FileTarget, Sink, StreamTarget};
pub(super) use self::stream::lines;
use self::writer::{Channel, Writer};
use super::Key;
use crate::instance::LogSink;
use crate::{Error, ErrorKind, FunctionConfig, Result};

/// How long the last lines may take to be written at the end.
const LAST_LINES: Duration = Duration::from_secs(2);

/// How long a reader's lines may take to be written before it reads.
const SETTLE: Duration = Duration::from_secs(1);

/// Functions that are not deployed, for their first deploy has failed, whose logs are kept.
const MAX_FORMER: usize = 32;

/// Where the log lines of a function's revision go.
pub type LogTarget = Arc<dyn Fn(&FunctionConfig, u64) -> Arc<dyn LogSink> + Send + Sync>;

/// How much of a function's log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFiles {
    /// Bytes of a file at most.
    pub bytes: u64,
    /// Files of a function at most; with one alone, a new file takes all lines away.
    pub files: usize,
}

impl Default for LogFiles {
    /// Four files of 8 MiB.
    fn default() -> Self {
        Self { bytes: 8 << 20, files: 4 }
    }
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineForm {
    /// A JSON object, without the function's name: as in its files.
    File,
    /// The same with namespace and name.
    Json,
    /// `<PRIORITY>NAMESPACE/NAME INSTANCE | LINE`, for a standard output that goes to systemd's journal.
    Journal,
}

/// Where the logs of a node go.
#[derive(Clone)]
pub enum NodeLogs {
    /// To files below the state directory, from where [`Node`](super::Node) reads them again.
    Files(LogFiles),
    /// To a stream. Lines are lost, and counted, where it stands still.
    Stream(Arc<Mutex<dyn Write + Send>>, LineForm),
    /// To sinks of the caller's.
    Sink(LogTarget),
}

impl fmt::Debug for NodeLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(files) => f.debug_tuple("Files").field(files).finish(),
            Self::Stream(_, form) => f.debug_tuple("Stream").field(form).finish(),
            Self::Sink(_) => f.write_str("Sink"),
        }
    }
}

/// Which lines a reader of a function's log wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// None that are older.
    pub since: Option<SystemTime>,
    /// Only those of this request.
    pub request_id: Option<String>,
    /// Not only those that there are, but also those that come.
    pub follow: bool,
}

/// The logs of a node.
pub(super) struct Book {
    to: To,
    channels: Mutex<BTreeMap<Key, Arc<Channel>>>,
}

enum To {
    Files { base: Arc<Dir>, files: LogFiles, writer: Writer },
    Stream { to: Arc<Mutex<dyn Write + Send>>, form: LineForm, writer: Writer },
    Sink(LogTarget),
}

impl Book {
    /// # Errors
    /// `Runtime(Host)` when the directory cannot be made.
    pub(super) fn open(logs: NodeLogs, state_dir: &Path) -> Result<Self> {
        let to = match logs {
            NodeLogs::Files(files) => {
                let path = state_dir.join("logs");
                let base = Dir::open(&path).map_err(|error| {
                    host(format!("cannot open the directory of logs {}", path.display()), error)
                })?;
                To::Files { base: Arc::new(base), files, writer: writer()? }
            }
            NodeLogs::Stream(to, form) => To::Stream { to, form, writer: writer()? },
            NodeLogs::Sink(target) => To::Sink(target),
        };
        Ok(Self { to, channels: Mutex::default() })
    }

    fn channels(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Channel>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lines of a revision.
    pub(super) fn sink(&self, key: &Key, config: &FunctionConfig, revision: u64) -> Arc<dyn LogSink> {
        let form = match &self.to {
            To::Files { .. } => LineForm::File,
            To::Stream { form, .. } => *form,
            To::Sink(target) => return target(config, revision),
        };
        match self.channel(key) {
            Some(channel) => Arc::new(Sink::new(channel, key.clone(), revision, form)),
            None => Arc::new(|_: &crate::LogLine| ()),
        }
    }

    fn channel(&self, key: &Key) -> Option<Arc<Channel>> {
        let mut channels = self.channels();
        if let Some(channel) = channels.get(key) {
            return Some(Arc::clone(channel));
        }
        let channel = match &self.to {
            To::Files { base, files, writer } => {
                writer.channel(Box::new(FileTarget::new(Arc::clone(base), key.clone(), *files)))
            }
            To::Stream { to, form, writer } => {
                writer.channel(Box::new(StreamTarget::new(Arc::clone(to), key.clone(), *form)))
            }
            To::Sink(_) => return None,
        };
        channels.insert(key.clone(), Arc::clone(&channel));
        Some(channel)
    }

    /// Lines of a function that are missing in its log.
    pub(super) fn lost(&self, key: &Key) -> u64 {
        self.channels().get(key).map_or(0, |channel| channel.lost())
    }

    /// Removes the log of a function; lines that its instances still write are nobody's. What is given says
    /// when it is done; a log that is begun after this call stays.
    pub(super) fn remove(&self, key: &Key) -> impl Future<Output = ()> + use<> {
        let channel = match &self.to {
            To::Files { .. } => self.channel(key),
            _ => self.channels().remove(key),
        };
        let (told, name) = (channel.map(|channel| channel.clear()), key.1.clone());
        async move {
            let Some(told) = told else { return };
            if let Ok(Err(error)) = told.await {
                tracing::warn!(function = name, %error, "the log of a deleted function stays");
            }
        }
    }

    /// Removes the oldest logs of functions that are not deployed.
    pub(super) fn sweep(&self, deployed: &BTreeSet<Key>) {
        let To::Files { base, .. } = &self.to else { return };
        let mut former: Vec<(SystemTime, Key)> = Vec::new();
        for key in kept(base) {
            if !deployed.contains(&key) {
                let changed =
                    segments::dir_of(base, &key).map_or(SystemTime::UNIX_EPOCH, |dir| dir.changed());
                former.push((changed, key));
            }
        }
        former.sort();
        let many = former.len().saturating_sub(MAX_FORMER);
        for (_, key) in former.drain(..many) {
            drop(self.remove(&key));
        }
    }

    /// The functions of that name whose logs are here.
    pub(super) fn named(&self, namespace: Option<&str>, name: &str) -> Vec<Key> {
        let To::Files { base, .. } = &self.to else { return Vec::new() };
        let is_it = |key: &Key| key.1 == name && namespace.is_none_or(|namespace| key.0 == namespace);
        kept(base).into_iter().filter(is_it).collect()
    }

    /// A reader of a function's log, when all that has been said by now is written.
    ///
    /// # Errors
    /// `NotFound` where logs are not kept in files; `Runtime(Host)`.
    async fn reader(&self, key: &Key, query: &LogQuery) -> Result<(Option<reader::Reader>, Arc<Channel>)> {
        let (To::Files { base, .. }, Some(channel)) = (&self.to, self.channel(key)) else {
            let message = "this node keeps no logs: it passes them on";
            return Err(Error::new(ErrorKind::NotFound, message)
                .advise("read them where they go, or let it keep them (skiff serve --log-to files)"));
        };
        channel.settled(SETTLE).await;
        let failed = |error| host(format!("cannot read the log of function {}", key.1), error);
        let dir = match segments::dir_of(base, key) {
            Ok(dir) => dir,
            // It has said nothing yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, channel)),
            Err(error) => return Err(failed(error)),
        };
        let reader = reader::Reader::open(dir, query.since, query.request_id.clone(), query.follow);
        Ok((Some(reader.map_err(failed)?), channel))
    }

    fn dir_of(&self, key: &Key) -> Option<Dir> {
        let To::Files { base, .. } = &self.to else { return None };
        segments::dir_of(base, key).ok()
    }

    /// Writes what is left, and takes no more.
    pub(super) async fn close(&self) {
        if let To::Files { writer, .. } | To::Stream { writer, .. } = &self.to {
            writer.close(LAST_LINES).await;
        }
    }
}

/// The functions whose logs are in a directory.
fn kept(base: &Dir) -> Vec<Key> {
    let mut keys = Vec::new();
    for namespace in base.names().unwrap_or_default() {
        let Ok(dir) = base.below(&namespace) else { continue };
        for name in dir.names().unwrap_or_default() {
            keys.push((beneath::text_of(&namespace), beneath::text_of(&name)));
        }
    }
    keys.sort();
    keys
}

fn writer() -> Result<Writer> {
    Writer::start().map_err(|error| host("cannot start the thread that writes logs".to_owned(), error))
}

fn host(what: String, error: io::Error) -> Error {
    Error::new(ErrorKind::Runtime(skiff_runtime::ErrorKind::Host), what).because(error)
}
