//! Layouts and archives: no network.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::json;
use skiff_runtime::ErrorKind;
use skiff_runtime::image::{PullEvent, PullOptions, Store};

use crate::support::*;

#[tokio::test]
async fn a_layout_is_pulled_and_found_again() {
    let place = Place::new();
    let (_, source) = Layout::small(&place.path("layout"));
    let (options, events) = observed();
    let image = place.pull_with(&format!("{source}:v1"), &options).await.unwrap();
    assert_eq!(image.layers.len(), 3);
    assert_eq!((read(&image, 0, "etc/one"), read(&image, 2, "etc/three")), ("1".into(), "3".into()));
    let whiteout = fs::symlink_metadata(image.layers[1].join("etc/gone")).unwrap();
    assert_eq!((whiteout.mode() & 0o170_000, whiteout.rdev()), (0o020_000, 0));
    assert_eq!(
        (image.config.cmd.as_slice(), image.config.env.as_slice()),
        (&["/hello".to_owned()][..], &["A=b".to_owned()][..])
    );
    assert_eq!(started(&events), 3);
    place.nothing_half_made();

    let (options, events) = observed();
    let again = place.pull_with(&source, &options).await.unwrap();
    assert_eq!((again.layers, again.digest), (image.layers.clone(), image.digest));
    assert_eq!(started(&events), 0);
    let cached = |e: &&PullEvent| matches!(e, PullEvent::LayerCached { .. });
    assert_eq!(events.lock().unwrap().iter().filter(cached).count(), 3);
    for private in ["", "layers", "blobs", "ingest", "images"] {
        assert_eq!(fs::metadata(place.path("state").join(private)).unwrap().mode() & 0o777, 0o700);
    }
}

#[tokio::test]
async fn progress_reaches_the_size() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let archive = tar(&[("big", &"x".repeat(3 << 20))]);
    let size = archive.len() as u64;
    let source = layout.index(&[("", layout.image(&[(TAR, archive.clone(), archive)], "amd64"))]);
    let (options, events) = observed();
    place.pull_with(&source, &options).await.unwrap();
    let events = events.lock().unwrap();
    let done: Vec<u64> = events
        .iter()
        .filter_map(|e| if let PullEvent::LayerProgress { done, .. } = e { Some(*done) } else { None })
        .collect();
    assert!(done.len() <= 13 && done.is_sorted(), "{done:?}");
    assert_eq!(done.last(), Some(&size));
    assert!(matches!(events.last(), Some(PullEvent::LayerDone { .. })));
}

#[tokio::test]
async fn layers_that_come_twice_and_opaque_roots() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let layer = |name: &str| {
        let archive = tar(&[(name, "x")]);
        (TAR, archive.clone(), archive)
    };
    let twice = [layer("a"), layer("b"), layer("a")];
    let opaque = [layer("a"), layer(".wh..wh..opq"), layer("c")];
    let source =
        layout.index(&[("twice", layout.image(&twice, "amd64")), ("opaque", layout.image(&opaque, "amd64"))]);
    let image = place.pull(&format!("{source}:twice")).await.unwrap();
    assert_eq!((image.layers.len(), read(&image, 0, "b"), read(&image, 1, "a")), (2, "x".into(), "x".into()));
    let image = place.pull(&format!("{source}:opaque")).await.unwrap();
    assert_eq!((image.layers.len(), read(&image, 1, "c")), (2, "x".into()), "what is below is hidden");
}

#[tokio::test]
async fn the_right_image_of_a_layout() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let archive = tar(&[("a", "x")]);
    let layers = [(GZIP, gzip(&archive), archive)];
    let with_platform = |architecture: &str| {
        let mut image = layout.image(&layers, architecture);
        image["platform"] = json!({"os": "linux", "architecture": architecture});
        image
    };
    let index = json!({"schemaVersion": 2, "manifests": [with_platform("arm64"), with_platform("amd64")]});
    let nested = layout.blob(INDEX, index.to_string().as_bytes());
    let foreign = json!({"schemaVersion": 2, "manifests": [with_platform("arm64"), with_platform("s390x")]});
    let foreign = layout.blob(INDEX, foreign.to_string().as_bytes());
    let single = layout.image(&layers, "riscv64");
    let source = layout.index(&[("multi", nested), ("foreign", foreign), ("single", single)]);
    place.pull(&format!("{source}:multi")).await.unwrap();
    let options = PullOptions::default();
    let error = place.error(&format!("{source}:foreign"), &options).await;
    assert_eq!(error.kind(), ErrorKind::NoMatchingPlatform);
    assert!(error.to_string().contains("linux/arm64, linux/s390x"), "{error}");
    let error = place.error(&format!("{source}:single"), &options).await;
    assert_eq!(error.to_string(), "the image is for linux/riscv64, not for linux/amd64");
    let error = place.error(&format!("{source}:missing"), &options).await;
    assert_eq!(error.kind(), ErrorKind::ImageNotFound);
    assert!(error.advice().unwrap().contains("multi, foreign, single"));
    let error = place.error(&source, &options).await;
    assert_eq!(error.kind(), ErrorKind::InvalidReference);
}

