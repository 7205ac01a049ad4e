//! Reads the records of a directory, while more are written or afterwards.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Record;
use super::frame::MAGIC;
use super::ledger::failed;
use super::segment::{Part, Parts, Segment};
use super::usage::Selection;
use crate::Result;

/// How much a record's end may lie behind the time at which its file says it was written: clocks differ in
/// their grain, and are set.
const CLOCKS: Duration = Duration::from_secs(60);

/// What a reader finds next.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Found {
    /// A record.
    Record(Box<Record>),
    /// Something that was a record, or several.
    Damage(Damage),
}

/// A part of a file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

/// All records of a directory, the oldest first, each once; a write that did not end is none. It holds one
/// file in memory at a time.
#[derive(Debug)]
pub struct Reader {
    segments: VecDeque<Segment>,
    current: Option<Current>,
    selection: Selection,
    until: u64,
}

/// The file that is being read.
#[derive(Debug)]
struct Current {
    path: PathBuf,
    bytes: Vec<u8>,
    at: usize,
    next: u64,
    until: u64,
}

impl Reader {
    /// Reads what is there now.
    ///
    /// # Errors
    /// `Runtime(Host)` when the directory cannot be read.
    pub fn open(dir: &Path, selection: Selection) -> Result<Self> {
        let segments = Segment::all(dir).map_err(|error| failed("read", dir, error))?;
        Ok(Self { segments: segments.into(), current: None, selection, until: u64::MAX })
    }

    /// Only those before this number: others may be being written.
    #[must_use]
    pub fn until(mut self, sequence: u64) -> Self {
        self.until = sequence;
        self
    }

    /// Goes on to the next file; gives what is wrong with it.
    fn enter(&mut self, segment: Segment) -> Option<Found> {
        // What a failed disk left behind the beginning of the next file is there again, or was told as a gap.
        let until = self.segments.front().map_or(u64::MAX, |next| next.first).min(self.until);
        if segment.first >= until || self.is_older(&segment.path) {
            return None;
        }
        let (path, next) = (segment.path, segment.first);
        match std::fs::read(&path) {
            Ok(bytes) if bytes.starts_with(MAGIC) => {
                self.current = Some(Current { path, bytes, at: MAGIC.len(), next, until });
                None
            }
            // It is being made.
            Ok(bytes) if bytes.len() < MAGIC.len() => None,
            Ok(_) => Some(damage(&path, "it is no file of records of this version".to_owned())),
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(damage(&path, error.to_string())),
        }
    }

    /// Whether everything in a file had ended before the time that is asked for.
    fn is_older(&self, path: &Path) -> bool {
        let Some(since) = self.selection.since else { return false };
        let written = std::fs::metadata(path).and_then(|data| data.modified());
        written.is_ok_and(|written| written + CLOCKS < since)
    }
}

impl Current {
    fn next(&mut self) -> Option<Found> {
        let mut parts = Parts::new(&self.bytes[self.at..], self.next);
        let part = parts.next()?;
        match part {
            Part::Damaged(skipped) => {
                self.at += skipped;
                Some(damage(&self.path, format!("{skipped} bytes in it are no record")))
            }
            Part::Whole(frame) if frame.sequence >= self.until => None,
            Part::Whole(frame) => {
                self.at += frame.size();
                self.next = frame.sequence + 1;
                Some(match serde_json::from_slice::<Record>(frame.payload) {
                    Ok(record) => Found::Record(Box::new(Record { sequence: frame.sequence, ..record })),
                    Err(error) => {
                        damage(&self.path, format!("record {} is not understood: {error}", frame.sequence))
                    }
                })
            }
        }
    }
}

fn damage(path: &Path, what: String) -> Found {
    Found::Damage(Damage { file: path.to_owned(), what })
}

impl Iterator for Reader {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            match self.current.as_mut().map(Current::next) {
                Some(Some(Found::Record(record))) if !self.selection.takes(&record) => {}
                Some(Some(found)) => return Some(found),
                Some(None) => self.current = None,
                None => {
                    let segment = self.segments.pop_front()?;
                    if let Some(found) = self.enter(segment) {
                        return Some(found);
                    }
                }
            }
        }
    }
}
