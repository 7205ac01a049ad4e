//! Terminals: the calls that no safe wrapper in use here has.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

fn ioctl_result(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unlocks the slave of a master and opens it, not by a path but from the master itself.
pub(crate) fn open_slave(master: impl AsFd) -> io::Result<OwnedFd> {
    let master = master.as_fd().as_raw_fd();
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one integer, which outlives the call.
    ioctl_result(unsafe { libc::ioctl(master, libc::TIOCSPTLCK, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags by value.
    let slave = unsafe { libc::ioctl(master, libc::TIOCGPTPEER, flags) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for this call; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(slave) })
}

/// Makes a terminal the controlling one of this process, a session leader without one.
pub(crate) fn take_terminal(terminal: impl AsFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer by value.
    ioctl_result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) })
}

/// Sets the size of a terminal, in rows and columns of characters.
pub(crate) fn set_size(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one `winsize`, which outlives the call.
    ioctl_result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
}

/// The size of a terminal, in rows and columns of characters.
pub(crate) fn size_of(terminal: impl AsFd) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize`, which outlives the call.
    ioctl_result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col))
}

/// The settings of a terminal, to be given back later.
#[derive(Clone, Copy)]
pub(crate) struct Settings(libc::termios);

impl Settings {
    /// Those of a terminal now.
    pub(crate) fn of(terminal: impl AsFd) -> io::Result<Self> {
        // SAFETY: a `termios` of zeros is a valid value: it has only integers.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the call writes one `termios`, which outlives it.
        ioctl_result(unsafe { libc::tcgetattr(terminal.as_fd().as_raw_fd(), &raw mut settings) })?;
        Ok(Self(settings))
    }

    /// The same, but every key is passed on as it is.
    pub(crate) fn raw(mut self) -> Self {
        // SAFETY: the call changes the fields of the structure that it is given.
        unsafe { libc::cfmakeraw(&raw mut self.0) };
        self
    }

    /// Puts them in force.
    pub(crate) fn apply(&self, terminal: impl AsFd) -> io::Result<()> {
        // SAFETY: the call reads one `termios`, which outlives it.
        ioctl_result(unsafe {
            libc::tcsetattr(terminal.as_fd().as_raw_fd(), libc::TCSADRAIN, &raw const self.0)
        })
    }
}
