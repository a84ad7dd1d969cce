//! Clients log in and pull, or say why not.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use support::images::Recipe;
use support::node::Node;
use support::program::{Installation, UPSTREAM};
use support::registry::Registry;

use super::Cache;

/// What a client says where it must not succeed.
async fn refusal(node: &Node, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    match node.run(program, arguments).await {
        Ok(printed) => anyhow::bail!("{program} {arguments:?} succeeded: {printed}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_logs_in_and_pulls_and_says_what_is_wrong() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let node = Node::new()?;
    let (address, reference) = (cache.stopover.address(), cache.reference());
    let pull = ["pull", "--quiet", "--tls-verify=false", "--arch", "amd64", &reference];
    let login = |secret| ["login", "--tls-verify=false", "--username", "puller", "--password", secret, address];
    let said = refusal(&node, "podman", &pull).await?;
    ensure!(said.contains("log in to this cache"), "{said}");
    let said = refusal(&node, "podman", &login("wrong")).await?;
    ensure!(said.contains("invalid username/password"), "{said}");
    node.run("podman", &login(&cache.secret)).await.with_context(|| cache.stopover.log())?;
    node.run("podman", &pull).await.with_context(|| cache.stopover.log())?;
    let digest = node.run("podman", &["image", "inspect", "--format", "{{.Digest}}", &reference]).await?;
    ensure!(digest.trim() == cache.image.digest, "podman pulled {digest}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pulls_with_credentials_and_says_what_is_wrong() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let node = Node::new()?;
    let (source, target) = (format!("docker://{}", cache.reference()), format!("dir:{}", node.path("image").display()));
    let stranger = cache.add("stranger").await?;
    let copy = async |credentials: String| {
        let credentials = ["--src-creds", &credentials];
        let copy = [&["copy", "--quiet", "--src-tls-verify=false"][..], &credentials, &[&source, &target]].concat();
        node.run("skopeo", &copy).await.map_err(|error| format!("{error:#}"))
    };
    for (credentials, words) in [
        ("puller:wrong".to_owned(), "the user name or the secret is wrong"),
        (format!("stranger:{stranger}"), "robot:stranger may not pull test.local/team/docker"),
    ] {
        let said = copy(credentials).await.err().context("it pulled")?;
        ensure!(said.contains(words), "{said}");
    }
    let pulled = copy(format!("puller:{}", cache.secret)).await;
    ensure!(pulled.is_ok(), "{pulled:?}\n{}", cache.stopover.log());
    let manifest = std::fs::read(node.path("image/manifest.json"))?;
    ensure!(support::images::digest_of(&manifest) == cache.image.digest, "skopeo pulled something else");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_logs_in_and_pulls_and_says_what_is_wrong() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let mut node = Node::new()?;
    node.write("daemon.json", "{}")?;
    let _containerd = node.start_containerd().await?;
    let _dockerd = node.start_dockerd().await?;
    let (address, reference) = (cache.stopover.address(), cache.reference());
    let login = |secret| ["login", "--username", "puller", "--password", secret, address];
    let pull = ["pull", "--quiet", "--platform", "linux/amd64", &reference];
    let said = refusal(&node, "docker", &pull).await?;
    ensure!(said.contains("log in to this cache"), "{said}");
    let said = refusal(&node, "docker", &login("wrong")).await?;
    ensure!(said.contains("the user name or the secret is wrong") || said.contains("unauthorized"), "{said}");
    node.run("docker", &login(&cache.secret)).await.with_context(|| cache.stopover.log())?;
    let kept = std::fs::read_to_string(node.path(".docker/config.json"))?;
    ensure!(kept.contains("identitytoken"), "a refresh token is not what docker pulls with: {kept}");
    node.run("docker", &pull).await.with_context(|| cache.stopover.log())?;
    let digests = node.run("docker", &["image", "inspect", "--format", "{{.RepoDigests}}", &reference]).await?;
    ensure!(digests.contains(&cache.image.digest), "docker pulled {digests}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_with_credentials_and_with_a_header_of_its_hosts_toml() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let mut node = Node::new()?;
    let _containerd = node.start_containerd().await?;
    let (address, reference) = (cache.stopover.address(), cache.reference());
    let pull = ["images", "pull", "--snapshotter", "native", "--platform", "linux/amd64"];
    let with = |credentials: &'static str| [&pull[..], &["--plain-http", "--user", credentials]].concat();
    let said = refusal(&node, "ctr", &[&pull[..], &["--plain-http", &reference]].concat()).await?;
    ensure!(said.contains("401 Unauthorized"), "{said}");
    let said = refusal(&node, "ctr", &[with("puller:wrong"), vec![&reference]].concat()).await?;
    ensure!(said.contains("401 Unauthorized"), "{said}");
    let credentials = format!("puller:{}", cache.secret);
    let by_user = [&pull[..], &["--plain-http", "--user", &credentials, &reference]].concat();
    node.run("ctr", &by_user).await.with_context(|| cache.stopover.log())?;
    let list = node.run("ctr", &["images", "list"]).await?;
    ensure!(list.contains(&cache.image.digest), "{list}");
    // A mirror: containerd sends no credentials to it but those that its hosts.toml has.
    let reference = format!("{UPSTREAM}/{}", cache.image.reference());
    for (secret, pulls) in [("wrong", false), (cache.secret.as_str(), true)] {
        let header = BASE64_STANDARD.encode(format!("puller:{secret}"));
        let hosts = format!(
            "server = \"http://127.0.0.1:1\"\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
             [host.\"http://{address}\".header]\nAuthorization = \"Basic {header}\"\n"
        );
        node.write(&format!("hosts/{UPSTREAM}/hosts.toml"), &hosts)?;
        let directory = node.path("hosts").display().to_string();
        let pulled = node.run("ctr", &[&pull[..], &["--hosts-dir", &directory, &reference]].concat()).await;
        ensure!(pulled.is_ok() == pulls, "{pulled:?}\n{}", cache.stopover.log());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_says_at_once_that_a_budget_of_a_day_is_used_up() -> anyhow::Result<()> {
    let upstream = Registry::start().await?;
    let image = Recipe::docker("team/docker").push(&upstream).await?;
    let settings = format!("new_bytes = \"0B\"\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"", upstream.url());
    let stopover = Installation::with_configuration(&settings)?.start().await?;
    let node = Node::new()?;
    let source = format!("docker://{}/{UPSTREAM}/{}", stopover.address(), image.reference());
    let target = format!("dir:{}", node.path("image").display());
    let copy = ["copy", "--quiet", "--src-tls-verify=false", &source, &target];
    let copied = tokio::time::timeout(Duration::from_secs(30), node.run("skopeo", &copy));
    let said = format!("{:#}", copied.await.context("skopeo waits")?.err().context("it pulled")?);
    ensure!(said.contains("as many new bytes stored as you may in a day"), "{said}");
    Ok(())
}
