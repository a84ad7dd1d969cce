//! What the functions are told by their environment.

use std::path::PathBuf;

use anyhow::bail;

use crate::sqs::Queues;

/// Which resources to use. The template sets all of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `STOPOVER_TABLE`: the name of the table.
    pub(crate) table: String,
    /// `STOPOVER_BUCKET`: the name of the bucket.
    pub(crate) bucket: String,
    /// The URLs of the queues of fills.
    pub(crate) queues: Queues,
    /// `STOPOVER_CONFIG`, or `stopover.toml` beside the binary (`LAMBDA_TASK_ROOT`) if there is one.
    pub(crate) config: Option<PathBuf>,
}

impl Settings {
    /// Reads the settings through `variable`, which answers with the value of an environment variable.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let required = |name: &str| match variable(name) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => bail!("the environment variable {name} is not set: the template of the deployment sets it"),
        };
        let named = variable("STOPOVER_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let beside_binary = || variable("LAMBDA_TASK_ROOT").map(|root| PathBuf::from(root).join("stopover.toml"));
        let config = named.or_else(|| beside_binary().filter(|path| path.exists()));
        Ok(Self {
            table: required("STOPOVER_TABLE")?,
            bucket: required("STOPOVER_BUCKET")?,
            queues: Queues {
                interactive: required("STOPOVER_QUEUE_URL")?,
                background: required("STOPOVER_BACKGROUND_QUEUE_URL")?,
                dead: required("STOPOVER_DEAD_QUEUE_URL")?,
            },
            config,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<Settings> {
        Settings::read(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    const COMPLETE: [(&str, &str); 5] = [
        ("STOPOVER_TABLE", "table"),
        ("STOPOVER_BUCKET", "bucket"),
        ("STOPOVER_QUEUE_URL", "http://queue.test/q"),
        ("STOPOVER_BACKGROUND_QUEUE_URL", "http://queue.test/b"),
        ("STOPOVER_DEAD_QUEUE_URL", "http://queue.test/d"),
    ];

    #[test]
    fn a_missing_or_empty_variable_is_named() {
        assert_eq!(read(&COMPLETE).unwrap().table, "table");
        for missing in 0..COMPLETE.len() {
            let name = COMPLETE[missing].0;
            let mut variables = COMPLETE.to_vec();
            variables[missing].1 = "";
            assert!(read(&variables).unwrap_err().to_string().contains(name));
            variables.remove(missing);
            assert!(read(&variables).unwrap_err().to_string().contains(name));
        }
    }

    #[test]
    fn a_configuration_that_is_named_is_used_and_one_beside_the_binary_if_it_exists() {
        let folder = std::env::temp_dir().join(format!("stopover-settings-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let root = ("LAMBDA_TASK_ROOT", folder.to_str().unwrap());
        let config = |extra: &[(&str, &str)]| read(&[&COMPLETE[..], extra].concat()).unwrap().config;
        assert_eq!(config(&[]), None);
        assert_eq!(config(&[root]), None);
        std::fs::write(folder.join("stopover.toml"), "").unwrap();
        assert_eq!(config(&[root]), Some(folder.join("stopover.toml")));
        assert_eq!(config(&[root, ("STOPOVER_CONFIG", "/other.toml")]), Some(PathBuf::from("/other.toml")));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
