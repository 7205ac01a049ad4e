//! PAX extended headers (POSIX.1-2017, `pax`, *pax Extended Header*), as layers use them.
//!
//! Records are taken apart by their length and not at line ends: values of extended attributes are
//! binary.

use rustix::fs::Timespec;

use super::entries::invalid;
use super::sparse;
use crate::Result;
use crate::image::limits;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

/// What the extended headers before an entry say of it.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timespec>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<Box<sparse::Records>>,
}

impl Extended {
    /// Adds the records of one PAX header; later ones win.
    pub(super) fn add_pax(&mut self, mut rest: &[u8]) -> Result<()> {
        // Some writers pad with zeros.
        while rest.first().is_some_and(|b| *b != 0) {
            let (key, value, after) = record(rest).ok_or_else(|| invalid("a PAX header is broken"))?;
            self.add(key, value)?;
            rest = after;
        }
        Ok(())
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => self.path = filled(value),
            b"linkpath" => self.link = filled(value),
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = number(value)?,
            b"gid" => self.gid = number(value)?,
            b"mtime" => self.mtime = time(value)?,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    self.add_xattr(name, value)?;
                } else if let Some(name) = key.strip_prefix(SPARSE_PREFIX) {
                    self.sparse.get_or_insert_default().add(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn add_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        limits::check(
            "bytes of the name of an extended attribute",
            name.len() as u64,
            limits::MAX_NAME_BYTES,
        )?;
        limits::check("bytes of an extended attribute", value.len() as u64, limits::MAX_XATTR_BYTES)?;
        if name.is_empty() || name.contains(&0) {
            return Err(invalid("an extended attribute has no valid name"));
        }
        self.xattrs.retain(|(known, _)| known != name);
        self.xattrs.push((name.to_vec(), value.to_vec()));
        limits::check("extended attributes of an entry", self.xattrs.len() as u64, limits::MAX_XATTRS)
    }
}

/// An empty value takes the record back.
fn filled(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself and the line end.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let body = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &bytes[length..]))
}

fn number(value: &[u8]) -> Result<Option<u64>> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| invalid("a number in a PAX header is broken"))
}

/// Seconds with a fraction, possibly negative.
fn time(value: &[u8]) -> Result<Option<Timespec>> {
    if value.is_empty() {
        return Ok(None);
    }
    parse_time(value).map(Some).ok_or_else(|| invalid("a time in a PAX header is broken"))
}

fn parse_time(value: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let negative = whole.starts_with('-') && nanos > 0;
    Some(if negative {
        Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanos }
    } else {
        Timespec { tv_sec: seconds, tv_nsec: nanos }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(bytes: &[u8]) -> Result<Extended> {
        let mut extended = Extended::default();
        extended.add_pax(bytes).map(|()| extended)
    }

    #[test]
    fn values_may_have_line_ends() {
        let extended = parsed(b"30 SCHILY.xattr.user.a=x\ny=z\0\n11 path=a/\n").expect("valid");
        assert_eq!(extended.xattrs, [(b"user.a".to_vec(), b"x\ny=z\0".to_vec())]);
        assert_eq!(extended.path.as_deref(), Some(&b"a/"[..]));
    }

    #[test]
    fn times_have_nanoseconds_and_signs() {
        let time = |text: &str| parse_time(text.as_bytes()).map(|t| (t.tv_sec, t.tv_nsec));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("-3"), Some((-3, 0)));
        for text in ["x", "1.x", "", "1.-5", "99999999999999999999", "-9223372036854775808.5"] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn broken_headers_are_refused() {
        let cases: [&[u8]; 9] = [
            b"x",
            b"999 path=a\n",
            b"5 path=a\n",
            b"0 path=a\n",
            b"8 path=a\n",
            b"8 patha\n",
            b"18446744073709551615 path=a\n",
            b"10 size=-\n",
            b"24 GNU.sparse.major=1.0\n",
        ];
        for bytes in cases {
            parsed(bytes).expect_err(&String::from_utf8_lossy(bytes));
        }
    }
}
