//! What documents show to type runs: the program knows the words, and targets, packages and tests are there.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use stopover::config::{Cold, Config};
use support::program::run;

use super::{Document, root};

/// The commands of a script, each as its words. What an operator of the shell divides are different commands.
fn commands(script: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for line in script.replace("\\\n", " ").lines() {
        let mut words: Vec<String> = Vec::new();
        let (mut word, mut quote) = (None::<String>, None);
        let mut letters = line.trim().trim_start_matches("$ ").chars();
        while let Some(letter) = letters.next() {
            match (letter, quote) {
                (letter, Some(open)) if letter == open => quote = None,
                ('\'' | '"', None) => {
                    quote = Some(letter);
                    word.get_or_insert_default();
                }
                ('\\', None) => word.get_or_insert_default().extend(letters.next()),
                ('#', None) if word.is_none() => break,
                (' ' | '\t', None) => words.extend(word.take()),
                ('|' | ';' | '&' | '>' | '<' | '(' | ')', None) => {
                    // `2>` is no word.
                    words.extend(word.take().filter(|word| (letter, word.as_str()) != ('>', "2")));
                    commands.push(std::mem::take(&mut words));
                }
                (letter, _) => word.get_or_insert_default().push(letter),
            }
        }
        words.extend(word);
        commands.push(words);
    }
    commands.retain(|words| !words.is_empty());
    commands
}

/// A command without what stands before its name: `sudo`, variables.
fn named(words: &[String]) -> &[String] {
    let before = |word: &&String| *word == "sudo" || (word.contains('=') && !word.starts_with('-'));
    &words[words.iter().take_while(before).count()..]
}

/// Every command that a document shows, in blocks and between backticks.
fn shown(document: &Document) -> Vec<Vec<String>> {
    let blocks = document.blocks().into_iter();
    let scripts = blocks.filter(|block| matches!(&*block.language, "sh" | "console")).map(|block| block.text);
    let is_command =
        |span: &String| ["stopover ", "make ", "cargo ", "STOPOVER_"].iter().any(|name| span.starts_with(name));
    scripts.chain(document.spans().into_iter().filter(is_command)).flat_map(|script| commands(&script)).collect()
}

/// What a command may name: the targets of the Makefile, and the packages with their tests and programs.
struct Known {
    targets: Vec<String>,
    packages: BTreeMap<String, toml::Table>,
}

impl Known {
    fn read() -> Result<Self> {
        let makefile = std::fs::read_to_string(root().join("Makefile"))?;
        let target = |line: &str| {
            let (name, _) = line.split_once(':')?;
            let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
            plain.then(|| name.to_owned())
        };
        let mut packages = BTreeMap::new();
        for manifest in ["Cargo.toml", "functions/Cargo.toml", "tests/Cargo.toml"] {
            let manifest: toml::Table = std::fs::read_to_string(root().join(manifest))?.parse()?;
            let name = manifest["package"]["name"].as_str().context("a package without a name")?.to_owned();
            packages.insert(name, manifest);
        }
        Ok(Self { targets: makefile.lines().filter_map(target).collect(), packages })
    }

    fn check_make(&self, words: &[String]) -> Result<()> {
        for target in words.iter().filter(|word| !word.starts_with('-') && !word.contains('=')) {
            ensure!(self.targets.contains(target), "the Makefile has no target {target}");
        }
        Ok(())
    }

    /// `-p`, `--test` and `--bin` of cargo.
    fn check_cargo(&self, words: &[String]) -> Result<()> {
        let value = |names: &[&str]| words.iter().skip_while(|word| !names.contains(&word.as_str())).nth(1);
        let package = value(&["-p", "--package"]).map_or("stopover", String::as_str);
        let manifest = self.packages.get(package).with_context(|| format!("there is no package {package}"))?;
        for (flag, table) in [("--test", "test"), ("--bin", "bin")] {
            let Some(name) = value(&[flag]) else { continue };
            let declared = manifest.get(table).and_then(toml::Value::as_array);
            let mut declared = declared.into_iter().flatten().filter_map(|table| table["name"].as_str());
            let found = root().join("src/bin").join(name).exists();
            let declared = declared.any(|known| known == name) || (table == "bin" && found);
            ensure!(declared, "the package {package} has no {table} {name}");
        }
        Ok(())
    }

