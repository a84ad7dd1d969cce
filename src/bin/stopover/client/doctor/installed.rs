//! Which clients are installed on this machine, and which of them are not in use.

use super::configured::Files;
use crate::client::Target;

impl Target {
    /// The clients whose configuration is a file on the machine.
    pub(super) const EXAMINED: [Self; 6] =
        [Self::Docker, Self::Containerd, Self::CriO, Self::Podman, Self::Buildkit, Self::K3s];

    /// The clients on this machine. containerd does not count where Docker brings its own, which no other client pulls
    /// with.
    pub(super) fn found() -> Vec<Self> {
        let any = |programs: &[&str]| programs.iter().any(|program| is_installed(program));
        let found = |client: &Self| match client {
            Self::Docker => any(&["docker", "dockerd"]),
            Self::Containerd => any(&["containerd"]) && (!any(&["dockerd"]) || any(&["crictl", "nerdctl", "kubelet"])),
            Self::CriO => any(&["crio"]),
            Self::Podman => any(&["podman", "buildah", "skopeo"]),
            Self::Buildkit => any(&["buildkitd"]),
            Self::K3s => any(&["k3s"]),
            _ => false,
        };
        Self::EXAMINED.into_iter().filter(found).collect()
    }
}

/// Whether a program is in one of the directories of `PATH`.
pub(super) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

impl Files<'_> {
    /// Why a client that is installed on this machine is not in use, as far as can be seen.
    pub(super) fn unused(&self, client: Target) -> Option<String> {
        let socket = || std::env::var_os("DOCKER_HOST").is_some() || self.path("/var/run/docker.sock").exists();
        let why = match client {
            Target::Docker if !socket() => "no daemon listens at /var/run/docker.sock: --client docker has it checked",
            Target::Containerd
                if !is_installed("kubelet") && !is_installed("crictl") && self.config_path() == Ok(None) =>
            {
                "it has no config_path, and there is no Kubernetes that needs one: --client containerd has it checked"
            }
            _ => return None,
        };
        Some(why.to_owned())
    }
}
