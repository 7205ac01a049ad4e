//! The bounded queue between a container's output and the sink.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use super::{LogLine, LogSink, LogStream, locked};

/// Bytes that wait for the sink.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// What a line without a byte costs.
const LINE_COST: usize = 64;

/// Lines that the sink gets at once.
const BATCH: usize = 256;

/// How long the output waits for a sink that stands still before lines are dropped.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long lines of the platform that nobody waits for may gather: each batch costs a thread's turn, and an
/// invocation has several lines.
const GATHER: Duration = Duration::from_millis(2);

/// The queue of one instance.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There are lines, or the last member has left.
    filled: Notify,
    /// There is room, or the queue is empty.
    emptied: Notify,
    /// Somebody waits until the sink has had what there is.
    hurry: Notify,
}

#[derive(Default)]
struct State {
    lines: VecDeque<LogLine>,
    cost: usize,
    /// Lines that were added, and of these how many the sink has had.
    added: u64,
    had: u64,
    dropped: u64,
    /// Lines are with the sink now.
    busy: bool,
    /// The sink has stood still; no more waiting until there is room.
    stalled: bool,
    members: usize,
}

impl State {
    fn add(&mut self, line: LogLine, room: usize) -> Option<LogLine> {
        let cost = line.bytes.len() + LINE_COST;
        if self.cost + cost > room {
            return Some(line);
        }
        self.cost += cost;
        self.added += 1;
        self.lines.push_back(line);
        None
    }
}

impl Queue {
    /// One more that writes into the queue.
    pub(super) fn join(queue: &Arc<Self>) -> Member {
        locked(&queue.state).members += 1;
        Member(Arc::clone(queue))
    }

    /// Adds a line of the platform without waiting; there is some more room for them.
    pub(super) fn push_now(&self, line: LogLine) {
        let many = {
            let mut state = locked(&self.state);
            if state.add(line, MAX_BYTES * 5 / 4).is_some() {
                state.dropped += 1;
            }
            state.cost > MAX_BYTES / 2
        };
        self.filled.notify_one();
        if many {
            self.hurry.notify_one();
        }
    }

    /// Waits until everything is with the sink and no more than `members` are left.
    pub(super) async fn drained(&self, members: usize) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            {
                let state = locked(&self.state);
                if state.lines.is_empty() && !state.busy && state.dropped == 0 && state.members <= members {
                    return;
                }
            }
            self.hurry.notify_one();
            emptied.await;
        }
    }

    /// The next lines for the sink and what they cost; `None` when no more can come.
    async fn take(&self, instance_id: &Arc<str>) -> Option<(Vec<LogLine>, Cost)> {
        self.gather().await;
        loop {
            {
                let mut state = locked(&self.state);
                let mut batch = Vec::new();
                if state.dropped > 0 {
                    batch.push(dropped_line(instance_id, std::mem::take(&mut state.dropped)));
                }
                let count = state.lines.len().min(BATCH);
                let cost = state.lines.iter().take(count).map(|line| line.bytes.len() + LINE_COST).sum();
                batch.extend(state.lines.drain(..count));
                if !batch.is_empty() {
                    state.busy = true;
                    return Some((batch, Cost { bytes: cost, lines: count as u64 }));
                }
                if state.members == 0 {
                    return None;
                }
            }
            self.filled.notified().await;
            self.gather().await;
        }
    }

    /// Waits for more lines, unless there are many or somebody waits for them, or for their end.
    async fn gather(&self) {
        let waits = {
            let state = locked(&self.state);
            (1..BATCH).contains(&state.lines.len()) && state.members > 0
        };
        if waits {
            let _ = tokio::time::timeout(GATHER, self.hurry.notified()).await;
        }
    }

    /// The sink has taken lines that cost as much: only now is there room for others.
    fn taken(&self, cost: Cost) {
        let mut state = locked(&self.state);
        state.cost = state.cost.saturating_sub(cost.bytes);
        state.had += cost.lines;
        state.busy = false;
        state.stalled = false;
        drop(state);
        self.emptied.notify_waiters();
    }
}

/// What lines take of a queue.
#[derive(Clone, Copy)]
struct Cost {
    bytes: usize,
    lines: u64,
}

/// One that writes into a queue; the queue ends when all have left.
pub(super) struct Member(Arc<Queue>);

impl Member {
    /// Adds a line; waits for room as long as the sink moves, then drops it.
    pub(super) async fn push(&self, line: LogLine) {
        let mut line = line;
        loop {
            let emptied = self.0.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            {
                let mut state = locked(&self.0.state);
                match state.add(line, MAX_BYTES) {
                    None => break,
                    Some(_) if state.stalled => {
                        state.dropped += 1;
                        return;
                    }
                    Some(back) => line = back,
                }
            }
            self.0.hurry.notify_one();
            if tokio::time::timeout(PATIENCE, emptied).await.is_err() {
                locked(&self.0.state).stalled = true;
            }
        }
        self.0.filled.notify_one();
    }
}

impl Member {
    /// Waits until the sink has had all that was added; not for one that stands still.
    pub(super) async fn handed_on(&self) {
        let wanted = locked(&self.0.state).added;
        loop {
            let emptied = self.0.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            {
                let state = locked(&self.0.state);
                if state.had >= wanted || state.stalled {
                    return;
                }
            }
            self.0.hurry.notify_one();
            if tokio::time::timeout(PATIENCE, emptied).await.is_err() {
                locked(&self.0.state).stalled = true;
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        locked(&self.0.state).members -= 1;
        self.0.filled.notify_one();
        self.0.hurry.notify_one();
        self.0.emptied.notify_waiters();
    }
}

/// Passes lines on until the last member has left. The sink may block: it has a thread for it.
pub(super) async fn pump(queue: Arc<Queue>, instance_id: Arc<str>, sink: Arc<dyn LogSink>) {
    while let Some((batch, cost)) = queue.take(&instance_id).await {
        let sink = Arc::clone(&sink);
        // A sink that panics loses the rest of its batch, nothing else.
        let _ = tokio::task::spawn_blocking(move || sink.lines(&batch)).await;
        queue.taken(cost);
    }
    queue.emptied.notify_waiters();
}

fn dropped_line(instance_id: &Arc<str>, count: u64) -> LogLine {
    LogLine {
        instance_id: Arc::clone(instance_id),
        stream: LogStream::Platform,
        time: SystemTime::now(),
        request_id: None,
        bytes: format!("{count} log lines were dropped here: the log's reader is too slow").into(),
    }
}
