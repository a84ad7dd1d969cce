//! The names of what is counted, and the counters of a process.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::values::served::Served;

/// What is counted: the name of a metric, in CloudWatch as it stands here. Prometheus has it as
/// [`Self::in_prometheus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Requests that were answered from the cache.
    Hits,
    /// Requests for which upstream was asked for something that was not there.
    Misses,
    /// Requests for which upstream was asked whether it is still the same.
    Revalidated,
    /// Requests that got what upstream said last, because it is in trouble.
    Stale,
    /// Answers 429: a budget or a quota is used up.
    Refused,
    /// Answers 5xx.
    Failed,
    /// Manifests that upstreams have sent: what quotas count.
    PullsSpent,
    /// Manifests that clients got and upstream did not send.
    PullsSaved,
    /// Bytes of blobs that clients got and that were stored before.
    SavedBytes,
    /// Blobs that were copied.
    Fills,
    /// Their bytes.
    FilledBytes,
    /// Attempts to copy a blob, or to request an image, that failed.
    FailedFills,
    /// Fills that were put back, because as many as may run at their upstream.
    PostponedFills,
    /// Sweeps that have finished.
    Sweeps,
    /// The configuration has a mistake, or cannot be read: one each time that a function finds it so, and 0 once it is
    /// right again.
    ConfigurationErrors,
    /// What is left of the quota of an upstream.
    QuotaLeft,
    /// The same, of what there is in a window.
    QuotaLeftPercent,
    /// An upstream is not asked, because it limits us or fails.
    BreakerOpen,
}

impl Metric {
    /// The metrics that are counted by upstream, each with what it says.
    pub const BY_UPSTREAM: [(Self, &'static str); 12] = [
        (Self::Hits, "Requests that were answered from the cache."),
        (Self::Misses, "Requests for which upstream was asked for something that was not there."),
        (Self::Revalidated, "Requests for which upstream was asked whether it is still the same."),
        (Self::Stale, "Requests that got what upstream said last, because it is in trouble."),
        (Self::Refused, "Answers 429: a budget or a quota is used up."),
        (Self::Failed, "Answers 5xx."),
        (Self::PullsSpent, "Manifests that upstream has sent: what quotas count."),
        (Self::PullsSaved, "Manifests that clients got and upstream did not send."),
        (Self::SavedBytes, "Bytes of blobs that clients got and that were stored before."),
        (Self::Fills, "Blobs that were copied."),
        (Self::FilledBytes, "Bytes of blobs that were copied."),
        (Self::FailedFills, "Attempts to copy a blob that failed."),
    ];

    /// What requests count as that were answered with what is stored.
    pub const STORED: [Self; 3] = [Self::Hits, Self::Revalidated, Self::Stale];

    /// Whether it is counted by the process that fills.
    pub const fn is_of_fills(self) -> bool {
        matches!(self, Self::Fills | Self::FilledBytes | Self::FailedFills | Self::PostponedFills)
    }

    /// What an answer counts as. `served`: how it came about, if it is about content. `pull`: it answers GET of a manifest.
    pub fn of_answer(status: u16, served: Option<Served>, pull: bool) -> impl Iterator<Item = Self> {
        let how = served.map(|served| match served {
            Served::Hit => Self::Hits,
            Served::Miss => Self::Misses,
            Served::Revalidated => Self::Revalidated,
            Served::Stale => Self::Stale,
        });
        let refused = match status {
            429 => Some(Self::Refused),
            500.. => Some(Self::Failed),
            _ => None,
        };
        let is_saved = pull && (200..300).contains(&status) && how.is_some_and(|how| how != Self::Misses);
        how.into_iter().chain(refused).chain(is_saved.then_some(Self::PullsSaved))
    }

    /// Its name in Prometheus: `PullsSpent` is `stopover_pulls_spent`; a counter ends in `_total` there.
    pub fn in_prometheus(self) -> String {
        format!("stopover_{}", self.in_status())
    }

    /// The metric that is counted by upstream and has this name in a status.
    pub fn named(name: &str) -> Option<Self> {
        Self::BY_UPSTREAM.into_iter().map(|(metric, _)| metric).find(|metric| metric.in_status() == name)
    }

    /// Its name in a status: `PullsSpent` is `pulls_spent`.
    pub fn in_status(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }
}

/// One number for each metric.
type Numbers = [AtomicU64; Metric::BreakerOpen as usize + 1];

/// One counter for each metric.
#[derive(Debug, Default)]
pub struct Counters {
    counted: Numbers,
    /// How much of that was taken.
    taken: Numbers,
}

impl Counters {
    /// Counts.
    pub fn add(&self, metric: Metric, count: u64) {
        if let Some(counter) = self.counted.get(metric as usize) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// How much was counted.
    pub fn get(&self, metric: Metric) -> u64 {
        self.counted.get(metric as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// How much was counted since this was last called, by one caller at a time.
    pub(super) fn take(&self, metric: Metric) -> u64 {
        let counted = self.get(metric);
        let taken = self.taken.get(metric as usize).map_or(counted, |taken| taken.swap(counted, Ordering::Relaxed));
        counted.saturating_sub(taken)
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.counted.iter().all(|counter| counter.load(Ordering::Relaxed) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::Metric::{self, Failed, Hits, Misses, PullsSaved, Refused, Revalidated, Stale};
    use super::Served;

    #[test]
    fn an_answer_counts_as_how_it_came_about_and_a_pull_that_upstream_did_not_send_as_saved() {
        for (status, served, expected) in [
            (200, Some(Served::Hit), vec![Hits, PullsSaved]),
            (404, Some(Served::Hit), vec![Hits]),
            (401, None, vec![]),
            (200, Some(Served::Miss), vec![Misses]),
            (404, Some(Served::Miss), vec![Misses]),
            (200, Some(Served::Revalidated), vec![Revalidated, PullsSaved]),
            (200, Some(Served::Stale), vec![Stale, PullsSaved]),
            (304, Some(Served::Revalidated), vec![Revalidated]),
            (429, None, vec![Refused]),
            (503, Some(Served::Miss), vec![Misses, Failed]),
        ] {
            let counted = |pull| Metric::of_answer(status, served, pull).collect::<Vec<_>>();
            assert_eq!(counted(true), expected, "{status} {served:?}");
            let others: Vec<Metric> = expected.into_iter().filter(|metric| *metric != PullsSaved).collect();
            assert_eq!(counted(false), others, "{status} {served:?}");
        }
    }

    #[test]
    fn a_metric_has_one_name_in_two_spellings() {
        assert_eq!(Metric::PullsSpent.in_prometheus(), "stopover_pulls_spent");
        assert_eq!(Metric::Fills.in_prometheus(), "stopover_fills");
        for (metric, _) in Metric::BY_UPSTREAM {
            assert_eq!(Metric::named(&metric.in_status()), Some(metric));
        }
        assert_eq!((Metric::named("PullsSpent"), Metric::named("sweeps")), (None, None));
    }
}
