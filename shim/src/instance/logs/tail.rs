//! The last lines of a container's output, for error texts.

use std::collections::VecDeque;

use crate::platform::TailLine;

/// Bytes kept: an invoke call's log tail is the last 4 KB on both platforms.
const MAX_BYTES: usize = 4 * 1024;

/// What a line without a byte costs.
const LINE_COST: usize = 16;

/// A ring of lines, bounded in bytes.
#[derive(Debug, Default)]
pub(super) struct Tail {
    lines: VecDeque<TailLine>,
    cost: usize,
    pushed: u64,
}

impl Tail {
    /// Adds a line; of one that is larger than the whole ring, its end.
    pub(super) fn push(&mut self, mut line: TailLine) {
        let excess = line.bytes.len().saturating_sub(MAX_BYTES - LINE_COST);
        line.bytes = line.bytes.slice(excess..);
        self.cost += line.bytes.len() + LINE_COST;
        self.pushed += 1;
        self.lines.push_back(line);
        while self.cost > MAX_BYTES {
            let Some(first) = self.lines.pop_front() else { break };
            self.cost -= first.bytes.len() + LINE_COST;
        }
    }

    /// How many lines there have been in all.
    pub(super) fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Those that came after so many, with line feeds between them.
    pub(super) fn text_since(&self, pushed: u64) -> Vec<u8> {
        let wanted = usize::try_from(self.pushed.saturating_sub(pushed)).unwrap_or(usize::MAX);
        let lines: Vec<&[u8]> = self
            .lines
            .iter()
            .skip(self.lines.len().saturating_sub(wanted))
            .map(|line| &*line.bytes)
            .collect();
        lines.join(&b'\n')
    }

    /// The lines, oldest first.
    pub(super) fn lines(&self) -> Vec<TailLine> {
        self.lines.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn line(text: &str) -> TailLine {
        TailLine { time: UNIX_EPOCH, bytes: text.to_owned().into() }
    }

    #[test]
    fn the_last_lines_are_kept() {
        let mut tail = Tail::default();
        for number in 0..10_000 {
            tail.push(line(&number.to_string()));
        }
        let lines = tail.lines();
        assert_eq!(lines.last().expect("some").bytes, "9999");
        assert_eq!(lines.len(), MAX_BYTES / (4 + LINE_COST));
    }

    #[test]
    fn empty_lines_and_huge_ones_are_bounded() {
        let mut tail = Tail::default();
        (0..10_000).for_each(|_| tail.push(line("")));
        assert!(tail.lines().len() <= MAX_BYTES / LINE_COST);
        tail.push(line(&format!("{}end", "x".repeat(100_000))));
        let lines = tail.lines();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].bytes.len() <= MAX_BYTES && lines[0].bytes.ends_with(b"end"));
    }
}
