//! Whether a client's pulls reach the cache. The client is asked to pull a tag that cannot exist: the pull fails in any
//! case, but a cache that was asked remembers the missing tag, in its ledger and so in every instance, and says so.

use std::process::Stdio;
use std::time::Duration;

use http::StatusCode;
use stopover::oci::Request;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::configured::Files;
use super::installed::is_installed;
use super::{Problem, Sample, Verdict};
use crate::client::Client;
use stopover::setup::Target;

/// How long a client may try. It asks its mirror first, and the cache remembers a missing tag for at least 27 seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// What clients say if they cannot reach their own daemon.
const NO_DAEMON: [&str; 5] = [
    "Cannot connect to the Docker daemon",
    "permission denied while trying to connect",
    "failed to dial",
    "validate service connection",
    "cannot access containerd socket",
];

/// What clients say once they have asked a registry, or tried to: the words of Go's `net/http`, which all of them use,
/// and those of registries.
const ASKED: [&str; 18] = [
    "dial tcp",
    "lookup ",
    "Get \"http",
    "Head \"http",
    "x509: ",
    "tls: ",
    "timeout",
    "deadline exceeded",
    "reading manifest",
    "manifest unknown",
    "name unknown",
    "pinging container registry",
    "auth token",
    "unexpected status",
    "status code",
    "unauthorized",
    "access denied",
    "retrying in",
];

/// What a client printed before its pull failed.
struct Said {
    last: String,
    /// Whether it asked a registry, the cache or another.
    asked: bool,
    /// The last line that names the cache.
    of_cache: Option<String>,
}

impl Client {
    /// Has a client pull, and then asks the cache whether it was asked.
    pub(super) async fn goes_through(&self, client: Target, files: &Files<'_>) -> Verdict {
        self.asked(client, files).await.unwrap_or_else(|why| Verdict::Unknown(format!("cannot tell: {why}")))
    }

    async fn asked(&self, client: Target, files: &Files<'_>) -> Result<Verdict, String> {
        let commands = commands(client, files);
        let command = commands.into_iter().find(|(program, _)| is_installed(program));
        let (program, arguments) = command.ok_or("no program that pulls with it is here")?;
        let sample = files.sample;
        let tag = |what: &str| format!("stopover-doctor-{what}{:016x}", fastrand::u64(..));
        let (asked, control) = (tag(""), tag("control-"));
        // Shows that upstream can be asked now, and at the end that the cache remembers long enough.
        self.remembers(sample, &control).await?;
        let image = format!("{}:{asked}", sample.repository);
        let said = self.run(program, &arguments, &image).await?;
        if self.remembers(sample, &asked).await? {
            return Ok(Verdict::Good(format!("{program} asked the cache for {image}")));
        }
        if !self.remembers(sample, &control).await? {
            return Err("this cache forgets missing tags at once (`missing` in stopover.toml)".into());
        }
        let problem = match said {
            Said { of_cache: Some(line), .. } => Problem::new(
                format!("{program} tried the cache, but did not get to ask it for {image}. It says: {line}"),
                "configure it as the step before says; if it is, have it reach and trust the cache as this machine",
            ),
            Said { asked: false, last, .. } => {
                return Err(format!("{program} failed before it asked any registry. It says: {last}"));
            }
            Said { last, .. } => Problem::new(
                format!("{program} went past the cache: it was asked for {image}, the cache was not. It says: {last}"),
                "configure it as the step before says; if it is, restart the client, which may run with an older one",
            ),
        };
        Ok(Verdict::Bad(problem))
    }

