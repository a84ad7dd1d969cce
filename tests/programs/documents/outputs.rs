//! What commands print is as it was last read by a person: tests/fixtures/output has it. As JSON it has the fields of the
//! endpoints that docs/reference/command-line.md names.

use std::ffi::OsStr;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use support::openapi;
use support::program::{Installation, Stopover, UPSTREAM, output};
use support::scripted::{Fault, Scripted, ScriptedImage};
use support::world::DEADLINE;

use super::{Document, check_files, code, rows};

const DIRECTORY: &str = "tests/fixtures/output";
const REFERENCE: &str = "docs/reference/command-line.md";

/// What the commands are asked about, and their files.
const SHOWN: [(&str, &str); 10] = [
    ("ls", "ls"),
    ("ls-repository", "ls test.local/team/app"),
    ("inspect", "inspect test.local/tools/kit:1.0"),
    ("du", "du"),
    ("status", "status"),
    ("quota", "quota"),
    ("fills", "fills"),
    ("events", "events"),
    ("gc-dry-run", "gc --dry-run"),
    ("purge", "purge test.local/team/app:v2"),
];

/// Each command with `--json`, in an order in which all of them succeed, and the endpoint that has its fields.
const JSON: [(&str, &str); 18] = [
    ("status", "GET /_stopover/status"),
    ("health", "GET /_stopover/health/ready"),
    ("events", "GET /_stopover/events"),
    ("quota", "GET /_stopover/quota"),
    ("ls", "GET /_stopover/images"),
    ("ls test.local/team/app", "GET /_stopover/image"),
    ("inspect test.local/tools/kit:1.0", "GET /_stopover/image"),
    ("fills", "GET /_stopover/fills"),
    ("fills retry", "POST /_stopover/fills/retry"),
    ("prefetch test.local/team/app:v1 --platform linux/amd64", "POST /_stopover/prefetch"),
    ("prefetch --wait test.local/team/app:v1 --platform linux/amd64", "POST /_stopover/prefetch"),
    ("gc", "POST /_stopover/gc"),
    ("purge test.local/team/app:v2", "POST /_stopover/purge"),
    ("robot add new", "POST /_stopover/robots"),
    ("robot rotate new", "POST /_stopover/robots"),
    ("robot list", "POST /_stopover/robots"),
    ("robot remove new", "POST /_stopover/robots"),
    ("ls test.local/none/", "GET /_stopover/images"),
];

/// A cache that has images, one of them without a layer.
struct Filled {
    upstream: Scripted,
    app: ScriptedImage,
    stopover: Stopover,
    _installation: Installation,
}

impl Filled {
    async fn start() -> Result<Self> {
        let upstream = Scripted::start()?;
        upstream.quota(100, 50);
        let (base, own) = ([1; 5_000], [2; 2_000]);
        let app = upstream.image("team/app", "v1", &[&base, &own]);
        upstream.image("team/app", "v2", &[&base, &[3; 3_000]]);
        let (_, kits) = upstream.index("tools/kit", "1.0", &["linux/amd64", "linux/arm64"]);
        upstream.image("tools/base", "1.0", &[&base]);
        let broken = upstream.image("broken", "v1", &[b"broken"]);
        upstream.fault(broken.blobs[1].0.as_str(), Fault::Status(404, vec![], String::new()));
        let installation = Installation::with_configuration(&format!(
            "fresh = \"1h\"\n[access]\nanonymous = true\nrobots = true\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\n",
            upstream.url()
        ))?;
        let stopover = installation.start().await?;
        let kit = format!("tools/kit/manifests/{}", kits[0].digest);
        for path in [
            "team/app/manifests/v1",
            "team/app/manifests/v1",
            "team/app/manifests/v2",
            "tools/kit/manifests/1.0",
            &kit,
            "tools/base/manifests/1.0",
            "broken/manifests/v1",
        ] {
            let url = format!("http://{}/v2/{UPSTREAM}/{path}", stopover.address());
            support::get(url).await?.error_for_status()?;
        }
        let this = Self { upstream, app, stopover, _installation: installation };
        let is_over = async {
            loop {
                let fills: Value = serde_json::from_slice(&this.run("fills --json").await?.stdout)?;
                let states = fills["fills"].as_array().into_iter().flatten().map(|fill| &fill["state"]);
                if states.eq([&json!("failed")]) {
                    return anyhow::Ok(());
                }
            }
        };
        tokio::time::timeout(DEADLINE, is_over).await.context("fills do not end")??;
        // Counts what repositories share.
        ensure!(this.run("gc").await?.status.success());
        Ok(this)
    }

