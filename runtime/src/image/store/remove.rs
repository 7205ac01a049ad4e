//! Removing one image, or one of its names.

use std::collections::HashSet;

use super::Store;
use super::catalog::Snapshot;
use super::gc::{Scope, unlink};
use crate::image::digest::Digest;
use crate::image::source::Source;
use crate::{Error, ErrorKind, Result};

/// Fewest digits that name an image.
const MIN_PREFIX: usize = 6;
/// Images that an error lists.
const SHOWN_MATCHES: usize = 8;

/// What the removal of an image did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removal {
    /// Digest of the image.
    pub digest: String,
    /// Names that led to it and are gone.
    pub names: Vec<String>,
    /// Whether the image itself is gone; else another name leads to it.
    pub removed: bool,
    /// DiffIDs of layers that are gone, for no other image has them.
    pub layers: Vec<String>,
    /// Bytes of the disk that came free.
    pub freed_bytes: u64,
}

/// What a text names.
struct Target {
    digest: String,
    /// One name of it; `None` for the image with all its names.
    name: Option<String>,
}

impl Store {
    /// Removes an image: by a name, of which only that name goes if the image has others; by name and
    /// digest; or by its digest or at least 6 of its first digits, with all its names. Layers that no
    /// other image has go too. Blocks while it deletes.
    ///
    /// # Errors
    /// `ImageNotFound`; `InvalidReference` for digits that several images begin with; `ImageInUse`
    /// with the kind of use; `Host`.
    pub fn remove(&self, image: &str) -> Result<Removal> {
        let alone = self.hold_alone()?;
        let snapshot = self.snapshot(&alone)?;
        let target = find(&snapshot, image)?;
        let Some(entry) = snapshot.images.get(&target.digest) else { return Err(missing(image)) };
        if let Some(name) = target.name.filter(|_| entry.names.len() > 1) {
            for (_, path) in entry.names.iter().filter(|(known, _)| *known == name) {
                unlink(path)?;
            }
            let (digest, names) = (target.digest, vec![name]);
            return Ok(Removal { digest, names, removed: false, layers: Vec::new(), freed_bytes: 0 });
        }
        refuse_used(&snapshot, &target.digest, image)?;
        let doomed = HashSet::from([target.digest.clone()]);
        let documents = self.claim_documents()?;
        let marked = self.mark(&snapshot, &doomed, &Scope::Doomed, documents.as_ref())?;
        self.detach(&marked)?;
        drop((documents, alone));
        let freed_bytes = self.empty_trash()?;
        Ok(Removal {
            digest: target.digest,
            names: entry.names.iter().map(|(name, _)| name.clone()).collect(),
            removed: true,
            layers: marked.layers.into_iter().map(|(diff_id, _)| diff_id).collect(),
            freed_bytes,
        })
    }
}

fn refuse_used(snapshot: &Snapshot, digest: &str, image: &str) -> Result<()> {
    let refused = |how: String| Error::new(ErrorKind::ImageInUse, format!("the image {image:.300} {how}"));
    if snapshot.is_held(digest) {
        return Err(refused("is in use: an instance runs from it, or a pull uses it".into())
            .advise("stop its instances, then try again"));
    }
    let owners = snapshot.owners(digest);
    if owners.is_empty() {
        return Ok(());
    }
    Err(refused(format!("is pinned by {}", owners.join(", "))).advise("remove what needs it first"))
}

fn missing(image: &str) -> Error {
    Error::new(ErrorKind::ImageNotFound, format!("the store has no image {image:.300}"))
        .advise("`skiff images` lists what there is")
}

/// Names win over digits.
fn find(snapshot: &Snapshot, image: &str) -> Result<Target> {
    if let Some(target) = by_name(snapshot, image) {
        return Ok(target);
    }
    let prefix = image.strip_prefix("sha256:").unwrap_or(image);
    let hex = prefix.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !hex || prefix.len() < MIN_PREFIX {
        return Err(missing(image));
    }
    let digits = |digest: &str| digest.split_once(':').is_some_and(|(_, hex)| hex.starts_with(prefix));
    let found: Vec<&String> = snapshot.images.keys().filter(|digest| digits(digest)).collect();
    match found.as_slice() {
        [] => Err(missing(image)),
        [digest] => Ok(Target { digest: (*digest).clone(), name: None }),
        many => {
            let shown: Vec<&str> = many.iter().take(SHOWN_MATCHES).map(|d| d.as_str()).collect();
            let message = format!("{} images begin with {image}: {}", many.len(), shown.join(", "));
            Err(Error::new(ErrorKind::InvalidReference, message).advise("give more digits"))
        }
    }
}

fn by_name(snapshot: &Snapshot, image: &str) -> Option<Target> {
    let canonical = image.parse::<Source>().map_or_else(|_| image.to_owned(), |source| source.to_string());
    let named = |wanted: &str, digest: Option<&Digest>| {
        snapshot.images.iter().find_map(|(found, entry)| {
            let fits = digest.is_none_or(|digest| digest.to_string() == *found);
            let known = fits && entry.names.iter().any(|(name, _)| name == wanted);
            known.then(|| Target { digest: found.clone(), name: Some(wanted.to_owned()) })
        })
    };
    if let Some(target) = named(&canonical, None) {
        return Some(target);
    }
    // NAME@DIGEST where the image is kept under NAME.
    let (name, digest) = image.rsplit_once('@')?;
    let digest: Digest = digest.parse().ok()?;
    let canonical = name.parse::<Source>().ok()?.to_string();
    named(&canonical, Some(&digest))
}
