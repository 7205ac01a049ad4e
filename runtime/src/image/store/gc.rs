//! Collecting what is not needed.
//!
//! ```text
//! alone: snapshot ─ choose images ─ mark what they and nobody leave ─ unlink records, rename layers
//! with others again: delete the trash, leftovers of crashes
//! ```
//! Records go before layers, so a crash in between leaves layers without a name, which the next
//! collection takes. What a lease or pin holds is not marked, nor is a layer in the making, which is
//! elsewhere and locked.

use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::catalog::{Snapshot, unique};
use super::lease::Guard;
use super::{Store, chain, ingest, sweep_temporary, usage};
use crate::image::digest::Algorithm;
use crate::{Error, Result};

/// What to collect besides what no name leads to.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct GcOptions {
    /// Images that were not used for this long.
    pub older_than: Option<Duration>,
    /// Images that were not used for the longest time, until the layers that are left have at most
    /// this many bytes (of their archives).
    pub max_bytes: Option<u64>,
    /// All images that are not in use and not pinned.
    pub all: bool,
    /// Only tell what would be removed.
    pub dry_run: bool,
}

impl GcOptions {
    /// With images that were not used for this long.
    #[must_use]
    pub fn with_older_than(mut self, age: Duration) -> Self {
        self.older_than = Some(age);
        self
    }

    /// With images that do not fit into so many bytes.
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// With all images that are not in use and not pinned.
    #[must_use]
    pub fn with_all(mut self) -> Self {
        self.all = true;
        self
    }

    /// Without removing anything.
    #[must_use]
    pub fn with_dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }
}

/// An image that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemovedImage {
    /// The names that led to it.
    pub names: Vec<String>,
    /// Its digest.
    pub digest: String,
}

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcReport {
    /// Images.
    pub images: Vec<RemovedImage>,
    /// DiffIDs of layers.
    pub layers: Vec<String>,
    /// Manifests and configurations.
    pub blobs: usize,
    /// Leases that nobody holds.
    pub leases: usize,
    /// Layers in the making, temporary files and trash that a crash left.
    pub leftovers: usize,
    /// Bytes of the disk that came free.
    pub freed_bytes: u64,
}

/// What is to go.
#[derive(Debug, Default)]
pub(super) struct Marked {
    pub(super) images: Vec<RemovedImage>,
    records: Vec<PathBuf>,
    pub(super) layers: Vec<(String, PathBuf)>,
    /// Fix-up layers.
    chains: Vec<PathBuf>,
    blobs: Vec<PathBuf>,
    leases: Vec<PathBuf>,
}

/// Whose layers and documents are looked at.
pub(super) enum Scope {
    /// Everybody's.
    All,
    /// Those of the images that go.
    Doomed,
}

impl Store {
    /// Removes what no image with a name has, and what `options` say. Blocks while it deletes; others
    /// wait only while it decides.
    ///
    /// Never removed: what a running instance, a pull or a pin holds.
    ///
    /// # Errors
    /// `Host`, `DiskFull` (locks are files). What was removed before stays removed.
    pub fn collect(&self, options: &GcOptions) -> Result<GcReport> {
        let alone = self.hold_alone()?;
        let snapshot = self.snapshot(&alone)?;
        let doomed = self.choose(&snapshot, options);
        // Held until the documents are gone.
        let documents = self.claim_documents()?;
        let marked = self.mark(&snapshot, &doomed, &Scope::All, documents.as_ref())?;
        let leftovers = self.leftovers(!options.all)?;
        let mut report = GcReport {
            images: marked.images.clone(),
            layers: marked.layers.iter().map(|(diff_id, _)| diff_id.clone()).collect(),
            blobs: marked.blobs.len(),
            leases: marked.leases.len(),
            leftovers: leftovers.len(),
            freed_bytes: marked.blobs.iter().filter_map(|blob| blob.metadata().ok()).map(|m| m.len()).sum(),
        };
        if !options.dry_run {
            self.detach(&marked)?;
        }
        drop((documents, alone));
        let left: u64 = leftovers.iter().map(|path| disk_bytes(path)).sum();
        report.freed_bytes += left;
        if options.dry_run {
            let dirs = marked.chains.iter().chain(marked.layers.iter().map(|(_, path)| path));
            report.freed_bytes += dirs.map(|path| disk_bytes(path)).sum::<u64>();
            return Ok(report);
        }
        let trash_before: u64 = leftovers
            .iter()
            .filter(|path| path.starts_with(self.root.join("trash")))
            .map(|p| disk_bytes(p))
            .sum();
        // Trash of others was counted among the leftovers.
        report.freed_bytes += self.empty_trash()?.saturating_sub(trash_before);
        ingest::sweep(&self.root.join("ingest"), !options.all)?;
        sweep_temporary(&self.root.join("tmp"));
        Ok(report)
    }

