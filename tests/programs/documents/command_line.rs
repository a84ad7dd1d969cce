//! docs/reference/command-line.md is what the program prints about itself.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use support::program::{Installation, output, run};
use support::scripted::{Fault, Scripted};

use super::{Document, code, root, rows};

const DOCUMENT: &str = "docs/reference/command-line.md";
const BEGIN: &str = "<!-- commands: begin -->\n";
const END: &str = "<!-- commands: end -->\n";

/// What the program prints about one of its commands.
pub(super) struct Help {
    about: String,
    usage: String,
    pub(super) commands: Vec<String>,
    /// Arguments and options: what is typed, and what is said of it.
    entries: Vec<(String, String)>,
}

impl Help {
    pub(super) async fn of(command: &[String]) -> Result<Self> {
        let words: Vec<&str> = command.iter().map(String::as_str).chain(["-h"]).collect();
        // An entry a line.
        let printed = output(&words, &[("COLUMNS", OsStr::new("10000"))]).await?;
        ensure!(printed.status.success(), "{words:?}: {}", String::from_utf8_lossy(&printed.stderr));
        let text = String::from_utf8(printed.stdout)?;
        let (about, rest) = text.split_once("\n\nUsage: ").context("no usage")?;
        let usage = rest.lines().next().unwrap_or_default().to_owned();
        let mut help = Self { about: about.trim().to_owned(), usage, commands: Vec::new(), entries: Vec::new() };
        let mut section = "";
        for line in rest.lines().skip(1).filter(|line| !line.is_empty()) {
            match line.strip_prefix("  ") {
                None => section = line.trim_end_matches(':'),
                Some(line) => {
                    let (typed, said) = line.trim_start().split_once("  ").unwrap_or((line.trim(), ""));
                    match section {
                        "Commands" if typed == "help" => {}
                        "Commands" => help.commands.push(typed.to_owned()),
                        "Arguments" | "Options" => help.entries.push((typed.to_owned(), said.trim().to_owned())),
                        other => anyhow::bail!("{words:?} prints a section {other:?}"),
                    }
                }
            }
        }
        Ok(help)
    }

    /// A table of the entries that not every command has.
    fn table(&self, general: &[(String, String)]) -> String {
        let is_general = |typed: &str| general.iter().any(|(general, _)| general == typed);
        let own: Vec<_> = self.entries.iter().filter(|(typed, _)| !is_general(typed)).collect();
        let mut text = String::new();
        if !own.is_empty() {
            text.push_str("| | what it says | default | variable |\n| --- | --- | --- | --- |\n");
        }
        for (typed, said) in own {
            let (said, default) = taken(said, "[default: ");
            let (said, variable) = taken(&said, "[env: ");
            let (said, values) = taken(&said, "[possible values: ");
            let values = values.map(|values| format!("One of: {values}"));
            let said = [said, values.unwrap_or_default()].into_iter().filter(|part| !part.is_empty());
            // Not a tag of HTML.
            let said = said.collect::<Vec<_>>().join(". ").replace('<', "\\<");
            let variable = variable.map_or_else(String::new, |name| format!("`{}`", name.trim_end_matches('=')));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| `{typed}` | {said} | {} | {variable} |", default.unwrap_or_default());
        }
        text
    }
}

/// A text without what stands in it in brackets, and that.
fn taken(text: &str, begin: &str) -> (String, Option<String>) {
    let found = text.split_once(begin).and_then(|(before, rest)| {
        let (inner, after) = rest.split_once(']')?;
        Some(([before.trim(), after.trim()].join(" ").trim().to_owned(), inner.to_owned()))
    });
    found.map_or_else(|| (text.to_owned(), None), |(rest, inner)| (rest, Some(inner)))
}

async fn rendered() -> Result<String> {
    let general = Help::of(&[]).await?;
    let mut text = format!("\n## Options of every command\n\n{}", general.table(&[]));
    let mut commands: Vec<Vec<String>> = general.commands.iter().rev().map(|name| vec![name.clone()]).collect();
    ensure!(commands.len() > 10, "{commands:?}");
    while let Some(command) = commands.pop() {
        let help = Help::of(&command).await?;
        commands.extend(help.commands.iter().rev().map(|name| [command.clone(), vec![name.clone()]].concat()));
        // With subcommands of its own it has no usage but theirs, unless it does something by itself.
        let words = command.join(" ");
        write!(text, "\n## stopover {words}\n\n{}.\n\n```text\n{}\n```\n", help.about, help.usage)?;
        let table = help.table(&general.entries);
        if !table.is_empty() {
            write!(text, "\n{table}")?;
        }
    }
    text.push('\n');
    Ok(text)
}

