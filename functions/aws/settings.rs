//! The settings that the functions read from their environment.

use std::path::PathBuf;

use stopover::config::{AccessConfig, SecretSource, StoredSecret};
use stopover::identity::Network;
use stopover::identity::partition::Partition;
use url::Url;

use crate::configuration::Place;
use crate::sqs::Queues;

/// Why there is no cache: a setting of the deployment is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct Wrong {
    /// Which one, as operators know it.
    pub setting: &'static str,
    reason: String,
}

impl Wrong {
    pub(crate) fn new(setting: &'static str, reason: impl std::fmt::Display) -> Self {
        Self { setting, reason: format!("{reason:#}") }
    }
}

/// The setting that says where the configuration is.
pub(crate) const CONFIG_URI: &str = "STOPOVER_CONFIG_URI";
const CIDRS: &str = "STOPOVER_ANONYMOUS_CIDRS";
const SIGNING_KEYS: &str = "STOPOVER_SIGNING_KEYS_SECRET";
const STS: &str = "AWS_ENDPOINT_URL_STS";
const WHO_IS_LET_IN: &str = "STOPOVER_ACCOUNT, STOPOVER_ORGANIZATION, STOPOVER_SERVICE or AWS_ENDPOINT_URL_STS";

/// Which resources to use. The template sets all of them.
#[derive(Debug)]
pub(crate) struct Settings {
    /// `STOPOVER_TABLE`: the name of the table.
    pub(crate) table: String,
    /// `STOPOVER_BUCKET`: the name of the bucket.
    pub(crate) bucket: String,
    /// The URLs of the queues of fills.
    pub(crate) queues: Queues,
    /// Where the configuration is: `STOPOVER_CONFIG_URI` (`ssm:/name`, `s3://bucket/key`), else the file
    /// `STOPOVER_CONFIG`, else `stopover.toml` beside the binary (`LAMBDA_TASK_ROOT`) if there is one.
    pub(crate) configuration: Place,
    /// Who is let in where the configuration says nothing of it: identities of the account that deployed the functions
    /// (`STOPOVER_ACCOUNT`), and of an organization (`STOPOVER_ORGANIZATION`), if they sign for a name that no other
    /// deployment has (`STOPOVER_SERVICE`); and anonymous callers from some networks, separated by commas
    /// (`STOPOVER_ANONYMOUS_CIDRS`). Identities are verified at the STS endpoint that the AWS SDKs would use
    /// (`AWS_ENDPOINT_URL_STS`).
    pub(crate) access: AccessConfig,
    /// The partition of the region that the functions run in (`AWS_REGION`, which Lambda sets): accounts are of that
    /// one unless the configuration says otherwise.
    pub(crate) partition: Option<Partition>,
    /// `STOPOVER_SIGNING_KEYS_SECRET`: where the keys are that sign tokens, if the configuration does not say.
    pub(crate) signing_keys: Option<SecretSource>,
}

impl Settings {
    /// Reads the settings through `variable`, which returns the value of an environment variable.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Wrong> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let unset = "the environment does not set it; the template of the deployment does";
        let required = |name: &'static str| set(name).ok_or_else(|| Wrong::new(name, unset));
        let named = set("STOPOVER_CONFIG").map(PathBuf::from);
        let beside_binary = || variable("LAMBDA_TASK_ROOT").map(|root| PathBuf::from(root).join("stopover.toml"));
        let configuration = match set(CONFIG_URI) {
            Some(uri) => Place::parse(&uri).map_err(|error| Wrong::new(CONFIG_URI, error))?,
            None => Place::File(named.or_else(|| beside_binary().filter(|path| path.exists()))),
        };
        let networks = networks(&variable(CIDRS).unwrap_or_default())?;
        let sts = set(STS).map(|url| url.parse::<Url>()).transpose().map_err(|error| Wrong::new(STS, error))?;
        let signing_keys = set(SIGNING_KEYS).map(StoredSecret::try_from).transpose();
        let signing_keys = signing_keys.map_err(|error| Wrong::new(SIGNING_KEYS, format!("it {error}")))?;
        let organization = set("STOPOVER_ORGANIZATION");
        let (account, service) = (required("STOPOVER_ACCOUNT")?, required("STOPOVER_SERVICE")?);
        let access = AccessConfig::of_account(account, organization, service, networks, sts);
        let access = access.map_err(|error| Wrong::new(WHO_IS_LET_IN, error))?;
        Ok(Self {
            table: required("STOPOVER_TABLE")?,
            bucket: required("STOPOVER_BUCKET")?,
            queues: Queues {
                interactive: required("STOPOVER_QUEUE_URL")?,
                background: required("STOPOVER_BACKGROUND_QUEUE_URL")?,
                dead: required("STOPOVER_DEAD_QUEUE_URL")?,
            },
            configuration,
            access,
            partition: variable("AWS_REGION").and_then(|region| Partition::of(&region)),
            signing_keys: signing_keys.map(SecretSource::Stored),
        })
    }
}

/// Parses `10.0.0.0/8, 2001:db8::/32`. An empty list lets no anonymous caller in.
fn networks(list: &str) -> Result<Vec<Network>, Wrong> {
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let read = |entry: &str| {
        let network: Network = entry.parse().map_err(|error| Wrong::new(CIDRS, error))?;
        let too_wide = || format!("{entry} is too wide; if that is meant, say it in [access] of stopover.toml");
        if network.is_wide() { Err(Wrong::new(CIDRS, too_wide())) } else { Ok(network) }
    };
    entries.map(read).collect()
}

