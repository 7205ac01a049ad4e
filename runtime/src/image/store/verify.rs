//! Hashing again all that is here.
//!
//! Each image is leased while its parts are looked at, one at a time: a lease is an open file. Damaged
//! parts are removed after that, and only what nobody holds.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::catalog::{Snapshot, unique};
use super::chain::chain_id;
use super::lease::Parts;
use super::{Store, chain, gc, remove};
use crate::image::digest::{Digest, Hasher};
use crate::image::unpack::{RECIPE, Rehash, verify_layer};
use crate::image::{config, limits};
use crate::{Error, Result};

/// Told of each part that has been looked at: its name, how many are done, how many there are.
type Observer = Arc<dyn Fn(&str, usize, usize) + Send + Sync>;

/// What to verify.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// Names or digests of images, as for [`Store::remove`]; all that is here if there are none.
    pub images: Vec<String>,
    /// Remove what is damaged, unless it is in use, so that the next pull fetches it again.
    pub repair: bool,
    /// Told of each part that has been looked at; must be quick.
    pub observer: Option<Observer>,
}

impl std::fmt::Debug for VerifyOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("VerifyOptions");
        shown.field("images", &self.images).field("repair", &self.repair);
        shown.field("observer", &self.observer.is_some()).finish()
    }
}

/// Something that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// `layer sha256:…`, `document sha256:…` or `fix-up layer sha256:…`.
    pub part: String,
    /// What is wrong.
    pub what: String,
    /// Whether it has been removed.
    pub removed: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Images that were looked at.
    pub images: usize,
    /// Layers that were looked at.
    pub layers: usize,
    /// Manifests and configurations that were looked at.
    pub documents: usize,
    /// What is wrong.
    pub damages: Vec<Damage>,
    /// Names (or digests) of images that lack parts, also those that lost one to the repair; they are
    /// pulled again when they are asked for.
    pub incomplete: Vec<String>,
    /// DiffIDs of layers that cannot be verified, since an older version of Skiff unpacked them. Pull their
    /// images again.
    pub unverifiable: Vec<String>,
}

impl VerifyReport {
    /// Whether all is as it should be: no image lacks a part, and what was damaged has been removed.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.incomplete.is_empty() && self.damages.iter().all(|damage| damage.removed)
    }
}

/// The images, and those parts of them that have not been looked at.
struct Work {
    /// By digest, with their names.
    images: BTreeMap<String, (String, Parts)>,
    layers: BTreeSet<String>,
    documents: BTreeSet<String>,
}

/// Looks at parts, and notes what it finds.
struct Look<'a> {
    store: &'a Store,
    observer: Option<&'a Observer>,
    report: VerifyReport,
    all: usize,
}

impl Look<'_> {
    fn document(&mut self, digest: &str) -> Result<()> {
        let part = format!("document {digest}");
        if let Some(what) = self.store.check_document(digest)? {
            self.report.damages.push(Damage { part: part.clone(), what, removed: false });
        }
        self.report.documents += 1;
        self.tell(&part);
        Ok(())
    }

    fn layer(&mut self, diff_id: &str) -> Result<()> {
        let part = format!("layer {diff_id}");
        match self.store.check_layer(diff_id)? {
            Found::Sound => {}
            Found::Unverifiable => self.report.unverifiable.push(diff_id.to_owned()),
            Found::Damaged(what) => {
                self.report.damages.push(Damage { part: part.clone(), what, removed: false });
            }
        }
        self.report.layers += 1;
        self.tell(&part);
        Ok(())
    }

    /// Of an image whose layers have been looked at. Made from damaged ones it would be as they are.
    fn fix_up(&mut self, diff_ids: &[String]) -> Result<()> {
        let is_damaged = |id: &String| {
            let part = format!("layer {id}");
            self.report.damages.iter().any(|damage| damage.part == part)
        };
        let parsed: Option<Vec<Digest>> = diff_ids.iter().map(|id| id.parse().ok()).collect();
        let Some(parsed) = parsed
            .filter(|all| !diff_ids.iter().any(is_damaged) && all.iter().all(|id| self.store.has_layer(id)))
        else {
            return Ok(());
        };
        let what = match self.store.check_chain(&parsed) {
            Err(e) if is_damage(&e) => Some(e.chain()),
            checked => checked?,
        };
        let part = format!("fix-up layer {}", chain_id(diff_ids));
        if let Some(what) = what.filter(|_| self.report.damages.iter().all(|damage| damage.part != part)) {
            self.report.damages.push(Damage { part, what, removed: false });
        }
        Ok(())
    }

    fn tell(&self, part: &str) {
        if let Some(observer) = self.observer {
            observer(part, self.report.documents + self.report.layers, self.all);
        }
    }
}

