//! Pulls that are killed, disks that fill up, and many pulls of one image at once: in this process and
//! in others, which are this test program called anew.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use skiff_runtime::ErrorKind;
use skiff_runtime::image::{GcOptions, PullOptions, Store};

use crate::support::*;

const STATE: &str = "SKIFF_TEST_PULL_STATE";
const SOURCE: &str = "SKIFF_TEST_PULL_SOURCE";

/// Not a test of its own: what the other processes do.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "other tests call it in a process of its own"]
async fn pull_in_a_process_of_its_own() {
    let (Ok(state), Ok(source)) = (std::env::var(STATE), std::env::var(SOURCE)) else { return };
    let store = Store::open(Path::new(&state)).unwrap();
    store.pull(&source.parse().unwrap(), &plain()).await.unwrap();
}

/// Not a test of its own either.
#[test]
#[ignore = "other tests call it in a process of its own"]
fn collect_in_a_process_of_its_own() {
    let Ok(state) = std::env::var(STATE) else { return };
    let store = Store::open(Path::new(&state)).unwrap();
    store.collect(&GcOptions::default().with_all()).unwrap();
}

pub(crate) fn other_process(state: &Path, source: &str) -> Child {
    process_of("crash::pull_in_a_process_of_its_own", state, source)
}

fn process_of(test: &str, state: &Path, source: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored"])
        .env(STATE, state)
        .env(SOURCE, source)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn plain() -> PullOptions {
    PullOptions { plain_http: true, ..PullOptions::default() }
}

/// Layers of many files, each file with the number of its layer.
fn many_files(layers: usize, files: usize, bytes: usize) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let layer = |number: usize| {
        let text = number.to_string().repeat(bytes);
        let names: Vec<String> = (0..files).map(|file| format!("layer{number}-file{file}")).collect();
        let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), text.as_str())).collect();
        let archive = tar(&all);
        (GZIP, gzip(&archive), archive)
    };
    (0..layers).map(layer).collect()
}

