//! Real clients log in to the real program, in front of a private upstream; and what it says of that.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use stopover::local::operator_secret;
use support::images::{Image, Recipe};
use support::node::Node;
use support::program::{Installation, Stopover, UPSTREAM, output, run};
use support::registry::Registry;
use support::scripted::{Fault, Scripted};
use support::secrets;
use tempfile::NamedTempFile;
use tokio::net::{TcpListener, TcpStream};

/// The upstream's password.
const PASSWORD: &str = "of the upstream";

/// A cache that only the robot `puller` may pull private images from.
struct Cache {
    _upstream: Registry,
    image: Image,
    _password: NamedTempFile,
    installation: Installation,
    stopover: Stopover,
    /// Of the robot.
    secret: String,
}

impl Cache {
    async fn start() -> anyhow::Result<Self> {
        let upstream = Registry::start_with_password("alice", PASSWORD).await?;
        secrets::know_login("the password of an upstream", "alice", PASSWORD);
        let image = Recipe::docker("team/docker").push(&upstream).await?;
        let password = NamedTempFile::new()?;
        std::fs::write(&password, PASSWORD)?;
        let installation = Installation::with_configuration(&format!(
            "[access]\nrobots = true\n\
             [[policy]]\nwho = [\"robot:puller\"]\nwhat = [\"{UPSTREAM}/*\"]\nallow = true\n\
             [upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\n\
             credentials = {{ username = \"alice\", password_file = \"{}\" }}\n",
            upstream.url(),
            password.path().display()
        ))?;
        let installation = installation.logging("info,stopover=trace,stopover::audit=debug");
        let stopover = installation.start().await?;
        let mut this =
            Self { _upstream: upstream, image, _password: password, installation, stopover, secret: String::new() };
        this.secret = this.add("puller").await?;
        Ok(this)
    }

    /// Makes a robot, and reads its secret from what is printed.
    async fn add(&self, name: &str) -> anyhow::Result<String> {
        let secret = secret_in(&self.robot(&["add", name]).await?)?;
        secrets::know_login("the secret of a robot", name, &secret);
        Ok(secret)
    }

    async fn robot(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let (status, text) = self.stopover.run(&[&["robot"], arguments].concat()).await?;
        ensure!(status.success(), "{text}");
        Ok(text)
    }

    /// As a client names it.
    fn reference(&self) -> String {
        format!("{}/{UPSTREAM}/{}", self.stopover.address(), self.image.reference())
    }
}

/// The records of decisions in the log.
fn records(stopover: &Stopover) -> anyhow::Result<Vec<Value>> {
    let log = stopover.log();
    let events = log.lines().filter(|line| line.starts_with('{')).map(serde_json::from_str::<Value>);
    let mut events = events.collect::<Result<Vec<_>, _>>()?;
    events.retain(|event| event["target"] == "stopover::audit");
    Ok(events)
}

fn secret_in(printed: &str) -> anyhow::Result<String> {
    let secret = printed.lines().find_map(|line| line.strip_prefix("secret  ")).context("no secret is shown")?;
    ensure!(secret.starts_with("stopover_") && secret.len() > 40, "{secret}");
    Ok(secret.to_owned())
}

