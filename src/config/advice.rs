//! What to write instead of a mistake.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::de::DeserializeOwned;
use toml::de::DeValue;

use super::file::{AccessTable, CredentialsTable, File, RuleTable, ScheduleTable, UpstreamTable};
use super::policy::PolicyRuleTable;

/// What may stand at each key: what an operator is told to write, and what a mistake is put right with.
const EXAMPLES: &str = r#"listen = "127.0.0.1:5000" | data_dir = "/var/lib/stopover" | every = "6h" | keep = "30d" | wait = "20s"
fresh = "5m" | stale = "5m" | permission = "5m" | missing = "5m" | token_life = "5m" | deleted = "missing" | cold = "wait"
fill_memory = "50GB" | max_size = "50GB" | new_bytes = "50GB" | max_blob = "50GB"
misses = 100 | pulls = 100 | reserve = 100 | fills = 100 | public = true | tags = true | shared = true | robots = true
platforms = ["linux/amd64"] | images = ["docker.io/library/nginx:1.27"] | pin = ["docker.io/library/postgres:16*"]
url = "https://registry.example.com" | token_realms = ["https://auth.example.com"] | aliases = ["registry"]
trusted_hosts = ["10.1.2.3:9000"] | alternates = [{ upstream = "mirror.gcr.io" }] | upstream = "docker.io" | path = "library"
names = "library/" | prefix = "library/" | immutable = ["*-final"] | allow = ["acme/web*"] | deny = ["acme/web*"]
credentials = { username = "me", password_env = "PASSWORD" } | username = "me" | password_env = "PASSWORD"
password_file = "/run/secrets/password" | signing_keys = { env = "SIGNING_KEYS" } | env = "SIGNING_KEYS" | file = "/run/secrets/keys"
password_secret = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:hub-AbCdEf#password"
secret = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:stopover-AbCdEf#keys"
access = { anonymous = true, robots = true } | anonymous = ["10.0.0.0/8"] | networks = ["10.0.0.0/8"]
service = "registry.example.com" | audience = "registry.example.com" | iam = { accounts = ["123456789012"] } | partition = "aws"
accounts = ["123456789012"] | organization = "o-a1b2c3d4e5" | roles = ["arn:aws:iam::123456789012:role/eks-*"]
endpoint = "https://sts.eu-west-1.amazonaws.com" | issuer = "https://token.actions.githubusercontent.com"
jwks_uri = "https://token.actions.githubusercontent.com/.well-known/jwks" | claims = { repository_owner_id = "1234567" }
budget_claim = "repository_id" | operators = ["robot:ops"] | who = ["robot:ci"] | what = ["ghcr.io/acme/*"]"#;

static BY_KEY: LazyLock<BTreeMap<&str, &str>> = LazyLock::new(|| {
    let examples = EXAMPLES.split(['|', '\n']).filter_map(|example| example.split_once(" = "));
    examples.map(|(key, example)| (key.trim(), example.trim())).collect()
});

/// The keys of each table, and where it stands.
static KEYS: LazyLock<[(Vec<String>, &str); 7]> = LazyLock::new(|| {
    [
        (keys::<File>(), "at the top of the file, above the first line with [ ]"),
        (keys::<UpstreamTable>(), "below [upstreams.\"<id>\"]"),
        (keys::<RuleTable>(), "below [rules.\"<prefix>\"]"),
        (keys::<ScheduleTable>(), "below [[schedule]]"),
        (keys::<AccessTable>(), "below [access]"),
        (keys::<PolicyRuleTable>(), "below [[policy]]"),
        (keys::<CredentialsTable>(), "into credentials = { … }"),
    ]
});

/// Keys of other programs, and what they are called here.
const SYNONYMS: [(&str, &str); 6] = [
    ("password", "password_env"),
    ("user", "username"),
    ("remoteurl", "url"),
    ("port", "listen"),
    ("ttl", "fresh"),
    ("bind", "listen"),
];

/// Whether this stands in [`EXAMPLES`]: what is read from there is not in the file.
pub(super) fn is_example(text: &str) -> bool {
    EXAMPLES.contains(&format!("{text:?}"))
}

