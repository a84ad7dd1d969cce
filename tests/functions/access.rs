//! Logins at the functions, all processes of which know the same robots and believe the same tokens.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use support::aws::sts::{Signer, Sts};
use support::aws::{EVERY_OPERATION, Endpoints, Service};
use support::scripted::{Login, Scripted, ScriptedImage};
use tempfile::NamedTempFile;

use crate::deployment::{
    ACCOUNT, Deployment, FILLER, Plan, REGISTRIES, REGISTRY, SERVICE, SIGNING_KEY, error_code, request,
};
use crate::policies::role;
use crate::roles::PARAMETER;

const ROBOTS: &str = "[access]\nrobots = true\n";
const KEYS_IN_ENVIRONMENT: &str = "signing_keys = { env = \"TEST_KEYS\" }\n";
const POLICY: &str = "[[policy]]\nwho = [\"robot:ci\"]\nallow = true\n";

/// Pulls with the token that was issued, whichever process answers; the token.
async fn pulled_through_every_process(
    deployment: &Deployment,
    issued: reqwest::Response,
    image: &ScriptedImage,
) -> Result<String> {
    ensure!(issued.status() == 200, "{}\n{}", issued.status(), deployment.log());
    let issued: Value = serde_json::from_slice(&issued.bytes().await?)?;
    let token = issued["token"].as_str().context("no token")?;
    for _ in 0..2 * REGISTRIES {
        let answer = deployment.request(Method::GET, "team/image/manifests/v1")?.bearer_auth(token).send().await?;
        ensure!(answer.status() == 200, "{}\n{}", answer.status(), deployment.log());
        ensure!(answer.bytes().await? == image.manifest);
    }
    Ok(token.to_owned())
}

#[tokio::test]
async fn a_fresh_deployment_lets_in_identities_of_its_account_and_nobody_else() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"layer"]);
    let sts = Sts::start()?;
    let [ours, theirs] = [Signer::role(ACCOUNT, "node", "i-1"), Signer::user("999999999999", "me")];
    for signer in [&ours, &theirs] {
        sts.know(signer);
    }
    let deployment = Plan::of(&upstream.url()).fresh("").sts(sts.url()).start().await?;
    let calls = deployment.endpoints.calls(Service::DynamoDb, EVERY_OPERATION);
    // Headers are a caller's own words: they must not matter. Paths neither.
    for path in ["/v2/", "/v2/test.local/team/image/manifests/v1", "/_stopover/quota", "/token"] {
        let asked = request(Method::GET, &format!("http://{}{path}", deployment.address()))?
            .header("x-forwarded-for", "10.0.0.1")
            .header("stopover-operator", "");
        let answer = asked.send().await?;
        ensure!(answer.status() == 401, "{path}: {}", answer.status());
        let challenge = answer.headers()["www-authenticate"].to_str()?;
        let expected = format!("Bearer realm=\"https://{}/token\",service=\"{SERVICE}\"", deployment.address());
        ensure!(challenge.starts_with(&expected), "{path}: {challenge}");
        ensure!(error_code(answer).await? == "UNAUTHORIZED");
    }
    let gc = request(Method::POST, &format!("http://{}/_stopover/gc", deployment.address()))?;
    let operator = gc.header("stopover-operator", "any").body(r#"{"dry_run": true}"#);
    ensure!(operator.send().await?.status() == 401, "no header makes an operator");
    let now = stopover::values::time::Clock::default().now();
    let login = async |user: &str, password: &str| {
        let url = format!("http://{}/token?service={SERVICE}", deployment.address());
        anyhow::Ok(request(Method::GET, &url)?.basic_auth(user, Some(password)).send().await?)
    };
    let refused = [
        ("aws", theirs.password("eu-west-1", SERVICE, now)),
        ("aws", ours.password("eu-west-1", "stopover:123456789012:us-east-1:another", now)),
        ("aws", "nonsense".to_owned()),
        ("robot", "nonsense".to_owned()),
    ];
    for (user, password) in refused {
        ensure!(login(user, &password).await?.status() == 401, "{user}");
    }
    let spent = deployment.endpoints.calls(Service::DynamoDb, EVERY_OPERATION) - calls;
    ensure!(spent == 0 && upstream.requests().is_empty(), "strangers have cost {spent} calls of the table");
    let issued = login("aws", &ours.password("eu-west-1", SERVICE, now)).await?;
    pulled_through_every_process(&deployment, issued, &image).await?;
    Ok(())
}

