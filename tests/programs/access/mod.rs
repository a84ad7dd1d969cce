//! Real clients log in to the real program, in front of a private upstream; and what it says of that.

mod clients;
mod commands;
mod operators;
mod records;

use anyhow::{Context as _, ensure};
use support::images::{Image, Recipe};
use support::program::{Installation, Stopover, UPSTREAM, run};
use support::registry::Registry;
use support::secrets;
use tempfile::NamedTempFile;

/// The upstream's password.
const PASSWORD: &str = "of the upstream";

/// A cache that only the robot `puller` may pull private images from.
struct Cache {
    _upstream: Registry,
    image: Image,
    _password: NamedTempFile,
    installation: Installation,
    stopover: Stopover,
    /// Of the robot.
    secret: String,
}

impl Cache {
    async fn start() -> anyhow::Result<Self> {
        let upstream = Registry::start_with_password("alice", PASSWORD).await?;
        secrets::know_login("the password of an upstream", "alice", PASSWORD);
        let image = Recipe::docker("team/docker").push(&upstream).await?;
        let password = NamedTempFile::new()?;
        std::fs::write(&password, PASSWORD)?;
        let installation = Installation::with_configuration(&format!(
            "[access]\nrobots = true\n\
             [[policy]]\nwho = [\"robot:puller\"]\nwhat = [\"{UPSTREAM}/*\"]\nallow = true\n\
             [upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\n\
             credentials = {{ username = \"alice\", password_file = \"{}\" }}\n",
            upstream.url(),
            password.path().display()
        ))?;
        let installation = installation.logging("info,stopover=trace,stopover::audit=debug");
        let stopover = installation.start().await?;
        let mut this =
            Self { _upstream: upstream, image, _password: password, installation, stopover, secret: String::new() };
        this.secret = this.add("puller").await?;
        Ok(this)
    }

    /// Makes a robot, and reads its secret from what is printed.
    async fn add(&self, name: &str) -> anyhow::Result<String> {
        let secret = secret_in(&self.robot(&["add", name]).await?)?;
        secrets::know_login("the secret of a robot", name, &secret);
        Ok(secret)
    }

    async fn robot(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let (status, text) = self.stopover.run(&[&["robot"], arguments].concat()).await?;
        ensure!(status.success(), "{text}");
        Ok(text)
    }

    /// As a client names it.
    fn reference(&self) -> String {
        format!("{}/{UPSTREAM}/{}", self.stopover.address(), self.image.reference())
    }
}

pub(crate) fn secret_in(printed: &str) -> anyhow::Result<String> {
    let secret = printed.lines().find_map(|line| line.strip_prefix("secret  ")).context("no secret is shown")?;
    ensure!(secret.starts_with("stopover_") && secret.len() > 40, "{secret}");
    Ok(secret.to_owned())
}

#[tokio::test]
async fn without_a_word_about_access_only_the_machine_itself_is_answered() -> anyhow::Result<()> {
    let interfaces = std::fs::read_to_string("/proc/net/fib_trie")?;
    let mut addresses =
        interfaces.lines().zip(interfaces.lines().skip(1)).filter(|(_, kind)| kind.contains("/32 host LOCAL"));
    let own = addresses.find_map(|(line, _)| line.trim().strip_prefix("|-- ").filter(|at| !at.starts_with("127.")));
    let own = own.context("this machine has no address but loopback")?;
    let installation = Installation::for_upstream("http://127.0.0.1:1")?.listening_on("0.0.0.0:0".parse()?);
    let stopover = installation.start().await?;
    let port = stopover.address().rsplit(':').next().context("no port")?;
    let client = stopover::values::crypto::http_client().no_proxy().build()?;
    let local = client.get(format!("http://127.0.0.1:{port}/v2/")).send().await?;
    ensure!(local.status() == 200, "{}", local.status());
    let remote = client.get(format!("http://{own}:{port}/v2/")).send().await?;
    ensure!(remote.status() == 403, "{}", remote.status());
    let said = remote.text().await?;
    ensure!(said.contains("[access] in its stopover.toml says whom it answers"), "{said}");
    // Where it listens there, whoever calls from here has that address.
    let installation = Installation::for_upstream("http://127.0.0.1:1")?.listening_on(format!("{own}:0").parse()?);
    let stopover = installation.start().await?;
    let here = client.get(format!("http://{}/v2/", stopover.address())).send().await?;
    ensure!(here.status() == 200, "{}", here.status());
    Ok(())
}

