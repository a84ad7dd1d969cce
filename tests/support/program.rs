//! The `stopover` program as a child process.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::images::{Blob, Image};
use crate::secrets;

/// How long the program may take to listen, or to say why it does not: far beyond what it needs on a busy machine.
const START: Duration = Duration::from_secs(30);

/// How long a command may take: the doctor gives a client 20 seconds.
const END: Duration = Duration::from_mins(1);

/// How long a fill may take that nobody reads along: a gibibyte takes seconds.
const FILL: Duration = Duration::from_mins(1);

/// Writes a program for a test to run. Another process has it open for writing: what is open here for writing is
/// inherited by each process that other tests start meanwhile, until it runs its own program, and as long no process
/// can run the file (ETXTBSY).
pub fn write_executable(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut writer = std::process::Command::new("sh");
    writer.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(path);
    let mut writer = writer.stdin(Stdio::piped()).spawn().context("cannot start sh")?;
    let mut input = writer.stdin.take().context("sh has no input")?;
    std::io::Write::write_all(&mut input, bytes)?;
    drop(input);
    ensure!(writer.wait()?.success(), "cannot write {}", path.display());
    Ok(())
}

/// The id of the upstream that [`Installation::for_upstream`] configures.
pub const UPSTREAM: &str = "test.local";

/// A data directory and a configuration: what stays when the process goes.
pub struct Installation {
    directory: TempDir,
    listen: SocketAddr,
    /// Options of a tmpfs to put over the data directory, in a mount namespace that ends with the process.
    tmpfs: Option<String>,
    /// The most memory that each process may ask for, in kibibytes (`RLIMIT_DATA`).
    memory: Option<u64>,
    /// Variables of every process started later.
    environment: Vec<(&'static str, String)>,
}

impl Installation {
    /// One upstream, [`UPSTREAM`], at this address; its tags stay fresh for an hour.
    pub fn for_upstream(url: &str) -> anyhow::Result<Self> {
        Self::with_configuration(&format!("fresh = \"1h\"\n\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{url}\"\n"))
    }

    /// An installation whose stopover.toml has this text.
    pub fn with_configuration(text: &str) -> anyhow::Result<Self> {
        let directory = TempDir::new()?;
        std::fs::create_dir(directory.path().join("data"))?;
        let environment = vec![("STOPOVER_LOG", "info,stopover=debug".to_owned())];
        let this =
            Self { directory, listen: SocketAddr::from(([127, 0, 0, 1], 0)), tmpfs: None, memory: None, environment };
        std::fs::write(this.configuration(), text)?;
        Ok(this)
    }

    /// Has every process started later listen there, instead of at a free port.
    #[must_use]
    pub fn listening_on(self, listen: SocketAddr) -> Self {
        Self { listen, ..self }
    }

    /// Puts a tmpfs with these mount options (`size=16m`, `ro`) over the data directory of every process started later.
    #[must_use]
    pub fn on_tmpfs(self, options: &str) -> Self {
        Self { tmpfs: Some(options.to_owned()), ..self }
    }

    /// Gives every process started later only this much memory, in bytes: one that asks for more ends.
    #[must_use]
    pub fn limited_to(self, bytes: u64) -> Self {
        Self { memory: Some(bytes / 1024), ..self }
    }

