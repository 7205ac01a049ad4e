//! Which images are here, and what they share.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Deserialize;

use super::layer::LayerRecord;
use super::lease::{Guard, Parts};
use super::pin::Pin;
use super::record::Record;
use super::{Store, usage};
use crate::Result;
use crate::image::digest::Digest;
use crate::image::limits;

/// Longest time of creation that is told, bytes: RFC 3339 with nanoseconds and zone has 35.
const MAX_CREATED_BYTES: usize = 40;

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredImage {
    /// Names that lead to it, in canonical form, sorted; none after its last name was pulled again and
    /// is another image now.
    pub names: Vec<String>,
    /// Digest of its manifest (of its configuration for a `docker save` archive, which has none).
    pub digest: String,
    /// Bytes of its layers as they are fetched.
    pub packed_bytes: u64,
    /// Bytes of its layers' archives (of the files, where an older version of Skiff did not note that).
    pub unpacked_bytes: u64,
    /// Of these, the bytes of layers that other images of the store have too.
    pub shared_bytes: u64,
    /// Number of its layers, one that comes twice counted once.
    pub layers: usize,
    /// When it was made, RFC 3339, as its configuration says.
    pub created: Option<String>,
    /// When it was last pulled or started from.
    pub last_used: SystemTime,
    /// Whether an instance runs from it, or a pull brings or uses it now.
    pub in_use: bool,
    /// The owners of pins on it, sorted.
    pub pinned_by: Vec<String>,
    /// Whether all its layers are there.
    pub complete: bool,
}

/// An image and what leads to it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    /// Names, with their files.
    pub(super) names: Vec<(String, PathBuf)>,
    /// The file by digest; stores of older versions have none.
    pub(super) file: Option<PathBuf>,
    pub(super) used: SystemTime,
}

/// All that decides what may be removed, at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// By digest.
    pub(super) images: BTreeMap<String, Entry>,
    pub(super) held: Vec<Parts>,
    pub(super) stale: Vec<PathBuf>,
    pub(super) pins: Vec<Pin>,
}

impl Snapshot {
    pub(super) fn is_held(&self, digest: &str) -> bool {
        self.held.iter().any(|parts| parts.manifest == digest)
    }

    pub(super) fn owners(&self, digest: &str) -> Vec<String> {
        self.pins.iter().filter(|pin| pin.digest == digest).map(|pin| pin.owner.clone()).collect()
    }

    /// Whether nothing keeps it but its names.
    pub(super) fn is_free(&self, digest: &str) -> bool {
        !self.is_held(digest) && !self.pins.iter().any(|pin| pin.digest == digest)
    }
}

impl Store {
    /// All images, those last used first. Blocks for some file operations.
    ///
    /// # Errors
    /// `Host`, `DiskFull` (locks are files).
    pub fn images(&self) -> Result<Vec<StoredImage>> {
        let snapshot = {
            let alone = self.hold_alone()?;
            self.snapshot(&alone)?
        };
        let mut users: HashMap<&str, u64> = HashMap::new();
        for entry in snapshot.images.values() {
            for diff_id in unique(&entry.record.diff_ids) {
                *users.entry(diff_id).or_default() += 1;
            }
        }
        let mut images: Vec<StoredImage> = snapshot
            .images
            .iter()
            .map(|(digest, entry)| self.describe(&snapshot, digest, entry, &users))
            .collect();
        images.sort_by(|a, b| b.last_used.cmp(&a.last_used).then_with(|| a.digest.cmp(&b.digest)));
        Ok(images)
    }

    fn describe(
        &self,
        snapshot: &Snapshot,
        digest: &str,
        entry: &Entry,
        users: &HashMap<&str, u64>,
    ) -> StoredImage {
        let layers = unique(&entry.record.diff_ids);
        let sizes: Vec<(&str, Option<u64>)> =
            layers.iter().map(|diff_id| (*diff_id, self.layer_bytes(diff_id))).collect();
        let sum = |wanted: &dyn Fn(&str) -> bool| {
            sizes.iter().filter(|(id, _)| wanted(id)).filter_map(|(_, bytes)| *bytes).sum()
        };
        StoredImage {
            names: entry.names.iter().map(|(name, _)| name.clone()).collect(),
            digest: digest.to_owned(),
            packed_bytes: entry.record.packed_bytes,
            unpacked_bytes: sum(&|_| true),
            shared_bytes: sum(&|id| users.get(id).is_some_and(|users| *users > 1)),
            layers: layers.len(),
            created: self.created(&entry.record.config),
            last_used: entry.used,
            in_use: snapshot.is_held(digest),
            pinned_by: snapshot.owners(digest),
            complete: sizes.iter().all(|(_, bytes)| bytes.is_some()),
        }
    }

    /// Records, leases and pins at one moment.
    pub(super) fn snapshot(&self, alone: &Guard) -> Result<Snapshot> {
        let mut images: BTreeMap<String, Entry> = BTreeMap::new();
        for dated in self.image_records()? {
            let entry =
                Entry { used: dated.used, file: Some(dated.path), names: Vec::new(), record: dated.record };
            images.insert(entry.record.manifest.clone(), entry);
        }
        for dated in self.named_records()? {
            let name = (dated.record.name.clone(), dated.path);
            let entry = images.entry(dated.record.manifest.clone()).or_insert_with(|| Entry {
                used: dated.used,
                file: None,
                names: Vec::new(),
                record: dated.record,
            });
            entry.names.push(name);
        }
        for entry in images.values_mut() {
            entry.names.sort();
        }
        let leases = self.leases(alone)?;
        Ok(Snapshot { images, held: leases.held, stale: leases.stale, pins: self.pins()? })
    }

    /// Bytes of a layer's archive; `None` if it is not there.
    pub(super) fn layer_bytes(&self, diff_id: &str) -> Option<u64> {
        let diff_id: Digest = diff_id.parse().ok()?;
        let dir = self.layer_dir(&diff_id);
        if let Some(record) = LayerRecord::read(&dir, &diff_id) {
            return Some(record.archive_bytes);
        }
        let fs = std::fs::File::open(dir.join("fs")).ok()?;
        usage::measure(std::os::fd::AsFd::as_fd(&fs)).map(|usage| usage.content_bytes).ok()
    }

    /// When an image was made, if its configuration says so in a form that can be shown.
    fn created(&self, config: &str) -> Option<String> {
        #[derive(Deserialize)]
        struct Raw {
            created: Option<String>,
        }
        let bytes = self.blob(&config.parse().ok()?, limits::MAX_CONFIG_BYTES)?;
        let created = serde_json::from_slice::<Raw>(&bytes).ok()?.created?;
        let usual = |b: u8| b.is_ascii_digit() || b"-:.TZtz+".contains(&b);
        (created.len() <= MAX_CREATED_BYTES && created.bytes().all(usual) && !created.is_empty())
            .then_some(created)
    }
}

/// Each once, in order.
pub(super) fn unique(diff_ids: &[String]) -> Vec<&str> {
    let mut all: Vec<&str> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        if !all.contains(&diff_id.as_str()) {
            all.push(diff_id);
        }
    }
    all
}
