//! Directories that no entry describes, and what overlayfs is told by marks on directories: both must
//! be as unpacking leaves them.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::Stat;
use rustix::io::Errno;

use super::{foreign_attribute, is_own, names_of};
use crate::image::unpack::implied;
use crate::image::unpack::path::PARENT_MODE;
use crate::image::unpack::verify::Difference;
use crate::image::unpack::whiteout::OPAQUE_XATTR;

/// What the entries of a layer say of its directories, by their inodes, and what is found of it.
#[derive(Default)]
pub(super) struct Marks {
    /// Those that an entry describes.
    pub(super) described: HashSet<u64>,
    /// Those that hide lower layers because of an entry.
    pub(super) opaque: HashSet<u64>,
    /// Those in the list beside the layer's root that have not been found.
    listed: HashMap<u64, PathBuf>,
    /// One in the list whose path leads to nothing.
    gone: Option<PathBuf>,
    has_list: bool,
    /// Whether anything bears a mark: an older version made none.
    any: bool,
    unmarked: Option<PathBuf>,
}

impl Marks {
    /// Notes a path of the list, and what is there.
    pub(super) fn list(&mut self, path: &Path, inode: Option<u64>) {
        self.has_list = true;
        match inode {
            Some(inode) => drop(self.listed.insert(inode, path.to_owned())),
            None => drop(self.gone.get_or_insert_with(|| path.to_owned())),
        }
    }

    /// What is wrong with a directory.
    pub(super) fn look(
        &mut self,
        path: &Path,
        dir: &OwnedFd,
        stat: &Stat,
    ) -> rustix::io::Result<Option<String>> {
        let through_proc = PathBuf::from(format!("/proc/self/fd/{}/.", dir.as_raw_fd()));
        let names = names_of(&through_proc)?;
        let has = |wanted: &str| names.iter().any(|name| name == wanted.as_bytes());
        if has(OPAQUE_XATTR) && !self.opaque.contains(&stat.st_ino) {
            return Ok(Some("it hides the layers below, and no entry of this layer says so".to_owned()));
        }
        let mark = implied_mark(&through_proc)?;
        self.any |= mark.is_some();
        if self.described.contains(&stat.st_ino) {
            let wrong = mark.map(|_| "it has the mark of what no entry describes, and one does".to_owned());
            return Ok(wrong);
        }
        let is_mark = |name: &[u8]| name == OPAQUE_XATTR.as_bytes() || name == implied::MARK.as_bytes();
        if let Some(name) = names.iter().find(|name| is_own(name) && !is_mark(name)) {
            return Ok(Some(foreign_attribute(name)));
        }
        if mark.is_none() {
            self.unmarked.get_or_insert_with(|| path.to_owned());
        }
        Ok(status(stat, mark.is_some()).or_else(|| self.is_listed(path, stat.st_ino, mark)))
    }

    /// Whether the list has a directory exactly if lower layers say what it is. The root is not in it.
    fn is_listed(&mut self, path: &Path, inode: u64, mark: Option<Vec<u8>>) -> Option<String> {
        let inherits = mark.as_deref() == Some(implied::INHERITS);
        if path.as_os_str().is_empty() {
            return (mark.is_some() && !inherits).then(|| "its mark is another".to_owned());
        }
        if inherits != self.listed.remove(&inode).is_some() {
            return Some(format!("its mark and the list {} do not agree", implied::NAME));
        }
        let is_valid = mark.is_none_or(|mark| mark == implied::INHERITS || mark == implied::ANEW);
        (!is_valid).then(|| "its mark is another".to_owned())
    }

    /// After all directories: what is in the list and not there, or has lost its mark.
    pub(super) fn missing(&mut self) -> Option<Difference> {
        let what = format!("it is in the list {}, and no such directory", implied::NAME);
        let left = std::mem::take(&mut self.listed).into_values().chain(self.gone.take());
        if let Some(path) = left.min() {
            return Some(Difference { path, what });
        }
        let path = self.unmarked.take().filter(|_| self.any || self.has_list)?;
        Some(Difference { path, what: "it has lost the mark of what no entry describes".to_owned() })
    }
}

/// Its mode, owner and time; an older version set no time.
fn status(stat: &Stat, marked: bool) -> Option<String> {
    let mode = stat.st_mode & 0o7777;
    if mode != PARENT_MODE.bits() {
        return Some(format!("its mode is {mode:04o}, not {:04o}", PARENT_MODE.bits()));
    }
    if (stat.st_uid, stat.st_gid) != (0, 0) {
        return Some(format!("its owner is {}:{}, not 0:0", stat.st_uid, stat.st_gid));
    }
    let time = (stat.st_mtime, stat.st_mtime_nsec as i64);
    if marked && time != (implied::TIME.tv_sec, implied::TIME.tv_nsec) {
        return Some(format!("its time is {}.{:09}, not that of what no entry describes", time.0, time.1));
    }
    None
}

fn implied_mark(path: &Path) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut value = [0u8; 16];
    match rustix::fs::getxattr(path, implied::MARK, &mut value[..]) {
        Ok(length) => Ok(Some(value[..length].to_vec())),
        Err(Errno::RANGE) => Ok(Some(Vec::new())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}
