//! Layers that are not what was unpacked any more.

use super::*;

type Damage = (&'static str, &'static str, &'static str);

#[test]
fn damage_is_named() {
    let cases: [Damage; 34] = [
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
        ("python3 -c \"import os; os.removexattr('fs/d/a','user.a')\"", "d/a", "user.a"),
        ("rm fs/d/gone", "d/.wh.gone", "whiteout is missing"),
        ("rm fs/d/gone; echo x > fs/d/gone", "d/gone", "should be a whiteout"),
        ("rm fs/d/gone; ln -s f fs/d/gone", "d/gone", "should be a whiteout"),
        ("rm fs/d/gone; mknod fs/d/gone c 1 3", "d/gone", "should be a whiteout"),
        (
            "rm fs/d/gone; mkdir fs/d/gone; python3 -c \"import os; os.setxattr('fs/d/gone','trusted.overlay.opaque',b'y')\"",
            "d/gone",
            "should be a whiteout",
        ),
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
        ("chmod 777 fs/implied; true", "implied", "mode is 0777, not 0755"),
        ("chown :5 fs/implied", "implied", "owner is 0:5, not 0:0"),
        ("touch fs/implied", "implied", "time"),
        (
            "python3 -c \"import os; os.removexattr('fs/implied','trusted.overlay.skiff.implied')\"",
            "implied",
            "do not agree",
        ),
        (
            "python3 -c \"import os; os.setxattr('fs/implied','trusted.overlay.skiff.implied',b'n')\"",
            "implied",
            "do not agree",
        ),
        (
            "python3 -c \"import os; os.removexattr('fs/o','trusted.overlay.skiff.implied')\"",
            "o",
            "do not agree",
        ),
        (
            "python3 -c \"import os; os.setxattr('fs/d','trusted.overlay.skiff.implied',b'y')\"",
            "d",
            "one does",
        ),
        ("python3 -c \"import os; os.setxattr('fs','trusted.overlay.skiff.implied',b'y')\"", "", "one does"),
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

/// The digest at its end is right in both.
#[test]
fn lists_of_other_directories() {
    let archive = Tar::default().dir("d").file("implied/f", "x").finish();
    for (paths, wrong) in [(&["implied", "d"][..], "d"), (&["implied", "gone/far"], "gone/far")] {
        let (dir, result) = unpack_bytes(&archive, &expected(&archive), Limits::default());
        result.unwrap();
        let list = format!("{}\0\0", paths.join("\0"));
        let whole = format!("{list}{}", Digest::sha256(list.as_bytes()));
        assert_ne!(fs::read(dir.path().join(IMPLIED)).unwrap(), whole.as_bytes());
        fs::write(dir.path().join(IMPLIED), whole).unwrap();
        let found = verify_layer(dir.path(), &Digest::sha256(&archive)).unwrap().difference.unwrap();
        assert_eq!(found.path, Path::new(wrong), "{}", found.what);
        assert!(found.what.contains("in the list implied, and no such directory"), "{}", found.what);
        fs::remove_file(dir.path().join(IMPLIED)).unwrap();
        let found = verify_layer(dir.path(), &Digest::sha256(&archive)).unwrap().difference.unwrap();
        assert_eq!(found.path, Path::new("implied"), "{}", found.what);
        assert!(found.what.contains("do not agree"), "{}", found.what);
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
