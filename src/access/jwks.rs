//! The signing keys of an `OpenID` issuer, fetched from it and cached (RFC 7517; `OpenID` Connect Discovery 1.0).

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::StatusCode;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use url::Url;

use super::web::Web;
use crate::config::OidcConfig;
use crate::errors::Unreachable;
use crate::values::time::{Clock, Timestamp};

/// How long keys are used before the issuer is asked again.
const FRESH: Duration = Duration::from_hours(1);
/// How long keys are used while the issuer cannot be reached.
const USABLE: Duration = Duration::from_hours(24);
/// The pause between two requests to an issuer, whatever key ids callers name.
const PAUSE: Duration = Duration::from_mins(1);
/// Bytes of an RSA modulus: at least what RFC 7518, section 3.3, requires; at most what is cheap to verify.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;

/// A key, and the only algorithm that it may verify.
pub struct Key {
    /// RS256 or ES256.
    pub algorithm: Algorithm,
    /// The key itself.
    pub key: DecodingKey,
}

/// The keys of one issuer.
pub(super) struct Keys {
    pub(super) config: OidcConfig,
    web: Web,
    clock: Clock,
    held: RwLock<Arc<KnownKeys>>,
    /// Held while the issuer is asked: further callers wait for that answer.
    asking: Mutex<()>,
}

#[derive(Default)]
struct KnownKeys {
    keys: HashMap<String, Arc<Key>>,
    read_at: Option<Timestamp>,
    asked_at: Option<Timestamp>,
    /// Why the last request to the issuer failed.
    trouble: Option<Unreachable>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: Url,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

/// The fields of a JWK that are read (RFC 7517, section 4; RFC 7518, section 6).
#[derive(Deserialize)]
struct Jwk {
    kid: String,
    #[serde(rename = "use")]
    for_use: Option<String>,
    alg: Option<String>,
    #[serde(flatten)]
    material: Material,
}

#[derive(Deserialize)]
#[serde(tag = "kty")]
enum Material {
    #[serde(rename = "RSA")]
    Rsa { n: String, e: String },
    #[serde(rename = "EC")]
    Ec { crv: String, x: String, y: String },
}

impl KnownKeys {
    fn key(&self, id: &str, life: Duration, now: Timestamp) -> Option<Arc<Key>> {
        self.read_at.filter(|at| now < at.plus(life)).and_then(|_| self.keys.get(id).cloned())
    }
}

impl Keys {
    pub(super) fn new(config: OidcConfig, web: Web, clock: Clock) -> Self {
        Self { config, web, clock, held: RwLock::default(), asking: Mutex::default() }
    }

    /// The issuer's key with this id. `None`: the issuer has none.
    pub(super) async fn find(&self, id: &str) -> Result<Option<Arc<Key>>, Unreachable> {
        if let Some(key) = self.held().key(id, FRESH, self.clock.now()) {
            return Ok(Some(key));
        }
        let _asking = self.asking.lock().await;
        let (before, now) = (self.held(), self.clock.now());
        if before.asked_at.is_none_or(|at| now >= at.plus(PAUSE)) {
            let held = match self.ask().await {
                Ok(keys) => KnownKeys { keys, read_at: Some(now), asked_at: Some(now), trouble: None },
                Err(trouble) => {
                    tracing::warn!(issuer = self.config.issuer, error = %trouble, "the keys of an issuer cannot be had");
                    let (keys, read_at) = (before.keys.clone(), before.read_at);
                    KnownKeys { keys, read_at, asked_at: Some(now), trouble: Some(trouble) }
                }
            };
            *self.held.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(held);
        }
        let held = self.held();
        match (held.key(id, USABLE, now), &held.trouble) {
            (None, Some(trouble)) => Err(trouble.clone()),
            (key, _) => Ok(key),
        }
    }

