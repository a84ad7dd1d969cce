//! Reports on quotas, fills and removals: the bodies of `/_stopover/…`, and the lines that the commands print.

use std::fmt;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::Operate;
use crate::errors::StoreError;
use crate::oci::{Digest, Platforms, Reference, Repository};
use crate::ports::{ImageJob, Listed, Priority, Requested};
use crate::records::gauge::{Break, Gauge};
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
    /// Our account at the upstream: a user name, or `anonymous`. Absent unless an operator asks.
    pub credential: Option<String>,
    /// Pulls allowed per window; absent where upstream names no limit.
    pub limit: Option<u64>,
    /// Pulls left in the window, as of `observed_at`.
    pub remaining: Option<u64>,
    /// Length of the window in seconds.
    pub window_seconds: Option<u64>,
    /// Whose quota it is: an IP address, or the id of an account. Absent unless an operator asks.
    pub source: Option<String>,
    /// When upstream last reported this, in seconds since the Unix epoch.
    pub observed_at: Option<u64>,
    /// A sentence that says when the quota will be used up.
    pub forecast: String,
    /// The open breakers; empty while upstream is asked for everything.
    pub breakers: Vec<BreakerReport>,
}

/// One breaker that is open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BreakerReport {
    /// What is not asked for: `manifests`, or `everything`.
    pub stops: String,
    /// Why it opened: the limit that upstream named, or how upstream fails.
    pub cause: String,
    /// Seconds until upstream is asked again.
    pub seconds_left: u64,
}

impl QuotaReport {
    /// Reports on an upstream, from its gauge at `now`.
    pub fn new(upstream: &Upstream, gauge: &Gauge, now: Timestamp) -> Self {
        let quota = gauge.quota.as_ref();
        let open = |stops: &str, broken: &Option<Break>| {
            broken.as_ref().filter(|broken| now < broken.until).map(|broken| BreakerReport {
                stops: stops.to_owned(),
                cause: broken.cause.to_string(),
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

    /// Leaves out what only operators may see: our account, its address, and the upstream's error texts.
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

/// The most manifests that a report names. With the longest names it has 3 MB; an answer of Lambda may have 6.
pub const MOST_NAMED: usize = 5000;

/// What a sweep or a purge has removed, or what a dry run would remove.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SweepReport {
    /// How many tag records and remembered 404s were removed.
    pub tags: usize,
    /// The manifests that were removed, as `repository@digest`: no more than [`MOST_NAMED`] of them.
    pub manifests: Vec<String>,
    /// How many more manifests were removed.
    #[serde(default)]
    pub unnamed: usize,
    /// How many memberships were removed.
    pub memberships: usize,
    /// How many blobs were removed.
    pub blobs: usize,
    /// How many bytes the removed blobs had.
    pub freed_bytes: u64,
    /// How many bytes of blobs are kept.
    pub kept_bytes: u64,
    /// How many blob records contradicted the store (a fill that died, bytes that are gone) and were corrected.
    pub repaired: usize,
    /// How many items of the ledger cannot be read, and stay as they are: the log names them.
    #[serde(default)]
    pub unreadable: usize,
}

impl SweepReport {
    /// Counts a manifest, and names it if there is room.
    pub(crate) fn add_manifest(&mut self, repository: &Repository, digest: &Digest) {
        if self.manifests.len() < MOST_NAMED {
            self.manifests.push(format!("{repository}@{digest}"));
        } else {
            self.unnamed += 1;
        }
    }

    /// How many manifests were removed.
    pub fn manifest_count(&self) -> usize {
        self.manifests.len() + self.unnamed
    }
}

impl fmt::Display for SweepReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for manifest in &self.manifests {
            writeln!(formatter, "{manifest}")?;
        }
        if self.unnamed > 0 {
            writeln!(formatter, "and {} more manifests", self.unnamed)?;
        }
        writeln!(
            formatter,
            "{} tags, {} manifests, {} memberships and {} blobs; {} bytes freed, {} kept; {} records repaired",
            self.tags,
            self.manifest_count(),
            self.memberships,
            self.blobs,
            self.freed_bytes,
            self.kept_bytes,
            self.repaired
        )?;
        if self.unreadable > 0 {
            writeln!(formatter, "{} items of the ledger cannot be read, and stay: see the log", self.unreadable)?;
        }
        Ok(())
    }
}

/// What the last sweep of a process has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastSweep {
    /// When it finished.
    pub at: Timestamp,
    /// How many bytes the removed blobs had.
    pub freed_bytes: u64,
    /// How many bytes of blobs are kept.
    pub kept_bytes: u64,
}

/// The state of a fill.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FillState {
    /// The fill has not begun.
    Waiting,
    /// Bytes are being copied.
    Running,
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
}

/// A number of bytes for people to read, in powers of 1000 as registries and disks count.
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
    /// What was requested and has not succeeded.
    pub async fn fill_reports(&self) -> Result<FillReport, StoreError> {
        let Listed { fills, images } = self.core.fills.list().await?;
        let reports = fills.into_iter().map(|requested| self.report(requested));
        let mut fills: Vec<FillStatus> = stream::iter(reports).buffer_unordered(READS_AT_ONCE).try_collect().await?;
        fills.retain(|report| report.state != FillState::Stored);
        Ok(FillReport { fills, images: images.into_iter().map(ImageStatus::from).collect() })
    }

    /// The fill of one blob. `None`: the blob is not stored, and no fill of it is known.
    pub async fn fill_report(&self, digest: &Digest) -> Result<Option<FillStatus>, StoreError> {
        if let Some(requested) =
            self.core.fills.list().await?.fills.into_iter().find(|known| known.job.digest == *digest)
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
    use crate::oci::Algorithm;
    use crate::ports::{GivenUp, Job};

    fn requested(given_up: Option<&str>) -> Requested {
        let repository = Repository { upstream: "test.local".parse().unwrap(), name: "team/app".parse().unwrap() };
        let digest = Digest::of(Algorithm::Sha256, b"layer");
        let job = Job { repository, digest, size: 12_345_678, priority: Priority::Prefetch, payer: None };
        Requested { job, written: 0, given_up: given_up.map(|reason| GivenUp { reason: Some(reason.into()) }) }
    }

    #[test]
    fn a_report_on_however_much_fits_into_an_answer_of_lambda() {
        let name = ["a"; 128].join("/");
        let repository = Repository { upstream: "u".repeat(60).parse().unwrap(), name: name.parse().unwrap() };
        let (mut report, digest) = (SweepReport::default(), Digest::of(Algorithm::Sha512, b""));
        for _ in 0..3 * MOST_NAMED {
            report.add_manifest(&repository, &digest);
        }
        assert_eq!((report.manifests.len(), report.unnamed), (MOST_NAMED, 2 * MOST_NAMED));
        assert!(serde_json::to_string(&report).unwrap().len() < 6_000_000);
        let lines = report.to_string();
        assert!(lines.contains("\nand 10000 more manifests\n0 tags, 15000 manifests,"));
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
