//! Layers that try to reach out of their root, after the tables of containerd (`TestBreakouts`),
//! moby and umoci: each is pulled as an image with a layer below it, mounted, and looked at; and so is
//! the host around it.

mod cases;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::fuzzing;

use cases::Want::{Holds, Refused};
use cases::{CONTAINERD, Case, OTHERS};

use crate::raw::E::Dir;
use crate::raw::archive;
use crate::support::*;

/// What is around the store, and must be as it was.
fn surroundings(place: &Path) -> Vec<(String, u32, u64, String)> {
    let of = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        let text = if meta.is_file() { fs::read_to_string(path).unwrap() } else { String::new() };
        (path.display().to_string(), meta.permissions().mode(), meta.nlink(), text)
    };
    let mut all = vec![of(Path::new("/etc/passwd")), of(Path::new("/etc/hostname")), of(Path::new("/etc"))];
    for dir in [place.to_owned(), place.join("victim"), place.join("state")] {
        all.push(of(&dir));
        let mut names: Vec<String> =
            fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path().display().to_string()).collect();
        names.sort();
        all.push((names.join(" "), 0, 0, String::new()));
    }
    all
}

async fn try_all(cases: &[Case]) {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    fs::create_dir(place.path("victim")).unwrap();
    fs::set_permissions(place.path("victim"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::create_dir(place.path("merged")).unwrap();
    // The store makes its own files with the first pull.
    let plain = archive(&[Dir("usr", 0o755)]);
    let source = layout.index(&[("", layout.image(&[(TAR, plain.clone(), plain)], "amd64"))]);
    place.pull(&source).await.unwrap();
    let before = surroundings(place.dir.path());
    for (name, base, entries, want) in cases {
        let below = archive(&[&[Dir("usr", 0o755)], *base].concat());
        let layer = archive(entries);
        let layers = [(TAR, below.clone(), below), (TAR, layer.clone(), layer.clone())];
        let source = layout.index(&[("", layout.image(&layers, "amd64"))]);
        let pulled = place.pull(&source).await;
        assert_eq!(surroundings(place.dir.path()), before, "{name}");
        match (want, pulled) {
            (Refused, Err(error)) => assert_eq!(error.kind(), ErrorKind::InvalidImage, "{name}: {error:?}"),
            (Refused, Ok(_)) => panic!("{name} was not refused"),
            (Holds(_), Err(error)) => panic!("{name}: {error:?}"),
            (Holds(script), Ok(image)) => {
                let diff_id = sha256(&layer);
                let layer_dir = place.path("state/layers").join(diff_id.replace(':', "/"));
                assert_eq!(fuzzing::verify(&layer_dir, &diff_id), "", "{name}");
                let lower: Vec<String> = image.layers.iter().rev().map(|l| l.display().to_string()).collect();
                // In a mount namespace of its own: nothing is left when the command ends.
                let script = format!(
                    "mount -t overlay none -o ro,lowerdir={} merged; cd merged; {script}",
                    lower.join(":")
                );
                let status = Command::new("unshare")
                    .args(["--mount", "--propagation", "private", "sh", "-euc", &script])
                    .current_dir(place.dir.path())
                    .status()
                    .unwrap();
                assert!(status.success(), "{name}: {script}");
            }
        }
    }
    place.nothing_half_made();
}

#[tokio::test]
async fn breakouts_of_containerd() {
    assert_eq!(CONTAINERD.len(), 34, "33 of containerd, and one of them in two forms");
    try_all(CONTAINERD).await;
}

#[tokio::test]
async fn breakouts_of_others() {
    try_all(OTHERS).await;
}

#[tokio::test]
async fn a_bomb_takes_neither_memory_nor_disk() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    // A file of 1 GiB of zeros in some 30 KiB.
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size(1 << 30);
    header.set_mode(0o644);
    header.set_cksum();
    use std::io::Write as _;
    encoder.write_all(header.as_bytes()).unwrap();
    for _ in 0..1 << 10 {
        encoder.write_all(&[0u8; 1 << 20]).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    let source = layout.index(&[("", layout.image(&[(ZSTD, bomb, b"not looked at".to_vec())], "amd64"))]);
    let mut options = skiff_runtime::image::PullOptions::default();
    options.limits.unpacked_bytes = 200 << 20;
    let before = peak_kib();
    let error = place.error(&source, &options).await;
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error:?}");
    assert!(peak_kib() - before < 64 << 10, "{} KiB more", peak_kib() - before);
    let left = Command::new("du").args(["-sk", "state"]).current_dir(place.dir.path()).output().unwrap();
    let kib: u64 =
        String::from_utf8(left.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 1024, "{kib} KiB are left");
}
