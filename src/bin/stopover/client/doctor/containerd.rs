//! What containerd does with its configuration, which depends on its version and on that of the file. The sources are its
//! docs/cri/config.md, docs/hosts.md, `ValidateImageConfig` and `CheckLocalImagePullConfigs`.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use regex_lite::Regex;
use serde_json::{Value, json};

use super::configured::{Files, Found, first_good, list, matching, read_toml};
use super::installed::{Version, has_kubernetes};
use super::{Problem, Verdict};

/// containerd's own configuration.
const CONTAINERD: &str = "/etc/containerd/config.toml";

/// Where hosts.toml files are, unless the configuration names another directory.
const CERTS_D: &str = "/etc/containerd/certs.d";

/// What its files have containerd do for Kubernetes.
struct Cri {
    /// `None`: it is not known.
    told: Option<Version>,
    /// As told, or one that goes with the files.
    version: Version,
    /// How the files call the plugin that pulls.
    plugin: &'static str,
    /// What each file says of it, in the order in which they are read.
    sections: Vec<(PathBuf, Value)>,
    disabled: bool,
    /// Whether any file names mirrors, for this plugin or as another version calls it.
    names_mirrors: bool,
}

impl Cri {
    fn new(files: &[(PathBuf, Value)], told: Option<Version>) -> Self {
        // The file that is read last decides. Files without a version are of version 1.
        let written = |(_, config): &(_, Value)| config.get("version")?.as_i64().filter(|&format| format > 0);
        let format = files.iter().rev().find_map(written).unwrap_or(if files.is_empty() { 2 } else { 1 });
        let version = told.unwrap_or(if format > 2 { (2, 3, 0) } else { (1, 7, 0) });
        let old = version < (2, 0, 0);
        // containerd 2 takes over what files say in the words of 1, in place of what they say in its own.
        let names = [
            ("io.containerd.grpc.v1.cri", if old { format > 1 } else { format < 3 }),
            ("cri", format == 1),
            ("io.containerd.cri.v1.images", !old),
        ];
        let names = || names.into_iter().filter_map(|(name, read)| read.then_some(name));
        let section = |name: &str| {
            let of =
                |(path, config): &(PathBuf, Value)| Some((path.clone(), config.get("plugins")?.get(name)?.clone()));
            files.iter().filter_map(of).collect::<Vec<_>>()
        };
        let plugin = names().find(|name| !section(name).is_empty()).or_else(|| names().next()).unwrap_or_default();
        let mut sections = section(plugin);
        // In containerd 1 a later file replaces the whole section, in containerd 2 only what it sets.
        sections.drain(..if old { sections.len().saturating_sub(1) } else { 0 });
        let mut off = files.iter().flat_map(|(_, config)| list(config.get("disabled_plugins")));
        let disabled = off.any(|off| names().any(|name| name == off));
        let plugins = files.iter().filter_map(|(_, config)| config.get("plugins")?.as_object());
        let keys = ["/registry/config_path", "/registry/mirrors"];
        let says = |plugin: &Value| keys.iter().any(|key| plugin.pointer(key).is_some_and(|value| *value != json!("")));
        let names_mirrors = plugins.flat_map(|plugins| plugins.values()).any(says);
        Self { told, version, plugin, sections, disabled, names_mirrors }
    }

    fn get(&self, pointer: &str) -> Option<&Value> {
        let empty = |value: &Value| *value == json!("") || *value == json!({});
        self.sections.iter().rev().filter_map(|(_, section)| section.pointer(pointer)).find(|value| !empty(value))
    }

    /// A setting that version 2 of the file has in a table of its own.
    fn option(&self, key: &str) -> Option<&Value> {
        self.get(&format!("/{key}")).or_else(|| self.get(&format!("/containerd/{key}")))
    }

