//! Which HTTP a client speaks: HTTP/2 begins with a preface that no request of HTTP/1.1 has.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What a client sends first that knows the server to speak HTTP/2 (RFC 9113, section 3.4).
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// Looks at the first bytes of a connection, which are read again from what is given back. An end of the
/// stream among them is left to HTTP/1.1.
pub(super) async fn find<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Version, Begun<S>)> {
    let mut first = [0; PREFACE.len()];
    let mut length = 0;
    while length < first.len() && first[..length] == PREFACE[..length] {
        match stream.read(&mut first[length..]).await? {
            0 => break,
            count => length += count,
        }
    }
    let version = if first[..length] == PREFACE { Version::Two } else { Version::One };
    Ok((version, Begun { first, length, read: 0, stream }))
}

/// A stream whose first bytes have been read already.
#[derive(Debug)]
pub(super) struct Begun<S> {
    first: [u8; PREFACE.len()],
    length: usize,
    /// Of the first ones, how many have been read again.
    read: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read == self.length {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = buffer.remaining().min(self.length - self.read);
        buffer.put_slice(&self.first[self.read..self.read + count]);
        self.read += count;
        // What follows is often there already. Its error comes again with the next read.
        if buffer.remaining() > 0
            && let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_read(cx, buffer)
        {
            tracing::trace!(%error, "a connection broke at its beginning");
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// The version of what is sent in these parts, and all that is read of it.
    async fn found(parts: &[&[u8]]) -> (Version, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(7);
        let parts: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let sending = tokio::spawn(async move {
            for part in parts {
                client.write_all(&part).await.expect("written");
                tokio::task::yield_now().await;
            }
        });
        let (version, mut stream) = find(server).await.expect("found");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("read");
        sending.await.expect("sent");
        (version, all)
    }

    #[tokio::test]
    async fn the_preface_alone_is_http_2_and_nothing_is_lost() {
        let cases: [(Version, &[&[u8]]); 6] = [
            (Version::Two, &[&PREFACE, b"frames"]),
            (Version::Two, &[b"PRI", b" * HTTP/2.0\r\n\r\nSM", b"\r\n\r\nframes"]),
            (Version::One, &[b"GET / HTTP/1.1\r\n\r\n"]),
            (Version::One, &[b"P", b"RI", b"NT / HTTP/1.1\r\n\r\n"]),
            (Version::One, &[b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\nmore"]),
            (Version::One, &[b"PRI"]),
        ];
        for (version, parts) in cases {
            assert_eq!(found(parts).await, (version, parts.concat()), "{parts:?}");
        }
        assert_eq!(found(&[]).await, (Version::One, Vec::new()));
    }
}
