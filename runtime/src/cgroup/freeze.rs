//! Freezing a group: its processes get no CPU until they are thawed. Version 1 has a hierarchy for
//! it (`freezer`), version 2 two files in every group (Linux 5.2).

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{Group, Version, for_each_below};
use crate::{Error, ErrorKind, Result};

/// How long to wait between looks at whether all is frozen: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_micros(250);

/// How far a group's freezing is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Thawed,
    Freezing,
    Frozen,
}

impl Group {
    /// Freezes every process of the group, and waits until all are, for at most `patience`. When
    /// one is not by then, all are thawed again. [`Group::thaw`] breaks it off meanwhile.
    ///
    /// # Errors
    /// `NoCgroup` without the controller, `Host`.
    pub(crate) fn freeze(&self, patience: Duration) -> Result<()> {
        let frozen = self.stop_forks(patience)?;
        if frozen {
            return Ok(());
        }
        self.thaw()?;
        Err(Error::host(
            format!(
                "the processes of the cgroup {} were thawed meanwhile, or not frozen in {patience:?}",
                self.path.display()
            ),
            Errno::TIMEDOUT,
        )
        .advise(
            "a process of it waits for a device or a filesystem that does not answer; try again, or kill it",
        ))
    }

    /// Thaws every process of the group. One that is not frozen is fine.
    ///
    /// # Errors
    /// As [`Group::freeze`].
    pub(crate) fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    /// Asks for all to be frozen; tells whether all are, after at most `patience`, or as soon as somebody
    /// has thawed them meanwhile. They stay so.
    pub(super) fn stop_forks(&self, patience: Duration) -> Result<bool> {
        self.set_frozen(true)?;
        let until = Instant::now() + patience;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.progress()? {
                Progress::Frozen => return Ok(true),
                Progress::Thawed => return Ok(false),
                Progress::Freezing if Instant::now() >= until => return Ok(false),
                Progress::Freezing => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A signal does not reach a frozen process of version 1; in version 2 SIGKILL does. Each group
    /// below may have been frozen by itself.
    pub(super) fn thaw_dying(&self) {
        if self.hierarchy.version() == Version::V2 {
            return;
        }
        let Some(dir) = self.file("freezer", "") else { return };
        for_each_below(&dir, &mut |dir| {
            // Where this fails the group is gone.
            let _ = write_existing(&dir.join("freezer.state"), "THAWED");
        });
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let (file, value) = match (self.hierarchy.version(), frozen) {
            (Version::V1, true) => ("freezer.state", "FROZEN"),
            (Version::V1, false) => ("freezer.state", "THAWED"),
            (Version::V2, true) => ("cgroup.freeze", "1"),
            (Version::V2, false) => ("cgroup.freeze", "0"),
        };
        let path = self.freezer(file)?;
        write_existing(&path, value)
            .map_err(|e| Error::host(format!("cannot write '{value}' to {}", path.display()), e))
    }

    /// How far freezing is: one file tells in version 1, and of what is frozen in version 2.
    fn progress(&self) -> Result<Progress> {
        if self.hierarchy.version() == Version::V1 {
            return Ok(match self.read_freezer("freezer.state")?.trim() {
                "FROZEN" => Progress::Frozen,
                "FREEZING" => Progress::Freezing,
                _ => Progress::Thawed,
            });
        }
        if self.read_freezer("cgroup.events")?.lines().any(|line| line == "frozen 1") {
            return Ok(Progress::Frozen);
        }
        let asked = self.read_freezer("cgroup.freeze")?.trim() == "1";
        Ok(if asked { Progress::Freezing } else { Progress::Thawed })
    }

    /// Whether its processes are stopped, or are being stopped, by the freezer.
    pub(crate) fn is_stopped(&self) -> bool {
        self.progress().is_ok_and(|progress| progress != Progress::Thawed)
    }

    fn read_freezer(&self, name: &str) -> Result<String> {
        let path = self.freezer(name)?;
        fs::read_to_string(&path).map_err(|e| Error::host(format!("cannot read {}", path.display()), e))
    }

    fn freezer(&self, name: &str) -> Result<PathBuf> {
        self.file("freezer", name).ok_or_else(|| {
            Error::new(ErrorKind::NoCgroup, "the cgroup controller freezer is missing")
                .advise("mount it: mount -t cgroup -o freezer none /sys/fs/cgroup/freezer")
        })
    }
}

/// Writes without making the file: on a filesystem that is no cgroup it would be made.
pub(super) fn write_existing(path: &std::path::Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

#[cfg(test)]
#[path = "freeze_tests.rs"]
pub(crate) mod tests;
