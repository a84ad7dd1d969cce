//! `stopover setup CLIENT`: the configuration that has a client pull through the cache. The comments of the files
//! beside this one give the source of each form; the people who use the files read them, too.

use std::fmt::Write as _;

use super::endpoint::Endpoint;
use super::upstream::MirroredUpstream;
use clap::ValueEnum;
use serde_json::{Value, json};
use stopover::config::DEFAULT_UPSTREAM;

/// A client that can be told of a mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Target {
    /// /etc/docker/daemon.json
    Docker,
    /// A script that writes /etc/containerd/certs.d; for nerdctl and Kubernetes too
    Containerd,
    /// /etc/containers/registries.conf.d
    #[value(name = "cri-o")]
    CriO,
    /// /etc/containers/registries.conf.d; for skopeo and buildah too
    #[value(aliases = ["skopeo", "buildah"])]
    Podman,
    /// /etc/buildkit/buildkitd.toml; for docker buildx too
    Buildkit,
    /// /etc/rancher/k3s/registries.yaml; for RKE2 too
    #[value(alias = "rke2")]
    K3s,
    /// User data of EKS nodes with Amazon Linux 2023
    EksNodeadm,
    /// User data of Bottlerocket
    Bottlerocket,
    /// Arguments of the executor
    Kaniko,
    /// Steps of a job
    GithubActions,
    /// buildspec.yml
    Codebuild,
    /// Names of images in task definitions
    Ecs,
    /// A policy that puts the cache before names of images, where nodes cannot be configured
    Kubernetes,
    /// The same for Kyverno, on clusters before Kubernetes 1.36
    Kyverno,
    /// A script for the nodes of a cluster of kind
    Kind,
    /// Documents of the machine configuration
    Talos,
    /// User data of EKS nodes with Amazon Linux 2023 and parallel pull
    Al2023,
    /// A service of Compose, with the arguments of docker:dind
    Dind,
    /// /etc/gitlab-runner/config.toml
    GitlabRunner,
    /// Values of the chart of Actions Runner Controller
    Arc,
}

impl Target {
    /// The configuration of this client; empty if there is nothing to configure.
    pub(crate) fn configuration(self, mirror: &Endpoint, upstreams: &[MirroredUpstream]) -> String {
        let template = match self {
            Self::Docker => return daemon_json(mirror, upstreams),
            Self::Containerd => include_str!("containerd.sh"),
            Self::CriO | Self::Podman => include_str!("registries.toml"),
            Self::Buildkit => include_str!("buildkit.toml"),
            Self::K3s => include_str!("k3s.yaml"),
            Self::EksNodeadm => include_str!("eks-nodeadm.mime"),
            Self::Bottlerocket => include_str!("bottlerocket.toml"),
            Self::Kaniko => include_str!("kaniko.yaml"),
            Self::GithubActions => include_str!("github-actions.yaml"),
            Self::Codebuild => include_str!("codebuild.yaml"),
            Self::Ecs => include_str!("ecs.yaml"),
            Self::Kubernetes => {
                concat!(
                    include_str!("kubernetes.yaml"),
                    include_str!("policy.yaml"),
                    include_str!("kubernetes-binding.yaml")
                )
            }
            Self::Kyverno => concat!(include_str!("kyverno.yaml"), include_str!("policy.yaml")),
            Self::Kind => include_str!("kind.sh"),
            Self::Talos => include_str!("talos.yaml"),
            Self::Al2023 => include_str!("al2023.mime"),
            Self::Dind => include_str!("dind.yaml"),
            Self::GitlabRunner => include_str!("gitlab-runner.toml"),
            Self::Arc => include_str!("arc.yaml"),
        };
        fill(template, mirror, upstreams)
    }

    /// What is left to do by hand, for configurations without comments that say it: their format has none, or they are
    /// a script that is run at once.
    pub(crate) fn advice(self, mirror: &Endpoint, upstreams: &[MirroredUpstream]) -> String {
        match self {
            Self::Docker => fill(include_str!("docker.txt"), mirror, upstreams),
            Self::Containerd => fill(include_str!("containerd.txt"), mirror, upstreams),
            _ => String::new(),
        }
    }
}

/// The settings of dockerd in daemon.json: mirrors, which are for Docker Hub only, and hosts that speak plain HTTP.
fn daemon_json(mirror: &Endpoint, upstreams: &[MirroredUpstream]) -> String {
    let mut settings = serde_json::Map::new();
    if mirror.is_plain() {
        settings.insert("insecure-registries".into(), json!([mirror.host()]));
    }
    if mirrors_hub(upstreams) {
        settings.insert("registry-mirrors".into(), json!([mirror.to_string()]));
    }
    if settings.is_empty() { String::new() } else { format!("{:#}\n", Value::Object(settings)) }
}

