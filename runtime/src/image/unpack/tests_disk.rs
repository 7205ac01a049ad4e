//! What layers become on the disk: sparse files of GNU tar, owners and modes whatever the store's
//! directory or process give, memory, verification of damage. They need root.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

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
    Flow::new(&budget).whiteout(crate::image::limits::MAX_WHITEOUT_BYTES - 150).unwrap();
    let error = super::extract::extract(&mut &archive[..], &Flow::new(&budget), root(), None)
        .expect_err("three are too many");
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
}

type Damage = (&'static str, &'static str, &'static str);

#[test]
fn damage_is_named() {
    let cases: [Damage; 22] = [
        ("printf Hello > fs/d/f; touch -d @1000000000 fs/d/f", "", "hash"),
        ("printf hell > fs/d/f", "d/f", "4 bytes, not 5"),
        ("chmod 600 fs/d/f; true", "d/f", "mode is 0600, not 0644"),
        ("chown 5 fs/d/f", "d/f", "owner is 5:0, not 0:0"),
        ("touch fs/d/f", "d/f", "time"),
        ("rm fs/d/f; mkdir fs/d/f", "d/f", "Directory"),
        ("rm fs/d/f", "d/f", "missing"),
        ("rm fs/d/f; mkfifo fs/d/f", "d/f", "Fifo"),
        ("ln -sfn other fs/d/l; touch -hd @1000000000 fs/d/l", "d/l", "link to \"other\""),
        ("cp -p fs/d/f x; mv x fs/d/h", "d/h", "not the same file"),
        (
            "setfattr -x user.a fs/d/a || python3 -c \"import os; os.removexattr('fs/d/a','user.a')\"",
            "d/a",
            "user.a",
        ),
        ("rm fs/d/gone", "d/.wh.gone", "whiteout is missing"),
        (
            "python3 -c \"import os; os.removexattr('fs/o','trusted.overlay.opaque')\"",
            "o/.wh..wh..opq",
            "hide",
        ),
        ("echo x > fs/d/extra", "d/extra", "not of this layer"),
        ("mkdir -p fs/implied/new/deep", "implied/new", "not of this layer"),
        ("rm -r fs/implied", "implied/f", "missing"),
        ("chmod 700 fs; true", "", "mode is 0700, not 0711"),
        (
            "python3 -c \"import os; os.setxattr('fs/d/f','security.capability',bytes([1,0,0,2])+bytes(16))\"",
            "d/f",
            "\"security.capability\" is not of this layer",
        ),
        (
            "python3 -c \"import os; os.setxattr('fs/d','user.b',b'')\"",
            "d",
            "\"user.b\" is not of this layer",
        ),
        (
            "python3 -c \"import os; os.setxattr('fs/d/l','trusted.b',b'c',follow_symlinks=False)\"",
            "d/l",
            "\"trusted.b\" is not of this layer",
        ),
        ("python3 -c \"import os; os.setxattr('fs/d','trusted.overlay.opaque',b'y')\"", "d", "no entry"),
        (
            "python3 -c \"import os; os.setxattr('fs/implied','trusted.c',b'c')\"",
            "implied",
            "\"trusted.c\" is not of this layer",
        ),
    ];
    for (damage, path, what) in cases {
        let archive = Tar::default()
            .raw(EntryType::Directory, "./", "", b"", |h| h.set_mode(0o711))
            .dir("d")
            .file("d/f", "hello")
            .link("d/h", "d/f")
            .symlink("d/l", "f")
            .pax(&[("SCHILY.xattr.user.a", b"b")])
            .file("d/a", "x")
            .file("d/.wh.gone", "")
            .file("o/.wh..wh..opq", "")
            .file("implied/f", "x")
            .finish();
        let (dir, result) = unpack_bytes(&archive, &expected(&archive), Limits::default());
        result.unwrap();
        // What is damaged in a directory changes its time as well, which is not what is looked for.
        run(&format!("{damage}; touch -d @1000000000 fs/d fs"), dir.path());
        let report = verify_layer(dir.path(), &Digest::sha256(&archive)).unwrap();
        assert!(!report.is_sound(), "{damage}");
        match report.difference {
            Some(found) => {
                assert_eq!(found.path, Path::new(path), "{damage}: {}", found.what);
                assert!(found.what.contains(what), "{damage}: {}", found.what);
            }
            None => assert!(what == "hash" && matches!(report.rehash, Rehash::Differs { .. }), "{damage}"),
        }
    }
}

#[test]
fn recipes_that_are_gone_broken_or_of_names_that_came_twice() {
    let archive = Tar::default().file("f", "hello").finish();
    let diff_id = Digest::sha256(&archive);
    let (dir, result) = unpack_bytes(&archive, &expected(&archive), Limits::default());
    result.unwrap();
    let report = verify_layer(dir.path(), &diff_id).unwrap();
    assert_eq!((report.entries, report.bytes, report.rehash), (1, archive.len() as u64, Rehash::Equal));
    let recipe = dir.path().join("recipe");
    let whole = fs::read(&recipe).unwrap();
    for broken in
        [&whole[..whole.len() / 2], &[][..], &b"rubbish"[..], &zstd::encode_all(&b"\x07"[..], 1).unwrap()]
    {
        fs::write(&recipe, broken).unwrap();
        let error = verify_layer(dir.path(), &diff_id).expect_err("a broken recipe");
        assert_eq!(error.kind(), ErrorKind::CorruptImage, "{error:?}");
    }
    fs::remove_file(&recipe).unwrap();
    assert!(
        verify_layer(dir.path(), &diff_id).expect_err("none").advice().unwrap().contains("pull it again")
    );
    let twice = Tar::default().file("f", "1").file("f", "2").finish();
    let (dir, result) = unpack_bytes(&twice, &expected(&twice), Limits::default());
    result.unwrap();
    let report = verify_layer(dir.path(), &Digest::sha256(&twice)).unwrap();
    assert_eq!(report.rehash, Rehash::Impossible);
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

#[test]
fn a_directory_may_have_two_names_through_a_link() {
    let archive = Tar::default()
        .dir("real")
        .symlink("link", "real")
        .dir("real/d")
        .raw(EntryType::Directory, "link/d/", "", b"", |h| h.set_mode(0o700))
        .finish();
    let (dir, result) = unpack_bytes(&archive, &expected(&archive), Limits::default());
    result.unwrap();
    assert_eq!(super::tests::meta(&dir, "real/d").mode() & 0o7777, 0o700);
    run("chmod 755 fs/real/d", dir.path());
    let report = verify_layer(dir.path(), &Digest::sha256(&archive)).unwrap();
    let found = report.difference.expect("the mode is that of the first name");
    assert_eq!(
        (found.path.as_path(), found.what.as_str()),
        (Path::new("link/d"), "its mode is 0755, not 0700")
    );
}
