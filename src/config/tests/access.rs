//! `[access]`, `[[policy]]`, and what is private.

use super::{ACCESS, load};

#[test]
fn a_policy_that_could_mean_something_else_than_it_says_is_refused() {
    for (rule, message) in [
        ("who = []", "who: is empty"),
        ("what = []", "what: is empty"),
        ("networks = []", "networks: is empty"),
        ("claims = {}", "claims: is empty"),
        ("who = [\"robots:ci\"]", "\"robots:ci\" is no caller"),
        ("who = [\"ci\"]", "\"ci\" is no caller"),
        ("what = [\"ghcr.oi/acme/*\"]", "begins with no configured upstream"),
        ("what = [\"index.docker.io/acme/*\"]", "begins with no configured upstream"),
        ("what = [\"docker.io/nginx\"]", "write \"docker.io/library/nginx\""),
        ("what = [\"ghcr.io\"]", "write \"ghcr.io/*\""),
        ("what = [\"ghcr.io/acme/a:v1\"]", "is about no repository"),
        ("what = [\"ghcr.io/acme/*@sha256:*\"]", "is about no repository"),
        ("what = [\"ghcr.io/acme/\"]", "is about no repository"),
        ("what = [\"ghcr.io/\"]", "is about no repository"),
        ("what = [\"ghcr.io/Acme/*\"]", "is about no repository"),
        ("what = [\"*/acme/a:v1\"]", "is about no repository"),
        ("what = [\"*:v1\"]", "is about no repository"),
        ("what = [\"*.io/acme/\"]", "is about no repository"),
    ] {
        let error = load(&format!("{ACCESS}[[policy]]\n{rule}\nallow = false")).unwrap_err();
        assert!(error.contains("policy[1].") && error.contains(message), "{rule}: {error}");
    }
    let logins = "[access]\nservice = \"cr.test\"\nrobots = true\n[access.iam]\naccounts = [\"123456789012\"]\n\
                  roles = [\"arn:aws:iam::210987654321:role/node-*\"]\n[access.oidc.ci]\nissuer = \"https://ci.test\"\n\
                  audience = \"cr.test\"\nclaims = { owner = \"1\" }\n";
    let none = "[access]\nanonymous = true\n";
    for (access, rule, message) in [
        (none, "who = [\"robot:*\"]", "access.robots is not true"),
        (none, "who = [\"r*\"]", "access.robots is not true"),
        (none, "who = [\"iam:*\"]", "there is no [access.iam]"),
        (none, "who = [\"oidc:*\"]", "there is no [access.oidc.*]"),
        (none, "claims = { a = \"b\" }", "policy[1].claims"),
        (logins, "who = [\"robot:ci\"]\nclaims = { a = \"b\" }", "policy[1].claims"),
        (logins, "who = [\"robot:CI-*\"]", "lower-case letters"),
        (logins, "who = [\"robot:aws\"]", "aws and oidc are none"),
        (logins, "who = [\"robot:\"]", "lower-case letters"),
        (logins, "who = [\"anonymous:x\"]", "a principal is"),
        (logins, "who = [\"oidc:github:*\"]", "there is no [access.oidc.github]"),
        (logins, "who = [\"oidc:ci\"]", "a principal is"),
        (logins, "who = [\"iam:123456789012\"]", "is no arn"),
        (logins, "who = [\"iam:arn:aws:iam::1234:role/*\"]", "is no account"),
        (logins, "who = [\"iam:arn:aws:sts::123456789012:assumed-role/node/*\"]", "a session of a role is the role"),
        (logins, "who = [\"iam:arn:aws:iam::123456789012:role/eks/*\"]", "leaves the path of a role out"),
        (logins, "who = [\"iam:arn:aws:iam::123456789012:group/a\"]", "neither role nor user"),
        (logins, "who = [\"iam:arn:aws:iam::999999999999:role/a\"]", "neither its account nor its role"),
    ] {
        let error = load(&format!("{access}[[policy]]\n{rule}\nallow = true")).unwrap_err();
        assert!(error.contains("policy[1].") && error.contains(message), "{rule}: {error}");
    }
    for who in [
        "robot:*",
        "robot:*-ci",
        "robot:*ws",
        "robot:node-*",
        "anonymous",
        "a*",
        "oidc:*",
        "oidc:c*",
        "oidc:ci:repo:acme/*",
        "iam:*",
        "i*",
        "iam:arn:aws:iam::123456789012:root",
        "iam:arn:aws:iam::123456789012:user/a/b",
        "iam:*:role/node",
        "iam:arn:aws:iam::*:role/node",
        "iam:arn:aws:iam::210987654321:role/node-1",
        "iam:arn:*",
    ] {
        assert!(load(&format!("{logins}[[policy]]\nwho = [\"{who}\"]\nallow = true")).is_ok(), "{who}");
    }
    for (role, message) in [
        ("*", "has to name one account"),
        ("arn:aws:iam::*:role/node", "has to name one account"),
        ("arn:aws:sts::123456789012:assumed-role/node/i-1", "a session of a role is the role"),
    ] {
        let error = load(&logins.replace("arn:aws:iam::210987654321:role/node-*", role)).unwrap_err();
        assert!(error.contains("access.iam.roles[1]: ") && error.contains(message), "{role}: {error}");
    }
    for rule in [
        "who = [\"*\"]",
        "who = [\"r*\", \"anonymous\"]",
        "what = [\"*/acme/*\", \"docker.io/nginx*\"]",
        "what = [\"*\", \"ghcr.io*\", \"ghcr.io/*\", \"*-docker.pkg.dev/*\", \"ghcr.io/acme/a*b\"]",
        "",
    ] {
        let config = load(&format!("{ACCESS}[[policy]]\n{rule}\nallow = true")).unwrap();
        assert_eq!(config.access.unwrap().policy.0.len(), 1, "{rule}");
    }
    // However an IPv4 network is written, it is the one that callers are in.
    let mapped = "[access]\nanonymous = [\"::ffff:10.0.0.0/104\"]\n[[policy]]\nnetworks = [\"::ffff:10.1.0.0/112\"]\nallow = true";
    let access = load(mapped).unwrap().access.unwrap();
    assert!(
        access.anonymous.admits("10.1.2.3".parse().ok().into())
            && !access.anonymous.admits("11.1.2.3".parse().ok().into())
    );
    assert_eq!(access.policy.0[0].networks, ["10.1.0.0/16".parse().unwrap()]);
    assert!(load("[[policy]]\nallow = true").unwrap_err().contains("[access]"));
}

