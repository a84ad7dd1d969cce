//! Documents of YAML, JSON and TOML, whatever they are for: one walk that knows what an image looks like and which keys
//! hold one.

use anyhow::Context as _;
use serde::Deserialize as _;
use serde_yaml_ng::{Mapping, Value};

use super::written::Written;
use super::{Listed, list};

/// Reads the documents of a text. `None`: its first line begins none. JSON may have comments, and a document a line.
pub(super) fn parse(text: &str) -> Option<anyhow::Result<Vec<Value>>> {
    let plain = without_comments(text);
    let in_brackets = plain.trim_start().starts_with(['{', '[']);
    if in_brackets {
        let documents = serde_json::Deserializer::from_str(&plain).into_iter::<Value>().collect::<Result<_, _>>();
        if let Ok(documents) = documents {
            return Some(Ok(documents));
        }
    }
    if let Ok(document) = toml::from_str::<Value>(text) {
        return Some(Ok(vec![document]));
    }
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let key = first.trim_start_matches("- ").split_once(": ").or_else(|| Some((first.strip_suffix(':')?, "")));
    let is_key = |key: &str| {
        let key = key.trim();
        key.starts_with(['"', '\'', '&', '*']) || !key.is_empty() && !key.contains(char::is_whitespace)
    };
    let begins = ["- ", "---", "%", "!", "&", "? "].iter().any(|begin| first.starts_with(begin));
    if !in_brackets && !begins && !key.is_some_and(|(key, _)| is_key(key)) {
        return None;
    }
    let documents = serde_yaml_ng::Deserializer::from_str(text).map(|document| {
        let mut value = Value::deserialize(document)?;
        value.apply_merge()?;
        Ok(value)
    });
    let documents = documents.collect::<Result<_, serde_yaml_ng::Error>>();
    // What begins with a bracket may be of another format.
    if documents.is_err() && first.starts_with('[') {
        return None;
    }
    Some(documents.context("is no YAML or JSON that can be read"))
}

/// JSON without comments and without commas before a closing bracket, as editors write their settings.
fn without_comments(text: &str) -> String {
    let (mut plain, mut letters, mut quoted) = (String::with_capacity(text.len()), text.chars().peekable(), false);
    while let Some(letter) = letters.next() {
        match letter {
            '"' => quoted = !quoted,
            '\\' if quoted => {
                plain.push(letter);
                plain.extend(letters.next());
                continue;
            }
            '/' if !quoted && letters.peek() == Some(&'/') => {
                letters.by_ref().find(|letter| *letter == '\n');
                continue;
            }
            '/' if !quoted && letters.next_if_eq(&'*').is_some() => {
                let mut before = ' ';
                letters.by_ref().find(|letter| std::mem::replace(&mut before, *letter) == '*' && *letter == '/');
                continue;
            }
            '}' | ']' if !quoted => {
                let kept = plain.trim_end().trim_end_matches(',').len();
                plain.truncate(kept);
            }
            _ => {}
        }
        plain.push(letter);
    }
    plain
}

/// What a key says of the texts below it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// It holds an image.
    Image,
    /// It holds several, or their names.
    Images,
    /// It may hold an image, that is one if it has a tag or a digest.
    Maybe,
    /// It holds none.
    Other,
}

impl Key {
    /// Judges a key by its words, however they are joined: `imageName`, `image_name`, `RELATED_IMAGE_X`.
    pub(super) fn of(key: &str) -> Self {
        let key = folded(key);
        let ends = |ends: &[&str]| ends.iter().any(|end| key.ends_with(end));
        // Machines of CircleCI and Azure Pipelines have images of another kind.
        if key.ends_with("vmimage") {
            Self::Other
        } else if ends(&["image", "imagename", "imageref", "imagereference", "imageuri", "imageurl"]) {
            Self::Image
        } else if ends(&["images", "repotags"]) {
            Self::Images
        } else if key.contains("image") || matches!(&*key, "catalog" | "bundle") {
            Self::Maybe
        } else {
            Self::Other
        }
    }