    /// The directories of hosts.toml, separated by `:`. From 2.2 on there is a default, which 2.2.2 and later leave out
    /// beside `mirrors` (containerd#12612).
    fn config_path(&self) -> Option<&str> {
        let alone = self.get("/registry/mirrors").is_none();
        let has_default = |version| version >= (2, 2, 0) && (version < (2, 2, 2) || alone);
        let default = self.told.is_some_and(has_default).then_some("/etc/containerd/certs.d:/etc/docker/certs.d");
        self.get("/registry/config_path").and_then(Value::as_str).or(default)
    }

    /// Whether pulls go through the transfer service, which takes a list in `config_path` for one directory
    /// (containerd#12415). What that service cannot do has containerd pull as it did before.
    fn is_transferred(&self) -> bool {
        let is = |key: &str, value: bool| self.option(key) == Some(&json!(value));
        let asked = ["use_local_image_pull", "discard_unpacked_layers", "image_pull_with_sync_fs"];
        let kept = asked.iter().any(|key| is(key, true)) || is("disable_snapshot_annotations", false);
        let downloads = self.option("max_concurrent_downloads").is_some_and(|most| *most != json!(3));
        let logins = ["/registry/configs", "/registry/auths"].iter().any(|key| self.get(key).is_some());
        self.version >= (2, 1, 0) && !kept && !downloads && !logins
    }

    /// What keeps the plugin from loading beside a `config_path`.
    fn conflict(&self) -> Option<&'static str> {
        let configs = self.get("/registry/configs").and_then(Value::as_object).into_iter().flatten();
        let tls = self.version < (2, 0, 0) && configs.into_iter().any(|(_, config)| config.get("tls").is_some());
        self.get("/registry/mirrors").map(|_| "mirrors").or_else(|| tls.then_some("configs.*.tls"))
    }
}

