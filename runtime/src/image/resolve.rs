//! From a source to the image's configuration and the list of its layers, all of it verified.

use std::path::Path;
use std::sync::Arc;

use super::PullOptions;
use super::archive::Archive;
use super::config::{self, Configuration};
use super::deadline::Deadline;
use super::digest::Digest;
use super::layout::Layout;
use super::limits::{self, Limits};
use super::manifest::{self, Document, Manifest, Packing};
use super::registry::Client;
use super::source::{Reference, Source};
use super::store::Store;
use super::tarball::LocalFile;
use super::unpack::Expected;
use crate::{Error, ErrorKind, Result};

/// Documents on the way to an image: an index, an index in it, the image.
const MAX_DOCUMENTS: usize = 3;

/// Where the bytes of a layer are.
#[derive(Clone)]
pub(crate) enum Location {
    /// In the registry, under the layer's digest.
    Registry(Arc<Client>),
    /// In a local file, all of it or a part.
    File(LocalFile),
}

/// A layer to be had.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) expected: Expected,
    pub(crate) location: Location,
}

/// An image that is known, and perhaps not here.
pub(crate) struct Resolved {
    /// Digest of the manifest (of the configuration for `docker save` archives, which have none).
    pub(crate) digest: Digest,
    pub(crate) config_digest: Digest,
    pub(crate) configuration: Configuration,
    /// Lowest first.
    pub(crate) plans: Vec<Plan>,
    /// The first attestation of an index on the way, which other limits may refuse.
    pub(crate) attestation: Option<Digest>,
}

impl Resolved {
    pub(crate) fn packed_bytes(&self) -> u64 {
        self.plans.iter().map(|plan| plan.expected.size).sum()
    }
}

/// A source of documents.
enum Origin {
    Registry(Arc<Client>),
    Layout(Arc<Layout>),
}

impl Origin {
    /// The document of a descriptor.
    async fn manifest(&self, digest: &Digest) -> Result<(Vec<u8>, Option<String>)> {
        match self {
            Self::Registry(client) => {
                client.manifest(&digest.to_string()).await.map(|(bytes, declared)| (bytes.into(), declared))
            }
            Self::Layout(layout) => Ok((layout.blob(digest, limits::MAX_MANIFEST_BYTES)?, None)),
        }
    }

    async fn config(&self, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        match self {
            Self::Registry(client) => client.blob(digest, size).await.map(Into::into),
            Self::Layout(layout) => layout.blob(digest, limits::MAX_CONFIG_BYTES),
        }
    }

    fn location(&self, digest: &Digest) -> Result<Location> {
        match self {
            Self::Registry(client) => Ok(Location::Registry(Arc::clone(client))),
            Self::Layout(layout) => layout.local(digest).map(Location::File),
        }
    }
}

/// A document that came, with what was known of it.
struct Found {
    bytes: Vec<u8>,
    declared: Option<String>,
    digest: Digest,
}

/// Resolves an image at its source. Its documents are in the store then.
pub(crate) async fn source(
    store: &Arc<Store>,
    source: &Source,
    options: &PullOptions,
    deadline: Deadline,
) -> Result<Resolved> {
    match source {
        Source::Registry(reference) => {
            let client = Arc::new(Client::new(reference, options, deadline).await?);
            registry(store, reference, client, &options.limits).await
        }
        Source::OciLayout(dir, tag) => {
            let layout = Layout::open(dir, &options.limits)?;
            in_layout(store, layout, tag.as_deref(), &options.limits).await
        }
        Source::OciArchive(file, tag) => {
            let (file, limits) = (file.clone(), options.limits);
            let layout = super::blocking(move || Layout::open_archive(&file, &limits)).await?;
            in_layout(store, layout, tag.as_deref(), &options.limits).await
        }
        Source::DockerArchive(file, tag) => archive(store, file, tag.clone(), options.limits).await,
    }
}

/// Resolves a reference at its registry; documents that are in the store are not fetched.
async fn registry(
    store: &Arc<Store>,
    reference: &Reference,
    client: Arc<Client>,
    limits: &Limits,
) -> Result<Resolved> {
    let origin = Origin::Registry(Arc::clone(&client));
    let found = match reference.digest() {
        Some(digest) => document(store, &origin, digest, None).await?,
        None => {
            let tag = reference.tag().unwrap_or("latest");
            let (bytes, declared) = client.manifest(tag).await?;
            let digest = Digest::sha256(&bytes);
            Found { bytes: bytes.into(), declared, digest }
        }
    };
    image(store, &origin, found, limits).await
}

/// Resolves an OCI image layout.
async fn in_layout(
    store: &Arc<Store>,
    layout: Layout,
    tag: Option<&str>,
    limits: &Limits,
) -> Result<Resolved> {
    let descriptor = layout.find(tag, limits)?.clone();
    let origin = Origin::Layout(Arc::new(layout));
    let found = document(store, &origin, &descriptor.digest, Some(&descriptor)).await?;
    image(store, &origin, found, limits).await
}

