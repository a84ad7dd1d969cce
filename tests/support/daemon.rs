//! A client's daemon: a process whose mounts end with it.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// How long a daemon may take to listen: far beyond what it needs on a busy machine.
const START: Duration = Duration::from_mins(1);

/// Dropping it kills the daemon and whatever it has started, and waits for its end.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it in a mount namespace of its own, in this directory, and waits until it listens at `socket`.
    pub async fn start(directory: &Path, arguments: &[&str], socket: &Path) -> anyhow::Result<Self> {
        let program = arguments[0];
        let log = directory.join(format!("{program}.log"));
        let mut command = Command::new("unshare");
        // Without root, a user namespace of its own is what allows mounts.
        if std::fs::metadata("/proc/self")?.uid() != 0 {
            command.arg("--map-root-user");
        }
        command.arg("--mount").args(arguments).current_dir(directory).env("TMPDIR", directory);
        // Nothing but what is on this machine can be reached.
        command.env("HTTPS_PROXY", "http://127.0.0.1:1").env("NO_PROXY", "127.0.0.1");
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {program}; `make setup` installs it"))?;
        let mut this = Self { child, log };
        let deadline = Instant::now() + START;
        while UnixStream::connect(socket).is_err() {
            let status = this.child.try_wait()?;
            ensure!(status.is_none(), "{program} ended with {status:?}; `make setup` installs it:\n{}", this.log());
            ensure!(Instant::now() < deadline, "{program} does not listen:\n{}", this.log());
            // It reports nothing when it listens: the first connection is the event, so it is tried.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(this)
    }

    /// All that it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        // It may have ended by itself; then there is nobody to kill.
        _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        _ = self.child.wait();
    }
}
