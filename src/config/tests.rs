use super::*;

fn load(text: &str) -> Result<Config, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let secret = |name: &str| (name == "HUB_TOKEN").then(|| "s3cret".to_owned());
    Config::load(Some(file.path()), Cold::Follow, secret).map_err(|error| error.to_string())
}

#[test]
fn with_no_file_the_well_known_registries_work() {
    let config = Config::load(None, Cold::Redirect, |_| None).unwrap();
    assert_eq!(config.upstreams.len(), WELL_KNOWN.len());
    let hub = &config.upstreams[&DEFAULT_UPSTREAM.parse().unwrap()];
    assert_eq!(hub.url.as_str(), "https://registry-1.docker.io/");
    assert_eq!(hub.token_realms[0].host_str(), Some("auth.docker.io"));
    assert_eq!((hub.cold, hub.library, hub.tags.fresh), (Cold::Redirect, true, DEFAULT_FRESH));
}

#[test]
fn an_upstream_overrides_the_defaults_of_the_file() {
    let config =
        load("fresh = \"1h\"\n[upstreams.\"my.registry\"]\nurl = \"http://127.0.0.1:5001\"\nfresh = \"10s\"").unwrap();
    assert_eq!(config.upstreams[&"my.registry".parse().unwrap()].tags.fresh, Duration::from_secs(10));
    assert_eq!(config.upstreams[&"ghcr.io".parse().unwrap()].tags.fresh, Duration::from_hours(1));
    let config =
        load("[upstreams.\"ghcr.io\"]\nfresh = { \"*\" = \"1m\", \"v*\" = \"1d\" }\nimmutable = [\"v1\"]").unwrap();
    let tags = &config.upstreams[&"ghcr.io".parse().unwrap()].tags;
    let fresh = |tag: &str| tags.fresh(&tag.parse().unwrap());
    assert_eq!(
        (fresh("x"), fresh("v2"), fresh("v1")),
        (Some(Duration::from_mins(1)), Some(Duration::from_hours(24)), None)
    );
    let message = load("[upstreams.\"ghcr.io\"]\nfresh = 5").unwrap_err();
    assert!(message.contains("line 2") && message.contains("by pattern"), "{message}");
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_right_key() {
    let message = load("listen = \"127.0.0.1:1\"\nfrehs = \"5m\"\n").unwrap_err();
    assert!(message.contains("line 2, column 1") && message.contains("did you mean `fresh`?"), "{message}");
    let message = load("[upstreams.\"a.b\"]\nurl = \"https://a.b\"\ncoold = \"wait\"\n").unwrap_err();
    assert!(message.contains("line 3") && message.contains("did you mean `cold`?"), "{message}");
    let message = load("cold = \"waitt\"").unwrap_err();
    assert!(message.contains("did you mean `wait`?"), "{message}");
}

#[test]
fn values_that_cannot_be_used_are_named() {
    for (text, expected) in [
        ("[upstreams.\"a.b\"]\nfresh = \"1s\"", "upstreams.\"a.b\".url: is required"),
        ("[upstreams.\"a.b\"]\nurl = \"ftp://a.b\"", "upstreams.\"a.b\".url"),
        ("[upstreams.\"a.b\"]\nurl = \"https://a.b/path\"", "scheme, host and port only"),
        ("[upstreams.\"a:b\"]\nurl = \"https://a.b\"", "line 1"),
        ("fresh = \"5 parsecs\"", "is no duration"),
        ("fresh = 5", "line 1"),
        ("[upstreams.\"ghcr.io\"]\nfills = 0", "line 2"),
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
        ("[[schedule]]\nevery = \"0s\"\nimages = []\nplatforms = \"all\"", "schedule.every"),
        ("[[schedule]]\nevery = \"6h\"\nimages = [\"A b\"]\nplatforms = \"all\"", "\"A b\" is no image"),
        ("[[schedule]]\nevery = \"6h\"\nimages = []\nplatforms = \"requested\"", "schedule.platforms"),
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
    let credentials = config.upstreams[&DEFAULT_UPSTREAM.parse().unwrap()].credentials.clone().unwrap();
    assert_eq!(credentials.password, "s3cret");
    assert!(!format!("{config:?}").contains("s3cret"));
}
