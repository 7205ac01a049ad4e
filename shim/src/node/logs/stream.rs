//! A function's log as the body of an answer: little by little, as the caller takes it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::watch;

use super::reader::{Reader, Step};
use super::writer::Channel;
use super::{Book, Key, LogQuery};
use crate::Result;

/// How often it is looked for lines although no news have come.
const LOOK: Duration = Duration::from_secs(1);

struct State {
    book: Arc<Book>,
    key: Key,
    query: LogQuery,
    /// None as long as the function has said nothing.
    reader: Option<Reader>,
    news: watch::Receiver<u64>,
    cleared: u64,
    /// Keeps the news coming.
    _channel: Arc<Channel>,
}

/// The lines that a query wants, in parts of whole lines. One that follows ends when the log is removed.
///
/// # Errors
/// As [`Book::reader`].
pub(in crate::node) async fn lines(
    book: &Arc<Book>,
    key: Key,
    query: LogQuery,
) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>> {
    let (reader, channel) = book.reader(&key, &query).await?;
    let news = channel.news();
    let cleared = *news.borrow();
    let state = State { book: Arc::clone(book), key, query, reader, news, cleared, _channel: channel };
    Ok(stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        match state.next().await {
            Ok(Some(lines)) => Some((Ok(lines.into()), Some(state))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    }))
}

impl State {
    async fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            self.news.mark_unchanged();
            if *self.news.borrow() != self.cleared {
                return Ok(None);
            }
            let step = match self.reader.take().or_else(|| self.open()) {
                // A thread that may block, for one step at a time.
                Some(mut reader) => {
                    let task = tokio::task::spawn_blocking(move || {
                        let step = reader.step();
                        (reader, step)
                    });
                    let (reader, step) = task.await.map_err(std::io::Error::other)?;
                    self.reader = Some(reader);
                    step?
                }
                None if self.query.follow => Step::Caught,
                None => Step::End,
            };
            match step {
                Step::Lines(lines) if lines.is_empty() => {}
                Step::Lines(lines) => return Ok(Some(lines)),
                Step::End => return Ok(None),
                Step::Caught => {
                    let _ = tokio::time::timeout(LOOK, self.news.changed()).await;
                }
            }
        }
    }

    fn open(&self) -> Option<Reader> {
        let query = self.query.clone();
        let dir = self.query.follow.then(|| self.book.dir_of(&self.key))??;
        Reader::open(dir, query.since, query.request_id, true).ok()
    }
}
