//! What operators prove themselves with.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use super::secret::random;

/// The header that operators' requests have their secret in.
pub const OPERATOR_HEADER: &str = "stopover-operator";

/// The shortest secret, in bytes: 32 random ones in base64 have 43.
const SHORTEST: usize = 43;

/// The secret of whoever runs a cache. Only a hash of it is held: hashes are compared, and how long that takes tells
/// nothing of the secret.
#[derive(Clone, Copy)]
pub struct OperatorSecret([u8; 32]);

/// A secret that is too short to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operators' secret has fewer than {SHORTEST} letters: remove the file, and the next start makes another")]
pub struct InvalidSecret;

impl OperatorSecret {
    /// Makes a secret: 256 random bits, a line of text. `None`: the system gave no randomness.
    pub fn make() -> Option<String> {
        Some(URL_SAFE_NO_PAD.encode(random()?) + "\n")
    }

    /// The secret that this line is.
    pub fn parse(text: &str) -> Result<Self, InvalidSecret> {
        let text = text.trim();
        if text.len() < SHORTEST { Err(InvalidSecret) } else { Ok(Self(Sha256::digest(text).into())) }
    }

    /// Whether somebody has shown it.
    pub fn is(&self, shown: &[u8]) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        self.0.iter().zip(shown).fold(0, |other, (ours, theirs)| other | (ours ^ theirs)) == 0
    }
}

impl fmt::Debug for OperatorSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("OperatorSecret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_itself_and_nothing_else() {
        let [one, other] = [OperatorSecret::make().unwrap(), OperatorSecret::make().unwrap()];
        let secret = OperatorSecret::parse(&one).unwrap();
        assert!(secret.is(one.trim().as_bytes()));
        for wrong in [other.trim(), "", &one.trim()[1..], &one] {
            assert!(!secret.is(wrong.as_bytes()), "{wrong}");
        }
        assert_eq!(format!("{secret:?}"), "OperatorSecret");
        for short in ["", "\n", &one[..SHORTEST - 1]] {
            assert!(OperatorSecret::parse(short).is_err());
        }
    }
}
