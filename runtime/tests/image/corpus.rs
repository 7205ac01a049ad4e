//! The inputs that fuzzing kept, through the same entry points, with the stable toolchain.

use std::fs;
use std::path::Path;

use skiff_runtime::image::fuzzing;

/// Runs `each` on every input of a target.
fn replay(target: &str, mut each: impl FnMut(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for file in fs::read_dir(dir).unwrap() {
        each(&fs::read(file.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 4, "{count} inputs of {target}");
}

#[test]
fn corpus_of_layers() {
    replay("layer", |bytes| {
        let dir = tempfile::tempdir().unwrap();
        fuzzing::layer(bytes, dir.path());
    });
}

#[test]
fn corpus_of_manifests() {
    replay("manifest", fuzzing::manifest);
}

#[test]
fn corpus_of_references() {
    replay("reference", |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            fuzzing::reference(text);
        }
    });
}

#[test]
fn corpus_of_credentials() {
    let dir = tempfile::tempdir().unwrap();
    replay("credentials", |bytes| fuzzing::credentials(bytes, &dir.path().join("file.json")));
}
