//! How long ago something was, such as `12h` or `7d`.

use std::str::FromStr;
use std::time::Duration;

use super::Invalid;

/// Longer than any store is kept: ten years.
const MAX_SECONDS: u64 = 3650 * 24 * 60 * 60;

/// An age up to ten years. A number without a unit is refused: seconds to one reader are days to the
/// next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Age(pub(crate) Duration);

impl FromStr for Age {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let seconds_per_unit: u64 = match unit {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 60 * 60,
            "d" => 24 * 60 * 60,
            "w" => 7 * 24 * 60 * 60,
            _ => return Err(Invalid::new("not a whole number of s, m, h, d or w, such as 7d")),
        };
        if number.is_empty() {
            return Err(Invalid::new("not a whole number of s, m, h, d or w, such as 7d"));
        }
        match number.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds_per_unit)) {
            Some(seconds) if seconds <= MAX_SECONDS => Ok(Self(Duration::from_secs(seconds))),
            _ => Err(Invalid::new("more than ten years")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_known() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("5m", 300), ("12h", 43_200), ("7d", 604_800)] {
            assert_eq!(text.parse::<Age>(), Ok(Age(Duration::from_secs(seconds))), "{text}");
        }
    }

    #[test]
    fn what_is_no_age_is_explained() {
        for text in ["", "7", "d", "-1d", "1.5d", "7 d", "7y"] {
            let error = text.parse::<Age>().expect_err(text).to_string();
            assert_eq!(error, "not a whole number of s, m, h, d or w, such as 7d", "{text}");
        }
        for text in ["3651d", "99999999999999999999d", "18446744073709551615w"] {
            assert_eq!(text.parse::<Age>().expect_err(text).to_string(), "more than ten years");
        }
    }
}
