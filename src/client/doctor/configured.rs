//! Whether a client's own configuration names the cache for the registry of the sample.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use stopover::config::DEFAULT_UPSTREAM;
use stopover::freshness::Pattern;
use toml::{Table, Value};

use super::{Problem, Sample, Verdict};
use crate::client::{Endpoint, Target};

/// containerd's own configuration.
const CONTAINERD: &str = "/etc/containerd/config.toml";

/// Where configurations are, and what they have to say.
pub(super) struct Files<'a> {
    pub(super) root: &'a Path,
    pub(super) server: &'a Endpoint,
    pub(super) sample: &'a Sample,
}

impl Target {
    /// The clients of this machine. Docker has a containerd of its own, which nobody else pulls with.
    pub(super) fn found() -> Vec<Self> {
        let any = |programs: &[&str]| programs.iter().any(|program| is_installed(program));
        let containerd = any(&["containerd"]) && (!any(&["dockerd"]) || any(&["crictl", "nerdctl", "kubelet"]));
        let found = [
            (Self::Docker, any(&["dockerd"])),
            (Self::Containerd, containerd),
            (Self::CriO, any(&["crio"])),
            (Self::Podman, any(&["podman", "buildah", "skopeo"])),
            (Self::Buildkit, any(&["buildkitd"])),
            (Self::K3s, any(&["k3s"])),
        ];
        found.into_iter().filter_map(|(client, found)| found.then_some(client)).collect()
    }
}

/// Whether a program is in one of the directories of `PATH`.
pub(super) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