/// Every layer that has its name is whole.
fn all_layers_are_whole(state: &Path, files: usize, bytes: usize) -> usize {
    let layers: Vec<PathBuf> =
        fs::read_dir(state.join("layers/sha256")).unwrap().map(|e| e.unwrap().path().join("fs")).collect();
    for layer in &layers {
        let found: Vec<PathBuf> = fs::read_dir(layer).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(found.len(), files, "{}", layer.display());
        assert!(found.iter().all(|file| fs::metadata(file).unwrap().len() == bytes as u64));
    }
    layers.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_pulls_leave_nothing_that_is_believed() {
    const FILES: usize = 150;
    const BYTES: usize = 2000;
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let source = layout.index(&[("", layout.image(&many_files(4, FILES, BYTES), "amd64"))]);
    let state = place.path("state");
    let begin = Instant::now();
    assert!(other_process(&state, &source).wait().unwrap().success());
    let mut whole = begin.elapsed();
    assert_eq!(all_layers_are_whole(&state, FILES, BYTES), 4);

    let mut random = std::process::id();
    let mut interrupted = 0;
    for round in 0..40 {
        if round % 2 == 0 {
            place.store.collect(&GcOptions::default().with_all()).unwrap();
        }
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut child = other_process(&state, &source);
        std::thread::sleep(whole * (random >> 16) / 0xffff);
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            // The first one may have been slow.
            whole = whole * 4 / 5;
        } else {
            interrupted += 1;
        }
        let store = Store::open(&state).unwrap();
        place.nothing_half_made();
        all_layers_are_whole(&state, FILES, BYTES);
        for image in store.images().unwrap() {
            assert!(image.complete && !image.in_use, "round {round}: {image:?}");
        }
        if round % 8 == 7 {
            let image = store.pull(&source.parse().unwrap(), &plain()).await.unwrap();
            assert_eq!(image.layers.len(), 4);
            assert_eq!(all_layers_are_whole(&state, FILES, BYTES), 4);
        }
    }
    assert!(interrupted > 5, "only {interrupted} pulls were interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_collections_keep_what_is_used_and_are_completed() {
    const FILES: usize = 150;
    const BYTES: usize = 2000;
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let (all, doomed) = (many_files(5, FILES, BYTES), many_files(4, FILES, BYTES));
    let doomed = layout.image(&doomed, "amd64");
    // It shares no layer with the other.
    let source = layout.index(&[("kept", layout.image(&all[4..], "amd64")), ("doomed", doomed)]);
    let state = place.path("state");
    let kept = place.pull(&format!("{source}:kept")).await.unwrap();
    let collect = || process_of("crash::collect_in_a_process_of_its_own", &state, "");
    drop(place.pull(&format!("{source}:doomed")).await.unwrap());
    let begin = Instant::now();
    assert!(collect().wait().unwrap().success());
    let whole = begin.elapsed();
    assert_eq!(all_layers_are_whole(&state, FILES, BYTES), 1, "the doomed ones are gone");

    let (mut random, mut interrupted, mut part) = (std::process::id(), 0, 0);
    for round in 0..30 {
        drop(place.pull(&format!("{source}:doomed")).await.unwrap());
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut child = collect();
        std::thread::sleep(whole * (random >> 16) / 0xffff);
        child.kill().unwrap();
        interrupted += usize::from(!child.wait().unwrap().success());
        let store = Store::open(&state).unwrap();
        let left = all_layers_are_whole(&state, FILES, BYTES);
        part += usize::from((2..5).contains(&left));
        // An image whose parts have begun to go is no image any more.
        for image in store.images().unwrap() {
            assert!(image.complete, "round {round}: {image:?}");
        }
        store.collect(&GcOptions::default().with_all()).unwrap();
        assert_eq!(all_layers_are_whole(&state, FILES, BYTES), 1, "round {round}");
        place.nothing_half_made();
    }
    assert!(interrupted > 5, "only {interrupted} collections were interrupted, {part} in the middle");
    assert!(kept.layers[0].join("layer4-file0").exists());
}

/// A disk of its own; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn new(place: &Place, mib: u64) -> Self {
        let (file, mount) = (place.path("disk"), place.path("mount"));
        fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir(&mount).unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output().unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run("mkfs.ext4", &["-q", "-m", "0", file.to_str().unwrap()]);
        run("mount", &["-o", "loop", file.to_str().unwrap(), mount.to_str().unwrap()]);
        Self(mount)
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all space but this; gives it back when the file is removed.
    fn leave(&self, bytes: u64) -> PathBuf {
        let path = self.0.join("ballast");
        let file = fs::File::create(&path).unwrap();
        let (mut size, mut chunk) = (0, 32 << 20);
        // The filesystem needs some blocks itself, so the last ones are taken in small pieces.
        while self.free() > bytes && chunk >= 4096 {
            let more = chunk.min(self.free() - bytes);
            let flags = rustix::fs::FallocateFlags::empty();
            match rustix::fs::fallocate(&file, flags, size, more) {
                Ok(()) => size += more,
                Err(_) => chunk /= 2,
            }
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_at_any_stage_leaves_nothing_and_takes_nothing() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let source = layout.index(&[("", layout.image(&many_files(3, 50, 20_000), "amd64"))]);
    let disk = Disk::new(&place, 64);
    let state = disk.0.join("state");
    let store = Store::open(&state).unwrap();
    // Directories of ext4 do not shrink, so all of them are made first.
    store.pull(&source.parse().unwrap(), &plain()).await.unwrap();
    store.settle().unwrap();
    store.collect(&GcOptions::default().with_all()).unwrap();
    let mut failures = 0;
    for kib in [0u64, 4, 8, 12, 16, 24, 32, 64, 200, 600, 1100, 1300, 2100, 2900, 3100, 3200, 3300] {
        let before = disk.free();
        let ballast = disk.leave(kib << 10);
        let pulled = store.pull(&source.parse().unwrap(), &plain()).await.map(drop);
        if let Err(error) = pulled {
            failures += 1;
            assert_eq!(error.kind(), ErrorKind::DiskFull, "{kib} KiB: {error:?}");
            for dir in ["ingest", "tmp"] {
                let left = fs::read_dir(state.join(dir)).unwrap().count();
                assert_eq!(left, 0, "{kib} KiB: {dir}");
            }
            assert!(store.images().is_ok_and(|images| images.iter().all(|image| image.complete)));
        }
        all_layers_are_whole(&state, 50, 20_000);
        fs::remove_file(ballast).unwrap();
        let image = store.pull(&source.parse().unwrap(), &plain()).await.unwrap();
        assert_eq!(image.layers.len(), 3, "{kib} KiB");
        assert_eq!(all_layers_are_whole(&state, 50, 20_000), 3);
        drop(image);
        store.settle().unwrap();
        store.collect(&GcOptions::default().with_all()).unwrap();
        let lost = before.saturating_sub(disk.free());
        assert!(lost <= 64 << 10, "{kib} KiB: {lost} bytes did not come back");
    }
    assert!(failures >= 10, "the disk was full only {failures} times");
    drop(store);
}

/// A registry that counts how often each path is asked for.
struct Counting {
    address: String,
    counts: Arc<Mutex<HashMap<String, usize>>>,
    /// Paths that are not found until the directory has that many entries, once.
    broken: Arc<Mutex<Option<(String, PathBuf, usize)>>>,
}

impl Counting {
    fn start(layout: &Layout, image: &Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (counts, broken) = (Arc::default(), Arc::default());
        let this = Self { address, counts: Arc::clone(&counts), broken: Arc::clone(&broken) };
        let (dir, digest) = (layout.dir.clone(), image["digest"].as_str().unwrap().to_owned());
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (dir, digest) = (dir.clone(), digest.clone());
                let (counts, broken) = (Arc::clone(&counts), Arc::clone(&broken));
                std::thread::spawn(move || answer(&stream, &dir, &digest, &counts, &broken));
            }
        });
        this
    }

    fn image(&self) -> String {
        format!("{}/a/b:latest", self.address)
    }

    fn count(&self, digest: &Value) -> usize {
        self.count_of(&format!("blobs/{}", digest.as_str().unwrap()))
    }

    fn count_of(&self, path: &str) -> usize {
        self.counts.lock().unwrap().get(&format!("/v2/a/b/{path}")).copied().unwrap_or(0)
    }

    fn all(&self) -> usize {
        self.counts.lock().unwrap().values().sum()
    }
}

