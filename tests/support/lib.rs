//! What the tests stand on: upstreams, AWS-compatible endpoints, the Lambda Runtime API, the program and real clients.

pub mod aws;
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
