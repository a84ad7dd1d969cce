//! Logins with an ID token of an `OpenID` Connect issuer: GitHub Actions, GitLab CI, Kubernetes service accounts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::errors::ErrorKind;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::jwks::Keys;
use super::token::validation;
use super::web::Web;
use crate::config::{ISSUER, OidcConfig};
use crate::errors::AccessError;
use crate::identity::policy::Policy;
use crate::identity::{OidcIdentity, Principal};
use crate::values::crypto;
use crate::values::time::{Clock, Timestamp};

/// How far the clock of an issuer may differ from ours.
const LEEWAY: Duration = Duration::from_mins(1);
/// The longest token, in bytes; GitHub's have about two thousand.
const LONGEST_TOKEN: usize = 8192;
/// The most bytes that subject and claims may have as JSON: they are copied into our own token.
const LONGEST_IDENTITY: usize = 2048;

/// The configured `OpenID` issuers.
pub(super) struct Issuers {
    configured: Vec<Issuer>,
    clock: Clock,
}

struct Issuer {
    name: String,
    keys: Keys,
    /// The claims that rules or this issuer's configuration use.
    asked: BTreeSet<String>,
}

/// What a token says about itself before it is verified: the issuer and the key to verify it with.
#[derive(PartialEq, Eq, Debug)]
struct Claimed {
    issuer: String,
    key: String,
    algorithm: Algorithm,
}

impl Claimed {
    fn read(token: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Payload {
            iss: String,
        }
        if token.len() > LONGEST_TOKEN {
            return None;
        }
        let header = jsonwebtoken::decode_header(token).ok()?;
        let allowed = matches!(header.alg, Algorithm::RS256 | Algorithm::ES256);
        // Critical extensions (RFC 7515, section 4.1.11): we support none.
        if !allowed || header.crit.is_some() {
            return None;
        }
        let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
        let Payload { iss } = serde_json::from_slice(&payload).ok()?;
        Some(Self { issuer: iss, key: header.kid?, algorithm: header.alg })
    }
}

impl Issuers {
    pub(super) fn new(configs: &BTreeMap<String, OidcConfig>, policy: &Policy, web: &Web, clock: &Clock) -> Self {
        crypto::enable_tokens();
        let by_rules: BTreeSet<&String> = policy.0.iter().flat_map(|rule| rule.claims.keys()).collect();
        let issuer = |(name, config): (&String, &OidcConfig)| Issuer {
            name: name.clone(),
            keys: Keys::new(config.clone(), web.clone(), clock.clone()),
            asked: by_rules.iter().copied().chain(config.claims.keys()).cloned().chain([ISSUER.to_owned()]).collect(),
        };
        Self { configured: configs.iter().map(issuer).collect(), clock: clock.clone() }
    }

    /// The identity in a token, if it is let in. One issuer may be configured several times, for several audiences.
    pub(super) async fn identify(&self, token: &str) -> Result<OidcIdentity, AccessError> {
        let claimed = Claimed::read(token);
        let claimed = claimed.ok_or(AccessError::WrongCredentials("it is no ID token of RS256 or ES256 with a kid"))?;
        let mut outcome = Err(AccessError::WrongCredentials("no [access.oidc] has its issuer"));
        for issuer in self.configured.iter().filter(|issuer| issuer.keys.config.issuer == claimed.issuer) {
            outcome = issuer.identify(token, &claimed, self.clock.now()).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}

impl Issuer {
    async fn identify(&self, token: &str, claimed: &Claimed, now: Timestamp) -> Result<OidcIdentity, AccessError> {
        let config = &self.keys.config;
        let key = self.keys.find(&claimed.key).await?;
        let key = key.ok_or(AccessError::WrongCredentials("its issuer has no such key"))?;
        // The header selects a key; only the key decides the algorithm.
        if key.algorithm != claimed.algorithm {
            return Err(AccessError::WrongCredentials("its key is for another algorithm"));
        }
        let validation = validation(key.algorithm, &config.audience, &config.issuer);
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation);
        let claims = claims.map_err(|error| AccessError::WrongCredentials(because(error.kind())))?.claims;
        if !is_within_its_time(&claims, now) {
            return Err(AccessError::WrongCredentials("it has expired, or is not valid yet"));
        }
        let Some(Value::String(subject)) = claims.get("sub") else {
            return Err(AccessError::WrongCredentials("its subject is no text"));
        };
        let payer = config.payer(|claim| claims.get(claim).and_then(text));
        let asked = self.asked.iter().filter_map(|name| text(claims.get(name)?).map(|text| (name.clone(), text)));
        let (issuer, subject, claims) = (self.name.clone(), subject.clone(), asked.collect());
        let identity = OidcIdentity { issuer, subject, payer, claims };
        if !config.admits(&identity) {
            return Err(AccessError::NotLetIn(Principal::Oidc(identity).to_string()));
        }
        let length = serde_json::to_vec(&identity).map_or(usize::MAX, |json| json.len());
        if length > LONGEST_IDENTITY {
            return Err(AccessError::WrongCredentials("its subject and claims are too long"));
        }
        Ok(identity)
    }
}

/// Which check failed, for the log.
fn because(error: &ErrorKind) -> &'static str {
    match error {
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::InvalidAudience => "it is for another audience",
        ErrorKind::InvalidIssuer => "it is of another issuer",
        ErrorKind::MissingRequiredClaim(_) => "exp, iss, aud or sub is missing",
        _ => "it cannot be read",
    }
}

