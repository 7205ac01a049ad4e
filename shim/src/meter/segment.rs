//! The files of a directory of records: named by the number of their first record, opened again after a
//! crash, cut where a write did not end.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::frame::{self, MAGIC};

/// The end of their names.
const END: &str = "meter";

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    /// The number of its first record, which its name tells.
    pub(super) first: u64,
    pub(super) path: PathBuf,
}

impl Segment {
    pub(super) fn of(dir: &Path, first: u64) -> Self {
        Self { first, path: dir.join(format!("{first:020}.{END}")) }
    }

    /// All files of a directory, the oldest first. What else is there is nobody's business.
    pub(super) fn all(dir: &Path) -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).filter(|stem| stem.len() == 20);
            if path.extension().is_some_and(|end| end == END)
                && let Some(first) = stem.and_then(|stem| stem.parse().ok())
            {
                all.push(Self { first, path });
            }
        }
        all.sort();
        Ok(all)
    }
}

/// A file that is written to.
#[derive(Debug)]
pub(super) struct Open {
    file: File,
    /// Bytes that are on the disk for good; what lies behind is nothing.
    pub(super) length: u64,
}

/// Why a batch is not on the disk.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: io::Error,
    /// The file is as it was, and may be written to again.
    pub(super) usable: bool,
}

impl Open {
    /// Makes the file of a record that none has yet. One of that name holds no record that counts: a
    /// former attempt left it.
    pub(super) fn create(dir: &Path, first: u64) -> io::Result<Self> {
        let segment = Segment::of(dir, first);
        let made = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&segment.path)
            .and_then(|file| file.write_all_at(MAGIC, 0).map(|()| file))
            .and_then(|file| file.sync_all().map(|()| file))
            // Its name must last as long as its records.
            .and_then(|file| File::open(dir)?.sync_all().map(|()| file));
        match made {
            Ok(file) => Ok(Self { file, length: MAGIC.len() as u64 }),
            Err(error) => {
                let _ = fs::remove_file(&segment.path);
                Err(error)
            }
        }
    }

    /// Adds frames, all or none, and waits until they are on the disk.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        if let Err(error) = self.file.write_all_at(bytes, self.length) {
            // Half a batch is none.
            let usable = self.file.set_len(self.length).is_ok();
            return Err(Failed { error, usable });
        }
        if let Err(error) = self.file.sync_data() {
            // The kernel may have dropped what it could not write, and says so once only: no later sync
            // of this file means anything.
            let _ = self.file.set_len(self.length);
            return Err(Failed { error, usable: false });
        }
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// What the last file was found to be.
#[derive(Debug)]
pub(super) struct Found {
    /// The number that the next record gets.
    pub(super) next: u64,
    /// The file, when more can be added to it.
    pub(super) open: Option<Open>,
    /// Bytes that a write left that did not end; they are gone.
    pub(super) torn: u64,
    /// There are whole records behind bytes that are none: the file is left as it is.
    pub(super) damaged: bool,
}

/// Opens the last file of a directory for more.
pub(super) fn reopen(segment: &Segment) -> io::Result<Found> {
    let bytes = fs::read(&segment.path)?;
    let scan = scan(&bytes, segment.first);
    match scan {
        Scan::Foreign => {
            let what = "it is no file of records, or of another version of Skiff";
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
        // It was being made.
        Scan::Torn { length: 0, next } => {
            fs::remove_file(&segment.path)?;
            Ok(Found { next, open: None, torn: bytes.len() as u64, damaged: false })
        }
        Scan::Torn { length, next } => {
            let file = OpenOptions::new().write(true).open(&segment.path)?;
            let torn = bytes.len() as u64 - length;
            if torn > 0 {
                file.set_len(length)?;
            }
            // What was written and not synced when the former process ended counts from now on.
            file.sync_all()?;
            Ok(Found { next, open: Some(Open { file, length }), torn, damaged: false })
        }
        Scan::Damaged { next } => Ok(Found { next, open: None, torn: 0, damaged: true }),
    }
}

/// What the bytes of a file are.
#[derive(Debug, PartialEq, Eq)]
enum Scan {
    /// Whole records up to this length, and nothing that counts behind.
    Torn { length: u64, next: u64 },
    /// There are whole records behind bytes that are none.
    Damaged { next: u64 },
    /// They were never written here.
    Foreign,
}

fn scan(bytes: &[u8], first: u64) -> Scan {
    let Some(records) = bytes.strip_prefix(MAGIC) else {
        let unmade = bytes.len() < MAGIC.len() || bytes.iter().all(|byte| *byte == 0);
        return if unmade { Scan::Torn { length: 0, next: first } } else { Scan::Foreign };
    };
    let mut parts = Parts::new(records, first);
    let (mut whole, mut damaged) = (MAGIC.len(), false);
    for part in &mut parts {
        match part {
            Part::Whole(frame) => whole += frame.size(),
            Part::Damaged(_) => damaged = true,
        }
    }
    match damaged {
        true => Scan::Damaged { next: parts.next },
        false => Scan::Torn { length: whole as u64, next: parts.next },
    }
}

/// A part of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Whole(frame::Frame<'a>),
    /// Bytes that are no record, with whole ones behind them.
    Damaged(usize),
}

/// The parts of a file, behind its first bytes. What is torn at its end is none.
pub(super) struct Parts<'a> {
    rest: &'a [u8],
    /// The number of the next record.
    next: u64,
}

