//! Secrets: `stopover.toml` says where they are, and never holds one.

use std::path::Path;

use super::file::{CredentialsTable, KeysTable};
use crate::values::secret::{OTHERS_WRITE, Secret, read_own};

/// Our login at an upstream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password or access token.
    pub password: Secret,
}

/// Where a secret is: the file names it, and never holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecretReference<'a> {
    /// In an environment variable.
    Variable(&'a str),
    /// In a file, without the line breaks at its end.
    File(&'a Path),
}

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
        };
        if secret.is_empty() { Err("the secret is empty".into()) } else { Ok(secret) }
    }
}

impl CredentialsTable {
    /// Our login. The error says in words why it cannot be read.
    pub(super) fn read(
        self,
        secret: &impl Fn(SecretReference) -> Result<String, String>,
    ) -> Result<Credentials, String> {
        let password = named("password_", self.password_env.as_deref(), self.password_file.as_deref(), secret)?;
        Ok(Credentials { username: self.username, password })
    }
}

impl KeysTable {
    /// The keys. The error says in words why they cannot be read.
    pub(super) fn read(&self, secret: &impl Fn(SecretReference) -> Result<String, String>) -> Result<Secret, String> {
        named("", self.env.as_deref(), self.file.as_deref(), secret)
    }
}

/// The secret that one of two keys names, which are called `<prefix>env` and `<prefix>file`.
fn named(
    prefix: &str,
    variable: Option<&str>,
    file: Option<&Path>,
    secret: &impl Fn(SecretReference) -> Result<String, String>,
) -> Result<Secret, String> {
    let reference = match (variable, file) {
        (Some(name), None) => SecretReference::Variable(name),
        (None, Some(path)) => SecretReference::File(path),
        _ => return Err(format!("give either {prefix}env (the name of a variable) or {prefix}file (a path)")),
    };
    secret(reference).map(Secret::new)
}