/// What may be written at a key, if it is known, with the name by which the table knows it.
pub(super) fn example(path: &str) -> Option<(&'static str, &'static str)> {
    let name = path.rsplit('.').next().unwrap_or_default();
    if name == "allow" && path.starts_with("policy") {
        return Some(("allow", "true"));
    }
    BY_KEY.get_key_value(name).map(|(key, example)| (*key, *example))
}

/// The words of serde in those of TOML. What is written is not repeated: it may be a secret.
pub(super) fn plain(message: &str) -> String {
    const WORDS: [(&str, &str); 8] = [
        ("a sequence", "a list"),
        ("a map", "a table"),
        ("struct ", "a table"),
        ("a string", "text between quotes"),
        ("path string", "text between quotes"),
        ("a boolean", "true or false"),
        ("a nonzero usize", "a whole number from 1 on"),
        ("u", "a whole number from 0 on"),
    ];
    let Some((found, expected)) = message.rsplit_once(", expected ").filter(|_| message.starts_with("invalid ")) else {
        return message.to_owned();
    };
    let found = found.split_once('"').map_or(found, |(kind, _)| kind.trim_end());
    let found = found.replace("string", "text").replace("sequence", "a list").replace("map", "a table");
    let expected =
        WORDS.iter().find_map(|(serde, toml)| expected.starts_with(serde).then_some(*toml)).unwrap_or(expected);
    format!("{found}, expected {expected}")
}

/// The name of a table `[upstreams.docker.io]` as it has to be written.
pub(super) fn unquoted(around: &str, name: &str, mut value: &DeValue) -> Option<String> {
    let (section, start) = around.split_once('.').filter(|(section, _)| matches!(*section, "upstreams" | "rules"))?;
    let mut id = format!("{start}.{name}");
    loop {
        let table = value.as_table()?;
        match table.iter().next() {
            Some((key, inner)) if table.len() == 1 && inner.get_ref().is_table() => {
                id = format!("{id}.{}", key.get_ref());
                value = inner.get_ref();
            }
            _ => return Some(format!("{section}.\"{id}\"")),
        }
    }
}

/// The known word that is most like a wrong one.
pub(super) fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wrong = wrong.to_ascii_lowercase().replace('-', "_");
    // Nothing is nearer than the difference of lengths, which is cheap to know.
    let like = known.into_iter().filter(|right| right.len().abs_diff(wrong.chars().count()) <= right.len() / 2);
    let distances = like.map(|right| (strsim::damerau_levenshtein(&wrong, right), right));
    distances.filter(|(distance, right)| *distance <= right.len() / 2).min().map(|(_, right)| right)
}

/// What an unknown key should be, in words, and its name where it belongs into the same table.
pub(super) fn better(wrong: &str, known: &[&str]) -> (String, Option<String>) {
    let near = nearest(wrong, known.iter().copied());
    let other =
        SYNONYMS.iter().find(|(other, right)| *other == wrong && known.contains(right)).map(|(_, right)| *right);
    let close = near.filter(|right| strsim::damerau_levenshtein(wrong, right) < 2);
    let elsewhere = KEYS.iter().find(|(keys, _)| keys.iter().any(|key| key == wrong)).map(|(_, place)| place);
    match (other.or(close), elsewhere, near) {
        (Some(right @ "password_env"), ..) => (
            "the file holds no secret: write password_env, the name of an environment variable, or password_file, a path".into(),
            Some(right.into()),
        ),
        (Some(right), ..) | (None, None, Some(right)) => (format!("did you mean `{right}`?"), Some(right.into())),
        (None, Some(place), _) => (format!("it belongs {place}"), None),
        (None, None, None) => (String::new(), None),
    }
}

/// The keys of a table, as serde names them where one is wrong.
fn keys<T: DeserializeOwned>() -> Vec<String> {
    let error = toml::from_str::<T>("\"?\" = 0").err();
    let message = error.as_ref().map_or("", toml::de::Error::message);
    message.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}
