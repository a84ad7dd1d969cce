//! The roles that the template gives the functions, as CloudFormation makes them where every parameter is given.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use serde_yaml_ng::Value as Yaml;
use support::aws::Role;

use crate::deployment::{ACCOUNT, KEYS};
use crate::secrets::HUB;

/// The registry of private ECR whose repositories may be pulled through.
pub(crate) const ECR: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
/// The organisation whose accounts may log in.
pub(crate) const ORGANIZATION: &str = "o-a1b2c3d4e5";

/// The role of a function whose configuration is at this place (`ConfigurationUri`), for the services that stand in for AWS.
pub(crate) fn role(function: &str, configuration: &str) -> Result<Role> {
    let template = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../template.yaml"))?;
    let template: Yaml = serde_yaml_ng::from_str(&template)?;
    let resources = template["Resources"].as_mapping().context("no resources")?;
    let role = format!("{}Role", function.trim_end_matches("Function"));
    let mut policies: Vec<&Yaml> =
        resources[role.as_str()]["Properties"]["Policies"].as_sequence().into_iter().flatten().collect();
    for policy in resources.values().filter(|resource| resource["Type"] == "AWS::IAM::Policy") {
        let roles = policy["Properties"]["Roles"].as_sequence().context("no roles")?;
        if roles.iter().any(|named| reference(named) == Some(&role)) {
            policies.push(&policy["Properties"]);
        }
    }
    let statements = policies.iter().filter_map(|policy| policy["PolicyDocument"]["Statement"].as_sequence()).flatten();
    Ok(Role { statements: statements.map(|statement| resolved(statement, configuration)).collect::<Result<_>>()? })
}

fn reference(yaml: &Yaml) -> Option<&str> {
    match yaml {
        Yaml::Tagged(tagged) if tagged.tag == "Ref" => tagged.value.as_str(),
        _ => None,
    }
}

/// A part of the template as JSON, with what its references mean here.
fn resolved(yaml: &Yaml, configuration: &str) -> Result<Value> {
    Ok(match yaml {
        Yaml::Tagged(tagged) => intrinsic(&tagged.tag.to_string(), &tagged.value, configuration)?,
        Yaml::Sequence(items) => items.iter().map(|item| resolved(item, configuration)).collect::<Result<_>>()?,
        Yaml::Mapping(entries) => {
            let entry = |(key, value): (&Yaml, &Yaml)| {
                Ok((key.as_str().context("no text")?.to_owned(), resolved(value, configuration)?))
            };
            Value::Object(entries.iter().map(entry).collect::<Result<_>>()?)
        }
        scalar => serde_json::to_value(scalar)?,
    })
}

/// What a function of CloudFormation returns.
fn intrinsic(name: &str, argument: &Yaml, configuration: &str) -> Result<Value> {
    let given = if argument.as_str().is_some() { Value::Null } else { resolved(argument, configuration)? };
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    Ok(match name {
        "!Ref" | "!GetAtt" => meaning(argument.as_str().context("no name")?, configuration)?,
        "!Sub" => {
            let pattern = argument.as_str().map_or_else(|| text(&given[0]), |pattern| Ok(pattern.to_owned()))?;
            let mut parts = pattern.split("${");
            let mut whole = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                let (name, rest) = part.split_once('}').context("no end")?;
                let own = given.get(1).and_then(|names| names.get(name)).cloned();
                whole.push_str(&text(&own.map_or_else(|| meaning(name, configuration), Ok)?)?);
                whole.push_str(rest);
            }
            whole.into()
        }
        "!Split" => {
            let (separator, whole) = (text(&given[0])?, text(&given[1])?);
            whole.split(&separator).map(Value::from).collect()
        }
        "!Select" => {
            let at = usize::try_from(given[0].as_u64().context("no number")?)?;
            given[1].get(at).cloned().with_context(|| format!("nothing is at {at}: {given}"))?
        }
        other => bail!("not modelled: {other}"),
    })
}

fn meaning(name: &str, configuration: &str) -> Result<Value> {
    let queue = |name: &str| format!("arn:aws:sqs:us-east-1:000000000000:{name}").into();
    Ok(match name {
        "Table.Arn" => "arn:aws:dynamodb:us-east-1:000000000000:table/stopover-ledger".into(),
        "Bucket.Arn" => "arn:aws:s3:::stopover-blobs".into(),
        "FillQueue.Arn" => queue("stopover-fills"),
        "BackgroundFillQueue.Arn" => queue("stopover-background-fills"),
        "DeadFillQueue.Arn" => queue("stopover-fills-dead"),
        "RegistryLogs.Arn" | "FillerLogs.Arn" => "arn:aws:logs:us-east-1:000000000000:log-group:logs:*".into(),
        "SigningKeys" => KEYS.into(),
        "UpstreamSecretArns" => json!([HUB]),
        "PrivateEcrRepositories" => json!([format!("arn:aws:ecr:us-east-1:{ACCOUNT}:repository/*")]),
        "Organization" => ORGANIZATION.into(),
        "KeyArn" => format!("arn:aws:kms:us-east-1:{ACCOUNT}:key/1-2").into(),
        "ConfigurationUri" => configuration.into(),
        "AWS::Partition" => "aws".into(),
        "AWS::Region" => "us-east-1".into(),
        "AWS::URLSuffix" => "amazonaws.com".into(),
        "AWS::AccountId" => "000000000000".into(),
        _ => bail!("not modelled: {name}"),
    })
}
