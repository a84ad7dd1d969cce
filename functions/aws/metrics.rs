//! Metrics: lines in the log that CloudWatch counts (embedded metric format). A count is a line, and no call of a service.
//!
//! Warm answers, which are nearly all, are not counted: API Gateway counts requests already. The names are those of
//! `docs/reference/metrics.md`; the alarms and the dashboard of the template use them.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::Response;
use serde_json::{Value, json};
use stopover::values::time::Clock;

/// What is counted: the name of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
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
    /// Blobs that were copied.
    Fills,
    /// Their bytes.
    FilledBytes,
    /// Attempts to copy a blob, or to request an image, that failed.
    FailedFills,
    /// Sweeps that have finished.
    Sweeps,
}

impl Metric {
    fn unit(self) -> &'static str {
        if self == Self::FilledBytes { "Bytes" } else { "Count" }
    }
}

/// Counts, for the deployment that this function belongs to (`STOPOVER_STACK`); outside of one nothing.
pub fn count(counted: &[(Metric, u64)]) {
    if counted.is_empty() {
        return;
    }
    let Some(stack) = std::env::var("STOPOVER_STACK").ok().filter(|stack| !stack.is_empty()) else { return };
    write(&line(&stack, Clock::default().system_time(), counted));
}

#[expect(clippy::print_stdout, reason = "tracing would put it into a member of its own line")]
fn write(line: &Value) {
    println!("{line}");
}

/// It has the highest level, or Lambda's filter by level would drop it with `LogLevel: ERROR`.
fn line(stack: &str, now: SystemTime, counted: &[(Metric, u64)]) -> Value {
    let milliseconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let names = counted.iter().map(|(metric, _)| json!({ "Name": format!("{metric:?}"), "Unit": metric.unit() }));
    let mut line = json!({
        "timestamp": humantime::format_rfc3339_millis(now).to_string(),
        "level": "FATAL",
        "_aws": {
            "Timestamp": u64::try_from(milliseconds).unwrap_or_default(),
            "CloudWatchMetrics": [{ "Namespace": "Stopover", "Dimensions": [["Stack"]], "Metrics": names.collect::<Vec<_>>() }],
        },
        "Stack": stack,
    });
    if let Some(members) = line.as_object_mut() {
        members.extend(counted.iter().map(|(metric, count)| (format!("{metric:?}"), json!(count))));
    }
    line
}

/// Counts how a request was answered.
pub fn count_answer(answer: &Response) {
    let served = answer.headers().get("x-stopover").and_then(|value| value.to_str().ok());
    count(&counted(answer.status().as_u16(), served.unwrap_or_default()));
}

fn counted(status: u16, served: &str) -> Vec<(Metric, u64)> {
    let how = match served {
        "miss" => Some(Metric::Misses),
        "revalidated" => Some(Metric::Revalidated),
        "stale" => Some(Metric::Stale),
        _ => None,
    };
    let refused = match status {
        429 => Some(Metric::Refused),
        500.. => Some(Metric::Failed),
        _ => None,
    };
    how.into_iter().chain(refused).map(|metric| (metric, 1)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The specification of the embedded metric format, version 0: metrics are members of the line, and so are dimensions.
    #[test]
    fn a_count_is_one_line_of_the_embedded_metric_format_that_no_level_drops() {
        let now = UNIX_EPOCH + Duration::from_millis(1_795_780_800_123);
        let line = line("cache", now, &[(Metric::Fills, 1), (Metric::FilledBytes, 7)]);
        assert_eq!((&line["level"], &line["timestamp"]), (&json!("FATAL"), &json!("2026-11-27T12:00:00.123Z")));
        assert_eq!((&line["Fills"], &line["FilledBytes"], &line["Stack"]), (&json!(1), &json!(7), &json!("cache")));
        assert_eq!(line["_aws"]["Timestamp"], 1_795_780_800_123_u64);
        let metrics = json!([{ "Name": "Fills", "Unit": "Count" }, { "Name": "FilledBytes", "Unit": "Bytes" }]);
        let expected = json!([{ "Namespace": "Stopover", "Dimensions": [["Stack"]], "Metrics": metrics }]);
        assert_eq!(line["_aws"]["CloudWatchMetrics"], expected);
    }

    #[test]
    fn answers_that_cost_something_are_counted_and_warm_ones_are_not() {
        for (status, served, expected) in [
            (200, "hit", vec![]),
            (401, "", vec![]),
            (200, "miss", vec![Metric::Misses]),
            (404, "miss", vec![Metric::Misses]),
            (200, "revalidated", vec![Metric::Revalidated]),
            (200, "stale", vec![Metric::Stale]),
            (429, "", vec![Metric::Refused]),
            (503, "miss", vec![Metric::Misses, Metric::Failed]),
        ] {
            let metrics: Vec<Metric> = counted(status, served).into_iter().map(|(metric, _)| metric).collect();
            assert_eq!(metrics, expected, "{status} {served}");
        }
    }
}
