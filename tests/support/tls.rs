//! Servers with certificates of their own.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// `openssl s_server` on the loopback, which answers each request with a page. Dropping it kills it.
pub struct TlsServer {
    _child: Child,
    port: String,
}

impl TlsServer {
    /// Makes `key.pem`, and `good.pem`, which is valid for 127.0.0.1 and signed by itself.
    ///
    /// # Errors
    ///
    /// If openssl refuses it.
    pub async fn certify(directory: &Path) -> anyhow::Result<()> {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        command.args(["-keyout", "key.pem", "-out", "good.pem", "-subj", "/CN=test", "-days", "2"]);
        command.args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:false"]);
        let made = command.current_dir(directory).output().await.context("cannot start openssl")?;
        ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        Ok(())
    }

    /// Starts it with a certificate in this directory, of which `key.pem` is the key.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub async fn start(directory: &Path, certificate: &str) -> anyhow::Result<Self> {
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0", "-www", "-key", "key.pem", "-cert", certificate]);
        command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.kill_on_drop(true).spawn().context("cannot start openssl")?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        while let Some(line) = lines.next_line().await? {
            if let Some(port) = line.strip_prefix("ACCEPT 127.0.0.1:") {
                return Ok(Self { port: port.to_owned(), _child: child });
            }
        }
        bail!("openssl s_server ended")
    }

    /// The port that it listens on.
    pub fn port(&self) -> &str {
        &self.port
    }
}
