//! `stopover doctor`: all is well, and each step failing on purpose.

mod clients;
mod configurations;
mod nodes;
mod servers;

use anyhow::{Context as _, ensure};
use support::images::{Image, Recipe};
use support::node::Node;
use support::program::{Installation, Stopover, UPSTREAM};
use support::registry::Registry;

/// What the doctor has found.
struct Findings {
    well: bool,
    text: String,
}

impl Findings {
    /// That a step ended so: `ok`, `FAIL` or `skip`, with these words in its lines.
    fn step(&self, verdict: &str, step: &str, words: &str) -> anyhow::Result<()> {
        let begin = format!("{verdict:5} {step}: ");
        let at = self.text.find(&begin).with_context(|| format!("no {begin:?} in:\n{}", self.text))?;
        let mut lines = self.text[at..].lines();
        let first = lines.next().unwrap_or_default();
        let mut more = lines.take_while(|line| line.starts_with("      "));
        let fix = more.find(|line| line.starts_with("      fix: ")).unwrap_or_default();
        ensure!((verdict == "FAIL") != fix.is_empty(), "a failure, and nothing else, says what helps:\n{}", self.text);
        ensure!(format!("{first}\n{fix}").contains(words), "{words:?} is not in:\n{first}\n{fix}");
        Ok(())
    }

    /// That every step before this one is fine, this one fails with these words, and the others are left out.
    fn fails_at(&self, step: &str, words: &str) -> anyhow::Result<()> {
        ensure!(!self.well, "the exit code says that all is well:\n{}", self.text);
        self.step("FAIL", step, words)?;
        let mut steps = ["name", "connection", "tls", "registry", "pull", "head"].into_iter();
        steps.by_ref().take_while(|known| *known != step).for_each(drop);
        steps.try_for_each(|later| self.step("skip", later, &format!("needs: {step}")))
    }
}

async fn examine(node: &Node, server: &str, arguments: &[&str]) -> anyhow::Result<Findings> {
    let output = node.stopover(&[&["doctor", "--server", server], arguments].concat()).await?;
    let text = String::from_utf8([output.stdout, output.stderr].concat())?;
    ensure!(!text.contains("panicked"), "{text}");
    Ok(Findings { well: output.status.success(), text })
}

/// A machine on which no client is found.
fn nobody() -> anyhow::Result<Node> {
    let node = Node::new()?;
    let path = node.path("nothing").into_os_string();
    Ok(node.with(("PATH", path)))
}

/// Without any client: only the steps on the way to the server.
async fn examine_server(server: &str, image: &str) -> anyhow::Result<Findings> {
    examine(&nobody()?, server, &["--image", image]).await
}

struct Cache {
    upstream: Registry,
    image: Image,
    stopover: Stopover,
    server: String,
    _installation: Installation,
}

impl Cache {
    async fn start() -> anyhow::Result<Self> {
        let upstream = Registry::start().await?;
        let image = Recipe::index("team/index").push(&upstream).await?;
        let installation = Installation::for_upstream(&upstream.url())?;
        let stopover = installation.start().await?;
        let server = format!("http://{}", stopover.address());
        Ok(Self { upstream, image, stopover, server, _installation: installation })
    }

    fn image(&self) -> String {
        format!("{UPSTREAM}/{}", self.image.reference())
    }

    /// What `stopover setup` prints.
    async fn setup(&self, client: &str) -> anyhow::Result<String> {
        let node = Node::new()?;
        let output = node.stopover(&["setup", client, "--server", &self.server, "--upstream", UPSTREAM]).await?;
        Ok(String::from_utf8(output.stdout)?)
    }
}

const USER_REGISTRIES: &str = ".config/containers/registries.conf";
