//! What commands show of what is stored.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use stopover::oci::{Algorithm, Digest, MediaType};
use support::program::{Installation, Stopover, UPSTREAM, output, run};
use support::scripted::Scripted;
use support::world::{DEADLINE, until};

/// What moves the cursor, hides, turns round and rings.
const HOSTILE: &str = "\u{1b}[2J\u{7}\u{202e}\u{9b}31m\r\nlinux";

/// An index whose platform, annotations and labels are hostile. Returns the digest of its image.
fn hostile(upstream: &Scripted) -> String {
    let annotations = json!({ HOSTILE: HOSTILE });
    let config = json!({ "architecture": HOSTILE, "os": HOSTILE, "config": { "Labels": annotations } }).to_string();
    let image = upstream.image("hostile", "part", &[config.as_bytes()]);
    let mut manifest: Value = serde_json::from_slice(&image.manifest).expect("JSON");
    manifest["annotations"] = annotations.clone();
    manifest["config"] = manifest["layers"][0].clone();
    manifest["layers"] = json!([]);
    let text = manifest.to_string();
    let digest = upstream.manifest("hostile", "part", MediaType::OciManifest.as_str(), text.as_bytes());
    let platform = json!({ "os": HOSTILE, "architecture": HOSTILE, "variant": HOSTILE });
    let child = json!({
        "mediaType": MediaType::OciManifest.as_str(), "digest": digest, "size": text.len(), "platform": platform,
        "annotations": annotations,
    });
    let index = json!({ "schemaVersion": 2, "manifests": [child], "annotations": annotations });
    upstream.manifest("hostile", "v1", MediaType::OciIndex.as_str(), index.to_string().as_bytes());
    digest.to_string()
}

async fn pull(stopover: &Stopover, path: &str) -> Result<()> {
    let manifest = support::get(format!("http://{}/v2/{UPSTREAM}/{path}", stopover.address()));
    manifest.await?.error_for_status()?;
    Ok(())
}

