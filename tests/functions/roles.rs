//! The functions with the roles of the template, and with less.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use serde_json::{Value, json};
use stopover::oci::{Algorithm, Digest, MediaType};
use stopover::values::time::Clock;
use support::aws::sts::{Signer, Sts};
use support::aws::{QueueSettings, Role};
use support::scripted::{Fault, Login, Scripted, ScriptedImage};

use crate::deployment::{Deployment, FILLER, Plan, REGISTRY, age, request, stored};
use crate::policies::{ECR, ORGANIZATION, role};
use crate::secrets::{HUB, put_password};

/// Longer than what S3 takes in one request.
const IN_PARTS: usize = 20 * 1024 * 1024;

/// Where the configuration may be, by the kinds of `ConfigurationUri`.
pub(crate) const PARAMETER: &str = "ssm:/team/stopover";
const OBJECT: &str = "s3://stopover-blobs/configuration/stopover.toml";

/// Statements whose lack is not noticed here, each with who makes use of it. tests/template.rs compares them with what the code
/// calls; docs/reference/template.md lists them.
const NOT_HERE: [(&str, &str); 5] = [
    ("sqs:GetQueueAttributes", "Lambda, which brings messages of the queues"),
    ("logs:PutLogEvents", "Lambda, which writes the log"),
    ("ecr:BatchGetImage", "ECR, whose registry is asked over HTTP"),
    ("kms:Decrypt", "the services that keep something"),
    ("arn:aws:s3:::none", "nobody: the configuration is no object"),
];

/// The same, action by action, of statements that have others, too.
const NOT_ASKED_FOR_HERE: [&str; 6] = [
    "logs:CreateLogStream",
    // Of the queues whose messages Lambda brings: those of the dead ones are read by an operator.
    "sqs:DeleteMessage on [",
    "sqs:ReceiveMessage on [",
    "ecr:GetDownloadUrlForLayer",
    "ecr:ListImages",
    "kms:GenerateDataKey",
];

/// The account of somebody who logs in, which is another one of the organisation.
const OTHER_ACCOUNT: &str = "222222222222";

