//! What a pull takes of memory, whatever the image is: measured in a process of its own.
#![allow(clippy::print_stdout, reason = "the figures are shown with --no-capture")]

use std::process::Command;

use skiff_runtime::image::{PullOptions, Store};

use crate::registry::Registry;
use crate::support::*;

/// What the pull of an image may take over that of the smallest one.
const MEMORY_KIB: u64 = 64 << 10;
const STATE: &str = "SKIFF_TEST_MEMORY_STATE";
const SOURCES: &str = "SKIFF_TEST_MEMORY_SOURCES";
const GROWN: &str = "KiB more at the peak: ";

/// Not a test of its own: pulls a small image and then another.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "another test calls it in a process of its own"]
async fn pulls_in_a_process_of_its_own() {
    let (Ok(state), Ok(sources)) = (std::env::var(STATE), std::env::var(SOURCES)) else { return };
    // As the program does.
    skiff_runtime::image::bound_allocator();
    let store = Store::open(std::path::Path::new(&state)).unwrap();
    let options = PullOptions { plain_http: true, ..PullOptions::default() };
    let mut peaks = Vec::new();
    for source in sources.split(' ') {
        store.pull(&source.parse().unwrap(), &options).await.unwrap();
        peaks.push(peak_kib());
    }
    println!("{GROWN}{}", peaks[1] - peaks[0]);
}

/// Bytes that do not compress.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes / 8).flatten().collect()
}

fn with_window(archive: &[u8], log: u32) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(log).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(archive).unwrap();
    encoder.finish().unwrap()
}

/// All that costs memory at once: whiteouts, which are held to their layer's end, more windows than may be
/// held together, and noise that fills them.
fn hungry() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    const LAYERS: u64 = 10;
    const WHITEOUTS: u64 = 150_000;
    let layer = |layer: u64| {
        let mut archive = Vec::new();
        let mut add = |name: &str, data: &[u8]| {
            crate::raw::add(&mut archive, tar::EntryType::Regular, name, "", 0o644, data);
        };
        for number in 0..WHITEOUTS / LAYERS {
            add(&format!("usr/.wh.{layer}-{number:030}"), b"");
        }
        add(&format!("usr/noise{layer}"), &noise(layer + 1, 18 << 20));
        archive.resize(archive.len() + 1024, 0);
        // Two of 16 MiB or four of 8 fit at a time.
        (ZSTD, with_window(&archive, if layer.is_multiple_of(3) { 24 } else { 23 }), archive)
    };
    (0..LAYERS).map(layer).collect()
}

#[tokio::test]
async fn ten_layers_with_large_windows_and_150_000_whiteouts() {
    let place = Place::new();
    let registry = Registry::start(place.dir.path(), None);
    let layout = Layout::new(&place.path("layout"));
    let small = tar(&[("one", "1")]);
    let images = [
        ("small", layout.image(&[(GZIP, gzip(&small), small)], "amd64")),
        ("hungry", layout.image(&hungry(), "amd64")),
    ];
    let source = layout.index(&images);
    let sources =
        ["small", "hungry"].map(|tag| registry.push(&format!("{source}:{tag}"), &format!("x/{tag}:1"), &[]));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::pulls_in_a_process_of_its_own", "--ignored", "--nocapture"])
        .env(STATE, place.path("state"))
        .env(SOURCES, sources.join(" "))
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    let grown: u64 =
        stdout.lines().find_map(|line| line.split(GROWN).nth(1)).unwrap().trim().parse().unwrap();
    println!("{grown} KiB");
    assert!(grown < MEMORY_KIB, "the pull took {grown} KiB over a small one");
}