    /// Has every process started later log this, each event as one JSON object.
    #[must_use]
    pub fn logging(mut self, filter: &str) -> Self {
        self.environment = vec![("STOPOVER_LOG", filter.to_owned()), ("STOPOVER_LOG_FORMAT", "json".to_owned())];
        self
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The path of stopover.toml.
    pub fn configuration(&self) -> PathBuf {
        self.directory.path().join("stopover.toml")
    }

    /// Starts the program and waits until it listens. An error holds everything that it printed.
    pub async fn start(&self) -> anyhow::Result<Stopover> {
        let binary = binary()?;
        let mut command = match &self.tmpfs {
            None => match self.memory {
                None => Command::new(binary),
                Some(kibibytes) => {
                    let mut command = Command::new("sh");
                    command.args(["-c", &format!("ulimit -d {kibibytes} && exec \"$0\" \"$@\"")]).arg(binary);
                    command
                }
            },
            Some(options) => {
                let mut command = Command::new("unshare");
                // Without root, a user namespace of its own is what allows the mount.
                if std::fs::metadata("/proc/self")?.uid() != 0 {
                    command.arg("--map-root-user");
                }
                let mount = format!("mount -t tmpfs -o {options} tmpfs \"$0\" && exec \"$@\"");
                command.args(["--mount", "sh", "-c", &mount]).arg(self.data()).arg(binary);
                command
            }
        };
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(["serve", "--listen", &self.listen.to_string()]);
        command.arg("--data-dir").arg(self.data()).arg("--config").arg(self.configuration());
        Stopover::spawn(command, self.data(), self.tmpfs.is_some()).await
    }
}

/// Runs the program with these arguments until it ends: its exit status, and all that it printed.
pub async fn run(arguments: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
    let output = output(arguments, &[]).await?;
    let text = String::from_utf8([output.stdout, output.stderr].concat())?;
    Ok((output.status, text))
}

/// Runs the program with these arguments and variables until it ends.
pub async fn output(arguments: &[&str], environment: &[(&str, &OsStr)]) -> anyhow::Result<Output> {
    let mut command = Command::new(binary()?);
    let output =
        command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null()).kill_on_drop(true).output();
    tokio::time::timeout(END, output).await.context("the program does not end")?.context("the program does not start")
}

/// A running process. Dropping it kills it.
pub struct Stopover {
    child: Child,
    address: String,
    data: PathBuf,
    log: Arc<Mutex<String>>,
    _log: secrets::Watched,
}

impl Stopover {
    async fn spawn(mut command: Command, data: PathBuf, own_mounts: bool) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start the program")?;
        let log = Arc::new(Mutex::new(String::new()));
        // The channel closes when both outputs do, which is when the program has ended.
        let (listening, mut heard) = mpsc::unbounded_channel();
        capture(child.stdout.take(), &log, listening.clone());
        capture(child.stderr.take(), &log, listening);
        let heard = tokio::time::timeout(START, heard.recv()).await;
        let printed = || log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Ok(heard) = heard else { bail!("the program neither listens nor ends:\n{}", printed()) };
        let Some(address) = heard else {
            let status = child.wait().await?;
            bail!("the program ended with {status}:\n{}", printed());
        };
        // Only through the process can its own mounts be seen.
        let data = match child.id().filter(|_| own_mounts) {
            Some(id) => PathBuf::from(format!("/proc/{id}/root")).join(data.strip_prefix("/")?),
            None => data,
        };
        let keys = std::fs::read_to_string(data.join("signing_keys")).unwrap_or_default();
        secrets::know("a key that tokens are signed with", keys.trim());
        Ok(Self { child, address, data, log, _log: secrets::Watched })
    }

