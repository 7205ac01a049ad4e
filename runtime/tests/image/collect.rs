//! Leases, pins, listing, removing and collecting.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{GcOptions, Image, PullOptions, PullPolicy, Store, StoredImage};

use crate::support::*;

/// A layout with the images `one` (layers base, one) and `two` (layers base, two).
fn pair(place: &Place) -> (Layout, String) {
    let layout = Layout::new(&place.path("layout"));
    let layer = |name: &str, bytes: usize| {
        let archive = tar(&[(name, &name.repeat(bytes))]);
        (GZIP, gzip(&archive), archive)
    };
    let one = layout.image(&[layer("base", 10_000), layer("one", 5_000)], "amd64");
    let two = layout.image(&[layer("base", 10_000), layer("two", 1_000)], "amd64");
    let source = layout.index(&[("one", one), ("two", two)]);
    (layout, source)
}

fn stored(store: &Store, digest: &str) -> Option<StoredImage> {
    store.images().unwrap().into_iter().find(|image| image.digest == digest)
}

fn layers(place: &Place) -> usize {
    fs::read_dir(place.path("state/layers/sha256")).unwrap().count()
}

fn blobs(place: &Place) -> usize {
    fs::read_dir(place.path("state/blobs/sha256")).unwrap().count()
}

fn dirs(image: &Image) -> Vec<PathBuf> {
    image.layers.clone()
}

