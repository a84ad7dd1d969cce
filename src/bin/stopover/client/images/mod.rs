//! The images that files name, found the way a person would find them. The content says what a file is, and its name
//! only that it is a Dockerfile.

mod compose;
mod dockerfile;
mod document;
mod list;
mod settings;
mod variables;
mod walk;
mod written;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;
use stopover::oci::Platform;

use written::{Written, hide_templates, show_templates};

/// The images in files.
#[derive(Default, Debug)]
pub(crate) struct Listed {
    /// The images.
    pub(crate) images: Vec<Image>,
    /// What may be an image and cannot be known, such as a template, each with its position and the reason.
    pub(crate) skipped: Vec<String>,
    /// What is no image, and worth a word.
    pub(crate) notes: Vec<String>,
    /// The file that is read, as messages name it.
    file: String,
}

/// An image in a file or on the command line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Image {
    /// Its name, as it is written.
    #[serde(rename = "image")]
    pub(crate) name: String,
    /// The platform that the file asks for.
    pub(crate) platform: Option<Platform>,
    /// The file and the line that name it.
    pub(crate) place: String,
}

/// What decides beside the text which images a file names.
pub(crate) struct Surroundings<'a> {
    /// The environment.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<String>,
    /// The platforms that are wanted; if there are none, that of this machine.
    pub(crate) platforms: &'a [Platform],
    /// How many files include this one.
    pub(crate) depth: usize,
}

/// Reads the images of files and directories; `-` is the standard input.
pub(crate) fn read(paths: &[PathBuf], surroundings: &Surroundings) -> anyhow::Result<Listed> {
    let mut listed = Listed::default();
    for path in paths {
        let before = listed.len();
        if path.is_dir() {
            for file in files(path).with_context(|| format!("cannot read {}", path.display()))? {
                let read = listed.read(&file, surroundings);
                listed.skipped.extend(read.err().map(|error| format!("{error:#}")));
            }
        } else {
            listed.read(path, surroundings)?;
        }
        if listed.len() == before {
            let what = format!("{} names no image", path.display());
            if paths.len() == 1 {
                bail!(what);
            }
            listed.notes.push(what);
        }
    }
    Ok(listed)
}