    /// The image that a text below this key is.
    pub(super) fn image(self, text: &str) -> Option<&str> {
        let is_one = match self {
            _ if Written::has_scheme(text) => true,
            Self::Image => true,
            Self::Images => Written::is_named(text) || matches!(Written::read(text), Written::Template),
            Self::Maybe => Written::is_plain(text),
            Self::Other => false,
        };
        // `--sidecar-image=…` and `IMAGE=…` among other texts.
        let variable = || {
            let (name, value) = text.split_once('=')?;
            let named = !name.contains(char::is_whitespace) && Self::of(name) != Self::Other;
            (named && Written::is_plain(value)).then_some(value)
        };
        if is_one && (self == Self::Image || !text.contains('=')) { Some(text) } else { variable() }
    }
}

/// A key in lower case, without what joins its words.
fn folded(key: &str) -> String {
    key.chars().filter(|letter| letter.is_ascii_alphanumeric()).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// Adds the images of a document.
pub(super) fn walk(root: &Value, text: &str, listed: &mut Listed) -> anyhow::Result<()> {
    // Travis and Bitbucket have services that are no images, but names.
    let bare_services = root.get("language").or(root.get("pipelines")).is_none();
    let mut walk = Walk { lines: Lines { text, from: 0 }, bare_services, listed };
    // A list may be written as a sequence.
    if let Value::Sequence(items) = root
        && items.iter().all(Value::is_string)
    {
        for item in items.iter().filter_map(Value::as_str) {
            let line = walk.lines.find("", item);
            list::entry(item, line, walk.listed)?;
        }
        return Ok(());
    }
    walk.value("", root);
    Ok(())
}

/// The lines of a text that name images: the parsers give no positions.
pub(super) struct Lines<'a> {
    pub(super) text: &'a str,
    /// Where the last one was found: they are looked for in their order.
    pub(super) from: usize,
}

impl Lines<'_> {
    /// The line that has this value of this key.
    pub(super) fn find(&mut self, key: &str, value: &str) -> Option<usize> {
        let value = value.lines().next().filter(|value| !value.is_empty())?;
        let find = |from: usize, key: &str| {
            let places = self.text.get(from..)?.match_indices(value).map(|(at, _)| from + at);
            places.into_iter().find(|at| {
                let line = self.text.get(..*at).and_then(|before| before.rsplit('\n').next()).unwrap_or_default();
                line.contains(key) && !line.trim_start().starts_with('#')
            })
        };
        let at = find(self.from, key).or_else(|| find(0, key)).or_else(|| find(0, ""))?;
        self.from = at + value.len();
        Some(self.text.get(..at)?.matches('\n').count() + 1)
    }
}

struct Walk<'a, 'l> {
    lines: Lines<'a>,
    /// Whether a service may be an image without tag.
    bare_services: bool,
    listed: &'l mut Listed,
}

