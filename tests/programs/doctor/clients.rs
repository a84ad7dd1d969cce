//! Clients that go through the cache, past it, or nowhere.

use std::ffi::OsString;

use anyhow::{Context as _, ensure};
use support::images::Recipe;
use support::node::Node;
use support::program::{Installation, UPSTREAM};
use support::registry::Registry;

use super::{Cache, USER_REGISTRIES, examine, nobody};

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
        found.step("ok", "head", "HEAD tells the ")?;
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
    node.write("root/etc/containerd/config.toml", "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n")?;
    let imported = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/none.d:/etc/containerd/other.d\"\n";
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
    node.write_script(program, &format!("echo \"asked with $*: manifest unknown\" >&2\n{script}\n"))?;
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
    node.write_script("podman", "echo 'exec: crun: not found' >&2\nexit 127\n")?;
    let found = examine(&node.with(path), &cache.server, &["--image", &image, "--client", "podman"]).await?;
    found.step("skip", "podman pulls", "It says: exec: crun: not found")
}

#[tokio::test]
async fn a_scheme_in_registries_conf_has_podman_refuse_every_pull() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let node = Node::new()?;
    // Of another registry than the one that is asked for.
    let other =
        "[[registry]]\nlocation = \"quay.io\"\n[[registry.mirror]]\nlocation = \"https://other.example/quay.io\"\n";
    node.write(USER_REGISTRIES, &(cache.setup("podman").await? + other))?;
    let found = examine(&node, &cache.server, &["--image", &cache.image(), "--client", "podman"]).await?;
    found.step("FAIL", "podman configuration", "\"https://other.example/quay.io\" has a scheme")?;
    found.step("FAIL", "podman configuration", "write host and path without it")?;
    found.step("skip", "podman pulls", "URI schemes are not supported")?;
    node.write(USER_REGISTRIES, &(cache.setup("podman").await? + &other.replace("https://", "")))?;
    let found = examine(&node, &cache.server, &["--image", &cache.image(), "--client", "podman"]).await?;
    ensure!(found.well, "{}", found.text);
    Ok(())
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
