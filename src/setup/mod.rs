//! The configuration that has a client pull through the cache, as `stopover setup CLIENT` prints it and the page shows it.
//! The comments of the files beside this one give the source of each form; the people who use the files read them, too.

mod upstream;

use std::fmt;

use serde_json::{Value, json};

use crate::config::DEFAULT_UPSTREAM;
pub use upstream::MirroredUpstream;

/// Where clients reach a cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mirror {
    /// Whether it speaks plain HTTP, which most clients have to be told.
    pub is_plain: bool,
    /// Host and port, as in its URL.
    pub host: String,
}

impl fmt::Display for Mirror {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", if self.is_plain { "http" } else { "https" }, self.host)
    }
}

/// Declares the clients in the order in which they are listed: each with its name, other names that are understood, where
/// its configuration goes, and the template of that.
macro_rules! targets {
    ($($target:ident $name:literal [$($other:literal),*] $place:literal $template:expr;)+) => {
        /// A client that can be told of a mirror.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[expect(missing_docs, reason = "their names and places are in `about`")]
        pub enum Target {
            $($target,)+
        }

        impl Target {
            /// All of them, in the order in which they are listed.
            pub const ALL: [Self; 20] = [$(Self::$target),+];

            /// Its name, other names that are understood, where its configuration goes, and the template of that.
            const fn about(self) -> (&'static str, &'static [&'static str], &'static str, &'static str) {
                match self {
                    $(Self::$target => ($name, &[$($other),*], $place, $template),)+
                }
            }
        }
    };
}

targets! {
    // Its configuration is put together: `daemon_json`.
    Docker "docker" [] "/etc/docker/daemon.json" "";
    Containerd "containerd" [] "A script that writes /etc/containerd/certs.d; for nerdctl and Kubernetes too"
        include_str!("containerd.sh");
    CriO "cri-o" [] "/etc/containers/registries.conf.d" include_str!("registries.toml");
    Podman "podman" ["skopeo", "buildah"] "/etc/containers/registries.conf.d; for skopeo and buildah too"
        include_str!("registries.toml");
    Buildkit "buildkit" [] "/etc/buildkit/buildkitd.toml; for docker buildx too" include_str!("buildkit.toml");
    K3s "k3s" ["rke2"] "/etc/rancher/k3s/registries.yaml; for RKE2 too" include_str!("k3s.yaml");
    EksNodeadm "eks-nodeadm" [] "User data of EKS nodes with Amazon Linux 2023" include_str!("eks-nodeadm.mime");
    Bottlerocket "bottlerocket" [] "User data of Bottlerocket" include_str!("bottlerocket.toml");
    Kaniko "kaniko" [] "Arguments of the executor" include_str!("kaniko.yaml");
    GithubActions "github-actions" [] "Steps of a job" include_str!("github-actions.yaml");
    Codebuild "codebuild" [] "buildspec.yml" include_str!("codebuild.yaml");
    Ecs "ecs" [] "Names of images in task definitions" include_str!("ecs.yaml");
    Kubernetes "kubernetes" []
        "A policy that puts the cache before names of images, where nodes cannot be configured"
        concat!(
            include_str!("kubernetes.yaml"),
            include_str!("policy.yaml"),
            include_str!("kubernetes-binding.yaml")
        );
    Kyverno "kyverno" [] "The same for Kyverno, on clusters before Kubernetes 1.36"
        concat!(include_str!("kyverno.yaml"), include_str!("policy.yaml"));
    Kind "kind" [] "A script for the nodes of a cluster of kind" include_str!("kind.sh");
    Talos "talos" [] "Documents of the machine configuration" include_str!("talos.yaml");
    Al2023 "al2023" [] "User data of EKS nodes with Amazon Linux 2023 and parallel pull" include_str!("al2023.mime");
    Dind "dind" [] "A service of Compose, with the arguments of docker:dind" include_str!("dind.yaml");
    GitlabRunner "gitlab-runner" [] "/etc/gitlab-runner/config.toml" include_str!("gitlab-runner.toml");
    Arc "arc" [] "Values of the chart of Actions Runner Controller" include_str!("arc.yaml");
}

impl Target {
    /// What it is called.
    pub const fn name(self) -> &'static str {
        self.about().0
    }

    /// Where its configuration goes.
    pub const fn place(self) -> &'static str {
        self.about().2
    }

    /// The client of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }

    /// The configuration of this client; empty if there is nothing to configure.
    pub fn configuration(self, mirror: &Mirror, upstreams: &[MirroredUpstream]) -> String {
        match self {
            Self::Docker => daemon_json(mirror, upstreams),
            _ => fill(self.about().3, mirror, upstreams),
        }
    }

    /// What is left to do by hand, for configurations without comments that say it: their format has none, or they are
    /// a script that is run at once.
    pub fn advice(self, mirror: &Mirror, upstreams: &[MirroredUpstream]) -> String {
        match self {
            Self::Docker => fill(include_str!("docker.txt"), mirror, upstreams),
            Self::Containerd => fill(include_str!("containerd.txt"), mirror, upstreams),
            _ => String::new(),
        }
    }
}

