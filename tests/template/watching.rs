//! Logs, alarms and the dashboard.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use regex::Regex;
use serde_json::{Value, json};

use crate::{at, root, rust_sources, template, texts};

const NAMESPACE: &str = "Stopover";

/// Query strings of clients may hold what opens something, as headers do.
#[test]
fn the_access_log_has_no_query_strings_and_no_headers() -> Result<()> {
    let template = template()?;
    let format = at(&template, "/Resources/HttpApi/Properties/AccessLogSettings/Format");
    let format: BTreeMap<String, String> = serde_json::from_str(format.as_str().context("no text")?)?;
    assert_eq!(format["path"], "$context.path", "the path alone");
    for variable in format.values() {
        let harmless =
            ["requestTime", "identity.", "httpMethod", "path", "status", "response", "integration", "requestId"];
        let name = variable.strip_prefix("$context.").context("no variable")?;
        assert!(harmless.iter().any(|start| name.starts_with(start)), "{variable}");
    }
    Ok(())
}

/// An alarm of DynamoDB keeps its state where there is no data, whatever the alarm says of that.
#[test]
fn every_alarm_ends_without_data_tells_the_topic_and_has_its_paragraph() -> Result<()> {
    let template = template()?;
    let runbook = std::fs::read_to_string(root().join("docs/how-to/alarms.md"))?;
    let resources = at(&template, "/Resources").as_object().context("no resources")?;
    let alarms = resources.iter().filter(|(_, resource)| resource["Type"] == "AWS::CloudWatch::Alarm");
    let mut counted = 0;
    for (name, alarm) in alarms {
        counted += 1;
        let properties = &alarm["Properties"];
        let topic = json!([{ "Fn::If": ["HasAlarmTopic", { "Ref": "AlarmTopicArn" }, { "Ref": "AWS::NoValue" }] }]);
        assert_eq!(properties["AlarmActions"], topic, "{name}");
        let missing = match name.as_str() {
            "SweepAlarm" => "breaching",
            // The functions say when it is over.
            "ConfigurationAlarm" => "ignore",
            _ => "notBreaching",
        };
        assert_eq!(properties["TreatMissingData"], missing, "{name}");
        assert_ne!(properties["Namespace"], "AWS/DynamoDB", "{name}: its state would stay");
        assert!(runbook.contains(&format!("\n## {name}\n")), "docs/how-to/alarms.md has no paragraph {name}");
    }
    let paragraphs = runbook.matches("\n## ").count();
    assert_eq!(paragraphs, counted, "alarms and paragraphs");
    let expression = at(&template, "/Resources/TableThrottlesAlarm/Properties/Metrics/0/Expression");
    assert_eq!(expression, "FILL(reads, 0) + FILL(writes, 0)");
    Ok(())
}

