//! The functions with the roles of the template, and with less.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use serde_json::{Value, json};
use serde_yaml_ng::Value as Yaml;
use stopover::oci::{Algorithm, Digest, MediaType};
use support::aws::{QueueSettings, Role};
use support::scripted::{Fault, Scripted, ScriptedImage};

use crate::deployment::{ACCOUNT, Deployment, FILLER, KEYS, Plan, REGISTRY, age, request, stored};
use crate::secrets::HUB;

/// Longer than what S3 takes in one request.
const IN_PARTS: usize = 20 * 1024 * 1024;

/// Statements whose lack is not noticed here: for what Lambda itself does with a role (it reads the queue and writes the log),
/// and for logins to upstreams, of which this deployment has none. tests/template.rs compares them with what the code calls.
const NOT_HERE: [&str; 4] = ["sqs:GetQueueAttributes", "logs:PutLogEvents", "ecr-public:GetAuthorizationToken", HUB];

/// What Lambda itself does with a role, and what only comes with a login, action by action.
const NOT_ASKED_FOR_HERE: [&str; 4] = [
    "logs:CreateLogStream",
    "sts:GetServiceBearerToken",
    // Of the queues whose messages Lambda brings: those of the dead ones are read by an operator.
    "sqs:DeleteMessage on [",
    "sqs:ReceiveMessage on [",
];

/// The role that the template gives a function, for the services that stand in for AWS, where the passwords of upstreams are
/// among its parameters.
pub(crate) fn role(function: &str) -> Result<Role> {
    let template = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../template.yaml"))?;
    let template: Yaml = serde_yaml_ng::from_str(&template)?;
    let resources = template["Resources"].as_mapping().context("no resources")?;
    let role = format!("{}Role", function.trim_end_matches("Function"));
    let mut policies: Vec<&Yaml> =
        resources[role.as_str()]["Properties"]["Policies"].as_sequence().into_iter().flatten().collect();
    for policy in resources.values().filter(|resource| resource["Type"] == "AWS::IAM::Policy") {
        let roles = policy["Properties"]["Roles"].as_sequence().context("no roles")?;
        let asked_for = policy.get("Condition").is_none_or(|condition| condition == "HasUpstreamSecrets");
        if asked_for && roles.iter().any(|named| reference(named) == Some(&role)) {
            policies.push(&policy["Properties"]);
        }
    }
    let statements = policies.iter().filter_map(|policy| policy["PolicyDocument"]["Statement"].as_sequence()).flatten();
    Ok(Role { statements: statements.map(resolved).collect::<Result<_>>()? })
}

fn reference(yaml: &Yaml) -> Option<&str> {
    match yaml {
        Yaml::Tagged(tagged) if tagged.tag == "Ref" => tagged.value.as_str(),
        _ => None,
    }
}

/// A part of the template as JSON, with what its references mean here.
fn resolved(yaml: &Yaml) -> Result<Value> {
    Ok(match yaml {
        Yaml::Tagged(tagged) => {
            let text = tagged.value.as_str().context("not modelled")?;
            match tagged.tag.to_string().as_str() {
                "!Ref" | "!GetAtt" => meaning(text)?,
                "!Sub" => {
                    let mut parts = text.split("${");
                    let mut whole = parts.next().unwrap_or_default().to_owned();
                    for part in parts {
                        let (name, rest) = part.split_once('}').context("no end")?;
                        whole.extend([meaning(name)?.as_str().context("a list in a text")?, rest]);
                    }
                    whole.into()
                }
                other => bail!("not modelled: {other}"),
            }
        }
        Yaml::Sequence(items) => items.iter().map(resolved).collect::<Result<_>>()?,
        Yaml::Mapping(entries) => {
            let entry =
                |(key, value): (&Yaml, &Yaml)| Ok((key.as_str().context("no text")?.to_owned(), resolved(value)?));
            Value::Object(entries.iter().map(entry).collect::<Result<_>>()?)
        }
        scalar => serde_json::to_value(scalar)?,
    })
}

