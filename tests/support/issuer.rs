//! An `OpenID` Connect issuer: discovery, keys, and tokens signed with them.

#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::anyhow;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};

use crate::loopback::Loopback;
use crate::secrets;

/// The issuer. Dropping it ends it.
pub struct Issuer {
    url: String,
    state: Arc<Mutex<Keys>>,
    _loopback: Loopback,
}

struct Keys {
    url: String,
    jwks_uri: String,
    generation: u32,
    /// The RSA keys of generations, by turns (PKCS #8, DER).
    made: [&'static [u8]; 2],
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    down: bool,
    asked: usize,
}

impl Issuer {
    /// Starts it with an RSA key and an EC key.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with([include_bytes!("issuer-0.pk8"), include_bytes!("issuer-1.pk8")])
    }

    /// Starts one that has none of the keys that another one has.
    pub fn stranger() -> anyhow::Result<Self> {
        Self::start_with([include_bytes!("issuer-2.pk8"); 2])
    }

    fn start_with(made: [&'static [u8]; 2]) -> anyhow::Result<Self> {
        let loopback = Loopback::new("issuer")?;
        let (listener, address) = loopback.bind()?;
        let url = format!("http://{address}");
        let (jwks_uri, generation) = (format!("{url}/keys"), 1);
        let (rsa, ec) = keys_of(made, generation)?;
        let state = Keys { url: url.clone(), jwks_uri, generation, made, rsa, ec, down: false, asked: 0 };
        let state = Arc::new(Mutex::new(state));
        let routes = Router::new().route("/.well-known/openid-configuration", get(discovery)).route("/keys", get(keys));
        loopback.serve(listener, routes.with_state(Arc::clone(&state)));
        Ok(Self { url, state, _loopback: loopback })
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        lock(&self.state)
    }

    /// Where it is, and what it calls itself.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on has new keys, with other ids, and knows nothing of those before.
    pub fn rotate(&self) -> anyhow::Result<()> {
        let mut keys = self.keys();
        (keys.rsa, keys.ec) = keys_of(keys.made, keys.generation + 1)?;
        keys.generation += 1;
        Ok(())
    }

    /// From now on answers nothing but 500, or is well again.
    pub fn down(&self, down: bool) {
        self.keys().down = down;
    }

    /// From now on says that its keys are there.
    pub fn keep_keys_at(&self, url: &str) {
        url.clone_into(&mut self.keys().jwks_uri);
    }

    /// How often its keys were asked for.
    pub fn asked(&self) -> usize {
        self.keys().asked
    }

    /// The id of the key for an algorithm.
    pub fn key_id(&self, algorithm: &str) -> String {
        self.keys().key_id(algorithm)
    }

    /// The public RSA key as everybody can have it (PKCS #1, DER).
    pub fn public_rsa_key(&self) -> Vec<u8> {
        self.keys().rsa.public_key().as_ref().to_vec()
    }

    /// A token with these claims, signed by `RS256` or `ES256`.
    pub fn token(&self, algorithm: &str, claims: &Value) -> String {
        self.sign(algorithm, &json!({ "alg": algorithm, "typ": "JWT", "kid": self.key_id(algorithm) }), claims)
    }

    /// The same, with a header that may say something else.
    pub fn sign(&self, algorithm: &str, header: &Value, claims: &Value) -> String {
        let content = content(header, claims);
        let (keys, random) = (self.keys(), SystemRandom::new());
        let signature = if algorithm == "ES256" {
            keys.ec.sign(&random, content.as_bytes()).expect("it signs").as_ref().to_vec()
        } else {
            let mut signature = vec![0; keys.rsa.public().modulus_len()];
            keys.rsa.sign(&RSA_PKCS1_SHA256, &random, content.as_bytes(), &mut signature).expect("it signs");
            signature
        };
        let token = format!("{content}.{}", URL_SAFE_NO_PAD.encode(signature));
        secrets::know("an ID token", &token);
        token
    }
}

/// The part of a token that is signed.
pub fn content(header: &Value, claims: &Value) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// Keys that differ from those of the generation before. ring makes no RSA keys: these sign nothing but tokens of tests.
fn keys_of(made: [&[u8]; 2], generation: u32) -> anyhow::Result<(RsaKeyPair, EcdsaKeyPair)> {
    let rsa = RsaKeyPair::from_pkcs8(made[usize::try_from(generation % 2)?]).map_err(|error| anyhow!("{error}"))?;
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let ec = EcdsaKeyPair::generate_pkcs8(algorithm, &random)
        .map_err(drop)
        .and_then(|made| EcdsaKeyPair::from_pkcs8(algorithm, made.as_ref(), &random).map_err(drop))
        .map_err(|()| anyhow!("no key can be made"))?;
    Ok((rsa, ec))
}

fn lock(state: &Mutex<Keys>) -> MutexGuard<'_, Keys> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keys {
    fn key_id(&self, algorithm: &str) -> String {
        format!("{algorithm}-{}", self.generation)
    }

    fn set(&self) -> Value {
        // SEQUENCE of two INTEGERs; of 2048 bits each length and the leading zero are known.
        let rsa = self.rsa.public_key().as_ref();
        let (modulus, exponent) = (&rsa[9..265], &rsa[267..]);
        // An uncompressed point: 4, then both coordinates.
        let point = self.ec.public_key().as_ref();
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "another kind" },
            { "kty": "RSA", "kid": self.key_id("RS256"), "use": "sig", "alg": "RS256", "n": encode(modulus), "e": encode(exponent) },
            { "kty": "RSA", "kid": "encryption", "use": "enc", "n": encode(modulus), "e": encode(exponent) },
            { "kty": "EC", "kid": self.key_id("ES256"), "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..]) },
        ] })
    }
}

async fn discovery(State(state): State<Arc<Mutex<Keys>>>) -> Result<Json<Value>, StatusCode> {
    let keys = lock(&state);
    let document = json!({ "issuer": keys.url, "jwks_uri": keys.jwks_uri });
    if keys.down { Err(StatusCode::INTERNAL_SERVER_ERROR) } else { Ok(Json(document)) }
}

async fn keys(State(state): State<Arc<Mutex<Keys>>>) -> Result<Json<Value>, StatusCode> {
    let mut keys = lock(&state);
    keys.asked += 1;
    if keys.down { Err(StatusCode::INTERNAL_SERVER_ERROR) } else { Ok(Json(keys.set())) }
}
