//! What was counted, in the text format of Prometheus (exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use super::Operate;
use crate::errors::Limit;
use crate::journal::Metric;
use crate::oci::UpstreamId;
use crate::ports::Load;
use crate::records::gauge::{Cause, Gauge, Kind, Permit};

impl Operate {
    /// The metrics of this process, of the upstreams whose state and whose counts the caller sees. Nothing is asked for
    /// them.
    pub fn metrics(&self, sees: impl Fn(&UpstreamId) -> bool, sees_counts: impl Fn(&UpstreamId) -> bool) -> String {
        let (core, now) = (&self.core, self.core.clock.now());
        let journal = &core.journal;
        let is_family =
            |upstream: &UpstreamId| core.config.upstreams.get(upstream).is_some_and(|config| config.family.is_some());
        let mut text = Text::default();
        let version = [(env!("CARGO_PKG_VERSION"), 1)];
        text.by("version", "stopover_build_info", "gauge", "The version of the program.", version);
        text.plain("stopover_start_time_seconds", "gauge", "When the process started.", journal.started_at.0);
        let used = journal.counters().filter(|(upstream, counters)| !(is_family(upstream) && counters.is_empty()));
        let used: BTreeMap<_, _> = used.filter(|(upstream, _)| sees_counts(upstream)).collect();
        let other = journal.of(None);
        for (metric, help) in self.counted() {
            let by_upstream = used.iter().map(|(upstream, counters)| (upstream.as_str(), counters.get(metric)));
            // Answers to what is no request for a repository.
            let others = matches!(metric, Metric::Refused | Metric::Failed).then(|| ("other", other.get(metric)));
            let name = format!("{}_total", metric.in_prometheus());
            text.by("upstream", &name, "counter", help, by_upstream.chain(others));
        }
        let gauges = core
            .upstreams
            .known_gauges()
            .filter(|(upstream, gauge)| sees(upstream) && !(is_family(upstream) && *gauge == Gauge::default()));
        // An upstream may be asked as several accounts: the one that has least left, and any that is not asked.
        let mut accounts: BTreeMap<&UpstreamId, Account> = BTreeMap::new();
        for (upstream, gauge) in gauges {
            let Account { left, open } = accounts.entry(upstream).or_default();
            let said = gauge.quota.as_ref().map(|quota| (quota.reading.remaining, quota.percent()));
            let (found, is_open) = match gauge.permit(Kind::Manifest, now) {
                // Whatever it said before, and even where it never names numbers.
                Permit::Closed(broken) if broken.cause == Cause::Limited(Limit::Pulls) => (Some((0, 0)), true),
                Permit::Closed(_) => (said, true),
                Permit::Go | Permit::Probe(_) => (said, false),
            };
            *left = left.iter().copied().chain(found).min();
            *open |= is_open;
        }
        let by_upstream = |value: fn(&Account) -> Option<u64>| {
            accounts.iter().filter_map(move |(upstream, account)| Some((upstream.as_str(), value(account)?)))
        };
        let name = Metric::QuotaLeft.in_prometheus();
        let help = "Pulls that are left of the quota, as upstream last said.";
        text.by("upstream", &name, "gauge", help, by_upstream(|account| Some(account.left?.0)));
        let name = Metric::QuotaLeftPercent.in_prometheus();
        let help = "What is left of the quota, in percent of its window.";
        text.by("upstream", &name, "gauge", help, by_upstream(|account| Some(account.left?.1)));
        let name = Metric::BreakerOpen.in_prometheus();
        let help = "1 while upstream is not asked for manifests, because it limits us or fails.";
        text.by("upstream", &name, "gauge", help, by_upstream(|account| Some(account.open.into())));
        if let Some(Load { running, waiting, resting, oldest }) = core.storage.fills.load() {
            let fills = [("running", running), ("waiting", waiting), ("resting", resting)];
            let help = "Fills that have not ended: that run, wait for a place, or rest after a failure.";
            text.by("state", "stopover_fills_open", "gauge", help, fills);
            let age = oldest.map_or(0, |oldest| now.after(oldest).as_secs());
            let help = "How long ago the oldest of them was requested.";
            text.plain("stopover_oldest_fill_age_seconds", "gauge", help, age);
        }
        let sweeps = format!("{}_total", Metric::Sweeps.in_prometheus());
        text.plain(&sweeps, "counter", "Sweeps that have finished.", other.get(Metric::Sweeps));
        if let Some(swept) = self.last_sweep() {
            let (name, help) = ("stopover_last_sweep_timestamp_seconds", "When the last sweep finished.");
            text.plain(name, "gauge", help, swept.at.0);
            let (name, help) = ("stopover_kept_bytes", "Bytes that are stored, as the last sweep has counted them.");
            text.plain(name, "gauge", help, swept.kept_bytes);
        }
        let help = "1 while the configuration has a mistake or cannot be read, and the one before it is used.";
        text.plain("stopover_configuration_error", "gauge", help, u64::from(journal.is_misconfigured()));
        text.0
    }
}

/// What is known of our accounts at an upstream.
#[derive(Default)]
struct Account {
    /// Of the one that has least left: pulls, and percent of the window.
    left: Option<(u64, u64)>,
    /// Whether one of them is not asked.
    open: bool,
}

/// The text: a head for each metric, and below it a line for each sample.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample for each value of a label.
    fn by<'a, V: Display>(
        &mut self,
        label: &str,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (&'a str, V)>,
    ) {
        self.head(name, kind, help);
        for (labelled, value) in samples {
            let _ = writeln!(self.0, "{name}{{{label}=\"{}\"}} {value}", escaped(labelled));
        }
    }

    fn plain(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }
}

/// The value of a label: backslash, quote and line feed are escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_escaped_and_a_sample_is_one_line() {
        let mut text = Text::default();
        text.by("b", "a_total", "counter", "Help.", [("\\ \" \n", 7), ("d", 8)]);
        text.plain("e", "gauge", "Help.", 1);
        let expected = "# HELP a_total Help.\n# TYPE a_total counter\na_total{b=\"\\\\ \\\" \\n\"} 7\na_total{b=\"d\"} 8\n\
                        # HELP e Help.\n# TYPE e gauge\ne 1\n";
        assert_eq!(text.0, expected);
    }
}
