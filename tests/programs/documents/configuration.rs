//! docs/reference/configuration.md has every key of stopover.toml, with its true default and an example that loads.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use stopover::config::{Cold, Config};

use super::{Document, code, rows};

pub(super) const DOCUMENT: &str = "docs/reference/configuration.md";

/// A key that there is nowhere, and that is like none.
const WRONG: &str = "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq";

/// The name of a table among others of its kind.
const NAME: &str = "\"wrong.example\"";

/// Where the document describes the keys of a table, and a configuration that has such a table, with `KEYS` for its keys.
struct Section {
    heading: &'static str,
    table: &'static str,
    configuration: &'static str,
}

/// What keys may be about that are not of the table itself.
const OIDC: &str = "[access.oidc.ci]\nissuer = \"https://ci.example\"\naudience = \"a\"\nclaims = { sub = \"b\" }\n";

pub(super) const SHARED: &str = "What upstreams and rules have in common";

#[rustfmt::skip]
const SECTIONS: [Section; 14] = [
    Section { heading: "Top of the file", table: "", configuration: "KEYS" },
    Section { heading: "upstreams", table: "upstreams.NAME", configuration: "[upstreams.\"registry.example.com\"]\nKEYS" },
    Section { heading: SHARED, table: "upstreams.NAME", configuration: "[upstreams.\"registry.example.com\"]\nKEYS" },
    Section { heading: "credentials", table: "upstreams.NAME.credentials", configuration: "[upstreams.\"ghcr.io\".credentials]\nKEYS" },
    Section { heading: "alternates", table: "upstreams.NAME.alternates[]", configuration: "[[upstreams.\"ghcr.io\".alternates]]\nKEYS" },
    Section { heading: "rules", table: "rules.NAME", configuration: "[rules.\"team/hub\"]\nKEYS" },
    Section { heading: SHARED, table: "rules.NAME", configuration: "[rules.\"ghcr.io/acme\"]\nKEYS" },
    Section { heading: "credentials", table: "rules.NAME.credentials", configuration: "[rules.\"ghcr.io/acme\".credentials]\nKEYS" },
    Section { heading: "schedule", table: "schedule[]", configuration: "[[schedule]]\nKEYS" },
    Section { heading: "access", table: "access", configuration: "[access]\nKEYS\nOIDC" },
    Section { heading: "access.iam", table: "access.iam", configuration: "[access]\nservice = \"a\"\n[access.iam]\nKEYS" },
    Section { heading: "access.oidc.NAME", table: "access.oidc.NAME", configuration: "[access.oidc.ci]\nKEYS" },
    Section { heading: "access.signing_keys", table: "access.signing_keys", configuration: "[access]\n[access.signing_keys]\nKEYS\nOIDC" },
    Section { heading: "policy", table: "policy[]", configuration: "[access]\nrobots = true\nOIDC[[policy]]\nKEYS" },
];

/// A row of the document.
struct Key {
    name: String,
    default: String,
    example: String,
}

impl Section {
    fn keys(&self, document: &Document) -> Result<Vec<Key>> {
        let key = |row: &Vec<String>| {
            let [name, _, default, example] = &row[..] else { bail!("{row:?} has not four cells") };
            let name = code(name).with_context(|| format!("{row:?} begins with no key"))?;
            Ok(Key { name: name.to_owned(), default: default.clone(), example: example.clone() })
        };
        rows(&document.section(self.heading)?).iter().map(key).collect()
    }

    /// What the program makes of these keys in such a table.
    fn load(&self, keys: &[(&str, &str)]) -> Result<String> {
        let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        load(&self.configuration.replace("KEYS", &keys.join("\n")).replace("OIDC", OIDC))
    }

    /// Checks one row. The others of the table that are needed with it are those that say so.
    fn check(&self, key: &Key, all: &[Key]) -> Result<()> {
        let Key { name, default, example } = key;
        let example = code(example).with_context(|| format!("{example} is no example"))?;
        let needed = |key: &&Key| key.name != *name && key.default.starts_with("required");
        let mut others: Vec<_> = all.iter().filter(needed).collect();
        if !default.starts_with("one of") {
            others.extend(all.iter().find(|key| key.default.starts_with("one of")));
        }
        let value = |key: &Key| code(&key.example).map(str::to_owned).context("a key that is needed has no example");
        let others: Vec<(&str, String)> =
            others.into_iter().map(|key| Ok((key.name.as_str(), value(key)?))).collect::<Result<_>>()?;
        let others: Vec<(&str, &str)> = others.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let with = |value| self.load(&[&others[..], &[(name.as_str(), value)]].concat());
        let shown = with(example).context("the example does not load")?;
        if default.starts_with("required") || default.starts_with("one of") {
            ensure!(self.load(&others).is_err(), "it is not needed");
            return Ok(());
        }
        let without = self.load(&others)?;
        ensure!(shown != without, "the example changes nothing");
        if let Some(default) = code(default) {
            ensure!(with(default).context("the default does not load")? == without, "{default} is not the default");
        }
        Ok(())
    }
}