impl Walk<'_, '_> {
    fn value(&mut self, key: &str, value: &Value) {
        match value {
            Value::String(text) => self.text(key, Key::of(key), text),
            Value::Sequence(items) => {
                let mut before = "";
                for item in items {
                    match item.as_str() {
                        // `--image` and its value may be two arguments.
                        Some(text)
                            if before.starts_with("--") && !before.contains('=') && Key::of(before) != Key::Other =>
                        {
                            self.text("", Key::Maybe, text);
                        }
                        Some(text) => self.text(key, Key::of(key), text),
                        None => self.value(key, item),
                    }
                    before = item.as_str().unwrap_or_default();
                }
            }
            Value::Mapping(entries) => self.mapping(key, entries),
            Value::Tagged(tagged) => match (&tagged.value, tagged.tag.to_string().as_str()) {
                // References of CloudFormation.
                (Value::String(text), "!Ref" | "!GetAtt" | "!ImportValue") if Key::of(key) == Key::Image => {
                    self.unknown(key, text, "what it refers to is not known");
                }
                (value, _) => self.value(key, value),
            },
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn text(&mut self, key: &str, kind: Key, text: &str) {
        if let Some(image) = kind.image(text) {
            let line = self.lines.find(key, image);
            self.listed.add(image, None, line);
        }
    }

    fn unknown(&mut self, key: &str, text: &str, why: &str) {
        let line = self.lines.find(key, text);
        self.listed.skip(text, line, why);
    }

    fn mapping(&mut self, key: &str, entries: &Mapping) {
        let kind = Key::of(key);
        let is_object = entries.contains_key("apiVersion") && entries.contains_key("kind");
        let is_built = entries.get("build").is_some_and(|build| build.is_string() || build.get("context").is_some());
        let joined = self.joined(kind, entries);
        for (name, value) in entries {
            let name = name.as_str().unwrap_or_default();
            let own = Key::of(name);
            match (name, value) {
                // What an object is called and what has become of it; schemas; machines of CircleCI; what oc-mirror leaves
                // out, and where it puts the others.
                ("metadata" | "status", _) if is_object => {}
                ("openAPIV3Schema" | "machine" | "blockedImages" | "storageConfig", _) => {}
                _ if joined.contains(&name) || is_built && own == Key::Image => {}
                ("images", Value::Mapping(images)) if key.contains(['.', ':']) => self.tags(key, images),
                ("name" | "reference" | "ref" | "uri", Value::String(text)) if kind == Key::Image => {
                    self.text(name, Key::Image, text);
                }
                // GitLab's are images; a name alone is one beside what else a job has.
                ("services", Value::Sequence(services)) => {
                    let bare = ["image", "script", "stage", "stages"].iter().any(|key| entries.contains_key(key));
                    for service in services {
                        match service.as_str() {
                            Some(text) if Written::is_named(text) || bare && self.bare_services && text != "docker" => {
                                self.text(name, Key::Image, text);
                            }
                            _ => self.value(name, service),
                        }
                    }
                }
                ("name", Value::String(text)) if key == "services" && Written::is_named(text) => {
                    self.text(name, Key::Image, text);
                }
                ("name", Value::String(text)) if entries.get("kind").and_then(Value::as_str) == Some("DockerImage") => {
                    self.text(name, Key::Image, text);
                }
                // A variable, a parameter, or an argument.
                ("value" | "default" | "Default", Value::String(text)) => {
                    let variable = entries.get("name").and_then(Value::as_str).unwrap_or(key);
                    if Key::of(variable) != Key::Other && Written::is_plain(text) {
                        self.text(name, Key::Maybe, text);
                    }
                }
                ("container", Value::String(text)) if entries.contains_key("runs-on") || Written::is_named(text) => {
                    self.text(name, Key::Image, text);
                }
                ("Ref", Value::String(text)) if kind == Key::Image => {
                    self.unknown(name, text, "what it refers to is not known");
                }
                (_, Value::String(text)) if kind == Key::Images && own == Key::Other => {
                    self.text(name, Key::Maybe, text);
                }
                _ => self.value(name, value),
            }
        }
    }

    /// The tags of repositories of one registry, in the form of `skopeo sync`.
    fn tags(&mut self, registry: &str, images: &Mapping) {
        for (repository, tags) in images {
            let repository = repository.as_str().unwrap_or_default();
            let line = self.lines.find("", repository);
            let tags = tags.as_sequence().map(Vec::as_slice).unwrap_or_default();
            for tag in tags.iter().filter_map(written) {
                self.listed.add(&with_tag(&format!("{registry}/{repository}"), &tag), None, line);
            }
            if tags.is_empty() {
                self.listed.skip(repository, line, "all its tags are meant, which only its registry knows");
            }
        }
    }

    /// Adds images whose parts stand in several entries: `repository` and `tag`, `newName` and `newTag`, with `registry`
    /// and `digest`. Returns the keys that name them.
    fn joined<'e>(&mut self, kind: Key, entries: &'e Mapping) -> Vec<&'e str> {
        let folded: Vec<(String, &str, String)> = entries
            .iter()
            .filter_map(|(key, value)| Some((folded(key.as_str()?), key.as_str()?, written(value)?)))
            .filter(|(_, _, text)| !text.trim().is_empty())
            .collect();
        let part = |key: String| folded.iter().find(|(known, ..)| *known == key).map(|(_, _, text)| text.as_str());
        let mut joined = Vec::new();
        for (key, name, text) in &folded {
            let is_image = Key::of(name) == Key::Image;
            let is_repository = key.ends_with("repository") || key.ends_with("repo") || key == "newname";
            let stem =
                ["repository", "repo", "imagename", "image", "name"].iter().find_map(|end| key.strip_suffix(end));
            let stem = match stem {
                Some(stem) if is_image || is_repository => stem,
                Some("") if kind == Key::Image => "",
                // Kustomize: what is not renamed has a new tag.
                Some("") if kind == Key::Images && part("newname".into()).is_none() => "new",
                _ => continue,
            };
            let of = |end: &str| part(format!("{key}{end}")).or_else(|| part(format!("{stem}{end}")));
            // A version is a tag only of what is certain to be an image.
            let tag = of("tag").or_else(|| of("version").filter(|_| is_image || kind == Key::Image));
            let digest = of("digest").or_else(|| of("sha").filter(|sha| sha.starts_with("sha256:")));
            let digest = digest.or_else(|| part("digest".into()).filter(|_| stem == "new"));
            // `repository: nvcr.io/nvidia` and `image: driver`: the first part of the second.
            let before = of("registry").or_else(|| of("repository").filter(|_| is_image && !text.contains('/')));
            let parts = if is_image { tag.or(digest).or(before) } else { tag.or(digest) };
            let is_whole = if is_image { Written::is_tagged(text) } else { part(format!("{stem}image")).is_some() };
            let is_known = parts.is_some() || is_repository && matches!(kind, Key::Image | Key::Images);
            if is_whole || !is_known {
                continue;
            }
            let before = before.filter(|before| !text.starts_with(&format!("{before}/")));
            let mut image =
                before.map_or_else(|| text.clone(), |before| format!("{}/{text}", before.trim_end_matches('/')));
            if let Some(tag) = tag.filter(|_| !Written::is_tagged(&image)) {
                image = with_tag(&image, tag);
            }
            if let Some(digest) = digest {
                image = format!("{image}@{}", digest.trim_start_matches('@'));
            }
            let is_one = matches!(Written::read(&image), Written::Template) || Written::is_image(&image);
            let is_host = !image.contains('/') && text.contains('.');
            if !is_one || is_host {
                continue;
            }
            joined.push(*name);
            let line = self.lines.find(name, text);
            if Written::is_tagged(&image) || is_image {
                self.listed.add(&image, None, line);
            } else {
                self.listed.skip(&image, line, "its tag is not given here");
            }
        }
        joined
    }
}

