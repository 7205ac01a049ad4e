//! Which parts of mapped files a container's processes use.
//!
//! Programs and libraries are mapped, and only a part of their pages is ever touched. The page tables
//! of the processes tell which, whether the start was a warm or a cold one: the kernel enters a page
//! when it is touched, and those around it (64 KiB) that are in the page cache already.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

use rustix::process::Pid;

use super::list::{MAX_RANGES, Range};
use crate::sys::PAGE_SIZE;

/// Processes that are looked at; a start has few.
const MAX_PROCESSES: usize = 64;
/// Bytes of the tables of mappings of all processes: 65,530 mappings, which one may have at most,
/// make about half of it.
const MAX_MAPS_BYTES: u64 = 16 << 20;
/// Pages that are looked at in one snapshot: 4 GiB of mappings.
const MAX_PAGES: u64 = 1 << 20;
/// Parts that are this near to each other (in bytes) are read as one: a disk needs about as long for
/// the gap as for another request.
const MAX_GAP: u64 = 64 << 10;
/// In `/proc/PID/pagemap` (`Documentation/admin-guide/mm/pagemap.rst`): the page is in memory.
const PRESENT: u64 = 1 << 63;

/// The parts of each mapped file that were seen in use, by path from the container's root (without
/// the leading slash). A mapped file of which no page is in use has no parts.
#[derive(Debug, Default)]
pub(super) struct Pages(BTreeMap<String, Vec<Range>>);

/// What is left to be looked at in one snapshot.
struct Budget {
    maps: u64,
    pages: u64,
}

/// A line of `/proc/PID/maps` that is about a file.
struct Mapping<'a> {
    start: u64,
    end: u64,
    offset: u64,
    path: &'a str,
}

impl Pages {
    /// Adds what these processes use now of the files that `wanted` takes. Processes that end
    /// meanwhile are left out.
    pub(super) fn add(&mut self, pids: &[Pid], wanted: impl Fn(&str) -> bool) {
        let mut budget = Budget { maps: MAX_MAPS_BYTES, pages: MAX_PAGES };
        for pid in pids.iter().take(MAX_PROCESSES) {
            self.add_process(*pid, &wanted, &mut budget);
        }
        for ranges in self.0.values_mut() {
            merge(ranges, MAX_GAP);
        }
    }

    fn add_process(&mut self, pid: Pid, wanted: &impl Fn(&str) -> bool, budget: &mut Budget) {
        let open = |name: &str| File::open(format!("/proc/{}/{name}", pid.as_raw_nonzero()));
        let (Ok(maps), Ok(pagemap)) = (open("maps"), open("pagemap")) else { return };
        let mut bytes = Vec::new();
        // As far as it could be read.
        let _ = maps.take(budget.maps).read_to_end(&mut bytes);
        budget.maps = budget.maps.saturating_sub(bytes.len() as u64);
        for line in String::from_utf8_lossy(&bytes).lines() {
            let Some(mapping) = mapping(line).filter(|m| wanted(m.path)) else { continue };
            let pages = ((mapping.end - mapping.start) / PAGE_SIZE).min(budget.pages);
            budget.pages -= pages;
            let ranges = self.0.entry(mapping.path.to_owned()).or_default();
            add_present(&pagemap, &mapping, pages, ranges);
        }
    }

    /// The parts of a file; `None` where it was never seen mapped.
    pub(super) fn of(&self, path: &str) -> Option<&[Range]> {
        self.0.get(path).map(Vec::as_slice)
    }
}

fn mapping(line: &str) -> Option<Mapping<'_>> {
    // "start-end perms offset dev inode   /path"
    let (fields, path) = line.split_once('/')?;
    let mut fields = fields.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let offset = hex(fields.nth(1)?)?;
    (start < end).then_some(Mapping { start, end, offset, path })
}