#[test]
fn an_operator_is_named_with_its_kind_and_is_never_anonymous() {
    let oidc = "[access.oidc.ci]\nissuer = \"https://ci.test\"\naudience = \"cr.test\"\nclaims = { owner = \"1\" }\n";
    for (who, message) in [
        ("anonymous", "an operator is robot:<name>, iam:<arn> or oidc:<issuer>:<subject>"),
        ("*", "an operator is robot:<name>"),
        ("*:ops", "an operator is robot:<name>"),
        ("ops", "an operator is robot:<name>"),
        ("admin:ops", "an operator is robot:<name>"),
        ("robots:ops", "an operator is robot:<name>"),
        ("", "an operator is robot:<name>"),
        ("robot:", "the name of a robot has"),
        ("robot:Ops", "the name of a robot has"),
        ("iam:arn:aws:iam::123456789012:role/ops", "there is no [access.iam]"),
        ("oidc:github:*", "there is no [access.oidc.github]"),
    ] {
        let error = load(&format!("{ACCESS}operators = [\"robot:ops\", \"{who}\"]\n{oidc}")).unwrap_err();
        assert!(error.contains(&format!("access.operators[2]: \"{who}\" is no operator: {message}")), "{error}");
    }
    let operators = |line: &str| load(&format!("{ACCESS}{line}\n{oidc}")).unwrap().access.unwrap();
    let principal = |text: &str| text.parse().unwrap();
    for (line, who, expected) in [
        ("", "robot:ops", false),
        ("operators = []", "robot:ops", false),
        ("operators = [\"robot:ops\"]", "robot:ops", true),
        ("operators = [\"robot:ops\"]", "robot:ops2", false),
        ("operators = [\"robot:*\", \"oidc:ci:*\"]", "anonymous", false),
        ("operators = [\"robot:*\"]", "oidc:ci:robot:ops", false),
        ("operators = [\"oidc:ci:repo:acme/*\"]", "oidc:ci:repo:acme/ops", true),
    ] {
        assert_eq!(operators(line).is_operator(&principal(who)), expected, "{line}: {who}");
    }
    assert!(load("[access]\nanonymous = true\noperators = [\"robot:ops\"]").unwrap_err().contains("access.robots"));
}

#[test]
fn an_issuer_is_what_its_tokens_say_to_the_letter() {
    let issuer = |issuer: &str| {
        let table = format!("[access.oidc.ci]\nissuer = \"{issuer}\"\naudience = \"a\"\nclaims = {{ a = \"b\" }}");
        load(&table).map(|config| config.access.unwrap().oidc["ci"].clone())
    };
    for written in ["https://ci.test", "https://ci.test/", "https://CI.test/id/1"] {
        assert_eq!(issuer(written).unwrap().issuer, written);
    }
    let discovery = |written: &str| issuer(written).unwrap().discovery.to_string();
    assert_eq!(discovery("https://ci.test/id/1"), "https://ci.test/id/1/.well-known/openid-configuration");
    assert_eq!(discovery("https://ci.test/"), "https://ci.test/.well-known/openid-configuration");
    for wrong in ["http://ci.test", "ci.test", "https://ci.test?a=b", "https://ci.test#a", "file:///ci", ""] {
        assert!(issuer(wrong).unwrap_err().contains("access.oidc.ci.issuer"), "{wrong}");
    }
}

