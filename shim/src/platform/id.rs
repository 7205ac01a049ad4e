//! The raw material of ids: time and random bits.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::rand::{GetRandomFlags, getrandom};

/// Used when the kernel has no random bytes: ids stay unique in this process, they are no secrets.
static FALLBACK: AtomicU64 = AtomicU64::new(0);

/// Random bytes that are asked of the kernel at once: each id needs a few.
const AT_ONCE: usize = 240;

thread_local! {
    /// Random bytes that nobody had yet. This process never forks and goes on in both.
    static STOCK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// `N` random bytes, of the stock; `None` when the kernel gives none.
fn taken<const N: usize>(stock: &mut Vec<u8>) -> Option<[u8; N]> {
    if stock.len() < N {
        let mut fresh = [0; AT_ONCE];
        let filled = getrandom(&mut fresh, GetRandomFlags::empty()).ok()?;
        stock.extend_from_slice(fresh.get(..filled)?);
    }
    let rest = stock.len().checked_sub(N)?;
    let bytes = stock.get(rest..)?.try_into().ok()?;
    stock.truncate(rest);
    Some(bytes)
}

/// `N` random bytes.
pub(super) fn random<const N: usize>() -> [u8; N] {
    if let Some(bytes) = STOCK.with_borrow_mut(taken) {
        return bytes;
    }
    let mut bytes = [0; N];
    let count = FALLBACK.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    for (byte, source) in bytes.iter_mut().zip(count.iter().rev().cycle()) {
        *byte = *source;
    }
    bytes
}

/// Bytes in lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Seconds since 1970.
pub(super) fn epoch_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A UUID of version 1's layout: the time in units of 100 ns since 1582-10-15, random clock sequence
/// and node (with the multicast bit, as RFC 9562 asks of a node that is no MAC address).
pub(super) fn time_uuid() -> String {
    const GREGORIAN_TO_UNIX: u128 = 0x01B2_1DD2_1381_4000;
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() / 100);
    let ticks = GREGORIAN_TO_UNIX + unix;
    let [high, low, mut node @ ..] = random::<8>();
    node[0] |= 1;
    format!(
        "{:08x}-{:04x}-1{:03x}-{:02x}{:02x}-{}",
        ticks & 0xffff_ffff,
        (ticks >> 32) & 0xffff,
        (ticks >> 48) & 0x0fff,
        (high & 0x3f) | 0x80,
        low,
        hex(&node),
    )
}

/// A random UUID (version 4).
pub(super) fn random_uuid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let [a, b, c, d, e] = [0..4, 4..6, 6..8, 8..10, 10..16].map(|part| hex(&bytes[part]));
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// An address `first.second.x.y` with random `x` and `y`, neither network nor broadcast.
pub(super) fn address(first: u8, second: u8) -> Ipv4Addr {
    let [third, fourth] = random::<2>();
    Ipv4Addr::new(first, second, third, fourth.clamp(1, 254))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_random_bytes_are_given_twice() {
        let ids: HashSet<[u8; 16]> = (0..1000).map(|_| random()).collect();
        assert_eq!(ids.len(), 1000);
        let mut stock = vec![7; 3];
        let first: [u8; 16] = taken(&mut stock).expect("random bytes");
        assert_eq!(stock.len(), AT_ONCE + 3 - 16);
        assert!(!stock.ends_with(&first));
        assert_eq!(taken::<500>(&mut stock), None, "more than is asked for at once");
    }

    #[test]
    fn hex_has_two_digits_for_each_byte() {
        assert_eq!(hex(&[0, 1, 0x7f, 0xff]), "00017fff");
    }

    #[test]
    fn uuids_are_of_version_one_and_unique() {
        let ids: HashSet<String> = (0..1000).map(|_| time_uuid()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            let parts: Vec<&str> = id.split('-').collect();
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{id}");
            assert!(parts[2].starts_with('1'), "{id}");
            assert!(matches!(parts[3].as_bytes()[0], b'8' | b'9' | b'a' | b'b'), "{id}");
            assert!(id.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit()), "{id}");
        }
    }

    #[test]
    fn addresses_stay_in_their_network() {
        for _ in 0..500 {
            let [a, b, _, d] = address(21, 0).octets();
            assert_eq!((a, b), (21, 0));
            assert!((1..=254).contains(&d));
        }
    }
}
