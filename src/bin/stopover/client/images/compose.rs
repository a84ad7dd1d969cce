//! Compose files, as the Compose specification says (compose-spec, 05-services, 14-include, 12-interpolation).

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde_yaml_ng::{Mapping, Value};

use super::dockerfile::dockerfile;
use super::document::{self, Lines};
use super::variables::substitute;
use super::{Listed, Surroundings};

/// How many files may include or extend each other in a row.
const DEEPEST: usize = 16;

/// What a file may have beside `include` and is still a Compose file.
const TOP: [&str; 9] =
    ["version", "name", "services", "include", "networks", "volumes", "configs", "secrets", "models"];

/// Whether a document is a Compose file: it has services by name, or includes other files, and nothing of other formats.
pub(super) fn is_compose(root: &Value) -> bool {
    let Some(entries) = root.as_mapping() else { return false };
    let known = |key: &Value| key.as_str().is_some_and(|key| TOP.contains(&key) || key.starts_with("x-"));
    let is_service = |service: &Value| !service.get("image").is_some_and(Value::is_mapping);
    let has_services = match entries.get("services") {
        Some(Value::Mapping(services)) => services.values().all(is_service),
        Some(_) => false,
        None => entries.contains_key("include"),
    };
    has_services && entries.keys().all(known)
}

/// Adds the images of the services in a Compose file, whatever their profile. What is built here brings what its
/// Dockerfile names, where that stands in the file.
pub(super) fn compose(
    root: &Value,
    text: &str,
    path: &Path,
    surroundings: &Surroundings,
    listed: &mut Listed,
) -> anyhow::Result<()> {
    let environment = environment(&path.with_file_name(".env"), surroundings.variable);
    let variable = |name: &str| (surroundings.variable)(name).or_else(|| environment.get(name).cloned());
    let surroundings = Surroundings { variable: &variable, ..*surroundings };
    let mut project = Project { lines: Lines { text, from: 0 }, surroundings: &surroundings, listed };
    for (_, service) in root.get("services").and_then(Value::as_mapping).into_iter().flatten() {
        project.service(&merged(service, root, path, DEEPEST)?);
    }
    for included in sequence(root.get("include")) {
        let files = sequence(included.get("env_file")).into_iter().filter_map(Value::as_str);
        let given: HashMap<String, String> =
            files.flat_map(|file| environment(&path.with_file_name(file), &variable)).collect();
        let variable = |name: &str| variable(name).or_else(|| given.get(name).cloned());
        let paths = included.get("path").unwrap_or(included);
        for name in sequence(Some(paths)).into_iter().filter_map(Value::as_str) {
            include(name, path, &Surroundings { variable: &variable, ..surroundings }, listed)?;
        }
    }
    Ok(())
}

fn include(name: &str, path: &Path, surroundings: &Surroundings, listed: &mut Listed) -> anyhow::Result<()> {
    let name = match substitute(name, None, surroundings.variable) {
        Ok(name) if !name.contains("://") && !name.starts_with("git@") => name,
        _ => {
            listed.skip(name, None, "it is included from elsewhere");
            return Ok(());
        }
    };
    let file = listed.file.clone();
    ensure!(listed.depth < DEEPEST, "the files include each other without end");
    listed.depth += 1;
    let read = listed.read(&path.with_file_name(&name), surroundings);
    listed.depth -= 1;
    listed.file = file;
    read
}

struct Project<'a, 'l> {
    lines: Lines<'a>,
    surroundings: &'a Surroundings<'a>,
    listed: &'l mut Listed,
}

impl Project<'_, '_> {
    fn service(&mut self, service: &Mapping) {
        let text = |key: &str| service.get(key).and_then(Value::as_str);
        for volume in sequence(service.get("volumes")) {
            if let (Some("image"), Some(image)) = (string(volume, "type"), string(volume, "source")) {
                self.image("source", image, None);
            }
        }
        match service.get("build").filter(|build| !build.is_null()) {
            Some(build) => self.build(build),
            None => self.image("image", text("image").unwrap_or_default(), text("platform")),
        }
    }