fn meaning(name: &str) -> Result<Value> {
    let queue = |name: &str| format!("arn:aws:sqs:us-east-1:000000000000:{name}").into();
    Ok(match name {
        "Table.Arn" => "arn:aws:dynamodb:us-east-1:000000000000:table/stopover-ledger".into(),
        "Bucket.Arn" => "arn:aws:s3:::stopover-blobs".into(),
        "FillQueue.Arn" => queue("stopover-fills"),
        "BackgroundFillQueue.Arn" => queue("stopover-background-fills"),
        "DeadFillQueue.Arn" => queue("stopover-fills-dead"),
        "RegistryLogs.Arn" | "FillerLogs.Arn" => "arn:aws:logs:us-east-1:000000000000:log-group:logs:*".into(),
        "SigningKeys" => KEYS.into(),
        "UpstreamSecretArns" => json!([HUB]),
        "AWS::Partition" => "aws".into(),
        "AWS::Region" => "us-east-1".into(),
        "AWS::AccountId" => ACCOUNT.into(),
        _ => bail!("not modelled: {name}"),
    })
}

fn stored_at(digest: &Digest) -> String {
    format!("manifests/sha256/{}/{}", &digest.hex()[..2], digest.hex())
}

/// What is refused in the life of a deployment with these roles, until something is, and what they allow that was not asked
/// for: an error where it fails without being refused anything.
async fn lived_with(roles: [Role; 2]) -> Result<(Vec<String>, Vec<String>)> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"layer", &vec![3; IN_PARTS]]);
    let new = upstream.image("team/new", "v1", &[b"new"]);
    // Hexadecimal digits take half of their bytes where they are packed.
    let large: String =
        (0..20_000_u32).map(|number| Digest::of(Algorithm::Sha256, &number.to_le_bytes()).hex().to_owned()).collect();
    let large_manifest = format!(r#"{{"manifests":[],"annotations":{{"a":"{large}"}}}}"#);
    upstream.manifest("team/large", "v1", MediaType::OciIndex.as_str(), large_manifest.as_bytes());
    let settings = QueueSettings { visibility_timeout: Duration::from_secs(6), max_receive_count: 1, speed: 30 };
    let settings_of_cache = "[access]\nrobots = true\nanonymous = [\"127.0.0.0/8\"]\n\
                             [[schedule]]\nevery = \"10m\"\nplatforms = \"all\"\nimages = [\"test.local/team/image:v1\", \"test.local/team/new:v1\"]\n";
    let plan = Plan::of(&upstream.url()).setting(settings_of_cache);
    let deployment = plan.queue(settings).roles(roles).start().await?;
    let refused = async {
        while deployment.refused().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let lived = tokio::select! {
        lived = live(&deployment, &upstream, [&image, &new], &large_manifest) => lived,
        () = refused => Ok(()),
    };
    let refused = deployment.refused();
    if refused.is_empty() {
        lived?;
    }
    Ok((refused, deployment.unused()))
}

/// Pulls, fills that fail and are retried, an upload that breaks off, an object that is lost, a robot, a list, what was not
/// used for long, and is by a client, by a schedule, or is not and is swept.
async fn live(
    deployment: &Deployment,
    upstream: &Scripted,
    [image, new]: [&ScriptedImage; 2],
    large_manifest: &str,
) -> Result<()> {
    let pull = async || -> Result<()> {
        deployment.request(Method::GET, "team/image/manifests/v1")?.send().await?.error_for_status()?;
        Ok(())
    };
    // Of the large one the upload breaks off, and what has arrived of it is wrong the second time.
    let (large, _) = &image.blobs[2];
    upstream.fault(large.as_str(), Fault::Truncated);
    pull().await?;
    deployment.until_filled().await?;
    upstream.heal();
    upstream.fault(large.as_str(), Fault::Corrupt);
    deployment.invoke_filler(json!({ "fills": "list" })).await?;
    ensure!(deployment.invoke_filler(json!({ "fills": "retry" })).await? == json!({ "retried": 1 }));
    deployment.until_filled().await?;
    upstream.heal();
    ensure!(deployment.invoke_filler(json!({ "fills": "retry" })).await? == json!({ "retried": 1 }));
    deployment.until_filled().await?;
    let names: Vec<String> = stored(&deployment.endpoints).await?.into_keys().collect();
    for (blob, _) in &image.blobs {
        ensure!(names.iter().any(|name| name == blob.as_str()), "not stored: {blob}\n{}", deployment.log());
        let found = deployment.request(Method::GET, &format!("team/image/blobs/{blob}"))?.send().await?;
        let place = found.headers().get("location").context("no redirect")?.to_str()?.to_owned();
        request(Method::GET, &place)?.send().await?.error_for_status()?;
    }
    // A manifest that is no item of the table, and whose object is lost.
    for pulled in 0..3 {
        let manifest = deployment.request(Method::GET, "team/large/manifests/v1")?.send().await?;
        ensure!(manifest.status() == 200, "{}\n{}", manifest.status(), deployment.log());
        if pulled == 1 {
            let lost = stored_at(&Digest::of(Algorithm::Sha256, large_manifest.as_bytes()));
            let delete = deployment.endpoints.s3().delete_object().bucket(deployment.endpoints.bucket());
            delete.key(lost).send().await?;
        }
    }
    let nothing = Digest::of(Algorithm::Sha256, b"nothing");
    let missing = deployment.request(Method::GET, &format!("team/image/blobs/{nothing}"))?.send().await?;
    ensure!(missing.status() == 404, "{}\n{}", missing.status(), deployment.log());
    let robots = json!({ "robots": { "add": { "name": "ci" } } });
    let secret = deployment.invoke_filler(robots).await?["secret"]["secret"].as_str().context("no secret")?.to_owned();
    let token = format!("http://{}/token?service=stopover", deployment.address());
    let token = request(Method::GET, &token)?.basic_auth("ci", Some(secret)).send().await?;
    ensure!(token.status() == 200, "{}\n{}", token.status(), deployment.log());
    deployment.invoke_filler(json!({ "robots": { "remove": { "name": "ci" } } })).await?;
    let listed = format!("http://{}/_stopover/images", deployment.address());
    let listed = request(Method::GET, &listed)?.send().await?;
    ensure!(listed.status() == 200, "{}\n{}", listed.status(), deployment.log());
    age(&deployment.endpoints, 2).await?;
    deployment.invoke_filler(json!({ "prefetch": "scheduled" })).await?;
    deployment.until_filled().await?;
    age(&deployment.endpoints, 2).await?;
    let prefetched = deployment.request(Method::GET, &format!("team/new/manifests/{}", new.digest))?;
    prefetched.send().await?.error_for_status()?;
    age(&deployment.endpoints, 60).await?;
    let swept = deployment.invoke_filler(json!({ "sweep": {} })).await?;
    ensure!(swept["blobs"].as_u64() > Some(0), "{swept}");
    Ok(())
}

#[tokio::test]
async fn a_deployment_needs_what_its_roles_allow_and_no_more() -> Result<()> {
    let (refused, mut unused) = lived_with([role(REGISTRY)?, role(FILLER)?]).await?;
    ensure!(refused.is_empty(), "{refused:?}");
    unused.retain(|unused| !NOT_HERE.iter().chain(&NOT_ASKED_FOR_HERE).any(|other| unused.contains(other)));
    ensure!(unused.is_empty(), "allowed and not needed: {unused:#?}");
    Ok(())
}

/// A dozen deployments, each of six processes: longer than ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_one_of_its_statements_is_noticed() -> Result<()> {
    let roles = [role(REGISTRY)?, role(FILLER)?];
    let mut mutants = Vec::new();
    for (which, role) in roles.iter().enumerate() {
        for (number, statement) in role.statements.iter().enumerate() {
            let statement = statement.to_string();
            if !NOT_HERE.iter().any(|other| statement.contains(other)) {
                let mut mutant = roles.clone();
                mutant[which].statements.remove(number);
                mutants.push((mutant, statement));
            }
        }
    }
    ensure!(mutants.len() >= 10, "{}", mutants.len());
    let tried = mutants
        .into_iter()
        .map(async |(mutant, without)| Ok::<_, anyhow::Error>((lived_with(mutant).await?.0, without)));
    let tried: Vec<(Vec<String>, String)> = stream::iter(tried).buffer_unordered(3).try_collect().await?;
    let unnoticed: Vec<_> =
        tried.iter().filter(|(refused, _)| refused.is_empty()).map(|(_, without)| without).collect();
    ensure!(unnoticed.is_empty(), "not noticed: a role without {unnoticed:#?}");
    Ok(())
}
