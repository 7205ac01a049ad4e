//! A container's output, line by line: stream → [`split`] → [`queue`] → [`LogSink`].
//!
//! A line is consumed from the stream when the sink has had it: if this process is killed before, the
//! next owner of a lasting run reads it again.
//!
//! Nothing here grows with what a container writes or with how slow a sink is: lines are split at
//! the platform's limit, the queue is bounded, and a sink that stands still for a second loses lines
//! (counted, and told in a platform line) instead of stopping the container.

mod queue;
mod source;
mod split;
mod tail;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use self::queue::{Member, Queue};
pub(crate) use self::source::Source;
#[cfg(test)]
pub(crate) use self::source::Stream;
use self::split::Splitter;
use self::tail::Tail;
use crate::platform::{InstanceEvent, TailLine};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// How long a caller waits for the log of its invocation, when the sink is slow.
const SETTLE: Duration = Duration::from_millis(200);

/// Callers that ask one stream at once; more wait.
const MAX_ASKING: usize = 16;

/// Where a log line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// The container's standard output.
    Stdout,
    /// The container's standard error.
    Stderr,
    /// The platform: `FC Invoke Start …`, `START RequestId:…` and the like.
    Platform,
    /// The platform's events of the instance's life: each line is an [`InstanceEvent`] as JSON.
    Events,
    /// The platform's records of requests: each line is one JSON object with the platform's field names.
    Requests,
    /// The platform's records of what an instance uses, as those of requests.
    Metrics,
}

impl LogStream {
    /// A stable name for machines.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Platform => "platform",
            Self::Events => "events",
            Self::Requests => "requests",
            Self::Metrics => "metrics",
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
    /// The request that it belongs to, where that is known: for the platform's lines about one, and for the
    /// lines of a container that works on one invocation at a time, which belong to the last that it began.
    pub request_id: Option<Arc<str>>,
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

    /// The event that a line of [`LogStream::Events`] is.
    #[must_use]
    pub fn event(&self) -> Option<InstanceEvent> {
        (self.stream == LogStream::Events).then(|| serde_json::from_slice(&self.bytes).ok()).flatten()
    }
}

/// Takes the log lines of instances.
///
/// Lines come in order, one at a time per instance, on a thread that may block. A sink that is too
/// slow does not stop the container: lines over the queue's bound are dropped and counted, and a
/// platform line says how many.
pub trait LogSink: Send + Sync + 'static {
    /// Takes one line.
    fn line(&self, line: &LogLine);

    /// Takes lines that have come together. They count as taken when this returns: a sink that keeps them
    /// returns when it has them safe.
    fn lines(&self, lines: &[LogLine]) {
        lines.iter().for_each(|line| self.line(line));
    }
}

impl<F: Fn(&LogLine) + Send + Sync + 'static> LogSink for F {
    fn line(&self, line: &LogLine) {
        self(line);
    }
}

/// The logs of one instance. What is queued when it is dropped is passed on still.
pub(crate) struct Logs {
    instance_id: Arc<str>,
    line_bytes: usize,
    queue: Arc<Queue>,
    tail: Arc<Mutex<Tail>>,
    /// With the platform's lines, for callers who ask for the log of their invocation.
    recent: Arc<Mutex<Tail>>,
    /// The request that the container works on, or worked on last, where it is one at a time.
    current: Arc<Mutex<Option<Arc<str>>>>,
    /// Asks each follower whether it has read all that was written.
    followers: Mutex<Vec<mpsc::Sender<oneshot::Sender<()>>>>,
    /// Keeps the queue open.
    _member: Member,
}

impl Logs {
    /// Starts to pass lines on to `sink`. Must be called in a tokio runtime.
    pub(crate) fn new(instance_id: Arc<str>, line_bytes: usize, sink: Arc<dyn LogSink>) -> Self {
        let queue = Arc::new(Queue::default());
        let member = Queue::join(&queue);
        tokio::spawn(queue::pump(Arc::clone(&queue), Arc::clone(&instance_id), sink));
        Self {
            instance_id,
            line_bytes,
            queue,
            tail: Arc::default(),
            recent: Arc::default(),
            current: Arc::default(),
            followers: Mutex::default(),
            _member: member,
        }
    }

    /// Whose they are.
    pub(crate) fn instance_id(&self) -> &str {
        &self.instance_id
    }

