//! What a directory of one layer is, for a directory of another.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{Gid, Mode, Timespec, Uid, XattrFlags};
use rustix::io::Errno;

use super::meta;
use crate::image::limits;
use crate::{Error, Result};

/// Owner, mode, time and extended attributes of a directory in the store.
pub(crate) struct DirMeta<'a> {
    dir: &'a OwnedFd,
    stat: rustix::fs::Stat,
}

impl<'a> DirMeta<'a> {
    /// Reads them.
    ///
    /// # Errors
    /// `Host`.
    pub(crate) fn of(dir: &'a OwnedFd) -> Result<Self> {
        let stat = rustix::fs::fstat(dir).map_err(|e| failed("stat", e))?;
        Ok(Self { dir, stat })
    }

    /// Gives all but the times to another, which may have inherited some from its own parent.
    ///
    /// # Errors
    /// `DiskFull`, `Host`.
    pub(crate) fn copy_to(&self, to: &OwnedFd) -> Result<()> {
        meta::plain(to)?;
        let (uid, gid) = (Uid::from_raw(self.stat.st_uid), Gid::from_raw(self.stat.st_gid));
        rustix::fs::fchown(to, Some(uid), Some(gid)).map_err(|e| failed("chown", e))?;
        let mode = Mode::from_raw_mode(self.stat.st_mode & 0o7777);
        rustix::fs::fchmod(to, mode).map_err(|e| failed("chmod", e))?;
        let mut value = vec![0u8; limits::MAX_XATTR_BYTES as usize];
        for name in meta::names(self.dir).map_err(|e| failed("read the extended attributes of", e))? {
            let name = OsStr::from_bytes(&name);
            let length = match rustix::fs::fgetxattr(self.dir, name, &mut value[..]) {
                Ok(length) => length,
                Err(Errno::NODATA) => continue,
                Err(e) => return Err(failed("read an extended attribute of", e)),
            };
            rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())
                .map_err(|e| failed("set an extended attribute of", e))?;
        }
        Ok(())
    }

    /// The time of modification.
    pub(super) fn mtime(&self) -> Timespec {
        Timespec { tv_sec: self.stat.st_mtime, tv_nsec: self.stat.st_mtime_nsec as i64 }
    }

    /// What another does not have as this one, if anything: also marks of overlayfs, which neither has.
    ///
    /// # Errors
    /// `Host`.
    pub(crate) fn difference(&self, other: &OwnedFd) -> Result<Option<String>> {
        let stat = rustix::fs::fstat(other).map_err(|e| failed("stat", e))?;
        let of = |stat: &rustix::fs::Stat| {
            (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec as i64)
        };
        if of(&self.stat) != of(&stat) {
            return Ok(Some("its mode, owner or time is another".to_owned()));
        }
        let list = |dir| meta::kept_names(dir).map_err(|e| failed("read the extended attributes of", e));
        let (wanted, found) = (list(self.dir)?, list(other)?);
        let value = |dir, name: &Vec<u8>| {
            let mut value = vec![0u8; limits::MAX_XATTR_BYTES as usize];
            let length = rustix::fs::fgetxattr(dir, OsStr::from_bytes(name), &mut value[..]).ok()?;
            Some(value[..length].to_vec())
        };
        let differs = |name: &&Vec<u8>| {
            !(wanted.contains(*name) && found.contains(*name)) || value(self.dir, name) != value(other, name)
        };
        let name = wanted.iter().chain(&found).find(differs);
        Ok(name.map(|name| format!("its extended attribute {} is another", super::path::show(name))))
    }

    /// Gives the time of modification to another.
    ///
    /// # Errors
    /// `Host`.
    pub(crate) fn set_times(&self, to: &OwnedFd) -> Result<()> {
        rustix::fs::futimens(to, &meta::times(self.mtime())).map_err(|e| failed("set the times of", e))
    }
}

fn failed(call: &str, error: Errno) -> Error {
    Error::host(format!("{call} a directory of a fix-up layer"), error)
}