#[tokio::test]
async fn damaged_layouts() {
    let place = Place::new();
    let options = PullOptions::default();
    let error = place.error("oci:/nonexistent", &options).await;
    assert_eq!(error.kind(), ErrorKind::ImageNotFound);
    assert!(error.to_string().contains("/nonexistent"), "{error}");
    // Each time another blob of a fresh layout is damaged.
    for (what, change, kind) in [
        ("layer", "flip", ErrorKind::DigestMismatch),
        ("layer", "cut", ErrorKind::CorruptImage),
        ("layer", "grow", ErrorKind::CorruptImage),
        ("layer", "remove", ErrorKind::ImageNotFound),
        ("config", "flip", ErrorKind::DigestMismatch),
        ("manifest", "flip", ErrorKind::DigestMismatch),
        ("manifest", "remove", ErrorKind::ImageNotFound),
    ] {
        let place = Place::new();
        let layout = Layout::new(&place.path("layout"));
        let archive = tar(&[("a", &"text ".repeat(1000))]);
        let image = layout.image(&[(GZIP, gzip(&archive), archive)], "amd64");
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(layout.blob_path(image["digest"].as_str().unwrap())).unwrap())
                .unwrap();
        let digest = match what {
            "layer" => &manifest["layers"][0]["digest"],
            "config" => &manifest["config"]["digest"],
            _ => &image["digest"],
        };
        damage(&layout.blob_path(digest.as_str().unwrap()), change);
        let source = layout.index(&[("", image)]);
        let error = place.error(&source, &options).await;
        assert_eq!(error.kind(), kind, "{what} {change}: {error:?}");
    }
}

fn damage(path: &Path, change: &str) {
    let mut bytes = fs::read(path).unwrap();
    match change {
        "flip" => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x55;
        }
        "cut" => bytes.truncate(bytes.len() / 2),
        "grow" => bytes.push(0),
        _ => return fs::remove_file(path).unwrap(),
    }
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn one_bad_layer_leaves_the_good_ones() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let [good, _, _] = small_layers();
    let bad = tar(&[("x", "1")]);
    let image =
        layout.image(&[(TAR, good.clone(), good), (TAR, bad.clone(), tar(&[("y", "other")]))], "amd64");
    let source = layout.index(&[("", image)]);
    let error = place.error(&source, &PullOptions::default()).await;
    assert_eq!(error.kind(), ErrorKind::InvalidImage);
}

/// A `docker save` archive as old versions of Docker wrote it, with a link for a layer.
fn archive(path: &Path, repeat: usize) {
    let [one, two, _] = small_layers();
    let two = gzip(&two);
    let [_, archive_two, _] = small_layers();
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&one), sha256(&archive_two), sha256(&one)]},
    })
    .to_string();
    let config_name = format!("{}.json", &sha256(config.as_bytes())[7..]);
    let item = json!({"Config": config_name, "RepoTags": ["x:1"], "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"]});
    let manifest = json!(vec![item; repeat]).to_string();
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in [
        ("1/layer.tar", one.as_slice()),
        ("2/layer.tar", &two),
        (&config_name, config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "3/layer.tar", "../1/layer.tar").unwrap();
    builder.finish().unwrap();
}

#[tokio::test]
async fn a_docker_archive() {
    let place = Place::new();
    let file = place.path("image.tar");
    let source = format!("docker-archive:{}", file.display());
    archive(&file, 1);
    let image = place.pull(&source).await.unwrap();
    assert_eq!(
        (image.layers.len(), read(&image, 0, "etc/two"), read(&image, 1, "etc/one")),
        (2, "2".into(), "1".into())
    );
    assert_eq!(image.config.cmd, ["/hello"]);

    let options = PullOptions::default();
    archive(&file, 2);
    let error = place.error(&source, &options).await;
    assert!(error.to_string().contains("2 images: x:1, x:1"), "{error}");
    archive(&file, 1);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..3000]).unwrap();
    assert_eq!(place.error(&source, &options).await.kind(), ErrorKind::CorruptImage);
    fs::write(&file, gzip(&whole)).unwrap();
    assert!(place.error(&source, &options).await.advice().unwrap().contains("decompress"));
    fs::write(&file, tar(&[("x", "y")])).unwrap();
    assert!(place.error(&source, &options).await.to_string().contains("manifest.json"));
    fs::remove_file(&file).unwrap();
    assert_eq!(place.error(&source, &options).await.kind(), ErrorKind::ImageNotFound);
    assert_eq!(place.error("docker-archive:/dev/zero", &options).await.kind(), ErrorKind::ImageNotFound);
}

