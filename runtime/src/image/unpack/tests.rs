//! Archives, kind and hostile, through the whole of [`super::unpack`]. They need root, as unpacking
//! does.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use tar::{EntryType, Header};

use super::*;
use crate::image::limits::Limits;

/// An archive in the making.
#[derive(Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    /// An entry whose names are written as they are, with no check.
    pub(super) fn raw(
        mut self,
        kind: EntryType,
        path: &str,
        link: &str,
        data: &[u8],
        edit: impl Fn(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        edit(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.data(data)
    }

    fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn dir(self, path: &str) -> Self {
        self.raw(EntryType::Directory, path, "", b"", |_| {})
    }

    pub(super) fn file(self, path: &str, data: &str) -> Self {
        self.raw(EntryType::Regular, path, "", data.as_bytes(), |_| {})
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, path, target, b"", |_| {})
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Link, path, target, b"", |_| {})
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|n| *n == rest + n.to_string().len()).unwrap_or_else(|| rest + 3);
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.raw(EntryType::XHeader, "PaxHeader", "", &body, |_| {})
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// Unpacks into a fresh directory inside one that must stay as it was.
    fn unpack(self) -> (tempfile::TempDir, Result<()>) {
        self.unpack_limited(Limits::default())
    }

    fn unpack_limited(self, limits: Limits) -> (tempfile::TempDir, Result<()>) {
        let bytes = self.finish();
        let expected = expected(&bytes, &bytes);
        unpack_bytes(&bytes, &expected, limits)
    }

    pub(super) fn ok(self) -> tempfile::TempDir {
        let (dir, result) = self.unpack();
        result.expect("the archive is fine");
        dir
    }

    pub(super) fn error(self) -> Error {
        let (dir, result) = self.unpack();
        outside_is_untouched(dir.path());
        result.expect_err("the archive is bad")
    }
}

fn expected(packed: &[u8], archive: &[u8]) -> Expected {
    Expected {
        digest: Some(Digest::sha256(packed)),
        size: packed.len() as u64,
        diff_id: Digest::sha256(archive),
        packing: Packing::ByMagic,
    }
}

pub(super) fn unpack_bytes(
    bytes: &[u8],
    expected: &Expected,
    limits: Limits,
) -> (tempfile::TempDir, Result<()>) {
    assert!(rustix::process::geteuid().is_root(), "these tests need root");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("fs")).unwrap();
    fs::write(dir.path().join("victim"), "untouched").unwrap();
    let root = OwnedFd::from(fs::File::open(dir.path().join("fs")).unwrap());
    let recipe = Recipe::new(fs::File::create(dir.path().join("recipe")).unwrap()).unwrap();
    let result = unpack(bytes, expected, &Budget::new(limits), root, Some(recipe));
    if result.is_ok() {
        let report = verify_layer(dir.path(), &expected.diff_id).unwrap();
        assert!(report.is_sound(), "what was just unpacked is what it should be: {report:?}");
    }
    (dir, result.map(drop))
}

fn outside_is_untouched(dir: &Path) {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["fs", "recipe", "victim"]);
    assert_eq!(fs::read_to_string(dir.join("victim")).unwrap(), "untouched");
    assert_eq!(fs::metadata(dir.join("victim")).unwrap().nlink(), 1);
}

fn text(dir: &tempfile::TempDir, path: &str) -> String {
    fs::read_to_string(dir.path().join("fs").join(path)).expect(path)
}

pub(super) fn meta(dir: &tempfile::TempDir, path: &str) -> fs::Metadata {
    fs::symlink_metadata(dir.path().join("fs").join(path)).expect(path)
}

