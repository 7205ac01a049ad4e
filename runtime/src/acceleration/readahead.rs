//! Reading ahead what a list says, beside a start that does not wait for it.

use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::{Advice, RawDir, fadvise};

use super::ListPath;
use super::list::{List, Range};
use super::tree::{Found, Tree};
use crate::sys::resident_pages;

/// Threads that read ahead for one start. Most of their time they wait for directories and inodes,
/// which the kernel reads one at a time for each thread.
const THREADS: usize = 8;
/// Bytes that one thread asks for at a time.
const CHUNK: u64 = 512 << 10;
/// Starts that are read ahead for at the same time; more would only wait for the same disk.
const MAX_AT_ONCE: usize = 4;
/// Files that are looked at to tell a warm page cache from a cold one.
const SAMPLES: usize = 16;
/// Bytes of each that are looked at.
const SAMPLE_BYTES: u64 = 1 << 20;
/// Bytes of a directory's entries that are read, in each layer.
const MAX_DIRECTORY_BYTES: usize = 256 << 10;

/// Which lists are being read ahead. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadAhead(Arc<Mutex<HashSet<ListPath>>>);

impl ReadAhead {
    /// Begins to read ahead what `list` says of these layers (lowest first), unless it is in the
    /// page cache already, somebody does so, or too many others are under way. Does not wait.
    pub(crate) fn begin(&self, list: ListPath, layers: Vec<PathBuf>) {
        {
            let mut busy = self.lock();
            if busy.len() >= MAX_AT_ONCE || !busy.insert(list.clone()) {
                return;
            }
        }
        let under_way = UnderWay { all: self.clone(), list };
        // Without a thread the start reads for itself; dropping the closure takes the list out.
        let _ = thread::Builder::new().name("skiff-readahead".into()).spawn(move || under_way.read(&layers));
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<ListPath>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct UnderWay {
    all: ReadAhead,
    list: ListPath,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.lock().remove(&self.list);
    }
}

impl UnderWay {
    fn read(&self, layers: &[PathBuf]) {
        let Some(list) = self.list.load() else { return };
        let tree = Tree::open(layers);
        if is_warm(&tree, &list) {
            tracing::debug!(files = list.entries.len(), "the page cache is warm: nothing is read ahead");
            return;
        }
        let began = std::time::Instant::now();
        read_ahead(&tree, &list);
        tracing::debug!(files = list.entries.len(), elapsed = ?began.elapsed(), "read ahead");
    }
}

/// Whether some of the files, taken evenly from the list and its end, are in the page cache.
fn is_warm(tree: &Tree, list: &List) -> bool {
    let files: Vec<_> = list.entries.iter().filter(|entry| !entry.ranges.is_empty()).collect();
    let step = files.len().div_ceil(SAMPLES).max(1);
    files.iter().rev().step_by(step).all(|entry| match tree.find(&entry.path) {
        Some(Found::File(file, size)) => {
            entry.ranges.first().is_none_or(|range| is_resident(&file, size, *range))
        }
        // What is not there cannot be read ahead.
        _ => true,
    })
}

fn is_resident(file: &OwnedFd, size: u64, (offset, length): Range) -> bool {
    let offset = offset - offset % crate::sys::PAGE_SIZE;
    let length = length.min(size.saturating_sub(offset)).min(SAMPLE_BYTES);
    let length = usize::try_from(length).unwrap_or(0);
    // Where it cannot be told, reading ahead what is there costs little.
    length == 0 || resident_pages(file, offset, length).is_ok_and(|pages| pages.iter().all(|there| *there))
}

/// A directory whose entries are looked up, or a file.
enum Step<'a> {
    Directory(&'a str),
    File(&'a str, &'a [Range]),
}

/// The steps in the order of first need: each directory before the first thing in it.
fn steps(list: &List) -> Vec<Step<'_>> {
    let mut known = HashSet::from([""]);
    let mut steps = vec![Step::Directory("")];
    for entry in &list.entries {
        let above = entry.path.match_indices('/').map(|(end, _)| &entry.path[..end]);
        let own = entry.ranges.is_empty().then_some(entry.path.as_str());
        for directory in above.chain(own) {
            if known.insert(directory) {
                steps.push(Step::Directory(directory));
            }
        }
        if !entry.ranges.is_empty() {
            steps.push(Step::File(&entry.path, &entry.ranges));
        }
    }
    steps
}

