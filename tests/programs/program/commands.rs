//! What commands say and do.

use anyhow::{Context as _, ensure};
use stopover::oci::{Algorithm, Digest};
use support::program::{Installation, Stopover, UPSTREAM, run};
use support::scripted::{Fault, Scripted};
use support::world::{DEADLINE, until};

use super::PROMPT;

#[tokio::test]
async fn the_configuration_is_shown_with_its_rules_and_each_family_in_one_line() -> anyhow::Result<()> {
    let installation = Installation::with_configuration(
        "[access]\nanonymous = [\"10.0.0.0/8\"]\nrobots = true\nservice = \"cr.test\"\n\
         [access.iam]\naccounts = [\"123456789012\"]\nroles = [\"arn:aws:iam::210987654321:role/eks-*\"]\n\
         [[policy]]\nwho = [\"robot:*\"]\nnetworks = [\"10.1.0.0/16\"]\nwhat = [\"ghcr.io/acme/*\"]\nallow = false\n\
         [[policy]]\nallow = true\n\
         [rules.\"team/hub\"]\nupstream = \"docker.io\"\npath = \"library\"\n\
         [rules.\"ghcr.io/acme\"]\nfresh = \"1h\"\ncold = \"wait\"\nallow = [\"acme/web*\", \"acme/api\"]\n\
         deny = [\"*-internal\"]\n[rules.\"corp.example\"]\nupstream = \"ghcr.io\"\npath = \"acme/corp\"\n\
         [upstreams.\"us-docker.pkg.dev\"]\nfresh = \"90m\"\n[[schedule]]\nevery = \"1d\"\nimages = []\n\
         platforms = \"all\"\n",
    )?;
    let file = installation.configuration().display().to_string();
    let (status, text) = run(&["config", "check", "--config", &file]).await?;
    ensure!(status.success(), "{text}");
    for line in [
        "keep      30d",
        "budgets   of each caller: 120 misses a minute, 1200 pulls an hour, 1099511627776 new bytes a day",
        "access    everybody from 10.0.0.0/8; robots; iam",
        "service   cr.test, tokens are good for 10m",
        "iam       accounts: 123456789012; roles: arn:aws:iam::210987654321:role/eks-*",
        "policy    rule 1 of the policy: deny robot:*, from 10.1.0.0/16: ghcr.io/acme/*",
        "policy    rule 2 of the policy: allow everybody: everything",
        "rule      team/hub: docker.io/library, settings of upstream docker.io, goes before Docker Hub's own names below it",
        "rule      ghcr.io/acme: ghcr.io/acme, anonymous, fresh 1h, cold wait, allow [\"acme/web*\", \"acme/api\"], \
         deny [\"*-internal\"]",
        "rule      corp.example: ghcr.io/acme/corp, settings of rule ghcr.io/acme",
        "upstream  us-docker.pkg.dev: https://us-docker.pkg.dev, anonymous, fresh 1h 30m, cold follow",
        "upstreams *-docker.pkg.dev: anonymous, fresh 5m, cold follow",
        "schedule  images: 0, every 1d",
    ] {
        ensure!(text.lines().any(|shown| shown == line), "{line} is not in:\n{text}");
    }
    ensure!(!text.contains("europe-west1"), "{text}");
    Ok(())
}

