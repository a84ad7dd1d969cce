//! What an `OpenID` issuer answers, or whoever has taken its place.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Validation};
use serde_json::{Value, json};
use stopover::access::jwks::{jwks_uri, key_set};
use url::Url;

use crate::generate::changed;

const ISSUER: &str = "https://ci.test/id";
const DISCOVERY: &[&str] = &[
    "{\"issuer\":\"https://ci.test/id\",\"jwks_uri\":\"https://ci.test/keys\",\"response_types_supported\":[\"id_token\"]}",
    "{\"jwks_uri\":\"https://ci.test:443/id/keys?v=1\",\"issuer\":\"https://ci.test/id\"}",
    "{\"issuer\":\"https://ci.test/id\",\"jwks_uri\":\"https://keys.test/keys\"}",
];
const WORDS: &[&str] = &[
    "\"",
    ":",
    ",",
    "{",
    "}",
    "[",
    "]",
    "[[[[[[[[[[",
    "null",
    "1e999",
    "-1",
    "\\u0000",
    "\u{1f600}",
    "=",
    "/",
    "AQAB",
    "AQ",
    "____",
    "{\"kty\":\"RSA\",\"kid\":\"1\",\"n\":\"\",\"e\":\"\"},",
    "\"kty\":\"oct\",",
    "\"kid\":\"2\",",
    "\"alg\":\"none\",",
    "\"use\":\"enc\",",
    "\"crv\":\"P-384\",",
    "https://evil.test",
    "http://",
    "@evil.test",
    "#",
    "?",
    "..",
    "file:///",
    "\"issuer\":\"https://evil.test\",",
    "\"jwks_uri\":\"https://ci.test/keys\",",
];

#[test]
fn no_configuration_of_an_issuer_panics_or_leads_elsewhere() {
    let at = Url::parse("https://ci.test/id/.well-known/openid-configuration").expect("a URL");
    super::run("configurations of issuers", move |rng| {
        let document = changed(rng, DISCOVERY, WORDS);
        let Ok(keys) = jwks_uri(&document, ISSUER, &at) else { return false };
        assert_eq!(keys.origin(), at.origin(), "{keys}");
        assert!(jwks_uri(&document, "https://ci.test", &at).is_err(), "it is another issuer's");
        true
    });
}

#[test]
fn no_key_set_panics_hangs_or_has_keys_for_other_algorithms() {
    stopover::values::crypto::enable_tokens();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    // The base point of P-256 (SP 800-186, section 3.2.1.3).
    let [x, y] = ["axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY", "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"];
    let rsa = |id: &str, bytes: usize| json!({ "kty": "RSA", "kid": id, "n": encode(&vec![0xff; bytes]), "e": "AQAB" });
    let ec = json!({ "kty": "EC", "kid": "3", "alg": "ES256", "use": "sig", "crv": "P-256", "x": x, "y": y });
    let sets = [
        json!({ "keys": [rsa("1", 256), ec] }).to_string(),
        json!({ "keys": [rsa("2", 512), { "kty": "oct", "kid": "4", "k": "AAAA" }, null, []] }).to_string(),
        json!({ "keys": [rsa("5", 2048), rsa("1", 1024), ec] }).to_string(),
    ];
    let token = |algorithm: &str| {
        let [header, claims] = [json!({ "alg": algorithm, "kid": "1" }), json!({ "sub": "root", "exp": 1 })];
        format!(
            "{}.{}.{}",
            encode(header.to_string().as_bytes()),
            encode(claims.to_string().as_bytes()),
            encode(&[7; 64])
        )
    };
    let tokens = ["RS256", "ES256", "HS256"].map(token);
    super::run("key sets", move |rng| {
        let texts: Vec<&str> = sets.iter().map(String::as_str).collect();
        let Ok(keys) = key_set(&changed(rng, &texts, WORDS)) else { return false };
        for (id, key) in &keys {
            assert!(matches!(key.algorithm, Algorithm::RS256 | Algorithm::ES256), "{id}");
            // Verifying is what a key could keep a processor busy with.
            if rng.u8(..16) == 0 {
                for token in &tokens {
                    let verified = jsonwebtoken::decode::<Value>(token, &key.key, &Validation::new(key.algorithm));
                    assert!(verified.is_err(), "{id} verifies what nobody has signed");
                }
            }
        }
        !keys.is_empty()
    });
}
