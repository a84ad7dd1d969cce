//! What upstream said of a repository as a whole.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::values::time::Timestamp;

/// Whether upstream shows us a repository, as it last said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// There is no such repository, or upstream does not show it to us.
    Absent {
        /// Until when that is believed without asking again.
        until: Timestamp,
    },
    /// Upstream has shown us content of it.
    Shown {
        /// When it did so last.
        at: Timestamp,
        /// When the record may be forgotten.
        until: Timestamp,
    },
}

impl Standing {
    /// Whether the repository exists although upstream has just called it absent: something of it was shown `lately`,
    /// so that what was said is about the one thing that was asked for. Each process notes that something was shown
    /// only if that was last noted half of `lately` ago.
    pub fn is_shown(self, lately: Duration, now: Timestamp) -> bool {
        matches!(self, Self::Shown { at, .. } if now < at.plus(lately + lately / 2))
    }

    /// When the record expires.
    pub fn until(self) -> Timestamp {
        match self {
            Self::Absent { until } | Self::Shown { until, .. } => until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_exists_as_long_as_something_of_it_was_shown_lately() {
        let (at, lately) = (Timestamp(1_000_000), Duration::from_mins(5));
        let shown = Standing::Shown { at, until: at.plus(lately) };
        let absent = Standing::Absent { until: at.plus(lately) };
        for (seconds, is_shown) in [(0, true), (300, true), (449, true), (450, false)] {
            let now = Timestamp(at.0 + seconds);
            assert_eq!((shown.is_shown(lately, now), absent.is_shown(lately, now)), (is_shown, false), "{seconds}");
        }
    }
}
