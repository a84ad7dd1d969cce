//! What the program records of what it decides.

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use support::program::{Installation, Stopover, UPSTREAM};
use support::scripted::{Fault, Scripted};

use super::{Cache, PASSWORD};

/// The records of decisions in the log.
async fn records(stopover: &Stopover) -> anyhow::Result<Vec<Value>> {
    // Another thread reads the log: what comes before this is there once this is.
    support::http().get(format!("http://{}/v2/the-end", stopover.address())).send().await?;
    stopover.until_logged("/v2/the-end").await?;
    let log = stopover.log();
    let events = log.lines().filter(|line| line.starts_with('{')).map(serde_json::from_str::<Value>);
    let mut events = events.collect::<Result<Vec<_>, _>>()?;
    events.retain(|event| event["target"] == "stopover::audit");
    Ok(events)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_decision_is_one_record_and_no_secret_is_logged() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    let stranger = cache.add("stranger").await?;
    let client = support::http();
    let address = cache.stopover.address();
    let manifest =
        format!("http://{address}/v2/{UPSTREAM}/{}", cache.image.reference().replacen(':', "/manifests/", 1));
    let get = async |url: &str, user: &str, secret: &str| {
        let answer = client.get(url).basic_auth(user, Some(secret)).send().await?;
        anyhow::Ok((answer.status().as_u16(), answer.text().await?))
    };
    let token = format!("http://{address}/token?service=stopover&account=of-the-query");
    let (status, issued) = get(&token, "puller", &cache.secret).await?;
    ensure!(status == 200, "{issued}");
    let issued: Value = serde_json::from_str(&issued)?;
    let issued = issued["token"].as_str().context("no token")?.to_owned();
    let with_token = client.get(&manifest).bearer_auth(&issued).send().await?;
    ensure!(with_token.status() == 200, "{}", with_token.text().await?);
    ensure!(get(&manifest, "puller", &cache.secret).await?.0 == 200);
    ensure!(get(&manifest, "stranger", &stranger).await?.0 == 403);
    ensure!(get(&manifest, "someone", "password-for-elsewhere").await?.0 == 401);
    ensure!(get(&token, "someone", "password-for-elsewhere").await?.0 == 401);
    ensure!(client.get(&manifest).bearer_auth("forged-token").send().await?.status() == 401);
    let form = "grant_type=password&username=puller&password=password-in-a-form";
    ensure!(client.post(format!("http://{address}/token")).body(form).send().await?.status() == 401);
    let fills = client.get(format!("http://{address}/_stopover/fills")).header("stopover-operator", "guessed-secret");
    ensure!(fills.send().await?.status() == 401);
    let fills = format!("http://{address}/_stopover/fills");
    ensure!(get(&fills, "puller", &cache.secret).await?.0 == 200);
    let quota = format!("http://{address}/_stopover/quota");
    ensure!(get(&quota, "puller", &cache.secret).await?.0 == 200);
    ensure!(get(&quota, "someone", "password-for-elsewhere").await?.0 == 401);
    ensure!(client.get(&manifest).send().await?.status() == 401);

    let records = records(&cache.stopover).await?;
    let find = |action: &str, principal: Option<&str>| {
        let found = records.iter().map(|record| (record, &record["fields"]));
        let found = found.filter(|(_, fields)| fields["action"] == action && fields["principal"].as_str() == principal);
        found.collect::<Vec<_>>()
    };
    let pulls = find("pull", Some("robot:puller"));
    ensure!(pulls.len() == 2, "{records:#?}");
    for ((record, fields), (served, spent)) in pulls.iter().zip([("miss", 1), ("hit", 0)]) {
        ensure!(record["level"] == "INFO" && fields["allowed"] == true && fields["private"] == true, "{record}");
        ensure!(fields["repository"] == format!("{UPSTREAM}/{}", cache.image.name), "{record}");
        ensure!(fields["rule"] == "rule 1 of the policy" && fields["caller"] == "127.0.0.1", "{record}");
        ensure!(fields["served"] == served && fields["upstream_pulls"] == spent, "{record}");
        ensure!(fields["status"] == 200 && fields["bytes"].as_u64() > Some(100), "{record}");
    }
    let denied = find("pull", Some("robot:stranger"));
    ensure!(denied.len() == 1 && denied[0].1["rule"] == "private" && denied[0].1["allowed"] == false, "{denied:?}");
    ensure!(denied[0].0["level"] == "INFO" && denied[0].1["status"] == 403, "{denied:?}");
    let unknown = find("pull", None);
    let levels: Vec<_> = unknown.iter().map(|(record, fields)| (&record["level"], &fields["reason"])).collect();
    ensure!(unknown.len() == 3 && unknown.iter().all(|(_, fields)| fields["allowed"] == false), "{levels:?}");
    ensure!(levels.iter().filter(|(level, _)| *level == "DEBUG").count() == 1, "to be asked to log in: {levels:?}");
    let failed = find("login", None);
    ensure!(find("login", Some("robot:puller")).len() == 1 && failed.len() == 2, "{records:#?}");
    for ((record, fields), (login, because)) in
        failed.iter().zip([("robot:someone", "there is no such robot"), ("robot:puller", "its secret is another one")])
    {
        ensure!(fields["login"] == login && fields["because"] == because, "{record}");
    }
    let operated = records.iter().filter(|record| record["fields"]["action"] == "operate").map(|record| {
        let fields = &record["fields"];
        let text = |name: &str| fields[name].as_str().unwrap_or("-");
        format!("{} {} {} {}", text("endpoint"), text("principal"), fields["allowed"], text("rule"))
    });
    let expected = [
        "/_stopover/robots - true operator",
        "/_stopover/robots - true operator",
        "/_stopover/fills - false -",
        "/_stopover/fills robot:puller true -",
        "/_stopover/quota robot:puller true -",
        "/_stopover/quota - false -",
    ];
    let operated: Vec<String> = operated.collect();
    ensure!(operated == expected, "{operated:#?}");

    let log = cache.stopover.log();
    let keys = std::fs::read_to_string(cache.installation.data().join("signing_keys"))?;
    let encoded = |user: &str, secret: &str| BASE64_STANDARD.encode(format!("{user}:{secret}"));
    for secret in [
        PASSWORD,
        &encoded("alice", PASSWORD),
        &cache.secret,
        &encoded("puller", &cache.secret),
        &stranger,
        &encoded("stranger", &stranger),
        &issued,
        keys.trim(),
        "password-for-elsewhere",
        &encoded("someone", "password-for-elsewhere"),
        "password-in-a-form",
        "forged-token",
        "guessed-secret",
        "of-the-query",
        "$argon2",
    ] {
        let told = log.lines().find(|line| line.contains(secret));
        ensure!(told.is_none(), "{secret:?} is logged: {told:?}");
    }
    Ok(())
}

