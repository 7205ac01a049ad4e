//! Images: from a reference to unpacked, verified layers in the store.
//!
//! ```text
//! Source ─ resolve (registry | layout | archive) ─ manifest ─ config ─┐
//!                                      Image ─ store ─ unpack ─ download ┘
//! ```
//! Every byte is verified against the digest that names it, every size and count has a bound in
//! [`limits`], and no path in a layer leads out of the layer's directory.

mod archive;
mod config;
mod credentials;
pub(crate) mod digest;
mod download;
mod layout;
pub mod limits;
mod manifest;
mod progress;
mod pull;
mod registry;
mod resolve;
mod source;
mod store;
mod unpack;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use config::ImageConfig;
pub use credentials::CredentialSources;
pub use limits::Limits;
pub use source::{Reference, Source};
pub use store::Store;
pub(crate) use store::probe::overlay as probe_overlay;

use crate::{Error, ErrorKind, Result};

/// How to pull.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// HTTP instead of HTTPS.
    pub plain_http: bool,
    /// More certificate authorities (PEM files).
    pub ca_files: Vec<PathBuf>,
    /// Where credentials come from.
    pub credentials: CredentialSources,
    /// Bounds on the image.
    pub limits: Limits,
    /// Told of each step; called often and from several threads, must be quick.
    pub observer: Option<Arc<dyn Fn(PullEvent) + Send + Sync>>,
}

impl std::fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullOptions")
            .field("plain_http", &self.plain_http)
            .field("ca_files", &self.ca_files)
            .field("credentials", &self.credentials)
            .field("limits", &self.limits)
            .field("observer", &self.observer.is_some())
            .finish()
    }
}

/// What happens during a pull.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PullEvent {
    /// The manifest is known.
    Resolved {
        /// Digest of the image's manifest.
        digest: String,
        /// Number of layers.
        layers: usize,
        /// Bytes of all layers as they are fetched.
        bytes: u64,
    },
    /// A layer is in the store already.
    LayerCached {
        /// Digest of the layer as fetched.
        digest: String,
        /// Bytes that need not be fetched.
        bytes: u64,
    },
    /// A layer's bytes begin to come.
    LayerStarted {
        /// Digest of the layer as fetched (its DiffID where the source names no other).
        digest: String,
        /// Bytes to come.
        bytes: u64,
    },
    /// More bytes of a layer have come.
    LayerProgress {
        /// Digest of the layer as fetched.
        digest: String,
        /// Bytes so far.
        done: u64,
    },
    /// A layer is fetched, verified and unpacked.
    LayerDone {
        /// Digest of the layer as fetched.
        digest: String,
    },
}

/// How long each step of a pull took.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct PullTimings {
    /// Until the manifest and configuration were known.
    pub resolve: Duration,
    /// Until the last byte of the last layer had come.
    pub pull: Duration,
    /// From then until everything was unpacked and committed.
    pub unpack: Duration,
}

/// An image that is complete in the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// The reference it was asked for by, in canonical form.
    pub name: String,
    /// Digest of its manifest (of its configuration for a `docker save` archive, which has none).
    pub digest: String,
    /// Its configuration.
    pub config: ImageConfig,
    /// Unpacked layers, lowest first, in overlay form. Fewer than the manifest has if one comes twice.
    pub layers: Vec<PathBuf>,
    /// Bytes of its layers as they are fetched.
    pub packed_bytes: u64,
    /// How long it took.
    pub timings: PullTimings,
}

/// Runs file operations on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::new(ErrorKind::Internal, "a thread of the image store died").because(e)),
    }
}
