//! What the configuration of a node has its clients do.

use anyhow::{Context as _, ensure};
use support::node::Node;
use support::program::UPSTREAM;

use super::{Cache, examine};

const CONFIG: &str = "etc/containerd/config.toml";

/// What containerd needs on a machine of tests: places of its own, and the snapshotter without mounts.
fn ground(format: u8) -> String {
    let name = |plugin: &str| {
        if format < 2 { plugin.rsplit('.').next().unwrap_or_default().to_owned() } else { format!("\"{plugin}\"") }
    };
    let (cri, opt) = (name("io.containerd.grpc.v1.cri"), name("io.containerd.internal.v1.opt"));
    format!(
        "[plugins.{opt}]\npath = \"HOME/containerd/opt\"\n\
         [plugins.{cri}]\nstream_server_port = \"0\"\n[plugins.{cri}.containerd]\nsnapshotter = \"native\"\n\
         [plugins.{cri}.cni]\nconf_dir = \"HOME/cni\"\n"
    )
}

/// Carries out what the doctor says, one step after the other.
async fn follow(node: &Node, fix: &str, config: &mut String) -> anyhow::Result<()> {
    let root = node.path("root").display().to_string();
    for step in fix.split("; ") {
        let quoted = |begin: &str, end: &str| Some(step.split_once(begin)?.1.split_once(end)?.0.to_owned());
        if let Some(command) = step.strip_prefix("stopover ") {
            let (command, script) = command.split_once(" | sudo ").context("a script that is not run")?;
            let directory = quoted("CERTS_D=", " ").unwrap_or_else(|| "/etc/containerd/certs.d".to_owned());
            ensure!(script == "sh" || script == format!("CERTS_D={directory} sh"), "{script}");
            let printed = node.stopover(&command.split(' ').collect::<Vec<_>>()).await?.stdout;
            let script = format!("export CERTS_D='{root}{directory}'\n{}", String::from_utf8(printed)?);
            node.run("sh", &["-c", &script]).await?;
        } else if let Some(table) = quoted("remove [", "]") {
            let without = |line: &&str| {
                line.replace('"', "")
                    .starts_with(&format!("[{}", table.replace('"', "").split(".*").next().unwrap_or_default()))
            };
            let mut removed = false;
            let kept = config.lines().filter(|line| {
                removed = if line.starts_with('[') { without(line) } else { removed };
                !removed
            });
            *config = kept.fold(String::new(), |text, line| text + line + "\n");
        } else if let (Some(directory), Some(table)) = (quoted("config_path = \"", "\""), quoted(" in [", "]")) {
            if step.contains("set `version = 2` and ") {
                *config = format!("version = 2\n{config}");
            }
            let line = format!("config_path = \"ROOT{directory}\"");
            let header = format!("[{}]", table.replace('"', ""));
            let lines: Vec<&str> = config.lines().filter(|line| !line.contains("config_path")).collect();
            *config = match lines.iter().position(|line| line.replace('"', "") == header) {
                Some(at) => [&lines[..=at], &[&*line], &lines[at + 1..]].concat().join("\n"),
                None => format!("{}\n[{table}]\n{line}\n", lines.join("\n")),
            };
        } else {
            ensure!(step.starts_with("then: systemctl restart containerd"), "{step}");
        }
    }
    Ok(())
}

/// Whether a containerd with this configuration pulls for Kubernetes, through the cache: no other way leads to the image.
async fn pulls(node: &mut Node, config: &str, image: &str) -> anyhow::Result<()> {
    let root = node.path("root").display().to_string();
    let daemon = node.start_containerd_with(&config.replace("ROOT", &root)).await?;
    node.pull_for_kubernetes(image).await.with_context(|| daemon.log())
}

