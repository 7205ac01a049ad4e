//! What a directory is that the higher of an image's layers only imply: as the layers below say.
//!
//! ```text
//! top    a/      implied: only that something is in it       fix-up layer   a/   as below
//!        a/      described: mode, owner, time, attributes  ─────────────────┘
//! bottom a/      hidden by what is above
//! ```
//! overlayfs shows the highest directory as it is, and that of an implied one says nothing. So the
//! directories in question get their right form in one more layer on top, which holds nothing else. It
//! depends on all layers of the image: it is kept by their DiffIDs, and made by one process at a time.
//! It is believed in the boot that made it, since nothing waits for its bytes to be on the disk. That
//! an image needs none is kept as well, as one without `fs`.
//!
//! A directory that is implied where the layers below have a link is none: the layer is made again
//! ([`super::redirect`]), and the fix-up layer is of what results.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::ingest::Ingest;
use super::{Store, is_opaque, redirect, settle, stacked};
use crate::image::digest::Digest;
use crate::image::unpack::{self, DirMeta};
use crate::{Error, Result};

/// The fix-up layers' directory.
pub(super) const DIRECTORY: &str = "chains";
/// The boot that made one, beside its root.
pub(super) const BOOT: &str = "boot";
/// Written after the boot: one that another version of Skiff made in another way is made again.
const FORM: u32 = 2;
/// Waiting for another process that makes the same.
pub(super) const POLL: Duration = Duration::from_millis(5);

/// The name of the fix-up layer of some layers, lowest first.
pub(super) fn chain_id<S: AsRef<str>>(diff_ids: &[S]) -> Digest {
    let names: Vec<&str> = diff_ids.iter().map(AsRef::as_ref).collect();
    Digest::sha256(names.join("\n").as_bytes())
}

/// What is in the file [`BOOT`] of one that is believed.
pub(super) fn this_boot() -> Result<String> {
    let boot = settle::boot_id().map_err(|e| Error::host("read the number of this boot", e))?;
    Ok(format!("{boot} {FORM}"))
}

impl Store {
    /// The layers of an image for an overlay mount, lowest first, with those in the place of
    /// others that were made again, and a fix-up layer on top if they need one. The caller has a lease on the image. Blocks while one is made.
    ///
    /// # Errors
    /// `InvalidImage`, `CorruptImage`, `DiskFull`, `Host`.
    pub(crate) fn image_layers(&self, diff_ids: &[Digest]) -> Result<Vec<PathBuf>> {
        let all = self.layer_roots(diff_ids);
        let layers = stacked(&all);
        if !may_need(&layers)? {
            return Ok(layers);
        }
        let names: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
        let id = chain_id(&names);
        let dir = self.root.join(DIRECTORY).join(id.algorithm().as_str()).join(id.hex());
        self.make_chain(&dir, &id, &all)?;
        let mut layers = redirect::layers(&dir, all)?;
        let fs = dir.join("fs");
        if fs.is_dir() {
            layers.push(fs);
        }
        Ok(layers)
    }

    /// Makes a fix-up layer, unless it was made in this boot; waits for another that makes it.
    fn make_chain(&self, dir: &Path, id: &Digest, layers: &[PathBuf]) -> Result<()> {
        let boot = this_boot()?;
        let is_made = || settle::read(&dir.join(BOOT)).is_ok_and(|made| made == boot);
        let lock = format!("chain-{}-{}", id.algorithm().as_str(), id.hex());
        while !is_made() {
            let Some(ingest) = self.lock_making(&lock, dir.to_owned(), PathBuf::new())? else {
                std::thread::sleep(POLL);
                continue;
            };
            if is_made() {
                break;
            }
            make(&ingest, layers)?;
            ingest.put(BOOT, boot.as_bytes())?;
            // One of an earlier boot.
            self.discard(dir)?;
            ingest.publish()?;
        }
        Ok(())
    }
}

/// Whether a layer implies something about which one below it may say more.
fn may_need(layers: &[PathBuf]) -> Result<bool> {
    let mut below = false;
    for (index, layer) in layers.iter().enumerate() {
        let has_list = || layer.with_file_name(unpack::IMPLIED).exists();
        if index > 0 && has_list() {
            return Ok(true);
        }
        match unpack::inherits(&open_root(layer)?)? {
            true if below => return Ok(true),
            true => {}
            false => below = true,
        }
    }
    Ok(false)
}

/// Makes all that the layers of an image need beside them.
pub(super) fn make(ingest: &Ingest, all: &[PathBuf]) -> Result<()> {
    let mut fix = Fix { root: ingest.prepare()?, needed: false };
    let layers = redirect::make(ingest, all)?;
    let stack = Stack::open(&layers)?;
    fix.add(&stack, Path::new(""))?;
    // A layer that comes twice is in the stack once.
    for layer in layers.iter().skip(1) {
        unpack::read_implied(parent(layer), |path| fix.add(&stack, path))?;
    }
    if !fix.needed {
        return ingest.remove_root();
    }
    // Last, as what is put into a directory changes its time.
    for layer in layers.iter().skip(1) {
        unpack::read_implied(parent(layer), |path| fix.set_times(&stack, path))?;
    }
    fix.set_times(&stack, Path::new(""))
}

/// The directory that a layer's root is in.
pub(super) fn parent(layer: &Path) -> &Path {
    layer.parent().unwrap_or(layer)
}

/// The layers of an image, lowest first.
#[derive(Default)]
pub(super) struct Stack {
    roots: Vec<OwnedFd>,
}

/// What one layer has at a path.
enum Found {
    /// Nothing, and those below may be seen.
    Nothing,
    /// Nothing, and it hides those below; or something that is no directory.
    End,
    /// A directory; `hides` if it is in an opaque one.
    Directory { dir: OwnedFd, hides: bool },
}

