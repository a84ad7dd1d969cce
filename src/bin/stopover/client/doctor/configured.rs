//! Whether a client's own configuration names the cache for the registry of the sample.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use stopover::config::DEFAULT_UPSTREAM;
use stopover::values::pattern::Pattern;
use toml::{Table, Value};

use super::{Problem, Sample, Verdict};
use crate::client::{Endpoint, Target};

/// containerd's own configuration.
const CONTAINERD: &str = "/etc/containerd/config.toml";

/// Where containerd finds hosts.toml files, unless its configuration names another directory.
const CERTS_D: &str = "/etc/containerd/certs.d";

/// Where configurations are, and the sample and the cache that they have to name.
pub(super) struct Files<'a> {
    pub(super) root: &'a Path,
    pub(super) server: &'a Endpoint,
    pub(super) sample: &'a Sample,
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

    /// A path below the root that is examined.
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
        let mirrors = daemon.get("registry-mirrors").and_then(|mirrors| mirrors.as_array()).into_iter().flatten();
        let mirrors = mirrors.filter_map(|mirror| mirror.as_str());
        // dockerd puts a path before `/v2/` (24.0.9 and later), and has no default for the scheme.
        let name = &self.sample.path;
        let asked = |mirror| self.leads(mirror, "", false, |path| format!("{path}/v2/{name}"));
        self.named(&path, "registry-mirrors", mirrors.map(asked))
    }

    fn containerd(&self) -> Found {
        let config_path = self.config_path()?;
        let hosts = self.hosts_file(config_path.as_deref());
        if config_path.is_some() {
            return hosts.map(Ok);
        }
        let path = self.path(CONTAINERD);
        let missing = format!("{} has no config_path, without which Kubernetes' pulls use no mirror", path.display());
        Err(hosts.err().map_or_else(|| missing.clone(), |what| format!("{missing}; and {what}")))
    }

    /// The hosts.toml that sends pulls from the registry to the cache.
    fn hosts_file(&self, config_path: Option<&str>) -> Result<PathBuf, String> {
        let directories = config_path.unwrap_or(CERTS_D);
        let found = directories.split(':').find_map(|directory| self.hosts(&self.path(directory)).transpose());
        found.unwrap_or_else(|| {
            Err(format!("no hosts.toml in {directories} sends {} to the cache", self.sample.upstream))
        })
    }

    /// The first directory in which containerd finds a hosts.toml for the registry, whatever that says. `None`: there
    /// is none.
    pub(super) fn hosts_directory(&self) -> Option<PathBuf> {
        let directories = self.config_path().ok()?.unwrap_or_else(|| CERTS_D.to_owned());
        let mut directories = directories.split(':').map(|directory| self.path(directory));
        directories.find(|directory| self.hosts_names().iter().any(|name| directory.join(name).is_dir()))
    }

    /// The names that the directory of a registry's hosts.toml may have: the first one that exists counts.
    fn hosts_names(&self) -> Vec<String> {
        let registry = &self.sample.upstream;
        // Not every file system allows a colon in a name.
        let underscored = registry.split_once(':').map(|(host, port)| format!("{host}_{port}_"));
        [Some(registry.clone()), underscored, Some("_default".into())].into_iter().flatten().collect()
    }

    /// The path of containerd's socket.
    pub(super) fn containerd_socket(&self) -> String {
        let address = |config: &Table| config.get("grpc")?.get("address")?.as_str().map(str::to_owned);
        let files = self.containerd_files().unwrap_or_default();
        files.iter().rev().find_map(address).unwrap_or_else(|| "/run/containerd/containerd.sock".to_owned())
    }

    /// The directories of hosts.toml that containerd's CRI plugin reads.
    pub(super) fn config_path(&self) -> Result<Option<String>, String> {
        // The names of the plugin in containerd 2 and 1.
        let plugins = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"];
        let directories = |config: &Table| {
            let value = |plugin| config.get("plugins")?.get(plugin)?.get("registry")?.get("config_path")?.as_str();
            let directories = plugins.into_iter().find_map(value).filter(|directories| !directories.is_empty());
            directories.map(str::to_owned)
        };
        Ok(self.containerd_files()?.iter().rev().find_map(directories))
    }

    /// containerd's configuration and its imports, each file once: a file that is read later overrides the ones before.
    fn containerd_files(&self) -> Result<Vec<Table>, String> {
        let (mut waiting, mut seen, mut files) = (VecDeque::from([self.path(CONTAINERD)]), BTreeSet::new(), Vec::new());
        while let Some(path) = waiting.pop_front() {
            // In its canonical form: `a/../config.toml` would be another file each time.
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
        for name in self.hosts_names() {
            let path = directory.join(name).join("hosts.toml");
            let Some(hosts) = read_toml(&path)? else { continue };
            let mirrors = hosts.get("host").and_then(Value::as_table).into_iter().flatten();
            let mirrors = mirrors.filter_map(|(place, mirror)| Some((place.as_str(), mirror.as_table()?)));
            let servers = strings(hosts.get("server")).map(|server| (server, &hosts));
            let asked = |(place, mirror): (&str, _)| Some((self.containerd_host(place, mirror)?, mirror));
            let cache: Vec<_> = mirrors.chain(servers).filter_map(asked).collect();
            // containerd uses the first file that exists, whatever it says.
            let Some((first, _)) = cache.first() else { return Ok(None) };
            let usable: Vec<&Table> = cache.iter().filter(|(led, _)| led.is_ok()).map(|(_, mirror)| *mirror).collect();
            if let (Err(what), []) = (first, &usable[..]) {
                return Err(format!("{}: {what}", path.display()));
            }
            // Without `capabilities`, a host has all of them.
            let listed = |mirror: &Table, wanted: &str| {
                mirror.get("capabilities").is_none_or(|listed| strings(Some(listed)).any(|listed| listed == wanted))
            };
            let can = |wanted: &str| usable.iter().any(|mirror| listed(mirror, wanted));
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

    /// Whether a host of a hosts.toml is the cache. containerd adds `https` if there is no scheme, and `/v2` to the
    /// path unless `override_path` is set.
    fn containerd_host(&self, place: &str, mirror: &Table) -> Option<Result<(), String>> {
        let whole = mirror.get("override_path").and_then(Value::as_bool).unwrap_or_default();
        let name = &self.sample.path;
        self.leads(place, "https", true, |path| {
            let version = if whole || path.ends_with("/v2") { "" } else { "/v2" };
            format!("{path}{version}/{name}")
        })
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
        let text = |table: &Value, key: &str| table.get(key).and_then(Value::as_str).map(str::to_owned);
        // A location replaces the prefix; a `*` in the prefix stands for the whole host.
        let prefix = text(&registry, "prefix").or_else(|| text(&registry, "location")).unwrap_or_default();
        let prefix = if prefix.starts_with('*') { &self.sample.upstream } else { &prefix };
        let rest = self.sample.repository.strip_prefix(prefix.as_str()).unwrap_or_default();
        let asked = |place: &Value| {
            let location = text(place, "location").unwrap_or_default();
            self.leads(&location, self.server.url().scheme(), false, |path| format!("/v2{path}{rest}"))
        };
        let mirrors = registry.get("mirror").and_then(Value::as_array).into_iter().flatten();
        // A mirror may be limited to one kind of pull; the registry's own location cannot.
        let partial = |mirror: &Value| match text(mirror, "pull-from-mirror").as_deref() {
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
            Some(led) => led.map(|()| Ok(path.clone())).map_err(|what| format!("{shown}: {what}")),
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
        let found = self.named(&path, "mirrors", strings(of(&self.sample.upstream, "mirrors")).map(asked));
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
        let name = &self.sample.path;
        let asked = |endpoint| {
            self.leads(endpoint, "https", true, |path| format!("{}/{name}", if path.is_empty() { "/v2" } else { path }))
        };
        self.named(&path, "endpoint", endpoints.filter_map(|endpoint| endpoint.as_str()).map(asked))
    }

    /// Whether a place of a configuration, which may have a scheme, is the cache; if it is, what is wrong with it.
    /// `ask` says how the client joins the path of the place (`/<path>` or nothing) and the sample's name, and
    /// `namespace` whether the client also sends `?ns=`.
    fn leads(
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
    fn named(&self, path: &Path, key: &str, mirrors: impl Iterator<Item = Option<Result<(), String>>>) -> Found {
        let shown = path.display();
        if let Some(led) = first_good(mirrors.flatten()) {
            return led.map(|()| Ok(path.to_owned())).map_err(|what| format!("{shown}: {what}"));
        }
        let missing = if path.exists() { "names no" } else { "is not there, and with it no" };
        Err(format!("{shown} {missing} `{key}` for {} that is the cache", self.sample.upstream))
    }
}

/// The first result without a problem, or else the first one.
fn first_good(mut found: impl Iterator<Item = Result<(), String>>) -> Option<Result<(), String>> {
    let first = found.next()?;
    if first.is_err() && found.any(|led| led.is_ok()) { Some(Ok(())) } else { Some(first) }
}

/// The file that names the cache, or why no file can. `Err`: what is wrong with the configuration.
type Found = Result<Result<PathBuf, String>, String>;

/// Reads and parses a file. `None`: it does not exist.
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

/// The strings in a value that is a string or a list.
fn strings(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let listed = value.and_then(Value::as_array).into_iter().flatten();
    value.into_iter().chain(listed).filter_map(Value::as_str)
}

/// The files that a path matches, in order: several if its last component has a `*`.
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
