//! Archives as builders make them: what each entry becomes.

use super::*;

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
fn modes_do_not_depend_on_the_umask() {
    let dir = Tar::default().raw(EntryType::Regular, "p/f", "", b"", |h| h.set_mode(0o666)).ok();
    assert_eq!(meta(&dir, "p/f").permissions().mode() & 0o777, 0o666);
    assert_eq!(meta(&dir, "p").permissions().mode() & 0o777, 0o755);
}