/// What is seen at a path through all layers.
enum Seen {
    /// No directory.
    No,
    /// A directory that looks as it should.
    Right(OwnedFd),
    /// A directory that should look as this one of a lower layer.
    Wrong(OwnedFd),
}

impl Stack {
    fn open(layers: &[PathBuf]) -> Result<Self> {
        Ok(Self { roots: layers.iter().map(|layer| open_root(layer)).collect::<Result<_>>()? })
    }

    /// Puts a layer on top.
    pub(super) fn push(&mut self, layer: &Path) -> Result<()> {
        if is_opaque(layer) {
            self.roots.clear();
        }
        self.roots.push(open_root(layer)?);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The target of the symbolic link that is seen at a path; no link on the way is followed.
    pub(super) fn link(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let Some((above, name)) = path.parent().zip(path.file_name()) else { return Ok(None) };
        for root in self.roots.iter().rev() {
            let (dir, hides) = match find(root, above)? {
                Found::Nothing => continue,
                Found::End => return Ok(None),
                Found::Directory { dir, hides } => (dir, hides),
            };
            match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) if hides || is_opaque_dir(&dir) => return Ok(None),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(failed(path, e)),
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&dir, name, Vec::new());
                    return Ok(Some(target.map_err(|e| failed(path, e))?.into_bytes()));
                }
                Ok(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    fn look(&self, path: &Path) -> Result<Seen> {
        let mut top: Option<OwnedFd> = None;
        for root in self.roots.iter().rev() {
            let (dir, hides) = match find(root, path)? {
                Found::Nothing => continue,
                Found::End => break,
                Found::Directory { dir, hides } => (dir, hides),
            };
            if !unpack::inherits(&dir)? {
                return Ok(if top.is_none() { Seen::Right(dir) } else { Seen::Wrong(dir) });
            }
            top = top.or(Some(dir));
            if hides {
                break;
            }
        }
        // Nothing describes it: it is as it was made.
        Ok(top.map_or(Seen::No, Seen::Right))
    }
}

/// The root is hidden by nothing: layers below an opaque one are not in the stack.
fn find(root: &OwnedFd, path: &Path) -> Result<Found> {
    let mut dir = open_below(root, OsStr::new(".")).map_err(|e| failed(path, e))?;
    let mut hides = false;
    for component in path.components() {
        hides |= is_opaque_dir(&dir);
        dir = match open_below(&dir, component.as_os_str()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) if hides => return Ok(Found::End),
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Found::End),
            Err(e) => return Err(failed(path, e)),
        };
    }
    Ok(Found::Directory { dir, hides })
}

fn failed(path: &Path, error: Errno) -> Error {
    Error::host(format!("look at {path:?} in a layer"), error)
}

pub(super) fn open_below(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

fn is_opaque_dir(dir: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}/.", dir.as_fd().as_raw_fd());
    is_opaque(Path::new(&path))
}

fn open_root(layer: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(layer, flags, Mode::empty())
        .map_err(|e| Error::host(format!("open the layer {}", layer.display()), e))
}

/// A fix-up layer in the making.
struct Fix {
    root: OwnedFd,
    needed: bool,
}

impl Fix {
    /// Makes the directory at `path`, with those that it is in, if it does not look as it should.
    fn add(&mut self, stack: &Stack, path: &Path) -> Result<()> {
        let Seen::Wrong(right) = stack.look(path)? else { return Ok(()) };
        self.needed = true;
        let mut dir = self.make_root(stack)?;
        let mut prefix = PathBuf::new();
        for component in path.components() {
            prefix.push(component);
            let name = component.as_os_str();
            dir = match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
                Err(Errno::EXIST) => open_below(&dir, name).map_err(|e| failed(&prefix, e))?,
                Err(e) => return Err(failed(&prefix, e)),
                Ok(()) => {
                    let made = open_below(&dir, name).map_err(|e| failed(&prefix, e))?;
                    let seen = if prefix == path { Some(right.try_clone()) } else { None };
                    let like = match seen {
                        Some(dir) => dir.map_err(|e| Error::host("copy a descriptor", e))?,
                        None => self.seen(stack, &prefix)?,
                    };
                    DirMeta::of(&like)?.copy_to(&made)?;
                    made
                }
            };
        }
        Ok(())
    }

    /// The root, like that of the image.
    fn make_root(&self, stack: &Stack) -> Result<OwnedFd> {
        let root = open_below(&self.root, OsStr::new(".")).map_err(|e| failed(Path::new(""), e))?;
        DirMeta::of(&self.seen(stack, Path::new(""))?)?.copy_to(&root)?;
        Ok(root)
    }

    fn seen(&self, stack: &Stack, path: &Path) -> Result<OwnedFd> {
        match stack.look(path)? {
            Seen::Right(dir) | Seen::Wrong(dir) => Ok(dir),
            // Cannot be: a directory is seen in it.
            Seen::No => Err(failed(path, Errno::NOENT)),
        }
    }

    /// Sets the times of the directory at `path`, and of those that it is in, where they are here.
    fn set_times(&mut self, stack: &Stack, path: &Path) -> Result<()> {
        let mut dir = open_below(&self.root, OsStr::new(".")).map_err(|e| failed(path, e))?;
        let mut prefix = PathBuf::new();
        DirMeta::of(&self.seen(stack, &prefix)?)?.set_times(&dir)?;
        for component in path.components() {
            prefix.push(component);
            dir = match open_below(&dir, component.as_os_str()) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(failed(&prefix, e)),
            };
            DirMeta::of(&self.seen(stack, &prefix)?)?.set_times(&dir)?;
        }
        Ok(())
    }
}
