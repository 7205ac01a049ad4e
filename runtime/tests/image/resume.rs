//! Pulls that are cut off: what they leave, and how the next one goes on; and hosts that go down.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::Duration;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{GcOptions, Image, PullOptions, Source, Store};

use crate::crash::other_process;
use crate::rationed::{LAYER_BYTES, Rationed};
use crate::support::*;

fn plain() -> PullOptions {
    PullOptions { plain_http: true, ..PullOptions::default() }
}

/// The packed bytes that the store keeps.
fn kept(place: &Place) -> Option<PathBuf> {
    let ingest = fs::read_dir(place.path("state/ingest")).unwrap().next()?.unwrap().path();
    let mut left = fs::read_dir(ingest).unwrap().map(|entry| entry.unwrap().path());
    let packed = left.next().unwrap();
    assert!(packed.file_name().unwrap().to_str().unwrap().starts_with("packed-sha256-"), "{packed:?}");
    assert!(left.next().is_none(), "only packed bytes may be kept");
    Some(packed)
}

/// Whether a pull that goes on has kept so much.
fn has_kept(place: &Place, bytes: u64) -> bool {
    let ingest = fs::read_dir(place.path("state/ingest")).unwrap().flatten();
    let files = ingest.filter_map(|entry| fs::read_dir(entry.path()).ok()).flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).any(|data| data.is_file() && data.len() >= bytes)
}

fn is_right(image: &Image) {
    let noise = fs::read(image.layers[0].join("noise")).unwrap();
    assert_eq!(noise.len(), LAYER_BYTES);
    let wanted = |n: usize| b'!' + ((n as u64 * n as u64) % 89) as u8;
    assert!(noise.iter().enumerate().all(|(n, byte)| *byte == wanted(n)));
}