/// A text or a number, as it is written.
fn written(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn with_tag(name: &str, tag: &str) -> String {
    let tag = tag.trim_start_matches(['@', ':']);
    let sign = if tag.starts_with("sha256:") { '@' } else { ':' };
    format!("{name}{sign}{tag}")
}

#[cfg(test)]
mod tests {
    use super::super::{images, parsed};

    #[test]
    fn the_containers_of_kubernetes_manifests_are_found_wherever_a_pod_is_described() {
        let text = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {image: acme/not-this:1}}
spec:
  template:
    spec:
      initContainers:
        - name: migrate
          image: ghcr.io/a/migrate:1
      containers:
        # image: acme/old:1
        - image: "nginx:1.27"
          name: web
        - {name: side, image: "$(SIDE_IMAGE)"}
        - image: acme/op:1
          args: ["--reloader-image=acme/reloader:1", --image, acme/arg:1, --image-pull-deadline=1m]
          env: [{name: RELATED_IMAGE_X, value: "acme/x:1"}, {name: IMAGE_TAG, value: "1"}]
      volumes:
        - name: model
          image: {reference: quay.io/a/model:1, pullPolicy: Always}
status: {containerStatuses: [{image: docker.io/acme/status:1}]}
---
apiVersion: batch/v1
kind: CronJob
spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: job, image: nginx:1.27}]}}}}}
---
# nothing
---
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Pod
    spec:
      imagePullSecrets: [{name: not-an-image}]
      containers:
        - image: busybox
          env: [{name: image, value: not-an-image}]
  - apiVersion: v1
    kind: ConfigMap
    data:
      Dockerfile: |
        FROM not-an-image
