//! What upstream said of a repository as a whole.

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
    /// Upstream has shown us content of it. Noted only for repositories that upstream hides from anonymous clients.
    Shown {
        /// When it did so last.
        at: Timestamp,
        /// When the record may be forgotten.
        until: Timestamp,
    },
}

impl Standing {
    /// When the record expires.
    pub fn until(self) -> Timestamp {
        match self {
            Self::Absent { until } | Self::Shown { until, .. } => until,
        }
    }
}
