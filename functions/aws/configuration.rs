//! Where `stopover.toml` is: in a file that is deployed with the functions, or where an operator replaces it while they run.

use std::path::PathBuf;

use aws_sdk_s3::error::ProvideErrorMetadata as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use stopover::errors::{Failure, StoreError};
use stopover::ports::Result;

use crate::DynamoLedger;
use crate::dynamo::versioned;
use crate::failure::{has_status, store_error};
use crate::item;
use crate::signed::{Operation, SignedCalls};

const GET_PARAMETER: Operation =
    Operation { actions: &["ssm:GetParameter"], target: "AmazonSSM.GetParameter", service: "SSM", host: "ssm" };
/// The longest configuration, in bytes: an item of the table has room for it, and a parameter can have far less.
const LONGEST: i64 = 256 * 1024;

/// Where the configuration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file, or none: then the defaults hold.
    File(Option<PathBuf>),
    /// `ssm:/name`: a parameter of SSM.
    Parameter(String),
    /// `s3://bucket/key`: an object of S3.
    Object { bucket: String, key: String },
}

/// A text, and the version that it has at its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) text: String,
    pub(crate) version: String,
}

/// Reads a place in the name of the functions' role.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(crate) calls: SignedCalls,
    pub(crate) s3: aws_sdk_s3::Client,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    parameter: Parameter,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Parameter {
    value: String,
    version: u64,
}

impl Place {
    /// Reads `ssm:/name` or `s3://bucket/key`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || Err("it is neither ssm:/the/name of a parameter nor s3://bucket/and/key of an object".to_owned());
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        if let Some(name) = text.strip_prefix("ssm:") {
            return if name.starts_with('/') && plain(name) { Ok(Self::Parameter(name.to_owned())) } else { wrong() };
        }
        match text.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) {
            Some((bucket, key)) if plain(bucket) && plain(key) => {
                Ok(Self::Object { bucket: bucket.to_owned(), key: key.to_owned() })
            }
            _ => wrong(),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(formatter, "{}", path.clone().unwrap_or_default().display()),
            Self::Parameter(name) => write!(formatter, "ssm:{name}"),
            Self::Object { bucket, key } => write!(formatter, "s3://{bucket}/{key}"),
        }
    }
}

impl Reader {
    /// What is written there now. `None`: what is `known`, or a file, which does not change.
    pub(crate) async fn read(&self, place: &Place, known: Option<&Written>) -> Result<Option<Written>> {
        let written = match place {
            Place::File(_) => return Ok(None),
            Place::Parameter(name) => self.parameter(name).await?,
            Place::Object { bucket, key } => {
                let tag = known.map(|known| known.version.clone());
                let Some(written) = self.object(bucket, key, tag).await? else { return Ok(None) };
                written
            }
        };
        // A parameter that was deleted and made again begins with the same versions.
        Ok(Some(written).filter(|written| Some(written) != known))
    }

    async fn parameter(&self, name: &str) -> Result<Written> {
        let request = json!({ "Name": name, "WithDecryption": true });
        let answer: Result<Answer, _> = self.calls.call(&GET_PARAMETER, self.calls.region(), &request).await;
        let Parameter { value, version } = answer.map_err(|failed| failed.error)?.parameter;
        Ok(Written { text: value, version: version.to_string() })
    }

    async fn object(&self, bucket: &str, key: &str, known: Option<String>) -> Result<Option<Written>> {
        let request = self.s3.get_object().bucket(bucket).key(key).set_if_none_match(known);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if has_status(&error, 304) => return Ok(None),
            Err(error) if error.code() == Some("NoSuchKey") => {
                return Err(StoreError::Refused(format!("GetObject: there is no s3://{bucket}/{key}").into()));
            }
            Err(error) => return Err(store_error("GetObject", error)),
        };
        if answer.content_length().is_none_or(|length| length > LONGEST) {
            return Err(StoreError::Corrupt(format!("it has more than {LONGEST} bytes").into()));
        }
        let version = answer.e_tag().unwrap_or_default().to_owned();
        let bytes = answer.body.collect().await;
        let bytes = bytes.map_err(|error| StoreError::Unavailable(Failure::because("GetObject", error)))?.into_bytes();
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| StoreError::Corrupt("it is no text".into()))?;
        Ok(Some(Written { text, version }))
    }
}

/// A configuration, as an item.
#[derive(Serialize, Deserialize)]
struct Kept {
    text: String,
}

impl DynamoLedger {
    /// The configuration that [`Self::keep_configuration`] keeps.
    pub(crate) async fn kept_configuration(&self) -> Result<Option<String>> {
        let kept = self.item(item::configuration_key(), true).await?;
        Ok(kept.map(item::parse_record::<Kept>).transpose()?.map(|kept| kept.text))
    }

    /// Keeps a configuration that is good. A process that starts with the same one writes nothing.
    pub(crate) async fn keep_configuration(&self, text: &str) -> Result<()> {
        let kept = self.item(item::configuration_key(), true).await?.map(versioned::<Kept>).transpose()?;
        if kept.as_ref().is_some_and(|kept| kept.value.text == text) {
            return Ok(());
        }
        // Another process that keeps one at the same time has read one that is as new.
        let kept = kept.map(|kept| kept.version);
        self.swap_item(item::configuration_key(), kept, &Kept { text: text.to_owned() }).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_parameter_or_an_object_and_is_written_as_it_was_read() {
        for text in ["ssm:/stopover", "ssm:/team/stopover.toml", "s3://bucket/key", "s3://my.bucket/a/b=c.toml"] {
            assert_eq!(Place::parse(text).map(|place| place.to_string()).as_deref(), Ok(text));
        }
        for wrong in [
            "",
            "ssm:",
            "ssm:name",
            "ssm:/name:3",
            "ssm:/a b",
            "s3://",
            "s3://bucket",
            "s3://bucket/",
            "s3:///key",
            "/opt/stopover.toml",
            "https://bucket/key",
            "arn:aws:ssm:eu-west-1:123456789012:parameter/a",
        ] {
            assert!(Place::parse(wrong).is_err(), "{wrong}");
        }
    }
}
