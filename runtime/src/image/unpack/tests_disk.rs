//! What layers become on the disk: sparse files of GNU tar, owners and modes whatever the store's
//! directory or process give, memory, verification of damage. They need root.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod damage;

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use rustix::fs::XattrFlags;
use tar::EntryType;

use super::tests::{Tar, meta, unpack_bytes, xattr};
use super::*;
use crate::image::limits::Limits;

fn expected(archive: &[u8]) -> Expected {
    Expected {
        digest: None,
        size: archive.len() as u64,
        diff_id: Digest::sha256(archive),
        packing: Packing::ByMagic,
    }
}

fn run(script: &str, dir: &Path) {
    let status = Command::new("sh").args(["-euc", script]).current_dir(dir).status().unwrap();
    assert!(status.success(), "{script}");
}

#[test]
fn sparse_files_of_gnu_tar_in_all_forms() {
    let source = tempfile::tempdir().unwrap();
    // Many runs, a hole at the end, a file that is one hole, and one that is none.
    run(
        "for i in $(seq 0 40); do printf run$i | dd of=many bs=1 seek=$((i * 65536)) conv=notrunc status=none; done
         truncate -s 8M many; truncate -s 1M hole; printf x > none; printf 'end' | dd of=end bs=1 seek=1000000 status=none",
        source.path(),
    );
    for form in [
        "gnu -S",
        "pax -S --sparse-version=0.0",
        "pax -S --sparse-version=0.1",
        "pax -S --sparse-version=1.0",
    ] {
        run(&format!("tar --format={form} -cf t.tar many hole none end"), source.path());
        let archive = fs::read(source.path().join("t.tar")).unwrap();
        assert!(archive.len() < 1 << 20, "{form} is packed without its holes");
        let (dir, result) = unpack_bytes(&archive, &expected(&archive), Limits::default());
        result.expect(form);
        for name in ["many", "hole", "none", "end"] {
            let unpacked = fs::read(dir.path().join("fs").join(name)).unwrap();
            assert!(unpacked == fs::read(source.path().join(name)).unwrap(), "{form}: {name}");
        }
        assert!(meta(&dir, "many").blocks() * 512 < 1 << 20, "{form}: the holes are there");
        assert_eq!(fs::read_dir(dir.path().join("fs")).unwrap().count(), 4, "{form}");
    }
}

#[test]
fn broken_sparse_maps() {
    let bad = |records: &[(&str, &[u8])], data: &[u8]| {
        let tar = Tar::default().pax(records).raw(EntryType::Regular, "s", "", data, |_| {});
        tar.error().kind()
    };
    let version = |major: &'static [u8], minor: &'static [u8]| {
        [("GNU.sparse.major", major), ("GNU.sparse.minor", minor), ("GNU.sparse.realsize", b"100" as &[u8])]
    };
    let block = |text: &str| {
        let mut block = text.as_bytes().to_vec();
        block.resize(512, 0);
        block
    };
    let one = version(b"1", b"0");
    for text in
        ["", "x\n", "\n", "1\n98\n4\n", "1\n0\n", "2\n4\n0\n0\n0\n", "99999999999999999999999\n", "65537\n"]
    {
        let kind = bad(&one, &block(text));
        assert!(matches!(kind, ErrorKind::InvalidImage | ErrorKind::LimitExceeded), "{text:?}: {kind:?}");
    }
    assert_eq!(bad(&one, b"1\n0\n"), ErrorKind::InvalidImage, "the map is longer than the data");
    assert_eq!(bad(&version(b"2", b"0"), b""), ErrorKind::InvalidImage);
    assert_eq!(bad(&version(b"1", b"1"), b""), ErrorKind::InvalidImage);
    assert_eq!(bad(&one[..2], &block("0\n")), ErrorKind::InvalidImage, "no size");
    let size = ("GNU.sparse.size", b"100" as &[u8]);
    for map in ["0", "0,4,2,2", "98,4", "a,b", "0,5", "0,-4", "0,4,"] {
        assert_eq!(
            bad(&[size, ("GNU.sparse.map", map.as_bytes())], b"abcd"),
            ErrorKind::InvalidImage,
            "{map}"
        );
    }
    assert_eq!(bad(&[size, ("GNU.sparse.numbytes", b"4")], b"abcd"), ErrorKind::InvalidImage);
    assert_eq!(bad(&[size, ("GNU.sparse.offset", b"4")], b""), ErrorKind::InvalidImage);
    let link = Tar::default().pax(&[size, ("GNU.sparse.map", b"0,0")]).symlink("l", "x");
    assert_eq!(link.error().kind(), ErrorKind::InvalidImage, "a link has no data");
}