    fn image(&mut self, key: &str, image: &str, platform: Option<&str>) {
        let line = self.lines.find(key, image);
        let platform = platform.and_then(|platform| substitute(platform, None, self.surroundings.variable).ok());
        match substitute(image, None, self.surroundings.variable) {
            Ok(name) => self.listed.add(&name, platform.and_then(|platform| platform.parse().ok()), line),
            Err(unset) => self.listed.skip(image, line, &format!("the variable {unset} is not set")),
        }
    }

    /// Adds what a build takes from registries, as far as it stands in the file.
    fn build(&mut self, build: &Value) {
        let contexts = entries(build.get("additional_contexts"));
        for (_, context) in contexts.iter().filter(|(_, context)| context.starts_with("docker-image://")) {
            self.image("docker-image://", context, None);
        }
        if let Some(text) = string(build, "dockerfile_inline") {
            let arguments = entries(build.get("args"));
            let given = |name: &str| {
                let (_, value) = arguments.iter().find(|(known, _)| known == name)?;
                substitute(value, None, self.surroundings.variable).ok()
            };
            let above = self.lines.find("", text.trim_start()).map_or(0, |line| line.saturating_sub(1));
            dockerfile(text, self.surroundings.platforms, &given, above, self.listed);
        } else if contexts.is_empty() {
            self.listed.note("has a service that is built here: -f its Dockerfile names the images for that");
        }
    }
}

/// A service with what it has from the one that it extends.
fn merged(service: &Value, root: &Value, path: &Path, depth: usize) -> anyhow::Result<Mapping> {
    let own = service.as_mapping().cloned().unwrap_or_default();
    let Some(extends) = service.get("extends").filter(|extends| !extends.is_null()) else { return Ok(own) };
    let Some(depth) = depth.checked_sub(1) else { bail!("its services extend each other without end") };
    let name = extends.as_str().or_else(|| string(extends, "service")).unwrap_or_default();
    let mut base = match string(extends, "file") {
        Some(file) => {
            let path = path.with_file_name(file);
            let text = super::text(&path)?;
            let documents =
                document::parse(&text).with_context(|| format!("{} is no Compose file", path.display()))??;
            let other = documents.into_iter().next().unwrap_or_default();
            merged(service_of(&other, name)?, &other, &path, depth)?
        }
        None => merged(service_of(root, name)?, root, path, depth)?,
    };
    base.extend(own);
    Ok(base)
}

fn service_of<'a>(root: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let service = root.get("services").and_then(|services| services.get(name));
    service.with_context(|| format!("a service extends {name:?}, which there is not"))
}

fn string<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// The items of a sequence, or the one that stands in its place.
fn sequence(value: Option<&Value>) -> Vec<&Value> {
    match value {
        Some(Value::Sequence(items)) => items.iter().collect(),
        Some(value) => vec![value],
        None => Vec::new(),
    }
}