type Broken = Mutex<Option<(String, PathBuf, usize)>>;

fn answer(
    stream: &TcpStream,
    dir: &Path,
    latest: &str,
    counts: &Mutex<HashMap<String, usize>>,
    broken: &Broken,
) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(path) = lines.next().and_then(|line| line.split(' ').nth(1).map(str::to_owned)) else { return };
    let _: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    *counts.lock().unwrap().entry(path.clone()).or_default() += 1;
    let wait = broken.lock().unwrap().take_if(|(name, _, _)| path.ends_with(name.as_str()));
    let refuse = wait.is_some();
    if let Some((_, watched, entries)) = wait {
        let until = Instant::now() + Duration::from_secs(30);
        while fs::read_dir(&watched).unwrap().count() < entries && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let digest = if path.ends_with("/latest") { latest } else { path.rsplit('/').next().unwrap_or_default() };
    let body = fs::read(dir.join("blobs").join(digest.replace(':', "/"))).ok().filter(|_| !refuse);
    let (status, body) = body.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    let kind = if path.contains("/manifests/") { MANIFEST } else { "application/octet-stream" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

fn manifest(layout: &Layout, image: &Value) -> Value {
    let bytes = fs::read(layout.blob_path(image["digest"].as_str().unwrap())).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Digests of the layers of an image as they are fetched.
fn packed_layers(layout: &Layout, image: &Value) -> Vec<Value> {
    manifest(layout, image)["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["digest"].clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_in_one_process_and_in_others_fetch_each_layer_once() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let image = layout.image(&many_files(3, 40, 5000), "amd64");
    let layers = packed_layers(&layout, &image);
    let registry = Counting::start(&layout, &image);
    let mut others: Vec<Child> =
        (0..5).map(|_| other_process(&place.path("state"), &registry.image())).collect();
    let pulls: Vec<_> = (0..20)
        .map(|_| {
            let (store, source) = (place.store.clone(), registry.image().parse().unwrap());
            tokio::spawn(async move { store.pull(&source, &plain()).await.map(|image| image.layers.len()) })
        })
        .collect();
    for pull in pulls {
        assert_eq!(pull.await.unwrap().unwrap(), 3);
    }
    for other in &mut others {
        assert!(other.wait().unwrap().success());
    }
    for layer in &layers {
        assert_eq!(registry.count(layer), 1, "{layer}");
    }
    place.nothing_half_made();

    // Documents are not waited for. Each pull of a tag asks what it is now, and for the configuration
    // if that is not here yet.
    let config = manifest(&layout, &image)["config"]["digest"].clone();
    assert_eq!(registry.count_of("manifests/latest"), 25);
    assert!((1..=25).contains(&registry.count(&config)), "{}", registry.count(&config));
    assert_eq!(registry.all(), 25 + registry.count(&config) + layers.len(), "and for nothing else");
    let before = registry.all();
    place.pull_with(&registry.image(), &plain()).await.unwrap();
    assert_eq!((registry.all(), registry.count_of("manifests/latest")), (before + 1, 26));
    // By its digest it is here, and no one is asked.
    let pinned = format!("{}/a/b@{}", registry.address, image["digest"].as_str().unwrap());
    place.pull_with(&pinned, &plain()).await.unwrap();
    assert_eq!(registry.all(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_images_share_are_fetched_once() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let layers = many_files(3, 10, 5000);
    let (one, two) = (layout.image(&layers[..2], "amd64"), layout.image(&layers[..], "amd64"));
    let packed = packed_layers(&layout, &two);
    let registry = Counting::start(&layout, &one);
    let by_digest = format!("{}/a/b@{}", registry.address, two["digest"].as_str().unwrap());
    let [first, second] = [registry.image(), by_digest].map(|source| {
        let store = place.store.clone();
        tokio::spawn(
            async move { store.pull(&source.parse().unwrap(), &plain()).await.unwrap().layers.len() },
        )
    });
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (2, 3));
    assert!(packed.iter().all(|layer| registry.count(layer) == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_fails_half_way_keeps_its_finished_layers() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let image = layout.image(&many_files(3, 10, 5000), "amd64");
    let layers = packed_layers(&layout, &image);
    let registry = Counting::start(&layout, &image);
    let last = layers[2].as_str().unwrap().to_owned();
    *registry.broken.lock().unwrap() = Some((last, place.path("state/layers/sha256"), 2));
    place.error(&registry.image(), &plain()).await;
    assert!(place.store.images().unwrap().is_empty(), "an image that lacks a layer is not listed");
    let pulled = place.pull_with(&registry.image(), &plain()).await.unwrap();
    assert_eq!(pulled.layers.len(), 3);
    assert_eq!(layers.iter().map(|layer| registry.count(layer)).collect::<Vec<_>>(), [1, 1, 2]);
}
