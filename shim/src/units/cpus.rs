//! Shares of the host's cores such as `0.5`.

use std::str::FromStr;

use super::Invalid;

const WHY: &str = "not a number of cores from 0.05 to 64 with at most three decimals, such as 0.5";

/// CPU limit in thousandths of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// In thousandths.
    pub millis: u32,
}

/// As the library bounds the limit.
const MILLIS_MIN: u32 = 50;
const MILLIS_MAX: u32 = 64_000;

impl FromStr for Cpus {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str, max: usize| {
            (1..=max).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit())
        };
        if !digits(whole, 4) || !digits(decimals, 3) {
            return Err(Invalid::new(WHY));
        }
        let number = |part: &str| part.parse::<u32>().map_err(|_| Invalid::new(WHY));
        match number(whole)? * 1000 + number(&format!("{decimals:0<3}"))? {
            millis @ MILLIS_MIN..=MILLIS_MAX => Ok(Self { millis }),
            _ => Err(Invalid::new(WHY)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_thousandths() {
        for (text, millis) in [("1", 1000), ("0.5", 500), ("0.05", 50), ("2.125", 2125), ("64", 64_000)] {
            assert_eq!(text.parse(), Ok(Cpus { millis }), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_of_cores_is_refused() {
        for text in
            ["", "0", "0.049", "64.001", "99999", "-1", "1.", ".5", "1.2345", "1,5", "half", "1e3", "0.5.5"]
        {
            assert_eq!(text.parse::<Cpus>(), Err(Invalid::new(WHY)), "{text}");
        }
    }
}
