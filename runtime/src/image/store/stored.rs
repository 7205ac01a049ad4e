//! From a record to an image that can be started.

use super::{Record, Store};
use crate::Result;
use crate::image::config::{self, Configuration};
use crate::image::resolve::Resolved;
use crate::image::{Described, Image, PullTimings, limits};

impl Store {
    /// The image that a name led to when it was last pulled or imported, with a lease; `None` if there
    /// is none or not all of it is there. Blocks for some file operations.
    ///
    /// # Errors
    /// `DiskFull`, `Host`.
    pub(crate) fn stored(&self, name: &str) -> Result<Option<Image>> {
        self.record(name).map_or(Ok(None), |record| self.opened(record))
    }

    /// The image of this digest ([`Image::digest`]), under whichever name it came; `None` if it is not there
    /// or not all of it is. Needs no credentials and no network. Blocks for some file operations.
    ///
    /// # Errors
    /// `DiskFull`, `Host`.
    pub fn image(&self, digest: &str) -> Result<Option<Image>> {
        let records = self.image_records()?;
        let found = records.into_iter().find(|dated| dated.record.manifest == digest);
        found.map_or(Ok(None), |dated| self.opened(dated.record))
    }

    fn opened(&self, record: Record) -> Result<Option<Image>> {
        // First the lease: what is there then stays.
        let lease = self.lease(&record.parts())?;
        let Some(configuration) = self.complete(&record) else { return Ok(None) };
        // Its use is noted where that is possible: the image is there all the same.
        let _ = self.note_use(&record);
        Ok(Some(Image {
            name: record.name,
            digest: record.manifest,
            layers: self.image_layers(&configuration.diff_ids)?,
            config: configuration.config,
            packed_bytes: record.packed_bytes,
            described: Described { layers: record.diff_ids.len() as u64, attestation: record.attestation },
            timings: PullTimings::default(),
            lease,
        }))
    }

    fn complete(&self, record: &Record) -> Option<Configuration> {
        let config = self.blob(&record.config.parse().ok()?, limits::MAX_CONFIG_BYTES)?;
        let configuration = config::parse(&config).ok()?;
        let same = configuration.diff_ids.iter().map(ToString::to_string).eq(record.diff_ids.iter().cloned());
        (same && configuration.diff_ids.iter().all(|id| self.has_layer(id))).then_some(configuration)
    }
}

impl Record {
    /// That of an image which is resolved, under a name.
    pub(crate) fn of(name: String, resolved: &Resolved) -> Self {
        Self {
            name,
            manifest: resolved.digest.to_string(),
            config: resolved.config_digest.to_string(),
            diff_ids: resolved.configuration.diff_ids.iter().map(ToString::to_string).collect(),
            packed_bytes: resolved.packed_bytes(),
            attestation: resolved.attestation.as_ref().map(ToString::to_string),
        }
    }
}