fn mirrors_hub(upstreams: &[MirroredUpstream]) -> bool {
    upstreams.iter().any(|upstream| upstream.registry == DEFAULT_UPSTREAM)
}

/// One line per client: its name, and what is printed for it.
pub(crate) fn list() -> String {
    let mut text = "stopover setup CLIENT prints the configuration of:\n".to_owned();
    for value in Target::value_variants().iter().filter_map(ValueEnum::to_possible_value) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:15} {}", value.get_name(), value.get_help().cloned().unwrap_or_default());
    }
    text
}

/// Fills in a template: lines between `@http@` and `@/http@` are kept only if the mirror speaks plain HTTP, those
/// between `@hub@` and `@/hub@` if Docker Hub is among the upstreams, those between `@daemon@` and `@/daemon@` if dockerd
/// needs settings, those between `@each@` and `@/each@` once for every upstream, and a line that names a client is replaced
/// by that client's configuration.
fn fill(template: &str, mirror: &Endpoint, upstreams: &[MirroredUpstream]) -> String {
    let (mut filled, mut repeated, mut left_out) = (String::new(), None, None);
    let daemon = !daemon_json(mirror, upstreams).is_empty();
    for line in template.lines() {
        match line {
            _ if left_out == Some(line) => left_out = None,
            _ if left_out.is_some() => {}
            "@http@" if !mirror.is_plain() => left_out = Some("@/http@"),
            "@hub@" if !mirrors_hub(upstreams) => left_out = Some("@/hub@"),
            "@daemon@" if !daemon => left_out = Some("@/daemon@"),
            "@http@" | "@/http@" | "@hub@" | "@/hub@" | "@daemon@" | "@/daemon@" => {}
            "@each@" => repeated = Some(String::new()),
            "@/each@" => {
                let block: String = repeated.take().unwrap_or_default();
                filled.extend(upstreams.iter().map(|upstream| of_upstream(&block, upstream)));
            }
            _ => {
                let text = included(line, mirror, upstreams).unwrap_or_else(|| line.to_owned());
                repeated.as_mut().unwrap_or(&mut filled).extend([text.as_str(), "\n"]);
            }
        }
    }
    let named = upstreams.iter().flat_map(|upstream| [" --upstream ", upstream.id.as_str()]).collect::<String>();
    filled
        .replace("@options@", &format!("--server {mirror}{named}"))
        .replace("@merge@", include_str!("merge.jq").trim_end())
        .replace("@server@", &mirror.to_string())
        .replace("@host@", mirror.host())
}

/// Fills in the part of a template that is for one upstream.
fn of_upstream(block: &str, MirroredUpstream { id, registry }: &MirroredUpstream) -> String {
    // go-containerregistry, and with it kaniko, knows Docker Hub by its old name.
    let index = if registry == DEFAULT_UPSTREAM { "index.docker.io" } else { registry };
    block.replace("@upstream@", id.as_str()).replace("@registry@", registry).replace("@index@", index)
}

/// The configuration of another client, indented like the line that names it.
fn included(line: &str, mirror: &Endpoint, upstreams: &[MirroredUpstream]) -> Option<String> {
    let client = Target::from_str(line.trim().strip_prefix('@')?.strip_suffix('@')?, false).ok()?;
    let indentation = line.strip_suffix(line.trim_start()).unwrap_or_default();
    let text = client.configuration(mirror, upstreams);
    let lines = text.lines().map(|line| if line.is_empty() { String::new() } else { format!("{indentation}{line}") });
    Some(lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled_in_whatever_the_server() {
        let upstreams =
            ["docker.io", "ghcr.io"].map(|id| MirroredUpstream { id: id.parse().unwrap(), registry: id.to_owned() });
        for server in ["http://127.0.0.1:5000", "https://cache.example.com"] {
            let mirror: Endpoint = server.parse().unwrap();
            for client in Target::value_variants() {
                let text = client.configuration(&mirror, &upstreams) + &client.advice(&mirror, &upstreams);
                // An action has a version, and talosctl names files like this.
                let text = text.replace("buildx-action@v4", "").replace("@FILE", "");
                assert!(!text.contains('@'), "{client:?}:\n{text}");
                assert!(text.contains(mirror.host()), "{client:?}:\n{text}");
                for upstream in &upstreams {
                    assert!(text.contains(&upstream.registry), "{client:?}:\n{text}");
                }
            }
        }
    }

    #[test]
    fn every_client_is_listed() {
        assert_eq!(list().lines().count(), 1 + Target::value_variants().len());
        assert!(list().contains("  cri-o           /etc/containers/registries.conf.d\n"), "{}", list());
    }
}
