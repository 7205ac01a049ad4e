//! Names that lead through a symbolic link of a lower layer go where it leads, as in Docker, containerd
//! and umoci: an image whose base has `lib -> usr/lib` may have `lib/x` in a layer without an entry for
//! `lib`.
#![allow(clippy::print_stdout, reason = "a failure is of the case that was named last")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{GcOptions, Image, VerifyOptions, VerifyReport};

use crate::raw::E::{Dir, File, Hard, Sym};
use crate::raw::{E, archive};
use crate::support::*;
use crate::umoci::same;

const MERGED: &[E] = &[
    Dir("usr", 0o755),
    Dir("usr/lib", 0o711),
    File("usr/lib/old", "old"),
    File("usr/lib/gone", "gone"),
    Dir("usr/lib/sub", 0o1777),
    File("usr/lib/sub/in", "in"),
    Dir("usr/bin", 0o755),
    Dir("opt", 0o700),
    Sym("usr/lib", "lib"),
    Sym("/usr/bin", "bin"),
    Sym("../../../usr/lib/../bin/.", "usr/lib/up"),
    Sym("lib", "lib64"),
    Sym("/not/yet", "dead"),
    Sym("/", "all"),
];

type Layers = &'static [&'static [E]];

/// Layers over one another, lowest first.
const CASES: &[(&str, Layers)] = &[
    ("a file, and one that it replaces", &[MERGED, &[File("lib/x", "x"), File("lib/old", "new")]]),
    ("an absolute link", &[MERGED, &[File("bin/tool", "x"), Sym("tool", "bin/other")]]),
    ("several links, up to the root and further", &[MERGED, &[File("lib64/up/tool", "x")]]),
    ("a link to the root", &[MERGED, &[File("all/new", "x"), File("all/all/opt/y", "y")]]),
    ("a link to what is not there", &[MERGED, &[File("dead/x", "x")]]),
    (
        "what the link leads to is in the layer as well",
        &[MERGED, &[File("lib/x", "1"), File("usr/lib/y", "2")]],
    ),
    ("the last of both names counts", &[MERGED, &[File("lib/x", "1"), File("usr/lib/x", "2")]]),
    ("and the other way round", &[MERGED, &[File("usr/lib/x", "2"), File("lib/x", "1")]]),
    ("a directory", &[MERGED, &[Dir("lib/sub", 0o700), File("lib/sub/y", "y"), Dir("lib/new", 0o750)]]),
    ("a directory that is implied", &[MERGED, &[File("lib/sub/y", "y"), File("lib/new/z", "z")]]),
    ("hard links", &[MERGED, &[File("lib/x", "x"), Hard("lib/x", "lib/y"), Hard("lib/x", "z")]]),
    ("a whiteout", &[MERGED, &[File("lib/.wh.gone", ""), File("lib64/sub/.wh.in", "")]]),
    ("a whiteout of a directory", &[MERGED, &[File("lib/.wh.sub", "")]]),
    ("an opaque directory", &[MERGED, &[File("lib/.wh..wh..opq", ""), File("lib/x", "x")]]),
    ("an opaque directory of nothing", &[MERGED, &[File("lib64/sub/.wh..wh..opq", "")]]),
    ("the link is removed and a directory is made", &[MERGED, &[File(".wh.lib", ""), File("lib/x", "x")]]),
    (
        "the same beside a name through another link",
        &[MERGED, &[File(".wh.lib", ""), File("lib/x", "x"), File("bin/y", "y")]],
    ),
    (
        "one of two links is hidden",
        &[
            &[Dir("a", 0o755), Dir("opt", 0o755), Sym("../opt", "a/l"), Sym("opt", "m")],
            &[Dir("a", 0o755), File("a/.wh..wh..opq", ""), File("a/l/x", "x"), File("m/y", "y")],
        ],
    ),
    ("a directory takes the link's place", &[MERGED, &[Dir("lib", 0o700), File("lib/x", "x")]]),
    ("another link takes its place", &[MERGED, &[Sym("opt", "lib")], &[File("lib/x", "x")]]),
    ("it is removed below", &[MERGED, &[File(".wh.lib", "")], &[File("lib/x", "x"), File("bin/y", "y")]]),
    (
        "hidden by an opaque directory",
        &[
            &[Dir("a", 0o755), Sym("../opt", "a/l")],
            &[Dir("a", 0o755), File("a/.wh..wh..opq", "")],
            &[File("a/l/x", "x")],
        ],
    ),
    (
        "what came through it is removed above",
        &[
            MERGED,
            &[File("lib/x", "x"), File("lib/y", "y")],
            &[Dir("usr/lib", 0o755), File("usr/lib/.wh.x", "")],
        ],
    ),
    (
        "or through it, too",
        &[
            MERGED,
            &[File("usr/lib/x", "x")],
            &[File("lib/.wh.x", ""), File("bin/t", "")],
            &[File("lib64/x", "again")],
        ],
    ),
    ("a link that came through a link", &[MERGED, &[Sym("../../opt", "lib/l")], &[File("lib64/l/x", "x")]]),
    ("a layer twice, the second time over a link", &[&[File("lib/x", "x")], MERGED, &[File("lib/x", "x")]]),
];