/// What a client says where it must not succeed.
async fn refusal(node: &Node, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    match node.run(program, arguments).await {
        Ok(printed) => anyhow::bail!("{program} {arguments:?} succeeded: {printed}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_logs_in_and_pulls_and_says_what_is_wrong() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let node = Node::new()?;
    let (address, reference) = (cache.stopover.address(), cache.reference());
    let pull = ["pull", "--quiet", "--tls-verify=false", "--arch", "amd64", &reference];
    let login = |secret| ["login", "--tls-verify=false", "--username", "puller", "--password", secret, address];
    let said = refusal(&node, "podman", &pull).await?;
    ensure!(said.contains("log in to this cache"), "{said}");
    let said = refusal(&node, "podman", &login("wrong")).await?;
    ensure!(said.contains("invalid username/password"), "{said}");
    node.run("podman", &login(&cache.secret)).await.with_context(|| cache.stopover.log())?;
    node.run("podman", &pull).await.with_context(|| cache.stopover.log())?;
    let digest = node.run("podman", &["image", "inspect", "--format", "{{.Digest}}", &reference]).await?;
    ensure!(digest.trim() == cache.image.digest, "podman pulled {digest}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pulls_with_credentials_and_says_what_is_wrong() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let node = Node::new()?;
    let (source, target) = (format!("docker://{}", cache.reference()), format!("dir:{}", node.path("image").display()));
    let stranger = cache.add("stranger").await?;
    let copy = async |credentials: String| {
        let credentials = ["--src-creds", &credentials];
        let copy = [&["copy", "--quiet", "--src-tls-verify=false"][..], &credentials, &[&source, &target]].concat();
        node.run("skopeo", &copy).await.map_err(|error| format!("{error:#}"))
    };
    for (credentials, words) in [
        ("puller:wrong".to_owned(), "the user name or the secret is wrong"),
        (format!("stranger:{stranger}"), "robot:stranger may not pull test.local/team/docker"),
    ] {
        let said = copy(credentials).await.err().context("it pulled")?;
        ensure!(said.contains(words), "{said}");
    }
    let pulled = copy(format!("puller:{}", cache.secret)).await;
    ensure!(pulled.is_ok(), "{pulled:?}\n{}", cache.stopover.log());
    let manifest = std::fs::read(node.path("image/manifest.json"))?;
    ensure!(support::images::digest_of(&manifest) == cache.image.digest, "skopeo pulled something else");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_logs_in_and_pulls_and_says_what_is_wrong() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let mut node = Node::new()?;
    node.write("daemon.json", "{}")?;
    let _containerd = node.start_containerd().await?;
    let _dockerd = node.start_dockerd().await?;
    let (address, reference) = (cache.stopover.address(), cache.reference());
    let login = |secret| ["login", "--username", "puller", "--password", secret, address];
    let pull = ["pull", "--quiet", "--platform", "linux/amd64", &reference];
    let said = refusal(&node, "docker", &pull).await?;
    ensure!(said.contains("log in to this cache"), "{said}");
    let said = refusal(&node, "docker", &login("wrong")).await?;
    ensure!(said.contains("the user name or the secret is wrong") || said.contains("unauthorized"), "{said}");
    node.run("docker", &login(&cache.secret)).await.with_context(|| cache.stopover.log())?;
    node.run("docker", &pull).await.with_context(|| cache.stopover.log())?;
    let digests = node.run("docker", &["image", "inspect", "--format", "{{.RepoDigests}}", &reference]).await?;
    ensure!(digests.contains(&cache.image.digest), "docker pulled {digests}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_with_credentials_and_with_a_header_of_its_hosts_toml() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let mut node = Node::new()?;
    let _containerd = node.start_containerd().await?;
    let (address, reference) = (cache.stopover.address(), cache.reference());
    let pull = ["images", "pull", "--snapshotter", "native", "--platform", "linux/amd64"];
    let with = |credentials: &'static str| [&pull[..], &["--plain-http", "--user", credentials]].concat();
    let said = refusal(&node, "ctr", &[&pull[..], &["--plain-http", &reference]].concat()).await?;
    ensure!(said.contains("401 Unauthorized"), "{said}");
    let said = refusal(&node, "ctr", &[with("puller:wrong"), vec![&reference]].concat()).await?;
    ensure!(said.contains("401 Unauthorized"), "{said}");
    let credentials = format!("puller:{}", cache.secret);
    let by_user = [&pull[..], &["--plain-http", "--user", &credentials, &reference]].concat();
    node.run("ctr", &by_user).await.with_context(|| cache.stopover.log())?;
    let list = node.run("ctr", &["images", "list"]).await?;
    ensure!(list.contains(&cache.image.digest), "{list}");
    // A mirror: containerd sends no credentials to it but those that its hosts.toml has.
    let reference = format!("{UPSTREAM}/{}", cache.image.reference());
    for (secret, pulls) in [("wrong", false), (cache.secret.as_str(), true)] {
        let header = BASE64_STANDARD.encode(format!("puller:{secret}"));
        let hosts = format!(
            "server = \"http://127.0.0.1:1\"\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
             [host.\"http://{address}\".header]\nAuthorization = \"Basic {header}\"\n"
        );
        node.write(&format!("hosts/{UPSTREAM}/hosts.toml"), &hosts)?;
        let directory = node.path("hosts").display().to_string();
        let pulled = node.run("ctr", &[&pull[..], &["--hosts-dir", &directory, &reference]].concat()).await;
        ensure!(pulled.is_ok() == pulls, "{pulled:?}\n{}", cache.stopover.log());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn robots_are_made_listed_rotated_and_removed_by_command() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let url = format!("http://{}/v2/", cache.stopover.address());
    let status = async |secret: &str| {
        let answer = reqwest::Client::new().get(&url).basic_auth("ci", Some(secret)).send().await?;
        anyhow::Ok(answer.status().as_u16())
    };
    let first = secret_in(&cache.robot(&["add", "ci", "--expires", "90d"]).await?)?;
    ensure!(status(&first).await? == 200);
    let list = cache.robot(&["list"]).await?;
    ensure!(list.lines().count() == 2 && list.contains("ci: made ") && list.contains(", expires "), "{list}");
    ensure!(list.contains("puller: made ") && list.contains("never expires"), "{list}");
    let second = secret_in(&cache.robot(&["rotate", "ci", "--overlap", "1h"]).await?)?;
    ensure!(status(&first).await? == 200 && status(&second).await? == 200);
    ensure!(cache.robot(&["list"]).await?.contains("its secret before is taken until "));
    let third = secret_in(&cache.robot(&["rotate", "ci", "--overlap", "0s"]).await?)?;
    ensure!(status(&second).await? == 401 && status(&third).await? == 200);
    cache.robot(&["remove", "ci"]).await?;
    ensure!(status(&third).await? == 401);
    let (failed, text) = cache.stopover.run(&["robot", "rotate", "ci"]).await?;
    ensure!(!failed.success() && text.contains("there is no robot ci"), "{text}");
    for secret in [first, second, third] {
        ensure!(!cache.stopover.log().contains(&secret), "a secret is logged");
    }
    Ok(())
}

/// A reverse proxy on the machine of the cache that says nothing of whom it serves: it passes bytes on.
async fn reverse_proxy(to: &str) -> anyhow::Result<String> {
    let (listener, to) = (TcpListener::bind("127.0.0.1:0").await?, to.to_owned());
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let to = to.clone();
            tokio::spawn(async move {
                let mut cache = TcpStream::connect(to).await?;
                tokio::io::copy_bidirectional(&mut client, &mut cache).await
            });
        }
    });
    Ok(address)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_passes_on_does_not_manage_robots() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let proxy = reverse_proxy(cache.stopover.address()).await?;
    let ask = |secret: &str| {
        let request = reqwest::Client::new().post(format!("http://{proxy}/_stopover/robots"));
        // As whoever the proxy serves would have it: it is called by its address, and says of nobody else.
        let request = request.header("host", cache.stopover.address()).header("stopover-operator", secret);
        request.body(r#"{"add": {"name": "thief"}}"#).send()
    };
    let signing = std::fs::read_to_string(cache.installation.data().join("signing_keys"))?;
    for wrong in ["", "secret", signing.trim()] {
        ensure!(ask(wrong).await?.status() == 403, "{wrong}");
    }
    ensure!(!cache.robot(&["list"]).await?.contains("thief"));
    let secret = std::fs::read_to_string(operator_secret(&cache.installation.data()))?;
    ensure!(ask(secret.trim()).await?.status() == 200, "whoever runs the cache");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_read_the_secret_of_operators_says_what_to_do() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let server = format!("http://{}", cache.stopover.address());
    for (arguments, words) in [
        (["gc", "--server", &server, "--data-dir", "/nowhere"], "cannot read the operators' secret in /nowhere/"),
        (["gc", "--server", &server, "--data-dir", "/nowhere"], "as the user of the cache, on its machine"),
        (["fills", "--server", "https://cr.example.com", "--data-dir", "/nowhere"], "only the machine of"),
    ] {
        let (status, text) = run(&arguments).await?;
        ensure!(!status.success() && text.contains(words), "{text}");
    }
    Ok(())
}

/// Runs the program for a cache from elsewhere, with these variables.
async fn guest(cache: &Cache, arguments: &[&str], login: Option<(&str, &str)>) -> anyhow::Result<(bool, String)> {
    let server = format!("http://{}", cache.stopover.address());
    let configuration = cache.installation.configuration().display().to_string();
    let there = ["--server", &server, "--config", &configuration, "--data-dir", "/nowhere"];
    let login = login.map(|(user, secret)| [("STOPOVER_USER", user.as_ref()), ("STOPOVER_PASSWORD", secret.as_ref())]);
    let output = output(&[arguments, &there].concat(), login.as_ref().map_or(&[], |login| &login[..])).await?;
    Ok((output.status.success(), String::from_utf8([output.stdout, output.stderr].concat())?))
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_log_in_where_the_cache_asks_for_it() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let image = format!("{UPSTREAM}/{}", cache.image.reference());
    let stranger = cache.add("stranger").await?;
    let puller = Some(("puller", cache.secret.as_str()));
    let commands = [&["quota"][..], &["refresh", &image], &["prefetch", "--wait", "--platform", "linux/amd64", &image]];
    for arguments in commands {
        let (well, text) = guest(&cache, arguments, None).await?;
        ensure!(!well && text.contains("asks for a login: log in as a robot with STOPOVER_USER"), "{text}");
        let (well, text) = guest(&cache, arguments, Some(("puller", "wrong"))).await?;
        ensure!(!well && text.contains("refuses the login as puller: 401"), "{text}");
        ensure!(text.contains("the user name or the secret is wrong"), "{text}");
        let (well, text) = guest(&cache, arguments, puller).await?;
        ensure!(well, "{arguments:?}: {text}\n{}", cache.stopover.log());
    }
    let (well, text) = guest(&cache, &["refresh", &image], Some(("stranger", &stranger))).await?;
    ensure!(!well && text.contains("robot:stranger may not pull"), "{text}");
    let doctor = ["doctor", "--image", &image, "--root", "/nowhere"];
    let (well, text) = guest(&cache, &doctor, None).await?;
    ensure!(
        !well && text.contains("FAIL  registry: ") && text.contains("asks for a login: log in as a robot"),
        "{text}"
    );
    let (_, text) = guest(&cache, &doctor, puller).await?;
    ensure!(text.contains("ok    registry: ") && text.contains("ok    pull: "), "{text}");
    let (_, text) = guest(&cache, &doctor, Some(("stranger", &stranger))).await?;
    ensure!(
        text.contains("ok    registry: ") && text.contains("FAIL  pull: 403") && text.contains("policy explain"),
        "{text}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_goes_to_the_cache_itself_or_over_tls_and_nowhere_else() -> anyhow::Result<()> {
    let thief = TcpListener::bind("127.0.0.1:0").await?;
    let realm = format!("http://{}/token", thief.local_addr()?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = format!("http://{}", listener.local_addr()?);
    let challenge = format!("Bearer realm=\"{realm}\",service=\"stopover\"");
    let answer =
        move || std::future::ready((http::StatusCode::UNAUTHORIZED, [("www-authenticate", challenge.clone())]));
    tokio::spawn(axum::serve(listener, axum::Router::new().fallback(answer)).into_future());
    let login = [("STOPOVER_USER", "puller".as_ref()), ("STOPOVER_PASSWORD", "the-password".as_ref())];
    for arguments in [["quota", "--server", &server], ["doctor", "--server", &server]] {
        let output = output(&arguments, &login).await?;
        let text = String::from_utf8([output.stdout, output.stderr].concat())?;
        ensure!(!output.status.success() && text.contains("in plain text: that is not done"), "{text}");
        ensure!(!text.contains("the-password"), "{text}");
    }
    let nobody = tokio::time::timeout(std::time::Duration::ZERO, thief.accept()).await;
    ensure!(nobody.is_err(), "somebody else was asked for a token");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_decision_is_one_record_and_no_secret_is_logged() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let stranger = cache.add("stranger").await?;
    let client = reqwest::Client::new();
    let address = cache.stopover.address();
    let manifest =
        format!("http://{address}/v2/{UPSTREAM}/{}", cache.image.reference().replacen(':', "/manifests/", 1));
    let get = async |url: &str, user: &str, secret: &str| {
        let answer = client.get(url).basic_auth(user, Some(secret)).send().await?;
        anyhow::Ok((answer.status().as_u16(), answer.text().await?))
    };
    let token = format!("http://{address}/token?service=stopover&account=of-the-query");
    let (status, issued) = get(&token, "puller", &cache.secret).await?;
    ensure!(status == 200, "{issued}");
    let issued: Value = serde_json::from_str(&issued)?;
    let issued = issued["token"].as_str().context("no token")?.to_owned();
    let with_token = client.get(&manifest).bearer_auth(&issued).send().await?;
    ensure!(with_token.status() == 200, "{}", with_token.text().await?);
    ensure!(get(&manifest, "puller", &cache.secret).await?.0 == 200);
    ensure!(get(&manifest, "stranger", &stranger).await?.0 == 403);
    ensure!(get(&manifest, "someone", "password-for-elsewhere").await?.0 == 401);
    ensure!(get(&token, "someone", "password-for-elsewhere").await?.0 == 401);
    ensure!(client.get(&manifest).bearer_auth("forged-token").send().await?.status() == 401);
    let form = "grant_type=password&username=puller&password=password-in-a-form";
    ensure!(client.post(format!("http://{address}/token")).body(form).send().await?.status() == 401);
    let fills = client.get(format!("http://{address}/_stopover/fills")).header("stopover-operator", "guessed-secret");
    ensure!(fills.send().await?.status() == 403);
    let quota = format!("http://{address}/_stopover/quota");
    ensure!(get(&quota, "puller", &cache.secret).await?.0 == 200);
    ensure!(get(&quota, "someone", "password-for-elsewhere").await?.0 == 401);
    ensure!(client.get(&manifest).send().await?.status() == 401);

    let records = records(&cache.stopover)?;
    let find = |action: &str, principal: Option<&str>| {
        let found = records.iter().map(|record| (record, &record["fields"]));
        let found = found.filter(|(_, fields)| fields["action"] == action && fields["principal"].as_str() == principal);
        found.collect::<Vec<_>>()
    };
    let pulls = find("pull", Some("robot:puller"));
    ensure!(pulls.len() == 2, "{records:#?}");
    for ((record, fields), (served, spent)) in pulls.iter().zip([("miss", 1), ("hit", 0)]) {
        ensure!(record["level"] == "INFO" && fields["allowed"] == true && fields["private"] == true, "{record}");
        ensure!(fields["repository"] == format!("{UPSTREAM}/{}", cache.image.name), "{record}");
        ensure!(fields["rule"] == "rule 1 of the policy" && fields["caller"] == "127.0.0.1", "{record}");
        ensure!(fields["served"] == served && fields["upstream_pulls"] == spent, "{record}");
        ensure!(fields["status"] == 200 && fields["bytes"].as_u64() > Some(100), "{record}");
    }
    let denied = find("pull", Some("robot:stranger"));
    ensure!(denied.len() == 1 && denied[0].1["rule"] == "private" && denied[0].1["allowed"] == false, "{denied:?}");
    ensure!(denied[0].0["level"] == "INFO" && denied[0].1["status"] == 403, "{denied:?}");
    let unknown = find("pull", None);
    let levels: Vec<_> = unknown.iter().map(|(record, fields)| (&record["level"], &fields["reason"])).collect();
    ensure!(unknown.len() == 3 && unknown.iter().all(|(_, fields)| fields["allowed"] == false), "{levels:?}");
    ensure!(levels.iter().filter(|(level, _)| *level == "DEBUG").count() == 1, "to be asked to log in: {levels:?}");
    let failed = find("login", None);
    ensure!(find("login", Some("robot:puller")).len() == 1 && failed.len() == 2, "{records:#?}");
    for ((record, fields), (login, because)) in
        failed.iter().zip([("robot:someone", "there is no such robot"), ("robot:puller", "its secret is another one")])
    {
        ensure!(fields["login"] == login && fields["because"] == because, "{record}");
    }
    let operated = records.iter().filter(|record| record["fields"]["action"] == "operate").map(|record| {
        let fields = &record["fields"];
        let text = |name: &str| fields[name].as_str().unwrap_or("-");
        format!("{} {} {} {}", text("endpoint"), text("principal"), fields["allowed"], text("rule"))
    });
    let expected = [
        "/_stopover/robots - true operator",
        "/_stopover/robots - true operator",
        "/_stopover/fills - false -",
        "/_stopover/quota robot:puller true -",
        "/_stopover/quota - false -",
    ];
    let operated: Vec<String> = operated.collect();
    ensure!(operated == expected, "{operated:#?}");

    let log = cache.stopover.log();
    let keys = std::fs::read_to_string(cache.installation.data().join("signing_keys"))?;
    let operator = std::fs::read_to_string(operator_secret(&cache.installation.data()))?;
    let encoded = |user: &str, secret: &str| BASE64_STANDARD.encode(format!("{user}:{secret}"));
    for secret in [
        PASSWORD,
        &encoded("alice", PASSWORD),
        &cache.secret,
        &encoded("puller", &cache.secret),
        &stranger,
        &encoded("stranger", &stranger),
        &issued,
        keys.trim(),
        operator.trim(),
        "password-for-elsewhere",
        &encoded("someone", "password-for-elsewhere"),
        "password-in-a-form",
        "forged-token",
        "guessed-secret",
        "of-the-query",
        "$argon2",
    ] {
        let told = log.lines().find(|line| line.contains(secret));
        ensure!(told.is_none(), "{secret:?} is logged: {told:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_decision_of_the_policy_is_explained_without_a_running_cache() -> anyhow::Result<()> {
    let password = NamedTempFile::new()?;
    std::fs::write(&password, PASSWORD)?;
    let installation = Installation::with_configuration(&format!(
        "[access]\nanonymous = [\"10.0.0.0/8\", \"vpce-0123456789abcdef0\"]\nrobots = true\n\
         [access.oidc.github]\nissuer = \"https://token.example.com\"\naudience = \"stopover\"\n\
         claims = {{ repository_owner_id = \"12\" }}\n\
         [[policy]]\nwho = [\"robot:ci\"]\nwhat = [\"ghcr.io/acme/secret*\"]\nallow = false\n\
         [[policy]]\nclaims = {{ repository = \"acme/*\" }}\nwhat = [\"ghcr.io/acme/*\"]\nallow = true\n\
         [[policy]]\nnetworks = [\"10.0.0.0/8\"]\nwhat = [\"ghcr.io/acme/open\"]\nallow = true\n\
         [rules.\"ghcr.io/acme\"]\ncredentials = {{ username = \"bot\", password_file = \"{}\" }}\ndeny = [\"acme/no\"]\n",
        password.path().display()
    ))?;
    let file = installation.configuration().display().to_string();
    let oidc = ["--as", "oidc:github:repo:acme/app", "--claim", "repository=acme/app"];
    let member = ["--as", "oidc:github:repo:acme/app", "--claim", "repository_owner_id=12"];
    for (arguments, lines) in [
        (
            &["--as", "robot:ci", "ghcr.io/acme/secret-app:1"][..],
            &["robot:ci pulls ghcr.io/acme/secret-app: denied by rule 1 of the policy"][..],
        ),
        (
            &["--as", "robot:ci", "ghcr.io/acme/app"],
            &[
                "denied: no rule is about it, and it is private",
                "rule 1 of the policy is not about it: its what is something else",
                "rule 2 of the policy is not about it: it asks for claims, and only a principal like",
                "ghcr.io/acme/app is private: ghcr.io shows it to us because of who we are there",
            ],
        ),
        (
            &[&oidc[..], &["--claim", "repository_owner_id=12", "ghcr.io/acme/app"]].concat(),
            &["allowed by rule 2 of the policy", "rule 1 of the policy is not about it: its who is something else"],
        ),
        (&["--as", "anonymous", "--from", "10.1.2.3", "ghcr.io/acme/open"], &["allowed by rule 3 of the policy"]),
        (
            &["--as", "anonymous", "--from", "192.0.2.1", "nginx"],
            &[
                "anonymous pulls docker.io/library/nginx: denied: not let in: access.anonymous does not name that address",
                "Whoever is let in is allowed: no rule is about it, and its upstream is public",
                "docker.io/library/nginx is public: docker.io is asked for it without credentials",
            ],
        ),
        (
            &["--as", "anonymous", "--from", "vpce-0123456789abcdef0", "nginx"],
            &["anonymous pulls docker.io/library/nginx: allowed: no rule is about it"],
        ),
        (
            &["--as", "anonymous", "--from", "vpce-0123456789abcdef1", "nginx"],
            &["denied: not let in: access.anonymous does not name that address"],
        ),
        (&["--as", "iam:arn:aws:iam::123456789012:role/a", "nginx"], &["denied: not let in: there is no [access.iam]"]),
        (
            &[&oidc[..], &["--claim", "repository_owner_id=13", "ghcr.io/acme/app"]].concat(),
            &[
                "denied: not let in: it has not all of the claims that [access.oidc] asks for",
                "[access.oidc.github] lets in whoever has other claims: repository_owner_id has to be \"12\" and is \"13\"",
            ],
        ),
        (
            &[&member[..], &["--claim", "repository=other/app", "ghcr.io/acme/app"]].concat(),
            &[
                "rule 2 of the policy is not about it: it asks for other claims: repository has to be \"acme/*\" and is \"other/app\"",
            ],
        ),
        (&["--as", "robot:ci", "ghcr.io/acme/no"], &["denied to everybody: ", "rules.\"ghcr.io/acme\".deny"]),
    ] {
        let (status, text) = run(&[&["policy", "explain", "--config", &file], arguments].concat()).await?;
        let first = text.lines().next().unwrap_or_default();
        ensure!(status.code() == Some(i32::from(!first.contains("allowed"))), "{arguments:?}: {text}");
        for line in lines {
            ensure!(text.contains(line), "{line:?} is not in:\n{text}");
        }
    }
    for (arguments, words) in [
        (["--as", "admin", "nginx"], "a principal is anonymous, robot:<name>, iam:<arn> or oidc:<issuer>:<subject>"),
        (["--as", "anonymous", "registry.example.com/a"], "is not configured here"),
    ] {
        let (status, text) = run(&[&["policy", "explain", "--config", &file][..], &arguments].concat()).await?;
        ensure!(!status.success() && text.contains(words), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn without_a_word_about_access_only_the_machine_itself_is_answered() -> anyhow::Result<()> {
    let interfaces = std::fs::read_to_string("/proc/net/fib_trie")?;
    let mut addresses =
        interfaces.lines().zip(interfaces.lines().skip(1)).filter(|(_, kind)| kind.contains("/32 host LOCAL"));
    let own = addresses.find_map(|(line, _)| line.trim().strip_prefix("|-- ").filter(|at| !at.starts_with("127.")));
    let own = own.context("this machine has no address but loopback")?;
    let installation = Installation::for_upstream("http://127.0.0.1:1")?.listening_on("0.0.0.0:0".parse()?);
    let stopover = installation.start().await?;
    let port = stopover.address().rsplit(':').next().context("no port")?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let local = client.get(format!("http://127.0.0.1:{port}/v2/")).send().await?;
    ensure!(local.status() == 200, "{}", local.status());
    let remote = client.get(format!("http://{own}:{port}/v2/")).send().await?;
    ensure!(remote.status() == 403, "{}", remote.status());
    let said = remote.text().await?;
    ensure!(said.contains("[access] in its stopover.toml says whom it answers"), "{said}");
    // Where it listens there, whoever calls from here has that address.
    let installation = Installation::for_upstream("http://127.0.0.1:1")?.listening_on(format!("{own}:0").parse()?);
    let stopover = installation.start().await?;
    let here = client.get(format!("http://{}/v2/", stopover.address())).send().await?;
    ensure!(here.status() == 200, "{}", here.status());
    Ok(())
}

#[tokio::test]
async fn each_answer_is_recorded_with_its_bytes_and_a_limit_with_its_reason() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "1", &[&[1; 5000]]);
    let signed = format!("{}/cdn/path-of-the-signature?X-Amz-Signature=of-the-url", upstream.url());
    let configuration = |cold: &str| {
        Installation::with_configuration(&format!(
            "misses = 1\nmax_size = \"1GB\"\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\ncold = \"{cold}\"\n",
            upstream.url()
        ))
    };
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
    let layer = &image.blobs.iter().max_by_key(|(_, bytes)| bytes.len()).context("no layer")?.0;
    let (manifest, blob, none) = ("a/manifests/1", format!("a/blobs/{layer}"), "a/manifests/none");

    let installation = configuration("wait")?.logging("info,stopover=trace,stopover::audit=debug");
    let stopover = installation.start().await?;
    let at = |path: &str| format!("http://{}/v2/{UPSTREAM}/{path}", stopover.address());
    client.get(at(manifest)).send().await?.error_for_status()?;
    client.get(at(&blob)).send().await?.error_for_status()?.bytes().await?;
    client.get(at(&blob)).header("range", "bytes=10-19").send().await?.error_for_status()?;
    client.head(at(&blob)).send().await?.error_for_status()?;
    ensure!(client.get(at(none)).send().await?.status() == 404);
    ensure!(client.get(at("a/manifests/more")).send().await?.status() == 429);
    let wanted = format!("{{\"images\": [\"{UPSTREAM}/a:1\"]}}");
    client.post(format!("http://{}/_stopover/prefetch", stopover.address())).body(wanted).send().await?;
    let records = records(&stopover)?;
    let told: Vec<_> = records
        .iter()
        .map(|record| {
            let fields = &record["fields"];
            let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
            (text("action"), fields["status"].as_u64(), text("served"), fields["bytes"].as_u64())
        })
        .collect();
    let (pull, size) = ("pull".to_owned(), Some(image.manifest.len() as u64));
    // Its fill was requested with the manifest, and may have ended.
    let served = told.get(1).map_or_else(String::new, |(_, _, served, _)| served.clone());
    ensure!(served == "hit" || served == "miss", "{told:#?}");
    let expected = [
        (pull.clone(), Some(200), "miss".to_owned(), size),
        (pull.clone(), Some(200), served, Some(5000)),
        (pull.clone(), Some(206), "hit".to_owned(), Some(10)),
        (pull.clone(), Some(200), "hit".to_owned(), Some(0)),
        (pull.clone(), Some(404), "miss".to_owned(), Some(0)),
        (pull, Some(429), String::new(), Some(0)),
        ("prefetch".to_owned(), None, String::new(), None),
    ];
    ensure!(told == expected, "{told:#?}");
    let limited = &records[5];
    let reason = limited["fields"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("too often") && limited["fields"]["allowed"] == false, "{limited}");
    ensure!(limited["level"] == "INFO" && limited["fields"]["rule"] == "public", "{limited}");

    // What lies behind a redirect is told, and not where that is.
    let installation = configuration("redirect")?.logging("info,stopover=trace,stopover::audit=debug");
    let stopover = installation.start().await?;
    upstream.fault("/blobs/", Fault::Status(307, vec![("location", signed.clone())], String::new()));
    let at = |path: &str| format!("http://{}/v2/{UPSTREAM}/{path}", stopover.address());
    client.get(at(manifest)).send().await?.error_for_status()?;
    let answer = client.get(at(&blob)).send().await?;
    ensure!(answer.headers()["location"] == signed.as_str(), "{answer:?}");
    let records = self::records(&stopover)?;
    let redirected = &records[1]["fields"];
    ensure!(redirected["status"] == 307 && redirected["bytes"] == 5000, "{redirected}");
    for secret in ["of-the-url", "path-of-the-signature"] {
        let log = stopover.log();
        let told = log.lines().find(|line| line.contains(secret));
        ensure!(told.is_none(), "{secret:?} is logged: {told:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_says_at_once_that_a_budget_of_a_day_is_used_up() -> anyhow::Result<()> {
    let upstream = Registry::start().await?;
    let image = Recipe::docker("team/docker").push(&upstream).await?;
    let settings = format!("new_bytes = \"0B\"\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"", upstream.url());
    let stopover = Installation::with_configuration(&settings)?.start().await?;
    let node = Node::new()?;
    let source = format!("docker://{}/{UPSTREAM}/{}", stopover.address(), image.reference());
    let target = format!("dir:{}", node.path("image").display());
    let copy = ["copy", "--quiet", "--src-tls-verify=false", &source, &target];
    let copied = tokio::time::timeout(Duration::from_secs(30), node.run("skopeo", &copy));
    let said = format!("{:#}", copied.await.context("skopeo waits")?.err().context("it pulled")?);
    ensure!(said.contains("as many new bytes stored as you may in a day"), "{said}");
    Ok(())
}
