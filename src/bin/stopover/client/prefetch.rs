//! `stopover prefetch`: requests images and, with `--wait`, follows their fills to the end.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use http::header::CONTENT_TYPE;
use serde_json::json;
use stopover::oci::{Digest, Operation, Platform, Request};
use stopover::operate::fills::{FillState, FillStatus};
use stopover::operate::report::Bytes;
use stopover::prefetch::{PrefetchReport, PrefetchedBlob};

use super::images::{self, Image, Listed, Surroundings};
use super::progress::Display;
use super::{Client, Endpoint};

/// How many images one request names: few enough that a cold cache answers in time.
const IMAGES_AT_ONCE: usize = 8;
/// How many times images are requested again that took too long for one answer.
const AGAIN: usize = 10;
/// How often the state of the fills is read.
const POLL: Duration = Duration::from_millis(500);
/// How many blobs are looked up per round if the cache does not list its fills.
const LOOKUPS: usize = 32;
/// For how many rounds a blob may be neither listed nor stored: it is between the two for a moment.
const UNLISTED: usize = 4;
/// How long no byte may arrive, and how long the cache may not answer.
const PATIENCE: Duration = Duration::from_mins(10);
const AWAY: Duration = Duration::from_mins(1);

/// What to prefetch.
#[derive(clap::Args)]
pub(crate) struct PrefetchArguments {
    /// Images like nginx:1.27 or ghcr.io/owner/name@sha256:…
    #[arg(value_name = "IMAGE", required_unless_present = "files")]
    images: Vec<String>,
    /// A file that names images: any YAML, JSON or TOML, a Compose file, a Dockerfile, or a list with an image a line.
    /// A directory of such files; `-` is the standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// For which platforms, like linux/arm64 [default: the policy of the upstream, else that of this machine]
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',')]
    platforms: Vec<Platform>,
    /// Wait until everything is stored, and show how far it is
    #[arg(long)]
    wait: bool,
    /// Show no progress, and say only what has failed
    #[arg(short, long)]
    quiet: bool,
    /// Print the images and where each was found, and ask no registry
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
}

impl PrefetchArguments {
    fn listed(&self) -> anyhow::Result<Listed> {
        let variable = |name: &str| std::env::var(name).ok();
        let surroundings = Surroundings { variable: &variable, platforms: &self.platforms, depth: 0 };
        let mut listed = images::read(&self.files, &surroundings)?;
        let found = std::mem::take(&mut listed.images);
        for name in &self.images {
            listed.name(name);
        }
        listed.images.extend(found);
        Ok(listed)
    }

    /// The platforms that are asked for: those of the arguments, unless the file wants one of them for this image.
    fn platforms(&self, own: Option<Platform>) -> Vec<Platform> {
        let own = own.filter(|own| self.platforms.is_empty() || self.platforms.contains(own));
        own.map_or_else(|| self.platforms.clone(), |own| vec![own])
    }

    /// The images by platforms, because one request has one list of platforms.
    fn requests(&self, images: Vec<Image>) -> Vec<(Vec<Platform>, Vec<String>)> {
        let mut requests: Vec<(Vec<Platform>, Vec<String>)> = Vec::new();
        for image in images {
            let platforms = self.platforms(image.platform);
            match requests.iter_mut().find(|(known, names)| *known == platforms && names.len() < IMAGES_AT_ONCE) {
                Some((_, names)) => names.push(image.name),
                None => requests.push((platforms, vec![image.name])),
            }
        }
        requests
    }
}

/// A blob whose fill is followed.
struct Awaited {
    /// The URL that the blob is pulled from.
    url: String,
    digest: Digest,
    size: u64,
    written: u64,
    unlisted: usize,
}