fn packed(layers: &[&[E]]) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let archives = layers.iter().map(|entries| archive(entries));
    // The root last, so that its time is the same on both sides.
    let all = archives.chain([archive(&[Dir("./", 0o755)])]);
    all.map(|archive| (TAR, archive.clone(), archive)).collect()
}

#[tokio::test]
async fn umoci_unpacks_the_same() {
    for (what, layers) in CASES {
        println!("{what}");
        let place = Place::new();
        same(&place, &packed(layers)).await;
        let report = verify(&place, false);
        assert!(report.is_sound() && report.unverifiable.is_empty(), "{what}: {report:?}");
        place.nothing_half_made();
    }
}

/// As without links: an entry for the directory may come after what is in it. (umoci would have put `x`
/// where the link leads.)
#[tokio::test]
async fn a_directory_that_comes_late_takes_the_links_place_all_the_same() {
    let place = Place::new();
    let layer = [File("lib/x", "x"), Dir("lib", 0o700), File("bin/y", "y")];
    for (name, layer, count) in [("one", &layer[..2], 0), ("two", &layer[..], 1)] {
        let image = place.pull(&source(&place, name, &[MERGED, layer])).await.unwrap();
        assert_eq!(redirected(&image).len(), count);
        assert_eq!(shell(&place, &image, "cat lib/x; stat -c %a lib; ls usr/lib | wc -l"), "x700\n4");
    }
}

/// The same file at both places: umoci would make two of it.
#[tokio::test]
async fn a_layer_twice_of_which_only_the_first_is_over_a_link() {
    const TWICE: &[E] = &[File("lib/x", "x")];
    let place = Place::new();
    let layers: &[&[E]] = &[MERGED, TWICE, &[Dir("lib", 0o755)], TWICE];
    let image = place.pull(&source(&place, "layout", layers)).await.unwrap();
    assert_eq!(redirected(&image).len(), 1);
    assert_eq!(shell(&place, &image, "cat usr/lib/x lib/x; ls lib"), "xxx");
    assert!(verify(&place, false).is_sound());
}

fn verify(place: &Place, repair: bool) -> VerifyReport {
    let mut options = VerifyOptions::default();
    options.repair = repair;
    place.store.verify(&options).unwrap()
}

fn source(place: &Place, name: &str, layers: &[&[E]]) -> String {
    let layout = Layout::new(&place.path(name));
    layout.index(&[("t", layout.image(&packed(layers), "amd64"))])
}