/// The files below a directory that may name images, in order. Without hidden ones, except those of continuous
/// integration, and without what was installed.
fn files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    const KINDS: [&str; 9] = ["yaml", "yml", "json", "jsonc", "toml", "hcl", "nomad", "container", "volume"];
    const HIDDEN: [&str; 5] = [".github", ".gitlab", ".circleci", ".devcontainer", ".gitlab-ci.yml"];
    const INSTALLED: [&str; 3] = ["node_modules", "target", "vendor"];
    let mut paths =
        std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    let mut files = Vec::new();
    for path in paths.into_iter().filter(|path| !path.is_symlink()) {
        let name = name(&path);
        if name.starts_with('.') && !HIDDEN.contains(&&*name) || INSTALLED.contains(&&*name) {
            continue;
        }
        let kind = name.rsplit('.').next().unwrap_or_default();
        if path.is_dir() {
            files.extend(self::files(&path)?);
        } else if KINDS.contains(&kind) || is_dockerfile_name(&name) || kind == "txt" && name.contains("image") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The name of a file, in lower case.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

/// Whether a file is a Dockerfile by its name: `Dockerfile.dev`, `web.Dockerfile`.
fn is_dockerfile_name(name: &str) -> bool {
    let mut ends = name.split('.').next().into_iter().chain(name.rsplit('.').next());
    ends.any(|end| matches!(end, "dockerfile" | "containerfile"))
}

/// The text of a file.
fn text(path: &Path) -> anyhow::Result<String> {
    let bytes = if path == Path::new("-") { std::io::stdin().lock().bytes().collect() } else { std::fs::read(path) };
    let bytes = bytes.with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    text.with_context(|| format!("{} is no text: -f takes lists of images, not images", path.display()))
}

impl Listed {
    /// How many things there is a word to say of.
    fn len(&self) -> usize {
        self.images.len() + self.skipped.len() + self.notes.len()
    }

    fn read(&mut self, path: &Path, surroundings: &Surroundings) -> anyhow::Result<()> {
        self.parse(path, &text(path)?, surroundings).with_context(|| self.file.clone())
    }

    /// Adds the images of a text, which is that of the file `path`.
    pub(crate) fn parse(&mut self, path: &Path, text: &str, surroundings: &Surroundings) -> anyhow::Result<()> {
        self.file = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
        let text = hide_templates(text.strip_prefix('\u{feff}').unwrap_or(text));
        let is_dockerfile = is_dockerfile_name(&name(path));
        let before = self.len();
        match document::parse(&text).filter(|_| !is_dockerfile) {
            Some(Ok(documents)) => documents.iter().try_for_each(|root| {
                if compose::is_compose(root) {
                    compose::compose(root, &text, path, surroundings, self)
                } else {
                    walk::walk(root, &text, self)
                }
            }),
            // Templates of control flow may break the syntax around the images.
            Some(Err(error)) => {
                if text.contains(written::is_hidden) {
                    settings::settings(&text, self);
                }
                if self.len() > before { Ok(()) } else { Err(error) }
            }
            None if is_dockerfile || dockerfile::is_dockerfile(&text) => {
                dockerfile::dockerfile(&text, surroundings.platforms, &|_| None, 0, self);
                Ok(())
            }
            None if settings::is_settings(&text) => {
                settings::settings(&text, self);
                Ok(())
            }
            None => (1..).zip(text.lines()).try_for_each(|(number, line)| list::entry(line, Some(number), self)),
        }
    }

    /// Adds what the command line names. What is no image the cache refuses with a sentence.
    pub(crate) fn name(&mut self, text: &str) {
        self.file = String::from("the command line");
        match Written::read(text) {
            Written::Image(_) | Written::Local => self.add(text, None, None),
            _ => self.images.push(Image { name: text.to_owned(), platform: None, place: self.file.clone() }),
        }
    }

    /// Adds what is written where an image is named.
    fn add(&mut self, text: &str, platform: Option<Platform>, line: Option<usize>) {
        let place = self.place(line);
        match Written::read(text) {
            Written::Image(name) => {
                if !self.images.iter().any(|known| known.name == name && known.platform == platform) {
                    self.images.push(Image { name, platform, place });
                }
            }
            Written::Template => self.skip(text, line, "a template that is not filled in"),
            Written::Local => {
                self.notes.push(format!("{place}: {text} is built on this machine: no registry has it"));
            }
            Written::Other => {}
        }
    }

    fn skip(&mut self, text: &str, line: Option<usize>, why: &str) {
        self.skipped.push(format!("{}: skipped {}: {why}", self.place(line), show_templates(text)));
    }

    fn note(&mut self, what: &str) {
        let note = format!("{} {what}", self.file);
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn place(&self, line: Option<usize>) -> String {
        line.map_or_else(|| self.file.clone(), |line| format!("{}:{line}", self.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a text as the file of this name, with one variable and no platforms.
    pub(super) fn parsed(file: &str, text: &str) -> anyhow::Result<Listed> {
        let variable = |name: &str| (name == "TAG").then(|| "2.0".to_owned());
        let mut listed = Listed::default();
        listed.parse(Path::new(file), text, &Surroundings { variable: &variable, platforms: &[], depth: 0 })?;
        Ok(listed)
    }

    /// The images of a text, as [`shown`].
    pub(super) fn images(file: &str, text: &str) -> Vec<String> {
        shown(&parsed(file, text).unwrap())
    }

    /// The images, each with the number of its line and its platform.
    pub(super) fn shown(listed: &Listed) -> Vec<String> {
        let image = |image: &Image| {
            let line = image.place.rsplit_once(':').map(|(_, line)| format!(" {line}"));
            let platform = image.platform.as_ref().map(|platform| format!(" {platform}"));
            format!("{}{}{}", image.name, line.unwrap_or_default(), platform.unwrap_or_default())
        };
        listed.images.iter().map(image).collect()
    }

    /// Reads files, with no variables and no platforms.
    pub(super) fn read(paths: &[&Path]) -> anyhow::Result<Listed> {
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
        super::read(&paths, &Surroundings { variable: &|_| None, platforms: &[], depth: 0 })
    }

    fn names(listed: &Listed) -> Vec<&str> {
        listed.images.iter().map(|image| image.name.as_str()).collect()
    }

    #[test]
    fn files_that_cannot_be_read_or_name_nothing_are_refused_by_their_path() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let nothing = directory.path().join("nothing");
        std::fs::create_dir(&nothing).unwrap();
        for (path, reason) in [
            (directory.path().join("none.txt"), "cannot read"),
            (nothing, "names no image"),
            (write("image.tar", b"\x1f\x8b\x00\xff"), "is no text"),
            (write("zeros", &[0; 512]), "is no text"),
            (write("empty", b"# nothing\n\n"), "names no image"),
            (write("empty.yaml", b"services: {}\n"), "names no image"),
            (write("chart.yaml", b"apiVersion: v2\nname: shop\nversion: 1.0.0\n"), "names no image"),
            (write("broken.yaml", b"services:\n  a: [\n"), "no YAML or JSON that can be read"),
            (write("README", b"# Title\n\nStart the server, then look.\n"), "line 3"),
        ] {
            let message = format!("{:#}", read(&[&path]).unwrap_err());
            assert!(message.contains(&path.display().to_string()) && message.contains(reason), "{message}");
        }
        let list = write("images.txt", b"nginx:1.27\n");
        let listed = read(&[&list, &write("none.yaml", b"a: b\n")]).unwrap();
        assert_eq!(names(&listed), ["nginx:1.27"]);
        assert!(
            matches!(&listed.notes[..], [note] if note.ends_with("none.yaml names no image")),
            "{:?}",
            listed.notes
        );
        let scratch = read(&[&write("Dockerfile", b"FROM scratch\nCOPY a /\n")]).unwrap();
        assert!(scratch.images.is_empty() && scratch.notes.len() == 1, "nothing is to be had, and that is no mistake");
    }

    #[test]
    fn a_directory_is_read_without_what_is_hidden_or_installed() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("app/Dockerfile.dev", "FROM acme/a:1\n"),
            ("app/deploy.yaml", "image: acme/b:1\n"),
            ("app/values.yaml", "replicas: 2\n"),
            (".github/workflows/ci.yml", "jobs: {t: {container: acme/c:1}}\n"),
            (".cache/x.yaml", "image: acme/hidden:1\n"),
            ("node_modules/x/docker-compose.yml", "services: {a: {image: acme/installed:1}}\n"),
            ("README.md", "some words of prose\n"),
            ("requirements.txt", "flask==2.0\n"),
            ("images.txt", "acme/d:1\n"),
            ("broken.yaml", "a: [\n"),
        ] {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let listed = read(&[directory.path()]).unwrap();
        assert_eq!(names(&listed), ["acme/c:1", "acme/a:1", "acme/b:1", "acme/d:1"]);
        assert!(listed.images[1].place.ends_with("app/Dockerfile.dev:1"), "{}", listed.images[1].place);
        assert!(matches!(&listed.skipped[..], [one] if one.contains("broken.yaml")), "{:?}", listed.skipped);
    }

    #[test]
    fn what_was_built_on_this_machine_is_noted_and_not_asked_for() {
        let listed = parsed("images.txt", "localhost/mine:1\nacme/a:1\n").unwrap();
        assert_eq!(names(&listed), ["acme/a:1"]);
        assert_eq!(listed.notes, ["images.txt:1: localhost/mine:1 is built on this machine: no registry has it"]);
    }
}