impl Files<'_> {
    pub(super) fn containerd(&self) -> Found {
        let cri = self.cri()?;
        let path = cri.sections.last().map_or_else(|| self.path(CONTAINERD), |(path, _)| path.clone());
        // What pulls without the plugin, as nerdctl does, needs no `config_path`.
        let config_path = if cri.disabled { Some(CERTS_D) } else { cri.config_path() };
        let mirrored = match cri.get("/registry/mirrors").map(|mirrors| self.endpoints(&path, mirrors)) {
            Some(Ok(sent)) if config_path.is_none() => return Ok(sent),
            mirrored => mirrored.and_then(Result::err),
        };
        let directories = config_path.unwrap_or(CERTS_D);
        let hosts = self.hosts(directories);
        let one = directories.split(':').find(|directory| self.hosts(directory).is_ok());
        let one = one.or(directories.split(':').next()).unwrap_or(CERTS_D);
        let (shown, table) = (path.display(), format!("plugins.\"{}\".registry", cri.plugin));
        let begin = if path.exists() { "" } else { "`version = 2` and " };
        let set =
            format!("in {shown}, set {begin}config_path = \"{one}\" in [{table}]; then: systemctl restart containerd");
        let remove = |key| format!("remove [{table}.{key}], which hosts.toml replaces; {set}");
        let fix = cri.conflict().map_or_else(|| set.clone(), remove);
        let past = "Kubernetes' pulls use no mirror";
        let what = match (config_path, cri.conflict()) {
            _ if cri.disabled => None,
            (Some(_), Some(key)) => {
                Some(format!("{shown} has `{key}` beside a config_path: Kubernetes cannot use this containerd"))
            }
            (Some(all), None) if all.contains(':') && cri.is_transferred() => {
                Some(format!("config_path is {all}, which is taken for one directory: {past}"))
            }
            // Where the version of containerd is not known, neither is its default.
            (None, _) if mirrored.is_some() => mirrored,
            (None, _) if self.containerd.is_some() || has_kubernetes() || hosts.is_err() || cri.names_mirrors => {
                Some(format!("{shown} has no config_path in [{table}], without which {past}"))
            }
            _ => None,
        };
        let place = if one == CERTS_D { String::new() } else { format!("CERTS_D={one} ") };
        let write =
            format!("stopover setup containerd --server {}{} | sudo {place}sh", self.server, self.upstream_option());
        let missing = hosts.as_ref().err().map(|what| Problem::new(what, write));
        let problems = missing.into_iter().chain(what.map(|what| Problem::new(what, fix))).chain(self.parallel(&cri)?);
        let note = if config_path.is_none() { format!(". If Kubernetes pulls with it, {set}") } else { String::new() };
        let both = problems.reduce(|one, other| one.and(&other));
        both.map_or_else(|| Ok(self.sent(&hosts?, &note)), |problem| Ok(Verdict::Bad(problem)))
    }

    /// The snapshotter that pulls layers by itself, from the registry in the name of the image (soci-snapshotter#1013).
    fn parallel(&self, cri: &Cri) -> Result<Option<Problem>, String> {
        let path = self.path("/etc/soci-snapshotter-grpc/config.toml");
        let soci = read_toml(&path)?.unwrap_or_default();
        let enabled = soci.pointer("/pull_modes/parallel_pull_unpack/enable") == Some(&json!(true));
        let what = "SOCI's parallel pull asks no mirror for layers, whatever hosts.toml says";
        let table = format!("[pull_modes.parallel_pull_unpack] of {}", path.display());
        let fix = format!("name images {}, or set enable = false in {table}", self.through_cache());
        Ok((enabled && cri.option("snapshotter") == Some(&json!("soci"))).then(|| Problem::new(what, fix)))
    }

    /// `mirrors`, which containerd reads up to 2.3 where it has no `config_path`.
    fn endpoints(&self, path: &Path, mirrors: &Value) -> Found {
        let mirror = mirrors.get(&self.sample.upstream).or_else(|| mirrors.get("*"));
        let scheme = if self.server.is_here() { "http" } else { "https" };
        let asked = |endpoint| self.endpoint(endpoint, scheme, self.sample.path.as_str());
        self.named(path, "endpoint", list(mirror.and_then(|mirror| mirror.get("endpoint"))).map(asked))
    }

    fn cri(&self) -> Result<Cri, String> {
        self.containerd_files().map(|files| Cri::new(&files, self.containerd))
    }

    /// Whether containerd's configuration says nothing of registries.
    pub(super) fn has_no_mirrors(&self) -> bool {
        self.cri().is_ok_and(|cri| cri.get("/registry").is_none())
    }

    /// The directory that has the registry's hosts.toml.
    pub(super) fn hosts_directory(&self) -> Option<PathBuf> {
        let registry = self.registry_directory(self.cri().ok()?.config_path().unwrap_or(CERTS_D))?;
        registry.parent().map(Path::to_owned)
    }

    /// The directory of a registry in these: the first that exists counts, whatever it has.
    fn registry_directory(&self, directories: &str) -> Option<PathBuf> {
        let registry = &self.sample.upstream;
        // Not every file system allows a colon in a name.
        let underscored = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
        let names = [underscored.as_deref().unwrap_or(registry), registry, "_default"];
        let places = |directory| names.map(|name| self.path(directory).join(name));
        directories.split(':').flat_map(places).find(|place| place.exists())
    }

    /// The path of containerd's socket.
    pub(super) fn containerd_socket(&self) -> String {
        let address = |(_, config): &(_, Value)| config.pointer("/grpc/address")?.as_str().map(str::to_owned);
        let files = self.containerd_files().unwrap_or_default();
        files.iter().rev().find_map(address).unwrap_or_else(|| "/run/containerd/containerd.sock".to_owned())
    }

    /// containerd's configuration and its imports, each file once, in the order in which it reads them.
    fn containerd_files(&self) -> Result<Vec<(PathBuf, Value)>, String> {
        let (mut waiting, mut seen, mut files) = (VecDeque::from([self.path(CONTAINERD)]), BTreeSet::new(), Vec::new());
        while let Some(path) = waiting.pop_front() {
            // In its canonical form: `a/../config.toml` would be another file each time.
            if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                continue;
            }
            let Some(config) = read_toml(&path)? else { continue };
            for import in list(config.get("imports")) {
                let import = match Path::new(import) {
                    absolute if absolute.is_absolute() => self.path(import),
                    relative => path.with_file_name("").join(relative),
                };
                waiting.extend(matching(&import));
            }
            files.push((path, config));
        }
        Ok(files)
    }

    /// The hosts.toml in these directories, separated by `:`, that sends pulls from the registry to the cache.
    pub(super) fn hosts(&self, directories: &str) -> Result<PathBuf, String> {
        let none = || format!("no hosts.toml in {directories} sends {} to the cache", self.sample.upstream);
        let path = self.registry_directory(directories).ok_or_else(none)?.join("hosts.toml");
        let hosts = read_toml(&path)?.ok_or_else(none)?;
        let mirrors = hosts.get("host").and_then(Value::as_object).into_iter().flatten();
        let server = hosts.get("server").and_then(Value::as_str).map(|server| (server, &hosts));
        let places: Vec<_> = mirrors.map(|(place, host)| (place.as_str(), host)).chain(server).collect();
        let read = places.iter().try_for_each(|(_, host)| self.check_host(host));
        let led =
            read.map(|()| first_good(places.iter().filter_map(|(place, host)| self.containerd_host(place, host))));
        match led {
            Ok(None) => Err(format!("{} names no host that is the cache", path.display())),
            Err(what) | Ok(Some(Err(what))) => Err(format!("{}: {what}", path.display())),
            Ok(Some(Ok(()))) => Ok(path),
        }
    }

    /// What keeps containerd from reading the file that has this host.
    fn check_host(&self, host: &Value) -> Result<(), String> {
        let known = ["pull", "resolve", "push", "referrers"];
        let mut unknown = list(host.get("capabilities")).filter(|name| !known.contains(&&*name.to_ascii_lowercase()));
        // Go's time.ParseDuration.
        let duration = Regex::new(r"^[+-]?(0|((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+)$").ok();
        let is =
            |value: &Value| duration.is_some_and(|duration| value.as_str().is_some_and(|text| duration.is_match(text)));
        let read = self.containerd.is_none_or(|version| version >= (2, 1, 0));
        match (unknown.next(), host.get("dial_timeout")) {
            (Some(name), _) => Err(format!("for the capability {name:?} containerd ignores the file")),
            (_, Some(timeout)) if read && !is(timeout) => {
                Err(format!("dial_timeout is {timeout}, and not like \"5s\", for which containerd ignores the file"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a host of a hosts.toml is the cache. containerd adds `https` if there is no scheme, and `/v2` to the
    /// path unless `override_path` is set. Without `capabilities`, a host has all of them.
    fn containerd_host(&self, place: &str, host: &Value) -> Option<Result<(), String>> {
        let whole = host.get("override_path") == Some(&json!(true));
        let name = &self.sample.path;
        let led = self.leads(place, "https", true, |path| {
            let version = if whole || path.ends_with("/v2") { "" } else { "/v2" };
            format!("{path}{version}/{name}")
        })?;
        let listed: Vec<_> = list(host.get("capabilities")).map(str::to_ascii_lowercase).collect();
        let lacks = |capability: &str| !listed.is_empty() && !listed.iter().any(|listed| listed == capability);
        let lacking =
            [("resolve", "tags go"), ("pull", "content goes")].into_iter().find(|(capability, _)| lacks(capability));
        Some(led.and_then(|()| match lacking {
            Some((capability, what)) => {
                Err(format!("it names the cache without the capability {capability:?}: {what} past it"))
            }
            None => Ok(()),
        }))
    }
}
