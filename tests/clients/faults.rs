//! What clients see of an upstream's faults: cold, healed, and warm.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::header::{ACCEPT, CACHE_CONTROL, RETRY_AFTER};
use support::clients::{By, Client, Containerd, Docker, Shape, Skopeo, WrongContent};
use support::images::{Image, MEDIA_TYPES, Recipe};
use support::program::{Installation, Stopover, UPSTREAM};
use support::scripted::{Fault, Scripted};
use support::wire::Wire;
use support::world::until;

use crate::document::{self, Cell, Table};

const KIB: u64 = 1024;

/// How long after its end a fault may still be felt: pauses grow to a minute, but not within one pull.
const RECOVERY: Duration = Duration::from_secs(45);

/// What upstream, or the way to it, does wrong.
#[derive(Clone)]
enum Trouble {
    /// To so many of the requests for this.
    Answers(At, usize, Fault),
    /// So many connections are reset when something is asked on them.
    Resets(usize),
    /// No connection is accepted.
    Refuses,
}

/// Which requests.
#[derive(Clone, Copy)]
enum At {
    Tag,
    HeadOfTag,
    EveryManifest,
    Child,
    Blob,
}

const ALWAYS: usize = usize::MAX;

fn status(status: u16, headers: &[(&'static str, &str)]) -> Fault {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Fault::Status(status, headers, String::new())
}

fn header(name: &'static str, value: &str) -> Fault {
    Fault::Headers(vec![(name, value.to_owned())])
}

/// All of them, and whether an image that was pulled before still pulls by its tag. It does unless upstream itself says that
/// there is no such tag, or that we may not have it.
fn troubles() -> Vec<(&'static str, bool, Trouble)> {
    use Trouble::{Answers, Refuses, Resets};
    const NONE: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let later = [("retry-after", "2")];
    let basic = [("www-authenticate", "Basic realm=\"scripted\"")];
    let octets = [("content-type", "text/html")];
    vec![
        ("tag: 429 with `Retry-After`, once", true, Answers(At::Tag, 1, status(429, &later))),
        ("tag: 429 with `Retry-After`", true, Answers(At::Tag, ALWAYS, status(429, &later))),
        ("blob: 429 with `Retry-After`, once", true, Answers(At::Blob, 1, status(429, &later))),
        ("blob: 429 with `Retry-After`", true, Answers(At::Blob, ALWAYS, status(429, &later))),
        ("tag: 503 with `Retry-After`, once", true, Answers(At::Tag, 1, status(503, &later))),
        ("tag: 503 with `Retry-After`", true, Answers(At::Tag, ALWAYS, status(503, &later))),
        ("tag: 500", true, Answers(At::Tag, ALWAYS, status(500, &[]))),
        ("tag: 502 in HTML", true, Answers(At::Tag, ALWAYS, status(502, &octets))),
        ("tag: 504", true, Answers(At::Tag, ALWAYS, status(504, &[]))),
        ("tag: 401", false, Answers(At::Tag, ALWAYS, status(401, &basic))),
        ("tag: 403", false, Answers(At::Tag, ALWAYS, status(403, &[]))),
        ("tag: 404", false, Answers(At::Tag, ALWAYS, status(404, &[]))),
        ("tag: 404 to HEAD only", false, Answers(At::HeadOfTag, ALWAYS, status(404, &[]))),
        ("tag: 405 to HEAD", true, Answers(At::HeadOfTag, ALWAYS, status(405, &[]))),
        ("tag: late by 12 s", true, Answers(At::Tag, ALWAYS, Fault::Late(Duration::from_secs(12)))),
        ("connection reset, once", true, Resets(1)),
        ("connections reset", true, Resets(ALWAYS)),
        ("connections refused", true, Refuses),
        ("child manifest: 500", true, Answers(At::Child, ALWAYS, status(500, &[]))),
        ("child manifest: 503", true, Answers(At::Child, ALWAYS, status(503, &[]))),
        ("child manifest: 404", true, Answers(At::Child, ALWAYS, status(404, &[]))),
        ("manifests: `text/plain`", true, Answers(At::EveryManifest, ALWAYS, header("content-type", "text/plain"))),
        (
            "manifests: `application/json`",
            true,
            Answers(At::EveryManifest, ALWAYS, header("content-type", "application/json")),
        ),
        (
            "manifests: `; charset=utf-8`",
            true,
            Answers(
                At::EveryManifest,
                ALWAYS,
                header("content-type", "application/vnd.oci.image.index.v1+json; charset=utf-8"),
            ),
        ),
        ("tag: no `Docker-Content-Digest`", true, Answers(At::Tag, ALWAYS, header("docker-content-digest", ""))),
        ("tag: wrong `Docker-Content-Digest`", true, Answers(At::Tag, ALWAYS, header("docker-content-digest", NONE))),
        ("manifests: wrong bytes", true, Answers(At::EveryManifest, ALWAYS, Fault::Corrupt)),
        ("blob: 500", true, Answers(At::Blob, ALWAYS, status(500, &[]))),
        ("blob: 503", true, Answers(At::Blob, ALWAYS, status(503, &[]))),
        ("blob: 404", true, Answers(At::Blob, ALWAYS, status(404, &[]))),
        ("blob: cut short, once", true, Answers(At::Blob, 1, Fault::Truncated)),
        ("blob: cut short", true, Answers(At::Blob, ALWAYS, Fault::Truncated)),
        ("blob: wrong bytes", true, Answers(At::Blob, ALWAYS, Fault::Corrupt)),
        ("blob: late by 12 s", true, Answers(At::Blob, ALWAYS, Fault::Late(Duration::from_secs(12)))),
        ("blob: stalls in the middle, then goes on", true, Answers(At::Blob, ALWAYS, Fault::Stalled)),
    ]
}

/// One client, one trouble: nobody else asks this program or this upstream.
struct Scene<'a> {
    client: &'a dyn Client,
    upstream: Scripted,
    wire: Wire,
    stopover: Stopover,
    image: Image,
    _installation: Installation,
}

impl<'a> Scene<'a> {
    async fn start(client: &'a dyn Client, number: u64) -> anyhow::Result<Self> {
        let upstream = Scripted::start()?;
        let image = Recipe::index(&format!("faults/{number}")).layers(vec![64 * KIB, 8 * KIB]).seed(number);
        let image = image.push(&upstream).await?;
        let wire = Wire::to(upstream.url().trim_start_matches("http://"))?;
        // Every pull by tag asks upstream.
        let text = format!(
            "[upstreams.\"{UPSTREAM}\"]\nurl = \"http://{}\"\nfresh = \"1ms\"\nmissing = \"1s\"\n",
            wire.address()
        );
        let installation = Installation::with_configuration(&text)?;
        let stopover = installation.start().await?;
        Ok(Self { client, upstream, wire, stopover, image, _installation: installation })
    }

    fn begin(&self, trouble: &Trouble) {
        match trouble {
            Trouble::Answers(at, times, fault) => {
                let manifests = format!("/v2/{}/manifests/", self.image.name);
                let text = match at {
                    At::Tag => format!("{manifests}{}", self.image.tag),
                    At::HeadOfTag => format!("HEAD {manifests}{}", self.image.tag),
                    At::EveryManifest => manifests,
                    At::Child => self.image.manifests[0].digest.clone(),
                    At::Blob => self.image.manifests[0].blobs[1].digest.clone(),
                };
                self.upstream.fault_times(&text, *times, fault.clone());
            }
            Trouble::Resets(connections) => self.wire.reset(*connections),
            Trouble::Refuses => self.wire.close(),
        }
    }

    fn end(&self) {
        self.upstream.heal();
        self.wire.reset(0);
        self.wire.open();
    }

    /// A pull that may fail, but not with other bytes: whether it passed.
    async fn pull(&self, by: By) -> anyhow::Result<bool> {
        match self.client.pull(self.stopover.address(), Shape::Name, &self.image, by).await {
            Ok(()) => Ok(true),
            Err(error) if error.is::<WrongContent>() => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Asks the program for the tag, as it is or to be checked at upstream; an error is the time after which it wants to be
    /// asked again.
    async fn ask_tag(&self, check: bool) -> anyhow::Result<Result<(), Duration>> {
        let Image { name, tag, .. } = &self.image;
        let url = format!("http://{}/v2/{UPSTREAM}/{name}/manifests/{tag}", self.stopover.address());
        let mut request = reqwest::Client::new().get(url).header(ACCEPT, MEDIA_TYPES.join(", "));
        if check {
            request = request.header(CACHE_CONTROL, "no-cache");
        }
        let answer = request.send().await?;
        if answer.status().is_success() {
            return Ok(Ok(()));
        }
        let after = answer.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap_or_default().parse());
        Ok(Err(Duration::from_secs(after.transpose()?.unwrap_or(1))))
    }

    async fn cold(&self, trouble: &Trouble) -> anyhow::Result<&'static str> {
        self.begin(trouble);
        let passed = if let Trouble::Answers(At::Blob, _, Fault::Stalled) = trouble {
            let layer = &self.image.manifests[0].blobs[1].digest;
            let stalled_then_healed = async {
                until(|| self.upstream.count(layer) > 0).await;
                self.end();
            };
            futures_util::future::join(self.pull(By::Tag), stalled_then_healed).await.0?
        } else {
            self.pull(By::Tag).await?
        };
        Ok(match passed {
            true => "pulls",
            false if self.ask_tag(false).await?.is_err() => "fails at the tag",
            false => "fails behind the tag",
        })
    }

    /// Upstream is well again: whoever asks when he was told to, gets the image.
    async fn recovers(&self, trouble: &Trouble) -> anyhow::Result<()> {
        self.end();
        let deadline = Instant::now() + RECOVERY;
        // A repository that does not exist for us is remembered for minutes, unless somebody wants it checked.
        let remembered = matches!(trouble, Trouble::Answers(_, _, Fault::Status(401 | 403, ..)));
        loop {
            match self.ask_tag(remembered).await? {
                Ok(()) if self.pull(By::Tag).await? => return Ok(()),
                // What failed behind the tag has a pause of its own.
                Ok(()) => tokio::time::sleep(Duration::from_secs(1)).await,
                // It is what Retry-After is for.
                Err(after) => tokio::time::sleep(after).await,
            }
            ensure!(Instant::now() < deadline, "the upstream is well again, and the image still does not pull");
        }
    }

    async fn play(&self, trouble: &Trouble, by_tag: bool) -> anyhow::Result<&'static str> {
        let cold = self.cold(trouble).await.context("cold")?;
        self.recovers(trouble).await?;
        self.stopover.until_stored(std::slice::from_ref(&self.image)).await?;
        self.begin(trouble);
        let passed = self.pull(By::Tag).await.context("warm, by tag")?;
        ensure!(passed == by_tag, "warm, by tag: {}", if passed { "it pulls" } else { "it does not pull" });
        ensure!(self.pull(By::Digest).await.context("warm, by digest")?, "it does not pull by digest, although warm");
        // The faults of an upstream's `/v2/` are nobody's concern.
        ensure!(self.upstream.requests().iter().all(|seen| seen.line != "GET /v2/"), "upstream was pinged");
        Ok(cold)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_an_upstream_fail_a_pull_at_the_tag_or_not_at_all_and_never_a_warm_one() -> anyhow::Result<()> {
    let containerd = Containerd::start().await?;
    // Its mirror is of no concern here: images are named with the address of the program.
    let docker = Docker::start("127.0.0.1:1").await?;
    let clients: [(&str, &dyn Client); 3] = [("skopeo", &Skopeo), ("containerd", &containerd), ("dockerd", &docker)];
    let troubles = troubles();
    let scenes = troubles.iter().enumerate().flat_map(|(row, trouble)| {
        clients.iter().enumerate().map(move |(column, client)| (row, column, trouble, *client))
    });
    let mut found = vec![vec![""; clients.len()]; troubles.len()];
    let mut scenes = futures_util::stream::iter(scenes)
        .map(|(row, column, (name, by_tag, trouble), (client_name, client))| async move {
            let number = (row * clients.len() + column) as u64;
            let scene = Scene::start(client, number).await?;
            let cold = scene.play(trouble, *by_tag).await;
            let cold = cold.with_context(|| format!("{client_name}, {name}:\n{}", scene.stopover.log()));
            let cold = match cold {
                Ok(c) => c,
                Err(e) => {
                    eprintln!("FFF {e:?}");
                    "BROKEN"
                }
            };
            anyhow::Ok((row, column, cold))
        })
        .buffer_unordered(8);
    while let Some((row, column, cold)) = scenes.try_next().await? {
        found[row][column] = cold;
    }
    let mut table = Table::new(&["fault of the upstream", "skopeo, cold", "containerd, cold", "dockerd, cold", "warm"]);
    for ((name, by_tag, _), cold) in troubles.iter().zip(found) {
        let warm = if *by_tag { "pulls" } else { "fails at the tag" };
        let cells: Vec<Cell> = cold.into_iter().chain([warm]).map(Cell::Says).collect();
        table.row(name, &cells);
    }
    document::check("Faults of an upstream", &table.render())
}
