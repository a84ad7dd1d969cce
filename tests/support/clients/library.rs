//! The `oci-client` crate, as a program in Rust uses it.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::task::{self, Poll};

use anyhow::{Context, bail};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, manifest::OciDescriptor};
use serde_json::Value;
use tokio::io::AsyncWrite;

use super::{Ability, By, Client, Shape, check_digests};
use crate::images::{Image, MEDIA_TYPES, digest_of};
use crate::program::UPSTREAM;
use crate::sha256::Hasher;

/// A client without a storage: what it is sent is hashed and thrown away.
pub struct OciClient;

#[async_trait]
impl Client for OciClient {
    fn cannot(&self, ability: Ability) -> Option<&'static str> {
        match ability {
            Ability::Use(Shape::Mirror) => Some("its mirrors are asked at their root with `ns`, or below a base path"),
            _ => None,
        }
    }

    async fn pull(&self, cache: &str, shape: Shape, image: &Image, by: By) -> anyhow::Result<()> {
        let (registry, name) = match shape {
            Shape::Name => (cache, format!("{UPSTREAM}/{}", image.name)),
            Shape::Base | Shape::Namespace => (UPSTREAM, image.name.clone()),
            Shape::Mirror => bail!("it cannot be told of the cache like this"),
        };
        let (registry, digest) = (registry.to_owned(), image.digest.clone());
        let mut reference = match by {
            By::Tag => Reference::with_tag(registry, name, image.tag.clone()),
            By::Digest => Reference::with_digest(registry, name, digest),
        };
        match shape {
            Shape::Base => reference.set_mirror_registry(format!("{cache}/{UPSTREAM}")),
            Shape::Namespace => reference.set_mirror_registry(cache.to_owned()),
            Shape::Name | Shape::Mirror => {}
        }
        let pulled = pull_all(&reference).await?;
        check_digests(&pulled, image)
    }
}

/// The digests of all that belongs to an image, as they were computed from what came.
async fn pull_all(reference: &Reference) -> anyhow::Result<BTreeSet<String>> {
    let configuration = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
    // Has its client of HTTP find a library of cryptography.
    drop(stopover::values::crypto::http_client());
    let client = oci_client::Client::try_from(configuration)?;
    let mut pulled = BTreeSet::new();
    let mut wanted = vec![reference.clone()];
    while let Some(reference) = wanted.pop() {
        let (bytes, _) = client.pull_manifest_raw(&reference, &RegistryAuth::Anonymous, &MEDIA_TYPES).await?;
        pulled.insert(digest_of(&bytes));
        let manifest: Value = serde_json::from_slice(&bytes)?;
        let descriptors = |key: &str| manifest[key].as_array().cloned().unwrap_or_default();
        for child in descriptors("manifests") {
            let digest = child["digest"].as_str().context("a descriptor without a digest")?;
            wanted.push(reference.clone_with_digest(digest.to_owned()));
        }
        let config = manifest.get("config").cloned();
        for blob in config.into_iter().chain(descriptors("layers")) {
            pulled.insert(pull_blob(&client, &reference, &serde_json::from_value(blob)?).await?);
        }
    }
    Ok(pulled)
}

/// Pulls a blob, and once, where its connection broke, the rest of it.
async fn pull_blob(client: &oci_client::Client, reference: &Reference, blob: &OciDescriptor) -> anyhow::Result<String> {
    let mut received = Received::default();
    if let Err(error) = client.pull_blob(reference, blob, &mut received).await {
        let rest = client.pull_blob_stream_partial(reference, blob, received.length, None).await?;
        let BlobResponse::Partial(mut rest) = rest else { bail!("asked for a part, after {error}: got the whole") };
        while let Some(bytes) = rest.next().await {
            received.hasher.update(&bytes?);
        }
    }
    Ok(received.hasher.digest())
}

#[derive(Default)]
struct Received {
    hasher: Hasher,
    length: u64,
}

impl AsyncWrite for Received {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut task::Context, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut task::Context) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut task::Context) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
