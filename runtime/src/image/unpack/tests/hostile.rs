//! Archives that mean harm, are broken, or are over a limit.

use super::*;

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
