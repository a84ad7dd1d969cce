//! The commands of the program, and how callers log in with them.

use anyhow::ensure;
use support::program::{Installation, UPSTREAM, output, run};
use support::scripted::Scripted;
use tokio::net::TcpListener;

use super::{Cache, secret_in};

#[tokio::test(flavor = "multi_thread")]
async fn robots_are_made_listed_rotated_and_removed_by_command() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let url = format!("http://{}/v2/", cache.stopover.address());
    let status = async |secret: &str| {
        let answer = support::http().get(&url).basic_auth("ci", Some(secret)).send().await?;
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

/// Runs the program for a cache from elsewhere, with these variables.
pub(super) async fn guest(
    cache: &Cache,
    arguments: &[&str],
    login: Option<(&str, &str)>,
) -> anyhow::Result<(bool, String)> {
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