    /// The images that are to go.
    fn choose(&self, snapshot: &Snapshot, options: &GcOptions) -> HashSet<String> {
        let now = SystemTime::now();
        let age = |used: SystemTime| now.duration_since(used).unwrap_or_default();
        let mut free: Vec<_> =
            snapshot.images.iter().filter(|(digest, _)| snapshot.is_free(digest)).collect();
        free.sort_by_key(|(_, entry)| entry.used);
        let mut doomed: HashSet<String> = free
            .iter()
            .filter(|(_, entry)| {
                options.all
                    || entry.names.is_empty()
                    || options.older_than.is_some_and(|least| age(entry.used) >= least)
            })
            .map(|(digest, _)| (*digest).clone())
            .collect();
        if let Some(max) = options.max_bytes {
            for (digest, _) in free {
                if self.total_bytes(snapshot, &doomed) <= max {
                    break;
                }
                doomed.insert(digest.clone());
            }
        }
        doomed
    }

    /// Bytes of all layers that stay when some images go.
    fn total_bytes(&self, snapshot: &Snapshot, doomed: &HashSet<String>) -> u64 {
        let (layers, _) = kept(snapshot, doomed);
        layers.iter().filter_map(|diff_id| self.layer_bytes(diff_id)).sum()
    }

    /// What goes with some images. Documents are marked only by who may remove them.
    pub(super) fn mark(
        &self,
        snapshot: &Snapshot,
        doomed: &HashSet<String>,
        scope: &Scope,
        documents: Option<&Guard>,
    ) -> Result<Marked> {
        let (layers, blobs) = kept(snapshot, doomed);
        let mut marked = Marked::default();
        let mut own_layers: HashSet<&str> = HashSet::new();
        let mut own_blobs: HashSet<&str> = HashSet::new();
        for entry in doomed.iter().filter_map(|digest| snapshot.images.get(digest)) {
            let names = entry.names.iter().map(|(name, _)| name.clone()).collect();
            marked.images.push(RemovedImage { names, digest: entry.record.manifest.clone() });
            marked.records.extend(entry.names.iter().map(|(_, path)| path.clone()));
            marked.records.extend(entry.file.clone());
            own_layers.extend(unique(&entry.record.diff_ids));
            own_blobs.extend([entry.record.manifest.as_str(), &entry.record.config]);
            own_blobs
                .extend(entry.names.iter().filter_map(|(name, _)| name.rsplit_once('@')).map(|(_, d)| d));
        }
        marked.images.sort_by(|a, b| a.digest.cmp(&b.digest));
        let in_scope = |own: &HashSet<&str>, name: &str| match scope {
            Scope::All => true,
            Scope::Doomed => own.contains(name),
        };
        for (name, path) in self.contents("layers")? {
            if !layers.contains(name.as_str()) && in_scope(&own_layers, &name) {
                marked.layers.push((name, path));
            }
        }
        let (chains, own_chains) = (kept_chains(snapshot, doomed), doomed_chains(snapshot, doomed));
        for (name, path) in self.contents(chain::DIRECTORY)? {
            let in_scope = matches!(scope, Scope::All) || own_chains.contains(&name);
            if in_scope && !chains.contains(&name) {
                marked.chains.push(path);
            }
        }
        if documents.is_some() {
            for (name, path) in self.contents("blobs")? {
                if !blobs.contains(name.as_str()) && in_scope(&own_blobs, &name) {
                    marked.blobs.push(path);
                }
            }
        }
        if matches!(scope, Scope::All) {
            marked.leases.clone_from(&snapshot.stale);
        }
        Ok(marked)
    }

