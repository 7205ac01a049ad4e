//! What a container writes, as its owner reads it: by reading, which consumes, or by looking, which
//! does not.
//!
//! ```text
//! container ──► its pipe ──tee──► own pipe ──read──► seen        look
//!                   └──────────────read──► (thrown away)         consume
//! ```
//!
//! The keeper of a lasting run holds the pipe as well, so what an owner has looked at and not consumed
//! is there for the next owner.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, tee};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::watch;
use tokio::time::Sleep;

use crate::keeper::{Ended, Kept};
use crate::sys::readable;
use crate::{Error, Result};

/// Most bytes that are looked at before some are consumed: what a pipe holds, if nobody changed that
/// (`pipe(7)`). A container that has written more waits until its owner consumes.
const MAX_SEEN: usize = 64 << 10;
const READ_BYTES: usize = 16 << 10;
/// How long until a pipe that was looked at and is not empty is looked at again. The kernel does not
/// tell that there is more when a writer fills such a pipe in the middle of a `write` and waits
/// (`pipe_write` in `fs/pipe.c` wakes readers of a pipe that was empty, others when the write is done).
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// One output stream of a container.
///
/// Reading it ([`AsyncRead`]) consumes what is read: if the owner of a lasting run is killed before it
/// has done anything with that, it is lost. An owner that must lose nothing uses [`Output::look`] and
/// then [`Output::consume`], after it has handed on what it saw: the next owner begins with what was
/// not consumed, so it may see some bytes twice, and misses none.
pub struct Output {
    pipe: AsyncFd<OwnedFd>,
    /// The private pipe that `tee` fills; none where the pipe has no other reader and what is seen is
    /// simply read.
    copy: Option<(OwnedFd, OwnedFd)>,
    /// Looked at and not consumed.
    seen: Vec<u8>,
    /// Ready when the container has ended; none after that.
    ended: Option<End>,
    over: bool,
    /// When to look again although nothing was told.
    again: Option<Again>,
    _kept: Arc<Kept>,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seen = self.seen.len();
        f.debug_struct("Output").field("over", &self.over).field("seen", &seen).finish_non_exhaustive()
    }
}

impl Output {
    pub(crate) fn new(
        pipe: OwnedFd,
        mut ended: watch::Receiver<Option<Ended>>,
        kept: &Arc<Kept>,
        lasting: bool,
    ) -> Result<Self> {
        let failed = |e: io::Error| Error::host("cannot watch the output of a container", e);
        rustix::io::ioctl_fionbio(&pipe, true).map_err(|e| failed(e.into()))?;
        let copy = || pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
        let copy = lasting.then(copy).transpose().map_err(|e| failed(e.into()))?;
        let ended = async move {
            let _ = ended.wait_for(Option::is_some).await;
        };
        let pipe = readable(pipe).map_err(failed)?;
        Ok(Self {
            pipe,
            copy,
            seen: Vec::new(),
            ended: Some(Box::pin(ended)),
            over: false,
            again: None,
            _kept: Arc::clone(kept),
        })
    }

    /// All that was written and not consumed, as soon as it is more than `more_than` bytes. It is not
    /// more when the container has ended and all that it wrote is here, or when no more can be looked
    /// at (64 KiB, or less where the container wrote in packets): consume some then.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// As `read(2)` and `tee(2)`.
    pub async fn look(&mut self, more_than: usize) -> io::Result<&[u8]> {
        std::future::poll_fn(|cx| self.poll_look(cx, more_than)).await?;
        Ok(&self.seen)
    }

