//! What strangers send to be let in.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use fastrand::Rng;
use stopover::access::iam::SignedFields;
use stopover::access::token::{Holder, TokenKeys};
use stopover::identity::{IamIdentity, Principal};
use stopover::values::time::{Clock, Timestamp};

use crate::generate::{changed, changed_text, one};

const FIELDS: &[&str] = &[
    "{\"region\":\"eu-west-1\",\"credential\":\"AKIAIOSFODNN7EXAMPLE/20270115/eu-west-1/sts/aws4_request\",\
      \"date\":\"20270115T080000Z\",\"signature\":\"0000000000000000000000000000000000000000000000000000000000000000\"}",
    "{\"region\":\"us-gov-east-1\",\"credential\":\"ASIAIOSFODNN7EXAMPLE/20270115/us-gov-east-1/sts/aws4_request\",\
      \"date\":\"20270115T235959Z\",\"token\":\"FwoGZXIvYXdzE+/abc==\",\
      \"signature\":\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"}",
    "{\"region\":\"cn-north-1\",\"credential\":\"AKIAIOSFODNN7EXAMPLE/20240229/cn-north-1/sts/aws4_request\",\
      \"date\":\"20240229T000000Z\",\"signature\":\"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff\"}",
];
const WORDS: &[&str] = &[
    "\"",
    ":",
    ",",
    "{",
    "}",
    "[",
    "]",
    "null",
    "1e999",
    "\"region\":",
    "\"Action\":\"AssumeRole\",",
    "&Action=AssumeRole",
    "eu-west-1.evil.example/?",
    "%26",
    "#",
    "@evil.example",
    "\\u0000",
    "\\\"",
    "20279999T999999Z",
    "\u{1f600}",
    "-",
    "/",
    "=",
    "\"token\":\"\",",
    "sts",
    "aws4_request",
    "HS256",
    "none",
    "RS256",
    "\"alg\":\"none\"",
    "\"kid\":\"1\"",
    "\"exp\":1e300",
    "robot",
    "anonymous",
    ".",
    "\"aud\":[\"cr.test\"]",
    "-1",
    "18446744073709551616",
];
const IDENTITIES: &[&str] = &[
    "{\"GetCallerIdentityResponse\":{\"GetCallerIdentityResult\":{\"Account\":\"123456789012\",\
      \"Arn\":\"arn:aws:sts::123456789012:assumed-role/node/i-1\",\"UserId\":\"A:i-1\"},\"ResponseMetadata\":{}}}",
    "{\"GetCallerIdentityResponse\":{\"GetCallerIdentityResult\":{\"Account\":\"123456789012\",\
      \"Arn\":\"arn:aws:iam::123456789012:user/a/b\",\"UserId\":\"A\"}}}",
];
const KEYS: &[&str] =
    &["1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=", "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="];

#[test]
fn no_fields_of_a_signature_panic_or_mean_two_things() {
    super::run("fields of signatures", |rng| {
        let fields = changed(rng, FIELDS, WORDS);
        let password = match rng.u8(..8) {
            0 => changed_text(rng, &[&URL_SAFE_NO_PAD.encode(&fields)], WORDS),
            _ => URL_SAFE_NO_PAD.encode(&fields),
        };
        let Ok(fields) = SignedFields::parse(&password) else { return false };
        assert_eq!(SignedFields::parse(&fields.password()).as_ref(), Ok(&fields), "what is read is what is written");
        if let Some(IamIdentity { account, arn, .. }) = fields.identity(&changed(rng, IDENTITIES, WORDS)) {
            assert!(account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit()), "{account}");
            assert!(arn.starts_with("arn:") && arn.contains(&format!("::{account}:")), "{arn}");
        }
        let url = fields.request(None).expect("well-formed fields are a request");
        assert_eq!(url.host_str(), fields.host().as_deref());
        assert_eq!((url.scheme(), url.path(), url.port(), url.fragment()), ("https", "/", None, None));
        let names: Vec<String> = url.query_pairs().map(|(name, _)| name.to_ascii_lowercase()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{url}");
        let action: Vec<_> = url.query_pairs().filter(|(name, _)| name == "Action").collect();
        assert_eq!(action, [("Action".into(), "GetCallerIdentity".into())]);
        let _ = fields.signed_at();
        assert!(fields.canonical_request("cr.test").is_some());
        true
    });
}

/// A token with changes in what it says, or in how that is written.
fn token(rng: &mut Rng, good: &[&str], parts: &[String]) -> String {
    if rng.bool() {
        return changed_text(rng, good, WORDS);
    }
    let texts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let [header, payload] = [0, 1].map(|_| URL_SAFE_NO_PAD.encode(changed(rng, &texts, WORDS)));
    let (signature, good) = (one(rng, good).rsplit('.').next().unwrap_or_default(), one(rng, good));
    match rng.u8(..4) {
        // The right signature of something else.
        0 => format!("{}.{payload}.{signature}", good.split('.').next().unwrap_or_default()),
        1 => format!("{header}.{}.{signature}", good.split('.').nth(1).unwrap_or_default()),
        2 => format!("{header}.{payload}."),
        _ => format!("{header}.{payload}.{signature}"),
    }
}

#[test]
fn no_token_panics_or_is_believed_that_was_not_issued() {
    let clock = Clock::manual(Timestamp(1_800_000_000));
    let keys =
        |fill: u8| TokenKeys::parse(&format!("1:{}", STANDARD.encode([fill; 32])), clock.clone()).expect("a key");
    let robot = Holder::from(Principal::Robot("ci".parse().expect("a name")));
    let life = Duration::from_mins(5);
    let issue = |fill, service| keys(fill).issue(service, &robot, life).expect("it can be signed");
    let issued = [issue(7, "cr.test"), issue(8, "cr.test"), issue(7, "other.test")];
    let mut parts = vec!["{\"alg\":\"none\",\"kid\":\"1\"}".to_owned(), "{\"alg\":\"HS512\",\"kid\":\"1\"}".to_owned()];
    for part in issued[0].split('.').take(2) {
        let json = URL_SAFE_NO_PAD.decode(part).expect("we have made it");
        parts.push(String::from_utf8(json).expect("it is JSON"));
    }
    let (verifying, text_clock) = (keys(7), clock.clone());
    super::run("tokens", move |rng| {
        let good: Vec<&str> = issued.iter().map(String::as_str).collect();
        let token = token(rng, &good, &parts);
        if rng.u8(..8) == 0 {
            let _ = TokenKeys::parse(&changed_text(rng, KEYS, WORDS), text_clock.clone());
        }
        let believed = verifying.verify("cr.test", &token);
        match &believed {
            Some((holder, _)) => assert!(token == issued[0] && *holder == robot, "{token} is believed"),
            None => assert!(token != issued[0], "what we have issued is refused"),
        }
        believed.is_some()
    });
}