impl Files<'_> {
    /// What the configuration of this client says.
    pub(super) fn of(&self, client: Target) -> Verdict {
        let found = match client {
            Target::Docker => self.docker(),
            Target::Containerd => self.containerd(),
            Target::CriO | Target::Podman => self.registries(),
            Target::Buildkit => self.buildkit(),
            Target::K3s => self.k3s(),
            _ => Ok(Err("it has no configuration on a machine: `stopover setup` says what it is given".to_owned())),
        };
        match found {
            Ok(Ok(path)) => Verdict::Good(format!("{} sends {} to the cache", path.display(), self.sample.upstream)),
            Ok(Err(unknown)) => Verdict::Unknown(unknown),
            Err(what) => {
                let name = client.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
                let upstream = self.sample.id.as_ref().map_or_else(String::new, |id| format!(" --upstream {id}"));
                let fix = format!("stopover setup {name} --server {}{upstream} prints what is missing", self.server);
                Verdict::Bad(Problem::new(what, fix))
            }
        }
    }

    /// A path of the machine that is looked at.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn docker(&self) -> Found {
        if let Some(path) = self.hosts(&self.path("/etc/docker/certs.d"))? {
            return Ok(Ok(path));
        }
        if self.sample.upstream != DEFAULT_UPSTREAM {
            let Sample { id, path, .. } = self.sample;
            let named = |id| format!(": the image is {}/{id}/{path} for it", self.server.host());
            return Ok(Err(format!("Docker mirrors only docker.io{}", id.as_ref().map(named).unwrap_or_default())));
        }
        let path = self.path("/etc/docker/daemon.json");
        let daemon: serde_json::Value = read(&path, |text| serde_json::from_str(text))?.unwrap_or_default();
        let mirrors = daemon["registry-mirrors"].as_array().into_iter().flatten().filter_map(|mirror| mirror.as_str());
        self.named(&path, "registry-mirrors", mirrors)
    }

    fn containerd(&self) -> Found {
        let directories = self.config_path()?.ok_or_else(|| {
            let path = self.path(CONTAINERD);
            format!("{} has no config_path, without which Kubernetes' pulls use no mirror", path.display())
        })?;
        for directory in directories.split(':') {
            if let Some(path) = self.hosts(&self.path(directory))? {
                return Ok(Ok(path));
            }
        }
        Err(format!("no hosts.toml in {directories} sends {} to the cache", self.sample.upstream))
    }

    /// The directory of hosts.toml in which containerd finds the registry: none if it finds it nowhere.
    pub(super) fn hosts_directory(&self) -> Option<PathBuf> {
        let hosts = self.containerd().ok()?.ok()?;
        hosts.parent()?.parent().map(Path::to_owned)
    }

    /// The socket of containerd.
    pub(super) fn containerd_socket(&self) -> String {
        let address = |config: &Table| config.get("grpc")?.get("address")?.as_str().map(str::to_owned);
        let files = self.containerd_files().unwrap_or_default();
        files.iter().rev().find_map(address).unwrap_or_else(|| "/run/containerd/containerd.sock".to_owned())
    }

    /// The directories of hosts.toml that containerd's CRI plugin reads.
    fn config_path(&self) -> Result<Option<String>, String> {
        // containerd 2 and 1.
        let plugins = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"];
        let directories = |config: &Table| {
            let value = |plugin| config.get("plugins")?.get(plugin)?.get("registry")?.get("config_path")?.as_str();
            let directories = plugins.into_iter().find_map(value).filter(|directories| !directories.is_empty());
            directories.map(str::to_owned)
        };
        Ok(self.containerd_files()?.iter().rev().find_map(directories))
    }

    /// containerd's configuration and what it imports, each file once: what is read later replaces what was before.
    fn containerd_files(&self) -> Result<Vec<Table>, String> {
        let (mut waiting, mut seen, mut files) = (VecDeque::from([self.path(CONTAINERD)]), BTreeSet::new(), Vec::new());
        while let Some(path) = waiting.pop_front() {
            // However it is written: `a/../config.toml` would be another one each time.
            if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                continue;
            }
            let Some(config) = read_toml(&path)? else { continue };
            for import in strings(config.get("imports")) {
                let import = match Path::new(import) {
                    absolute if absolute.is_absolute() => self.path(import),
                    relative => path.with_file_name("").join(relative),
                };
                waiting.extend(matching(&import));
            }
            files.push(config);
        }
        Ok(files)
    }

    /// The hosts.toml in this directory that is for the registry, if it names the cache.
    fn hosts(&self, directory: &Path) -> Result<Option<PathBuf>, String> {
        let registry = &self.sample.upstream;
        // A colon cannot stand in a path everywhere.
        let underscored = registry.split_once(':').map(|(host, port)| format!("{host}_{port}_"));
        for name in [Some(registry.clone()), underscored, Some("_default".into())].into_iter().flatten() {
            let path = directory.join(name).join("hosts.toml");
            let Some(hosts) = read_toml(&path)? else { continue };
            let mirrors = hosts.get("host").and_then(Value::as_table).into_iter().flatten();
            let mirrors = mirrors.map(|(place, mirror)| (place.as_str(), mirror.get("capabilities")));
            let servers = strings(hosts.get("server")).map(|server| (server, hosts.get("capabilities")));
            // Without a scheme it is https, and without capabilities it has all of them.
            let is_cache =
                |place: &str| self.server.is_at(place) && (place.starts_with("http") || !self.server.is_plain());
            let cache: Vec<_> = mirrors.chain(servers).filter(|(place, _)| is_cache(place)).collect();
            let can = |wanted: &str| {
                cache.iter().any(|(_, listed)| listed.is_none() || strings(*listed).any(|listed| listed == wanted))
            };
            // The first one that is there counts, whatever it says.
            if cache.is_empty() {
                return Ok(None);
            }
            for (capability, what) in [("resolve", "tags go"), ("pull", "content goes")] {
                if !can(capability) {
                    let path = path.display();
                    return Err(format!(
                        "{path} names the cache without the capability {capability:?}: {what} past it"
                    ));
                }
            }
            return Ok(Some(path));
        }
        Ok(None)
    }

    /// containers-registries.conf(5): the longest prefix counts, of equal ones the last.
    fn registries(&self) -> Found {
        let (mut best, mut longest) = (None, 0);
        for path in self.registries_files() {
            let config = read_toml(&path)?.unwrap_or_default();
            for registry in config.get("registry").and_then(Value::as_array).into_iter().flatten() {
                let text = |key: &str| registry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
                let prefix = text("prefix").or_else(|| text("location")).unwrap_or_default();
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
        let mirrors = registry.get("mirror").and_then(Value::as_array).into_iter().flatten();
        let location =
            |place: &&Value| self.server.is_at(place.get("location").and_then(Value::as_str).unwrap_or_default());
        match mirrors.chain([&registry]).find(location) {
            None => {
                Err(format!("{shown} has a [[registry]] for {}, but no mirror that is the cache", self.sample.upstream))
            }
            Some(place) if self.server.is_plain() && !flag(place, "insecure") => {
                Err(format!("{shown} does not say `insecure = true` of the cache, which is plain HTTP"))
            }
            Some(_) => Ok(Ok(path)),
        }
    }

    /// The files that containers/image reads, in that order. A user's own replaces that of the machine.
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
        let found = self.named(&path, "mirrors", strings(of(&self.sample.upstream, "mirrors")));
        let plain = of(self.server.host(), "http").and_then(Value::as_bool).unwrap_or_default();
        if found.is_ok() && self.server.is_plain() && !plain {
            let host = self.server.host();
            return Err(format!("{} does not say `http = true` in [registry.\"{host}\"]", path.display()));
        }
        found
    }

    fn k3s(&self) -> Found {
        let path = self.path("/etc/rancher/k3s/registries.yaml");
        let config: serde_yaml_ng::Value = read(&path, |text| serde_yaml_ng::from_str(text))?.unwrap_or_default();
        let mirror = |registry: &str| config.get("mirrors")?.get(registry);
        let endpoints = mirror(&self.sample.upstream).or_else(|| mirror("*")).and_then(|mirror| mirror.get("endpoint"));
        let endpoints = endpoints.and_then(|endpoints| endpoints.as_sequence()).into_iter().flatten();
        self.named(&path, "endpoint", endpoints.filter_map(|endpoint| endpoint.as_str()))
    }

    /// Whether one of these places is the cache.
    fn named<'a>(&self, path: &Path, key: &str, mut places: impl Iterator<Item = &'a str>) -> Found {
        if places.any(|place| self.server.is_at(place)) {
            return Ok(Ok(path.to_owned()));
        }
        let missing = if path.exists() { "names no" } else { "is not there, and with it no" };
        Err(format!("{} {missing} `{key}` for {} that is the cache", path.display(), self.sample.upstream))
    }
}

/// The file that names the cache, or why no file can; else what is wrong with it.
type Found = Result<Result<PathBuf, String>, String>;

/// Reads and parses a file. `None`: there is none.
fn read<T, E: std::fmt::Display>(path: &Path, parse: impl Fn(&str) -> Result<T, E>) -> Result<Option<T>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).map(Some).map_err(|error| format!("{} cannot be used: {error}", path.display())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

fn read_toml(path: &Path) -> Result<Option<Table>, String> {
    read(path, |text| toml::from_str(text))
}

/// A string, or a list of them.
fn strings(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let listed = value.and_then(Value::as_array).into_iter().flatten();
    value.into_iter().chain(listed).filter_map(Value::as_str)
}

/// The files that a path means, in order: more than one if its last component has a `*`.
fn matching(path: &Path) -> Vec<PathBuf> {
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

/// Whether a prefix of registries.conf is for this repository.
fn covers(prefix: &str, repository: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = repository.split('/').next().unwrap_or_default();
        return domain.starts_with('.') && host.ends_with(domain);
    }
    let rest = repository.strip_prefix(prefix).filter(|_| !prefix.is_empty());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
