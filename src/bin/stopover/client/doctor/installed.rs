//! Which clients are installed on this machine, and which of them are not in use.

use std::process::Stdio;
use std::time::Duration;

use stopover::setup::Target;
use tokio::process::Command;

use super::configured::Files;

/// The clients whose configuration is a file on the machine.
pub(super) const EXAMINED: [Target; 6] =
    [Target::Docker, Target::Containerd, Target::CriO, Target::Podman, Target::Buildkit, Target::K3s];

/// The clients on this machine. containerd does not count where Docker brings its own, which no other client pulls
/// with.
pub(super) fn found() -> Vec<Target> {
    let any = |programs: &[&str]| programs.iter().any(|program| is_installed(program));
    let found = |client: &Target| match client {
        Target::Docker => any(&["docker", "dockerd"]),
        Target::Containerd => any(&["containerd"]) && (!any(&["dockerd"]) || (any(&["nerdctl"]) || has_kubernetes())),
        Target::CriO => any(&["crio"]),
        Target::Podman => any(&["podman", "buildah", "skopeo"]),
        Target::Buildkit => any(&["buildkitd"]),
        Target::K3s => any(&["k3s", "rke2"]),
        _ => false,
    };
    EXAMINED.into_iter().filter(found).collect()
}

/// Whether a program is in one of the directories of `PATH`.
pub(super) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Major, minor, patch.
pub(super) type Version = (u32, u32, u32);

/// The version of a program on this machine, as it says itself. `None`: it is not here, or says nothing.
pub(super) async fn version_of(program: &str) -> Option<Version> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(5), command.output()).await.ok()?.ok()?;
    version_in(&String::from_utf8_lossy(&output.stdout))
}

/// `containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b71`, `Docker version 29.0.1, build eedd969`.
fn version_in(text: &str) -> Option<Version> {
    let word = text.split_whitespace().nth(2)?.trim_start_matches('v');
    let mut numbers = word.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or_default()))
}

/// Whether something on this machine pulls as Kubernetes does.
pub(super) fn has_kubernetes() -> bool {
    is_installed("kubelet") || is_installed("crictl")
}

impl Files<'_> {
    /// Why a client that is installed on this machine is not in use, as far as can be seen.
    pub(super) fn unused(&self, client: Target) -> Option<String> {
        let socket = || std::env::var_os("DOCKER_HOST").is_some() || self.path("/var/run/docker.sock").exists();
        let why = match client {
            Target::Docker if !socket() => "no daemon listens at /var/run/docker.sock: --client docker has it checked",
            Target::Containerd if !has_kubernetes() && self.has_no_mirrors() => {
                "it has no config_path, and there is no Kubernetes that needs one: --client containerd has it checked"
            }
            _ => return None,
        };
        Some(why.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_programs_say_of_themselves() {
        for (text, version) in [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", Some((1, 6, 20))),
            ("containerd github.com/containerd/containerd/v2 v2.2.0-rc.1 1234", Some((2, 2, 0))),
            ("containerd containerd.io v2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376", Some((2, 1, 4))),
            ("Docker version 29.0.1, build eedd969", Some((29, 0, 1))),
            ("Docker version 20.10.24+dfsg1, build 5d6db84", Some((20, 10, 24))),
            ("containerd is not here", None),
            ("", None),
        ] {
            assert_eq!(version_in(text), version, "{text}");
        }
    }
}
