//! What the tests stand on: upstreams, AWS-compatible endpoints, the Lambda Runtime API, the program and real clients.

pub mod aws;
pub mod browser;
pub mod clients;
pub mod daemon;
pub mod document;
mod filler;
pub mod guests;
pub mod images;
pub mod issuer;
pub mod lambda;
mod layer;
mod loopback;
pub mod neighbours;
pub mod node;
pub mod openapi;
pub mod program;
pub mod registry;
pub mod scripted;
pub mod secrets;
mod sha256;
pub mod tls;
pub mod vast;
pub mod wire;
pub mod world;

pub use layer::Random;

/// The Python that `make setup` has installed libraries for: those of the machine's own would be there by chance.
pub const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.venv/bin/python3");

/// A client as most tests want it. All begin with `http_client`, because reqwest has no TLS of its own.
///
/// # Panics
///
/// If the certificates of the system cannot be read.
pub fn http() -> reqwest::Client {
    stopover::values::crypto::http_client().build().expect("a client without settings")
}

/// GET of a URL.
///
/// # Errors
///
/// If nothing answers.
pub async fn get(url: impl reqwest::IntoUrl) -> reqwest::Result<reqwest::Response> {
    http().get(url).send().await
}
