//! Images: from a reference to unpacked, verified layers in the store.
//!
//! ```text
//! Source ─ resolve (registry | layout | archive) ─ manifest ─ config ─┐
//!                                      Image ─ store ─ unpack ─ download ┘
//! ```
//! Every byte is verified against the digest that names it, every size and count has a bound in
//! [`limits`], and no path in a layer leads out of the layer's directory.

mod archive;
mod bounded;
mod config;
mod credentials;
mod deadline;
pub(crate) mod digest;
mod download;
#[doc(hidden)]
pub mod fuzzing;
mod import;
mod layout;
pub mod limits;
mod manifest;
mod progress;
mod pull;
mod registry;
mod resolve;
mod room;
mod source;
mod stop;
mod store;
mod tarball;
mod unpack;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use config::ImageConfig;
pub use credentials::{
    CredentialCallback, CredentialEndpoint, CredentialRequest, CredentialSources, EndpointToken,
    TemporaryCredentials, parse_time, read_private,
};
pub use limits::{Attestations, Limits};
pub use registry::proxies::Proxies;
pub use registry::transport::ClientCertificate;
#[doc(hidden)]
pub use registry::transport::Times;
pub use source::{Reference, Source};
use store::Lease;
pub(crate) use store::probe::overlay as probe_overlay;
pub use store::{
    Damage, GcOptions, GcReport, MAX_OWNER_BYTES, Pin, Removal, RemovedImage, Store, StoredImage,
    VerifyOptions, VerifyReport,
};
pub(crate) use unpack::remove_all;

use crate::{Error, ErrorKind, Result};

/// The time for a pull in all, unless told: enough for 10 GiB at 3 MiB a second, and an end for a registry
/// that sends just enough not to count as stalled.
pub const DEFAULT_PULL_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How to pull.
#[derive(Clone)]
pub struct PullOptions {
    /// HTTP instead of HTTPS.
    pub plain_http: bool,
    /// More certificate authorities (PEM files).
    pub ca_files: Vec<PathBuf>,
    /// What this host shows to the registry of the reference.
    pub client_certificate: Option<ClientCertificate>,
    /// A directory of `HOST[:PORT]/hosts.toml` files with mirrors, in the convention of containerd.
    pub hosts_dir: Option<PathBuf>,
    /// Proxies; those of the environment if not given.
    pub proxies: Option<Proxies>,
    /// Longest time for the pull in all ([`DEFAULT_PULL_TIMEOUT`]); `None` for no limit but that on time
    /// without progress.
    pub timeout: Option<Duration>,
    #[doc(hidden)]
    pub times: Times,
    /// Where credentials come from.
    pub credentials: CredentialSources,
    /// Bounds on the image.
    pub limits: Limits,
    /// When the source is asked and when the store is enough.
    pub policy: PullPolicy,
    /// Told of each step; called often and from several threads, must be quick.
    pub observer: Option<Arc<dyn Fn(PullEvent) + Send + Sync>>,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            ca_files: Vec::new(),
            client_certificate: None,
            hosts_dir: None,
            proxies: None,
            timeout: Some(DEFAULT_PULL_TIMEOUT),
            times: Times::default(),
            credentials: CredentialSources::default(),
            limits: Limits::default(),
            policy: PullPolicy::default(),
            observer: None,
        }
    }
}

impl std::fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullOptions")
            .field("plain_http", &self.plain_http)
            .field("ca_files", &self.ca_files)
            .field("client_certificate", &self.client_certificate)
            .field("hosts_dir", &self.hosts_dir)
            .field("proxies", &self.proxies)
            .field("timeout", &self.timeout)
            .field("credentials", &self.credentials)
            .field("limits", &self.limits)
            .field("policy", &self.policy)
            .field("observer", &self.observer.is_some())
            .finish()
    }
}

/// When the source of an image is asked. A name with a digest never needs its source again once the
/// image is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Each time: a tag may lead elsewhere now. Only what is not in the store is fetched.
    #[default]
    Always,
    /// Only if the store has no complete image of this name.
    Missing,
    /// Never: an image that is not in the store is `ImageNotFound`.
    Never,
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

/// An image that is complete in the store. While a copy of it lives, or a container that was started
/// from it, no process removes it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The reference it was asked for by, in canonical form.
    pub name: String,
    /// Digest of its manifest (of its configuration for a `docker save` archive, which has none).
    pub digest: String,
    /// Its configuration.
    pub config: ImageConfig,
    /// What an overlay is made of, lowest first: the unpacked layers, each once, and perhaps one more on
    /// top for directories that they only imply.
    pub layers: Vec<PathBuf>,
    /// Bytes of its layers as they are fetched.
    pub packed_bytes: u64,
    /// How long it took.
    pub timings: PullTimings,
    /// What limits of a later pull are about.
    pub(crate) described: Described,
    /// Keeps it in the store.
    pub(crate) lease: Lease,
}

/// What the documents of an image say that its layers do not show.
#[derive(Clone, Debug, Default)]
pub(crate) struct Described {
    /// Layers of the manifest.
    pub(crate) layers: u64,
    /// Digest of an attestation that the image's index lists.
    pub(crate) attestation: Option<String>,
}

impl Image {
    /// An image of directories that the caller keeps itself, lowest first, in overlay form. No store
    /// knows it.
    #[must_use]
    pub fn unmanaged(name: impl Into<String>, config: ImageConfig, layers: Vec<PathBuf>) -> Self {
        Self {
            name: name.into(),
            digest: String::new(),
            config,
            layers,
            packed_bytes: 0,
            described: Described::default(),
            timings: PullTimings::default(),
            lease: Lease::default(),
        }
    }

    /// How many layers its manifest has.
    #[must_use]
    pub fn layer_count(&self) -> usize {
        usize::try_from(self.described.layers).unwrap_or(usize::MAX)
    }
}

/// Runs file operations on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::new(ErrorKind::Internal, "a thread of the image store died").because(e)),
    }
}

/// For programs to call first: has glibc's allocator give back large pieces of memory when they are freed.
/// Left to itself it keeps up to 32 MiB for each thread once the window of a zstd decoder has been freed, so
/// that pulls take some 120 MiB and not some 60. Settings of the process are the program's matter, so the
/// library does not do it by itself.
pub fn bound_allocator() {
    crate::sys::bound_allocator();
}

/// Has glibc's allocator give back to the kernel what has been freed, which it does by itself only at the end of
/// its heaps. Takes milliseconds where there is much.
pub fn give_back_memory() {
    crate::sys::give_back();
}
