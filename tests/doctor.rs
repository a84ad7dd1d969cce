//! `stopover doctor`: all is well, and each step failing on purpose.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::{Request, StatusCode};
use serde_json::json;
use support::images::{Image, Recipe, digest_of};
use support::node::Node;
use support::program::{Installation, Stopover, UPSTREAM};
use support::registry::Registry;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

/// What the doctor has found.
struct Findings {
    well: bool,
    text: String,
}

impl Findings {
    /// That a step ended so: `ok`, `FAIL` or `skip`, with these words in its lines.
    fn step(&self, verdict: &str, step: &str, words: &str) -> anyhow::Result<()> {
        let begin = format!("{verdict:5} {step}: ");
        let at = self.text.find(&begin).with_context(|| format!("no {begin:?} in:\n{}", self.text))?;
        let mut lines = self.text[at..].lines();
        let first = lines.next().unwrap_or_default();
        let mut more = lines.take_while(|line| line.starts_with("      "));
        let fix = more.find(|line| line.starts_with("      fix: ")).unwrap_or_default();
        ensure!((verdict == "FAIL") != fix.is_empty(), "a failure, and nothing else, says what helps:\n{}", self.text);
        ensure!(format!("{first}\n{fix}").contains(words), "{words:?} is not in:\n{first}\n{fix}");
        Ok(())
    }

    /// That every step before this one is fine, this one fails with these words, and the others are left out.
    fn fails_at(&self, step: &str, words: &str) -> anyhow::Result<()> {
        ensure!(!self.well, "the exit code says that all is well:\n{}", self.text);
        self.step("FAIL", step, words)?;
        let mut steps = ["name", "connection", "tls", "registry", "pull"].into_iter();
        steps.by_ref().take_while(|known| *known != step).for_each(drop);
        steps.try_for_each(|later| self.step("skip", later, &format!("needs: {step}")))
    }
}

async fn examine(node: &Node, server: &str, arguments: &[&str]) -> anyhow::Result<Findings> {
    let output = node.stopover(&[&["doctor", "--server", server], arguments].concat()).await?;
    let text = String::from_utf8([output.stdout, output.stderr].concat())?;
    ensure!(!text.contains("panicked"), "{text}");
    Ok(Findings { well: output.status.success(), text })
}

/// A machine on which no client is found.
fn nobody() -> anyhow::Result<Node> {
    let node = Node::new()?;
    let path = node.path("nothing").into_os_string();
    Ok(node.with(("PATH", path)))
}

/// Without any client: only the steps on the way to the server.
async fn examine_server(server: &str, image: &str) -> anyhow::Result<Findings> {
    examine(&nobody()?, server, &["--image", image]).await
}

struct Cache {
    upstream: Registry,
    image: Image,
    stopover: Stopover,
    server: String,
    _installation: Installation,
}

impl Cache {
    async fn start() -> anyhow::Result<Self> {
        let upstream = Registry::start().await?;
        let image = Recipe::index("team/index").push(&upstream).await?;
        let installation = Installation::for_upstream(&upstream.url())?;
        let stopover = installation.start().await?;
        let server = format!("http://{}", stopover.address());
        Ok(Self { upstream, image, stopover, server, _installation: installation })
    }

    fn image(&self) -> String {
        format!("{UPSTREAM}/{}", self.image.reference())
    }

    /// What `stopover setup` prints.
    async fn setup(&self, client: &str) -> anyhow::Result<String> {
        let node = Node::new()?;
        let output = node.stopover(&["setup", client, "--server", &self.server, "--upstream", UPSTREAM]).await?;
        Ok(String::from_utf8(output.stdout)?)
    }
}

const USER_REGISTRIES: &str = ".config/containers/registries.conf";

#[tokio::test]
async fn a_client_that_goes_through_the_cache_passes_every_step() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let node = Node::new()?;
    node.write(USER_REGISTRIES, &cache.setup("podman").await?)?;
    for served in ["miss", "hit"] {
        let found = examine(&node, &cache.server, &["--image", &cache.image(), "--client", "podman"]).await?;
        ensure!(found.well, "{}", found.text);
        found.step("ok", "name", "127.0.0.1")?;
        found.step("ok", "connection", cache.stopover.address())?;
        found.step("skip", "tls", "plain HTTP")?;
        found.step("ok", "registry", "/v2/")?;
        found.step("ok", "pull", &format!("manifest ({served}) and 3 blobs, 1.3 MB"))?;
        found.step("ok", "podman configuration", USER_REGISTRIES)?;
        found.step("ok", "podman pulls", "podman asked the cache")?;
    }
    Ok(())
}

#[tokio::test]
async fn containerd_is_asked_with_its_hosts_directory() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let mut node = Node::new()?;
    let root = node.path("root").display().to_string();
    let certs = format!("export CERTS_D='{root}/etc/containerd/other.d'\n{}", cache.setup("containerd").await?);
    node.run("sh", &["-c", &certs]).await?;
    node.write("root/etc/containerd/config.toml", "imports = [\"/etc/containerd/conf.d/*.toml\"]\n")?;
    let imported = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/none.d:/etc/containerd/other.d\"\n";
    node.write("root/etc/containerd/conf.d/registry.toml", imported)?;
    let arguments = ["--image", &cache.image(), "--client", "containerd", "--root", &root].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let _daemon = node.start_containerd().await?;
    node.with_only("ctr")?;
    let found = examine(&node, &cache.server, &arguments).await?;
    ensure!(found.well, "{}", found.text);
    found.step("ok", "containerd configuration", "hosts.toml")?;
    found.step("ok", "containerd pulls", "ctr asked the cache")
}