    /// Asks the cache for a tag that cannot exist, in the sample's repository: whether it was asked for it before.
    async fn remembers(&self, sample: &Sample, tag: &str) -> Result<bool, String> {
        let repository = sample.at_cache();
        let request = Request::image(&format!("{repository}:{tag}")).map_err(|error| error.to_string())?;
        let name = request.operation.name().ok_or("that is no image")?;
        let url = self.registry_url(&request, name, "manifests", tag);
        let answer =
            self.authorized(self.http.head(url)).send().await.map_err(|error| error.without_url().to_string())?;
        match (answer.status(), answer.headers().get("x-stopover")) {
            (StatusCode::NOT_FOUND, Some(served)) => Ok(served == "hit"),
            (StatusCode::NOT_FOUND, None) => {
                Err(format!("the cache has no {repository}: clients do not know names that only its rules give"))
            }
            (status, _) => {
                Err(format!("the cache answers {status} for a tag that does not exist; its upstream is in trouble"))
            }
        }
    }

    /// Runs a pull that has to fail.
    async fn run(&self, program: &str, arguments: &[String], image: &str) -> Result<Said, String> {
        let image = if program == "skopeo" { format!("docker://{image}") } else { image.to_owned() };
        let mut command = Command::new(program);
        command.args(arguments).arg(&image).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let failed = |error: std::io::Error| format!("{program} does not run: {error}");
        let mut child = command.kill_on_drop(true).spawn().map_err(failed)?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("it has no output")?).split(b'\n');
        // A registry's answer for a missing image. With the image's name, because other messages say "not found", too.
        let not_found = format!("{image}: not found");
        let mut said = Said { last: "nothing".to_owned(), asked: false, of_cache: None };
        let pull = async {
            while let Some(line) = lines.next_segment().await.map_err(failed)? {
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if NO_DAEMON.iter().any(|words| line.contains(words)) {
                    return Err(format!("{program} does not reach its daemon: {line}"));
                }
                said.asked |= line.contains(&not_found) || ASKED.iter().any(|words| line.contains(words));
                if self.is_named(&line) {
                    said.of_cache = Some(line.clone());
                }
                // podman has asked every registry once by now; it would do so three times more, with longer and longer
                // pauses.
                let again = line.contains("retrying in");
                if !line.is_empty() {
                    said.last = line;
                }
                if again {
                    return Ok(());
                }
            }
            if child.wait().await.map_err(failed)?.success() {
                return Err(format!("{program} pulled an image that does not exist"));
            }
            Ok(())
        };
        if let Ok(ended) = tokio::time::timeout(PATIENCE, pull).await {
            ended?;
        } else {
            // The client has asked its mirror by now; it tries elsewhere next, which may take long.
            said.asked = true;
            said.last = format!("nothing within {} s", PATIENCE.as_secs());
        }
        Ok(said)
    }

    /// Whether a line names the host of the cache.
    fn is_named(&self, line: &str) -> bool {
        let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '[' | ']');
        line.split(|c| !part(c)).any(|word| self.server.is_host(word.trim_end_matches(':')))
    }
}

/// How to pull images with a client, the best way first: programs and their arguments.
fn commands(client: Target, files: &Files<'_>) -> Vec<(&'static str, Vec<String>)> {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    // Independent of crictl.yaml: a machine may have more than one runtime.
    let crictl = |socket: &str| {
        let endpoint = format!("unix://{socket}");
        ("crictl", words(&["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint, "pull"]))
    };
    match client {
        Target::Docker => vec![("docker", words(&["pull"]))],
        Target::Containerd => {
            // Without the option, nerdctl uses its own directory, and ctr none.
            let hosts = files.hosts_directory().map(|directory| directory.display().to_string());
            let hosts = hosts.as_deref().map_or_else(Vec::new, |directory| vec!["--hosts-dir", directory]);
            vec![
                crictl(&files.containerd_socket()),
                ("nerdctl", words(&[&["pull"][..], &hosts].concat())),
                ("ctr", words(&[&["images", "pull"][..], &hosts].concat())),
            ]
        }
        Target::CriO => vec![crictl("/var/run/crio/crio.sock")],
        Target::Podman => {
            let pull = || words(&["pull"]);
            vec![("podman", pull()), ("buildah", pull()), ("skopeo", words(&["inspect", "--raw"]))]
        }
        Target::K3s => vec![("k3s", words(&["crictl", "pull"])), crictl("/run/k3s/containerd/containerd.sock")],
        _ => Vec::new(),
    }
}
