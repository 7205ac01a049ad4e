//! `oci:DIR[:TAG]`: an OCI image layout directory (OCI image specification, *Image Layout*).

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::digest::Digest;
use super::limits::{self, Limits};
use super::manifest::{self, Descriptor, Document};
use crate::{Error, ErrorKind, Result};

/// The annotation that names an image of a layout.
const TAG: &str = "org.opencontainers.image.ref.name";

/// A layout that has been opened.
pub(crate) struct Layout {
    dir: PathBuf,
    index: Vec<Descriptor>,
}

impl Layout {
    /// Reads `oci-layout` and `index.json`.
    ///
    /// # Errors
    /// `ImageNotFound`, `InvalidImage`, `LimitExceeded`.
    pub(crate) fn open(dir: &Path, limits: &Limits) -> Result<Self> {
        let marker = read(&dir.join("oci-layout"), limits::MAX_MANIFEST_BYTES)
            .map_err(|e| e.advise("name a directory that holds an OCI image layout"))?;
        check_version(&marker, dir)?;
        let bytes = read(&dir.join("index.json"), limits::MAX_MANIFEST_BYTES)?;
        match manifest::parse(&bytes, Some(manifest::OCI_INDEX), limits)? {
            Document::Index(index) => Ok(Self { dir: dir.to_owned(), index }),
            Document::Image(_) => Err(Error::new(
                ErrorKind::InvalidImage,
                format!("index.json in {} is not an index", dir.display()),
            )),
        }
    }

    /// The descriptor under a tag; without one, the only image there is.
    pub(crate) fn find(&self, tag: Option<&str>, limits: &Limits) -> Result<&Descriptor> {
        let shown = self.dir.display();
        if let Some(tag) = tag {
            let named = |d: &&Descriptor| d.annotations.get(TAG).is_some_and(|name| name == tag);
            return self.index.iter().find(named).ok_or_else(|| {
                Error::new(
                    ErrorKind::ImageNotFound,
                    format!("the layout {shown} has no image with the tag {tag:?}"),
                )
                .advise(format!("it has: {}", self.tags()))
            });
        }
        match self.index.as_slice() {
            [] => Err(Error::new(ErrorKind::ImageNotFound, format!("the layout {shown} has no images"))),
            [only] => Ok(only),
            many if many.iter().all(|d| d.platform.is_some()) => manifest::choose(many, limits),
            _ => Err(Error::new(
                ErrorKind::InvalidReference,
                format!("the layout {shown} has {} images", self.index.len()),
            )
            .advise(format!("write oci:{shown}:TAG; it has: {}", self.tags()))),
        }
    }

    fn tags(&self) -> String {
        let tags: Vec<&str> =
            self.index.iter().filter_map(|d| d.annotations.get(TAG)).map(String::as_str).take(32).collect();
        if tags.is_empty() { "no tags".into() } else { tags.join(", ") }
    }

    /// Where a blob is.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// A small blob, not yet verified.
    pub(crate) fn blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        read(&self.blob_path(digest), limit)
    }
}

fn check_version(marker: &[u8], dir: &Path) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let invalid = |why: String| {
        Error::new(ErrorKind::InvalidImage, format!("the file oci-layout in {}: {why}", dir.display()))
    };
    let marker: Marker = serde_json::from_slice(marker).map_err(|e| invalid(e.to_string()))?;
    if marker.image_layout_version.starts_with("1.") {
        return Ok(());
    }
    Err(invalid(format!("version {:.40} is not 1.x", marker.image_layout_version)))
}

/// Opens a regular file of a local source; a FIFO neither blocks nor passes.
pub(crate) fn open(path: &Path) -> Result<File> {
    use rustix::fs::{Mode, OFlags};
    let shown = path.display();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(e @ (rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR)) => {
            return Err(Error::new(ErrorKind::ImageNotFound, format!("there is no file {shown}"))
                .because(std::io::Error::from(e)));
        }
        Err(e) => return Err(Error::host(format!("open {shown}"), e)),
    };
    let is_file = file.metadata().is_ok_and(|m| m.is_file());
    if is_file {
        Ok(file)
    } else {
        Err(Error::new(ErrorKind::ImageNotFound, format!("{shown} is not a regular file")))
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::host(format!("read {}", path.display()), e))?;
    limits::check(&format!("bytes of {}", path.display()), bytes.len() as u64, limit)?;
    Ok(bytes)
}
