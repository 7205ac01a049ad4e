//! A look into WebSocket connections: when something last came, and how they end (RFC 6455, sections 5.2 and
//! 7.4). Nothing of them is changed or held.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use crate::platform::InvocationFailure;

/// Bytes of a frame's head at most.
const MAX_HEAD: usize = 14;

/// The opcode of a frame that closes.
const CLOSE: u8 = 8;

/// The status of a close frame that has none.
const NO_STATUS: u16 = 1005;

/// Who is at an end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    /// Whether it may end a connection so without having failed. Statuses are documented; that none is fine
    /// too is not.
    fn may_close_by(self, status: u16) -> bool {
        match self {
            Self::Client => [1000, 1010, NO_STATUS].contains(&status),
            Self::Server => [1000, 1011, NO_STATUS].contains(&status),
        }
    }
}

/// What is seen of a connection.
#[derive(Debug)]
struct Seen {
    /// When something came from either side.
    last: Instant,
    /// The first close frame, and the first end without one.
    closed: Option<(Side, u16)>,
    ended: Option<Side>,
    /// Who sent a message that is too large.
    too_large: Option<Side>,
}

/// Both directions of one connection.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    seen: Arc<Mutex<Seen>>,
    /// Bytes of a message at most.
    most: usize,
}

impl Watch {
    /// Messages have `most` bytes; none is passed on whose head says that it has more.
    pub(super) fn new(most: usize) -> Self {
        let seen = Seen { last: Instant::now(), closed: None, ended: None, too_large: None };
        Self { seen: Arc::new(Mutex::new(seen)), most }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of the connection at that side.
    pub(super) fn of<T>(&self, side: Side, stream: T) -> Watched<T> {
        Watched { watch: self.clone(), side, frames: Frames::default(), stream }
    }

    /// Waits until nothing has come from either side for so long.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let until = self.seen().last + limit;
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// What was wrong about the end of the connection.
    pub(super) fn failure(&self) -> Option<InvocationFailure> {
        let seen = self.seen();
        match seen.too_large {
            Some(Side::Client) => return Some(InvocationFailure::WebSocketTooLarge(self.most)),
            Some(Side::Server) => {
                let text = format!("WebSocket message exceeds maximum allowed size ({} bytes)", self.most);
                return Some(InvocationFailure::BadResponse(text));
            }
            None => {}
        }
        let side = match (seen.closed, seen.ended) {
            (Some((side, status)), _) if side.may_close_by(status) => return None,
            (Some((side, _)), _) | (None, Some(side)) => side,
            (None, None) => return None,
        };
        Some(match side {
            Side::Client => InvocationFailure::WebSocketBroken,
            Side::Server => InvocationFailure::ProcessExited(None),
        })
    }
}

/// One end of a connection that is watched.
#[derive(Debug)]
pub(super) struct Watched<T> {
    watch: Watch,
    side: Side,
    frames: Frames,
    stream: T,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut this.stream).poll_read(cx, buf));
        let fresh = buf.filled().get(before..).unwrap_or_default();
        let mut seen = this.watch.seen();
        if fresh.is_empty() {
            seen.ended.get_or_insert(this.side);
        } else {
            seen.last = Instant::now();
            if let Some(status) = this.frames.follow(fresh) {
                seen.closed.get_or_insert((this.side, status));
            }
            if this.frames.largest > this.watch.most as u64 {
                seen.too_large.get_or_insert(this.side);
                return Poll::Ready(Err(io::Error::other("a WebSocket message is too large")));
            }
        }
        Poll::Ready(result)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Where the frames of one direction begin.
#[derive(Debug, Default)]
struct Frames {
    head: Vec<u8>,
    /// Of the payload that follows the head.
    left: u64,
    opcode: u8,
    /// Of the message so far, all its frames together, and of the largest that there was.
    message: u64,
    largest: u64,
    mask: Option<[u8; 4]>,
    /// The first two bytes of a close frame's payload.
    status: Vec<u8>,
}

impl Frames {
    /// Goes on with the bytes that have come; the status of a close frame that ends in them.
    fn follow(&mut self, mut bytes: &[u8]) -> Option<u16> {
        let mut closed = None;
        while let Some((first, rest)) = bytes.split_first() {
            if self.left == 0 {
                self.head.push(*first);
                bytes = rest;
                if self.head.len() == head_length(&self.head) {
                    self.enter();
                    closed = closed.or(self.ended());
                }
                continue;
            }
            let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (payload, rest) = bytes.split_at(count);
            if self.opcode == CLOSE {
                let wanted = 2 - self.status.len();
                self.status.extend(payload.iter().take(wanted));
            }
            self.left -= count as u64;
            bytes = rest;
            closed = closed.or(self.ended());
        }
        closed
    }

    /// The head is whole.
    fn enter(&mut self) {
        let head = std::mem::take(&mut self.head);
        let (first, second) = (head.first().copied().unwrap_or(0), head.get(1).copied().unwrap_or(0));
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let extended = extended_length(second);
        self.opcode = first & 0x0f;
        self.left = match extended {
            0 => u64::from(second & 0x7f),
            count => number(head.get(2..2 + count).unwrap_or_default()),
        };
        // Text or binary begins a message, 0 goes on with it; others may come between its frames.
        self.message = match self.opcode {
            0 => self.message.saturating_add(self.left),
            1 | 2 => self.left,
            _ => self.message,
        };
        self.largest = self.largest.max(self.message);
        self.mask = head.get(2 + extended..).and_then(|mask| mask.try_into().ok());
        self.status.clear();
    }

