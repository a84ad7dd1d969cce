//! Whether a client's own configuration names the cache for the registry of the sample.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use regex_lite::Regex;
use serde_json::Value;
use stopover::config::DEFAULT_UPSTREAM;
use stopover::values::pattern::Pattern;

use super::installed::{Version, is_installed};
use super::{Problem, Sample, Verdict};
use crate::client::Endpoint;
use stopover::setup::Target;

/// What keeps images for dockerd without containerd's store. `vfs` does not count: dockerd does not look for it.
const GRAPH_DRIVERS: [&str; 4] = ["overlay2", "fuse-overlayfs", "btrfs", "zfs"];

/// Where configurations are, and the sample and the cache that they have to name.
pub(super) struct Files<'a> {
    pub(super) root: &'a Path,
    pub(super) server: &'a Endpoint,
    pub(super) sample: &'a Sample,
    /// The versions of programs, as far as they are here.
    pub(super) containerd: Option<Version>,
    pub(super) dockerd: Option<Version>,
}

impl Files<'_> {
    /// What the configuration of this client says of the cache.
    pub(super) fn of(&self, client: Target) -> Verdict {
        let found = match client {
            Target::Docker => self.docker(),
            Target::Containerd => self.containerd(),
            Target::CriO | Target::Podman => self.registries(),
            Target::Buildkit => self.buildkit(),
            Target::K3s => self.k3s(),
            _ => {
                let what = "it has no configuration on a machine: `stopover setup` says what it is given";
                Ok(Verdict::Unknown(what.to_owned()))
            }
        };
        found.unwrap_or_else(|what| {
            let (name, upstream) = (client.name(), self.upstream_option());
            let fix = format!("stopover setup {name} --server {}{upstream} prints what is missing", self.server);
            Verdict::Bad(Problem::new(what, fix))
        })
    }

    /// That this file sends pulls to the cache.
    pub(super) fn sent(&self, path: &Path, note: &str) -> Verdict {
        Verdict::Good(format!("{} sends {} to the cache{note}", path.display(), self.sample.upstream))
    }

    /// The option of `stopover setup` that names the upstream.
    pub(super) fn upstream_option(&self) -> String {
        self.sample.id.as_ref().map_or_else(String::new, |id| format!(" --upstream {id}"))
    }

    /// The sample's name for clients without a mirror.
    pub(super) fn through_cache(&self) -> String {
        format!("{}/{}", self.server.host(), self.sample.at_cache())
    }

    /// A path below the root that is examined.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn docker(&self) -> Found {
        let path = self.path("/etc/docker/daemon.json");
        let daemon = read(&path, |text| serde_json::from_str(text))?.unwrap_or_default();
        let hosts = self.hosts("/etc/docker/certs.d");
        let containerd = self.has_containerd_store(&daemon);
        if let (true, Ok(hosts)) = (containerd, &hosts) {
            return Ok(self.sent(hosts, ""));
        }
        if self.sample.upstream != DEFAULT_UPSTREAM {
            let what = format!("Docker mirrors only docker.io: the image is {} for it", self.through_cache());
            return Ok(Verdict::Unknown(what));
        }
        // dockerd puts a path before `/v2/` (24.0.9 and later), and has no default for the scheme.
        let name = &self.sample.path;
        let asked = |mirror| self.leads(mirror, "", containerd, |path| format!("{path}/v2/{name}"));
        let unread =
            hosts.map(|hosts| format!("; Docker reads {} only with containerd's image store", hosts.display()));
        let found = self.named(&path, "registry-mirrors", list(daemon.get("registry-mirrors")).map(asked));
        found.map_err(|what| what + &unread.unwrap_or_default())
    }

    /// Whether dockerd has containerd keep images, and so reads hosts.toml: where it is told to, and from 29 on where it
    /// is not told and has no images of before (moby's `determineImageStoreChoice`).
    fn has_containerd_store(&self, daemon: &Value) -> bool {
        let text = |key: &str| daemon.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let data = self.path(text("data-root").unwrap_or("/var/lib/docker"));
        let used = |driver: &&str| std::fs::read_dir(data.join(driver)).is_ok_and(|mut all| all.next().is_some());
        let told = daemon.pointer("/features/containerd-snapshotter").and_then(Value::as_bool);
        told.unwrap_or_else(|| {
            self.dockerd.is_some_and(|version| version >= (29, 0, 0))
                && text("userns-remap").is_none()
                && text("storage-driver").is_none_or(|driver| !GRAPH_DRIVERS.contains(&driver))
                && !GRAPH_DRIVERS.iter().any(used)
        })
    }

    /// containers-registries.conf(5): the longest prefix counts, of equal ones the last.
    fn registries(&self) -> Found {
        let (mut best, mut longest) = (None, 0);
        for path in self.registries_files() {
            let config = read_toml(&path)?.unwrap_or_default();
            for registry in all(config.get("registry")) {
                let prefix = prefix(registry);
                let mirrors = all(registry.get("mirror")).filter_map(|mirror| mirror.get("location")?.as_str());
                // One of these, and containers/image uses none of the files.
                let mut places = mirrors.chain(text(registry, "location")).chain([prefix]);
                if let Some(url) = places.find(|place| place.starts_with("http://") || place.starts_with("https://")) {
                    let what = format!("{}: {url:?} has a scheme, with which every pull is refused", path.display());
                    let fix = "write host and path without it, and `insecure = true` below if it is plain HTTP";
                    return Ok(Verdict::Bad(Problem::new(what, fix)));
                }
                if covers(prefix, &self.sample.repository) && prefix.len() >= longest {
                    (best, longest) = (Some((path.clone(), registry.clone())), prefix.len());
                }
            }
        }
        let Some((path, registry)) = best else {
            return Err(format!("no registries.conf has a [[registry]] for {}", self.sample.upstream));
        };
        let shown = path.display();
        let flag = |table: &Value, key: &str| table.get(key).and_then(Value::as_bool).unwrap_or_default();
        if flag(&registry, "blocked") {
            return Err(format!("{shown} blocks {}", self.sample.upstream));
        }
        // A location replaces the prefix; a `*` in the prefix stands for the whole host.
        let prefix = prefix(&registry);
        let prefix = if prefix.starts_with('*') { &self.sample.upstream } else { prefix };
        let rest = self.sample.repository.strip_prefix(prefix).unwrap_or_default();
        let asked = |place: &Value| {
            let location = text(place, "location").unwrap_or_default();
            self.leads(location, self.server.url().scheme(), false, |path| format!("/v2{path}{rest}"))
        };
        let mirrors = all(registry.get("mirror"));
        // A mirror may be limited to one kind of pull; the registry's own location cannot.
        let partial = |mirror: &Value| match text(mirror, "pull-from-mirror") {
            Some("tag-only") => Some("digests"),
            Some("digest-only") => Some("tags"),
            _ => flag(&registry, "mirror-by-digest-only").then_some("tags"),
        };
        let places = mirrors.map(|mirror| (mirror, partial(mirror))).chain([(&registry, None)]);
        let found = places.filter_map(|(place, partial)| {
            let led = asked(place)?;
            Some(led.and_then(|()| match partial {
                Some(kind) => Err(format!("{kind} go past the cache, for which pulls of that kind are turned off")),
                None if self.server.is_plain() && !flag(place, "insecure") => {
                    Err("it does not say `insecure = true` of the cache, which is plain HTTP".to_owned())
                }
                None => Ok(()),
            }))
        });
        match first_good(found) {
            None => {
                Err(format!("{shown} has a [[registry]] for {}, but no mirror that is the cache", self.sample.upstream))
            }
            Some(led) => led.map(|()| self.sent(&path, "")).map_err(|what| format!("{shown}: {what}")),
        }
    }

    /// The files that containers/image reads, in that order. A user's own file replaces the machine's.
    fn registries_files(&self) -> Vec<PathBuf> {
        let home = std::env::home_dir().filter(|_| self.root == Path::new("/")).map(|home| home.join(".config"));
        let variable = std::env::var_os("CONTAINERS_REGISTRIES_CONF").filter(|_| home.is_some()).map(PathBuf::from);
        let own = home.as_deref().map(|home| home.join("containers/registries.conf")).filter(|path| path.exists());
        let mut files = vec![variable.or(own).unwrap_or_else(|| self.path("/etc/containers/registries.conf"))];
        files.extend(matching(&self.path("/etc/containers/registries.conf.d/*.conf")));
        files.extend(home.iter().flat_map(|home| matching(&home.join("containers/registries.conf.d/*.conf"))));
        files
    }

    fn buildkit(&self) -> Found {
        let path = self.path("/etc/buildkit/buildkitd.toml");
        let config = read_toml(&path)?.unwrap_or_default();
        let of = |registry: &str, key: &str| config.get("registry")?.get(registry)?.get(key);
        let name = &self.sample.path;
        let asked = |mirror| self.leads(mirror, self.server.url().scheme(), true, |path| format!("/v2{path}/{name}"));
        let found = self.named(&path, "mirrors", list(of(&self.sample.upstream, "mirrors")).map(asked));
        let plain = of(self.server.host(), "http").and_then(Value::as_bool).unwrap_or_default();
        if found.is_ok() && self.server.is_plain() && !plain {
            let host = self.server.host();
            return Err(format!("{} does not say `http = true` in [registry.\"{host}\"]", path.display()));
        }
        found
    }

    fn k3s(&self) -> Found {
        let [k3s, rke2] = ["k3s", "rke2"].map(|name| self.path(&format!("/etc/rancher/{name}/registries.yaml")));
        let path = if rke2.exists() && (is_installed("rke2") || !k3s.exists()) { rke2 } else { k3s };
        let config: Value = read(&path, |text| serde_yaml_ng::from_str(text))?.unwrap_or_default();
        let mirror = |registry: &str| config.get("mirrors")?.get(registry);
        let mirror = mirror(&self.sample.upstream).or_else(|| mirror("*"));
        let rules = mirror.and_then(|mirror| mirror.get("rewrite")?.as_object()).into_iter().flatten();
        let name = self.sample.path.as_str();
        // The first rule that changes the name counts.
        let rewritten = |(pattern, by): (&String, &Value)| {
            Some(Regex::new(pattern).ok()?.replace_all(name, by.as_str()?).into_owned())
        };
        let rewritten = rules.filter_map(rewritten).find(|rewritten| rewritten != name);
        let asked = |endpoint| self.endpoint(endpoint, "https", rewritten.as_deref().unwrap_or(name));
        self.named(&path, "endpoint", list(mirror.and_then(|mirror| mirror.get("endpoint"))).map(asked))
    }

    /// Whether an endpoint of containerd's `mirrors` is the cache. Its path takes the place of `/v2`.
    pub(super) fn endpoint(&self, endpoint: &str, scheme: &str, name: &str) -> Option<Result<(), String>> {
        self.leads(endpoint, scheme, true, |path| format!("{}/{name}", if path.is_empty() { "/v2" } else { path }))
    }

    /// Whether a place of a configuration, which may have a scheme, is the cache; if it is, what is wrong with it.
    /// `ask` says how the client joins the path of the place (`/<path>` or nothing) and the sample's name, and
    /// `namespace` whether the client also sends `?ns=`.
    pub(super) fn leads(
        &self,
        place: &str,
        default_scheme: &str,
        namespace: bool,
        ask: impl FnOnce(&str) -> String,
    ) -> Option<Result<(), String>> {
        let (scheme, rest) = place.split_once("://").unwrap_or((default_scheme, place));
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if !self.server.is_host(authority) {
            return None;
        }
        if !scheme.eq_ignore_ascii_case(self.server.url().scheme()) {
            return Some(Err(format!("{place} has not the scheme of {}", self.server)));
        }
        let request = format!("{}/manifests/latest", ask(path.trim_end_matches('/')));
        let upstream = &self.sample.upstream;
        Some(self.sample.is_at(&request, namespace).then_some(()).ok_or_else(|| {
            format!("{place} is the cache, but asked there for {upstream} the client gets something else or nothing")
        }))
    }

    /// Whether one of these mirrors is the cache, and whether it is configured correctly.
    pub(super) fn named(
        &self,
        path: &Path,
        key: &str,
        mirrors: impl Iterator<Item = Option<Result<(), String>>>,
    ) -> Found {
        let shown = path.display();
        if let Some(led) = first_good(mirrors.flatten()) {
            return led.map(|()| self.sent(path, "")).map_err(|what| format!("{shown}: {what}"));
        }
        let missing = if path.exists() { "names no" } else { "is not there, and with it no" };
        Err(format!("{shown} {missing} `{key}` for {} that is the cache", self.sample.upstream))
    }
}

