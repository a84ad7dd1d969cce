//! Manifests without their bytes.

use serde::{Deserialize, Serialize};

use super::{Digest, Manifest, MediaType};

/// What a registry's answer to HEAD tells about a manifest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Observed {
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its length in bytes.
    pub size: u64,
}

impl Observed {
    /// What a registry's answer to HEAD would tell about this manifest.
    pub fn of(manifest: &Manifest) -> Self {
        let size = manifest.bytes.len() as u64;
        Self { digest: manifest.digest.clone(), media_type: manifest.media_type, size }
    }
}