#[tokio::test]
async fn callers_of_the_anonymous_networks_need_no_login_and_others_do() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"layer"]);
    for (networks, expected) in [("127.0.0.0/8", 200), ("10.0.0.0/8,::1/128", 401)] {
        let deployment = Plan::of(&upstream.url()).fresh(networks).start().await?;
        let answer = deployment.request(Method::GET, "team/image/manifests/v1")?.header("x-forwarded-for", "10.0.0.1");
        ensure!(answer.send().await?.status() == expected, "{networks}");
    }
    Ok(())
}

#[tokio::test]
async fn a_vpc_endpoint_is_known_by_what_api_gateway_says_and_by_no_header() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"layer"]);
    let access = "[access]\nanonymous = [\"vpce-0123456789abcdef0\"]\n";
    let deployment = Plan::of(&upstream.url()).setting(access).start().await?;
    let path = "/v2/test.local/team/image/manifests/v1";
    for (endpoint, expected) in
        [(json!("vpce-0123456789abcdef0"), 200), (json!("vpce-0123456789abcdef1"), 403), (Value::Null, 403)]
    {
        let headers = json!({ "host": "cr.test", "x-amzn-vpce-id": "vpce-0123456789abcdef0" });
        let identity = json!({ "sourceIp": "10.1.2.3", "vpceId": endpoint, "vpcId": "vpc-0123456789abcdef0" });
        let answer = deployment.invoke_registry(json!({
            "resource": "/{proxy+}", "path": path, "httpMethod": "GET", "headers": headers, "multiValueHeaders": {},
            "queryStringParameters": null, "multiValueQueryStringParameters": null, "body": null, "stageVariables": null,
            "pathParameters": { "proxy": path }, "isBase64Encoded": false, "requestContext": {
                "accountId": ACCOUNT, "apiId": "tests", "stage": "prod", "path": path, "httpMethod": "GET",
                "protocol": "HTTP/1.1", "requestId": "1", "resourcePath": "/{proxy+}", "identity": identity,
            },
        }));
        ensure!(answer.await?["statusCode"] == expected, "{endpoint}\n{}", deployment.log());
    }
    // An HTTP API has no such thing.
    let answer = deployment.request(Method::GET, "team/image/manifests/v1")?;
    ensure!(answer.header("x-amzn-vpce-id", "vpce-0123456789abcdef0").send().await?.status() == 403);
    Ok(())
}

#[tokio::test]
async fn robots_are_managed_by_invoking_the_filler_and_pull_through_every_process() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.require(Login::Basic("alice".to_owned(), "of the upstream".to_owned()));
    let image = upstream.image("team/image", "v1", &[b"layer"]);
    let password = NamedTempFile::new()?;
    std::fs::write(&password, "of the upstream")?;
    let credentials =
        format!("credentials = {{ username = \"alice\", password_file = \"{}\" }}\n", password.path().display());
    let plan = Plan::of(&upstream.url()).setting(&format!("{credentials}{ROBOTS}{POLICY}"));
    let deployment = plan.log_level("DEBUG").start().await?;
    let robots = async |command: Value| deployment.invoke_filler(json!({ "robots": command })).await;
    let added = robots(json!({ "add": { "name": "ci", "expires": "90d" } })).await?;
    let secret = added["secret"]["secret"].as_str().context("no secret")?.to_owned();
    let stranger = robots(json!({ "add": { "name": "stranger" } })).await?;
    let stranger = stranger["secret"]["secret"].as_str().context("no secret")?.to_owned();
    let again = robots(json!({ "add": { "name": "ci" } })).await;
    ensure!(again.is_err_and(|error| error.to_string().contains("there is a robot ci already")));
    let challenged = deployment.request(Method::GET, "team/image/manifests/v1")?.send().await?;
    let challenge = challenged.headers()["www-authenticate"].to_str()?;
    let realm = format!("Bearer realm=\"https://{}/token\",service=\"stopover\"", deployment.address());
    ensure!(challenged.status() == 401 && challenge.starts_with(&realm), "{challenge}");
    let url = format!("http://{}/token?service=stopover", deployment.address());
    let issued = request(Method::GET, &url)?.basic_auth("ci", Some(&secret)).send().await?;
    let token = &pulled_through_every_process(&deployment, issued, &image).await?;
    let denied = deployment.request(Method::GET, "team/image/manifests/v1")?.basic_auth("stranger", Some(&stranger));
    ensure!(denied.send().await?.status() == 403);
    ensure!(robots(json!({ "remove": { "name": "ci" } })).await? == json!({ "removed": "ci" }));
    let removed = deployment.request(Method::GET, "team/image/manifests/v1")?.basic_auth("ci", Some(&secret));
    ensure!(removed.send().await?.status() == 401);
    let log = deployment.log();
    ensure!(log.contains("robot:stranger") && log.contains("\"rule\":\"private\""), "no record of a denial:\n{log}");
    let pair = BASE64_STANDARD.encode(format!("ci:{secret}"));
    for told in [&secret, &stranger, token, &pair, "of the upstream", "$argon2", SIGNING_KEY] {
        ensure!(!log.contains(told), "{told:?} is logged");
    }
    Ok(())
}

