//! Reports on fills: the bodies of `/_stopover/fills…`, and the lines that the commands print.

use std::cmp::Reverse;
use std::fmt;
use std::future::ready;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::Operate;
use super::report::{Bytes, FOR_OPERATORS};
use crate::errors::StoreError;
use crate::oci::{Digest, Platforms, Reference, Repository};
use crate::ports::{ImageJob, Listed, Priority, Requested};
use crate::records::{BlobRecord, BlobState};
use crate::values::time::Timestamp;

/// How many records are read at once for a report.
const READS_AT_ONCE: usize = 8;

/// The state of a fill, in the order of how urgent it is to show them: what is under way first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FillState {
    /// Bytes are being copied.
    Running,
    /// The fill has not begun.
    Waiting,
    /// The last attempt failed; the queue makes another one.
    Resting,
    /// The fill was given up; it is tried again only on request.
    Failed,
    /// The blob is stored.
    Stored,
}

/// A fill as operators see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FillStatus {
    /// The digest of the blob.
    pub digest: Digest,
    /// The repository whose credentials fetch it, as `upstream/name`; absent for a stored blob without a recent
    /// request.
    pub repository: Option<String>,
    /// Its length in bytes.
    pub size: u64,
    /// The priority of the request; absent where `repository` is.
    pub priority: Option<Priority>,
    /// How far the fill has come.
    pub state: FillState,
    /// How many bytes are stored so far.
    pub written: u64,
    /// How many attempts have begun.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub failure: Option<String>,
}

impl FillStatus {
    /// Reports on a requested fill, from the record of its blob at `now`.
    pub fn new(requested: Requested, record: Option<&BlobRecord>, now: Timestamp) -> Self {
        let Requested { job, written, given_up, .. } = requested;
        let failure = record.and_then(|record| record.failure.clone());
        let state = match record.map(|record| &record.state) {
            Some(BlobState::Stored { .. }) => FillState::Stored,
            _ if given_up.is_some() => FillState::Failed,
            Some(BlobState::Claimed { until, .. }) if now < *until => FillState::Running,
            _ if failure.is_some() => FillState::Resting,
            _ => FillState::Waiting,
        };
        let kept = record.and_then(|record| record.checkpoint.as_ref()).map_or(0, |checkpoint| checkpoint.offset);
        Self {
            digest: job.digest,
            repository: Some(job.repository.to_string()),
            size: job.size,
            priority: Some(job.priority),
            state,
            written: if state == FillState::Stored { job.size } else { written.max(kept) },
            attempts: record.map_or(0, |record| record.attempts),
            failure: given_up.and_then(|given_up| given_up.reason).or(failure),
        }
    }

    /// Leaves out what only operators may see: the upstream's error texts.
    #[must_use]
    pub fn for_callers(self) -> Self {
        let failure = self.failure.map(|_| FOR_OPERATORS.into());
        Self { failure, ..self }
    }
}

impl std::fmt::Display for FillStatus {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (state, size) = (format!("{:?}", self.state).to_lowercase(), Bytes(self.size));
        write!(formatter, "{state}: ")?;
        if let Some(repository) = &self.repository {
            write!(formatter, "{repository}@")?;
        }
        write!(formatter, "{}, ", self.digest)?;
        match self.state {
            FillState::Stored => write!(formatter, "{size}")?,
            _ => write!(formatter, "{} of {size}", Bytes(self.written))?,
        }
        if let Some(priority) = self.priority {
            write!(formatter, ", {}", format!("{priority:?}").to_lowercase())?;
        }
        match (&self.failure, self.attempts) {
            (Some(failure), attempts) if self.state == FillState::Running => {
                write!(formatter, ", attempt {attempts}, the one before failed: {failure}")
            }
            (Some(failure), attempts) => write!(formatter, ", attempt {attempts} failed: {failure}"),
            (None, attempts) if attempts > 1 => write!(formatter, ", attempt {attempts}"),
            _ => Ok(()),
        }
    }
}

/// An image that was given up, as operators see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ImageStatus {
    /// `upstream/name:tag`, or `upstream/name@digest`.
    pub image: String,
    /// Which of its children were to be stored.
    pub platforms: Platforms,
    /// The priority of the request.
    pub priority: Priority,
}

impl From<ImageJob> for ImageStatus {
    fn from(ImageJob { repository, reference, platforms, priority, .. }: ImageJob) -> Self {
        let mark = if matches!(reference, Reference::Tag(_)) { ':' } else { '@' };
        Self { image: format!("{repository}{mark}{reference}"), platforms, priority }
    }
}

impl fmt::Display for ImageStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let priority = format!("{:?}", self.priority).to_lowercase();
        write!(formatter, "failed: image {}, {priority}: the log says why", self.image)
    }
}

