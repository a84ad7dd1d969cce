//! How much memory the process takes for what upstreams write, and how much of it gets into the log.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use http::StatusCode;
use stopover::oci::{Algorithm, Digest, MediaType};
use support::program::{Installation, Stopover, UPSTREAM};
use support::scripted::{Fault, Scripted};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What the process may take on top of the bytes of its answers.
const MARGIN: u64 = 32 * MIB;

/// What the registry function has.
const FUNCTION: u64 = 512 * MIB;

/// The largest manifest.
const LARGEST: usize = 4 * 1024 * 1024;

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

/// Items of JSON, as many as fit into so many bytes.
fn filled(item: &str, bytes: usize) -> String {
    vec![item; bytes / (item.len() + 1)].join(",")
}

/// The largest index, with one descriptor: a field of it that a parser would make something much larger of.
fn index(seed: usize) -> String {
    let (digest, media_type) = (digest(&seed.to_string()), MediaType::OciManifest);
    let head = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{media_type}","digest":"{digest}","size":1,"artifactType":"a/b","x":["#
    );
    format!("{head}{}]}}]}}", filled(r#"{"a":0}"#, LARGEST - head.len() - 8))
}

/// An index, and a page of referrers, of a million and more descriptors that say nothing.
fn empty_descriptors() -> String {
    format!(r#"{{"manifests":[{}]}}"#, filled("{}", LARGEST - 32))
}

async fn get(stopover: &Stopover, path: &str) -> anyhow::Result<(StatusCode, usize)> {
    let url = format!("http://{}/v2/{UPSTREAM}/{path}", stopover.address());
    let mut answer = support::http().get(url).send().await.with_context(|| stopover.log())?;
    let (status, mut bytes) = (answer.status(), 0);
    // This process holds none of it either.
    while let Some(chunk) = answer.chunk().await? {
        bytes += chunk.len();
    }
    Ok((status, bytes))
}

/// Asks a new process for all paths at once, and again for all, and compares what it takes with the bytes of the answers.
///
/// `copies`: how many there are of each while it is answered. What is stored for the first time is copied by storage.
async fn takes_little(upstream: &Scripted, paths: &[String], status: StatusCode, copies: u64) -> anyhow::Result<()> {
    let installation = Installation::for_upstream(&upstream.url())?.limited_to(FUNCTION);
    let stopover = installation.start().await?;
    get(&stopover, "nothing/manifests/here").await?;
    let before = stopover.peak_resident_bytes()?;
    let mut most = 0;
    for _ in 0..2 {
        let answers = try_join_all(paths.iter().map(|path| get(&stopover, path))).await?;
        let bytes: u64 = answers.iter().map(|(_, bytes)| *bytes as u64).sum();
        ensure!(answers.iter().all(|(answered, _)| *answered == status), "{answers:?}: {}", stopover.log());
        most = most.max(bytes);
    }
    let taken = stopover.peak_resident_bytes()?.saturating_sub(before);
    eprintln!("{} answers of {} KiB took {} KiB", paths.len(), most / KIB, taken / KIB);
    // What is refused has been read too.
    let read = most.max(paths.len() as u64 * LARGEST as u64);
    ensure!(taken <= read * copies + MARGIN, "{} KiB for {} KiB of answers", taken / KIB, most / KIB);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_referrers_take_little_more_than_their_bytes_eight_at_once_included() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    for number in 0..8 {
        let subject = digest(&format!("of a tag {number}"));
        let tag = format!("sha256-{}", subject.hex());
        upstream.manifest(&format!("tag{number}"), &tag, MediaType::OciIndex.as_str(), index(number).as_bytes());
        let own = format!("/v2/api{number}/referrers/{}", digest("api"));
        upstream.page(&own, MediaType::OciIndex.as_str(), &index(number), None);
        let own = format!("/v2/none{number}/referrers/{}", digest("api"));
        upstream.page(&own, MediaType::OciIndex.as_str(), &empty_descriptors(), None);
    }
    let path = |kind: &str, number: usize, query: &str| match kind {
        "tag" => format!("tag{number}/referrers/{}{query}", digest(&format!("of a tag {number}"))),
        kind => format!("{kind}{number}/referrers/{}{query}", digest("api")),
    };
    for kind in ["tag", "api", "none"] {
        for query in ["", "?artifactType=a/b"] {
            takes_little(&upstream, &[path(kind, 0, query)], StatusCode::OK, 1).await?;
            takes_little(&upstream, &vec![path(kind, 0, query); 8], StatusCode::OK, 1).await?;
            let paths: Vec<String> = (0..8).map(|number| path(kind, number, query)).collect();
            takes_little(&upstream, &paths, StatusCode::OK, if kind == "tag" { 2 } else { 1 }).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_manifests_take_little_more_than_their_bytes_eight_at_once_included() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let index_type = MediaType::OciIndex.as_str();
    for number in 0..8 {
        upstream.manifest(&format!("index{number}"), "1", index_type, index(number).as_bytes());
        // More descriptors than an index may have: it is refused.
        upstream.manifest(&format!("many{number}"), "1", index_type, empty_descriptors().as_bytes());
        let long = format!(r#"{{"mediaType":"{}","manifests":[]}}"#, "m".repeat(LARGEST - 40));
        upstream.manifest(&format!("long{number}"), "1", index_type, long.as_bytes());
    }
    for (kind, status) in
        [("index", StatusCode::OK), ("many", StatusCode::BAD_GATEWAY), ("long", StatusCode::BAD_GATEWAY)]
    {
        for count in [1, 8] {
            let paths: Vec<String> = (0..count).map(|number| format!("{kind}{number}/manifests/1")).collect();
            takes_little(&upstream, &paths, status, 2).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_lists_of_tags_take_little_more_than_their_bytes_eight_at_once_included() -> anyhow::Result<()> {
    // As many tags as fit into all pages that are read, and in no order.
    let upstream = Scripted::start()?;
    for name in 0..8 {
        for page in 0..4 {
            let tags: Vec<String> = (0..260_000_u64).map(|number| tag(page * 260_000 + number)).collect();
            let (path, next) = (format!("/v2/a{name}/tags/list"), format!("</v2/a{name}/tags/list?page={}>", page + 1));
            let path = if page == 0 { path } else { format!("{path}?page={page}") };
            let body = format!(r#"{{"tags":["{}"]}}"#, tags.join("\",\""));
            let link = format!("{next}; rel=\"next\"");
            upstream.page(&path, "application/json", &body, (page < 3).then_some(link.as_str()));
        }
    }
    for count in [1, 8] {
        let table = format!("wait = \"2m\"\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\n", upstream.url());
        let installation = Installation::with_configuration(&table)?.limited_to(FUNCTION);
        let stopover = installation.start().await?;
        get(&stopover, "nothing/manifests/here").await?;
        let before = stopover.peak_resident_bytes()?;
        let paths: Vec<String> = (0..count).map(|number| format!("a{number}/tags/list")).collect();
        // An unoptimised program needs long to read and sort a million tags: clients are told to come back.
        let mut rounds = 0;
        loop {
            let answers = try_join_all(paths.iter().map(|path| get(&stopover, path))).await?;
            if answers.iter().all(|(status, _)| *status == StatusCode::OK) {
                break;
            }
            rounds += 1;
            let told = |status: StatusCode| matches!(status, StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE);
            ensure!(rounds < 20 && answers.iter().all(|(status, _)| told(*status)), "{answers:?}: {}", stopover.log());
        }
        let taken = stopover.peak_resident_bytes()?.saturating_sub(before);
        eprintln!("{count} lists of 8 MiB took {} KiB", taken / KIB);
        // Each list, and the page of it that is being read.
        ensure!(taken <= count * (8 + 4) * MIB + MARGIN, "{count} lists took {} MiB", taken / MIB);
    }
    Ok(())
}

/// Different tags for different numbers, in no order: five letters.
fn tag(number: u64) -> String {
    let number = number * 1_234_577;
    (0..5).filter_map(|place| char::from_digit(u32::try_from(number / 36_u64.pow(place) % 36).ok()?, 36)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_of_text_from_upstream_reach_neither_the_log_nor_the_client() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let (image, index) = (MediaType::OciManifest.as_str(), MediaType::OciIndex.as_str());
    let long = "\u{1b}[31mA\\n".repeat(300_000).replace('\u{1b}', "\\u001b");
    let config = |size: &str| format!(r#"{{"config":{{"digest":"{}","size":"{size}"}},"layers":[]}}"#, digest("a"));
    upstream.manifest("size", "1", image, config(&long).as_bytes());
    upstream.manifest("type", "1", index, format!(r#"{{"mediaType":"{long}","manifests":[]}}"#).as_bytes());
    upstream.manifest("header", "1", &"x".repeat(60_000), b"{}");
    upstream.page("/v2/tags/tags/list", "application/json", &format!(r#"{{"tags":"{long}"}}"#), None);
    upstream.page("/v2/tag/tags/list", "application/json", &format!(r#"{{"tags":[{{"{long}":1}}]}}"#), None);
    let referrers = format!("/v2/referrers/referrers/{}", digest("a"));
    upstream.page(&referrers, index, &format!(r#"{{"manifests":"{long}"}}"#), None);
    upstream.page(
        "/v2/link/tags/list",
        "application/json",
        r#"{"tags":[]}"#,
        Some(&format!("<http://{}.test/>; rel=next", "a.".repeat(20_000))),
    );
    let location = format!("http://{}.test/", "a.".repeat(20_000));
    upstream.fault("/v2/location/", Fault::Status(307, vec![("location", location)], String::new()));
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    for path in [
        "size/manifests/1".to_owned(),
        "type/manifests/1".to_owned(),
        "header/manifests/1".to_owned(),
        "tags/tags/list".to_owned(),
        "tag/tags/list".to_owned(),
        format!("referrers/referrers/{}", digest("a")),
        "link/tags/list".to_owned(),
        "location/manifests/1".to_owned(),
    ] {
        let before = stopover.log().len();
        let (status, bytes) = get(&stopover, &path).await?;
        ensure!(status == StatusCode::BAD_GATEWAY && bytes < 1000, "{path}: {status}, {bytes} bytes");
        let logged = stopover.log().len() - before;
        ensure!(logged < 4000, "{path}: {logged} bytes in the log");
    }
    ensure!(!stopover.log().contains("\u{1b}[31m"), "no terminal obeys an upstream");
    Ok(())
}

/// Clients that read a byte at a time. For each the kernel holds megabytes, and it has only so many for all.
const SLOW: usize = 200;

/// Before those that count, so many have the program load what it needs for any.
const FIRST: usize = 40;

/// What a client that reads slowly may cost, beside the buffers of the kernel.
const SLOW_BYTES: u64 = 64 * KIB;

async fn slow_client(stopover: &Stopover, path: &str) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(128 * 1024)?;
    let mut client = socket.connect(stopover.address().parse()?).await?;
    client.write_all(format!("GET /v2/{UPSTREAM}/{path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await?;
    let mut status = [0; 12];
    client.read_exact(&mut status).await?;
    ensure!(&status == b"HTTP/1.1 200", "{}: {}", String::from_utf8_lossy(&status), stopover.log());
    Ok(client)
}

/// What so many slow clients of these paths cost, beside `shared`, which they share.
async fn slow_clients_cost_little(stopover: &Stopover, paths: &[String], shared: u64) -> anyhow::Result<()> {
    let (mut before, mut clients) = (0, Vec::new());
    for path in paths.iter().cycle().take(FIRST + SLOW) {
        clients.push(slow_client(stopover, path).await?);
        if clients.len() == FIRST {
            before = stopover.peak_resident_bytes()?;
        }
    }
    for _ in 0..64 {
        for client in &mut clients {
            client.read_u8().await?;
        }
    }
    let taken = stopover.peak_resident_bytes()?.saturating_sub(before);
    eprintln!("{SLOW} slow clients of {} took {} KiB each", paths[0], taken / KIB / SLOW as u64);
    ensure!(taken <= SLOW as u64 * SLOW_BYTES + shared, "{} KiB", taken / KIB);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_slowly_cost_at_most_64_kib_each() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let layers: Vec<Vec<u8>> = (0..2).map(|fill| vec![fill; 32 * 1024 * 1024]).collect();
    let images: Vec<_> = layers.iter().map(|layer| upstream.image("a", "1", &[layer])).collect();
    let blobs: Vec<String> = images.iter().map(|image| format!("a/blobs/{}", image.blobs[1].0)).collect();
    let large =
        |number: usize| format!(r#"{{"manifests":[],"annotations":{{"a":"{number}{}"}}}}"#, "x".repeat(LARGEST - 100));
    let manifests: Vec<String> = (0..4).map(|number| format!("a/manifests/large{number}")).collect();
    for number in 0..4 {
        let bytes = large(number);
        upstream.manifest("a", &format!("large{number}"), MediaType::OciIndex.as_str(), bytes.as_bytes());
    }
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    // What a fill takes counts once.
    get(&stopover, &format!("a/manifests/{}", images[0].digest)).await?;
    get(&stopover, &blobs[0]).await?;
    upstream.fault(&blobs[1], Fault::Stalled);
    get(&stopover, &format!("a/manifests/{}", images[1].digest)).await?;
    slow_clients_cost_little(&stopover, &blobs[1..], MARGIN).await?;
    upstream.heal();
    for path in &manifests {
        get(&stopover, path).await?;
    }
    let ended = stopover.terminate(Duration::from_secs(30)).await?;
    ensure!(ended.success(), "{ended}");
    let stopover = installation.start().await?;
    for path in [&manifests[0], &blobs[0]] {
        get(&stopover, path).await?;
    }
    slow_clients_cost_little(&stopover, &blobs[..1], 0).await?;
    // There are more of these than are kept in memory.
    slow_clients_cost_little(&stopover, &manifests, 0).await
}
