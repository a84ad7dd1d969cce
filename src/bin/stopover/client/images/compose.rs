//! Compose files, as the Compose specification says (compose-spec, 05-services, 12-interpolation, 14-include).

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_yaml_ng::{Mapping, Value};

use super::dockerfile::dockerfile;
use super::document::{self, Lines};
use super::variables::substitute;
use super::walk::written;
use super::{Listed, Surroundings};

/// How many files may include or extend each other in a row.
const DEEPEST: usize = 16;

/// What stands at the top of a Compose file.
const TOP: [&str; 9] =
    ["version", "name", "services", "include", "networks", "volumes", "configs", "secrets", "models"];

/// Whether a document is a Compose file: it has services by name, or includes other files, and nothing of other formats.
pub(super) fn is_compose(root: &Value) -> bool {
    let Some(entries) = root.as_mapping() else { return false };
    let known = |key: &Value| key.as_str().is_some_and(|key| TOP.contains(&key) || key.starts_with("x-"));
    let has_services = match entries.get("services") {
        Some(Value::Mapping(services)) => {
            !services.values().any(|service| service.get("image").is_some_and(Value::is_mapping))
        }
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
    let beside = environment(&path.with_file_name(".env"), surroundings.variable);
    let variable = |name: &str| (surroundings.variable)(name).or_else(|| beside.get(name).cloned());
    let mut project = Project { lines: Lines::of(text), variable: &variable, listed };
    for service in root.get("services").and_then(Value::as_mapping).into_iter().flat_map(Mapping::values) {
        project.service(&merged(service, root, path, DEEPEST)?, surroundings);
    }
    for included in sequence(root.get("include")) {
        let files = sequence(included.get("env_file")).into_iter().filter_map(Value::as_str);
        let given: HashMap<_, _> = files.flat_map(|file| environment(&path.with_file_name(file), &variable)).collect();
        let variable = |name: &str| variable(name).or_else(|| given.get(name).cloned());
        let surroundings = Surroundings { variable: &variable, depth: surroundings.depth + 1, ..*surroundings };
        ensure!(surroundings.depth < DEEPEST, "the files include each other without end");
        for name in sequence(included.get("path").or(Some(included))).into_iter().filter_map(Value::as_str) {
            match substitute(name, None, &variable) {
                Ok(name) if !name.contains("://") && !name.starts_with("git@") => {
                    let file = listed.file.clone();
                    listed.read(&path.with_file_name(&name), &surroundings)?;
                    listed.file = file;
                }
                _ => listed.skip(name, None, "it is included from elsewhere"),
            }
        }
    }
    Ok(())
}

struct Project<'a, 'l> {
    lines: Lines<'a>,
    variable: &'a dyn Fn(&str) -> Option<String>,
    listed: &'l mut Listed,
}

impl Project<'_, '_> {
    fn service(&mut self, service: &Mapping, surroundings: &Surroundings) {
        for volume in
            sequence(service.get("volumes")).into_iter().filter(|volume| string(volume, "type") == Some("image"))
        {
            self.image("source", string(volume, "source").unwrap_or_default(), None);
        }
        let text = |key: &str| service.get(key).and_then(Value::as_str);
        let Some(build) = service.get("build").filter(|build| !build.is_null()) else {
            return self.image("image", text("image").unwrap_or_default(), text("platform"));
        };
        for (_, context) in entries(build.get("additional_contexts")) {
            if context.starts_with("docker-image://") {
                self.image("docker-image://", &context, None);
            }
        }
        if let Some(text) = string(build, "dockerfile_inline") {
            let arguments: HashMap<_, _> = entries(build.get("args")).into_iter().collect();
            let given = |name: &str| substitute(arguments.get(name)?, None, self.variable).ok();
            let above = self.lines.find("", text.trim_start()).map_or(0, |line| line.saturating_sub(1));
            dockerfile(text, surroundings.platforms, &given, above, self.listed);
        } else {
            self.listed.note("has a service that is built here: its Dockerfile names the images for that");
        }
    }

    fn image(&mut self, key: &str, image: &str, platform: Option<&str>) {
        let line = self.lines.find(key, image);
        let platform = platform.and_then(|platform| substitute(platform, None, self.variable).ok()?.parse().ok());
        match substitute(image, None, self.variable) {
            Ok(name) => self.listed.add(&name, platform, line),
            Err(unset) => self.listed.skip(image, line, &format!("the variable {unset} is not set")),
        }
    }
}

/// A service with what it has from the one that it extends.
fn merged(service: &Value, root: &Value, path: &Path, depth: usize) -> anyhow::Result<Mapping> {
    let own = service.as_mapping().cloned().unwrap_or_default();
    let Some(extends) = own.get("extends").filter(|extends| !extends.is_null()) else { return Ok(own) };
    ensure!(depth > 0, "its services extend each other without end");
    let name = extends.as_str().or_else(|| string(extends, "service")).unwrap_or_default();
    let other = match string(extends, "file") {
        Some(file) => document::parse(&super::text(&path.with_file_name(file))?).transpose()?.unwrap_or_default(),
        None => vec![root.clone()],
    };
    let other = other.into_iter().next().unwrap_or_default();
    let base = other.get("services").and_then(|services| services.get(name));
    let base = base.with_context(|| format!("a service extends {name:?}, which there is not"))?;
    let mut whole = merged(base, &other, path, depth - 1)?;
    whole.extend(own);
    Ok(whole)
}

fn string<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// The items of a sequence, or the one that stands in its place.
fn sequence(value: Option<&Value>) -> Vec<&Value> {
    match value {
        Some(Value::Sequence(items)) => items.iter().collect(),
        value => value.into_iter().collect(),
    }
}

/// The entries of a mapping, or of a sequence of `name=value`.
fn entries(value: Option<&Value>) -> Vec<(String, String)> {
    let pair = |text: &str| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    match value {
        Some(Value::Mapping(entries)) => {
            entries.iter().filter_map(|(key, value)| Some((key.as_str()?.to_owned(), written(value)?))).collect()
        }
        value => sequence(value).into_iter().filter_map(|item| pair(item.as_str()?)).collect(),
    }
}

/// The variables of an environment file. Those of the environment go before them.
fn environment(path: &Path, variable: &dyn Fn(&str) -> Option<String>) -> HashMap<String, String> {
    let mut environment = HashMap::new();
    let text = super::text(path).unwrap_or_default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.trim_start_matches("export ").split_once('=') else { continue };
        let value = value.split(" #").next().unwrap_or_default().trim();
        let known = |name: &str| variable(name).or_else(|| environment.get(name).cloned());
        if let Ok(value) = substitute(value, Some('\\'), &known) {
            environment.insert(name.trim().to_owned(), value);
        }
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::super::tests::{images, parsed, read, shown};
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
        let listed = read(&[&path]).unwrap();
        assert_eq!(
            shown(&listed),
            ["acme/a:1.2 6", "acme/base:1 linux/s390x", "acme/base:1 linux/amd64", "acme/b:1-4 1", "acme/g:5 1"]
        );
        assert!(matches!(&listed.skipped[..], [one] if one.contains("oci://acme/stack")), "{:?}", listed.skipped);
        for (text, reason) in [
            ("include: [none.yaml]\n", "cannot read"),
            ("include: [loop.yaml]\n", "without end"),
            ("services: {a: {extends: b}, b: {extends: a}}\n", "without end"),
            ("services: {a: {extends: b}}\n", "extends \"b\""),
        ] {
            let message = format!("{:#}", read(&[&write("loop.yaml", text)]).unwrap_err());
            assert!(message.contains(reason) && message.contains("loop.yaml"), "{message}");
        }
    }
}
