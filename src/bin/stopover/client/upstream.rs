//! What an upstream is called: by clients as its registry, and behind the cache by its id.

use anyhow::ensure;
use stopover::config::{Config, UpstreamConfig};
use stopover::oci::UpstreamId;

/// An upstream, as clients are told of it.
pub(crate) struct MirroredUpstream {
    /// What stands behind the endpoint of the cache.
    pub(crate) id: UpstreamId,
    /// The host in names of images that do not name the cache, with its port where there is one.
    pub(crate) registry: String,
}

impl MirroredUpstream {
    /// The upstream of this id. One that is not configured here may be so at the cache, if it is called like a host.
    pub(crate) fn new(id: UpstreamId, config: &Config) -> anyhow::Result<Self> {
        let known = config.upstreams.get(&id);
        ensure!(
            known.is_some() || id.as_str().contains('.'),
            "{id}: no upstream of this configuration is called so, and no host: name the file with --config"
        );
        let registry = known.map_or_else(|| id.to_string(), |upstream| registry(&id, upstream));
        Ok(Self { id, registry })
    }

    /// The configured upstream that has this id, or that clients call so.
    pub(crate) fn named(name: &str, config: &Config) -> Option<Self> {
        let mut all = config.upstreams.iter().map(|(id, upstream)| (id, registry(id, upstream)));
        let (id, registry) = all.find(|(id, registry)| id.as_str() == name || registry == name)?;
        Some(Self { id: id.clone(), registry })
    }
}

/// An id with a dot is a host. Any other is a name of our own, so that the host is that of the URL.
fn registry(id: &UpstreamId, upstream: &UpstreamConfig) -> String {
    match upstream.url.host_str() {
        Some(host) if !id.as_str().contains('.') => {
            upstream.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
        }
        _ => id.to_string(),
    }
}
