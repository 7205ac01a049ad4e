//! Where an image comes from, as a person writes it.
//!
//! | text | meaning |
//! |---|---|
//! | `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]` | a registry; Docker Hub and `latest` by default |
//! | `oci:DIR[:TAG]` | an OCI image layout |
//! | `oci-archive:FILE[:TAG]` | an OCI image layout in a tar archive |
//! | `docker-archive:FILE[:TAG]` | a file as `docker save` writes it |
//!
//! The prefixes win over a repository called so on Docker Hub; write `docker.io/library/oci:TAG` for
//! that. The name of an archive ends at its first colon, for its tag may have more of them. A registry
//! may be an IPv6 literal in brackets.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::digest::Digest;
use crate::{Error, ErrorKind, Result};

/// Longest text of a source, bytes: a path and a tag fit.
const MAX_SOURCE_BYTES: usize = 4096 + 256;

/// Where Docker Hub, `docker.io`, speaks the protocol; Docker and containerd ask there, and firewalls
/// let it through.
const HUB_HOST: &str = "registry-1.docker.io";

/// Transports of other tools that Skiff has no source for, and what to write instead.
const FOREIGN: [(&str, &str); 5] = [
    ("docker://", "leave out docker://"),
    ("https://", "leave out https://"),
    ("http://", "leave out http:// and ask for plain HTTP"),
    ("docker-daemon:", "run docker save and use docker-archive:FILE"),
    ("containers-storage:", "use skopeo copy to an oci:DIR"),
];

/// Where an image comes from: `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`, `oci:DIR[:TAG]`,
/// `oci-archive:FILE[:TAG]` or `docker-archive:FILE[:TAG]`.
///
/// ```
/// use skiff_runtime::image::Source;
///
/// let source: Source = "alpine".parse()?;
/// assert_eq!(source.to_string(), "docker.io/library/alpine:latest");
/// # Ok::<(), skiff_runtime::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// A repository of a registry.
    Registry(Reference),
    /// An OCI image layout directory, and the tag (`org.opencontainers.image.ref.name`) in it.
    OciLayout(PathBuf, Option<String>),
    /// An OCI image layout in a tar archive, and the tag in it.
    OciArchive(PathBuf, Option<String>),
    /// A file as `docker save` writes it, and the name or tag (`RepoTags`) of an image in it.
    DockerArchive(PathBuf, Option<String>),
}

/// A parsed reference to an image of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    inner: oci_client::Reference,
    /// `[IPv6]:PORT`, which the grammar of `inner` does not know.
    address: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as written, `docker.io` by default.
    #[must_use]
    pub fn registry(&self) -> &str {
        self.address.as_deref().unwrap_or_else(|| self.inner.registry())
    }

    /// The repository, with Docker Hub's `library/` where it was left out.
    #[must_use]
    pub fn repository(&self) -> &str {
        self.inner.repository()
    }

    /// The tag, `latest` when neither tag nor digest was written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.inner.tag()
    }

    /// Host and port to talk to (Docker Hub's differs from its name).
    pub(crate) fn host(&self) -> &str {
        match self.registry() {
            "docker.io" => HUB_HOST,
            other => other,
        }
    }

    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            None => self.inner.fmt(f),
            Some(address) => f.write_str(&self.inner.whole().replacen(STAND_IN, address, 1)),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let advice = "write [REGISTRY/]REPOSITORY[:TAG][@sha256:DIGEST] with a lower-case repository";
        let (address, plain) = stand_in(text)?;
        let inner: oci_client::Reference = plain
            .as_deref()
            .unwrap_or(text)
            .parse()
            .map_err(|e| refused(text, &format!("{e}")).advise(advice))?;
        // The grammar allows `BAD/x`, where BAD could be a host; it is not one without a dot or port.
        if inner.repository().bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(refused(text, "the repository has upper-case letters").advise(advice));
        }
        check_port(text, inner.registry())?;
        let digest = inner
            .digest()
            .map(|digest| digest.parse().map_err(|e: Error| refused(text, &e.to_string())))
            .transpose()?;
        Ok(Self { inner, address, digest })
    }
}

/// Stands for an IPv6 literal while the rest is parsed.
const STAND_IN: &str = "ipv6.invalid";