impl Client {
    /// Requests images; one line per image says what was requested. Fails if one of them was refused, or if `--wait`
    /// ends with one that is not stored whole.
    pub(crate) async fn prefetch(&self, order: PrefetchArguments) -> anyhow::Result<()> {
        let Listed { mut images, skipped, notes, .. } = order.listed()?;
        for line in notes.iter().chain(&skipped) {
            eprintln!("{line}");
        }
        let mut seen = HashSet::new();
        for image in &mut images {
            image.name = String::from(self.beyond(&image.name));
        }
        images.retain(|image| seen.insert((image.name.clone(), order.platforms(image.platform.clone()))));
        let mut list = self.output.list("images");
        if order.dry_run {
            list.add(&images, |images| images.iter().map(found).collect())?;
            return list.end(json!({}), String::new);
        }
        let (count, began) = (images.len(), Instant::now());
        let (mut failed, mut blobs, mut reports) = (0, HashMap::new(), Vec::new());
        for (platforms, names) in order.requests(images) {
            for mut report in self.request(&platforms, names, order.wait).await? {
                if report.error.is_none() {
                    report.error = self.other_platform(&report, &platforms).await;
                }
                if let Some(error) = &report.error {
                    failed += 1;
                    eprintln!("{}: {error}", report.image);
                }
                if let Ok(request) = Request::image(&report.image)
                    && let Operation::Manifest(name, _) = &request.operation
                {
                    for PrefetchedBlob { digest, size, stored } in &report.blobs {
                        let url = self.registry_url(&request, name, "blobs", digest.as_str());
                        let awaited = Awaited { url, digest: digest.clone(), size: *size, written: 0, unlisted: 0 };
                        blobs.entry(digest.clone()).or_insert((awaited, *stored));
                    }
                }
                if order.wait {
                    reports.push(report);
                } else {
                    list.add(&[report], requested)?;
                }
            }
        }
        let (all, bytes) = (blobs.len(), Bytes(blobs.values().map(|(blob, _)| blob.size).sum()));
        let missing: Vec<Awaited> =
            blobs.into_values().filter(|(_, stored)| !stored).map(|(awaited, _)| awaited).collect();
        let wanted = missing.len();
        let given_up = if order.wait { self.follow(missing, order.quiet).await? } else { HashSet::new() };
        for blob in reports.iter_mut().flat_map(|report| &mut report.blobs) {
            blob.stored = !given_up.contains(&blob.digest);
        }
        list.add(&reports, |_| String::new())?;
        let mut text = String::new();
        write!(text, "images: {count}, blobs: {all} ({bytes}), stored already: {}, ", all - wanted)?;
        if order.wait {
            write!(text, "copied: {} in {} s", wanted - given_up.len(), began.elapsed().as_secs())?;
        } else {
            write!(text, "requested: {wanted}")?;
        }
        let is_whole = failed + given_up.len() + skipped.len() == 0;
        if !is_whole {
            let blobs = given_up.len();
            write!(text, ", failed images: {failed}, failed blobs: {blobs}, skipped: {}", skipped.len())?;
        }
        list.end(json!({}), || if is_whole && order.quiet { String::new() } else { text + "\n" })?;
        ensure!(is_whole, "not everything is stored");
        Ok(())
    }

    /// Requests images, and those again that the cache asks for. With `wait` also those that a budget refuses which is
    /// there again within a minute.
    async fn request(
        &self,
        platforms: &[Platform],
        names: Vec<String>,
        wait: bool,
    ) -> anyhow::Result<Vec<PrefetchReport>> {
        #[derive(serde::Deserialize)]
        struct Reports {
            images: Vec<PrefetchReport>,
        }
        let (mut ended, mut left, mut rounds) = (Vec::new(), names, 0);
        while !left.is_empty() {
            let body = json!({ "images": left, "platforms": platforms, "machine": Platform::of_this_machine() });
            let question = self.http.post(self.url("prefetch")).header(CONTENT_TYPE, "application/json");
            let Reports { images } = self.ask(question.body(body.to_string())).await?;
            let again =
                |report: &PrefetchReport| rounds < AGAIN && (report.again || wait && report.retry_after.is_some());
            let (again, done): (Vec<_>, Vec<_>) = images.into_iter().partition(again);
            // As long as some of them end it goes on.
            rounds = if done.is_empty() { rounds + 1 } else { 0 };
            ended.extend(done);
            if let Some(seconds) = again.iter().filter_map(|report| report.retry_after).max() {
                eprintln!("{} images wait {seconds} s for a budget", again.len());
                tokio::time::sleep(Duration::from_secs(seconds.clamp(1, 60))).await;
            }
            left = again.into_iter().map(|report| report.image).collect();
        }
        Ok(ended)
    }

