//! The commands of the program: what operators prove, and how guests log in.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use http::{HeaderMap, Method};
use stopover::access::OperatorSecret;
use stopover::local::operator_secret;
use stopover::values::time::Clock;
use support::program::{Installation, UPSTREAM, output, run};
use support::scripted::Scripted;
use tokio::net::{TcpListener, TcpStream};

use super::{Cache, secret_in};

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
    let body = r#"{"add": {"name": "thief"}}"#;
    let ask = |secret: &str| {
        let request = reqwest::Client::new().post(format!("http://{proxy}/_stopover/robots"));
        // As whoever the proxy serves would have it: it is called by its address, and says of nobody else.
        let request = request.header("host", cache.stopover.address()).header("stopover-operator", secret);
        request.body(body).send()
    };
    let signing = std::fs::read_to_string(cache.installation.data().join("signing_keys"))?;
    let secret = std::fs::read_to_string(operator_secret(&cache.installation.data()))?;
    for wrong in ["", "secret", signing.trim(), secret.trim()] {
        ensure!(ask(wrong).await?.status() == 403, "{wrong}");
    }
    ensure!(!cache.robot(&["list"]).await?.contains("thief"));
    let now = Clock::default().now();
    let proof = OperatorSecret::parse(&secret)?.prove(&Method::POST, "/_stopover/robots", body.as_bytes(), now);
    ensure!(ask(&proof.context("no proof")?).await?.status() == 200, "whoever runs the cache");
    Ok(())
}

/// Whoever listens at the port of a cache that is down.
#[tokio::test(flavor = "multi_thread")]
async fn the_operators_secret_is_shown_to_nobody() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let secret = std::fs::read_to_string(operator_secret(&cache.installation.data()))?;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let impostor = format!("http://{}", listener.local_addr()?);
    let hear = {
        let heard = Arc::clone(&heard);
        move |headers: HeaderMap| {
            heard.lock().unwrap_or_else(PoisonError::into_inner).push(headers);
            std::future::ready("{}")
        }
    };
    tokio::spawn(axum::serve(listener, axum::Router::new().fallback(hear)).into_future());
    let data = cache.installation.data().display().to_string();
    for command in [&["gc"][..], &["purge", "a"], &["fills"], &["robot", "list"], &["quota"]] {
        run(&[command, &["--server", &impostor, "--data-dir", &data]].concat()).await?;
    }
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(heard.len() == 5, "{heard:?}");
    for headers in heard {
        let told = headers.get("stopover-operator").context("no proof")?.to_str()?.to_owned();
        ensure!(!format!("{headers:?}").contains(secret.trim()), "{headers:?}");
        // Nor is what it is shown good for anything else.
        let add = reqwest::Client::new().post(format!("http://{}/_stopover/robots", cache.stopover.address()));
        let add = add.header("stopover-operator", told).body(r#"{"add": {"name": "thief"}}"#);
        ensure!(add.send().await?.status() == 403);
    }
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
async fn whoever_runs_the_cache_needs_no_login_for_what_is_public() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("a", "1", &[b"layer"]);
    let tables = |access: &str| {
        format!(
            "[access]\n{access}\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{0}\"\n\
             [upstreams.\"private.local\"]\nurl = \"{0}\"\npublic = false\n",
            upstream.url()
        )
    };
    let (public, private) = (format!("{UPSTREAM}/a:1"), "private.local/a:1");
    for access in ["robots = true", "anonymous = [\"192.0.2.1\"]"] {
        let installation = Installation::with_configuration(&tables(access))?;
        let stopover = installation.start().await?;
        let url = format!("http://{}", stopover.address());
        for arguments in [&["refresh", &public][..], &["prefetch", "--wait", &public], &["quota"]] {
            let (status, text) = stopover.run(arguments).await?;
            ensure!(status.success(), "{access} {arguments:?}: {text}\n{}", stopover.log());
            let (status, text) = run(&[arguments, &["--server", &url, "--data-dir", "/nowhere"]].concat()).await?;
            ensure!(!status.success(), "{access} {arguments:?}: {text}");
        }
        for command in ["refresh", "prefetch"] {
            let (status, text) = stopover.run(&[command, private]).await?;
            ensure!(!status.success(), "the policy allows it to nobody: {access} {command}: {text}");
        }
        // A proof is for the images that were asked for.
        let secret = OperatorSecret::parse(&std::fs::read_to_string(operator_secret(&installation.data()))?)?;
        let proof = secret.prove(&Method::POST, "/_stopover/prefetch", b"{\"images\": []}", Clock::default().now());
        let other = reqwest::Client::new().post(format!("{url}/_stopover/prefetch"));
        let other = other.header("stopover-operator", proof.context("no proof")?);
        let status = other.body(format!("{{\"images\": [\"{public}\"]}}")).send().await?.status();
        ensure!(status == 403, "{status}");
    }
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
