//! The tokens that `/token` issues: a signed identity, valid for minutes. What the holder may pull is decided at each
//! request, so a token never grants a permission.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::identity::Principal;
use crate::records::robot::SecretId;
use crate::values::crypto;
use crate::values::secret::random;
use crate::values::time::{Clock, Timestamp};

/// How far the clock of another instance may differ from ours.
const LEEWAY: Duration = Duration::from_secs(30);

/// The shortest key, in bytes: the output length of HMAC-SHA-256 (RFC 7518, section 3.2).
const SHORTEST_KEY: usize = 32;

/// The longest token, in bytes; ours have a fifth of it.
const LONGEST_TOKEN: usize = 8192;

/// The keys of tokens: the first one signs, all of them verify, so that a key can be replaced while tokens signed with
/// the previous one are still in use.
pub struct TokenKeys {
    signing: (String, EncodingKey),
    /// By id, which those of before may have in common with these.
    verifying: Vec<(String, DecodingKey)>,
    clock: Clock,
}

/// Why keys are not usable, for the operator. Never contains a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// There is no key.
    #[error("there is no key; one is <id>:<32 bytes or more, in base64>, and the id may be left out")]
    None,
    /// A line is malformed: its number.
    #[error("key {0} is not <id>:<32 bytes or more, in base64>, with or without <id>:")]
    Malformed(usize),
    /// Two keys have the same id.
    #[error("two keys are called {0:?}")]
    Twice(String),
}

/// The identity in a token, and what the token was issued for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// The full identity.
    pub principal: Principal,
    /// For a robot: the id of the secret that it logged in with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretId>,
}

impl From<Principal> for Holder {
    fn from(principal: Principal) -> Self {
        Self { principal, secret: None }
    }
}

/// The claims of a token (distribution, "Token Authentication Implementation"; RFC 7519, section 4.1).
#[derive(Clone, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    #[serde(flatten)]
    holder: Holder,
}

impl TokenKeys {
    /// Makes a key in the format that [`Self::parse`] reads. `None`: the system provided no randomness.
    pub fn make() -> Option<String> {
        Some(STANDARD.encode(random()?) + "\n")
    }

    /// Reads keys, separated by newlines or commas: `<id>:<base64>`, or `<base64>` for a key with an empty id.
    pub fn parse(text: &str, clock: Clock) -> Result<Self, InvalidKeys> {
        crypto::enable_tokens();
        let (mut signing, mut verifying) = (None, Vec::<(String, DecodingKey)>::new());
        let lines = text.split(['\n', ',']).map(str::trim).filter(|line| !line.is_empty());
        for (number, line) in (1..).zip(lines) {
            let (id, key) = line.split_once(':').unwrap_or(("", line));
            let key = STANDARD.decode(key).map_err(|_| InvalidKeys::Malformed(number))?;
            if key.len() < SHORTEST_KEY {
                return Err(InvalidKeys::Malformed(number));
            }
            if verifying.iter().any(|(known, _)| known == id) {
                return Err(InvalidKeys::Twice(id.to_owned()));
            }
            verifying.push((id.to_owned(), DecodingKey::from_secret(&key)));
            signing.get_or_insert_with(|| (id.to_owned(), EncodingKey::from_secret(&key)));
        }
        Ok(Self { signing: signing.ok_or(InvalidKeys::None)?, verifying, clock })
    }

    /// The same keys, and those of before, which only verify.
    #[must_use]
    pub(super) fn or_previous(mut self, previous: Option<Self>) -> Self {
        self.verifying.extend(previous.into_iter().flat_map(|previous| previous.verifying));
        self
    }

