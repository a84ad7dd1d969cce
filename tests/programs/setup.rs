//! `stopover setup`: what it prints is what each client reads, and real clients pull with it.

use anyhow::{Context as _, ensure};
use serde::Deserialize as _;
use serde_json::json;
use support::images::{Image, Recipe, digest_of};
use support::node::Node;
use support::program::{Installation, Stopover, UPSTREAM};
use support::registry::Registry;

const CLIENTS: [&str; 20] = [
    "docker",
    "containerd",
    "cri-o",
    "podman",
    "buildkit",
    "k3s",
    "eks-nodeadm",
    "bottlerocket",
    "kaniko",
    "github-actions",
    "codebuild",
    "ecs",
    "kubernetes",
    "kyverno",
    "kind",
    "talos",
    "al2023",
    "dind",
    "gitlab-runner",
    "arc",
];

/// What is printed for a client: the configuration, and what is said beside it.
pub(crate) async fn printed(arguments: &[&str]) -> anyhow::Result<(String, String)> {
    let output = Node::new()?.stopover(&[&["setup"], arguments].concat()).await?;
    let (stdout, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    ensure!(output.status.success(), "{arguments:?}: {stderr}");
    Ok((stdout, stderr))
}

/// What a client is told of a running cache that has one upstream.
async fn configuration(client: &str, stopover: &Stopover) -> anyhow::Result<String> {
    let server = format!("http://{}", stopover.address());
    Ok(printed(&[client, "--server", &server, "--upstream", UPSTREAM]).await?.0)
}

/// An image at an upstream whose name resolves nowhere: nothing but the mirror can answer a pull of it.
async fn cache() -> anyhow::Result<(Registry, Image, Installation, Stopover)> {
    let upstream = Registry::start().await?;
    let image = Recipe::docker("team/docker").push(&upstream).await?;
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    Ok((upstream, image, installation, stopover))
}

async fn parses(client: &str, text: &str) -> anyhow::Result<()> {
    match client {
        "docker" => drop(serde_json::from_str::<serde_json::Value>(text)?),
        "cri-o" | "podman" | "buildkit" | "bottlerocket" | "gitlab-runner" => drop(text.parse::<toml::Table>()?),
        "k3s" | "kaniko" | "github-actions" | "codebuild" | "ecs" | "kubernetes" | "kyverno" | "talos" | "dind"
        | "arc" => {
            ensure!(!documents(text)?.is_empty(), "no document");
        }
        "containerd" | "kind" => shell(text).await?,
        "al2023" => drop(parts_of(text)?),
        "eks-nodeadm" => shell(script_of(text)?).await?,
        _ => anyhow::bail!("no format is known for {client}"),
    }
    Ok(())
}

async fn shell(script: &str) -> anyhow::Result<()> {
    let node = Node::new()?;
    node.write("script", script)?;
    let path = node.path("script");
    node.run("bash", &["-n", path.to_str().context("a path that is not UTF-8")?]).await?;
    Ok(())
}

/// All documents of a YAML file.
pub(crate) fn documents(text: &str) -> anyhow::Result<Vec<serde_json::Value>> {
    let all = serde_yaml_ng::Deserializer::from_str(text).map(serde_json::Value::deserialize);
    Ok(all.collect::<Result<_, _>>()?)
}

/// The parts of user data for EKS nodes: a `NodeConfig`, and those behind it with their headers.
pub(crate) fn parts_of(user_data: &str) -> anyhow::Result<(serde_json::Value, Vec<(&str, &str)>)> {
    let boundary = user_data.split('"').nth(1).context("no boundary")?;
    ensure!(user_data.starts_with("MIME-Version: 1.0\nContent-Type: multipart/mixed;"));
    let parts = user_data.strip_suffix(&format!("\n--{boundary}--\n")).context("the last part has no end")?;
    let between = format!("\n--{boundary}\n");
    let parts = parts.split(&between).skip(1);
    let parts = parts.map(|part| part.split_once("\n\n").context("a part without headers"));
    let mut parts = parts.collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!parts.is_empty(), "no parts");
    let (headers, node_config) = parts.remove(0);
    ensure!(headers == "Content-Type: application/node.eks.aws", "{headers}");
    let node_config: serde_json::Value = serde_yaml_ng::from_str(node_config)?;
    ensure!(node_config["apiVersion"] == "node.eks.aws/v1alpha1" && node_config["kind"] == "NodeConfig");
    Ok((node_config, parts))
}

