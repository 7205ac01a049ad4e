//! The thread that puts records on the disk: what has come while it waited for the disk goes in one write
//! and one `fdatasync`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock};
use tokio::sync::oneshot;

use super::frame::{self, MAX_PAYLOAD};
use super::segment::{Failed, Found, Open, Segment, reopen};
use super::{MeterOptions, Record, unix_ms};
use crate::{Error, ErrorKind, Result};

/// Records that wait for the disk at most; more are not kept. Each is of a call that waits, or of one whose
/// caller has gone.
const MAX_WAITING: usize = 64 * 1024;

/// After a failure of the disk: no record is tried for so long.
const RETRY: Duration = Duration::from_secs(1);

/// While the disk fails, it is told again after so long.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// How records are kept at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MeterStatus {
    /// Why records are not kept at the moment; `None` when they are.
    pub failing: Option<String>,
    /// Calls that were answered and have no record, since the node was opened.
    pub unbilled: u64,
    /// Calls that were answered before their record was on the disk, as that took too long.
    pub late: u64,
    /// The number of the next record.
    pub next_sequence: u64,
}

struct Waiting {
    record: Record,
    /// Told whether the record is on the disk.
    kept: oneshot::Sender<bool>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    closed: bool,
}

/// What the callers and the thread share.
pub(super) struct Ledger {
    queue: Mutex<Queue>,
    more: Condvar,
    status: Mutex<MeterStatus>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// Opens the directory and starts the thread, which ends after [`Ledger::close`].
    pub(super) fn open(
        dir: &Path,
        options: MeterOptions,
    ) -> Result<(Arc<Self>, std::thread::JoinHandle<()>)> {
        let disk = Disk::open(dir, options)?;
        let status = MeterStatus { next_sequence: disk.next, ..MeterStatus::default() };
        let ledger =
            Arc::new(Self { queue: Mutex::default(), more: Condvar::new(), status: Mutex::new(status) });
        let (own, name) = (Arc::clone(&ledger), "skiff-meter".to_owned());
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || own.work(disk))
            .map_err(|error| failed("start the thread that keeps records of", dir, error))?;
        Ok((ledger, thread))
    }

    /// Has a record kept. What comes back tells whether it is.
    pub(super) fn add(&self, record: Record) -> oneshot::Receiver<bool> {
        let (kept, told) = oneshot::channel();
        let full = {
            let mut queue = lock(&self.queue);
            let full = queue.closed || queue.waiting.len() >= MAX_WAITING;
            if !full {
                queue.waiting.push(Waiting { record, kept });
            }
            full
        };
        if full {
            lock(&self.status).unbilled += 1;
        } else {
            self.more.notify_one();
        }
        told
    }

    pub(super) fn status(&self) -> MeterStatus {
        lock(&self.status).clone()
    }

    /// Notes a call that did not wait until its record was on the disk; the first is told.
    pub(super) fn late(&self) {
        let late = {
            let mut status = lock(&self.status);
            status.late += 1;
            status.late
        };
        if late == 1 {
            tracing::warn!("a call was answered before its record was on the disk: the disk is slow");
        }
    }

    /// Takes no more records; the thread ends when those that wait are on the disk.
    pub(super) fn close(&self) {
        lock(&self.queue).closed = true;
        self.more.notify_one();
    }

    fn work(&self, mut disk: Disk) {
        loop {
            let (batch, closed) = {
                let mut queue = lock(&self.queue);
                while queue.waiting.is_empty() && !queue.closed {
                    queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
                (std::mem::take(&mut queue.waiting), queue.closed)
            };
            if batch.is_empty() && closed {
                return disk.finish();
            }
            let kept = disk.keep(&batch);
            {
                let mut status = lock(&self.status);
                status.unbilled += if kept { 0 } else { batch.len() as u64 };
                status.next_sequence = disk.next;
                status.failing.clone_from(&disk.failing.as_ref().map(|failing| failing.why.clone()));
            }
            for waiting in batch {
                // Who has gone need not know.
                let _ = waiting.kept.send(kept);
            }
        }
    }
}

/// The directory, of which one thread writes.
struct Disk {
    dir: PathBuf,
    options: MeterOptions,
    open: Option<Open>,
    next: u64,
    failing: Option<Failing>,
    _lock: File,
}

/// Since the disk failed.
struct Failing {
    why: String,
    since: SystemTime,
    retry: Instant,
    tell: Instant,
    missing: u64,
}