/// A program of this node that says that it asked a registry, and with which arguments, and then goes on so.
fn stand_in(node: &Node, program: &str, script: &str) -> anyhow::Result<(&'static str, OsString)> {
    let name = format!("bin/{program}");
    node.write(&name, &format!("#!/bin/sh\necho \"asked with $*: manifest unknown\" >&2\n{script}\n"))?;
    std::fs::set_permissions(node.path(&name), Permissions::from_mode(0o755))?;
    Ok(("PATH", node.path("bin").into_os_string()))
}

#[tokio::test]
async fn crictl_is_told_which_runtime_is_examined() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let node = Node::new()?;
    let path = stand_in(&node, "crictl", "exit 1")?;
    let node = node.with(path);
    let root = node.path("root").display().to_string();
    let image = cache.image();
    let arguments = ["--image", &image, "--client", "containerd,cri-o", "--root", &root];
    let found = examine(&node, &cache.server, &arguments).await?;
    let containerd = "--runtime-endpoint unix:///run/containerd/containerd.sock --image-endpoint";
    found.step("FAIL", "containerd pulls", containerd)?;
    found.step("FAIL", "cri-o pulls", "--runtime-endpoint unix:///var/run/crio/crio.sock --image-endpoint")?;
    node.write("root/etc/containerd/config.toml", "[grpc]\naddress = \"/run/other.sock\"\n")?;
    let found = examine(&node, &cache.server, &arguments).await?;
    found.step("FAIL", "containerd pulls", "--image-endpoint unix:///run/other.sock pull test.local/")
}

#[tokio::test]
async fn a_client_that_takes_long_is_shown_and_not_waited_for_when_it_tries_again() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let node = Node::new()?;
    let path =
        stand_in(&node, "podman", "/bin/sleep 3; echo 'Failed, retrying in 1s ... (1/3)' >&2; exec /bin/sleep 60")?;
    let node = node.with(path);
    let found = examine(&node, &cache.server, &["--image", &cache.image(), "--client", "podman"]).await?;
    found.step("FAIL", "podman pulls", "It says: Failed, retrying in 1s")?;
    ensure!(found.text.lines().any(|line| line == "podman pulls: under way"), "{}", found.text);
    Ok(())
}

#[tokio::test]
async fn docker_pulls_with_what_is_printed_for_it_and_past_the_cache_without() -> anyhow::Result<()> {
    let upstream = Registry::start().await?;
    let image = Recipe::docker("team/docker").push(&upstream).await?;
    let text = format!("[upstreams.\"docker.io\"]\nurl = \"{}\"\n", upstream.url());
    let installation = Installation::with_configuration(&text)?;
    let stopover = installation.start().await?;
    let server = format!("http://{}", stopover.address());
    for mirrored in [true, false] {
        let mut node = Node::new()?;
        let printed = node.stopover(&["setup", "docker", "--server", &server]).await?.stdout;
        let daemon = if mirrored { String::from_utf8(printed)? } else { "{}".to_owned() };
        node.write("daemon.json", &daemon)?;
        node.write("root/etc/docker/daemon.json", &daemon)?;
        let _containerd = node.start_containerd().await?;
        let _dockerd = node.start_dockerd().await?;
        if mirrored {
            node.run("docker", &["pull", "--quiet", &image.reference()]).await.with_context(|| stopover.log())?;
            let pulled = node.run("docker", &["inspect", "--format", "{{.RepoDigests}}", &image.reference()]).await?;
            ensure!(pulled.contains(&image.digest), "{pulled}");
        }
        node.with_only("docker")?;
        let (named, root) = (image.reference(), node.path("root").display().to_string());
        let found = examine(&node, &server, &["--image", &named, "--client", "docker", "--root", &root]).await?;
        ensure!(found.well == mirrored, "{}", found.text);
        let (verdict, words) = if mirrored { ("ok", "docker asked the cache") } else { ("FAIL", "docker went past") };
        found.step(verdict, "docker configuration", "daemon.json")?;
        found.step(verdict, "docker pulls", words)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_past_the_cache_is_found_out() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let node = Node::new()?;
    let upstream = cache.upstream.url().replace("http://", "");
    let past = format!("[[registry]]\nprefix = \"{UPSTREAM}\"\nlocation = \"{upstream}\"\ninsecure = true\n");
    node.write(USER_REGISTRIES, &past)?;
    let arguments = ["--image", &cache.image(), "--client", "podman"].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let found = examine(&node, &cache.server, &arguments).await?;
    ensure!(!found.well, "{}", found.text);
    found.step("FAIL", "podman configuration", "no mirror that is the cache")?;
    found.step("FAIL", "podman pulls", "podman went past the cache")?;
    // The same where the configuration that is looked at is not the one that the client uses.
    node.write("root/etc/containers/registries.conf", &cache.setup("podman").await?)?;
    let root = node.path("root").display().to_string();
    let found = examine(&node, &cache.server, &[&arguments[..], &["--root", &root]].concat()).await?;
    found.step("ok", "podman configuration", "registries.conf")?;
    found.step("FAIL", "podman pulls", "podman went past the cache")
}

#[tokio::test]
async fn where_upstream_cannot_be_asked_nothing_is_said_of_a_client() -> anyhow::Result<()> {
    let mut cache = Cache::start().await?;
    let node = Node::new()?;
    node.write(USER_REGISTRIES, &cache.setup("podman").await?)?;
    let arguments = ["--image", &cache.image(), "--client", "podman"].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    ensure!(examine(&node, &cache.server, &arguments).await?.well);
    cache.upstream.stop().await?;
    let found = examine(&node, &cache.server, &arguments).await?;
    found.step("ok", "pull", "(hit)")?;
    found.step("skip", "podman pulls", "cannot tell: the cache answers 503")?;
    ensure!(found.well, "{}", found.text);
    Ok(())
}

#[tokio::test]
async fn a_client_that_asked_no_registry_is_not_said_to_go_past_the_cache() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let image = cache.image();
    let node = Node::new()?;
    node.write(USER_REGISTRIES, "[[registry")?;
    let found = examine(&node, &cache.server, &["--image", &image, "--client", "podman"]).await?;
    found.step("FAIL", "podman configuration", "cannot be used")?;
    found.step(
        "skip",
        "podman pulls",
        "podman failed before it asked any registry. It says: Error: loading registries",
    )?;
    let path = stand_in(&node, "podman", "")?;
    node.write("bin/podman", "#!/bin/sh\necho 'exec: crun: not found' >&2\nexit 127\n")?;
    let found = examine(&node.with(path), &cache.server, &["--image", &image, "--client", "podman"]).await?;
    found.step("skip", "podman pulls", "It says: exec: crun: not found")
}

