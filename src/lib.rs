//! Stopover: a pull-through cache for container registries.
//!
//! The rooms (top-level modules), from the edges down. A room imports only rooms below it (`tests/rooms.rs` enforces
//! that):
//!
//! 1. [`http`]: a request arrives, and the answer is built. [`local`]: the embedded storage. (The package `functions` has
//!    the edges on AWS: S3, `DynamoDB` and SQS.)
//! 2. [`cache`]: everything below, joined.
//! 3. [`operate`]: what operators do: retention, reports, robots.
//! 4. [`prefetch`]: whole images, before a client pulls them.
//! 5. [`pull`]: THE READ PATH: manifest by tag, manifest by digest, blob, list.
//! 6. [`fill`]: THE WRITE PATH: one blob from upstream into storage.
//! 7. [`membership`]: which repositories stored content may be served for.
//! 8. [`core`]: settings, upstreams and storage, shared by all of the paths above.
//! 9. [`upstream`]: requests to registries. [`budget`]: what callers may spend. [`access`]: which caller asks. [`setup`]:
//!    what clients are told.
//! 10. [`ports`]: the interfaces of storage. [`config`]: `stopover.toml`.
//! 11. [`records`]: what the ledger keeps, each record with its pure rules. [`journal`]: what a process has counted, and what
//!     has failed in it. [`identity`]: principals, networks, rules.
//! 12. [`errors`], [`values`], [`oci`]: the ground.

pub mod access;
pub mod budget;
pub mod cache;
pub mod config;
pub mod core;
pub mod errors;
pub mod fill;
pub mod http;
pub mod identity;
pub mod journal;
#[cfg(feature = "local")]
pub mod local;
pub mod membership;
pub mod oci;
pub mod operate;
pub mod ports;
pub mod prefetch;
pub mod pull;
pub mod records;
pub mod setup;
pub mod upstream;
pub mod values;
