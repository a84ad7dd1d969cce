//! `stopover doctor`: checks from a node that pulls go through the cache, and says how to fix what prevents it.

mod configured;
mod containerd;
mod head;
mod installed;
mod network;
mod sample;
mod through;

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum as _;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use http::Method;
use serde::Serialize;
use serde_json::json;
use stopover::config::{Config, DEFAULT_UPSTREAM, Places};
use stopover::errors::chain;
use stopover::oci::{Name, Operation, Reference, Repository, Request, UpstreamId};
use stopover::setup::{MirroredUpstream, Target};

use super::Client;
use super::progress::shown;
use configured::Files;
use installed::version_of;

use crate::output::List;

/// What to check.
#[derive(clap::Args)]
pub(crate) struct Examination {
    /// The image to pull, of the registry whose way is to be checked
    #[arg(long, value_name = "IMAGE", default_value = "docker.io/library/hello-world:latest")]
    image: String,
    /// The clients to check, separated by commas [default: all that are found here]
    #[arg(long = "client", value_name = "NAMES", value_delimiter = ',', value_parser = examined())]
    clients: Vec<Target>,
    /// Where the file system begins that has the clients' configurations
    #[arg(long, value_name = "DIRECTORY", default_value = "/", hide = true)]
    root: PathBuf,
}

/// The clients whose configuration is a file on the machine.
fn examined() -> impl TypedValueParser<Value = Target> {
    let names = installed::EXAMINED.iter().filter_map(Target::to_possible_value);
    PossibleValuesParser::new(names).try_map(|name| Target::from_str(&name, false))
}

/// What is wrong, and how to fix it.
#[derive(Debug)]
struct Problem {
    what: String,
    fix: String,
}

impl Problem {
    fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }

    /// Both, to be mended together.
    fn and(self, other: &Self) -> Self {
        Self { what: format!("{}; and {}", self.what, other.what), fix: format!("{}; {}", self.fix, other.fix) }
    }
}

/// A step that was taken.
#[derive(Serialize)]
struct Step<'a> {
    name: &'a str,
    verdict: &'static str,
    /// What was found.
    what: String,
    /// How to mend it, where something is wrong.
    fix: Option<String>,
}

/// The result of a step.
#[derive(Debug)]
enum Verdict {
    /// All is well; the text says what was found.
    Good(String),
    /// Something has to be fixed.
    Bad(Problem),
    /// It cannot be told, or does not matter here; the text says why.
    Unknown(String),
}

impl From<Result<String, Problem>> for Verdict {
    fn from(found: Result<String, Problem>) -> Self {
        found.map_or_else(Self::Bad, Self::Good)
    }
}

/// The image that the doctor pulls.
struct Sample {
    /// Its name as the operator wrote it.
    text: String,
    request: Request,
    name: Name,
    reference: Reference,
    /// The registry that clients believe they pull from.
    upstream: String,
    /// The id of the upstream at the cache. `None`: only the configuration of the cache has it.
    id: Option<UpstreamId>,
    /// The name of the repository at the registry.
    path: Name,
    /// Registry and repository, as clients name them.
    repository: String,
    /// Other names of the repository in this configuration.
    places: Places,
}

impl Sample {
    fn new(text: &str, config: &Config) -> anyhow::Result<Self> {
        let request = Request::image(text).with_context(|| format!("--image {text}"))?;
        let Operation::Manifest(name, reference) = request.operation.clone() else { bail!("--image {text}: no image") };
        let places = Places::new(&config.upstreams, &config.rules);
        let (named, path) = match (&request.namespace, places.find(&name), name.after(name.first())) {
            (Some(namespace), ..) => (namespace.clone(), name.clone()),
            // The name of a rule is known to the cache only: clients use the upstream's.
            (None, Some(Repository { upstream, name }), _) => (upstream.to_string(), name),
            (None, None, Some(rest)) if name.first().contains('.') => (name.first().to_owned(), rest),
            (None, None, _) => (DEFAULT_UPSTREAM.to_owned(), name.clone()),
        };
        let (id, upstream) = match MirroredUpstream::named(&named, config) {
            Some(MirroredUpstream { id, registry }) => (Some(id), registry),
            None => (named.parse().ok(), named),
        };
        let path = if upstream == DEFAULT_UPSTREAM { path.in_library() } else { path };
        let repository = format!("{upstream}/{path}");
        Ok(Self { text: text.to_owned(), request, name, reference, upstream, id, path, repository, places })
    }

    /// The name of the sample's repository at the cache.
    fn at_cache(&self) -> String {
        format!("{}/{}", self.id.as_ref().map_or(self.upstream.as_str(), UpstreamId::as_str), self.path)
    }

