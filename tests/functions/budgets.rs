//! What each kind of request asks of AWS, counted at the stand-ins: a call or a unit more than the budget is a failure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use stopover::oci::Digest;
use support::aws::{Endpoints, Units};
use support::document;
use support::lambda::HttpFront;
use support::program::{UPSTREAM, run};
use support::scripted::{Scripted, ScriptedImage};

use self::counted::Counted;
use crate::deployment::{Environment, FILLER, Plan, REGISTRY, age, request};
use crate::fills::{job, record};

/// The budgets: `stopover cost` computes with the same.
#[path = "../../src/bin/stopover/cost/counted.rs"]
mod counted;

const MIB: usize = 1024 * 1024;

/// What one request has asked for.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    calls: BTreeMap<String, u32>,
    half_reads: usize,
    writes: usize,
}

/// The books of a run: each budget with what was found.
struct Books<'a> {
    endpoints: &'a Endpoints,
    entries: Vec<(Counted, Found)>,
    /// How long each took.
    took: Vec<Duration>,
}

impl Books<'_> {
    /// Counts what AWS is asked meanwhile.
    async fn count<T>(&mut self, budget: Counted, work: impl Future<Output = Result<T>>) -> Result<T> {
        forget_quotas(self.endpoints).await?;
        let before = self.endpoints.operations().len();
        self.endpoints.count_capacity(None);
        let began = Instant::now();
        let done = work.await.context(budget.kind)?;
        self.took.push(began.elapsed());
        let units = self.endpoints.units("");
        let mut calls = BTreeMap::new();
        for operation in self.endpoints.operations().split_off(before) {
            *calls.entry(operation).or_default() += 1;
        }
        let Units { half_reads, writes } = units;
        self.entries.push((budget, Found { calls, half_reads, writes }));
        Ok(done)
    }
}

impl Found {
    fn of(budget: &Counted) -> Self {
        let calls = budget.calls.iter().map(|(operation, count)| ((*operation).to_owned(), *count));
        Self { calls: calls.collect(), half_reads: budget.half_reads, writes: budget.writes }
    }

    /// A process reads again after two seconds what upstream said of its quota (`READ_AGAIN`). A machine that is slow has
    /// more such reads than Lambda.
    fn leave_out_late_reads(&mut self, budget: &Counted, took: Duration) {
        let expected = Self::of(budget).calls.get("GetItem").copied().unwrap_or_default();
        let late = u32::try_from(took.as_secs() / 2).unwrap_or(u32::MAX);
        if let Some(reads) = self.calls.get_mut("GetItem") {
            let late = reads.saturating_sub(expected).min(late);
            *reads -= late;
            self.half_reads -= 2 * late as usize;
        }
    }

    /// The numbers of a budget, as the code has them.
    fn as_code(&self) -> String {
        let calls: Vec<String> = self.calls.iter().map(|(name, count)| format!("({name:?}, {count})")).collect();
        format!("&[{}], {}, {}", calls.join(", "), self.half_reads, self.writes)
    }
}

/// A process of the registry function that has answered nothing yet.
async fn instance(environment: &Environment) -> Result<HttpFront> {
    HttpFront::start(vec![environment.start(REGISTRY).await?])
}

/// Asks for something of the upstream, or of the cache itself. What the answer is like is checked, too.
async fn ask(front: &HttpFront, method: Method, path: &str, status: u16) -> Result<Response> {
    let place = if path.is_empty() { "/v2/".to_owned() } else { format!("/v2/{UPSTREAM}/{path}") };
    let answer = request(method, &format!("{}{place}", front.url()))?.send().await?;
    let log = || format!("{path}: {}\n{}", answer.status(), front.functions()[0].log());
    ensure!(answer.status() == status, "{}", log());
    Ok(answer)
}

/// Has a filler that has done nothing yet copy a blob, as a message of its queue says.
async fn fill(environment: &Environment, name: &str, (digest, bytes): &(Digest, Bytes)) -> Result<()> {
    let filler = environment.start(FILLER).await?;
    let message = record("fill", &job(name, digest, bytes.len())?);
    let result = filler.invoke(json!({ "Records": [message] })).await?;
    ensure!(result == json!({ "batchItemFailures": [] }), "{result}\n{}", filler.log());
    Ok(())
}

/// Forgets what upstream has said of its quota. Whether that is written again depends on when it was written last, and the
/// budget is what it comes to at most.
async fn forget_quotas(endpoints: &Endpoints) -> Result<()> {
    let table = endpoints.dynamodb();
    for mut item in table.scan().table_name(endpoints.table()).send().await?.items.unwrap_or_default() {
        item.retain(|name, _| name == "pk" || name == "sk");
        if item["sk"].as_s().is_ok_and(|sort| sort.starts_with("gauge#")) {
            table.delete_item().table_name(endpoints.table()).set_key(Some(item)).send().await?;
        }
    }
    Ok(())
}

fn by_digest(image: &ScriptedImage) -> String {
    format!("{}/manifests/{}", image.name, image.digest)
}

fn blob(image: &ScriptedImage, number: usize) -> String {
    format!("{}/blobs/{}", image.name, image.blobs[number].0)
}

