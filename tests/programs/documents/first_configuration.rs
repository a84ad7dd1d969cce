//! The file that `stopover config init` writes is made of docs/reference/configuration.md.

use anyhow::{Context as _, Result, bail, ensure};

use super::configuration::{DOCUMENT, SHARED, load};
use super::{Document, code, root, rows};

const FILE: &str = "src/bin/stopover/stopover.toml";

const HEAD: &str = "# Every key of stopover.toml, with its default. Take away the # before a key, and before the table that it belongs to.\n\
                    # `stopover config check` says what the file amounts to, or what is wrong with it.\n";

/// The tables in the order of the file, each with the headings under which the document has its keys.
const TABLES: [(&str, &[&str]); 11] = [
    ("", &["Top of the file"]),
    ("[upstreams.\"registry.example.com\"]", &["upstreams", SHARED]),
    ("[upstreams.\"registry.example.com\".credentials]", &["credentials"]),
    ("[[upstreams.\"registry.example.com\".alternates]]", &["alternates"]),
    ("[rules.\"registry.example.com/team\"]", &["rules", SHARED]),
    ("[[schedule]]", &["schedule"]),
    ("[access]", &["access"]),
    ("[access.iam]", &["access.iam"]),
    ("[access.oidc.ci]", &["access.oidc.NAME"]),
    ("[access.signing_keys]", &["access.signing_keys"]),
    ("[[policy]]", &["policy"]),
];

/// A text of the document without the targets of its links, as lines of comment.
fn comment(text: &str) -> String {
    let mut plain = text.to_owned();
    while let Some((before, target)) = plain.split_once("](") {
        let (_, after) = target.split_once(')').unwrap_or_default();
        let (before, name) = before.rsplit_once('[').unwrap_or(("", before));
        plain = [before, name, after].concat();
    }
    let mut lines = vec!["#".to_owned()];
    for word in plain.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < 120 => line.extend([" ", word]),
            _ => lines.push(format!("# {word}")),
        }
    }
    lines.join("\n") + "\n"
}

/// One key: what it says, and its default; an example where the default is none that can be written.
fn key(row: &[String]) -> Result<String> {
    let [name, says, default, example] = row else { bail!("{row:?} has not four cells") };
    let name = code(name).with_context(|| format!("{row:?} begins with no key"))?;
    // A table of its own.
    if example.starts_with("[below]") {
        return Ok(String::new());
    }
    let (value, note) = match code(default) {
        Some(value) if default.starts_with('`') => (value, String::new()),
        _ if default.starts_with("required") => (code(example).context("no example")?, " Required.".into()),
        _ => (code(example).context("no example")?, format!(" Default: {default}.")),
    };
    Ok(format!("\n{}#{name} = {value}\n", comment(&format!("{says}{note}"))))
}

fn rendered() -> Result<String> {
    let document = Document::read(DOCUMENT)?;
    let mut text = HEAD.to_owned();
    for (table, headings) in TABLES {
        if !table.is_empty() {
            text.extend(["\n\n#", table, "\n"]);
        }
        for heading in headings {
            // Its keys stand in the table of upstreams.
            if *heading == SHARED && table.starts_with("[rules") {
                text.push_str("\n# And the keys of [upstreams] from `fresh` on.\n");
                continue;
            }
            for row in rows(&document.section(heading)?) {
                text.push_str(&key(&row)?);
            }
        }
    }
    Ok(text)
}

#[test]
fn the_first_configuration_has_every_key_of_the_reference_and_changes_nothing() -> Result<()> {
    let rendered = rendered()?;
    if std::env::var_os("STOPOVER_WRITE_DOCS").is_some() {
        return Ok(std::fs::write(root().join(FILE), rendered)?);
    }
    let written = std::fs::read_to_string(root().join(FILE))?;
    let advice = "`STOPOVER_WRITE_DOCS=1 cargo test -p behaviours --test programs documents` writes it";
    ensure!(written == rendered, "{FILE} is not what {DOCUMENT} says; {advice}");
    ensure!(load(&written)? == load("")?, "a key in it is no comment");
    // What stands at the top is the default, word by word, but for what has none that can be written.
    let top = written.lines().take_while(|line| !line.starts_with("#[")).filter_map(|line| line.strip_prefix('#'));
    let top: Vec<&str> = top.filter(|line| !line.starts_with(' ')).collect();
    ensure!(top.len() > 15, "{top:?}");
    let defaults: Vec<&str> = top.into_iter().filter(|line| !line.starts_with("max_size ")).collect();
    ensure!(load(&defaults.join("\n"))? == load("")?, "{defaults:?}");
    Ok(())
}
