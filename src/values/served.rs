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

impl Served {
    /// The value of `X-Stopover`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Miss => "miss",
        }
    }

    /// What a value of `X-Stopover` says.
    pub fn of(text: &str) -> Option<Self> {
        [Self::Hit, Self::Revalidated, Self::Stale, Self::Miss].into_iter().find(|served| served.as_str() == text)
    }
}
