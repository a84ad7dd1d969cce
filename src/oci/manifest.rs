use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::{Descriptors, Digest, InvalidDigest, Platform};
use crate::values::text::{as_text, excerpt};

/// The largest manifest that is stored, in bytes. Registries must accept 4 MiB (distribution-spec 1.1, "Pushing
/// manifests"); containerd, podman and API Gateway take no more.
pub const MAX_MANIFEST_BYTES: usize = 4 * 1024 * 1024;

/// The most blobs that an image may reference, and the most manifests that an index may. Each costs a fill and a
/// record, and a manifest of 4 MiB has room for 40,000. Runtimes stack at most 500 layers (overlayfs); artifacts of
/// several hundred files exist.
pub const MAX_NAMED: usize = 1000;

/// The media type of a manifest, without parameters: one of the four that current clients understand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MediaType {
    /// `application/vnd.oci.image.manifest.v1+json`
    OciManifest,
    /// `application/vnd.oci.image.index.v1+json`
    OciIndex,
    /// `application/vnd.docker.distribution.manifest.v2+json`
    DockerManifest,
    /// `application/vnd.docker.distribution.manifest.list.v2+json`
    DockerList,
}

impl MediaType {
    /// All four, as the value of `Accept`. Registries choose an answer by this header, so it never varies.
    pub const ACCEPT: &'static str = "application/vnd.oci.image.index.v1+json, \
         application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
         application/vnd.docker.distribution.manifest.v2+json";

    /// The media type as it stands in a header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OciManifest => "application/vnd.oci.image.manifest.v1+json",
            Self::OciIndex => "application/vnd.oci.image.index.v1+json",
            Self::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    /// Whether it lists manifests instead of blobs.
    pub fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }
}

impl FromStr for MediaType {
    type Err = InvalidManifest;

    fn from_str(text: &str) -> Result<Self, InvalidManifest> {
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        [Self::OciManifest, Self::OciIndex, Self::DockerManifest, Self::DockerList]
            .into_iter()
            .find(|known| known.as_str() == essence)
            .ok_or_else(|| InvalidManifest::MediaType(excerpt(&essence)))
    }
}

as_text!(MediaType);

/// A reference from a manifest to content (image-spec 1.1, "Descriptor").
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// The address of the content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// A foreign layer: clients fetch it from its `urls`, which this cache never follows, so it is not copied ahead of
    /// demand.
    pub foreign: bool,
}

/// A manifest that an index lists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Child {
    /// The address of the manifest.
    pub digest: Digest,
    /// Its platform, where the index names one. Attestations have `unknown/unknown`.
    pub platform: Option<Platform>,
}

/// A manifest exactly as upstream sent it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// The address of `bytes`.
    pub digest: Digest,
    /// The media type that upstream sent it with.
    pub media_type: MediaType,
    /// The bytes, never re-serialised.
    pub bytes: Bytes,
}

/// Why bytes are refused as a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    /// More than [`MAX_MANIFEST_BYTES`].
    #[error("the manifest is larger than {MAX_MANIFEST_BYTES} bytes")]
    TooLarge,
    /// More than [`MAX_NAMED`] blobs or manifests.
    #[error("the manifest names {0} blobs or manifests; more than {MAX_NAMED} are not stored")]
    TooMany(usize),
    /// None of the four types of [`MediaType`].
    #[error("media type \"{0}\" is not one of an OCI or Docker (schema 2) manifest or index")]
    MediaType(String),
    /// A byte order mark or bytes that are not UTF-8. API Gateway's text path would change them, and with them the
    /// digest.
    #[error("the manifest is not plain UTF-8 (or begins with a byte order mark)")]
    Encoding,
    /// Not JSON, or without the fields that its media type requires.
    #[error("the manifest is not the JSON its media type promises: {0}")]
    Json(String),
    /// `mediaType` in the body contradicts the header (distribution-spec 1.1, "Pulling manifests").
    #[error("the manifest calls itself \"{body}\" but was sent as \"{header}\"")]
    Contradiction {
        /// The type the body names.
        body: String,
        /// The type the header names.
        header: MediaType,
    },
    /// An image and an index in one: two clients would take it for two different things (CVE-2021-41190).
    #[error("the manifest is an image and an index at once")]
    Ambiguous,
    /// A descriptor whose digest could never be served.
    #[error("the manifest refers to content by an unusable digest: {0}")]
    Digest(#[from] InvalidDigest),
}

