//! One thread that writes the lines of all functions, so that a disk or a reader that stands still costs
//! nobody else a thread.
//!
//! ```text
//! instances of a function ─ add ─▶ channel (bounded) ─▶ writer's thread ─▶ files, or a stream
//!                            └─ no room for a second: lines are counted, and told where they are missing
//! ```
//!
//! Who adds lines waits until they are written, as long as the writer moves: what a container wrote is
//! consumed from its pipe only then. Channels take turns, a batch each.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

/// Bytes of a channel that wait for the writer.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// How long lines wait for a writer that stands still.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a channel's lines go. Only the writer's thread has it.
pub(super) trait Target: Send {
    /// Writes whole lines; an error comes with how many bytes of whole lines were written before it.
    fn write(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)>;
    /// Removes all that was written.
    fn clear(&mut self) -> io::Result<()>;
    /// A line that says that so many are missing here.
    fn missing(&self, count: u64) -> Vec<u8>;
    /// What it is, for error texts.
    fn name(&self) -> String;
}

/// The lines of one function on their way.
pub(super) struct Channel {
    queue: Mutex<Queue>,
    /// The writer has taken or written something.
    moved: Condvar,
    target: Mutex<Box<dyn Target>>,
    turns: Arc<Turns>,
    /// For readers: something has been written, or all has been removed (the number goes up then).
    news: watch::Sender<u64>,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    bytes: usize,
    /// Batches that were added, and of these how many are done.
    added: u64,
    done: u64,
    /// Lines that are missing and have not been told.
    missing: u64,
    /// Lines that are missing in all.
    lost: u64,
    /// It is in the writer's list, or being written.
    scheduled: bool,
    /// The writer has stood still; no more waiting until it moves.
    stalled: bool,
    /// Goes up when all is removed: lines of before are nobody's.
    generation: u64,
    clear: Vec<oneshot::Sender<io::Result<()>>>,
}

struct Batch {
    text: Vec<u8>,
    lines: u64,
}

/// Channels that have something for the writer, in their turn.
#[derive(Default)]
struct Turns {
    state: Mutex<Turn>,
    filled: Condvar,
}

#[derive(Default)]
struct Turn {
    channels: VecDeque<Arc<Channel>>,
    closed: bool,
}

/// The writer's thread. It ends when this is dropped or closed, and everything is written.
pub(super) struct Writer {
    turns: Arc<Turns>,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// # Errors
    /// When the host gives no thread.
    pub(super) fn start() -> io::Result<Self> {
        let turns = Arc::<Turns>::default();
        let (end, ended) = oneshot::channel();
        let writer = Arc::clone(&turns);
        std::thread::Builder::new().name("skiff-logs".to_owned()).spawn(move || {
            while let Some(channel) = writer.next() {
                channel.work();
            }
            drop(end);
        })?;
        Ok(Self { turns, ended: Mutex::new(Some(ended)) })
    }

    pub(super) fn channel(&self, target: Box<dyn Target>) -> Arc<Channel> {
        Arc::new(Channel {
            queue: Mutex::default(),
            moved: Condvar::new(),
            target: Mutex::new(target),
            turns: Arc::clone(&self.turns),
            news: watch::Sender::new(0),
        })
    }

    /// Takes no more lines, and waits until those that there are have been written, for `patience` at most.
    pub(super) async fn close(&self, patience: Duration) {
        self.turns.close();
        let ended = lock(&self.ended).take();
        if let Some(ended) = ended {
            let _ = tokio::time::timeout(patience, ended).await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.turns.close();
    }
}

impl Turns {
    fn close(&self) {
        lock(&self.state).closed = true;
        self.filled.notify_all();
    }

    /// Whether there is a writer still.
    fn add(&self, channel: Arc<Channel>) -> bool {
        let mut state = lock(&self.state);
        if state.closed {
            return false;
        }
        state.channels.push_back(channel);
        self.filled.notify_one();
        true
    }

    /// One that had its turn and has more: also when no new ones are taken.
    fn again(&self, channel: Arc<Channel>) {
        lock(&self.state).channels.push_back(channel);
    }