fn read_ahead(tree: &Tree, list: &List) {
    let steps = steps(list);
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(step) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
            match step {
                Step::Directory(path) => tree.directories(path).for_each(|directory| read_names(&directory)),
                Step::File(path, ranges) => {
                    if let Some(Found::File(file, _)) = tree.find(path) {
                        bring_in(&file, ranges);
                    }
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..THREADS.min(steps.len()) {
            // With fewer threads it takes longer.
            let _ = thread::Builder::new().name("skiff-readahead".into()).spawn_scoped(scope, work);
        }
        work();
    });
}

/// Brings in a directory's blocks: overlayfs looks names up in each layer from the highest down.
fn read_names(directory: &OwnedFd) {
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut seen = 0;
    let mut names = RawDir::new(directory, &mut buffer);
    while let Some(Ok(name)) = names.next() {
        seen += name.file_name().to_bytes().len() + 24;
        if seen > MAX_DIRECTORY_BYTES {
            return;
        }
    }
}

/// Brings parts of a file in, and waits for them: what the start itself needs meanwhile would else
/// wait behind all that is read ahead, for a disk mostly takes requests in their order.
fn bring_in(file: &OwnedFd, ranges: &[Range]) {
    for (offset, length) in ranges {
        let mut done = 0;
        while done < *length {
            let chunk = CHUNK.min(length - done);
            // A hint: where a filesystem does not take it, the last byte is read all the same.
            let _ = fadvise(file, offset + done, NonZeroU64::new(chunk), Advice::WillNeed);
            done += chunk;
            let read = rustix::io::pread(file, &mut [0; 1], offset + done - 1);
            if !matches!(read, Ok(1)) {
                // It has become shorter, or the disk is broken, which the start will tell.
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::list::Entry;
    use super::*;

    fn list(entries: &[(&str, &[Range])]) -> List {
        let entry =
            |(path, ranges): &(&str, &[Range])| Entry { path: (*path).into(), ranges: ranges.to_vec() };
        List::new(entries.iter().map(entry).collect())
    }

    #[test]
    fn directories_come_once_and_before_what_is_in_them() {
        let list = list(&[("usr/bin/a", &[(0, 1)]), ("usr/bin/b", &[(0, 1)]), ("usr/lib", &[])]);
        let shown: Vec<_> = steps(&list)
            .iter()
            .map(|step| match step {
                Step::Directory(path) => format!("d {path}"),
                Step::File(path, _) => format!("f {path}"),
            })
            .collect();
        assert_eq!(shown, ["d ", "d usr", "d usr/bin", "f usr/bin/a", "f usr/bin/b", "d usr/lib"]);
    }

    #[test]
    fn what_was_just_written_is_warm_and_what_was_dropped_is_cold() {
        // Not in a tmpfs, whose pages cannot be dropped.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("tempdir");
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; 100_000]).expect("written");
        let tree = Tree::open(&[dir.path().to_owned()]);
        let list = list(&[("gone", &[(0, 9)]), ("file", &[(4096, 50_000)])]);
        assert!(is_warm(&tree, &list));
        let file = std::fs::File::open(&path).expect("open");
        file.sync_all().expect("synced");
        fadvise(&file, 0, None, Advice::DontNeed).expect("dropped");
        assert!(!is_warm(&tree, &list));
        read_ahead(&tree, &list);
        let read = || is_warm(&tree, &list);
        assert!((0..200).any(|_| read() || {
            thread::sleep(std::time::Duration::from_millis(10));
            false
        }));
    }

    #[test]
    fn a_list_about_things_that_are_not_there_does_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let tree = Tree::open(&[dir.path().to_owned()]);
        read_ahead(&tree, &list(&[("a/b/c", &[(0, u64::MAX >> 2)]), ("d", &[])]));
        assert!(is_warm(&Tree::open(&[]), &List::default()));
    }
}
