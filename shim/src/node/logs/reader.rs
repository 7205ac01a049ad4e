//! Reading a function's lines again: from the oldest file to the newest, then what is added.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::time::SystemTime;

use super::beneath::Dir;
use super::record::{self, Filter};
use super::segments::{name_of, numbers};
use super::{Key, LineForm};

/// Bytes that are read at once.
const STEP: u64 = 64 * 1024;

/// Bytes of a line at most; what is longer is nothing that was written here.
const MAX_LINE: usize = 1024 * 1024;

/// What one step of a reader gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Lines that are wanted; there may be none among many.
    Lines(Vec<u8>),
    /// All that there is has been read.
    Caught,
    /// All has been read that was there at the beginning.
    End,
}

/// Reads a function's files.
pub(super) struct Reader {
    dir: Dir,
    filter: Filter,
    since: Option<SystemTime>,
    at: Option<(u64, File)>,
    /// The beginning of a line.
    rest: Vec<u8>,
    /// Where it ends: this number's file, after so many bytes.
    until: Option<(u64, u64)>,
    /// Bytes that have been read of the file at hand.
    read: u64,
}

impl Reader {
    /// From the oldest line on; to the newest that there is now unless it is to `follow`.
    pub(super) fn open(
        dir: Dir,
        since: Option<SystemTime>,
        request_id: Option<String>,
        follow: bool,
    ) -> io::Result<Self> {
        let until = match follow {
            true => None,
            false => Some(end_of(&dir)?),
        };
        let filter = Filter::new(since, request_id);
        Ok(Self { dir, filter, since, at: None, rest: Vec::new(), until, read: 0 })
    }

    /// Reads a little. Blocks for a file operation.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        if self.at.is_none() && !self.go_on(None)? {
            return Ok(if self.until.is_some() { Step::End } else { Step::Caught });
        }
        if self.over() {
            return Ok(Step::End);
        }
        // First what is next, then what is left: whoever made a next file adds nothing more to this one.
        let here = self.at.as_ref().map(|(number, _)| *number);
        let next = self.next(here)?;
        if let Some(lines) = self.read_on()? {
            return Ok(Step::Lines(lines));
        }
        match next {
            Some(_) if self.go_on(here)? => Ok(Step::Lines(self.gap(here))),
            // One that has no next file and no more bytes than it had.
            _ if self.until.is_some() => Ok(Step::End),
            _ => Ok(Step::Caught),
        }
    }

    /// What is said where files were removed that have not been read.
    fn gap(&self, before: Option<u64>) -> Vec<u8> {
        match (before, &self.at) {
            (Some(before), Some((here, _))) if *here > before + 1 => {
                let what = "log lines were removed here before they were read: the reader is too slow";
                record::note(&Key::default(), LineForm::File, what)
            }
            _ => Vec::new(),
        }
    }

    fn over(&self) -> bool {
        match (self.until, &self.at) {
            (Some((last, length)), Some((here, _))) => *here > last || (*here == last && self.read >= length),
            _ => false,
        }
    }

    fn next(&self, after: Option<u64>) -> io::Result<Option<u64>> {
        let all: VecDeque<u64> = numbers(&self.dir)?;
        Ok(all.into_iter().find(|number| after.is_none_or(|after| *number > after)))
    }

    /// Opens the next file that may have lines which are wanted; whether there is one.
    fn go_on(&mut self, mut after: Option<u64>) -> io::Result<bool> {
        while let Some(number) = self.next(after)? {
            after = Some(number);
            // It may have been removed meanwhile, for it was the oldest.
            let Some(file) = self.dir.read(&name_of(number))? else { continue };
            let too_old = match (self.since, file.metadata()?.modified()) {
                (Some(since), Ok(modified)) => modified < since && self.next(after)?.is_some(),
                _ => false,
            };
            if too_old {
                continue;
            }
            self.at = Some((number, file));
            self.rest.clear();
            self.read = 0;
            return Ok(true);
        }
        Ok(false)
    }

    /// The wanted ones of the next lines of this file; `None` at its end.
    fn read_on(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some((here, file)) = &mut self.at else { return Ok(None) };
        let step = match self.until {
            Some((last, length)) if *here == last => length.saturating_sub(self.read).min(STEP),
            _ => STEP,
        };
        let begun = self.rest.len();
        self.rest.resize(begun + usize::try_from(step).unwrap_or_default(), 0);
        let count = file.read(&mut self.rest[begun..]);
        self.rest.truncate(begun + *count.as_ref().unwrap_or(&0));
        let count = count?;
        if count == 0 {
            return Ok(None);
        }
        self.read += count as u64;
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            if self.rest.len() > MAX_LINE {
                self.rest.clear();
            }
            return Ok(Some(Vec::new()));
        };
        let rest = self.rest.split_off(end + 1);
        let lines = std::mem::replace(&mut self.rest, rest);
        let mut wanted = Vec::with_capacity(lines.len());
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if self.filter.wants(line.trim_ascii_end()) {
                wanted.extend_from_slice(line);
            }
        }
        Ok(Some(wanted))
    }
}