#[tokio::test]
async fn the_reference_of_the_command_line_is_what_the_program_prints() -> Result<()> {
    let document = Document::read(DOCUMENT)?;
    let (before, rest) = document.text.split_once(BEGIN).context("no beginning")?;
    let (written, after) = rest.split_once(END).context("no end")?;
    let printed = rendered().await?;
    if std::env::var_os("STOPOVER_WRITE_DOCS").is_some() {
        return Ok(std::fs::write(root().join(DOCUMENT), [before, BEGIN, &printed, END, after].concat())?);
    }
    let advice = "STOPOVER_WRITE_DOCS=1 cargo test -p behaviours --test programs documents";
    let (written, printed): (Vec<_>, Vec<_>) = (written.lines().collect(), printed.lines().collect());
    for line in &printed {
        ensure!(written.contains(line), "{DOCUMENT} does not say\n{line}\n\n`{advice}` writes that");
    }
    for line in &written {
        ensure!(
            printed.contains(line),
            "{DOCUMENT} says what the program does not:\n{line}\n\n`{advice}` corrects that"
        );
    }
    ensure!(written == printed, "{DOCUMENT} has another order\n\n`{advice}` corrects that");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_end_with_the_exit_codes_of_the_reference() -> Result<()> {
    let server = Scripted::start()?;
    let health = r#"{"ready": false, "reasons": ["it is a test"]}"#;
    server.fault("/_stopover/health/ready", Fault::Status(503, vec![], health.to_owned()));
    let counts =
        r#""version": "1", "uptime_seconds": 1, "counts": {}, "hit_percent": null, "upstreams": [], "fills": null"#;
    let status = format!("{}, {counts}, \"last_sweep\": null}}", health.trim_end_matches('}'));
    server.page("/_stopover/status", "application/json", &status, None);
    let installation = Installation::with_configuration(
        "[access]\nanonymous = true\n[[policy]]\nwhat = [\"docker.io/library/denied\"]\nallow = false\n",
    )?;
    let stopover = installation.start().await?;
    let (data, file) = (stopover.data().display().to_string(), installation.configuration().display().to_string());
    let here = format!("--data-dir {data}");
    let unready = format!("--server {}", server.url());
    let ends = [
        ("0", "gc", here.clone()),
        ("0", "ls", here.clone()),
        ("0", "setup", String::new()),
        ("1", "status", unready.clone()),
        ("1", "health", unready.clone()),
        ("1", "doctor", unready),
        ("1", "policy explain", format!("--as anonymous denied:1 --config {file}")),
        ("1", "quota", "--server http://127.0.0.1:1".to_owned()),
        ("1", "inspect", format!("docker.io/library/a:1 {here}")),
        ("2", "status", "--no-such-option".to_owned()),
        ("2", "quota", "--server cache".to_owned()),
        ("3", "purge", format!("docker.io/library/a:1 {here}")),
    ];
    let rows = rows(&Document::read(DOCUMENT)?.section("Exit codes")?);
    let told: Vec<_> = rows.iter().filter_map(|row| code(&row[0])).collect();
    let of = |code: &str| ends.iter().filter(move |end| end.0 == code).map(|end| end.1).collect::<Vec<_>>();
    for (row, code) in rows.iter().zip(&told) {
        let named = row[1].split('`').filter_map(|span| span.strip_prefix("stopover "));
        for command in named.filter(|command| *command != "serve") {
            ensure!(of(code).contains(&command), "{DOCUMENT} says of `{command}` when it ends with {code}");
        }
        ensure!(!of(code).is_empty(), "{DOCUMENT} says {code}, which was not seen");
    }
    for (code, command, more) in &ends {
        ensure!(told.contains(code), "{DOCUMENT} says nothing of {code}");
        let words: Vec<&str> = command.split(' ').chain(more.split(' ').filter(|word| !word.is_empty())).collect();
        let (status, text) = run(&words).await?;
        ensure!(status.code().map(|code| code.to_string()).as_deref() == Some(*code), "{words:?}: {status}\n{text}");
        let reasons =
            [("status", "not ready: it is a test"), ("health", "not ready: it is a test"), ("policy", "denied")];
        let reason = reasons.iter().find(|(word, _)| *code == "1" && *word == words[0]);
        ensure!(reason.is_none_or(|(_, reason)| text.contains(reason)), "{words:?}: {text}");
    }
    ensure!(stopover.terminate(Duration::from_secs(30)).await?.success(), "a signal has ended it");
    Ok(())
}
