//! What clients get through the gateway.

use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::Method;
use serde_json::json;
use support::aws::Service;
use support::clients::{By, Client, Podman, Shape, Skopeo};
use support::images::{MEDIA_TYPES, Recipe, digest_of};
use support::registry::Registry;
use support::scripted::Scripted;

use crate::deployment::{Plan, request};

const MIB: u64 = 1024 * 1024;

/// Cold, then from the bucket alone after the upstream is gone.
async fn pulls_are_identical(client: &dyn Client, recipe: Recipe) -> Result<()> {
    let mut upstream = Registry::start().await?;
    let image = recipe.push(&upstream).await?;
    let deployment = Plan::of(&upstream.url()).start().await?;
    let address = deployment.address();
    let show = || format!("the functions' logs:\n{}", deployment.log());
    let cold = client.pull(&address, Shape::Name, &image, By::Tag).await;
    cold.context("cold").with_context(show)?;
    deployment.until_filled().await?;
    deployment.check_stored(&image).await.with_context(show)?;
    upstream.stop().await?;
    let read_before = deployment.endpoints.calls(Service::S3, "GetObject");
    let warm = client.pull(&address, Shape::Mirror, &image, By::Tag).await;
    warm.context("without the upstream").with_context(show)?;
    let read = deployment.endpoints.calls(Service::S3, "GetObject") - read_before;
    let blobs = image.blobs().count();
    ensure!(read >= blobs, "{read} objects were read for {blobs} blobs: where do the others come from?");
    Ok(())
}

#[tokio::test]
async fn skopeo_pulls_a_docker_image_and_again_without_the_upstream() -> Result<()> {
    pulls_are_identical(&Skopeo, Recipe::docker("team/docker")).await
}

#[tokio::test]
async fn skopeo_pulls_every_platform_of_an_index_and_again_without_the_upstream() -> Result<()> {
    pulls_are_identical(&Skopeo, Recipe::index("team/index")).await
}

#[tokio::test]
async fn podman_pulls_a_docker_image_and_again_without_the_upstream() -> Result<()> {
    pulls_are_identical(&Podman, Recipe::docker("team/docker")).await
}

#[tokio::test]
async fn podman_pulls_every_platform_of_an_index_and_again_without_the_upstream() -> Result<()> {
    pulls_are_identical(&Podman, Recipe::index("team/index")).await
}

#[tokio::test]
async fn a_large_layer_is_stored_in_parts_and_none_is_left_over() -> Result<()> {
    let upstream = Registry::start().await?;
    let image = Recipe::oci("large", vec![40 * MIB]).push(&upstream).await?;
    let deployment = Plan::of(&upstream.url()).start().await?;
    let manifest = deployment.request(Method::GET, "large/manifests/v1")?;
    manifest.send().await?.error_for_status()?;
    deployment.until_filled().await?;
    deployment.check_stored(&image).await.with_context(|| deployment.log())?;
    let calls = |operation| deployment.endpoints.calls(Service::S3, operation);
    ensure!(calls("CreateMultipartUpload") == 1 && calls("UploadPart") > 1);
    // One file for the configuration and one for each part of the layer: nothing else stays.
    ensure!(deployment.endpoints.stored_files()? == 1 + calls("UploadPart"));
    Ok(())
}