#[tokio::test]
async fn commands_that_ask_no_upstream_need_none_of_its_passwords() -> anyhow::Result<()> {
    let installation = Installation::with_configuration(
        "[upstreams.\"ghcr.io\"]\ncredentials = { username = \"me\", password_env = \"STOPOVER_TEST_NOT_SET\" }\n\
         [rules.\"quay.io/a\"]\ncredentials = { username = \"me\", password_file = \"/nowhere/password\" }\n",
    )?;
    let file = installation.configuration().display().to_string();
    let (status, text) = run(&["setup", "podman", "--config", &file]).await?;
    ensure!(status.success() && text.contains("ghcr.io"), "{text}");
    let (_, text) = run(&["quota", "--server", "http://127.0.0.1:1", "--config", &file]).await?;
    ensure!(text.contains("no cache answers at http://127.0.0.1:1"), "{text}");
    for command in [&["serve"][..], &["config", "check"]] {
        let (status, text) = run(&[command, &["--config", &file]].concat()).await?;
        ensure!(!status.success() && text.contains("upstreams.\"ghcr.io\".credentials: "), "{text}");
        ensure!(text.contains("STOPOVER_TEST_NOT_SET is not set"), "{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_and_refresh_ask_the_running_cache() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    upstream.quota(100, 42);
    let image = upstream.image("a", "v1", &[b"layer"]);
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let server = format!("http://{}", stopover.address());
    let (status, text) = run(&["refresh", "test.local/a:v1", "--server", &server]).await?;
    ensure!(status.success() && text.contains(&image.digest.to_string()), "{status}\n{text}");
    let moved = upstream.image("a", "v1", &[b"moved"]);
    let (status, text) = run(&["refresh", "test.local/a:v1", "--server", &server]).await?;
    ensure!(status.success() && text.contains(&moved.digest.to_string()), "fresh or not: {status}\n{text}");
    let (status, text) = run(&["refresh", "test.local/a:v1", "test.local/none", "--server", &server]).await?;
    ensure!(!status.success() && text.contains("test.local/none: 404"), "{status}\n{text}");
    let (status, text) = stopover.run(&["quota"]).await?;
    ensure!(
        status.success() && text.contains("test.local as anonymous: 40 of 100 pulls left in 6 h (192.0.2.1)"),
        "{text}"
    );
    let (status, text) = run(&["quota", "--server", "http://127.0.0.1:1"]).await?;
    ensure!(!status.success() && text.contains("no cache answers at http://127.0.0.1:1"), "{status}\n{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn prefetch_waits_until_everything_is_stored_and_says_what_is_not() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "v1", &[b"one", b"two"]);
    let (_, platforms) = upstream.index("b", "v1", &["linux/amd64", "linux/s390x"]);
    let broken = upstream.image("broken", "v1", &[b"three"]);
    upstream.fault(broken.blobs[1].0.as_str(), Fault::Status(404, Vec::new(), String::new()));
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let file = |name: &str, text: &str| {
        let path = installation.configuration().with_file_name(name);
        std::fs::write(&path, text).map(|()| path.display().to_string())
    };
    let compose = file("compose.yaml", "services:\n  a: {image: test.local/a:v1}\n  b: {image: test.local/b:v1}\n")?;
    let prefetch = async |arguments: &[&str]| {
        stopover.run(&[&["prefetch", "--platform", "linux/amd64"], arguments].concat()).await
    };
    let (status, text) = prefetch(&["-f", &compose, "--wait"]).await?;
    ensure!(status.success() && text.contains("images: 2, blobs: 5 ("), "{status}\n{text}");
    ensure!(text.contains("stored already: 0, copied: 5 in "), "{text}");
    let stored = stopover.stored_blobs()?;
    for (digest, _) in image.blobs.iter().chain(&platforms[0].blobs) {
        ensure!(stored.contains_key(digest.as_str()), "{digest} is not stored\n{text}");
    }
    ensure!(stored.len() == 5, "{stored:?}");
    // Without --wait it says what was requested.
    let (status, text) = prefetch(&["-f", &compose]).await?;
    ensure!(status.success() && text.contains(&format!("test.local/a:v1: {}", image.digest)), "{status}\n{text}");
    ensure!(text.contains("stored already: 5, requested: 0"), "{text}");
    // What fails, and what nobody has filled in, fails alone.
    let list = file("images.txt", "test.local/a:v1\n$UNSET/a # ours\ntest.local/none:v1\ntest.local/broken:v1\n")?;
    let (status, text) = prefetch(&["-f", &list, "--wait"]).await?;
    ensure!(status.code() == Some(1), "{status}\n{text}");
    for part in [
        "images.txt:2: skipped $UNSET/a",
        "test.local/none:v1: the upstream registry has no such manifest",
        "failed: upstream does not have it",
        "not everything is stored",
        "failed images: 1, failed blobs: 1, skipped: 1",
    ] {
        ensure!(text.contains(part), "{part} is not in: {text}");
    }
    let (status, text) = prefetch(&["-f", "/nowhere/images.txt"]).await?;
    ensure!(status.code() == Some(1) && text.contains("cannot read /nowhere/images.txt"), "{status}\n{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_one_platform_that_is_not_wanted_is_an_error() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("a", "v1", &[b"one"]);
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let (status, text) = stopover.run(&["prefetch", "--platform", "linux/arm64", "test.local/a:v1"]).await?;
    let sentence = "test.local/a:v1: it is for linux/amd64 alone, and not for linux/arm64";
    ensure!(status.code() == Some(1) && text.contains(sentence), "{status}\n{text}");
    let (status, text) =
        stopover.run(&["prefetch", "--wait", "--platform", "linux/arm64,linux/amd64", "test.local/a:v1"]).await?;
    ensure!(status.success(), "{status}\n{text}");
    Ok(())
}

#[tokio::test]
async fn a_dry_run_prints_a_list_and_asks_no_registry() -> anyhow::Result<()> {
    let installation = Installation::with_configuration("")?;
    let server = ["--server", "http://127.0.0.1:1"];
    let file = installation.configuration().with_file_name("compose.yaml");
    let text =
        "services:\n  a: {image: \"127.0.0.1:1/ghcr.io/a/b:1\", platform: linux/arm64}\n  c: {image: \"$UNSET/c\"}\n";
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    let (status, text) =
        run(&[&["prefetch", "--dry-run", "docker://nginx", "-f", &file], &server[..]].concat()).await?;
    ensure!(status.success(), "{status}\n{text}");
    for line in [
        "nginx  # the command line",
        &format!("ghcr.io/a/b:1  # {file}:2 for linux/arm64"),
        &format!("{file}:3: skipped $UNSET/c"),
    ] {
        ensure!(text.contains(line), "{line} is not in: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_prefetches_soon_after_the_start_and_again() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "v1", &[b"layer"]);
    let schedule = "[[schedule]]\nevery = \"1s\"\nimages = [\"test.local/a:v1\"]\nplatforms = \"all\"\n";
    let table = format!("[upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\n", upstream.url());
    let installation = Installation::with_configuration(&format!("{schedule}{table}"))?;
    let stopover = installation.start().await?;
    until(|| upstream.count("HEAD /v2/a/manifests/v1") >= 2).await;
    let stored = stopover.stored_blobs()?;
    ensure!(image.blobs.iter().all(|(digest, _)| stored.contains_key(digest.as_str())), "{stored:?}");
    ensure!(upstream.count("GET /v2/a/manifests/") == 1, "a tag that has not moved costs a HEAD");
    ensure!(stopover.terminate(PROMPT).await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fills_that_were_given_up_are_shown_and_retried() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "v1", &[b"layer"]);
    let (layer, _) = &image.blobs[1];
    upstream.fault(layer.as_str(), Fault::Status(404, vec![], String::new()));
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let server = format!("http://{}", stopover.address());
    let (status, text) = stopover.run(&["fills"]).await?;
    ensure!(status.success() && text.contains("nothing was given up"), "{status}\n{text}");
    let manifest = support::http().get(format!("{server}/v2/{UPSTREAM}/a/manifests/v1"));
    manifest.send().await?.error_for_status()?;
    let failed = format!("failed: {UPSTREAM}/a@{layer}, 0 B of 5 B, interactive, attempt 1 failed: ");
    until_said(&stopover, &failed).await?;
    upstream.heal();
    let (status, text) = stopover.run(&["fills", "retry"]).await?;
    ensure!(status.success() && text.contains("fills tried again: 1"), "{status}\n{text}");
    until_said(&stopover, "nothing was given up").await
}

/// Asks for the fills until that is said of them.
async fn until_said(stopover: &Stopover, expected: &str) -> anyhow::Result<()> {
    let said = async {
        loop {
            let (status, text) = stopover.run(&["fills"]).await?;
            ensure!(status.success(), "{status}\n{text}");
            if text.contains(expected) {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(DEADLINE, said).await.with_context(|| format!("it never says {expected:?}"))?
}

#[tokio::test]
async fn help_exists_for_the_program_and_for_every_command() -> anyhow::Result<()> {
    let mut left = vec![Vec::<String>::new()];
    let mut seen = Vec::new();
    while let Some(command) = left.pop() {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let (status, text) = run(&arguments).await?;
        ensure!(status.success() && text.contains("Usage: "), "{arguments:?}: {status}\n{text}");
        let commands = text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        // What is too long goes on in the next line.
        for line in commands.filter(|line| !line.starts_with("   ")) {
            let mut words = line.split_whitespace();
            let name = words.next().context("a command without a name")?;
            ensure!(words.next().is_some(), "{name} has no description");
            if name != "help" {
                left.push([command.clone(), vec![name.to_owned()]].concat());
            }
        }
        seen.push(command.join(" "));
    }
    ensure!(seen.iter().any(|command| command == "serve"), "found only {seen:?}");
    let (status, text) = run(&["serve", "--no-such-option"]).await?;
    ensure!(status.code() == Some(2) && text.contains("--no-such-option"), "{status}\n{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_uses_is_shown_swept_and_purged_by_command() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "v1", &[b"layer"]);
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let server = format!("http://{}", stopover.address());
    let url = format!("{server}/v2/test.local/a/manifests/v1");
    support::http().get(url).send().await?.error_for_status()?;
    let (status, text) = stopover.run(&["gc", "--dry-run"]).await?;
    ensure!(status.success() && text.contains("0 manifests") && text.contains("nothing was changed"), "{text}");
    let (status, text) = stopover.run(&["gc"]).await?;
    ensure!(status.success() && text.contains("0 bytes freed"), "{text}");
    let (status, text) = stopover.run(&["purge", "test.local/a:v1"]).await?;
    ensure!(status.success() && text.contains(&format!("test.local/a@{}", image.digest)), "{text}");
    let (status, text) = stopover.run(&["purge", "test.local/a:v1"]).await?;
    ensure!(status.code() == Some(3), "it is gone: {status}\n{text}");
    ensure!(text == "stopover: nothing is stored of test.local/a:v1: nothing was removed\n", "{text}");
    let (status, text) = stopover.run(&["purge", "unknown.test/a"]).await?;
    ensure!(!status.success() && text.contains("unknown.test is not configured"), "{text}");
    Ok(())
}

/// The file of a deployment is checked on the machine of an operator, where its secrets cannot be read.
#[tokio::test]
async fn the_file_of_a_deployment_on_aws_can_be_checked_where_it_is_not_served() -> anyhow::Result<()> {
    let arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:hub-AbCdEf";
    let installation = Installation::with_configuration(&format!(
        "[upstreams.\"ghcr.io\"]\npublic = true\ncredentials = {{ username = \"me\", password_secret = \"{arn}#password\" }}\n\
         [access]\nrobots = true\nsigning_keys = {{ secret = \"{arn}\" }}\n",
    ))?;
    let file = installation.configuration().display().to_string();
    let (status, text) = run(&["config", "check", "--config", &file]).await?;
    ensure!(status.success() && text.contains("upstream  ghcr.io"), "{text}");
    let (status, text) = run(&["serve", "--config", &file]).await?;
    ensure!(!status.success(), "{text}");
    for key in ["line 3, column 1: upstreams.\"ghcr.io\".credentials: ", "line 6, column 1: access.signing_keys: "] {
        ensure!(text.contains(&format!("{key}only the functions on AWS read Secrets Manager; here ")), "{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_events_are_shown_in_words_and_as_json() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    upstream.quota(100, 50);
    let image = upstream.image("a", "v1", &[b"layer"]);
    let (layer, _) = &image.blobs[1];
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let (status, text) = stopover.run(&["events"]).await?;
    ensure!(status.success() && text == "nothing has failed since the cache was started\n", "{status}\n{text}");
    upstream.fault(layer.as_str(), Fault::Status(404, vec![], String::new()));
    let server = format!("http://{}", stopover.address());
    for _ in 0..3 {
        let manifest = support::get(format!("{server}/v2/{UPSTREAM}/a/manifests/v1"));
        manifest.await?.error_for_status()?;
    }
    until_said(&stopover, "failed: ").await?;
    // Over the socket as an operator, and from elsewhere as a caller.
    for there in [None, Some(["--server", &server])] {
        let ask = async |arguments: &[&str]| match there {
            None => stopover.run(arguments).await,
            Some(there) => run(&[arguments, &there[..]].concat()).await,
        };
        let (status, text) = ask(&["status"]).await?;
        ensure!(status.success() && text.starts_with("stopover  ") && text.contains(", ready\n"), "{status}\n{text}");
        for line in [
            "counted   in the last 24 hours, by all processes",
            "requests  66% from the cache: 2 hits, 0 revalidated, 0 stale, 1 misses",
            "pulls     1 spent, 2 saved",
            "bytes     0 B saved; 1 blobs of ",
            "30 days   66% from the cache; 2 pulls and 0 B saved",
        ] {
            ensure!(text.contains(line), "{line:?} is not in\n{text}");
        }
        let row = text.lines().find(|line| line.starts_with(UPSTREAM)).context("no row of the upstream")?;
        let cells: Vec<&str> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        ensure!(cells == [UPSTREAM, "2", "1", "1", "2", "49 of 100", "asked"], "{cells:?}");
        ensure!(text.contains("1 given up") == there.is_none(), "{text}");
        let (status, text) = ask(&["events"]).await?;
        ensure!(status.success() && text.contains(&format!("failed fill  {UPSTREAM}/a@{layer}\n  why: ")), "{text}");
        ensure!(text.contains("upstream does not have it") == there.is_none(), "{text}");
        ensure!(text.contains("  do:  ") && text.contains("`stopover fills retry`"), "{text}");
        let (status, text) = ask(&["health"]).await?;
        ensure!(status.success() && text == "ready\n", "{status}\n{text}");
        let (_, text) = ask(&["status", "--json"]).await?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        ensure!((&json["counts"]["pulls_saved"], &json["ready"]) == (&2.into(), &true.into()), "{text}");
        ensure!(json["day"]["counts"] == json["counts"] && json["month"]["counts"] == json["counts"], "{text}");
        let (_, text) = ask(&["events", "--json"]).await?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        ensure!(json["events"][0]["kind"] == "failed_fill" && json["events"][0]["times"] == 1, "{text}");
    }
    Ok(())
}

/// What a server answers that is none of ours, or a cache in front of a hostile upstream.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_does_nothing_to_the_terminal_and_a_cache_that_is_not_ready_ends_with_1() -> anyhow::Result<()> {
    let server = Scripted::start()?;
    let hostile = "\u{1b}[2J\u{7}\u{202e}";
    let event = serde_json::json!({
        "at": u64::MAX, "first_at": 0, "times": 2, "kind": "failed_fill", "upstream": hostile, "repository": hostile,
        "digest": hostile, "reason": hostile, "advice": hostile,
    });
    let events = serde_json::json!({ "events": [event] }).to_string();
    let status = serde_json::json!({
        "version": hostile, "uptime_seconds": u64::MAX, "ready": false, "reasons": [hostile], "counts": {},
        "hit_percent": null, "upstreams": [{ "upstream": hostile, "counts": { "hits": 1 }, "accounts": [] }],
        "fills": null, "last_sweep": { "at": u64::MAX, "freed_bytes": 1, "kept_bytes": 1 },
    });
    server.page("/_stopover/events", "application/json", &events, None);
    let health = serde_json::json!({ "ready": false, "reasons": [hostile] }).to_string();
    server.page("/_stopover/status", "application/json", &status.to_string(), None);
    server.page("/_stopover/health/ready", "application/json", &health, None);
    let digest = Digest::of(Algorithm::Sha256, b"a");
    let fill = serde_json::json!({
        "digest": digest, "repository": hostile, "size": 1, "priority": "prefetch", "state": "failed", "written": 0,
        "attempts": 1, "failure": hostile,
    });
    let fills = serde_json::json!({ "fills": [fill], "images": [], "more": 1 }).to_string();
    server.page("/_stopover/fills", "application/json", &fills, None);
    let quota = serde_json::json!({
        "upstream": hostile, "credential": hostile, "limit": null, "remaining": null, "window_seconds": null,
        "source": hostile, "observed_at": null, "forecast": hostile, "breakers": [],
    });
    let quota = serde_json::json!({ "upstreams": [quota] }).to_string();
    server.page("/_stopover/quota", "application/json", &quota, None);
    let error = serde_json::json!({ "error": hostile, "errors": [{ "message": hostile }] }).to_string();
    for place in ["/_stopover/images", "/_stopover/gc", "/_stopover/purge", "/v2/test.local/a/manifests"] {
        server.fault(place, Fault::Status(500, vec![], error.clone()));
    }
    let (well, ill) =
        (["events", "fills", "quota"], ["status", "health", "ls", "gc", "purge a:1", "refresh test.local/a:1"]);
    for command in well.iter().chain(&ill) {
        let words: Vec<&str> = command.split(' ').chain(["--server"]).collect();
        let (status, text) = run(&[&words[..], &[&server.url()]].concat()).await?;
        ensure!(status.code() == Some(i32::from(ill.contains(command))), "{command} {status}\n{text}");
        ensure!(text.contains("\\u{1b}[2J\\u{7}\\u{202e}"), "{command} {text}");
        ensure!(text.chars().all(|letter| letter == '\n' || !letter.is_control() && letter != '\u{202e}'), "{text:?}");
    }
    let (_, text) = run(&["status", "--server", &server.url()]).await?;
    ensure!(text.contains("the cache is not ready: "), "{text}");
    Ok(())
}
