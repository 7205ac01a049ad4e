//! Manifests: which of the four documents it is, whether it keeps the rules, and which image of an
//! index is for this machine.
//!
//! Read: OCI image index and manifest, Docker manifest list and schema 2. A document's type is its
//! `mediaType`, else what the registry called it, else its shape; a document with both `layers` and
//! `manifests` is refused, since two readers could see two images in it (OCI image specification,
//! *Content Descriptors*, and CVE-2021-41190).

use std::collections::BTreeMap;
use std::fmt;

use oci_client::manifest::{IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE};
pub(crate) use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE as DOCKER_LIST, IMAGE_MANIFEST_MEDIA_TYPE as DOCKER_MANIFEST,
    OCI_IMAGE_INDEX_MEDIA_TYPE as OCI_INDEX, OCI_IMAGE_MEDIA_TYPE as OCI_MANIFEST,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::bounded::{self, Annotations, List};
use super::digest::Digest;
use super::limits::{self, Attestations, Limits};
use crate::{Error, ErrorKind, Result};

/// What a registry is told that Skiff reads.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

const CONFIG_TYPES: [&str; 2] = [IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE];

/// The platform that Skiff runs.
pub(crate) const OS: &str = "linux";
/// The architecture that Skiff runs.
pub(crate) const ARCHITECTURE: &str = "amd64";

/// Documents on the way to an image: an index, an index in it, the image.
pub(crate) const MAX_DOCUMENTS: usize = 3;

/// How an index without attestations is made.
const REBUILD: &str =
    "build the image again with docker buildx build --provenance=false --sbom=false, and push it";

/// Longest foreign text (a media type, a platform) that an error repeats.
const SHOWN_CHARACTERS: usize = 120;

/// Which compression a layer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// The first bytes decide between gzip, zstd and none, as they do in Docker and containerd for
    /// every type that says it is compressed and for all Docker types. The DiffID proves the result.
    ByMagic,
    /// OCI's `…layer.v1.tar`: never compressed, as in containerd.
    Plain,
}

/// A layer as a manifest describes it.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) packing: Packing,
}

/// Something else that a manifest or index describes.
#[derive(Clone, Debug)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// An operating system and an architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// Whether this machine runs it. Variants `v2` to `v4` of amd64 need newer processors, so only
    /// the base line counts.
    pub(crate) fn fits(&self) -> bool {
        let base = matches!(self.variant.as_deref(), None | Some("" | "v1"));
        self.os == OS && self.architecture == ARCHITECTURE && base
    }

    /// BuildKit's attestations are listed as images of `unknown/unknown`.
    fn is_attestation(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", shown(&self.os), shown(&self.architecture))?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{}", shown(variant)),
        }
    }
}

/// A manifest of one image.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Lowest first.
    pub(crate) layers: Vec<Layer>,
}

impl Descriptor {
    /// Whether it leads to another manifest; indexes may list anything.
    fn is_document(&self) -> bool {
        self.media_type.is_empty() || ACCEPTED.contains(&self.media_type.as_str())
    }

    fn is_attestation(&self) -> bool {
        self.platform.as_ref().is_some_and(Platform::is_attestation)
    }

    fn fits(&self) -> bool {
        self.is_document() && self.platform.as_ref().is_some_and(Platform::fits)
    }
}

impl Manifest {
    /// Bytes of all layers as they are fetched.
    pub(crate) fn packed_bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }
}

/// What a registry gives under a tag or digest.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Image(Manifest),
}

/// The keys of [`Raw`].
const KEYS: [&str; 7] =
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "artifactType", "fsLayers"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<List<RawDescriptor>>,
    manifests: Option<List<RawDescriptor>>,
    artifact_type: Option<String>,
    /// Docker's schema 1 calls its layers so.
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    annotations: Option<Annotations>,
}

impl RawDescriptor {
    fn check(self) -> Result<Descriptor> {
        Ok(Descriptor {
            media_type: self.media_type.unwrap_or_default(),
            digest: self.digest.parse()?,
            size: self.size,
            platform: self.platform,
            annotations: self.annotations.unwrap_or_default().0,
        })
    }
}

