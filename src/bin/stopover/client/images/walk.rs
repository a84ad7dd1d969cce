//! The walk over a document: it knows what an image looks like and which keys hold one.

use serde_yaml_ng::{Mapping, Value};

use super::document::Lines;
use super::written::Written;
use super::{Listed, list};

/// What a key says of the texts below it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// They are images.
    Image,
    /// They are images if they have a tag, a digest or a slash.
    Images,
    /// They are images if they have a tag or a digest.
    Maybe,
    /// They are none.
    Other,
}

impl Key {
    /// Judges a key by its words, however they are joined: `imageName`, `sidecar_image`, `RELATED_IMAGE_X`.
    pub(super) fn of(key: &str) -> Self {
        let key = folded(key);
        let ends = |ends: &[&str]| ends.iter().any(|end| key.ends_with(end));
        // Azure Pipelines have machines with images of another kind.
        if key.contains("vmimage") {
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
        // `--sidecar-image=…` and `IMAGE=…` are keys and values in one.
        if let Some((name, value)) = text.split_once('=') {
            let is_one =
                !name.contains(char::is_whitespace) && Self::of(name) != Self::Other && Written::is_plain(value);
            return is_one.then_some(value);
        }
        let is_one = match self {
            Self::Image => true,
            Self::Images => Written::is_named(text) || matches!(Written::read(text), Written::Template),
            Self::Maybe => Written::is_plain(text),
            Self::Other => false,
        };
        (is_one || Written::has_scheme(text)).then_some(text)
    }
}

/// A key in lower case, without what joins its words.
fn folded(key: &str) -> String {
    key.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// Adds the images of a document. A sequence of texts alone is a list.
pub(super) fn walk<'a>(root: &'a Value, text: &'a str, listed: &mut Listed) -> anyhow::Result<()> {
    // Travis and Bitbucket have services that are no images, but names.
    let bare_services = root.get("language").or(root.get("pipelines")).is_none();
    let global = root.get("global");
    let registry =
        global.and_then(|global| global.get("imageRegistry").or(global.get("image")?.get("registry"))?.as_str());
    let registry = registry.filter(|registry| !registry.is_empty());
    let mut walk = Walk { lines: Lines::of(text), bare_services, registry, listed };
    match root {
        Value::Sequence(items) if items.iter().all(Value::is_string) => {
            for item in items.iter().filter_map(Value::as_str) {
                list::entry(item, walk.lines.find("", item), walk.listed)?;
            }
        }
        _ => walk.value("", Key::Other, root),
    }
    Ok(())
}

struct Walk<'a, 'l> {
    lines: Lines<'a>,
    /// Whether a service may be an image without tag.
    bare_services: bool,
    /// The registry that a chart has for all images which name none.
    registry: Option<&'a str>,
    listed: &'l mut Listed,
}

impl Walk<'_, '_> {
    /// Walks over a value below a key, which is of this kind.
    fn value(&mut self, key: &str, kind: Key, value: &Value) {
        match value {
            Value::String(text) => {
                if let Some(image) = kind.image(text) {
                    let line = self.lines.find(key, image);
                    self.listed.add(image, None, line);
                }
            }
            Value::Sequence(items) => {
                let mut before = "";
                for item in items {
                    // `--image` and its value may be two arguments.
                    let is_flag = before.starts_with("--") && !before.contains('=') && Key::of(before) != Key::Other;
                    self.value(if is_flag { "" } else { key }, if is_flag { Key::Maybe } else { kind }, item);
                    before = item.as_str().unwrap_or_default();
                }
            }
            Value::Mapping(entries) => self.mapping(key, kind, entries),
            // CloudFormation refers to what stands elsewhere.
            Value::Tagged(tagged) if tagged.tag == "Ref" || tagged.tag == "GetAtt" || tagged.tag == "ImportValue" => {
                self.reference(key, kind, &tagged.value);
            }
            Value::Tagged(tagged) => self.value(key, kind, &tagged.value),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn reference(&mut self, key: &str, kind: Key, value: &Value) {
        if let Some(text) = value.as_str().filter(|_| kind == Key::Image) {
            let line = self.lines.find(key, text);
            self.listed.skip(text, line, "what it refers to is not known");
        }
    }

    fn mapping(&mut self, key: &str, kind: Key, entries: &Mapping) {
        let has = |keys: &[&str]| keys.iter().any(|key| entries.contains_key(key));
        let text = |key: &str| entries.get(key).and_then(Value::as_str);
        let is_object = has(&["apiVersion"]) && has(&["kind"]);
        let is_built = entries.get("build").is_some_and(|build| build.is_string() || build.get("context").is_some());
        let is_variable = Key::of(text("name").unwrap_or(key)) != Key::Other;
        let joined = self.joined(kind, entries);
        for (name, value) in entries {
            let name = name.as_str().unwrap_or_default();
            let own = match (name, kind) {
                _ if joined.contains(&name) => continue,
                // What an object is called and what has become of it; schemas; machines of CircleCI; what oc-mirror leaves
                // out, and where it puts the others.
                ("metadata" | "status", _) if is_object => continue,
                ("openAPIV3Schema" | "machine" | "blockedImages" | "storageConfig", _) => continue,
                // GitHub Actions name here what they build.
                ("with" | "env", _) if value.is_mapping() => continue,
                ("name" | "reference" | "ref" | "uri" | "default" | "Default", Key::Image) => Key::Image,
                ("Ref", Key::Image) => {
                    self.reference(name, kind, value);
                    continue;
                }
                ("name", Key::Images) => Key::Images,
                ("name", _) if text("kind") == Some("DockerImage") => Key::Image,
                ("value" | "default" | "Default", _) if is_variable => Key::Maybe,
                ("container", _) if has(&["runs-on"]) => Key::Image,
                ("services", _) if self.bare_services && has(&["image", "script", "stage", "stages"]) => Key::Image,
                ("container" | "services", _) => Key::Images,
                _ => match Key::of(name) {
                    Key::Image if is_built => Key::Other,
                    Key::Image if matches!(key, "variables" | "environment") => Key::Maybe,
                    Key::Other if kind == Key::Images => Key::Maybe,
                    own => own,
                },
            };
            match value {
                Value::Mapping(images) if name == "images" && key.contains(['.', ':']) => self.tags(key, images),
                _ => self.value(name, own, value),
            }
        }
    }

    /// The tags of repositories of one registry, in the form of `skopeo sync`.
    fn tags(&mut self, registry: &str, images: &Mapping) {
        for (repository, tags) in images {
            let name = format!("{registry}/{}", repository.as_str().unwrap_or_default());
            let line = self.lines.find("", repository.as_str().unwrap_or_default());
            let tags = tags.as_sequence().map(Vec::as_slice).unwrap_or_default();
            for tag in tags.iter().filter_map(written) {
                self.listed.add(&joint(&name, &tag), None, line);
            }
            if tags.is_empty() {
                self.listed.skip(&name, line, "all its tags are meant, which only its registry knows");
            }
        }
    }

    /// Adds images whose parts stand in several entries: `repository` and `tag`, `newName` and `newTag`, with `registry`
    /// and `digest`. Returns the keys that name them.
    fn joined<'e>(&mut self, kind: Key, entries: &'e Mapping) -> Vec<&'e str> {
        let parts = entries.iter().filter_map(|(key, value)| Some((key.as_str()?, written(value)?)));
        let parts: Vec<(String, &str, String)> =
            parts.filter(|(_, text)| !text.is_empty()).map(|(key, text)| (folded(key), key, text)).collect();
        let part = |key: &str| parts.iter().find(|(known, ..)| known == key).map(|(_, _, text)| text.as_str());
        let mut joined = Vec::new();
        for (key, name, text) in &parts {
            let is_image = Key::of(name) == Key::Image;
            let is_repository = ["repository", "repo", "newname"].iter().any(|end| key.ends_with(end));
            let stem =
                ["repository", "repo", "imagename", "image", "name"].iter().find_map(|end| key.strip_suffix(end));
            let stem = match stem {
                Some(stem) if is_image || is_repository => stem,
                Some("") if kind == Key::Image => "",
                // Kustomize: what is not renamed has a new tag.
                Some("") if kind == Key::Images && part("newname").is_none() => "new",
                _ => continue,
            };
            let of = |end: &str| part(&format!("{key}{end}")).or_else(|| part(&format!("{stem}{end}")));
            // A version is a tag only of what is certain to be an image.
            let tag = of("tag").or_else(|| of("version").filter(|_| is_image || kind == Key::Image));
            let digest = of("digest").or_else(|| part("digest").filter(|_| stem == "new"));
            // `repository: nvcr.io/nvidia` and `image: driver`: the first part of the second.
            let before = of("registry").or_else(|| of("repository").filter(|_| is_image && !text.contains('/')));
            let has_host = text.split('/').next().is_some_and(|first| first.contains(['.', ':']));
            let before = before.or(self.registry.filter(|_| !has_host && tag.or(digest).is_some()));
            let is_whole = if is_image { Written::is_tagged(text) } else { part(&format!("{stem}image")).is_some() };
            let is_known = tag.or(digest).or(before.filter(|_| is_image)).is_some();
            let is_alone = is_repository && matches!(kind, Key::Image | Key::Images);
            let before = before.map(|before| format!("{}/", before.trim_end_matches('/')));
            let mut image = before.filter(|before| !text.starts_with(before)).unwrap_or_default() + text;
            for part in tag.into_iter().filter(|_| !Written::is_tagged(text)).chain(digest) {
                image = joint(&image, part);
            }
            let is_one = matches!(Written::read(&image), Written::Template) || Written::is_image(&image);
            let is_host = text.contains('.') && !image.contains('/');
            if is_whole || is_host || !is_one || !is_known && !is_alone {
                continue;
            }
            joined.push(*name);
            let line = self.lines.find(name, text);
            if is_known {
                self.listed.add(&image, None, line);
            } else {
                self.listed.skip(&image, line, "its tag is not given here");
            }
        }
        joined
    }
}

/// A text or a number, as it is written.
pub(super) fn written(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        value => value.as_str().map(|text| text.trim().to_owned()),
    }
}

/// A name with a tag or a digest.
fn joint(name: &str, tag: &str) -> String {
    let tag = tag.trim_start_matches(['@', ':']);
    format!("{name}{}{tag}", if tag.starts_with("sha256:") { '@' } else { ':' })
}

#[cfg(test)]
mod tests;
