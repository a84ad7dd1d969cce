//! The platform of an image without an index: its configuration says it.

use http::header::LOCATION;
use stopover::oci::{Digest, Platform, Request};
use stopover::prefetch::PrefetchReport;

use super::Client;

/// The most bytes of a configuration that are read.
const MOST_BYTES: u64 = 4 * 1024 * 1024;

impl Client {
    /// Says that an image, which has no index, is for none of the wanted platforms. The cache judges those in an index.
    pub(super) async fn other_platform(&self, report: &PrefetchReport, wanted: &[Platform]) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Outline {
            config: Descriptor,
        }
        #[derive(serde::Deserialize)]
        struct Descriptor {
            digest: Digest,
        }
        #[derive(serde::Deserialize)]
        struct Configuration {
            os: String,
            architecture: String,
            #[serde(default)]
            variant: Option<String>,
        }
        let digest = report.digest.as_ref().filter(|_| !wanted.is_empty())?;
        let request = Request::image(&report.image).ok()?;
        let name = request.operation.name()?;
        let outline = self.send(self.http.get(self.registry_url(&request, name, "manifests", digest.as_str()))).await;
        let Outline { config } = serde_json::from_slice(&outline.ok()?.bytes().await.ok()?).ok()?;
        let url = self.registry_url(&request, name, "blobs", config.digest.as_str());
        let mut answer = self.send(self.http.get(url)).await.ok()?;
        // Another host sends the blob: it does not get our login.
        if let Some(location) = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok()) {
            answer = self.http.get(location).send().await.ok()?;
        }
        answer.content_length().filter(|&bytes| bytes <= MOST_BYTES)?;
        // What is no image, a chart or a signature, has another configuration.
        let Configuration { os, architecture, variant } = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        let variant = variant.map_or_else(String::new, |variant| format!("/{variant}"));
        let platform: Platform = format!("{os}/{architecture}{variant}").parse().ok()?;
        let wanted_names = || wanted.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let is_other = !wanted.iter().any(|wanted| wanted.means(&platform));
        is_other.then(|| format!("it is for {platform} alone, and not for {}", wanted_names()))
    }
}
