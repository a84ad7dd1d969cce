//! Logins as an AWS identity. The password holds the fields of a signed `GetCallerIdentity`, not a URL: we build the
//! request from them, for our own server id, so a caller cannot make us send any other request (the protocol of
//! aws-iam-authenticator, without the flaw of CVE-2022-2385).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use crate::identity::IamIdentity;
use crate::identity::partition::{Partition, is_account, sts_host};
use crate::values::time::Timestamp;

/// The signed header that names the cache which a request is for. Signatures made for another cache are refused.
pub const SERVER_ID_HEADER: &str = "x-stopover-server-id";

/// How long a signature is valid, in seconds: the longest that STS allows.
pub const SIGNATURE_SECONDS: u64 = 900;

/// SHA-256 of an empty body.
const EMPTY_BODY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The longest password, in bytes: session tokens have up to two kilobytes.
const LONGEST_PASSWORD: usize = 8192;

/// The fields that a caller signs. The rest of the request is fixed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedFields {
    /// The region whose STS is asked.
    region: String,
    /// `<access key id>/<yyyymmdd>/<region>/sts/aws4_request`.
    credential: String,
    /// `X-Amz-Date`: `<yyyymmdd>T<hhmmss>Z`.
    date: String,
    /// `X-Amz-Security-Token`, of temporary credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// `X-Amz-Signature`: 64 hexadecimal digits.
    signature: String,
}

/// A password that does not hold well-formed fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the password is not what `stopover login` and docker-credential-stopover make for the user aws")]
pub struct InvalidFields;

impl SignedFields {
    /// Validates the fields that a signer has produced.
    pub fn new(
        region: &str,
        credential: &str,
        date: &str,
        token: Option<&str>,
        signature: &str,
    ) -> Result<Self, InvalidFields> {
        let fields = Self {
            region: region.to_owned(),
            credential: credential.to_owned(),
            date: date.to_owned(),
            token: token.map(str::to_owned),
            signature: signature.to_owned(),
        };
        if fields.are_well_formed() { Ok(fields) } else { Err(InvalidFields) }
    }

    /// Decodes a password: unpadded base64url of the fields as JSON.
    pub fn parse(password: &str) -> Result<Self, InvalidFields> {
        if password.len() > LONGEST_PASSWORD {
            return Err(InvalidFields);
        }
        let json = URL_SAFE_NO_PAD.decode(password).map_err(|_| InvalidFields)?;
        let fields: Self = serde_json::from_slice(&json).map_err(|_| InvalidFields)?;
        if fields.are_well_formed() { Ok(fields) } else { Err(InvalidFields) }
    }

    /// Encodes the fields as a password.
    pub fn password(&self) -> String {
        // Serialising strings cannot fail.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn are_well_formed(&self) -> bool {
        let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
        let credential: Vec<&str> = self.credential.split('/').collect();
        let [key, day, in_region, "sts", "aws4_request"] = credential.as_slice() else { return false };
        let key_id = (16..=128).contains(&key.len())
            && key.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
        let date = self.date.strip_suffix('Z').and_then(|date| date.split_once('T'));
        let date = date.is_some_and(|(of, time)| of == *day && digits(of, 8) && digits(time, 6));
        let base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
        let token = self.token.as_ref().is_none_or(|token| !token.is_empty() && token.bytes().all(base64));
        let signature =
            self.signature.len() == 64 && self.signature.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        self.partition().is_some() && key_id && in_region == &self.region && date && token && signature
    }

    /// When the request was signed. `None`: the date does not exist.
    pub fn signed_at(&self) -> Option<Timestamp> {
        let (day, time) = self.date.strip_suffix('Z')?.split_once('T')?;
        let (year, month, day) = (day.get(..4)?, day.get(4..6)?, day.get(6..)?);
        let (hour, minute, second) = (time.get(..2)?, time.get(2..4)?, time.get(4..)?);
        let date = humantime::parse_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z")).ok()?;
        Some(Timestamp(date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs()))
    }

    /// The partition of the signed region. `None`: it is not a region.
    pub(super) fn partition(&self) -> Option<Partition> {
        Partition::of(&self.region)
    }

    /// The signed host: that of the region's STS, whatever endpoint is called. `None`: it is not a region.
    pub fn host(&self) -> Option<String> {
        sts_host(&self.region)
    }

