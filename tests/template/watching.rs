//! Logs, alarms and the dashboard.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{at, root, template, texts};

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
        let missing = if name == "SweepAlarm" { "breaching" } else { "notBreaching" };
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