/// GNU tar and Skiff see the same entries in archives that other readers saw more or fewer in.
#[test]
fn gnu_tar_sees_the_same_entries() {
    let inner = Tar::default().file("smuggled", "x").0;
    let size = inner.len().to_string();
    let mut by_pax =
        Tar::default().pax(&[("size", size.as_bytes())]).raw(EntryType::Regular, "f", "", b"", |_| {});
    by_pax.0.extend_from_slice(&inner);
    let twice = Tar::default().pax(&[("size", b"0"), ("size", size.as_bytes())]);
    let mut twice = twice.raw(EntryType::Regular, "f", "", b"", |_| {});
    twice.0.extend_from_slice(&inner);
    let over_header = Tar::default()
        .pax(&[("size", b"5")])
        .raw(EntryType::Regular, "f", "", b"hello", |h| h.set_size(2048));
    let names = [
        by_pax.file("after", "y"),
        twice.file("after", "y"),
        over_header.file("after", "y"),
        Tar::default().raw(EntryType::Regular, "f", "", &inner, |_| {}).file("after", "y"),
    ];
    for tar in names {
        let archive = tar.finish();
        let (dir, result) = unpack_bytes(&archive, &expected(&archive), Limits::default());
        result.unwrap();
        fs::write(dir.path().join("t.tar"), &archive).unwrap();
        let listed = Command::new("tar").args(["-tf", "t.tar"]).current_dir(dir.path()).output().unwrap();
        let mut ours: Vec<_> = fs::read_dir(dir.path().join("fs"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        ours.sort_by_key(|name| name != "f");
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), ours.join("\n") + "\n");
        assert_eq!(ours, ["f", "after"]);
    }
}

/// A store in a directory with a group, the set-group-ID bit and a default ACL, and directories like
/// that in the image: new files inherit nothing of it.
#[test]
fn nothing_is_inherited() {
    let acl =
        b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\x07\0\xff\xff\xff\xff\x20\0\x07\0\xff\xff\xff\xff";
    let dir = tempfile::tempdir().unwrap();
    rustix::fs::lsetxattr(dir.path(), meta::DEFAULT_ACL, acl, XattrFlags::empty()).unwrap();
    std::os::unix::fs::chown(dir.path(), None, Some(77)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2777)).unwrap();
    fs::create_dir(dir.path().join("fs")).unwrap();
    let archive = Tar::default()
        .file("in-root", "x")
        .pax(&[("SCHILY.xattr.system.posix_acl_default", acl)])
        .raw(EntryType::Directory, "d", "", b"", |h| {
            h.set_mode(0o2775);
            h.set_gid(50);
        })
        .file("d/f", "x")
        .dir("d/sub")
        .symlink("d/s", "f")
        .raw(EntryType::Fifo, "d/p", "", b"", |_| {})
        .file("d/implied/f", "x")
        .dir("later")
        .file("later/a", "x")
        .raw(EntryType::Directory, "later", "", b"", |h| {
            h.set_mode(0o2750);
            h.set_gid(60);
        })
        .file("later/b", "x")
        .finish();
    let root = OwnedFd::from(fs::File::open(dir.path().join("fs")).unwrap());
    unpack(&archive[..], &expected(&archive), &Budget::new(Limits::default()), root, None).unwrap();
    let of = |path: &str| (meta(&dir, path).gid(), meta(&dir, path).mode() & 0o7777);
    assert_eq!((of("in-root"), of("d"), of("d/f")), ((0, 0o644), (50, 0o2775), (0, 0o644)));
    assert_eq!((of("d/sub"), of("d/s").0, of("d/p")), ((0, 0o755), 0, (0, 0o644)));
    assert_eq!((of("d/implied"), of("d/implied/f")), ((0, 0o755), (0, 0o644)));
    assert_eq!((of("later"), of("later/a"), of("later/b")), ((60, 0o2750), (0, 0o644), (0, 0o644)));
    assert_eq!(of("").0, 0, "the root is root's");
    for path in ["in-root", "d/f", "d/sub", "d/implied"] {
        for name in ["system.posix_acl_access", meta::DEFAULT_ACL] {
            assert_eq!(xattr(&dir, path, name), None, "{path} {name}");
        }
    }
    assert_eq!(xattr(&dir, "d", meta::DEFAULT_ACL).as_deref(), Some(&acl[..]));
}

