//! A machine that runs clients, as far as they can tell: a home and a storage of its own, and daemons beside those of
//! the machine.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use crate::daemon::Daemon;
use crate::program;

/// How long a pull of a test may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long the services of a containerd may take after its socket is there. With some configurations they never come.
const READY: Duration = Duration::from_secs(3);

/// A home directory, and what clients find in their environment.
pub struct Node {
    home: TempDir,
    environment: Vec<(&'static str, OsString)>,
}

impl Node {
    /// Knows podman, skopeo and buildah; none of them is configured.
    pub fn new() -> anyhow::Result<Self> {
        let home = TempDir::new()?;
        let at_home = |text: &str| text.replace("HOME", &home.path().display().to_string());
        // The driver without mounts works on every file system and leaves nothing to unmount.
        let storage = "[storage]\ndriver = \"vfs\"\ngraphroot = \"HOME/storage\"\nrunroot = \"HOME/run\"\n";
        let engine = "[engine]\ntmp_dir = \"HOME/engine\"\nlock_type = \"file\"\nevents_logger = \"none\"\n";
        std::fs::write(home.path().join("storage.conf"), at_home(storage))?;
        std::fs::write(home.path().join("containers.conf"), at_home(engine))?;
        let path = |name: &str| home.path().join(name).into_os_string();
        let environment = vec![
            ("HOME", home.path().into()),
            ("TMPDIR", home.path().into()),
            ("CONTAINERS_STORAGE_CONF", path("storage.conf")),
            ("CONTAINERS_CONF", path("containers.conf")),
        ];
        Ok(Self { home, environment })
    }

    /// With another variable in its environment.
    #[must_use]
    pub fn with(mut self, variable: (&'static str, OsString)) -> Self {
        self.environment.push(variable);
        self
    }

    /// The path of something at home.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes a file at home, with the directories above it.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().context("a file without a directory")?)?;
        std::fs::write(path, text).context("cannot write at home")
    }

    /// Writes a script at home, in a directory of programs.
    pub fn write_script(&self, name: &str, text: &str) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.path("bin"))?;
        program::write_executable(&self.path("bin").join(name), format!("#!/bin/sh\n{text}").as_bytes())
    }

    /// Runs a client; the error of a failed one is what it printed.
    pub async fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let environment = self.environment.iter().map(|(name, value)| (name, value));
        let output =
            Command::new(program).args(arguments).envs(environment).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(PATIENCE, output).await.with_context(|| format!("{program} does not end"))?;
        let output = output.with_context(|| format!("cannot start {program}; `make setup` installs it"))?;
        let printed = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {arguments:?}: {}\n{printed}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs the program here.
    pub async fn stopover(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let environment: Vec<_> = self.environment.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
        program::output(arguments, &environment).await
    }

    /// Has this be the only program that is found: others would talk to daemons of the machine.
    pub fn with_only(&mut self, program: &str) -> anyhow::Result<()> {
        std::fs::create_dir(self.path("bin"))?;
        std::os::unix::fs::symlink(which(program)?, self.path("bin").join(program))?;
        self.environment.push(("PATH", self.path("bin").into_os_string()));
        Ok(())
    }

    /// Starts a containerd of this node.
    pub async fn start_containerd(&mut self) -> anyhow::Result<Daemon> {
        let configuration = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"HOME/containerd/opt\"\n";
        self.start_containerd_with(configuration).await
    }

    /// Starts a containerd of this node with what a file says beside its places. `HOME` stands for home.
    pub async fn start_containerd_with(&mut self, configuration: &str) -> anyhow::Result<Daemon> {
        let places = "root = \"HOME/containerd/root\"\nstate = \"HOME/containerd/state\"\n";
        let socket = "\n[grpc]\naddress = \"HOME/containerd.sock\"\n";
        let home = self.home.path().display().to_string();
        self.write("containerd.toml", &format!("{places}{configuration}{socket}").replace("HOME", &home))?;
        let arguments = ["containerd", "--config", "containerd.toml"];
        let daemon = Daemon::start(self.home.path(), &arguments, &self.path("containerd.sock")).await?;
        self.environment.push(("CONTAINERD_ADDRESS", self.path("containerd.sock").into_os_string()));
        Ok(daemon)
    }

    /// Has the containerd of this node pull an image as the kubelet does: `runtime.v1.ImageService` of Kubernetes' CRI.
    pub async fn pull_for_kubernetes(&self, image: &str) -> anyhow::Result<()> {
        // PullImageRequest { image: ImageSpec { image } }: of both, the first field. gRPC puts a flag and the length before.
        let field = |text: &[u8]| anyhow::Ok([&[0x0a, u8::try_from(text.len())?], text].concat());
        let message = field(&field(image.as_bytes())?)?;
        ensure!(message.len() < 128, "the length of {image} takes more than a byte");
        let body = [&[0], &u32::try_from(message.len())?.to_be_bytes()[..], &message].concat();
        let client = stopover::values::crypto::http_client().no_proxy().http2_prior_knowledge();
        let client = client.unix_socket(self.path("containerd.sock")).timeout(PATIENCE).build()?;
        let given_up = Instant::now() + READY;
        let (answer, why) = loop {
            let call = client.post("http://containerd/runtime.v1.ImageService/PullImage").body(body.clone());
            let answer = call.header("content-type", "application/grpc").header("te", "trailers").send().await?;
            // Where there is no message, the headers say why.
            let why = format!("{:?}", answer.headers().get("grpc-message"));
            // The socket is there before its services are: only asking tells when they are.
            if !why.contains("not initialized yet") || Instant::now() > given_up {
                break (answer, why);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        ensure!(!answer.bytes().await?.is_empty(), "{image}: {why}");
        Ok(())
    }

    /// Starts a dockerd of this node with the daemon.json at home, beside its containerd.
    pub async fn start_dockerd(&mut self) -> anyhow::Result<Daemon> {
        let place = |name: &str| self.path(name).display().to_string();
        let (data, exec, pid) = (place("docker"), place("docker-exec"), place("docker.pid"));
        let (containerd, address) = (place("containerd.sock"), format!("unix://{}", place("dockerd.sock")));
        // The driver without mounts works on every file system.
        let mut arguments = vec!["dockerd", "--config-file", "daemon.json", "--data-root", &data, "--exec-root", &exec];
        arguments.extend(["--pidfile", &pid, "--containerd", &containerd, "--host", &address]);
        arguments.extend(["--storage-driver", "vfs", "--bridge", "none", "--iptables=false", "--ip6tables=false"]);
        let daemon = Daemon::start(self.home.path(), &arguments, &self.path("dockerd.sock")).await?;
        self.environment.push(("DOCKER_HOST", address.into()));
        Ok(daemon)
    }
}

/// Where a program of the machine is.
fn which(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file());
    found.with_context(|| format!("{program} is not here; `make setup` installs it"))
}
