//! The pipe between the thread that inflates a layer and the one that writes its files.
//!
//! Both take about the same time, so a layer is done in half of it where there are two processors.
//! The buffers go round: what is in flight is [`BUFFERS`] times [`BUFFER_BYTES`] and never more.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Bytes of one buffer: large enough that a switch of threads costs nothing beside its work.
const BUFFER_BYTES: usize = 128 << 10;
/// Buffers of one layer.
const BUFFERS: usize = 4;

type Filled = io::Result<Vec<u8>>;

/// The end that is filled.
pub(super) struct Inlet {
    filled: SyncSender<Filled>,
    free: Receiver<Vec<u8>>,
}

/// The end that is read. Dropping it ends the other side at its next buffer.
pub(super) struct Outlet {
    filled: Receiver<Filled>,
    free: SyncSender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
}

/// A pipe with its buffers.
pub(super) fn pipe() -> (Inlet, Outlet) {
    let (filled_in, filled_out) = sync_channel(BUFFERS);
    let (free_in, free_out) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        // There is room for all of them, and the other end is here.
        let _ = free_in.send(Vec::new());
    }
    let inlet = Inlet { filled: filled_in, free: free_out };
    (inlet, Outlet { filled: filled_out, free: free_in, buffer: Vec::new(), at: 0 })
}

impl Inlet {
    /// Passes on all that `source` gives, and its error. Returns early when no one reads any more.
    pub(super) fn fill_from(self, source: &mut impl Read) {
        while let Ok(mut buffer) = self.free.recv() {
            buffer.clear();
            buffer.reserve_exact(BUFFER_BYTES);
            match source.take(BUFFER_BYTES as u64).read_to_end(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {
                    if self.filled.send(Ok(buffer)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    // What came before the error is of no use: the layer is lost.
                    let _ = self.filled.send(Err(error));
                    return;
                }
            }
        }
    }
}

impl Inlet {
    /// Passes on an error instead of bytes.
    pub(super) fn fail(self, error: io::Error) {
        // No one may be reading any more.
        let _ = self.filled.send(Err(error));
    }
}

impl Read for Outlet {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.at == self.buffer.len() {
            let Ok(next) = self.filled.recv() else { return Ok(0) };
            let used = std::mem::replace(&mut self.buffer, next?);
            self.at = 0;
            // The other side may have ended.
            let _ = self.free.try_send(used);
        }
        let rest = &self.buffer[self.at..];
        let length = rest.len().min(target.len());
        target[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(mut source: impl Read + Send) -> io::Result<Vec<u8>> {
        std::thread::scope(|scope| {
            let (inlet, mut outlet) = pipe();
            scope.spawn(move || inlet.fill_from(&mut source));
            let mut all = Vec::new();
            outlet.read_to_end(&mut all).map(|_| all)
        })
    }

    #[test]
    fn all_bytes_come_in_order() {
        let bytes: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
        assert!(through(&bytes[..]).expect("read") == bytes);
        assert_eq!(through(&b""[..]).expect("read"), b"");
    }

    #[test]
    fn an_error_comes_through() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let error = through((&b"abc"[..]).chain(Broken)).expect_err("broken");
        assert_eq!(error.to_string(), "broken");
    }

    #[test]
    fn a_reader_that_goes_away_ends_the_writer() {
        std::thread::scope(|scope| {
            let (inlet, mut outlet) = pipe();
            let writer = scope.spawn(move || inlet.fill_from(&mut io::repeat(1)));
            let mut some = [0; 10];
            outlet.read_exact(&mut some).expect("read");
            drop(outlet);
            writer.join().expect("it ended");
        });
    }
}
