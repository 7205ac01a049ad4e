//! One directory as a project with limits.
//!
//! Identities are drawn at random from [`FIRST_ID`] on. One that has usage or limits is somebody's;
//! who takes a free one puts its own directory into it and then looks again: of two that took the
//! same at once, at least one sees the other's directory beside its own, and draws again. So nothing
//! has to be written down that could be out of date, and daemons with different state directories on
//! one filesystem do not meet either.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::rootfs::Cap;
use crate::sys::{ProjectQuota, QuotaTarget, project_of, project_quota, set_project, set_project_limits};
use crate::{Error, ErrorKind, Result};

/// Skiff's project identities: 0x53000000 to 0x53FFFFFF.
pub(super) const FIRST_ID: u32 = 0x5300_0000;
const IDS: u32 = 1 << 24;
/// Draws until the range is taken to be used up.
const ATTEMPTS: usize = 64;

/// Project quotas of one filesystem.
pub(super) struct Quotas {
    dir: OwnedFd,
    /// Where the kernel has no quotactl_fd(2).
    device: Option<CString>,
}

impl Quotas {
    /// Those of the filesystem that `dir` is on.
    ///
    /// # Errors
    /// As `quotactl(2)`: `ESRCH` when project quotas are off, `ENOSYS` when it has none.
    pub(super) fn of(dir: BorrowedFd<'_>) -> io::Result<Self> {
        let mut quotas = Self { dir: dir.try_clone_to_owned()?, device: None };
        match quotas.get(FIRST_ID) {
            Ok(_) => Ok(quotas),
            Err(e) if e.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {
                quotas.device = Some(device_of(dir)?);
                quotas.get(FIRST_ID).map(|_| quotas)
            }
            Err(e) => Err(e),
        }
    }

    fn target(&self) -> QuotaTarget<'_> {
        match &self.device {
            Some(device) => QuotaTarget::Device(device),
            None => QuotaTarget::File(self.dir.as_fd()),
        }
    }

    pub(super) fn get(&self, project: u32) -> io::Result<ProjectQuota> {
        project_quota(self.target(), project)
    }

    /// Makes an empty directory a project of its own, with a cap.
    pub(super) fn claim(&self, dir: BorrowedFd<'_>, cap: Cap) -> Result<u32> {
        let failed = |what: &'static str| move |e: io::Error| Error::host(what, e);
        for _ in 0..ATTEMPTS {
            let project = draw()?;
            if self.get(project).map_err(failed("cannot read a project's quota"))? != ProjectQuota::default()
            {
                continue;
            }
            set_project(dir, project).map_err(failed("cannot set the project of a directory"))?;
            // The directory itself is one.
            if self.get(project).map_err(failed("cannot read a project's quota"))?.inodes > 1 {
                continue;
            }
            set_project_limits(self.target(), project, cap.bytes, cap.inodes)
                .map_err(failed("cannot set a project's limits"))?;
            return Ok(project);
        }
        Err(Error::new(ErrorKind::Host, format!("{ATTEMPTS} of Skiff's project identities were in use"))
            .advise("remove projects from 0x53000000 on that nobody uses (`repquota -P`, `xfs_quota`)"))
    }

    /// Takes the limits of a directory's project away, if it is one of Skiff's.
    pub(super) fn release(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        let project = project_of(dir)?;
        if !(FIRST_ID..FIRST_ID + IDS).contains(&project) {
            return Ok(());
        }
        set_project_limits(self.target(), project, 0, 0)
    }
}

fn draw() -> Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::host("cannot get random bytes", e))?;
    Ok(FIRST_ID + u32::from_ne_bytes(bytes) % IDS)
}

/// The block device of the filesystem that a directory is on, as the mount table names it.
pub(super) fn device_of(dir: BorrowedFd<'_>) -> io::Result<CString> {
    let device = rustix::fs::fstat(dir)?.st_dev;
    let wanted = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let source = table.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let here = mount.split(' ').nth(2)? == wanted;
        filesystem.split(' ').nth(1).filter(|source| here && source.starts_with('/'))
    });
    let source = source.ok_or_else(|| io::Error::from(Errno::NODEV))?;
    Ok(CString::new(source)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_of_a_directory_is_found_in_the_mount_table() {
        let proc = std::fs::File::open("/proc").expect("open");
        device_of(proc.as_fd()).expect_err("proc has no device");
    }

    #[test]
    fn drawn_identities_are_in_the_range() {
        for _ in 0..1000 {
            assert_eq!(draw().expect("random") & 0xFF00_0000, FIRST_ID);
        }
    }
}
