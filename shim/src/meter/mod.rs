//! What calls and pulls are billed: a record of each, on disk before its caller has the whole answer.
//!
//! ```text
//! invocation ends ─ Tap ─ Ledger::add ──── waits ─── the answer's last bytes go out
//!                             │               ▲
//!                  thread:  all that wait ─ one write ─ one fdatasync
//! ```
//!
//! - Each record once: it gets its number when it is written, and files are opened again at their last whole
//!   record ([`frame`], [`segment`]).
//! - A disk that fails does not stop functions: answers go on and are counted as unbilled, which the log, the
//!   status and, when the disk works again, a record of the gap tell. A function's owner did nothing wrong,
//!   and an outage of the bookkeeping is cheaper than one of everything that runs. For the same reason nobody
//!   waits longer than [`PATIENCE`] for a disk that is slow; such a record is kept later, and counted as late.
//! - A start waits for nothing of it: the record of a pull is handed over, not waited for.
//!
//! `docs/metering.md` is for those who read the records.

mod bill;
mod frame;
mod ledger;
#[cfg(test)]
mod ledger_tests;
mod read;
mod record;
mod segment;
mod usage;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

pub(crate) use self::bill::Busy;
pub use self::bill::{Billing, gb_s};
use self::ledger::Ledger;
pub use self::ledger::MeterStatus;
pub use self::read::{Damage, Found, Reader};
pub use self::record::{Kind, Record, Status};
pub use self::usage::{FunctionUsage, Selection, Usage};
use crate::Result;
use crate::platform::{InvocationContext, InvocationReport};

/// How long an answer waits for its record at most.
const PATIENCE: Duration = Duration::from_secs(2);

/// How large the files of records become.
#[derive(Clone, Copy, Debug)]
pub struct MeterOptions {
    /// Bytes after which another file is begun.
    pub file_bytes: u64,
    /// Bytes of all files together, above which the oldest is removed; collect them in time.
    pub max_bytes: u64,
}

impl Default for MeterOptions {
    /// Files of 64 MiB and 4 GiB in all, which are some ten million records.
    fn default() -> Self {
        Self { file_bytes: 64 << 20, max_bytes: 4 << 30 }
    }
}

/// The records of a node. Clones are the same.
#[derive(Clone)]
pub struct Meter(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    ledger: Arc<Ledger>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Meter {
    /// Opens a directory of records, which is made if it is missing, behind the last whole one. Blocks for
    /// some file operations.
    ///
    /// # Errors
    /// `Busy` when another node has it; `Runtime(Host)` when it cannot be opened or is another version's. A
    /// disk that is full is none.
    pub fn open(dir: &Path, options: MeterOptions) -> Result<Self> {
        let (ledger, thread) = Ledger::open(dir, options)?;
        Ok(Self(Arc::new(Inner { dir: dir.to_owned(), ledger, thread: Mutex::new(Some(thread)) })))
    }

    /// Where the records are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Whether records are kept.
    #[must_use]
    pub fn status(&self) -> MeterStatus {
        self.0.ledger.status()
    }

    /// Has a record kept, with a number of its own.
    pub fn add(&self, record: Record) -> Receipt {
        Receipt(Some((self.0.ledger.add(record), Arc::clone(&self.0.ledger))))
    }

    /// Takes no more records, and waits until those that came are on the disk.
    pub async fn close(&self) {
        self.0.ledger.close();
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // How it ended, its callers have been told.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.ledger.close();
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("dir", &self.0.dir).finish_non_exhaustive()
    }
}

/// The promise that a record is kept.
#[must_use = "an answer waits for its record"]
pub struct Receipt(Option<(oneshot::Receiver<bool>, Arc<Ledger>)>);

impl Receipt {
    /// Of what has no record.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Whether there is nothing to wait for.
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Waits until the record is on the disk, or will not be; for 2 s at most. True when it is.
    pub async fn settled(self) -> bool {
        let Some((kept, ledger)) = self.0 else { return false };
        match tokio::time::timeout(PATIENCE, kept).await {
            Ok(kept) => kept.unwrap_or(false),
            Err(_) => {
                ledger.late();
                false
            }
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receipt").field(&!self.is_none()).finish()
    }
}

/// Where the invocations of one revision are noted.
#[derive(Clone, Debug)]
pub(crate) struct Tap {
    meter: Meter,
    revision: u64,
}

/// What a record says of an invocation beside its context and report.
pub(crate) struct Measured {
    pub(crate) start: SystemTime,
    pub(crate) billed_ms: u64,
    pub(crate) status: Status,
}

impl Tap {
    pub(crate) fn new(meter: &Meter, revision: u64) -> Self {
        Self { meter: meter.clone(), revision }
    }

    /// Notes the end of an invocation.
    pub(crate) fn invocation(
        &self,
        context: &InvocationContext<'_>,
        report: &InvocationReport<'_>,
        measured: &Measured,
    ) -> Receipt {
        let config = context.config;
        self.meter.add(Record {
            kind: Kind::Invocation,
            platform: config.platform.name().to_owned(),
            namespace: config.namespace.clone(),
            function: config.name.clone(),
            revision: self.revision,
            instance: context.instance_id.to_owned(),
            request_id: context.request_id.to_owned(),
            retries: context.retries,
            asynchronous: context.asynchronous,
            billed_ms: measured.billed_ms,
            memory_mib: config.memory_mib,
            memory_peak_bytes: report.memory_peak_bytes,
            cold: report.cold_start.is_some(),
            status: measured.status,
            code: report.failure.map(|failure| failure.code.to_owned()).unwrap_or_default(),
            http_status: report.status.map(|status| status.as_u16()),
            // The wall clock may have been set meanwhile; a span does not change by that.
            ..Record::gap(0, unix_ms(measured.start), unix_ms(measured.start + report.duration))
        })
    }

    /// Notes a pull that brought something. Nobody waits for it: it is on the way of a start.
    pub(crate) fn pull(&self, config: &crate::FunctionConfig, image: &crate::Image, start: SystemTime) {
        let timings = &image.timings;
        if timings.pull.is_zero() {
            return;
        }
        // FC bills from the beginning of the pull from the registry to its end; here that is until the last
        // byte has come. Unpacking goes on meanwhile, and what is left of it then is the host's.
        let took = timings.resolve + timings.pull;
        let billing = config.platform.billing();
        let billed_ms = if billing.pulls { billing.billed_ms(took) } else { 0 };
        let record = Record {
            kind: Kind::Pull,
            platform: config.platform.name().to_owned(),
            namespace: config.namespace.clone(),
            function: config.name.clone(),
            revision: self.revision,
            billed_ms,
            memory_mib: config.memory_mib,
            status: Status::Success,
            image: image.digest.clone(),
            ..Record::gap(0, unix_ms(start), unix_ms(start + took))
        };
        drop(self.meter.add(record));
    }
}

/// Milliseconds since 1970; 0 before.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