/// The cells of the row that has this cell.
fn row<'a>(text: &'a str, cell: &str) -> Result<Vec<&'a str>> {
    let cells = |line: &'a str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>();
    let mut rows = text.lines().map(cells).filter(|cells| cells.contains(&cell));
    rows.next().with_context(|| format!("no row of {cell} in\n{text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_shown_in_tables_and_does_nothing_to_the_terminal() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/app", "v1", &[&[7; 5_000]]);
    let part = hostile(&upstream);
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let data = stopover.data().display().to_string();
    let nothing = output(&["ls", "--data-dir", &data], &[]).await?;
    ensure!(nothing.status.success() && nothing.stdout.is_empty(), "{nothing:?}");
    ensure!(nothing.stderr == b"nothing is stored yet\n", "{nothing:?}");
    for path in ["team/app/manifests/v1", "hostile/manifests/v1", &format!("hostile/manifests/{part}")] {
        pull(&stopover, path).await?;
    }
    tokio::time::timeout(DEADLINE, until(|| stopover.stored_blobs().is_ok_and(|stored| stored.len() == 3))).await?;
    let bytes: BTreeMap<&str, usize> = [("team/app", image.blobs.iter().map(|(_, bytes)| bytes.len()).sum())].into();
    let server = format!("http://{}", stopover.address());
    let name = format!("{UPSTREAM}/team/app");
    for there in [None, Some(["--server", &server])] {
        let ask = async |arguments: &[&str]| -> Result<String> {
            let (status, text) = match there {
                None => stopover.run(arguments).await?,
                Some(there) => run(&[arguments, &there[..]].concat()).await?,
            };
            ensure!(status.success(), "{status}\n{text}");
            let is_harmless = |letter: char| letter == '\n' || (!letter.is_control() && letter != '\u{202e}');
            ensure!(text.chars().all(is_harmless), "{text:?}");
            Ok(text)
        };
        let text = ask(&["ls"]).await?;
        let found = row(&text, &name)?;
        ensure!(found[1] == "5.0 kB" && found[2] == "not counted" && found.last() == Some(&"v1"), "{text}");
        ensure!(ask(&["ls", "-q"]).await? == format!("{UPSTREAM}/hostile\n{name}\n"));
        ensure!(ask(&["ls", "-q", "test.local/team/"]).await? == format!("{name}\n"));
        ensure!(ask(&["ls", "-q", &name]).await? == format!("{name}:v1\n"), "a repository has images");
        let listed: Value = serde_json::from_str(&ask(&["ls", "--json"]).await?)?;
        ensure!(listed["repositories"][1]["bytes"] == bytes["team/app"], "{listed}");
        let text = ask(&["ls", &format!("{UPSTREAM}/hostile")]).await?;
        let found = row(&text, "v1")?;
        ensure!(found.last().is_some_and(|platforms| platforms.contains("\\u{1b}[2j")), "{text}");
        let text = ask(&["inspect", &format!("{UPSTREAM}/hostile:v1")]).await?;
        ensure!(text.contains(&part) && text.contains("\\u{202e}") && !text.contains("not known"), "{text}");
        let text = ask(&["inspect", &format!("{name}:v1")]).await?;
        for (digest, bytes) in &image.blobs {
            ensure!(text.contains(digest.as_str()), "{} bytes\n{text}", bytes.len());
        }
        let shown: Value = serde_json::from_str(&ask(&["inspect", "--json", &name]).await?)?;
        ensure!(shown["images"][0]["digest"] == image.digest.as_str(), "{shown}");
        let text = ask(&["du"]).await?;
        ensure!(text.starts_with("OWN ") && row(&text, &name)?[0] == "5.0 kB", "{text}");
        ensure!(text.contains(" in 2 repositories, and once what they share\n"), "{text}");
        let used: Value = serde_json::from_str(&ask(&["du", "--json", UPSTREAM]).await?)?;
        ensure!(used["repositories"][0]["own_bytes"] == bytes["team/app"], "the largest first: {used}");
    }
    for (arguments, sentence) in [
        (&["inspect", "test.local/none\u{1b}[2J"][..], "400 Bad Request: "),
        (&["inspect", "test.local/none"], "test.local/none: nothing is stored that is called so"),
        (&["ls", "A"], "400 Bad Request: "),
    ] {
        let (status, text) = stopover.run(arguments).await?;
        ensure!(status.code() == Some(1) && text.contains(sentence) && !text.contains('\u{1b}'), "{status}\n{text}");
    }
    // What has gone well is on standard output though something else has failed.
    let refreshed = ["refresh", "test.local/team/app:v1", "test.local/team/app:none", "--data-dir", &data];
    let refreshed = output(&refreshed, &[]).await?;
    let [results, rest] =
        [refreshed.stdout, refreshed.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    ensure!(refreshed.status.code() == Some(1) && results.lines().count() == 1, "{results}\n{rest}");
    ensure!(results.starts_with(&format!("test.local/team/app:v1: {} (", image.digest)), "{results}");
    ensure!(rest.contains("test.local/team/app:none: 404") && rest.contains("1 of 2 images could not be"), "{rest}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_looked_up_is_said_to_be_that() -> Result<()> {
    let server = Scripted::start()?;
    let digest = Digest::of(Algorithm::Sha256, b"a");
    let platform = |name: &str, stored: Option<bool>, layers: Value| json!({ "platform": name, "digest": digest, "stored": stored, "used_at": null, "layers": layers });
    let layer = json!({ "digest": digest, "bytes": 1, "stored": null, "shared": false });
    let image = json!({
        "tag": "1", "digest": digest, "stored": true, "media_type": null, "bytes": 1, "shared_bytes": 0, "used_at": 1,
        "checked_at": null, "fresh_until": null, "expires_at": 86400, "pinned": false,
        "platforms": [
            platform("linux/a", Some(true), json!([layer])), platform("linux/b", Some(false), json!([])),
            platform("linux/c", None, json!([])),
        ],
    });
    let report = json!({ "repository": "test.local/a", "images": [image], "partial": true }).to_string();
    server.page("/_stopover/image?name=test.local%2Fa%3A1", "application/json", &report, None);
    let ask = async |command: &str| run(&[command, "test.local/a:1", "--server", &server.url()]).await;
    for (command, parts) in [
        (
            "inspect",
            &["size        at least 1 B", "expires     not before 1970-01-02", "1 B, not looked up", "not stored"][..],
        ),
        ("ls", &["at least 1 B", "not before 1970-01-02"]),
    ] {
        let (status, text) = ask(command).await?;
        ensure!(status.success() && text.contains("there is more in an image than is looked up"), "{text}");
        for part in parts {
            ensure!(text.contains(part), "{part} is not in {text}");
        }
    }
    let (_, text) = ask("inspect").await?;
    ensure!(text.contains("linux/b") && text.matches("not stored").count() == 1, "{text}");
    ensure!(text.matches("not looked up").count() == 2, "{text}");
    Ok(())
}
