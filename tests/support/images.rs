//! Images made without any network: the same recipe gives the same bytes, streamed, never all in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::layer::Layer;
use crate::sha256::Hasher;
pub use crate::sha256::digest_of;

const MIB: u64 = 1024 * 1024;

/// The media types of one family of images.
#[derive(Clone, Copy)]
struct Format {
    manifest: &'static str,
    config: &'static str,
    layer: &'static str,
    gzip: bool,
}

const DOCKER: Format = Format {
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
    gzip: true,
};

const OCI: Format = Format {
    manifest: "application/vnd.oci.image.manifest.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar",
    gzip: false,
};

/// The media type of an OCI index.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The media types of the manifests that are made here.
pub const MEDIA_TYPES: [&str; 3] = [DOCKER.manifest, OCI.manifest, INDEX];

/// Where an image can be pushed to.
#[async_trait]
pub trait Destination: Sync {
    /// Stores a blob, read piece by piece.
    async fn put_blob(&self, name: &str, blob: &Blob, content: Content) -> anyhow::Result<()>;

    /// Stores a manifest under a tag or its digest.
    async fn put_manifest(&self, name: &str, reference: &str, kind: &str, bytes: &[u8]) -> anyhow::Result<()>;
}

/// The bytes of a blob, in pieces.
pub type Content = Box<dyn Iterator<Item = Bytes> + Send>;

/// What to make. Recipes that differ in their seed share no layer.
pub struct Recipe {
    name: String,
    seed: u64,
    format: Format,
    architectures: &'static [&'static str],
    layers: Vec<u64>,
}

impl Recipe {
    /// A docker v2 image for linux/amd64 with two gzip layers of 1 MiB and 300 KiB.
    pub fn docker(name: &str) -> Self {
        Self { format: DOCKER, ..Self::oci(name, vec![MIB, 300 * 1024]) }
    }

    /// An OCI index of two images, linux/amd64 and linux/arm64, of two layers each.
    pub fn index(name: &str) -> Self {
        Self { architectures: &["amd64", "arm64"], ..Self::oci(name, vec![MIB, 300 * 1024]) }
    }

    /// An OCI image for linux/amd64 with one layer per entry; each layer holds a file of that many bytes.
    pub fn oci(name: &str, layers: Vec<u64>) -> Self {
        Self { name: name.to_owned(), seed: 1, format: OCI, architectures: &["amd64"], layers }
    }

    /// The same with other layers: a file of so many bytes in each.
    #[must_use]
    pub fn layers(self, layers: Vec<u64>) -> Self {
        Self { layers, ..self }
    }

    /// Other content under the same shape.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Makes the image and pushes it to the registry as `<name>:v1`, blobs first, as every client does.
    pub async fn push(&self, registry: &impl Destination) -> anyhow::Result<Image> {
        let mut manifests = Vec::new();
        for (platform, architecture) in (0..).zip(self.architectures) {
            manifests.push(self.push_platform(registry, platform, architecture).await?);
        }
        let (digest, index) = match &manifests[..] {
            [only] => {
                registry.put_manifest(&self.name, "v1", self.format.manifest, &only.bytes).await?;
                (only.digest.clone(), None)
            }
            several => {
                let bytes = serde_json::to_vec(&json!({
                    "schemaVersion": 2,
                    "mediaType": INDEX,
                    "manifests": several.iter().map(|manifest| json!({
                        "mediaType": self.format.manifest,
                        "digest": manifest.digest,
                        "size": manifest.bytes.len(),
                        "platform": {"os": "linux", "architecture": manifest.architecture},
                    })).collect::<Vec<Value>>(),
                }))?;
                registry.put_manifest(&self.name, "v1", INDEX, &bytes).await?;
                (digest_of(&bytes), Some(bytes))
            }
        };
        Ok(Image { name: self.name.clone(), tag: "v1".to_owned(), digest, index, manifests })
    }

    async fn push_platform(
        &self,
        registry: &impl Destination,
        platform: u64,
        architecture: &str,
    ) -> anyhow::Result<Manifest> {
        let mut layers = Vec::new();
        for (position, content) in (0..).zip(&self.layers) {
            let layer = Layer::new(self.seed, (platform << 32) | position, *content, self.format.gzip);
            let measured = layer.measure();
            registry.put_blob(&self.name, &measured.blob, layer.blocks()).await?;
            layers.push(measured);
        }
        let config = serde_json::to_vec(&json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
            "history": layers.iter().map(|_| json!({"created_by": "a test"})).collect::<Vec<Value>>(),
        }))?;
        let config_blob = put_bytes(registry, &self.name, config).await?;
        let bytes = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": self.format.manifest,
            "config": {"mediaType": self.format.config, "digest": config_blob.digest, "size": config_blob.size},
            "layers": layers.iter().map(|layer| json!({
                "mediaType": self.format.layer, "digest": layer.blob.digest, "size": layer.blob.size,
            })).collect::<Vec<Value>>(),
        }))?;
        let digest = digest_of(&bytes);
        registry.put_manifest(&self.name, &digest, self.format.manifest, &bytes).await?;
        let diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let blobs = std::iter::once(config_blob.clone()).chain(layers.into_iter().map(|layer| layer.blob)).collect();
        Ok(Manifest { architecture: architecture.to_owned(), digest, bytes, config: config_blob, blobs, diff_ids })
    }
}

/// What refers to an image, as the tools that look for it find it.
pub struct Companions {
    /// An artifact with a `subject`.
    pub artifact: Image,
    /// The index of what refers to the image, at its fallback tag (distribution-spec 1.1, "Referrers Tag Schema").
    pub referrers: Image,
    /// A signature at cosign's tag, `sha256-<hex>.sig`.
    pub signature: Image,
}

