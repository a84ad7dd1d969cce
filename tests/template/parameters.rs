//! What a deployment may choose, and what it gets if it chooses nothing.

use std::process::Command;

use anyhow::{Context as _, Result};
use regex::Regex;
use serde_json::{Value, json};

use crate::{at, root, template, texts};

/// With a load balancer or a name of its own there is no other way to the cache.
#[test]
fn a_cache_has_one_address() -> Result<()> {
    let template = template()?;
    let api = at(&template, "/Resources/HttpApi/Properties");
    assert_eq!(api["DisableExecuteApiEndpoint"], json!({ "Fn::If": ["HasName", true, false] }));
    let needs_name = at(&template, "/Rules/ALoadBalancerHasItsNameAndNetworks/Assertions/0/Assert");
    assert_eq!(needs_name, &json!({ "Fn::Not": [{ "Fn::Equals": [{ "Ref": "DomainName" }, ""] }] }));
    for part in ["LoadBalancer", "LoadBalancerGroup", "Listener", "TargetGroup", "LoadBalancerPermission"] {
        assert_eq!(at(&template, &format!("/Resources/{part}/Condition")), "Private");
    }
    assert_eq!(at(&template, "/Resources/LoadBalancer/Properties/Scheme"), "internal");
    let attributes = at(&template, "/Resources/TargetGroup/Properties/TargetGroupAttributes");
    assert_eq!(attributes, &json!([{ "Key": "lambda.multi_value_headers.enabled", "Value": "true" }]));
    Ok(())
}

#[test]
fn wrong_parameters_are_refused_by_their_patterns() -> Result<()> {
    let template = template()?;
    for (parameter, good, bad) in [
        ("ConfigurationUri", "ssm:/stopover/prod", "ssm:stopover"),
        ("ConfigurationUri", "s3://bucket/a/stopover.toml", "s3://bucket/a//stopover.toml"),
        ("ConfigurationUri", "", "s3://bucket/*"),
        ("ConfigurationUri", "s3://bucket/key", "https://bucket/key"),
        ("ClientCidrs", "10.0.0.0/16,100.64.0.0/10", "10.0.0.0/16, 100.64.0.0/10"),
        ("ClientCidrs", "10.0.0.0/8", "0.0.0.0/0"),
        (
            "ClientCidrs",
            "10.1.0.0/16,10.2.0.0/16,10.3.0.0/16,10.4.0.0/16",
            "10.1.0.0/16,10.2.0.0/16,10.3.0.0/16,10.4.0.0/16,10.5.0.0/16",
        ),
        ("DomainName", "cache.example.com", "https://cache.example.com"),
        (
            "CertificateArn",
            "arn:aws:acm:eu-west-1:123456789012:certificate/1-2",
            "arn:aws:iam::123456789012:server-certificate/a",
        ),
        ("VpcId", "vpc-0123456789abcdef0", "subnet-0123456789abcdef0"),
        ("SubnetIds", "subnet-0123456789abcdef0", "vpc-0123456789abcdef0"),
        ("KeyArn", "arn:aws:kms:eu-west-1:123456789012:key/1-2", "arn:aws:kms:eu-west-1:123456789012:alias/a"),
        ("AlarmTopicArn", "arn:aws:sns:eu-west-1:123456789012:alarms", "arn:aws:sqs:eu-west-1:123456789012:alarms"),
        ("PermissionsBoundaryArn", "arn:aws:iam::123456789012:policy/a/b", "arn:aws:iam::123456789012:role/a"),
        ("RolePath", "/platform/", "platform"),
        // 0 switches a function off. The filler works off two queues, each of which takes two at least.
        ("RegistryReservedConcurrency", "-1", "0"),
        ("RegistryReservedConcurrency", "1", "00"),
        ("RegistryReservedConcurrency", "10000", "10001"),
        ("FillerReservedConcurrency", "-1", "0"),
        ("FillerReservedConcurrency", "4", "3"),
        ("FillerReservedConcurrency", "10", "-2"),
    ] {
        let pattern = at(&template, &format!("/Parameters/{parameter}/AllowedPattern"));
        let pattern = Regex::new(pattern.as_str().context("no text")?)?;
        assert!(pattern.is_match(good), "{parameter} refuses {good:?}");
        assert!(!pattern.is_match(bad), "{parameter} takes {bad:?}");
    }
    Ok(())
}