    fn held(&self) -> Arc<KnownKeys> {
        Arc::clone(&self.held.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ask(&self) -> Result<HashMap<String, Arc<Key>>, Unreachable> {
        let OidcConfig { issuer, discovery, jwks_uri, .. } = &self.config;
        let at = match jwks_uri {
            Some(url) => url.clone(),
            None => self::jwks_uri(&self.read(discovery).await?, issuer, discovery)
                .map_err(|error| Unreachable::new(discovery, error))?,
        };
        let keys = key_set(&self.read(&at).await?).map_err(|error| Unreachable::new(&at, error))?;
        Ok(keys.into_iter().map(|(id, key)| (id, Arc::new(key))).collect())
    }

    async fn read(&self, url: &Url) -> Result<Bytes, Unreachable> {
        let (status, body) = self.web.get(url, |request| request).await?;
        if status == StatusCode::OK { Ok(body) } else { Err(Unreachable::new(url, status)) }
    }
}

/// Why a document of an issuer is not usable.
#[derive(Debug, thiserror::Error)]
pub enum InvalidDocument {
    /// It is not the expected JSON.
    #[error(transparent)]
    Malformed(#[from] serde_json::Error),
    /// It was written for another issuer.
    #[error("describes another issuer")]
    OtherIssuer,
    /// It points to another origin.
    #[error("keeps its keys elsewhere; name the place in jwks_uri if it is meant")]
    Elsewhere,
}

/// The key set URL in a discovery document that was fetched from `at`.
pub fn jwks_uri(document: &[u8], issuer: &str, at: &Url) -> Result<Url, InvalidDocument> {
    let document: Discovery = serde_json::from_slice(document)?;
    if document.issuer != issuer {
        return Err(InvalidDocument::OtherIssuer);
    }
    let here = document.jwks_uri.origin() == at.origin();
    if here { Ok(document.jwks_uri) } else { Err(InvalidDocument::Elsewhere) }
}

/// The usable keys of a set, by id. Other keys are skipped without an error: a set may hold keys that we cannot read
/// (RFC 7517, section 5).
pub fn key_set(document: &[u8]) -> Result<HashMap<String, Key>, InvalidDocument> {
    let set: KeySet = serde_json::from_slice(document)?;
    let keys = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    Ok(keys.filter_map(|jwk| jwk.read().map(|key| (jwk.kid, key))).collect())
}

impl Jwk {
    /// The key, if it is RS256 or ES256.
    fn read(&self) -> Option<Key> {
        if self.for_use.as_ref().is_some_and(|for_use| for_use != "sig") {
            return None;
        }
        let (algorithm, name, key) = match &self.material {
            Material::Rsa { n, e } => {
                let (modulus, exponent) = (URL_SAFE_NO_PAD.decode(n).ok()?, URL_SAFE_NO_PAD.decode(e).ok()?);
                let key = DecodingKey::from_rsa_raw_components(&modulus, &exponent);
                (Algorithm::RS256, "RS256", MODULUS.contains(&modulus.len()).then_some(key)?)
            }
            Material::Ec { crv, x, y } if crv == "P-256" => {
                (Algorithm::ES256, "ES256", DecodingKey::from_ec_components(x, y).ok()?)
            }
            Material::Ec { .. } => return None,
        };
        self.alg.as_ref().is_none_or(|alg| alg == name).then_some(Key { algorithm, key })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn algorithm(jwk: Value) -> Option<Algorithm> {
        serde_json::from_value::<Jwk>(jwk).ok()?.read().map(|key| key.algorithm)
    }

    fn coordinate() -> String {
        URL_SAFE_NO_PAD.encode([1; 32])
    }

    #[test]
    fn a_key_verifies_one_algorithm() {
        let modulus = |bytes: usize| URL_SAFE_NO_PAD.encode(vec![0xff; bytes]);
        let rsa = |bytes: usize| json!({ "kty": "RSA", "kid": "1", "n": modulus(bytes), "e": "AQAB" });
        let ec = json!({ "kty": "EC", "kid": "1", "crv": "P-256", "x": coordinate(), "y": coordinate() });
        let with = |mut jwk: Value, name: &str, value: &str| {
            jwk[name] = json!(value);
            algorithm(jwk)
        };
        assert_eq!(algorithm(rsa(256)), Some(Algorithm::RS256));
        assert_eq!(with(rsa(512), "use", "sig"), Some(Algorithm::RS256));
        assert_eq!(algorithm(ec.clone()), Some(Algorithm::ES256));
        for refused in [
            algorithm(rsa(128)),
            algorithm(rsa(4096)),
            with(rsa(256), "alg", "HS256"),
            with(rsa(256), "alg", "ES256"),
            with(rsa(256), "use", "enc"),
            with(rsa(256), "kty", "oct"),
            with(rsa(256), "n", "!"),
            with(ec.clone(), "crv", "P-384"),
            with(ec.clone(), "alg", "RS256"),
            with(ec, "x", "!"),
            algorithm(json!({ "kty": "oct", "kid": "1", "k": "AAAA" })),
            algorithm(json!({ "kty": "RSA", "n": modulus(256), "e": "AQAB" })),
        ] {
            assert_eq!(refused, None);
        }
    }
}
