//! Project quotas: the project of a directory (`linux/fs.h`), and limits and usage of a project
//! (`linux/dqblk_xfs.h`; the kernel takes these commands for ext4 too).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::libc;

const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801C_581F;
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401C_5820;
/// What is made in the directory belongs to its project.
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

const PRJQUOTA: u32 = 2;
/// `QCMD(Q_XGETQUOTA, PRJQUOTA)`.
const GET_QUOTA: u32 = 0x5803 << 8 | PRJQUOTA;
/// `QCMD(Q_XSETQLIM, PRJQUOTA)`.
const SET_LIMITS: u32 = 0x5804 << 8 | PRJQUOTA;
const FS_DQUOT_VERSION: i8 = 1;
const FS_PROJ_QUOTA: i8 = 2;
/// Hard and soft limits of blocks and inodes.
const FS_DQ_LIMIT_MASK: u16 = 0xF;
/// Bytes are counted in sectors.
const SECTOR: u64 = 512;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// `struct fs_disk_quota`.
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    version: i8,
    flags: i8,
    fieldmask: u16,
    id: u32,
    blk_hardlimit: u64,
    blk_softlimit: u64,
    ino_hardlimit: u64,
    ino_softlimit: u64,
    bcount: u64,
    icount: u64,
    timers: [i32; 2],
    warns: [u16; 2],
    timers_hi: [u8; 4],
    rtb: [u64; 3],
    rtbtimer: i32,
    rtbwarns: u16,
    padding3: i16,
    padding4: [u8; 8],
}

/// Limits and usage of a project; a limit of 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProjectQuota {
    pub(crate) limit_bytes: u64,
    pub(crate) limit_inodes: u64,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// How the filesystem of a quota is named.
#[derive(Clone, Copy, Debug)]
pub(crate) enum QuotaTarget<'a> {
    /// By a file on it (quotactl_fd(2), Linux 5.14).
    File(BorrowedFd<'a>),
    /// By its block device (quotactl(2)).
    Device(&'a CStr),
}

/// The project of a directory.
pub(crate) fn project_of(dir: impl AsFd) -> io::Result<u32> {
    get_xattr(dir.as_fd()).map(|xattr| xattr.projid)
}

/// Puts an empty directory, and what will be made in it, into a project.
pub(crate) fn set_project(dir: impl AsFd, project: u32) -> io::Result<()> {
    let mut xattr = get_xattr(dir.as_fd())?;
    xattr.xflags |= FS_XFLAG_PROJINHERIT;
    xattr.projid = project;
    // SAFETY: `xattr` has the layout of `struct fsxattr` and outlives the call, which only reads it.
    let result = unsafe { libc::ioctl(dir.as_fd().as_raw_fd(), FS_IOC_FSSETXATTR, &raw const xattr) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get_xattr(file: BorrowedFd<'_>) -> io::Result<FsXattr> {
    let mut xattr = FsXattr::default();
    // SAFETY: `xattr` has the layout of `struct fsxattr`, which the call fills, and outlives it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut xattr) };
    if result == 0 { Ok(xattr) } else { Err(io::Error::last_os_error()) }
}

/// Limits and usage of a project; zeros for one that the filesystem has never seen.
pub(crate) fn project_quota(target: QuotaTarget<'_>, project: u32) -> io::Result<ProjectQuota> {
    let mut quota = DiskQuota::default();
    match quotactl(target, GET_QUOTA, project, &mut quota) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(ProjectQuota::default()),
        Err(e) => Err(e),
        Ok(()) => Ok(ProjectQuota {
            limit_bytes: quota.blk_hardlimit.saturating_mul(SECTOR),
            limit_inodes: quota.ino_hardlimit,
            bytes: quota.bcount.saturating_mul(SECTOR),
            inodes: quota.icount,
        }),
    }
}

/// Sets the hard limits of a project (bytes are rounded down to sectors) and no soft ones; zeros
/// take them away.
pub(crate) fn set_project_limits(
    target: QuotaTarget<'_>,
    project: u32,
    bytes: u64,
    inodes: u64,
) -> io::Result<()> {
    let mut quota = DiskQuota {
        version: FS_DQUOT_VERSION,
        flags: FS_PROJ_QUOTA,
        fieldmask: FS_DQ_LIMIT_MASK,
        id: project,
        blk_hardlimit: bytes / SECTOR,
        ino_hardlimit: inodes,
        ..DiskQuota::default()
    };
    quotactl(target, SET_LIMITS, project, &mut quota)
}

fn quotactl(target: QuotaTarget<'_>, command: u32, project: u32, quota: &mut DiskQuota) -> io::Result<()> {
    let quota: *mut DiskQuota = quota;
    let result = match target {
        // SAFETY: both commands take a `struct fs_disk_quota`, which `quota` points to and which
        // outlives the call; nothing else is passed by reference.
        QuotaTarget::File(file) => unsafe {
            libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, project, quota)
        },
        // SAFETY: as above; `device` is a string that ends with NUL and outlives the call.
        QuotaTarget::Device(device) => unsafe {
            libc::syscall(libc::SYS_quotactl, command, device.as_ptr(), project, quota)
        },
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        // sizeof(struct fsxattr) of linux/fs.h and sizeof(fs_disk_quota_t) of linux/dqblk_xfs.h
        assert_eq!(size_of::<FsXattr>(), 28);
        assert_eq!(size_of::<DiskQuota>(), 112);
    }
}
