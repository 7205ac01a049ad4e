//! A layer once more, where names of it lead through links of the layers below.
//!
//! ```text
//! below  lib ─▶ usr/lib, usr/lib/     layer  lib/x, and no entry for lib     once more  usr/lib/x
//! ```
//! Layers are unpacked apart, so that their directories can be shared: `lib` is a directory there, which
//! would hide the link. Where it meets one, the layer is made again beside its image: its entries come
//! from its recipe in their order, each with its name led through all links. Files are
//! hard links to those of the layer, so that neither disk nor page cache has them twice; directories get
//! what those of the layer have. As always, whiteouts and entries for directories count wherever they are
//! in the archive: whiteouts hide what is below from the beginning and are applied at the end, and a
//! link in whose place the layer has a directory of its own is not followed.
//!
//! A layer that names a file twice cannot be made again: what the first of both held is gone.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::copy::DirMeta;
use super::entries::{Entries, Entry, Kind, invalid};
use super::extract::finish_directory;
use super::journal::Journal;
use super::names::{Below, Names};
use super::path::{self, Place, Root, file_type, show};
use super::rebuild::Content;
use super::verify::Layer;
use super::whiteout::{self, Paths, Whiteout, Whiteouts};
use super::{implied, meta};
use crate::image::limits;
use crate::{Error, ErrorKind, Result};

/// Makes the layer in `layer_dir` again in the empty directory `to`, and lists in `beside` what it
/// implies.
///
/// # Errors
/// `InvalidImage` for names that lead in a circle or through a file; `CorruptImage` if the layer's recipe
/// is missing or broken; `DiskFull`, `Host`.
pub(crate) fn redirect(layer_dir: &Path, below: &Below<'_>, to: OwnedFd, beside: OwnedFd) -> Result<()> {
    let layer = Layer::open(layer_dir)?;
    let mut whiteouts = Paths::default();
    let mut bytes = 0;
    let is_twice = each_entry(&layer, |entry| {
        let path = path::clean(&entry.path)?;
        if matches!(whiteout::parse(&path)?, Whiteout::Remove(..) | Whiteout::Opaque(_)) {
            bytes += (path.as_os_str().len() + whiteout::PATH_OVERHEAD) as u64;
            limits::check("bytes for the whiteouts of a layer", bytes, limits::MAX_WHITEOUT_BYTES)?;
            whiteouts.push(&path);
        }
        Ok(())
    })?;
    if is_twice {
        return Err(invalid("it names a file twice")
            .advise("build the image again, so that each layer names each file once"));
    }
    // What is nearer to the root hides what is below it.
    whiteouts.sort();
    let whole = RefCell::new(Root::new(layer.root()?));
    let below = |path: &Path| if is_described(&whole, path)? { Ok(None) } else { below(path) };
    let mut names = Names::new(&below);
    for path in whiteouts.iter() {
        names.hide(&whiteout::parse(path)?)?;
    }
    let from = Root::new(layer.root()?);
    let (shown, times) = (layer_dir.display().to_string(), Journal::default());
    let mut again = Again { from, to: Root::new(to), names, times, shown };
    again.root()?;
    each_entry(&layer, |entry| again.entry(entry))?;
    again.finish(&whiteouts, beside)
}

/// Whether a layer has a directory at a path, and an entry for it.
fn is_described(whole: &RefCell<Root>, path: &Path) -> Result<bool> {
    let Some(place) = whole.borrow_mut().find(path)? else { return Ok(false) };
    let is_dir = place.stat()?.is_some_and(|stat| file_type(&stat) == FileType::Directory);
    Ok(is_dir && !implied::is_marked(&place.open_dir()?)?)
}

/// Gives the entries of a layer's archive, and tells whether a name comes twice.
fn each_entry(layer: &Layer, mut each: impl FnMut(&Entry) -> Result<()>) -> Result<bool> {
    let mut entries = Entries::new(layer.rebuilt(Content::Zeros)?);
    while let Some(entry) = entries.next().map_err(|e| layer.broken(e))? {
        each(&entry)?;
    }
    std::io::copy(entries.reader(), &mut std::io::sink())
        .map_err(|e| layer.broken(super::broken(e, "recipe of a layer")))?;
    Ok(entries.into_reader().replaced().unwrap_or(true))
}