#[tokio::test]
async fn an_operator_over_http_on_aws_sees_quotas_and_may_do_what_its_function_may() -> Result<()> {
    let upstream = Scripted::start()?;
    let access = "[access]\nrobots = true\nanonymous = true\noperators = [\"robot:ops\"]\n";
    let deployment = Plan::of(&upstream.url())
        .setting(access)
        .roles([role(REGISTRY, PARAMETER)?, role(FILLER, PARAMETER)?])
        .start()
        .await?;
    let mut statuses = Vec::new();
    for name in ["ops", "ci"] {
        let robots = json!({ "robots": { "add": { "name": name } } });
        let robot = deployment.invoke_filler(robots).await?;
        let secret = robot["secret"]["secret"].as_str().context("no secret")?.to_owned();
        let ask = async |method: Method, path: &str, body: &'static str| {
            let asked = request(method, &format!("http://{}/_stopover/{path}", deployment.address()))?;
            let answer = asked.basic_auth(name, Some(&secret)).body(body).send().await?;
            anyhow::Ok((answer.status().as_u16(), answer.text().await?))
        };
        let (_, quota) = ask(Method::GET, "quota", "").await?;
        ensure!(quota.contains("\"credential\":\"") == (name == "ops"), "{quota}");
        let none = format!("fills/sha256:{}", "0".repeat(64));
        statuses.push(ask(Method::GET, &none, "").await?.0);
        statuses.push(ask(Method::POST, "gc", r#"{"dry_run": true}"#).await?.0);
        statuses.push(ask(Method::POST, "robots", r#"{"add": {"name": "thief"}}"#).await?.0);
    }
    ensure!(statuses == [503, 503, 503, 403, 403, 403], "{statuses:?}\n{}", deployment.log());
    ensure!(!deployment.refused().is_empty(), "its role has refused it");
    Ok(())
}

#[tokio::test]
async fn without_keys_for_its_logins_a_function_serves_nothing() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let in_environment = format!("{ROBOTS}{KEYS_IN_ENVIRONMENT}");
    let (file, secret_of_stack) = ("stopover.toml", "STOPOVER_SIGNING_KEYS_SECRET");
    for (access, secret, keys, setting, sentence) in [
        (ROBOTS, "", "", file, "access.signing_keys: is required where somebody can log in"),
        (ROBOTS, "c2hvcnQ=", "", secret_of_stack, "it is no ARN of a secret"),
        (&in_environment, "", "", file, "access.signing_keys: the secret is empty"),
        (&in_environment, "", "c2hvcnQ=", file, "key 1 is not"),
    ] {
        let (_configuration, environment) = Plan::of("http://127.0.0.1:1").setting(access).environment(&endpoints)?;
        let environment = environment.with("STOPOVER_SIGNING_KEYS_SECRET", secret).with("TEST_KEYS", keys);
        for function in [REGISTRY, FILLER] {
            let error = environment.refusal(function, setting).await?;
            ensure!(error.contains(sentence) && !error.contains("c2hvcnQ"), "{function}: {error}");
        }
    }
    Ok(())
}
