//! Being told that the kernel may have killed for want of memory in a group.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::event::{EventfdFlags, eventfd};

use super::{Group, Version};

/// A descriptor that is ready when memory ran out in a group, and sometimes without.
#[derive(Debug)]
pub(crate) enum OomAlarm {
    /// Version 1: an eventfd, told just before the kernel looks for whom to kill.
    Event(OwnedFd),
    /// Version 2: the group's `memory.events`, whose readiness ends when it is read again.
    File(File),
}

impl Group {
    /// Has the kernel tell of it from now on.
    ///
    /// # Errors
    /// As `open(2)` and `write(2)` of the group's files.
    pub(crate) fn oom_alarm(&self) -> io::Result<OomAlarm> {
        let open = |name| {
            let path = self.file("memory", name).ok_or(io::ErrorKind::NotFound)?;
            File::open(path)
        };
        match self.hierarchy.version() {
            Version::V1 => {
                let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let control = open("memory.oom_control")?;
                let file = self.file("memory", "cgroup.event_control").ok_or(io::ErrorKind::NotFound)?;
                fs::write(file, format!("{} {}", event.as_raw_fd(), control.as_raw_fd()))?;
                Ok(OomAlarm::Event(event))
            }
            Version::V2 => {
                let alarm = OomAlarm::File(open("memory.events")?);
                alarm.rearm();
                Ok(alarm)
            }
        }
    }

    /// Whether the kernel kills all of the group when it kills one of it for want of memory, where
    /// it was asked to (version 2, Linux 4.19).
    pub(crate) fn can_kill_whole(&self) -> bool {
        self.is_unified() && self.file("memory", "memory.oom.group").is_some_and(|path| path.exists())
    }
}

impl OomAlarm {
    /// What readiness to wait for.
    pub(crate) fn interest(&self) -> EventFlags {
        match self {
            Self::Event(_) => EventFlags::IN,
            Self::File(_) => EventFlags::PRI,
        }
    }

    /// Ends its readiness until it is told again.
    pub(crate) fn rearm(&self) {
        let mut buffer = [0; 512];
        // A failure (the group is gone) means that there is nothing to be told any more.
        match self {
            Self::Event(event) => drop(rustix::io::read(event, &mut buffer)),
            Self::File(file) => {
                let mut file = file;
                if file.rewind().is_ok() {
                    let _ = rustix::io::read(file, &mut buffer);
                }
            }
        }
    }
}

impl AsFd for OomAlarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Event(event) => event.as_fd(),
            Self::File(file) => file.as_fd(),
        }
    }
}
