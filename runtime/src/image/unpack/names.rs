//! Where names of a layer lead: through its own symbolic links and those of the layers below, as in
//! containerd, Docker and umoci, which put each layer onto the ones below it.
//!
//! The root of the image is the root of all links: absolute ones begin there, and `..` stays there.
//! What is missing on the way is passed as text, so that a link may lead to what is yet to be made.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::hash::BuildHasher as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::FileType;

use super::entries::invalid;
use super::path::{self, Root, file_type, show};
use super::whiteout::Whiteout;
use crate::Result;

/// Links that one name may lead through: as many as the kernel follows (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// Answers of the layers below that are kept.
const MAX_KNOWN: usize = 4096;

/// Tells the target of the symbolic link that the layers below show at a path; `None` if there is
/// something else or nothing.
pub(crate) type Below<'a> = dyn Fn(&Path) -> Result<Option<Vec<u8>>> + 'a;

/// The names of one layer.
pub(super) struct Names<'a> {
    below: &'a Below<'a>,
    /// As hashes with a random key: a layer may remove a hundred thousand names.
    removed: HashSet<u64>,
    opaque: HashSet<u64>,
    keys: RandomState,
    known: HashMap<PathBuf, Option<Vec<u8>>>,
    /// The directory that was asked for last, and where it is.
    last: Option<(PathBuf, PathBuf)>,
}

impl<'a> Names<'a> {
    pub(super) fn new(below: &'a Below<'a>) -> Self {
        let (removed, opaque) = (HashSet::new(), HashSet::new());
        Self { below, removed, opaque, keys: RandomState::new(), known: HashMap::new(), last: None }
    }

    /// Hides what a whiteout of this layer takes from the layers below; those nearer to the root first.
    pub(super) fn hide(&mut self, whiteout: &Whiteout<'_>) -> Result<()> {
        match whiteout {
            Whiteout::Remove(dir, name) => {
                let removed = self.directory(None, dir)?.join(name);
                self.removed.insert(self.key(&removed));
            }
            Whiteout::Opaque(dir) => {
                let dir = self.directory(None, dir)?;
                self.opaque.insert(self.key(&dir));
            }
            Whiteout::No | Whiteout::Ignored => {}
        }
        // What was asked for may be hidden now.
        self.forget_last();
        Ok(())
    }

    /// The layer has changed: other links may be in it.
    pub(super) fn forget_last(&mut self) {
        self.last = None;
    }

    /// Where an entry goes: its directory without links on the way. What the entry itself replaces is
    /// not followed.
    pub(super) fn place(&mut self, own: &mut Root, path: &Path) -> Result<PathBuf> {
        let Some((parent, name)) = path.parent().zip(path.file_name()) else { return Ok(PathBuf::new()) };
        Ok(self.directory(Some(own), parent)?.join(name))
    }

    /// Where a directory is. `own` is what has been made of the layer.
    pub(super) fn directory(&mut self, own: Option<&mut Root>, path: &Path) -> Result<PathBuf> {
        if let Some((asked, real)) = &self.last
            && asked.as_os_str() == path.as_os_str()
        {
            return Ok(real.clone());
        }
        let real = self.follow(own, path)?;
        self.last = Some((path.to_owned(), real.clone()));
        Ok(real)
    }