/// Whether `now` is after `nbf` and `iat`, where present, and before `exp` (RFC 7519, section 4.1).
fn is_within_its_time(claims: &Map<String, Value>, now: Timestamp) -> bool {
    // A time that is present but malformed invalidates the token.
    let begun = |name: &str| match claims.get(name) {
        None => true,
        Some(value) => seconds(value).is_some_and(|at| at <= now.plus(LEEWAY)),
    };
    let end = claims.get("exp").and_then(seconds);
    begun("nbf") && begun("iat") && end.is_some_and(|end| now < end.plus(LEEWAY))
}

/// A `NumericDate` without its fraction.
fn seconds(value: &Value) -> Option<Timestamp> {
    let whole = |seconds: f64| (0.0..1e15).contains(&seconds).then(|| Duration::from_secs_f64(seconds).as_secs());
    value.as_u64().or_else(|| value.as_f64().and_then(whole)).map(Timestamp)
}

/// A claim as text for patterns. Lists and objects have no such text.
fn text(claim: &Value) -> Option<String> {
    match claim {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000);

    fn token(header: &Value, payload: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", encode(header), encode(payload))
    }

    #[test]
    fn a_token_says_which_key_of_which_issuer_it_wants_to_be_verified_with() {
        let payload = json!({ "iss": "https://a.test", "sub": "x" });
        let header = json!({ "alg": "ES256", "kid": "1", "x5u": "https://evil.test", "typ": "at+jwt" });
        let claimed = Claimed { issuer: "https://a.test".into(), key: "1".into(), algorithm: Algorithm::ES256 };
        assert_eq!(Claimed::read(&token(&header, &payload)), Some(claimed));
        for header in [
            json!({ "alg": "none", "kid": "1" }),
            json!({ "alg": "HS256", "kid": "1" }),
            json!({ "alg": "PS256", "kid": "1" }),
            json!({ "alg": "ES256" }),
            json!({ "alg": "ES256", "kid": 1 }),
            json!({ "alg": "ES256", "kid": "1", "crit": ["exp"] }),
        ] {
            assert_eq!(Claimed::read(&token(&header, &payload)), None, "{header}");
        }
        for payload in [json!({}), json!({ "iss": ["https://a.test"] }), json!([])] {
            assert_eq!(Claimed::read(&token(&header, &payload)), None, "{payload}");
        }
    }

    #[test]
    fn times_are_whole_or_fractions_and_nothing_else() {
        let within = |claims: Value| is_within_its_time(claims.as_object().unwrap(), NOW);
        assert!(within(json!({ "exp": 1_800_000_000 })));
        assert!(within(json!({ "exp": 1_800_000_000.5, "nbf": 1_799_999_999.9 })));
        for claims in [
            json!({}),
            json!({ "exp": "1900000000" }),
            json!({ "exp": -1 }),
            json!({ "exp": 1e300 }),
            json!({ "exp": 1_900_000_000, "nbf": null }),
            json!({ "exp": 1_900_000_000, "iat": 1_900_000_000 }),
        ] {
            assert!(!within(claims.clone()), "{claims}");
        }
        // An end that no clock reaches does not overflow.
        assert!(within(json!({ "exp": u64::MAX })));
    }

    #[test]
    fn only_what_has_a_text_is_a_claim_for_patterns() {
        let texts = [json!("a"), json!(12), json!(true), json!(1.5)].map(|claim| text(&claim).unwrap());
        assert_eq!(texts, ["a", "12", "true", "1.5"]);
        assert!([json!(null), json!(["a"]), json!({ "a": 1 })].iter().all(|claim| text(claim).is_none()));
    }
}