/// The newest file and its length.
fn end_of(dir: &Dir) -> io::Result<(u64, u64)> {
    for number in numbers(dir)?.into_iter().rev() {
        if let Some(file) = dir.read(&name_of(number))? {
            return Ok((number, file.metadata()?.len()));
        }
    }
    Ok((0, 0))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::node::logs::LogFiles;
    use crate::node::logs::segments::{Segments, dir_of};

    /// Stands for the line that says that there were others.
    const TOLD: u64 = u64::MAX;

    fn key() -> Key {
        ("ns".to_owned(), "f".to_owned())
    }

    fn line(number: u64) -> String {
        let time = crate::platform::rfc3339(UNIX_EPOCH + Duration::from_secs(number));
        format!("{{\"time\":\"{time}\",\"request_id\":\"r-{}\",\"line\":\"{number}\"}}\n", number % 10)
    }

    struct Place {
        _dir: tempfile::TempDir,
        base: Dir,
        segments: Segments,
    }

    impl Place {
        fn new(bytes: u64, files: usize) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let base = Dir::open(&dir.path().join("logs")).expect("opened");
            let segments = Segments::open(&base, &key(), LogFiles { bytes, files }).expect("opened");
            Self { _dir: dir, base, segments }
        }

        fn write(&mut self, numbers: std::ops::Range<u64>) {
            for number in numbers {
                self.segments.write(line(number).as_bytes()).expect("written");
            }
        }

        fn reader(&self, since: Option<u64>, request: Option<&str>, follow: bool) -> Reader {
            let dir = dir_of(&self.base, &key()).expect("there");
            let since = since.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
            Reader::open(dir, since, request.map(str::to_owned), follow).expect("opened")
        }
    }

    /// All that can be read now.
    fn read(reader: &mut Reader) -> (Vec<u64>, Step) {
        let mut text = Vec::new();
        loop {
            match reader.step().expect("read") {
                Step::Lines(lines) => text.extend(lines),
                end => {
                    let text = String::from_utf8(text).expect("text");
                    let number = |line: &str| {
                        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
                        let line = value["line"].as_str().expect("a line");
                        line.parse().unwrap_or_else(|_| {
                            assert!(line.contains("were removed here"), "{line}");
                            TOLD
                        })
                    };
                    return (text.lines().map(number).collect(), end);
                }
            }
        }
    }

    #[test]
    fn lines_come_in_order_over_all_files_and_end_where_they_ended() {
        let mut place = Place::new(1000, 100);
        place.write(0..200);
        let mut reader = place.reader(None, None, false);
        place.write(200..300);
        assert_eq!(read(&mut reader), ((0..200).collect(), Step::End));
        assert_eq!(reader.step().expect("read"), Step::End);
        let (some, _) = read(&mut place.reader(Some(150), Some("r-7"), false));
        assert_eq!(some, (15..30).map(|ten| ten * 10 + 7).collect::<Vec<u64>>());
    }

    #[test]
    fn who_follows_loses_nothing_to_rotation() {
        let mut place = Place::new(1000, 5);
        let mut reader = place.reader(None, None, true);
        let mut seen = Vec::new();
        for turn in 0..100 {
            // Over the end of a file at different places; now and then nothing.
            place.write(turn * 13..(turn + 1) * 13);
            let (some, end) = read(&mut reader);
            assert_eq!(end, Step::Caught);
            seen.extend(some);
        }
        assert_eq!(seen, (0..1300).collect::<Vec<u64>>());
    }

    #[test]
    fn one_that_is_too_slow_goes_on_with_what_there_is() {
        let mut place = Place::new(1000, 3);
        place.write(0..5);
        let mut reader = place.reader(None, None, true);
        assert_eq!(read(&mut reader).0, [0, 1, 2, 3, 4]);
        place.write(5..500);
        let (seen, _) = read(&mut reader);
        let told = seen.iter().position(|number| *number == TOLD).expect("it is told");
        let seen: Vec<u64> = [&seen[..told], &seen[told + 1..]].concat();
        // What is left of the file that it had open, and the files that are there.
        assert!(seen.first() == Some(&5) && seen.last() == Some(&499) && seen.len() < 60, "{seen:?}");
    }

    #[test]
    fn what_is_no_line_of_a_log_is_passed_over() {
        let mut place = Place::new(10_000_000, 3);
        place.segments.write(b"no JSON\n").expect("written");
        place.segments.write(&[b"z".repeat(3 * MAX_LINE), b"\n".to_vec()].concat()).expect("written");
        place.write(1..3);
        let mut reader = place.reader(None, None, false);
        assert_eq!(read(&mut reader).0, [1, 2]);
        assert!(reader.rest.capacity() <= 2 * (MAX_LINE + STEP as usize));
    }
}