/// The settings of dockerd in daemon.json: mirrors, which are for Docker Hub only, and hosts that speak plain HTTP.
fn daemon_json(mirror: &Mirror, upstreams: &[MirroredUpstream]) -> String {
    let mut settings = serde_json::Map::new();
    if mirror.is_plain {
        settings.insert("insecure-registries".into(), json!([mirror.host]));
    }
    if mirrors_hub(upstreams) {
        settings.insert("registry-mirrors".into(), json!([mirror.to_string()]));
    }
    if settings.is_empty() { String::new() } else { format!("{:#}\n", Value::Object(settings)) }
}

fn mirrors_hub(upstreams: &[MirroredUpstream]) -> bool {
    upstreams.iter().any(|upstream| upstream.registry == DEFAULT_UPSTREAM)
}

/// The command line names clients as they are called here.
#[cfg(feature = "local")]
impl clap::ValueEnum for Target {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        let (name, aliases, place, _) = self.about();
        Some(clap::builder::PossibleValue::new(name).aliases(aliases).help(place))
    }
}

/// Fills in a template: lines between `@http@` and `@/http@` are kept only if the mirror speaks plain HTTP, those
/// between `@hub@` and `@/hub@` if Docker Hub is among the upstreams, those between `@daemon@` and `@/daemon@` if dockerd
/// needs settings, those between `@each@` and `@/each@` once for every upstream, and a line that names a client is replaced
/// by that client's configuration.
fn fill(template: &str, mirror: &Mirror, upstreams: &[MirroredUpstream]) -> String {
    let (mut filled, mut repeated, mut left_out) = (String::new(), None, None);
    let daemon = !daemon_json(mirror, upstreams).is_empty();
    for line in template.lines() {
        match line {
            _ if left_out == Some(line) => left_out = None,
            _ if left_out.is_some() => {}
            "@http@" if !mirror.is_plain => left_out = Some("@/http@"),
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
        .replace("@host@", &mirror.host)
}

/// Fills in the part of a template that is for one upstream.
fn of_upstream(block: &str, MirroredUpstream { id, registry }: &MirroredUpstream) -> String {
    // go-containerregistry, and with it kaniko, knows Docker Hub by its old name.
    let index = if registry == DEFAULT_UPSTREAM { "index.docker.io" } else { registry };
    block.replace("@upstream@", id.as_str()).replace("@registry@", registry).replace("@index@", index)
}

/// The configuration of another client, indented like the line that names it.
fn included(line: &str, mirror: &Mirror, upstreams: &[MirroredUpstream]) -> Option<String> {
    let client = Target::named(line.trim().strip_prefix('@')?.strip_suffix('@')?)?;
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
        for (is_plain, host) in [(true, "127.0.0.1:5000"), (false, "cache.example.com")] {
            let mirror = Mirror { is_plain, host: host.to_owned() };
            for client in Target::ALL {
                let text = client.configuration(&mirror, &upstreams) + &client.advice(&mirror, &upstreams);
                // An action has a version, and talosctl names files like this.
                let text = text.replace("buildx-action@v4", "").replace("@FILE", "");
                assert!(!text.contains('@'), "{client:?}:\n{text}");
                assert!(text.contains(&mirror.host), "{client:?}:\n{text}");
                for upstream in &upstreams {
                    assert!(text.contains(&upstream.registry), "{client:?}:\n{text}");
                }
            }
        }
    }
}
