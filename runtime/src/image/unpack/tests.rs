//! Archives, kind and hostile, through the whole of [`super::unpack`]. They need root, as unpacking
//! does.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod hostile;
mod kinds;
mod whiteouts;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use tar::{EntryType, Header};

use super::*;
use crate::image::limits::Limits;

/// An archive in the making.
#[derive(Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    /// An entry whose names are written as they are, with no check.
    pub(super) fn raw(
        mut self,
        kind: EntryType,
        path: &str,
        link: &str,
        data: &[u8],
        edit: impl Fn(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        edit(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.data(data)
    }

    fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn dir(self, path: &str) -> Self {
        self.raw(EntryType::Directory, path, "", b"", |_| {})
    }

    pub(super) fn file(self, path: &str, data: &str) -> Self {
        self.raw(EntryType::Regular, path, "", data.as_bytes(), |_| {})
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, path, target, b"", |_| {})
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Link, path, target, b"", |_| {})
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|n| *n == rest + n.to_string().len()).unwrap_or_else(|| rest + 3);
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.raw(EntryType::XHeader, "PaxHeader", "", &body, |_| {})
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// Unpacks into a fresh directory inside one that must stay as it was.
    fn unpack(self) -> (tempfile::TempDir, Result<()>) {
        self.unpack_limited(Limits::default())
    }

    fn unpack_limited(self, limits: Limits) -> (tempfile::TempDir, Result<()>) {
        let bytes = self.finish();
        let expected = expected(&bytes, &bytes);
        unpack_bytes(&bytes, &expected, limits)
    }

    pub(super) fn ok(self) -> tempfile::TempDir {
        let (dir, result) = self.unpack();
        result.expect("the archive is fine");
        dir
    }

    pub(super) fn error(self) -> Error {
        let (dir, result) = self.unpack();
        outside_is_untouched(dir.path());
        result.expect_err("the archive is bad")
    }
}

fn expected(packed: &[u8], archive: &[u8]) -> Expected {
    Expected {
        digest: Some(Digest::sha256(packed)),
        size: packed.len() as u64,
        diff_id: Digest::sha256(archive),
        packing: Packing::ByMagic,
    }
}

pub(super) fn unpack_bytes(
    bytes: &[u8],
    expected: &Expected,
    limits: Limits,
) -> (tempfile::TempDir, Result<()>) {
    assert!(rustix::process::geteuid().is_root(), "these tests need root");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("fs")).unwrap();
    fs::write(dir.path().join("victim"), "untouched").unwrap();
    let root = OwnedFd::from(fs::File::open(dir.path().join("fs")).unwrap());
    let recipe = Recipe::new(fs::File::create(dir.path().join("recipe")).unwrap()).unwrap();
    let recipe = recipe.with_implied(fs::File::open(dir.path()).unwrap().into());
    let result = unpack(bytes, expected, &Budget::new(limits), root, Some(recipe));
    if result.is_ok() {
        let report = verify_layer(dir.path(), &expected.diff_id).unwrap();
        assert!(report.is_sound(), "what was just unpacked is what it should be: {report:?}");
    }
    (dir, result.map(drop))
}

fn outside_is_untouched(dir: &Path) {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    // A list of directories that the layer implies, if there are any.
    names.retain(|name| name != IMPLIED);
    assert_eq!(names, ["fs", "recipe", "victim"]);
    assert_eq!(fs::read_to_string(dir.join("victim")).unwrap(), "untouched");
    assert_eq!(fs::metadata(dir.join("victim")).unwrap().nlink(), 1);
}

fn text(dir: &tempfile::TempDir, path: &str) -> String {
    fs::read_to_string(dir.path().join("fs").join(path)).expect(path)
}

pub(super) fn meta(dir: &tempfile::TempDir, path: &str) -> fs::Metadata {
    fs::symlink_metadata(dir.path().join("fs").join(path)).expect(path)
}

pub(super) fn xattr(dir: &tempfile::TempDir, path: &str, name: &str) -> Option<Vec<u8>> {
    let mut value = [0u8; 256];
    let length = rustix::fs::lgetxattr(dir.path().join("fs").join(path), name, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

fn is_whiteout(dir: &tempfile::TempDir, path: &str) -> bool {
    let meta = meta(dir, path);
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn is_opaque(dir: &tempfile::TempDir, path: &str) -> bool {
    xattr(dir, path, OPAQUE_XATTR).as_deref() == Some(b"y")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