#[tokio::test]
async fn the_doctor_says_of_containerd_what_it_does_and_its_fixes_have_it_pull_through_the_cache() -> anyhow::Result<()>
{
    let cache = Cache::start().await?;
    let image = cache.image();
    let server = &cache.server;
    let path =
        |plugin: &str, directories: &str| format!("[plugins.{plugin}.registry]\nconfig_path = \"{directories}\"\n");
    let (old, long) = ("cri", "\"io.containerd.grpc.v1.cri\"");
    let certs = "ROOT/etc/containerd/certs.d";
    let mirrors = |plugin: &str, endpoint: &str| {
        format!("[plugins.{plugin}.registry.mirrors.\"{UPSTREAM}\"]\nendpoint = [\"{endpoint}\"]\n")
    };
    let tls = format!("[plugins.{long}.registry.configs.\"other.example\".tls]\ninsecure_skip_verify = true\n");
    for (format, text, hosts, verdict) in [
        (2, path(long, certs), true, "ok"),
        (2, path(long, &format!("ROOT/etc/none.d:{certs}")), true, "ok"),
        (2, path(long, "ROOT/etc/other.d"), false, "FAIL"),
        (2, path(long, ""), true, "FAIL"),
        (2, String::new(), false, "FAIL"),
        (2, path(old, certs).replace("[plugins.cri.", "[plugins.\"io.containerd.cri.v1.images\"."), true, "FAIL"),
        (2, path(long, certs) + &mirrors(long, server), true, "FAIL"),
        (2, path(long, certs) + &tls, true, "FAIL"),
        (2, mirrors(long, server), false, "ok"),
        (2, mirrors(long, &format!("{server}/v2/{UPSTREAM}")), false, "ok"),
        (2, mirrors(long, &format!("{server}/{UPSTREAM}")), false, "FAIL"),
        (2, mirrors(long, "http://127.0.0.1:1"), true, "FAIL"),
        (1, path(old, certs), true, "ok"),
        (1, path(long, certs), true, "FAIL"),
        (1, mirrors(old, server), false, "ok"),
    ] {
        let mut node = Node::new()?;
        let root = node.path("root").display().to_string();
        let version = if format < 2 { String::new() } else { format!("version = {format}\n") };
        let mut config = format!("{version}{}{text}", ground(format));
        node.write(&format!("root/{CONFIG}"), &config.replace("ROOT", ""))?;
        if hosts {
            let script = cache.setup("containerd").await?;
            node.run("sh", &["-c", &format!("export CERTS_D='{root}/etc/containerd/certs.d'\n{script}")]).await?;
        }
        let arguments = ["--image", &image, "--client", "containerd", "--root", &root];
        let found = examine(&node, server, &arguments).await?;
        found.step(verdict, "containerd configuration", "").with_context(|| config.clone())?;
        let pulled = pulls(&mut node, &config, &image).await;
        ensure!(pulled.is_ok() == (verdict == "ok"), "{text}{}{pulled:?}", found.text);
        if verdict == "FAIL" {
            let (_, fix) = found
                .text
                .split_once("containerd configuration")
                .and_then(|(_, text)| text.split_once("fix: "))
                .context("no fix")?;
            let fix = fix.lines().next().unwrap_or_default();
            follow(&node, fix, &mut config).await.with_context(|| fix.to_owned())?;
            node.write(&format!("root/{CONFIG}"), &config.replace("ROOT", ""))?;
            examine(&node, server, &arguments)
                .await?
                .step("ok", "containerd configuration", "")
                .with_context(|| config.clone())?;
            pulls(&mut node, &config, &image).await.with_context(|| format!("{fix}\n{config}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn containerd_pulls_for_kubernetes_with_each_table_that_setup_names() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let mut node = Node::new()?;
    let printed = node.stopover(&["setup", "containerd", "--server", &cache.server, "--upstream", UPSTREAM]).await?;
    let (script, advice) = (String::from_utf8(printed.stdout)?, String::from_utf8(printed.stderr)?);
    let certs = node.path("root/etc/containerd/certs.d").display().to_string();
    node.run("sh", &["-c", &format!("export CERTS_D='{certs}'\n{script}")]).await?;
    let rows: Vec<&str> = advice.lines().filter(|line| line.contains("[plugins.")).collect();
    ensure!(rows.len() == 3 && rows[2].trim_start().starts_with("version = 3 or 4 "), "{advice}");
    for (row, format) in rows.iter().zip([1, 2]) {
        let (_, table) = row.split_once('[').context("no table")?;
        let (table, line) = table.split_once(']').context("no table")?;
        let version = if format < 2 { "" } else { "version = 2\n" };
        let line = line.trim().replace("/etc", "ROOT/etc");
        pulls(&mut node, &format!("{version}{}[{table}]\n{line}\n", ground(format)), &cache.image()).await?;
    }
    Ok(())
}

/// A node that has no programs but those that a test puts there.
fn bare() -> anyhow::Result<Node> {
    let node = Node::new()?;
    let path = node.path("bin").into_os_string();
    Ok(node.with(("PATH", path)))
}

/// A program on this node that says that it has a version.
fn with_version(node: &Node, program: &str, said: &str) -> anyhow::Result<()> {
    node.write_script(program, &format!("echo '{said}'\n"))
}

#[tokio::test]
async fn what_containerd_does_with_its_configuration_depends_on_its_version() -> anyhow::Result<()> {
    let node = bare()?;
    let root = node.path("root").display().to_string();
    let server = "https://cache.invalid";
    let printed = String::from_utf8(node.stopover(&["setup", "containerd", "--server", server]).await?.stdout)?;
    let hosts = "[host.\"https://cache.invalid/docker.io\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"1m0.5s\"\n";
    ensure!(printed.contains("dial_timeout = \"5s\""), "{printed}");
    let images = "[plugins.'io.containerd.cri.v1.images'";
    let grpc = "[plugins.\"io.containerd.grpc.v1.cri\"";
    let both = "config_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n";
    let one = "config_path = \"/etc/containerd/certs.d\"\n";
    let mirrors = ".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://cache.invalid\"]\n";
    let list3 = format!("version = 3\n{images}.registry]\n{both}");
    let list2 = format!("version = 2\n{grpc}.registry]\n{both}");
    let soci = format!(
        "version = 3\n{images}]\nsnapshotter = \"soci\"\ndisable_snapshot_annotations = false\n{images}.registry]\n{one}"
    );
    let (list, unset, beside) =
        (Some("taken for one directory"), Some("has no config_path"), Some("`mirrors` beside a config_path"));
    for (version, config, wrong) in [
        ("1.6.20", String::new(), unset),
        ("1.7.27", list2.clone(), None),
        ("1.7.27", format!("version = 3\n{images}.registry]\n{one}"), unset),
        ("v2.0.5", list3.clone(), None),
        ("v2.1.4", list3.clone(), list),
        ("v2.3.4", list2.clone(), list),
        ("", list3.clone(), list),
        ("", list2.clone(), None),
        ("v2.1.4", format!("{list3}{images}]\nuse_local_image_pull = true\n"), None),
        ("v2.2.0", format!("{list3}{images}]\ndiscard_unpacked_layers = true\n"), None),
        ("v2.2.0", format!("{list3}{images}]\ndiscard_unpacked_layers = false\nmax_concurrent_downloads = 3\n"), list),
        ("v2.2.0", format!("{list3}{images}]\nmax_concurrent_downloads = 10\n"), None),
        ("v2.2.0", format!("{list2}{grpc}.containerd]\ndiscard_unpacked_layers = true\n"), None),
        ("v2.1.4", format!("version = 3\n{images}.registry]\n{one}"), None),
        ("v2.1.4", format!("version = 2\n{grpc}.registry]\n{one}"), None),
        ("v2.1.4", format!("{grpc}.registry]\n{one}"), None),
        ("v2.1.4", format!("[plugins.cri.registry]\n{one}"), None),
        ("v2.1.4", String::new(), unset),
        ("v2.2.3", String::new(), list),
        ("v2.2.3", "version = 3\n".to_owned(), list),
        ("", "version = 3\n".to_owned(), None),
        ("", format!("version = 3\n{images}.registry]\nconfig_path = ''\n"), None),
        ("", format!("version = 3\n{grpc}.registry]\n{one}"), unset),
        ("", format!("version = 2\n{images}.registry]\n{one}"), unset),
        ("", format!("{grpc}.registry]\n{one}"), unset),
        ("", String::new(), None),
        ("v2.1.4", format!("version = 3\n{images}{mirrors}"), None),
        ("v2.2.1", format!("version = 3\n{images}{mirrors}"), beside),
        ("v2.2.2", format!("version = 3\n{images}{mirrors}"), None),
        ("v2.2.2", format!("version = 3\n{images}.registry]\n{one}{images}{mirrors}"), beside),
        ("v2.1.4", format!("version = 3\n{images}.registry]\n{one}{grpc}{mirrors}"), None),
        ("v2.1.4", soci.clone(), Some("SOCI's parallel pull asks no mirror for layers")),
        ("v2.1.4", soci.replace("soci", "overlayfs"), None),
        ("v2.1.4", "disabled_plugins = [\"cri\"]\n".to_owned(), None),
    ] {
        with_version(&node, "containerd", &format!("containerd github.com/containerd/containerd {version}"))?;
        node.write("root/etc/containerd/certs.d/docker.io/hosts.toml", hosts)?;
        node.write("root/etc/soci-snapshotter-grpc/config.toml", "[pull_modes.parallel_pull_unpack]\nenable = true\n")?;
        node.write(&format!("root/{CONFIG}"), &config)?;
        let found = examine(&node, server, &["--root", &root, "--client", "containerd"]).await?;
        let verdict = if wrong.is_some() { "FAIL" } else { "ok" };
        let told = || format!("{version}\n{config}\n{}", found.text);
        found.step(verdict, "containerd configuration", wrong.unwrap_or_default()).with_context(told)?;
    }
    // What a hosts.toml may not say, because containerd then ignores it: as far as its version reads it.
    for (version, line, wrong) in [
        ("v2.1.0", "dial_timeout = 5", true),
        ("v2.1.0", "dial_timeout = \"5 s\"", true),
        ("", "dial_timeout = \"soon\"", true),
        ("v2.0.0", "dial_timeout = 5", false),
        ("v2.1.0", "dial_timeout = \"0\"", false),
        ("v2.1.0", "capabilities = [\"fetch\"]", true),
    ] {
        with_version(&node, "containerd", &format!("containerd github.com/containerd/containerd {version}"))?;
        node.write(
            "root/etc/containerd/certs.d/docker.io/hosts.toml",
            &format!("[host.\"https://cache.invalid\"]\n{line}\n"),
        )?;
        node.write(&format!("root/{CONFIG}"), &format!("version = 2\n{grpc}.registry]\n{one}"))?;
        let found = examine(&node, server, &["--root", &root, "--client", "containerd"]).await?;
        let (verdict, words) = if wrong { ("FAIL", "containerd ignores the file") } else { ("ok", "") };
        found.step(verdict, "containerd configuration", words).with_context(|| format!("{version}: {line}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn the_first_directory_of_a_registry_counts_whatever_it_has() -> anyhow::Result<()> {
    let node = Node::new()?;
    let root = node.path("root").display().to_string();
    let hosts = "[host.\"https://cache.invalid\"]\n";
    let config = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/a:/b\"\n";
    node.write(&format!("root/{CONFIG}"), config)?;
    node.write("root/b/docker.io/hosts.toml", hosts)?;
    let arguments = ["--root", &root, "--client", "containerd"];
    let examined = async || examine(&node, "https://cache.invalid", &arguments).await;
    examined().await?.step("ok", "containerd configuration", "/b/docker.io/hosts.toml")?;
    node.write("root/a/_default/hosts.toml", "[host.\"https://other.invalid\"]\n")?;
    examined().await?.step(
        "FAIL",
        "containerd configuration",
        "/a/_default/hosts.toml names no host that is the cache",
    )?;
    node.write("root/a/docker.io/ca.crt", "")?;
    examined().await?.step("FAIL", "containerd configuration", "no hosts.toml in /a:/b")
}

#[tokio::test]
async fn docker_reads_hosts_toml_only_with_the_image_store_of_containerd() -> anyhow::Result<()> {
    let node = bare()?;
    let root = node.path("root").display().to_string();
    node.write("root/etc/docker/certs.d/_default/hosts.toml", "[host.\"https://cache.invalid\"]\n")?;
    let told = |store: bool| format!("{{\"features\": {{\"containerd-snapshotter\": {store}}}}}");
    let mirrors = "{\"registry-mirrors\": [\"https://cache.invalid\"]}";
    for (version, daemon, image, verdict) in [
        ("28.5.2", "{}".to_owned(), "docker.io/a/b", "FAIL"),
        ("28.5.2", mirrors.to_owned(), "docker.io/a/b", "ok"),
        ("28.5.2", told(true), "docker.io/a/b", "ok"),
        ("28.5.2", told(true), "ghcr.io/a/b", "ok"),
        ("29.0.1", "{}".to_owned(), "ghcr.io/a/b", "ok"),
        ("29.0.1", "{\"storage-driver\": \"overlay2\"}".to_owned(), "docker.io/a/b", "FAIL"),
        ("29.0.1", "{\"data-root\": \"/srv/docker\"}".to_owned(), "docker.io/a/b", "FAIL"),
        ("29.0.1", told(false), "docker.io/a/b", "FAIL"),
        ("28.5.2", "{}".to_owned(), "ghcr.io/a/b", "skip"),
    ] {
        with_version(&node, "dockerd", &format!("Docker version {version}, build 1"))?;
        node.write("root/srv/docker/overlay2/l/a", "")?;
        node.write("root/etc/docker/daemon.json", &daemon)?;
        let found =
            examine(&node, "https://cache.invalid", &["--root", &root, "--client", "docker", "--image", image]).await?;
        let words = if verdict == "FAIL" { "only with containerd's image store" } else { "" };
        found.step(verdict, "docker configuration", words).with_context(|| format!("{version} {daemon}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn names_that_k3s_rewrites_are_asked_for_as_rewritten_and_rke2_has_a_file_of_its_own() -> anyhow::Result<()> {
    let node = bare()?;
    let root = node.path("root").display().to_string();
    for (rewrite, wrong) in [
        ("\"^library/(.*)\": \"acme/$1\"", true),
        ("\"(.*)\": \"docker.io/$1\"", false),
        ("\"^library/(.*)$\": \"docker.io/library/${1}\"", false),
        ("\"^other/(.*)\": \"acme/$1\"", false),
        ("\"^(.*)$\": \"ghcr.io/$1\"", true),
    ] {
        let mirror = format!(
            "mirrors:\n  docker.io:\n    endpoint: [\"https://cache.invalid\"]\n    rewrite:\n      {rewrite}\n"
        );
        node.write("root/etc/rancher/rke2/registries.yaml", &mirror)?;
        let found = examine(&node, "https://cache.invalid", &["--root", &root, "--client", "k3s"]).await?;
        let (verdict, words) =
            if wrong { ("FAIL", "something else or nothing") } else { ("ok", "rke2/registries.yaml") };
        found.step(verdict, "k3s configuration", words).with_context(|| mirror.clone())?;
    }
    // With both files, it is the one of the program that is here.
    node.write("root/etc/rancher/k3s/registries.yaml", "mirrors: {}\n")?;
    let arguments = ["--root", &root, "--client", "k3s"];
    examine(&node, "https://cache.invalid", &arguments).await?.step(
        "FAIL",
        "k3s configuration",
        "k3s/registries.yaml",
    )?;
    with_version(&node, "rke2", "")?;
    examine(&node, "https://cache.invalid", &arguments).await?.step("FAIL", "k3s configuration", "rke2/registries.yaml")
}