/// The metrics of this namespace that alarms and the dashboard look at, each with its dimensions.
fn watched(template: &Value) -> Result<BTreeSet<(String, Vec<String>)>> {
    let mut watched = BTreeSet::new();
    let mut see = |name: &Value, dimensions: Vec<&str>| -> Result<()> {
        let name = name.as_str().context("a metric whose name is no text")?;
        watched.insert((name.to_owned(), dimensions.into_iter().map(str::to_owned).collect()));
        Ok(())
    };
    for resource in at(template, "/Resources").as_object().into_iter().flat_map(|resources| resources.values()) {
        if resource["Type"] != "AWS::CloudWatch::Alarm" {
            continue;
        }
        // One metric, or several that it computes something from.
        let terms = resource["Properties"]["Metrics"].as_array().into_iter().flatten();
        let metrics = terms.map(|term| &term["MetricStat"]["Metric"]).chain([&resource["Properties"]]);
        for metric in metrics.filter(|metric| metric["Namespace"] == NAMESPACE) {
            let dimensions = texts(&metric["Dimensions"]);
            see(&metric["MetricName"], dimensions.iter().filter_map(|one| one["Name"].as_str()).collect())?;
        }
    }
    let body = at(template, "/Resources/Dashboard/Properties/DashboardBody/Fn::Sub").as_str().context("no text")?;
    let dashboard: Value = serde_json::from_str(body)?;
    let search = Regex::new(r#"^SEARCH\('\{Stopover,([A-Za-z,]+)\} Stack="[^"]+" MetricName="([A-Za-z]+)"'"#)?;
    for metric in texts(&dashboard["widgets"]).iter().flat_map(|widget| texts(&widget["properties"]["metrics"])) {
        if metric[0] == NAMESPACE {
            // Namespace, name, and then pairs of a dimension and its value.
            let dimensions = metric.as_array().into_iter().flatten().skip(2).step_by(2);
            see(&metric[1], dimensions.filter_map(Value::as_str).collect())?;
        } else if let Some(expression) = metric[0]["expression"].as_str() {
            let found = search.captures(expression).with_context(|| format!("not understood: {expression}"))?;
            see(&found[2].into(), found[1].split(',').collect())?;
        }
    }
    Ok(watched)
}

/// The name of a metric is written twice, and nobody but CloudWatch brings both together: what is renamed here would be an
/// alarm that never rings.
#[test]
fn alarms_and_the_dashboard_look_at_metrics_that_the_functions_write() -> Result<()> {
    let template = template()?;
    ensure!(
        !template.to_string().contains("AWS::Logs::MetricFilter"),
        "a text of the log is no name that is compared here"
    );
    let source = std::fs::read_to_string(root().join("src/journal/metric.rs"))?;
    let (_, variants) = source.split_once("pub enum Metric {").context("no metrics")?;
    let (variants, _) = variants.split_once("\n}").context("no end")?;
    let variant = |line: &str| Some(line.trim().strip_suffix(',')?.to_owned());
    let mut unwatched: BTreeSet<String> = variants.lines().filter_map(variant).collect();
    let known = unwatched.clone();
    let mut writers = String::new();
    rust_sources(&root().join("functions"), &mut writers)?;
    for (name, dimensions) in watched(&template)? {
        ensure!(known.contains(&name), "no metric is called {name}");
        unwatched.remove(&name);
        // Those of answers are written as they are counted, whatever they are.
        let of_answer = Regex::new(&format!(r"(?-u)(Some\(|Served::\w+ => )Self::{name}\b"))?.is_match(&source);
        let written = Regex::new(&format!(r"(?-u:\b)Metric::{name}(?-u:\b)"))?.find_iter(&writers).count();
        ensure!(of_answer || written > 0, "no function counts {name}");
        let by_upstream = ["QuotaLeft", "BreakerOpen"].contains(&name.as_str());
        let expected = if by_upstream { vec!["Stack", "Upstream"] } else { vec!["Stack"] };
        assert_eq!(dimensions, expected, "{name}");
    }
    // Hits are what is left of API Gateway's count. A postponed fill is looked for where fills are late. What was saved is
    // in sums that the status shows.
    let expected = ["Hits", "PostponedFills", "SavedBytes"].map(str::to_owned);
    assert_eq!(unwatched, expected.into(), "nobody looks at these");
    Ok(())
}

/// A dashboard is text to CloudFormation: nobody else would find a mistake in it.
#[test]
fn the_dashboard_is_json_and_names_resources_that_there_are() -> Result<()> {
    let template = template()?;
    let body = at(&template, "/Resources/Dashboard/Properties/DashboardBody/Fn::Sub").as_str().context("no text")?;
    let dashboard: Value = serde_json::from_str(body)?;
    assert!(texts(&dashboard["widgets"]).iter().all(|widget| widget["type"] == "metric"));
    for name in body.split("${").skip(1).filter_map(|rest| rest.split(['}', '.']).next()) {
        let known = name.starts_with("AWS::") || template.pointer(&format!("/Resources/{name}")).is_some();
        assert!(known, "{name} is no resource");
    }
    Ok(())
}
