//! Small layers that become large: each is cut off with a clear error, in little memory, and what it
//! had written is removed.
#![allow(clippy::print_stdout, reason = "the figures are shown with --no-capture")]

use std::io::{Read, Write as _};
use std::path::Path;

use skiff_runtime::image::{Limits, PullOptions};
use skiff_runtime::{Error, ErrorKind, Fault};

use crate::liar::{Liar, plain};
use crate::support::*;

/// What a pull may add to the memory of its process at most.
const MEMORY_KIB: u64 = 64 << 10;

/// Forgets the peak so far (proc(5), `clear_refs`).
fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn bytes_below(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            let own = std::fs::symlink_metadata(&path).unwrap();
            own.blocks() * 512 + if own.is_dir() { bytes_below(&path) } else { 0 }
        })
        .sum()
}

fn header(name: &str, size: u64, kind: tar::EntryType) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(kind);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// A layer in the store of a test that must be refused as over a limit; its archive is never read to
/// the end, so that its DiffID may be any.
async fn refused(media_type: &str, packed: &[u8], limits: Limits) -> Error {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let image = layout.image(&[(media_type, packed.to_vec(), b"any".to_vec())], "amd64");
    let source = layout.index(&[("v1", image)]);
    reset_peak();
    let before = peak_kib();
    let error = place.error(&source, &PullOptions { limits, ..PullOptions::default() }).await;
    let grown = peak_kib() - before;
    println!("{media_type}: {} packed, {grown} KiB more memory: {error}", packed.len());
    assert!(grown < MEMORY_KIB, "the pull took {grown} KiB");
    assert_eq!(error.fault(), Fault::Image, "{error:?}");
    let left = bytes_below(&place.path("state"));
    assert!(left < 1 << 20, "{left} bytes are left");
    error
}

/// An archive of one file of a gigabyte of zeros.
fn zeros() -> impl Read {
    let head = header("zeros", 1 << 30, tar::EntryType::Regular);
    std::io::Cursor::new(head).chain(std::io::repeat(0).take((1 << 30) + 1024))
}

fn gzip_of(mut archive: impl Read) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::copy(&mut archive, &mut encoder).unwrap();
    encoder.finish().unwrap()
}

fn zstd_of(mut archive: impl Read) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    std::io::copy(&mut archive, &mut encoder).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_gigabyte_of_zeros_in_gzip() {
    let packed = gzip_of(zeros());
    let error = refused(GZIP, &packed, Limits::default()).await;
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.to_string().contains("inflates like a bomb"), "{error}");
}

#[tokio::test]
async fn a_gigabyte_of_zeros_in_zstd() {
    let packed = zstd_of(zeros());
    let error = refused(ZSTD, &packed, Limits::default()).await;
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.to_string().contains("inflates like a bomb"), "{error}");
    assert!(error.advice().is_some());
}

#[tokio::test]
async fn a_gigabyte_over_the_cap_on_unpacked_bytes() {
    let mut limits = Limits::default();
    limits.owner = Some("some");
    limits.unpacked_bytes = 16 << 20;
    limits.inflation = u64::MAX;
    let error = refused(GZIP, &gzip_of(zeros()), limits).await;
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    let text = error.to_string();
    assert!(text.contains("unpacked bytes of the image under some"), "{text}");
    assert!(text.ends_with("is over the limit of 16777216"), "{text}");
}

#[tokio::test]
async fn an_honest_file_of_zeros_is_no_bomb() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    // 200 MiB stay below what is free.
    let size = 200 << 20;
    let archive = || {
        let head = header("zeros", size, tar::EntryType::Regular);
        std::io::Cursor::new(head).chain(std::io::repeat(0).take(size + 1024))
    };
    let packed = zstd_of(archive());
    assert!(packed.len() < 64 << 10, "{}", packed.len());
    let mut whole = Vec::new();
    archive().read_to_end(&mut whole).unwrap();
    let image = layout.image(&[(ZSTD, packed, whole)], "amd64");
    let image = place.pull(&layout.index(&[("v1", image)])).await.unwrap();
    assert_eq!(std::fs::metadata(image.layers[0].join("zeros")).unwrap().len(), size);
}

/// Ten million times the same entry: frames of ten thousand, one after the other.
#[tokio::test]
async fn ten_million_entries() {
    let some = header("same", 0, tar::EntryType::Regular).repeat(10_000);
    let mut limits = Limits::default();
    limits.entries = 20_000;
    for (media_type, frame) in [(GZIP, gzip_of(&some[..])), (ZSTD, zstd_of(&some[..]))] {
        let error = refused(media_type, &frame.repeat(1000), limits).await;
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        let text = error.to_string();
        assert!(text.contains("archive entries of the image: 20001 is over the limit of 20000"), "{text}");
    }
}

/// What came of a large layer is kept for a pull that goes on there; not so of one that is refused.
#[tokio::test]
async fn a_large_bomb_from_a_registry_leaves_nothing() {
    let some = header("same", 0, tar::EntryType::Regular).repeat(10_000);
    let packed = gzip_of(&some[..]).repeat(1000);
    assert!(packed.len() > 16 << 20, "{}", packed.len());
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let image = layout.image(&[(GZIP, packed, b"any".to_vec())], "amd64");
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &image);
    let mut limits = Limits::default();
    limits.entries = 20_000;
    let error = place.error(&name, &PullOptions { limits, ..plain() }).await;
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    let left = bytes_below(&place.path("state"));
    assert!(left < 1 << 20, "{left} bytes are left");
    let layers = liar.requests(&digest_of(&layout, &image));
    assert_eq!(layers.len(), 1, "a layer that is refused is not asked for again");
}