/// The body of `GET /_stopover/fills`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FillReport {
    /// The fills that were requested and have not succeeded, in no particular order.
    pub fills: Vec<FillStatus>,
    /// The images that were given up.
    #[serde(default)]
    pub images: Vec<ImageStatus>,
    /// How many fills and images there are besides.
    #[serde(default)]
    pub more: usize,
}

/// What operators do where this process neither fills nor sweeps.
pub const ELSEWHERE: &str = "another process does that here: operators invoke the filler function, with \
                             `{\"fills\": \"list\"}` for what was given up";

impl Operate {
    /// What was requested and has not succeeded.
    pub async fn fill_reports(&self) -> Result<FillReport, StoreError> {
        self.fills_seen(|_| true, usize::MAX).await
    }

    /// The same of repositories that a caller sees, so many fills and images at most: first the fills that run, then those
    /// that were given up, then those that have come furthest.
    pub async fn fills_seen(&self, sees: impl Fn(&Repository) -> bool, most: usize) -> Result<FillReport, StoreError> {
        let Listed { mut fills, mut images } = self.core.storage.fills.list().await?;
        fills.retain(|fill| sees(&fill.job.repository));
        images.retain(|image| sees(&image.repository));
        fills.sort_by_key(|fill| (!fill.runs_here, fill.given_up.is_none(), Reverse(fill.written)));
        let mut left = fills.len();
        let reports = stream::iter(fills.into_iter().map(|requested| self.report(requested))).buffered(READS_AT_ONCE);
        let counted = reports.inspect(|_| left -= 1);
        // A fill that has just ended is listed for a moment.
        let unfinished = counted.try_filter(|report| ready(report.state != FillState::Stored));
        let fills: Vec<FillStatus> = unfinished.take(most).try_collect().await?;
        let more = left + images.len().saturating_sub(most);
        images.truncate(most);
        Ok(FillReport { fills, images: images.into_iter().map(ImageStatus::from).collect(), more })
    }

    /// The fill of one blob. `None`: the blob is not stored, and no fill of it is known.
    pub async fn fill_report(&self, digest: &Digest) -> Result<Option<FillStatus>, StoreError> {
        if let Some(requested) =
            self.core.storage.fills.list().await?.fills.into_iter().find(|known| known.job.digest == *digest)
        {
            return self.report(requested).await.map(Some);
        }
        let stored = |size| FillStatus {
            digest: digest.clone(),
            repository: None,
            size,
            priority: None,
            state: FillState::Stored,
            written: size,
            attempts: 0,
            failure: None,
        };
        Ok(self.core.storage.blobs.size(digest).await?.map(stored))
    }

    async fn report(&self, requested: Requested) -> Result<FillStatus, StoreError> {
        let view = self.core.storage.ledger.blob(&requested.job.repository, &requested.job.digest).await?;
        Ok(FillStatus::new(requested, view.record.as_ref().map(|record| &record.value), self.core.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::ports::{GivenUp, Job};

    fn requested(given_up: Option<&str>) -> Requested {
        let repository = Repository { upstream: "test.local".parse().unwrap(), name: "team/app".parse().unwrap() };
        let digest = Digest::of(Algorithm::Sha256, b"layer");
        let job = Job { repository, digest, size: 12_345_678, priority: Priority::Prefetch, payer: None };
        let given_up = given_up.map(|reason| GivenUp { reason: Some(reason.into()) });
        Requested { job, runs_here: false, written: 0, given_up }
    }

    #[test]
    fn what_has_become_of_a_fill_is_read_from_its_record() {
        let now = Timestamp(1000);
        let record = |state| BlobRecord { attempts: 2, ..BlobRecord::new(state) };
        let claimed = |until| record(BlobState::Claimed { owner: "a".into(), until: Timestamp(until) });
        let failed = BlobRecord { failure: Some("broke off".into()), ..record(BlobState::Absent) };
        for (given_up, record, expected) in [
            (None, None, FillState::Waiting),
            (None, Some(claimed(1001)), FillState::Running),
            (None, Some(claimed(1000)), FillState::Waiting),
            (None, Some(failed.clone()), FillState::Resting),
            (Some("why"), Some(failed), FillState::Failed),
            (Some("why"), Some(record(BlobState::Stored { size: 1 })), FillState::Stored),
        ] {
            let status = FillStatus::new(requested(given_up), record.as_ref(), now);
            assert_eq!(status.state, expected, "{status:?}");
        }
    }

    #[test]
    fn a_fill_is_one_line_with_readable_sizes_and_the_reason_of_its_failure() {
        let status = FillStatus::new(requested(Some("not found")), None, Timestamp(0));
        let digest = &status.digest;
        assert_eq!(
            status.to_string(),
            format!("failed: test.local/team/app@{digest}, 0 B of 12.3 MB, prefetch, attempt 0 failed: not found")
        );
        let stored = FillStatus { repository: None, priority: None, state: FillState::Stored, failure: None, ..status };
        assert_eq!(stored.to_string(), format!("stored: {}, 12.3 MB", stored.digest));
    }
}
