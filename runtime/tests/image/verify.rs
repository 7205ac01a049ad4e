//! Verifying what is in the store, and repairing it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{Store, VerifyOptions, VerifyReport};

use crate::support::*;

fn verify(store: &Store, images: &[&str], repair: bool) -> VerifyReport {
    let mut options = VerifyOptions::default();
    options.images = images.iter().map(|image| (*image).to_owned()).collect();
    options.repair = repair;
    store.verify(&options).unwrap()
}

#[tokio::test]
async fn a_sound_store_is_sound() {
    let place = Place::new();
    let (_, source) = Layout::small(&place.path("layout"));
    place.pull(&source).await.unwrap();
    let mut options = VerifyOptions::default();
    let told: std::sync::Arc<std::sync::Mutex<Vec<(usize, usize)>>> = std::sync::Arc::default();
    let noted = told.clone();
    options.observer =
        Some(std::sync::Arc::new(move |_: &str, done, all| noted.lock().unwrap().push((done, all))));
    let report = place.store.verify(&options).unwrap();
    assert!(report.is_sound() && report.unverifiable.is_empty(), "{report:?}");
    assert_eq!((report.images, report.layers, report.documents), (1, 3, 2));
    assert_eq!(*told.lock().unwrap(), [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]);
    assert_eq!(verify(&place.store, &[&source], false).layers, 3);
    options.images = vec!["nothing".into()];
    assert_eq!(place.store.verify(&options).expect_err("missing").kind(), ErrorKind::ImageNotFound);
}

#[tokio::test]
async fn damage_is_found_told_and_repaired() {
    let place = Place::new();
    let (_, source) = Layout::small(&place.path("layout"));
    for what in ["content", "mode", "missing", "extra", "document"] {
        let image = place.pull(&source).await.unwrap();
        let file = image.layers[0].join("etc/one");
        match what {
            "content" => fs::write(&file, "2").unwrap(),
            "mode" => fs::set_permissions(&file, fs::Permissions::from_mode(0o4777)).unwrap(),
            "missing" => fs::remove_file(&file).unwrap(),
            "extra" => fs::write(image.layers[0].join("etc/new"), "x").unwrap(),
            _ => {
                let blob = fs::read_dir(place.path("state/blobs/sha256")).unwrap().next().unwrap().unwrap();
                fs::write(blob.path(), "{}").unwrap();
            }
        }
        let held = verify(&place.store, &[], true);
        assert_eq!(held.damages.len(), 1, "{what}: {held:?}");
        assert!(!held.damages[0].removed && !held.is_sound(), "{what}: it is in use");
        drop(image);
        let report = verify(&place.store, &[&source], false);
        assert!(!report.is_sound() && report.damages.len() == 1, "{what}: {report:?}");
        assert_eq!(report.damages[0].part.starts_with("document"), what == "document", "{report:?}");
        let report = verify(&place.store, &[], true);
        assert!(report.damages.iter().all(|damage| damage.removed), "{what}: {report:?}");
        let lost: &[String] =
            if what == "document" { &report.incomplete } else { std::slice::from_ref(&source) };
        assert_eq!(report.incomplete, lost, "{what}");
        assert_eq!(report.is_sound(), lost.is_empty(), "{what}: {report:?}");
        let left = verify(&place.store, &[], false);
        assert!(left.damages.is_empty(), "{what}: {left:?}");
        let image = place.pull(&source).await.unwrap();
        assert_eq!(read(&image, 0, "etc/one"), "1", "{what}");
        let report = verify(&place.store, &[], false);
        assert!(report.is_sound(), "{what}: {report:?}");
    }
    place.nothing_half_made();
}

#[tokio::test]
async fn what_is_missing_or_cannot_be_told_is_said() {
    let place = Place::new();
    let (_, source) = Layout::small(&place.path("layout"));
    let image = place.pull(&source).await.unwrap();
    let layer = image.layers[1].parent().unwrap().to_owned();
    drop(image);
    fs::remove_file(layer.join("recipe")).unwrap();
    let report = verify(&place.store, &[], true);
    assert_eq!((report.unverifiable.len(), report.is_sound()), (1, true), "{report:?}");
    fs::remove_dir_all(&layer).unwrap();
    let report = verify(&place.store, &[], false);
    assert_eq!((report.incomplete.as_slice(), report.is_sound()), (&[source][..], false));
}