/// Foreign text for an error: not too long, and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARACTERS).collect()
}

fn invalid(why: impl fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidImage, format!("the manifest {why}"))
}

fn unsupported(what: &str, media_type: &str) -> Error {
    Error::new(
        ErrorKind::UnsupportedMediaType,
        format!("{what} has the media type {:?}, which is not of a container image", shown(media_type)),
    )
    .advise("name a repository that holds a container image; charts and other artifacts cannot be run")
}

/// Reads a document whose digest has been verified. `declared` is what the source called it.
///
/// # Errors
/// `InvalidImage`, `UnsupportedMediaType`, `LimitExceeded`.
pub(crate) fn parse(bytes: &[u8], declared: Option<&str>, limits: &Limits) -> Result<Document> {
    limits::check("bytes of the manifest", bytes.len() as u64, limits::MAX_MANIFEST_BYTES)?;
    // The parser's errors may quote the document.
    let unreadable = |e: serde_json::Error| invalid(format!("cannot be read: {}", shown(&e.to_string())));
    let raw: Raw = serde_json::from_slice(bytes).map_err(unreadable)?;
    bounded::refuse_other_case(bytes, &KEYS).map_err(unreadable)?;
    if raw.schema_version != 2 {
        return Err(Error::new(
            ErrorKind::UnsupportedMediaType,
            format!("the manifest has schema version {}; only version 2 is read", raw.schema_version),
        )
        .advise("push the image again with a current tool"));
    }
    // An unknown Content-Type (text/plain from a simple file server) says nothing.
    let declared = declared.filter(|t| ACCEPTED.contains(t));
    let media_type = raw.media_type.as_deref().or(declared);
    let is_index = match media_type {
        Some(known) if ACCEPTED.contains(&known) => is_index_type(known),
        Some(other) => return Err(unsupported("the manifest", other)),
        None => raw.manifests.is_some(),
    };
    if let Some(declared) = declared.filter(|declared| is_index_type(declared) != is_index) {
        let called = media_type.unwrap_or_default();
        return Err(invalid(format!("came as {declared}, but calls itself {called}, which is ambiguous")));
    }
    if raw.fs_layers.is_some() {
        return Err(invalid("has the layers of schema version 1 too, which is ambiguous"));
    }
    match (is_index, raw.manifests, raw.layers, raw.config) {
        (true, Some(manifests), None, None) => index(manifests.0),
        (false, None, Some(layers), Some(config)) => {
            image(config, layers.0, raw.artifact_type.as_deref(), limits)
        }
        (_, Some(_), Some(_), _) => Err(invalid("has both layers and manifests, which is ambiguous")),
        (true, ..) => Err(invalid("is an index without manifests, or with the fields of an image")),
        (false, ..) => Err(invalid("is of an image and has no config or layers, or lists manifests")),
    }
}

fn index(manifests: Vec<RawDescriptor>) -> Result<Document> {
    limits::check("images of the index", manifests.len() as u64, limits::MAX_INDEX_ENTRIES)?;
    Ok(Document::Index(manifests.into_iter().map(RawDescriptor::check).collect::<Result<_>>()?))
}

fn is_index_type(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

fn image(
    config: RawDescriptor,
    layers: Vec<RawDescriptor>,
    artifact_type: Option<&str>,
    limits: &Limits,
) -> Result<Document> {
    let config = config.check()?;
    if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
        // An artifact's configuration is often of the empty type, which says nothing.
        return Err(match artifact_type {
            Some(artifact) => unsupported("the artifact", artifact),
            None => unsupported("the image configuration", &config.media_type),
        });
    }
    limits::check("bytes of the image configuration", config.size, limits::MAX_CONFIG_BYTES)?;
    limits.check_layers(layers.len() as u64)?;
    if layers.is_empty() {
        return Err(invalid("has no layers, so there is nothing to run"));
    }
    let layers = layers.into_iter().map(layer).collect::<Result<_>>()?;
    let manifest = Manifest { config, layers };
    limits.check_packed(manifest.packed_bytes())?;
    Ok(Document::Image(manifest))
}