/// The script among the parts of user data.
fn script_of(user_data: &str) -> anyhow::Result<&str> {
    let (node_config, parts) = parts_of(user_data)?;
    let [(headers, script)] = parts[..] else { anyhow::bail!("{} parts", parts.len()) };
    let containerd = node_config["spec"]["containerd"]["config"].as_str().context("no configuration of containerd")?;
    let directory =
        &containerd.parse::<toml::Table>()?["plugins"]["io.containerd.cri.v1.images"]["registry"]["config_path"];
    ensure!(directory.as_str() == Some("/etc/containerd/certs.d"), "{containerd}");
    ensure!(headers.starts_with("Content-Type: text/x-shellscript;"), "{headers}");
    Ok(script)
}

#[tokio::test]
async fn what_is_printed_for_a_client_parses_and_names_the_endpoint_and_every_upstream() -> anyhow::Result<()> {
    for server in ["http://127.0.0.1:5000", "https://cache.example.com", "https://cache.example.com:8443"] {
        let host = server.split('/').nth(2).context("no host")?;
        for client in CLIENTS {
            let upstreams = ["--upstream", "docker.io", "--upstream", "ghcr.io", "--upstream", "registry.corp"];
            let (text, advice) = printed(&[&[client, "--server", server][..], &upstreams].concat()).await?;
            parses(client, &text).await.with_context(|| format!("{client}:\n{text}"))?;
            for wanted in [host, "docker.io", "ghcr.io", "registry.corp"] {
                ensure!((text.clone() + &advice).contains(wanted), "{client} is not told of {wanted}:\n{text}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_a_client_all_are_listed_and_without_upstreams_the_configured_ones_are_meant() -> anyhow::Result<()> {
    let (list, _) = printed(&[]).await?;
    for client in CLIENTS {
        ensure!(list.lines().any(|line| line.trim_start().starts_with(&format!("{client} "))), "{client}:\n{list}");
    }
    let table = format!("[upstreams.\"{UPSTREAM}\"]\nurl = \"http://127.0.0.1:1\"\n");
    let installation = Installation::with_configuration(&format!("listen = \":5999\"\n{table}"))?;
    let configuration = installation.configuration();
    let configuration = configuration.to_str().context("a path that is not UTF-8")?;
    let (text, _) = printed(&["k3s", "--config", configuration]).await?;
    for wanted in ["docker.io", "quay.io", UPSTREAM, "http://127.0.0.1:5999/v2/"] {
        ensure!(text.contains(wanted), "{wanted}:\n{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_registry_is_named_as_clients_call_it_and_behind_the_mirror_by_its_id() -> anyhow::Result<()> {
    let text = "[upstreams.\"corp\"]\nurl = \"https://registry.corp.example:5000\"\n\
                [upstreams.\"registry.example.com\"]\nurl = \"https://10.0.0.1\"\n";
    let installation = Installation::with_configuration(text)?;
    let configuration = installation.configuration().display().to_string();
    let arguments = ["--config", &configuration, "--server", "https://cache.example.com"];
    for (client, line) in [
        ("containerd", "[host.\"https://cache.example.com/corp\"]"),
        ("containerd", "write \"registry.corp.example:5000\" <<'END'"),
        ("podman", "location = \"cache.example.com/corp\""),
        ("podman", "prefix = \"registry.corp.example:5000\""),
        ("podman", "prefix = \"registry.example.com\""),
        ("buildkit", "[registry.\"registry.corp.example:5000\"]"),
        ("k3s", "\"registry.corp.example:5000\":"),
        ("k3s", "- \"https://cache.example.com/v2/corp\""),
        ("bottlerocket", "registry = \"registry.corp.example:5000\""),
        ("kaniko", "- --registry-map=registry.corp.example:5000=cache.example.com/corp"),
        ("kaniko", "- --registry-map=index.docker.io=cache.example.com/docker.io"),
        ("ecs", "image: cache.example.com/corp/NAME:TAG"),
    ] {
        let (text, _) = printed(&[&[client][..], &arguments].concat()).await?;
        ensure!(text.lines().any(|known| known.trim() == line), "{client}: {line} is not in:\n{text}");
    }
    let output = Node::new()?.stopover(&["setup", "podman", "--upstream", "corp"]).await?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("corp: no upstream of this configuration"), "{said}");
    Ok(())
}

#[tokio::test]
async fn commands_that_are_printed_set_up_the_same_server_and_upstreams() -> anyhow::Result<()> {
    let arguments = ["--server", "http://127.0.0.1:5999", "--upstream", "docker.io", "--upstream", "ghcr.io"];
    let (_, advice) = printed(&[&["docker"][..], &arguments].concat()).await?;
    let (ecs, _) = printed(&[&["ecs"][..], &arguments].concat()).await?;
    for (text, client) in [(&advice, "containerd"), (&ecs, "docker")] {
        let at = text.find("stopover setup").with_context(|| format!("no command in:\n{text}"))?;
        let words: Vec<&str> =
            text[at..].split(['|', '`', '\n']).next().unwrap_or_default().split_whitespace().collect();
        ensure!(words == [&["stopover", "setup", client][..], &arguments].concat(), "{words:?}");
        ensure!(printed(&words[2..]).await?.0.contains("127.0.0.1:5999"));
    }
    Ok(())
}

#[tokio::test]
async fn docker_is_told_nothing_for_registries_that_it_does_not_mirror() -> anyhow::Result<()> {
    let ghcr = ["--server", "https://cache.example.com", "--upstream", "ghcr.io"];
    let (text, advice) = printed(&[&["docker"][..], &ghcr].concat()).await?;
    ensure!(text.is_empty() && !advice.contains("daemon.json"), "{text}\n{advice}");
    ensure!(
        advice.contains("Docker mirrors only docker.io") && advice.contains("cache.example.com/ghcr.io/"),
        "{advice}"
    );
    for client in ["codebuild", "github-actions"] {
        let (text, _) = printed(&[&[client][..], &ghcr].concat()).await?;
        parses(client, &text).await?;
        ensure!(!text.contains("daemon.json") && text.contains("ghcr.io"), "{client}:\n{text}");
    }
    let (text, _) = printed(&["docker", "--server", "http://10.0.0.1:5000", "--upstream", "ghcr.io"]).await?;
    let told: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(told == json!({"insecure-registries": ["10.0.0.1:5000"]}), "{text}");
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_is_not_configured_is_warned_of() -> anyhow::Result<()> {
    for (upstream, warned) in [("nope.example", true), ("ghcr.io", false)] {
        let (text, said) = printed(&["podman", "--upstream", upstream]).await?;
        ensure!(text.contains(upstream), "{text}");
        ensure!(said.contains("nope.example: this configuration has no such upstream") == warned, "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn what_docker_is_told_already_is_kept() -> anyhow::Result<()> {
    let server = ["--server", "http://10.0.0.1:5000"];
    for (client, pointer) in [("codebuild", "/phases/install/commands/0"), ("github-actions", "/steps/0/run")] {
        let (text, _) = printed(&[&[client][..], &server].concat()).await?;
        let value: serde_json::Value = serde_yaml_ng::from_str(&text)?;
        let script = value.pointer(pointer).and_then(|script| script.as_str()).context("no script")?;
        let node = Node::new()?;
        let etc = node.path("docker").display().to_string();
        let temporary = node.path("daemon.json").display().to_string();
        // Everything but the daemon, which is not told to read it again.
        let lines = script.lines().filter(|line| !line.starts_with("kill ") && !line.contains("systemctl"));
        let script = lines.collect::<Vec<_>>().join("\n").replace("sudo ", "");
        let script = script.replace("/tmp/daemon.json", &temporary).replace("/etc/docker", &etc);
        let script = format!("set -e\nRUNNER_TEMP='{}'\n{script}", node.path("").display());
        let run = async || {
            node.run("sh", &["-c", &script]).await?;
            anyhow::Ok(serde_json::from_slice::<serde_json::Value>(&std::fs::read(node.path("docker/daemon.json"))?)?)
        };
        let ours = json!({"insecure-registries": ["10.0.0.1:5000"], "registry-mirrors": ["http://10.0.0.1:5000"]});
        std::fs::create_dir(node.path("docker"))?;
        ensure!(run().await? == ours, "{client}");
        node.write(
            "docker/daemon.json",
            r#"{"registry-mirrors": ["https://z.example", "https://a.example"], "debug": true}"#,
        )?;
        let mirrors = ["https://z.example", "https://a.example", "http://10.0.0.1:5000"];
        let both = json!({"insecure-registries": ["10.0.0.1:5000"], "registry-mirrors": mirrors, "debug": true});
        for time in 1..3 {
            ensure!(run().await? == both, "{client}, time {time}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_script_for_containerd_says_what_it_writes_and_keeps_what_others_wrote() -> anyhow::Result<()> {
    let node = Node::new()?;
    let run = async |server: &str| {
        let (script, advice) = printed(&["containerd", "--server", server, "--upstream", "ghcr.io"]).await?;
        ensure!(advice.contains("config_path = ") && advice.contains("By hand"), "{advice}");
        node.run("sh", &["-c", &format!("export CERTS_D='{}'\n{script}", node.path("certs.d").display())]).await
    };
    let file = "certs.d/ghcr.io/hosts.toml";
    let (kept, wrote) = (format!("{file}.1, which was "), format!("wrote {}\n", node.path(file).display()));
    node.write(file, "server = \"https://other.example\"\n")?;
    let said = run("https://cache.example.com").await?;
    ensure!(said.contains(&kept) && said.ends_with(&wrote), "{said}");
    ensure!(std::fs::read_to_string(node.path(&format!("{file}.1")))? == "server = \"https://other.example\"\n");
    // The second time it is there already.
    ensure!(run("https://cache.example.com").await? == wrote);
    let said = run("https://other-cache.example.com").await?;
    ensure!(said.contains(&format!("{file}.2, which was ")), "{said}");
    ensure!(std::fs::read_to_string(node.path(file))?.contains("[host.\"https://other-cache.example.com/ghcr.io\"]"));
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_no_url_is_refused_with_an_example() -> anyhow::Result<()> {
    let output = Node::new()?.stopover(&["setup", "docker", "--server", "cache.example.com"]).await?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("https://cache.example.com"), "{said}");
    let output = Node::new()?.stopover(&["setup", "k3s", "--server", "https://a\"b"]).await?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "a quote is printed");
    let output = Node::new()?.stopover(&["setup", "k3s", "--server", "https://cache.example.com/ghcr.io"]).await?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("at the root of its host"), "{said}");
    Ok(())
}

#[tokio::test]
async fn podman_and_skopeo_pull_with_what_is_printed_for_them() -> anyhow::Result<()> {
    let (_upstream, image, _installation, stopover) = cache().await?;
    let text = configuration("podman", &stopover).await?;
    let mirror = format!("location = \"{}/{UPSTREAM}\"", stopover.address());
    // As the comments say: the cache in the place of the registry, which then is never asked.
    let alone = format!("[[registry]]\nprefix = \"{UPSTREAM}\"\n{mirror}\ninsecure = true\n");
    for line in alone.lines() {
        ensure!(text.lines().any(|known| known.trim_start_matches("# ") == line), "{line} is not in:\n{text}");
    }
    for text in [text, alone] {
        let node = Node::new()?;
        node.write(".config/containers/registries.conf", &text)?;
        let reference = format!("{UPSTREAM}/{}", image.reference());
        // Not `inspect`: that asks the registry itself for its tags, whatever mirror there is.
        let (source, target) = (format!("docker://{reference}"), format!("dir:{}", node.path("image").display()));
        node.run("skopeo", &["copy", "--quiet", "--preserve-digests", &source, &target]).await?;
        let manifest = std::fs::read(node.path("image/manifest.json"))?;
        ensure!(digest_of(&manifest) == image.digest, "skopeo pulled something else");
        node.run("podman", &["pull", "--quiet", "--arch", "amd64", &reference])
            .await
            .with_context(|| stopover.log())?;
        let digest = node.run("podman", &["image", "inspect", "--format", "{{.Digest}}", &reference]).await?;
        ensure!(digest.trim() == image.digest, "podman pulled {digest}");
    }
    Ok(())
}

#[tokio::test]
async fn containerd_pulls_with_what_is_printed_for_it() -> anyhow::Result<()> {
    let (_upstream, image, _installation, stopover) = cache().await?;
    let mut node = Node::new()?;
    let certs = |name: &str| node.path(name).display().to_string();
    let (containerd, nodeadm) = (certs("containerd.d"), certs("nodeadm.d"));
    for (client, directory) in [("containerd", &containerd), ("eks-nodeadm", &nodeadm)] {
        let text = configuration(client, &stopover).await?;
        let script = if client == "containerd" { &text } else { script_of(&text)? };
        node.run("sh", &["-c", &format!("export CERTS_D='{directory}'\n{script}")]).await?;
    }
    // The same, and with the mirror as the server, too: then nothing else is ever asked.
    let hosts = node.path("nodeadm.d").join(UPSTREAM).join("hosts.toml");
    let text = std::fs::read_to_string(&hosts)?;
    ensure!(text == std::fs::read_to_string(node.path("containerd.d").join(UPSTREAM).join("hosts.toml"))?);
    std::fs::write(&hosts, text.replacen("# server", "server", 1))?;
    let _daemon = node.start_containerd().await?;
    let reference = format!("{UPSTREAM}/{}", image.reference());
    for directory in [containerd, nodeadm] {
        let pull = ["images", "pull", "--snapshotter", "native", "--platform", "linux/amd64"];
        let pulled = node.run("ctr", &[&pull[..], &["--hosts-dir", &directory, &reference]].concat()).await;
        pulled.with_context(|| stopover.log())?;
        let list = node.run("ctr", &["images", "list"]).await?;
        ensure!(list.contains(&reference) && list.contains(&image.digest), "{list}");
        node.run("ctr", &["images", "remove", "--sync", &reference]).await?;
    }
    Ok(())
}
