//! What flags and variables mean, wherever they stand.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use support::program::{Installation, binary, output, run};
use tokio::process::Command;

/// A server that is not there.
const AWAY: &str = "http://127.0.0.1:1";

/// All that was printed.
fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[tokio::test]
async fn stopover_server_names_the_cache_for_every_client_command() -> anyhow::Result<()> {
    let (image, data) = ("docker.io/library/alpine:3", tempfile::tempdir()?);
    let data = ["--data-dir", data.path().to_str().context("a path that is not UTF-8")?];
    let asking: [&[&str]; 14] = [
        &["health"],
        &["ls"],
        &["inspect", image],
        &["du"],
        &["quota"],
        &["status"],
        &["events"],
        &["fills"],
        &["fills", "retry"],
        &["gc"],
        &["purge", image],
        &["refresh", image],
        &["prefetch", image],
        &["robot", "list"],
    ];
    let run =
        async |arguments: &[&str], server: &str| output(arguments, &[("STOPOVER_SERVER", OsStr::new(server))]).await;
    for command in asking {
        let said = text(&run(&[command, &data].concat(), AWAY).await?);
        ensure!(said.contains(&format!("no cache answers at {AWAY}")), "{command:?}: {said}");
        let answer = run(command, "cache.example.com").await?;
        ensure!(answer.status.code() == Some(2), "{command:?}: {}", text(&answer));
        ensure!(text(&answer).contains("give a URL like https://cache.example.com"), "{}", text(&answer));
        // A flag wins.
        let said = text(&run(&[command, &["--server", "http://127.0.0.1:2"]].concat(), AWAY).await?);
        ensure!(said.contains("no cache answers at http://127.0.0.1:2"), "{command:?}: {said}");
    }
    for (command, word) in [
        (&["setup", "podman"][..], "127.0.0.1:1"),
        (&["logout", "echo"], "logout 127.0.0.1:1\n"),
        (&["doctor", "--root", "/nowhere"], AWAY),
    ] {
        let said = text(&run(command, AWAY).await?);
        ensure!(said.contains(word), "{command:?}: {said}");
    }
    // Empty is as good as unset.
    let said = text(&run(&[&["gc"], &data[..]].concat(), "").await?);
    ensure!(said.contains("no cache runs with this data directory"), "{said}");
    let said = text(&run(&["logout", "echo", "--", "--all"], "").await?);
    ensure!(said == "logout --all 127.0.0.1:5000\n", "{said}");
    Ok(())
}

/// As behind `head`, which has read enough.
#[tokio::test]
async fn a_command_whose_output_is_not_read_on_ends_without_a_word() -> anyhow::Result<()> {
    for arguments in [
        &["setup"][..],
        &["cost"],
        &["man"],
        &["docker-credential", "list"],
        &["doctor", "--server", AWAY, "--root", "/nowhere"],
        &["doctor", "--json", "--server", AWAY, "--root", "/nowhere"],
    ] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = Command::new(binary()?);
        let command = command.args(arguments).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let ended = command.spawn()?.wait_with_output().await?;
        ensure!(ended.status.success() && ended.stderr.is_empty(), "{arguments:?}: {ended:?}");
    }
    Ok(())
}

#[tokio::test]
async fn options_of_a_server_exist_only_where_there_is_one() -> anyhow::Result<()> {
    for arguments in [
        &["quota", "--listen", "127.0.0.1:1"][..],
        &["gc", "--grace", "1s"],
        &["status", "--log", "debug"],
        &["setup", "--data-dir", "/nowhere"],
        &["cost", "--config", "/nowhere"],
        &["docker-credential", "get", "--config", "/nowhere"],
        &["config", "init", "--server", AWAY],
    ] {
        let (status, text) = run(arguments).await?;
        ensure!(status.code() == Some(2) && text.contains(&format!("'{}'", arguments[arguments.len() - 2])), "{text}");
    }
    Ok(())
}