const PLATFORMS: [&str; 8] = [
    "linux/amd64",
    "linux/arm64",
    "linux/arm/v7",
    "linux/arm/v6",
    "linux/386",
    "linux/ppc64le",
    "linux/riscv64",
    "linux/s390x",
];

/// An image that is not stored, by new instances; then as it is stored, by new ones and by those that have answered the
/// same before. Returns it.
async fn images(books: &mut Books<'_>, upstream: &Scripted, environment: &Environment) -> Result<ScriptedImage> {
    let (index, platforms) = upstream.index("team/app", "v1", &PLATFORMS);
    let image = platforms.into_iter().next().context("no platform")?;
    let (tag, index) = ("team/app/manifests/v1", format!("team/app/manifests/{index}"));
    let steps = [
        (counted::START, Method::GET, String::new(), 200),
        (counted::HEAD_COLD, Method::HEAD, tag.to_owned(), 200),
        (counted::INDEX_COLD, Method::GET, index.clone(), 200),
        (counted::IMAGE_COLD, Method::GET, by_digest(&image), 200),
        (counted::BLOB_COLD, Method::GET, blob(&image, 1), 307),
    ];
    for (budget, method, path, status) in steps {
        let answered = async { ask(&instance(environment).await?, method, &path, status).await };
        books.count(budget, answered).await?;
    }
    // The first fill of a repository has one write more: that upstream shows it to us.
    fill(environment, "team/app", &image.blobs[0]).await?;
    books.count(counted::FILL, fill(environment, "team/app", &image.blobs[1])).await?;
    upstream.index("team/other", "v1", &PLATFORMS);
    let front = instance(environment).await?;
    books.count(counted::TAG_COLD, ask(&front, Method::GET, "team/other/manifests/v1", 200)).await?;

    let steps = [
        (counted::HEAD_NEW, counted::HEAD_WARM, Method::HEAD, tag.to_owned(), 200),
        (counted::TAG_NEW, counted::TAG_WARM, Method::GET, tag.to_owned(), 200),
        (counted::INDEX_NEW, counted::INDEX_WARM, Method::GET, index, 200),
        (counted::IMAGE_NEW, counted::IMAGE_WARM, Method::GET, by_digest(&image), 200),
        (counted::BLOB_NEW, counted::BLOB_WARM, Method::GET, blob(&image, 1), 307),
        (counted::BLOB_HEAD_NEW, counted::BLOB_HEAD_WARM, Method::HEAD, blob(&image, 1), 200),
    ];
    for (new, again, method, path, status) in steps {
        let front = instance(environment).await?;
        books.count(new, ask(&front, method.clone(), &path, status)).await?;
        books.count(again, ask(&front, method, &path, status)).await?;
    }
    Ok(image)
}

/// More blobs, and larger ones: what each adds.
async fn sizes(books: &mut Books<'_>, upstream: &Scripted, environment: &Environment) -> Result<()> {
    let front = instance(environment).await?;
    let layers: Vec<String> = (0..10).map(|number| format!("layer {number}")).collect();
    let layers: Vec<&[u8]> = layers.iter().map(String::as_bytes).collect();
    let image = upstream.image("team/layers", "v1", &layers);
    ask(&front, Method::HEAD, "team/layers/manifests/v1", 200).await?;
    let new = instance(environment).await?;
    books.count(counted::IMAGE_COLD_11, ask(&new, Method::GET, &by_digest(&image), 200)).await?;
    let image = upstream.image("team/parts", "v1", &[&vec![1; 3 * 8 * MIB], &vec![2; 5 * 8 * MIB]]);
    ask(&front, Method::GET, "team/parts/manifests/v1", 200).await?;
    let [config, parts @ ..] = &image.blobs[..] else { anyhow::bail!("no blobs") };
    fill(environment, "team/parts", config).await?;
    for (budget, blob) in [counted::FILL_3_PARTS, counted::FILL_5_PARTS].into_iter().zip(parts) {
        books.count(budget, fill(environment, "team/parts", blob)).await?;
    }
    Ok(())
}

/// Tags that have to be asked for again, and those that are not there.
async fn tags(books: &mut Books<'_>, upstream: &Scripted, environment: &Environment) -> Result<()> {
    let front = instance(environment).await?;
    let path = "stale/app/manifests/v1";
    upstream.image("stale/app", "v1", &[b"layer"]);
    ask(&front, Method::GET, path, 200).await?;
    books.count(counted::TAG_STALE, ask(&instance(environment).await?, Method::GET, path, 200)).await?;
    upstream.image("stale/app", "v1", &[b"another"]);
    books.count(counted::TAG_MOVED, ask(&instance(environment).await?, Method::GET, path, 200)).await?;
    let front = instance(environment).await?;
    for budget in [counted::TAG_MISSING, counted::TAG_MISSING_AGAIN] {
        books.count(budget, ask(&front, Method::GET, "team/app/manifests/none", 404)).await?;
    }
    Ok(())
}

