//! What commands show of what is stored.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use stopover::oci::MediaType;
use support::program::{Installation, Stopover, UPSTREAM, run};
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
    let (status, text) = stopover.run(&["ls"]).await?;
    ensure!(status.success() && text == "nothing is stored that is called so\n", "{status}\n{text}");
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
    Ok(())
}
