//! Answers behind gateways that do to the length of a HEAD what AWS does not say.

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Method, Response};
use support::aws::Service;
use support::clients::{Buildah, By, Client, Containerd, Docker, Podman, Shape, Skopeo};
use support::document::{self, Cell, Table};
use support::images::{Image, MEDIA_TYPES, Recipe};
use support::lambda::{HeadLength, Kind, Manner};
use support::registry::Registry;
use support::scripted::Scripted;

use crate::deployment::{Deployment, Plan, request};

/// Larger than any answer of a function.
const LARGE: usize = 7 * 1024 * 1024;

fn length(answer: &Response) -> Option<u64> {
    answer.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What a client is told of a length.
fn told(manner: Manner, length: usize) -> Option<u64> {
    (manner.head_length != HeadLength::Dropped).then_some(length as u64)
}

#[tokio::test]
async fn head_of_a_manifest_tells_its_length_behind_any_gateway_and_spends_no_pull() -> Result<()> {
    let upstream = Scripted::start()?;
    let deployment = Plan::of(&upstream.url()).start().await?;
    for (number, manner) in Manner::ALL.into_iter().enumerate() {
        deployment.behave(manner);
        let tagged = upstream.image(&format!("team/tagged-{number}"), "v1", &[b"layer"]);
        let pinned = upstream.image(&format!("team/pinned-{number}"), "v1", &[b"layer"]);
        let encoded = pinned.digest.to_string().replace(':', "%3A");
        for (image, reference) in [(&tagged, "v1"), (&pinned, pinned.digest.as_str()), (&pinned, &encoded)] {
            let path = format!("{}/manifests/{reference}", image.name);
            for step in [Method::HEAD, Method::GET, Method::HEAD] {
                let sent = upstream.served_by_get(&image.digest);
                let answer = deployment.request(step.clone(), &path)?.send().await?;
                ensure!(answer.status() == 200, "{manner:?} {step} {path}: {}", answer.status());
                ensure!(answer.headers()["docker-content-digest"] == image.digest.as_str());
                if step == Method::GET {
                    ensure!(answer.bytes().await? == image.manifest);
                } else {
                    ensure!(length(&answer) == told(manner, image.manifest.len()), "{manner:?}: {answer:?}");
                    ensure!(upstream.served_by_get(&image.digest) == sent, "HEAD has spent a pull");
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn head_of_a_blob_tells_its_length_behind_any_gateway() -> Result<()> {
    let upstream = Scripted::start()?;
    let deployment = Plan::of(&upstream.url()).start().await?;
    for (number, manner) in Manner::ALL.into_iter().enumerate() {
        deployment.behave(manner);
        let large = vec![u8::try_from(number)?; LARGE];
        let image = upstream.image(&format!("team/{number}"), "v1", &[b"small", &large]);
        let manifest = format!("{}/manifests/v1", image.name);
        deployment.request(Method::GET, &manifest)?.send().await?.error_for_status()?;
        for stored in [false, true] {
            for (digest, bytes) in &image.blobs {
                let path = format!("{}/blobs/{digest}", image.name);
                let mut answer = deployment.request(Method::HEAD, &path)?.send().await?;
                if bytes.len() == LARGE && !stored {
                    // That it exists; a gateway that counts the body says that it is empty.
                    ensure!(answer.status() == 200, "{manner:?} {path}: {}", answer.status());
                    ensure!(length(&answer).is_none_or(|length| [0, LARGE as u64].contains(&length)), "{answer:?}");
                    continue;
                }
                let mut expected = told(manner, bytes.len());
                if bytes.len() == LARGE {
                    ensure!(answer.status() == 307, "{manner:?}: {}", answer.status());
                    let location = answer.headers()[LOCATION].to_str()?.to_owned();
                    answer = request(Method::HEAD, &location)?.send().await?;
                    // S3 answers, and no gateway.
                    expected = Some(LARGE as u64);
                }
                ensure!(answer.status() == 200, "{manner:?} {path}: {}", answer.status());
                ensure!(length(&answer) == expected, "{manner:?}, stored: {stored}: {answer:?}");
            }
            deployment.until_filled().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_manifest_that_a_load_balancer_has_no_room_for_comes_from_the_bucket() -> Result<()> {
    let upstream = Scripted::start()?;
    let deployment = Plan::of(&upstream.url()).start().await?;
    let [.., manner] = Manner::ALL;
    ensure!(manner.kind == Kind::LoadBalancer);
    deployment.behave(manner);
    for (number, length) in [800_000, 1_100_000, 4_000_000].into_iter().enumerate() {
        let bytes =
            format!("{{\"schemaVersion\":2,\"manifests\":[],\"annotations\":{{\"a\":\"{}\"}}}}", "a".repeat(length));
        let name = format!("team/{number}");
        let digest = upstream.manifest(&name, "v1", MEDIA_TYPES[2], bytes.as_bytes());
        for reference in ["v1", digest.as_str()] {
            let path = format!("{name}/manifests/{reference}");
            let head = deployment.request(Method::HEAD, &path)?.send().await?;
            let expected = if length > 1_000_000 { 405 } else { 200 };
            ensure!(head.status() == expected, "HEAD {path}: {}", head.status());
            let mut answer = deployment.request(Method::GET, &path)?.send().await?;
            if length > 1_000_000 {
                ensure!(answer.status() == 307, "{path}: {}", answer.status());
                ensure!(answer.headers()["docker-content-digest"] == digest.as_str());
                answer = request(Method::GET, answer.headers()[LOCATION].to_str()?)?.send().await?;
            }
            ensure!(answer.status() == 200, "{path}: {}", answer.status());
            ensure!(answer.headers()[CONTENT_TYPE] == MEDIA_TYPES[2], "{:?}", answer.headers());
            ensure!(answer.bytes().await? == bytes, "{path}");
        }
    }
    Ok(())
}

/// An image for each way to ask for it.
struct Images {
    tagged: Image,
    pinned: Image,
}

/// By tag and by digest. The error says which.
async fn pulls(client: &dyn Client, deployment: &Deployment, images: &Images) -> Result<()> {
    for (image, by) in [(&images.tagged, By::Tag), (&images.pinned, By::Digest)] {
        let pulled = client.pull(&deployment.address(), Shape::Name, image, by).await;
        pulled.with_context(|| format!("{by:?} {}", image.reference()))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_pulls_behind_every_gateway() -> Result<()> {
    let upstream = Registry::start().await?;
    let deployment = Plan::of(&upstream.url()).start().await?;
    let (containerd, docker) = tokio::join!(Containerd::start(), Docker::start("127.0.0.1:1"));
    let (containerd, docker) = (containerd?, docker?);
    let clients: [(&str, &dyn Client); 5] = [
        ("containerd", &containerd),
        ("dockerd", &docker),
        ("skopeo", &Skopeo),
        ("podman", &Podman),
        ("buildah", &Buildah),
    ];
    for (number, manner) in (0..).zip(Manner::ALL) {
        deployment.behave(manner);
        let images = (0..).zip(clients).map(|(column, (name, _))| {
            let upstream = &upstream;
            let recipe = move |what: &str, seed| {
                Recipe::docker(&format!("{what}-{number}/{name}")).layers(vec![64 * 1024]).seed(seed)
            };
            async move {
                let seed = 1 + 2 * (5 * number + column);
                let tagged = recipe("tagged", seed).push(upstream).await?;
                anyhow::Ok(Images { tagged, pinned: recipe("pinned", seed + 1).push(upstream).await? })
            }
        });
        let images = try_join_all(images).await?;
        for state in ["cold", "warm"] {
            let read = deployment.endpoints.calls(Service::S3, "GetObject");
            let pulls = clients.iter().zip(&images).map(async |((name, client), images)| {
                let pulled = pulls(*client, &deployment, images).await;
                pulled.with_context(|| deployment.log()).with_context(|| format!("{name}, {state}, {manner:?}"))
            });
            try_join_all(pulls).await?;
            deployment.until_filled().await?;
            let blobs: usize = images.iter().map(|images| images.tagged.blobs().count() * 2).sum();
            let read = deployment.endpoints.calls(Service::S3, "GetObject") - read;
            ensure!(state == "cold" || read >= blobs, "{read} objects were read for {blobs} blobs, {manner:?}");
        }
    }
    let fronts = ["passes the length on", "counts the bytes of the body", "leaves the length out"];
    let [passes, counts, leaves] = fronts.map(|manner| format!("HTTP API that {manner}"));
    let mut table =
        Table::new(&["client", &passes, &counts, &leaves, "load balancer that counts the bytes of the body"]);
    for (name, _) in clients {
        table.row(name, &[Cell::Pass; Manner::ALL.len()]);
    }
    document::check(document::CLIENTS, "Behind API Gateway and load balancers", &table.render())
}