    /// Where it listens: `127.0.0.1:<port>`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Runs the program with these arguments, for this cache and as whoever runs it, until it ends.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
        run(&[arguments, &["--data-dir", &self.data.display().to_string()]].concat()).await
    }

    /// Its data directory, as this process can reach it.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// All that it has printed so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has printed this.
    pub async fn until_logged(&self, text: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + FILL;
        while !self.log().contains(text) {
            ensure!(Instant::now() < deadline, "it does not say {text:?}:\n{}", self.log());
            // The log is a pipe that another task reads: it is looked at.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Kills the process without a warning and waits until it is gone.
    pub async fn kill_9(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot kill the program")
    }

    /// Asks the process to end (SIGTERM), and waits for that until the time is over.
    pub async fn terminate(mut self, time: Duration) -> anyhow::Result<ExitStatus> {
        let id = self.child.id().context("the program has ended already")?.to_string();
        let sent = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &id]).status().await?;
        ensure!(sent.success(), "cannot send SIGTERM");
        match tokio::time::timeout(time, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("still running {time:?} after SIGTERM:\n{}", self.log()),
        }
    }

    /// The most memory that was ever resident, in bytes (`VmHWM`).
    pub fn peak_resident_bytes(&self) -> anyhow::Result<u64> {
        peak_resident_bytes(self.child.id().context("the program has ended")?)
    }

    /// The blobs in its data directory; see [`stored_blobs`].
    pub fn stored_blobs(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        stored_blobs(&self.data)
    }

    /// Waits until every blob of these images is stored: a client has the last byte before the blob is published.
    pub async fn until_stored(&self, images: &[Image]) -> anyhow::Result<()> {
        let deadline = Instant::now() + FILL;
        for blob in images.iter().flat_map(Image::blobs) {
            let path = blob_path(&self.data, &blob.digest);
            while std::fs::metadata(&path).map(|file| file.len()).ok() != Some(blob.size) {
                ensure!(Instant::now() < deadline, "{} is not stored:\n{}", blob.digest, self.log());
                // Nothing reports the end of a fill to the outside: the file is looked for.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }
}

pub(crate) fn peak_resident_bytes(process: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}

fn blob_path(data: &Path, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    data.join("blobs/sha256").join(&hex[..2]).join(hex)
}

/// Reads every blob file of a data directory: its digest and its length. A file whose content does not hash to its
/// name is an error, and so is a file that is not where its name says (`blobs/<algorithm>/<first two hex>/<hex>`).
pub fn stored_blobs(data: &Path) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for file in files_below(&data.join("blobs"))? {
        let blob = Blob::of_file(&file)?;
        ensure!(file == blob_path(data, &blob.digest), "{} holds the content of {}", file.display(), blob.digest);
        found.insert(blob.digest, blob.size);
    }
    Ok(found)
}

/// All files below a directory; none if it does not exist.
pub(crate) fn files_below(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if directory.try_exists()? {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                files.extend(files_below(&path)?);
            } else {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// The `stopover` program; see [`built`].
pub fn binary() -> anyhow::Result<PathBuf> {
    built("stopover")
}

/// `target/<profile>/<name>`, beside `target/<profile>/deps/<this test>`: a release test runs the release program.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test.ancestors().nth(2).context("the test does not lie in a target directory")?;
    let binary = profile.join(name);
    let advice = "`cargo build --workspace --bins --tests --profile test` makes it; for a release test, --release";
    let built = std::fs::metadata(&binary).and_then(|file| file.modified());
    let built = built.with_context(|| format!("{} is not there: {advice}", binary.display()))?;
    // Beside each program `cargo build` lists the sources it was made from. The tests of one package do not make it anew.
    let sources = std::fs::read_to_string(profile.join(format!("{name}.d")));
    let sources = sources.with_context(|| format!("the sources of {name} are not known: {advice}"))?;
    // As in a Makefile: a space that is part of a path stands behind a backslash.
    for source in sources.replace("\\ ", "\0").split_whitespace().skip(1) {
        let source = source.replace('\0', " ");
        let changed = std::fs::metadata(&source).and_then(|file| file.modified());
        let old = changed.is_ok_and(|changed| changed <= built);
        ensure!(old, "{} is older than {source}: {advice}", binary.display());
    }
    Ok(binary)
}

fn capture(
    output: Option<impl AsyncRead + Unpin + Send + 'static>,
    log: &Arc<Mutex<String>>,
    listening: mpsc::UnboundedSender<String>,
) {
    let Some(output) = output else { return };
    let log = Arc::clone(log);
    tokio::spawn(async move {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some((_, rest)) = line.split_once("listening on http://") {
                let address = rest.split(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').next();
                // Nobody waits for a second such line.
                _ = listening.send(address.unwrap_or_default().to_owned());
            }
            secrets::see(&line);
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
        }
    });
}
