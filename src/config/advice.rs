//! What to write instead of a mistake.

use serde::de::DeserializeOwned;
use toml::de::DeValue;

use super::file::{AccessTable, CredentialsTable, File, RuleTable, ScheduleTable, UpstreamTable};
use super::policy::PolicyRuleTable;

/// What may stand at each key: what an operator is told to write, and what a mistake is put right with.
const EXAMPLES: &[(&str, &str)] = &[
    ("listen", r#""127.0.0.1:5000""#),
    ("data_dir", r#""/var/lib/stopover""#),
    ("fresh stale permission missing token_life", r#""5m""#),
    ("wait", r#""20s""#),
    ("keep", r#""30d""#),
    ("every", r#""6h""#),
    ("fill_memory max_size new_bytes max_blob", r#""50GB""#),
    ("misses pulls reserve fills", "100"),
    ("deleted", r#""missing""#),
    ("cold", r#""wait""#),
    ("platforms", r#"["linux/amd64"]"#),
    ("images", r#"["docker.io/library/nginx:1.27"]"#),
    ("pin", r#"["docker.io/library/postgres:16*"]"#),
    ("url", r#""https://registry.example.com""#),
    ("token_realms", r#"["https://auth.example.com"]"#),
    ("aliases", r#"["registry"]"#),
    ("trusted_hosts", r#"["10.1.2.3:9000"]"#),
    ("alternates", r#"[{ upstream = "mirror.gcr.io" }]"#),
    ("upstream", r#""docker.io""#),
    ("path", r#""library""#),
    ("names prefix", r#""library/""#),
    ("immutable", r#"["*-final"]"#),
    ("allow deny", r#"["acme/web*"]"#),
    ("public tags shared robots", "true"),
    ("credentials", r#"{ username = "me", password_env = "PASSWORD" }"#),
    ("username", r#""me""#),
    ("password_env", r#""PASSWORD""#),
    ("password_file", r#""/run/secrets/password""#),
    ("signing_keys", r#"{ env = "SIGNING_KEYS" }"#),
    ("env", r#""SIGNING_KEYS""#),
    ("file", r#""/run/secrets/keys""#),
    ("access", ACCESS),
    ("anonymous networks", r#"["10.0.0.0/8"]"#),
    ("service audience", r#""registry.example.com""#),
    ("iam", r#"{ accounts = ["123456789012"] }"#),
    ("partition", r#""aws""#),
    ("accounts", r#"["123456789012"]"#),
    ("organization", r#""o-a1b2c3d4e5""#),
    ("roles", r#"["arn:aws:iam::123456789012:role/eks-*"]"#),
    ("endpoint", r#""https://sts.eu-west-1.amazonaws.com""#),
    ("issuer", r#""https://token.actions.githubusercontent.com""#),
    ("jwks_uri", r#""https://token.actions.githubusercontent.com/.well-known/jwks""#),
    ("claims", r#"{ repository_owner_id = "1234567" }"#),
    ("budget_claim", r#""repository_id""#),
    ("who", r#"["robot:ci"]"#),
    ("what", r#"["ghcr.io/acme/*"]"#),
];

pub(super) const ACCESS: &str = "{ anonymous = true, robots = true }";

/// Keys of other programs, and what they are called here.
const SYNONYMS: &[(&str, &str)] = &[
    ("password", "password_env"),
    ("token", "password_env"),
    ("user", "username"),
    ("remoteurl", "url"),
    ("server", "url"),
    ("address", "listen"),
    ("bind", "listen"),
    ("port", "listen"),
    ("ttl", "fresh"),
    ("cache_dir", "data_dir"),
];

/// Whether this stands in [`EXAMPLES`]: what is read from there is not in the file.
pub(super) fn is_example(text: &str) -> bool {
    EXAMPLES.iter().any(|(_, example)| example.contains(&format!("{text:?}")))
}

/// What may be written at a key, if it is known, with the name by which the table knows it.
pub(super) fn example(path: &str) -> Option<(&'static str, &'static str)> {
    let name = path.rsplit('.').next().unwrap_or_default();
    if name == "allow" && path.starts_with("policy") {
        return Some(("allow", "true"));
    }
    EXAMPLES.iter().find_map(|(names, example)| Some((names.split(' ').find(|known| *known == name)?, *example)))
}

/// The words of serde in those of TOML. What is written is not repeated: it may be a secret.
pub(super) fn plain(message: &str) -> String {
    const WORDS: [(&str, &str); 9] = [
        ("a sequence", "a list"),
        ("a map", "a table"),
        ("struct ", "a table"),
        ("a string", "text between quotes"),
        ("path string", "text between quotes"),
        ("socket address", "an address with a port"),
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
    let distances = known.into_iter().map(|right| (strsim::damerau_levenshtein(&wrong, right), right));
    distances.filter(|(distance, right)| *distance <= right.len() / 2).min().map(|(_, right)| right)
}

/// What an unknown key should be, in words, and its name where it belongs into the same table.
pub(super) fn better(wrong: &str, known: &[&str]) -> (String, Option<String>) {
    let near = nearest(wrong, known.iter().copied());
    let other =
        SYNONYMS.iter().find(|(other, right)| *other == wrong && known.contains(right)).map(|(_, right)| *right);
    let close = near.filter(|right| strsim::damerau_levenshtein(wrong, right) < 2);
    let elsewhere = [
        (keys::<File>(), "at the top of the file, above the first line with [ ]"),
        (keys::<UpstreamTable>(), "below [upstreams.\"<id>\"]"),
        (keys::<RuleTable>(), "below [rules.\"<prefix>\"]"),
        (keys::<ScheduleTable>(), "below [[schedule]]"),
        (keys::<AccessTable>(), "below [access]"),
        (keys::<PolicyRuleTable>(), "below [[policy]]"),
        (keys::<CredentialsTable>(), "into credentials = { … }"),
    ];
    let elsewhere = elsewhere.iter().find(|(keys, _)| keys.iter().any(|key| key == wrong)).map(|(_, place)| place);
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
