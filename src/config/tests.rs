mod access;
mod mistakes;

use super::*;

fn no_secret(reference: SecretReference) -> Result<String, String> {
    reference.read(|_| None)
}

fn load(text: &str) -> Result<Config, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let secret = |name: &str| (name == "HUB_TOKEN").then(|| "s3cret".to_owned());
    Config::load(Some(file.path()), Cold::Follow, |reference| reference.read(secret)).map_err(|error| error.to_string())
}

#[test]
fn with_no_file_the_well_known_registries_work() {
    let config = Config::load(None, Cold::Redirect, no_secret).unwrap();
    assert_eq!(config.upstreams.len(), profile::known().count(), "no id is there twice");
    let hub = &config.upstreams[DEFAULT_UPSTREAM];
    assert_eq!(hub.url.as_str(), "https://registry-1.docker.io/");
    assert_eq!(hub.token_realms[0].host_str(), Some("auth.docker.io"));
    assert_eq!((hub.cold, hub.library, hub.tags.fresh), (Cold::Redirect, true, Duration::from_mins(5)));
    let upstream = |id: &str| &config.upstreams[id];
    assert_eq!(upstream("europe-west1-docker.pkg.dev").url.as_str(), "https://europe-west1-docker.pkg.dev/");
    assert_eq!(upstream("lscr.io").token_realms[0].host_str(), Some("ghcr.io"));
    assert_eq!((upstream("ghcr.io").referrers, upstream("quay.io").referrers), (Referrers::TagOnly, Referrers::Ask));
    let official =
        hub.alternates.iter().map(|other| other.name(&"library/nginx".parse().unwrap()).unwrap().to_string());
    assert_eq!(official.collect::<Vec<_>>(), ["docker/library/nginx", "library/nginx"]);
}

#[test]
fn a_table_without_url_is_the_host_of_its_id_and_has_its_profile() {
    let config = load("[upstreams.\"mycorp.azurecr.io\"]\n[upstreams.\"us-docker.pkg.dev\"]\nfresh = \"1h\"").unwrap();
    let upstream = |id: &str| &config.upstreams[id];
    assert_eq!(upstream("mycorp.azurecr.io").url.as_str(), "https://mycorp.azurecr.io/");
    let families = ["us-docker.pkg.dev", "eu-docker.pkg.dev", "asia-docker.pkg.dev"]
        .map(|id| config.upstreams.get(id).map(|upstream| upstream.family));
    assert_eq!(families, [Some(None), None, Some(Some("*-docker.pkg.dev"))], "one with a table is shown by itself");
}

#[test]
fn a_profile_is_found_by_the_id_and_else_by_the_host_of_the_url() {
    let config = load("[upstreams.\"hub2\"]\nurl = \"https://registry-1.docker.io\"").unwrap();
    let hub = &config.upstreams["hub2"];
    assert_eq!((hub.library, hub.referrers, hub.alternates.len()), (true, Referrers::TagOnly, 2));
    assert_eq!(hub.token_realms[0].host_str(), Some("auth.docker.io"));
    assert!(hub.aliases.is_empty(), "index.docker.io is docker.io");
    // Where docker.io is a mirror of it, its names are still written as there.
    let config = load("[upstreams.\"docker.io\"]\nurl = \"https://mirror.gcr.io\"").unwrap();
    assert!(config.upstreams["docker.io"].library);
}

#[test]
fn a_private_alternate_of_what_is_private_has_to_be_shared() {
    let private = |name: &str| {
        format!("[upstreams.\"{name}.example\"]\ncredentials = {{ username = \"me\", password_env = \"HUB_TOKEN\" }}\n")
    };
    let with = |here: &str, shared: &str| {
        load(&format!("{here}alternates = [{{ upstream = \"b.example\"{shared} }}]\n{}", private("b")))
    };
    let error = with(&private("a"), "").unwrap_err();
    assert!(error.contains("upstreams.\"a.example\".alternates:") && error.contains("shared = true"), "{error}");
    assert!(with(&private("a"), ", shared = true").is_ok());
    assert!(with("[upstreams.\"a.example\"]\n", "").is_ok(), "what is public there is not asked for here at all");
}

