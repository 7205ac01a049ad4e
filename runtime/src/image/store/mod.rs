//! The content-addressed image store below the state directory.
//!
//! ```text
//! blobs/ALGORITHM/HEX            manifests and configurations, as fetched
//! layers/ALGORITHM/DIFFID/fs/    a layer in overlay form; complete, or not there
//! chains/ALGORITHM/HEX/fs/       directories that an image's layers only imply, as they should be
//! chains/…/HEX/redirected/N/fs/  its layer N, where names of it lead through links of lower layers
//! ingest/ALGORITHM-DIFFID/       a layer in the making, locked by who makes it (chain-… for those above)
//! unsettled/ALGORITHM-DIFFID     a complete layer that may not be on the disk yet
//! images/HEX.json                what a name was when it was last pulled
//! manifests/HEX.json             an image that is here, with a name or without
//! leases/HEX                     what an image in use consists of, locked by who uses it
//! pins/HEX.json                  an image that must stay for an owner
//! trash/                         what is being deleted: renamed first, so that nobody finds half of it
//! ```
//! Several processes may share a store: a layer appears by `rename`, and whoever makes one holds a
//! `flock` on its directory in `ingest/`, which the kernel gives back when the holder dies.

mod catalog;
mod chain;
mod chain_check;
mod gc;
mod ingest;
mod layer;
mod lease;
mod permit;
mod pin;
pub(crate) mod probe;
mod record;
mod redirect;
mod remove;
mod settle;
mod stored;
mod trash;
mod usage;
mod verify;

use std::fs::DirBuilder;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use catalog::StoredImage;
pub use gc::{GcOptions, GcReport, RemovedImage};
pub(crate) use ingest::{Claim, Ingest};
pub(crate) use layer::LayerRecord;
pub(crate) use lease::Lease;
use permit::Permits;
pub(crate) use permit::Share;
pub use pin::{MAX_OWNER_BYTES, Pin};
pub(crate) use record::Record;
pub use remove::Removal;
pub use verify::{Damage, VerifyOptions, VerifyReport};

use super::digest::{Algorithm, Digest};
use super::unpack::OPAQUE_XATTR;
use crate::{Error, ErrorKind, Result};

/// The store: make one per state directory and share it.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Layers that are made now, of all pulls.
    permits: Permits,
    /// Whether a thread waits to settle what was pulled.
    settling: AtomicBool,
}

/// What is in the state directory.
const DIRECTORIES: [&str; 11] = [
    chain::DIRECTORY,
    "blobs",
    "layers",
    "ingest",
    "images",
    "manifests",
    "leases",
    "pins",
    "trash",
    "tmp",
    settle::DIRECTORY,
];

/// Makes names of temporary files of one process differ.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

impl Store {
    /// Opens (and makes) the store below `state_dir`; removes what crashed pulls left. Blocks for
    /// some file operations.
    ///
    /// # Errors
    /// `NotRoot`, `OverlayUnsupported`, `DiskFull`, `Host`.
    pub fn open(state_dir: &Path) -> Result<Arc<Self>> {
        let store = Self::open_as_it_is(state_dir)?;
        ingest::sweep(&store.root.join("ingest"), true)?;
        sweep_temporary(&store.root.join("tmp"));
        store.check_unsettled()?;
        // What cannot be deleted now is deleted by the next opening or collection.
        let _ = store.empty_trash();
        // Those of processes that ended before they did it.
        if store.has_unsettled() {
            store.settle_later();
        }
        Ok(store)
    }

