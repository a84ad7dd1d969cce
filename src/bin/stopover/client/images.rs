//! The images that a file names: a Kubernetes manifest, a Compose file, a Dockerfile, or a list. The content says which
//! of these the file is.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Deserialize as _;
use serde_yaml_ng::Value;
use stopover::oci::Platform;

use super::dockerfile::dockerfile;

/// The images in a file.
#[derive(Default, Debug)]
pub(crate) struct Listed {
    /// The images, as they are written.
    pub(crate) images: Vec<Image>,
    /// Templates, which are no image before their variables are set, each with its position and the reason.
    pub(crate) skipped: Vec<String>,
}

/// An image in a file or on the command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Image {
    /// Its name, as it is written.
    pub(crate) name: String,
    /// The platform that the file asks for.
    pub(crate) platform: Option<Platform>,
    /// The line that names it, counted from 1. `None`: it is from no file.
    line: Option<usize>,
}

impl Image {
    /// An image that is from no file.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), platform: None, line: None }
    }
}

/// Reads the images of a file. Variables of a Compose file are taken from the environment.
pub(crate) fn read(path: &Path) -> anyhow::Result<Listed> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    let text = text.with_context(|| format!("{} is no text: -f takes lists of images, not images", path.display()))?;
    let mut listed = parse(&text, |name| std::env::var(name).ok()).with_context(|| path.display().to_string())?;
    if listed.images.is_empty() && listed.skipped.is_empty() {
        bail!("{} names no image", path.display());
    }
    for skipped in &mut listed.skipped {
        *skipped = format!("{}{skipped}", path.display());
    }
    Ok(listed)
}

fn parse(text: &str, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Listed> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let begins = |key: &str| text.lines().any(|line| line.starts_with(key));
    let json = text.trim_start().starts_with(['{', '[']);
    let instruction = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().is_some_and(|word| word.eq_ignore_ascii_case("from")) && words.next().is_some()
    };
    if begins("apiVersion:") || (json && !text.contains("\"services\"")) {
        kubernetes(text)
    } else if begins("services:") || json {
        compose(text, variable)
    } else if text.lines().any(instruction) {
        Ok(dockerfile(text))
    } else {
        Ok(list(text))
    }
}

impl Listed {
    pub(super) fn add(&mut self, name: &str, platform: Option<Platform>, line: Option<usize>) {
        let name = name.trim();
        if name.contains(['$', '{', '}']) {
            self.skip(name, line, "a template that nobody has filled in");
        } else if !name.is_empty() && !self.images.iter().any(|known| known.name == name && known.platform == platform)
        {
            self.images.push(Image { name: name.to_owned(), platform, line });
        }
    }

    pub(super) fn skip(&mut self, name: &str, line: Option<usize>, why: &str) {
        let place = line.map_or_else(String::new, |line| format!(":{line}"));
        self.skipped.push(format!("{place}: skipped {name}: {why}"));
    }
}

/// Reads a list: one image per line; `#` begins a comment.
fn list(text: &str) -> Listed {
    let mut listed = Listed::default();
    for (number, line) in (1..).zip(text.lines()) {
        listed.add(line.split('#').next().unwrap_or_default(), None, Some(number));
    }
    listed
}

fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(text).map(|document| {
        let mut value = Value::deserialize(document)?;
        value.apply_merge()?;
        Ok(value)
    });
    documents.collect::<Result<_, serde_yaml_ng::Error>>().with_context(|| {
        let template = if text.contains("{{") { "; a template has to be rendered first (helm template)" } else { "" };
        format!("is no YAML that can be read{template}")
    })
}

/// The lines of a YAML file that name images: the YAML parser gives no positions.
struct Lines<'a>(Vec<Option<&'a str>>);

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self(text.lines().map(Some).collect())
    }

    /// The first line that holds this name and was not found before.
    fn find(&mut self, name: &str) -> Option<usize> {
        let holds = |line: &str| (line.contains("image") || line.contains("reference")) && line.contains(name);
        let (number, line) = (1..).zip(&mut self.0).find(|(_, line)| line.is_some_and(holds))?;
        *line = None;
        Some(number)
    }
}