    /// The id of the access key, as the caller claims it.
    pub(super) fn key_id(&self) -> &str {
        self.credential.split('/').next().unwrap_or_default()
    }

    /// The signer, read from the JSON answer of STS. A session of a role becomes the role:
    /// `…:sts::1:assumed-role/name/session` becomes `…:iam::1:role/name`. `None`: the answer is malformed, contradicts
    /// itself, or names another partition than the one that was asked.
    pub fn identity(&self, answer: &[u8]) -> Option<IamIdentity> {
        let answer: Value = serde_json::from_slice(answer).ok()?;
        let caller = answer.pointer("/GetCallerIdentityResponse/GetCallerIdentityResult")?;
        let (account, arn) = (caller.get("Account")?.as_str()?, caller.get("Arn")?.as_str()?);
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let ["arn", partition, service, "", of, resource] = parts.as_slice() else { return None };
        let asked = self.partition().is_some_and(|asked| asked.as_str() == *partition);
        if !asked || *of != account || !is_account(account) {
            return None;
        }
        let arn = match (*service, resource.strip_prefix("assumed-role/")) {
            ("sts", Some(session)) => {
                let (role, _) = session.split_once('/')?;
                format!("arn:{partition}:iam::{account}:role/{role}")
            }
            _ => arn.to_owned(),
        };
        Some(IamIdentity { account: account.to_owned(), arn, organization: None })
    }

    /// Rebuilds the signed request: GET of this URL, with [`SERVER_ID_HEADER`] and the host [`Self::host`] as the only
    /// signed headers. `endpoint` replaces the region's STS where the operator configures one.
    pub fn request(&self, endpoint: Option<&Url>) -> Option<Url> {
        let mut url = if let Some(endpoint) = endpoint {
            endpoint.clone()
        } else {
            Url::parse(&format!("https://{}/", self.host()?)).ok()?
        };
        url.query_pairs_mut()
            .clear()
            .append_pair("Action", "GetCallerIdentity")
            .append_pair("Version", "2011-06-15")
            .append_pair("X-Amz-Algorithm", "AWS4-HMAC-SHA256")
            .append_pair("X-Amz-Credential", &self.credential)
            .append_pair("X-Amz-Date", &self.date)
            .append_pair("X-Amz-Expires", &SIGNATURE_SECONDS.to_string())
            .extend_pairs(self.token.iter().map(|token| ("X-Amz-Security-Token", token)))
            .append_pair("X-Amz-SignedHeaders", &format!("host;{SERVER_ID_HEADER}"))
            .append_pair("X-Amz-Signature", &self.signature);
        Some(url)
    }

    /// The canonical request that the signature covers (AWS, "Signature Version 4 for API requests"), for the cache
    /// with this server id.
    pub fn canonical_request(&self, server_id: &str) -> Option<String> {
        let url = self.request(None)?;
        // The parameters are in canonical order already, the signature last.
        let (query, _) = url.query()?.split_once("&X-Amz-Signature=")?;
        let host = self.host()?;
        Some(format!(
            "GET\n/\n{query}\nhost:{host}\n{SERVER_ID_HEADER}:{server_id}\n\nhost;{SERVER_ID_HEADER}\n{EMPTY_BODY}"
        ))
    }
}

/// Omits everything that could be replayed.
impl std::fmt::Debug for SignedFields {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SignedFields({}, {})", self.region, self.date)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIAL: &str = "ASIAQWERTYUIOPASDFGH/20261121/eu-west-1/sts/aws4_request";
    const DATE: &str = "20261121T120000Z";
    const SIGNATURE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn fields() -> SignedFields {
        fields_of("eu-west-1")
    }

    fn fields_of(region: &str) -> SignedFields {
        let credential = CREDENTIAL.replace("eu-west-1", region);
        SignedFields::new(region, &credential, DATE, Some("abc+/="), SIGNATURE).unwrap()
    }

    #[test]
    fn the_request_is_put_together_from_the_fields_and_nothing_else() {
        let read = SignedFields::parse(&fields().password()).unwrap();
        assert_eq!(
            read.request(None).unwrap().as_str(),
            format!(
                "https://sts.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15\
                 &X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}&X-Amz-Date=20261121T120000Z&X-Amz-Expires=900\
                 &X-Amz-Security-Token=abc%2B%2F%3D&X-Amz-SignedHeaders=host%3Bx-stopover-server-id\
                 &X-Amz-Signature={SIGNATURE}",
                CREDENTIAL.replace('/', "%2F")
            )
        );
    }