impl Store {
    /// Hashes again manifests, configurations and layers, and compares the files of layers with what
    /// their archives said. Reads all of them; blocks.
    ///
    /// # Errors
    /// `ImageNotFound`, `InvalidReference`, `DiskFull` (leases are files), `Host`. Damage is no error.
    pub fn verify(&self, options: &VerifyOptions) -> Result<VerifyReport> {
        let Work { images, mut layers, mut documents } = self.work(&options.images)?;
        let mut look = Look {
            store: self,
            observer: options.observer.as_ref(),
            report: VerifyReport { images: images.len(), ..VerifyReport::default() },
            all: layers.len() + documents.len(),
        };
        for (_, parts) in images.values() {
            let _lease = self.lease(parts)?;
            for digest in [&parts.manifest, &parts.config] {
                if documents.remove(digest) {
                    look.document(digest)?;
                }
            }
            for diff_id in &parts.diff_ids {
                if layers.remove(diff_id) {
                    look.layer(diff_id)?;
                }
            }
            look.fix_up(&parts.diff_ids)?;
        }
        // Those of no image.
        documents.iter().try_for_each(|digest| look.document(digest))?;
        layers.iter().try_for_each(|diff_id| look.layer(diff_id))?;
        let mut report = look.report;
        if options.repair && !report.damages.is_empty() {
            self.repair(&mut report.damages)?;
        }
        report.incomplete = self.incomplete(&images)?;
        Ok(report)
    }

    /// Names of those images that are still here and lack parts.
    fn incomplete(&self, images: &BTreeMap<String, (String, Parts)>) -> Result<Vec<String>> {
        let alone = self.hold_alone()?;
        let here = self.snapshot(&alone)?.images;
        let lacking = images
            .iter()
            .filter(|(digest, (_, parts))| here.contains_key(digest.as_str()) && !self.has_all(parts));
        Ok(lacking.map(|(_, (name, _))| name.clone()).collect())
    }

    /// Lists the images and their parts, or everything.
    fn work(&self, images: &[String]) -> Result<Work> {
        let snapshot = {
            let alone = self.hold_alone()?;
            self.snapshot(&alone)?
        };
        let mut chosen = BTreeSet::new();
        for image in images {
            chosen.insert(remove::find(&snapshot, image)?.digest);
        }
        let (mut layers, mut documents) = (BTreeSet::new(), BTreeSet::new());
        let mut work = Work { images: BTreeMap::new(), layers: BTreeSet::new(), documents: BTreeSet::new() };
        for (digest, entry) in &snapshot.images {
            if !images.is_empty() && !chosen.contains(digest) {
                continue;
            }
            let parts = entry.record.parts();
            layers.extend(unique(&parts.diff_ids).into_iter().map(str::to_owned));
            documents.extend([parts.manifest.clone(), parts.config.clone()]);
            let name = entry.names.first().map_or_else(|| digest.clone(), |(name, _)| name.clone());
            work.images.insert(digest.clone(), (name, parts));
        }
        let present = |folder: &str| self.contents(folder).map(|all| all.into_iter().map(|(name, _)| name));
        let (here, blobs): (BTreeSet<_>, BTreeSet<_>) =
            (present("layers")?.collect(), present("blobs")?.collect());
        let all = images.is_empty();
        work.layers = here.into_iter().filter(|name| all || layers.contains(name)).collect();
        work.documents = blobs.into_iter().filter(|name| all || documents.contains(name)).collect();
        Ok(work)
    }

