//! Images in archives: of OCI layouts and of `docker save`, and importing them.

use std::fs;
use std::path::Path;
use std::process::Command;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{PullOptions, PullPolicy, Reference, Source};

use crate::support::*;

fn skopeo(from: &str, to: &str) {
    let output = Command::new("skopeo").args(["copy", "-q", from, to]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn with(policy: PullPolicy) -> PullOptions {
    PullOptions { policy, ..PullOptions::default() }
}

/// A tar of entries (name, kind, link or text).
fn entries(path: &Path, entries: &[(&str, tar::EntryType, &[u8])]) {
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, kind, data) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        if matches!(kind, tar::EntryType::Regular) {
            header.set_size(data.len() as u64);
            builder.append_data(&mut header, name, *data).unwrap();
        } else {
            header.set_size(0);
            builder.append_link(&mut header, name, std::str::from_utf8(data).unwrap()).unwrap();
        }
    }
    builder.finish().unwrap();
}

/// The files of a layout as entries of an archive.
fn of_layout(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> =
        ["oci-layout", "index.json"].map(|name| (name.to_owned(), fs::read(dir.join(name)).unwrap())).into();
    for blob in fs::read_dir(dir.join("blobs/sha256")).unwrap().map(|e| e.unwrap()) {
        let name = format!("blobs/sha256/{}", blob.file_name().to_str().unwrap());
        all.push((name, fs::read(blob.path()).unwrap()));
    }
    all
}

fn write_layout(path: &Path, files: &[(String, Vec<u8>)], more: &[(&str, tar::EntryType, &[u8])]) {
    let mut all: Vec<(&str, tar::EntryType, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), tar::EntryType::Regular, bytes.as_slice()))
        .collect();
    all.extend_from_slice(more);
    entries(path, &all);
}

#[tokio::test]
async fn an_archive_of_a_layout_is_the_layout() {
    let place = Place::new();
    let (_, source) = Layout::small(&place.path("layout"));
    let file = place.path("image.tar");
    skopeo(&format!("{source}:v1"), &format!("oci-archive:{}:v1", file.display()));
    let archive = format!("oci-archive:{}", file.display());
    let from_archive = place.pull(&archive).await.unwrap();
    let from_layout = place.pull(&source).await.unwrap();
    assert_eq!(from_archive.layers, from_layout.layers);
    assert_eq!(from_archive.name, archive);
    assert_eq!(place.pull(&format!("{archive}:v1")).await.unwrap().digest, from_archive.digest);
    let options = PullOptions::default();
    let error = place.error(&format!("{archive}:v2"), &options).await;
    assert_eq!(error.kind(), ErrorKind::ImageNotFound);
    assert!(error.advice().unwrap().contains("v1"), "{error:?}");
    // The file may go once the image is here.
    fs::remove_file(&file).unwrap();
    assert_eq!(place.error(&archive, &options).await.kind(), ErrorKind::ImageNotFound);
    place.pull_with(&archive, &with(PullPolicy::Never)).await.unwrap();
}