/// Resolves a `docker save` archive.
async fn archive(store: &Arc<Store>, file: &Path, tag: Option<String>, limits: Limits) -> Result<Resolved> {
    let path = file.to_owned();
    let archive = super::blocking(move || Archive::open(&path, tag.as_deref(), &limits)).await?;
    check_configuration(&archive.configuration, archive.layers.len())?;
    keep(store, &archive.config_digest, archive.config_bytes).await?;
    let plans = archive
        .layers
        .into_iter()
        .zip(&archive.configuration.diff_ids)
        .map(|((file, section), diff_id)| Plan {
            expected: Expected {
                digest: None,
                size: section.length,
                diff_id: diff_id.clone(),
                packing: Packing::ByMagic,
            },
            location: Location::File(file),
        })
        .collect();
    Ok(Resolved {
        digest: archive.config_digest.clone(),
        config_digest: archive.config_digest,
        configuration: archive.configuration,
        plans,
        attestation: None,
    })
}

/// A document from the store, else from the origin; verified.
async fn document(
    store: &Store,
    origin: &Origin,
    digest: &Digest,
    descriptor: Option<&manifest::Descriptor>,
) -> Result<Found> {
    let declared = descriptor.map(|d| d.media_type.clone()).filter(|t| !t.is_empty());
    let (bytes, said) = match store.blob(digest, limits::MAX_MANIFEST_BYTES) {
        Some(bytes) => (bytes, None),
        None => origin.manifest(digest).await?,
    };
    digest.verify(&bytes, "manifest")?;
    if let Some(descriptor) = descriptor {
        check_size("manifest", digest, descriptor.size, bytes.len())?;
    }
    Ok(Found { bytes, declared: declared.or(said), digest: digest.clone() })
}

fn check_size(what: &str, digest: &Digest, wanted: u64, found: usize) -> Result<()> {
    if wanted == found as u64 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::CorruptImage,
        format!("the {what} {digest} has {found} bytes, but its descriptor says {wanted}"),
    ))
}

/// Goes from a document to the image for this machine, and to its configuration.
async fn image(store: &Arc<Store>, origin: &Origin, mut found: Found, limits: &Limits) -> Result<Resolved> {
    let mut attestation = None;
    for _ in 0..MAX_DOCUMENTS {
        let parsed = manifest::parse(&found.bytes, found.declared.as_deref(), limits)?;
        keep(store, &found.digest, std::mem::take(&mut found.bytes)).await?;
        match parsed {
            Document::Image(manifest) => {
                let resolved = with_config(store, origin, found.digest, manifest).await?;
                return Ok(Resolved { attestation, ..resolved });
            }
            Document::Index(entries) => {
                attestation = attestation.or_else(|| manifest::attestation(&entries).cloned());
                let chosen = manifest::choose(&entries, limits)?;
                found = document(store, origin, &chosen.digest, Some(chosen)).await?;
            }
        }
    }
    Err(Error::new(
        ErrorKind::InvalidImage,
        format!("indexes are nested more than {} deep", MAX_DOCUMENTS - 1),
    ))
}

async fn with_config(
    store: &Arc<Store>,
    origin: &Origin,
    digest: Digest,
    manifest: Manifest,
) -> Result<Resolved> {
    let described = &manifest.config;
    let bytes = match store.blob(&described.digest, limits::MAX_CONFIG_BYTES) {
        Some(bytes) => bytes,
        None => origin.config(&described.digest, described.size).await?,
    };
    described.digest.verify(&bytes, "image configuration")?;
    check_size("image configuration", &described.digest, described.size, bytes.len())?;
    let configuration = config::parse(&bytes)?;
    check_configuration(&configuration, manifest.layers.len())?;
    keep(store, &described.digest, bytes).await?;
    let plans = manifest
        .layers
        .into_iter()
        .zip(&configuration.diff_ids)
        .map(|(layer, diff_id)| {
            Ok(Plan {
                location: origin.location(&layer.digest)?,
                expected: Expected {
                    digest: Some(layer.digest),
                    size: layer.size,
                    diff_id: diff_id.clone(),
                    packing: layer.packing,
                },
            })
        })
        .collect::<Result<_>>()?;
    Ok(Resolved { digest, config_digest: manifest.config.digest, configuration, plans, attestation: None })
}

fn check_configuration(configuration: &Configuration, layers: usize) -> Result<()> {
    let platform = &configuration.platform;
    if !platform.fits() {
        return Err(manifest::no_platform(&format!(
            "the image is for {platform}, not for {}/{}",
            manifest::OS,
            manifest::ARCHITECTURE
        )));
    }
    let diff_ids = configuration.diff_ids.len();
    if diff_ids == layers {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidImage,
        format!("the manifest has {layers} layers, but the configuration has {diff_ids} DiffIDs"),
    ))
}

async fn keep(store: &Arc<Store>, digest: &Digest, bytes: Vec<u8>) -> Result<()> {
    let (store, digest) = (Arc::clone(store), digest.clone());
    super::blocking(move || store.put_blob(&digest, &bytes)).await
}
