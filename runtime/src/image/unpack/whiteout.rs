//! Whiteouts: from the files of the OCI image specification (*Layer Filesystem Changeset*) to the
//! form of overlayfs.
//!
//! | in the archive | in the layer's directory |
//! |---|---|
//! | `.wh.NAME` | character device 0/0 called NAME |
//! | `.wh..wh..opq` | `trusted.overlay.opaque=y` on its directory |
//! | other `.wh..wh.*` | nothing: bookkeeping of aufs |
//!
//! A whiteout is about the layers below only, so all of them are applied after all other entries.
//! What the same layer adds under that name stays, whichever of both comes first; a directory that
//! is removed and made anew becomes opaque. A whiteout below something that the layer removes or
//! makes into a file says nothing new.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, XattrFlags};

use super::entries::invalid;
use super::path::{Place, Root, file_type, show};
use crate::Result;

/// Marks a directory that hides what the layers below have in it.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

const PREFIX: &[u8] = b".wh.";
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// What an entry's name says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whiteout<'a> {
    /// An ordinary entry.
    No,
    /// To be left out.
    Ignored,
    /// The directory hides those below.
    Opaque(&'a Path),
    /// The named sibling is removed.
    Remove(&'a Path, &'a OsStr),
}

/// Reads a clean path.
pub(super) fn parse(path: &Path) -> Result<Whiteout<'_>> {
    let Some((parent, name)) = path.parent().zip(path.file_name()) else {
        return Ok(Whiteout::No);
    };
    for component in parent.components() {
        let component = component.as_os_str().as_bytes();
        if component.starts_with(AUFS_PREFIX) {
            return Ok(Whiteout::Ignored);
        }
        if component.starts_with(PREFIX) {
            return Err(refused(path));
        }
    }
    let Some(target) = name.as_bytes().strip_prefix(PREFIX) else {
        return Ok(Whiteout::No);
    };
    match target {
        _ if name.as_bytes() == OPAQUE_NAME => Ok(Whiteout::Opaque(parent)),
        _ if name.as_bytes().starts_with(AUFS_PREFIX) => Ok(Whiteout::Ignored),
        b"" | b"." | b".." => Err(refused(path)),
        _ => Ok(Whiteout::Remove(parent, OsStr::from_bytes(target))),
    }
}

fn refused(path: &Path) -> crate::Error {
    invalid(format!("the path {} is not a valid whiteout", show(path.as_os_str().as_bytes())))
}

/// Paths in little memory: a layer may remove a hundred thousand names.
#[derive(Default)]
pub(super) struct Paths {
    bytes: Vec<u8>,
    /// Where each begins and ends.
    ranges: Vec<(u32, u32)>,
}

/// What a path takes in memory beside its own bytes.
pub(super) const PATH_OVERHEAD: usize = size_of::<(u32, u32)>();

impl Paths {
    /// Adds one. Their bytes must be bounded: [`limits::MAX_WHITEOUT_BYTES`](crate::image::limits).
    pub(super) fn push(&mut self, path: &Path) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(path.as_os_str().as_bytes());
        self.ranges.push((start, self.bytes.len() as u32));
    }

    /// Puts what is nearer to the root first.
    pub(super) fn sort(&mut self) {
        let Self { bytes, ranges } = self;
        let of = |(start, end): &(u32, u32)| &bytes[*start as usize..*end as usize];
        ranges.sort_unstable_by(|a, b| of(a).cmp(of(b)));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Path> {
        let of = |(start, end): &(u32, u32)| &self.bytes[*start as usize..*end as usize];
        self.ranges.iter().map(move |range| Path::new(OsStr::from_bytes(of(range))))
    }
}

/// The whiteouts of a layer, for the end of it.
#[derive(Default)]
pub(super) struct Whiteouts {
    removed: Paths,
    opaque: Paths,
}

impl Whiteouts {
    pub(super) fn remove(&mut self, path: &Path) {
        self.removed.push(path);
    }

    pub(super) fn opaque(&mut self, dir: &Path) {
        self.opaque.push(dir);
    }

    /// Applies all of them; what is nearer to the root comes first.
    pub(super) fn apply(mut self, root: &mut Root) -> Result<()> {
        self.removed.sort();
        self.removed.iter().try_for_each(|path| remove(root, path))?;
        self.opaque.sort();
        self.opaque.iter().try_for_each(|dir| opaque(root, dir))
    }
}

fn set_opaque(dir: &impl AsFd, place: &Place<'_>) -> Result<()> {
    rustix::fs::fsetxattr(dir, OPAQUE_XATTR, b"y", XattrFlags::empty())
        .map_err(|e| place.failed("set trusted.overlay.opaque on", e))
}

fn opaque(root: &mut Root, dir: &Path) -> Result<()> {
    // Resolving a name in it makes the directory, and follows a link as for any other entry.
    let inside = dir.join("x");
    let Some(place) = root.place_if_free(&inside)? else {
        return Ok(());
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened =
        rustix::fs::openat(&place.dir.fd, ".", flags, Mode::empty()).map_err(|e| place.failed("open", e))?;
    set_opaque(&opened, &place)
}

fn remove(root: &mut Root, path: &Path) -> Result<()> {
    let Some(place) = root.place_if_free(path)? else {
        return Ok(());
    };
    match place.stat()? {
        None => rustix::fs::mknodat(&place.dir.fd, place.name, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(|e| place.failed("mknod (whiteout)", e)),
        Some(stat) if file_type(&stat) == FileType::Directory => {
            let dir = place.open_dir()?;
            super::implied::renew(&dir)?;
            set_opaque(&dir, &place)
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_back_nearest_to_the_root_first() {
        let mut paths = Paths::default();
        let all = ["a/b/c", "b", "", "a-b", "a/b", "a", "a/b"];
        all.iter().for_each(|path| paths.push(Path::new(path)));
        paths.sort();
        let sorted: Vec<_> = paths.iter().collect();
        assert_eq!(sorted, ["", "a", "a-b", "a/b", "a/b", "a/b/c", "b"].map(Path::new));
    }

    #[test]
    fn names() {
        let parsed = |text: &'static str| parse(Path::new(text)).expect(text);
        assert_eq!(parsed("a/b"), Whiteout::No);
        assert_eq!(parsed(""), Whiteout::No);
        assert_eq!(parsed("a/.wh.b"), Whiteout::Remove(Path::new("a"), OsStr::new("b")));
        assert_eq!(parsed(".wh..b"), Whiteout::Remove(Path::new(""), OsStr::new(".b")));
        assert_eq!(parsed("a/.wh..wh..opq"), Whiteout::Opaque(Path::new("a")));
        assert_eq!(parsed(".wh..wh.plnk/1.2"), Whiteout::Ignored);
        assert_eq!(parsed(".wh..wh.aufs"), Whiteout::Ignored);
        for text in [".wh.", ".wh..", "a/.wh...", ".wh.a/b"] {
            parse(Path::new(text)).expect_err(text);
        }
    }
}
