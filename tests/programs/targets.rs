//! `stopover setup` for clusters and runners that run in containers: the values that matter, where the client looks for them.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use support::node::Node;

use crate::setup::{documents, parts_of, printed};

const TLS: &str = "https://cache.example.com";
const PLAIN: &str = "http://10.0.0.5:5000";

async fn of(client: &str, server: &str, upstreams: &[&str]) -> anyhow::Result<String> {
    let options: Vec<&str> = upstreams.iter().flat_map(|upstream| ["--upstream", upstream]).collect();
    Ok(printed(&[&[client, "--server", server][..], &options].concat()).await?.0)
}

#[tokio::test]
async fn talos_has_a_mirror_with_its_whole_path_for_each_registry() -> anyhow::Result<()> {
    let documents = documents(&of("talos", TLS, &["docker.io", "ghcr.io"]).await?)?;
    let mirror = |name: &str| {
        let endpoints = json!([{ "url": format!("{TLS}/v2/{name}"), "overridePath": true }]);
        json!({ "apiVersion": "v1alpha1", "kind": "RegistryMirrorConfig", "name": name, "endpoints": endpoints })
    };
    ensure!(documents == [mirror("docker.io"), mirror("ghcr.io")], "{documents:?}");
    Ok(())
}

#[tokio::test]
async fn a_docker_in_a_container_is_told_of_the_mirror_by_arguments() -> anyhow::Result<()> {
    let (mirror, plain) =
        (json!("--registry-mirror=https://cache.example.com"), json!("--insecure-registry=10.0.0.5:5000"));
    let both = json!(["--registry-mirror=http://10.0.0.5:5000", plain]);
    for (server, upstream, wanted) in [
        (TLS, "docker.io", json!([mirror])),
        (PLAIN, "docker.io", both),
        (PLAIN, "ghcr.io", json!([plain])),
        // Docker has no mirrors of other registries, so that there is nothing to tell.
        (TLS, "ghcr.io", json!([])),
    ] {
        for client in ["dind", "gitlab-runner", "arc"] {
            let text = of(client, server, &[upstream]).await?;
            let told = arguments_in(client, &text).with_context(|| text.clone())?;
            ensure!(told == wanted, "{client}, {server}, {upstream}: {told}");
        }
    }
    Ok(())
}

/// What a configuration gives to docker:dind for the mirror.
fn arguments_in(client: &str, text: &str) -> anyhow::Result<Value> {
    let (value, pointer) = match client {
        "gitlab-runner" => (serde_json::to_value(text.parse::<toml::Table>()?)?, "/runners/0/docker/services/0"),
        "arc" => (documents(text)?[0].take(), "/template/spec/initContainers/1"),
        _ => (documents(text)?[0].take(), "/services/docker"),
    };
    let Some(service) = value.pointer(pointer) else { return Ok(json!([])) };
    ensure!([&service["name"], &service["image"]].contains(&&json!("docker:dind")), "{service}");
    let mut arguments = service.get("command").or(service.get("args")).cloned().unwrap_or(json!([]));
    if client == "arc" {
        // What the runner needs, whatever else there is.
        let own: Vec<Value> = arguments.as_array_mut().context("no arguments")?.drain(..3).collect();
        ensure!(own == ["dockerd", "--host=unix:///var/run/docker.sock", "--group=$(DOCKER_GROUP_GID)"], "{own:?}");
    }
    Ok(arguments)
}

#[tokio::test]
async fn the_runner_of_actions_runner_controller_finds_the_docker_beside_it() -> anyhow::Result<()> {
    let values = documents(&of("arc", TLS, &["docker.io"]).await?)?[0].take();
    ensure!(values.get("containerMode").is_none(), "with it, the arguments are passed over");
    let spec = &values["template"]["spec"];
    let (docker, runner) = (&spec["initContainers"][1], &spec["containers"][0]);
    ensure!(docker["restartPolicy"] == "Always" && docker["securityContext"]["privileged"] == true, "{docker}");
    ensure!(runner["name"] == "runner", "{runner}");
    let volumes: Vec<&Value> =
        spec["volumes"].as_array().context("no volumes")?.iter().map(|one| &one["name"]).collect();
    for container in [&spec["initContainers"][0], docker, runner] {
        for mount in container["volumeMounts"].as_array().context("no mounts")? {
            ensure!(volumes.contains(&&mount["name"]), "{mount} is of no volume");
        }
    }
    let socket = json!({ "name": "dind-sock", "mountPath": "/var/run" });
    for container in [docker, runner] {
        ensure!(container["volumeMounts"].as_array().context("no mounts")?.contains(&socket), "{container}");
    }
    Ok(())
}

#[tokio::test]
async fn nodes_that_pull_in_parallel_are_told_that_only_names_lead_through_the_cache() -> anyhow::Result<()> {
    let text = of("al2023", TLS, &["ghcr.io"]).await?;
    let (node, others) = parts_of(&text)?;
    ensure!(node["spec"] == json!({ "featureGates": { "FastImagePull": true } }) && others.is_empty(), "{text}");
    ensure!(text.contains("ghcr.io/NAME  ->  cache.example.com/ghcr.io/NAME"), "{text}");
    let text = of("bottlerocket", TLS, &["ghcr.io"]).await?;
    // The settings that are commented out are settings, and do not clash with the others.
    let parallel = text.lines().filter_map(|line| line.strip_prefix("#   ")).collect::<Vec<_>>().join("\n");
    let settings = format!("{parallel}\n{text}").parse::<toml::Table>()?["settings"].clone();
    ensure!(settings["container-runtime"]["snapshotter"].as_str() == Some("soci"), "{text}");
    let soci = &settings["container-runtime-plugins"]["soci-snapshotter"]["pull-mode"];
    ensure!(soci.as_str() == Some("parallel-pull-unpack"), "{text}");
    Ok(())
}

#[tokio::test]
async fn the_script_for_kind_writes_the_files_of_containerd_on_every_node() -> anyhow::Result<()> {
    let home = Node::new()?;
    let path = format!("{}:{}", home.path("bin").display(), std::env::var("PATH")?);
    let node = home.with(("PATH", path.into()));
    // A node is a directory here.
    let docker = "[ \"$1 $2\" = \"exec --interactive\" ] || exit 1\nCERTS_D=\"$HOME/$3\" exec \"$4\"\n";
    for (name, script) in [("kind", "echo \"$4-control-plane\"\necho \"$4-worker\"\n"), ("docker", docker)] {
        node.write_script(name, script)?;
    }
    node.write("setup.sh", &of("kind", PLAIN, &["docker.io", "ghcr.io"]).await?)?;
    node.run("sh", &[&node.path("setup.sh").display().to_string()]).await?;
    for (machine, registry) in [("kind-control-plane", "docker.io"), ("kind-worker", "ghcr.io")] {
        let hosts = std::fs::read_to_string(node.path(&format!("{machine}/{registry}/hosts.toml")))?;
        let hosts = hosts.parse::<toml::Table>()?;
        ensure!(hosts["host"].get(format!("{PLAIN}/{registry}")).is_some(), "{hosts:?}");
    }
    Ok(())
}
