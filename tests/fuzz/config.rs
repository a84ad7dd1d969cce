//! What operators write.

use std::path::Path;

use stopover::config::{Cold, Config, ConfigError};
use url::Url;

use crate::generate::changed_text;

const SECRET: &str = "a secret that no sentence may tell";
const TEXTS: &[&str] = &[
    "fresh = \"5m\"\nkeep = \"30d\"\nmax_size = \"50GB\"\npin = [\"docker.io/library/postgres:16*\"]\nplatforms = [\"linux/arm64\"]\n",
    "listen = \"127.0.0.1:5000\"\n[upstreams.\"docker.io\"]\ncredentials = { username = \"me\", password_env = \"A\" }\nfills = 4\n",
    "[upstreams.\"registry.example.com\"]\nurl = \"https://registry.example.com\"\ntoken_realms = [\"https://auth.example.com\"]\n\
     trusted_hosts = [\"10.1.2.3:9000\"]\naliases = [\"registry\"]\nfresh = { \"*\" = \"5m\", \"v*\" = \"1d\" }\nimmutable = [\"*-final\"]\n",
    "[rules.\"team/hub\"]\nupstream = \"docker.io\"\npath = \"library\"\n[rules.\"ghcr.io/acme\"]\nallow = [\"acme/web*\"]\ncold = \"wait\"\n",
    "[access]\nanonymous = [\"10.0.0.0/8\"]\nrobots = true\nservice = \"cr\"\ntoken_life = \"5m\"\nsigning_keys = { env = \"A\" }\n\
     [access.iam]\naccounts = [\"123456789012\"]\nroles = [\"arn:aws:iam::123456789012:role/eks-*\"]\n",
    "[access.oidc.ci]\nissuer = \"https://token.example.com\"\naudience = \"cr.test\"\nclaims = { owner = \"1\" }\n[access]\nservice = \"cr\"\n",
    "[[policy]]\nwho = [\"robot:ci\"]\nwhat = [\"ghcr.io/acme/*\"]\nnetworks = [\"10.0.0.0/8\"]\nallow = true\n[[policy]]\nallow = false\n[access]\nrobots = true\n",
    "misses = 60\npulls = 120\nnew_bytes = \"1TiB\"\npermission = \"1h\"\n[upstreams.\"ghcr.io\"]\nmax_blob = \"20GB\"\npermission = \"10m\"\n\
     public = true\ncredentials = { username = \"me\", password_env = \"A\" }\n[rules.\"ghcr.io/acme\"]\nmax_blob = \"5GB\"\npublic = false\n",
    "[upstreams.\"a.example\"]\nurl = \"https://a.example\"\ncredentials = { username = \"me\", password_env = \"A\" }\n\
     alternates = [{ upstream = \"b.example\", shared = true }]\n\
     [upstreams.\"b.example\"]\nurl = \"https://b.example\"\ncredentials = { username = \"me\", password_env = \"A\" }\n",
    "[access]\nanonymous = [\"vpce-0123456789abcdef0\", \"2001:db8::/32\"]\nsigning_keys = { secret = \"arn:aws:secretsmanager:eu-west-1:123456789012:secret:a-AbCdEf#k\" }\nservice = \"cr\"\n[access.iam]\n\
     accounts = [\"123456789012\"]\nendpoint = \"https://vpce-1.sts.eu-west-1.vpce.amazonaws.com\"\n",
    "[[schedule]]\nevery = \"6h\"\nimages = [\"nginx:1.27\", \"ghcr.io/a/b:stable\"]\nplatforms = [\"linux/amd64\"]\n",
];
const WORDS: &[&str] = &[
    "\n",
    "=",
    "\"",
    "[",
    "]",
    "{",
    "}",
    ".",
    ",",
    "#",
    "'''",
    "\"\"\"",
    "\\u0000",
    "\u{e9}",
    "\u{1f600}",
    "[[policy]]",
    "[access]",
    "[upstreams.\"a.b\"]",
    "true",
    "-1",
    "1e400",
    "nan",
    "1979-05-27",
    "9999999999999999999",
    "\"99999999999y\"",
    "\"0s\"",
    "\"1d\"",
    "a.b.c",
    "url = ",
    "frehs = 1",
    "allow = [\"*\"]",
    "who = [\"*\"]",
    "[[",
    "]]",
    "\"99999999TB\"",
    "18446744073709551615",
    "::/0",
    "10.0.0.1/33",
    "shared = true",
    "public = false",
    "max_blob = ",
    "permission = ",
    "new_bytes = ",
    "pulls = ",
    "endpoint = ",
    "[Access]",
    "[upstreams.docker.io]",
    "[schedule]",
    "listen: 1",
    "url = \"https://u:p@a.b\"",
    "pin = [\"a:b\", 5, \"\"]",
    "immutable = [\"a/b\"]",
    "password = 1",
    "\"vpce-\"",
];

#[test]
fn what_configurations_are_made_of_is_accepted() {
    for text in TEXTS {
        let loaded = Config::parse(text, Path::new("stopover.toml"), Cold::Follow, |_| Ok(SECRET.into()));
        assert!(loaded.is_ok(), "{text}{:?}", loaded.err());
    }
}

#[test]
fn no_configuration_panics_or_tells_a_secret() {
    super::run("configurations", |rng| {
        let text = changed_text(rng, TEXTS, WORDS);
        let loaded = Config::parse(&text, Path::new("stopover.toml"), Cold::Follow, |_| Ok(SECRET.into()));
        match &loaded {
            Ok(config) => {
                assert!(config.warnings.iter().all(|warning| warning.place.is_some()), "{text}{:?}", config.warnings);
                for (name, upstream) in config.settings() {
                    assert!(matches!(upstream.url.scheme(), "http" | "https") && upstream.url.has_host(), "{name}");
                    assert!(upstream.token_realms.iter().all(Url::has_host), "{name}");
                }
            }
            Err(error) => {
                let said = error.to_string();
                assert!(!said.is_empty() && said.len() <= 20 * text.len() + 60_000, "{said}");
                let ConfigError::Mistakes { mistakes, .. } = error else { panic!("{said}") };
                let lines = text.matches('\n').count() + 1;
                assert!((1..=50).contains(&mistakes.len()), "{said}");
                assert!(mistakes.iter().filter_map(|mistake| mistake.place).all(|(line, _)| line <= lines), "{said}");
                assert!(!said.contains(SECRET), "{said}");
            }
        }
        loaded.is_ok()
    });
}
