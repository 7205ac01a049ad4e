//! The fields of a header block: numbers, owners, the checksum.

use tar::{EntryType, Header};

use super::entries::{BLOCK, Kind, invalid};
use crate::Result;

/// A number in octal digits, or binary (base 256) with the first bit set.
pub(super) fn number(field: &[u8]) -> Result<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // 0xff is a negative number; its low 64 bits are kept, the caller knows the sign.
        let start = if first & 0x40 != 0 { u64::MAX } else { u64::from(first & 0x7f) };
        return Ok(rest.iter().fold(start, |n, b| (n << 8) | u64::from(*b)));
    }
    let text = field.split(|b| *b == 0).next().unwrap_or_default().trim_ascii();
    let digit = |n: u64, b: &u8| {
        matches!(b, b'0'..=b'7').then(|| n.checked_mul(8)?.checked_add(u64::from(b - b'0'))).flatten()
    };
    text.iter().try_fold(0, digit).ok_or_else(|| invalid("a number in a header of the archive is broken"))
}

/// A user or group that Linux can have; the highest number means "no change" to `chown`.
pub(super) fn id(number: u64) -> Result<u32> {
    u32::try_from(number)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| invalid(format!("the owner {number} is out of range")))
}

/// The sum of the header's bytes with the checksum's own taken as spaces.
pub(super) fn checksum(block: &[u8; BLOCK]) -> u64 {
    let own = 148..156;
    let all: u64 = block.iter().map(|b| u64::from(*b)).sum();
    let sum: u64 = block[own.clone()].iter().map(|b| u64::from(*b)).sum();
    all - sum + 32 * own.len() as u64
}

pub(super) fn kind(header: &Header, path: &[u8]) -> Result<Kind> {
    // Before POSIX.1-1988 a directory was a file of type 0 whose name ends with a slash.
    let is_old = header.as_old().linkflag[0] == 0;
    Ok(match header.entry_type() {
        EntryType::Regular if is_old && path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::Regular,
        EntryType::Directory => Kind::Directory,
        EntryType::Link => Kind::HardLink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char => Kind::CharDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Fifo => Kind::Fifo,
        other => {
            let name = String::from_utf8_lossy(path);
            let byte = other.as_byte();
            return Err(invalid(format!("{name:.200} is of the unknown type {byte:#04x}")));
        }
    })
}

/// Whether data follows the header. Two readers that differ here would see two archives in one.
pub(super) fn has_data(entry_type: EntryType) -> bool {
    matches!(entry_type, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse)
}

pub(super) fn device(header: &Header, kind: Kind) -> Result<(u32, u32)> {
    if !matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
        return Ok((0, 0));
    }
    let read = || Some((header.device_major().ok()??, header.device_minor().ok()??));
    read().ok_or_else(|| invalid("a device has no valid number"))
}

pub(super) fn until_zero(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}