#[test]
fn a_permission_lasts_an_hour_or_what_is_set_nearest_and_never_less_than_a_minute() {
    let config = load("[upstreams.\"a.example\"]\n[rules.\"a.example/team\"]\npermission = \"10m\"").unwrap();
    let minutes = |permission: Duration| permission.as_secs() / 60;
    assert_eq!(minutes(config.upstreams["a.example"].permission), 60);
    let rule = config.rules[&"a.example/team".parse().unwrap()].settings.clone().unwrap();
    assert_eq!(minutes(rule.permission), 10);
    let config = load("permission = \"1d\"").unwrap();
    assert_eq!(minutes(config.upstreams["ghcr.io"].permission), 24 * 60);
    for (text, key) in [
        ("permission = \"59s\"", "permission:"),
        ("[upstreams.\"a.example\"]\npermission = \"0s\"", "upstreams.\"a.example\".permission:"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(key), "{error}");
    }
}

const RULES: &str = "
    fresh = \"10m\"
    stale = \"2d\"
    [upstreams.\"docker.io\"]
    cold = \"wait\"
    deny = [\"evil/*\"]
    [rules.\"team/hub\"]
    upstream = \"docker.io\"
    path = \"library\"
    [rules.\"index.docker.io/acme\"]
    credentials = { username = \"bot\", password_env = \"HUB_TOKEN\" }
    fresh = { \"v*\" = \"1d\" }
    platforms = \"all\"
    allow = [\"acme/web*\", \"acme/api\"]
";

#[test]
fn a_rule_inherits_what_it_does_not_set_from_its_upstream_and_that_from_the_top() {
    let config = load(RULES).unwrap();
    let rule = |prefix: &str| &config.rules[&prefix.parse().unwrap()];
    let hub = rule("team/hub");
    assert_eq!((hub.place.to_string().as_str(), hub.settings.is_some()), ("docker.io/library", false));
    let acme = rule("index.docker.io/acme");
    assert_eq!(acme.place.to_string(), "docker.io/acme");
    let settings = acme.settings.as_ref().unwrap();
    assert_eq!((settings.cold, settings.stale), (Cold::Wait, Duration::from_hours(48)));
    assert_eq!(settings.credentials.as_ref().unwrap().username, "bot");
    let fresh = |tag: &str| settings.tags.fresh(&tag.parse().unwrap());
    assert_eq!((fresh("v1"), fresh("1")), (Some(Duration::from_hours(24)), Some(Duration::from_mins(10))));
    let whole = &config.upstreams[DEFAULT_UPSTREAM];
    assert_eq!((whole.platforms.clone(), whole.credentials.is_none()), (crate::oci::Platforms::Requested, true));
    let refused_by =
        |settings: &UpstreamConfig, name: &str| settings.names.refused_by(&name.parse().unwrap()).map(str::to_owned);
    for (name, expected) in [
        ("acme/web", None),
        ("acme/web-1", None),
        ("acme/api", None),
        ("acme/api/v2", Some("rules.\"index.docker.io/acme\".allow")),
        ("evil/web", Some("upstreams.\"docker.io\".deny")),
    ] {
        assert_eq!(refused_by(settings, name).as_deref(), expected, "{name}");
    }
    assert_eq!(refused_by(whole, "acme/other"), None);
}

#[test]
fn a_rule_inherits_what_it_does_not_set_from_the_rule_around_it() {
    let text = "
        [rules.\"ghcr.io/acme\"]
        credentials = { username = \"bot\", password_env = \"HUB_TOKEN\" }
        deny = [\"*-internal\"]
        [rules.\"all\"]
        upstream = \"ghcr.io\"
        stale = \"3h\"
        [rules.\"again\"]
        upstream = \"ghcr.io\"
        path = \"acme/x/y\"
        missing = \"7s\"
        [rules.\"ghcr.io/acme/x\"]
        fresh = \"1h\"
        [rules.\"ghcr.io/acme2\"]
        fresh = \"2h\"
    ";
    let config = load(text).unwrap();
    let settings = |prefix: &str| config.rules[&prefix.parse().unwrap()].settings.as_ref().unwrap();
    let refuses = |prefix: &str| settings(prefix).names.refused_by(&"acme/x/y-internal".parse().unwrap()).is_some();
    let fresh = |prefix: &str| settings(prefix).tags.fresh.as_secs() / 60;
    for (prefix, minutes, seconds) in [("ghcr.io/acme", 5, 30), ("ghcr.io/acme/x", 60, 30), ("again", 60, 7)] {
        let known = settings(prefix);
        assert_eq!(known.credentials.as_ref().map(|known| known.username.as_str()), Some("bot"), "{prefix}");
        assert!(refuses(prefix), "{prefix}");
        assert_eq!((fresh(prefix), known.missing.as_secs()), (minutes, seconds), "{prefix}");
    }
    assert!(settings("ghcr.io/acme2").credentials.is_none() && !refuses("ghcr.io/acme2"), "it is beside, not below");
    for prefix in config.rules.keys() {
        assert_eq!(settings(prefix.as_str()).stale, Duration::from_hours(3), "{prefix} is below all of ghcr.io");
    }
}

#[test]
fn rules_that_cannot_be_used_are_named() {
    for (text, expected) in [
        ("[rules.\"docker.io\"]\nfresh = \"1m\"", "rules.\"docker.io\": is the upstream itself"),
        ("[rules.\"index.docker.io\"]\nfresh = \"1m\"", "belong into [upstreams.\"docker.io\"]"),
        ("[rules.\"ghcr.io/a\"]\nupstream = \"ghcr.io\"", "rules.\"ghcr.io/a\".upstream: must not be given"),
        ("[rules.\"ghcr.io/a\"]\npath = \"b\"", "rules.\"ghcr.io/a\".path: must not be given"),
        ("[rules.\"a\"]\npath = \"b\"", "rules.\"a\".upstream: is required"),
        ("[rules.\"a\"]\nupstream = \"b.example\"", "rules.\"a\".upstream: \"b.example\" is no configured upstream"),
        ("[rules.\"a\"]\nupstream = \"ghcr.io\"\npath = \"/b\"", "line 3"),
        ("[rules.\"a/\"]\nupstream = \"ghcr.io\"", "line 1"),
        (
            "[rules.\"ghcr.io/acme\"]\nallow = [\"web*\"]",
            "rules.\"ghcr.io/acme\".allow[1]: \"web*\" matches no name there",
        ),
        ("[rules.\"ghcr.io/acme\"]\nallow = [\"acme\", \"acme-2/*\"]", "\"acme-2/*\" matches no name there"),
        ("[rules.\"ghcr.io/acme/a\"]\ndeny = [\"acme/b*\"]", "they begin with \"acme/a/\""),
        (
            "[rules.\"a\"]\nupstream = \"ghcr.io\"\npath = \"b\"\ndeny = [\"a\"]",
            "rules.\"a\".deny[1]: \"a\" matches no name",
        ),
        ("[rules.\"ghcr.io/a\"]\nallow = [\"A*\"]", "rules.\"ghcr.io/a\".allow[1]: \"A*\" is no pattern of names"),
        ("[upstreams.\"ghcr.io\"]\ndeny = [\"a\", \"\"]", "upstreams.\"ghcr.io\".deny[2]: \"\" is no pattern"),
        ("[upstreams.\"docker.io\"]\ndeny = [\"nginx\"]", "write \"library/nginx\""),
        ("[rules.\"ghcr.io/a\"]\nalow = [\"a/*\"]", "did you mean `allow`?"),
        ("[rules.\"ghcr.io/a\"]\nurl = \"https://a.b\"", "unknown field `url`"),
        (
            "[rules.\"ghcr.io/a\"]\ncredentials = { username = \"me\", password_env = \"NOT_SET\" }",
            "rules.\"ghcr.io/a\".credentials: the environment variable NOT_SET is not set",
        ),
        (
            "[rules.\"ghcr.io/a\"]\nfresh = \"1m\"\n[rules.\"b\"]\nupstream = \"ghcr.io\"\npath = \"a\"\nstale = \"1m\"",
            "rules.\"ghcr.io/a\": has settings for ghcr.io/a, and so has rules.\"b\"",
        ),
    ] {
        let message = load(text).unwrap_err();
        assert!(message.contains(expected), "{text}: {message}");
    }
    // Two names of one place are no contradiction as long as only one of them says what holds there.
    load("[rules.\"ghcr.io/a\"]\nfresh = \"1m\"\n[rules.\"b\"]\nupstream = \"ghcr.io\"\npath = \"a\"").unwrap();
}

#[test]
fn an_upstream_overrides_the_defaults_of_the_file() {
    let config =
        load("fresh = \"1h\"\n[upstreams.\"my.registry\"]\nurl = \"http://127.0.0.1:5001\"\nfresh = \"10s\"").unwrap();
    assert_eq!(config.upstreams["my.registry"].tags.fresh, Duration::from_secs(10));
    assert_eq!(config.upstreams["ghcr.io"].tags.fresh, Duration::from_hours(1));
    let config =
        load("[upstreams.\"ghcr.io\"]\nfresh = { \"*\" = \"1m\", \"v*\" = \"1d\" }\nimmutable = [\"v1\"]").unwrap();
    let tags = &config.upstreams["ghcr.io"].tags;
    let fresh = |tag: &str| tags.fresh(&tag.parse().unwrap());
    assert_eq!(
        (fresh("x"), fresh("v2"), fresh("v1")),
        (Some(Duration::from_mins(1)), Some(Duration::from_hours(24)), None)
    );
}

#[test]
fn a_mistake_is_named_by_its_line_and_its_key() {
    for (text, place) in [
        ("misses = 1\nfresh = 5", "line 2, column 9: fresh: "),
        (
            "[upstreams.\"ghcr.io\"]\nfresh = 5",
            "line 2, column 9: upstreams.\"ghcr.io\".fresh: expected a duration like",
        ),
        (
            "[upstreams.\"a.b\"]\nurl = \"https://a.b/path\"",
            "line 2, column 7: upstreams.\"a.b\".url: must be scheme, host and port only",
        ),
        (
            "listen = \"127.0.0.1:1\"\nfrehs = \"5m\"\n",
            "line 2, column 1: frehs: unknown field `frehs` — did you mean `fresh`?",
        ),
        ("[rules.\"ghcr.io/a\"]\nallow = [\n  \"a\",\n  5,\n]", "line 4, column 3: rules.\"ghcr.io/a\".allow[2]: "),
        (
            "[upstreams.\"a.b\"]\ncredentials = { username = 5 }",
            "line 2, column 28: upstreams.\"a.b\".credentials.username: ",
        ),
        (
            "[[schedule]]\nevery = \"6h\"\nimages = []\nplatforms = \"all\"\n[[schedule]]\nevery = 6",
            "line 6, column 9: schedule[2].every: ",
        ),
        ("[upstreams.\"a:b\"]\nurl = \"https://a.b\"", "line 1, column 12: upstreams.\"a:b\": "),
        ("platforms = [\"linux/amd64\", \"amd64\"]", "line 1, column 13: platforms: "),
        // Tables of one name that stand apart.
        (
            "[[schedule]]\nevery = \"6h\"\nimages = []\nplatforms = \"all\"\n[upstreams.\"a.b\"]\nfills = 0\n\
             [[schedule]]\nevery = \"6h\"\nimages = []\nplatforms = \"all\"",
            "line 6, column 9: upstreams.\"a.b\".fills: ",
        ),
        (
            "[rules.\"ghcr.io/a\"]\nfresh = \"1h\"\n[upstreams.\"a.b\"]\nfills = 0\n[rules.\"ghcr.io/b\"]\n",
            "line 4, column 9: upstreams.\"a.b\".fills: ",
        ),
        (
            "[upstreams.\"a.b\"]\nurl = \"https://a.b\"\ncoold = \"wait\"\n",
            "line 3, column 1: upstreams.\"a.b\".coold: unknown field `coold` — did you mean `cold`?",
        ),
        ("access = true", "line 1, column 10: access: invalid type: boolean `true`, expected a table"),
        ("upstreams.\"a.b\".fills = 0\n[rules]", "line 1, column 25: upstreams.\"a.b\".fills: "),
    ] {
        let message = load(text).unwrap_err();
        assert!(message.contains(place), "{text}: {message}");
    }
}

#[test]
fn patterns_that_match_a_name_below_the_place_of_a_rule_are_taken() {
    for pattern in ["acme", "acme/web", "acme*", "ac*/web", "*", "*/web", "*-internal", "acme/*", "acme/a/b"] {
        load(&format!("[rules.\"ghcr.io/acme\"]\nallow = [\"{pattern}\"]")).expect(pattern);
    }
}

#[test]
fn values_that_cannot_be_used_are_named() {
    for (text, expected) in [
        ("[upstreams.\"ab\"]\nfresh = \"1s\"", "upstreams.\"ab\".url: is required"),
        ("[upstreams.\"a.b\"]\nurl = \"ftp://a.b\"", "upstreams.\"a.b\".url"),
        ("[upstreams.\"a:b\"]\nurl = \"https://a.b\"", "line 1"),
        ("[upstreams.\"a.b:5000\"]", "write [upstreams.\"a.b\"] and url = \"https://a.b:5000\""),
        ("[upstreams.\"a.b\"]\nurl = \"foo.example.com\"", "write \"https://foo.example.com\""),
        ("[upstreams.\"a.b\"]\nurl = \"localhost:5000\"", "write \"https://localhost:5000\""),
        ("[upstreams.\"a.b\"]\ntoken_realms = [\"auth.a.b\"]", "write \"https://auth.a.b\""),
        (
            "[upstreams.\"a.b\"]\naliases = [\"ghcr.io\"]",
            "upstreams.\"a.b\".aliases: \"ghcr.io\" is what upstreams.\"ghcr.io\" is called",
        ),
        (
            "[upstreams.\"a.b\"]\naliases = [\"x\"]\n[upstreams.\"a.c\"]\naliases = [\"y\", \"x\"]",
            "upstreams.\"a.c\".aliases: \"x\" is what upstreams.\"a.b\"",
        ),
        (
            "[upstreams.\"ghcr.io\"]\naliases = [\"index.docker.io\"]",
            "\"index.docker.io\" is what upstreams.\"docker.io\"",
        ),
        ("fresh = \"5 parsecs\"", "is no duration"),
        ("cold = \"waitt\"", "did you mean `wait`?"),
        ("keep = \"23h\"", "must be \"1d\" or more"),
        ("keep = \"always\"", "is no duration"),
        ("max_size = \"50\"", "is no size"),
        ("max_size = \"99999999TB\"", "is no size"),
        ("max_size = \"GB\"", "is no size"),
        (
            "[upstreams.\"docker.io\"]\ncredentials = { username = \"me\", password_env = \"NOT_SET\" }",
            "NOT_SET is not set",
        ),
        ("[upstreams.\"docker.io\"]\ncredentials = { username = \"me\" }", "password_env"),
        ("listen = \"nowhere\"", "line 1"),
        ("platforms = [\"amd64\"]", "linux/amd64"),
        ("platforms = \"some\"", "expected \"requested\", \"all\", or a list"),
        ("[[schedule]]\nevery = \"6h\"\nimages = [\"a\"]", "missing field `platforms`"),
        ("[[schedule]]\nevery = \"0s\"\nimages = []\nplatforms = \"all\"", "schedule[1].every"),
        ("[[schedule]]\nevery = \"6h\"\nimages = [\"A b\"]\nplatforms = \"all\"", "\"A b\" is no image"),
        ("[[schedule]]\nevery = \"6h\"\nimages = []\nplatforms = \"requested\"", "schedule[1].platforms"),
        ("[rules.\"ghcr.io/a\"]\nallow = \"acme/*\"", "write allow = [\"acme/*\"]"),
        ("= 1", "line 1"),
    ] {
        let message = load(text).unwrap_err();
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn what_is_kept_is_said_by_time_size_and_pins() {
    let retention = |text: &str| load(text).unwrap().retention;
    assert_eq!(retention(""), Retention { keep: Some(DEFAULT_KEEP), pin: Vec::new(), max_size: None });
    let text = "keep = \"1d\"\nmax_size = \"50GB\"\npin = [\"docker.io/library/postgres:16*\"]";
    let pin = vec!["docker.io/library/postgres:16*".into()];
    let keep = Some(Duration::from_hours(24));
    assert_eq!(retention(text), Retention { keep, pin, max_size: Some(50_000_000_000) });
    assert_eq!(retention("keep = \"forever\"").keep, None);
    for (text, bytes) in [("0B", 0), ("3 KiB", 3072), ("512MB", 512_000_000), ("1TiB", 1 << 40)] {
        assert_eq!(retention(&format!("max_size = \"{text}\"")).max_size, Some(bytes));
    }
}

#[test]
fn secrets_come_by_reference_and_are_not_printed() {
    let config =
        load("[upstreams.\"docker.io\"]\ncredentials = { username = \"me\", password_env = \"HUB_TOKEN\" }").unwrap();
    let credentials = config.upstreams[DEFAULT_UPSTREAM].credentials.clone().unwrap();
    assert_eq!(credentials.password, SecretSource::Text(crate::values::secret::Secret::new("s3cret")));
    assert!(!format!("{config:?}").contains("s3cret"));
}

const ACCESS: &str = "[access]\nrobots = true\n";

#[test]
fn budgets_and_the_largest_blob_are_what_the_file_says() {
    let file = "misses = 1\npulls = 2\nnew_bytes = \"3MB\"\n[upstreams.\"ghcr.io\"]\nmax_blob = \"5GB\"\n\
                [rules.\"ghcr.io/acme\"]\nmax_blob = \"20GB\"\n[rules.\"ghcr.io/other\"]\nfresh = \"1h\"\n";
    let config = load(file).unwrap();
    assert_eq!(config.budgets, Limits { misses: 1, pulls: 2, new_bytes: 3_000_000 });
    let most = |settings: &UpstreamConfig| settings.max_blob.clone().map(|most| (most.bytes, most.key));
    let rule = |prefix: &str| most(config.rules[&prefix.parse().unwrap()].settings.as_ref().unwrap());
    let whole = Some((5_000_000_000, "upstreams.\"ghcr.io\".max_blob".to_owned()));
    assert_eq!(most(&config.upstreams["ghcr.io"]), whole);
    assert_eq!(rule("ghcr.io/acme"), Some((20_000_000_000, "rules.\"ghcr.io/acme\".max_blob".to_owned())));
    assert_eq!(rule("ghcr.io/other"), whole, "inherited, and the key is where it stands");
    let defaults = load("").unwrap();
    assert_eq!(defaults.budgets, Limits { misses: 120, pulls: 1200, new_bytes: 1 << 40 });
    assert!(defaults.upstreams.values().all(|upstream| upstream.max_blob.is_none()));
}