/// What the program makes of a configuration.
pub(super) fn load(text: &str) -> Result<String> {
    let file = std::path::Path::new("stopover.toml");
    Ok(format!("{:?}", Config::parse(text, file, Cold::Follow, |_| Ok("secret".into()))?))
}

/// The keys of a table, from what the program says of one that is wrong. `None`: it is no table that has keys.
fn known_keys(table: &str) -> Option<Vec<String>> {
    let text = table.rsplit('.').filter(|part| !part.is_empty()).fold(format!("{{ {WRONG} = 1 }}"), |inner, part| {
        let (name, inner) = match part.strip_suffix("[]") {
            Some(name) => (name, format!("[{inner}]")),
            None => (part, inner),
        };
        format!("{{ {} = {inner} }}", if name == "NAME" { NAME } else { name })
    });
    let text = text.strip_prefix('{')?.strip_suffix('}')?;
    let error = load(text.trim()).err()?.to_string();
    let (_, expected) = error.split_once(&format!("unknown field `{WRONG}`, expected "))?;
    Some(expected.lines().next()?.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Every table that the program knows, with its keys.
fn tables() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut tables = BTreeMap::new();
    let mut open = vec![(String::new(), known_keys("").context("the file has no keys")?)];
    while let Some((table, keys)) = open.pop() {
        for key in &keys {
            let path = if table.is_empty() { key.clone() } else { format!("{table}.{key}") };
            let forms = ["", "[]", ".NAME"].map(|form| format!("{path}{form}"));
            open.extend(forms.into_iter().filter_map(|path| Some((path.clone(), known_keys(&path)?))));
        }
        // The nearest right key is named once more.
        tables.insert(table, keys.into_iter().collect());
    }
    Ok(tables)
}

#[test]
fn the_reference_of_the_configuration_is_what_the_program_reads() -> Result<()> {
    let document = Document::read(DOCUMENT)?;
    let tables = tables()?;
    ensure!(tables.len() == 12, "{:?}", tables.keys());
    for (table, keys) in &tables {
        let sections: Vec<&Section> = SECTIONS.iter().filter(|section| section.table == table).collect();
        ensure!(!sections.is_empty(), "the table {table:?} has no section in {DOCUMENT}");
        let mut written = BTreeSet::new();
        for section in sections {
            let all = section.keys(&document)?;
            written.extend(all.iter().map(|key| key.name.clone()));
            let is_table = |key: &&Key| {
                let path = if table.is_empty() { key.name.clone() } else { format!("{table}.{}", key.name) };
                ["", "[]", ".NAME"].iter().any(|form| tables.contains_key(&format!("{path}{form}")))
            };
            for key in all.iter().filter(|key| !is_table(key)) {
                section.check(key, &all).with_context(|| format!("{DOCUMENT}, {}: {}", section.heading, key.name))?;
            }
        }
        ensure!(written == *keys, "{table:?}: {DOCUMENT} has\n{written:?}\nbut the program knows\n{keys:?}");
    }
    Ok(())
}

#[test]
fn a_row_that_is_wrong_is_found() -> Result<()> {
    let [top, ..] = &SECTIONS;
    let key = |name: &str, default: &str, example: &str| Key {
        name: name.to_owned(),
        default: default.to_owned(),
        example: example.to_owned(),
    };
    top.check(&key("fresh", "`\"5m\"`", "`\"1h\"`"), &[])?;
    for (default, example) in
        [("`\"6m\"`", "`\"1h\"`"), ("`\"5m\"`", "`\"5m\"`"), ("`\"5m\"`", "`5`"), ("required", "`\"1h\"`")]
    {
        ensure!(top.check(&key("fresh", default, example), &[]).is_err(), "{default} and {example} pass");
    }
    Ok(())
}
