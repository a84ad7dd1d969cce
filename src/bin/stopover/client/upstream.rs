//! The two names of an upstream: clients use its registry, the cache its id.

use anyhow::ensure;
use stopover::config::{Config, UpstreamConfig};
use stopover::oci::UpstreamId;

/// An upstream that clients pull through the cache.
pub(crate) struct MirroredUpstream {
    /// Follows the endpoint of the cache in the names of images.
    pub(crate) id: UpstreamId,
    /// The registry in the names of images that are not written for a cache: host, and port if there is one.
    pub(crate) registry: String,
}

impl MirroredUpstream {
    /// The upstream of this id. If it is not configured here, it may still be at the cache, so an id that is a host is
    /// taken.
    pub(crate) fn new(id: UpstreamId, config: &Config) -> anyhow::Result<Self> {
        let known = config.upstreams.get(&id);
        ensure!(
            known.is_some() || id.as_str().contains('.'),
            "{id}: no upstream of this configuration is called so, and no host: name the file with --config"
        );
        let registry = known.map_or_else(|| id.to_string(), |upstream| registry(&id, upstream));
        Ok(Self { id, registry })
    }

    /// The configured upstream that has this id, or this registry.
    pub(crate) fn named(name: &str, config: &Config) -> Option<Self> {
        let mut all = config.upstreams.iter().map(|(id, upstream)| (id, registry(id, upstream)));
        let (id, registry) = all.find(|(id, registry)| id.as_str() == name || registry == name)?;
        Some(Self { id: id.clone(), registry })
    }
}

/// An id with a dot is a host. Any other id is a name of our own, and the host is in the URL.
fn registry(id: &UpstreamId, upstream: &UpstreamConfig) -> String {
    match upstream.url.host_str() {
        Some(host) if !id.as_str().contains('.') => {
            upstream.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
        }
        _ => id.to_string(),
    }
}
