//! How records lie in a file, so that a reader sees whole ones only.
//!
//! ```text
//! file:   "skmeter1"  frame  frame  …
//! frame:  length u32 │ checksum u32 │ sequence number u64 │ payload      (little-endian)
//! ```
//!
//! The checksum is CRC-32 over length, sequence number and payload. What a crash left of a write fails it,
//! or is too short for its length. Sequence numbers grow by one, so bytes that look like a frame and are
//! none (a payload may hold anything) do not pass for one either.

/// What a file begins with: its kind and the version of its form.
pub(super) const MAGIC: &[u8; 8] = b"skmeter1";

/// Bytes of a payload at most: names and ids are bounded by their platforms, far below.
pub(super) const MAX_PAYLOAD: usize = 64 * 1024;

/// Bytes before a payload.
const HEAD: usize = 16;

/// How far a sequence number may be ahead of the last one behind a damage: more than fit in a file.
const MAX_SKIP: u64 = 1 << 32;

/// A whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) sequence: u64,
    pub(super) payload: &'a [u8],
}

impl Frame<'_> {
    /// Bytes that it takes.
    pub(super) fn size(&self) -> usize {
        HEAD + self.payload.len()
    }
}

/// Adds a frame to bytes that are to be written.
pub(super) fn encode(sequence: u64, payload: &[u8], bytes: &mut Vec<u8>) {
    debug_assert!(!payload.is_empty() && payload.len() <= MAX_PAYLOAD);
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let sequence = sequence.to_le_bytes();
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&checksum(length, sequence, payload).to_le_bytes());
    bytes.extend_from_slice(&sequence);
    bytes.extend_from_slice(payload);
}

/// The frame that bytes begin with; `None` when they begin with none that is whole.
pub(super) fn decode(bytes: &[u8]) -> Option<Frame<'_>> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let size = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if size == 0 || size > MAX_PAYLOAD {
        return None;
    }
    let payload = rest.get(..size)?;
    let whole = checksum(*length, *sequence, payload) == u32::from_le_bytes(*sum);
    whole.then(|| Frame { sequence: u64::from_le_bytes(*sequence), payload })
}

/// Where the next whole frame with a number of at least `sequence` begins, behind bytes that are none.
pub(super) fn next_whole(bytes: &[u8], sequence: u64) -> Option<usize> {
    (1..bytes.len().saturating_sub(HEAD)).find(|at| {
        // The cheap look first: a checksum over each offset would take its square.
        let number = |range: std::ops::Range<usize>| bytes.get(range).and_then(|b| b.try_into().ok());
        let found = number(at + 8..at + HEAD).map_or(0, u64::from_le_bytes);
        (sequence..sequence.saturating_add(MAX_SKIP)).contains(&found) && decode(&bytes[*at..]).is_some()
    })
}

fn checksum(length: [u8; 4], sequence: [u8; 8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(&sequence);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let mut bytes = Vec::new();
        encode(7, b"{}", &mut bytes);
        encode(8, b"{\"k\":1}", &mut bytes);
        let first = decode(&bytes).expect("whole");
        assert_eq!((first, first.size()), (Frame { sequence: 7, payload: b"{}" }, 18));
        assert_eq!(decode(&bytes[first.size()..]), Some(Frame { sequence: 8, payload: b"{\"k\":1}" }));
    }

    #[test]
    fn zeros_and_absurd_lengths_are_no_frames() {
        assert_eq!(decode(&[0; 64]), None);
        assert_eq!(decode(&[0xff; 64]), None);
        assert_eq!(decode(b""), None);
        let mut bytes = Vec::new();
        encode(1, &vec![b'x'; MAX_PAYLOAD], &mut bytes);
        assert!(decode(&bytes).is_some());
    }

    proptest! {
        #[test]
        fn no_part_of_a_frame_is_a_frame(payload in prop::collection::vec(any::<u8>(), 1..200), sequence: u64) {
            let mut bytes = Vec::new();
            encode(sequence, &payload, &mut bytes);
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..cut]), None);
            }
            let whole = decode(&bytes).expect("whole");
            prop_assert_eq!((whole.sequence, whole.payload), (sequence, &payload[..]));
        }

        #[test]
        fn a_flipped_bit_is_seen(payload in prop::collection::vec(any::<u8>(), 1..200), at: prop::sample::Index) {
            let mut bytes = Vec::new();
            encode(3, &payload, &mut bytes);
            let bit = at.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&bytes), None);
        }

        #[test]
        fn what_is_whole_is_found_behind_what_is_not(noise in prop::collection::vec(any::<u8>(), 1..300)) {
            let mut bytes = noise.clone();
            encode(41, b"behind", &mut bytes);
            prop_assert_eq!(next_whole(&bytes, 40), Some(noise.len()));
            prop_assert_eq!(next_whole(&bytes, 42), None);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(
            length in 0_u32..500,
            bytes in prop::collection::vec(any::<u8>(), 0..400)
        ) {
            let bytes = [&length.to_le_bytes()[..], &bytes].concat();
            let _ = (decode(&bytes), next_whole(&bytes, 0));
        }
    }
}