    /// The name of an image without the cache itself, through which it may lead.
    fn beyond<'a>(&self, name: &'a str) -> &'a str {
        let Some((host, rest)) = name.split_once('/') else { return name };
        let port = self.server.url().port_or_known_default();
        let is_same_port = |other: Endpoint| other.is_here() && other.url().port_or_known_default() == port;
        let is_here = || format!("{}://{host}", self.server.url().scheme()).parse().is_ok_and(is_same_port);
        if self.server.is_host(host) || self.server.is_here() && is_here() { rest } else { name }
    }

    /// Follows fills until each blob is stored or given up. Returns those that were given up.
    async fn follow(&self, awaited: Vec<Awaited>, quiet: bool) -> anyhow::Result<HashSet<Digest>> {
        let mut display = Display::new(awaited.iter().map(|blob| blob.size).sum(), quiet);
        let (mut open, mut done, mut lost) = (VecDeque::from(awaited), 0, HashSet::new());
        let (mut before, mut moved, mut answered) = (0, Instant::now(), Instant::now());
        while !open.is_empty() {
            // Polls, because a cache does not announce the end of a fill.
            tokio::time::sleep(POLL).await;
            // Only operators may list the fills: other callers ask for each blob.
            let listed = if self.is_local_operator { self.listed_fills().await.ok() } else { None };
            if listed.is_some() {
                answered = Instant::now();
            }
            let listed: Option<HashMap<Digest, FillStatus>> =
                listed.map(|report| report.fills.into_iter().map(|fill| (fill.digest.clone(), fill)).collect());
            let mut lookups = LOOKUPS;
            for _ in 0..open.len() {
                let Some(mut blob) = open.pop_front() else { break };
                let end = match listed.as_ref().and_then(|listed| listed.get(&blob.digest)) {
                    Some(FillStatus { state: FillState::Stored, .. }) => Some(Ok(())),
                    Some(FillStatus { state: FillState::Failed, failure, .. }) => {
                        Some(Err(failure.clone().unwrap_or_else(|| "it was given up".into())))
                    }
                    Some(fill) => {
                        (blob.written, blob.unlisted) = (fill.written, 0);
                        None
                    }
                    None if lookups > 0 => {
                        lookups -= 1;
                        self.look_up(&mut blob, listed.is_some(), &mut answered).await?
                    }
                    None => None,
                };
                match end {
                    None => {
                        display.advance(&blob.digest, blob.size, blob.written);
                        open.push_back(blob);
                    }
                    Some(outcome) => {
                        done += blob.size;
                        lost.extend(outcome.is_err().then(|| blob.digest.clone()));
                        display.end(&blob.digest, blob.size, outcome.err().as_deref());
                    }
                }
            }
            let now = done + open.iter().map(|blob| blob.written).sum::<u64>();
            display.total(now);
            if now != before {
                (before, moved) = (now, Instant::now());
            } else if moved.elapsed() > PATIENCE {
                for blob in open.drain(..) {
                    lost.insert(blob.digest.clone());
                    display.end(
                        &blob.digest,
                        blob.size,
                        Some("nothing has arrived for ten minutes; the cache goes on"),
                    );
                }
            }
        }
        display.finish();
        Ok(lost)
    }

    /// Looks up a blob whose fill is not listed. Fails once the cache has not `answered` for too long.
    async fn look_up(
        &self,
        blob: &mut Awaited,
        listed: bool,
        answered: &mut Instant,
    ) -> anyhow::Result<Option<Result<(), String>>> {
        match self.send(self.http.head(&blob.url)).await {
            Ok(answer) => {
                *answered = Instant::now();
                let stored = answer.headers().get("x-stopover").is_some_and(|served| served == "hit");
                blob.unlisted += 1;
                let lost = listed && blob.unlisted >= UNLISTED;
                let why = "the cache does not know of it any more: ask again";
                Ok(if stored { Some(Ok(())) } else { lost.then(|| Err(why.to_owned())) })
            }
            Err(error) if answered.elapsed() > AWAY => Err(error),
            Err(_) => Ok(None),
        }
    }
}