#[tokio::test]
async fn a_client_that_asks_the_cache_in_a_way_it_does_not_answer_is_not_said_to_go_past_it() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let mut node = Node::new()?;
    let root = node.path("root").display().to_string();
    let hosts = format!("[host.\"{}/ghcr.io\"]\ncapabilities = [\"pull\", \"resolve\"]\n", cache.server);
    node.write(&format!("root/etc/containerd/certs.d/{UPSTREAM}/hosts.toml"), &hosts)?;
    let _daemon = node.start_containerd().await?;
    node.with_only("ctr")?;
    let arguments = ["--image", &cache.image(), "--client", "containerd", "--root", &root];
    let found = examine(&node, &cache.server, &arguments).await?;
    found.step("FAIL", "containerd configuration", "something else or nothing")?;
    found.step("FAIL", "containerd pulls", "ctr tried the cache")?;
    found.step("FAIL", "containerd pulls", "400 Bad Request")
}

#[tokio::test]
async fn an_image_that_is_named_by_a_rule_is_asked_for_as_clients_name_it() -> anyhow::Result<()> {
    let upstream = Registry::start().await?;
    let image = Recipe::docker("team/docker").push(&upstream).await?;
    let text = format!(
        "[upstreams.\"docker.io\"]\nurl = \"{url}\"\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{url}\"\n\
         [rules.\"hub\"]\nupstream = \"{UPSTREAM}\"\npath = \"team\"\n",
        url = upstream.url()
    );
    let installation = Installation::with_configuration(&text)?;
    let stopover = installation.start().await?;
    let server = format!("http://{}", stopover.address());
    let node = Node::new()?;
    let mut setup = vec!["setup", "podman", "--server", &server];
    setup.extend(["--upstream", "docker.io", "--upstream", UPSTREAM]);
    node.write(USER_REGISTRIES, &String::from_utf8(node.stopover(&setup).await?.stdout)?)?;
    let named = image.reference().replace("team/", "hub/");
    let arguments = ["--image", &named, "--client", "podman"];
    let configuration = installation.configuration().display().to_string();
    let found = examine(&node, &server, &[&arguments[..], &["--config", &configuration]].concat()).await?;
    found.step("ok", "podman pulls", &format!("podman asked the cache for {UPSTREAM}/team/docker:"))?;
    // Without the rule the name is one of Docker Hub, and the cache is asked for the same.
    let found = examine(&node, &server, &arguments).await?;
    found.step("ok", "pull", "manifest (hit)")?;
    found.step("ok", "podman pulls", "podman asked the cache for docker.io/hub/docker:")
}

#[tokio::test]
async fn clients_that_are_installed_and_not_in_use_are_checked_only_where_they_are_named() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let image = cache.image();
    let node = nobody()?;
    let root = node.path("root").display().to_string();
    let arguments = ["--image", image.as_str(), "--root", &root];
    let found = examine(&node, &cache.server, &arguments).await?;
    ensure!(
        found.well && found.text.ends_with("whether pulls go through the cache is not known (--client names one)\n")
    );
    let path = stand_in(&node, "docker", "exit 1")?;
    stand_in(&node, "containerd", "")?;
    let node = node.with(path);
    let found = examine(&node, &cache.server, &arguments).await?;
    ensure!(
        found.well && found.text.ends_with("; whether pulls go through the cache is not known\n"),
        "{}",
        found.text
    );
    found.step("skip", "docker configuration", "no daemon listens at /var/run/docker.sock")?;
    found.step("skip", "containerd configuration", "no config_path, and there is no Kubernetes")?;
    let named = [&arguments[..], &["--client", "docker,containerd"]].concat();
    let found = examine(&node, &cache.server, &named).await?;
    found.step("FAIL", "containerd configuration", "has no config_path")?;
    found.step("skip", "docker configuration", "Docker mirrors only docker.io")?;
    // In use after all.
    node.write("root/var/run/docker.sock", "")?;
    stand_in(&node, "kubelet", "")?;
    let found = examine(&node, &cache.server, &arguments).await?;
    found.step("FAIL", "containerd configuration", "has no config_path")?;
    found.step("skip", "docker configuration", "Docker mirrors only docker.io")?;
    let found = examine(&node, &cache.server, &["--client", "kaniko"]).await?;
    ensure!(!found.well && found.text.contains("docker, containerd, cri-o, podman, buildkit, k3s"), "{}", found.text);
    Ok(())
}

