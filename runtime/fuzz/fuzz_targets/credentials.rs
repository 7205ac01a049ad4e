//! Any bytes as a credentials file.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

/// One file for all runs of this process, in memory where there is such a place.
static FILE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("temporary directory");
    let file = dir.path().join("credentials.json");
    (dir, file)
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| skiff_runtime::image::fuzzing::credentials(bytes, &FILE.1));