#[test]
fn what_the_access_table_cannot_mean_is_named() {
    let oidc = "issuer = \"https://ci.test\"\naudience = \"a\"\nclaims = { a = \"b\" }";
    let iam = "service = \"cr.test\"\n[access.iam]\naccounts = [\"123456789012\"]";
    // The services that identify callers are reached over TLS.
    for (line, key) in [
        (&*format!("[access.oidc.ci]\n{oidc}\njwks_uri = \"http://ci.test/keys\""), "access.oidc.ci.jwks_uri"),
        (&*format!("[access.oidc.\"a:b\"]\n{oidc}"), "access.oidc"),
        (&*format!("{iam}\nendpoint = \"http://sts.test\""), "access.iam.endpoint"),
        (&*format!("{iam}\nendpoint = \"https://a.test/b\""), "access.iam.endpoint"),
        ("service = \"cr.test\"\n[access.iam]\naccounts = [\"1234\"]", "access.iam.accounts"),
        ("service = \"cr.test\"\n[access.iam]", "access.iam"),
        ("[access.iam]\naccounts = [\"123456789012\"]", "access.service"),
        ("service = \"a\\\"b\"", "access.service"),
        ("service = \"\"", "access.service"),
        ("url = \"https://cr.example.com/path\"", "access.url"),
        ("token_life = \"2h\"", "access.token_life"),
        ("signing_keys = { env = \"UNKNOWN\" }", "access.signing_keys"),
        ("signing_keys = {}", "access.signing_keys"),
        ("anonymous = [\"everyone\"]", "access.anonymous[1]: \"everyone\" is no network"),
    ] {
        let error = load(&format!("{ACCESS}{line}")).unwrap_err();
        assert!(error.contains(key), "{line}: {error}");
    }
    assert!(
        !load(&format!("{ACCESS}anonymous = []")).unwrap().access.unwrap().anonymous.admits(None.into()),
        "nobody, not everybody"
    );
    for wrong in ["o-*", "", "o-a1b2", "123456789012"] {
        let error =
            load(&format!("[access]\nservice = \"cr.test\"\n[access.iam]\norganization = \"{wrong}\"")).unwrap_err();
        assert!(error.contains("access.iam.organization: "), "{wrong}: {error}");
    }
    for nobody in ["", "anonymous = false", "anonymous = []", "robots = false", "token_life = \"5m\""] {
        let error = load(&format!("[access]\n{nobody}")).unwrap_err();
        assert!(error.contains("access: names no login and no network"), "{nobody}: {error}");
    }
}

#[test]
fn what_needs_our_credentials_is_private_unless_it_says_otherwise() {
    let text = "[upstreams.\"docker.io\"]\ncredentials = { username = \"me\", password_env = \"HUB_TOKEN\" }\n\
                [rules.\"docker.io/library\"]\npublic = true\n\
                [upstreams.\"123456789012.dkr.ecr.eu-west-1.amazonaws.com\"]\n\
                [upstreams.\"internal.test\"]\npublic = false\n[rules.\"internal.test/open\"]\npublic = true\n\
                [rules.\"internal.test/other\"]\nfresh = \"1h\"\n[rules.\"ghcr.io/acme\"]\npublic = false\n";
    let config = load(text).unwrap();
    for (id, private) in [
        ("docker.io", true),
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", true),
        ("internal.test", true),
        ("ghcr.io", false),
    ] {
        assert_eq!(config.upstreams[id].is_private(), private, "{id}");
    }
    for (prefix, private) in [
        ("docker.io/library", false),
        ("internal.test/open", false),
        ("internal.test/other", true),
        ("ghcr.io/acme", true),
    ] {
        let settings = config.rules[&prefix.parse().unwrap()].settings.as_ref().unwrap();
        assert_eq!(settings.is_private(), private, "{prefix}");
    }
}

#[test]
fn claims_are_patterns_numbers_or_booleans() {
    let with = |claims: &str| {
        load(&format!(
            "[access.oidc.ci]\nissuer = \"https://ci.test\"\naudience = \"cr.test\"\nclaims = {claims}\n\
             [[policy]]\nclaims = {claims}\nallow = true\n"
        ))
    };
    let access = with("{ owner = 9919, internal = true, ref = \"refs/*\", sub = \"*\" }").unwrap().access.unwrap();
    for claims in [&access.oidc["ci"].claims, &access.policy.0[0].claims] {
        let written: Vec<&str> = claims.values().map(crate::values::pattern::Pattern::as_str).collect();
        assert_eq!(written, ["true", "9919", "refs/*", "*"]);
    }
    for everybody in ["{ owner = \"*\" }", "{ owner = \"*\", sub = \"**\" }"] {
        let error = with(everybody).unwrap_err();
        assert!(error.contains("access.oidc.ci.claims: ") && error.contains("is let in"), "{error}");
    }
    assert!(with("{ owner = [\"a\"] }").unwrap_err().contains("a whole number, true or false"));
}
