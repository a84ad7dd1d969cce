use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sha2::digest::Digest as _;
use sha2::digest::common::hazmat::SerializableState as _;
use sha2::{Sha256, Sha512};

use crate::values::text::as_text;

/// A registered digest algorithm (image-spec 1.1, `descriptor.md`, "Registered algorithms").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256: 64 hexadecimal digits.
    Sha256,
    /// SHA-512: 128 hexadecimal digits.
    Sha512,
}

impl Algorithm {
    /// The name before the colon of a digest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The address of content: an algorithm and the lower-case hexadecimal hash of the exact bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// `algorithm:hex`, kept whole because that is the form every key and header needs.
    text: Arc<str>,
}

/// Why a string is not a digest that can be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// Not `algorithm:encoded`, or not as long as the algorithm says, or not lower-case hexadecimal.
    #[error("a digest is sha256:<64 lower-case hex digits> or sha512:<128 lower-case hex digits>")]
    Malformed,
    /// Well-formed, but with an algorithm that is neither sha256 nor sha512.
    #[error("this digest algorithm is not supported; sha256 and sha512 are")]
    UnsupportedAlgorithm,
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm before the colon.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hexadecimal digits after the colon.
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The first two of these digits: storage has a directory for each.
    pub fn shard(&self) -> &str {
        self.hex().get(..2).unwrap_or_default()
    }

    /// `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The hash itself: 32 or 64 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Parsing has checked that the digits are hexadecimal.
        from_hexadecimal(self.hex()).unwrap_or_default()
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        Self { algorithm, text: format!("{}:{}", algorithm.name(), hexadecimal(hash)).into() }
    }
}

/// The lower-case hexadecimal digits of bytes.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(nibble(*pair.first()?)? << 4 | nibble(*pair.get(1)?)?)).collect()
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, encoded) = text.split_once(':').ok_or(InvalidDigest::Malformed)?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other if is_algorithm_grammar(other) && is_encoded_grammar(encoded) => {
                return Err(InvalidDigest::UnsupportedAlgorithm);
            }
            _ => return Err(InvalidDigest::Malformed),
        };
        // Without a way out, it is done for many bytes at once.
        let hexadecimal = encoded.bytes().fold(true, |all, byte| all & matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if encoded.len() != algorithm.hex_length() || !hexadecimal {
            return Err(InvalidDigest::Malformed);
        }
        Ok(Self { algorithm, text: text.into() })
    }
}

fn is_algorithm_grammar(text: &str) -> bool {
    text.split(['+', '.', '_', '-']).all(|component| {
        !component.is_empty() && component.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'))
    })
}

fn is_encoded_grammar(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'=' | b'_' | b'-'))
}

as_text!(Digest);

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Computes a [`Digest`] over bytes that arrive in pieces.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// A hasher that has seen no bytes.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::default()),
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The state over the bytes taken so far, as text that [`Self::restore`] reads.
    pub fn save(&self) -> String {
        match &self.0 {
            State::Sha256(state) => hexadecimal(&state.serialize()),
            State::Sha512(state) => hexadecimal(&state.serialize()),
        }
    }

    /// Resumes from a saved state. `None`: the text is no state of this algorithm. A state is not authenticated: a
    /// changed one gives a wrong digest, which then fails verification.
    pub fn restore(algorithm: Algorithm, saved: &str) -> Option<Self> {
        let bytes = from_hexadecimal(saved)?;
        Some(Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::deserialize(bytes.as_slice().try_into().ok()?).ok()?),
            Algorithm::Sha512 => State::Sha512(Box::new(Sha512::deserialize(bytes.as_slice().try_into().ok()?).ok()?)),
        }))
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest::from_hash(Algorithm::Sha256, &state.finalize()),
            State::Sha512(state) => Digest::from_hash(Algorithm::Sha512, &state.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_the_hash_of_the_bytes_and_round_trips_through_text() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        assert_eq!(digest.as_str(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>(), Ok(digest.clone()));
        assert_eq!(&digest.to_bytes()[..3], [0xe3, 0xb0, 0xc4]);
        let long = Digest::of(Algorithm::Sha512, b"abc");
        assert!(long.as_str().starts_with("sha512:ddaf35a193617aba"));
        assert_eq!(long.as_str().parse::<Digest>(), Ok(long.clone()));
        assert_eq!(long.to_bytes().len(), 64);
    }

    #[test]
    fn a_hash_goes_on_where_it_was_saved_and_nothing_else_is_taken_for_a_state() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let bytes: Vec<u8> = (0..=255).collect();
            for split in [0, 1, 63, 64, 65, 128, 200, 256] {
                let mut hasher = Hasher::new(algorithm);
                hasher.update(&bytes[..split]);
                let mut restored = Hasher::restore(algorithm, &hasher.save()).unwrap();
                restored.update(&bytes[split..]);
                assert_eq!(restored.finish(), Digest::of(algorithm, &bytes));
            }
            let saved = Hasher::new(algorithm).save();
            for wrong in ["", "0", "zz", saved.get(2..).unwrap(), &format!("{saved}00"), &"é".repeat(saved.len() / 2)]
            {
                assert!(Hasher::restore(algorithm, wrong).is_none());
            }
        }
        assert!(Hasher::restore(Algorithm::Sha512, &Hasher::new(Algorithm::Sha256).save()).is_none());
    }

    #[test]
    fn a_malformed_digest_is_told_apart_from_an_unsupported_algorithm() {
        for text in
            ["", "sha256", "sha256:", "sha256:xyz", "sha256:E3B0", "SHA256:00", ":00", "sha256:../../etc", "md5+:00"]
        {
            assert_eq!(text.parse::<Digest>(), Err(InvalidDigest::Malformed), "{text}");
        }
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        assert_eq!(upper.parse::<Digest>(), Err(InvalidDigest::Malformed));
        for text in ["md5:d41d8cd98f00b204e9800998ecf8427e", "blake3:af13", "multihash+base58:QmRZxt2b1FVZ"] {
            assert_eq!(text.parse::<Digest>(), Err(InvalidDigest::UnsupportedAlgorithm), "{text}");
        }
    }
}
