//! The files of one function: one is written, the older ones are kept until there are too many.
//!
//! ```text
//! 00000007.jsonl  00000008.jsonl  00000009.jsonl ◀─ appended to
//! ```
//!
//! Files are never renamed: a number that goes up is what a reader needs to go from one to the next.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;

use super::beneath::Dir;
use super::{Key, LogFiles, beneath};

/// Names that are tried for a new file, where others are in the way.
const TRIES: u64 = 1000;

/// The number in a file's name.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".jsonl")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

pub(super) fn name_of(number: u64) -> String {
    format!("{number:08}.jsonl")
}

/// The numbers of a directory's files, in order.
pub(super) fn numbers(dir: &Dir) -> io::Result<VecDeque<u64>> {
    let mut numbers: Vec<u64> = dir.names()?.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    Ok(numbers.into())
}

/// The directory of a function's files.
pub(super) fn dir_of(base: &Dir, key: &Key) -> io::Result<Dir> {
    base.below(&beneath::dir_name(&key.0))?.below(&beneath::dir_name(&key.1))
}

/// Removes a function's files and what is empty then.
pub(super) fn remove(base: &Dir, key: &Key) -> io::Result<()> {
    let namespace = beneath::dir_name(&key.0);
    match base.below(&namespace) {
        Ok(dir) => dir.remove_below(&beneath::dir_name(&key.1))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    base.remove_empty(&namespace);
    Ok(())
}

/// The files of one function, as who writes them has them.
pub(super) struct Segments {
    dir: Dir,
    limits: LogFiles,
    numbers: VecDeque<u64>,
    file: File,
    length: u64,
}

impl Segments {
    /// Goes on with the newest file; what a crash left of a line at its end is removed.
    pub(super) fn open(base: &Dir, key: &Key, limits: LogFiles) -> io::Result<Self> {
        let dir = base.make_below(&beneath::dir_name(&key.0))?.make_below(&beneath::dir_name(&key.1))?;
        let mut numbers = numbers(&dir)?;
        let last = match numbers.back() {
            Some(last) => dir.append(&name_of(*last))?,
            None => None,
        };
        let (file, length) = match last {
            Some(mut file) => {
                let length = whole_lines(&mut file)?;
                (file, length)
            }
            None => (create(&dir, &mut numbers)?, 0),
        };
        let mut segments = Self { dir, limits, numbers, file, length };
        segments.prune();
        Ok(segments)
    }

    /// Appends whole lines. When it fails, lines of `text` up to some place are there whole, and nothing of
    /// those after it; the error comes with how many bytes that is.
    pub(super) fn write(&mut self, text: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut rest = text;
        while !rest.is_empty() {
            let done = text.len() - rest.len();
            let here = self.fitting(rest).map_err(|error| (done, error))?;
            if here == 0 {
                self.rotate().map_err(|error| (done, error))?;
                continue;
            }
            if let Err(error) = self.file.write_all(&rest[..here]) {
                // No half line stays.
                let _ = self.file.set_len(self.length);
                return Err((done, error));
            }
            self.length += here as u64;
            rest = &rest[here..];
        }
        Ok(())
    }

    /// Bytes of whole lines for which this file has room; one line has room in an empty file, whatever its
    /// length.
    fn fitting(&self, text: &[u8]) -> io::Result<usize> {
        // Somebody may have removed it by hand.
        if self.file.metadata()?.nlink() == 0 {
            return Ok(0);
        }
        let room = usize::try_from(self.limits.bytes.saturating_sub(self.length)).unwrap_or(usize::MAX);
        if text.len() <= room {
            return Ok(text.len());
        }
        let last = text[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if last == 0 && self.length == 0 {
            return Ok(text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |end| end + 1));
        }
        Ok(last)
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = create(&self.dir, &mut self.numbers)?;
        self.length = 0;
        self.prune();
        Ok(())
    }

    fn prune(&mut self) {
        while self.numbers.len() > self.limits.files.max(1) {
            if let Some(oldest) = self.numbers.pop_front() {
                // What cannot be removed is no reason to lose lines.
                let _ = self.dir.remove(&name_of(oldest));
            }
        }
    }
}

fn create(dir: &Dir, numbers: &mut VecDeque<u64>) -> io::Result<File> {
    let first = numbers.back().map_or(1, |last| last.saturating_add(1));
    for number in first..first.saturating_add(TRIES) {
        if let Some(file) = dir.create(&name_of(number))? {
            numbers.push_back(number);
            return Ok(file);
        }
    }
    Err(io::Error::other(format!("{TRIES} names from {} on are taken", name_of(first))))
}

/// Cuts a file after its last line feed, and gives its length.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    const STEP: u64 = 64 * 1024;
    let length = file.metadata()?.len();
    let (mut end, mut part) = (length, Vec::new());
    let whole = loop {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        part.clear();
        (&mut *file).take(end - start).read_to_end(&mut part)?;
        match part.iter().rposition(|byte| *byte == b'\n') {
            Some(feed) => break start + feed as u64 + 1,
            None if start == 0 => break 0,
            None => end = start,
        }
    };
    if whole < length {
        file.set_len(whole)?;
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::{Path, PathBuf};

    use super::*;

    const LIMITS: LogFiles = LogFiles { bytes: 100, files: 3 };

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().expect("a directory") }
        }

        fn base(&self) -> Dir {
            Dir::open(&self.logs()).expect("opened")
        }

        fn logs(&self) -> PathBuf {
            self.dir.path().join("logs")
        }

        fn files(&self) -> PathBuf {
            self.logs().join("ns/f")
        }

        fn open(&self) -> io::Result<Segments> {
            Segments::open(&self.base(), &key(), LIMITS)
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.files())
                .expect("listed")
                .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
                .collect();
            names.sort();
            names
        }
    }

    fn key() -> Key {
        ("ns".to_owned(), "f".to_owned())
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("there").permissions().mode() & 0o7777
    }

    #[test]
    fn files_are_bounded_in_size_and_number_and_have_the_newest_lines() {
        let place = Place::new();
        let mut segments = place.open().expect("opened");
        let lines: Vec<String> = (0..100).map(|number| format!("line {number:03}\n")).collect();
        // In batches of seven, which rotation cuts.
        for batch in lines.chunks(7) {
            segments.write(batch.concat().as_bytes()).expect("written");
        }
        let names = place.names();
        assert_eq!(names.len(), LIMITS.files, "{names:?}");
        let mut text = String::new();
        for name in &names {
            let file = fs::read_to_string(place.files().join(name)).expect("read");
            assert!(file.len() as u64 <= LIMITS.bytes && file.ends_with('\n'), "{name}: {file:?}");
            text += &file;
        }
        assert!(lines.concat().ends_with(&text), "no line is lost between: {text}");
        assert!(text.len() as u64 > (LIMITS.files as u64 - 1) * (LIMITS.bytes - 10), "{}", text.len());
        assert_eq!((mode(&place.logs()), mode(&place.files())), (0o700, 0o700));
        assert!(names.iter().all(|name| mode(&place.files().join(name)) == 0o600));
    }

    #[test]
    fn a_line_that_is_longer_than_a_file_has_one_for_itself() {
        let place = Place::new();
        let mut segments = place.open().expect("opened");
        let long = format!("{}\n", "x".repeat(150));
        segments.write(format!("a\n{long}b\n").as_bytes()).expect("written");
        let read = |name: &String| fs::read_to_string(place.files().join(name)).expect("read");
        let texts: Vec<String> = place.names().iter().map(read).collect();
        assert_eq!(texts, ["a\n", long.as_str(), "b\n"]);
    }

    #[test]
    fn the_newest_file_is_gone_on_with_and_a_torn_line_goes() {
        let place = Place::new();
        place.open().expect("opened").write(b"one\n").expect("written");
        let file = place.files().join("00000001.jsonl");
        fs::write(&file, "one\nhalf").expect("written");
        place.open().expect("opened").write(b"two\n").expect("written");
        assert_eq!(fs::read_to_string(&file).expect("read"), "one\ntwo\n");
        assert_eq!(place.names().len(), 1);
        // More than one step of the search without any line feed.
        fs::write(&file, "y".repeat(200_000)).expect("written");
        place.open().expect("opened").write(b"three\n").expect("written");
        assert_eq!(fs::read_to_string(&file).expect("read"), "three\n");
    }

    #[test]
    fn planted_links_and_pipes_are_not_written_to() {
        let place = Place::new();
        let victim = place.dir.path().join("victim");
        fs::write(&victim, "mine\n").expect("written");
        fs::create_dir_all(place.files()).expect("made");
        symlink(&victim, place.files().join("00000001.jsonl")).expect("a link");
        place.open().expect("opened").write(b"one\n").expect("written");
        assert_eq!(place.names(), ["00000001.jsonl", "00000002.jsonl"]);
        fs::hard_link(&victim, place.files().join("00000003.jsonl")).expect("a link");
        place.open().expect("opened").write(b"two\n").expect("written");
        let fifo = place.files().join("00000005.jsonl");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a FIFO");
        place.open().expect("opened").write(b"three\n").expect("written");
        assert_eq!(fs::read_to_string(&victim).expect("read"), "mine\n");
        let last = place.names().pop().expect("a file");
        assert_eq!(fs::read_to_string(place.files().join(last)).expect("read"), "three\n");
    }

    #[test]
    fn planted_directories_are_not_entered_nor_emptied() {
        let place = Place::new();
        let (base, elsewhere) = (place.base(), place.dir.path().join("elsewhere"));
        fs::create_dir_all(elsewhere.join("f")).expect("made");
        fs::write(elsewhere.join("f/keep"), "").expect("written");
        symlink(&elsewhere, place.logs().join("ns")).expect("a link");
        assert!(place.open().is_err() && remove(&base, &key()).is_err());
        fs::remove_file(place.logs().join("ns")).expect("removed");
        fs::create_dir(place.logs().join("ns")).expect("made");
        symlink(elsewhere.join("f"), place.files()).expect("a link");
        assert!(place.open().is_err() && remove(&base, &key()).is_err());
        assert!(elsewhere.join("f/keep").exists());
        let odd = ("..".to_owned(), "../../x".to_owned());
        Segments::open(&base, &odd, LIMITS).expect("escaped").write(b"x\n").expect("written");
        assert!(place.logs().join("%2E%2E/%2E%2E%2F%2E%2E%2Fx/00000001.jsonl").exists());
    }

    #[test]
    fn what_is_removed_by_hand_is_made_again() {
        let place = Place::new();
        let mut segments = place.open().expect("opened");
        segments.write(b"one\n").expect("written");
        fs::remove_file(place.files().join("00000001.jsonl")).expect("removed");
        segments.write(b"two\n").expect("written");
        assert_eq!(fs::read_to_string(place.files().join("00000002.jsonl")).expect("read"), "two\n");
        remove(&place.base(), &key()).expect("removed");
        assert!(!place.logs().join("ns").exists());
        let lost = segments.write(b"three\n").expect_err("its directory is gone");
        assert_eq!(lost.0, 0);
    }
}