impl Companions {
    /// Makes them for an image and pushes them into its repository.
    pub async fn push(registry: &impl Destination, image: &Image) -> anyhow::Result<Self> {
        const BILL: &str = "application/spdx+json";
        let tag = image.digest.replace(':', "-");
        let subject = image.manifest_bytes()[image.digest.as_str()];
        let subject = json!({"mediaType": OCI.manifest, "digest": image.digest, "size": subject.len()});
        let bill = format!("a bill of materials of {}", image.digest);
        let artifact = (BILL, "application/vnd.oci.empty.v1+json", b"{}".to_vec(), bill, Some(subject));
        let artifact = push_single(registry, &image.name, "sbom", artifact).await?;
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [{
                "mediaType": OCI.manifest, "digest": artifact.digest,
                "size": artifact.manifests[0].bytes.len(), "artifactType": BILL,
            }],
        }))?;
        registry.put_manifest(&image.name, &tag, INDEX, &index).await?;
        let referrers = Image { tag: tag.clone(), digest: digest_of(&index), index: Some(index), ..artifact.clone() };
        let payload = format!("a signature of {}", image.digest);
        let config = br#"{"architecture":"","os":"","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
        let signature = ("application/vnd.dev.cosign.simplesigning.v1+json", OCI.config, config, payload, None);
        let signature = push_single(registry, &image.name, &format!("{tag}.sig"), signature).await?;
        Ok(Self { artifact, referrers, signature })
    }
}

/// An OCI manifest of one layer: its media type, which is also its `artifactType` where the manifest has a subject; the
/// configuration's media type and bytes; the layer's content; the subject.
async fn push_single(
    registry: &impl Destination,
    name: &str,
    tag: &str,
    (kind, config_kind, config, layer, subject): (&str, &str, Vec<u8>, String, Option<Value>),
) -> anyhow::Result<Image> {
    let config = put_bytes(registry, name, config).await?;
    let layer = put_bytes(registry, name, layer.into_bytes()).await?;
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI.manifest,
        "config": {"mediaType": config_kind, "digest": config.digest, "size": config.size},
        "layers": [{"mediaType": kind, "digest": layer.digest, "size": layer.size}],
    });
    if let Some(subject) = subject {
        manifest["artifactType"] = json!(kind);
        manifest["subject"] = subject;
    }
    let bytes = serde_json::to_vec(&manifest)?;
    registry.put_manifest(name, tag, OCI.manifest, &bytes).await?;
    let digest = digest_of(&bytes);
    let (blobs, diff_ids) = (vec![config.clone(), layer], Vec::new());
    let manifest = Manifest { architecture: String::new(), digest: digest.clone(), bytes, config, blobs, diff_ids };
    Ok(Image { name: name.to_owned(), tag: tag.to_owned(), digest, index: None, manifests: vec![manifest] })
}

async fn put_bytes(registry: &impl Destination, name: &str, bytes: Vec<u8>) -> anyhow::Result<Blob> {
    let blob = Blob { digest: digest_of(&bytes), size: bytes.len() as u64 };
    registry.put_blob(name, &blob, Box::new(std::iter::once(Bytes::from(bytes)))).await?;
    Ok(blob)
}

/// An image as it was pushed.
#[derive(Clone, Debug)]
pub struct Image {
    /// The name of the repository.
    pub name: String,
    /// The tag.
    pub tag: String,
    /// The digest that the tag points to: of the index where there is one, else of the only manifest.
    pub digest: String,
    /// The bytes of the index, where there is one.
    pub index: Option<Vec<u8>>,
    /// One manifest per platform.
    pub manifests: Vec<Manifest>,
}

impl Image {
    /// `<name>:<tag>`
    pub fn reference(&self) -> String {
        format!("{}:{}", self.name, self.tag)
    }

    /// Every manifest by digest, the index included, with the bytes that were pushed.
    pub fn manifest_bytes(&self) -> BTreeMap<&str, &[u8]> {
        let index = self.index.iter().map(|bytes| (self.digest.as_str(), bytes.as_slice()));
        index
            .chain(self.manifests.iter().map(|manifest| (manifest.digest.as_str(), manifest.bytes.as_slice())))
            .collect()
    }

    /// Every blob: configs and layers of all platforms.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.manifests.iter().flat_map(|manifest| &manifest.blobs)
    }

    /// The digests of all manifests and all blobs.
    pub fn digests(&self) -> BTreeSet<String> {
        let manifests = self.manifest_bytes().into_keys().map(str::to_owned);
        manifests.chain(self.blobs().map(|blob| blob.digest.clone())).collect()
    }
}

/// The manifest of one platform.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// `amd64` or `arm64`; the operating system is always linux.
    pub architecture: String,
    /// Its digest.
    pub digest: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The image's configuration.
    pub config: Blob,
    /// The configuration and the layers, in this order.
    pub blobs: Vec<Blob>,
    /// The digest of each layer's uncompressed tar, from the lowest layer up.
    pub diff_ids: Vec<String>,
}

/// A blob as a manifest describes it.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Its digest.
    pub digest: String,
    /// Its length in bytes.
    pub size: u64,
}

impl Blob {
    /// What a file holds.
    pub fn of_file(path: &Path) -> anyhow::Result<Self> {
        let mut hasher = Hasher::default();
        let size = std::io::copy(&mut File::open(path)?, &mut hasher)?;
        Ok(Self { digest: hasher.digest(), size })
    }
}
