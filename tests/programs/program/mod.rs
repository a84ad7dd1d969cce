//! The program and what its surroundings may do to it: each mistake gets a sentence, no accident leaves half a blob.

mod accidents;
mod arguments;
mod commands;
mod limits;
mod stored;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt as _;
use support::clients::{WrongContent, pull_over_http};
use support::images::Recipe;
use support::program::{Installation, Stopover, UPSTREAM, run};
use support::registry::Registry;
use support::scripted::Scripted;
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
async fn a_thousand_cold_pulls_over_64_connections_cost_one_get_upstream() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "1", &[b"layer"]);
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let url = format!("http://{}/v2/{UPSTREAM}/a/manifests/1", stopover.address());
    // A client of its own for each: none shares a connection with another.
    let clients: Vec<reqwest::Client> = (0..64).map(|_| support::http()).collect();
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
        let client = stopover::values::crypto::http_client().no_proxy().build()?;
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

async fn answers(stopover: &Stopover) -> anyhow::Result<()> {
    let client = stopover::values::crypto::http_client().no_proxy().build()?;
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