    async fn run(&self, command: &str) -> Result<Output> {
        let data = self.stopover.data().display().to_string();
        let words: Vec<&str> = command.split(' ').chain(["--data-dir", &data]).collect();
        output(&words, &[("COLUMNS", OsStr::new("100"))]).await
    }

    /// What was printed, without what is another each time: one time for all, and no address of the upstream.
    fn steady(&self, text: &[u8]) -> String {
        let text = String::from_utf8_lossy(text).replace(&self.upstream.url(), "http://upstream");
        let text = text.replace(concat!("stopover  ", env!("CARGO_PKG_VERSION")), "stopover  VERSION");
        let text = without(&text, ", up ", ",");
        let text = without(&text, "the oldest for ", "\n");
        // It depends on whether a second ended between two pulls.
        let text = without(&text, "(192.0.2.1), ", "\n");
        let mut steady = String::new();
        let mut rest = &text[..];
        while let Some(letter) = rest.chars().next() {
            let date = rest.get(..DATE.len()).filter(|date| is_date(date));
            steady.push_str(date.map_or(&rest[..letter.len_utf8()], |_| DATE));
            rest = &rest[date.map_or(letter.len_utf8(), str::len)..];
        }
        steady
    }
}

/// A text without what stands between these.
fn without(text: &str, before: &str, after: &str) -> String {
    let found = text.split_once(before).and_then(|(begin, rest)| Some((begin, rest.split_once(after)?.1)));
    found.map_or_else(|| text.to_owned(), |(begin, end)| format!("{begin}{before}…{after}{end}"))
}

const DATE: &str = "0000-00-00T00:00:00Z";

