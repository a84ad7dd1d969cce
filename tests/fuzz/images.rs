//! Files that people have read for the images that they name.

use std::path::Path;

use fastrand::Rng;
use stopover::oci::Request;

use crate::generate::{changed_text, one};

/// The readers of the program.
#[expect(dead_code, reason = "the program reads files, and a case is a text")]
#[path = "../../src/bin/stopover/client/images/mod.rs"]
mod readers;

use readers::{Listed, Surroundings};

const NAMES: &[&str] = &["x", "compose.yaml", "Dockerfile", "images.txt", "x.json", "x.toml", "job.nomad"];
const TEXTS: &[&str] = &[
    "# list\nnginx:1.27\nghcr.io/a/b@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 # ours\na:1, b:2\n",
    "# syntax=docker/dockerfile:1\n# escape=`\nARG V=1.2.3 B=\"${V%.*}\"\nFROM --platform=$BUILDPLATFORM acme/a:${V/./_} AS b\n\
     RUN --mount=type=bind,from=acme/c:1 <<-\"E\" x `\n  y\nFROM x\n\tE\nCOPY --from=b / /\nFROM ${A:-${B:-acme/d}}:$TARGETARCH\n",
    "x-a: &a {image: redis:7}\ninclude: [{path: other.yaml, env_file: [a.env]}]\nservices:\n  a: {<<: *a, platform: \"${P:-linux/arm64}\"}\n  \
     b: {extends: {service: a}}\n  c:\n    build: {dockerfile_inline: \"FROM a:1\", args: [V=1]}\n    volumes: [{type: image, source: acme/v}]\n",
    "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - image: acme/a:1\n    args: [\"--b-image=acme/b:1\", --image, \
     acme/c:1]\n    env: [{name: IMAGE, value: acme/d:1}]\n  volumes: [{image: {reference: acme/e}}]\n---\n{{- if .x }}\nimage: {{ .y }}:1\n",
    "images: [{name: a, newTag: '1'}, acme/b:1]\nimage: {registry: quay.io, repository: acme/c, tag: 1.5, digest: ''}\na_image_repo: b/c\n\
     a_image_tag: v1\nservices: [postgres, {name: acme/d:1}]\ndocker.io: {images: {acme/e: ['1', '2'], acme/f: []}}\nImage: !Ref X\n",
    "// x\n{ \"image\": \"acme/a:1\", /* y */ \"images\": [{\"repoTags\": [\"acme/b:1\"]}], }\n{\"Repository\":\"a\",\"Tag\":\"1\"}\n",
    "job \"a\" {\n  config { image = \"acme/a:${var.x}\" }\n  args = [\"docker-image://acme/b:1\", 'c']\n  image = var.image\n}\n",
    "[Container]\nImage=acme/a:1\nEnvironment=IMAGE=acme/b:1\n",
    "[build]\nimage = \"acme/a:1\"\n[[x]]\nsandbox_image = 'b'\n",
];
const WORDS: &[&str] = &[
    "\n",
    " ",
    "\t",
    "- ",
    ": ",
    "#",
    "//",
    "/*",
    "*/",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "\\",
    "`",
    "$",
    "${",
    "${A:-",
    "${V//",
    "${V##",
    "*",
    "?",
    "%",
    "{{",
    "}}",
    "{%",
    "%}",
    "<<",
    ">>",
    "<<E",
    "&a",
    "*a",
    "<<: *a",
    "!Ref ",
    "image: ",
    "images: ",
    "image",
    "tag: ",
    "repository: ",
    "FROM ",
    "ARG ",
    "ONBUILD ",
    "--platform=",
    "--from=",
    "services:",
    "include: ",
    "extends: a",
    "build: ",
    "localhost/",
    "docker://",
    "acme/a:1",
    "@sha256:",
    "\u{e000}",
    "\u{e000}0\u{e001}",
    "\u{e9}",
    "\u{1f600}",
    "\u{feff}",
    "---\n",
    "...",
    "= ",
    "1e999",
    "null",
];

#[test]
fn no_file_panics_and_each_image_that_is_found_is_one_for_a_list_too() {
    super::run("images", move |rng: &mut Rng| {
        let (name, text) = (one(rng, NAMES), changed_text(rng, TEXTS, WORDS));
        let variable = |name: &str| (name == "A").then(|| "a".to_owned());
        let platforms = ["linux/amd64", "linux/arm/v7"].map(|platform| platform.parse().expect("a platform"));
        let surroundings = Surroundings { variable: &variable, platforms: &platforms[..rng.usize(..=2)], depth: 0 };
        let mut listed = Listed::default();
        let read = listed.parse(&Path::new("/nowhere/at/all").join(name), &text, &surroundings);
        for line in listed.skipped.iter().chain(&listed.notes) {
            assert!(line.starts_with("/nowhere/at/all/"), "{line} names no file");
        }
        for image in &listed.images {
            let line = image.place.rsplit_once(':').and_then(|(_, line)| line.parse::<usize>().ok());
            assert!(line.is_none_or(|line| (1..=text.lines().count()).contains(&line)), "{image:?} of {text}");
        }
        let names: Vec<&str> = listed.images.iter().map(|image| image.name.as_str()).collect();
        let mut names: Vec<&str> = names.into_iter().filter(|name| Request::image(name).is_ok()).collect();
        names.sort_unstable();
        names.dedup();
        let mut again = Listed::default();
        again.parse(Path::new("list"), &names.join("\n"), &surroundings).expect("a list of images");
        assert_eq!(again.images.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), names);
        read.is_ok() && !names.is_empty()
    });
}
