//! Errors that more than one room speaks of, down here so that no room has to know another for its errors' sake.

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
pub use storage::{Failure, StoreError, chain};
pub use upstream::{Limit, UpstreamError};