#[tokio::test]
async fn a_decision_of_the_policy_is_explained_without_a_running_cache() -> anyhow::Result<()> {
    let password = NamedTempFile::new()?;
    std::fs::write(&password, PASSWORD)?;
    let installation = Installation::with_configuration(&format!(
        "[access]\nanonymous = [\"10.0.0.0/8\", \"vpce-0123456789abcdef0\"]\nrobots = true\n\
         [access.oidc.github]\nissuer = \"https://token.example.com\"\naudience = \"stopover\"\n\
         claims = {{ repository_owner_id = \"12\" }}\n\
         [[policy]]\nwho = [\"robot:ci\"]\nwhat = [\"ghcr.io/acme/secret*\"]\nallow = false\n\
         [[policy]]\nclaims = {{ repository = \"acme/*\" }}\nwhat = [\"ghcr.io/acme/*\"]\nallow = true\n\
         [[policy]]\nnetworks = [\"10.0.0.0/8\"]\nwhat = [\"ghcr.io/acme/open\"]\nallow = true\n\
         [rules.\"ghcr.io/acme\"]\ncredentials = {{ username = \"bot\", password_file = \"{}\" }}\ndeny = [\"acme/no\"]\n",
        password.path().display()
    ))?;
    let file = installation.configuration().display().to_string();
    let oidc = ["--as", "oidc:github:repo:acme/app", "--claim", "repository=acme/app"];
    let member = ["--as", "oidc:github:repo:acme/app", "--claim", "repository_owner_id=12"];
    for (arguments, lines) in [
        (
            &["--as", "robot:ci", "ghcr.io/acme/secret-app:1"][..],
            &["robot:ci pulls ghcr.io/acme/secret-app: denied by rule 1 of the policy"][..],
        ),
        (
            &["--as", "robot:ci", "ghcr.io/acme/app"],
            &[
                "denied: no rule is about it, and it is private",
                "rule 1 of the policy is not about it: its what is something else",
                "rule 2 of the policy is not about it: it asks for claims, and only a principal like",
                "ghcr.io/acme/app is private: ghcr.io shows it to us because of who we are there",
            ],
        ),
        (
            &[&oidc[..], &["--claim", "repository_owner_id=12", "ghcr.io/acme/app"]].concat(),
            &["allowed by rule 2 of the policy", "rule 1 of the policy is not about it: its who is something else"],
        ),
        (&["--as", "anonymous", "--from", "10.1.2.3", "ghcr.io/acme/open"], &["allowed by rule 3 of the policy"]),
        (
            &["--as", "anonymous", "--from", "192.0.2.1", "nginx"],
            &[
                "anonymous pulls docker.io/library/nginx: denied: not let in: access.anonymous does not name that address",
                "Whoever is let in is allowed: no rule is about it, and its upstream is public",
                "docker.io/library/nginx is public: docker.io is asked for it without credentials",
            ],
        ),
        (
            &["--as", "anonymous", "--from", "vpce-0123456789abcdef0", "nginx"],
            &["anonymous pulls docker.io/library/nginx: allowed: no rule is about it"],
        ),
        (
            &["--as", "anonymous", "--from", "vpce-0123456789abcdef1", "nginx"],
            &["denied: not let in: access.anonymous does not name that address"],
        ),
        (&["--as", "iam:arn:aws:iam::123456789012:role/a", "nginx"], &["denied: not let in: there is no [access.iam]"]),
        (
            &[&oidc[..], &["--claim", "repository_owner_id=13", "ghcr.io/acme/app"]].concat(),
            &[
                "denied: not let in: it has not all of the claims that [access.oidc] asks for",
                "[access.oidc.github] lets in whoever has other claims: repository_owner_id has to be \"12\" and is \"13\"",
            ],
        ),
        (
            &[&member[..], &["--claim", "repository=other/app", "ghcr.io/acme/app"]].concat(),
            &[
                "rule 2 of the policy is not about it: it asks for other claims: repository has to be \"acme/*\" and is \"other/app\"",
            ],
        ),
        (&["--as", "robot:ci", "ghcr.io/acme/no"], &["denied to everybody: ", "rules.\"ghcr.io/acme\".deny"]),
    ] {
        let (status, text) = run(&[&["policy", "explain", "--config", &file], arguments].concat()).await?;
        let first = text.lines().next().unwrap_or_default();
        ensure!(status.code() == Some(i32::from(!first.contains("allowed"))), "{arguments:?}: {text}");
        for line in lines {
            ensure!(text.contains(line), "{line:?} is not in:\n{text}");
        }
    }
    for (arguments, words) in [
        (["--as", "admin", "nginx"], "a principal is anonymous, robot:<name>, iam:<arn> or oidc:<issuer>:<subject>"),
        (["--as", "anonymous", "registry.example.com/a"], "is not configured here"),
    ] {
        let (status, text) = run(&[&["policy", "explain", "--config", &file][..], &arguments].concat()).await?;
        ensure!(!status.success() && text.contains(words), "{text}");
    }
    Ok(())
}
