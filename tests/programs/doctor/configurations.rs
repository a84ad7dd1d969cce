//! What clients are told of the cache.

use anyhow::Context as _;
use support::node::Node;
use support::program::Installation;

use super::examine;

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
    let config = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\n\
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
    let plugin = "[plugins.cri.registry]\n";
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
    let config =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
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
        ("podman", podman("prefix = \"\"", "/docker.io\""), None),
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
        let config = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
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
