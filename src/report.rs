//! What people are told: of quotas (the body of `GET /_stopover/quota`, the lines of `stopover quota`), and of what was
//! removed (`POST /_stopover/gc` and `/purge`, `stopover gc` and `purge`).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::gauge::{Break, Cause, Gauge};
use crate::time::Timestamp;
use crate::upstream::Upstream;

/// One upstream as one credential sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct QuotaReport {
    /// The upstream's id.
    pub upstream: String,
    /// Who we are there: a user name, or `anonymous`.
    pub credential: String,
    /// Pulls in a window; absent where upstream names no limit.
    pub limit: Option<u64>,
    /// Pulls that were left.
    pub remaining: Option<u64>,
    /// Length of the window in seconds.
    pub window_seconds: Option<u64>,
    /// Whose quota: an address, or the id of an account.
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
            credential: upstream.credential().to_owned(),
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
}

impl std::fmt::Display for QuotaReport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} as {}: ", self.upstream, self.credential)?;
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