fn is_date(text: &str) -> bool {
    text.bytes().zip(DATE.bytes()).all(|(is, like)| if like == b'0' { is.is_ascii_digit() } else { is == like })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_output_of_the_usual_commands_is_as_it_was_read_last() -> Result<()> {
    let cache = Filled::start().await?;
    let mut printed = Vec::new();
    for (name, command) in SHOWN {
        let output = cache.run(command).await?;
        ensure!(output.status.success(), "{command}: {output:?}");
        let [results, rest] = [output.stdout, output.stderr].map(|text| cache.steady(&text));
        printed.push((format!("{name}.txt"), format!("$ stopover {command}\n{results}{rest}")));
    }
    check_files(DIRECTORY, &printed)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_of_each_command_has_the_fields_of_the_endpoint_that_the_reference_names() -> Result<()> {
    let cache = Filled::start().await?;
    let document = openapi::document();
    let rows = rows(&Document::read(REFERENCE)?.section("JSON")?);
    let named = |command: &str| rows.iter().find(|row| code(&row[0]).is_some_and(|code| code == command));
    let mut answers = Vec::new();
    for (command, endpoint) in JSON {
        let words = command.split(' ').take_while(|word| !word.starts_with('-') && !word.contains('/'));
        let words: Vec<&str> = words.filter(|word| *word != "new").collect();
        let row = named(&format!("stopover {}", words.join(" "))).with_context(|| format!("no row of {command}"))?;
        ensure!(row[1].contains(&format!("`{endpoint}`")), "{command} has the fields of {endpoint}: {row:?}");
        let output = cache.run(&format!("{command} --json")).await?;
        ensure!(output.status.success(), "{command}: {output:?}");
        let body: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{command}: {output:?}"))?;
        let (method, path) = endpoint.split_once(' ').context("a method")?;
        let responses = document["paths"][path][method.to_lowercase()]["responses"].as_object();
        let success = responses.and_then(|all| all.iter().find(|(status, _)| status.starts_with('2')));
        let (_, response) = success.with_context(|| format!("{endpoint} is not documented"))?;
        let schema = &response["content"]["application/json"]["schema"];
        ensure!(schema.is_object(), "{endpoint} is not documented");
        answers.push(json!({ "what": command, "schema": schema, "body": body }));
    }
    ensure!(openapi::differences(&document, &answers).is_empty(), "{}", openapi::differences(&document, &answers));
    let of = |command: &str| answers.iter().find(|answer| answer["what"] == command).map(|answer| &answer["body"]);
    let waited = of("prefetch --wait test.local/team/app:v1 --platform linux/amd64").context("a report")?;
    ensure!(waited["images"][0]["digest"] == cache.app.digest.as_str(), "{waited}");
    let blobs = waited["images"][0]["blobs"].as_array().context("no blobs")?;
    ensure!(blobs.len() == 3 && blobs.iter().all(|blob| blob["stored"] == true), "{waited}");
    let [added, rotated] =
        ["robot add new", "robot rotate new"].map(|command| of(command).cloned().unwrap_or_default());
    let secrets = [&added, &rotated].map(|answer| answer["secret"]["secret"].as_str().unwrap_or_default());
    ensure!(secrets.iter().all(|secret| !secret.is_empty()) && secrets[0] != secrets[1], "{added} {rotated}");
    Ok(())
}

/// What has no endpoint of its own, and what fails: the results are on standard output all the same.
#[tokio::test(flavor = "multi_thread")]
async fn json_says_of_each_image_and_each_step_what_has_failed() -> Result<()> {
    let cache = Filled::start().await?;
    let ask = async |command: &str, code: i32| -> Result<Value> {
        let output = cache.run(command).await?;
        ensure!(output.status.code() == Some(code), "{command}: {output:?}");
        ensure!(output.stderr.is_empty() == (code == 0), "{command}: {output:?}");
        serde_json::from_slice(&output.stdout).with_context(|| format!("{command}: {output:?}"))
    };
    let refreshed = ask("refresh --json test.local/team/app:v1 test.local/none:v1", 1).await?;
    let images = refreshed["images"].as_array().context("no images")?;
    let first = json!({ "image": "test.local/team/app:v1", "digest": cache.app.digest, "error": null });
    ensure!(images.len() == 2 && images[0] == first && images[1]["digest"].is_null(), "{refreshed}");
    ensure!(images[1]["error"].as_str().is_some_and(|error| error.starts_with("404")), "{refreshed}");
    let usage = ask("du --json", 0).await?;
    let sum = usage["repositories"].as_array().into_iter().flatten().filter_map(|one| one["own_bytes"].as_u64());
    ensure!(usage["own_bytes"].as_u64() == Some(sum.sum()) && usage["cut"] == false, "{usage}");
    let listed = ask("prefetch --json --dry-run test.local/team/app:v1", 0).await?;
    let image = json!({ "image": "test.local/team/app:v1", "platform": null, "place": "the command line" });
    ensure!(listed == json!({ "images": [image] }), "{listed}");
    let nothing = ask("purge --json test.local/never:v1", 3).await?;
    ensure!(nothing["manifests"] == json!([]), "{nothing}");
    let broken = ask("prefetch --json --wait test.local/broken:v1 --platform linux/amd64", 1).await?;
    let stored = broken["images"][0]["blobs"].as_array().into_iter().flatten().filter(|blob| blob["stored"] == true);
    ensure!(stored.count() == 1, "{broken}");
    let server = format!("http://{}", cache.stopover.address());
    let command =
        format!("doctor --json --client podman --image test.local/team/app:v1 --server {server} --root /nowhere");
    let output = cache.run(&command).await?;
    let steps: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let of = |name: &str| steps["steps"].as_array()?.iter().find(|step| step["name"] == name);
    ensure!(of("pull").is_some_and(|step| step["verdict"] == "ok" && step["fix"].is_null()), "{steps}");
    let configured = of("podman configuration").context("no step")?;
    ensure!(configured["verdict"] == "fail" && configured["fix"].is_string(), "{steps}");
    ensure!(steps["failed"].as_u64() > Some(0) && output.status.code() == Some(1), "{steps}");
    Ok(())
}
