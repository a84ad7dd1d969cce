//! Whether a client's pulls reach the cache. The client is asked for a tag that cannot exist: the pull fails wherever it
//! goes, but a cache that was asked remembers the missing tag, in its ledger and so in every instance, and says so.

use std::process::Stdio;
use std::time::Duration;

use http::StatusCode;
use tokio::process::Command;

use super::configured::{Files, is_installed};
use super::{Problem, Sample, Verdict};
use crate::client::{Client, Target};

/// How long a client may try. It asks its mirror first, and a missing tag is remembered for 27 seconds at the least.
const PATIENCE: Duration = Duration::from_secs(20);

/// What clients say that cannot reach their own daemon.
const NO_DAEMON: [&str; 5] = [
    "Cannot connect to the Docker daemon",
    "permission denied while trying to connect",
    "failed to dial",
    "validate service connection",
    "cannot access containerd socket",
];

/// What the cache says of a tag that cannot exist.
enum Missing {
    /// Somebody has asked for it before.
    Remembered,
    /// Nobody has.
    New,
}

impl Client {
    /// Has a client ask, and then the cache whether it was.
    pub(super) async fn goes_through(&self, client: Target, files: &Files<'_>) -> Verdict {
        self.asked(client, files).await.unwrap_or_else(|why| Verdict::Unknown(format!("cannot tell: {why}")))
    }

    async fn asked(&self, client: Target, files: &Files<'_>) -> Result<Verdict, String> {
        let commands = commands(client, files);
        let command = commands.into_iter().find(|command| is_installed(&command[0]));
        let [program, arguments @ ..] = &command.ok_or("no program that pulls with it is here")?[..] else {
            return Err("no program that pulls with it is here".into());
        };
        let sample = files.sample;
        let tag = |what: &str| format!("stopover-doctor-{what}{:016x}", fastrand::u64(..));
        let (asked, control) = (tag(""), tag("control-"));
        // Shows that upstream can be asked now, and in the end that the cache remembers long enough.
        self.missing(sample, &control).await?;
        let image = format!("{}:{asked}", sample.repository);
        let said = run(program, arguments, &image).await?;
        match self.missing(sample, &asked).await? {
            Missing::Remembered => Ok(Verdict::Good(format!("{program} asked the cache for {image}"))),
            Missing::New => match self.missing(sample, &control).await? {
                Missing::New => Err("this cache forgets missing tags at once (`missing` in stopover.toml)".into()),
                Missing::Remembered => Ok(Verdict::Bad(Problem::new(
                    format!(
                        "{program} went past the cache: it was asked for {image}, the cache was not. It says: {said}"
                    ),
                    "configure it as the step before says; if it is, restart the client, which may run with an older one",
                ))),
            },
        }
    }

    /// Asks the cache for a tag that cannot exist.
    async fn missing(&self, sample: &Sample, tag: &str) -> Result<Missing, String> {
        let url = self.registry_url(&sample.request, &sample.name, "manifests", tag);
        let answer = self.http.head(url).send().await.map_err(|error| error.without_url().to_string())?;
        match answer.status() {
            StatusCode::NOT_FOUND if answer.headers().get("x-stopover").is_some_and(|served| served == "hit") => {
                Ok(Missing::Remembered)
            }
            StatusCode::NOT_FOUND => Ok(Missing::New),
            status => {
                Err(format!("the cache answers {status} for a tag that does not exist; its upstream is in trouble"))
            }
        }
    }
}

/// How images are pulled with a client, the best way first.
fn commands(client: Target, files: &Files<'_>) -> Vec<Vec<String>> {
    let hosts = files.path("/etc/containerd/certs.d").display().to_string();
    let ways: &[&[&str]] = match client {
        Target::Docker => &[&["docker", "pull"]],
        Target::Containerd => {
            &[&["crictl", "pull"], &["nerdctl", "pull"], &["ctr", "images", "pull", "--hosts-dir", &hosts]]
        }
        Target::CriO => &[&["crictl", "pull"]],
        Target::Podman => &[&["podman", "pull"], &["buildah", "pull"], &["skopeo", "inspect", "--raw"]],
        Target::K3s => &[&["k3s", "crictl", "pull"]],
        _ => &[],
    };
    ways.iter().map(|way| way.iter().map(|&word| word.to_owned()).collect()).collect()
}

/// Runs a pull that has to fail; the last line that it printed.
async fn run(program: &str, arguments: &[String], image: &str) -> Result<String, String> {
    let image = if program == "skopeo" { format!("docker://{image}") } else { image.to_owned() };
    let output = Command::new(program).args(arguments).arg(image).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(PATIENCE, output).await {
        // It has asked its mirror before it tries elsewhere, which may take long.
        Err(_) => return Ok(format!("nothing within {} s", PATIENCE.as_secs())),
        Ok(output) => output.map_err(|error| format!("{program} does not start: {error}"))?,
    };
    let printed = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let last = printed.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("nothing");
    if NO_DAEMON.iter().any(|words| printed.contains(words)) {
        return Err(format!("{program} does not reach its daemon: {last}"));
    }
    if output.status.success() {
        return Err(format!("{program} pulled an image that does not exist"));
    }
    Ok(last.to_owned())
}