    /// Follows a stream of the container until it ends.
    pub(crate) fn follow(&self, stream: LogStream, mut output: impl Source) {
        let member = Queue::join(&self.queue);
        let mut splitter = Splitter::new(self.line_bytes);
        let (tail, recent) = (Arc::clone(&self.tail), Arc::clone(&self.recent));
        let (ask, mut asked) = mpsc::channel::<oneshot::Sender<()>>(MAX_ASKING);
        locked(&self.followers).push(ask);
        let (instance_id, current) = (Arc::clone(&self.instance_id), Arc::clone(&self.current));
        tokio::spawn(async move {
            // Of the stream, looked at and not consumed: the beginning of a line.
            let mut begun = 0;
            loop {
                // A broken pipe is the end of the output as well.
                let seen = tokio::select! {
                    // A look that finds nothing says that all has been read.
                    biased;
                    seen = output.look(begun) => seen.unwrap_or_default(),
                    Some(reply) = asked.recv() => {
                        let _ = reply.send(());
                        continue;
                    }
                };
                let (count, fresh) = (seen.len(), seen.get(begun..).unwrap_or_default());
                let (full, mut lines) = (fresh.is_empty(), splitter.push(fresh));
                let over = output.is_over() || count == 0;
                if over {
                    lines.extend(splitter.finish());
                }
                let request_id = locked(&current).clone();
                for bytes in lines {
                    let time = SystemTime::now();
                    locked(&tail).push(TailLine { time, bytes: bytes.clone() });
                    locked(&recent).push(TailLine { time, bytes: bytes.clone() });
                    let (instance_id, request_id) = (Arc::clone(&instance_id), request_id.clone());
                    let line = LogLine { instance_id, stream, time, request_id, bytes };
                    member.push(line).await;
                }
                member.handed_on().await;
                // A line that is longer than can be looked at is kept here alone.
                begun = if full { 0 } else { splitter.begun().min(count) };
                if output.consume(count - begun).is_err() || over {
                    break;
                }
            }
        });
    }

    /// From now on what the container writes belongs to this request.
    pub(crate) fn works_on(&self, request_id: &str) {
        *locked(&self.current) = Some(request_id.into());
    }

    /// Adds lines of the platform, about a request if there is one.
    pub(crate) fn platform(&self, request_id: Option<&str>, lines: Vec<String>) {
        let request_id: Option<Arc<str>> = request_id.map(Into::into);
        for line in lines {
            let line = Bytes::from(line);
            locked(&self.recent).push(TailLine { time: SystemTime::now(), bytes: line.clone() });
            self.add(LogStream::Platform, request_id.clone(), line);
        }
    }

    /// Adds an event of the instance's life.
    pub(crate) fn event(&self, event: &InstanceEvent) {
        self.add(LogStream::Events, None, serde_json::to_vec(event).unwrap_or_default().into());
    }

    /// Adds the record of a request.
    pub(crate) fn request(&self, request_id: &str, record: String) {
        self.add(LogStream::Requests, Some(request_id.into()), record.into());
    }

    /// Adds the record of what the instance uses.
    pub(crate) fn metrics(&self, record: String) {
        self.add(LogStream::Metrics, None, record.into());
    }

    fn add(&self, stream: LogStream, request_id: Option<Arc<str>>, bytes: Bytes) {
        let instance_id = Arc::clone(&self.instance_id);
        self.queue.push_now(LogLine { instance_id, stream, time: SystemTime::now(), request_id, bytes });
    }

    /// How many lines there have been, for [`Logs::since`].
    pub(crate) fn mark(&self) -> u64 {
        locked(&self.recent).pushed()
    }

    /// The last lines since a mark, of the container and the platform, 4 KB at most.
    pub(crate) fn since(&self, mark: u64) -> Vec<u8> {
        locked(&self.recent).text_since(mark)
    }

    /// Waits until what the container has written by now has been read, for [`SETTLE`] at most.
    pub(crate) async fn settle(&self) {
        let followers = locked(&self.followers).clone();
        let settled = async {
            for ask in followers {
                let (reply, replied) = oneshot::channel();
                if ask.send(reply).await.is_ok() {
                    // One that ends instead has read all.
                    let _ = replied.await;
                }
            }
        };
        let _ = tokio::time::timeout(SETTLE, settled).await;
    }

    /// The last lines of the container's output.
    pub(crate) fn tail(&self) -> Vec<TailLine> {
        locked(&self.tail).lines()
    }

    /// Waits until the output has ended and every line has been passed on, for `limit` at most.
    pub(crate) async fn drained(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.queue.drained(1)).await;
    }
}

