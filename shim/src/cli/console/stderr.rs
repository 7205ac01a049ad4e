//! The standard error, written by a thread of its own: a reader that stands still (a stopped pager,
//! a terminal after Ctrl-S) must not keep the program from its signals.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long a text waits for a reader that stands still; those after it do not wait.
const PATIENCE: Duration = Duration::from_secs(1);

/// Texts that wait at most; more are dropped.
const WAITING_MAX: usize = 64;

/// A text, and where to tell that it has been written.
type Job = (Vec<u8>, SyncSender<()>);

struct Writer {
    jobs: SyncSender<Job>,
    stalled: Arc<AtomicBool>,
}

/// Writes a text to the standard error in one call. Where it fails there is no one to tell.
pub(crate) fn write(text: &[u8]) {
    static WRITER: OnceLock<Option<Writer>> = OnceLock::new();
    match WRITER.get_or_init(|| Writer::start(io::stderr()).ok()) {
        Some(writer) => writer.write(text, PATIENCE),
        // No thread to be had: better late than never.
        None => drop(io::stderr().write_all(text)),
    }
}

/// The standard error as a writer of whole texts.
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        write(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer {
    fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (jobs, todo) = sync_channel(WAITING_MAX);
        let stalled = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stalled);
        std::thread::Builder::new().name("stderr".into()).spawn(move || run(out, &todo, &told))?;
        Ok(Self { jobs, stalled })
    }

    /// Returns when the text has been written, or is given up waiting for.
    fn write(&self, text: &[u8], patience: Duration) {
        let (done, written) = sync_channel(1);
        let queued = self.jobs.try_send((text.to_vec(), done)).is_ok();
        if queued && !self.stalled.load(Ordering::Relaxed) && written.recv_timeout(patience).is_err() {
            self.stalled.store(true, Ordering::Relaxed);
        }
    }
}

fn run(mut out: impl Write, todo: &Receiver<Job>, stalled: &AtomicBool) {
    for (text, done) in todo {
        let _ = out.write_all(&text);
        stalled.store(false, Ordering::Relaxed);
        // Nobody waits any more, perhaps.
        let _ = done.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Writes nothing until it is told to.
    struct Gate(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Gate {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(text.to_vec());
            Ok(text.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stands_still_is_waited_for_once() {
        let (release, gate) = mpsc::channel();
        let (seen, texts) = mpsc::channel();
        let writer = Writer::start(Gate(gate, seen)).expect("a thread");
        let begun = Instant::now();
        for _ in 0..10 * WAITING_MAX {
            writer.write(b"x", Duration::from_millis(100));
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        drop(release);
        let written = texts.iter().take(WAITING_MAX).count();
        assert_eq!(written, WAITING_MAX, "what waited is written");
    }

    #[test]
    fn a_text_is_written_when_write_returns() {
        let (release, gate) = mpsc::channel();
        let (seen, texts) = mpsc::channel();
        drop(release);
        let writer = Writer::start(Gate(gate, seen)).expect("a thread");
        writer.write(b"one", Duration::from_secs(10));
        assert_eq!(texts.try_recv().as_deref(), Ok(b"one".as_slice()));
    }
}
