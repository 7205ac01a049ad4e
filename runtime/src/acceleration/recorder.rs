//! What is opened in a container's root filesystem, in the order of first opening.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::fanotify::Fanotify;
use rustix::fs::{FileType, fstat};
use rustix::process::Pid;
use tokio::io::unix::AsyncFd;

use super::list::{Entry, List, MAX_BYTES, MAX_ENTRIES, MAX_PATH_BYTES, Range, is_plain};
use super::pages::Pages;
use super::tree::{Found, Tree};
use crate::rootfs::mount::ROOTFS;
use crate::sys::{PAGE_SIZE, new_watch, readable};
use crate::{Error, Result};

/// Events that are looked at: a start that opens more opens the same over and over.
const MAX_EVENTS: usize = 200_000;
/// How much is read ahead of a file that was read and not mapped, or mapped by a process that has
/// ended: which parts were read, nobody tells.
const UNMAPPED_HEAD: u64 = 4 << 20;
/// Of a file that was mapped and then not touched: its headers were read.
const UNTOUCHED_HEAD: u64 = PAGE_SIZE;

/// A group of the kernel's, and what it has told.
pub(crate) struct Recorder {
    /// `None` when no more is to be recorded.
    group: Option<Fanotify>,
    /// Where the start process sees the root filesystem, until its own root is there and then the
    /// container's.
    mounted_at: PathBuf,
    order: Vec<String>,
    known: HashSet<String>,
    path_bytes: usize,
    events: usize,
    pages: Pages,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("paths", &self.order.len()).finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder that records nothing yet, and the descriptor by which the start process has the
    /// kernel tell it of the container's root filesystem, mounted at `mounted_at` at first. `None`
    /// where the host has or allows no fanotify.
    pub(crate) fn new(mounted_at: PathBuf) -> Option<(Self, OwnedFd)> {
        let made = new_watch().and_then(|group| {
            let copy = group.as_fd().try_clone_to_owned()?;
            Ok((group, copy))
        });
        match made {
            Ok((group, copy)) => {
                let (order, known, pages) = (Vec::new(), HashSet::new(), Pages::default());
                let group = Some(group);
                Some((Self { group, mounted_at, order, known, path_bytes: 0, events: 0, pages }, copy))
            }
            Err(error) => {
                tracing::debug!(%error, "this host has no fanotify: nothing is recorded");
                None
            }
        }
    }

    /// Tells when there is something to take. Must be called in a tokio runtime; to be dropped
    /// with [`Recorder::stop`], for it keeps the kernel recording. `None` after that.
    pub(super) fn watch(&self) -> Result<Option<AsyncFd<OwnedFd>>> {
        let Some(group) = &self.group else { return Ok(None) };
        let copy = group.as_fd().try_clone_to_owned();
        copy.and_then(readable).map(Some).map_err(|e| Error::host("cannot watch what a container opens", e))
    }

    /// Takes no more events: those that wait hold the container's mounts.
    pub(super) fn stop(&mut self) {
        self.group = None;
    }

    /// Takes some of what the kernel has to tell; false when there is nothing more now. Does not
    /// block.
    pub(super) fn take_events(&mut self) -> bool {
        let Some(group) = &self.group else { return false };
        let events = match group.read_events() {
            Ok(events) => events,
            // Else a file of which it cannot give a descriptor; that event is gone.
            Err(e) => return e != Errno::EAGAIN,
        };
        self.events += events.len();
        for event in &events {
            if let Some(path) = event.fd().and_then(|file| self.path_of(file)) {
                self.add(path);
            }
        }
        !events.is_empty()
    }

    /// Whether more would be too much.
    pub(super) fn is_full(&self) -> bool {
        self.events >= MAX_EVENTS || self.order.len() >= MAX_ENTRIES || self.path_bytes >= MAX_PATH_BYTES
    }

    fn add(&mut self, path: String) {
        if !self.is_full() && is_plain(&path) && !self.known.contains(&path) {
            self.path_bytes += path.len();
            self.known.insert(path.clone());
            self.order.push(path);
        }
    }

    /// The path from the container's root, of a regular file or a directory with a name in UTF-8.
    fn path_of(&self, file: BorrowedFd<'_>) -> Option<String> {
        let kind = FileType::from_raw_mode(fstat(file).ok()?.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return None;
        }
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let path = path.strip_prefix(&self.mounted_at).or_else(|_| path.strip_prefix("/")).ok()?;
        let inside = path.strip_prefix(ROOTFS).unwrap_or(path);
        inside.to_str().map(str::to_owned)
    }

    /// Looks at which parts of the files that were opened these processes have mapped and use.
    pub(super) fn look_at_pages(&mut self, pids: &[Pid]) {
        let known = &self.known;
        self.pages.add(pids, |path| known.contains(path));
    }

    /// The list, of those things that are in the image's layers, lowest first.
    pub(super) fn list(&self, layers: &[PathBuf]) -> List {
        let tree = Tree::open(layers);
        let mut budget = MAX_BYTES;
        let mut entries = Vec::new();
        for path in &self.order {
            let ranges = match tree.find(path) {
                Some(Found::File(_, size)) => cut(self.ranges(path, size), size, &mut budget),
                Some(Found::Directory) => Vec::new(),
                None => continue,
            };
            entries.push(Entry { path: path.clone(), ranges });
        }
        List::new(entries)
    }

    fn ranges(&self, path: &str, size: u64) -> Vec<Range> {
        match self.pages.of(path) {
            None => vec![(0, size.min(UNMAPPED_HEAD))],
            Some([]) => vec![(0, size.min(UNTOUCHED_HEAD))],
            Some(ranges) => ranges.to_vec(),
        }
    }
}

/// Cuts parts at the file's end and at what is left of the whole list's bytes.
fn cut(ranges: Vec<Range>, size: u64, budget: &mut u64) -> Vec<Range> {
    let mut kept = Vec::with_capacity(ranges.len());
    for (offset, length) in ranges {
        let length = length.min(size.saturating_sub(offset)).min(*budget);
        if length > 0 {
            *budget -= length;
            kept.push((offset, length));
        }
    }
    kept
}

/// Where the start process has the overlay, below the mount point of the run.
pub(crate) fn rootfs_of(mount_point: &Path) -> PathBuf {
    mount_point.join(ROOTFS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_with_the_file_and_the_budget() {
        let mut budget = 10;
        assert_eq!(cut(vec![(0, 4), (6, 9), (20, 1)], 8, &mut budget), [(0, 4), (6, 2)]);
        assert_eq!(budget, 4);
        assert_eq!(cut(vec![(0, 8)], 8, &mut budget), [(0, 4)]);
        assert!(cut(vec![(0, 8)], 8, &mut budget).is_empty());
    }

    #[test]
    fn what_is_recorded_is_bounded() {
        let Some((mut recorder, _)) = Recorder::new("/nowhere".into()) else { return };
        let long = "x".repeat(200);
        for number in 0..2 * MAX_ENTRIES {
            recorder.add(format!("{number}{long}"));
        }
        assert!(recorder.is_full() && recorder.order.len() <= MAX_ENTRIES);
        assert!(recorder.path_bytes <= MAX_PATH_BYTES + super::super::list::MAX_PATH);
        let Some((mut recorder, _)) = Recorder::new("/nowhere".into()) else { return };
        for path in ["a", "a", "../b", "", "c/./d", "c/d"] {
            recorder.add(path.into());
        }
        assert_eq!(recorder.order, ["a", "c/d"]);
    }
}