fn add_present(pagemap: &File, mapping: &Mapping<'_>, pages: u64, ranges: &mut Vec<Range>) {
    const CHUNK: u64 = 4096;
    let mut words = vec![0u8; (CHUNK * 8) as usize];
    let mut done = 0;
    while done < pages {
        let count = CHUNK.min(pages - done);
        let words = &mut words[..(count * 8) as usize];
        let first = mapping.start / PAGE_SIZE + done;
        if pagemap.read_exact_at(words, first * 8).is_err() {
            return;
        }
        for (index, word) in words.chunks_exact(8).enumerate() {
            let word = u64::from_ne_bytes(word.try_into().unwrap_or_default());
            if word & PRESENT != 0 {
                let page = (done + index as u64).saturating_mul(PAGE_SIZE);
                push(ranges, mapping.offset.saturating_add(page));
            }
        }
        done += count;
    }
}

/// Adds a page; mostly it goes on where the last part ended.
fn push(ranges: &mut Vec<Range>, offset: u64) {
    match ranges.last_mut() {
        Some((start, length)) if start.saturating_add(*length) == offset => *length += PAGE_SIZE,
        _ => ranges.push((offset, PAGE_SIZE)),
    }
}

/// Puts parts in order and those together that overlap or are near to each other; more and more
/// generously, until there are few enough.
fn merge(ranges: &mut Vec<Range>, gap: u64) {
    ranges.sort_unstable();
    let mut gap = gap;
    loop {
        let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
        for (offset, length) in ranges.drain(..) {
            match merged.last_mut() {
                Some((start, known)) if offset <= start.saturating_add(*known).saturating_add(gap) => {
                    *known = (*known).max(offset.saturating_add(length) - *start);
                }
                _ => merged.push((offset, length)),
            }
        }
        *ranges = merged;
        if ranges.len() <= MAX_RANGES {
            return;
        }
        gap = gap.saturating_mul(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_files_are_read_and_others_are_not() {
        let line = "7f1c2a000000-7f1c2a002000 r-xp 00003000 00:2f 12345                      /usr/lib/a b.so";
        let found = mapping(line).expect("a mapping");
        assert_eq!((found.end - found.start, found.offset, found.path), (8192, 12288, "usr/lib/a b.so"));
        for line in [
            "",
            "/",
            "7f-80",
            "7ffd-7ffe rw-p 0 00:00 0   [stack]",
            "9-8 r-xp 0 0:0 1 /x",
            "x-y r 0 0:0 1 /x",
        ] {
            assert!(mapping(line).is_none(), "{line}");
        }
    }

    #[test]
    fn near_parts_are_one_and_there_are_never_too_many() {
        let mut ranges = vec![(1 << 20, 4096), (0, 4096), (8192, 4096), (8192, 8192)];
        merge(&mut ranges, 4096);
        assert_eq!(ranges, [(0, 16384), (1 << 20, 4096)]);
        let mut many: Vec<Range> = (0..10_000).map(|n| (n << 20, 4096)).collect();
        merge(&mut many, MAX_GAP);
        assert!(many.len() <= MAX_RANGES, "{}", many.len());
        let (last, length) = many.last().copied().expect("one");
        assert_eq!((many[0].0, last + length), (0, (9_999 << 20) + 4096));
        let mut hostile = vec![(u64::MAX, 4096), (0, u64::MAX)];
        merge(&mut hostile, MAX_GAP);
        assert_eq!(hostile.len(), 1);
    }

    #[test]
    fn this_process_uses_its_own_program() {
        let exe = std::env::current_exe().expect("exe");
        let path = exe.to_str().expect("text").trim_start_matches('/');
        let mut pages = Pages::default();
        pages.add(&[rustix::process::getpid()], |found| found == path);
        let used: u64 = pages.of(path).expect("mapped").iter().map(|(_, length)| length).sum();
        let size = exe.metadata().expect("metadata").len();
        assert!(used >= PAGE_SIZE && used <= size.next_multiple_of(PAGE_SIZE), "{used} of {size}");
        assert!(pages.of("none").is_none());
    }
}
