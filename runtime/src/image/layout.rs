//! `oci:DIR[:TAG]` and `oci-archive:FILE[:TAG]`: an OCI image layout (OCI image specification, *Image
//! Layout*), as a directory or in a tar archive.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::digest::Digest;
use super::limits::{self, Limits};
use super::manifest::{self, Descriptor, Document};
use super::tarball::{Links, LocalFile, Tarball, open};
use crate::{Error, ErrorKind, Result};

/// The annotation that names an image of a layout.
const TAG: &str = "org.opencontainers.image.ref.name";

const NO_LAYOUT: &str = "name a directory that holds an OCI image layout";

/// A layout that has been opened.
pub(crate) struct Layout {
    files: Files,
    index: Vec<Descriptor>,
}

/// Where the files of a layout are.
enum Files {
    Directory(PathBuf),
    Archive(Tarball),
}

impl Files {
    fn path(&self) -> &Path {
        match self {
            Self::Directory(dir) => dir,
            Self::Archive(tarball) => tarball.path(),
        }
    }

    /// What a source that leads here begins with.
    fn prefix(&self) -> &'static str {
        match self {
            Self::Directory(_) => "oci",
            Self::Archive(_) => "oci-archive",
        }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        match self {
            Self::Directory(dir) => read(&dir.join(name), limit),
            Self::Archive(tarball) => tarball.read(name, limit),
        }
    }
}

impl Layout {
    /// Reads `oci-layout` and `index.json`.
    ///
    /// # Errors
    /// `ImageNotFound`, `InvalidImage`, `LimitExceeded`.
    pub(crate) fn open(dir: &Path, limits: &Limits) -> Result<Self> {
        Self::new(Files::Directory(dir.to_owned()), limits)
            .map_err(|e| if e.advice().is_none() { e.advise(NO_LAYOUT) } else { e })
    }

    /// As [`Layout::open`], from an archive, which may have no links. Blocks.
    ///
    /// # Errors
    /// Also `CorruptImage`, `Host`.
    pub(crate) fn open_archive(file: &Path, limits: &Limits) -> Result<Self> {
        Self::new(Files::Archive(Tarball::open(file, Links::Refuse)?), limits)
    }

    fn new(files: Files, limits: &Limits) -> Result<Self> {
        check_version(&files.read("oci-layout", limits::MAX_MANIFEST_BYTES)?, files.path())?;
        let bytes = files.read("index.json", limits::MAX_MANIFEST_BYTES)?;
        match manifest::parse(&bytes, Some(manifest::OCI_INDEX), limits)? {
            Document::Index(index) => Ok(Self { files, index }),
            Document::Image(_) => Err(Error::new(
                ErrorKind::InvalidImage,
                format!("index.json in {} is not an index", files.path().display()),
            )),
        }
    }

    /// The descriptor under a tag; without one, the only image there is.
    pub(crate) fn find(&self, tag: Option<&str>, limits: &Limits) -> Result<&Descriptor> {
        let shown = self.files.path().display();
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
            .advise(format!(
                "write {}:{shown}:TAG; it has: {}",
                self.files.prefix(),
                self.tags()
            ))),
        }
    }

    fn tags(&self) -> String {
        let tags: Vec<&str> =
            self.index.iter().filter_map(|d| d.annotations.get(TAG)).map(String::as_str).take(32).collect();
        if tags.is_empty() { "no tags".into() } else { tags.join(", ") }
    }

    /// A blob, to be read when it is its turn.
    ///
    /// # Errors
    /// `InvalidImage` for an archive without it.
    pub(crate) fn local(&self, digest: &Digest) -> Result<LocalFile> {
        match &self.files {
            Files::Directory(dir) => Ok(LocalFile::Whole(dir.join(blob_name(digest)))),
            Files::Archive(tarball) => tarball.find(&blob_name(digest)),
        }
    }

    /// A small blob, not yet verified.
    pub(crate) fn blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        self.files.read(&blob_name(digest), limit)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
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

fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::host(format!("read {}", path.display()), e))?;
    limits::check(&format!("bytes of {}", path.display()), bytes.len() as u64, limit)?;
    Ok(bytes)
}
