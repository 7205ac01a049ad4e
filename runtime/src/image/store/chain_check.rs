//! Whether a fix-up layer is still what the layers of its image make it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags};

use super::chain::{self, BOOT, DIRECTORY, POLL, chain_id, open_below};
use super::{Store, settle};
use crate::image::digest::Digest;
use crate::image::unpack::DirMeta;
use crate::{Error, Result};

impl Store {
    /// What is wrong with the fix-up layer of these layers: it is made again, and compared. One that this
    /// boot did not make is not looked at, as it is never believed.
    ///
    /// # Errors
    /// As for [`Store::image_layers`].
    pub(super) fn check_chain(&self, diff_ids: &[Digest]) -> Result<Option<String>> {
        let names: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
        let id = chain_id(&names);
        let dir = self.root.join(DIRECTORY).join(id.algorithm().as_str()).join(id.hex());
        let boot = settle::boot_id().map_err(|e| Error::host("read the number of this boot", e))?;
        if settle::read(&dir.join(BOOT)).ok().as_deref() != Some(boot.as_str()) {
            return Ok(None);
        }
        let lock = format!("check-{}-{}", id.algorithm().as_str(), id.hex());
        let again = loop {
            match self.lock_making(&lock, PathBuf::new(), PathBuf::new())? {
                Some(again) => break again,
                None => std::thread::sleep(POLL),
            }
        };
        chain::make(&again, &self.overlay_layers(diff_ids))?;
        let (right, found) = (self.root.join("ingest").join(&lock).join("fs"), dir.join("fs"));
        match (right.is_dir(), found.is_dir()) {
            (true, true) => compare(&right, &found),
            (false, false) => Ok(None),
            (true, false) => Ok(Some("it is empty, and should not be".into())),
            (false, true) => Ok(Some("it should be empty, and is not".into())),
        }
    }
}

/// The first difference between two trees of directories.
fn compare(right: &Path, found: &Path) -> Result<Option<String>> {
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let failed = |e| Error::host(format!("read the directory {path:?} of a fix-up layer"), e);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |root: &Path| {
            let root = rustix::fs::open(root, flags, Mode::empty())?;
            path.components().try_fold(root, |dir, name| open_below(&dir, name.as_os_str()))
        };
        let right = open(right).map_err(failed)?;
        let Ok(found) = open(found) else {
            return Ok(Some(format!("{}: it is missing, or no directory", path.display())));
        };
        if let Some(what) = DirMeta::of(&right)?.difference(&found)? {
            return Ok(Some(format!("{}: {what}", path.display())));
        }
        let (wanted, there) = (names(&right).map_err(failed)?, names(&found).map_err(failed)?);
        if let Some(name) = wanted.symmetric_difference(&there).next() {
            let what = if wanted.contains(name) { "is missing" } else { "is not of it" };
            return Ok(Some(format!("{}: it {what}", path.join(name).display())));
        }
        todo.extend(wanted.into_iter().map(|name| path.join(name)));
    }
    Ok(None)
}

fn names(dir: &std::os::fd::OwnedFd) -> rustix::io::Result<BTreeSet<OsString>> {
    let mut all = BTreeSet::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            all.insert(OsString::from_vec(name));
        }
    }
    Ok(all)
}