    fn follow(&mut self, mut own: Option<&mut Root>, path: &Path) -> Result<PathBuf> {
        let mut todo: VecDeque<OsString> = path.iter().map(OsStr::to_owned).collect();
        let (mut real, mut links) = (PathBuf::new(), 0);
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                real.pop();
                continue;
            }
            real.push(&name);
            let Some(target) = self.link(own.as_deref_mut(), &real)? else { continue };
            links += 1;
            if links > MAX_LINKS {
                let path = show(path.as_os_str().as_bytes());
                return Err(invalid(format!("{path} leads through more than {MAX_LINKS} symbolic links")));
            }
            real.pop();
            if target.starts_with(b"/") {
                real.clear();
            }
            for component in Path::new(OsStr::from_bytes(&target)).components().rev() {
                match component {
                    Component::Normal(_) | Component::ParentDir => {
                        todo.push_front(component.as_os_str().to_owned());
                    }
                    Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                }
            }
        }
        // Under the bounds of any other name.
        path::clean(real.as_os_str().as_bytes())
    }

    /// The link at a path without links on the way: the layer's own, or one below that it does not hide.
    fn link(&mut self, own: Option<&mut Root>, path: &Path) -> Result<Option<Vec<u8>>> {
        if let Some(place) = own.map(|own| own.find(path)).transpose()?.flatten()
            && let Some(stat) = place.stat()?
        {
            if file_type(&stat) != FileType::Symlink {
                return Ok(None);
            }
            let target = rustix::fs::readlinkat(&place.dir.fd, place.name, Vec::new())
                .map_err(|e| place.failed("readlink", e))?;
            return Ok(Some(target.into_bytes()));
        }
        if self.hides(path) {
            return Ok(None);
        }
        if let Some(known) = self.known.get(path) {
            return Ok(known.clone());
        }
        let found = (self.below)(path)?;
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(path.to_owned(), found.clone());
        Ok(found)
    }

    fn hides(&self, path: &Path) -> bool {
        let is_in = |all: &HashSet<u64>, path| !all.is_empty() && all.contains(&self.key(path));
        is_in(&self.removed, path)
            || path.ancestors().skip(1).any(|dir| is_in(&self.removed, dir) || is_in(&self.opaque, dir))
    }

    fn key(&self, path: &Path) -> u64 {
        self.keys.hash_one(path.as_os_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    /// Where a directory is over layers with these links.
    fn lead(links: &[(&str, &str)], whiteouts: &[Whiteout<'_>], path: &str) -> Result<PathBuf> {
        let below = |path: &Path| {
            let found = links.iter().find(|(name, _)| Path::new(name) == path);
            Ok(found.map(|(_, target)| target.as_bytes().to_vec()))
        };
        let mut names = Names::new(&below);
        whiteouts.iter().try_for_each(|whiteout| names.hide(whiteout))?;
        names.directory(None, Path::new(path))
    }

    #[track_caller]
    fn leads(links: &[(&str, &str)], path: &str, to: &str) {
        assert_eq!(lead(links, &[], path).expect(path), Path::new(to), "{path}");
    }

    #[test]
    fn links_are_followed_beneath_the_root() {
        let usr = [("lib", "usr/lib"), ("usr/lib/abs", "/opt//./x/"), ("opt", "../../../mnt/../srv/")];
        leads(&usr, "lib", "usr/lib");
        leads(&usr, "lib/a/b", "usr/lib/a/b");
        leads(&usr, "lib/abs/y", "srv/x/y");
        leads(&usr, "nothing/lib", "nothing/lib");
        leads(&[("a", "/")], "a/b", "b");
        leads(&[("a", "..")], "a", "");
        leads(&[("dead", "/not/there")], "dead/x", "not/there/x");
    }

    #[test]
    fn loops_and_long_ways_are_refused() {
        for links in [&[("a", "a")][..], &[("a", "b"), ("b", "/a/x")]] {
            let error = lead(links, &[], "a/x").expect_err("a loop");
            assert_eq!(error.kind(), ErrorKind::InvalidImage);
            assert!(error.to_string().contains("\"a/x\" leads through more than 40"), "{error}");
        }
        let (deep, long) = (format!("{}m", "l/".repeat(200)), "l/".repeat(100));
        let error = lead(&[("a", &deep), (&deep, &long)], &[], "a").expect_err("too deep");
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    }

    #[test]
    fn what_the_layer_removes_leads_nowhere() {
        let links = [("lib", "usr/lib"), ("d/l", "/usr"), ("usr/m", "/x")];
        let removed = |path: &'static str| {
            let path = Path::new(path);
            Whiteout::Remove(path.parent().expect("no root"), path.file_name().expect("no root"))
        };
        let to = |whiteouts: &[Whiteout<'_>], path| lead(&links, whiteouts, path).expect("a path");
        assert_eq!(to(&[removed("lib")], "lib/x"), Path::new("lib/x"));
        assert_eq!(to(&[removed("d")], "d/l/x"), Path::new("d/l/x"));
        assert_eq!(to(&[Whiteout::Opaque(Path::new("d"))], "d/l/x"), Path::new("d/l/x"));
        assert_eq!(to(&[Whiteout::Opaque(Path::new("lib"))], "lib/x"), Path::new("usr/lib/x"));
        // Through a link itself.
        assert_eq!(to(&[removed("d/l/m")], "usr/m/x"), Path::new("usr/m/x"));
        assert_eq!(to(&[removed("other")], "usr/m/x"), Path::new("x/x"));
    }
}
