//! What `scripts/images` has made.

use std::path::{Path, PathBuf};

/// The build directory: `target`, or what `CARGO_TARGET_DIR` says.
#[must_use]
pub fn target_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("CARGO_TARGET_DIR") {
        return PathBuf::from(dir);
    }
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target")
}

/// The directory of the test images.
///
/// # Panics
/// When they have not been made.
#[must_use]
pub fn dir() -> PathBuf {
    let dir =
        std::env::var_os("SKIFF_TEST_IMAGES").map_or_else(|| target_dir().join("test-images"), PathBuf::from);
    assert!(dir.join("registry.stamp").exists(), "no test images in {}: run scripts/images", dir.display());
    dir
}

/// The OCI layout that has all images.
#[must_use]
pub fn layout() -> PathBuf {
    dir().join("oci")
}

/// An image of the layout as an argument: `oci:DIR:TAG`.
#[must_use]
pub fn oci(tag: &str) -> String {
    format!("oci:{}:{tag}", layout().display())
}

/// The image `function` as `docker save` writes it, as an argument.
#[must_use]
pub fn docker_archive() -> String {
    format!("docker-archive:{}", dir().join("docker-archive.tar").display())
}
