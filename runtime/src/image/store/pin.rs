//! Pins: images that must stay though nothing runs from them, such as those of deployed functions. A
//! pin outlives its owner's process and the host's next start.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Store;
use super::record::file_name;
use crate::image::Image;
use crate::{Error, ErrorKind, Result};

/// Longest name of an owner, bytes.
pub const MAX_OWNER_BYTES: usize = 256;
/// Bytes of a pin.
const MAX_PIN_BYTES: u64 = 4 << 10;

/// An image that is kept for someone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Pin {
    /// For whom: a name that the caller chose.
    pub owner: String,
    /// The image's digest, as in [`Image::digest`].
    pub digest: String,
}

impl Store {
    /// Keeps an image until [`Store::unpin`], also over restarts of all processes and the host. An
    /// owner has one pin: another image takes the place of the first. Blocks for some file
    /// operations.
    ///
    /// # Errors
    /// `InvalidArgument` for an owner's name that is empty, longer than [`MAX_OWNER_BYTES`] or has
    /// control characters, and for an image of no store; `DiskFull`, `Host`.
    pub fn pin(&self, owner: &str, image: &Image) -> Result<()> {
        check_owner(owner)?;
        if image.lease.descriptor().is_none() {
            let message = format!("the image {} is in no store, so it cannot be pinned", image.name);
            return Err(Error::new(ErrorKind::InvalidArgument, message).advise("pull it first"));
        }
        let pin = Pin { owner: owner.to_owned(), digest: image.digest.clone() };
        let bytes = serde_json::to_vec(&pin)
            .map_err(|e| Error::new(ErrorKind::Internal, format!("write the pin of {owner}")).because(e))?;
        let path = self.pin_path(owner);
        self.stage(&path, &bytes)?.publish()?;
        super::sync_dir(&self.root.join("pins"))
    }

    /// Ends an owner's pin; `false` if there was none. Blocks for some file operations.
    ///
    /// # Errors
    /// `InvalidArgument`, `Host`.
    pub fn unpin(&self, owner: &str) -> Result<bool> {
        check_owner(owner)?;
        let path = self.pin_path(owner);
        match std::fs::remove_file(&path) {
            Ok(()) => super::sync_dir(&self.root.join("pins")).map(|()| true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::host(format!("remove {}", path.display()), e)),
        }
    }

    /// All pins, by owner. Blocks for some file operations.
    ///
    /// # Errors
    /// `Host` when one cannot be read: it is not known then what must stay.
    pub fn pins(&self) -> Result<Vec<Pin>> {
        let paths = super::entries(&self.root.join("pins"))?;
        let mut pins = paths.iter().filter_map(|path| read(path).transpose()).collect::<Result<Vec<_>>>()?;
        pins.sort_by(|a, b| a.owner.cmp(&b.owner));
        Ok(pins)
    }

    fn pin_path(&self, owner: &str) -> PathBuf {
        self.root.join("pins").join(file_name(owner))
    }
}

fn check_owner(owner: &str) -> Result<()> {
    let fits = !owner.is_empty() && owner.len() <= MAX_OWNER_BYTES && !owner.contains(char::is_control);
    if fits {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidArgument, format!("{owner:.64?} is no name for the owner of a pin"))
        .advise(format!("use 1 to {MAX_OWNER_BYTES} bytes without control characters")))
}

/// `None` for one that was removed meanwhile.
fn read(path: &Path) -> Result<Option<Pin>> {
    let failed = |e: std::io::Error| Error::host(format!("read the pin {}", path.display()), e);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_PIN_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| failed(e.into()).advise("remove it if no function needs it"))
}