    async fn check(&self, words: &[String]) -> Result<()> {
        match words.split_first().map(|(name, words)| (name.as_str(), words)) {
            Some(("stopover", words)) => check_program(words).await,
            Some(("make", words)) => self.check_make(words),
            Some(("cargo", words)) => self.check_cargo(words),
            _ => Ok(()),
        }
    }
}

/// Has the program read the words, and print its help in the place of doing something: an unknown command, flag or value
/// is an error before that.
async fn check_program(words: &[String]) -> Result<()> {
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    words.insert(end, "--help");
    let (status, text) = run(&words).await?;
    ensure!(status.success() && text.contains("Usage: "), "{text}");
    Ok(())
}

#[tokio::test]
async fn every_command_that_a_document_shows_runs() -> Result<()> {
    let known = Known::read()?;
    let mut checked = BTreeMap::<String, usize>::new();
    for document in Document::all()? {
        for words in shown(&document) {
            let words = named(&words);
            known.check(words).await.with_context(|| format!("{}: {}", document.name(), words.join(" ")))?;
            *checked.entry(words.first().cloned().unwrap_or_default()).or_default() += 1;
        }
    }
    for (program, least) in [("stopover", 40), ("make", 10), ("cargo", 10)] {
        ensure!(checked.get(program).is_some_and(|count| *count >= least), "{program}: {checked:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_command_that_does_not_run_is_found() -> Result<()> {
    let known = Known::read()?;
    for script in [
        "stopover setpu docker",
        "stopover setup dokcer",
        "stopover setup docker --sever http://127.0.0.1:5000",
        "stopover fills retry all",
        "true && sudo stopover gc --dryrun",
        "X=1 stopover login podman --nothing -- --tls-verify=false",
        "make tests",
        "cargo test -p behaviour",
        "cargo test -p behaviours --test client",
        "STOPOVER_FUZZ=1 cargo build --bin stopovr",
    ] {
        let commands = commands(script);
        let words = named(commands.last().context("no command")?);
        ensure!(known.check(words).await.is_err(), "{script} passes as {words:?}");
    }
    let words = commands("stopover setup podman > /etc/x.conf; a \\\n \"b c\" | d 2> f # e");
    ensure!(
        words == [vec!["stopover", "setup", "podman"], vec!["/etc/x.conf"], vec!["a", "b c"], vec!["d"], vec!["f"]],
        "{words:?}"
    );
    Ok(())
}

/// What can be parsed of the blocks in other languages.
fn check_block(language: &str, text: &str) -> Result<()> {
    match language {
        "toml" => {
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), text)?;
            Config::load(Some(file.path()), Cold::Follow, |_| Ok("secret".into()))?;
        }
        "yaml" => drop(serde_yaml_ng::from_str::<serde_yaml_ng::Value>(text)?),
        "json" => {
            for line in text.lines() {
                serde_json::from_str::<serde_json::Value>(line)?;
            }
        }
        "sh" | "console" | "text" => {}
        other => bail!("a block in a language that is not checked: {other:?}"),
    }
    Ok(())
}

#[test]
fn every_configuration_that_a_document_shows_loads() -> Result<()> {
    let mut configurations = 0;
    for document in Document::all()? {
        for block in document.blocks() {
            let at = || format!("{}:\n{}", document.name(), block.text);
            check_block(&block.language, &block.text).with_context(at)?;
            configurations += usize::from(block.language == "toml");
        }
    }
    ensure!(configurations >= 8, "{configurations} were found");
    for wrong in ["frehs = \"5m\"", "[[policy]]\nallow = true", "[upstreams.\"corp\"]"] {
        ensure!(check_block("toml", wrong).is_err(), "{wrong} loads");
    }
    Ok(())
}