#[test]
fn every_parameter_is_described_and_has_its_group() -> Result<()> {
    let template = template()?;
    let parameters = at(&template, "/Parameters").as_object().context("no parameters")?;
    let groups = texts(at(&template, "/Metadata/AWS::CloudFormation::Interface/ParameterGroups"));
    let grouped: Vec<&str> =
        groups.iter().flat_map(|group| texts(&group["Parameters"])).filter_map(Value::as_str).collect();
    assert_eq!(grouped.len(), parameters.len(), "one is in two groups, or in none");
    let reference = std::fs::read_to_string(root().join("docs/reference/template.md"))?;
    for (name, parameter) in parameters {
        assert!(reference.contains(&format!("`{name}`")), "docs/reference/template.md has no {name}");
        assert!(grouped.contains(&name.as_str()), "{name} is in no group");
        assert!(parameter["Description"].as_str().is_some_and(|text| text.len() > 10), "{name} is not described");
        assert!(parameter.get("Default").is_some(), "{name} has to be given");
        let bounds = ["AllowedPattern", "AllowedValues", "MaxValue"];
        assert!(bounds.iter().any(|bound| parameter.get(*bound).is_some()), "{name} may be anything");
    }
    Ok(())
}

#[test]
fn a_deployment_is_never_open_to_the_world_by_default() -> Result<()> {
    let template = template()?;
    let networks = at(&template, "/Parameters/AnonymousCidrs");
    assert_eq!(networks["Default"], "", "nobody without a login");
    let pattern = networks["AllowedPattern"].as_str().context("no pattern")?;
    let pattern = Regex::new(pattern)?;
    for (network, accepted) in [
        ("", true),
        ("10.0.0.0/8", true),
        ("203.0.113.7/32", true),
        ("2001:db8::/32", true),
        ("0.0.0.0/0", false),
        ("::/0", false),
        ("0.0.0.0/00", false),
        ("10.0.0.0", false),
        ("10.0.0.0/8 0.0.0.0/0", false),
        ("10.0.0.0/8\n0.0.0.0/0", false),
    ] {
        assert_eq!(pattern.is_match(network), accepted, "{network:?}");
    }
    let variables = at(&template, "/Globals/Function/Environment/Variables");
    assert_eq!(variables["STOPOVER_ANONYMOUS_CIDRS"], json!({ "Fn::Join": [",", { "Ref": "AnonymousCidrs" }] }));
    assert_eq!(variables["STOPOVER_ACCOUNT"], json!({ "Ref": "AWS::AccountId" }));
    let service = "stopover:${AWS::AccountId}:${AWS::Region}:${AWS::StackName}";
    assert_eq!(variables["STOPOVER_SERVICE"], json!({ "Fn::Sub": service }), "no other stack has it");
    assert_eq!(at(&template, "/Outputs/Service/Value"), &variables["STOPOVER_SERVICE"]);
    let configuration = std::fs::read_to_string(root().join("infra/config/stopover.toml"))?;
    let written = configuration.lines().filter(|line| !line.trim_start().starts_with('#'));
    assert!(!written.collect::<String>().contains("access"), "the defaults hold until somebody chooses");
    assert!(template.pointer("/Resources/HttpApi/Properties/CorsConfiguration").is_none());
    for block in ["BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"] {
        let path = format!("/Resources/Bucket/Properties/PublicAccessBlockConfiguration/{block}");
        assert_eq!(at(&template, &path), true);
    }
    Ok(())
}

/// Examples hand the template and the zips of a release to CloudFormation.
#[test]
fn the_examples_deploy_what_a_release_has() -> Result<()> {
    let template = template()?;
    let names = Regex::new(r#"(?m)^ {4,8}"?([A-Z][A-Za-z]+)"? *[=:] "#)?;
    for example in ["terraform/main.tf", "cdk/app.py"] {
        let text = std::fs::read_to_string(root().join("infra/examples").join(example))?;
        let given: Vec<String> = names.captures_iter(&text).map(|found| found[1].to_owned()).collect();
        for name in &given {
            let known =
                ["PackageBucket", "PackagePrefix"].contains(&&**name) || template["Parameters"][name].is_object();
            assert!(known, "{example}: {name} is no parameter");
        }
        for needed in ["PackageBucket", "PackagePrefix", "Architecture"] {
            assert!(given.iter().any(|name| name == needed), "{example} gives no {needed}: {given:?}");
        }
        assert!(text.contains("template.json"), "{example}");
    }
    let check = "import ast, pathlib, sys; ast.parse(pathlib.Path(sys.argv[1]).read_text())";
    let parsed = Command::new("python3").args(["-c", check]).arg(root().join("infra/examples/cdk/app.py")).status()?;
    assert!(parsed.success(), "the example of the CDK is no Python");
    Ok(())
}
