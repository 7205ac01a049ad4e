//! What instances give their lines to, and what the writer writes them to.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::beneath::Dir;
use super::segments::{self, Segments};
use super::writer::{Channel, Target};
use super::{Key, LineForm, LogFiles, record};
use crate::LogLine;
use crate::instance::LogSink;

/// Bytes of lines that are handed over at once, about.
const BATCH: usize = 256 * 1024;

/// Takes the lines of one revision.
pub(super) struct Sink {
    channel: Arc<Channel>,
    generation: u64,
    key: Key,
    revision: u64,
    form: LineForm,
}

impl Sink {
    pub(super) fn new(channel: Arc<Channel>, key: Key, revision: u64, form: LineForm) -> Self {
        Self { generation: channel.generation(), channel, key, revision, form }
    }
}

impl LogSink for Sink {
    fn line(&self, line: &LogLine) {
        self.lines(std::slice::from_ref(line));
    }

    fn lines(&self, lines: &[LogLine]) {
        let (mut text, mut count) = (Vec::new(), 0);
        for line in lines {
            record::add(&mut text, &self.key, self.revision, self.form, line);
            count += 1;
            if text.len() >= BATCH {
                self.channel.add(self.generation, std::mem::take(&mut text), count);
                count = 0;
            }
        }
        if count > 0 {
            self.channel.add(self.generation, text, count);
        }
    }
}

fn missing(key: &Key, form: LineForm, count: u64) -> Vec<u8> {
    record::note(key, form, &format!("{count} log lines were lost here: they could not be written in time"))
}

/// A function's files.
pub(super) struct FileTarget {
    base: Arc<Dir>,
    key: Key,
    files: LogFiles,
    /// Opened with the first line.
    segments: Option<Segments>,
}

impl FileTarget {
    pub(super) fn new(base: Arc<Dir>, key: Key, files: LogFiles) -> Self {
        Self { base, key, files, segments: None }
    }
}

impl Target for FileTarget {
    fn write(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut segments = match self.segments.take() {
            Some(segments) => segments,
            None => Segments::open(&self.base, &self.key, self.files).map_err(|error| (0, error))?,
        };
        // After an error they are opened anew: somebody may have removed the directory.
        segments.write(lines)?;
        self.segments = Some(segments);
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.segments = None;
        segments::remove(&self.base, &self.key)
    }

    fn missing(&self, count: u64) -> Vec<u8> {
        missing(&self.key, LineForm::File, count)
    }

    fn name(&self) -> String {
        format!("logs/{}/{}", self.key.0, self.key.1)
    }
}

/// A stream that all functions share.
pub(super) struct StreamTarget {
    to: Arc<Mutex<dyn Write + Send>>,
    key: Key,
    form: LineForm,
}

impl StreamTarget {
    pub(super) fn new(to: Arc<Mutex<dyn Write + Send>>, key: Key, form: LineForm) -> Self {
        Self { to, key, form }
    }
}

impl Target for StreamTarget {
    fn write(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        // What of it has been written before an error is not known.
        to.write_all(lines).and_then(|()| to.flush()).map_err(|error| (0, error))
    }

    fn clear(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn missing(&self, count: u64) -> Vec<u8> {
        missing(&self.key, self.form, count)
    }

    fn name(&self) -> String {
        "the stream of logs".to_owned()
    }
}
