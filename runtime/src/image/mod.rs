//! Images: from a reference to unpacked, verified layers in the store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::Result;

/// Where an image comes from: `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`, `oci:DIR[:TAG]` or
/// `docker-archive:FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A repository of a registry.
    Registry(String),
    /// An OCI image layout directory.
    OciLayout(PathBuf, Option<String>),
    /// A file as `docker save` writes it.
    DockerArchive(PathBuf),
}

impl std::str::FromStr for Source {
    type Err = crate::Error;
    fn from_str(_text: &str) -> Result<Self> {
        unimplemented!("skeleton")
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        unimplemented!("skeleton")
    }
}

/// Where credentials are looked for. The first that has any wins: file, given pair, Docker's
/// `config.json` with its helpers, anonymous.
#[derive(Clone, Default)]
pub struct CredentialSources {
    /// A JSON file: `username`, `password`, optional `expiry` (RFC 3339).
    pub file: Option<PathBuf>,
    /// User name and password (or token).
    pub pair: Option<(String, String)>,
    /// Whether Docker's configuration (`$DOCKER_CONFIG` or `~/.docker`) is read.
    pub docker_config: bool,
}

/// How to pull.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// HTTP instead of HTTPS.
    pub plain_http: bool,
    /// More certificate authorities (PEM files).
    pub ca_files: Vec<PathBuf>,
    /// Where credentials come from.
    pub credentials: CredentialSources,
    /// Told of each step; called often, must be quick.
    pub observer: Option<Arc<dyn Fn(PullEvent) + Send + Sync>>,
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
        /// Digest of the layer as fetched.
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
    /// The reference it was asked for by.
    pub name: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Its configuration.
    pub config: ImageConfig,
    /// Unpacked layers, lowest first, in overlay form.
    pub layers: Vec<PathBuf>,
    /// Bytes of its layers as they are fetched.
    pub packed_bytes: u64,
    /// How long it took.
    pub timings: PullTimings,
}

/// The content-addressed image store below the state directory.
#[derive(Debug)]
pub struct Store {
    _private: (),
}

impl Store {
    /// Opens (and makes) the store below `state_dir`; removes what crashed pulls left.
    ///
    /// # Errors
    /// `OverlayUnsupported`, `Host`.
    pub fn open(_state_dir: &Path) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { _private: () }))
    }

    /// Brings an image into the store, or finds it there.
    ///
    /// # Errors
    /// The kinds about references, registries and images.
    pub async fn pull(self: &Arc<Self>, _source: &Source, _options: &PullOptions) -> Result<Image> {
        unimplemented!("skeleton")
    }
}

/// stub until the image engine lands
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub user: String,
    pub working_dir: String,
    pub stop_signal: Option<String>,
}
