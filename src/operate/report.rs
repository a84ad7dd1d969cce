//! What people are told of quotas, of fills, and of what was removed: the bodies of `/_stopover/…` and the lines of the
//! commands.

use std::fmt;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::Operate;
use crate::errors::StoreError;
use crate::oci::Digest;
use crate::ports::{Priority, Requested};
use crate::records::gauge::{Break, Cause, Gauge};
use crate::records::{BlobRecord, BlobState};
use crate::upstream::Upstream;
use crate::values::time::Timestamp;

/// How many records are read at once for a report.
const READS_AT_ONCE: usize = 8;

/// One upstream as one credential sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct QuotaReport {
    /// The upstream's id.
    pub upstream: String,
    /// Who we are there: a user name, or `anonymous`; absent for guests.
    pub credential: Option<String>,
    /// Pulls in a window; absent where upstream names no limit.
    pub limit: Option<u64>,
    /// Pulls that were left.
    pub remaining: Option<u64>,
    /// Length of the window in seconds.
    pub window_seconds: Option<u64>,
    /// Whose quota: an address, or the id of an account; absent for guests.
    pub source: Option<String>,
    /// When upstream said so, in seconds since the Unix epoch.
    pub observed_at: Option<u64>,
    /// When the quota will be used up, in words.
    pub forecast: String,
    /// What is not asked for now, and why; empty where everything is.
    pub breakers: Vec<BreakerReport>,
}

/// One breaker that is open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BreakerReport {
    /// `manifests`, or `everything`.
    pub stops: String,
    /// Why.
    pub cause: String,
    /// Seconds until upstream is asked again.
    pub seconds_left: u64,
}

impl QuotaReport {
    /// The report on an upstream.
    pub fn new(upstream: &Upstream, gauge: &Gauge, now: Timestamp) -> Self {
        let quota = gauge.quota.as_ref();
        let open = |stops: &str, broken: &Option<Break>| {
            broken.as_ref().filter(|broken| now < broken.until).map(|broken| BreakerReport {
                stops: stops.to_owned(),
                cause: match &broken.cause {
                    Cause::Limited(limit) => format!("upstream limits our {limit}"),
                    Cause::Failing(reason) => reason.clone(),
                },
                seconds_left: broken.until.after(now).as_secs(),
            })
        };
        Self {
            upstream: upstream.id().to_string(),
            credential: Some(upstream.gauge_key().credential.clone()),
            limit: quota.map(|quota| quota.limit),
            remaining: quota.map(|quota| quota.reading.remaining),
            window_seconds: quota.map(|quota| quota.window_seconds),
            source: quota.and_then(|quota| quota.source.clone()),
            observed_at: quota.map(|quota| quota.reading.at.0),
            forecast: gauge.forecast(now),
            breakers: [open("manifests", &gauge.manifests), open("everything", &gauge.requests)]
                .into_iter()
                .flatten()
                .collect(),
        }
    }

    /// Without what only operators may know: who we are, and in what words upstream fails.
    #[must_use]
    pub fn for_guests(mut self) -> Self {
        for breaker in &mut self.breakers {
            breaker.cause = "the operator of this cache sees why".into();
        }
        Self { credential: None, source: None, ..self }
    }
}

impl std::fmt::Display for QuotaReport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.upstream)?;
        if let Some(credential) = &self.credential {
            write!(formatter, " as {credential}")?;
        }
        formatter.write_str(": ")?;
        match (self.limit, self.remaining, self.window_seconds) {
            (Some(limit), Some(remaining), Some(window)) => {
                write!(formatter, "{remaining} of {limit} pulls left in {} h", window.div_ceil(3600))?;
                if let Some(source) = &self.source {
                    write!(formatter, " ({source})")?;
                }
                write!(formatter, ", {}", self.forecast)?;
            }
            _ => write!(formatter, "{}", self.forecast)?,
        }
        for breaker in &self.breakers {
            write!(
                formatter,
                "; {} not asked for another {} s: {}",
                breaker.stops, breaker.seconds_left, breaker.cause
            )?;
        }
        Ok(())
    }
}

