//! A layer's directory that someone exchanges for a symbolic link while it is unpacked (containerd's
//! CVE-2025-47290): nothing is made, changed or removed where the link leads.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tar::EntryType;

use crate::raw::add;
use crate::support::*;

const DIRECTORIES: usize = 40;
const FILES: usize = 60;

/// All that a layer can do in a directory: files, some of them twice, links of both kinds, modes,
/// whiteouts, directories that no entry describes.
fn busy(directory: &str) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut put =
        |kind, path: &str, link: &str, mode, data: &[u8]| add(&mut archive, kind, path, link, mode, data);
    put(EntryType::Directory, directory, "", 0o755, b"");
    // Round and round, so that directories are looked for again and again.
    for file in 0..FILES {
        for number in 0..DIRECTORIES {
            let name = |name: &str| format!("{directory}/s{number}/{name}{file}");
            match file % 6 {
                0 => put(EntryType::Directory, &name("d"), "", 0o777, b""),
                1 => put(EntryType::Symlink, &name("l"), "/etc/passwd", 0o777, b""),
                2 => put(EntryType::Regular, &name(".wh.f"), "", 0o644, b""),
                3 => put(EntryType::Regular, &format!("{directory}/s{number}/f"), "", 0o4777, b"again"),
                4 => put(EntryType::Link, &name("h"), &format!("{directory}/s{number}/f"), 0o644, b""),
                _ => put(EntryType::Regular, &name("f"), "", 0o666, b"the layer's"),
            }
        }
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// All that can be told of a tree.
fn told(dir: &Path) -> Vec<(PathBuf, u32, u32, i64, i64, u64, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        let text = if meta.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
        all.push((
            path.clone(),
            meta.mode(),
            meta.uid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.nlink(),
            text,
        ));
        if meta.is_dir() {
            all.extend(told(&path));
        }
    }
    all.sort();
    all
}

/// A directory like that of the layer, outside.
fn make_victim(victim: &Path) {
    for number in 0..DIRECTORIES {
        let dir = victim.join(format!("s{number}"));
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).unwrap();
        for name in ["f", "f5", "f2", "d0"] {
            fs::write(dir.join(name), "the host's").unwrap();
        }
    }
}

/// Exchanges the layer's directory for a link, over and over.
fn swap(state: &Path, link: &Path, stop: &AtomicBool, swaps: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        for entry in fs::read_dir(state.join("ingest")).unwrap().flatten() {
            let directory = entry.path().join("fs/d");
            for _ in 0..50 {
                // It may not be there yet, or no longer.
                let swapped = renameat_with(CWD, link, CWD, &directory, RenameFlags::EXCHANGE);
                swaps.fetch_add(usize::from(swapped.is_ok()), Ordering::Relaxed);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_exchanged_for_a_link_leads_nowhere() {
    let mut all = 0;
    for round in 0..6 {
        let place = Place::new();
        let (victim, link) = (place.path("victim"), place.path("link"));
        make_victim(&victim);
        let before = told(&victim);
        // From `ingest/NAME/fs` and from the root of the host.
        let target = if round % 2 == 0 { victim.clone() } else { "../../../../victim".into() };
        std::os::unix::fs::symlink(target, &link).unwrap();
        let archive = busy("d");
        let layout = Layout::new(&place.path("layout"));
        let source = layout.index(&[("t", layout.image(&[(TAR, archive.clone(), archive)], "amd64"))]);
        let (state, stop, swaps) = (place.path("state"), AtomicBool::new(false), AtomicUsize::new(0));
        let pulled = std::thread::scope(|scope| {
            scope.spawn(|| swap(&state, &link, &stop, &swaps));
            let pulled = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(place.pull(&source))
            });
            stop.store(true, Ordering::Relaxed);
            pulled
        });
        // It may fail, as a file that is to be linked is elsewhere meanwhile, or succeed.
        let how = pulled.map_or_else(|error| error.chain(), |_| "pulled".into());
        assert_eq!(told(&victim), before, "round {round}: {how}");
        all += swaps.load(Ordering::Relaxed);
    }
    assert!(all > 100, "only {all} exchanges");
}