/// A pull that fails after six MiB.
async fn cut_off(place: &Place, registry: &Rationed) -> u64 {
    registry.may_send(6 << 20);
    let error = place.pull_with(&registry.name(), &plain()).await.expect_err("it is cut off");
    assert_eq!(error.kind(), ErrorKind::RegistryUnreachable);
    registry.may_send(u64::MAX);
    registry.ranges();
    fs::metadata(kept(place).expect("packed bytes")).unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_where_the_last_was_cut_off() {
    let place = Place::new();
    let registry = Rationed::start(&place);
    let kept = cut_off(&place, &registry).await;
    assert!(kept > 1 << 20 && kept <= 6 << 20, "{kept}");
    // Another process, another day.
    let store = Store::open(&place.path("state")).unwrap();
    let source: Source = registry.name().parse().unwrap();
    let image = store.pull(&source, &plain()).await.unwrap();
    assert_eq!(registry.ranges(), [kept]);
    is_right(&image);
    place.nothing_half_made();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_and_spoiled_is_fetched_again() {
    let place = Place::new();
    let registry = Rationed::start(&place);
    cut_off(&place, &registry).await;
    let path = kept(&place).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let image = place.pull_with(&registry.name(), &plain()).await.unwrap();
    assert_eq!(registry.ranges(), [bytes.len() as u64, 0]);
    is_right(&image);
    place.nothing_half_made();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_layer_has_is_not_believed() {
    let place = Place::new();
    let registry = Rationed::start(&place);
    cut_off(&place, &registry).await;
    fs::write(kept(&place).unwrap(), vec![0; LAYER_BYTES * 2]).unwrap();
    is_right(&place.pull_with(&registry.name(), &plain()).await.unwrap());
    assert_eq!(registry.ranges(), [0]);
    place.nothing_half_made();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_dropped_keeps_what_came() {
    let place = Place::new();
    let registry = Rationed::start(&place);
    registry.may_send(6 << 20);
    let source: Source = registry.name().parse().unwrap();
    let options = plain();
    let came = async {
        while !has_kept(&place, 4 << 20) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = place.store.pull(&source, &options) => panic!("it ended: {result:?}"),
        () = came => {}
    }
    registry.may_send(u64::MAX);
    registry.ranges();
    // The thread that unpacks sees a little later that no one wants it any more.
    is_right(&place.pull_with(&registry.name(), &plain()).await.unwrap());
    let ranges = registry.ranges();
    assert!(ranges.len() == 1 && ranges[0] > 1 << 20, "{ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_of_a_killed_process_is_gone_on_with() {
    let place = Place::new();
    let registry = Rationed::start(&place);
    registry.may_send(6 << 20);
    // It waits for the rest when it is killed.
    registry.stays(true);
    let mut other = other_process(&place.path("state"), &registry.name());
    while !has_kept(&place, 4 << 20) {
        assert!(other.try_wait().unwrap().is_none(), "it ended before it was killed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    other.kill().unwrap();
    assert_eq!(other.wait().unwrap().signal(), Some(9));
    registry.stays(false);
    registry.may_send(u64::MAX);
    assert_eq!(registry.ranges(), [0]);
    let store = Store::open(&place.path("state")).unwrap();
    assert!(store.images().unwrap().is_empty());
    is_right(&store.pull(&registry.name().parse().unwrap(), &plain()).await.unwrap());
    let ranges = registry.ranges();
    assert!(ranges.len() == 1 && ranges[0] >= 4 << 20, "{ranges:?}");
    place.nothing_half_made();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_not_kept() {
    let place = Place::new();
    let registry = Rationed::start(&place);
    registry.may_send(u64::MAX);
    let blob = place.path("layout/blobs").join(registry.layer.replace(':', "/"));
    let mut bytes = fs::read(&blob).unwrap();
    bytes[8 << 20] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let error = place.error(&registry.name(), &plain()).await;
    assert_eq!(error.kind(), ErrorKind::DigestMismatch);
}

fn markers(place: &Place) -> Vec<PathBuf> {
    fs::read_dir(place.path("state/unsettled")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_a_crash_of_the_host_may_have_spoiled_is_not_believed() {
    let place = Place::new();
    let (_, source) = Layout::small(&place.path("layout"));
    place.pull(&source).await.unwrap();
    let [first, second, third] = markers(&place).try_into().expect("one marker for each layer");
    // As after a crash: of an earlier boot; one layer is damaged, one has lost a file.
    fs::write(&first, "00000000-0000-0000-0000-000000000000").unwrap();
    spoil(&place, &first, |file| fs::write(file, "\0").unwrap());
    fs::write(&second, "").unwrap();
    spoil(&place, &second, |file| fs::remove_file(file).unwrap());
    let store = Store::open(&place.path("state")).unwrap();
    assert_eq!(markers(&place), [third]);
    let (options, events) = observed();
    let image = store.pull(&source.parse().unwrap(), &options).await.unwrap();
    assert_eq!(started(&events), 2, "the two are made again, the third is of this boot");
    assert_eq!(read(&image, 2, "etc/three"), "3");
    place.nothing_half_made();
}

/// Does something to a file of the layer that a marker is for.
fn spoil(place: &Place, marker: &std::path::Path, how: impl FnOnce(&std::path::Path)) {
    let name = marker.file_name().unwrap().to_str().unwrap().replacen('-', "/", 1);
    let etc = place.path("state/layers").join(name).join("fs/etc");
    let mut files = fs::read_dir(etc).unwrap().map(|entry| entry.unwrap().path());
    how(&files.find(|path| path.symlink_metadata().unwrap().is_file()).expect("a file"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_a_crash_left_whole_is_kept() {
    let place = Place::new();
    let (_, source) = Layout::small(&place.path("layout"));
    place.pull(&source).await.unwrap();
    for marker in markers(&place) {
        fs::write(marker, "").unwrap();
    }
    let store = Store::open(&place.path("state")).unwrap();
    assert!(markers(&place).is_empty());
    let (options, events) = observed();
    store.pull(&source.parse().unwrap(), &options).await.unwrap();
    assert_eq!(started(&events), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn settled_layers_survive_a_crash_of_the_host() {
    let place = Place::new();
    let (_, source) = Layout::small(&place.path("layout"));
    place.pull(&source).await.unwrap();
    place.store.settle().unwrap();
    assert!(markers(&place).is_empty());
    let store = Store::open(&place.path("state")).unwrap();
    let (options, events) = observed();
    store.pull(&source.parse().unwrap(), &options).await.unwrap();
    assert_eq!(started(&events), 0);
    place.store.settle().expect("nothing to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_settle_by_themselves() {
    let place = Place::new();
    let (_, source) = Layout::small(&place.path("layout"));
    place.pull(&source).await.unwrap();
    for _ in 0..600 {
        if markers(&place).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("still unsettled: {:?}", markers(&place));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_could_not_be_hashed_again_is_on_the_disk_at_once() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let twice = tar(&[("a", "first"), ("a", "second")]);
    let source = layout.index(&[("", layout.image(&[(TAR, twice.clone(), twice)], "amd64"))]);
    let image = place.pull(&source).await.unwrap();
    assert_eq!(read(&image, 0, "a"), "second");
    assert!(markers(&place).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_of_all_takes_what_was_kept_too() {
    let place = Place::new();
    let registry = Rationed::start(&place);
    cut_off(&place, &registry).await;
    place.store.collect(&GcOptions::default()).unwrap();
    assert!(kept(&place).is_some(), "a usual one leaves what came lately");
    let mut all = GcOptions::default();
    all.all = true;
    assert_eq!(place.store.collect(&all).unwrap().leftovers, 1);
    place.nothing_half_made();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_dead_process_of_the_same_number_do_not_matter() {
    let place = Place::new();
    for number in 0..20 {
        fs::write(place.path("state/tmp").join(format!("{}-{number}", std::process::id())), "").unwrap();
    }
    let (_, source) = Layout::small(&place.path("layout"));
    place.pull(&source).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_attempt_leaves_room_for_the_next() {
    let place = Place::new();
    let registry = Rationed::start(&place);
    cut_off(&place, &registry).await;
    let path = kept(&place).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let mut options = plain();
    // The layer fits once.
    options.limits.unpacked_bytes = LAYER_BYTES as u64 + 8192;
    is_right(&place.pull_with(&registry.name(), &options).await.unwrap());
}