#[tokio::test]
async fn skopeo_and_skiff_agree_on_docker_archives() {
    let place = Place::new();
    let (_, source) = Layout::small_gzip(&place.path("layout"));
    let file = place.path("saved.tar");
    let status = std::process::Command::new("skopeo")
        .args(["copy", "-q", &format!("{source}:v1"), &format!("docker-archive:{}:x:1", file.display())])
        .status()
        .unwrap();
    assert!(status.success());
    let from_layout = place.pull(&source).await.unwrap();
    let from_archive = place.pull(&format!("docker-archive:{}", file.display())).await.unwrap();
    assert_eq!(from_archive.layers, from_layout.layers);
}

#[tokio::test]
async fn crashed_pulls_are_swept() {
    let place = Place::new();
    let ingest = place.path("state").join("ingest").join(sha256(b"x").replace(':', "-"));
    fs::create_dir_all(ingest.join("fs/deep/er")).unwrap();
    let locked = place.path("state").join("ingest").join(sha256(b"y").replace(':', "-"));
    fs::create_dir_all(locked.join("fs")).unwrap();
    let holder = fs::File::open(&locked).unwrap();
    rustix::fs::flock(&holder, rustix::fs::FlockOperation::LockExclusive).unwrap();
    Store::open(&place.path("state")).unwrap();
    assert!(!ingest.exists(), "nobody made it");
    assert!(locked.join("fs").exists(), "someone makes it");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_at_once_make_each_layer_once() {
    let place = Place::new();
    let (_, source) = Layout::small(&place.path("layout"));
    let (options, events) = observed();
    // Two stores: as two processes would.
    let other = Store::open(&place.path("state")).unwrap();
    let pulls = (0..20).map(|n| {
        let store = if n % 2 == 0 { place.store.clone() } else { other.clone() };
        let (source, options) = (source.parse().unwrap(), options.clone());
        tokio::spawn(async move { store.pull(&source, &options).await.map(|image| image.layers.len()) })
    });
    for pull in pulls.collect::<Vec<_>>() {
        assert_eq!(pull.await.unwrap().unwrap(), 3);
    }
    assert_eq!(started(&events), 3);
    place.nothing_half_made();
}

#[tokio::test]
async fn a_full_disk_leaves_nothing() {
    use std::process::Command;
    let dir = tempfile::tempdir().unwrap();
    let (_, source) = {
        let layout = Layout::new(&dir.path().join("layout"));
        let archive = tar(&[("big", &"x".repeat(6 << 20))]);
        let image = layout.image(&[(GZIP, gzip(&archive), archive)], "amd64");
        let source = layout.index(&[("", image)]);
        (layout, source)
    };
    let mount = dir.path().join("small");
    fs::create_dir(&mount).unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&mount).status();
    assert!(status.unwrap().success());
    let result = async {
        let store = Store::open(&mount.join("state"))?;
        store.pull(&source.parse()?, &PullOptions::default()).await
    }
    .await;
    let left = fs::read_dir(mount.join("state/ingest")).unwrap().count();
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
    assert_eq!(result.expect_err("the disk is full").kind(), ErrorKind::DiskFull);
    assert_eq!(left, 0);
}

#[test]
fn a_filesystem_without_overlay_support_is_refused() {
    use std::process::Command;
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("ramfs");
    fs::create_dir(&target).unwrap();
    // It has no extended attributes.
    let status = Command::new("mount").args(["-t", "ramfs", "none"]).arg(&target).status();
    assert!(status.unwrap().success());
    let result = Store::open(&target.join("state"));
    assert!(Command::new("umount").arg(&target).status().unwrap().success());
    let error = result.expect_err("ramfs");
    assert_eq!(error.kind(), ErrorKind::OverlayUnsupported, "{error:?}");
    assert!(error.to_string().contains(target.to_str().unwrap()), "{error}");
    assert!(error.advice().unwrap().contains("ext4"), "{error:?}");
}

#[tokio::test]
async fn a_dropped_pull_removes_what_it_made() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let archive = tar(&[("big", &"x".repeat(64 << 20))]);
    let source = layout.index(&[("", layout.image(&[(GZIP, gzip(&archive), archive)], "amd64"))]);
    let (mut options, _) = observed();
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    options.observer = Some(std::sync::Arc::new(move |event| {
        if matches!(event, PullEvent::LayerStarted { .. }) {
            begun.send(()).unwrap();
        }
    }));
    let parsed = source.parse().unwrap();
    tokio::select! {
        _ = place.store.pull(&parsed, &options) => panic!("the pull was to be dropped"),
        _ = begins.recv() => {}
    }
    drop(options);
    for _ in 0..400 {
        if fs::read_dir(place.path("state/ingest")).unwrap().count() == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    place.nothing_half_made();
}