"#;
        let mut found = images("k8s.yaml", text);
        found.sort();
        assert_eq!(
            found,
            [
                "acme/arg:1 17",
                "acme/op:1 16",
                "acme/reloader:1 17",
                "acme/x:1 18",
                "busybox 37",
                "ghcr.io/a/migrate:1 10",
                "nginx:1.27 13",
                "quay.io/a/model:1 21"
            ]
        );
        let listed = parsed("k8s.yaml", text).unwrap();
        assert_eq!(listed.skipped, ["k8s.yaml:15: skipped $(SIDE_IMAGE): a template that nobody has filled in"]);
    }

    #[test]
    fn images_are_found_in_documents_of_any_kind() {
        for (text, expected) in [
            // Tekton, Argo, Knative: whatever has an image.
            ("spec: {steps: [{image: acme/a:1}], stepTemplate: {image: acme/b}}\n", &["acme/a:1", "acme/b"][..]),
            (
                "spec: {taskRef: {bundle: acme/a:1}, params: [{name: BUILDER_IMAGE, value: acme/b:1}]}\n",
                &["acme/a:1", "acme/b:1"],
            ),
            ("spec: {imageName: acme/a:1, image: {repository: acme/b, tag: 1.5}}\n", &["acme/a:1", "acme/b:1.5"]),
            ("spec: {openAPIV3Schema: {properties: {image: {default: acme/a:1}}}}\n", &[]),
            ("from: {kind: DockerImage, name: acme/a:1}\n", &["acme/a:1"]),
            // Kustomize and its like.
            ("images: [{name: acme/a, newTag: '1'}, {name: acme/alone}]\n", &["acme/a:1"]),
            ("images: [{name: b, newName: acme/c, digest: 'DIGEST'}]\n", &["acme/c@DIGEST"]),
            ("images: [acme/a:1, acme/b]\nadditionalImages: [{name: acme/c:1}]\n", &["acme/a:1", "acme/b", "acme/c:1"]),
            ("images: {web: 'acme/a:1', api: web}\n", &["acme/a:1"]),
            // Values of charts.
            (
                "image: {registry: quay.io, repository: acme/a, tag: v1}\nsidecar: {image: acme/b, tag: 2}\n",
                &["quay.io/acme/a:v1", "acme/b:2"],
            ),
            (
                "imageRepository: acme/a\nimageTag: '1'\nproxy_image_repo: acme/b\nproxy_image_tag: v2\n",
                &["acme/a:1", "acme/b:v2"],
            ),
            ("driver: {repository: nvcr.io/nvidia, image: driver, version: '535'}\n", &["nvcr.io/nvidia/driver:535"]),
            ("imageRepository: registry.example.com\nimageTag: '1'\n", &[]),
            ("dependencies: [{name: a, version: 1.0.0, repository: 'https://example.com'}]\n", &[]),
            // Continuous integration.
            (
                "image: acme/a:1\nservices: [acme/b:1, postgres, {name: acme/c:1, alias: c}]\nt: {image: {name: node}}\n",
                &["acme/a:1", "acme/b:1", "postgres", "acme/c:1", "node"],
            ),
            ("language: go\nservices: [docker, mysql]\nscript: x\n", &[]),
            (
                "jobs: {t: {runs-on: x, container: node, services: {d: {image: acme/b}}, steps: [{uses: docker://acme/c:1}]}}\n",
                &["node", "acme/b", "acme/c:1"],
            ),
            ("jobs: {a: {docker: [{image: acme/a:1}]}, b: {machine: {image: ubuntu-2204:current}}}\n", &["acme/a:1"]),
            ("pool: {vmImage: ubuntu-latest}\njobs: [{container: alias}]\n", &[]),
            // JSON with comments, one a line, of ECS, and what tools print.
            ("// x\n{ /* y */ \"image\": \"acme/a:1\", \"url\": \"http://x\", }", &["acme/a:1"]),
            (
                "{\"Repository\":\"acme/a\",\"Tag\":\"1\"}\n{\"Repository\":\"acme/b\",\"Tag\":\"2\"}\n",
                &["acme/a:1", "acme/b:2"],
            ),
            ("{\"containerDefinitions\":[{\"image\":\"acme/a:1\"}]}", &["acme/a:1"]),
            ("{\"images\":[{\"id\":\"sha256:1\",\"repoTags\":[\"acme/a:1\"]}]}", &["acme/a:1"]),
            ("Image: !Sub 'acme/a:1'\nOther: {Name: !Ref X}\n", &["acme/a:1"]),
            (
                "registry.example.com:\n  images:\n    acme/a: ['1', '2']\n",
                &["registry.example.com/acme/a:1", "registry.example.com/acme/a:2"],
            ),
            // TOML.
            ("[build]\nimage = \"acme/a:1\"\n[plugins.cri]\nsandbox_image = 'acme/b:1'\n", &["acme/a:1", "acme/b:1"]),
            // Other things that are called images.
            ("image: cover.png\nbackground_image: /x/y\nurl: {image: 'https://example.com/a:1'}\n", &[]),
            ("web: {build: ., image: acme/built:1}\ndb: {image: acme/b:1}\n", &["acme/b:1"]),
            ("  image: acme/a:1\n  more: 1\n", &["acme/a:1"]),
        ] {
            let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
            let found = images("document", &text.replace("DIGEST", digest));
            let found: Vec<&str> = found.iter().filter_map(|image| image.split(' ').next()).collect();
            let expected: Vec<String> = expected.iter().map(|image| image.replace("DIGEST", digest)).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_known_is_named_with_its_line() {
        for (text, expected) in [
            ("a:\n- image: {{ .Values.image }}\n", "f:2: skipped {{ .Values.image }}: a template"),
            ("a: 1\nimage: 'acme/a:{{ .tag }}'\n", "f:2: skipped acme/a:{{ .tag }}: a template"),
            ("a: 1\nimage: acme/a:<< parameters.tag >>\n", "f:2: skipped acme/a:<< parameters.tag >>: a template"),
            ("jobs:\n  a: {container: {image: 'acme/a:${{ matrix.tag }}'}}\n", "f:2: skipped acme/a:${{ matrix.tag }}"),
            ("a: 1\nimage:\n  repository: acme/a\n  tag: \"\"\n", "f:3: skipped acme/a: its tag is not given here"),
            ("Image:\n  Ref: Parameter\n", "f:2: skipped Parameter: what it refers to is not known"),
            ("docker.io:\n  images:\n    acme/a: []\n", "f:3: skipped acme/a: all its tags are meant"),
            ("{{- if .x }}\nimage: a{{ .y }}\n{{- else }}\nimage: {{ .z }}\n{{- end }}\n", "f:2: skipped a{{ .y }}"),
        ] {
            let listed = parsed("f", text).unwrap();
            assert!(listed.images.is_empty(), "{:?}", listed.images);
            assert!(
                listed.skipped.first().is_some_and(|line| line.starts_with(expected)),
                "{text}: {:?}",
                listed.skipped
            );
        }
    }

    #[test]
    fn lines_that_have_only_templates_break_no_document() {
        let text = "apiVersion: v1\nkind: Pod\n{{- if .Values.x }}\nspec:\n  {{- with .y }}\n  containers: [{image: acme/a:1}]\n  \
                    {{- end }}\n{{- end }}\n";
        assert_eq!(images("pod.yaml", text), ["acme/a:1 6"]);
        let error = parsed("pod.yaml", "a: [\n{{ x }}\n  b: {{ y }}\n").unwrap_err();
        assert!(format!("{error:#}").contains("no YAML or JSON"), "{error:#}");
    }
}