    /// What is wrong with a document, which may have been removed meanwhile.
    fn check_document(&self, name: &str) -> Result<Option<String>> {
        let Ok(digest) = name.parse::<Digest>() else {
            return Ok(Some("its name is no digest".into()));
        };
        let path = self.blob_path(&digest);
        let mut file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => {
                let error = Error::host(format!("open {}", path.display()), e);
                return if is_damage(&error) { Ok(Some(error.chain())) } else { Err(error) };
            }
        };
        let mut hasher = Hasher::new(digest.algorithm());
        let mut buffer = vec![0; 64 << 10];
        loop {
            match std::io::Read::read(&mut file, &mut buffer) {
                Ok(0) => break,
                Ok(read) => hasher.update(&buffer[..read]),
                Err(e) => return Ok(Some(format!("it cannot be read: {e}"))),
            }
        }
        let found = hasher.finish();
        Ok((found != digest).then(|| format!("its bytes have the digest {found}")))
    }

    fn check_layer(&self, name: &str) -> Result<Found> {
        let Ok(diff_id) = name.parse::<Digest>() else {
            return Ok(Found::Damaged("its name is no digest".into()));
        };
        let dir = self.layer_dir(&diff_id);
        let found = check_files(&dir, &diff_id);
        // A layer of no image may have been collected meanwhile.
        if matches!(dir.try_exists(), Ok(false)) { Ok(Found::Sound) } else { found }
    }

    /// Whether the configuration says what the record says, and all layers are there.
    fn has_all(&self, parts: &Parts) -> bool {
        let layers = parts.diff_ids.iter().all(|id| id.parse().is_ok_and(|id: Digest| self.has_layer(&id)));
        let config = || {
            let bytes = self.blob(&parts.config.parse().ok()?, limits::MAX_CONFIG_BYTES)?;
            config::parse(&bytes).ok()
        };
        layers
            && config().is_some_and(|config| {
                config.diff_ids.iter().map(ToString::to_string).eq(parts.diff_ids.iter().cloned())
            })
    }

    /// Removes damaged parts that nobody holds.
    fn repair(&self, damages: &mut [Damage]) -> Result<()> {
        let alone = self.hold_alone()?;
        let snapshot = self.snapshot(&alone)?;
        let of = |parts: &Parts| {
            let fix_up = chain_id(&parts.diff_ids).to_string();
            let own = [parts.manifest.clone(), parts.config.clone(), fix_up];
            parts.diff_ids.iter().cloned().chain(own).collect::<Vec<_>>()
        };
        let held: HashSet<String> = snapshot.held.iter().flat_map(of).collect();
        let folders = [("layers", "layer "), ("blobs", "document "), (chain::DIRECTORY, "fix-up layer ")];
        for (folder, prefix) in folders {
            for (name, path) in self.contents(folder)? {
                let part = format!("{prefix}{name}");
                let Some(damage) = damages.iter_mut().find(|damage| damage.part == part) else { continue };
                if held.contains(name.as_str()) {
                    continue;
                }
                if folder != "blobs" {
                    self.discard(&path)?;
                } else {
                    gc::unlink(&path)?;
                }
                damage.removed = true;
            }
        }
        self.forget_chains(&snapshot, damages)?;
        drop(alone);
        self.empty_trash().map(drop)
    }

    /// Takes away what was made from layers that have been removed: files of it are theirs.
    fn forget_chains(&self, snapshot: &Snapshot, damages: &[Damage]) -> Result<()> {
        let removed: HashSet<&str> = damages
            .iter()
            .filter(|damage| damage.removed)
            .filter_map(|damage| damage.part.strip_prefix("layer "))
            .collect();
        let has_one = |parts: &Parts| parts.diff_ids.iter().any(|id| removed.contains(id.as_str()));
        let lacking = snapshot.images.values().map(|entry| entry.record.parts()).filter(has_one);
        let names: HashSet<String> = lacking.map(|parts| chain_id(&parts.diff_ids).to_string()).collect();
        for (name, path) in self.contents(chain::DIRECTORY)? {
            if names.contains(&name) {
                self.discard(&path)?;
            }
        }
        Ok(())
    }
}

/// What a look at a layer told.
enum Found {
    Sound,
    Unverifiable,
    Damaged(String),
}

fn check_files(dir: &Path, diff_id: &Digest) -> Result<Found> {
    if !dir.join("fs").is_dir() {
        return Ok(Found::Damaged("it has no directory fs".into()));
    }
    if matches!(dir.join(RECIPE).try_exists(), Ok(false)) {
        return Ok(Found::Unverifiable);
    }
    let report = match verify_layer(dir, diff_id) {
        Ok(report) => report,
        Err(e) if is_damage(&e) => return Ok(Found::Damaged(e.chain())),
        Err(e) => return Err(e),
    };
    Ok(match (report.difference, report.rehash) {
        (Some(difference), _) => {
            Found::Damaged(format!("{}: {}", difference.path.display(), difference.what))
        }
        (None, Rehash::Differs { found }) => Found::Damaged(format!("its archive has the digest {found}")),
        (None, Rehash::Impossible) => Found::Unverifiable,
        (None, Rehash::Equal | Rehash::Noted) => Found::Sound,
    })
}

/// Whether an error tells of the part and not of the host: what is written there is wrong, or the
/// disk or filesystem has lost it.
fn is_damage(error: &Error) -> bool {
    const LOST: [Errno; 3] = [Errno::IO, Errno::UCLEAN, Errno::BADMSG];
    if error.kind() == crate::ErrorKind::CorruptImage {
        return true;
    }
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        let io = cause.downcast_ref::<std::io::Error>();
        let errno = io.and_then(Errno::from_io_error).or_else(|| cause.downcast_ref().copied());
        if errno.is_some_and(|errno| LOST.contains(&errno)) {
            return true;
        }
        // What an `io::Error` wraps is not its source.
        next = match io.and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_has_lost_is_damage() {
        for errno in [Errno::IO, Errno::UCLEAN, Errno::BADMSG] {
            let error = Error::host("read the file x", errno);
            assert!(is_damage(&error) && error.chain().contains("read the file x: "), "{error:?}");
            let wrapped = Error::host("hash the archive", std::io::Error::other(error));
            assert!(is_damage(&wrapped), "{wrapped:?}");
            assert!(is_damage(&Error::new(crate::ErrorKind::InvalidImage, "an entry").because(errno)));
        }
        for errno in [Errno::MFILE, Errno::NOMEM, Errno::ACCESS, Errno::NOSPC] {
            assert!(!is_damage(&Error::host("read the file x", errno)), "{errno:?}");
        }
        assert!(!is_damage(&Error::new(crate::ErrorKind::Internal, "a defect")));
    }
}