    #[test]
    fn fields_that_could_mean_anything_else_are_refused() {
        let long = "a".repeat(64);
        for (region, credential, date, token, signature) in [
            ("eu-west-1.evil.example/", CREDENTIAL, DATE, None, SIGNATURE),
            ("", CREDENTIAL, DATE, None, SIGNATURE),
            ("us-east-1", CREDENTIAL, DATE, None, SIGNATURE),
            ("eu-west-1", &CREDENTIAL.replace("sts", "s3"), DATE, None, SIGNATURE),
            ("eu-west-1", "x/20261121/eu-west-1/sts/aws4_request", DATE, None, SIGNATURE),
            ("eu-west-1", CREDENTIAL, "20261122T120000Z", None, SIGNATURE),
            ("eu-west-1", CREDENTIAL, "20261121T1200Z", None, SIGNATURE),
            ("eu-west-1", CREDENTIAL, "20261121T120000Z&Action=AssumeRole", None, SIGNATURE),
            ("eu-west-1", CREDENTIAL, DATE, Some("a&Action=AssumeRole"), SIGNATURE),
            ("eu-west-1", CREDENTIAL, DATE, Some(""), SIGNATURE),
            ("eu-west-1", CREDENTIAL, DATE, None, "00"),
            ("eu-west-1", CREDENTIAL, DATE, None, &long.replace('a', "G")),
        ] {
            assert_eq!(
                SignedFields::new(region, credential, date, token, signature),
                Err(InvalidFields),
                "{region} {date}"
            );
        }
        let json = serde_json::to_string(&fields()).unwrap();
        for wrong in [
            json.replace("\"region\"", "\"action\":\"AssumeRole\",\"region\""),
            json.replace("\"date\"", "\"signature\":\"x\",\"date\""),
            "[]".to_owned(),
            String::new(),
        ] {
            assert_eq!(SignedFields::parse(&URL_SAFE_NO_PAD.encode(&wrong)), Err(InvalidFields), "{wrong}");
        }
        assert_eq!(SignedFields::parse("https://sts.amazonaws.com/"), Err(InvalidFields));
        assert_eq!(SignedFields::parse(&"a".repeat(LONGEST_PASSWORD + 1)), Err(InvalidFields));
    }

    #[test]
    fn a_session_of_a_role_is_the_role() {
        let identity = |region: &str, account: &str, arn: &str| {
            let result = serde_json::json!({ "Account": account, "Arn": arn, "UserId": "x" });
            let body = serde_json::json!({ "GetCallerIdentityResponse": { "GetCallerIdentityResult": result } });
            fields_of(region).identity(body.to_string().as_bytes()).map(|identity| identity.arn)
        };
        let account = "123456789012";
        let arn =
            |partition: &str, service: &str, resource: &str| format!("arn:{partition}:{service}::{account}:{resource}");
        for (region, told, principal) in [
            ("eu-west-1", arn("aws", "sts", "assumed-role/node/i-1"), Some(arn("aws", "iam", "role/node"))),
            ("eu-west-1", arn("aws", "iam", "user/a/b"), Some(arn("aws", "iam", "user/a/b"))),
            ("cn-north-1", arn("aws-cn", "sts", "assumed-role/node/a:b"), Some(arn("aws-cn", "iam", "role/node"))),
            ("us-gov-west-1", arn("aws-us-gov", "iam", "user/a"), Some(arn("aws-us-gov", "iam", "user/a"))),
            ("eu-west-1", arn("aws-cn", "iam", "user/a"), None),
            ("cn-north-1", arn("aws", "iam", "user/a"), None),
            ("eu-west-1", arn("aws", "sts", "assumed-role/node"), None),
            ("eu-west-1", "arn:aws:sts::999999999999:assumed-role/node/i-1".to_owned(), None),
            ("eu-west-1", "nonsense".to_owned(), None),
        ] {
            assert_eq!(identity(region, account, &told), principal, "{told}");
        }
        assert_eq!(identity("eu-west-1", "12", "arn:aws:iam::12:user/a"), None);
        assert_eq!(fields().identity(b"<GetCallerIdentityResponse/>"), None);
    }
}
