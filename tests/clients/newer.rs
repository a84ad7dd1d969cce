//! What clients newer than Debian's ask, in plain HTTP: containerd 2, dockerd 29, skopeo 1.22.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use reqwest::Method;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, RANGE,
};
use support::clients::pull_over_http;
use support::images::{Recipe, digest_of};
use support::program::{Installation, UPSTREAM};
use support::scripted::{Fault, Scripted};
use support::vast::{Manner, Vast};
use support::world::until;

const MIB: u64 = 1024 * 1024;

/// When newer clients give up waiting for headers.
const HEADERS: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_newer_clients_get_plain_answers_and_tell_upstream_nothing() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = Recipe::index("a").layers(vec![1000]).push(&upstream).await?;
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let base = format!("http://{}/v2/{UPSTREAM}/a", stopover.address());
    // Each type in a line of its own, as clients in Go send it; the encodings and the range are containerd's.
    let mut headers = HeaderMap::new();
    for kind in [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.index.v1+json",
    ] {
        headers.append(ACCEPT, kind.parse()?);
    }
    headers.insert(ACCEPT_ENCODING, "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5".parse()?);
    headers.insert(AUTHORIZATION, "Bearer of-the-client".parse()?);
    let client = stopover::values::crypto::http_client().default_headers(headers).build()?;
    let (index, child) = ("application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json");
    let manifest = &image.manifests[0];
    for (path, kind, digest) in [
        (format!("manifests/{}", image.tag), index, &image.digest),
        (format!("manifests/{}", image.digest), index, &image.digest),
        (format!("manifests/{}", manifest.digest), child, &manifest.digest),
        (format!("blobs/{}", manifest.blobs[1].digest), "application/octet-stream", &manifest.blobs[1].digest),
    ] {
        let url = format!("{base}/{path}");
        let got = client.get(&url).header(RANGE, "bytes=0-").send().await?.error_for_status()?;
        // A manifest comes whole, a blob as the part that it is.
        let expected = if path.starts_with("blobs/") { 206 } else { 200 };
        ensure!(got.status() == expected, "{path}: {}", got.status());
        let answered = got.headers().clone();
        ensure!(!answered.contains_key(CONTENT_ENCODING), "{path}: {answered:?}");
        ensure!(answered[CONTENT_TYPE] == kind, "{path}: {answered:?}");
        ensure!(digest_of(&got.bytes().await?) == *digest, "{path}: other bytes");
        let head = client.request(Method::HEAD, &url).send().await?.error_for_status()?;
        for name in ["content-type", "content-length", "docker-content-digest", "etag"] {
            ensure!(
                head.headers().get(name) == answered.get(name),
                "{path}, {name}: {:?}, {answered:?}",
                head.headers()
            );
        }
        ensure!(answered.contains_key(CONTENT_LENGTH), "{path}: {answered:?}");
    }
    let seen = upstream.requests();
    ensure!(!seen.is_empty());
    for seen in seen {
        ensure!(!seen.headers.contains_key(AUTHORIZATION), "the client's Authorization went to upstream: {seen:?}");
        ensure!(seen.headers[ACCEPT_ENCODING] == "identity", "{seen:?}");
    }
    upstream.kill();
    let ping = client.get(format!("http://{}/v2/", stopover.address())).send().await?;
    ensure!(ping.status() == 200, "the ping without upstream: {}", ping.status());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_open_ranges_of_a_cold_blob_closed_early_cost_one_download() -> anyhow::Result<()> {
    const SIZE: u64 = 48 * MIB;
    // Slow enough that all of them come while the blob is on its way.
    let vast = Vast::start(SIZE, Manner { bytes_per_second: Some(4 * MIB), ..Manner::default() })?;
    let installation = Installation::with_configuration(&vast.table())?;
    let stopover = installation.start().await?;
    let base = format!("http://{}/v2/vast.local/vast", stopover.address());
    let client = support::http();
    client.get(format!("{base}/manifests/1")).send().await?.error_for_status()?;
    let url = format!("{base}/blobs/{}", vast.digest());
    let readers = (0..SIZE / (4 * MIB)).map(|part| {
        let request = client.get(&url).header(RANGE, format!("bytes={}-", part * 4 * MIB));
        async move {
            let mut answer = request.send().await?;
            ensure!(answer.status() == 206, "{}", answer.status());
            let mut left = MIB;
            while left > 0 {
                let piece = answer.chunk().await?.context("the answer ends early")?;
                left = left.saturating_sub(piece.len() as u64);
            }
            // What it asked for reaches to the end; it goes without waiting for that.
            Ok(())
        }
    });
    try_join_all(readers).await?;
    vast.manner().bytes_per_second = None;
    until(|| stopover.stored_blobs().is_ok_and(|stored| stored.get(vast.digest().as_str()) == Some(&SIZE))).await;
    ensure!(vast.sent() == SIZE, "{} bytes were sent of {SIZE}", vast.sent());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_come_within_thirty_seconds_although_upstream_is_silent() -> anyhow::Result<()> {
    let cases = [
        (Method::HEAD, "manifests/v1", "/manifests/"),
        (Method::GET, "manifests/v1", "/manifests/"),
        (Method::GET, "manifests/DIGEST", "/manifests/"),
        (Method::GET, "blobs/LAYER", "/blobs/"),
    ];
    // A program and an upstream for each: what one has found out would answer the others at once.
    let answers = cases.map(async |(method, path, silent)| {
        let upstream = Scripted::start()?;
        let image = Recipe::oci("a", vec![1000]).push(&upstream).await?;
        // A fill would wait longer than this test does.
        let table = format!("[upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\nfirst_byte = \"20s\"\n", upstream.url());
        let installation = Installation::with_configuration(&table)?;
        let stopover = installation.start().await?;
        let path = path.replace("DIGEST", &image.digest).replace("LAYER", &image.manifests[0].blobs[1].digest);
        let base = format!("http://{}/v2/{UPSTREAM}/a", stopover.address());
        upstream.fault(silent, Fault::Silent);
        if silent == "/blobs/" {
            support::http().get(format!("{base}/manifests/v1")).send().await?.error_for_status()?;
        }
        let begun = Instant::now();
        let answer = support::http().request(method.clone(), format!("{base}/{path}")).send();
        let answer = tokio::time::timeout(HEADERS, answer).await;
        let answer = answer.with_context(|| format!("{method} {path}: no headers:\n{}", stopover.log()))??;
        ensure!(answer.status() == 503, "{method} {path}: {} after {:?}", answer.status(), begun.elapsed());
        ensure!(answer.headers().contains_key("retry-after"), "{method} {path}: {:?}", answer.headers());
        // Upstream is well again, and so is the image once the time is over that it was told to wait.
        upstream.heal();
        let after: u64 = answer.headers()["retry-after"].to_str()?.parse()?;
        tokio::time::sleep(Duration::from_secs(after)).await;
        let deadline = Instant::now() + HEADERS;
        while let Err(error) = pull_over_http(stopover.address(), &image).await {
            ensure!(Instant::now() < deadline, "{method} {path}: {error:#}\n{}", stopover.log());
            // Fills that failed rest before they are tried again.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    });
    try_join_all(answers).await.map(drop)
}
