//! Content digests: parsed strictly before anything is done with them, computed while bytes pass.
//!
//! OCI image specification, *Content Descriptors*: `sha256:` with 64 lower-case hexadecimal digits,
//! or `sha512:` with 128. Anything else is refused, so a [`Digest`] is always safe as a file name.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

use crate::{Error, ErrorKind, Result};

/// The hash functions that the OCI image specification registers and Skiff accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// All of them, for the folders of the store.
    pub(crate) const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A validated digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// SHA-256 of bytes in memory.
    pub(crate) fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(crate) fn hex(&self) -> &str {
        &self.hex
    }

    /// Whether `bytes` have this digest; `what` names them in the error.
    ///
    /// # Errors
    /// `DigestMismatch` with both digests.
    pub(crate) fn verify(&self, bytes: &[u8], what: &str) -> Result<()> {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        self.verify_hash(hasher, what)
    }

    /// As [`Digest::verify`], for bytes that went through `hasher`.
    pub(crate) fn verify_hash(&self, hasher: Hasher, what: &str) -> Result<()> {
        let found = hasher.finish();
        if found == *self {
            return Ok(());
        }
        Err(mismatch(what, self, &found))
    }
}

fn mismatch(what: &str, wanted: &Digest, found: &Digest) -> Error {
    Error::new(
        ErrorKind::DigestMismatch,
        format!("the {what} should have the digest {wanted}, but its bytes have {found}"),
    )
    .advise("the registry, a proxy on the way or the source directory gave wrong bytes; push the image again or pull from elsewhere")
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

/// Longest part of a refused digest that an error repeats.
const SHOWN_CHARACTERS: usize = 150;

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: &str| {
            let shown: String = text.chars().take(SHOWN_CHARACTERS).collect();
            Error::new(ErrorKind::InvalidImage, format!("the digest {shown:?} {why}"))
        };
        let (name, hex) = text.split_once(':').ok_or_else(|| refused("has no algorithm"))?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|a| a.as_str() == name)
            .ok_or_else(|| refused("is neither sha256 nor sha512"))?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(lower_hex) {
            return Err(refused("does not have the right number of lower-case hexadecimal digits"));
        }
        Ok(Self { algorithm, hex: hex.to_owned() })
    }
}

/// A digest in the making.
pub(crate) enum Hasher {
    Sha256(Box<sha2::Sha256>),
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Box::default()),
            Algorithm::Sha512 => Self::Sha512(Box::default()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => {
                Digest { algorithm: Algorithm::Sha256, hex: hex(hasher.finalize().as_slice()) }
            }
            Self::Sha512(hasher) => {
                Digest { algorithm: Algorithm::Sha512, hex: hex(hasher.finalize().as_slice()) }
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashes_and_verifies() {
        let empty: Digest = EMPTY.parse().expect("valid");
        assert_eq!(Digest::sha256(b""), empty);
        assert_eq!(empty.to_string(), EMPTY);
        empty.verify(b"", "thing").expect("same");
        let error = empty.verify(b"x", "thing").expect_err("other bytes");
        assert_eq!(error.kind(), ErrorKind::DigestMismatch);
        assert!(error.to_string().contains("the thing should have the digest sha256:e3b0"));
    }

    #[test]
    fn accepts_sha512() {
        let text = format!("sha512:{}", "ab".repeat(64));
        assert_eq!(text.parse::<Digest>().expect("valid").to_string(), text);
    }

    #[test]
    fn refuses_everything_else() {
        let upper = EMPTY.to_uppercase();
        let long = format!("{EMPTY}0");
        let path = format!("sha256:../../{}", "a".repeat(58));
        for text in ["", "sha256", "sha256:", ":", "md5:00", &upper, &long, &path, "sha256:é"] {
            let error = text.parse::<Digest>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidImage, "{text}");
        }
        let huge = "x".repeat(1 << 20);
        assert!(huge.parse::<Digest>().expect_err("huge").to_string().len() < 300);
    }
}
