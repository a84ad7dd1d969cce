//! A full disk, a damaged ledger, and an end in the middle of something.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use support::images::{Image, Recipe};
use support::program::{Installation, UPSTREAM};
use support::registry::Registry;
use support::scripted::{Fault, Scripted};
use support::world::until;
use tokio::net::TcpStream;

use super::{MIB, PROMPT, refusal, without_upstream};

/// Takes what room there is, to the last byte.
fn fill_up(directory: &Path) {
    let file = File::options().append(true).create(true).open(directory.join("filler"));
    for size in [64 * 1024, 512, 1] {
        while file.as_ref().is_ok_and(|mut file| file.write_all(&vec![0; size]).is_ok()) {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_serves_what_is_stored_and_passes_on_what_upstream_says() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "1", &[b"layer"]);
    upstream.tags("a", &["1"]);
    let installation = Installation::for_upstream(&upstream.url())?.on_tmpfs("size=8m");
    let text = fs::read_to_string(installation.configuration())?;
    fs::write(installation.configuration(), text.replace("\"1h\"", "\"1s\""))?;
    let stopover = installation.start().await?;
    let client = stopover::values::crypto::http_client().no_proxy().build()?;
    let url = |path: &str| format!("http://{}/v2/{UPSTREAM}/a/{path}", stopover.address());
    let layer = format!("blobs/{}", image.blobs[1].0);
    for path in ["manifests/1", &layer] {
        client.get(url(path)).send().await?.error_for_status()?.bytes().await?;
    }
    until(|| stopover.stored_blobs().is_ok_and(|stored| stored.len() == image.blobs.len())).await;
    let (new, moved) = (upstream.image("a", "2", &[b"new"]), upstream.image("a", "1", &[b"moved"]));
    // The tag is stale from here on: what is tested is not when, but that upstream is asked.
    tokio::time::sleep(Duration::from_millis(2200)).await;
    for (path, expected) in [
        (layer.as_str(), &image.blobs[1].1),
        ("manifests/1", &moved.manifest),
        ("manifests/2", &new.manifest),
        ("manifests/1", &moved.manifest),
        (&format!("manifests/{}", image.digest), &image.manifest),
        (&format!("blobs/{}", new.blobs[1].0), &new.blobs[1].1),
    ] {
        // Before each request: the ledger may have freed a page.
        fill_up(stopover.data());
        let answer = client.get(url(path)).send().await?;
        ensure!(answer.status().is_success(), "{path}: {}\n{}", answer.status(), stopover.log());
        ensure!(answer.bytes().await? == *expected, "{path}");
    }
    fill_up(stopover.data());
    client.get(url("tags/list")).send().await?.error_for_status()?;
    let health = format!("http://{}/_stopover/health/ready", stopover.address());
    let health = client.get(health).send().await?.error_for_status()?.text().await?;
    ensure!(health == r#"{"ready":true,"reasons":["the disk is full: new blobs are not stored"]}"#, "{health}");
    // Once there is room again, everything is stored as ever.
    fs::remove_file(stopover.data().join("filler"))?;
    let stored = async || client.get(url(&layer)).send().await?.error_for_status();
    stored().await?;
    ensure!(!stopover.log().contains("panicked"), "{}", stopover.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_manifest_takes_nothing_of_the_reserve_of_the_disk() -> anyhow::Result<()> {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let upstream = Scripted::start()?;
    let index = |length: usize| {
        format!(r#"{{"schemaVersion":2,"manifests":[],"annotations":{{"a":"{}"}}}}"#, "x".repeat(length))
    };
    upstream.manifest("a", "large", INDEX, index(600 * 1024).as_bytes());
    upstream.manifest("a", "small", INDEX, index(100).as_bytes());
    // One percent is kept: 2 MiB.
    let installation = Installation::for_upstream(&upstream.url())?.on_tmpfs("size=200m");
    let stopover = installation.start().await?;
    let pull = async |tag: &str| {
        support::get(format!("http://{}/v2/{UPSTREAM}/a/manifests/{tag}", stopover.address())).await?.error_for_status()
    };
    fill_up(stopover.data());
    let filler = File::options().write(true).open(stopover.data().join("filler"))?;
    filler.set_len(filler.metadata()?.len() - 5 * MIB / 2)?;
    let refusals = || stopover.log().matches("kept in reserve").count();
    pull("small").await?;
    ensure!(refusals() == 0, "{}", stopover.log());
    pull("large").await?;
    ensure!(refusals() > 0, "it is written: {}", stopover.log());
    Ok(())
}

#[tokio::test]
async fn a_damaged_ledger_is_refused_with_what_to_do() -> anyhow::Result<()> {
    let installation = without_upstream()?;
    ensure!(installation.start().await?.terminate(PROMPT).await?.success());
    let path = installation.data().join("ledger.redb");
    let mut file = File::options().write(true).open(&path)?;
    let size = file.metadata()?.len();
    // All but the head, by which it is known as a ledger.
    file.seek(SeekFrom::Start(4096))?;
    file.write_all(&vec![0xa5; usize::try_from(size)? - 4096])?;
    drop(file);
    let text = refusal(&installation).await?;
    for expected in [path.display().to_string().as_str(), "is damaged", "backup", "move it away"] {
        ensure!(text.contains(expected), "{expected:?} is not in: {text}");
    }
    fs::rename(&path, path.with_extension("away"))?;
    installation.start().await?;
    Ok(())
}

#[tokio::test]
async fn a_data_directory_of_a_newer_release_is_refused_with_what_to_do() -> anyhow::Result<()> {
    let installation = without_upstream()?;
    ensure!(installation.start().await?.terminate(PROMPT).await?.success());
    let path = installation.data().join("format");
    let ours = fs::read(&path)?;
    fs::write(&path, "2 stopover 9.1.0\n")?;
    let text = refusal(&installation).await?;
    let data = installation.data().display().to_string();
    for expected in
        [data.as_str(), "format 2, which stopover 9.1.0 has written", "start that release", "restore a copy"]
    {
        ensure!(text.contains(expected), "{expected:?} is not in: {text}");
    }
    fs::write(&path, ours)?;
    installation.start().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_answers_of_stored_blobs_end() -> anyhow::Result<()> {
    let upstream = Registry::start().await?;
    let image: Image = Recipe::oci("large", vec![48 * MIB]).push(&upstream).await?;
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    support::clients::pull_over_http(stopover.address(), &image).await?;
    stopover.until_stored(std::slice::from_ref(&image)).await?;
    let layer = image.blobs().max_by_key(|blob| blob.size).context("it has a layer")?;
    let address = stopover.address().to_owned();
    let url = format!("http://{address}/v2/{UPSTREAM}/{}/blobs/{}", image.name, layer.digest);
    let answer =
        stopover::values::crypto::http_client().no_proxy().build()?.get(url).send().await?.error_for_status()?;
    let ended = tokio::spawn(stopover.terminate(Duration::from_secs(20)));
    // Nobody else is let in, and this client takes its time: longer than fills have.
    while TcpStream::connect(&address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_secs(7)).await;
    let (mut body, mut taken) = (answer.bytes_stream(), 0);
    while let Some(bytes) = body.next().await {
        taken += bytes.context("it is cut")?.len() as u64;
    }
    ensure!(taken == layer.size, "{taken} of {}", layer.size);
    let read = Instant::now();
    ensure!(ended.await??.success());
    ensure!(read.elapsed() < Duration::from_secs(3), "it ends with the answer, and not with the time it has for it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_a_dead_process_was_asking_for_is_asked_for_at_once() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "1", &[b"layer"]);
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let url = |address: &str| format!("http://{address}/v2/{UPSTREAM}/a/manifests/1");
    upstream.fault("/v2/a/manifests/", Fault::Silent);
    let asking = tokio::spawn(support::get(url(stopover.address())));
    until(|| upstream.count("/v2/a/manifests/") > 0).await;
    stopover.kill_9().await?;
    ensure!(asking.await?.is_err(), "it was killed");
    upstream.heal();
    let stopover = installation.start().await?;
    let begun = Instant::now();
    let answer = support::get(url(stopover.address())).await?.error_for_status()?;
    ensure!(answer.bytes().await? == image.manifest);
    ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    Ok(())
}