impl<'a> Parts<'a> {
    pub(super) fn new(records: &'a [u8], first: u64) -> Self {
        Self { rest: records, next: first }
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        if let Some(frame) = frame::decode(self.rest).filter(|frame| frame.sequence >= self.next) {
            self.rest = &self.rest[frame.size()..];
            self.next = frame.sequence + 1;
            return Some(Part::Whole(frame));
        }
        let skipped = frame::next_whole(self.rest, self.next)?;
        self.rest = &self.rest[skipped..];
        Some(Part::Damaged(skipped))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(first: u64, payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (MAGIC.to_vec(), vec![MAGIC.len()]);
        for (sequence, payload) in (first..).zip(payloads) {
            frame::encode(sequence, payload, &mut bytes);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 1..24), 1..6)
    }

    fn opened(dir: &Path, bytes: &[u8], first: u64) -> io::Result<Found> {
        let segment = Segment::of(dir, first);
        fs::write(&segment.path, bytes).expect("written");
        reopen(&segment)
    }

    proptest! {
        // Each case syncs files many times.
        #![proptest_config(ProptestConfig::with_cases(8))]

        /// At every byte: what was whole before the cut is kept, what was not is gone, and more can follow.
        #[test]
        fn a_file_that_was_cut_anywhere_goes_on_behind_its_last_whole_record(payloads in payloads()) {
            let dir = tempfile::tempdir().expect("a directory");
            let (bytes, ends) = file(5, &payloads);
            for cut in 0..=bytes.len() {
                let whole = ends.iter().rposition(|end| *end <= cut);
                let found = opened(dir.path(), &bytes[..cut], 5).expect("opened");
                prop_assert!(!found.damaged);
                prop_assert_eq!(found.next, 5 + whole.unwrap_or(0) as u64);
                let Some(whole) = whole else {
                    prop_assert!(found.open.is_none() && !Segment::of(dir.path(), 5).path.exists());
                    continue;
                };
                prop_assert_eq!(found.torn, (cut - ends[whole]) as u64);
                let mut more = Vec::new();
                frame::encode(found.next, b"more", &mut more);
                found.open.expect("open").append(&more).expect("added");
                let after = fs::read(Segment::of(dir.path(), 5).path).expect("read");
                prop_assert_eq!(&after[..ends[whole]], &bytes[..ends[whole]]);
                prop_assert_eq!(&after[ends[whole]..], &more[..]);
            }
        }

        /// A file system may give back zeros for what it had not written.
        #[test]
        fn zeros_at_the_end_are_cut(payloads in payloads(), zeros in 1_usize..5000) {
            let dir = tempfile::tempdir().expect("a directory");
            let (mut bytes, ends) = file(1, &payloads);
            bytes.resize(bytes.len() + zeros, 0);
            let found = opened(dir.path(), &bytes, 1).expect("opened");
            prop_assert_eq!((found.torn, found.next), (zeros as u64, ends.len() as u64));
        }

        /// A file that rots costs the records that rot hits, and none behind them.
        #[test]
        fn damage_costs_one_record_and_is_never_cut(payloads in payloads(), at: prop::sample::Index, bit in 0_u32..8) {
            let dir = tempfile::tempdir().expect("a directory");
            let (mut bytes, ends) = file(9, &payloads);
            let at = MAGIC.len() + at.index(bytes.len() - MAGIC.len());
            bytes[at] ^= 1_u8 << bit;
            let hit = ends.iter().rposition(|end| *end <= at).expect("behind the first bytes");
            let whole: Vec<u64> = Parts::new(&bytes[MAGIC.len()..], 9)
                .filter_map(|part| match part {
                    Part::Whole(frame) => Some(frame.sequence),
                    Part::Damaged(_) => None,
                })
                .collect();
            let expected: Vec<u64> =
                (9..9 + payloads.len() as u64).filter(|sequence| *sequence != 9 + hit as u64).collect();
            prop_assert_eq!(whole, expected);
            let found = opened(dir.path(), &bytes, 9).expect("opened");
            let last = hit + 1 == payloads.len();
            // Of the last record nobody can tell rot from a write that did not end.
            prop_assert_eq!(found.damaged, !last);
            prop_assert_eq!(found.next, 9 + (payloads.len() - usize::from(last)) as u64);
            let after = fs::read(Segment::of(dir.path(), 9).path).expect("read");
            prop_assert_eq!(after.len(), if last { ends[hit] } else { bytes.len() });
        }
    }

    #[test]
    fn what_another_program_wrote_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = opened(dir.path(), b"skmeter2 and more", 1).expect_err("another version");
        assert!(error.to_string().contains("another version"), "{error}");
        assert!(Segment::of(dir.path(), 1).path.exists());
    }

    #[test]
    fn files_are_found_in_the_order_of_their_records() {
        let dir = tempfile::tempdir().expect("a directory");
        for first in [700, 1, 33] {
            drop(Open::create(dir.path(), first).expect("made"));
        }
        for other in ["notes.txt", "1.meter", "0000000000000000000x.meter"] {
            fs::write(dir.path().join(other), "").expect("written");
        }
        let all = Segment::all(dir.path()).expect("read");
        assert_eq!(all.iter().map(|segment| segment.first).collect::<Vec<_>>(), [1, 33, 700]);
    }
}