    fn next(&self) -> Option<Arc<Channel>> {
        let mut state = lock(&self.state);
        loop {
            if let Some(channel) = state.channels.pop_front() {
                return Some(channel);
            }
            if state.closed {
                return None;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Channel {
    /// Who adds lines now belongs to this generation.
    pub(super) fn generation(&self) -> u64 {
        lock(&self.queue).generation
    }

    /// Lines that are missing in all.
    pub(super) fn lost(&self) -> u64 {
        lock(&self.queue).lost
    }

    /// Told whenever something has been written; another number says that all has been removed.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Adds whole lines and waits until they are written; not for a writer that stands still.
    pub(super) fn add(self: &Arc<Self>, generation: u64, text: Vec<u8>, lines: u64) {
        let mut queue = lock(&self.queue);
        let until = Instant::now() + PATIENCE;
        while queue.bytes + text.len() > MAX_BYTES && !queue.batches.is_empty() {
            if queue.stalled || Instant::now() >= until {
                queue.stalled = true;
                queue.lose(lines);
                return;
            }
            queue = self.wait(queue, until);
        }
        if queue.generation != generation {
            return;
        }
        queue.bytes += text.len();
        queue.batches.push_back(Batch { text, lines });
        queue.added += 1;
        if !self.schedule(&mut queue) {
            let all: u64 = queue.batches.drain(..).map(|batch| batch.lines).sum();
            queue.bytes = 0;
            queue.done = queue.added;
            queue.lose(all);
            return;
        }
        let (mine, until) = (queue.added, Instant::now() + PATIENCE);
        while queue.done < mine && !queue.stalled {
            queue.stalled = Instant::now() >= until;
            queue = self.wait(queue, until);
        }
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>, until: Instant) -> MutexGuard<'a, Queue> {
        let left = until.saturating_duration_since(Instant::now());
        self.moved.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Has the writer come; whether there is one.
    fn schedule(self: &Arc<Self>, queue: &mut Queue) -> bool {
        if !queue.scheduled {
            queue.scheduled = self.turns.add(Arc::clone(self));
        }
        queue.scheduled
    }

    /// Forgets what waits and has all removed that was written. What is added by those who know the former
    /// generation only is nobody's. The answer comes when it is done.
    pub(super) fn clear(self: &Arc<Self>) -> oneshot::Receiver<io::Result<()>> {
        let (done, told) = oneshot::channel();
        let mut queue = lock(&self.queue);
        queue.generation += 1;
        queue.batches.clear();
        (queue.bytes, queue.done, queue.missing) = (0, queue.added, 0);
        queue.clear.push(done);
        self.schedule(&mut queue);
        drop(queue);
        self.moved.notify_all();
        told
    }

    /// Waits until what has been added by now is written, for `patience` at most.
    pub(super) async fn settled(&self, patience: Duration) {
        let mut news = self.news();
        let wanted = lock(&self.queue).added;
        let written = async { while lock(&self.queue).done < wanted && news.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(patience, written).await;
    }

    /// One turn of the writer: the first batch, or a removal.
    fn work(self: Arc<Self>) {
        let (clear, batch, missing) = {
            let mut queue = lock(&self.queue);
            let (clear, batch) = (std::mem::take(&mut queue.clear), queue.batches.pop_front());
            let missing = if batch.is_some() { std::mem::take(&mut queue.missing) } else { 0 };
            (clear, batch, missing)
        };
        if !clear.is_empty() {
            self.remove_all(clear);
        }
        if let Some(batch) = batch {
            self.write(batch, missing);
        }
        let more = {
            let mut queue = lock(&self.queue);
            queue.stalled = false;
            queue.scheduled = !queue.batches.is_empty() || !queue.clear.is_empty();
            queue.scheduled
        };
        self.moved.notify_all();
        self.news.send_modify(|_| ());
        if more {
            let turns = Arc::clone(&self.turns);
            turns.again(self);
        }
    }

    fn write(&self, batch: Batch, missing: u64) {
        let mut target = lock(&self.target);
        let note = if missing > 0 { target.missing(missing) } else { Vec::new() };
        let (length, lines) = (batch.text.len(), batch.lines);
        let noted = note.len();
        let text = if note.is_empty() { batch.text } else { [note, batch.text].concat() };
        let written = target.write(&text);
        let mut queue = lock(&self.queue);
        queue.bytes = queue.bytes.saturating_sub(length);
        // A removal meanwhile has done with all.
        queue.done = (queue.done + 1).min(queue.added);
        let Err((whole, error)) = written else { return };
        let there = text[..whole].iter().filter(|byte| **byte == b'\n').count() as u64;
        let told = noted > 0 && whole >= noted;
        // One that is told again and again would fill another log.
        if queue.missing == 0 && missing == 0 {
            tracing::error!(to = target.name(), %error, "log lines are lost: they cannot be written");
        }
        if !told {
            queue.missing += missing;
        }
        queue.lose(lines.saturating_sub(there - u64::from(told)));
    }

    fn remove_all(&self, told: Vec<oneshot::Sender<io::Result<()>>>) {
        let removed = lock(&self.target).clear();
        self.news.send_modify(|cleared| *cleared += 1);
        let mut removed = Some(removed);
        for done in told {
            // Who asked need not wait.
            let _ = done.send(removed.take().unwrap_or(Ok(())));
        }
    }
}

impl Queue {
    fn lose(&mut self, lines: u64) {
        self.missing += lines;
        self.lost += lines;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Writes into memory, when it may.
    #[derive(Clone, Default)]
    struct Memory {
        text: Arc<Mutex<Vec<u8>>>,
        gate: Option<Arc<Mutex<mpsc::Receiver<()>>>>,
        full: Arc<AtomicBool>,
    }

    impl Memory {
        fn text(&self) -> String {
            String::from_utf8(lock(&self.text).clone()).expect("text")
        }
    }

    impl Target for Memory {
        fn write(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
            if let Some(gate) = &self.gate {
                let _ = lock(gate).recv();
            }
            if self.full.load(Ordering::SeqCst) {
                return Err((0, io::Error::from(io::ErrorKind::StorageFull)));
            }
            lock(&self.text).extend_from_slice(lines);
            Ok(())
        }

        fn clear(&mut self) -> io::Result<()> {
            lock(&self.text).clear();
            Ok(())
        }

        fn missing(&self, count: u64) -> Vec<u8> {
            format!("{count} missing\n").into_bytes()
        }

        fn name(&self) -> String {
            "memory".to_owned()
        }
    }

    fn writer() -> Writer {
        Writer::start().expect("a thread")
    }

    #[test]
    fn lines_are_there_when_they_have_been_added() {
        let (writer, memory) = (writer(), Memory::default());
        let channel = writer.channel(Box::new(memory.clone()));
        for number in 0..100 {
            channel.add(0, format!("{number}\n").into_bytes(), 1);
            assert!(memory.text().ends_with(&format!("{number}\n")));
        }
        assert_eq!(memory.text().lines().count(), 100);
    }

    #[test]
    fn a_writer_that_stands_still_costs_a_bounded_wait_and_memory() {
        let (open, gate) = mpsc::channel();
        let memory = Memory { gate: Some(Arc::new(Mutex::new(gate))), ..Memory::default() };
        let writer = writer();
        let channel = writer.channel(Box::new(memory.clone()));
        let other = Memory::default();
        let line = format!("{}\n", "x".repeat(9_999));
        // Each would wait for a second if nobody knew that it stands still.
        for _ in 0..2000 {
            channel.add(0, line.clone().into_bytes(), 1);
        }
        assert!(lock(&channel.queue).bytes <= MAX_BYTES);
        let lost = channel.lost();
        assert!(lost > 1800, "{lost}");
        drop(open);
        let after = writer.channel(Box::new(other.clone()));
        after.add(0, b"other\n".to_vec(), 1);
        assert_eq!(other.text(), "other\n");
        let waits = || {
            let queue = lock(&channel.queue);
            queue.done < queue.added
        };
        while waits() {
            thread::sleep(Duration::from_millis(1));
        }
        channel.add(0, b"after\n".to_vec(), 1);
        let text = memory.text();
        let told: Vec<&str> = text.lines().filter(|line| line.ends_with("missing")).collect();
        assert_eq!(told, [format!("{lost} missing")]);
        let kept = text.lines().filter(|line| line.starts_with('x')).count() as u64;
        assert_eq!((kept + lost, text.lines().last()), (2000, Some("after")));
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told_when_it_can() {
        let (writer, memory) = (writer(), Memory::default());
        let channel = writer.channel(Box::new(memory.clone()));
        memory.full.store(true, Ordering::SeqCst);
        channel.add(0, b"one\ntwo\n".to_vec(), 2);
        channel.add(0, b"three\n".to_vec(), 1);
        memory.full.store(false, Ordering::SeqCst);
        channel.add(0, b"four\n".to_vec(), 1);
        assert_eq!((memory.text().as_str(), channel.lost()), ("3 missing\nfour\n", 3));
    }

    #[tokio::test]
    async fn what_is_removed_stays_so_for_those_who_do_not_know() {
        let (writer, memory) = (writer(), Memory::default());
        let channel = writer.channel(Box::new(memory.clone()));
        let (before, mut news) = (channel.generation(), channel.news());
        channel.add(before, b"one\n".to_vec(), 1);
        channel.clear().await.expect("told").expect("removed");
        assert!(news.wait_for(|cleared| *cleared == 1).await.is_ok());
        channel.add(before, b"late\n".to_vec(), 1);
        channel.add(channel.generation(), b"two\n".to_vec(), 1);
        channel.settled(Duration::from_secs(5)).await;
        assert_eq!(memory.text(), "two\n");
    }

    #[tokio::test]
    async fn everything_is_written_at_the_end_and_nothing_after_it() {
        let (writer, memory) = (writer(), Memory::default());
        let channel = writer.channel(Box::new(memory.clone()));
        channel.add(0, b"one\n".to_vec(), 1);
        writer.close(Duration::from_secs(5)).await;
        channel.add(0, b"late\n".to_vec(), 1);
        assert_eq!((memory.text().as_str(), channel.lost()), ("one\n", 1));
    }
}