#[test]
fn what_replaces_a_file_has_its_own_owner_and_mode() {
    let dir = Tar::default()
        .raw(EntryType::Regular, "f", "", b"old", |h| {
            h.set_mode(0o4711);
            h.set_uid(5);
        })
        .file("f", "new")
        .pax(&[("SCHILY.xattr.user.old", b"1")])
        .raw(EntryType::Directory, "d", "", b"", |h| h.set_uid(5))
        .dir("d")
        .raw(EntryType::Directory, "e", "", b"", |h| h.set_mode(0o1777))
        .raw(EntryType::Regular, "e", "", b"", |h| h.set_mode(0o600))
        .ok();
    let of = |path: &str| (meta(&dir, path).uid(), meta(&dir, path).mode() & 0o7777);
    assert_eq!((of("f"), of("d"), of("e")), ((0, 0o644), (0, 0o755), (0, 0o600)));
    assert_eq!(xattr(&dir, "d", "user.old"), None);
}

/// An archive of many directories, whose bytes are made when they are read.
struct Directories {
    left: u64,
    block: Vec<u8>,
    at: usize,
}

impl Read for Directories {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.block.len() {
            if self.left == 0 {
                return Ok(0);
            }
            self.left -= 1;
            let (hundreds, rest) = (self.left / 1000, self.left % 1000);
            // Children come before their parents: each is made without an entry first.
            let name = format!("directory-with-a-long-name-{hundreds}/another-long-name-{rest}/");
            self.block = Tar::default().dir(&name).0;
            self.at = 0;
        }
        let length = buffer.len().min(self.block.len() - self.at);
        buffer[..length].copy_from_slice(&self.block[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Nextest gives each test a process of its own, so its memory is that of this layer.
#[test]
fn memory_does_not_grow_with_the_number_of_directories() {
    // What is on this filesystem is not memory of the process, and it is quick.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(dir.path().join("fs")).unwrap();
    let unpack = |count: u64| {
        let root = OwnedFd::from(fs::File::open(dir.path().join("fs")).unwrap());
        let recipe = Recipe::new(fs::File::create(dir.path().join("recipe")).unwrap()).unwrap();
        let mut archive = Directories { left: count, block: Vec::new(), at: 0 };
        super::extract::extract(
            &mut archive,
            &Flow::new(&Budget::new(Limits::default())),
            root,
            Some(recipe),
        )
        .unwrap();
    };
    unpack(1);
    let before = peak_kib();
    unpack(300_000);
    let grown = peak_kib() - before;
    assert!(grown < 4 << 10, "{grown} KiB for 300,000 directories");
    let one = dir.path().join("fs/directory-with-a-long-name-299/another-long-name-999");
    assert_eq!(fs::metadata(one).unwrap().mtime(), 1_000_000_000, "the first note was replayed");
    // Removing has a bound, too.
    let parent = fs::File::open(dir.path()).unwrap();
    remove_all(std::os::fd::AsFd::as_fd(&parent), std::ffi::OsStr::new("fs")).unwrap();
    assert!(peak_kib() - before < 4 << 10);
}

#[test]
fn whiteouts_have_a_budget() {
    let archive: Vec<u8> = (0..3).flat_map(|_| Tar::default().file(".wh.a", "").0).collect();
    let budget = Budget::new(Limits::default());
    let dir = tempfile::tempdir().unwrap();
    let root = || OwnedFd::from(fs::File::open(dir.path()).unwrap());
    Flow::new(&budget).whiteout(crate::image::limits::MAX_WHITEOUT_BYTES - 20).unwrap();
    let error = super::extract::extract(&mut &archive[..], &Flow::new(&budget), root(), None)
        .expect_err("three are too many");
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
}

/// An ACL of `system.posix_acl_access`: owner, user 1000, group, mask and others.
fn acl(owner: u16, user: u16, group: u16, mask: u16, others: u16) -> Vec<u8> {
    let none = u32::MAX;
    let entries = [(1, owner, none), (2, user, 1000), (4, group, none), (16, mask, none), (32, others, none)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&u16::to_le_bytes(tag));
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

#[test]
fn the_mode_of_the_archive_wins_over_its_acl() {
    let (access, default) = ("system.posix_acl_access", meta::DEFAULT_ACL);
    let record = |name: &str| format!("SCHILY.xattr.{name}");
    let minimal =
        [&2u32.to_le_bytes()[..], &[1, 0, 7, 0], &[0; 4], &[4, 0, 7, 0], &[0; 4], &[32, 0, 7, 0], &[0; 4]];
    let dir = Tar::default()
        .pax(&[(&record(access), &acl(7, 7, 7, 7, 7)), (&record(default), &acl(7, 6, 5, 4, 3))])
        .raw(EntryType::Regular, "file", "", b"x", |h| h.set_mode(0o4640))
        .pax(&[(&record(access), &minimal.concat())])
        .raw(EntryType::Regular, "minimal", "", b"x", |h| h.set_mode(0o600))
        .pax(&[(&record(access), &2u32.to_le_bytes())])
        .file("none", "x")
        .pax(&[(&record(access), &acl(0, 0, 0, 0, 0))])
        .raw(EntryType::Fifo, "fifo", "", b"", |h| h.set_mode(0o604))
        .pax(&[(&record(access), &acl(0, 0, 0, 0, 0)), (&record(default), &acl(7, 6, 5, 4, 3))])
        .dir("d")
        .pax(&[(&record(default), &acl(7, 6, 5, 4, 3))])
        .dir("twice")
        .dir("twice")
        .ok();
    let mode = |path: &str| super::tests::meta(&dir, path).mode() & 0o7777;
    assert_eq!(["file", "minimal", "none", "fifo", "d"].map(mode), [0o4640, 0o600, 0o644, 0o604, 0o755]);
    assert_eq!(xattr(&dir, "file", access), Some(acl(6, 7, 7, 4, 0)));
    assert_eq!(xattr(&dir, "minimal", access), None);
    assert_eq!(xattr(&dir, "d", default), Some(acl(7, 6, 5, 4, 3)));
    assert_eq!(xattr(&dir, "twice", default), None, "the last of a name wins");
}

#[test]
fn capabilities_of_version_3_are_as_unpacked() {
    let words = [0x0300_0001u32, 1 << 10, 0, 0, 0, 0];
    let value: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    let dir = Tar::default().pax(&[("SCHILY.xattr.security.capability", &value)]).file("f", "x").ok();
    assert_eq!(xattr(&dir, "f", "security.capability").unwrap()[..4], [1, 0, 0, 2]);
}
