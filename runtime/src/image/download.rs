//! A layer's bytes, from the registry's connection to the thread that unpacks them.
//!
//! ```text
//! what an earlier pull kept ─┐
//! registry ─ feed ─ channel ─┴ Stream ─ unpack
//!                                └ kept, for a later pull
//! ```
//! The channel is bounded in bytes, so a slow disk slows the download and nothing piles up. A
//! connection that breaks is continued where it was (`Range`): the hash and the archive see one
//! unbroken stream. So they do when a pull goes on where an earlier one was cut off: the bytes that
//! it kept are hashed and unpacked again, and only the rest is asked for.

use std::fs::File;
use std::io::{Read, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use reqwest::StatusCode;
use tokio::sync::{Semaphore, mpsc};

use super::digest::Digest;
use super::progress::Progress;
use super::registry::{Client, Failure};
use crate::{Error, Result};

/// Bytes in the channel; one read of the connection is 16 KiB with TLS and at most 512 KiB.
const CHANNEL_BYTES: u32 = 512 << 10;
/// Breaks of one layer that are mended, whatever came in between.
const MAX_BREAKS: u32 = 20;
/// A connection that brings less than [`SLOW_BYTES`] in this time of waiting for it counts as broken,
/// so that a server cannot hold a pull for ever with a byte now and then.
const SLOW_WINDOW: Duration = Duration::from_secs(60);
/// See [`SLOW_WINDOW`]; a kilobyte each second.
const SLOW_BYTES: u64 = 60 << 10;

/// One piece of the stream; without the end the stream was cut off.
enum Piece {
    Data(Bytes),
    Failed(Error),
    End,
}

/// What an earlier pull kept of a layer, and where this one keeps what comes.
pub(crate) struct Partial {
    /// At the end of what is there.
    pub(crate) file: File,
    /// Bytes that are there.
    pub(crate) bytes: u64,
}

/// The two ends of a stream, which begins with what is there of `partial`.
pub(crate) fn channel(partial: Option<Partial>) -> Result<(Sink, Stream)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(CHANNEL_BYTES as usize));
    let (mut head, mut keep, mut done) = (None, None, 0);
    if let Some(partial) = partial {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&partial.file));
        let file = File::open(path).map_err(|e| Error::host("open what was kept of a layer", e))?;
        (head, keep, done) = (Some(file.take(partial.bytes)), Some(partial.file), partial.bytes);
    }
    let sink = Sink { sender, room: Arc::clone(&room), done };
    Ok((sink, Stream { head, keep, receiver, room, piece: Bytes::new(), taken: 0, ended: false }))
}

/// The end that the download fills.
pub(crate) struct Sink {
    sender: mpsc::UnboundedSender<Piece>,
    room: Arc<Semaphore>,
    /// Bytes that need not come.
    done: u64,
}

impl Sink {
    /// Waits for room; `false` if no one reads any more.
    async fn send(&self, piece: Bytes) -> bool {
        match self.room.acquire_many(room_for(&piece)).await {
            Ok(permits) => permits.forget(),
            Err(_) => return false,
        }
        self.sender.send(Piece::Data(piece)).is_ok()
    }
}

/// A piece that is larger than the channel takes all of it.
fn room_for(piece: &Bytes) -> u32 {
    u32::try_from(piece.len()).unwrap_or(u32::MAX).min(CHANNEL_BYTES)
}

/// The end that is read, on a thread that may block.
pub(crate) struct Stream {
    head: Option<std::io::Take<File>>,
    keep: Option<File>,
    receiver: mpsc::UnboundedReceiver<Piece>,
    room: Arc<Semaphore>,
    piece: Bytes,
    /// Room that `piece` takes.
    taken: u32,
    ended: bool,
}

impl Stream {
    fn next(&mut self) -> std::io::Result<()> {
        match self.receiver.blocking_recv() {
            Some(Piece::Data(piece)) => {
                self.taken = room_for(&piece);
                // Without it a later pull fetches the layer anew, which is no reason to fail now.
                if self.keep.as_mut().is_some_and(|file| file.write_all(&piece).is_err()) {
                    self.keep = None;
                }
                self.piece = piece;
            }
            Some(Piece::End) => self.ended = true,
            Some(Piece::Failed(error)) => return Err(std::io::Error::other(error)),
            None => {
                let error = super::stop::Stop::error();
                return Err(std::io::Error::other(error));
            }
        }
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some(head) = &mut self.head {
            let read = head.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.head = None;
        }
        while self.piece.is_empty() && !self.ended {
            self.next()?;
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        if self.piece.is_empty() {
            self.room.add_permits(std::mem::take(&mut self.taken) as usize);
        }
        Ok(length)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.room.close();
    }
}

/// Fetches a layer into `sink`; errors go there too. Returns early when no one reads any more.
pub(crate) async fn feed(client: &Client, digest: &Digest, size: u64, sink: Sink, mut progress: Progress) {
    progress.add(sink.done);
    let mut feeder = Feeder { client, digest, size, sink: &sink, progress: &mut progress, done: sink.done };
    let last = match feeder.run().await {
        Ok(()) => {
            progress.end();
            Piece::End
        }
        Err(error) => Piece::Failed(error),
    };
    // No one may be reading any more, after an error there.
    let _ = sink.sender.send(last);
}

struct Feeder<'a> {
    client: &'a Client,
    digest: &'a Digest,
    size: u64,
    sink: &'a Sink,
    progress: &'a mut Progress,
    done: u64,
}

impl Feeder<'_> {
    async fn run(&mut self) -> Result<()> {
        let mut backoff = self.client.backoff();
        let mut breaks = 0;
        loop {
            let before = self.done;
            let Err(failure) = self.attempt().await else {
                return Ok(());
            };
            if self.done > before {
                backoff.reset();
            }
            breaks += 1;
            if breaks > MAX_BREAKS {
                return Err(failure.error);
            }
            backoff.after(failure).await?;
        }
    }

    /// One request, from where the last one broke.
    async fn attempt(&mut self) -> Result<(), Failure> {
        if self.done > 0 && self.done >= self.size {
            return Ok(());
        }
        let mut response = self.client.blob_from(self.digest, self.done).await?;
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { self.done };
        let mut pace = Pace::default();
        loop {
            let asked = Instant::now();
            let Some(mut piece) = self.client.chunk(&mut response).await? else {
                return Ok(());
            };
            if pace.is_slow(piece.len() as u64, asked.elapsed()) {
                return Err(Failure::again(self.client.too_slow()));
            }
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            piece.advance(skipped);
            skip -= skipped as u64;
            if piece.is_empty() {
                continue;
            }
            self.done += piece.len() as u64;
            self.progress.add(piece.len() as u64);
            if !self.sink.send(piece).await {
                return Ok(());
            }
        }
    }
}

/// How fast bytes come; the time that the other end of the channel takes does not count.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn is_slow(&mut self, bytes: u64, waited: Duration) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < SLOW_WINDOW {
            return false;
        }
        let slow = self.bytes < SLOW_BYTES;
        *self = Self::default();
        slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_slow_and_a_stream_is_not() {
        let second = Duration::from_secs(1);
        let slow_after = |bytes: u64| {
            let mut pace = Pace::default();
            (1..=200).find(|_| pace.is_slow(bytes, second))
        };
        assert_eq!(slow_after(1023), Some(60));
        assert_eq!(slow_after(1024), None);
    }
}
