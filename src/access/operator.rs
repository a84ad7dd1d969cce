//! How operators authenticate: with a proof that they have the secret. The secret itself is never sent: a process that
//! listens at the port of a cache that is down would learn it.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::values::secret::random;
use crate::values::time::Timestamp;

/// The header that carries an operator's proof.
pub const OPERATOR_HEADER: &str = "stopover-operator";

/// The shortest secret, in bytes: 32 random bytes in base64 have 43.
const SHORTEST: usize = 43;

/// How long a proof is valid. An eavesdropper may replay the same request until then.
const LIFE: Duration = Duration::from_mins(1);

/// The operators' secret. Only its hash is kept, which is the key that signs proofs.
#[derive(Clone, Copy)]
pub struct OperatorSecret([u8; 32]);

/// The secret is too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operators' secret has fewer than {SHORTEST} letters: remove the file, and the next start makes another")]
pub struct InvalidSecret;

/// The request that a proof covers (names as in RFC 9449, section 4.2).
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Proven {
    /// When the proof was made, in seconds since the Unix epoch.
    iat: Timestamp,
    /// The HTTP method.
    htm: String,
    /// Path and query as sent.
    htu: String,
    /// SHA-256 of the body, in base64url.
    body: String,
}

impl OperatorSecret {
    /// Makes a secret: 256 random bits as a line of text. `None`: the system provided no randomness.
    pub fn make() -> Option<String> {
        Some(URL_SAFE_NO_PAD.encode(random()?) + "\n")
    }

    /// Reads a secret from a line of text.
    pub fn parse(text: &str) -> Result<Self, InvalidSecret> {
        let text = text.trim();
        if text.len() < SHORTEST { Err(InvalidSecret) } else { Ok(Self(Sha256::digest(text).into())) }
    }

    /// Proves to the cache that the sender of this request has the secret: a JWT. `None`: signing failed. `target` is
    /// path and query.
    pub fn prove(&self, method: &Method, target: &str, body: &[u8], now: Timestamp) -> Option<String> {
        let proven = Proven { iat: now, htm: method.to_string(), htu: target.to_owned(), body: hash(body) };
        jsonwebtoken::encode(&Header::default(), &proven, &EncodingKey::from_secret(&self.0)).ok()
    }

    /// Verifies a proof and returns the body that it covers. `None`: the proof is wrong, too old, or for another
    /// request.
    pub(crate) fn verify(&self, proof: &str, method: &Method, target: &str, now: Timestamp) -> Option<ProvenBody> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.required_spec_claims = HashSet::new();
        (validation.validate_exp, validation.validate_aud) = (false, false);
        let key = DecodingKey::from_secret(&self.0);
        let proven = jsonwebtoken::decode::<Proven>(proof, &key, &validation).ok()?.claims;
        let timely = proven.iat <= now && now < proven.iat.plus(LIFE);
        (timely && proven.htm == method.as_str() && proven.htu == target).then_some(ProvenBody(proven.body))
    }
}

/// The body that a proof covers. The proof is verified before the body has arrived.
pub(crate) struct ProvenBody(String);

impl ProvenBody {
    /// Whether this is the covered body.
    pub(crate) fn is(&self, body: &[u8]) -> bool {
        self.0 == hash(body)
    }
}

fn hash(body: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(body))
}

impl fmt::Debug for OperatorSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("OperatorSecret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000);

    #[test]
    fn a_proof_is_for_one_request_of_this_minute() {
        let [one, other] = [(); 2].map(|()| OperatorSecret::parse(&OperatorSecret::make().unwrap()).unwrap());
        let (gc, target) = (Method::POST, "/_stopover/gc?a=b");
        let proof = one.prove(&gc, target, b"{}", NOW).unwrap();
        let body = one.verify(&proof, &gc, target, NOW).unwrap();
        assert!(body.is(b"{}") && !body.is(b"") && !body.is(b"{ }"));
        let last = NOW.plus(Duration::from_secs(59));
        assert!(one.verify(&proof, &gc, target, last).is_some());
        for (secret, proof, method, target, at) in [
            (&other, proof.as_str(), &gc, target, NOW),
            (&one, &proof, &Method::GET, target, NOW),
            (&one, &proof, &gc, "/_stopover/gc", NOW),
            (&one, &proof, &gc, "/_stopover/purge?a=b", NOW),
            (&one, &proof, &gc, target, last.plus(Duration::from_secs(1))),
            (&one, &proof, &gc, target, NOW.minus(Duration::from_secs(1))),
            (&one, "", &gc, target, NOW),
            (&one, proof.get(1..).unwrap(), &gc, target, NOW),
        ] {
            assert!(secret.verify(proof, method, target, at).is_none(), "{proof} {method} {target} {at:?}");
        }
        let [_, claims, signature] = proof.split('.').collect::<Vec<_>>()[..] else { panic!("{proof}") };
        for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS512"}"#, r#"{"alg":"RS256"}"#] {
            let header = URL_SAFE_NO_PAD.encode(header);
            for forged in [format!("{header}.{claims}.{signature}"), format!("{header}.{claims}.")] {
                assert!(one.verify(&forged, &gc, target, NOW).is_none(), "{forged}");
            }
        }
    }

    #[test]
    fn a_secret_is_long_and_not_shown() {
        let text = OperatorSecret::make().unwrap();
        assert_eq!(format!("{:?}", OperatorSecret::parse(&text).unwrap()), "OperatorSecret");
        for short in ["", "\n", text.get(..SHORTEST - 1).unwrap()] {
            assert!(OperatorSecret::parse(short).is_err());
        }
    }
}