/// Starts the program with these words, asks it something, and ends it: all that it printed.
async fn served(words: &[&str]) -> anyhow::Result<String> {
    let installation = Installation::with_configuration("")?;
    let data = installation.data().display().to_string();
    // A warning is not what this is about.
    std::fs::set_permissions(installation.data(), Permissions::from_mode(0o700))?;
    let mut child = Command::new(binary()?);
    child.args(words).args(["--data-dir", &data]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.kill_on_drop(true).spawn()?;
    let id = child.id().context("it has ended")?.to_string();
    let answered = async {
        while !run(&["status", "--data-dir", &data]).await?.0.success() {
            // Nothing tells when a quiet program is ready.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    let answered = tokio::time::timeout(Duration::from_secs(30), answered).await;
    Command::new("kill").args(["-TERM", &id]).status().await?;
    let ended = tokio::time::timeout(super::PROMPT, child.wait_with_output()).await.context("it does not end")??;
    answered.with_context(|| format!("{words:?}: {}", text(&ended)))??;
    ensure!(ended.status.success(), "{words:?}: {}", text(&ended));
    Ok(text(&ended))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_command_it_serves_with_the_options_of_serve_quietly_or_at_length() -> anyhow::Result<()> {
    for address in [":0", "localhost:0", "[::1]:0"] {
        let said = served(&["--listen", address, "-v"]).await?;
        let host = match address {
            ":0" => "0.0.0.0",
            "localhost:0" => "127.0.0.1",
            _ => "[::1]",
        };
        ensure!(said.contains(&format!("listening on http://{host}:")), "{address}: {said}");
        ensure!(said.contains("DEBUG"), "{address}: {said}");
    }
    let said = served(&["--quiet", "--listen", "localhost:0"]).await?;
    ensure!(said.is_empty(), "{said}");
    let said = served(&["serve", "--listen", "localhost:0"]).await?;
    ensure!(said.contains("listening on") && !said.contains("DEBUG"), "{said}");
    for (words, wrong) in [(["--listen", "5001"], "like 127.0.0.1:5000"), (["-q", "-v"], "cannot be used with")] {
        let (status, text) = run(&words).await?;
        ensure!(status.code() == Some(2) && text.contains(wrong), "{words:?}: {text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_first_configuration_is_written_and_never_over_another() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("stopover.toml");
    let name = file.to_str().context("a path that is not UTF-8")?;
    let (status, text) = run(&["config", "init", name]).await?;
    ensure!(status.success() && text.contains(name), "{text}");
    let (status, text) = run(&["config", "check", "--config", name]).await?;
    ensure!(status.success() && text.contains("listen    127.0.0.1:5000"), "{text}");
    std::fs::write(&file, "keep = \"90d\"\n")?;
    let (status, text) = run(&["config", "init", name]).await?;
    ensure!(status.code() == Some(1) && text.contains("is there already"), "{text}");
    ensure!(std::fs::read_to_string(&file)? == "keep = \"90d\"\n", "it was written over");
    let (status, text) = run(&["config", "init", "/nowhere/stopover.toml"]).await?;
    ensure!(status.code() == Some(1) && text.contains("cannot write /nowhere/stopover.toml"), "{text}");
    Ok(())
}

#[tokio::test]
async fn completions_and_manual_pages_have_every_command() -> anyhow::Result<()> {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (status, text) = run(&["completions", shell]).await?;
        ensure!(status.success() && text.contains("prefetch") && text.contains("data-dir"), "{shell}: {text}");
    }
    // The shell itself reads it, and completes a word with it.
    let script = "source <(\"$0\" completions bash); COMP_WORDS=(stopover pref) COMP_CWORD=1; _stopover stopover pref stopover; \
                  printf '%s\\n' \"${COMPREPLY[@]}\"";
    let completed = Command::new("bash").args(["-c", script]).arg(binary()?).output().await?;
    ensure!(completed.stdout == b"prefetch\n", "{}", text(&completed));
    let (status, page) = run(&["man"]).await?;
    ensure!(status.success() && page.contains(".TH stopover 1") && page.contains("stopover\\-prefetch(1)"), "{page}");
    let directory = tempfile::tempdir()?;
    let pages = directory.path().join("man1");
    let (status, text) = run(&["man", pages.to_str().context("a path that is not UTF-8")?]).await?;
    ensure!(status.success(), "{text}");
    for page in ["stopover.1", "stopover-serve.1", "stopover-robot-add.1"] {
        ensure!(pages.join(page).exists(), "{page} is missing");
    }
    Ok(())
}

/// On a terminal, which `script` makes.
#[tokio::test]
async fn no_color_takes_colours_away() -> anyhow::Result<()> {
    let printed = async |variable: Option<(&str, &str)>| {
        let mut terminal = Command::new("script");
        terminal.args(["-qec", &format!("{} --help", binary()?.display()), "/dev/null"]).env("TERM", "xterm");
        terminal.env_remove("NO_COLOR").envs(variable).stdin(Stdio::null());
        anyhow::Ok(text(&terminal.output().await?))
    };
    let (with, without) = (printed(None).await?, printed(Some(("NO_COLOR", "1"))).await?);
    ensure!(with.contains("\u{1b}[") && with.contains("prefetch"), "{with:?}");
    ensure!(!without.contains('\u{1b}') && without.contains("prefetch"), "{without:?}");
    Ok(())
}