    /// Issues a token for the named service. `None`: signing failed.
    pub fn issue(&self, service: &str, holder: &Holder, life: Duration) -> Option<String> {
        let now = self.clock.now();
        let claims = Claims {
            iss: service.to_owned(),
            aud: service.to_owned(),
            sub: holder.principal.to_string(),
            iat: now.0,
            nbf: now.0,
            exp: now.plus(life).0,
            holder: holder.clone(),
        };
        let header = Header { kid: Some(self.signing.0.clone()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, &claims, &self.signing.1).ok()
    }

    /// The holder and the time of issue, if we issued the token for this service and it has not expired. Otherwise there is
    /// no reason, because its sender is not authenticated.
    pub fn verify(&self, service: &str, token: &str) -> Option<(Holder, Timestamp)> {
        if token.len() > LONGEST_TOKEN {
            return None;
        }
        let claims: Claims = self.decode(token, &validation(Algorithm::HS256, service, service))?;
        let now = self.clock.now();
        let valid = Timestamp(claims.nbf) <= now.plus(LEEWAY) && now < Timestamp(claims.exp).plus(LEEWAY);
        valid.then_some((claims.holder, Timestamp(claims.iat)))
    }

    /// Whether one of our keys has signed it, whatever it says.
    pub(super) fn have_signed(&self, token: &str) -> bool {
        let mut any = Validation::new(Algorithm::HS256);
        any.required_spec_claims.clear();
        (any.validate_exp, any.validate_aud) = (false, false);
        token.len() <= LONGEST_TOKEN && self.decode::<IgnoredAny>(token, &any).is_some()
    }

    /// The header selects our keys; the algorithm is fixed.
    fn decode<T: DeserializeOwned + Clone>(&self, token: &str, validation: &Validation) -> Option<T> {
        let id = jsonwebtoken::decode_header(token).ok()?.kid?;
        let mut keys = self.verifying.iter().filter(|(known, _)| *known == id);
        keys.find_map(|(_, key)| Some(jsonwebtoken::decode::<T>(token, key, validation).ok()?.claims))
    }
}

/// The claims that a token must have (RFC 7519, section 4.1). Times are excluded: callers check them against our clock.
pub(super) fn validation(algorithm: Algorithm, audience: &str, issuer: &str) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.set_audience(&[audience]);
    validation.set_issuer(&[issuer]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.validate_exp = false;
    validation
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::{Value, json};

    use super::*;

    const LIFE: Duration = Duration::from_mins(10);

    fn clock() -> Clock {
        Clock::manual(Timestamp(1_800_000_000))
    }

    fn key(id: &str, fill: u8) -> String {
        format!("{id}:{}", STANDARD.encode([fill; 32]))
    }

    fn robot() -> Holder {
        Principal::Robot("ci".parse().unwrap()).into()
    }

    #[test]
    fn a_token_says_who_somebody_is_until_its_life_is_over() {
        let clock = clock();
        let keys = TokenKeys::parse(&key("a", 1), clock.clone()).unwrap();
        let token = keys.issue("cr.test", &robot(), LIFE).unwrap();
        let issued = Some((robot(), clock.now()));
        assert_eq!(keys.verify("cr.test", &token), issued);
        clock.advance(LIFE);
        assert_eq!(keys.verify("cr.test", &token), issued, "clocks differ");
        clock.advance(LEEWAY);
        assert_eq!(keys.verify("cr.test", &token), None);
    }

    #[test]
    fn a_key_is_replaced_while_tokens_of_the_one_before_it_are_under_way() {
        let old = TokenKeys::parse(&key("old", 1), clock()).unwrap();
        let both = TokenKeys::parse(&format!("{}\n{}\n", key("new", 2), key("old", 1)), clock()).unwrap();
        let new = TokenKeys::parse(&key("new", 2), clock()).unwrap();
        let made = TokenKeys::make().unwrap();
        let nameless = TokenKeys::parse(&made, clock()).unwrap().issue("cr.test", &robot(), LIFE).unwrap();
        let after_it = TokenKeys::parse(&format!("{},{made}", key("new", 2)), clock()).unwrap();
        let issued = Some((robot(), clock().now()));
        assert_eq!(after_it.verify("cr.test", &nameless), issued);
        assert_eq!(new.verify("cr.test", &nameless), None);
        let of_old = old.issue("cr.test", &robot(), LIFE).unwrap();
        assert_eq!(both.verify("cr.test", &of_old), issued);
        let of_both = both.issue("cr.test", &robot(), LIFE).unwrap();
        assert_eq!(new.verify("cr.test", &of_both), issued);
        assert_eq!(new.verify("cr.test", &of_old), None);
    }

    #[test]
    fn nothing_that_we_have_not_signed_for_this_service_is_believed() {
        let keys = TokenKeys::parse(&key("a", 1), clock()).unwrap();
        let good = keys.issue("cr.test", &robot(), LIFE).unwrap();
        let parts: Vec<&str> = good.split('.').collect();
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        claims["principal"] = json!({ "robot": "root" });
        let altered = encode(&claims);
        let none = encode(&json!({ "alg": "none", "kid": "a" }));
        let other_algorithm = encode(&json!({ "alg": "HS512", "kid": "a" }));
        let no_key = encode(&json!({ "alg": "HS256" }));
        let path = encode(&json!({ "alg": "HS256", "kid": "../a" }));
        let other = TokenKeys::parse(&key("a", 2), clock()).unwrap();
        for forged in [
            format!("{}.{altered}.{}", parts[0], parts[2]),
            format!("{none}.{}.", parts[1]),
            format!("{none}.{}.{}", parts[1], parts[2]),
            format!("{other_algorithm}.{}.{}", parts[1], parts[2]),
            format!("{no_key}.{}.{}", parts[1], parts[2]),
            format!("{path}.{}.{}", parts[1], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            other.issue("cr.test", &robot(), LIFE).unwrap(),
            keys.issue("other.test", &robot(), LIFE).unwrap(),
            String::new(),
            "..".to_owned(),
            "a".repeat(LONGEST_TOKEN + 1),
        ] {
            assert_eq!(keys.verify("cr.test", &forged), None, "{forged}");
        }
    }

    #[test]
    fn keys_that_cannot_be_used_are_named_but_not_told() {
        let malformed = |text: &str| TokenKeys::parse(text, clock()).err().unwrap();
        assert_eq!(malformed(" \n"), InvalidKeys::None);
        assert_eq!(malformed("secret"), InvalidKeys::Malformed(1));
        assert_eq!(malformed("a:"), InvalidKeys::Malformed(1));
        assert_eq!(malformed(&format!("{}\na:c2hvcnQ=", key("b", 1))), InvalidKeys::Malformed(2));
        assert_eq!(malformed(&format!("{},{}", key("a", 1), key("a", 2))), InvalidKeys::Twice("a".into()));
    }
}