/// What a shell command tells in the root of an image.
fn shell(place: &Place, image: &Image, script: &str) -> String {
    let lower: Vec<String> = image.layers.iter().rev().map(|l| l.display().to_string()).collect();
    let script = format!(
        "mkdir -p merged; mount -t overlay none -o ro,lowerdir={} merged; cd merged; {script}",
        lower.join(":")
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc", &script])
        .current_dir(place.dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn redirected(image: &Image) -> Vec<&PathBuf> {
    image.layers.iter().filter(|layer| layer.to_str().unwrap().contains("/redirected/")).collect()
}

#[tokio::test]
async fn what_cannot_be_led_is_refused_and_names_the_link() {
    for (layers, says) in [
        (&[&[Sym("b", "a"), Sym("a", "b")][..], &[File("a/x", "")]], "\"a\" leads through more than 40"),
        (
            &[&[File("f", ""), Sym("f", "a")], &[File("f", ""), File("a/x", "")]],
            "\"f\" should be a directory",
        ),
        (&[MERGED, &[File("lib/x", "1"), File("lib/x", "2")]], "names a file twice"),
    ] {
        let place = Place::new();
        let error = place.error(&source(&place, "layout", layers), &Default::default()).await;
        assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error:?}");
        let chain = error.chain();
        assert!(chain.contains(says) && chain.contains("a link of a lower layer"), "{chain}");
    }
}

#[tokio::test]
async fn a_shared_layer_goes_where_each_image_leads_it() {
    const SHARED: &[E] = &[File("lib/x", "x")];
    let place = Place::new();
    let image =
        async |name: &str, base: &[E]| place.pull(&source(&place, name, &[base, SHARED])).await.unwrap();
    let one = image("one", MERGED).await;
    let two = image("two", &[Dir("opt", 0o755), Sym("opt", "lib")]).await;
    let three = image("three", &[Dir("lib", 0o700)]).await;
    assert_eq!(shell(&place, &one, "cat usr/lib/x; ls lib/"), "xgone\nold\nsub\nup\nx");
    assert_eq!(shell(&place, &two, "cat opt/x; ls lib/"), "xx");
    assert_eq!(shell(&place, &three, "cat lib/x; stat -c %a lib"), "x700");
    assert_eq!([&one, &two, &three].map(|image| redirected(image).len()), [1, 1, 0]);
    // One file, whatever image it is seen in: neither the disk nor the page cache has it twice.
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let apart = inode(three.layers[1].join("lib/x"));
    assert_eq!(inode(redirected(&one)[0].join("usr/lib/x")), apart);
    assert_eq!(inode(redirected(&two)[0].join("opt/x")), apart);
    // They are found again, and go with their images.
    let (layers, name) = (one.layers.clone(), one.name.clone());
    assert_eq!(place.pull(&name).await.unwrap().layers, layers);
    drop(one);
    place.store.remove(&name).unwrap();
    assert!(!layers.iter().any(|layer| layer.to_str().unwrap().contains("/redirected/") && layer.exists()));
    assert_eq!(shell(&place, &two, "cat opt/x"), "x");
    drop((two, three));
    let mut all = GcOptions::default();
    all.all = true;
    place.store.collect(&all).unwrap();
    assert_eq!(fs::read_dir(place.path("state/chains/sha256")).unwrap().count(), 0);
    place.nothing_half_made();
}

#[tokio::test]
async fn one_of_an_earlier_boot_is_made_again() {
    let place = Place::new();
    let source = source(&place, "layout", &[MERGED, &[File("lib/x", "x")]]);
    let image = place.pull(&source).await.unwrap();
    let path = redirected(&image)[0].clone();
    let chain = path.ancestors().nth(3).unwrap();
    fs::write(chain.join("boot"), "an earlier one").unwrap();
    fs::remove_file(path.join("usr/lib/x")).unwrap();
    let image = place.pull(&source).await.unwrap();
    assert_eq!(redirected(&image), [&path]);
    assert_eq!(shell(&place, &image, "cat lib/x"), "x");
}

#[tokio::test]
async fn damage_is_found_and_made_again() {
    let place = Place::new();
    let layers: &[&[E]] = &[MERGED, &[File("lib/x", "x"), File("lib/.wh.gone", ""), File("bin/y", "y")]];
    let source = source(&place, "layout", layers);
    for (damage, what) in [
        ("rm usr/lib/x; touch -d @0 usr/lib", "usr/lib/x: it is missing"),
        ("rm usr/lib/x; echo x > usr/lib/x; touch -d @0 usr/lib", "usr/lib/x: it is another file"),
        ("rm usr/lib/gone; touch -d @0 usr/lib", "usr/lib/gone: it is missing"),
        ("ln usr/lib/x usr/z; touch -d @0 usr", "usr/z: it is not of it"),
        ("chmod 700 usr/bin", "usr/bin: its mode"),
        ("rm ../implied", "its list implied"),
        ("rm -r ../../1", "redirected/1 is missing"),
        ("cp -a ../../1 ../../2", "redirected/2 should not be"),
    ] {
        let image = place.pull(&source).await.unwrap();
        let layer = redirected(&image)[0].clone();
        assert!(verify(&place, false).is_sound(), "before {damage}");
        let status = Command::new("sh").args(["-euc", damage]).current_dir(&layer).status().unwrap();
        assert!(status.success(), "{damage}");
        drop(image);
        let report = verify(&place, true);
        assert_eq!(report.damages.len(), 1, "{damage}: {report:?}");
        let found = &report.damages[0];
        assert!(found.part.starts_with("fix-up layer ") && found.removed, "{damage}: {found:?}");
        assert!(found.what.contains(what), "{damage}: {found:?}");
    }
    let image = place.pull(&source).await.unwrap();
    assert_eq!(shell(&place, &image, "cat lib/x usr/bin/y; ls lib/"), "xyold\nsub\nup\nx");
}

/// A redirected layer has the very files of the layer: where that is damaged, both must go.
#[tokio::test]
async fn a_damaged_file_is_not_kept_through_its_other_name() {
    let place = Place::new();
    let source = source(&place, "layout", &[MERGED, &[File("lib/x", "x")]]);
    let image = place.pull(&source).await.unwrap();
    let layer = place.path("state/layers").join(sha256(&archive(&[File("lib/x", "x")])).replace(':', "/"));
    fs::write(layer.join("fs/lib/x"), "y").unwrap();
    assert_eq!(shell(&place, &image, "cat usr/lib/x"), "y");
    drop(image);
    let report = verify(&place, true);
    assert!(report.damages.iter().all(|damage| damage.removed) && !report.damages.is_empty(), "{report:?}");
    let image = place.pull(&source).await.unwrap();
    assert_eq!(shell(&place, &image, "cat usr/lib/x"), "x");
    assert!(verify(&place, false).is_sound());
}

/// Links of the image are links in the image, wherever they would lead on the host.
#[tokio::test]
async fn nothing_outside_is_reached() {
    let place = Place::new();
    let victim = place.path("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("gone"), "here").unwrap();
    let path: &'static str = victim.to_str().unwrap().to_owned().leak();
    let climbing: &'static str = format!("../../../../../../../../../..{path}").leak();
    for target in [path, climbing] {
        let base = [Sym(target, "out")];
        let layer = [File("out/new", "x"), File("out/.wh.gone", ""), Dir("out/dir", 0o777)];
        let image = place.pull(&source(&place, "layout", &[&base[..], &layer[..]])).await.unwrap();
        assert_eq!(redirected(&image).len(), 1);
        let inside = Path::new(path).strip_prefix("/").unwrap().display().to_string();
        assert_eq!(shell(&place, &image, &format!("cat {inside}/new; stat -c %a {inside}/dir")), "x777");
    }
    let names: Vec<_> = fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(
        (names, fs::read_to_string(victim.join("gone")).unwrap()),
        (vec!["gone".into()], "here".into())
    );
}
