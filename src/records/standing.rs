//! What upstream said of repositories as wholes.

use serde::{Deserialize, Serialize};

use crate::values::time::Timestamp;

/// What upstream last said of a repository as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// That there is none, or none for us.
    Absent {
        /// Until when that is believed without asking again.
        until: Timestamp,
    },
    /// It has shown us something of it. Noted only where it shows that to nobody without credentials.
    Shown {
        /// When.
        at: Timestamp,
        /// From when on that is of no use any more.
        until: Timestamp,
    },
}

impl Standing {
    /// When it is over.
    pub fn until(self) -> Timestamp {
        match self {
            Self::Absent { until } | Self::Shown { until, .. } => until,
        }
    }
}