    /// Whether the cache has the sample's repository at the path of a request (`/v2/<name>/manifests/<reference>`, or
    /// another form that clients use). `namespace`: the client also names the registry with `?ns=`.
    fn is_at(&self, path: &str, namespace: bool) -> bool {
        let Ok(Request { prefix, operation, .. }) = Request::parse(&Method::GET, path, None) else { return false };
        let Some(name) = operation.name() else { return false };
        let name = prefix.map_or_else(|| name.clone(), |prefix| prefix.join(name));
        let implied = name == self.path && (namespace || self.upstream == DEFAULT_UPSTREAM);
        match self.places.find(&name) {
            Some(Repository { upstream, name }) if upstream.as_str() == DEFAULT_UPSTREAM => {
                self.id.as_ref() == Some(&upstream) && self.path == name.in_library()
            }
            Some(Repository { upstream, name }) => self.id.as_ref() == Some(&upstream) && self.path == name,
            // Only the cache knows this upstream.
            None => implied || name.as_str() == self.repository,
        }
    }
}

/// Prints the result of each step, as soon as there is one.
struct Report {
    list: List,
    steps: usize,
    failed: usize,
    /// The step that failed and that the next ones depend on.
    missing: Option<&'static str>,
}

impl Report {
    /// Takes a step on the way to the server and back. Once one has failed, the others are skipped.
    async fn step(&mut self, name: &'static str, check: impl Future<Output: Into<Verdict>>) -> anyhow::Result<()> {
        let verdict = match self.missing {
            Some(missing) => Verdict::Unknown(format!("needs: {missing}")),
            None => shown(name, check).await.into(),
        };
        if matches!(verdict, Verdict::Bad(_)) {
            self.missing = Some(name);
        }
        self.say(name, &verdict)
    }

    fn say(&mut self, name: &str, verdict: &Verdict) -> anyhow::Result<()> {
        self.steps += 1;
        let (verdict, what, fix) = match verdict {
            Verdict::Good(text) => ("ok", text, None),
            Verdict::Unknown(text) => ("skip", text, None),
            Verdict::Bad(Problem { what, fix }) => {
                self.failed += 1;
                ("fail", what, Some(printable(fix)))
            }
        };
        self.list.add(&[Step { name, verdict, what: printable(what), fix }], |steps| steps.iter().map(line).collect())
    }
}

fn line(Step { name, verdict, what, fix }: &Step<'_>) -> String {
    let (verdict, fix) = match fix {
        Some(fix) => ("FAIL", format!("\nfix: {fix}")),
        None => (*verdict, String::new()),
    };
    // Errors of parsers have several lines.
    format!("{verdict:<4}  {name}: {what}{fix}").replace('\n', "\n      ") + "\n"
}

impl Client {
    /// Takes all steps. Fails if one of them has failed.
    pub(crate) async fn examine(&self, examination: Examination, config: &Config) -> anyhow::Result<()> {
        let sample = Sample::new(&examination.image, config)?;
        let mut report = Report { list: self.output.list("steps"), steps: 0, failed: 0, missing: None };
        let way = network::Way::to(&self.server)?;
        report.step("name", network::resolve(&way)).await?;
        report.step("connection", network::connect(&way)).await?;
        report.step("tls", self.shake_hands(&way)).await?;
        report.step("registry", self.greet(&way)).await?;
        report.step("pull", self.pull_sample(&sample)).await?;
        report.step("head", self.compare_head(&sample)).await?;
        let (containerd, dockerd) = (version_of("containerd").await, version_of("dockerd").await);
        let files = Files { root: &examination.root, server: &self.server, sample: &sample, containerd, dockerd };
        let named = !examination.clients.is_empty();
        let clients = if named { examination.clients } else { installed::found() };
        let mut known = false;
        for &client in &clients {
            let name = client.name();
            let unused = if named { None } else { files.unused(client) };
            let configured = unused.map_or_else(|| files.of(client), Verdict::Unknown);
            let step = format!("{name} pulls");
            report.say(&format!("{name} configuration"), &configured)?;
            let through = match (report.missing, &configured) {
                (Some(missing), _) => Verdict::Unknown(format!("needs: {missing}")),
                (None, Verdict::Unknown(_)) => Verdict::Unknown("needs: a mirror in its configuration".into()),
                (None, _) => shown(&step, self.goes_through(client, &files)).await,
            };
            known |= !matches!(through, Verdict::Unknown(_));
            report.say(&step, &through)?;
        }
        let unknown = match clients[..] {
            _ if known => "",
            [] => "; no client is found here: whether pulls go through the cache is not known (--client names one)",
            _ => "; whether pulls go through the cache is not known",
        };
        let Report { list, steps, failed, .. } = report;
        let words = || if failed > 0 { String::new() } else { format!("nothing failed in {steps} steps{unknown}\n") };
        list.end(json!({ "failed": failed }), words)?;
        ensure!(failed == 0, "{failed} of {steps} steps failed{unknown}");
        Ok(())
    }
}

/// Text of a server or a client, made safe to print as a part of one step: it could move the cursor, or invent a step.
fn printable(text: &str) -> String {
    let lines = text.trim_end().lines().map(|line| line.replace(char::is_control, ""));
    lines.collect::<Vec<_>>().join("\n")
}
