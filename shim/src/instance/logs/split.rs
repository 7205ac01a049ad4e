//! Bytes to lines.

use bytes::{Bytes, BytesMut};

/// Splits a stream at line feeds, and a line that is too long at its limit.
#[derive(Debug)]
pub(super) struct Splitter {
    limit: usize,
    rest: BytesMut,
}

impl Splitter {
    /// `limit` is the longest line in bytes, its line feed not counted.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), rest: BytesMut::new() }
    }

    /// The lines that are complete with these bytes.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Vec<Bytes> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.add(&bytes[..end], &mut lines);
            lines.push(self.take());
            bytes = &bytes[end + 1..];
        }
        self.add(bytes, &mut lines);
        lines
    }

    /// Bytes of the line at hand.
    pub(super) fn begun(&self) -> usize {
        self.rest.len()
    }

    /// The last line, if the stream did not end with a line feed.
    pub(super) fn finish(&mut self) -> Vec<Bytes> {
        if self.rest.is_empty() { Vec::new() } else { vec![self.take()] }
    }

    /// Adds to the line at hand; a line feed right after a full line does not make an empty one.
    fn add(&mut self, mut bytes: &[u8], lines: &mut Vec<Bytes>) {
        while self.rest.len() + bytes.len() > self.limit {
            let (now, later) = bytes.split_at(self.limit - self.rest.len());
            self.rest.extend_from_slice(now);
            lines.push(self.rest.split().freeze());
            bytes = later;
        }
        self.rest.extend_from_slice(bytes);
    }

    /// The line at hand, without the carriage return of a CR LF.
    fn take(&mut self) -> Bytes {
        if self.rest.last() == Some(&b'\r') {
            self.rest.truncate(self.rest.len() - 1);
        }
        self.rest.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(limit: usize, parts: &[&str]) -> Vec<String> {
        let mut splitter = Splitter::new(limit);
        let mut lines: Vec<Bytes> = parts.iter().flat_map(|part| splitter.push(part.as_bytes())).collect();
        lines.extend(splitter.finish());
        lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    #[test]
    fn lines_end_at_line_feeds() {
        assert_eq!(split(9, &["a\nb\n\nc"]), ["a", "b", "", "c"]);
        assert_eq!(split(9, &["a", "b", "\nc\r\n"]), ["ab", "c"]);
        assert_eq!(split(9, &["\n"]), [""]);
        assert!(split(9, &[]).is_empty() && split(9, &[""]).is_empty());
    }

    #[test]
    fn long_lines_are_split_and_lose_nothing() {
        assert_eq!(split(4, &["abcdefghij\n"]), ["abcd", "efgh", "ij"]);
        assert_eq!(split(4, &["abcd\nx"]), ["abcd", "x"]);
        assert_eq!(split(4, &["abc", "de", "f"]), ["abcd", "ef"]);
    }

    #[test]
    fn any_way_of_cutting_the_stream_gives_the_same_lines() {
        let text = "one\ntwo two two\r\n\nthree-three-three-three\nend";
        let whole = split(8, &[text]);
        for cut in 0..=text.len() {
            let (a, b) = text.split_at(cut);
            assert_eq!(split(8, &[a, b]), whole, "cut at {cut}");
        }
        let bytes: Vec<String> = text.chars().map(String::from).collect();
        let bytes: Vec<&str> = bytes.iter().map(String::as_str).collect();
        assert_eq!(split(8, &bytes), whole);
    }
}
