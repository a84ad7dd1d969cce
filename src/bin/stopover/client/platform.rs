//! The platform of an image without an index: its configuration says it.

use http::header::LOCATION;
use serde_json::Value;
use stopover::oci::{Digest, Platform, Request};
use stopover::prefetch::PrefetchReport;

use super::{Client, patient};

/// The most bytes of a configuration that are read.
const MOST_BYTES: u64 = 4 * 1024 * 1024;

impl Client {
    /// Says that an image, which has no index, is for none of the wanted platforms. The cache judges those in an index.
    pub(super) async fn other_platform(&self, report: &PrefetchReport, wanted: &[Platform]) -> Option<String> {
        let digest = report.digest.as_ref().filter(|_| !wanted.is_empty())?;
        let request = Request::image(&report.image).ok()?;
        let name = request.operation.name()?;
        let manifest = self.send(self.http.get(self.registry_url(&request, name, "manifests", digest.as_str()))).await;
        let manifest: Value = serde_json::from_slice(&manifest.ok()?.bytes().await.ok()?).ok()?;
        let digest: Digest = manifest.pointer("/config/digest")?.as_str()?.parse().ok()?;
        let url = self.registry_url(&request, name, "blobs", digest.as_str());
        let mut answer = self.send(self.http.get(url)).await.ok()?;
        // Another host sends the blob: it gets neither our login nor what goes over the operators' socket.
        if let Some(location) = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok()) {
            answer = patient().build().ok()?.get(location).send().await.ok()?;
        }
        answer.content_length().filter(|&bytes| bytes <= MOST_BYTES)?;
        // What is no image, a chart or a signature, has another configuration.
        let configuration: Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        let part = |key| configuration.get(key).and_then(Value::as_str);
        let parts = [Some(part("os")?), Some(part("architecture")?), part("variant")];
        let platform: Platform = parts.into_iter().flatten().collect::<Vec<_>>().join("/").parse().ok()?;
        let wanted_names = || wanted.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let is_other = !wanted.iter().any(|wanted| wanted.means(&platform));
        is_other.then(|| format!("it is for {platform} alone, and not for {}", wanted_names()))
    }
}