/// A line that says where an image was found.
fn found(Image { name, platform, place }: &Image) -> String {
    let platform = platform.as_ref().map_or_else(String::new, |platform| format!(" for {platform}"));
    format!("{name}  # {place}{platform}\n")
}

/// A line for each image that says what was requested of it.
fn requested(reports: &[PrefetchReport]) -> String {
    reports.iter().filter(|report| report.error.is_none()).map(line).collect()
}

fn line(report: &PrefetchReport) -> String {
    let bytes = Bytes(report.blobs.iter().map(|blob| blob.size).sum());
    let stored = report.blobs.iter().filter(|blob| blob.stored).count();
    let digest = report.digest.as_ref().map_or("", Digest::as_str);
    format!("{}: {digest}, {bytes}, {stored} of {} blobs are stored\n", report.image, report.blobs.len())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use stopover::oci::Algorithm;

    use super::*;
    use crate::client::{Endpoint, LoginArguments};
    use crate::output::Output;

    fn client(server: &str) -> Client {
        let server: Endpoint = server.parse().unwrap();
        Client::new(server, LoginArguments::default(), None, Output::default()).unwrap()
    }

    /// A client of a cache that gives each of these answers over a connection of its own.
    fn answered(answers: Vec<String>) -> (Client, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = client(&format!("http://{}", listener.local_addr().unwrap()));
        let asked = std::thread::spawn(move || {
            for body in answers {
                let (mut connection, _) = listener.accept().unwrap();
                _ = connection.read(&mut [0; 4096]).unwrap();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close", body.len());
                write!(connection, "{head}\r\n\r\n{body}").unwrap();
            }
        });
        (client, asked)
    }

    #[tokio::test]
    async fn prefetch_waits_for_a_budget_that_is_there_again_within_a_minute() {
        let report = |rest: &str| {
            format!("{{\"images\":[{{\"image\":\"a\",\"digest\":null,\"blobs\":[],\"again\":false,{rest}}}]}}")
        };
        let refused = report("\"error\":\"over budget\",\"retry_after\":1");
        let (client, asked) = answered(vec![refused.clone(), refused, report("\"error\":null")]);
        let reports = client.request(&[], vec!["a".into()], false).await.unwrap();
        assert_eq!(reports[0].error.as_deref(), Some("over budget"), "without --wait it is said at once");
        let reports = client.request(&[], vec!["a".into()], true).await.unwrap();
        assert!(matches!(&reports[..], [report] if report.error.is_none()), "{reports:?}");
        asked.join().unwrap();
    }

    #[test]
    fn a_name_may_lead_through_the_cache_itself() {
        let cache = client("https://cache.example.com");
        for (name, beyond) in [
            ("cache.example.com/ghcr.io/a/b:1", "ghcr.io/a/b:1"),
            ("cache.example.com:443/a", "a"),
            ("cache.example.com:5000/a", "cache.example.com:5000/a"),
            ("localhost:443/a", "localhost:443/a"),
            ("nginx", "nginx"),
        ] {
            assert_eq!(cache.beyond(name), beyond);
        }
        let here = client("http://127.0.0.1:5000");
        assert_eq!(here.beyond("localhost:5000/docker.io/library/a:1"), "docker.io/library/a:1");
        assert_eq!(here.beyond("localhost:5001/a"), "localhost:5001/a");
    }

    #[tokio::test]
    async fn a_cache_is_away_when_it_has_not_answered_however_long_nothing_has_arrived() {
        let (client, once) = answered(vec![String::new()]);
        let digest = Digest::of(Algorithm::Sha256, b"blob");
        let mut blob = Awaited { url: client.url("blob"), digest, size: 4, written: 0, unlisted: 0 };
        let long_ago = Instant::now().checked_sub(2 * AWAY).unwrap();
        let mut answered = long_ago;
        assert!(matches!(client.look_up(&mut blob, false, &mut answered).await, Ok(None)));
        once.join().unwrap();
        assert!(matches!(client.look_up(&mut blob, false, &mut answered).await, Ok(None)), "one that fails");
        answered = long_ago;
        assert!(client.look_up(&mut blob, false, &mut answered).await.is_err());
    }
}