pub(super) fn xattr(dir: &tempfile::TempDir, path: &str, name: &str) -> Option<Vec<u8>> {
    let mut value = [0u8; 256];
    let length = rustix::fs::lgetxattr(dir.path().join("fs").join(path), name, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

fn is_whiteout(dir: &tempfile::TempDir, path: &str) -> bool {
    let meta = meta(dir, path);
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn is_opaque(dir: &tempfile::TempDir, path: &str) -> bool {
    xattr(dir, path, OPAQUE_XATTR).as_deref() == Some(b"y")
}

#[test]
fn every_kind_of_entry() {
    let dir = Tar::default()
        .raw(EntryType::Directory, "./", "", b"", |h| h.set_mode(0o711))
        .raw(EntryType::Directory, "d/", "", b"", |h| h.set_mode(0o1777))
        .raw(EntryType::Regular, "d/f", "", b"hello", |h| {
            h.set_mode(0o104755);
            h.set_uid(1000);
            h.set_gid(2000);
        })
        .link("d/hard", "d/f")
        .raw(EntryType::Symlink, "d/soft", "/etc/passwd", b"", |h| h.set_uid(7))
        .raw(EntryType::Fifo, "d/fifo", "", b"", |_| {})
        .raw(EntryType::Char, "d/null", "", b"", |h| {
            h.set_device_major(1).unwrap();
            h.set_device_minor(3).unwrap();
        })
        .raw(EntryType::Block, "d/loop", "", b"", |h| {
            h.set_device_major(7).unwrap();
            h.set_device_minor(300).unwrap();
        })
        .ok();
    assert_eq!(meta(&dir, "").mode() & 0o7777, 0o711);
    assert_eq!(meta(&dir, "d").mode() & 0o7777, 0o1777);
    assert_eq!(meta(&dir, "d").mtime(), 1_000_000_000, "set after the entries in it");
    let file = meta(&dir, "d/f");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid(), file.nlink()), (0o4755, 1000, 2000, 2));
    assert_eq!(meta(&dir, "d/hard").ino(), file.ino());
    assert_eq!(fs::read_link(dir.path().join("fs/d/soft")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!((meta(&dir, "d/soft").uid(), meta(&dir, "d/soft").mtime()), (7, 1_000_000_000));
    assert!(meta(&dir, "d/fifo").file_type().is_fifo());
    assert_eq!(meta(&dir, "d/null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(meta(&dir, "d/loop").rdev(), rustix::fs::makedev(7, 300));
    assert!(meta(&dir, "d/loop").file_type().is_block_device());
}

#[test]
fn extended_headers() {
    let long = format!("{}/{}", "a".repeat(200), "b".repeat(200));
    let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x00\x00\x00\x00\x00";
    let dir = Tar::default()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"3000000000"),
            ("mtime", b"1234567890.123456789"),
            ("SCHILY.xattr.user.note", b"two\nlines"),
        ])
        .file("short", "x")
        .pax(&[("SCHILY.xattr.security.capability", capability)])
        .raw(EntryType::Regular, "ping", "", b"", |h| h.set_uid(0))
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"label"),
        ])
        .dir("plain")
        .raw(EntryType::GNULongName, "././@LongLink", "", format!("{long}2\0").as_bytes(), |_| {})
        .file("short", "y")
        .ok();
    let file = meta(&dir, &long);
    assert_eq!(file.uid(), 3_000_000_000);
    assert_eq!((file.mtime(), file.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!(xattr(&dir, &long, "user.note").as_deref(), Some(&b"two\nlines"[..]));
    assert_eq!(text(&dir, &format!("{long}2")), "y");
    assert_eq!(xattr(&dir, "ping", "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(xattr(&dir, "plain", "trusted.overlay.redirect"), None, "overlayfs must not act on it");
    assert_eq!(xattr(&dir, "plain", "trusted.overlay.overlay.redirect").as_deref(), Some(&b"/etc"[..]));
    assert_eq!(xattr(&dir, "plain", "user.overlay.opaque").as_deref(), Some(&b"y"[..]));
    assert_eq!(xattr(&dir, "plain", "security.selinux"), None);
}

#[test]
fn the_last_of_a_name_wins() {
    let dir = Tar::default()
        .file("a", "1")
        .file("a", "2")
        .file("b/c/d", "1")
        .file("b", "now a file")
        .file("e", "1")
        .file("e2", "1")
        .raw(EntryType::Directory, "e", "", b"", |_| {})
        .file("e/f", "now a directory")
        .symlink("s", "a")
        .file("s", "no longer a link")
        .raw(EntryType::Directory, "m", "", b"", |h| h.set_mode(0o700))
        .file("m/x", "stays")
        .raw(EntryType::Directory, "m", "", b"", |h| h.set_mode(0o750))
        .symlink("t", "m")
        .dir("t")
        .ok();
    assert_eq!(text(&dir, "a"), "2");
    assert_eq!(text(&dir, "b"), "now a file");
    assert_eq!(text(&dir, "e/f"), "now a directory");
    assert_eq!(text(&dir, "s"), "no longer a link");
    assert_eq!((text(&dir, "m/x").as_str(), meta(&dir, "m").mode() & 0o777), ("stays", 0o750));
    assert!(meta(&dir, "t").is_dir());
}

#[test]
fn whiteouts_become_overlay_whiteouts() {
    let dir = Tar::default()
        .file(".wh.gone", "")
        .file("d/.wh.gone", "")
        .dir("o")
        .file("o/.wh..wh..opq", "")
        .file("o/new", "x")
        .file("implied/.wh..wh..opq", "")
        .file(".wh..wh.plnk/1", "")
        .file(".wh..wh.aufs", "")
        .ok();
    assert!(is_whiteout(&dir, "gone") && is_whiteout(&dir, "d/gone"));
    assert!(is_opaque(&dir, "o") && is_opaque(&dir, "implied") && !is_opaque(&dir, "d"));
    assert_eq!(text(&dir, "o/new"), "x");
    assert_eq!(fs::read_dir(dir.path().join("fs")).unwrap().count(), 4);
}

#[test]
fn what_a_layer_adds_survives_its_own_whiteout() {
    for first in [true, false] {
        let whiteouts = |tar: Tar| tar.file(".wh.f", "").file(".wh.d", "").file("p/.wh.q", "");
        let files = |tar: Tar| tar.file("f", "new").dir("d").file("d/x", "new").file("p/q/x", "implied");
        let tar = if first { files(whiteouts(Tar::default())) } else { whiteouts(files(Tar::default())) };
        let dir = tar.ok();
        assert_eq!(text(&dir, "f"), "new");
        assert_eq!(text(&dir, "d/x"), "new");
        assert_eq!(text(&dir, "p/q/x"), "implied");
        assert!(is_opaque(&dir, "d") && is_opaque(&dir, "p/q"), "the directories below are gone");
        assert!(!is_opaque(&dir, "p"));
    }
}

#[test]
fn whiteouts_below_what_the_layer_removes_or_replaces() {
    let dir = Tar::default()
        .file("a/.wh.x", "")
        .file(".wh.a", "")
        .file("f", "a file")
        .file("f/.wh.x", "")
        .file("f/.wh..wh..opq", "")
        .file("g/.wh.x", "")
        .file("g", "a file")
        .file(".wh.b", "")
        .file("b/c/.wh.x", "")
        .file("b/c/.wh..wh..opq", "")
        .ok();
    assert!(is_whiteout(&dir, "a") && is_whiteout(&dir, "b"));
    assert_eq!((text(&dir, "f").as_str(), text(&dir, "g").as_str()), ("a file", "a file"));
}

#[test]
fn names_are_taken_from_the_root_of_the_layer() {
    let dir = Tar::default()
        .file("/abs", "1")
        .file("./a/../b//c/./d", "2")
        .symlink("l", "/t")
        .dir("t")
        .file("l/in", "3")
        .symlink("up", "../../../../../t")
        .file("up/in2", "4")
        .ok();
    outside_is_untouched(dir.path());
    assert_eq!((text(&dir, "abs").as_str(), text(&dir, "b/c/d").as_str()), ("1", "2"));
    assert_eq!((text(&dir, "t/in").as_str(), text(&dir, "t/in2").as_str()), ("3", "4"));
}

// After containerd's archive/tar_test.go, TestBreakouts.
#[test]
fn nothing_leads_out() {
    let out = |tar: Tar| {
        let (dir, result) = tar.unpack();
        outside_is_untouched(dir.path());
        result
    };
    // Refused: there is no honest reading.
    for name in ["../victim", "a/../../victim", "/../victim", ".."] {
        assert_eq!(out(Tar::default().file(name, "x")).expect_err(name).kind(), ErrorKind::InvalidImage);
    }
    for target in ["../victim", "/../victim", "missing", "victim", ""] {
        assert_eq!(out(Tar::default().link("l", target)).expect_err(target).kind(), ErrorKind::InvalidImage);
    }
    // Kept inside: absolute and climbing links lead to the layer's root.
    out(Tar::default().symlink("l", "..").file("l/victim", "x")).expect("inside");
    out(Tar::default().symlink("l", "/").file("l/victim", "x")).expect("inside");
    out(Tar::default().symlink("l", "../victim").file("l", "x")).expect("replaces the link");
    out(Tar::default().symlink("l", "../victim").link("h", "l")).expect("a second name of the link");
    out(Tar::default().symlink("l", "../victim").link("h", "l").file("h", "x")).expect("replaces the link");
    out(Tar::default().symlink("l", "..").dir("l").file("l/victim", "x")).expect("replaces the link");
    out(Tar::default().symlink("l", "..").file("l/.wh.victim", "")).expect("a whiteout inside");
    out(Tar::default().symlink("l", "..").file("l/.wh..wh..opq", "")).expect("an opaque root");
    // Nowhere to go.
    out(Tar::default().symlink("l", "../victim").file("l/x", "x")).expect_err("a link to nothing");
    out(Tar::default().symlink("l", "../victim").link("h", "l/x")).expect_err("a link to nothing");
    out(Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", "x")).expect_err("a loop");
    out(Tar::default().symlink("p", "/proc/self/root").file("p/x", "x")).expect_err("a magic link");
    out(Tar::default().file("f", "x").file("f/g", "x")).expect_err("a file as directory");
}

#[test]
fn broken_archives() {
    assert_eq!(
        Tar::default().raw(EntryType::Regular, "", "", b"x", |_| {}).error().kind(),
        ErrorKind::InvalidImage
    );
    let cases: [(&str, Tar); 9] = [
        ("zero byte", Tar::default().pax(&[("path", b"a\0b")]).file("x", "")),
        ("checksum", Tar(vec![7; 512])),
        ("zero block in the middle", Tar(vec![0; 512]).file("a", "x")),
        ("unknown type", Tar::default().raw(EntryType::new(b'?'), "x", "", b"", |_| {})),
        ("owner", Tar::default().pax(&[("uid", b"4294967295")]).file("x", "")),
        ("empty link", Tar::default().symlink("x", "")),
        ("whiteout of dot-dot", Tar::default().file(".wh...", "")),
        ("link to a directory", Tar::default().dir("d").link("l", "d")),
        ("root as file", Tar::default().file("./", "").raw(EntryType::Fifo, "./", "", b"", |_| {})),
    ];
    for (what, tar) in cases {
        let error = tar.error();
        assert_eq!(error.kind(), ErrorKind::InvalidImage, "{what}: {error:?}");
    }
    let tar = Tar::default().raw(EntryType::Regular, "x", "", b"", |h| h.set_size(1 << 40));
    assert_eq!(tar.error().kind(), ErrorKind::CorruptImage);
}

#[test]
fn an_archive_may_end_without_padding_and_trailer() {
    // As `umoci insert` of umoci 0.4 writes them.
    let mut bytes = Tar::default().file("server.py", "print(1)").0;
    bytes.truncate(512 + "print(1)".len());
    let (dir, result) = unpack_bytes(&bytes, &expected(&bytes, &bytes), Limits::default());
    result.unwrap();
    assert_eq!(text(&dir, "server.py"), "print(1)");
    for short in [512 + "print(1)".len() + 1, 512 + "print".len()] {
        let bytes = &Tar::default().file("server.py", "print(1)").0[..short];
        let (_, result) = unpack_bytes(bytes, &expected(bytes, bytes), Limits::default());
        assert_eq!(result.unwrap_err().kind(), ErrorKind::CorruptImage, "{short} bytes");
    }
}

#[test]
fn limits() {
    let kind = |tar: Tar, limits: Limits| tar.unpack_limited(limits).1.expect_err("over").kind();
    let three = || Tar::default().file("a", "x").file("b", "x").file("c", "x");
    let entries = |entries| Limits { entries, ..Limits::default() };
    let unpacked = |unpacked_bytes| Limits { unpacked_bytes, ..Limits::default() };
    three().unpack_limited(entries(3)).1.expect("three are allowed");
    assert_eq!(kind(three(), entries(2)), ErrorKind::LimitExceeded);
    three().unpack_limited(unpacked(4096)).1.expect("three headers, three blocks, the end");
    assert_eq!(kind(three(), unpacked(4095)), ErrorKind::LimitExceeded);
    let over =
        |path: &str| kind(Tar::default().pax(&[("path", path.as_bytes())]).file("x", ""), Limits::default());
    assert_eq!(over(&"n".repeat(256)), ErrorKind::LimitExceeded);
    assert_eq!(over(&"d/".repeat(257)), ErrorKind::LimitExceeded);
    assert_eq!(over(&format!("{}x", "n/".repeat(2048))), ErrorKind::LimitExceeded);
    let huge = vec![b'x'; (1 << 20) + 1];
    let long = Tar::default().raw(EntryType::GNULongName, "l", "", &huge, |_| {}).file("x", "");
    assert_eq!(kind(long, Limits::default()), ErrorKind::LimitExceeded);
    let attribute = vec![b'x'; (64 << 10) + 1];
    let tar = Tar::default().pax(&[("SCHILY.xattr.user.a", &attribute)]).file("x", "");
    assert_eq!(kind(tar, Limits::default()), ErrorKind::LimitExceeded);
}

#[test]
fn deep_trees_are_replaced() {
    let mut tar = Tar::default();
    // Each link shortens the way to the depth that is reached.
    for round in 0..20 {
        let from = if round == 0 { "d".to_owned() } else { format!("l{}", round - 1) };
        let deep = format!("{from}/{}", "x/".repeat(40));
        tar = tar.dir(&deep).symlink(&format!("l{round}"), deep.trim_end_matches('/'));
    }
    let dir = tar.file("d", "a file at last").ok();
    assert_eq!(text(&dir, "d"), "a file at last");
}

#[test]
fn sparse_files_have_their_holes() {
    let dir = Tar::default()
        .raw(EntryType::GNUSparse, "s", "", b"abcd", |h| {
            let gnu = h.as_gnu_mut().unwrap();
            gnu.set_real_size(1 << 20);
            gnu.sparse[0].set_offset(4096);
            gnu.sparse[0].set_length(4);
            gnu.sparse[1].set_offset(1 << 20);
            gnu.sparse[1].set_length(0);
        })
        .file("after", "x")
        .ok();
    let bytes = fs::read(dir.path().join("fs/s")).unwrap();
    assert_eq!((bytes.len(), &bytes[4096..4100]), (1 << 20, &b"abcd"[..]));
    assert!(bytes[..4096].iter().all(|b| *b == 0));
    assert!(meta(&dir, "s").blocks() * 512 < 1 << 19);
    let backwards = Tar::default().raw(EntryType::GNUSparse, "s", "", b"abcd", |h| {
        let gnu = h.as_gnu_mut().unwrap();
        gnu.set_real_size(100);
        gnu.sparse[0].set_offset(98);
        gnu.sparse[0].set_length(4);
    });
    assert_eq!(backwards.error().kind(), ErrorKind::InvalidImage);
}

/// Where data follows a header decides what the next header is: as in Go's `archive/tar`.
#[test]
fn no_two_archives_in_one() {
    let inner = Tar::default().file("smuggled", "x").0;
    let typed = |kind: u8, path: &str, data: &[u8]| {
        Tar::default().raw(EntryType::Regular, path, "", data, |h| h.as_old_mut().linkflag[0] = kind)
    };
    let dir = typed(b'0', "f/", &inner).file("after", "y").ok();
    assert_eq!(fs::read(dir.path().join("fs/f")).unwrap(), inner, "a file, whatever its name ends with");
    assert_eq!(text(&dir, "after"), "y");
    let dir = typed(0, "d/", &inner).file("after", "y").ok();
    assert!(meta(&dir, "d").is_dir() && !dir.path().join("fs/smuggled").exists());
    assert_eq!(text(&dir, "after"), "y");
    // The PAX size counts, not the header's.
    let size = inner.len().to_string();
    let mut tar =
        Tar::default().pax(&[("size", size.as_bytes())]).raw(EntryType::Regular, "f", "", b"", |_| {});
    tar.0.extend_from_slice(&inner);
    let dir = tar.file("after", "y").ok();
    assert_eq!(fs::read(dir.path().join("fs/f")).unwrap(), inner);
    assert!(!dir.path().join("fs/smuggled").exists());
    // Links have no data, whatever their size says.
    let dir =
        Tar::default().raw(EntryType::Symlink, "l", "x", b"", |h| h.set_size(1024)).file("after", "y").ok();
    assert_eq!(text(&dir, "after"), "y");
}

/// Puts right checksums on all blocks that were headers, so that changed ones are read too.
fn sum_again(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_archives_neither_panic_nor_lead_out(
        changes in proptest::collection::vec((0usize..512 * 24, proptest::prelude::any::<u8>()), 1..24),
        cut in 0usize..512 * 30,
    ) {
        let mut archive = Tar::default()
            .dir("d")
            .file("d/f", "data")
            .pax(&[("path", b"d/long"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
            .file("x", "y")
            .link("d/h", "d/f")
            .symlink("l", "../..")
            .file("l/g", "z")
            .file("d/.wh.gone", "")
            .file("d/.wh..wh..opq", "")
            .raw(EntryType::GNULongName, "n", "", b"d/other\0", |_| {})
            .file("x", "y")
            .raw(EntryType::GNUSparse, "s", "", b"abcd", |h| h.as_gnu_mut().unwrap().set_real_size(4))
            .raw(EntryType::Fifo, "p", "", b"", |_| {})
            .finish();
        for (at, byte) in changes {
            let length = archive.len();
            archive[at % length] = byte;
        }
        sum_again(&mut archive);
        archive.truncate(cut.max(512));
        let limits = Limits { unpacked_bytes: 1 << 20, entries: 100, ..Limits::default() };
        let (dir, _) = unpack_bytes(&archive, &expected(&archive, &archive), limits);
        outside_is_untouched(dir.path());
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressions() {
    let archive = Tar::default().file("a", &"text ".repeat(1000)).finish();
    let half = archive.len() / 2;
    let members = [gzip(&archive[..half]), gzip(&archive[half..])].concat();
    let frames = [
        zstd::encode_all(&archive[..half], 1).unwrap(),
        b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc".to_vec(),
        zstd::encode_all(&archive[half..], 1).unwrap(),
    ]
    .concat();
    for packed in [archive.clone(), gzip(&archive), members, frames] {
        let (dir, result) = unpack_bytes(&packed, &expected(&packed, &archive), Limits::default());
        result.expect("unpacked");
        assert_eq!(text(&dir, "a").len(), 5000);
    }
    let packed = gzip(&archive);
    let plain = Expected { packing: Packing::Plain, ..expected(&packed, &archive) };
    assert_eq!(
        unpack_bytes(&packed, &plain, Limits::default()).1.expect_err("gzip").kind(),
        ErrorKind::CorruptImage
    );
}

#[test]
fn wrong_bytes() {
    let archive = Tar::default().file("a", &"text ".repeat(10_000)).finish();
    let packed = gzip(&archive);
    let good = expected(&packed, &archive);
    let kind = |bytes: &[u8], expected: &Expected| {
        unpack_bytes(bytes, expected, Limits::default()).1.expect_err("wrong").kind()
    };
    let mut flipped = packed.clone();
    flipped[packed.len() / 2] ^= 0x55;
    assert_eq!(kind(&flipped, &good), ErrorKind::DigestMismatch, "not the broken gzip that follows from it");
    assert_eq!(kind(&packed[..packed.len() - 1], &good), ErrorKind::CorruptImage);
    assert_eq!(kind(&[], &good), ErrorKind::CorruptImage);
    assert_eq!(kind(&[packed.clone(), vec![0]].concat(), &good), ErrorKind::CorruptImage);
    let other = Expected { diff_id: Digest::sha256(b"other"), ..good.clone() };
    assert_eq!(kind(&packed, &other), ErrorKind::InvalidImage);
    let cut = gzip(&archive[..archive.len() - 2000]);
    assert_eq!(kind(&cut, &expected(&cut, &archive)), ErrorKind::CorruptImage, "the image was made so");
    let rubbish = [&packed[..packed.len() - 8], b"rubbish!"].concat();
    assert_eq!(kind(&rubbish, &expected(&rubbish, &archive)), ErrorKind::CorruptImage);
}

#[test]
fn bombs_are_stopped() {
    let bomb = gzip(&vec![0u8; 8 << 20]);
    let limits = Limits { unpacked_bytes: 1 << 20, ..Limits::default() };
    let (_, result) = unpack_bytes(&bomb, &expected(&bomb, b""), limits);
    assert_eq!(result.expect_err("a bomb").kind(), ErrorKind::LimitExceeded);
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    let dir = Tar::default().raw(EntryType::Regular, "p/f", "", b"", |h| h.set_mode(0o666)).ok();
    assert_eq!(meta(&dir, "p/f").permissions().mode() & 0o777, 0o666);
    assert_eq!(meta(&dir, "p").permissions().mode() & 0o777, 0o755);
}
