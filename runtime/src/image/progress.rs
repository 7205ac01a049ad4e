//! Telling the caller how far a layer is, often enough to see and seldom enough to be cheap.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{PullEvent, PullOptions};

/// Bytes between two reports, and the time: often enough to see that it goes on.
const REPORT_BYTES: u64 = 256 << 10;
const REPORT_TIME: Duration = Duration::from_millis(100);

/// What the layers of one pull share.
#[derive(Clone)]
pub(crate) struct Watch {
    observer: Option<Arc<dyn Fn(PullEvent) + Send + Sync>>,
    last_byte: Arc<Mutex<Option<Instant>>>,
    stopped: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
}

impl Watch {
    pub(crate) fn new(options: &PullOptions) -> Self {
        Self {
            observer: options.observer.clone(),
            last_byte: Arc::default(),
            stopped: Arc::default(),
            bytes: Arc::default(),
        }
    }

    pub(crate) fn tell(&self, event: PullEvent) {
        if let Some(observer) = &self.observer {
            observer(event);
        }
    }

    /// Notes that all bytes of a layer have come.
    pub(crate) fn arrived(&self) {
        if let Ok(mut last) = self.last_byte.lock() {
            *last = Some(Instant::now());
        }
    }

    /// When the last byte of the last layer came, if any had to come.
    pub(crate) fn last_byte(&self) -> Option<Instant> {
        self.last_byte.lock().map_or(None, |last| *last)
    }

    /// Bytes that have come, of all layers.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Ends the reading of local files.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// Counts the bytes of one layer.
#[derive(Clone)]
pub(crate) struct Progress {
    watch: Watch,
    digest: String,
    done: u64,
    told: u64,
    told_at: Instant,
}

impl Progress {
    pub(crate) fn new(watch: Watch, digest: String) -> Self {
        Self { watch, digest, done: 0, told: 0, told_at: Instant::now() }
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        self.watch.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.done - self.told >= REPORT_BYTES && self.told_at.elapsed() >= REPORT_TIME {
            self.tell();
        }
    }

    /// All bytes have come.
    pub(crate) fn end(&mut self) {
        if self.done > self.told {
            self.tell();
        }
        self.watch.arrived();
    }

    fn tell(&mut self) {
        self.told = self.done;
        self.told_at = Instant::now();
        self.watch.tell(PullEvent::LayerProgress { digest: self.digest.clone(), done: self.done });
    }
}

/// A local file that is counted while it is read, and can be stopped.
pub(crate) struct Counted<R> {
    inner: R,
    progress: Progress,
    ended: bool,
}

impl<R: Read> Counted<R> {
    pub(crate) fn new(inner: R, progress: Progress) -> Self {
        Self { inner, progress, ended: false }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.progress.watch.stopped.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("the pull was stopped"));
        }
        let read = self.inner.read(buffer)?;
        self.progress.add(read as u64);
        if read == 0 && !buffer.is_empty() && !self.ended {
            self.ended = true;
            self.progress.end();
        }
        Ok(read)
    }
}
