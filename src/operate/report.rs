//! Reports on quotas and removals: the bodies of `/_stopover/…`, and the lines that the commands print.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Repository};
use crate::records::gauge::{Break, Gauge};
use crate::upstream::Upstream;
use crate::values::time::Timestamp;

/// What callers read instead of the error texts of upstreams.
pub(super) const FOR_OPERATORS: &str = "the operator of this cache sees why";

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
    pub fn for_callers(mut self) -> Self {
        for breaker in &mut self.breakers {
            breaker.cause = FOR_OPERATORS.into();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

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
    fn bytes_are_counted_as_registries_and_disks_do() {
        assert_eq!(format!("{} {} {}", Bytes(999), Bytes(1000), Bytes(2_999_999_999)), "999 B 1.0 kB 2.9 GB");
    }
}
