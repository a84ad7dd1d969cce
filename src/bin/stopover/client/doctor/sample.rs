//! A pull by the doctor itself; every byte is verified.

use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use stopover::oci::{Digest, Hasher, MAX_MANIFEST_BYTES, Manifest, MediaType, Platform, Reference};
use stopover::operate::report::Bytes;

use super::{Problem, Sample, chain};
use crate::client::{Client, message_in};

/// How long one blob may take.
const PATIENCE: Duration = Duration::from_mins(10);

/// How much of a refusal's body is read: more than a reason needs.
const MAX_REFUSAL_BYTES: usize = 16 * 1024;

/// How to fix content that does not match its digest.
const CHANGED: &str = "a proxy between here and the cache changes what it passes on: have it leave the cache alone";

impl Client {
    pub(super) async fn pull_sample(&self, sample: &Sample) -> Result<String, Problem> {
        let began = Instant::now();
        let (mut manifest, served) = self.pull_manifest(sample, &sample.reference).await?;
        let mut bytes = manifest.bytes.len() as u64;
        if manifest.media_type.is_index() {
            let machine = Platform::of_this_machine();
            let children = manifest.children().unwrap_or_default();
            let child =
                children.into_iter().find(|child| child.platform.as_ref().is_some_and(|other| machine.means(other)));
            let child = child.ok_or_else(|| {
                Problem::new(format!("{} is not for {machine}", sample.text), "name an image that is with --image")
            })?;
            (manifest, _) = self.pull_manifest(sample, &Reference::Digest(child.digest)).await?;
            bytes += manifest.bytes.len() as u64;
        }
        let blobs = manifest.blobs().unwrap_or_default();
        let (mut count, mut elsewhere) = (0, None);
        for blob in blobs.iter().filter(|blob| !blob.foreign) {
            elsewhere = self.pull_blob(sample, &blob.digest, blob.size).await?.or(elsewhere);
            bytes += blob.size;
            count += 1;
        }
        let source = elsewhere.map_or_else(String::new, |host| format!(", blobs from {host}"));
        Ok(format!(
            "{}: manifest ({served}) and {count} blobs, {} in {:.1} s{source}",
            sample.text,
            Bytes(bytes),
            began.elapsed().as_secs_f64()
        ))
    }