/// The images of the containers in every pod specification: in pods, in templates of any resource, in lists.
fn kubernetes(text: &str) -> anyhow::Result<Listed> {
    let (mut listed, mut lines) = (Listed::default(), Lines::new(text));
    for document in documents(text)? {
        pods(&document, &mut |image| listed.add(image, None, lines.find(image)));
    }
    Ok(listed)
}

fn pods(value: &Value, found: &mut impl FnMut(&str)) {
    match value {
        Value::Sequence(items) => items.iter().for_each(|item| pods(item, found)),
        Value::Mapping(entries) => {
            for (key, value) in entries {
                let key = key.as_str().unwrap_or_default();
                if matches!(key, "initContainers" | "containers" | "ephemeralContainers" | "volumes") {
                    for item in value.as_sequence().into_iter().flatten() {
                        // A volume may be an image, too: `image: {reference: …}`.
                        let image = item.get("image").map(|image| image.get("reference").unwrap_or(image));
                        image.and_then(Value::as_str).into_iter().for_each(&mut *found);
                    }
                } else {
                    pods(value, found);
                }
            }
        }
        _ => {}
    }
}

/// The images of the services that are not built from source.
fn compose(text: &str, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Listed> {
    let (mut listed, mut lines) = (Listed::default(), Lines::new(text));
    for document in documents(text)? {
        let services = document.get("services").and_then(Value::as_mapping);
        for (_, service) in services.into_iter().flatten() {
            let image = service.get("image").and_then(Value::as_str);
            let Some(image) = image.filter(|_| service.get("build").is_none()) else { continue };
            let line = lines.find(image);
            let platform = service.get("platform").and_then(Value::as_str).and_then(|text| text.parse().ok());
            match substitute(image, &variable) {
                Ok(name) => listed.add(&name, platform, line),
                Err(unset) => listed.skip(image, line, &format!("the variable {unset} is not set")),
            }
        }
    }
    Ok(listed)
}

/// Substitutes `$NAME`, `${NAME}`, `${NAME:-default}` and their like, as shells, Compose and Docker do. Fails with the
/// name that has no value.
pub(super) fn substitute(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        filled.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            filled.push('$');
            rest = after;
            continue;
        }
        let braced = after.strip_prefix('{');
        let inner = braced.unwrap_or(after);
        let end = inner.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(inner.len());
        let (name, after) = inner.split_at(end);
        let value = variable(name).filter(|_| !name.is_empty());
        let Some((operation, after)) = braced.map_or(Some(("", after)), |_| after.split_once('}')) else {
            return Err(text.to_owned());
        };
        let set = value.clone().filter(|value| !value.is_empty());
        let sign = operation.char_indices().find(|(_, letter)| *letter != ':');
        let value = match operation.split_at(sign.map_or(0, |(at, letter)| at + letter.len_utf8())) {
            ("" | "?" | ":?", _) => value,
            ("-", default) => value.or_else(|| Some(default.to_owned())),
            (":-", default) => set.or_else(|| Some(default.to_owned())),
            ("+", other) => Some(value.map_or_else(String::new, |_| other.to_owned())),
            (":+", other) => Some(set.map_or_else(String::new, |_| other.to_owned())),
            _ => None,
        };
        filled.push_str(&value.ok_or_else(|| name.to_owned())?);
        rest = after;
    }
    Ok(filled + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Listed {
        let variable = |name: &str| (name == "TAG").then(|| "2.0".to_owned());
        parse(text, variable).unwrap()
    }

    /// `name`, `name line` or `name line platform`.
    fn images(listed: &Listed) -> Vec<String> {
        let image = |image: &Image| {
            let line = image.line.map(|line| format!(" {line}"));
            let platform = image.platform.as_ref().map(|platform| format!(" {platform}"));
            format!("{}{}{}", image.name, line.unwrap_or_default(), platform.unwrap_or_default())
        };
        listed.images.iter().map(image).collect()
    }

    #[test]
    fn a_list_has_an_image_a_line_and_comments() {
        let listed = parsed("# what we run\nnginx:1.27\n\n  ghcr.io/a/b  # ours\r\n$IMAGE\nnginx:1.27\n{{ image }}\n");
        assert_eq!(images(&listed), ["nginx:1.27 2", "ghcr.io/a/b 4"]);
        assert_eq!(listed.skipped.len(), 2);
        assert_eq!(listed.skipped[0], ":5: skipped $IMAGE: a template that nobody has filled in");
    }

    #[test]
    fn the_containers_of_kubernetes_manifests_are_found_wherever_a_pod_is_described() {
        let text = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      initContainers:
        - name: migrate
          image: ghcr.io/a/migrate:1
      containers:
        - image: "nginx:1.27"
          name: web
        - {name: side, image: "$(SIDE_IMAGE)"}
      volumes:
        - name: model
          image: {reference: quay.io/a/model:1}
---
apiVersion: batch/v1
kind: CronJob
spec:
  jobTemplate:
    spec:
      template:
        spec:
          containers: [{name: job, image: nginx:1.27}]
---
# nothing
---
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Pod
    spec:
      containers:
        - image: busybox
          env: [{name: image, value: not-an-image}]
  - apiVersion: v1
    kind: ConfigMap
    data:
      Dockerfile: |
        FROM not-an-image
"#;
        let listed = parsed(text);
        let mut found = images(&listed);
        found.sort();
        assert_eq!(found, ["busybox 37", "ghcr.io/a/migrate:1 10", "nginx:1.27 12", "quay.io/a/model:1 17"]);
        assert_eq!(listed.skipped, [":14: skipped $(SIDE_IMAGE): a template that nobody has filled in"]);
        let json = r#"{"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"image": "redis"}]}}"#;
        assert_eq!(images(&parsed(json)), ["redis 1"]);
    }

    #[test]
    fn a_template_of_helm_is_refused_with_its_line_and_what_helps() {
        let error =
            parse("apiVersion: v1\nkind: Pod\n{{- if .Values.x }}\nspec: {}\n{{- end }}\n", |_| None).unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains("helm template") && message.contains("line 3"), "{message}");
    }

    #[test]
    fn the_services_of_a_compose_file_are_found_unless_they_are_built_here() {
        let text = r"
x-base: &base
  image: redis:7
  restart: always
services:
  web:
    image: nginx:${TAG}
    platform: linux/arm64/v8
  api: {build: ., image: example/api}
  cache:
    <<: *base
  queue:
    image: ${REGISTRY:-docker.io}/library/rabbitmq:${VERSION-4}
  other:
    image: ${UNSET}/a
";
        let listed = parsed(text);
        assert_eq!(images(&listed), ["nginx:2.0 7 linux/arm64", "redis:7 3", "docker.io/library/rabbitmq:4 13"]);
        assert_eq!(listed.skipped, [":15: skipped ${UNSET}/a: the variable UNSET is not set"]);
    }

    #[test]
    fn variables_are_filled_in_as_shells_do() {
        let variable = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("x", Ok("x")),
            ("$A-${A}.$$A", Ok("a-a.$A")),
            ("${B:-b}${B-b}${EMPTY:-e}${EMPTY-e}", Ok("bbe")),
            ("${A:+set}${B:+set}${A:?}", Ok("seta")),
            ("$B", Err("B")),
            ("${B:?no}", Err("B")),
            ("${A", Err("${A")),
            ("$", Err("")),
            ("$(A)", Err("")),
            ("${Aé}", Err("A")),
            ("${A:é}", Err("A")),
            ("${A:-é}${B:-é}", Ok("aé")),
        ] {
            assert_eq!(substitute(text, variable), expected.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn files_that_cannot_be_read_or_name_nothing_are_refused_by_their_path() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        for (path, reason) in [
            (directory.path().join("none.txt"), "cannot read"),
            (directory.path().to_owned(), "cannot read"),
            (write("image.tar", b"\x1f\x8b\x00\xff"), "is no text"),
            (write("zeros", &[0; 512]), "is no text"),
            (write("empty", b"# nothing\n\n"), "names no image"),
            (write("empty.yaml", b"services: {}\n"), "names no image"),
            (write("broken.yaml", b"services:\n  a: [\n"), "no YAML that can be read"),
        ] {
            let message = format!("{:#}", read(&path).unwrap_err());
            assert!(message.contains(&path.display().to_string()) && message.contains(reason), "{message}");
        }
    }
}