/// What a sweep or a purge has removed, or a dry run would.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SweepReport {
    /// How many records of tags went, and of what was asked for in vain.
    pub tags: usize,
    /// The manifests that went, as `repository@digest`.
    pub manifests: Vec<String>,
    /// How many permissions to read a blob went.
    pub memberships: usize,
    /// How many blobs went.
    pub blobs: usize,
    /// How many bytes they had.
    pub freed_bytes: u64,
    /// How many bytes of blobs stay.
    pub kept_bytes: u64,
    /// How many records said what was not so (a fill that died, bytes that are gone), and no longer do.
    pub repaired: usize,
}

impl fmt::Display for SweepReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for manifest in &self.manifests {
            writeln!(formatter, "{manifest}")?;
        }
        writeln!(
            formatter,
            "{} tags, {} manifests, {} memberships and {} blobs; {} bytes freed, {} kept; {} records repaired",
            self.tags,
            self.manifests.len(),
            self.memberships,
            self.blobs,
            self.freed_bytes,
            self.kept_bytes,
            self.repaired
        )
    }
}

/// What has become of a fill.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FillState {
    /// It has not begun.
    Waiting,
    /// Bytes are being copied.
    Running,
    /// It failed, and is tried again by itself.
    Resting,
    /// It failed, and is tried again only when somebody asks.
    Failed,
    /// The blob is stored.
    Stored,
}

/// One fill as operators see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FillStatus {
    /// The blob.
    pub digest: Digest,
    /// Whose credentials fetch it, as `upstream/name`; absent where a stored blob was not requested lately.
    pub repository: Option<String>,
    /// Its length in bytes.
    pub size: u64,
    /// Who waits for it; absent as the repository is.
    pub priority: Option<Priority>,
    /// What has become of it.
    pub state: FillState,
    /// How many bytes are here.
    pub written: u64,
    /// How many attempts have begun.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub failure: Option<String>,
}

impl FillStatus {
    /// The report on a requested fill, from what the record of its blob says at `now`.
    pub fn new(requested: Requested, record: Option<&BlobRecord>, now: Timestamp) -> Self {
        let Requested { job, written, given_up } = requested;
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

/// A number of bytes as people read it, in powers of 1000 as registries and disks count.
pub struct Bytes(pub u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")].into_iter().find(|unit| unit.0 <= self.0);
        match unit {
            Some((unit, name)) => write!(formatter, "{}.{} {name}", self.0 / unit, self.0 % unit / (unit / 10)),
            None => write!(formatter, "{} B", self.0),
        }
    }
}

impl Operate {
    /// The fills that were requested and have not ended well, in no particular order.
    pub async fn fill_reports(&self) -> Result<Vec<FillStatus>, StoreError> {
        let reports = self.core.fills.list().await?.into_iter().map(|requested| self.report(requested));
        let reports: Vec<FillStatus> = stream::iter(reports).buffer_unordered(READS_AT_ONCE).try_collect().await?;
        Ok(reports.into_iter().filter(|report| report.state != FillState::Stored).collect())
    }

    /// What has become of one blob. `None`: it is not stored, and no fill of it is known.
    pub async fn fill_report(&self, digest: &Digest) -> Result<Option<FillStatus>, StoreError> {
        if let Some(requested) = self.core.fills.list().await?.into_iter().find(|known| known.job.digest == *digest) {
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
        Ok(self.core.blobs.size(digest).await?.map(stored))
    }

    async fn report(&self, requested: Requested) -> Result<FillStatus, StoreError> {
        let view = self.core.ledger.blob(&requested.job.repository, &requested.job.digest).await?;
        Ok(FillStatus::new(requested, view.record.as_ref().map(|record| &record.value), self.core.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Repository};
    use crate::ports::{GivenUp, Job};

    fn requested(given_up: Option<&str>) -> Requested {
        let repository = Repository { upstream: "test.local".parse().unwrap(), name: "team/app".parse().unwrap() };
        let digest = Digest::of(Algorithm::Sha256, b"layer");
        let job = Job { repository, digest, size: 12_345_678, priority: Priority::Prefetch };
        Requested { job, written: 0, given_up: given_up.map(|reason| GivenUp { reason: Some(reason.into()) }) }
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
        assert_eq!(format!("{} {} {}", Bytes(999), Bytes(1000), Bytes(2_999_999_999)), "999 B 1.0 kB 2.9 GB");
    }
}
