//! wip
pub mod clients;
pub mod images;
mod layer;
pub mod program;
pub mod registry;

pub use layer::Random;