#[tokio::test]
async fn a_cache_that_remembers_no_missing_tags_cannot_tell() -> anyhow::Result<()> {
    let upstream = Registry::start().await?;
    let image = Recipe::docker("team/docker").push(&upstream).await?;
    let text = format!("missing = \"0s\"\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\n", upstream.url());
    let installation = Installation::with_configuration(&text)?;
    let stopover = installation.start().await?;
    let node = Node::new()?;
    let server = format!("http://{}", stopover.address());
    let image = format!("{UPSTREAM}/{}", image.reference());
    let found = examine(&node, &server, &["--image", &image, "--client", "podman"]).await?;
    found.step("skip", "podman pulls", "forgets missing tags")
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_fails_at_the_first_step_that_shows_it() -> anyhow::Result<()> {
    let found = examine_server("http://stopover.invalid:5000", "alpine").await?;
    found.fails_at("name", "stopover.invalid does not resolve")?;
    let found = examine_server("http://127.0.0.1:1", "alpine").await?;
    found.fails_at("connection", "nothing listens at 127.0.0.1 port 1")
}

/// `openssl s_server` with a certificate for 127.0.0.1. Dropping it kills it.
struct TlsServer {
    _child: Child,
    port: String,
}

impl TlsServer {
    async fn start(directory: &Path, certificate: &str) -> anyhow::Result<Self> {
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
        anyhow::bail!("openssl s_server ended")
    }
}

#[tokio::test]
async fn certificates_of_an_unknown_authority_expired_and_for_another_name_are_told_apart() -> anyhow::Result<()> {
    let node = Node::new()?;
    let home = node.path("");
    let make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem \
                -out good.pem -subj /CN=test -addext subjectAltName=IP:127.0.0.1 \
                -addext basicConstraints=critical,CA:false -days 2 && \
                openssl x509 -in good.pem -signkey key.pem -days -1 -out expired.pem";
    node.run("sh", &["-c", &format!("cd '{}' && {make}", home.display())]).await?;
    let good = TlsServer::start(&home, "good.pem").await?;
    let expired = TlsServer::start(&home, "expired.pem").await?;
    let trusting = |certificate: &str| ("SSL_CERT_FILE", home.join(certificate).into_os_string());
    let untrusting = examine_server(&format!("https://127.0.0.1:{}", good.port), "alpine").await?;
    untrusting.fails_at("tls", "an authority that this machine does not know")?;
    for (server, certificate, step, words) in [
        (format!("https://127.0.0.1:{}", expired.port), "expired.pem", "tls", "has expired"),
        (format!("https://localhost:{}", good.port), "good.pem", "tls", "for another name"),
        // Trusted: what fails is the page of openssl.
        (format!("https://127.0.0.1:{}", good.port), "good.pem", "registry", "is no registry"),
    ] {
        let node = nobody()?.with(trusting(certificate));
        let found = examine(&node, &server, &[]).await?;
        found.fails_at(step, words)?;
    }
    // One that speaks plain HTTP.
    let cache = Cache::start().await?;
    let found = examine_server(&cache.server.replace("http:", "https:"), "alpine").await?;
    found.fails_at("tls", "does not speak TLS")
}

/// A server that gives these answers.
async fn serve(answer: impl Fn(&str) -> Response + Clone + Send + Sync + 'static) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = format!("http://{}", listener.local_addr()?);
    let router = Router::new().fallback(move |request: Request<Body>| {
        let answer = answer(request.uri().path());
        async move { answer }
    });
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(server)
}

fn respond(status: StatusCode, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap_or_default()
}

/// What a cache says of itself at `/v2/`.
const CACHE: [(&str, &str); 2] = [("docker-distribution-api-version", "registry/2.0"), ("x-stopover", "hit")];

#[tokio::test]
async fn a_server_that_accepts_connections_and_says_nothing_fails_within_seconds() -> anyhow::Result<()> {
    // Nobody accepts: the system does, and keeps what is sent.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (tls, plain) = (format!("https://{address}"), format!("http://{address}"));
    let (tls, plain) = tokio::join!(examine_server(&tls, "alpine"), examine_server(&plain, "alpine"));
    tls?.fails_at("tls", "no answer within 10 s")?;
    plain?.fails_at("registry", "is not answered")
}

#[tokio::test]
async fn what_answers_in_the_place_of_a_cache_is_named() -> anyhow::Result<()> {
    for (status, words) in [
        (StatusCode::OK, "is no registry: it answers 200 OK with text/html"),
        (StatusCode::NOT_FOUND, "is no registry"),
        (StatusCode::UNAUTHORIZED, "asks for a login"),
        (StatusCode::FORBIDDEN, "AllowedCidrs"),
        (StatusCode::BAD_GATEWAY, "answers 502"),
        (StatusCode::MOVED_PERMANENTLY, "the URL that it redirects to"),
    ] {
        let server = serve(move |_| respond(status, &[("content-type", "text/html")], "<html>")).await?;
        examine_server(&server, "alpine").await?.fails_at("registry", words)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_pull_that_does_not_come_from_a_cache_or_with_other_bytes_fails() -> anyhow::Result<()> {
    let mut cache = Cache::start().await?;
    let found = examine_server(&cache.upstream.url(), &cache.image()).await?;
    found.fails_at("registry", "is a registry, but no Stopover")?;
    let manifest = cache.image.manifests.remove(0);
    for (corrupt, words) in [("/blobs/", "the blob sha256:"), ("/manifests/", "the manifest is not sha256:")] {
        let manifest = manifest.clone();
        let server = serve(move |path| {
            let change =
                |bytes: Vec<u8>| if path.contains(corrupt) { bytes.iter().map(|byte| !byte).collect() } else { bytes };
            if path.ends_with("/v2/") {
                respond(StatusCode::OK, &CACHE, "{}")
            } else if path.contains("/manifests/") {
                let kind = ("content-type", "application/vnd.oci.image.manifest.v1+json");
                let digest = ("docker-content-digest", manifest.digest.as_str());
                respond(StatusCode::OK, &[CACHE[1], kind, digest], change(manifest.bytes.clone()))
            } else {
                respond(StatusCode::OK, &CACHE, change(b"blob".to_vec()))
            }
        });
        examine_server(&server.await?, "a/b:1").await?.fails_at("pull", words)?;
    }
    // Unknown to the cache, and without its header.
    let found = examine_server(&cache.server, &format!("{UPSTREAM}/team/none:1")).await?;
    found.fails_at("pull", "404")?;
    let server = serve(|path| respond(StatusCode::OK, if path == "/v2/" { &CACHE } else { &[] }, "{}")).await?;
    examine_server(&server, "a/b:1").await?.fails_at("pull", "does not come from a Stopover")
}

#[tokio::test]
async fn a_refusal_is_quoted_with_what_helps_against_it() -> anyhow::Result<()> {
    let registry = serve(|_| respond(StatusCode::FORBIDDEN, &[], "")).await?;
    let basic = serve(|_| respond(StatusCode::UNAUTHORIZED, &[("www-authenticate", "Basic realm=\"a\"")], "")).await?;
    let node = Node::new()?;
    node.write("password", "secret")?;
    let login =
        format!("credentials = {{ username = \"me\", password_file = \"{}\" }}\n", node.path("password").display());
    for (upstream, more, what, fix) in [
        (&registry, "deny = [\"team/*\"]\n", "in the configuration refuses it", "change that key (`allow` or `deny`)"),
        (&registry, login.as_str(), "403 Forbidden to our credentials", "correct the upstream's `credentials`"),
        (&basic, "", "none is configured", "give the upstream `credentials`"),
    ] {
        let text = format!("[upstreams.\"{UPSTREAM}\"]\nurl = \"{upstream}\"\n{more}");
        let installation = Installation::with_configuration(&text)?;
        let stopover = installation.start().await?;
        let server = format!("http://{}", stopover.address());
        let found = examine_server(&server, &format!("{UPSTREAM}/team/a:1")).await?;
        found.fails_at("pull", what)?;
        found.fails_at("pull", fix)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_the_environment_names_is_said_to_be_one_and_not_used_on_the_machine_itself() -> anyhow::Result<()>
{
    let proxy = serve(|_| respond(StatusCode::FORBIDDEN, &[], "")).await?;
    let cache = Cache::start().await?;
    let with_proxy = |proxy: &str| anyhow::Ok(nobody()?.with(("http_proxy", proxy.into())));
    let found = examine(&with_proxy(&proxy)?, &cache.server, &["--image", &cache.image()]).await?;
    ensure!(found.well && !found.text.contains("proxy"), "{}", found.text);
    let named = "it is the proxy that this environment names for http://cache.invalid";
    let found = examine(&with_proxy(&proxy)?, "http://cache.invalid", &[]).await?;
    found.step("ok", "name", named)?;
    found.step("ok", "connection", proxy.trim_start_matches("http://"))?;
    found.fails_at("registry", named)?;
    found.fails_at("registry", "add the server to no_proxy")?;
    let found = examine(&with_proxy("http://127.0.0.1:1")?, "http://cache.invalid", &[]).await?;
    found.fails_at("connection", "nothing listens at 127.0.0.1 port 1; it is the proxy")?;
    let node = with_proxy(&proxy)?.with(("no_proxy", "cache.invalid".into()));
    examine(&node, "http://cache.invalid", &[]).await?.fails_at("name", "cache.invalid does not resolve")
}

#[tokio::test]
async fn no_answer_is_read_without_end_or_printed_as_it_comes() -> anyhow::Result<()> {
    let endless = || Body::from_stream(futures_util::stream::repeat(Ok::<_, Infallible>(vec![b' '; 1 << 16])));
    let manifest = [
        ("x-stopover", "hit"),
        ("content-type", "application/vnd.oci.image.manifest.v1+json"),
        ("docker-content-digest", "sha256:0000000000000000000000000000000000000000000000000000000000000000"),
    ];
    let error = |message: &str| Body::from(json!({"errors": [{"message": message}]}).to_string());
    for (status, body, words) in [
        (StatusCode::OK, None, "the manifest has more than 4.1 MB"),
        (StatusCode::BAD_GATEWAY, None, "502 Bad Gateway: no reason was given"),
        (StatusCode::BAD_GATEWAY, Some("\u{1b}[2J\r\nok    pull: fine\u{9b}"), "502 Bad Gateway: [2J"),
        (StatusCode::FORBIDDEN, Some("no"), "403 Forbidden: no"),
        (StatusCode::FORBIDDEN, Some("no"), "what is in front of the cache refuses"),
    ] {
        let server = serve(move |path| {
            if path.ends_with("/v2/") {
                return respond(StatusCode::OK, &CACHE, "{}");
            }
            respond(status, &manifest, body.map_or_else(endless, error))
        });
        let found = examine_server(&server.await?, "a/b:1").await?;
        found.fails_at("pull", words)?;
        ensure!(!found.text.contains(|c: char| c.is_control() && c != '\n'), "{:?}", found.text);
        ensure!(!found.text.contains("\nok    pull"), "{}", found.text);
    }
    Ok(())
}

#[tokio::test]
async fn blobs_are_followed_to_where_they_are_redirected() -> anyhow::Result<()> {
    const BLOB: &str = "{}";
    let storage = serve(|_| respond(StatusCode::OK, &[], BLOB)).await?.replace("127.0.0.1", "localhost");
    for (target, verdict, words) in [
        (storage, "ok", "from localhost"),
        ("http://localhost:1".to_owned(), "FAIL", "localhost did not answer to the end"),
    ] {
        let descriptor =
            |kind: &str| json!({"mediaType": kind, "digest": digest_of(BLOB.as_bytes()), "size": BLOB.len()});
        let manifest =
            json!({"schemaVersion": 2, "config": descriptor("a/b"), "layers": [descriptor("c/d")]}).to_string();
        let server = serve(move |path| {
            let kind = ("content-type", "application/vnd.oci.image.manifest.v1+json");
            let digest = digest_of(manifest.as_bytes());
            if path.contains("/blobs/") {
                respond(StatusCode::TEMPORARY_REDIRECT, &[("location", &format!("{target}/x?secret"))], "")
            } else if path.contains("/manifests/") {
                let headers = [("x-stopover", "hit"), kind, ("docker-content-digest", &digest)];
                respond(StatusCode::OK, &headers, manifest.clone())
            } else {
                respond(StatusCode::OK, &CACHE, "{}")
            }
        });
        let found = examine_server(&server.await?, "a/b:1").await?;
        found.step(verdict, "pull", words)?;
        ensure!(!found.text.contains("secret"), "the URL of a blob is shown:\n{}", found.text);
    }
    Ok(())
}

/// Each client as `stopover setup` has it: before that its configuration fails, after it is fine.
#[tokio::test]
async fn a_configuration_without_the_mirror_fails_until_it_is_what_setup_prints() -> anyhow::Result<()> {
    // Nobody listens there, so that no client of this machine is asked.
    let server = "http://127.0.0.1:1";
    let node = Node::new()?;
    let root = node.path("root").display().to_string();
    let clients = ["docker", "containerd", "cri-o", "podman", "buildkit", "k3s"];
    let named: Vec<&str> = clients.iter().flat_map(|client| ["--client", client]).collect();
    let arguments = [&["--root", &root][..], &named].concat();
    let without = examine(&node, server, &arguments).await?;
    for client in clients {
        let fix = format!("stopover setup {client} --server {server}");
        without.step("FAIL", &format!("{client} configuration"), &fix)?;
    }
    for (client, path) in [
        ("docker", "etc/docker/daemon.json"),
        ("podman", "etc/containers/registries.conf.d/stopover.conf"),
        ("buildkit", "etc/buildkit/buildkitd.toml"),
        ("k3s", "etc/rancher/k3s/registries.yaml"),
        ("containerd", "containerd.sh"),
    ] {
        let printed = node.stopover(&["setup", client, "--server", server]).await?.stdout;
        node.write(&format!("root/{path}"), &String::from_utf8(printed)?)?;
    }
    node.run("sh", &["-c", &format!("CERTS_D='{root}/etc/containerd/certs.d' sh '{root}/containerd.sh'")]).await?;
    let missing = examine(&node, server, &arguments).await?;
    missing.step("FAIL", "containerd configuration", "config_path")?;
    let config = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n\
                  config_path = \"/etc/nothing.d:/etc/containerd/certs.d\"\n";
    node.write("root/etc/containerd/config.toml", config)?;
    let with = examine(&node, server, &arguments).await?;
    for client in clients {
        with.step("ok", &format!("{client} configuration"), "sends docker.io to the cache")?;
        with.step("skip", &format!("{client} pulls"), "needs: connection")?;
    }
    // Another registry than those that are mirrored, another cache, and files that cannot be used.
    let other = examine(&node, server, &[&arguments[..], &["--image", "registry.corp/a:1"]].concat()).await?;
    other.step("skip", "docker configuration", "mirrors only docker.io")?;
    other.step("FAIL", "podman configuration", "no registries.conf has a [[registry]] for registry.corp")?;
    let other = examine(&node, "http://127.0.0.1:2", &arguments).await?;
    for client in clients {
        other.step("FAIL", &format!("{client} configuration"), "stopover setup")?;
    }
    for (path, text) in [
        ("etc/docker/daemon.json", "{"),
        ("etc/containers/registries.conf.d/stopover.conf", "= 1"),
        ("etc/buildkit/buildkitd.toml", "["),
        ("etc/rancher/k3s/registries.yaml", "a: ["),
        ("etc/containerd/config.toml", "\""),
    ] {
        node.write(&format!("root/{path}"), text)?;
    }
    let broken = examine(&node, server, &arguments).await?;
    for client in clients {
        broken.step("FAIL", &format!("{client} configuration"), "cannot be used")?;
    }
    Ok(())
}

#[tokio::test]
async fn imports_of_containerd_are_read_once_and_found_beside_their_file() -> anyhow::Result<()> {
    let server = "http://127.0.0.1:1";
    let node = Node::new()?;
    let root = node.path("root").display().to_string();
    let printed = String::from_utf8(node.stopover(&["setup", "containerd", "--server", server]).await?.stdout)?;
    node.run("sh", &["-c", &format!("export CERTS_D='{root}/etc/containerd/certs.d'\n{printed}")]).await?;
    let plugin = "[plugins.\"io.containerd.cri.v1.images\".registry]\n";
    let imports = "imports = [\"/etc/containerd/*.toml\", \"parts/*-images.*\"]\n";
    node.write("root/etc/containerd/config.toml", imports)?;
    let imported = "imports = [\"../config.toml\", \"../parts/10-images.conf\"]\n";
    node.write("root/etc/containerd/parts/10-images.conf", imported)?;
    let arguments = ["--root", &root, "--client", "containerd"];
    let found = examine(&node, server, &arguments).await?;
    found.step("FAIL", "containerd configuration", "has no config_path")?;
    let config = format!("{imports}{plugin}config_path = \"/none\"\n");
    node.write("root/etc/containerd/config.toml", &config)?;
    let found = examine(&node, server, &arguments).await?;
    found.step("FAIL", "containerd configuration", "no hosts.toml in /none")?;
    // What is imported replaces what the file that imports it says.
    let replaced = format!("{imported}{plugin}config_path = \"/etc/containerd/certs.d\"\n");
    node.write("root/etc/containerd/parts/10-images.conf", &replaced)?;
    let found = examine(&node, server, &arguments).await?;
    found.step("ok", "containerd configuration", "docker.io/hosts.toml")
}

#[tokio::test]
async fn what_a_client_does_not_read_or_use_for_tags_is_no_configuration() -> anyhow::Result<()> {
    let server = "https://cache.invalid";
    let node = Node::new()?;
    let root = node.path("root").display().to_string();
    let arguments = ["--root", &root, "--client", "podman", "--client", "containerd", "--client", "docker"];
    let mirror =
        "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"cache.invalid/docker.io\"\n";
    node.write("root/etc/containers/registries.conf.d/stopover.toml", mirror)?;
    let config = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
    node.write("root/etc/containerd/config.toml", config)?;
    let hosts = "root/etc/containerd/certs.d/docker.io/hosts.toml";
    node.write(hosts, "[host.\"https://cache.invalid/docker.io\"]\ncapabilities = [\"pull\"]\n")?;
    node.write("root/etc/docker/daemon.json", "{\"registry-mirrors\": [\"http://cache.invalid\"]}")?;
    let found = examine(&node, server, &arguments).await?;
    found.step("FAIL", "podman configuration", "no registries.conf has a [[registry]] for docker.io")?;
    found.step("FAIL", "containerd configuration", "without the capability \"resolve\": tags go past it")?;
    found.step("FAIL", "docker configuration", "http://cache.invalid has not the scheme of https://cache.invalid")?;
    // Without capabilities it has all of them; without a scheme it is https.
    node.write(hosts, "[host.\"cache.invalid\"]\n")?;
    node.write("root/etc/containers/registries.conf.d/stopover.conf", mirror)?;
    let found = examine(&node, server, &arguments).await?;
    found.step("ok", "podman configuration", "stopover.conf")?;
    found.step("ok", "containerd configuration", "hosts.toml")?;
    let found = examine(&node, "http://cache.invalid", &arguments).await?;
    found.step("FAIL", "containerd configuration", "cache.invalid has not the scheme of http://cache.invalid")?;
    found.step("ok", "docker configuration", "daemon.json")
}

#[tokio::test]
async fn a_configuration_that_asks_the_cache_for_something_else_fails() -> anyhow::Result<()> {
    let text = "[rules.\"hub\"]\nupstream = \"docker.io\"\npath = \"library\"\n";
    let installation = Installation::with_configuration(text)?;
    let configuration = installation.configuration().display().to_string();
    let node = Node::new()?;
    let root = node.path("root").display().to_string();
    let podman = |registry: &str, mirror: &str| {
        format!(
            "[[registry]]\nlocation = \"docker.io\"\n{registry}\n[[registry.mirror]]\nlocation = \"cache.invalid{mirror}\n"
        )
    };
    let within = |location: &str| {
        format!("[[registry]]\nprefix = \"docker.io/library\"\nlocation = \"cache.invalid{location}\"\n")
    };
    let hosts = |place: &str, more: &str| format!("[host.\"{place}\"]\n{more}\n");
    let buildkit = |mirror: &str| format!("[registry.\"docker.io\"]\nmirrors = [\"{mirror}\"]\n");
    let k3s = |endpoint: &str| format!("mirrors:\n  docker.io:\n    endpoint: [\"{endpoint}\"]\n");
    let docker = |mirror: &str| format!("{{\"registry-mirrors\": [\"{mirror}\"]}}");
    let (other, scheme) = ("something else or nothing", "not the scheme");
    for (client, text, wrong) in [
        ("podman", podman("", "/ghcr.io\""), Some(other)),
        ("podman", podman("", "/docker.io/library\""), Some(other)),
        ("podman", podman("mirror-by-digest-only = true", "/docker.io\""), Some("tags go past the cache")),
        ("podman", podman("", "/docker.io\"\npull-from-mirror = \"digest-only\""), Some("tags go past the cache")),
        ("podman", podman("", "/docker.io\"\npull-from-mirror = \"tag-only\""), Some("digests go past the cache")),
        ("podman", podman("", "/docker.io\""), None),
        ("podman", podman("", "\""), None),
        ("podman", within("/quay.io/library"), Some(other)),
        ("podman", within("/docker.io/library"), None),
        ("podman", within("/hub"), None),
        ("containerd", hosts("https://cache.invalid/docker.io", "capabilities = [\"push\"]"), Some("\"resolve\"")),
        ("containerd", hosts("https://cache.invalid/ghcr.io", ""), Some(other)),
        ("containerd", hosts("https://cache.invalid/v2/docker.io", ""), Some(other)),
        ("containerd", hosts("https://cache.invalid", "override_path = true"), Some(other)),
        ("containerd", hosts("http://cache.invalid/docker.io", ""), Some(scheme)),
        ("containerd", hosts("https://cache.invalid/v2/docker.io", "override_path = true"), None),
        ("containerd", hosts("https://cache.invalid/docker.io/v2", ""), None),
        ("containerd", hosts("https://cache.invalid/docker.io/", ""), None),
        ("containerd", hosts("https://cache.invalid", ""), None),
        ("buildkit", buildkit("cache.invalid/ghcr.io"), Some(other)),
        ("buildkit", buildkit("cache.invalid/v2/docker.io"), Some(other)),
        ("buildkit", buildkit("cache.invalid"), None),
        ("k3s", k3s("https://cache.invalid/docker.io"), Some(other)),
        ("k3s", k3s("http://cache.invalid"), Some(scheme)),
        ("k3s", k3s("https://cache.invalid/v2"), None),
        ("docker", docker("https://cache.invalid/ghcr.io"), Some(other)),
        ("docker", docker("cache.invalid"), Some(scheme)),
        ("docker", docker("https://cache.invalid/docker.io/"), None),
    ] {
        let file = match client {
            "podman" => "etc/containers/registries.conf",
            "containerd" => "etc/containerd/certs.d/docker.io/hosts.toml",
            "buildkit" => "etc/buildkit/buildkitd.toml",
            "k3s" => "etc/rancher/k3s/registries.yaml",
            _ => "etc/docker/daemon.json",
        };
        node.write(&format!("root/{file}"), &text)?;
        let config = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
        node.write("root/etc/containerd/config.toml", config)?;
        let arguments = ["--root", &root, "--client", client, "--config", &configuration];
        let found = examine(&node, "https://cache.invalid", &arguments).await?;
        let verdict = if wrong.is_some() { "FAIL" } else { "ok" };
        let step = format!("{client} configuration");
        found.step(verdict, &step, wrong.unwrap_or_default()).with_context(|| text.clone())?;
        if client == "containerd" && wrong.is_some() {
            // Both mistakes in one run.
            node.write("root/etc/containerd/config.toml", "")?;
            let found = examine(&node, "https://cache.invalid", &arguments).await?;
            found.step("FAIL", &step, "has no config_path")?;
            found.step("FAIL", &step, wrong.unwrap_or_default())?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_is_not_called_like_its_host_is_looked_for_as_clients_call_it() -> anyhow::Result<()> {
    let server = "http://127.0.0.1:1";
    let installation =
        Installation::with_configuration("[upstreams.\"corp\"]\nurl = \"https://registry.corp.example:5000\"\n")?;
    let configuration = installation.configuration().display().to_string();
    let node = Node::new()?;
    let root = node.path("root").display().to_string();
    for (client, path) in
        [("podman", "etc/containers/registries.conf.d/stopover.conf"), ("k3s", "etc/rancher/k3s/registries.yaml")]
    {
        let setup = ["setup", client, "--server", server, "--upstream", "corp", "--config", &configuration];
        node.write(&format!("root/{path}"), &String::from_utf8(node.stopover(&setup).await?.stdout)?)?;
    }
    for image in ["corp/team/app:1", "registry.corp.example:5000/team/app:1"] {
        let clients = ["--client", "podman", "--client", "k3s", "--client", "docker", "--client", "buildkit"];
        let arguments = ["--root", &root, "--config", &configuration, "--image", image];
        let found = examine(&node, server, &[&arguments[..], &clients].concat()).await?;
        for client in ["podman", "k3s"] {
            let words = "sends registry.corp.example:5000 to the cache";
            found.step("ok", &format!("{client} configuration"), words)?;
        }
        found.step("skip", "docker configuration", "127.0.0.1:1/corp/team/app")?;
        found.step("FAIL", "buildkit configuration", "--server http://127.0.0.1:1 --upstream corp prints")?;
    }
    Ok(())
}

#[tokio::test]
async fn plain_http_that_a_client_is_not_told_of_fails() -> anyhow::Result<()> {
    let node = Node::new()?;
    let root = node.path("root").display().to_string();
    let mirror = "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"127.0.0.1:1/docker.io\"\n";
    node.write("root/etc/containers/registries.conf", mirror)?;
    let mirror = "[registry.\"docker.io\"]\nmirrors = [\"127.0.0.1:1/docker.io\"]\n";
    node.write("root/etc/buildkit/buildkitd.toml", mirror)?;
    let arguments = ["--root", &root, "--client", "podman", "--client", "buildkit"];
    let found = examine(&node, "http://127.0.0.1:1", &arguments).await?;
    found.step("FAIL", "podman configuration", "insecure = true")?;
    found.step("FAIL", "buildkit configuration", "http = true")?;
    let found = examine(&node, "https://127.0.0.1:1", &arguments).await?;
    found.step("ok", "podman configuration", "registries.conf")?;
    found.step("ok", "buildkit configuration", "buildkitd.toml")
}