impl Disk {
    fn open(dir: &Path, options: MeterOptions) -> Result<Self> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| failed("make the directory of records", dir, error))?;
        let lock = File::open(dir).map_err(|error| failed("open", dir, error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            rustix::io::Errno::WOULDBLOCK => {
                Error::new(ErrorKind::Busy, format!("another node keeps its records in {}", dir.display()))
                    .advise("end it first, or give this one a directory of its own")
            }
            errno => failed("lock", dir, errno.into()),
        })?;
        let all = Segment::all(dir).map_err(|error| failed("read", dir, error))?;
        let mut disk = Self { dir: dir.to_owned(), options, open: None, next: 1, failing: None, _lock: lock };
        if let Some(last) = all.into_iter().next_back() {
            let path = last.path.clone();
            let found = reopen(&last).map_err(|error| failed("go on with", &path, error))?;
            disk.found(&path, found);
        }
        Ok(disk)
    }

    fn found(&mut self, path: &Path, found: Found) {
        let (path, torn) = (path.display(), found.torn);
        if torn > 0 {
            tracing::warn!(%path, torn, "the last write of records had not ended: its bytes are cut");
        }
        if found.damaged {
            tracing::error!(%path, "a file of records is damaged: it is kept as it is, and another begun");
        }
        (self.next, self.open) = (found.next, found.open);
    }

    /// Puts a batch on the disk, all or none.
    fn keep(&mut self, batch: &[Waiting]) -> bool {
        if self.failing.as_ref().is_some_and(|failing| Instant::now() < failing.retry) {
            return self.missing(batch.len());
        }
        let (bytes, next) = self.encode(batch);
        match self.write(&bytes) {
            Ok(()) => {
                self.next = next;
                if let Some(failing) = self.failing.take() {
                    let unbilled = failing.missing;
                    tracing::warn!(unbilled, "records of calls are kept again");
                }
                true
            }
            Err(error) => {
                self.failed(&error);
                self.missing(batch.len())
            }
        }
    }

    /// The last try to tell what is missing.
    fn finish(&mut self) {
        if let Some(failing) = &mut self.failing {
            failing.retry = Instant::now();
            self.keep(&[]);
        }
    }

    /// The frames of a batch, and the number after them. What could not be kept before goes first, as one.
    fn encode(&self, batch: &[Waiting]) -> (Vec<u8>, u64) {
        let gap =
            self.failing.as_ref().filter(|failing| failing.missing > 0).map(|failing| {
                Record::gap(failing.missing, unix_ms(failing.since), unix_ms(SystemTime::now()))
            });
        let (mut bytes, mut next) = (Vec::new(), self.next);
        for record in gap.iter().chain(batch.iter().map(|waiting| &waiting.record)) {
            let payload = serde_json::to_vec(record).unwrap_or_default();
            // Names and ids are bounded by their platforms: this is never so, and would be found by its number.
            if !payload.is_empty() && payload.len() <= MAX_PAYLOAD {
                frame::encode(next, &payload, &mut bytes);
            }
            next += 1;
        }
        (bytes, next)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let full = |open: &Open| open.length >= self.options.file_bytes;
        if self.open.as_ref().is_none_or(full) {
            self.open = None;
            self.open = Some(Open::create(&self.dir, self.next)?);
            self.make_room();
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        open.append(bytes).map_err(|Failed { error, usable }| {
            if !usable {
                self.open = None;
            }
            error
        })
    }

    /// Removes the oldest files while all are too large together. The one that is written to stays.
    fn make_room(&self) {
        let all = Segment::all(&self.dir).unwrap_or_default();
        let size = |segment: &Segment| fs::metadata(&segment.path).map_or(0, |data| data.len());
        let mut whole: u64 = all.iter().map(size).sum();
        for pair in all.windows(2) {
            // Room for one file more, that the bound holds until the next is begun.
            if whole.saturating_add(self.options.file_bytes) <= self.options.max_bytes {
                return;
            }
            let (oldest, bytes) = (&pair[0], size(&pair[0]));
            let path = oldest.path.display();
            match fs::remove_file(&oldest.path) {
                Ok(()) => {
                    let (first, last) = (oldest.first, pair[1].first - 1);
                    tracing::warn!(%path, first, last, "the oldest file of records is removed: they take too much");
                }
                Err(error) => tracing::error!(%path, %error, "the oldest file of records cannot be removed"),
            }
            whole = whole.saturating_sub(bytes);
        }
    }

    fn failed(&mut self, error: &io::Error) {
        let (now, dir) = (Instant::now(), self.dir.display());
        let why = format!("cannot write to {dir}: {error}");
        let failing = self.failing.get_or_insert_with(|| Failing {
            why: String::new(),
            since: SystemTime::now(),
            retry: now,
            tell: now,
            missing: 0,
        });
        failing.retry = now + RETRY;
        if failing.why != why || failing.tell <= now {
            let unbilled = failing.missing;
            tracing::error!(%dir, %error, unbilled, "calls are answered and NOT billed: no record can be kept");
            failing.tell = now + TELL_AGAIN;
        }
        failing.why = why;
    }

    /// Counts what is not kept.
    fn missing(&mut self, count: usize) -> bool {
        if let Some(failing) = &mut self.failing {
            failing.missing += count as u64;
        }
        false
    }
}

pub(super) fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => skiff_runtime::ErrorKind::DiskFull,
        _ => skiff_runtime::ErrorKind::Host,
    };
    Error::new(ErrorKind::Runtime(kind), format!("cannot {what} {}", path.display())).because(error)
}