impl Manifest {
    /// Accepts bytes whose digest has been verified, if they can be served again unchanged.
    pub fn new(digest: Digest, media_type: MediaType, bytes: Bytes) -> Result<Self, InvalidManifest> {
        let manifest = Self { digest, media_type, bytes };
        let outline = manifest.outline()?;
        let named = usize::from(outline.config.is_some()) + outline.layers.named;
        match named.max(outline.manifests.named) {
            named if named > MAX_NAMED => Err(InvalidManifest::TooMany(named)),
            _ => Ok(manifest),
        }
    }

    /// The blobs an image manifest refers to: its configuration first, then its layers, each digest once. An index has
    /// none: its children are manifests, which are fetched when a client asks for them.
    pub fn blobs(&self) -> Result<Vec<Descriptor>, InvalidManifest> {
        let outline = self.outline()?;
        let (mut blobs, mut known) = (Vec::new(), HashSet::new());
        for described in outline.config.into_iter().chain(outline.layers.kept) {
            let digest = described.digest.parse::<Digest>()?;
            if known.insert(digest.clone()) {
                blobs.push(Descriptor { digest, size: described.size, foreign: described.urls.named > 0 });
            }
        }
        Ok(blobs)
    }

    /// The manifests that an index lists; an image has none. One with a digest that could never be served is left out.
    pub fn children(&self) -> Result<Vec<Child>, InvalidManifest> {
        let listed = self.outline()?.manifests.kept;
        let children = listed.into_iter().filter_map(|listed| {
            let platform = listed.platform.and_then(|platform| {
                Some(Platform::new(&platform.os?, &platform.architecture?, platform.variant.as_deref()))
            });
            Some(Child { digest: listed.digest?.parse().ok()?, platform })
        });
        Ok(children.collect())
    }

    /// The descriptors of an index; an image has none. They are a part of the manifest's bytes, which are not copied.
    pub fn descriptors(&self) -> Result<Descriptors, InvalidManifest> {
        if !self.media_type.is_index() {
            return Ok(Descriptors::default());
        }
        Descriptors::of_index(&self.bytes).map_err(|error| InvalidManifest::json(&error))
    }

    /// The digests that it references: the blobs of an image, the manifests of an index. One that could never be served
    /// is left out.
    pub fn references(&self) -> Result<Vec<Digest>, InvalidManifest> {
        let outline = self.outline()?;
        let described = outline.config.into_iter().chain(outline.layers.kept).map(|described| described.digest);
        let listed = outline.manifests.kept.into_iter().filter_map(|listed| listed.digest);
        Ok(described.chain(listed).filter_map(|digest| digest.parse().ok()).collect())
    }

    fn outline(&self) -> Result<Outline, InvalidManifest> {
        if self.bytes.len() > MAX_MANIFEST_BYTES {
            return Err(InvalidManifest::TooLarge);
        }
        let text = std::str::from_utf8(&self.bytes).map_err(|_| InvalidManifest::Encoding)?;
        if text.starts_with('\u{feff}') {
            return Err(InvalidManifest::Encoding);
        }
        let outline: Outline = serde_json::from_str(text).map_err(|error| InvalidManifest::json(&error))?;
        if let Some(body) = &outline.media_type
            && body != self.media_type.as_str()
        {
            return Err(InvalidManifest::Contradiction { body: excerpt(body), header: self.media_type });
        }
        let missing = |field: &str| Err(InvalidManifest::Json(format!("`{field}` is missing")));
        let (image, index) = (outline.config.is_some() || outline.layers.named > 0, outline.manifests.named > 0);
        match self.media_type.is_index() {
            true if image => Err(InvalidManifest::Ambiguous),
            true if !outline.manifests.written => missing("manifests"),
            false if index => Err(InvalidManifest::Ambiguous),
            false if outline.config.is_none() => missing("config"),
            _ => Ok(outline),
        }
    }
}