    /// The status of a close frame, when it has ended.
    fn ended(&self) -> Option<u16> {
        if self.opcode != CLOSE || self.left > 0 {
            return None;
        }
        let mask = self.mask.unwrap_or_default();
        match *self.status.as_slice() {
            [high, low] => Some(u16::from_be_bytes([high ^ mask[0], low ^ mask[1]])),
            _ => Some(NO_STATUS),
        }
    }
}

/// Bytes of the length that does not fit into the second byte.
fn extended_length(second: u8) -> usize {
    match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    }
}

/// Bytes of a head that begins so.
fn head_length(head: &[u8]) -> usize {
    let Some(second) = head.get(1) else { return MAX_HEAD };
    2 + extended_length(*second) + if second & 0x80 == 0 { 0 } else { 4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of a client when there is a mask.
    fn frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let masked = if mask.is_some() { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match payload.len() {
            length @ 0..126 => bytes.push(masked | length as u8),
            length @ 126..65_536 => {
                bytes.push(masked | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                bytes.push(masked | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        let mask = mask.inspect(|mask| bytes.extend(mask)).unwrap_or_default();
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    #[test]
    fn a_close_frame_is_found_however_the_bytes_come() {
        for mask in [None, Some([0x37, 0xfa, 0x21, 0x3d])] {
            let mut bytes = Vec::new();
            for length in [0, 1, 125, 126, 65_535, 65_536] {
                // Payloads that look like close frames.
                bytes.extend(frame(2, &vec![0x88; length], mask));
            }
            bytes.extend(frame(9, b"ping", mask));
            let before = bytes.len();
            bytes.extend(frame(8, &[0x03, 0xf3, b'b', b'y', b'e'], mask));
            for step in [1, 7, 4096, bytes.len()] {
                let mut frames = Frames::default();
                let mut at = 0;
                let mut found = Vec::new();
                for chunk in bytes.chunks(step) {
                    at += chunk.len();
                    found.extend(frames.follow(chunk).map(|status| (status, at > before)));
                }
                assert_eq!(found, [(1011, true)], "step {step}, masked {}", mask.is_some());
            }
        }
        assert_eq!(Frames::default().follow(&frame(8, &[], None)), Some(NO_STATUS));
        assert_eq!(Frames::default().follow(&frame(8, &[], Some([1, 2, 3, 4]))), Some(NO_STATUS));
    }

    #[test]
    fn a_message_is_all_its_frames() {
        let mut frames = Frames::default();
        let part = |opcode: u8, length: usize| {
            let mut bytes = frame(opcode, &vec![b'x'; length], None);
            bytes[0] &= 0x7f;
            bytes
        };
        frames.follow(
            &[part(1, 600), frame(9, &[0; 100], None), part(0, 300), frame(0, &[0; 100], None)].concat(),
        );
        assert_eq!(frames.largest, 1000, "without what came between");
        frames.follow(&frame(2, &[0; 999], None));
        assert_eq!(frames.largest, 1000, "the next is another");
        // Lengths that no message has.
        frames.follow(&[0x02, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(frames.largest, u64::MAX);
    }

    #[tokio::test]
    async fn what_is_too_large_ends_the_connection_before_it_is_passed_on() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        for (side, failure) in [
            (Side::Client, InvocationFailure::WebSocketTooLarge(1000)),
            (
                Side::Server,
                InvocationFailure::BadResponse(
                    "WebSocket message exceeds maximum allowed size (1000 bytes)".into(),
                ),
            ),
        ] {
            let (mut here, there) = tokio::io::duplex(64 * 1024);
            let watch = Watch::new(1000);
            let mut watched = watch.of(side, there);
            let good = frame(2, &[7; 1000], None);
            here.write_all(&good).await.expect("written");
            let mut seen = vec![0; good.len()];
            watched.read_exact(&mut seen).await.expect("read");
            assert_eq!((seen, watch.failure()), (good, None));
            here.write_all(&frame(2, &[7; 1001], None)).await.expect("written");
            watched.read(&mut [0; 10]).await.expect_err("too large");
            assert_eq!(watch.failure(), Some(failure));
        }
    }

    #[test]
    fn who_ends_a_connection_and_how_decides() {
        let after = |closed, ended| {
            let watch = Watch::new(1);
            *watch.seen() = Seen { last: Instant::now(), closed, ended, too_large: None };
            watch.failure()
        };
        let (client, server) = (Side::Client, Side::Server);
        let exited = Some(InvocationFailure::ProcessExited(None));
        for (closed, ended, failure) in [
            (Some((client, 1000)), Some(client), None),
            (Some((server, 1011)), Some(client), None),
            (Some((client, NO_STATUS)), None, None),
            (Some((client, 1001)), Some(server), Some(InvocationFailure::WebSocketBroken)),
            (Some((server, 1002)), Some(client), exited.clone()),
            (Some((client, 1011)), None, Some(InvocationFailure::WebSocketBroken)),
            (None, Some(client), Some(InvocationFailure::WebSocketBroken)),
            (None, Some(server), exited),
            (None, None, None),
        ] {
            assert_eq!(after(closed, ended), failure, "{closed:?} {ended:?}");
        }
    }
}