/// The data behind a lock; nothing here panics while it holds one.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    type Lines = Arc<Mutex<Vec<(LogStream, String)>>>;

    fn collecting() -> (Arc<dyn LogSink>, Lines) {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let sink = move |line: &LogLine| locked(&kept).push((line.stream, line.text().into_owned()));
        (Arc::new(sink), lines)
    }

    #[tokio::test]
    async fn lines_of_both_streams_and_the_platform_arrive() {
        let (sink, lines) = collecting();
        let logs = Logs::new("i".into(), 64, sink);
        let (mut out, out_end) = tokio::io::duplex(64);
        let (mut err, err_end) = tokio::io::duplex(64);
        logs.follow(LogStream::Stdout, Stream::new(out_end));
        logs.follow(LogStream::Stderr, Stream::new(err_end));
        logs.platform(None, vec!["START".to_owned()]);
        out.write_all(b"one\ntwo").await.expect("written");
        err.write_all(b"\xff\n").await.expect("written");
        drop((out, err));
        logs.drained(SOON).await;
        let lines = locked(&lines).clone();
        let of = |stream| -> Vec<&str> {
            lines.iter().filter(|(s, _)| *s == stream).map(|(_, text)| text.as_str()).collect()
        };
        assert_eq!(of(LogStream::Stdout), ["one", "two"]);
        assert_eq!(of(LogStream::Stderr), ["\u{fffd}"]);
        assert_eq!(of(LogStream::Platform), ["START"]);
        assert_eq!(logs.tail().len(), 3, "the platform's lines are not the container's");
    }

    #[tokio::test]
    async fn what_was_written_before_is_in_the_log_of_an_invocation() {
        let (sink, _) = collecting();
        let logs = Logs::new("i".into(), 64, sink);
        let (mut out, out_end) = tokio::io::duplex(64 * 1024);
        logs.follow(LogStream::Stdout, Stream::new(out_end));
        logs.platform(None, vec!["before".to_owned()]);
        let mark = logs.mark();
        logs.platform(None, vec!["START".to_owned()]);
        out.write_all(b"one\ntwo\nhalf").await.expect("written");
        logs.settle().await;
        assert_eq!(logs.since(mark), b"START\none\ntwo");
        for _ in 0..2000 {
            out.write_all(b"0123456789\n").await.expect("written");
        }
        logs.settle().await;
        let tail = logs.since(mark);
        assert!(tail.len() <= 4096 && tail.ends_with(b"0123456789"), "{} bytes", tail.len());
        assert_eq!(logs.since(logs.mark()), b"");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_sink_that_stands_still_does_not_stop_the_container() {
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let (sink, lines) = collecting();
        let blocking = move |line: &LogLine| {
            let _ = locked(&gate).recv();
            sink.line(line);
        };
        let logs = Logs::new("i".into(), 1024, Arc::new(blocking));
        let (mut out, out_end) = tokio::io::duplex(1024);
        logs.follow(LogStream::Stdout, Stream::new(out_end));
        let line = format!("{}\n", "x".repeat(999));
        let writes = async {
            for _ in 0..3 * queue::MAX_BYTES / 1000 {
                out.write_all(line.as_bytes()).await.expect("written");
            }
        };
        tokio::time::timeout(Duration::from_secs(20), writes).await.expect("not blocked for good");
        drop(out);
        drop(release);
        logs.drained(SOON).await;
        let lines = locked(&lines);
        assert!(lines.len() * 1000 < 2 * queue::MAX_BYTES, "{} lines kept", lines.len());
        let told: Vec<&String> =
            lines.iter().filter(|(s, _)| *s == LogStream::Platform).map(|(_, t)| t).collect();
        assert!(told.iter().any(|text| text.contains("dropped")), "{told:?}");
    }

    #[tokio::test]
    async fn a_slow_sink_loses_nothing() {
        let (sink, lines) = collecting();
        let slow = move |line: &LogLine| {
            std::thread::sleep(Duration::from_micros(200));
            sink.line(line);
        };
        let logs = Logs::new("i".into(), 8192, Arc::new(slow));
        let (mut out, out_end) = tokio::io::duplex(1024 * 1024);
        logs.follow(LogStream::Stdout, Stream::new(out_end));
        let line = format!("{}\n", "x".repeat(4999));
        for _ in 0..1000 {
            out.write_all(line.as_bytes()).await.expect("written");
        }
        drop(out);
        logs.drained(SOON).await;
        assert_eq!(locked(&lines).len(), 1000);
    }

    #[tokio::test]
    async fn a_sink_that_panics_does_not_end_the_logs() {
        let (sink, lines) = collecting();
        let moody = move |line: &LogLine| {
            assert!(line.text() != "bad", "as the test wants it");
            sink.line(line);
        };
        let logs = Logs::new("i".into(), 64, Arc::new(moody));
        logs.platform(None, vec!["bad".to_owned()]);
        logs.drained(SOON).await;
        logs.platform(None, vec!["good".to_owned()]);
        logs.drained(SOON).await;
        assert_eq!(locked(&lines).len(), 1);
    }
}
