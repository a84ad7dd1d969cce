//! All mistakes at once, and what can be used and never fits.

use super::super::*;
use super::no_secret;

/// The mistakes of a file, each with its line.
fn mistakes(text: &str) -> Vec<(usize, String)> {
    match Config::parse(text, Path::new("stopover.toml"), Cold::Follow, no_secret) {
        Err(ConfigError::Mistakes { mistakes, .. }) => mistakes
            .into_iter()
            .map(|Mistake { place, key, message }| (place.unwrap().0, format!("{key}: {message}")))
            .collect(),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn all_mistakes_are_told_at_once_and_nothing_that_follows_from_them() {
    for (text, expected) in [
        // Types and values, in tables that have a wrong name too.
        (
            "[Access]\nanonymos = [\"10.0.0.0/33\"]\nrobots = \"yes\"\n[[policy]]\nwho = [\"robot:ci\", \"ci\"]\n\
             what = [\"ghcr.oi/*\"]\nallow = \"true\"\n[upstream.reg]\ncold = \"folow\"\n[rules.team]\nupstream = \"reg\"\n\
             fresh = 5\n[[schedule]]\nevery = \"6x\"\nimages = [\"nginx\", \"NGINX\"]\n",
            &[
                (1, "did you mean `access`?"),
                (2, "did you mean `anonymous`?"),
                (2, "is no network like"),
                (3, "write robots = true"),
                (5, "policy[1].who[2]: \"ci\" is no caller"),
                (6, "as in \"ghcr.io/*\""),
                (7, "write allow = true"),
                (8, "did you mean `upstreams`?"),
                (8, "upstreams.\"reg\".url: is required"),
                (9, "did you mean `follow`?"),
                (12, "write fresh = \"5m\""),
                (13, "write platforms = "),
                (14, "write every = \"6h\""),
                (15, "write \"nginx\""),
            ][..],
        ),
        // What is left out is not missed.
        ("[access]\nanonymous = [\"10.0.0.0/33\"]", &[(2, "is no network")]),
        ("[access]\nrobots = true\n[[policy]]\nwho = [\"ci\"]\nallow = true", &[(4, "policy[1].who[1]")]),
        ("[access]\nrobots = 1\n[[policy]]\nwho = [\"robot:ci\"]\nallow = true", &[(2, "write robots = true")]),
        ("[[policy]]\nwho = [\"robot:CI\"]\nallow = true", &[(1, "say in [access]"), (2, "lower-case letters")]),
        ("[upstreams.reg]\nurl = 5\n[rules.a]\nupstream = \"reg\"", &[(2, "write url = ")]),
        ("[upstreams.\"a.b\"]\ncredentials = { username = \"me\", password = \"A\" }", &[(2, "write password_env")]),
        // Text that is no TOML hides neither what stands elsewhere nor adds anything.
        (
            "fresh = 5m\nstale = \"1x\"\n[upstreams.\"a.b\"\nurl = \"c.d\"\n[upstreams.\"c.d\"]\ncold = \"folow\"",
            &[(1, "write fresh = \"5m\""), (2, "write stale"), (3, "a table begins with"), (6, "did you mean")],
        ),
    ] {
        let told = mistakes(text);
        let fits = told.len() == expected.len()
            && told.iter().zip(expected).all(|(told, expected)| told.0 == expected.0 && told.1.contains(expected.1));
        assert!(fits, "{text}\n{told:#?}");
    }
    assert_eq!(mistakes(&"[[schedule]]\nevery = 1\n".repeat(100)).len(), 50, "there is an end");
}

#[test]
fn what_to_write_instead_is_told_with_each_mistake() {
    for (text, advice) in [
        ("[upstreams.docker.io]\nfresh = \"1m\"", "write [upstreams.\"docker.io\"]"),
        ("[upstreams.a.example.com]\nfresh = \"1m\"", "write [upstreams.\"a.example.com\"]"),
        ("[upstreams.\"docker.io\"]\nwait = \"5s\"", "it belongs at the top of the file"),
        ("url = \"https://a.b\"", "it belongs below [upstreams.\"<id>\"]"),
        ("[schedule]\nevery = \"6h\"", "write [[schedule]]"),
        ("pin = \"docker.io/a/b:1\"", "write pin = [\"docker.io/a/b:1\"]"),
        ("listen = \"cache.local:5000\"", "write listen = \"127.0.0.1:5000\""),
        ("listen: 127.0.0.1:5000", "write listen = \"127.0.0.1:5000\""),
        ("{ \"listen\": 1 }", "not JSON"),
        ("fresh = \"1m\"\nfresh = \"2m\"", "join both"),
        ("[rules.a]\nupstream = \"dockerhub\"", "did you mean \"docker.io\"?"),
        ("[upstreams.\"index.docker.io\"]", "belong into [upstreams.\"docker.io\"]"),
        ("[upstreams.\"registry-1.docker.io\"]\n[upstreams.\"docker.io\"]", "belong into [upstreams.\"docker.io\"]"),
        ("port = 5000", "did you mean `listen`?"),
        ("[[policy]]\nallow = 1\n[access]\nrobots = true", "write allow = true"),
    ] {
        let told = mistakes(text);
        assert!(told.len() == 1 && told[0].1.contains(advice), "{text}: {told:?}");
    }
}

#[test]
fn a_mistake_repeats_no_secret() {
    for text in [
        "[upstreams.\"a.b\"]\nurl = \"https://bot:HUNTER2@a.b\"",
        "[upstreams.\"a.b\"]\nurl = \"bot:HUNTER2@a.b/path?token=HUNTER2\"",
        "[upstreams.\"a.b\"]\nurl = \"https://a.b/?token=HUNTER2\"",
        "[upstreams.\"a.b\"]\nurl = [\"https://bot:HUNTER2@a.b\"]",
        "[upstreams.\"a.b\"]\ntoken_realms = \"https://bot:HUNTER2@a.b\"",
        "[upstreams.\"a.b\"]\ntoken_realms = [\"https://bot:HUNTER2@a.b\"]",
        "[upstreams.\"a.b\"]\ncredentials = \"me:HUNTER2\"",
        "[upstreams.\"a.b\"]\ncredentials = { username = \"me\", password = \"HUNTER2\" }",
        "[upstreams.\"a.b\"]\ncredentials = { username = \"me\", password_env = \"HUNTER2-x\" }",
        "[access]\nsigning_keys = \"HUNTER2\"",
        "[access]\nurl = \"https://bot:HUNTER2@a.b\"",
        "[access.oidc.a]\nissuer = \"https://u:HUNTER2@x\"\naudience = \"a\"\njwks_uri = \"u:HUNTER2@x\"\nclaims = { a = \"b\" }",
        "[access.oidc.a]\nissuer = \"https://x\"\naudience = \"a\"\njwks_uri = \"https://u:HUNTER2@x\"\nclaims = { a = \"b\" }",
    ] {
        let told = mistakes(text);
        assert!(!format!("{told:?}").contains("HUNTER2"), "{told:?}");
    }
}

#[test]
fn what_can_never_fit_is_a_warning_with_its_line() {
    let warned = |text: &str| -> Vec<String> {
        let secret = |_: SecretReference| Ok("secret".to_owned());
        let config = Config::parse(text, Path::new("stopover.toml"), Cold::Follow, secret).unwrap();
        config.warnings.iter().map(ToString::to_string).collect()
    };
    let private = "[upstreams.\"ghcr.io\"]\ncredentials = { username = \"me\", password_env = \"A\" }\n";
    let policy = "[access]\nrobots = true\n[[policy]]\nwhat = [\"ghcr.io/acme/*\"]\nallow = true\n";
    let schedule = |image: &str, platform: &str| {
        format!("[[schedule]]\nevery = \"6h\"\nimages = [\"{image}\"]\nplatforms = [\"{platform}\"]")
    };
    for (text, expected) in [
        (
            "pin = [\"postgres:16*\"]".to_owned(),
            "line 1, column 8: pin[1]: \"postgres:16*\" fits no image: write \"docker.io/library/postgres:16*\"",
        ),
        ("pin = [\"docker.io/postgres:16\"]".into(), "write \"docker.io/library/postgres:16\""),
        ("pin = [\"acme/web:*\"]".into(), "write \"docker.io/acme/web:*\""),
        ("pin = [\"k8s.gcr.io/pause:3*\"]".into(), "write \"registry.k8s.io/pause:3*\""),
        ("pin = [\"ghcr.io/a/b\"]".into(), "write \"ghcr.io/a/b:*\""),
        ("pin = [\"ghrc.io/a/b:1\"]".into(), "\"ghrc.io\" is no configured upstream"),
        (private.into(), "line 2, column 1: upstreams.\"ghcr.io\".credentials: no caller may pull"),
        (format!("{private}{}", policy.replace("ghcr.io/acme", "quay.io")), "no caller may pull"),
        (
            "[access]\nrobots = true\n[[policy]]\nallow = true\n[[policy]]\nwho = [\"robot:ci\"]\nallow = false".into(),
            "line 5, column 1: policy[2]: never decides",
        ),
        (
            "[rules.\"ghcr.io/acme\"]\nallow = [\"acme/web*\"]\ndeny = [\"acme/*\"]".into(),
            "line 3, column 8: rules.\"ghcr.io/acme\".deny: refuses all",
        ),
        ("[upstreams.\"ghcr.io\"]\nallow = [\"a/*\"]\ndeny = [\"a*\"]".into(), "all names that allow lets through"),
        (
            "[upstreams.\"ghcr.io\"]\nallow = [\"other/*\"]\n[rules.\"ghcr.io/acme\"]\nfresh = \"1h\"".into(),
            "line 3, column 8: rules.\"ghcr.io/acme\": allow = [\"other/*\"]",
        ),
        ("[upstreams.\"ghcr.io\"]\nimmutable = [\"acme/web:v*\"]".into(), "is no pattern of tags"),
        (
            schedule("ghrc.io/a/b:1", "linux/amd64"),
            "line 3, column 11: schedule[1].images[1]: \"ghrc.io\" is no configured",
        ),
        (schedule("nginx:1", "linux/arm46"), "did you mean \"linux/arm64\"?"),
        (
            format!("{}\n[upstreams.\"ghcr.io\"]\ndeny = [\"a/*\"]", schedule("ghcr.io/a/b", "linux/amd64")),
            "deny refuses a/b",
        ),
    ] {
        let told = warned(&text);
        assert!(told.first().is_some_and(|told| told.contains(expected)), "{text}: {told:?}");
    }
    for text in [
        "pin = [\"docker.io/library/postgres:16*\", \"*\", \"*:v1\", \"ghcr*\", \"*/web:1\", \"docker.io/*\"]"
            .to_owned(),
        format!("{private}public = true"),
        format!("{private}{policy}"),
        "[access]\nrobots = true\n[[policy]]\nwho = [\"robot:ci\"]\nallow = true\n[[policy]]\nallow = false".into(),
        "[rules.\"ghcr.io/acme\"]\nallow = [\"acme/*\"]\ndeny = [\"acme/web*\"]".into(),
        schedule("nginx:1", "linux/arm/v7"),
        schedule("registry.hub.docker.com/library/nginx", "windows/amd64"),
    ] {
        assert_eq!(warned(&text), Vec::<String>::new(), "{text}");
    }
}
