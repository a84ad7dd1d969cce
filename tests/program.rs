//! The program and what its surroundings may do to it: each mistake gets a sentence, no accident leaves half a blob.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt as _;
use support::clients::{WrongContent, pull_over_http};
use support::images::Recipe;
use support::program::{Installation, Stopover, UPSTREAM, run};
use support::registry::Registry;
use support::scripted::{Fault, Scripted};
use support::world::{DEADLINE, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

const MIB: u64 = 1024 * 1024;

/// No service manager waits longer before it kills: Docker and podman give ten seconds.
const PROMPT: Duration = Duration::from_secs(10);

/// What the program prints when it refuses to start. Nothing of it may look like an accident.
async fn refusal(installation: &Installation) -> anyhow::Result<String> {
    let Err(error) = installation.start().await else { anyhow::bail!("the program started") };
    let text = format!("{error:#}");
    ensure!(text.contains("exit status: "), "not an orderly end: {text}");
    ensure!(!text.contains("panicked"), "{text}");
    Ok(text)
}

fn without_upstream() -> anyhow::Result<Installation> {
    Installation::for_upstream("http://127.0.0.1:1")
}

#[tokio::test]
async fn a_port_in_use_is_refused_by_its_address() -> anyhow::Result<()> {
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let _holder = TcpListener::bind(taken).await?;
    let installation = without_upstream()?.listening_on(taken);
    let text = refusal(&installation).await?;
    ensure!(text.contains(&taken.to_string()) && text.contains("in use"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_second_instance_on_the_same_data_directory_is_refused() -> anyhow::Result<()> {
    let installation = without_upstream()?;
    let first = installation.start().await?;
    let text = refusal(&installation).await?;
    let names_the_directory = text.contains(&installation.data().display().to_string());
    ensure!(names_the_directory && (text.contains("another") || text.contains("already")), "{text}");
    // The first one is unharmed, and its end makes room.
    answers(&first).await?;
    ensure!(first.terminate(PROMPT).await?.success());
    answers(&installation.start().await?).await
}

#[tokio::test]
async fn an_unknown_key_is_refused_with_the_file_the_key_and_the_nearest_right_key() -> anyhow::Result<()> {
    for (text, wrong, right) in [
        ("frehs = \"1h\"\n", "frehs", "did you mean `fresh`?"),
        ("[upstreams.\"test.local\"]\nurll = \"http://127.0.0.1:1\"\n", "urll", "did you mean `url`?"),
    ] {
        let installation = Installation::with_configuration(text)?;
        let file = installation.configuration().display().to_string();
        let printed = refusal(&installation).await?;
        for expected in [file.as_str(), wrong, right] {
            ensure!(printed.contains(expected), "{expected} is not in: {printed}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_configuration_is_shown_with_its_rules_and_each_family_in_one_line() -> anyhow::Result<()> {
    let installation = Installation::with_configuration(
        "[access]\nanonymous = [\"10.0.0.0/8\"]\nrobots = true\n[[policy]]\nwhat = [\"ghcr.io/acme/*\"]\nallow = false\n\
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
        "access    everybody from 10.0.0.0/8; robots; rules of the policy: 1",
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
async fn a_configuration_that_cannot_be_read_is_refused_with_the_reason_once() -> anyhow::Result<()> {
    let (status, text) = run(&["config", "check", "--config", "/nowhere/stopover.toml"]).await?;
    ensure!(!status.success() && text.contains("cannot read the configuration /nowhere/stopover.toml: "), "{text}");
    ensure!(text.matches("No such file").count() == 1, "{text}");
    let keys = tempfile::NamedTempFile::new()?;
    std::fs::write(&keys, "too-short")?;
    let installation = Installation::with_configuration(&format!(
        "[access]\nrobots = true\nsigning_keys = {{ file = \"{}\" }}\n",
        keys.path().display()
    ))?;
    let file = installation.configuration().display().to_string();
    let data = installation.data().display().to_string();
    for command in [&["serve"][..], &["config", "check"]] {
        let (status, text) = run(&[command, &["--config", &file, "--data-dir", &data]].concat()).await?;
        ensure!(!status.success() && text.contains("access.signing_keys: key 1 is not <id>:"), "{text}");
        ensure!(text.matches("key 1 is not").count() == 1 && !text.contains("too-short"), "{text}");
    }
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

#[tokio::test]
async fn a_read_only_data_directory_is_refused_by_its_path() -> anyhow::Result<()> {
    let installation = without_upstream()?.on_tmpfs("ro");
    let text = refusal(&installation).await?;
    ensure!(text.contains(&installation.data().display().to_string()), "{text}");
    ensure!(text.to_lowercase().contains("read-only"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_harms_only_the_blob_that_does_not_fit() -> anyhow::Result<()> {
    let mut upstream = Registry::start().await?;
    let small = Recipe::oci("small", vec![MIB, MIB]).push(&upstream).await?;
    // One layer that can never fit, and two that fit alone but not together.
    let large = Recipe::oci("large", vec![MIB / 2, 32 * MIB]).seed(2);
    let pair = Recipe::oci("pair", vec![MIB / 2, 12 * MIB, 12 * MIB]).seed(3);
    let too_large = [large.push(&upstream).await?, pair.push(&upstream).await?];
    let after = Recipe::oci("after", vec![MIB]).seed(4).push(&upstream).await?;
    let installation = Installation::for_upstream(&upstream.url())?.on_tmpfs("size=24m");
    let stopover = installation.start().await?;
    pull_over_http(stopover.address(), &small).await?;
    for image in too_large.iter().cycle().take(6) {
        let pull = pull_over_http(stopover.address(), image);
        let pulled = tokio::time::timeout(Duration::from_mins(1), pull).await;
        // Passing the bytes on without storing them is as good as an error; other bytes are not, nor is silence.
        if let Err(error) = pulled.context("neither an answer nor an error")? {
            ensure!(!error.is::<WrongContent>(), "{error}");
        }
        let stored = stopover.stored_blobs()?;
        ensure!(stored.values().all(|size| *size < 32 * MIB), "{stored:?}");
        answers(&stopover).await?;
    }
    // What did not fit has made room again.
    pull_over_http(stopover.address(), &after).await.with_context(|| stopover.log())?;
    stopover.until_stored(&[small.clone(), after.clone()]).await?;
    upstream.stop().await?;
    for image in [&small, &after] {
        pull_over_http(stopover.address(), image).await.with_context(|| stopover.log())?;
    }
    ensure!(!stopover.log().contains("panicked"), "{}", stopover.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_during_a_fill_exits_at_once_and_the_fill_goes_on_after_a_restart() -> anyhow::Result<()> {
    let mut upstream = Registry::start().await?;
    let image = Recipe::oci("slow", vec![32 * MIB]).push(&upstream).await?;
    let gate = Gate::start(upstream.url().replace("http://", "").parse()?, 4 * MIB).await?;
    let installation = Installation::for_upstream(&format!("http://{}", gate.address))?;
    let stopover = installation.start().await?;
    let pull = tokio::spawn({
        let (address, image) = (stopover.address().to_owned(), image.clone());
        async move { pull_over_http(&address, &image).await }
    });
    gate.until_closed().await?;
    let status = stopover.terminate(PROMPT).await?;
    ensure!(status.success(), "{status}");
    let Err(error) = pull.await? else { anyhow::bail!("the layer was whole before the gate let it through") };
    ensure!(!error.is::<WrongContent>(), "{error}");
    gate.open();
    // No client asks for it: what was begun is remembered.
    let stopover = installation.start().await?;
    stopover.until_stored(std::slice::from_ref(&image)).await?;
    upstream.stop().await?;
    pull_over_http(stopover.address(), &image).await.with_context(|| stopover.log())
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
        stopover.run(&[&["prefetch", "--platform", "linux/s390x"], arguments].concat()).await
    };
    let (status, text) = prefetch(&["-f", &compose, "--wait"]).await?;
    ensure!(status.success() && text.contains("images: 2, blobs: 5 ("), "{status}\n{text}");
    ensure!(text.contains("stored already: 0, copied: 5 in "), "{text}");
    let stored = stopover.stored_blobs()?;
    for (digest, _) in image.blobs.iter().chain(&platforms[1].blobs) {
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
    let manifest = reqwest::Client::new().get(format!("{server}/v2/{UPSTREAM}/a/manifests/v1"));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_cold_pulls_over_64_connections_cost_one_get_upstream() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "1", &[b"layer"]);
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let url = format!("http://{}/v2/{UPSTREAM}/a/manifests/1", stopover.address());
    // A client of its own for each: none shares a connection with another.
    let clients: Vec<reqwest::Client> = (0..64).map(|_| reqwest::Client::new()).collect();
    let pulls = clients.iter().cycle().take(1000).map(|client| client.get(&url).send());
    let mut pulls = futures_util::stream::iter(pulls).buffer_unordered(64);
    while let Some(answer) = pulls.next().await {
        ensure!(answer?.error_for_status()?.bytes().await? == image.manifest);
    }
    ensure!(upstream.count("/manifests/") == 1, "{} requests", upstream.count("/manifests/"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_whose_tls_or_name_is_broken_is_an_outage_like_any_other() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "v1", &[b"layer"]);
    let installation = Installation::for_upstream(&upstream.url())?;
    let path = "/v2/test.local/a/manifests/v1";
    let pull = async |stopover: &Stopover| {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let request = client.get(format!("http://{}{path}", stopover.address())).header("cache-control", "no-cache");
        let answer = request.send().await?.error_for_status()?;
        let served = answer.headers()["x-stopover"].to_str()?.to_owned();
        anyhow::Ok((served, answer.bytes().await?))
    };
    let stopover = installation.start().await?;
    ensure!(pull(&stopover).await? == ("miss".to_owned(), image.manifest.clone()));
    ensure!(stopover.terminate(PROMPT).await?.success());
    // The same port, which does not speak TLS; a name that means nothing.
    for broken in [upstream.url().replace("http://", "https://"), "https://registry.invalid".to_owned()] {
        let text = std::fs::read_to_string(installation.configuration())?;
        let changed = text
            .lines()
            .map(|line| if line.starts_with("url = ") { format!("url = \"{broken}\"\n") } else { format!("{line}\n") });
        std::fs::write(installation.configuration(), changed.collect::<String>())?;
        let stopover = installation.start().await?;
        ensure!(pull(&stopover).await? == ("stale".to_owned(), image.manifest.clone()), "{broken}\n{}", stopover.log());
        ensure!(stopover.terminate(PROMPT).await?.success());
    }
    Ok(())
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
    reqwest::Client::new().get(url).send().await?.error_for_status()?;
    let (status, text) = stopover.run(&["gc", "--dry-run"]).await?;
    ensure!(status.success() && text.contains("0 manifests") && text.contains("nothing was changed"), "{text}");
    let (status, text) = stopover.run(&["gc"]).await?;
    ensure!(status.success() && text.contains("0 bytes freed"), "{text}");
    let (status, text) = stopover.run(&["purge", "test.local/a:v1"]).await?;
    ensure!(status.success() && text.contains(&format!("test.local/a@{}", image.digest)), "{text}");
    let (status, text) = stopover.run(&["purge", "unknown.test/a"]).await?;
    ensure!(!status.success() && text.contains("unknown.test is not configured"), "{text}");
    Ok(())
}

#[tokio::test]
async fn requests_that_no_client_of_http_would_send_are_refused_and_harm_nothing() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let long = |count: usize| "a".repeat(count).into_bytes();
    for (target, expected) in [
        (long(65_000), &["400"] as &[&str]),
        (long(70_000), &["414"]),
        (long(2_000_000), &["414", "431"]),
        (b"..".to_vec(), &["400"]),
        (b"\x00".to_vec(), &["400"]),
        ("\u{e9}".as_bytes().to_vec(), &["400"]),
        (b"\xc0\xaf".to_vec(), &["400"]),
        (b"\xff\xfe".to_vec(), &["400"]),
        (b"a\tb".to_vec(), &["400"]),
        (b"%00".to_vec(), &["400"]),
        (b"<>\"{}|\\^`".to_vec(), &["400"]),
    ] {
        let request = [b"GET /v2/test.local/", &target[..], b"/manifests/1 HTTP/1.1\r\nhost: localhost\r\n\r\n"].concat();
        let mut connection = TcpStream::connect(stopover.address()).await?;
        // A server that has read enough closes the connection while the rest is sent.
        let sent = connection.write_all(&request).await;
        let mut answer = [0; 12];
        let read = tokio::time::timeout(DEADLINE, connection.read_exact(&mut answer)).await.context("no answer")?;
        let shown = String::from_utf8_lossy(&target[..target.len().min(20)]).into_owned();
        read.with_context(|| format!("{shown}: {sent:?}"))?;
        let status = String::from_utf8_lossy(&answer[9..]).into_owned();
        ensure!(expected.contains(&status.as_str()), "{shown} of {} bytes: {status}", target.len());
    }
    ensure!(upstream.requests().is_empty() && !stopover.log().contains("panicked"), "{}", stopover.log());
    answers(&stopover).await
}

#[tokio::test]
async fn a_client_that_says_nothing_holds_no_connection_for_ever() -> anyhow::Result<()> {
    let stopover = without_upstream()?.start().await?;
    let mut connection = TcpStream::connect(stopover.address()).await?;
    let mut answer = Vec::new();
    // The cache waits for half a minute.
    let closed = tokio::time::timeout(Duration::from_mins(1), connection.read_to_end(&mut answer)).await;
    ensure!(closed.context("the connection is held for ever")?? == 0, "{}", String::from_utf8_lossy(&answer));
    answers(&stopover).await
}

#[tokio::test]
async fn heads_and_bodies_that_are_too_large_are_refused() -> anyhow::Result<()> {
    let stopover = without_upstream()?.start().await?;
    let lines = |count: usize| "x-line: 1\r\n".repeat(count);
    let long = |count: usize| format!("x-long: {}\r\n", "a".repeat(count));
    for (headers, status) in [
        (lines(90), "200"),
        (lines(101), "431"),
        (long(60_000), "200"),
        (long(200_000), "431"),
        (long(4_000_000), "431"),
    ] {
        let mut connection = TcpStream::connect(stopover.address()).await?;
        let request = format!("GET /v2/ HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        // Who has read enough closes the connection while the rest is sent.
        let sent = connection.write_all(request.as_bytes()).await;
        let mut answer = [0; 12];
        let read = tokio::time::timeout(DEADLINE, connection.read_exact(&mut answer)).await.context("no answer")?;
        read.with_context(|| format!("{} bytes: {sent:?}", headers.len()))?;
        ensure!(&answer[9..] == status.as_bytes(), "{} bytes: {}", headers.len(), String::from_utf8_lossy(&answer));
    }
    let client = reqwest::Client::builder().no_proxy().build()?;
    for (path, most) in [("/token", 32 * 1024), ("/_stopover/prefetch", 1024 * 1024)] {
        let url = format!("http://{}{path}", stopover.address());
        let answer = client.post(url).body(vec![b'a'; most + 1]).send().await?;
        ensure!(answer.status() == 413, "{path}: {}", answer.status());
    }
    answers(&stopover).await
}

async fn answers(stopover: &Stopover) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    client.get(format!("http://{}/v2/", stopover.address())).send().await?.error_for_status()?;
    Ok(())
}

/// A way to the upstream that lets a number of bytes of its answers through, and then none until it is opened.
struct Gate {
    address: SocketAddr,
    budget: Arc<Semaphore>,
    closed: Arc<Semaphore>,
}

impl Gate {
    async fn start(upstream: SocketAddr, bytes: u64) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let budget = Arc::new(Semaphore::new(usize::try_from(bytes)?));
        let closed = Arc::new(Semaphore::new(0));
        let gate = Self { address, budget: Arc::clone(&budget), closed: Arc::clone(&closed) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, upstream, Arc::clone(&budget), Arc::clone(&closed)));
            }
        });
        Ok(gate)
    }

    /// Waits until an answer is held back.
    async fn until_closed(&self) -> anyhow::Result<()> {
        let held_back = tokio::time::timeout(Duration::from_secs(30), self.closed.acquire());
        _ = held_back.await.context("nothing is held back")??;
        Ok(())
    }

    fn open(&self) {
        self.budget.add_permits(1 << 40);
    }
}

async fn relay(
    client: TcpStream,
    upstream: SocketAddr,
    budget: Arc<Semaphore>,
    closed: Arc<Semaphore>,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_upstream, mut to_upstream) = TcpStream::connect(upstream).await?.into_split();
    let requests = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_upstream).await });
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from_upstream.read(&mut buffer).await?;
        if count == 0 {
            requests.abort();
            return Ok(());
        }
        let wanted = u32::try_from(count).expect("the buffer is small");
        if budget.try_acquire_many(wanted).map(tokio::sync::SemaphorePermit::forget).is_err() {
            closed.add_permits(1);
            budget.acquire_many(wanted).await.expect("it is never closed").forget();
        }
        to_client.write_all(&buffer[..count]).await?;
    }
}