#[tokio::test]
async fn hostile_archives_of_layouts() {
    use tar::EntryType::{Link, Regular, Symlink};
    let place = Place::new();
    let (layout, _) = Layout::small(&place.path("layout"));
    let files = of_layout(&layout.dir);
    let path = place.path("image.tar");
    let source = format!("oci-archive:{}", path.display());
    let options = PullOptions::default();
    write_layout(&path, &files, &[]);
    assert_eq!(place.pull(&source).await.unwrap().layers.len(), 3);
    let place = Place::new();

    let secret = place.path("secret");
    fs::write(&secret, r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let outside = secret.to_str().unwrap().as_bytes();
    type Entry<'a> = (&'a str, tar::EntryType, &'a [u8]);
    let more: [(&str, &[Entry<'_>], &str); 4] = [
        ("a symbolic link", &[("extra", Symlink, outside)], "is a link"),
        ("a hard link", &[("extra", Link, b"index.json")], "is a link"),
        ("the index twice", &[("index.json", Regular, b"{}")], "is in it twice"),
        ("the index twice, by another path", &[("./blobs/../index.json", Regular, b"{}")], ""),
    ];
    for (what, more, wanted) in more {
        let made = std::panic::catch_unwind(|| write_layout(&path, &files, more)).is_ok();
        if !made {
            // The tar crate itself refuses to write `..`.
            continue;
        }
        let error = place.error(&source, &options).await;
        assert_eq!(error.kind(), ErrorKind::InvalidImage, "{what}: {error:?}");
        assert!(error.to_string().contains(wanted), "{what}: {error}");
    }

    let without =
        |name: &str| -> Vec<_> { files.iter().filter(|(n, _)| !n.starts_with(name)).cloned().collect() };
    for name in ["oci-layout", "index.json", "blobs"] {
        write_layout(&path, &without(name), &[]);
        let error = place.error(&source, &options).await;
        assert_eq!(error.kind(), ErrorKind::InvalidImage, "{name}: {error:?}");
        assert!(error.to_string().contains("it has no file"), "{name}: {error}");
    }
    // A blob that is not what its name says.
    let layer = files.iter().max_by_key(|(name, bytes)| (name.starts_with("blobs"), bytes.len())).unwrap();
    let mut spoiled = files.clone();
    for (name, bytes) in &mut spoiled {
        if *name == layer.0 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x20;
        }
    }
    write_layout(&path, &spoiled, &[]);
    let kind = place.error(&source, &options).await.kind();
    assert!(matches!(kind, ErrorKind::DigestMismatch | ErrorKind::CorruptImage), "{kind:?}");

    write_layout(&path, &files, &[]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(place.error(&source, &options).await.kind(), ErrorKind::CorruptImage);
    fs::write(&path, gzip(&whole)).unwrap();
    assert!(place.error(&source, &options).await.advice().unwrap().contains("decompress"));
    fs::write(&path, "no archive").unwrap();
    assert!(place.error(&source, &options).await.to_string().contains("image.tar"));
    let many: Vec<(String, Vec<u8>)> = (0..10_001).map(|n| (format!("f{n}"), Vec::new())).collect();
    write_layout(&path, &many, &[]);
    assert_eq!(place.error(&source, &options).await.kind(), ErrorKind::LimitExceeded);
    let fifo = format!("oci-archive:{}", place.path("").display());
    assert_eq!(place.error(&fifo, &options).await.kind(), ErrorKind::ImageNotFound);
}

/// An archive of `docker save` with an image for each tag, told apart by their commands.
fn saved(path: &Path, tags: &[&str]) {
    let layer = tar(&[("a", "1")]);
    let mut files = vec![("layer.tar".to_owned(), layer.clone())];
    let mut items = Vec::new();
    for (number, tag) in tags.iter().enumerate() {
        let config = serde_json::json!({
            "os": "linux", "architecture": "amd64", "config": {"Cmd": [format!("/{number}")]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]},
        })
        .to_string();
        let name = format!("{}.json", &sha256(config.as_bytes())[7..]);
        items.push(serde_json::json!({"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}));
        files.push((name, config.into_bytes()));
    }
    files.push(("manifest.json".into(), serde_json::Value::from(items).to_string().into_bytes()));
    write_layout(path, &files, &[]);
}

#[tokio::test]
async fn the_right_image_of_a_docker_archive() {
    let place = Place::new();
    let path = place.path("saved.tar");
    saved(&path, &["app:1", "registry.example.com:5000/team/app:2", "other:1"]);
    let source = |tag: &str| format!("docker-archive:{}:{tag}", path.display());
    for (tag, command) in [
        ("app:1", "/0"),
        ("docker.io/library/app:1", "/0"),
        ("2", "/1"),
        ("registry.example.com:5000/team/app:2", "/1"),
        ("other:1", "/2"),
    ] {
        assert_eq!(place.pull(&source(tag)).await.unwrap().config.cmd, [command], "{tag}");
    }
    let options = PullOptions::default();
    let error = place.error(&source("1"), &options).await;
    assert_eq!(error.kind(), ErrorKind::InvalidReference);
    assert!(error.to_string().contains("2 images with the tag \"1\": app:1, registry"), "{error}");
    let error = place.error(&source("nothing"), &options).await;
    assert_eq!(error.kind(), ErrorKind::ImageNotFound);
    assert!(error.advice().unwrap().contains("app:1"), "{error:?}");
    let error = place.error(&format!("docker-archive:{}", path.display()), &options).await;
    assert_eq!(error.kind(), ErrorKind::InvalidReference);
    assert!(error.to_string().contains("3 images: app:1, registry"), "{error}");
}

#[tokio::test]
async fn the_limits_of_a_pull_hold_for_docker_archives() {
    let place = Place::new();
    let (_, layout) = Layout::small_gzip(&place.path("layout"));
    let file = place.path("saved.tar");
    skopeo(&format!("{layout}:v1"), &format!("docker-archive:{}:app:1", file.display()));
    let source = format!("docker-archive:{}", file.display());
    let image = place.pull(&source).await.unwrap();
    assert_eq!(image.layers.len(), 3);
    let with = |layers: u64, packed_bytes: u64| {
        let mut options = PullOptions::default();
        (options.limits.layers, options.limits.packed_bytes) = (layers, packed_bytes);
        options
    };
    let bytes = image.packed_bytes;
    for (options, wanted) in [
        (with(2, bytes), "layers of the image: 3 is over the limit of 2".to_owned()),
        (
            with(3, bytes - 1),
            format!("packed bytes of the image: {bytes} is over the limit of {}", bytes - 1),
        ),
    ] {
        // Both from the file, and of what is here already.
        for place in [&Place::new(), &place] {
            let error = place.error(&source, &options).await;
            assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error:?}");
            assert!(error.to_string().contains(&wanted) && error.advice().is_some(), "{wanted}: {error:?}");
        }
        let missing = PullOptions { policy: PullPolicy::Missing, ..options };
        assert_eq!(place.error(&source, &missing).await.kind(), ErrorKind::LimitExceeded);
    }
    Place::new().pull_with(&source, &with(3, bytes)).await.expect("just within");
}

#[tokio::test]
async fn what_is_imported_is_found_under_its_name_without_a_network() {
    let place = Place::new();
    let path = place.path("saved.tar");
    saved(&path, &["app:1"]);
    let source: Source = format!("docker-archive:{}", path.display()).parse().unwrap();
    // Nothing listens there.
    let name: Reference = "127.0.0.1:1/team/app:1".parse().unwrap();
    let options = PullOptions::default();
    let image = place.store.import(&source, Some(&name), &options).await.unwrap();
    assert_eq!(image.name, "127.0.0.1:1/team/app:1");
    let names: Vec<String> =
        place.store.images().unwrap().into_iter().flat_map(|image| image.names).collect();
    assert_eq!(names, ["127.0.0.1:1/team/app:1"], "and under no other");
    for policy in [PullPolicy::Never, PullPolicy::Missing] {
        let found = place.pull_with(&name.to_string(), &with(policy)).await.unwrap();
        assert_eq!((found.digest, found.layers), (image.digest.clone(), image.layers.clone()));
    }
    let error = place.error("127.0.0.1:1/team/app:2", &with(PullPolicy::Never)).await;
    assert_eq!(error.kind(), ErrorKind::ImageNotFound);
    assert!(error.advice().unwrap().contains("import"), "{error:?}");

    let with_digest: Reference = format!("app@{}", image.digest).parse().unwrap();
    let refused = place.store.import(&source, Some(&with_digest), &options).await.expect_err("a digest");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let registry: Source = "app:1".parse().unwrap();
    let refused = place.store.import(&registry, None, &options).await.expect_err("a registry");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let unnamed = place.store.import(&source, None, &options).await.unwrap();
    assert_eq!(unnamed.name, source.to_string());
}
