//! The caller's own terminal, while it is connected to one in a container.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::TerminalSize;
use crate::sys::pty::{Settings, size_of};

/// A terminal whose keys are all passed on. Dropping it restores the terminal as it was.
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Settings,
}

impl std::fmt::Debug for RawTerminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawTerminal").finish_non_exhaustive()
    }
}

impl RawTerminal {
    /// Takes a terminal over.
    ///
    /// # Errors
    /// `ENOTTY` when it is none.
    pub fn new(terminal: impl AsFd) -> io::Result<Self> {
        let before = Settings::of(&terminal)?;
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        before.raw().apply(&terminal)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = self.before.apply(&self.terminal);
    }
}

impl TerminalSize {
    /// The size of a terminal; `None` when it is none.
    pub fn of(terminal: impl AsFd) -> Option<Self> {
        size_of(terminal).ok().map(|(rows, columns)| Self { rows, columns })
    }
}
