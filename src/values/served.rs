//! How an answer came about.

/// How an answer came about; clients see it as `X-Stopover`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// From storage, without upstream.
    Hit,
    /// From storage, after upstream confirmed it.
    Revalidated,
    /// From storage, because upstream could not be asked.
    Stale,
    /// From upstream.
    Miss,
}
