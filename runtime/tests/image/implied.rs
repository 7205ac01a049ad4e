//! A directory that a layer only implies is what the layers below say, as in Docker, containerd and
//! umoci.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use skiff_runtime::image::{GcOptions, Image, Store};

use crate::support::*;

/// A directory `NAME/` is `MODE UID TIME`; any other entry is an empty file.
fn layer(entries: &[(&str, u32, u64, u64)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, mode, uid, mtime) in entries {
        let mut header = tar::Header::new_gnu();
        let is_dir = name.ends_with('/');
        header.set_entry_type(if is_dir { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(*mode);
        header.set_uid(*uid);
        header.set_gid(*uid);
        header.set_mtime(*mtime);
        header.set_size(0);
        builder.append_data(&mut header, name, &b""[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn file(name: &str) -> (&str, u32, u64, u64) {
    (name, 0o644, 0, 7)
}

fn source(place: &Place, name: &str, layers: &[Vec<u8>]) -> String {
    let layout = Layout::new(&place.path(name));
    let layers: Vec<_> = layers.iter().map(|archive| (TAR, archive.clone(), archive.clone())).collect();
    layout.index(&[("t", layout.image(&layers, "amd64"))])
}

async fn pull(place: &Place, layers: &[Vec<u8>]) -> Image {
    let image = place.pull(&source(place, "layout", layers)).await.unwrap();
    place.nothing_half_made();
    image
}

/// `MODE UID TIME` of a directory through all layers, as overlayfs shows it.
fn seen(place: &Place, image: &Image, path: &str) -> String {
    let lower: Vec<String> = image.layers.iter().rev().map(|l| l.display().to_string()).collect();
    let (dir, lower) = (place.dir.path(), lower.join(":"));
    let script = format!(
        "mkdir -p merged empty; mount -t overlay none -o ro,lowerdir={lower}:empty merged; \
         stat -c '%a %u %Y' merged/{path}"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc", &script])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn fix(image: &Image) -> Option<PathBuf> {
    let top = image.layers.last().unwrap();
    top.to_str().unwrap().contains("/chains/").then(|| top.clone())
}

fn chains(place: &Place) -> usize {
    std::fs::read_dir(place.path("state/chains/sha256")).unwrap().count()
}

const TMP: (&str, u32, u64, u64) = ("tmp/", 0o1777, 0, 1000);

#[tokio::test]
async fn mode_owner_and_time_stay() {
    let place = Place::new();
    let lower = layer(&[("./", 0o750, 3, 999), TMP, ("home/", 0o755, 0, 5), ("home/me/", 0o700, 1000, 6)]);
    let image = pull(&place, &[lower, layer(&[file("tmp/x"), file("home/me/y")])]).await;
    assert_eq!(seen(&place, &image, "tmp"), "1777 0 1000");
    assert_eq!(seen(&place, &image, "home"), "755 0 5");
    assert_eq!(seen(&place, &image, "home/me"), "700 1000 6");
    assert_eq!(seen(&place, &image, "."), "750 3 999");
    assert_eq!(seen(&place, &image, "tmp/x"), "644 0 7");
}

#[tokio::test]
async fn what_needs_nothing_gets_nothing() {
    let place = Place::new();
    let (lower, described) = (layer(&[TMP]), layer(&[("tmp/", 0o700, 9, 3), file("tmp/x")]));
    let image = pull(&place, &[lower.clone(), described.clone()]).await;
    assert_eq!((image.layers.len(), chains(&place)), (2, 0));
    // Below, nothing says anything.
    let image = pull(&place, &[layer(&[file("a/x")]), layer(&[file("a/y"), file("new/z")])]).await;
    assert_eq!(fix(&image), None);
    assert_eq!(seen(&place, &image, "a"), "755 0 0");
    assert_eq!(seen(&place, &image, "new"), "755 0 0");
}

#[tokio::test]
async fn an_entry_that_comes_later_describes_it() {
    let place = Place::new();
    let image = pull(&place, &[layer(&[TMP]), layer(&[file("tmp/x"), ("tmp/", 0o711, 2, 4)])]).await;
    assert_eq!(fix(&image), None);
    assert_eq!(seen(&place, &image, "tmp"), "711 2 4");
}

#[tokio::test]
async fn what_hides_the_lower_one_ends_it() {
    for between in [
        vec![layer(&[file(".wh.tmp")])],
        vec![layer(&[file("tmp")])],
        // In the layer itself: what was there is removed, and made anew.
        vec![layer(&[file(".wh.tmp"), file("tmp/z")])],
    ] {
        let place = Place::new();
        let mut layers = vec![layer(&[TMP])];
        layers.extend(between);
        layers.push(layer(&[file("tmp/x")]));
        let image = pull(&place, &layers).await;
        assert_eq!(seen(&place, &image, "tmp"), "755 0 0");
    }
}

#[tokio::test]
async fn an_opaque_directory_keeps_itself_and_hides_what_is_in_it() {
    let place = Place::new();
    let lower = layer(&[TMP, ("tmp/in/", 0o700, 4, 4), file("tmp/old")]);
    let opaque = layer(&[file("tmp/.wh..wh..opq")]);
    let image = pull(&place, &[lower, opaque, layer(&[file("tmp/in/x")])]).await;
    assert_eq!(seen(&place, &image, "tmp"), "1777 0 1000");
    assert_eq!(seen(&place, &image, "tmp/in"), "755 0 0");
    for layer in &image.layers[1..] {
        assert!(!layer.join("tmp/old").exists());
    }
    let hidden = std::panic::catch_unwind(|| seen(&place, &image, "tmp/old"));
    assert!(hidden.is_err(), "what the opaque directory hides stays hidden");
}

#[tokio::test]
async fn the_highest_description_counts() {
    let place = Place::new();
    let image =
        pull(&place, &[layer(&[TMP]), layer(&[("tmp/", 0o705, 8, 8)]), layer(&[file("tmp/x")])]).await;
    assert_eq!(seen(&place, &image, "tmp"), "705 8 8");
    let image =
        pull(&place, &[layer(&[TMP]), layer(&[file("tmp/x")]), layer(&[("tmp/", 0o707, 9, 9)])]).await;
    assert_eq!((fix(&image), seen(&place, &image, "tmp")), (None, "707 9 9".into()));
}

#[tokio::test]
async fn a_shared_layer_and_the_collector() {
    let place = Place::new();
    let shared = layer(&[file("tmp/x")]);
    let one = place.pull(&source(&place, "one", &[layer(&[TMP]), shared.clone()])).await.unwrap();
    let two = place.pull(&source(&place, "two", &[layer(&[("tmp/", 0o700, 5, 5)]), shared])).await.unwrap();
    assert_eq!(one.layers[1], two.layers[1]);
    assert_eq!(seen(&place, &one, "tmp"), "1777 0 1000");
    assert_eq!(seen(&place, &two, "tmp"), "700 5 5");
    assert_eq!(chains(&place), 2);
    let kept = fix(&two).unwrap();
    let name = one.name.clone();
    drop(one);
    place.store.remove(&name).unwrap();
    assert_eq!(chains(&place), 1, "it goes with its image");
    let mut all = GcOptions::default();
    all.all = true;
    place.store.collect(&all).unwrap();
    assert!(kept.exists(), "an image in use keeps it");
    drop(two);
    place.store.collect(&all).unwrap();
    assert_eq!(chains(&place), 0);
}

#[tokio::test]
async fn one_of_an_earlier_boot_is_made_again() {
    let place = Place::new();
    let layers = [layer(&[TMP]), layer(&[file("tmp/x")])];
    let fixed = fix(&pull(&place, &layers).await).unwrap();
    let inode = std::fs::metadata(&fixed).unwrap().ino();
    assert_eq!(std::fs::metadata(fix(&pull(&place, &layers).await).unwrap()).unwrap().ino(), inode);
    std::fs::write(fixed.parent().unwrap().join("boot"), "an earlier one").unwrap();
    std::fs::remove_dir(fixed.join("tmp")).unwrap();
    let image = pull(&place, &layers).await;
    assert_eq!(seen(&place, &image, "tmp"), "1777 0 1000");
}

#[tokio::test]
async fn one_that_another_makes_is_waited_for_and_what_a_crash_left_is_replaced() {
    let place = Place::new();
    let layers = [layer(&[TMP]), layer(&[file("tmp/x")])];
    let fixed = fix(&pull(&place, &layers).await).unwrap();
    let (chain, id) = (fixed.parent().unwrap(), fixed.parent().unwrap().file_name().unwrap());
    std::fs::remove_dir_all(chain).unwrap();
    // Half of one, and its maker lives.
    let half = place.path("state/ingest").join(format!("chain-sha256-{}", id.to_str().unwrap()));
    std::fs::create_dir_all(half.join("fs/tmp")).unwrap();
    let lock = std::fs::File::open(&half).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (store, from) = (place.store.clone(), source(&place, "layout", &layers).parse().unwrap());
    let waiting = tokio::spawn(async move { store.pull(&from, &Default::default()).await });
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(!waiting.is_finished() && !chain.exists(), "half of one is not believed");
    // Its maker dies.
    drop(lock);
    let image = waiting.await.unwrap().unwrap();
    assert_eq!(seen(&place, &image, "tmp"), "1777 0 1000");
    place.nothing_half_made();
    // What nobody goes on with is swept.
    std::fs::create_dir_all(half.join("fs/tmp")).unwrap();
    drop(Store::open(&place.path("state")).unwrap());
    assert!(!half.exists());
}

#[tokio::test]
async fn a_broken_list_is_an_error() {
    let place = Place::new();
    let layers = [layer(&[TMP]), layer(&[file("tmp/x")])];
    let image = pull(&place, &layers).await;
    let list = image.layers[1].with_file_name("implied");
    std::fs::remove_dir_all(fix(&image).unwrap().parent().unwrap()).unwrap();
    for bytes in [&b""[..], b"tmp\0", b"../../etc\0\0", b"tmp\0\0sha256:00"] {
        std::fs::write(&list, bytes).unwrap();
        let error = place.error(&source(&place, "layout", &layers), &Default::default()).await;
        assert_eq!(error.kind(), skiff_runtime::ErrorKind::CorruptImage, "{error}");
    }
    assert!(Path::new("/etc").exists());
}

#[tokio::test]
async fn a_damaged_one_is_found_and_made_again() {
    let place = Place::new();
    let layers = [layer(&[TMP]), layer(&[file("tmp/x"), file("opt/y")])];
    let source = source(&place, "layout", &layers);
    let verify = |repair| {
        let mut options = skiff_runtime::image::VerifyOptions::default();
        options.repair = repair;
        place.store.verify(&options).unwrap()
    };
    for (damage, what) in [
        ("chmod 700 tmp", "tmp: its mode"),
        ("chown 5 tmp", "tmp: its mode, owner"),
        ("touch tmp", "time"),
        (
            "python3 -c \"import os; os.setxattr('tmp','trusted.overlay.opaque',b'y')\"",
            "trusted.overlay.opaque",
        ),
        ("python3 -c \"import os; os.setxattr('.','user.a',b'y')\"", "user.a"),
        ("mkdir etc; touch -d @0 .", "etc"),
        ("rmdir tmp", "time"),
        ("rmdir tmp; ln -s /etc tmp", "time"),
    ] {
        let image = place.pull(&source).await.unwrap();
        let fix = fix(&image).unwrap();
        assert!(verify(false).is_sound(), "before {damage}");
        let status = Command::new("sh").args(["-euc", damage]).current_dir(&fix).status().unwrap();
        assert!(status.success(), "{damage}");
        // In use: found, and not removed.
        let found = verify(true).damages;
        assert_eq!(found.len(), 1, "{damage}: {found:?}");
        assert!(
            found[0].part.starts_with("fix-up layer sha256:") && !found[0].removed,
            "{damage}: {found:?}"
        );
        assert!(found[0].what.contains(what) || damage.starts_with("mkdir"), "{damage}: {found:?}");
        drop(image);
        assert!(verify(true).damages[0].removed, "{damage}");
        assert!(!fix.exists() && verify(false).is_sound(), "{damage}");
        place.nothing_half_made();
    }
    let image = place.pull(&source).await.unwrap();
    assert_eq!(seen(&place, &image, "tmp"), "1777 0 1000");
}
