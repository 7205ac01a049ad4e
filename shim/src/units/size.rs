//! Sizes such as `512MiB`.

use std::str::FromStr;

use super::Invalid;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// As the library bounds writable layers and `/tmp`.
const DISK_MAX: u64 = 64 * GIB;

/// Units by name; a number without a unit is refused, for it would be MB to one reader and bytes to
/// the next.
const UNITS: [(&str, u64); 6] =
    [("kib", KIB), ("mib", MIB), ("gib", GIB), ("kb", 1_000), ("mb", 1_000_000), ("gb", 1_000_000_000)];

/// A size on disk in bytes, from 1 MiB to 64 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSize(pub u64);

impl FromStr for DiskSize {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match parse(text)? {
            bytes @ MIB..=DISK_MAX => Ok(Self(bytes)),
            _ => Err(Invalid::new("not between 1MiB and 64GiB")),
        }
    }
}

/// The size of a store in bytes, from nothing to 1024 TiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSize(pub u64);

impl FromStr for StoreSize {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match parse(text)? {
            bytes if bytes <= 1024 * TIB => Ok(Self(bytes)),
            _ => Err(Invalid::new("more than 1024TiB")),
        }
    }
}

/// A memory limit in whole MiB, up to 1 TiB. Which of them a platform sells is its own rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In MiB.
    pub mib: u32,
}

impl FromStr for Memory {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bytes = parse(text)?;
        if !(MIB..=TIB).contains(&bytes) {
            return Err(Invalid::new("not between 1MiB and 1024GiB"));
        }
        if !bytes.is_multiple_of(MIB) {
            let near = (bytes + MIB / 2) / MIB;
            return Err(Invalid::new(format!("not a whole number of MiB; the nearest is {near}MiB")));
        }
        let mib = u32::try_from(bytes / MIB).map_err(|_| Invalid::new("not between 1MiB and 1024GiB"))?;
        Ok(Self { mib })
    }
}

/// Bytes of a whole number with a unit.
fn parse(text: &str) -> Result<u64, Invalid> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(Invalid::new("not a whole number with a unit, such as 512MiB"));
    }
    if unit.is_empty() {
        return Err(Invalid::new(format!(
            "the unit is missing: write {number}MiB or another of {}",
            units()
        )));
    }
    let unit = unit.to_ascii_lowercase();
    let Some((_, bytes)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(Invalid::new(format!("unknown unit: use one of {}", units())));
    };
    // Too many digits are too many bytes, and out of every bound.
    Ok(number.parse::<u64>().ok().and_then(|number| number.checked_mul(*bytes)).unwrap_or(u64::MAX))
}

fn units() -> &'static str {
    "KiB, MiB, GiB, KB, MB, GB"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(text: &str) -> Result<u64, String> {
        text.parse::<DiskSize>().map(|size| size.0).map_err(|e| e.to_string())
    }

    fn memory(text: &str) -> Result<u32, String> {
        text.parse::<Memory>().map(|size| size.mib).map_err(|e| e.to_string())
    }

    #[test]
    fn all_units_are_known_in_any_case() {
        assert_eq!(disk("2048KiB"), Ok(2 << 20));
        assert_eq!(disk("512MiB"), Ok(512 << 20));
        assert_eq!(disk("10GiB"), Ok(10 << 30));
        assert_eq!(disk("2000KB"), Ok(2_000_000));
        assert_eq!(disk("512mb"), Ok(512_000_000));
        assert_eq!(disk("1GB"), Ok(1_000_000_000));
    }

    #[test]
    fn bounds_are_inclusive() {
        assert_eq!(disk("1MiB"), Ok(MIB));
        assert_eq!(disk("64GiB"), Ok(DISK_MAX));
        assert_eq!(disk("65GiB"), Err("not between 1MiB and 64GiB".into()));
        assert_eq!(memory("1024GiB"), Ok(1 << 20));
        for text in ["0MiB", "1023KiB", "1025GiB", "99999999999999999999GiB", "18446744073709551615KiB"] {
            assert_eq!(disk(text), Err("not between 1MiB and 64GiB".into()), "{text}");
            assert_eq!(memory(text), Err("not between 1MiB and 1024GiB".into()), "{text}");
        }
    }

    #[test]
    fn a_store_may_be_empty_or_large() {
        assert_eq!("0KB".parse::<StoreSize>(), Ok(StoreSize(0)));
        assert_eq!("20GiB".parse::<StoreSize>(), Ok(StoreSize(20 << 30)));
        assert!("20".parse::<StoreSize>().is_err());
        assert!("1048577GiB".parse::<StoreSize>().is_err_and(|e| e.to_string() == "more than 1024TiB"));
    }

    #[test]
    fn what_is_no_size_is_explained() {
        assert_eq!(
            disk("512"),
            Err("the unit is missing: write 512MiB or another of KiB, MiB, GiB, KB, MB, GB".into())
        );
        assert_eq!(disk("512M"), Err("unknown unit: use one of KiB, MiB, GiB, KB, MB, GB".into()));
        assert_eq!(disk("1.5GiB"), Err("unknown unit: use one of KiB, MiB, GiB, KB, MB, GB".into()));
        for text in ["", "MiB", "-1MiB", " 1MiB", "+1MiB", "٣MiB"] {
            assert_eq!(disk(text), Err("not a whole number with a unit, such as 512MiB".into()), "{text}");
        }
    }

    #[test]
    fn memory_is_whole_mib() {
        assert_eq!(memory("512MiB"), Ok(512));
        assert_eq!(memory("2GiB"), Ok(2048));
        assert_eq!(memory("512MB"), Err("not a whole number of MiB; the nearest is 488MiB".into()));
    }
}
