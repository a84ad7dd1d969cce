//! What clients see of an upstream's faults: cold, healed, and warm.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::header::{ACCEPT, CACHE_CONTROL, RETRY_AFTER};
use support::clients::{By, Client, Containerd, Docker, Shape, Skopeo, WrongContent};
use support::document::{self, Cell, Table};
use support::images::{Image, MEDIA_TYPES, Recipe};
use support::program::{Installation, Stopover, UPSTREAM};
use support::scripted::{Fault, Scripted};
use support::wire::Wire;
use support::world::until;

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

impl Trouble {
    /// Whether it may be trouble of the upstream as a whole, and not just another answer.
    fn may_be_of_all(&self) -> bool {
        match self {
            Self::Answers(_, _, Fault::Status(status, ..)) => *status == 429 || *status >= 500,
            Self::Answers(_, _, fault) => !matches!(fault, Fault::Headers(_) | Fault::Corrupt),
            Self::Resets(_) | Self::Refuses => true,
        }
    }
}

/// Which requests.
#[derive(Clone, Copy)]
enum At {
    Tag,
    HeadOfTag,
    Index,
    EveryManifest,
    Child,
    Blob,
}

const PULLS: &str = "pulls";
const AT_THE_TAG: &str = "fails at the tag";
const BEHIND: &str = "fails behind the tag";
const EITHER: &str = "pulls, or fails behind the tag";

const ALWAYS: usize = usize::MAX;

