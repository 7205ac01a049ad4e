//! What an extended attribute reads as after it was set: the kernel keeps two kinds in forms of its
//! own.
//!
//! - An ACL has no numbers where none mean anything. One that says no more than a mode is not kept, and
//!   `chmod` changes the others (Linux, `fs/posix_acl.c`).
//! - File capabilities lose unknown flags, and those of version 3 for the user 0 read as version 2
//!   (Linux, `security/commoncap.c`).

use std::borrow::Cow;

use super::entries::{Entry, Kind};
use super::meta::{ACCESS_ACL, DEFAULT_ACL};

const CAPABILITY: &[u8] = b"security.capability";
const CAPABILITY_VERSION: u32 = 0xff00_0000;
const CAPABILITY_2: u32 = 0x0200_0000;
const CAPABILITY_3: u32 = 0x0300_0000;
const CAPABILITY_EFFECTIVE: u32 = 1;

const ACL_VERSION: [u8; 4] = 2u32.to_le_bytes();
const ACL_ENTRY_BYTES: usize = 8;
const ACL_USER_OBJ: u16 = 0x01;
const ACL_USER: u16 = 0x02;
const ACL_GROUP_OBJ: u16 = 0x04;
const ACL_GROUP: u16 = 0x08;
const ACL_MASK: u16 = 0x10;
const ACL_OTHER: u16 = 0x20;

/// The value that `name` of `entry` has on the disk when `value` was set; `None` if it has none there.
pub(super) fn of<'a>(entry: &Entry, name: &[u8], value: &'a [u8]) -> Option<Cow<'a, [u8]>> {
    if name == ACCESS_ACL.as_bytes() {
        let acl = acl(value, Some(entry.mode))?;
        return says_more_than_a_mode(&acl).then_some(Cow::Owned(acl));
    }
    if name == DEFAULT_ACL.as_bytes() {
        return if entry.kind == Kind::Directory { acl(value, None).map(Cow::Owned) } else { None };
    }
    Some(if name == CAPABILITY { capability(value) } else { Cow::Borrowed(value) })
}

/// An ACL as it is read, after a `chmod` if there is a `mode`; `None` if it is not kept.
fn acl(value: &[u8], mode: Option<u32>) -> Option<Vec<u8>> {
    // The kernel does not know other versions, and an ACL without entries takes it away.
    let entries = value.strip_prefix(&ACL_VERSION).filter(|entries| !entries.is_empty())?;
    let has_mask = tags(entries).any(|tag| tag == ACL_MASK);
    let mut kept = ACL_VERSION.to_vec();
    for entry in entries.chunks_exact(ACL_ENTRY_BYTES) {
        let (tag, permissions) = (half(entry, 0), half(entry, 2));
        let shift = match tag {
            ACL_USER_OBJ => Some(6),
            ACL_MASK => Some(3),
            ACL_GROUP_OBJ if !has_mask => Some(3),
            ACL_OTHER => Some(0),
            _ => None,
        };
        let changed = mode.zip(shift).map(|(mode, shift)| (mode >> shift & 7) as u16);
        kept.extend_from_slice(&tag.to_le_bytes());
        kept.extend_from_slice(&changed.unwrap_or(permissions).to_le_bytes());
        let named = matches!(tag, ACL_USER | ACL_GROUP);
        kept.extend_from_slice(if named { &entry[4..] } else { &[0xff; 4] });
    }
    Some(kept)
}

fn says_more_than_a_mode(acl: &[u8]) -> bool {
    tags(&acl[ACL_VERSION.len()..]).any(|tag| matches!(tag, ACL_USER | ACL_GROUP | ACL_MASK))
}

fn tags(entries: &[u8]) -> impl Iterator<Item = u16> + '_ {
    entries.chunks_exact(ACL_ENTRY_BYTES).map(|entry| half(entry, 0))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn capability(value: &[u8]) -> Cow<'_, [u8]> {
    let Some((flags, rest)) = value.split_first_chunk::<4>() else { return Cow::Borrowed(value) };
    let flags = u32::from_le_bytes(*flags);
    let version = flags & CAPABILITY_VERSION;
    let (version, rest) = match (version, rest) {
        (CAPABILITY_3, [sets @ .., 0, 0, 0, 0]) => (CAPABILITY_2, sets),
        other => other,
    };
    let flags = version | flags & CAPABILITY_EFFECTIVE;
    Cow::Owned([&flags.to_le_bytes(), rest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capability_of(magic: u32, root: Option<u32>) -> Vec<u8> {
        let words = [magic, 1 << 10, 0, 0, 0].into_iter().chain(root);
        words.flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn capabilities_of_the_first_user_are_of_version_2() {
        let plain = capability_of(0x0200_0001, None);
        assert_eq!(capability(&plain), plain);
        assert_eq!(capability(&capability_of(0x02ab_cdef, None)), plain);
        assert_eq!(capability(&capability_of(0x0300_0001, Some(0))), plain);
        let other = capability_of(0x0300_0001, Some(1000));
        assert_eq!(capability(&other), other);
        assert_eq!(capability(b"x"), &b"x"[..]);
    }

    fn acl_of(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let bytes = entries.iter().flat_map(|(tag, permissions, id)| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
        });
        ACL_VERSION.into_iter().chain(bytes).collect()
    }

    #[test]
    fn the_mode_is_in_the_acl() {
        let none = u32::MAX;
        let set = [(1, 6, 5), (2, 7, 1000), (4, 4, 6), (16, 7, 8), (32, 0, 7)];
        let read = [(1, 7, none), (2, 7, 1000), (4, 4, none), (16, 5, none), (32, 1, none)];
        assert_eq!(acl(&acl_of(&set), Some(0o4751)), Some(acl_of(&read)));
        let read = [(1, 6, none), (2, 7, 1000), (4, 4, none), (16, 7, none), (32, 0, none)];
        assert_eq!(acl(&acl_of(&set), None), Some(acl_of(&read)));
        assert!(says_more_than_a_mode(&acl_of(&read)));
        let minimal = acl(&acl_of(&[(1, 7, none), (4, 7, none), (32, 7, none)]), Some(0o640));
        assert_eq!(minimal.as_deref(), Some(&acl_of(&[(1, 6, none), (4, 4, none), (32, 0, none)])[..]));
        assert!(!says_more_than_a_mode(&minimal.expect("kept")));
        assert_eq!(acl(&acl_of(&[]), None), None);
        assert_eq!(acl(b"\x03\0\0\0", None), None);
    }
}