impl InvalidManifest {
    fn json(error: &serde_json::Error) -> Self {
        Self::Json(excerpt(error))
    }
}

/// The fields of a manifest or an index that a cache reads. `null` is absence: Go writes it for an empty list
/// (image-spec#1013).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    media_type: Option<String>,
    config: Option<Described>,
    #[serde(default)]
    layers: Bounded<Described>,
    #[serde(default)]
    manifests: Bounded<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    digest: Option<String>,
    platform: Option<ListedPlatform>,
}

#[derive(Deserialize)]
struct ListedPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct Described {
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Bounded<IgnoredAny>,
}

/// A list of which [`MAX_NAMED`] items are kept and the others only counted, so that its memory has a bound.
struct Bounded<T> {
    kept: Vec<T>,
    named: usize,
    /// Whether the field is there, if only with `null`.
    written: bool,
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), named: 0, written: false }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Bounded<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list or null")
            }

            fn visit_unit<E>(self) -> Result<Bounded<T>, E> {
                Ok(Bounded { written: true, ..Bounded::default() })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Bounded<T>, A::Error> {
                let mut read = Bounded { written: true, ..Bounded::default() };
                while read.named < MAX_NAMED
                    && let Some(item) = list.next_element()?
                {
                    read.kept.push(item);
                    read.named += 1;
                }
                while read.named >= MAX_NAMED && list.next_element::<IgnoredAny>()?.is_some() {
                    read.named += 1;
                }
                Ok(read)
            }
        }

        deserializer.deserialize_any(Reader(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn manifest(media_type: MediaType, bytes: &[u8]) -> Result<Manifest, InvalidManifest> {
        Manifest::new(Digest::of(Algorithm::Sha256, bytes), media_type, Bytes::copy_from_slice(bytes))
    }

    fn described(fill: char, size: u64) -> String {
        format!(r#"{{"mediaType":"x","digest":"sha256:{}","size":{size}}}"#, fill.to_string().repeat(64))
    }

    #[test]
    fn the_blobs_of_an_image_are_its_configuration_and_layers_each_once_and_an_index_has_none() {
        let [a, b, c] = [described('a', 1), described('b', 2), described('c', 3)];
        let foreign = c.replace("\"size\"", "\"urls\":[\"https://elsewhere.test/l\"],\"size\"");
        let image = format!(r#"{{"schemaVersion":2,"config":{a},"layers":[{b},{b},{foreign}]}}"#);
        let (index, named) = (format!(r#"{{"manifests":[{a}]}}"#), vec![(1, false), (2, false), (3, true)]);
        for (media_type, body, expected) in [
            (MediaType::OciManifest, &image, named.clone()),
            (MediaType::DockerManifest, &image, named),
            (MediaType::OciIndex, &index, Vec::new()),
        ] {
            let blobs = manifest(media_type, body.as_bytes()).unwrap().blobs().unwrap();
            assert_eq!(blobs.iter().map(|blob| (blob.size, blob.foreign)).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn the_children_of_an_index_are_its_manifests_with_their_platforms() {
        let child = |fill: char, platform: &str| described(fill, 1).replace("\"size\"", &format!("{platform}\"size\""));
        let body = format!(
            r#"{{"manifests":[{},{},{},{}]}}"#,
            child('a', r#""platform":{"os":"linux","architecture":"arm64","variant":"v8"},"#),
            child('b', r#""platform":{"os":"unknown","architecture":"unknown"},"#),
            child('c', ""),
            r#"{"digest":"md5:abc"}"#
        );
        let children = manifest(MediaType::OciIndex, body.as_bytes()).unwrap().children().unwrap();
        let platforms: Vec<_> = children.iter().map(|child| child.platform.as_ref().map(ToString::to_string)).collect();
        assert_eq!(platforms, [Some("linux/arm64".into()), Some("unknown/unknown".into()), None]);
    }

    #[test]
    fn an_image_names_its_blobs_and_an_index_its_manifests() {
        let [a, b] = [described('a', 1), described('b', 1)];
        let image = format!(r#"{{"config":{a},"layers":[{b}]}}"#);
        let index = format!(r#"{{"manifests":[{a},{{"digest":"md5:1"}},{{}},{b}]}}"#);
        for (media_type, body) in [(MediaType::OciManifest, image), (MediaType::OciIndex, index)] {
            let named = manifest(media_type, body.as_bytes()).unwrap().references().unwrap();
            assert_eq!(named.iter().map(|digest| digest.hex().get(..1).unwrap()).collect::<Vec<_>>(), ["a", "b"]);
        }
    }

    #[test]
    fn bytes_that_a_text_path_would_change_are_refused() {
        let good = format!(r#"{{"manifests":[{}]}}"#, described('a', 1));
        for bytes in [
            [b"\xef\xbb\xbf", good.as_bytes()].concat(),
            good.replace('x', "\u{0}").into_bytes().into_iter().map(|b| if b == 0 { 0xff } else { b }).collect(),
        ] {
            assert_eq!(manifest(MediaType::OciIndex, &bytes), Err(InvalidManifest::Encoding));
        }
    }

    #[test]
    fn a_body_that_is_not_what_its_type_promises_is_refused() {
        for body in ["", "<html></html>", "[]", "{}", r#"{"manifests":{}}"#, r#"{"layers":[]}"#] {
            assert!(matches!(manifest(MediaType::OciIndex, body.as_bytes()), Err(InvalidManifest::Json(_))), "{body}");
            assert!(
                matches!(manifest(MediaType::OciManifest, body.as_bytes()), Err(InvalidManifest::Json(_))),
                "{body}"
            );
        }
        let body = format!(r#"{{"mediaType":"{}","manifests":[]}}"#, MediaType::DockerList);
        assert!(matches!(manifest(MediaType::OciIndex, body.as_bytes()), Err(InvalidManifest::Contradiction { .. })));
        assert_eq!(manifest(MediaType::OciIndex, &vec![b' '; MAX_MANIFEST_BYTES + 1]), Err(InvalidManifest::TooLarge));
    }

    #[test]
    fn a_manifest_that_names_more_than_a_thousand_things_is_refused() {
        let image = |layers: usize| {
            format!(r#"{{"config":{},"layers":[{}]}}"#, described('a', 1), vec![described('b', 1); layers].join(","))
        };
        let index = |children: usize| format!(r#"{{"manifests":[{}]}}"#, vec![described('a', 1); children].join(","));
        for (media_type, most, more) in [
            (MediaType::OciManifest, image(MAX_NAMED - 1), image(MAX_NAMED)),
            (MediaType::DockerManifest, image(MAX_NAMED - 1), image(25_000)),
            (MediaType::OciIndex, index(MAX_NAMED), index(MAX_NAMED + 1)),
        ] {
            assert!(manifest(media_type, most.as_bytes()).is_ok());
            let refused = manifest(media_type, more.as_bytes());
            assert!(matches!(refused, Err(InvalidManifest::TooMany(named)) if named > MAX_NAMED), "{refused:?}");
        }
    }

    #[test]
    fn parameters_of_a_media_type_are_dropped_and_unknown_types_refused() {
        assert_eq!("application/vnd.oci.image.index.v1+json; charset=utf-8".parse(), Ok(MediaType::OciIndex));
        for text in ["text/html", "application/vnd.docker.distribution.manifest.v1+prettyjws", "application/json", ""] {
            assert!(matches!(text.parse::<MediaType>(), Err(InvalidManifest::MediaType(_))), "{text}");
        }
    }
}
