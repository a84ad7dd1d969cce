//! Metrics: lines in the log that CloudWatch counts (embedded metric format). A count is a line, and no call of a service.
//!
//! Warm answers, which are nearly all, are no line each: API Gateway counts requests already. The names are those of
//! `docs/reference/template.md`; the alarms and the dashboard of the template use them. Dimensions are the stack and the
//! upstreams of the configuration: nothing that a caller or an upstream writes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::Response;
use serde_json::{Value, json};
use stopover::errors::Limit;
use stopover::journal::Metric;
use stopover::records::gauge::Cause;
use stopover::upstream::{UpstreamNews, Upstreams};
use stopover::values::served::Served;
use stopover::values::time::{Clock, Timestamp};

fn unit(metric: Metric) -> &'static str {
    match metric {
        Metric::FilledBytes => "Bytes",
        Metric::QuotaLeftPercent => "Percent",
        _ => "Count",
    }
}

/// A metric and its value.
type Counted = (Metric, u64);

/// Counts, for the deployment that this function belongs to (`STOPOVER_STACK`); outside of one nothing.
pub fn count(counted: &[Counted]) {
    count_of(None, counted, &[]);
}

/// Counts for all of the deployment, and of one upstream.
fn count_of(upstream: Option<&str>, counted: &[Counted], of_upstream: &[Counted]) {
    if counted.is_empty() && of_upstream.is_empty() {
        return;
    }
    let Some(stack) = std::env::var("STOPOVER_STACK").ok().filter(|stack| !stack.is_empty()) else { return };
    write(&line(&stack, upstream, Clock::default().system_time(), counted, of_upstream));
}

#[expect(clippy::print_stdout, reason = "tracing would put it into a member of its own line")]
fn write(line: &Value) {
    println!("{line}");
}

/// It has the highest level, or Lambda's filter by level would drop it with `LogLevel: ERROR`.
fn line(stack: &str, upstream: Option<&str>, now: SystemTime, counted: &[Counted], of_upstream: &[Counted]) -> Value {
    let milliseconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let groups = [(&["Stack"][..], counted), (&["Stack", "Upstream"][..], of_upstream)];
    let groups = groups.into_iter().filter(|(_, counted)| !counted.is_empty()).map(|(dimensions, counted)| {
        let names = counted.iter().map(|(metric, _)| json!({ "Name": format!("{metric:?}"), "Unit": unit(*metric) }));
        json!({ "Namespace": "Stopover", "Dimensions": [dimensions], "Metrics": names.collect::<Vec<_>>() })
    });
    let mut line = json!({
        "timestamp": humantime::format_rfc3339_millis(now).to_string(),
        "level": "FATAL",
        "_aws": {
            "Timestamp": u64::try_from(milliseconds).unwrap_or_default(),
            "CloudWatchMetrics": groups.collect::<Vec<_>>(),
        },
        "Stack": stack,
    });
    if let Some(members) = line.as_object_mut() {
        members.extend(upstream.map(|upstream| ("Upstream".to_owned(), json!(upstream))));
        members.extend(counted.iter().chain(of_upstream).map(|(metric, count)| (format!("{metric:?}"), json!(count))));
    }
    line
}

/// Counts what upstreams have sent and said since this was last called. `cost`: something was asked of one, or could not
/// be; warm answers say nothing of breakers.
pub fn count_upstreams(upstreams: &Upstreams, cost: bool) {
    for news in upstreams.take_news() {
        let (counted, of_upstream) = counted_of(&news, cost);
        count_of(Some(&news.upstream.to_string()), &counted, &of_upstream);
    }
}

fn counted_of(news: &UpstreamNews<'_>, cost: bool) -> (Vec<Counted>, Vec<Counted>) {
    let broken = news.broken.as_ref().filter(|_| cost);
    // Whatever it said before, and even where it never names numbers.
    let empty = broken.is_some_and(|broken| broken.cause == Cause::Limited(Limit::Pulls));
    let said = news.quota.as_ref().map(|quota| (quota.reading.remaining, quota.limit));
    let quota = if empty { Some((0, 1)) } else { said.filter(|(_, limit)| *limit > 0) };
    let pulls = (news.pulls > 0).then_some((Metric::PullsSpent, news.pulls));
    let percent = quota.map(|(left, limit)| (Metric::QuotaLeftPercent, left.saturating_mul(100) / limit.max(1)));
    let left = quota.map(|(left, _)| (Metric::QuotaLeft, left));
    let open = broken.map(|_| (Metric::BreakerOpen, 1));
    (pulls.into_iter().chain(percent).collect(), left.into_iter().chain(open).collect())
}

/// Whether an answer is the trace of something that was asked of an upstream, or could not be.
#[must_use]
pub fn has_cost(answer: &Response) -> bool {
    costs(answer, false).next().is_some()
}

/// What an answer counts as. Hits are not counted: API Gateway counts requests already.
fn costs(answer: &Response, pull: bool) -> impl Iterator<Item = Metric> {
    let served = answer.headers().get("x-stopover").and_then(|value| Served::of(value.to_str().ok()?));
    Metric::of_answer(answer.status().as_u16(), served, pull).filter(|metric| *metric != Metric::Hits)
}

/// Counts how requests are answered.
#[derive(Debug, Default)]
pub struct Answers {
    /// Pulls that were saved and are in no line yet.
    saved: Mutex<Saved>,
}

#[derive(Debug, Default)]
struct Saved {
    pulls: u64,
    written_at: Option<Timestamp>,
}

/// Warm manifests are a line only so often. A process that ends takes those of less than this time with it.
const SAVED_AGAIN: Duration = Duration::from_mins(1);