/// The roles of both functions, whose configuration is there.
fn roles(configuration: &str) -> Result<[Role; 2]> {
    Ok([role(REGISTRY, configuration)?, role(FILLER, configuration)?])
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
    let (ecr, public_ecr, sts) = (Scripted::start()?, Scripted::start()?, Sts::start()?);
    // What both had would be copied from one of them.
    ecr.image("team/app", "v1", &[b"of ECR"]);
    public_ecr.image("team/app", "v1", &[b"of ECR Public"]);
    let settings_of_cache = format!(
        "public = true\ncredentials = {{ username = \"alice\", password_secret = \"{HUB}#password\" }}\n\
         [upstreams.\"{ECR}\"]\nurl = \"{}\"\npublic = true\n[upstreams.\"public.ecr.aws\"]\nurl = \"{}\"\n\
         [access]\nservice = \"stopover\"\nrobots = true\nanonymous = [\"127.0.0.0/8\"]\n\
         [access.iam]\norganization = \"{ORGANIZATION}\"\nendpoint = \"{}\"\n\
         [[schedule]]\nevery = \"10m\"\nplatforms = \"all\"\n\
         images = [\"test.local/team/image:v1\", \"test.local/team/new:v1\"]\n",
        ecr.url(),
        public_ecr.url(),
        sts.url(),
    );
    let plan = Plan::of(&upstream.url()).setting(&settings_of_cache).configured_at(PARAMETER);
    let deployment = plan.queue(settings).roles(roles).start().await?;
    put_password(&deployment, &upstream, "the-password");
    deployment.endpoints.organization().is(ORGANIZATION, &[OTHER_ACCOUNT]);
    let signer = Signer::role(OTHER_ACCOUNT, "node", "i-1");
    sts.know(&signer);
    let expires_at = Clock::default().now().0 + 12 * 3600;
    deployment.endpoints.logins().issue("of ECR", expires_at);
    ecr.require(Login::Basic("AWS".into(), "of ECR".into()));
    public_ecr.require(Login::BearerFor("AWS".into(), "of ECR".into()));
    let refused = async {
        while deployment.refused().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let lived = tokio::select! {
        lived = async {
            log_in(&deployment, &signer).await?;
            live(&deployment, &upstream, [&image, &new], &large_manifest).await
        } => lived,
        () = refused => Ok(()),
    };
    let refused = deployment.refused();
    if refused.is_empty() {
        lived?;
    }
    Ok((refused, deployment.unused()))
}

/// What is only done with a login: of somebody at the cache, and of the cache at ECR.
async fn log_in(deployment: &Deployment, signer: &Signer) -> Result<()> {
    let token = format!("http://{}/token?service=stopover", deployment.address());
    let password = signer.password("us-east-1", "stopover", Clock::default().now());
    let token = request(Method::GET, &token)?.basic_auth("aws", Some(password)).send().await?;
    ensure!(token.status() == 200, "{}\n{}", token.status(), deployment.log());
    for registry in [ECR, "public.ecr.aws"] {
        let manifest = format!("http://{}/v2/{registry}/team/app/manifests/v1", deployment.address());
        let manifest = request(Method::GET, &manifest)?.send().await?;
        ensure!(manifest.status() == 200, "{registry}: {}\n{}", manifest.status(), deployment.log());
    }
    deployment.until_filled().await
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
    let (refused, mut unused) = lived_with(roles(PARAMETER)?).await?;
    ensure!(refused.is_empty(), "{refused:?}");
    let not_here: Vec<&str> = NOT_HERE.iter().map(|(other, _)| *other).chain(NOT_ASKED_FOR_HERE).collect();
    let unneeded = not_here.iter().find(|other| !unused.iter().any(|unused| unused.contains(**other)));
    ensure!(unneeded.is_none(), "an exception that is no longer one: {unneeded:?}");
    unused.retain(|unused| !not_here.iter().any(|other| unused.contains(other)));
    ensure!(unused.is_empty(), "allowed and not needed: {unused:#?}");
    Ok(())
}

/// Two dozen deployments, each of six processes: longer than ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_one_of_its_statements_is_noticed() -> Result<()> {
    let roles = roles(PARAMETER)?;
    let mut mutants = Vec::new();
    for (which, role) in roles.iter().enumerate() {
        for (number, statement) in role.statements.iter().enumerate() {
            let statement = statement.to_string();
            if !NOT_HERE.iter().any(|(other, _)| statement.contains(other)) {
                let mut mutant = roles.clone();
                mutant[which].statements.remove(number);
                mutants.push((mutant, statement));
            }
        }
    }
    ensure!(mutants.len() >= 20, "{}", mutants.len());
    let tried = mutants
        .into_iter()
        .map(async |(mutant, without)| Ok::<_, anyhow::Error>((lived_with(mutant).await?.0, without)));
    let tried: Vec<(Vec<String>, String)> = stream::iter(tried).buffer_unordered(3).try_collect().await?;
    let unnoticed: Vec<_> =
        tried.iter().filter(|(refused, _)| refused.is_empty()).map(|(_, without)| without).collect();
    ensure!(unnoticed.is_empty(), "not noticed: a role without {unnoticed:#?}");
    Ok(())
}

/// One statement is for a configuration in a bucket, and is needed there and nowhere else.
#[tokio::test]
async fn a_configuration_in_a_bucket_is_read_with_the_permission_for_that_object_alone() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"layer"]);
    let whole = roles(OBJECT)?;
    let is_of_object =
        |statement: &Value| statement["Resource"] == "arn:aws:s3:::stopover-blobs/configuration/stopover.toml";
    for which in [None, Some(0), Some(1)] {
        let mut roles = whole.clone();
        if let Some(role) = which.and_then(|which: usize| roles.get_mut(which)) {
            let statements = role.statements.len();
            role.statements.retain(|statement| !is_of_object(statement));
            ensure!(role.statements.len() + 1 == statements, "there is no such statement");
        }
        let deployment = Plan::of(&upstream.url()).configured_at(OBJECT).roles(roles).start().await?;
        let answer = deployment.request(Method::GET, "team/image/manifests/v1")?.send().await?;
        // A registry that may not read it may have what the filler has kept in the table, or nothing yet.
        let served = answer.status() == 200 || which == Some(0) && answer.status() == 503;
        ensure!(served, "{which:?}: {}\n{}", answer.status(), deployment.log());
        let refused = deployment.refused();
        let ours =
            refused.iter().all(|call| call.starts_with("s3:GetObject on arn:aws:s3:::stopover-blobs/configuration/"));
        ensure!(refused.is_empty() == which.is_none() && ours, "{which:?}: {refused:?}");
    }
    Ok(())
}
