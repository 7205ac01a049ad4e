//! A layer's bytes, from the registry's connection to the thread that unpacks them.
//!
//! The channel between both is bounded, so a slow disk slows the download and nothing piles up. A
//! connection that breaks is continued where it was (`Range`): the hash and the archive see one
//! unbroken stream.

use std::io::Read;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use reqwest::StatusCode;
use tokio::sync::mpsc;

use super::digest::Digest;
use super::progress::Progress;
use super::registry::{Client, Failure};
use crate::{Error, Result};

/// Pieces in the channel; one is a read of the connection, 16 KiB with TLS and at most 512 KiB.
const CHANNEL_PIECES: usize = 16;
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

/// The two ends of a stream.
pub(crate) fn channel() -> (Sink, Stream) {
    let (sender, receiver) = mpsc::channel(CHANNEL_PIECES);
    (Sink(sender), Stream { receiver, piece: Bytes::new(), ended: false })
}

/// The end that the download fills.
pub(crate) struct Sink(mpsc::Sender<Piece>);

/// The end that is read, on a thread that may block.
pub(crate) struct Stream {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    ended: bool,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Data(piece)) => self.piece = piece,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(error)) => return Err(std::io::Error::other(error)),
                None => return Err(std::io::Error::other("the pull was stopped")),
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Fetches a layer into `sink`; errors go there too. Returns early when no one reads any more.
pub(crate) async fn feed(client: &Client, digest: &Digest, size: u64, sink: Sink, mut progress: Progress) {
    let mut feeder = Feeder { client, digest, size, sink: &sink, progress: &mut progress, done: 0 };
    let last = match feeder.run().await {
        Ok(()) => {
            progress.end();
            Piece::End
        }
        Err(error) => Piece::Failed(error),
    };
    // No one may be reading any more, after an error there.
    let _ = sink.0.send(last).await;
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
            if self.sink.0.send(Piece::Data(piece)).await.is_err() {
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