/// The first result without a problem, or else the first one.
pub(super) fn first_good(mut found: impl Iterator<Item = Result<(), String>>) -> Option<Result<(), String>> {
    let first = found.next()?;
    if first.is_err() && found.any(|led| led.is_ok()) { Some(Ok(())) } else { Some(first) }
}

/// What a configuration says of the cache. `Err`: what is missing from it, which `stopover setup` prints.
pub(super) type Found = Result<Verdict, String>;

/// Reads and parses a file. `None`: it does not exist.
fn read<T, E: std::fmt::Display>(path: &Path, parse: impl Fn(&str) -> Result<T, E>) -> Result<Option<T>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).map(Some).map_err(|error| format!("{} cannot be used: {error}", path.display())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

pub(super) fn read_toml(path: &Path) -> Result<Option<Value>, String> {
    read(path, |text| toml::from_str(text))
}

fn all(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// The strings in a list.
pub(super) fn list(value: Option<&Value>) -> impl Iterator<Item = &str> {
    all(value).filter_map(Value::as_str)
}

/// The files that a path matches, in order: several if its last component has a `*`.
pub(super) fn matching(path: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Vec::new();
    };
    if !name.contains('*') {
        return vec![path.to_owned()];
    }
    let pattern = Pattern::from(name);
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| pattern.matches(name)));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| !path.is_dir()).collect();
    files.sort();
    files
}

/// A text of a table of registries.conf; an empty one counts as none.
fn text<'a>(table: &'a Value, key: &str) -> Option<&'a str> {
    table.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// What the names begin with that a registry of registries.conf is for.
fn prefix(registry: &Value) -> &str {
    text(registry, "prefix").or_else(|| text(registry, "location")).unwrap_or_default()
}

/// Whether a prefix of registries.conf is for this repository.
fn covers(prefix: &str, repository: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = repository.split('/').next().unwrap_or_default();
        return domain.starts_with('.') && host.ends_with(domain);
    }
    let rest = repository.strip_prefix(prefix).filter(|_| !prefix.is_empty());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
