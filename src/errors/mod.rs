//! Errors that several rooms share, below them all so that no room imports another for its errors alone.

mod access;
mod budget;
mod fill;
mod pull;
mod storage;
mod upstream;

pub use access::{AccessError, Unreachable};
pub use budget::{Budget, OverBudget};
pub use fill::FillError;
pub use pull::{Answer, PullError};
pub use storage::{Failure, StoreError, beside, chain};
pub use upstream::{Limit, UpstreamError};
