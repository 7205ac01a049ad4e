//! A stream that is looked at before it is consumed, so that what is lost with this process is what
//! nobody was to have any more.

use std::future::Future;
use std::io;

use skiff_runtime::Output;

/// One output stream of a container.
pub(crate) trait Source: Send + 'static {
    /// As [`Output::look`].
    fn look(&mut self, more_than: usize) -> impl Future<Output = io::Result<&[u8]>> + Send;
    /// As [`Output::consume`].
    fn consume(&mut self, count: usize) -> io::Result<()>;
    /// As [`Output::is_over`].
    fn is_over(&self) -> bool;
}

impl Source for Output {
    async fn look(&mut self, more_than: usize) -> io::Result<&[u8]> {
        Self::look(self, more_than).await
    }

    fn consume(&mut self, count: usize) -> io::Result<()> {
        Self::consume(self, count)
    }

    fn is_over(&self) -> bool {
        Self::is_over(self)
    }
}

/// A stream of a test, with as much room to look at as a small pipe.
#[cfg(test)]
pub(crate) struct Stream<R> {
    inner: R,
    seen: Vec<u8>,
    over: bool,
}

#[cfg(test)]
impl<R> Stream<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, seen: Vec::new(), over: false }
    }
}

#[cfg(test)]
impl<R: tokio::io::AsyncRead + Send + Unpin + 'static> Source for Stream<R> {
    async fn look(&mut self, more_than: usize) -> io::Result<&[u8]> {
        use tokio::io::AsyncReadExt;
        const ROOM: usize = 16 * 1024;
        while self.seen.len() <= more_than && self.seen.len() < ROOM && !self.over {
            self.over = self.inner.read_buf(&mut self.seen).await? == 0;
        }
        Ok(&self.seen)
    }

    fn consume(&mut self, count: usize) -> io::Result<()> {
        self.seen.drain(..count);
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.over
    }
}
