//! STS: `GetCallerIdentity` by presigned URL. The signature is computed again with the AWS signing crates, from what
//! arrives and the secret of whoever is named, and everything has to be as AWS wants it.

#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use serde_json::json;
use stopover::access::iam::SignedFields;
use stopover::oci::{Algorithm, Digest};
use stopover::values::time::{Clock, Timestamp};
use tokio::sync::watch;

use crate::loopback::Loopback;
use crate::secrets;

/// How long a signature is good for, in seconds.
const LIFE: u64 = 900;

/// Somebody with credentials of AWS.
#[derive(Clone, Debug)]
pub struct Signer {
    /// The id of the access key.
    pub key_id: String,
    /// Its secret.
    pub secret: String,
    /// The session token, of temporary credentials.
    pub token: Option<String>,
    account: String,
    arn: String,
}

impl Signer {
    /// A user, whose credentials last.
    pub fn user(account: &str, name: &str) -> Self {
        Self::user_in("aws", account, name)
    }

    /// A user in a partition: `aws-cn`, say.
    pub fn user_in(partition: &str, account: &str, name: &str) -> Self {
        let arn = format!("arn:{partition}:iam::{account}:user/{name}");
        Self::new("AKIA", account, arn, None)
    }

    /// A session of a role.
    pub fn role(account: &str, role: &str, session: &str) -> Self {
        let arn = format!("arn:aws:sts::{account}:assumed-role/{role}/{session}");
        Self::new("ASIA", account, arn, Some(format!("FwoGZXIvYXdzE+/{}", STANDARD.encode(role))))
    }

    fn new(kind: &str, account: &str, arn: String, token: Option<String>) -> Self {
        let hash = Digest::of(Algorithm::Sha256, arn.as_bytes());
        let key_id = format!("{kind}{}", hash.hex()[..16].to_ascii_uppercase());
        let secret = format!("secret of {arn}");
        secrets::know("the secret key of an identity of AWS", &secret);
        secrets::know("the session token of an identity of AWS", token.as_deref().unwrap_or_default());
        Self { secret, key_id, token, account: account.to_owned(), arn }
    }

    /// Signs `GetCallerIdentity` for a cache, as the AWS SDK does: the password for the user `aws`.
    pub fn password(&self, region: &str, server_id: &str, at: Timestamp) -> String {
        self.password_for("GetCallerIdentity", region, &[("x-stopover-server-id", server_id)], at)
    }

    /// Signs something else, and says that it is that.
    pub fn password_for(&self, action: &str, region: &str, headers: &[(&str, &str)], at: Timestamp) -> String {
        let params = [("Action", action), ("Version", "2011-06-15")];
        let host = host(region);
        let signed = self.presign(region, &host, &params, headers, at);
        let [credential, date, signature] =
            ["X-Amz-Credential", "X-Amz-Date", "X-Amz-Signature"].map(|name| signed[name].as_str());
        let fields = SignedFields::new(region, credential, date, self.token.as_deref(), signature).expect("it is");
        secrets::know("a signature for STS", signature);
        secrets::know("a login as an identity of AWS", &fields.password());
        fields.password()
    }

    fn presign(
        &self,
        region: &str,
        host: &str,
        params: &[(&str, &str)],
        headers: &[(&str, &str)],
        at: Timestamp,
    ) -> BTreeMap<String, String> {
        let credentials = Credentials::new(&self.key_id, &self.secret, self.token.clone(), None, "tests").into();
        let mut settings = SigningSettings::default();
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(Duration::from_secs(LIFE));
        let signing = SigningParams::builder()
            .identity(&credentials)
            .region(region)
            .name("sts")
            .time(UNIX_EPOCH + Duration::from_secs(at.0))
            .settings(settings)
            .build()
            .expect("nothing is missing")
            .into();
        let query = url_encoded(params);
        let url = format!("https://{host}/?{query}");
        let request = SignableRequest::new("GET", url, headers.iter().copied(), SignableBody::empty());
        let (instructions, signature) =
            sign(request.expect("a real request"), &signing).expect("it can be signed").into_parts();
        let mut signed: BTreeMap<String, String> =
            instructions.params().iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect();
        signed.insert("X-Amz-Signature".into(), signature);
        signed
    }
}

/// Where the STS of a region is (AWS, "Service endpoints").
fn host(region: &str) -> String {
    format!("sts.{region}.amazonaws.com{}", if region.starts_with("cn-") { ".cn" } else { "" })
}

fn url_encoded(params: &[(&str, &str)]) -> String {
    let encode = |text| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let pairs: Vec<String> =
        params.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value).replace("%2D", "-"))).collect();
    pairs.join("&")
}

/// The service. Dropping it ends it.
pub struct Sts {
    url: String,
    state: Arc<Mutex<Books>>,
    _loopback: Loopback,
}

