//! README is short, no link is dead, and every document can be found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{Document, root};

/// What a heading is called in links, as GitHub and most others make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { "-".to_owned() } else { letter.to_lowercase().to_string() }).collect()
}

/// The targets of links in Markdown that lead to something here.
fn links(document: &Document) -> Vec<String> {
    let prose = document.prose();
    let targets = prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")).collect()
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, component| {
        match component {
            Component::ParentDir => _ = plain.pop(),
            Component::CurDir => {}
            other => plain.push(other),
        }
        plain
    })
}

/// Where a link leads: a path from the top of the repository, and an anchor.
fn target(document: &Document, link: &str) -> (PathBuf, Option<String>) {
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor.to_owned())));
    let beside = document.path.parent().unwrap_or(Path::new(""));
    (if path.is_empty() { document.path.clone() } else { plain(&beside.join(path)) }, anchor)
}

fn check(document: &Document, link: &str, anchors: &BTreeMap<PathBuf, BTreeSet<String>>) -> Result<()> {
    let (path, anchor) = target(document, link);
    ensure!(root().join(&path).exists(), "{} is not there", path.display());
    if let Some(anchor) = anchor {
        let known = anchors.get(&path).with_context(|| format!("{} is no document", path.display()))?;
        ensure!(known.contains(&anchor), "{} has no heading of that name", path.display());
    }
    Ok(())
}

fn anchors(documents: &[Document]) -> BTreeMap<PathBuf, BTreeSet<String>> {
    let of = |document: &Document| document.headings().into_iter().map(anchor).collect();
    documents.iter().map(|document| (document.path.clone(), of(document))).collect()
}

#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let documents = Document::all()?;
    let anchors = anchors(&documents);
    let mut checked = 0;
    for document in &documents {
        for link in links(document) {
            check(document, &link, &anchors).with_context(|| format!("{}: ({link})", document.name()))?;
            checked += 1;
        }
    }
    ensure!(checked > 50, "{checked} links were found");
    let readme = Document::read("README.md")?;
    for dead in ["docs/nowhere.md", "#nowhere", "docs/contributing.md#nowhere", "../outside.md", "LICENSE-MIT#a"] {
        ensure!(check(&readme, dead, &anchors).is_err(), "{dead} passes");
    }
    Ok(())
}

#[test]
fn no_heading_of_a_document_is_there_twice() -> Result<()> {
    for document in Document::all()? {
        let headings = document.headings();
        let distinct: BTreeSet<String> = headings.iter().map(|heading| anchor(heading)).collect();
        ensure!(distinct.len() == headings.len(), "{}: {headings:?}", document.name());
    }
    Ok(())
}

#[test]
fn readme_leads_to_every_document() -> Result<()> {
    let readme = Document::read("README.md")?;
    let mut listed: BTreeSet<PathBuf> = links(&readme).iter().map(|link| target(&readme, link).0).collect();
    listed.insert(readme.path.clone());
    for document in Document::all()? {
        ensure!(listed.contains(&document.path), "README does not lead to {}", document.name());
    }
    Ok(())
}

#[test]
fn readme_is_read_on_three_screens() -> Result<()> {
    let readme = Document::read("README.md")?;
    let lines: Vec<&str> = readme.text.lines().collect();
    ensure!(lines.len() <= 160, "{} lines: what is not for everybody belongs into docs/", lines.len());
    let screen = lines[..40.min(lines.len())].join("\n");
    for word in ["Kubernetes", "Docker", "containerd", "cargo run"] {
        ensure!(screen.contains(word), "{word} is not on the first screen");
    }
    for command in ["cargo run", "make test"] {
        let shown = readme.blocks().iter().any(|block| block.text.lines().any(|line| line.starts_with(command)));
        ensure!(shown, "README does not show `{command}`");
    }
    let path = readme.section("The data path")?;
    let numbers: Vec<usize> = path.lines().filter_map(|line| line.split_once(". ")?.0.parse().ok()).collect();
    ensure!(numbers == (1..=10).collect::<Vec<_>>(), "the data path has ten steps: {numbers:?}");
    Ok(())
}
