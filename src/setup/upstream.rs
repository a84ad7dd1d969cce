//! The two names of an upstream: clients use its registry, the cache its id.

use std::sync::Arc;

use url::Position;

use crate::config::{Config, UpstreamConfig};
use crate::oci::UpstreamId;

/// An upstream that clients pull through the cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MirroredUpstream {
    /// Follows the endpoint of the cache in the names of images.
    pub id: UpstreamId,
    /// The registry in the names of images that are not written for a cache: host, and port if there is one.
    pub registry: String,
}

impl MirroredUpstream {
    /// The upstream of this id. If it is not configured here, it may still be at the cache, so an id that is a host is
    /// taken. `None`: it is neither.
    pub fn new(id: UpstreamId, config: &Config) -> Option<Self> {
        match config.upstreams.get(&id) {
            Some(upstream) => Some(Self::of((&id, upstream))),
            None => id.as_str().contains('.').then(|| Self { registry: id.to_string(), id }),
        }
    }

    /// The configured upstreams. A family stands for too many registries to be meant without a name.
    pub fn all(config: &Config) -> impl Iterator<Item = Self> {
        let single = config.upstreams.iter().filter(|(_, upstream)| upstream.family.is_none());
        single.map(Self::of)
    }

    /// The configured upstream that has this id, or this registry.
    pub fn named(name: &str, config: &Config) -> Option<Self> {
        config.upstreams.iter().map(Self::of).find(|upstream| upstream.id.as_str() == name || upstream.registry == name)
    }

    /// An id with a dot is a host. Any other id is a name of our own, and the host is in the URL.
    fn of((id, upstream): (&UpstreamId, &Arc<UpstreamConfig>)) -> Self {
        let host = &upstream.url[Position::BeforeHost..Position::AfterPort];
        Self { id: id.clone(), registry: if id.as_str().contains('.') { id.as_str() } else { host }.to_owned() }
    }
}