#[derive(Default)]
struct Books {
    signers: HashMap<String, Signer>,
    /// Tokens, the roles that they are good for, and whom they make of their bearers.
    trusted: Vec<(String, String, Signer)>,
    clock: Clock,
    trouble: Option<(u16, &'static str)>,
    asked: usize,
    /// Whether whoever has no known key waits for an answer, and how many do.
    stalling: watch::Sender<bool>,
    stalled: usize,
}

impl Sts {
    /// Starts it, with the system's clock and nobody that it knows.
    pub fn start() -> anyhow::Result<Self> {
        let loopback = Loopback::new("sts")?;
        let (listener, address) = loopback.bind()?;
        let state = Arc::<Mutex<Books>>::default();
        loopback.serve(
            listener,
            Router::new().route("/", get(answer).post(assume)).fallback(answer).with_state(Arc::clone(&state)),
        );
        Ok(Self { url: format!("http://{address}"), state, _loopback: loopback })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on its time is that of this clock.
    pub fn follow(&self, clock: &Clock) {
        self.books().clock = clock.clone();
    }

    /// From now on knows this signer.
    pub fn know(&self, signer: &Signer) {
        self.books().signers.insert(signer.key_id.clone(), signer.clone());
    }

    /// From now on gives the credentials of this signer, who is a session of the role, for this token.
    pub fn trust(&self, token: &str, role: &str, signer: &Signer) {
        self.know(signer);
        self.books().trusted.push((token.to_owned(), role.to_owned(), signer.clone()));
    }

    /// From now on answers everything with this status and code; `None`: is well again.
    pub fn trouble(&self, trouble: Option<(u16, &'static str)>) {
        self.books().trouble = trouble;
    }

    /// From now on lets those wait whose keys it does not know; `false`: answers them all.
    pub fn stall_strangers(&self, stall: bool) {
        self.books().stalling.send_replace(stall);
    }

    /// How many it lets wait.
    pub fn stalled(&self) -> usize {
        self.books().stalled
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.books().asked
    }
}

/// `AssumeRoleWithWebIdentity`, which is asked for without a signature.
async fn assume(State(state): State<Arc<Mutex<Books>>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let form: Vec<(String, String)> = url::form_urlencoded::parse(&body).into_owned().collect();
    let field = |name: &str| match form.iter().filter(|(field, _)| field == name).collect::<Vec<_>>().as_slice() {
        [(_, value)] => value.clone(),
        _ => String::new(),
    };
    let form_sent = text(&headers, "content-type") == "application/x-www-form-urlencoded";
    if !form_sent || field("Action") != "AssumeRoleWithWebIdentity" || field("Version") != "2011-06-15" {
        return refusal(400, "InvalidAction", "only AssumeRoleWithWebIdentity is played here");
    }
    let session = field("RoleSessionName");
    let of_a_name = |letter: char| letter.is_ascii_alphanumeric() || "_+=,.@-".contains(letter);
    if !(2..=64).contains(&session.len()) || !session.chars().all(of_a_name) || headers.contains_key("authorization") {
        return refusal(400, "ValidationError", "RoleSessionName, or a signature that nobody asks for");
    }
    let books = state.lock().unwrap_or_else(PoisonError::into_inner);
    let (token, role) = (field("WebIdentityToken"), field("RoleArn"));
    let Some((_, _, signer)) = books.trusted.iter().find(|(known, of, _)| *known == token && *of == role) else {
        return refusal(400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account");
    };
    let credentials = json!({
        "AccessKeyId": signer.key_id, "SecretAccessKey": signer.secret, "SessionToken": signer.token,
        "Expiration": 4_070_908_800.0_f64,
    });
    let result = json!({ "Credentials": credentials, "SubjectFromWebIdentityToken": "system:serviceaccount:a:b" });
    let wanted = headers.get(header::ACCEPT).is_some_and(|accept| accept == "application/json");
    let body = json!({ "AssumeRoleWithWebIdentityResponse": { "AssumeRoleWithWebIdentityResult": result } });
    respond(200, if wanted { body.to_string() } else { "<Xml/>".into() })
}

async fn answer(State(state): State<Arc<Mutex<Books>>>, request: Request<Body>) -> Response<Body> {
    let stalling = {
        let mut books = state.lock().unwrap_or_else(PoisonError::into_inner);
        books.asked += 1;
        let stranger = matches!(books.caller(&request), Err((403, "InvalidClientTokenId", _)));
        let stalling = Some(books.stalling.subscribe()).filter(|stalling| stranger && *stalling.borrow());
        books.stalled += usize::from(stalling.is_some());
        stalling
    };
    if let Some(mut stalling) = stalling {
        let _ = stalling.wait_for(|stalling| !stalling).await;
        state.lock().unwrap_or_else(PoisonError::into_inner).stalled -= 1;
    }
    let books = state.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((status, code)) = books.trouble {
        return refusal(status, code, "injected by the test");
    }
    match books.caller(&request) {
        Ok(signer) => {
            let result = json!({ "Account": signer.account, "Arn": signer.arn, "UserId": signer.key_id });
            let answer = json!({
                "GetCallerIdentityResult": result, "ResponseMetadata": { "RequestId": "00000000-0000-0000-0000-000000000000" },
            });
            // What a client gets that does not ask for JSON, nobody has to parse.
            let wanted = request.headers().get(header::ACCEPT).is_some_and(|accept| accept == "application/json");
            let body =
                if wanted { json!({ "GetCallerIdentityResponse": answer }).to_string() } else { "<Xml/>".into() };
            respond(200, body)
        }
        Err((status, code, message)) => refusal(status, code, &message),
    }
}

type Refused = (u16, &'static str, String);

impl Books {
    /// Who has signed a request.
    fn caller(&self, request: &Request<Body>) -> Result<&Signer, Refused> {
        let incomplete = |message: String| (400, "IncompleteSignature", message);
        let forged = |message: String| (403, "SignatureDoesNotMatch", message);
        if request.method() != Method::GET || request.uri().path() != "/" {
            return Err((400, "InvalidAction", "only GET of / is played here".into()));
        }
        let mut params = BTreeMap::new();
        for pair in request.uri().query().unwrap_or_default().split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let [name, value] =
                [name, value].map(|text| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned());
            if params.insert(name.to_ascii_lowercase(), value).is_some() {
                return Err(incomplete(format!("{name} is there twice")));
            }
        }
        let param = |name: &str| params.get(name).map_or("", String::as_str);
        if param("action") != "GetCallerIdentity" || param("version") != "2011-06-15" {
            return Err((400, "InvalidAction", format!("Could not find operation {}", param("action"))));
        }
        let scope: Vec<&str> = param("x-amz-credential").split('/').collect();
        let [key_id, day, region, "sts", "aws4_request"] = scope.as_slice() else {
            return Err(incomplete("the credential is not <key>/<day>/<region>/sts/aws4_request".into()));
        };
        if param("x-amz-algorithm") != "AWS4-HMAC-SHA256" || param("x-amz-expires") != LIFE.to_string() {
            return Err(incomplete("another algorithm or life than this service takes".into()));
        }
        let host = host(region);
        let names: Vec<&str> = param("x-amz-signedheaders").split(';').collect();
        if text(request.headers(), "host") != host || !names.contains(&"host") {
            return Err(forged(format!("the host has to be {host}, and signed")));
        }
        let signer = self.signers.get(*key_id);
        let signer = signer.ok_or((
            403,
            "InvalidClientTokenId",
            "The security token included in the request is invalid.".into(),
        ))?;
        let token = params.get("x-amz-security-token");
        if token != signer.token.as_ref() {
            return Err((403, "InvalidClientTokenId", "The security token included in the request is invalid".into()));
        }
        let at = date(param("x-amz-date")).ok_or_else(|| incomplete("no date".into()))?;
        let now = self.clock.now();
        if !param("x-amz-date").starts_with(day) || at > now.plus(Duration::from_mins(5)) {
            return Err(forged("Signature not yet current".into()));
        }
        if now > at.plus(Duration::from_secs(LIFE)) {
            return Err(forged("Signature expired".into()));
        }
        let headers: Vec<(&str, &str)> =
            names.iter().filter(|name| **name != "host").map(|name| (*name, text(request.headers(), name))).collect();
        // Names as they are signed; what the signer adds itself is left out.
        let pairs = url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
        let pairs: Vec<_> = pairs.filter(|(name, _)| !name.starts_with("X-Amz-")).collect();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect();
        let again = signer.presign(region, &host, &pairs, &headers, at);
        let wanted = again.iter().all(|(name, value)| param(&name.to_ascii_lowercase()) == value);
        if wanted && again.len() + pairs.len() == params.len() {
            return Ok(signer);
        }
        Err(forged("The request signature we calculated does not match the signature you provided.".into()))
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// `<yyyymmdd>T<hhmmss>Z`
fn date(text: &str) -> Option<Timestamp> {
    let number = |range| text.get::<std::ops::Range<usize>>(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(9..11)?, number(11..13)?, number(13..15)?);
    // Days since 1970 of the proleptic Gregorian calendar, from March on (Hinnant, "days_from_civil").
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + of_year;
    Some(Timestamp((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second))
}

fn refusal(status: u16, code: &str, message: &str) -> Response<Body> {
    let error = json!({ "Code": code, "Message": message, "Type": "Sender" });
    respond(status, json!({ "Error": error, "RequestId": "00000000-0000-0000-0000-000000000000" }).to_string())
}

fn respond(status: u16, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("a real status");
    response
}