/// The layer in the making.
struct Again<'a> {
    from: Root,
    to: Root,
    names: Names<'a>,
    /// Times of directories.
    times: Journal,
    shown: String,
}

impl Again<'_> {
    fn root(&self) -> Result<()> {
        meta::plain(self.to.fd())?;
        if implied::inherits(self.from.fd())? {
            return implied::mark_root(self.to.fd());
        }
        DirMeta::of(self.from.fd())?.copy_to(self.to.fd())
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        let path = path::clean(&entry.path)?;
        if path.as_os_str().is_empty() || whiteout::parse(&path)? != Whiteout::No {
            return Ok(());
        }
        let Some(from) = self.from.find(&path)? else { return Err(self.missing(&path)) };
        let is_dir = from.stat()?.map(|stat| file_type(&stat) == FileType::Directory);
        if is_dir != Some(entry.kind == Kind::Directory) {
            return Err(self.missing(&path));
        }
        let real = self.names.place(&mut self.to, &path)?;
        // Nothing on the way to it is a link: an entry for the root itself has been left out above.
        let Some(place) = self.to.place(&real)? else { return Err(path::no_directory(&real)) };
        if entry.kind == Kind::Directory {
            self.directory(&from, &place)?;
        } else {
            self.file(&from, &place)?;
        }
        if entry.kind != Kind::Regular {
            self.names.forget_last();
        }
        Ok(())
    }

    /// What an entry made is not there.
    fn missing(&self, path: &Path) -> Error {
        let path = show(path.as_os_str().as_bytes());
        Error::new(ErrorKind::CorruptImage, format!("{path} is missing in the layer {}", self.shown))
            .advise("verify the store with --repair, and pull the image again")
    }

    fn directory(&mut self, from: &Place<'_>, place: &Place<'_>) -> Result<()> {
        let make = || rustix::fs::mkdirat(&place.dir.fd, place.name, Mode::RWXU);
        match make() {
            Err(Errno::EXIST)
                if place.stat()?.is_some_and(|stat| file_type(&stat) == FileType::Directory) =>
            {
                meta::clear(&place.open_dir()?, place)?;
            }
            Err(Errno::EXIST) => {
                self.to.remove(place)?;
                make().map_err(|e| place.failed("mkdir", e))?;
            }
            made => made.map_err(|e| place.failed("mkdir", e))?,
        }
        let old = from.open_dir()?;
        let like = DirMeta::of(&old)?;
        like.copy_to(&place.open_dir()?)?;
        self.times.add(place.path.as_os_str().as_bytes(), like.mtime(), &[], self.to.fd())
    }

    fn file(&mut self, from: &Place<'_>, place: &Place<'_>) -> Result<()> {
        let link =
            || rustix::fs::linkat(&from.dir.fd, from.name, &place.dir.fd, place.name, AtFlags::empty());
        let linked = match link() {
            Err(Errno::EXIST) => {
                self.to.remove(place)?;
                self.names.forget_last();
                link()
            }
            other => other,
        };
        linked.map_err(|e| place.failed("link", e))
    }

    fn finish(mut self, whiteouts: &Paths, beside: OwnedFd) -> Result<()> {
        self.names.forget_last();
        let mut real = Whiteouts::default();
        for path in whiteouts.iter() {
            match whiteout::parse(path)? {
                Whiteout::Remove(dir, name) => {
                    real.remove(&self.names.directory(Some(&mut self.to), dir)?.join(name));
                }
                Whiteout::Opaque(dir) => real.opaque(&self.names.directory(Some(&mut self.to), dir)?),
                Whiteout::No | Whiteout::Ignored => {}
            }
        }
        real.apply(&mut self.to)?;
        implied::finish(&mut self.to, Some(beside))?;
        let to = &mut self.to;
        self.times.replay(|note| finish_directory(to, &note, false))?;
        DirMeta::of(self.from.fd())?.set_times(self.to.fd())
    }
}
