//! A client that asks for everything at once over plain HTTP, and tells wrong content from an answer that ended early.

use anyhow::{Context, ensure};
use reqwest::header::{ACCEPT, CONTENT_LENGTH};

use super::WrongContent;
use crate::images::{self, Blob, Image, digest_of};
use crate::program::UPSTREAM;
use crate::sha256::Hasher;

/// Pulls the image over plain HTTP, all blobs at once, reading and hashing every byte. Other bytes than those that were
/// pushed are a [`WrongContent`].
pub async fn pull_over_http(address: &str, image: &Image) -> anyhow::Result<()> {
    let client = stopover::values::crypto::http_client().no_proxy().build()?;
    let base = format!("http://{address}/v2/{UPSTREAM}/{}", image.name);
    let get = |path: String| client.get(format!("{base}/{path}")).header(ACCEPT, images::MEDIA_TYPES.join(", ")).send();
    let tagged = get(format!("manifests/{}", image.tag)).await?.error_for_status()?.bytes().await?;
    ensure!(digest_of(&tagged) == image.digest, WrongContent(image.reference()));
    for (digest, bytes) in image.manifest_bytes() {
        let answered = get(format!("manifests/{digest}")).await?.error_for_status()?.bytes().await?;
        ensure!(answered == bytes, WrongContent(digest.to_owned()));
    }
    let blobs =
        image.blobs().map(|blob| async { check_blob(get(format!("blobs/{}", blob.digest)).await?, blob).await });
    futures_util::future::try_join_all(blobs).await?;
    Ok(())
}

async fn check_blob(answer: reqwest::Response, blob: &Blob) -> anyhow::Result<()> {
    let mut answer = answer.error_for_status()?;
    let announced = answer.headers().get(CONTENT_LENGTH).context("a blob without Content-Length")?.to_str()?;
    ensure!(announced == blob.size.to_string(), "{} has {} bytes, not {announced}", blob.digest, blob.size);
    let mut hasher = Hasher::default();
    while let Some(bytes) = answer.chunk().await? {
        hasher.update(&bytes);
    }
    ensure!(hasher.digest() == blob.digest, WrongContent(blob.digest.clone()));
    Ok(())
}