impl Saved {
    /// How many are to be written now. `writes`: a line is written anyway.
    fn due(&mut self, writes: bool, now: Timestamp) -> Option<Counted> {
        let due = self.pulls > 0 && (writes || self.written_at.is_none_or(|at| now >= at.plus(SAVED_AGAIN)));
        if !due {
            return None;
        }
        self.written_at = Some(now);
        Some((Metric::PullsSaved, std::mem::take(&mut self.pulls)))
    }
}

impl Answers {
    /// Counts how a request was answered. `pull`: it asked for a manifest, with GET.
    pub fn count(&self, answer: &Response, pull: bool) {
        let (pulls, costs): (Vec<_>, Vec<_>) = costs(answer, pull).partition(|metric| *metric == Metric::PullsSaved);
        let mut counted: Vec<Counted> = costs.into_iter().map(|metric| (metric, 1)).collect();
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        saved.pulls += pulls.len() as u64;
        counted.extend(saved.due(!counted.is_empty(), Clock::default().now()));
        drop(saved);
        count(&counted);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stopover::records::gauge::{Break, Quota, Reading};

    use super::Metric::{BreakerOpen, PullsSaved, PullsSpent, QuotaLeft, QuotaLeftPercent};
    use super::*;

    /// The specification of the embedded metric format, version 0: metrics are members of the line, and so are dimensions.
    #[test]
    fn a_count_is_one_line_of_the_embedded_metric_format_that_no_level_drops() {
        let now = UNIX_EPOCH + Duration::from_millis(1_795_780_800_123);
        let line = line("cache", None, now, &[(Metric::Fills, 1), (Metric::FilledBytes, 7)], &[]);
        assert_eq!((&line["level"], &line["timestamp"]), (&json!("FATAL"), &json!("2026-11-27T12:00:00.123Z")));
        assert_eq!((&line["Fills"], &line["FilledBytes"], &line["Stack"]), (&json!(1), &json!(7), &json!("cache")));
        assert_eq!(line["_aws"]["Timestamp"], 1_795_780_800_123_u64);
        let metrics = json!([{ "Name": "Fills", "Unit": "Count" }, { "Name": "FilledBytes", "Unit": "Bytes" }]);
        let expected = json!([{ "Namespace": "Stopover", "Dimensions": [["Stack"]], "Metrics": metrics }]);
        assert_eq!(line["_aws"]["CloudWatchMetrics"], expected);
    }

    #[test]
    fn what_an_upstream_said_is_a_metric_of_the_stack_and_of_its_id() {
        let upstream = "docker.io".parse().unwrap();
        let at = Timestamp(1000);
        let quota = |remaining, limit| {
            Some(Quota { limit, reading: Reading { remaining, at }, window_seconds: 21_600, source: Some("x".into()) })
        };
        let broken = |cause| Some(Break { since: at, until: at, failures: 3, cause });
        let failing = || broken(Cause::Failing("what it wrote".into()));
        let news = |pulls, quota, broken| UpstreamNews { upstream: &upstream, pulls, quota, broken };
        for (news, cost, of_stack, of_upstream) in [
            (news(0, None, None), true, vec![], vec![]),
            (news(2, quota(76, 200), None), false, vec![PullsSpent, QuotaLeftPercent], vec![(QuotaLeft, 76)]),
            (news(0, quota(7, 0), None), true, vec![], vec![]),
            (news(0, None, failing()), true, vec![], vec![(BreakerOpen, 1)]),
            (news(0, None, failing()), false, vec![], vec![]),
            (
                news(0, quota(9, 100), broken(Cause::Limited(Limit::Pulls))),
                true,
                vec![QuotaLeftPercent],
                vec![(QuotaLeft, 0), (BreakerOpen, 1)],
            ),
        ] {
            let (counted, upstreams) = counted_of(&news, cost);
            let names: Vec<Metric> = counted.iter().map(|(metric, _)| *metric).collect();
            assert_eq!((names, upstreams), (of_stack, of_upstream));
        }
        let (counted, of_upstream) = counted_of(&news(2, quota(76, 200), failing()), true);
        let line = line("cache", Some("docker.io"), UNIX_EPOCH, &counted, &of_upstream);
        let directives = &line["_aws"]["CloudWatchMetrics"];
        assert_eq!(
            (&directives[0]["Dimensions"], &directives[1]["Dimensions"]),
            (&json!([["Stack"]]), &json!([["Stack", "Upstream"]]))
        );
        assert_eq!(
            (&line["Upstream"], &line["QuotaLeftPercent"], &line["PullsSpent"]),
            (&json!("docker.io"), &json!(38), &json!(2))
        );
        assert!(!line.to_string().contains("what it wrote"), "{line}");
    }

    #[test]
    fn pulls_that_were_saved_are_a_line_of_their_own_once_a_minute() {
        let mut saved = Saved::default();
        assert_eq!(saved.due(true, Timestamp(1000)), None);
        saved.pulls = 1;
        assert_eq!(saved.due(false, Timestamp(1000)), Some((PullsSaved, 1)));
        saved.pulls = 5;
        assert_eq!(saved.due(false, Timestamp(1059)), None);
        assert_eq!(saved.due(false, Timestamp(1060)), Some((PullsSaved, 5)));
        saved.pulls = 2;
        assert_eq!(saved.due(true, Timestamp(1061)), Some((PullsSaved, 2)));
        assert_eq!(saved.due(false, Timestamp(2000)), None);
    }

    #[test]
    fn answers_that_cost_something_are_counted_and_warm_ones_are_not() {
        for (status, served, costs) in [(200, "hit", false), (401, "", false), (200, "miss", true), (429, "", true)] {
            let answer = axum::http::Response::builder().status(status).header("x-stopover", served);
            assert_eq!(has_cost(&answer.body(axum::body::Body::empty()).unwrap()), costs, "{status} {served}");
        }
    }
}
