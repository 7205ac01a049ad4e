//! The memory of a zstd decoder: a frame says how far back it looks (its window), and that much is
//! held while it is read.

use crate::image::room::{PULL_BYTES, Room, Share};
use crate::{Error, ErrorKind, Result};

/// RFC 8878, section 3.1.1.
const MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// RFC 8878, section 3.1.2: 0x184D2A50 to 0x184D2A5F; zstd:chunked images begin with one.
const SKIPPABLE_TAIL: &[u8] = &[0x2a, 0x4d, 0x18];
/// Bytes that [`of`] looks at.
pub(super) const HEAD_BYTES: usize = 18;

/// What is taken for frames that do not say it: the specification's own recommendation, and what
/// images made in Go have.
const USUAL_LOG: u32 = 23;

/// What a zstd archive needs; `None` for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window(u64);

/// Reads the first bytes of an archive.
pub(super) fn of(head: &[u8]) -> Option<Window> {
    let skippable = head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == *SKIPPABLE_TAIL;
    if skippable {
        return Some(Window(1 << USUAL_LOG));
    }
    let rest = head.strip_prefix(MAGIC)?;
    let &[descriptor, window, ..] = rest else { return Some(Window(1 << USUAL_LOG)) };
    if descriptor & 0x20 != 0 {
        // A frame that is its own window; frames of other kinds may follow.
        return Some(Window(content_size(rest).unwrap_or_default().max(1 << USUAL_LOG)));
    }
    let base = 1u64 << (10 + (window >> 3));
    Some(Window(base + base / 8 * u64::from(window & 7)))
}

/// The size of a frame's content (RFC 8878, section 3.1.1.1.4), from its descriptor on.
fn content_size(header: &[u8]) -> Option<u64> {
    let descriptor = usize::from(*header.first()?);
    let dictionary = [0, 1, 2, 4][descriptor & 3];
    let length = [1, 2, 4, 8][descriptor >> 6];
    let field = header.get(1 + dictionary..1 + dictionary + length)?;
    let number = field.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    Some(if length == 2 { number + 256 } else { number })
}

impl Window {
    /// Waits for room for a decoder's window; gives it and the window as a power of two.
    ///
    /// # Errors
    /// `LimitExceeded` for a window that is never allowed, `Internal` if the pull is over first.
    pub(super) fn take(self, share: &Share) -> Result<(Room<'_>, u32)> {
        if self.0 > PULL_BYTES {
            let (found, limit) = (self.0 >> 20, PULL_BYTES >> 20);
            return Err(Error::new(
                ErrorKind::LimitExceeded,
                format!("a layer needs a zstd window of {found} MiB, which is over the limit of {limit} MiB"),
            )
            .advise("compress the image with zstd level 19 or lower, and without --long"));
        }
        let bytes = self.0.next_power_of_two();
        share.take(bytes).map(|room| (room, bytes.trailing_zeros()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::image::stop::Stop;

    fn frame(level: i32, window_log: u32, bytes: usize) -> Vec<u8> {
        let mut encoder = zstd::stream::read::Encoder::new(std::io::repeat(7).take(bytes as u64), level)
            .expect("an encoder");
        encoder.window_log(window_log).expect("a window");
        encoder.include_contentsize(false).expect("no size");
        let mut packed = Vec::new();
        encoder.read_to_end(&mut packed).expect("packed");
        packed
    }

    #[test]
    fn windows_are_read_from_real_frames() {
        for log in [10, 21, 23, 25, 27] {
            assert_eq!(of(&frame(3, log, 1 << 20)), Some(Window(1 << log)), "{log}");
        }
        assert_eq!(of(&[0x5a, 0x2a, 0x4d, 0x18, 0, 0]), Some(Window(1 << USUAL_LOG)));
        assert_eq!(of(b"\x1f\x8b\x08\0\0\0"), None);
        assert_eq!(of(b""), None);
        assert_eq!(of(&MAGIC[..3]), None);
        assert_eq!(of(MAGIC), Some(Window(1 << USUAL_LOG)));
    }

    #[test]
    fn a_frame_may_be_its_own_window() {
        for (bytes, log) in [(100, 23), (70_000, 23), (12 << 20, 24)] {
            let packed = zstd::bulk::compress(&vec![7; bytes], 20).expect("packed");
            let Window(window) = of(&packed).expect("zstd");
            assert_eq!(window.next_power_of_two().trailing_zeros(), log, "{bytes}");
        }
    }

    #[test]
    fn a_huge_window_is_refused() {
        let share = Share::new(Stop::default());
        let error = Window(1 << 27).take(&share).expect_err("128 MiB");
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        assert!(error.to_string().contains("128 MiB"), "{error}");
        Window(u64::MAX).take(&share).expect_err("endless");
        assert_eq!(Window(PULL_BYTES - 1).take(&share).expect("the largest").1, 25);
    }
}