/// The archive of such a layer cannot be made again; its files are compared with what was noted.
#[tokio::test]
async fn damage_is_found_where_a_name_comes_twice() {
    use crate::raw::E::{Dir, File, Hard, Sym};
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let archive = crate::raw::archive(&[
        Dir("etc", 0o755),
        File("etc/twice", "first"),
        File("etc/once", "once"),
        File("etc/twice", "second"),
        Hard("etc/once", "etc/link"),
        Sym("once", "etc/sym"),
        File("implied/deep/file", "x"),
        File("implied/.wh.gone", ""),
    ]);
    let source = layout.index(&[("t", layout.image(&[(TAR, archive.clone(), archive)], "amd64"))]);
    for (damage, what) in [
        ("", ""),
        // The same size, and the same time.
        (
            "printf third_ > etc/twice; printf 'sEcond' > etc/twice; touch -d @1000000000 etc/twice",
            "etc/twice: it is not what",
        ),
        ("printf Once > etc/once; touch -d @1000000000 etc/once", "it is not what"),
        ("chmod 600 etc/once", "it is not what"),
        ("chmod 700 .", ".: it is not what"),
        ("ln -sfn twice etc/sym; touch -h -d @1000000000 etc/sym etc", "etc/sym: it is not what"),
        ("rm implied/deep/file; touch -d @0 implied/deep", "implied/deep/file: it is missing"),
        ("rm implied/gone; touch -d @0 implied", "implied/gone: it is missing"),
        ("echo x > implied/deep/new; touch -d @0 implied/deep", "implied/deep/new: it is not of this layer"),
        (
            "python3 -c \"import os; os.setxattr('implied','trusted.overlay.opaque',b'y')\"",
            "implied: it is not what",
        ),
        ("rm ../implied", "../implied: it is missing"),
        ("truncate -s -1 ../implied", "../implied: it is not what"),
        ("truncate -s -1 ../noted", "the list noted"),
        ("printf x | dd of=../noted conv=notrunc bs=1 seek=10", "the list noted"),
    ] {
        let image = place.pull(&source).await.unwrap();
        let status =
            std::process::Command::new("sh").args(["-euc", damage]).current_dir(&image.layers[0]).status();
        assert!(status.unwrap().success(), "{damage}");
        drop(image);
        let report = verify(&place.store, &[], true);
        assert_eq!(report.unverifiable, [""; 0], "{damage}");
        let told: Vec<&str> = report.damages.iter().map(|damage| damage.what.as_str()).collect();
        match told[..] {
            [] => assert_eq!(what, "", "{damage} is not seen"),
            [told] => assert!(!what.is_empty() && told.contains(what), "{damage}: {told}"),
            _ => panic!("{damage}: {report:?}"),
        }
    }
}

/// Something mounted over a file, until this is dropped.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_document_that_cannot_be_opened_is_damage() {
    let place = Place::new();
    let (_, source) = Layout::small(&place.path("layout"));
    place.pull(&source).await.unwrap();
    // A terminal that its other side has not unlocked: opening it is EIO.
    let terminals = || -> std::collections::BTreeSet<_> {
        fs::read_dir("/dev/pts").unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let before = terminals();
    let _other_side = fs::File::open("/dev/ptmx").unwrap();
    let made = terminals();
    let locked = made.difference(&before).find(|path| {
        fs::File::open(path).is_err_and(|e| e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()))
    });
    let over = fs::read_dir(place.path("state/blobs/sha256")).unwrap().next().unwrap().unwrap().path();
    rustix::mount::mount_bind(locked.unwrap(), &over).unwrap();
    let mounted = Mounted(over);
    let report = verify(&place.store, &[], false);
    assert_eq!((report.layers, report.documents, report.damages.len()), (3, 2, 1), "{report:?}");
    assert!(report.damages[0].what.contains("Input/output error"), "{report:?}");
    assert!(!report.is_sound());
    drop(mounted);
    assert!(verify(&place.store, &[], false).is_sound());
}

#[tokio::test]
async fn more_images_than_descriptors() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    const IMAGES: usize = 100;
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    for number in 0..IMAGES {
        let archive = tar(&[("one", &number.to_string())]);
        let image = layout.image(&[(TAR, archive.clone(), archive)], "amd64");
        place.pull(&layout.index(&[("x", image)])).await.unwrap();
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: Some(64) }).unwrap();
    let report = verify(&place.store, &[], false);
    assert_eq!((report.images, report.layers, report.is_sound()), (IMAGES, IMAGES, true));
}
