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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
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
    annotations: Option<BTreeMap<String, String>>,
}

impl RawDescriptor {
    fn check(self) -> Result<Descriptor> {
        Ok(Descriptor {
            media_type: self.media_type.unwrap_or_default(),
            digest: self.digest.parse()?,
            size: self.size,
            platform: self.platform,
            annotations: self.annotations.unwrap_or_default(),
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
    let raw: Raw = serde_json::from_slice(bytes)
        .map_err(|e| invalid(format!("cannot be read: {}", shown(&e.to_string()))))?;
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
        (true, Some(manifests), None, None) => index(manifests),
        (false, None, Some(layers), Some(config)) => {
            image(config, layers, raw.artifact_type.as_deref(), limits)
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
mod tests {
    use super::*;

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn descriptor(media_type: &str, size: u64) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{}","size":{size}}}"#, "1".repeat(64))
    }

    fn manifest(config_type: &str, layers: &[String]) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor(config_type, 10),
            layers.join(",")
        )
    }

    fn read(text: &str) -> Result<Document> {
        parse(text.as_bytes(), None, &Limits::default())
    }

    fn kind(text: &str) -> ErrorKind {
        read(text).expect_err(text).kind()
    }

    fn entry(os: &str, architecture: &str) -> String {
        format!(
            r#"{{"mediaType":"{OCI_MANIFEST}","digest":"sha256:{}","size":1,
            "platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#,
            "2".repeat(64)
        )
    }

    fn chosen(entries: &[String]) -> Result<Descriptor> {
        chosen_under(entries, &Limits::default())
    }

    fn chosen_under(entries: &[String], limits: &Limits) -> Result<Descriptor> {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        match read(&text)? {
            Document::Index(entries) => choose(&entries, limits).cloned(),
            Document::Image(_) => panic!("an index was read as an image"),
        }
    }

    #[test]
    fn both_families_of_manifests_are_read() {
        let oci = manifest(CONFIG_TYPES[0], &[descriptor(GZIP, 5)]);
        let docker =
            manifest(CONFIG_TYPES[1], &[descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", 7)]);
        for (text, bytes) in [(oci, 5), (docker, 7)] {
            match read(&text).expect("valid") {
                Document::Image(manifest) => assert_eq!(manifest.packed_bytes(), bytes),
                Document::Index(_) => panic!("an image was read as an index"),
            }
        }
    }

    #[test]
    fn layer_types() {
        assert_eq!(packing("application/vnd.oci.image.layer.v1.tar"), Some(Packing::Plain));
        for suffix in ["+gzip", "+zstd"] {
            let name = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            assert_eq!(packing(&name), Some(Packing::ByMagic));
        }
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert_eq!(packing(foreign), Some(Packing::ByMagic));
        for other in ["", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "text/plain"] {
            assert_eq!(packing(other), None);
        }
        assert_eq!(packing("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), None);
    }

    #[test]
    fn other_artifacts_are_refused_by_name() {
        let helm = manifest("application/vnd.cncf.helm.config.v1+json", &[descriptor(GZIP, 5)]);
        let error = read(&helm).expect_err("helm");
        assert_eq!(error.kind(), ErrorKind::UnsupportedMediaType);
        assert!(error.to_string().contains("helm"), "{error}");
        let layer = manifest(CONFIG_TYPES[0], &[descriptor("application/wasm", 5)]);
        assert!(read(&layer).expect_err("wasm").to_string().contains("application/wasm"));
        assert_eq!(kind(r#"{"schemaVersion":1,"fsLayers":[]}"#), ErrorKind::UnsupportedMediaType);
        let typed = r#"{"schemaVersion":2,"mediaType":"x/y","manifests":[]}"#;
        assert_eq!(kind(typed), ErrorKind::UnsupportedMediaType);
    }

    #[test]
    fn ambiguous_and_broken_documents_are_refused() {
        let both = format!(
            r#"{{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}}"#,
            descriptor(CONFIG_TYPES[0], 1)
        );
        assert!(read(&both).expect_err("both").to_string().contains("ambiguous"));
        let lying = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#);
        let negative = manifest(CONFIG_TYPES[0], &[descriptor(GZIP, 5)]).replace(":5", ":-5");
        let doubled = r#"{"schemaVersion":2,"schemaVersion":2,"manifests":[]}"#;
        let deep = "[".repeat(100_000);
        let none = manifest(CONFIG_TYPES[0], &[]);
        for text in ["", "{}", "[]", "null", &lying, &negative, doubled, &deep, &none] {
            assert_eq!(kind(text), ErrorKind::InvalidImage, "{text:.80}");
        }
    }

    #[test]
    fn limits_hold() {
        let many: Vec<_> = (0..=limits::MAX_LAYERS).map(|_| descriptor(GZIP, 1)).collect();
        assert_eq!(kind(&manifest(CONFIG_TYPES[0], &many)), ErrorKind::LimitExceeded);
        read(&manifest(CONFIG_TYPES[0], &many[1..])).expect("as many as are allowed");
        let huge = [descriptor(GZIP, u64::MAX), descriptor(GZIP, u64::MAX)];
        assert_eq!(kind(&manifest(CONFIG_TYPES[0], &huge)), ErrorKind::LimitExceeded);
        let spaces = " ".repeat(usize::try_from(limits::MAX_MANIFEST_BYTES).expect("fits") + 1);
        assert_eq!(kind(&spaces), ErrorKind::LimitExceeded);
    }

    #[test]
    fn platforms() {
        let unknown = entry("unknown", "unknown");
        let amd64 = entry("linux", "amd64");
        chosen(&[entry("linux", "arm64"), unknown.clone(), amd64]).expect("amd64");
        let error =
            chosen(&[entry("linux", "arm64"), unknown.clone(), entry("windows", "amd64")]).expect_err("none");
        assert_eq!(error.kind(), ErrorKind::NoMatchingPlatform);
        assert!(error.to_string().ends_with("it has: linux/arm64, windows/amd64"), "{error}");
        let error = chosen(&[unknown]).expect_err("attestations");
        assert_eq!(error.kind(), ErrorKind::NoMatchingPlatform);
        assert!(error.advice().is_some_and(|a| a.contains("--provenance=false")));
        assert_eq!(chosen(&[]).expect_err("empty").kind(), ErrorKind::NoMatchingPlatform);
    }
    #[test]
    fn attestations_are_ignored_or_refused() {
        let refuse = Limits { owner: Some("some"), attestations: Attestations::Refuse, ..Limits::default() };
        let with = [entry("linux", "amd64"), entry("unknown", "unknown")];
        chosen(&with).expect("ignored");
        let error = chosen_under(&with, &refuse).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidImage);
        let text = error.to_string();
        assert!(text.starts_with("invalid image, platform of image is unknown/unknown"), "{text}");
        assert!(text.contains("sha256:2222") && text.ends_with("refused under some"), "{text}");
        assert!(error.advice().is_some_and(|a| a.contains("--provenance=false")));
        chosen_under(&with[..1], &refuse).expect("an index without attestations");
    }

    #[test]
    fn only_entries_that_are_manifests_are_chosen() {
        let wasm = entry("linux", "amd64").replace(OCI_MANIFEST, "application/wasm");
        assert_eq!(
            chosen(std::slice::from_ref(&wasm)).expect_err("wasm").kind(),
            ErrorKind::NoMatchingPlatform
        );
        assert_eq!(chosen(&[wasm, entry("linux", "amd64")]).expect("the other").media_type, OCI_MANIFEST);
    }

    #[test]
    fn a_document_may_not_come_as_another_kind() {
        let list = r#"{"schemaVersion":2,"manifests":[]}"#;
        let typed = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#);
        let read_as =
            |text: &str, declared| parse(text.as_bytes(), Some(declared), &Limits::default()).map(drop);
        for text in [list, &typed] {
            read_as(text, OCI_INDEX).expect("an index");
            read_as(text, DOCKER_LIST).expect("of the other family");
            read_as(text, "text/plain").expect("a type that says nothing");
            let error = read_as(text, OCI_MANIFEST).expect_err("not an image");
            assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error}");
        }
    }

    #[test]
    fn artifacts_and_encrypted_layers_are_named() {
        let artifact = manifest("application/vnd.oci.empty.v1+json", &[descriptor(GZIP, 5)])
            .replace("\"config\"", "\"artifactType\":\"application/vnd.some.sbom\",\"config\"");
        assert!(read(&artifact).expect_err("sbom").to_string().contains("application/vnd.some.sbom"));
        let encrypted = manifest(CONFIG_TYPES[0], &[descriptor(&format!("{GZIP}+encrypted"), 5)]);
        let error = read(&encrypted).expect_err("encrypted");
        assert!(error.to_string().contains("sha256:1111"), "{error}");
        assert!(error.advice().is_some_and(|a| a.contains("encryption")));
    }

    #[test]
    fn errors_do_not_grow_with_the_document() {
        let long = "x\\u001b".repeat(100_000);
        for text in [
            format!(r#"{{"schemaVersion":"{long}"}}"#),
            format!(r#"{{"schemaVersion":2,"mediaType":"{long}"}}"#),
            manifest(&long, &[]),
            manifest(CONFIG_TYPES[0], &[descriptor(&long, 1)]),
        ] {
            let error = read(&text).expect_err("refused").chain();
            assert!(error.len() < 1000 && !error.contains('\u{1b}'), "{error:.200}");
        }
    }
}