    /// Takes out of use what was marked.
    pub(super) fn detach(&self, marked: &Marked) -> Result<()> {
        for path in &marked.records {
            unlink(path)?;
        }
        for path in marked.chains.iter().chain(marked.layers.iter().map(|(_, path)| path)) {
            self.discard(path)?;
        }
        for image in &marked.images {
            crate::acceleration::remove(&self.root, &image.digest)?;
        }
        for path in marked.blobs.iter().chain(&marked.leases) {
            unlink(path)?;
        }
        Ok(())
    }

    /// `ALGORITHM:HEX` and path of what is in `blobs` or `layers`.
    pub(super) fn contents(&self, folder: &str) -> Result<Vec<(String, PathBuf)>> {
        let mut all = Vec::new();
        for algorithm in Algorithm::ALL {
            for path in super::entries(&self.root.join(folder).join(algorithm.as_str()))? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                all.push((format!("{}:{name}", algorithm.as_str()), path));
            }
        }
        all.sort();
        Ok(all)
    }

    /// What crashes left and nobody works on.
    fn leftovers(&self, keep_packed: bool) -> Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        for path in super::entries(&self.root.join("ingest"))? {
            if ingest::is_left(&path, keep_packed)? {
                all.push(path);
            }
        }
        for path in super::entries(&self.root.join("trash"))? {
            if ingest::lock(&path)?.is_some() {
                all.push(path);
            }
        }
        let temporary = super::entries(&self.root.join("tmp"))?;
        all.extend(temporary.into_iter().filter(|path| super::is_left(path)));
        Ok(all)
    }
}

/// DiffIDs and documents that must stay when some images go.
fn kept<'a>(snapshot: &'a Snapshot, doomed: &HashSet<String>) -> (HashSet<&'a str>, HashSet<&'a str>) {
    let (mut layers, mut blobs) = (HashSet::new(), HashSet::new());
    for (_, entry) in snapshot.images.iter().filter(|(digest, _)| !doomed.contains(*digest)) {
        layers.extend(entry.record.diff_ids.iter().map(String::as_str));
        blobs.extend([entry.record.manifest.as_str(), &entry.record.config]);
        // A name with a digest may be that of an index, which led to the image.
        blobs.extend(entry.names.iter().filter_map(|(name, _)| name.rsplit_once('@')).map(|(_, d)| d));
    }
    for parts in &snapshot.held {
        layers.extend(parts.diff_ids.iter().map(String::as_str));
        blobs.extend([parts.manifest.as_str(), &parts.config]);
    }
    (layers, blobs)
}

/// Fix-up layers that must stay when some images go.
fn kept_chains(snapshot: &Snapshot, doomed: &HashSet<String>) -> HashSet<String> {
    let images = snapshot.images.iter().filter(|(digest, _)| !doomed.contains(*digest));
    let stored = images.map(|(_, entry)| &entry.record.diff_ids);
    let held = snapshot.held.iter().map(|parts| &parts.diff_ids);
    stored.chain(held).map(|diff_ids| chain::chain_id(diff_ids).to_string()).collect()
}

/// Fix-up layers of images that go.
fn doomed_chains(snapshot: &Snapshot, doomed: &HashSet<String>) -> HashSet<String> {
    let images = doomed.iter().filter_map(|digest| snapshot.images.get(digest));
    images.map(|entry| chain::chain_id(&entry.record.diff_ids).to_string()).collect()
}

/// What a file or tree takes; nothing for one that is gone.
fn disk_bytes(path: &std::path::Path) -> u64 {
    let measured = std::fs::File::open(path).and_then(|file| {
        if file.metadata()?.is_dir() {
            usage::measure(file.as_fd()).map(|u| u.disk_bytes)
        } else {
            Ok(file.metadata()?.len())
        }
    });
    measured.unwrap_or(0)
}

pub(super) fn unlink(path: &std::path::Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::host(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}
