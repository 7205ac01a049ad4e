//! Signals that end the program.
//!
//! The first one asks for an orderly end; the second for an end at once. Nothing here ends the
//! program: whoever waits decides.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::failure::Failure;

/// A signal that ends the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGHUP: the terminal was closed.
    Hangup,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// The exit code of a program that it ended: 128 and its number.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Hangup => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// The signals that have come: how many, and the last of them.
type Seen = (u32, Option<Signal>);

/// Tells of signals from its making on; copies tell the same.
#[derive(Clone, Debug)]
pub(crate) struct Interrupts {
    seen: watch::Receiver<Seen>,
}

impl Interrupts {
    /// Takes SIGHUP, SIGINT and SIGTERM over from their default for the rest of the program. A SIGHUP
    /// that is ignored stays so: that is what `nohup` asks for.
    ///
    /// # Errors
    /// When the handlers cannot be set.
    pub(crate) fn install() -> Result<Self, Failure> {
        let install = || -> std::io::Result<_> {
            Ok((
                if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) },
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            ))
        };
        let (mut hangup, mut interrupt, mut terminate) =
            install().map_err(|e| Failure::host("taking over signals", &e))?;
        let (sender, seen) = watch::channel((0, None));
        tokio::spawn(async move {
            loop {
                let signal = tokio::select! {
                    Some(()) = received(&mut hangup) => Signal::Hangup,
                    Some(()) = interrupt.recv() => Signal::Interrupt,
                    Some(()) = terminate.recv() => Signal::Terminate,
                    else => return,
                };
                sender.send_modify(|(count, last)| {
                    *count = u32::saturating_add(*count, 1);
                    *last = Some(signal);
                });
            }
        });
        Ok(Self { seen })
    }

    /// Waits for the first signal, or returns it at once. Cancel safe.
    pub(crate) async fn first(&self) -> Signal {
        self.at_least(1).await
    }

    /// Waits until there have been two, or returns the last at once. Cancel safe.
    pub(crate) async fn second(&self) -> Signal {
        self.at_least(2).await
    }

    /// Does `work` until it is done or the first signal comes.
    ///
    /// # Errors
    /// The signal, as a failure; `work` is dropped then.
    pub(crate) async fn or<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            // A signal that came first is not to be overtaken by work that is ready.
            biased;
            signal = self.first() => Err(Failure::interrupted(signal)),
            result = work => Ok(result),
        }
    }

    async fn at_least(&self, wanted: u32) -> Signal {
        let mut seen = self.seen.clone();
        let found = seen.wait_for(|(count, _)| *count >= wanted).await.map(|seen| seen.1);
        match found {
            Ok(Some(signal)) => signal,
            // The task that listens has ended with the program's runtime: no signal will come.
            _ => std::future::pending().await,
        }
    }
}

/// The next signal; none is ever received where there is no handler.
async fn received(handler: &mut Option<tokio::signal::unix::Signal>) -> Option<()> {
    match handler {
        Some(handler) => handler.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether this process was started with SIGHUP ignored.
fn ignores_hangup() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| hangup_is_ignored(&status))
}

/// Reads the mask of ignored signals (proc(5), `SigIgn`), whose lowest bit is SIGHUP.
fn hangup_is_ignored(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> (watch::Sender<Seen>, Interrupts) {
        let (sender, seen) = watch::channel((0, None));
        (sender, Interrupts { seen })
    }

    #[tokio::test]
    async fn work_is_dropped_at_the_first_signal() {
        let (sender, interrupts) = channel();
        sender.send_replace((1, Some(Signal::Interrupt)));
        let failure = interrupts.or(std::future::ready(())).await.expect_err("a signal");
        assert_eq!(failure.exit, 130);
        assert_eq!(interrupts.first().await, Signal::Interrupt);
    }

    #[tokio::test]
    async fn work_without_a_signal_is_done() {
        let (_sender, interrupts) = channel();
        assert_eq!(interrupts.or(std::future::ready(7)).await.ok(), Some(7));
    }

    #[test]
    fn nohup_is_seen() {
        assert!(hangup_is_ignored("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n"));
        assert!(!hangup_is_ignored("SigIgn:\t0000000000001006\n"));
        assert!(!hangup_is_ignored("SigCgt:\t0000000000000001\n") && !hangup_is_ignored(""));
    }

    #[tokio::test]
    async fn one_signal_is_not_two() {
        let (sender, interrupts) = channel();
        sender.send_replace((1, Some(Signal::Terminate)));
        let second = interrupts.second();
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        sender.send_replace((2, Some(Signal::Interrupt)));
        assert_eq!(second.await, Signal::Interrupt);
    }
}