/// Makes all images look as if they were last used so long ago.
fn age(place: &Place, digest: &str, by: Duration) {
    for dir in ["manifests", "images"] {
        for path in fs::read_dir(place.path("state").join(dir)).unwrap().map(|e| e.unwrap().path()) {
            if fs::read_to_string(&path).unwrap().contains(digest) {
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_modified(SystemTime::now() - by).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn images_tell_what_they_take_and_share() {
    let place = Place::new();
    let (_layout, source) = pair(&place);
    let one = place.pull(&format!("{source}:one")).await.unwrap();
    let two = place.pull(&format!("{source}:two")).await.unwrap();
    let (digest, other) = (one.digest.clone(), two.digest.clone());
    drop(two);
    let images = place.store.images().unwrap();
    assert_eq!(images.len(), 2);
    let first = stored(&place.store, &digest).unwrap();
    assert_eq!(first.names, [format!("{source}:one")]);
    assert_eq!((first.layers, first.in_use, first.complete), (2, true, true));
    assert_eq!(first.packed_bytes, one.packed_bytes);
    let archive = |name: &str, times: usize| tar(&[(name, &name.repeat(times))]).len() as u64;
    assert_eq!(first.shared_bytes, archive("base", 10_000));
    assert_eq!(first.unpacked_bytes, archive("base", 10_000) + archive("one", 5_000));
    assert!(!stored(&place.store, &other).unwrap().in_use, "nobody holds it");
    assert!(first.last_used.elapsed().unwrap() < Duration::from_secs(60));
    drop(one);
    assert!(!stored(&place.store, &digest).unwrap().in_use);

    // A layer of a store of an older version has no record of its own; its files are counted.
    for layer in fs::read_dir(place.path("state/layers/sha256")).unwrap() {
        fs::remove_file(layer.unwrap().path().join("layer.json")).unwrap();
    }
    assert_eq!(stored(&place.store, &digest).unwrap().unpacked_bytes, 40_000 + 15_000);
}

#[tokio::test]
async fn what_is_in_use_is_not_removed() {
    let place = Place::new();
    let (_layout, source) = pair(&place);
    let name = format!("{source}:one");
    let image = place.pull(&name).await.unwrap();
    let copy = image.clone();
    let files = dirs(&image);
    // Another process would open the store anew.
    let other = Store::open(&place.path("state")).unwrap();
    let all = GcOptions::default().with_all();
    drop(image);
    let error = other.remove(&name).expect_err("a copy is held");
    assert_eq!(error.kind(), ErrorKind::ImageInUse);
    assert!(error.to_string().contains("an instance runs from it"), "{error}");
    let report = other.collect(&all).unwrap();
    assert_eq!((report.images.len(), report.layers.len(), report.blobs), (0, 0, 0));
    assert!(files.iter().all(|dir| dir.exists()));
    drop(copy);
    let report = other.collect(&all).unwrap();
    assert_eq!((report.images.len(), report.layers.len()), (1, 2));
    assert!(report.freed_bytes > 50_000, "{report:?}");
    assert!(report.leases == 1 && files.iter().all(|dir| !dir.exists()));
    assert_eq!((layers(&place), blobs(&place)), (0, 0));
    assert!(place.store.images().unwrap().is_empty());
    place.pull(&name).await.unwrap();
    assert_eq!(layers(&place), 2);
}

#[tokio::test]
async fn a_copy_of_the_descriptor_in_another_process_keeps_an_image() {
    let place = Place::new();
    let (_layout, source) = pair(&place);
    let image = place.pull(&format!("{source}:one")).await.unwrap();
    // The lease is the only open file of its directory: hand it to a child, as to the keeper.
    let lease = fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .find(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(place.path("state/leases"))))
        .unwrap();
    let number: i32 = lease.file_name().to_str().unwrap().parse().unwrap();
    let copy: OwnedFd = {
        use std::os::fd::AsRawFd as _;
        // By its number, as this test cannot reach into the image.
        let pidfd =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
        let pidfd = pidfd.unwrap();
        assert!(pidfd.as_raw_fd() != number);
        rustix::process::pidfd_getfd(&pidfd, number, rustix::process::PidfdGetfdFlags::empty()).unwrap()
    };
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .stdin(std::process::Stdio::from(copy))
        .spawn()
        .unwrap();
    let digest = image.digest.clone();
    drop(image);
    let report = place.store.collect(&GcOptions::default().with_all());
    let in_use = stored(&place.store, &digest).unwrap().in_use;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(report.unwrap().images.is_empty() && in_use, "the child holds it");
    assert!(!stored(&place.store, &digest).unwrap().in_use);
}

#[tokio::test]
async fn pins_survive_and_are_told() {
    let place = Place::new();
    let (_layout, source) = pair(&place);
    let name = format!("{source}:one");
    let image = place.pull(&name).await.unwrap();
    let digest = image.digest.clone();
    place.store.pin("function/f", &image).unwrap();
    place.store.pin("function/f", &image).unwrap();
    place.store.pin("function/g", &image).unwrap();
    drop(image);
    let again = Store::open(&place.path("state")).unwrap();
    assert_eq!(again.pins().unwrap().len(), 2);
    assert_eq!(stored(&again, &digest).unwrap().pinned_by, ["function/f", "function/g"]);
    assert!(again.collect(&GcOptions::default().with_all()).unwrap().images.is_empty());
    let error = again.remove(&name).expect_err("pinned");
    assert_eq!(error.kind(), ErrorKind::ImageInUse);
    assert!(error.to_string().contains("pinned by function/f, function/g"), "{error}");
    assert!(again.unpin("function/f").unwrap() && again.unpin("function/g").unwrap());
    assert!(!again.unpin("function/f").unwrap());
    assert_eq!(again.remove(&name).unwrap().names, [name]);

    let unmanaged = Image::unmanaged("x", Default::default(), vec![]);
    for (owner, image) in [("", &unmanaged), ("a\nb", &unmanaged), ("fine", &unmanaged)] {
        assert_eq!(again.pin(owner, image).expect_err(owner).kind(), ErrorKind::InvalidArgument);
    }
    fs::write(place.path("state/pins/x.json"), "{").unwrap();
    assert_eq!(again.collect(&GcOptions::default()).expect_err("unreadable").kind(), ErrorKind::Host);
}

#[tokio::test]
async fn removing_by_name_and_by_digits() {
    let place = Place::new();
    let (layout, source) = pair(&place);
    let one = place.pull(&format!("{source}:one")).await.unwrap().digest;
    let two = place.pull(&format!("{source}:two")).await.unwrap().digest;
    let base = layers(&place);
    assert_eq!(base, 3);
    let missing = |text: &str| place.store.remove(text).expect_err(text).kind();
    for text in ["nothing", "abcdef0", "sha256:abcdef0", "", "oci:/x:y", &one[7..12], "ABCDEF12"] {
        assert_eq!(missing(text), ErrorKind::ImageNotFound, "{text}");
    }
    let removal = place.store.remove(&one[7..17]).unwrap();
    assert_eq!((removal.digest.as_str(), removal.removed, removal.layers.len()), (one.as_str(), true, 1));
    assert!(removal.freed_bytes >= 15_000, "{removal:?}");
    assert_eq!(layers(&place), 2, "the other image has the base too");
    assert_eq!(blobs(&place), 2);

    // Another name of the second image: one name goes, then the image.
    let copy = place.path("copy");
    assert!(
        std::process::Command::new("cp").arg("-r").args([&layout.dir, &copy]).status().unwrap().success()
    );
    let alias = format!("oci:{}:two", copy.display());
    place.pull(&alias).await.unwrap();
    assert_eq!(stored(&place.store, &two).unwrap().names.len(), 2);
    let removal = place.store.remove(&alias).unwrap();
    assert_eq!((removal.removed, removal.names.as_slice()), (false, &[alias][..]));
    assert!(place.store.remove(&two).unwrap().removed);
    assert_eq!((layers(&place), blobs(&place)), (0, 0));
    place.nothing_half_made();
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_leaves_an_image_without_a_name() {
    let place = Place::new();
    let (layout, source) = pair(&place);
    let index = fs::read_to_string(layout.dir.join("index.json")).unwrap();
    let name = format!("{source}:one");
    let old = place.pull(&name).await.unwrap().digest;
    let swapped = index.replace("\"one\"", "\"three\"").replace("\"two\"", "\"one\"");
    fs::write(layout.dir.join("index.json"), swapped).unwrap();
    let new = place.pull(&name).await.unwrap().digest;
    assert_ne!(old, new);
    assert_eq!(stored(&place.store, &old).unwrap().names.len(), 0);
    assert_eq!(stored(&place.store, &new).unwrap().names, [name]);
    let dry = GcOptions::default().with_dry_run();
    let would = place.store.collect(&dry).unwrap();
    assert_eq!(layers(&place), 3);
    let report = place.store.collect(&GcOptions::default()).unwrap();
    assert_eq!((&would.images, &would.layers, would.blobs), (&report.images, &report.layers, report.blobs));
    assert_eq!(would.freed_bytes, report.freed_bytes);
    assert_eq!((report.images[0].digest.as_str(), report.layers.len()), (old.as_str(), 1));
    assert_eq!(layers(&place), 2);
}

#[tokio::test]
async fn by_age_and_by_size() {
    let place = Place::new();
    let (_layout, source) = pair(&place);
    let one = place.pull(&format!("{source}:one")).await.unwrap().digest;
    let two = place.pull(&format!("{source}:two")).await.unwrap().digest;
    age(&place, &one, Duration::from_secs(3600));
    age(&place, &two, Duration::from_secs(60));
    let hours = |n: u64| GcOptions::default().with_older_than(Duration::from_secs(n * 3600));
    assert!(place.store.collect(&hours(2)).unwrap().images.is_empty());
    let whole: u64 = [("base", 10_000), ("one", 5_000), ("two", 1_000)]
        .map(|(name, times)| tar(&[(name, &name.repeat(times))]).len() as u64)
        .iter()
        .sum();
    let fits = |bytes: u64| GcOptions::default().with_max_bytes(bytes);
    assert!(place.store.collect(&fits(whole)).unwrap().images.is_empty());
    let report = place.store.collect(&fits(whole - 1).with_dry_run()).unwrap();
    assert_eq!(report.images.iter().map(|i| i.digest.as_str()).collect::<Vec<_>>(), [one.as_str()]);
    let report = place.store.collect(&hours(1)).unwrap();
    assert_eq!(report.images.len(), 1);
    assert_eq!(report.images[0].digest, one);
    // A use makes it young again.
    age(&place, &two, Duration::from_secs(7200));
    place.pull(&format!("{source}:two")).await.unwrap();
    assert!(place.store.collect(&hours(1)).unwrap().images.is_empty());
    assert_eq!(place.store.collect(&fits(0)).unwrap().images[0].digest, two);
}

#[tokio::test]
async fn what_crashes_left_is_collected_and_what_is_being_made_is_not() {
    let place = Place::new();
    let (_layout, source) = pair(&place);
    let image = place.pull(&format!("{source}:one")).await.unwrap();
    let state = place.path("state");
    let orphan = state.join("layers/sha256").join("0".repeat(64));
    fs::create_dir_all(orphan.join("fs/deep/er")).unwrap();
    fs::write(state.join("blobs/sha256").join("1".repeat(64)), "x").unwrap();
    fs::create_dir_all(state.join("ingest").join(format!("sha256-{}", "2".repeat(64))).join("fs")).unwrap();
    fs::create_dir_all(state.join("trash/dead/fs")).unwrap();
    fs::write(state.join("tmp/4194304999-1"), "x").unwrap();
    fs::write(state.join("leases/stale"), "x").unwrap();
    let made = state.join("ingest").join(format!("sha256-{}", "3".repeat(64)));
    fs::create_dir_all(made.join("fs")).unwrap();
    let maker = fs::File::open(&made).unwrap();
    rustix::fs::flock(&maker, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let report = place.store.collect(&GcOptions::default()).unwrap();
    assert_eq!(
        (report.layers.len(), report.blobs, report.leases, report.leftovers),
        (1, 1, 1, 3),
        "{report:?}"
    );
    assert!(report.images.is_empty() && made.join("fs").exists() && !orphan.exists());
    assert_eq!(image.layers.iter().filter(|dir| dir.exists()).count(), 2);
    assert_eq!(fs::read_dir(state.join("trash")).unwrap().count(), 0);
    drop(maker);
    assert_eq!(place.store.collect(&GcOptions::default()).unwrap().leftovers, 1);
    place.nothing_half_made();
}

#[tokio::test]
async fn opening_a_store_deletes_what_a_collection_that_died_left() {
    let place = Place::new();
    fs::create_dir_all(place.path("state/trash/1-1/fs/a")).unwrap();
    Store::open(&place.path("state")).unwrap();
    assert_eq!(fs::read_dir(place.path("state/trash")).unwrap().count(), 0);
}

#[tokio::test]
async fn policies_of_pulling() {
    let place = Place::new();
    let (layout, source) = pair(&place);
    let name = format!("{source}:one");
    let with = |policy| {
        let mut options = PullOptions::default();
        options.policy = policy;
        options
    };
    let error = place.error(&name, &with(PullPolicy::Never)).await;
    assert_eq!(error.kind(), ErrorKind::ImageNotFound);
    let image = place.pull_with(&name, &with(PullPolicy::Missing)).await.unwrap();
    fs::rename(&layout.dir, place.path("away")).unwrap();
    for policy in [PullPolicy::Missing, PullPolicy::Never] {
        let again = place.pull_with(&name, &with(policy)).await.unwrap();
        assert_eq!((again.digest, again.layers), (image.digest.clone(), image.layers.clone()));
    }
    place.error(&name, &with(PullPolicy::Always)).await;
    // An image that lacks a layer is not believed.
    remove_layer(&image.layers[0]);
    assert_eq!(place.error(&name, &with(PullPolicy::Never)).await.kind(), ErrorKind::ImageNotFound);
    assert!(!stored(&place.store, &image.digest).unwrap().complete);
}

fn remove_layer(fs: &Path) {
    fs::remove_dir_all(fs.parent().unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn collecting_beside_pulls_takes_nothing_from_them() {
    let place = Place::new();
    let (_layout, source) = pair(&place);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let collector = {
        let (stop, store) = (stop.clone(), Store::open(&place.path("state")).unwrap());
        std::thread::spawn(move || {
            let mut rounds = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                store.collect(&GcOptions::default().with_all()).unwrap();
                rounds += 1;
            }
            rounds
        })
    };
    for round in 0..60 {
        let tag = if round % 2 == 0 { "one" } else { "two" };
        let image = place.pull(&format!("{source}:{tag}")).await.unwrap();
        assert_eq!(read(&image, 0, "base").len(), 40_000, "round {round}");
        assert!(image.layers[1].join(tag).exists(), "round {round}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(collector.join().unwrap() > 0);
}