fn digest_of(layout: &Layout, image: &serde_json::Value) -> String {
    let manifest = std::fs::read(layout.blob_path(image["digest"].as_str().unwrap())).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["layers"][0]["digest"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn many_tiny_files() {
    let mut limits = Limits::default();
    limits.entries = 20_000;
    let mut archive = Vec::new();
    for number in 0..30_000 {
        archive.extend(header(&format!("{:02}/{number}", number % 100), 1, tar::EntryType::Regular));
        archive.extend([b'x'; 512]);
    }
    let error = refused(GZIP, &gzip_of(&archive[..]), limits).await;
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.advice().is_some_and(|advice| advice.contains("leave out files")));
}

/// Entries that make nothing count as well.
#[tokio::test]
async fn ten_million_whiteouts() {
    let some: Vec<u8> = header(".wh.gone", 0, tar::EntryType::Regular).repeat(10_000);
    let mut limits = Limits::default();
    limits.entries = 20_000;
    let error = refused(ZSTD, &zstd_of(&some[..]).repeat(1000), limits).await;
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
}

#[tokio::test]
async fn paths_of_thousands_of_directories() {
    for (depth, says) in [(257, "depth of a path"), (2047, "depth of a path"), (4096, "bytes of a path")] {
        let name = "d/".repeat(depth) + "f";
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        builder.append_data(&mut header, "top/file", std::io::empty()).unwrap();
        builder.append_data(&mut header, &name, std::io::empty()).unwrap();
        let archive = builder.into_inner().unwrap();
        let error = refused(GZIP, &gzip(&archive), Limits::default()).await;
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{depth}");
        assert!(error.to_string().contains(says), "{depth}: {error}");
    }
}

/// A name or a link's target may not be a gigabyte either: its length is looked at before it is read.
#[tokio::test]
async fn headers_of_a_gigabyte() {
    for kind in [tar::EntryType::XHeader, tar::EntryType::GNULongName, tar::EntryType::GNULongLink] {
        let head = header("./@LongLink", 1 << 30, kind);
        let archive = std::io::Cursor::new(head).chain(std::io::repeat(b'a').take(8 << 20));
        let error = refused(ZSTD, &zstd_of(archive), Limits::default()).await;
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        assert!(error.to_string().contains("bytes of the headers of an entry"), "{error}");
    }
}

/// A zstd frame whose header asks for a window of 128 MiB (RFC 8878, section 3.1.1.1.2), which the
/// decoder would have to hold in memory for each layer.
#[tokio::test]
async fn a_zstd_window_of_128_mebibytes() {
    let mut packed = Vec::new();
    let mut encoder = zstd::Encoder::new(&mut packed, 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.include_contentsize(false).unwrap();
    let head = header("zeros", 16 << 20, tar::EntryType::Regular);
    encoder.write_all(&head).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(16 << 20), &mut encoder).unwrap();
    encoder.finish().unwrap();
    // Exponent 17 above 10, mantissa 0.
    assert_eq!((packed[4] & 0b0010_0000, packed[5]), (0, 17 << 3), "not the window that is meant");
    let error = refused(ZSTD, &packed, Limits::default()).await;
    assert!(error.chain().contains("window") || error.chain().contains("memory"), "{error:?}");
    assert!(error.advice().is_some(), "{error:?}");
}

/// Documents of the largest size that is read, full of the smallest things: a million texts.
#[tokio::test]
async fn documents_of_a_million_texts() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let pull = async |what: &str, descriptor: serde_json::Value| {
        let source = layout.index(&[("v1", descriptor)]);
        reset_peak();
        let before = peak_kib();
        let error = place.error(&source, &PullOptions::default()).await;
        let grown = peak_kib() - before;
        println!("{what}: {grown} KiB more memory: {error}");
        assert!(grown < MEMORY_KIB, "{what} took {grown} KiB");
        assert_eq!(error.kind(), ErrorKind::InvalidImage, "{what}: {error:?}");
    };
    let list = |item: &str, bytes: usize| vec![item; bytes / (item.len() + 1)].join(",");
    let layer = layout.blob(TAR, &tar(&[("a", "b")]));
    let id = sha256(&tar(&[("a", "b")]));
    for (what, field) in [
        ("Env", format!("\"Env\":[{}]", list("\"\"", 7 << 20))),
        ("Cmd", format!("\"Cmd\":[{}]", list("\"\"", 7 << 20))),
        ("Labels", {
            let labels: Vec<_> = (0..500_000).map(|n| format!("\"{n}\":\"\"")).collect();
            format!("\"Labels\":{{{}}}", labels.join(","))
        }),
    ] {
        let config = format!(
            r#"{{"os":"linux","architecture":"amd64","config":{{{field}}},
            "rootfs":{{"type":"layers","diff_ids":["{id}"]}}}}"#
        );
        let config = layout.blob(CONFIG, config.as_bytes());
        pull(what, layout.manifest(&config, std::slice::from_ref(&layer))).await;
    }
    let layers = list(r#"{"digest":"","size":0}"#, 4_000_000);
    let manifest = format!(r#"{{"schemaVersion":2,"config":{{"digest":"","size":0}},"layers":[{layers}]}}"#);
    pull("layers", layout.blob(MANIFEST, manifest.as_bytes())).await;
}