#[tokio::test]
async fn each_answer_is_recorded_with_its_bytes_and_a_limit_with_its_reason() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "1", &[&[1; 5000]]);
    let signed = format!("{}/cdn/path-of-the-signature?X-Amz-Signature=of-the-url", upstream.url());
    let configuration = |cold: &str| {
        Installation::with_configuration(&format!(
            "misses = 1\nmax_size = \"1GB\"\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\ncold = \"{cold}\"\n",
            upstream.url()
        ))
    };
    let client =
        stopover::values::crypto::http_client().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
    let layer = &image.blobs.iter().max_by_key(|(_, bytes)| bytes.len()).context("no layer")?.0;
    let (manifest, blob, none) = ("a/manifests/1", format!("a/blobs/{layer}"), "a/manifests/none");

    let installation = configuration("wait")?.logging("info,stopover=trace,stopover::audit=debug");
    let stopover = installation.start().await?;
    let at = |path: &str| format!("http://{}/v2/{UPSTREAM}/{path}", stopover.address());
    client.get(at(manifest)).send().await?.error_for_status()?;
    client.get(at(&blob)).send().await?.error_for_status()?.bytes().await?;
    client.get(at(&blob)).header("range", "bytes=10-19").send().await?.error_for_status()?;
    client.head(at(&blob)).send().await?.error_for_status()?;
    ensure!(client.get(at(none)).send().await?.status() == 404);
    ensure!(client.get(at("a/manifests/more")).send().await?.status() == 429);
    let wanted = format!("{{\"images\": [\"{UPSTREAM}/a:1\"]}}");
    client.post(format!("http://{}/_stopover/prefetch", stopover.address())).body(wanted).send().await?;
    let records = records(&stopover).await?;
    let told: Vec<_> = records
        .iter()
        .map(|record| {
            let fields = &record["fields"];
            let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
            (text("action"), fields["status"].as_u64(), text("served"), fields["bytes"].as_u64())
        })
        .collect();
    let (pull, size) = ("pull".to_owned(), Some(image.manifest.len() as u64));
    // Its fill was requested with the manifest, and may have ended.
    let served = told.get(1).map_or_else(String::new, |(_, _, served, _)| served.clone());
    ensure!(served == "hit" || served == "miss", "{told:#?}");
    let expected = [
        (pull.clone(), Some(200), "miss".to_owned(), size),
        (pull.clone(), Some(200), served, Some(5000)),
        (pull.clone(), Some(206), "hit".to_owned(), Some(10)),
        (pull.clone(), Some(200), "hit".to_owned(), Some(0)),
        (pull.clone(), Some(404), "miss".to_owned(), Some(0)),
        (pull, Some(429), String::new(), Some(0)),
        ("prefetch".to_owned(), None, String::new(), None),
    ];
    ensure!(told == expected, "{told:#?}");
    let limited = &records[5];
    let reason = limited["fields"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("too often") && limited["fields"]["allowed"] == false, "{limited}");
    ensure!(limited["level"] == "INFO" && limited["fields"]["rule"] == "public", "{limited}");

    // What lies behind a redirect is told, and not where that is.
    let installation = configuration("redirect")?.logging("info,stopover=trace,stopover::audit=debug");
    let stopover = installation.start().await?;
    upstream.fault("/blobs/", Fault::Status(307, vec![("location", signed.clone())], String::new()));
    let at = |path: &str| format!("http://{}/v2/{UPSTREAM}/{path}", stopover.address());
    client.get(at(manifest)).send().await?.error_for_status()?;
    let answer = client.get(at(&blob)).send().await?;
    ensure!(answer.headers()["location"] == signed.as_str(), "{answer:?}");
    let records = self::records(&stopover).await?;
    let redirected = &records[1]["fields"];
    ensure!(redirected["status"] == 307 && redirected["bytes"] == 5000, "{redirected}");
    for secret in ["of-the-url", "path-of-the-signature"] {
        let log = stopover.log();
        let told = log.lines().find(|line| line.contains(secret));
        ensure!(told.is_none(), "{secret:?} is logged: {told:?}");
    }
    Ok(())
}