/// The IPv6 literal and port that `text` begins with, and the text with another host in their place.
fn stand_in(text: &str) -> Result<(Option<String>, Option<String>)> {
    let Some(rest) = text.strip_prefix('[') else { return Ok((None, None)) };
    let wrong = || {
        refused(text, "what stands in brackets must be an IPv6 address").advise("write [::1]:5000/REPOSITORY")
    };
    let (address, rest) = rest.split_once(']').ok_or_else(wrong)?;
    let address: std::net::Ipv6Addr = address.parse().map_err(|_| wrong())?;
    let (port, rest) = rest.split_once('/').ok_or_else(wrong)?;
    if !port.is_empty() && !port.starts_with(':') {
        return Err(wrong());
    }
    check_port(text, &format!("x{port}"))?;
    Ok((Some(format!("[{address}]{port}")), Some(format!("{STAND_IN}/{rest}"))))
}

/// A port is a number from 1 to 65535.
fn check_port(text: &str, registry: &str) -> Result<()> {
    match registry.split_once(':') {
        Some((_, port)) if !port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Err(refused(text, "the port is not a number from 1 to 65535"))
        }
        _ => Ok(()),
    }
}

fn refused(text: &str, why: &str) -> Error {
    let shown: String = text.chars().take(256).collect();
    Error::new(ErrorKind::InvalidReference, format!("the image reference {shown:?}: {why}"))
}

impl Source {
    /// The name under which the store keeps it: the same wherever a process stands.
    pub(crate) fn name(&self) -> String {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        match self.clone() {
            Self::Registry(reference) => reference.to_string(),
            Self::OciLayout(dir, tag) => Self::OciLayout(absolute(&dir), tag).to_string(),
            Self::OciArchive(file, tag) => Self::OciArchive(absolute(&file), tag).to_string(),
            Self::DockerArchive(file, tag) => Self::DockerArchive(absolute(&file), tag).to_string(),
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() > MAX_SOURCE_BYTES {
            return Err(refused(text, "it is too long"));
        }
        if text.contains('\0') {
            return Err(refused(text, "it has a zero byte"));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            return layout(text, rest);
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            return archive(text, rest).map(|(file, tag)| Self::OciArchive(file, tag));
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return archive(text, rest).map(|(file, tag)| Self::DockerArchive(file, tag));
        }
        if let Some((prefix, advice)) = FOREIGN.iter().find(|(p, _)| text.starts_with(p)) {
            return Err(refused(text, &format!("{prefix} is not a source")).advise(*advice));
        }
        text.parse().map(Self::Registry)
    }
}

/// The tag is what follows the last colon, unless that has a slash: directories may have colons.
fn layout(text: &str, rest: &str) -> Result<Source> {
    let (dir, tag) = match rest.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag)),
        _ => (rest, None),
    };
    if dir.is_empty() {
        return Err(refused(text, "it names no directory").advise("write oci:DIR or oci:DIR:TAG"));
    }
    if tag.is_some_and(str::is_empty) {
        return Err(refused(text, "the tag is empty").advise("write oci:DIR or oci:DIR:TAG"));
    }
    Ok(Source::OciLayout(dir.into(), tag.map(str::to_owned)))
}

