//! Archives whose names are written as they are, with no check.

use tar::{EntryType, Header};

/// One entry.
#[derive(Clone, Copy)]
pub(crate) enum E {
    /// A directory and its mode.
    Dir(&'static str, u32),
    /// A file and its text.
    File(&'static str, &'static str),
    /// A link: first what it leads to, then its name.
    Sym(&'static str, &'static str),
    /// A hard link: first the other name, then its own.
    Hard(&'static str, &'static str),
}

/// An archive of these entries.
pub(crate) fn archive(entries: &[E]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let (kind, path, link, mode, data) = match *entry {
            E::Dir(path, mode) => (EntryType::Directory, path, "", mode, ""),
            E::File(path, data) => (EntryType::Regular, path, "", 0o644, data),
            E::Sym(link, path) => (EntryType::Symlink, path, link, 0o777, ""),
            E::Hard(link, path) => (EntryType::Link, path, link, 0o644, ""),
        };
        add(&mut bytes, kind, path, link, mode, data.as_bytes());
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Adds one entry to an archive.
pub(crate) fn add(bytes: &mut Vec<u8>, kind: EntryType, path: &str, link: &str, mode: u32, data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(data.len() as u64);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..path.len()].copy_from_slice(path.as_bytes());
    gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}