fn status(status: u16, headers: &[(&'static str, &str)]) -> Fault {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Fault::Status(status, headers, String::new())
}

fn header(name: &'static str, value: &str) -> Fault {
    Fault::Headers(vec![(name, value.to_owned())])
}

/// What becomes of an image by its tag that was pulled before. By its digest it always pulls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Warm {
    /// It pulls.
    Pulls,
    /// It does not, because upstream itself says that there is no such tag, or that we may not have it.
    Refused,
    /// It pulls for those who GET the tag. Those who HEAD it are told what upstream says, and upstream lies.
    ByGet,
    /// It pulls for those who HEAD the tag: their first pull has shown that HEAD lies. Those who GET it made the cache ask
    /// with HEAD only when it told the truth, so that its 404 is believed.
    ByHead,
}

impl Warm {
    fn pulls(self, client: &str) -> bool {
        match self {
            Self::Pulls => true,
            Self::Refused => false,
            Self::ByGet => client != "containerd",
            Self::ByHead => client != "skopeo",
        }
    }
}

/// All of them.
fn troubles() -> Vec<(&'static str, Warm, Trouble)> {
    use Trouble::{Answers, Refuses, Resets};
    use Warm::{ByGet, ByHead, Pulls, Refused};
    const NONE: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let later = [("retry-after", "2")];
    let basic = [("www-authenticate", "Basic realm=\"scripted\"")];
    let octets = [("content-type", "text/html")];
    vec![
        ("tag: 429 with `Retry-After`, once", Pulls, Answers(At::Tag, 1, status(429, &later))),
        ("tag: 429 with `Retry-After`", Pulls, Answers(At::Tag, ALWAYS, status(429, &later))),
        ("blob: 429 with `Retry-After`, once", Pulls, Answers(At::Blob, 1, status(429, &later))),
        ("blob: 429 with `Retry-After`", Pulls, Answers(At::Blob, ALWAYS, status(429, &later))),
        ("tag: 503 with `Retry-After`, once", Pulls, Answers(At::Tag, 1, status(503, &later))),
        ("tag: 503 with `Retry-After`", Pulls, Answers(At::Tag, ALWAYS, status(503, &later))),
        ("tag: 500", Pulls, Answers(At::Tag, ALWAYS, status(500, &[]))),
        ("tag: 502 in HTML", Pulls, Answers(At::Tag, ALWAYS, status(502, &octets))),
        ("tag: 504", Pulls, Answers(At::Tag, ALWAYS, status(504, &[]))),
        ("tag: 401", Refused, Answers(At::Tag, ALWAYS, status(401, &basic))),
        ("tag: 403", Refused, Answers(At::Tag, ALWAYS, status(403, &[]))),
        ("tag: 404", Refused, Answers(At::Tag, ALWAYS, status(404, &[]))),
        ("tag: 404 to HEAD only", ByHead, Answers(At::HeadOfTag, ALWAYS, status(404, &[]))),
        ("tag: 405 to HEAD", Pulls, Answers(At::HeadOfTag, ALWAYS, status(405, &[]))),
        ("tag: late by 12 s", Pulls, Answers(At::Tag, ALWAYS, Fault::Late(Duration::from_secs(12)))),
        ("connection reset, once", Pulls, Resets(1)),
        ("connections reset", Pulls, Resets(ALWAYS)),
        ("connections refused", Pulls, Refuses),
        ("child manifest: 500", Pulls, Answers(At::Child, ALWAYS, status(500, &[]))),
        ("child manifest: 503", Pulls, Answers(At::Child, ALWAYS, status(503, &[]))),
        ("child manifest: 404", Pulls, Answers(At::Child, ALWAYS, status(404, &[]))),
        ("manifests: `text/plain`", Pulls, Answers(At::EveryManifest, ALWAYS, header("content-type", "text/plain"))),
        (
            "manifests: `application/json`",
            Pulls,
            Answers(At::EveryManifest, ALWAYS, header("content-type", "application/json")),
        ),
        (
            "index: `; charset=utf-8`",
            Pulls,
            Answers(
                At::Index,
                ALWAYS,
                header("content-type", "application/vnd.oci.image.index.v1+json; charset=utf-8"),
            ),
        ),
        ("tag: no `Docker-Content-Digest`", Pulls, Answers(At::Tag, ALWAYS, header("docker-content-digest", ""))),
        ("tag: wrong `Docker-Content-Digest`", ByGet, Answers(At::Tag, ALWAYS, header("docker-content-digest", NONE))),
        ("manifests: wrong bytes", Pulls, Answers(At::EveryManifest, ALWAYS, Fault::Corrupt)),
        ("blob: 500", Pulls, Answers(At::Blob, ALWAYS, status(500, &[]))),
        ("blob: 503", Pulls, Answers(At::Blob, ALWAYS, status(503, &[]))),
        ("blob: 404", Pulls, Answers(At::Blob, ALWAYS, status(404, &[]))),
        ("blob: cut short, once", Pulls, Answers(At::Blob, 1, Fault::Truncated)),
        ("blob: cut short", Pulls, Answers(At::Blob, ALWAYS, Fault::Truncated)),
        ("blob: wrong bytes", Pulls, Answers(At::Blob, ALWAYS, Fault::Corrupt)),
        ("blob: late by 12 s", Pulls, Answers(At::Blob, ALWAYS, Fault::Late(Duration::from_secs(12)))),
        ("blob: stalls in the middle, then goes on", Pulls, Answers(At::Blob, ALWAYS, Fault::Stalled)),
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
            "[upstreams.\"{UPSTREAM}\"]\nurl = \"http://{}\"\nfresh = \"1ms\"\nmissing = \"5s\"\n",
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
                let tag = format!("{manifests}{}", self.image.tag);
                let texts = match at {
                    At::Tag => vec![tag],
                    At::HeadOfTag => vec![format!("HEAD {tag}")],
                    At::Index => vec![tag, self.image.digest.clone()],
                    At::EveryManifest => vec![manifests],
                    At::Child => vec![self.image.manifests[0].digest.clone()],
                    At::Blob => vec![self.image.manifests[0].blobs[1].digest.clone()],
                };
                for text in texts {
                    self.upstream.fault_times(&text, *times, fault.clone());
                }
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

    /// Asks the program for the tag, as it is or to be checked at upstream: whether it knew it before. An error is the time
    /// after which it wants to be asked again.
    async fn ask_tag(&self, check: bool) -> anyhow::Result<Result<bool, Duration>> {
        let Image { name, tag, .. } = &self.image;
        let url = format!("http://{}/v2/{UPSTREAM}/{name}/manifests/{tag}", self.stopover.address());
        let mut request = support::http().get(url).header(ACCEPT, MEDIA_TYPES.join(", "));
        if check {
            request = request.header(CACHE_CONTROL, "no-cache");
        }
        let answer = request.send().await?;
        if answer.status().is_success() {
            return Ok(Ok(answer.headers()["x-stopover"] != "miss"));
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
            // What it hits, the client's request or the fill's own, is a matter of who comes first.
            _ if matches!(trouble, Trouble::Answers(At::Blob, 1, Fault::Status(..))) => EITHER,
            true => PULLS,
            // Had the client got the manifest, it would be known.
            false if self.ask_tag(false).await? != Ok(true) => AT_THE_TAG,
            false => BEHIND,
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
                Ok(_) if self.pull(By::Tag).await? => return Ok(()),
                // What failed behind the tag has a pause of its own.
                Ok(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                // It is what Retry-After is for.
                Err(after) => tokio::time::sleep(after).await,
            }
            ensure!(Instant::now() < deadline, "the upstream is well again, and the image still does not pull");
        }
    }

    async fn play(&self, trouble: &Trouble, pulls: bool) -> anyhow::Result<&'static str> {
        let cold = self.cold(trouble).await.context("cold")?;
        self.recovers(trouble).await?;
        self.stopover.until_stored(std::slice::from_ref(&self.image)).await?;
        self.begin(trouble);
        let passed = self.pull(By::Tag).await.context("warm, by tag")?;
        ensure!(passed == pulls, "warm, by tag: {}", if passed { "it pulls" } else { "it does not pull" });
        ensure!(self.pull(By::Digest).await.context("warm, by digest")?, "it does not pull by digest, although warm");
        // Only to find out whether all of it is in trouble.
        let pinged = self.upstream.requests().iter().any(|seen| seen.line == "GET /v2/");
        ensure!(!pinged || trouble.may_be_of_all(), "upstream was pinged");
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
        .map(|(row, column, (name, warm, trouble), (client_name, client))| async move {
            let number = (row * clients.len() + column) as u64;
            let scene = Scene::start(client, number).await?;
            let cold = scene.play(trouble, warm.pulls(client_name)).await;
            let cold = cold.with_context(|| format!("{client_name}, {name}:\n{}", scene.stopover.log()))?;
            anyhow::Ok((row, column, cold))
        })
        .buffer_unordered(12);
    while let Some((row, column, cold)) = scenes.try_next().await? {
        found[row][column] = cold;
    }
    let mut table = Table::new(&["fault of the upstream", "skopeo, cold", "containerd, cold", "dockerd, cold", "warm"]);
    for ((name, warm, _), cold) in troubles.iter().zip(found) {
        let warm = match warm {
            Warm::Pulls => PULLS,
            Warm::Refused => AT_THE_TAG,
            Warm::ByGet => "pulls where the client does not HEAD the tag",
            Warm::ByHead => "pulls where the client does HEAD the tag",
        };
        let cells: Vec<Cell> = cold.into_iter().chain([warm]).map(Cell::Says).collect();
        table.row(name, &cells);
    }
    document::check(document::CLIENTS, "Faults of an upstream", &table.render())
}
