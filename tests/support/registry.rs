//! A real upstream: Debian's `docker-registry` as a child process on a loopback port.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::images::{Blob, Content, Destination};

/// How long the program may take from its start to its first answer; it takes 50 ms on an idle machine.
const START: Duration = Duration::from_secs(20);

/// The response header that names the storage directory of the process that answered.
const INSTANCE: &str = "X-Instance";

/// A running registry with a storage of its own. Dropping it kills the process and removes the storage.
pub struct Registry {
    directory: TempDir,
    address: SocketAddr,
    credentials: Option<(String, String)>,
    child: Child,
    client: reqwest::Client,
}

impl Registry {
    /// Starts an open, empty registry on a free loopback port.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_at_a_free_port(None).await
    }

    /// Starts an empty registry that asks for this user and password (the Basic scheme) on every request.
    pub async fn start_with_password(user: &str, password: &str) -> anyhow::Result<Self> {
        Self::start_at_a_free_port(Some((user.to_owned(), password.to_owned()))).await
    }

    async fn start_at_a_free_port(credentials: Option<(String, String)>) -> anyhow::Result<Self> {
        let directory = TempDir::new()?;
        if let Some((user, password)) = &credentials {
            write_password_file(&directory.path().join("htpasswd"), user, password).await?;
        }
        let client = stopover::values::crypto::http_client().no_proxy().build()?;
        // The port is free when it is chosen and may be taken before the program binds it.
        for _ in 0..10 {
            let address = free_address()?;
            write_configuration(directory.path(), address, credentials.is_some())?;
            if let Some(child) = spawn(directory.path(), address, &client).await? {
                return Ok(Self { directory, address, credentials, child, client });
            }
        }
        bail!("found no free loopback port for docker-registry in ten attempts")
    }

    /// The base address, without a slash at the end: `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A request to this registry with its credentials; `path` starts with `/v2/`, or is an absolute URL it gave.
    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.url()) };
        let request = self.client.request(method, url);
        match &self.credentials {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }

    /// Kills the process: from here on its port refuses connections. The storage stays.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot kill docker-registry")
    }

    /// Starts the process again on the same port with the same storage.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot kill docker-registry")?;
        let deadline = Instant::now() + START;
        // The port lies in the range of outgoing connections: one of those may hold it for a moment.
        while Instant::now() < deadline {
            if let Some(child) = spawn(self.directory.path(), self.address, &self.client).await? {
                self.child = child;
                return Ok(());
            }
        }
        bail!("the port of docker-registry, {}, is in use by something else", self.address)
    }
}

#[async_trait]
impl Destination for Registry {
    async fn put_blob(&self, name: &str, blob: &Blob, content: Content) -> anyhow::Result<()> {
        let begun = self.request(Method::POST, &format!("/v2/{name}/blobs/uploads/")).send().await?;
        let begun = begun.error_for_status()?;
        let location = begun.headers().get(LOCATION).context("an upload without a Location")?.to_str()?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let body = futures_util::stream::iter(content.map(Ok::<Bytes, std::io::Error>));
        let stored = self
            .request(Method::PUT, &format!("{location}{separator}digest={}", blob.digest))
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, blob.size)
            .body(reqwest::Body::wrap_stream(body))
            .send()
            .await?;
        ensure!(stored.status() == 201, "the registry refused a blob: {} {}", stored.status(), stored.text().await?);
        Ok(())
    }

    async fn put_manifest(&self, name: &str, reference: &str, kind: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let stored = self
            .request(Method::PUT, &format!("/v2/{name}/manifests/{reference}"))
            .header(CONTENT_TYPE, kind)
            .body(bytes.to_vec())
            .send()
            .await?;
        let status = stored.status();
        ensure!(status == 201, "the registry refused a manifest: {status} {}", stored.text().await?);
        Ok(())
    }
}

/// A loopback address whose port was free a moment ago.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn write_configuration(directory: &Path, address: SocketAddr, with_password: bool) -> anyhow::Result<()> {
    let directory_name = directory.display();
    let auth = if with_password {
        format!("auth: {{htpasswd: {{realm: test, path: {directory_name}/htpasswd}}}}\n")
    } else {
        String::new()
    };
    // The header tells this process from another one that took the port first.
    let text = format!(
        "version: 0.1\n\
         log: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {directory_name}/storage}}, delete: {{enabled: true}}}}\n\
         health: {{storagedriver: {{enabled: false}}}}\n\
         http: {{addr: \"{address}\", host: \"http://{address}\", secret: test, \
                 headers: {{{INSTANCE}: [\"{directory_name}\"]}}}}\n\
         {auth}"
    );
    std::fs::write(directory.join("registry.yml"), text).context("cannot write the configuration of docker-registry")
}

/// `None`: the program could not have its port.
async fn spawn(directory: &Path, address: SocketAddr, client: &reqwest::Client) -> anyhow::Result<Option<Child>> {
    let log = directory.join("registry.log");
    let mut child = Command::new("docker-registry")
        .arg("serve")
        .arg(directory.join("registry.yml"))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&log)?)
        .stderr(std::fs::OpenOptions::new().append(true).open(&log)?)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start docker-registry; `make setup` installs it")?;
    let deadline = Instant::now() + START;
    let ping = format!("http://{address}/v2/");
    loop {
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(&log)?;
            ensure!(log.contains("address already in use"), "docker-registry ended with {status}:\n{log}");
            return Ok(None);
        }
        if let Ok(answer) = client.get(&ping).send().await
            && answer.headers().get(INSTANCE).is_some_and(|name| name.as_bytes() == directory.as_os_str().as_bytes())
        {
            return Ok(Some(child));
        }
        ensure!(Instant::now() < deadline, "docker-registry does not answer:\n{}", std::fs::read_to_string(&log)?);
        // The program reports nothing when it listens: the first answer is the event, so it is asked for.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn write_password_file(path: &Path, user: &str, password: &str) -> anyhow::Result<()> {
    let output = Command::new("htpasswd")
        .args(["-Bbn", "-C", "4", user, password])
        .output()
        .await
        .context("cannot run htpasswd; `make setup` installs it (apache2-utils)")?;
    ensure!(output.status.success(), "htpasswd: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(path, output.stdout).context("cannot write the password file")
}