    /// Whether the container has ended and nothing is left but what [`Output::look`] showed last.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Takes the first `count` of the bytes that [`Output::look`] showed out of the stream; at most
    /// all of them. The others stay, also for a later owner.
    ///
    /// # Errors
    /// As `read(2)`.
    pub fn consume(&mut self, count: usize) -> io::Result<()> {
        let count = count.min(self.seen.len());
        let mut done = if self.copy.is_some() { 0 } else { count };
        while done < count {
            match rustix::io::read(self.pipe.get_ref(), &mut self.seen[done..count]) {
                // Somebody inside reads its own output.
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.seen.drain(..count);
        if self.seen.is_empty() {
            // Many containers are silent for long.
            self.seen = Vec::new();
        }
        Ok(())
    }

    fn poll_look(&mut self, cx: &mut Context<'_>, more_than: usize) -> Poll<io::Result<()>> {
        loop {
            // In this order: what comes after the look makes the readiness a new one, which is not
            // cleared below; what came before the end is seen by the look after it.
            let readiness = self.pipe.poll_read_ready(cx);
            let ended = has_ended(&mut self.ended, cx);
            let full = see(self.pipe.get_ref(), self.copy.as_ref(), &mut self.seen)?;
            self.over = ended && !full;
            if self.seen.len() > more_than || full || ended {
                self.again = None;
                return Poll::Ready(Ok(()));
            }
            match readiness {
                Poll::Ready(guard) => guard?.clear_ready(),
                // A pipe that is empty tells of all that is written.
                Poll::Pending if self.copy.is_none() || self.seen.is_empty() => return Poll::Pending,
                Poll::Pending => {
                    let (pause, sleep) = self.again.get_or_insert_with(|| after(FIRST_PAUSE));
                    ready!(sleep.as_mut().poll(cx));
                    self.again = Some(after((*pause * 2).min(LAST_PAUSE)));
                }
            }
        }
    }
}

type Again = (Duration, Pin<Box<Sleep>>);

fn after(pause: Duration) -> Again {
    (pause, Box::pin(tokio::time::sleep(pause)))
}

type End = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// Whether the container has ended; a future is not asked again after that.
fn has_ended(end: &mut Option<End>, cx: &mut Context<'_>) -> bool {
    if end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready()) {
        *end = None;
    }
    end.is_none()
}

/// Puts into `seen` what the pipe holds. True when it can show no more, whatever is written.
fn see(pipe: &OwnedFd, copy: Option<&(OwnedFd, OwnedFd)>, seen: &mut Vec<u8>) -> io::Result<bool> {
    let Some((from, to)) = copy else { return read_more(pipe, seen) };
    // With as many places as the container's pipe, this one is full when that one is.
    let size = fcntl_getpipe_size(pipe)?.min(MAX_SEEN);
    if fcntl_getpipe_size(to)? != size {
        fcntl_setpipe_size(to, size)?;
    }
    match tee(pipe, to, MAX_SEEN, SpliceFlags::NONBLOCK) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    let mut room = [PollFd::new(to, PollFlags::OUT)];
    let full = poll(&mut room, Some(&Timespec::default()))? == 0;
    seen.clear();
    read_more(from, seen).map(|more| full || more)
}

/// Reads until there is nothing, or the bound is reached, which it tells.
fn read_more(pipe: &OwnedFd, seen: &mut Vec<u8>) -> io::Result<bool> {
    while seen.len() < MAX_SEEN {
        let len = seen.len();
        seen.resize((len + READ_BYTES).min(MAX_SEEN), 0);
        let read = rustix::io::read(pipe, &mut seen[len..]);
        seen.truncate(len + read.unwrap_or(0));
        match read {
            Ok(0) | Err(Errno::AGAIN) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.seen.is_empty() {
            let count = this.seen.len().min(buf.remaining());
            buf.put_slice(&this.seen[..count]);
            return Poll::Ready(this.consume(count));
        }
        loop {
            let readiness = this.pipe.poll_read_ready(cx);
            let ended = has_ended(&mut this.ended, cx);
            match rustix::io::read(this.pipe.get_ref(), buf.initialize_unfilled()) {
                // The keeper may hold the writing end: then the pipe itself never ends.
                Ok(0) | Err(Errno::AGAIN) if ended => {
                    this.over = true;
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => ready!(readiness)?.clear_ready(),
                Err(Errno::INTR) => {}
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }
}
