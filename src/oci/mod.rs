//! The protocol's vocabulary (OCI distribution and image specifications 1.1): pure, synchronous, no I/O.
//!
//! Everything a client or an upstream sends is parsed into these types once, at the edge. Past this module no string
//! carries a name, a tag or a digest.

mod digest;
mod error_code;
mod lists;
mod manifest;
mod name;
mod observed;
mod place;
mod platform;
mod range;
mod reference;
mod request;

pub use digest::{Algorithm, Digest, Hasher, InvalidDigest, hexadecimal};
pub use error_code::ErrorCode;
pub use lists::{Descriptors, Selected, Tags, UnsortedTags};
pub use manifest::{Child, Descriptor, InvalidManifest, MAX_MANIFEST_BYTES, MAX_NAMED, Manifest, MediaType};
pub use name::{InvalidName, Name, Repository, UpstreamId};
pub use observed::Observed;
pub use place::Place;
pub use platform::{InvalidPlatform, Platform, Platforms};
pub use range::{ByteRange, RequestedRange};
pub use reference::{InvalidReference, InvalidTag, Reference, Tag};
pub use request::{InvalidRequest, Operation, Page, Request};