/// The descriptor's `urls` are never looked at: foreign layers come from the registry or not at all,
/// so no request goes to a host that the image names.
fn layer(raw: RawDescriptor) -> Result<Layer> {
    let descriptor = raw.check()?;
    let packing = packing(&descriptor.media_type).ok_or_else(|| {
        let error = unsupported(&format!("the layer {}", descriptor.digest), &descriptor.media_type);
        match descriptor.media_type.ends_with("+encrypted") {
            true => error.advise("push the image without encryption; Skiff has no keys for layers"),
            false => error,
        }
    })?;
    Ok(Layer { digest: descriptor.digest, size: descriptor.size, packing })
}

fn packing(media_type: &str) -> Option<Packing> {
    let oci = media_type
        .strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar")
        .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.v1.tar"));
    if let Some(suffix) = oci {
        return match suffix {
            "" => Some(Packing::Plain),
            "+gzip" | "+zstd" => Some(Packing::ByMagic),
            _ => None,
        };
    }
    let docker = media_type
        .strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.tar")
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar"))?;
    matches!(docker, "" | ".gzip" | ".zstd").then_some(Packing::ByMagic)
}

/// The image of an index for linux/amd64: the first that fits.
///
/// # Errors
/// `InvalidImage` for an index with attestations where the limits refuse them; `NoMatchingPlatform`,
/// saying which platforms there are.
pub(crate) fn choose<'a>(entries: &'a [Descriptor], limits: &Limits) -> Result<&'a Descriptor> {
    let attestation = entries.iter().find(|e| e.is_attestation());
    if let (Attestations::Refuse, Some(attestation)) = (limits.attestations, attestation) {
        return Err(refused(attestation, limits));
    }
    if let Some(found) = entries.iter().find(|e| e.fits()) {
        return Ok(found);
    }
    let (attestations, real): (Vec<_>, Vec<_>) = entries.iter().partition(|e| e.is_attestation());
    if let [only] = real.as_slice()
        && only.platform.is_none()
    {
        // A single image without a platform: its configuration is checked later.
        return Ok(only);
    }
    if real.is_empty() && !attestations.is_empty() {
        return Err(Error::new(
            ErrorKind::NoMatchingPlatform,
            "the index has only attestations (unknown/unknown) and no image for linux/amd64",
        )
        .advise(REBUILD));
    }
    let mut names: Vec<String> = real
        .iter()
        .map(|e| e.platform.as_ref().map_or_else(|| "(no platform)".to_owned(), Platform::to_string))
        .collect();
    names.dedup();
    names.truncate(32);
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(no_platform(&format!("the index has no image for {OS}/{ARCHITECTURE}; it has: {names}")))
}

/// The text begins as that of Alibaba FC, the only platform known to refuse such an index.
fn refused(attestation: &Descriptor, limits: &Limits) -> Error {
    let owner = limits.owner.map(|owner| format!(" under {owner}")).unwrap_or_default();
    Error::new(
        ErrorKind::InvalidImage,
        format!(
            "invalid image, platform of image is unknown/unknown: the index lists {}, which is no image \
             but an attestation of the build (provenance or SBOM), and that is refused{owner}",
            attestation.digest
        ),
    )
    .advise(REBUILD)
}

/// Checks the documents of an image that is in the store against limits that may be others than
/// those of its pull. `first` is what the image was asked for by; `blob` finds a document.
///
/// # Errors
/// As [`parse`] and [`choose`].
pub(crate) fn check_again(
    first: &Digest,
    limits: &Limits,
    blob: impl Fn(&Digest) -> Option<Vec<u8>>,
) -> Result<()> {
    let mut digest = first.clone();
    for _ in 0..MAX_DOCUMENTS {
        // What is not there has not led to the image.
        let Some(bytes) = blob(&digest) else { break };
        match parse(&bytes, None, limits)? {
            Document::Image(_) => break,
            Document::Index(entries) => digest = choose(&entries, limits)?.digest.clone(),
        }
    }
    Ok(())
}

/// The error of an image for another machine.
pub(crate) fn no_platform(message: &str) -> Error {
    Error::new(ErrorKind::NoMatchingPlatform, message.to_owned())
        .advise("build the image with --platform linux/amd64")
}

#[cfg(test)]
mod tests;