/// Robots have tokens: nobody is let in without.
async fn logins(books: &mut Books<'_>, environment: &Environment) -> Result<()> {
    let added = environment.start(FILLER).await?.invoke(json!({ "robots": { "add": { "name": "ci" } } })).await?;
    let secret = added["secret"]["secret"].as_str().context("no secret")?.to_owned();
    let front = instance(environment).await?;
    let path = "team/other/manifests/v1";
    books.count(counted::REFUSED, ask(&front, Method::GET, path, 401)).await?;
    let log_in = async || {
        let url = format!("{}/token?service=stopover", front.url());
        let issued = request(Method::GET, &url)?.basic_auth("ci", Some(&secret)).send().await?;
        ensure!(issued.status() == 200, "{}\n{}", issued.status(), front.functions()[0].log());
        let issued: Value = serde_json::from_slice(&issued.bytes().await?)?;
        issued["token"].as_str().map(str::to_owned).context("no token")
    };
    let token = books.count(counted::TOKEN_NEW, log_in()).await?;
    books.count(counted::TOKEN_WARM, log_in()).await?;
    let pull = async |front: &HttpFront| {
        let url = format!("{}/v2/{UPSTREAM}/{path}", front.url());
        let answer = request(Method::HEAD, &url)?.bearer_auth(&token).send().await?;
        ensure!(answer.status() == 200, "{}\n{}", answer.status(), front.functions()[0].log());
        Ok(())
    };
    let front = instance(environment).await?;
    books.count(counted::HEAD_TOKEN_NEW, pull(&front)).await?;
    books.count(counted::HEAD_TOKEN_WARM, pull(&front)).await
}

/// What was used before today.
async fn days(books: &mut Books<'_>, environment: &Environment, image: &ScriptedImage) -> Result<()> {
    age(books.endpoints, 2).await?;
    let front = instance(environment).await?;
    books.count(counted::IMAGE_DAY, ask(&front, Method::GET, &by_digest(image), 200)).await?;
    books.count(counted::BLOB_DAY, ask(&front, Method::GET, &blob(image, 1), 307)).await?;
    Ok(())
}

#[tokio::test]
async fn each_kind_of_request_asks_aws_for_no_more_than_its_budget() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.quota(200, 100);
    let endpoints = Endpoints::start().await?;
    let plan = |access: &str| {
        let stale = format!("\n[rules.\"{UPSTREAM}/stale\"]\nfresh = \"0s\"\n");
        Plan::of(&upstream.url()).setting(&format!("{stale}{access}"))
    };
    let (_open, open) = plan("").environment(&endpoints)?;
    let (_closed, closed) = plan("\n[access]\nrobots = true\n").environment(&endpoints)?;
    let mut books = Books { endpoints: &endpoints, entries: Vec::new(), took: Vec::new() };
    let image = images(&mut books, &upstream, &open).await?;
    sizes(&mut books, &upstream, &open).await?;
    tags(&mut books, &upstream, &open).await?;
    logins(&mut books, &closed).await?;
    days(&mut books, &open, &image).await?;

    let mut differences = String::new();
    for ((budget, found), took) in books.entries.iter_mut().zip(&books.took) {
        found.leave_out_late_reads(budget, *took);
        if Found::of(budget) != *found {
            writeln!(differences, "{}:\n    {}", budget.kind, found.as_code())?;
        }
    }
    ensure!(differences.is_empty(), "not as src/bin/stopover/cost/counted.rs has it:\n{differences}");
    ensure!(books.entries.iter().map(|(budget, _)| budget).eq(counted::ALL), "counted in another order, or not at all");
    document::check(document::COSTS, "What AWS is asked for each request", &table(&books.entries)?)?;
    of_the_program(&books.entries).await
}

fn table(entries: &[(Counted, Found)]) -> Result<String> {
    let mut text = "| request | calls | read units | write units |\n| --- | --- | --: | --: |\n".to_owned();
    for (budget, Found { calls, half_reads, writes }) in entries {
        let calls: Vec<String> = calls
            .iter()
            .map(|(name, count)| if *count == 1 { name.clone() } else { format!("{count} {name}") })
            .collect();
        let calls = if calls.is_empty() { "none".to_owned() } else { calls.join(", ") };
        let half = if half_reads % 2 == 1 { ".5" } else { "" };
        writeln!(text, "| {} | {calls} | {}{half} | {writes} |", budget.kind, half_reads / 2)?;
    }
    Ok(text)
}

/// What `stopover cost` computes with is what was counted.
async fn of_the_program(entries: &[(Counted, Found)]) -> Result<()> {
    let (status, text) = run(&["cost", "--json"]).await?;
    ensure!(status.success(), "{text}");
    let told: Value = serde_json::from_str(&text)?;
    let told = told["counted"].as_array().context("it names no counts")?;
    ensure!(told.len() == entries.len());
    for (told, (budget, found)) in told.iter().zip(entries) {
        let Found { calls, half_reads, writes } = found;
        let reads = f64::from(u32::try_from(*half_reads)?) / 2.0;
        let expected = json!({ "request": budget.kind, "calls": calls, "read_units": reads, "write_units": writes });
        ensure!(*told == expected, "{told} is not {expected}");
    }
    Ok(())
}
