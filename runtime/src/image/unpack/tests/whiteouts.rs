//! Whiteouts and opaque directories in the form of overlayfs.

use super::*;

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
