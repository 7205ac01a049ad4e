//! Whether a fix-up layer is still what the layers of its image make it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::chain::{self, BOOT, DIRECTORY, POLL, chain_id, open_below};
use super::{Store, redirect, settle};
use crate::image::digest::Digest;
use crate::image::unpack::{self, DirMeta};
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
        let boot = chain::this_boot()?;
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
        chain::make(&again, &self.layer_roots(diff_ids))?;
        let right = self.root.join("ingest").join(&lock);
        if let Some(what) = compare_roots(&right, &dir)? {
            return Ok(Some(what));
        }
        let (wanted, found) = (redirected(&right)?, redirected(&dir)?);
        if let Some(number) = wanted.symmetric_difference(&found).next() {
            let what = if wanted.contains(number) { "is missing" } else { "should not be" };
            return Ok(Some(format!("the redirected layer {} {what}", number.display())));
        }
        for number in &wanted {
            let (right, found) = (right.join(number), dir.join(number));
            let lists = [&right, &found].map(|dir| std::fs::read(dir.join(unpack::IMPLIED)).ok());
            let what = match lists[0] == lists[1] {
                true => compare_roots(&right, &found)?,
                false => Some(format!("its list {} is another", unpack::IMPLIED)),
            };
            if let Some(what) = what {
                return Ok(Some(format!("the redirected layer {}: {what}", number.display())));
            }
        }
        Ok(None)
    }
}

/// The layers that were made again, relative to the directory of the fix-up layer.
fn redirected(chain: &Path) -> Result<BTreeSet<PathBuf>> {
    let all = redirect::list(&chain.join(redirect::DIRECTORY))?;
    let relative = |path: PathBuf| path.strip_prefix(chain).map(Path::to_owned).unwrap_or(path);
    Ok(all.into_iter().map(relative).collect())
}

/// The first difference between the directories `fs` in two others.
fn compare_roots(right: &Path, found: &Path) -> Result<Option<String>> {
    let (right, found) = (right.join("fs"), found.join("fs"));
    match (right.is_dir(), found.is_dir()) {
        (true, true) => compare(&right, &found),
        (false, false) => Ok(None),
        (true, false) => Ok(Some("it is empty, and should not be".into())),
        (false, true) => Ok(Some("it should be empty, and is not".into())),
    }
}

/// The first difference between two trees of directories and links to the files of layers.
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
        for name in wanted {
            let stat = |dir| rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed);
            let (wanted, there) = (stat(&right)?, stat(&found)?);
            let path = path.join(&name);
            match FileType::from_raw_mode(wanted.st_mode) {
                FileType::Directory => todo.push(path),
                _ if is_same(&wanted, &there) => {}
                _ => return Ok(Some(format!("{}: it is another file than the layer's", path.display()))),
            }
        }
    }
    Ok(None)
}

/// Whether both are one file, or both are whiteouts.
fn is_same(a: &Stat, b: &Stat) -> bool {
    let is_whiteout =
        |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0;
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) || (is_whiteout(a) && is_whiteout(b))
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