    async fn pull_manifest(&self, sample: &Sample, reference: &Reference) -> Result<(Manifest, String), Problem> {
        let url = self.manifest_url(sample, reference);
        let answer = self.fetch(self.authorized(self.http.get(url)).header(ACCEPT, MediaType::ACCEPT)).await?;
        let header = |name: &str| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
        let served = header("x-stopover").ok_or_else(|| {
            let what = format!("the answer for {} does not come from a Stopover: it has no X-Stopover", sample.text);
            Problem::new(
                what,
                "check --server; a registry that is none, or a proxy that has the answer, is in its place",
            )
        })?;
        let media_type = header(CONTENT_TYPE.as_str()).unwrap_or_default();
        let named = match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(_) => header("docker-content-digest").and_then(|digest| digest.parse().ok()),
        };
        let digest = named.ok_or_else(|| Problem::new("the manifest comes without Docker-Content-Digest", CHANGED))?;
        let bytes = read(answer, MAX_MANIFEST_BYTES).await.map_err(broken)?.ok_or_else(|| {
            Problem::new(format!("the manifest has more than {}", Bytes(MAX_MANIFEST_BYTES as u64)), CHANGED)
        })?;
        if Digest::of(digest.algorithm(), &bytes) != digest {
            return Err(Problem::new(format!("the manifest is not {digest}: other bytes came"), CHANGED));
        }
        let invalid = |reason: String| Problem::new(format!("the manifest cannot be used: {reason}"), CHANGED);
        let media_type = media_type.parse().map_err(|error| invalid(format!("{error}")))?;
        let manifest = Manifest::new(digest, media_type, bytes.into()).map_err(|error| invalid(error.to_string()))?;
        Ok((manifest, served))
    }

    pub(super) fn manifest_url(&self, sample: &Sample, reference: &Reference) -> String {
        self.registry_url(&sample.request, &sample.name, "manifests", &reference.to_string())
    }

    /// Reads and hashes a blob. Returns the host that the cache redirected to, if it did.
    async fn pull_blob(&self, sample: &Sample, digest: &Digest, size: u64) -> Result<Option<String>, Problem> {
        let url = self.registry_url(&sample.request, &sample.name, "blobs", digest.as_str());
        let mut answer = self.fetch(self.authorized(self.http.get(url)).timeout(PATIENCE)).await?;
        let mut elsewhere = None;
        // A cache promises at most one hop: to S3, or to where upstream redirects to.
        if answer.status() == StatusCode::TEMPORARY_REDIRECT {
            let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let target = location.and_then(|location| answer.url().join(location).ok());
            let target = target.ok_or_else(|| Problem::new(format!("{digest} is redirected to no URL"), CHANGED))?;
            elsewhere = target.host_str().map(str::to_owned);
            answer = self.fetch(self.http.get(target).timeout(PATIENCE)).await?;
        }
        let (mut hasher, mut read) = (Hasher::new(digest.algorithm()), 0);
        while let Some(bytes) = answer.chunk().await.map_err(broken)? {
            hasher.update(&bytes);
            read += bytes.len() as u64;
        }
        if read != size || hasher.finish() != *digest {
            let what = format!("the blob {digest} is not {} of that digest: other bytes came", Bytes(size));
            return Err(Problem::new(what, CHANGED));
        }
        Ok(elsewhere)
    }

    /// Sends a request. Any answer that is neither content nor a redirect to it is a problem.
    async fn fetch(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Problem> {
        let answer = request.send().await.map_err(broken)?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::TEMPORARY_REDIRECT {
            return Ok(answer);
        }
        let body = read(answer, MAX_REFUSAL_BYTES).await.ok().flatten().unwrap_or_default();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let reason = message_in(&body).unwrap_or("no reason was given");
        let fix = match status {
            StatusCode::NOT_FOUND => {
                "name an image that exists with --image, of an upstream of `stopover config check`"
            }
            StatusCode::UNAUTHORIZED => "log in as somebody whom the policy of the cache allows this image",
            // The words are those of `PullError`.
            StatusCode::FORBIDDEN if reason.contains(" may not pull ") => {
                "`stopover policy explain` on the machine of the cache says which rule decides; change it, or log in as another"
            }
            StatusCode::FORBIDDEN if reason.contains("in the configuration refuses it") => {
                "name another image with --image, or change that key (`allow` or `deny`) in stopover.toml"
            }
            StatusCode::FORBIDDEN if reason.contains("credentials") && !reason.contains("none is configured") => {
                "correct the upstream's `credentials` in stopover.toml: they are refused, or may not read this image"
            }
            StatusCode::FORBIDDEN if reason.contains("upstream refused") => {
                "give the upstream `credentials` in stopover.toml that may read it"
            }
            StatusCode::FORBIDDEN => "what is in front of the cache refuses: have it let this machine through",
            StatusCode::TOO_MANY_REQUESTS => {
                "`stopover quota` says what is left of the upstream's limit, and until when"
            }
            _ => "look into the log of the cache; `stopover quota` says which upstreams are left alone for a while",
        };
        Err(Problem::new(format!("{status}: {reason}"), fix))
    }
}

/// The body of an answer. `None`: it has more than `most` bytes.
pub(super) async fn read(mut answer: reqwest::Response, most: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(bytes) = answer.chunk().await? {
        if body.len() + bytes.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&bytes);
    }
    Ok(Some(body))
}

/// The problem of an answer that is missing or incomplete. Only the host is named: the rest of a redirect's URL is a
/// secret.
pub(super) fn broken(error: reqwest::Error) -> Problem {
    let host = error.url().and_then(url::Url::host_str).unwrap_or("the cache").to_owned();
    Problem::new(
        format!("{host} did not answer to the end: {}", chain(&error.without_url())),
        "this machine has to reach the host that blobs are redirected to (S3 on AWS), too: check its route to it",
    )
}
