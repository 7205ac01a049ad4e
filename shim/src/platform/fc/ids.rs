//! Ids as FC 3.0 shows them in its documentation and in a header dump.

use crate::platform::id::{epoch_seconds, hex, random};

/// `1-<epoch, 8 hex>-<8 hex>-<12 hex>`.
pub(super) fn request() -> String {
    with_prefix('1')
}

/// `c-<epoch, 8 hex>-<8 hex>-<12 hex>`, the host name too.
pub(super) fn instance() -> String {
    with_prefix('c')
}

fn with_prefix(prefix: char) -> String {
    format!("{prefix}-{:08x}-{}-{}", epoch_seconds(), hex(&random::<4>()), hex(&random::<6>()))
}

/// CRC-64 as FC checks code packages (ECMA-182's polynomial, reflected, as in xz).
pub(super) fn crc64(bytes: &[u8]) -> u64 {
    const POLYNOMIAL: u64 = 0xc96c_5795_d787_0f42;
    let step = |crc: u64, _| (crc >> 1) ^ (POLYNOMIAL & 0u64.wrapping_sub(crc & 1));
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u64::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_documented_form() {
        for (id, prefix) in [(request(), "1"), (instance(), "c")] {
            let parts: Vec<&str> = id.split('-').collect();
            assert_eq!(parts[0], prefix);
            assert_eq!(parts[1..].iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 8, 12], "{id}");
            assert!(parts[1..].iter().all(|p| p.bytes().all(|b| b.is_ascii_hexdigit())), "{id}");
            let time = u64::from_str_radix(parts[1], 16).expect("hex");
            assert!(epoch_seconds().abs_diff(time) <= 2, "{id}");
        }
        assert_ne!(instance(), instance());
    }

    #[test]
    fn checksums_are_those_of_xz() {
        assert_eq!(crc64(b"123456789"), 0x995d_c9bb_df19_39fa);
        assert_eq!(crc64(b""), 0);
    }
}