#[tokio::test]
async fn a_stored_blob_is_one_redirect_away_from_the_bucket() -> Result<()> {
    let upstream = Registry::start().await?;
    let image = Recipe::docker("team/docker").push(&upstream).await?;
    let deployment = Plan::of(&upstream.url()).start().await?;
    let manifest = deployment.request(Method::GET, "team/docker/manifests/v1")?;
    manifest.send().await?.error_for_status()?;
    deployment.until_filled().await?;
    for blob in image.blobs() {
        for path in [blob.digest.clone(), blob.digest.replace(':', "%3A")] {
            let path = format!("team/docker/blobs/{path}");
            let head = deployment.request(Method::HEAD, &path)?.send().await?;
            ensure!(head.status() == 200, "{path}: {}", head.status());
            ensure!(head.headers()[CONTENT_LENGTH] == blob.size.to_string());
            let answer = deployment.request(Method::GET, &path)?.send().await?;
            ensure!(answer.status() == 307, "{path}: {}", answer.status());
            let url = answer.headers()[LOCATION].to_str()?;
            ensure!(url.contains("X-Amz-Signature="), "not presigned: {url}");
            let bytes = support::http().get(url).send().await?.error_for_status()?.bytes().await?;
            ensure!(digest_of(&bytes) == blob.digest);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_manifest_keeps_every_byte_and_its_media_type() -> Result<()> {
    let upstream = Scripted::start()?;
    let deployment = Plan::of(&upstream.url()).start().await?;
    let blob = json!({ "mediaType": "application/octet-stream", "digest": digest_of(b"{}"), "size": 2 });
    for (tag, media_type) in ["first", "second", "third"].into_iter().zip(MEDIA_TYPES) {
        let is_index = media_type.contains("index") || media_type.contains("list");
        let fields =
            if is_index { "\"manifests\":[]".to_owned() } else { format!("\"config\":{blob}, \"layers\":[ ]") };
        let bytes = format!(
            "{{ \"schemaVersion\" :2,\r\n\t\"mediaType\":\"{media_type}\",{fields}\n,\
             \"annotations\":{{\"a\":\"\u{e9}\\u00e9\u{2028}\u{1f642}\\/\u{7f}\",\"b\":\"\"}} }}\r\n\n  "
        );
        let digest = upstream.manifest("team/odd", tag, media_type, bytes.as_bytes());
        let digest = digest.to_string();
        let encoded = digest.replace(':', "%3a");
        // HEAD comes first: it must be true before anybody has fetched the manifest, and after.
        for method in [Method::HEAD, Method::GET, Method::HEAD] {
            for reference in [tag, &digest, &encoded] {
                let path = format!("team/odd/manifests/{reference}");
                let request = deployment.request(method.clone(), &path)?;
                let answer = request.header(ACCEPT, MEDIA_TYPES.join(", ")).send().await?;
                let headers = answer.headers().clone();
                ensure!(answer.status() == 200, "{method} {path}: {}", answer.status());
                ensure!(headers[CONTENT_TYPE] == media_type, "{headers:?}");
                ensure!(headers[CONTENT_LENGTH] == bytes.len().to_string(), "{headers:?}");
                ensure!(headers["docker-content-digest"] == digest, "{headers:?}");
                let expected = if method == Method::GET { &bytes } else { "" };
                ensure!(answer.bytes().await? == expected, "{method} {path}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_thousand_cold_pulls_over_four_processes_cost_one_get_upstream() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "v1", &[b"layer"]);
    let deployment = Plan::of(&upstream.url()).start().await?;
    let pulls = (0..1000).map(|_| async {
        let answer = deployment.request(Method::GET, "a/manifests/v1")?.send().await?.error_for_status()?;
        anyhow::Ok(answer.bytes().await?)
    });
    let mut pulls = futures_util::stream::iter(pulls).buffer_unordered(64);
    while let Some(bytes) = pulls.next().await {
        ensure!(bytes? == image.manifest);
    }
    ensure!(upstream.count("/manifests/") == 1, "{} requests", upstream.count("/manifests/"));
    Ok(())
}

/// Both functions: the registry asks for the manifest, the filler for the blobs.
#[tokio::test]
async fn private_ecr_is_pulled_with_the_login_that_aws_issues_to_the_functions() -> Result<()> {
    const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let upstream = Registry::start_with_password("AWS", "issued").await?;
    let image = Recipe::docker("team/private").push(&upstream).await?;
    let table = format!("\n[upstreams.\"{ECR}\"]\npublic = true\nurl = \"{}\"\n", upstream.url());
    let deployment = Plan::of(&upstream.url()).setting(&table).start().await?;
    let in_twelve_hours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() + 12 * 3600;
    deployment.endpoints.logins().issue("issued", in_twelve_hours);
    let url = format!("http://{}/v2/{ECR}/team/private/manifests/{}", deployment.address(), image.tag);
    let answer = request(Method::GET, &url)?.header(ACCEPT, MEDIA_TYPES.join(", ")).send().await?;
    ensure!(answer.status() == 200, "{}\n{}", answer.status(), deployment.log());
    ensure!(digest_of(&answer.bytes().await?) == image.digest);
    deployment.until_filled().await?;
    deployment.check_stored(&image).await.with_context(|| deployment.log())?;
    ensure!(deployment.endpoints.logins().regions().iter().all(|region| region == "eu-west-1"));
    Ok(())
}