    /// As [`Store::open`], and leaves what crashed pulls left: for a look, and not for pulls, since a layer
    /// that a crash of the host damaged is not found.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_as_it_is(state_dir: &Path) -> Result<Arc<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(
                ErrorKind::NotRoot,
                "the image store needs root, for owners and devices in layers",
            )
            .advise("run as root"));
        }
        let root = std::path::absolute(state_dir)
            .map_err(|e| Error::host(format!("find the state directory {}", state_dir.display()), e))?;
        make_dir(&root)?;
        let store = Self { root, permits: Permits::new(), settling: AtomicBool::new(false) };
        for name in DIRECTORIES {
            make_dir(&store.root.join(name))?;
        }
        for algorithm in Algorithm::ALL {
            make_dir(&store.root.join("blobs").join(algorithm.as_str()))?;
            make_dir(&store.root.join("layers").join(algorithm.as_str()))?;
            make_dir(&store.root.join(chain::DIRECTORY).join(algorithm.as_str()))?;
        }
        match probe::overlay(&store.root, &store.root.join("tmp")) {
            // What is here can be used and removed all the same.
            Err(e) if e.kind() == ErrorKind::DiskFull => {}
            other => other?,
        }
        // Makes the files of the locks, so that a pull makes nothing but the image.
        drop((store.hold()?, store.hold_documents()?));
        Ok(Arc::new(store))
    }

    /// What one pull may make at the same time.
    pub(crate) fn share(&self) -> Share<'_> {
        self.permits.share()
    }

    /// The directory of a layer; `fs` in it is the layer itself.
    pub(crate) fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.algorithm().as_str()).join(diff_id.hex())
    }

    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_dir(diff_id).exists()
    }

    /// The directories of layers, each in its place.
    fn layer_roots(&self, diff_ids: &[Digest]) -> Vec<PathBuf> {
        diff_ids.iter().map(|diff_id| self.layer_dir(diff_id).join("fs")).collect()
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// A manifest or configuration that is here; `None` if not, or if it is damaged.
    pub(crate) fn blob(&self, digest: &Digest, limit: u64) -> Option<Vec<u8>> {
        let file = std::fs::File::open(self.blob_path(digest)).ok()?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).ok()?;
        digest.verify(&bytes, "stored blob").ok().map(|()| bytes)
    }

    /// Keeps a manifest or configuration that has been verified.
    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        if self.blob(digest, bytes.len() as u64).is_some() {
            return Ok(());
        }
        self.write(&self.blob_path(digest), bytes)
    }

    /// Writes a file so that it is whole or not there, whatever happens.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.stage(path, bytes)?.publish()
    }

    /// Writes a file under a temporary name: all of it is on the disk before it gets its own.
    fn stage(&self, path: &Path, bytes: &[u8]) -> Result<Staged> {
        let failed = |e| Error::host(format!("write {}", path.display()), e);
        let (mut file, temporary) = self.temporary().map_err(failed)?;
        let staged = Staged { temporary, path: path.to_owned(), published: false };
        file.write_all(bytes).and_then(|()| file.sync_all()).map(|()| staged).map_err(failed)
    }

    /// A new file in `tmp`. A process of this number may have left some, or live in another namespace.
    fn temporary(&self) -> std::io::Result<(std::fs::File, PathBuf)> {
        loop {
            let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join("tmp").join(format!("{}-{number}", std::process::id()));
            match std::fs::File::create_new(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => return other.map(|file| (file, path)),
            }
        }
    }
}

/// A file that is written and has not its name yet. Dropping it removes it.
struct Staged {
    temporary: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Staged {
    fn publish(mut self) -> Result<()> {
        std::fs::rename(&self.temporary, &self.path)
            .map_err(|e| Error::host(format!("write {}", self.path.display()), e))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            // What stays is swept by an opening after this process.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// The paths in a directory of the store.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::host(format!("read the directory {}", dir.display()), e);
    std::fs::read_dir(dir).map_err(failed)?.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

/// Has the names in a directory on the disk.
fn sync_dir(dir: &Path) -> Result<()> {
    std::fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::host(format!("sync {}", dir.display()), e))
}

fn make_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Error::host(format!("make the directory {}", path.display()), e))
}

/// Layers for an overlay mount, lowest first.
///
/// A layer that comes twice is given once, at its highest place: the upper one hides all that the
/// lower one did, and overlayfs refuses the same directory twice. Layers below one whose root is
/// opaque are left out: overlayfs does not look at that mark on a root.
fn stacked(all: &[PathBuf]) -> Vec<PathBuf> {
    let mut layers: Vec<PathBuf> = Vec::new();
    for layer in all.iter().rev() {
        if layers.contains(layer) {
            continue;
        }
        layers.push(layer.clone());
        if is_opaque(layer) {
            break;
        }
    }
    layers.reverse();
    layers
}

fn is_opaque(layer: &Path) -> bool {
    let mut value = [0u8; 1];
    matches!(rustix::fs::lgetxattr(layer, OPAQUE_XATTR, &mut value[..]), Ok(1)) && value == *b"y"
}

/// Removes temporary files, named `PID-NUMBER`, and probe directories of processes that are gone.
fn sweep_temporary(dir: &Path) {
    for path in entries(dir).unwrap_or_default().into_iter().filter(|path| is_left(path)) {
        // Someone else may have been faster, and a file too many does no harm.
        let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
    }
}

/// Whether who made a temporary file is gone.
fn is_left(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let pid = name.and_then(|n| n.split('-').find_map(|part| part.parse::<u32>().ok()));
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}