/// The entries of a mapping, or of a sequence of `name=value`.
fn entries(value: Option<&Value>) -> Vec<(String, String)> {
    match value {
        Some(Value::Mapping(entries)) => entries
            .iter()
            .filter_map(|(key, value)| Some((key.as_str()?.to_owned(), document::written(value)?)))
            .collect(),
        value => sequence(value)
            .into_iter()
            .filter_map(|item| item.as_str()?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    }
}

/// The variables of an environment file. Those of the environment go before them.
fn environment(path: &Path, variable: &dyn Fn(&str) -> Option<String>) -> HashMap<String, String> {
    let mut environment = HashMap::new();
    let text = super::text(path).unwrap_or_default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.strip_prefix("export ").unwrap_or(line).split_once('=') else { continue };
        let value = value.trim();
        let quoted = value.starts_with(['"', '\'']);
        let value = if quoted { value } else { value.split(" #").next().unwrap_or_default().trim() };
        let known = |name: &str| variable(name).or_else(|| environment.get(name).cloned());
        if let Ok(value) = substitute(value, Some('\\'), &known) {
            environment.insert(name.trim().to_owned(), value);
        }
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::super::{images, parsed, read};
    use super::*;

    #[test]
    fn the_services_of_a_compose_file_are_found_unless_they_are_built_here() {
        let text = r"
x-base: &base
  image: redis:7
  restart: always
services:
  web:
    image: nginx:${TAG}
    platform: ${P:-linux/arm64/v8}
    profiles: [debug]
    volumes:
      - {type: image, source: acme/data:1, target: /x}
      - ./here:/there
  api: {build: ., image: example/api}
  cache:
    <<: *base
  queue:
    image: ${REGISTRY:-docker.io}/library/rabbitmq:${VERSION-4}
  other:
    image: ${UNSET}/a
  whole: {build: , image: acme/whole:1}
  inline:
    build:
      additional_contexts: [base=docker-image://acme/context:1, src=./src]
      args: {V: 3}
      dockerfile_inline: |
        ARG V=1
        FROM acme/inline:$V
";
        assert_eq!(
            images("compose.yaml", text),
            [
                "acme/data:1 11",
                "nginx:2.0 7 linux/arm64",
                "redis:7 3",
                "docker.io/library/rabbitmq:4 17",
                "acme/whole:1 20",
                "acme/context:1 23",
                "acme/inline:3 27"
            ]
        );
        let listed = parsed("compose.yaml", text).unwrap();
        assert_eq!(listed.skipped, ["compose.yaml:19: skipped ${UNSET}/a: the variable UNSET is not set"]);
        assert!(matches!(&listed.notes[..], [note] if note.contains("is built here")), "{:?}", listed.notes);
    }

    #[test]
    fn only_what_has_services_by_name_and_nothing_else_is_a_compose_file() {
        for (text, expected) in [
            ("\"services\":\n  a: {image: acme/$TAG}\n", true),
            ("include: [other.yaml]\nx-a: 1\n", true),
            ("services: [acme/a:1]\nimage: acme/b:1\n", false),
            ("services: {a: {image: {repository: acme/a, tag: 1}}}\n", false),
            ("services: {a: {image: acme/a}}\nreplicas: 1\n", false),
            ("include: [{local: a.yml}]\nstages: [a]\n", false),
        ] {
            assert_eq!(is_compose(&serde_yaml_ng::from_str(text).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn what_a_compose_file_includes_and_extends_is_read_with_the_variables_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        write(".env", "# ours\nexport A=\"1\"\nB='$A' # literal\nC=${A}.2 # now\n");
        write("sub/.env", "A=not this one\nD=4\n");
        write("sub/other.yaml", "services: {b: {image: \"acme/b:$A-$D\"}}\n");
        write("base.yaml", "services: {base: {image: acme/base:1, platform: linux/s390x}, built: {build: .}}\n");
        write("given.env", "E=5\n");
        write("given.yaml", "services: {g: {image: \"acme/g:$E\"}}\n");
        let text = "include:\n  - sub/other.yaml\n  - {path: [given.yaml], env_file: given.env}\n  - oci://acme/stack\nservices:\n  \
                    a: {image: \"acme/a:$C\"}\n  x: {extends: {file: base.yaml, service: base}}\n  \
                    y: {extends: x, platform: linux/amd64}\n";
        let path = write("compose.yaml", text);
        let surroundings = Surroundings { variable: &|_| None, platforms: &[] };
        let listed = read(&[path], &surroundings).unwrap();
        let found: Vec<String> = listed
            .images
            .iter()
            .map(|image| {
                format!("{} {}", image.name, image.platform.as_ref().map_or(String::new(), ToString::to_string))
            })
            .collect();
        assert_eq!(
            found,
            ["acme/a:1.2 ", "acme/base:1 linux/s390x", "acme/base:1 linux/amd64", "acme/b:1-4 ", "acme/g:5 "]
        );
        assert!(matches!(&listed.skipped[..], [one] if one.contains("oci://acme/stack")), "{:?}", listed.skipped);
        for (text, reason) in [
            ("include: [none.yaml]\n", "cannot read"),
            ("include: [loop.yaml]\n", "without end"),
            ("services: {a: {extends: b}, b: {extends: a}}\n", "without end"),
            ("services: {a: {extends: b}}\n", "extends \"b\""),
        ] {
            let message = format!("{:#}", read(&[write("loop.yaml", text)], &surroundings).unwrap_err());
            assert!(message.contains(reason) && message.contains("loop.yaml"), "{message}");
        }
    }
}