/// The file ends at the first colon, as for skopeo.
fn archive(text: &str, rest: &str) -> Result<(PathBuf, Option<String>)> {
    let (file, tag) = rest.split_once(':').map_or((rest, None), |(file, tag)| (file, Some(tag)));
    if file.is_empty() {
        return Err(refused(text, "it names no file").advise("write oci-archive:FILE or docker-archive:FILE"));
    }
    if tag.is_some_and(str::is_empty) {
        return Err(refused(text, "the tag is empty").advise("leave out the colon, or write a tag after it"));
    }
    Ok((file.into(), tag.map(str::to_owned)))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::OciLayout(dir, None) => write!(f, "oci:{}", dir.display()),
            Self::OciLayout(dir, Some(tag)) => write!(f, "oci:{}:{tag}", dir.display()),
            Self::OciArchive(file, None) => write!(f, "oci-archive:{}", file.display()),
            Self::OciArchive(file, Some(tag)) => write!(f, "oci-archive:{}:{tag}", file.display()),
            Self::DockerArchive(file, None) => write!(f, "docker-archive:{}", file.display()),
            Self::DockerArchive(file, Some(tag)) => write!(f, "docker-archive:{}:{tag}", file.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Source>().expect(text).to_string()
    }

    #[test]
    fn references_are_made_canonical() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, wanted) in [
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            ("me/app:1", "docker.io/me/app:1".to_owned()),
            ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("[::1]:5000/a/b:t", "[::1]:5000/a/b:t".to_owned()),
            ("[0:0::1]/a", "[::1]/a:latest".to_owned()),
            (&format!("[fe80::1]:80/a@{digest}"), format!("[fe80::1]:80/a@{digest}")),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest".to_owned()),
            ("Host.Example/x", "Host.Example/x:latest".to_owned()),
            (&format!("ghcr.io/a/b@{digest}"), format!("ghcr.io/a/b@{digest}")),
            (&format!("ghcr.io/a/b:1@{digest}"), format!("ghcr.io/a/b:1@{digest}")),
        ] {
            assert_eq!(canonical(text), wanted);
            assert_eq!(canonical(&wanted), wanted, "canonical text parses to itself");
        }
    }

    #[test]
    fn docker_hub_is_asked_at_its_registry() {
        for (text, host) in [
            ("alpine", "registry-1.docker.io"),
            ("docker.io/me/app", "registry-1.docker.io"),
            ("index.docker.io/me/app", "registry-1.docker.io"),
            ("registry-1.docker.io/me/app", "registry-1.docker.io"),
            ("docker.io.example/me/app", "docker.io.example"),
            ("[::1]:5000/a", "[::1]:5000"),
        ] {
            let Source::Registry(reference) = text.parse().expect(text) else { panic!("{text}") };
            assert_eq!(reference.host(), host, "{text}");
        }
    }

    #[test]
    fn local_sources() {
        let layout = |dir: &str, tag: Option<&str>| Source::OciLayout(dir.into(), tag.map(str::to_owned));
        assert_eq!("oci:/a/b".parse::<Source>().expect("dir"), layout("/a/b", None));
        assert_eq!("oci:/a/b:v1".parse::<Source>().expect("tag"), layout("/a/b", Some("v1")));
        assert_eq!("oci:/a:x/b".parse::<Source>().expect("colon"), layout("/a:x/b", None));
        assert_eq!(canonical("oci:rel:t"), "oci:rel:t");
        assert_eq!(canonical("docker-archive:/x.tar"), "docker-archive:/x.tar");
        let tagged = Source::DockerArchive("/x.tar".into(), Some("r:5000/app:1".into()));
        assert_eq!("docker-archive:/x.tar:r:5000/app:1".parse::<Source>().expect("tag"), tagged);
        assert_eq!(tagged.to_string(), "docker-archive:/x.tar:r:5000/app:1");
        assert_eq!(canonical("oci-archive:/x.tar"), "oci-archive:/x.tar");
        let tagged = Source::OciArchive("/x.tar".into(), Some("v1".into()));
        assert_eq!("oci-archive:/x.tar:v1".parse::<Source>().expect("tag"), tagged);
    }

    #[test]
    fn the_store_knows_local_sources_by_absolute_paths() {
        let here = std::env::current_dir().expect("a directory");
        for kind in ["oci", "oci-archive", "docker-archive"] {
            let source: Source = format!("{kind}:rel:t").parse().expect("a source");
            assert_eq!(source.name(), format!("{kind}:{}/rel:t", here.display()));
        }
        assert_eq!("alpine".parse::<Source>().expect("a source").name(), "docker.io/library/alpine:latest");
    }

    #[test]
    fn bad_texts_are_refused_with_the_text() {
        let short = format!("x@sha256:{}", "a".repeat(40));
        let upper = format!("x@sha256:{}", "A".repeat(64));
        let long = "a".repeat(300);
        for text in [
            "",
            " ",
            "UPPER",
            "BAD/reference",
            "BAD/reference:1",
            "h:0/x",
            "h:65536/x",
            "[::1]",
            "[::1/x",
            "[::1]5000/x",
            "[::1]:/x",
            "[::1]:x/x",
            "[::1]:65536/x",
            "[127.0.0.1]/x",
            "[::1%eth0]/x",
            "[::1]/UPPER",
            "a b",
            "a:b:c",
            "/x",
            "a//b",
            "a:",
            "a@",
            "x@sha256:1",
            &short,
            &upper,
            "oci:",
            "oci::tag",
            "oci:/x:",
            "docker-archive:",
            "docker://x",
            "http://x/y",
            "oci-archive:",
            "oci-archive::t",
            "docker-archive:/x:",
            "a\0b",
            "../x",
            &long,
        ] {
            let error = text.parse::<Source>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidReference, "{text}");
        }
        let error = "UPPER".parse::<Source>().expect_err("upper");
        assert!(error.to_string().contains("UPPER"), "{error}");
        assert!(error.advice().is_some());
    }
}
