//! Secrets: `stopover.toml` says where they are, and never holds one.

use std::fmt;
use std::path::Path;

use serde::Deserialize;

use super::file::{CredentialsTable, KeysTable};
use crate::identity::partition::{Partition, is_account};
use crate::values::secret::{OTHERS_WRITE, Secret, read_own};

/// Our login at an upstream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password or access token.
    pub password: SecretSource,
}

/// A secret that was read with the configuration, or where it is read each time that it is needed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SecretSource {
    /// Its text.
    Text(Secret),
    /// In AWS Secrets Manager, where it may be replaced while this process runs.
    Stored(StoredSecret),
}

/// A secret of AWS Secrets Manager: `arn:aws:secretsmanager:eu-west-1:123456789012:secret:name-AbCdEf`, and `#key`
/// where it is one key of a JSON object.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct StoredSecret {
    /// Its ARN.
    pub arn: String,
    /// The region that it is in.
    pub region: String,
    /// The key of the JSON object that it is; `None`: all of its text.
    pub key: Option<String>,
}

impl TryFrom<String> for StoredSecret {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // What is written is not repeated: it may be the secret itself.
        let wrong = || {
            "is no ARN of a secret: write \"arn:aws:secretsmanager:eu-west-1:123456789012:secret:name-AbCdEf\", and #key \
             behind it for one key of its JSON"
                .to_owned()
        };
        let (arn, key) = text.split_once('#').map_or((text.as_str(), None), |(arn, key)| (arn, Some(key)));
        let ["arn", partition, "secretsmanager", region, account, "secret", name] =
            arn.split(':').collect::<Vec<_>>()[..]
        else {
            return Err(wrong());
        };
        let of_region = Partition::of(region).is_some_and(|of_region| of_region.as_str() == partition);
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_+=.@-".contains(&byte));
        if !of_region || !is_account(account) || !is_name || name.is_empty() || key == Some("") {
            return Err(wrong());
        }
        Ok(Self { arn: arn.to_owned(), region: region.to_owned(), key: key.map(str::to_owned) })
    }
}

impl fmt::Display for StoredSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hash, key) = self.key.as_deref().map_or(("", ""), |key| ("#", key));
        write!(formatter, "{}{hash}{key}", self.arn)
    }
}

/// Where a secret is: the file names it, and never holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecretReference<'a> {
    /// In an environment variable.
    Variable(&'a str),
    /// In a file, without the line breaks at its end.
    File(&'a Path),
    /// In AWS Secrets Manager. It is not read with the configuration: an error says that it cannot be read there at all.
    Stored(&'a StoredSecret),
}

/// Reads the secret that a reference names, or says in words why it cannot.
pub(super) type ReadSecret<'a> = &'a dyn Fn(SecretReference) -> Result<String, String>;

impl SecretReference<'_> {
    /// Reads the secret; `variable` looks up the environment. The error says in words why it cannot.
    pub fn read(self, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
        let secret = match self {
            Self::Variable(name) => {
                // Otherwise it may be the secret itself, by mistake.
                let is_name =
                    name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
                let name_of = if is_name { name } else { "that is named here" };
                variable(name).ok_or_else(|| format!("the environment variable {name_of} is not set"))?
            }
            Self::File(path) => {
                let text = read_own(path, OTHERS_WRITE);
                let text = text.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            Self::Stored(_) => {
                return Err(
                    "only the functions on AWS read Secrets Manager; here the secret is in a variable (a key that \
                            ends with env) or in a file (one that ends with file)"
                        .into(),
                );
            }
        };
        if secret.is_empty() { Err("the secret is empty".into()) } else { Ok(secret) }
    }
}

impl CredentialsTable {
    /// Our login. The error says in words why it cannot be read.
    pub(super) fn read(self, secret: ReadSecret) -> Result<Credentials, String> {
        let password = KeysTable { env: self.password_env, file: self.password_file, secret: self.password_secret };
        Ok(Credentials { username: self.username, password: password.read("password_", secret)? })
    }
}

impl KeysTable {
    /// The secret that one of the three keys names, which are called `<prefix>env`, `<prefix>file` and
    /// `<prefix>secret`. The error says in words why it cannot be read.
    pub(super) fn read(self, prefix: &str, secret: ReadSecret) -> Result<SecretSource, String> {
        let text = match (&self.env, &self.file, self.secret) {
            (Some(name), None, None) => secret(SecretReference::Variable(name)),
            (None, Some(path), None) => secret(SecretReference::File(path)),
            (None, None, Some(stored)) => {
                return secret(SecretReference::Stored(&stored)).map(|_| SecretSource::Stored(stored));
            }
            _ => Err(format!(
                "give one of {prefix}env (the name of a variable), {prefix}file (a path) and, on AWS, {prefix}secret (an ARN)"
            )),
        };
        text.map(|text| SecretSource::Text(Secret::new(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_secret_is_an_arn_and_perhaps_a_key_and_nothing_else() {
        let read = |text: &str| StoredSecret::try_from(text.to_owned());
        let arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:team/hub-AbCdEf";
        let stored = read(&format!("{arn}#password")).unwrap();
        assert_eq!(
            (stored.arn.as_str(), stored.region.as_str(), stored.key.as_deref()),
            (arn, "eu-west-1", Some("password"))
        );
        assert_eq!((stored.to_string(), read(arn).unwrap().to_string()), (format!("{arn}#password"), arn.to_owned()));
        assert!(read("arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:a-AbCdEf#a:b#c").is_ok());
        for wrong in [
            "",
            "HUNTER2",
            "hub-AbCdEf",
            "arn:aws:secretsmanager:eu-west-1:123456789012:secret:",
            "arn:aws:secretsmanager:eu-west-1:123456789012:secret:a b",
            "arn:aws:secretsmanager:eu-west-1:123456789012:secret:a:password::",
            "arn:aws:secretsmanager:eu-west-1:123456789012:secret:a#",
            "arn:aws:secretsmanager:eu-west-1:1234:secret:a",
            "arn:aws:secretsmanager:evil.example/:123456789012:secret:a",
            "arn:aws-cn:secretsmanager:eu-west-1:123456789012:secret:a",
            "arn:aws:ssm:eu-west-1:123456789012:parameter/a",
            "{{resolve:secretsmanager:hub:SecretString:password}}",
        ] {
            let message = read(wrong).unwrap_err();
            assert!(message.contains("is no ARN of a secret") && !message.contains("HUNTER2"), "{wrong}: {message}");
        }
    }
}
