//! A fresh store for each test, and images made for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::Digest as _;
use skiff_runtime::image::{Image, PullEvent, PullOptions, Source, Store};
use skiff_runtime::{Error, Result};

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A directory of one test with a store in it.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Arc<Store>,
}

impl Place {
    pub(crate) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        Self { dir, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn pull(&self, source: &str) -> Result<Image> {
        self.pull_with(source, &PullOptions::default()).await
    }

    pub(crate) async fn pull_with(&self, source: &str, options: &PullOptions) -> Result<Image> {
        let source: Source = source.parse()?;
        self.store.pull(&source, options).await
    }

    /// The error of a pull, after which nothing half-made may be there.
    pub(crate) async fn error(&self, source: &str, options: &PullOptions) -> Error {
        let error = self.pull_with(source, options).await.expect_err("this pull must fail");
        self.nothing_half_made();
        error
    }

    pub(crate) fn nothing_half_made(&self) {
        for name in ["ingest", "tmp"] {
            let left: Vec<_> = fs::read_dir(self.path("state").join(name)).unwrap().collect();
            assert!(left.is_empty(), "{name}: {left:?}");
        }
    }
}

/// A shell script that can be run.
pub(crate) fn script(path: PathBuf, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in sha2::Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A tar of files; a name that ends with `/` is a directory.
pub(crate) fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(text.len() as u64);
        header.set_entry_type(if name.ends_with('/') {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        builder.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// An OCI image layout in the making.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = sha256(bytes);
        fs::write(self.blob_path(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    /// An image of these layers (media type, packed bytes, archive); its descriptor.
    pub(crate) fn image(&self, layers: &[(&str, Vec<u8>, Vec<u8>)], architecture: &str) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|(_, _, archive)| sha256(archive)).collect();
        let config = json!({
            "os": "linux", "architecture": architecture,
            "config": {"Cmd": ["/hello"], "Env": ["A=b"], "Volumes": null},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let layers: Vec<Value> = layers.iter().map(|(kind, packed, _)| self.blob(kind, packed)).collect();
        self.manifest(&config, &layers)
    }

    pub(crate) fn manifest(&self, config: &Value, layers: &[Value]) -> Value {
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    /// Writes `index.json`: descriptors with their tags.
    pub(crate) fn index(&self, images: &[(&str, Value)]) -> String {
        let manifests: Vec<Value> = images
            .iter()
            .map(|(tag, descriptor)| {
                let mut descriptor = descriptor.clone();
                if !tag.is_empty() {
                    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
                }
                descriptor
            })
            .collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
        format!("oci:{}", self.dir.display())
    }

    /// A usual small image of three layers with a whiteout, one of each packing.
    pub(crate) fn small(dir: &Path) -> (Self, String) {
        let [one, two, three] = small_layers();
        Self::tagged(dir, &[(GZIP, gzip(&one), one), (ZSTD, zstd(&two), two), (TAR, three.clone(), three)])
    }

    /// The same, all with gzip: Docker's formats know no other packing.
    pub(crate) fn small_gzip(dir: &Path) -> (Self, String) {
        Self::tagged(dir, &small_layers().map(|archive| (GZIP, gzip(&archive), archive)))
    }

    fn tagged(dir: &Path, layers: &[(&str, Vec<u8>, Vec<u8>)]) -> (Self, String) {
        let layout = Self::new(dir);
        let source = layout.index(&[("v1", layout.image(layers, "amd64"))]);
        (layout, source)
    }
}

pub(crate) fn small_layers() -> [Vec<u8>; 3] {
    [
        tar(&[("etc/", ""), ("etc/one", "1"), ("etc/gone", "1"), ("hello", "#!/bin/sh")]),
        tar(&[("etc/", ""), ("etc/two", "2"), ("etc/.wh.gone", "")]),
        tar(&[("etc/", ""), ("etc/three", "3")]),
    ]
}

/// Options that note all events.
pub(crate) fn observed() -> (PullOptions, Arc<Mutex<Vec<PullEvent>>>) {
    let events: Arc<Mutex<Vec<PullEvent>>> = Arc::default();
    let noted = Arc::clone(&events);
    let options = PullOptions {
        observer: Some(Arc::new(move |event| noted.lock().unwrap().push(event))),
        ..PullOptions::default()
    };
    (options, events)
}

/// How many layers were fetched.
pub(crate) fn started(events: &Mutex<Vec<PullEvent>>) -> usize {
    events.lock().unwrap().iter().filter(|e| matches!(e, PullEvent::LayerStarted { .. })).count()
}

pub(crate) fn read(image: &Image, layer: usize, path: &str) -> String {
    fs::read_to_string(image.layers[layer].join(path)).unwrap()
}

/// The most memory that this process ever had, in KiB.
pub(crate) fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