#[cfg(test)]
mod tests {
    use stopover::identity::Anonymous;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, Wrong> {
        Settings::read(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    const COMPLETE: [(&str, &str); 7] = [
        ("STOPOVER_TABLE", "table"),
        ("STOPOVER_BUCKET", "bucket"),
        ("STOPOVER_QUEUE_URL", "http://queue.test/q"),
        ("STOPOVER_BACKGROUND_QUEUE_URL", "http://queue.test/b"),
        ("STOPOVER_DEAD_QUEUE_URL", "http://queue.test/d"),
        ("STOPOVER_ACCOUNT", "123456789012"),
        ("STOPOVER_SERVICE", "stopover:test"),
    ];

    #[test]
    fn a_missing_or_empty_variable_is_named() {
        assert_eq!(read(&COMPLETE).unwrap().table, "table");
        for missing in 0..COMPLETE.len() {
            let name = COMPLETE[missing].0;
            let mut variables = COMPLETE.to_vec();
            variables[missing].1 = "";
            assert_eq!(read(&variables).unwrap_err().setting, name);
            variables.remove(missing);
            assert_eq!(read(&variables).unwrap_err().setting, name);
        }
    }

    #[test]
    fn without_a_choice_the_account_of_the_deployment_is_let_in_and_nobody_else() {
        let access = |extra: &[(&str, &str)]| read(&[&COMPLETE[..], extra].concat()).map(|settings| settings.access);
        let fresh = access(&[]).unwrap();
        assert_eq!(
            (fresh.anonymous, fresh.robots, fresh.service.as_str()),
            (Anonymous::Nobody, false, "stopover:test")
        );
        let iam = fresh.iam.unwrap();
        assert_eq!((iam.accounts, iam.organization), (vec!["123456789012".to_owned()], None));
        let organization = |id| access(&[("STOPOVER_ORGANIZATION", id)]).map(|access| access.iam.unwrap().organization);
        assert_eq!(organization("o-a1b2c3d4e5").unwrap().as_deref(), Some("o-a1b2c3d4e5"));
        assert_eq!(organization("").unwrap(), None);
        assert!(organization("o-*").is_err() && organization("ou-a1b2c3d4e5").is_err());
        let partition = |region| read(&[&COMPLETE[..], &[("AWS_REGION", region)]].concat()).unwrap().partition;
        assert_eq!(partition("cn-north-1"), Some(Partition::China), "an account is of the partition that it runs in");
        assert_eq!((partition("eu-west-1"), partition("")), (Some(Partition::Commercial), None));
        let networks = |list| access(&[("STOPOVER_ANONYMOUS_CIDRS", list)]).unwrap().anonymous;
        for none in ["", " ", ",,"] {
            assert_eq!(networks(none), Anonymous::Nobody);
        }
        let two = ["10.0.0.0/8", "192.0.2.0/24"].map(|network| network.parse().unwrap()).to_vec();
        assert_eq!(networks(" 10.0.0.0/8 , 192.0.2.0/24,"), Anonymous::From(two));
        let unread = read(&[&COMPLETE[..], &[("STOPOVER_ANONYMOUS_CIDRS", "10.0.0.0/8,everyone")]].concat());
        let error = format!("{:#}", unread.unwrap_err());
        assert!(error.contains("STOPOVER_ANONYMOUS_CIDRS") && error.contains("everyone"), "{error}");
        for half_of_everybody in ["128.0.0.0/1", "8000::/1"] {
            let wide = read(&[&COMPLETE[..], &[("STOPOVER_ANONYMOUS_CIDRS", half_of_everybody)]].concat());
            assert!(wide.unwrap_err().to_string().contains("too wide"));
        }
        assert!(
            access(&[("AWS_ENDPOINT_URL_STS", "http://sts.test")]).is_err(),
            "whoever speaks for callers speaks TLS"
        );
    }

    #[test]
    fn a_configuration_that_is_named_is_used_and_one_beside_the_binary_if_it_exists() {
        let folder = std::env::temp_dir().join(format!("stopover-settings-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let root = ("LAMBDA_TASK_ROOT", folder.to_str().unwrap());
        let config = |extra: &[(&str, &str)]| read(&[&COMPLETE[..], extra].concat()).unwrap().configuration;
        assert_eq!(config(&[]), Place::File(None));
        assert_eq!(config(&[root, ("STOPOVER_CONFIG_URI", "")]), Place::File(None));
        std::fs::write(folder.join("stopover.toml"), "").unwrap();
        assert_eq!(config(&[root]), Place::File(Some(folder.join("stopover.toml"))));
        let named = [root, ("STOPOVER_CONFIG", "/other.toml")];
        assert_eq!(config(&named), Place::File(Some(PathBuf::from("/other.toml"))));
        let uri = [&named[..], &[("STOPOVER_CONFIG_URI", "ssm:/stopover")]].concat();
        assert_eq!(config(&uri), Place::Parameter("/stopover".into()), "it goes before a file");
        let wrong = read(&[&COMPLETE[..], &[("STOPOVER_CONFIG_URI", "ssm:stopover")]].concat()).unwrap_err();
        assert!(wrong.to_string().contains("STOPOVER_CONFIG_URI: it is neither ssm:/"), "{wrong}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
