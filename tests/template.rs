//! What `template.yaml` promises: each function may do exactly what its code does, data outlives the stack, and nobody is
//! let in by default.

#![expect(
    clippy::panic,
    clippy::string_slice,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

#[path = "template/parameters.rs"]
mod parameters;
#[path = "template/watching.rs"]
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use regex::Regex;
use serde_json::{Value, json};
use serde_yaml_ng::Value as Yaml;

const FUNCTIONS: [&str; 2] = ["Registry", "Filler"];

/// SDK operation → what IAM calls it (Service Authorization Reference). Multipart uploads are `s3:PutObject`, HEAD is
/// `s3:GetObject`.
const ACTIONS: [(&str, &str); 24] = [
    ("batch_get_item", "dynamodb:BatchGetItem"),
    ("batch_write_item", "dynamodb:BatchWriteItem"),
    ("delete_item", "dynamodb:DeleteItem"),
    ("get_item", "dynamodb:GetItem"),
    ("put_item", "dynamodb:PutItem"),
    ("query", "dynamodb:Query"),
    ("scan", "dynamodb:Scan"),
    ("update_item", "dynamodb:UpdateItem"),
    ("abort_multipart_upload", "s3:AbortMultipartUpload"),
    ("complete_multipart_upload", "s3:PutObject"),
    ("create_multipart_upload", "s3:PutObject"),
    ("delete_object", "s3:DeleteObject"),
    ("get_object", "s3:GetObject"),
    ("head_object", "s3:GetObject"),
    ("list_multipart_uploads", "s3:ListBucketMultipartUploads"),
    ("list_objects_v2", "s3:ListBucket"),
    ("list_parts", "s3:ListMultipartUploadParts"),
    ("put_object", "s3:PutObject"),
    ("upload_part", "s3:PutObject"),
    ("change_message_visibility", "sqs:ChangeMessageVisibility"),
    ("delete_message", "sqs:DeleteMessage"),
    ("receive_message", "sqs:ReceiveMessage"),
    ("send_message", "sqs:SendMessage"),
    ("send_message_batch", "sqs:SendMessage"),
];

/// Granted although no adapter calls them, and why.
const GRANTED_TO_THE_PLATFORM: [(&str, &str); 5] = [
    ("kms:Decrypt", "services that keep data for the functions, with a key of the operator"),
    ("kms:GenerateDataKey", "services that keep data for the functions, with a key of the operator"),
    ("logs:CreateLogStream", "Lambda writes the function's log in its name"),
    ("logs:PutLogEvents", "Lambda writes the function's log in its name"),
    ("sqs:GetQueueAttributes", "the event source mapping, in the filler's name"),
];

/// What ECR checks when its registry is asked over HTTP, as by any client (ECR, "Pulling an image").
const GRANTED_FOR_PULLS_FROM_ECR: [&str; 3] = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:ListImages"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The template as JSON, its short forms (`!Ref x`) spelled out (`{"Ref": "x"}`).
fn template() -> Result<Value> {
    let text = std::fs::read_to_string(root().join("template.yaml"))?;
    spelled_out(serde_yaml_ng::from_str(&text)?)
}

fn spelled_out(yaml: Yaml) -> Result<Value> {
    Ok(match yaml {
        Yaml::Tagged(tagged) => {
            let name = tagged.tag.to_string();
            let name = match name.trim_start_matches('!') {
                "Ref" => "Ref".to_owned(),
                other => format!("Fn::{other}"),
            };
            json!({ name: spelled_out(tagged.value)? })
        }
        Yaml::Sequence(items) => items.into_iter().map(spelled_out).collect::<Result<_>>()?,
        Yaml::Mapping(entries) => {
            let entry = |(key, value): (Yaml, Yaml)| {
                Ok((key.as_str().context("a key that is no text")?.to_owned(), spelled_out(value)?))
            };
            Value::Object(entries.into_iter().map(entry).collect::<Result<_>>()?)
        }
        scalar => serde_json::to_value(scalar)?,
    })
}

fn at<'a>(template: &'a Value, path: &str) -> &'a Value {
    template.pointer(path).unwrap_or_else(|| panic!("template.yaml has no {path}"))
}

/// A value or a list of values, as IAM allows both.
fn texts(value: &Value) -> Vec<&Value> {
    value.as_array().map_or_else(|| vec![value], |list| list.iter().collect())
}

/// Every statement of the policies of one function's role: its own, and those that it has where parameters ask for them.
fn statements<'a>(template: &'a Value, function: &str) -> Vec<&'a Value> {
    let policies = at(template, &format!("/Resources/{function}Role/Properties/Policies"));
    let role = json!({ "Ref": format!("{function}Role") });
    let resources = at(template, "/Resources").as_object().into_iter().flat_map(|resources| resources.values());
    let asked_for =
        resources.filter(|resource| resource["Type"] == "AWS::IAM::Policy").map(|policy| &policy["Properties"]);
    let asked_for = asked_for.filter(|policy| texts(&policy["Roles"]).contains(&&role));
    let policies = texts(policies).into_iter().chain(asked_for);
    policies.flat_map(|policy| texts(at(policy, "/PolicyDocument/Statement"))).collect()
}

fn rust_sources(directory: &Path, sources: &mut String) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_sources(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// The names of all operations of the SDK crates that the functions depend on: one file each in `src/operation`.
fn sdk_operations() -> Result<BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        // Packages for other platforms are not there offline.
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let mut operations = BTreeSet::new();
    for name in ["aws-sdk-dynamodb", "aws-sdk-s3", "aws-sdk-sqs"] {
        let package = texts(at(&metadata, "/packages")).into_iter().find(|package| package["name"] == name);
        let manifest = package.and_then(|package| package["manifest_path"].as_str()).context(name)?;
        let directory = Path::new(manifest).with_file_name("src").join("operation");
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                operations.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
            }
        }
    }
    Ok(operations)
}

/// The SDK operations that the adapters start: `.put_object()` and the like. A fluent builder takes no arguments.
fn operations_called() -> Result<BTreeSet<String>> {
    let mut sources = String::new();
    rust_sources(&root().join("functions/aws"), &mut sources)?;
    let operations = sdk_operations()?;
    let called = sources
        .split('.')
        .filter_map(|rest| rest.split_once("()"))
        .map(|(name, _)| name.to_owned())
        .filter(|name| operations.contains(name))
        .collect();
    Ok(called)
}

/// The actions of the operations that are called without a client of the SDK: `actions: &["…", "…"]`.
fn actions_of_signed_calls() -> Result<BTreeSet<String>> {
    let mut sources = String::new();
    rust_sources(&root().join("functions/aws"), &mut sources)?;
    let lists = sources.split("actions: &[").skip(1).filter_map(|rest| rest.split(']').next());
    let actions = lists.flat_map(|list| list.split('"').skip(1).step_by(2)).map(str::to_owned);
    Ok(actions.filter(|action| action.contains(':')).collect())
}

#[test]
fn only_functions_abort_when_something_panics() -> Result<()> {
    let panic = |path: &str| -> Result<Option<String>> {
        let settings: toml::Table = std::fs::read_to_string(root().join(path))?.parse()?;
        let release = settings.get("profile").and_then(|profiles| profiles.get("release"));
        Ok(release.and_then(|release| release.get("panic")?.as_str().map(str::to_owned)))
    };
    let (server, functions) = (panic("Cargo.toml")?, panic("functions/.cargo/config.toml")?);
    ensure!(server.is_none_or(|panic| panic == "unwind"), "one panic would end the server, and cost every request");
    ensure!(functions.as_deref() == Some("abort"), "they would be larger, and start later: {functions:?}");
    Ok(())
}

#[test]
fn the_functions_may_do_exactly_what_their_adapters_call() -> Result<()> {
    let actions = BTreeMap::from(ACTIONS);
    let mut called = BTreeSet::new();
    for operation in operations_called()? {
        let action = actions.get(operation.as_str());
        called.insert(*action.with_context(|| format!("no IAM action is known for {operation}: add it to ACTIONS"))?);
    }
    ensure!(!called.is_empty(), "no SDK call was found in functions/aws");
    let signed = actions_of_signed_calls()?;
    ensure!(signed.len() >= 5, "{signed:?}");
    called.extend(signed.iter().map(String::as_str));

    let template = template()?;
    let granted: BTreeSet<&str> = FUNCTIONS
        .iter()
        .flat_map(|function| statements(&template, function))
        .flat_map(|statement| texts(&statement["Action"]))
        .filter_map(Value::as_str)
        .collect();
    let platform = GRANTED_TO_THE_PLATFORM.iter().map(|(action, _)| *action);
    let platform: BTreeSet<&str> = platform.chain(GRANTED_FOR_PULLS_FROM_ECR).collect();
    assert_eq!(&granted & &platform, platform, "an exception that is no longer granted");
    assert_eq!(&granted - &platform, called, "left: granted in template.yaml, right: called in functions/aws");
    Ok(())
}

#[test]
fn every_permission_names_its_actions_and_its_resource() -> Result<()> {
    let template = template()?;
    for function in FUNCTIONS {
        let role = at(&template, &format!("/Resources/{function}Role/Properties"));
        assert!(role.get("ManagedPolicyArns").is_none(), "{function}: a managed policy grants more than is called");
        let properties = at(&template, &format!("/Resources/{function}Function/Properties"));
        assert!(properties.get("Policies").is_none(), "{function}: permissions belong to its role");
        assert_eq!(properties["Role"], json!({ "Fn::GetAtt": format!("{function}Role.Arn") }));
        for statement in statements(&template, function) {
            assert_eq!(statement["Effect"], "Allow", "{statement}");
            for action in texts(&statement["Action"]) {
                assert!(action.as_str().is_some_and(|action| !action.contains('*')), "{statement}");
            }
            for resource in texts(&statement["Resource"]) {
                let own = resource.get("Fn::GetAtt").is_some() || resource["Ref"] == "SigningKeys";
                let objects = ["${Bucket.Arn}/blobs/*", "${Bucket.Arn}/manifests/*"]
                    .iter()
                    .any(|objects| resource["Fn::Sub"] == *objects);
                let login = |action: &&Value| {
                    ["ecr:GetAuthorizationToken", "ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"]
                        .iter()
                        .any(|login| *action == login)
                };
                let no_resource = resource == "*" && texts(&statement["Action"]).iter().all(login);
                let of_organization = "arn:${AWS::Partition}:organizations::*:account/${Organization}/*";
                let accounts =
                    resource["Fn::Sub"] == of_organization && statement["Action"] == "organizations:DescribeAccount";
                let named = ["PrivateEcrRepositories", "UpstreamSecretArns", "KeyArn"]
                    .iter()
                    .any(|list| resource["Ref"] == *list);
                // Nothing but the secrets that are named, and what Secrets Manager asks for.
                let keys_of_secrets = resource["Fn::Sub"] == "arn:${AWS::Partition}:kms:*:*:key/*"
                    && statement["Action"] == "kms:Decrypt"
                    && statement["Condition"]
                        == json!({
                            "StringEquals": { "kms:EncryptionContext:SecretARN": { "Ref": "UpstreamSecretArns" } },
                            "StringLike": { "kms:ViaService": { "Fn::Sub": "secretsmanager.*.${AWS::URLSuffix}" } },
                        });
                let configuration = resource["Fn::Sub"][0].as_str().is_some_and(|arn| {
                    [
                        "arn:${AWS::Partition}:s3:::${Object}",
                        "arn:${AWS::Partition}:ssm:${AWS::Region}:${AWS::AccountId}:parameter${Name}",
                    ]
                    .contains(&arn)
                });
                assert!(
                    own || objects || no_resource || accounts || named || keys_of_secrets || configuration,
                    "{function} may touch more than the stack's own resources: {statement}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn the_environment_is_what_the_functions_read() -> Result<()> {
    let mut functions = String::new();
    rust_sources(&root().join("functions"), &mut functions)?;
    let read = |sources: &str| -> BTreeSet<String> {
        let names = sources.split("STOPOVER_").skip(1).map(|rest| {
            let end = rest.find(|letter: char| !letter.is_ascii_uppercase() && letter != '_');
            format!("STOPOVER_{}", &rest[..end.unwrap_or(rest.len())])
        });
        names.collect()
    };
    let expected = read(&functions);
    let template = template()?;
    let variables = at(&template, "/Globals/Function/Environment/Variables").as_object().context("no variables")?;
    assert_eq!(variables.keys().cloned().collect::<BTreeSet<_>>(), expected, "left: template.yaml, right: functions/");
    Ok(())
}

#[test]
fn the_signing_key_of_a_deployment_is_made_by_aws_and_long_enough() -> Result<()> {
    let template = template()?;
    let secret = at(&template, "/Resources/SigningKeys/Properties/GenerateSecretString");
    assert_eq!((&secret["ExcludePunctuation"], &secret["GenerateStringKey"]), (&json!(true), &json!("keys")));
    let length = secret["PasswordLength"].as_u64().context("no length")?;
    let keys = "Az09".repeat(usize::try_from(length / 4)?);
    assert_eq!(keys.len() as u64, length);
    stopover::access::token::TokenKeys::parse(&keys, stopover::values::time::Clock::default())?;
    let variables = at(&template, "/Globals/Function/Environment/Variables");
    assert_eq!(variables["STOPOVER_SIGNING_KEYS_SECRET"], json!({ "Fn::Sub": "${SigningKeys}#keys" }));
    Ok(())
}

#[test]
fn no_environment_holds_a_secret_and_each_function_may_read_only_those_it_needs() -> Result<()> {
    let template = template()?;
    ensure!(
        !template.to_string().contains("resolve:"),
        "what CloudFormation resolves is read by all who may list functions"
    );
    let readable = |function: &str| -> Vec<&Value> {
        let statements = statements(&template, function);
        let read = statements.into_iter().filter(|statement| statement["Action"] == "secretsmanager:GetSecretValue");
        read.flat_map(|statement| texts(&statement["Resource"])).collect()
    };
    let (keys, named) = (json!({ "Ref": "SigningKeys" }), json!({ "Ref": "UpstreamSecretArns" }));
    assert_eq!(readable("Registry"), [&keys, &named]);
    assert_eq!(readable("Filler"), [&named], "it lets no caller in");
    assert_eq!(at(&template, "/Parameters/UpstreamSecretArns/Default"), "");
    assert_eq!(at(&template, "/Resources/UpstreamSecretsPolicy/Condition"), "HasUpstreamSecrets");
    Ok(())
}

/// What is encrypted with a key of the operator is read by a service, in the functions' name: each of these has its client or
/// its signed call in functions/aws. KMS knows a service by the domain of its partition.
#[test]
fn a_key_of_the_operator_serves_every_service_that_functions_read_something_encrypted_from() -> Result<()> {
    let template = template()?;
    let statement = at(&template, "/Resources/KeyPolicy/Properties/PolicyDocument/Statement/0");
    let services = texts(at(statement, "/Condition/StringEquals/kms:ViaService"));
    let services: BTreeSet<&str> = services.into_iter().filter_map(|service| service["Fn::Sub"].as_str()).collect();
    let mut granted = BTreeSet::new();
    for function in FUNCTIONS {
        let actions = statements(&template, function).into_iter().flat_map(|statement| texts(&statement["Action"]));
        granted.extend(actions.filter_map(|action| Some(action.as_str()?.split_once(':')?.0.to_owned())));
    }
    // Where nothing of the operator's is kept: those have no data that a key of KMS could encrypt.
    let without = ["ecr", "ecr-public", "kms", "logs", "organizations", "sts"];
    let expected = granted.iter().filter(|service| !without.contains(&service.as_str()));
    let expected: BTreeSet<String> =
        expected.map(|service| format!("{service}.${{AWS::Region}}.${{AWS::URLSuffix}}")).collect();
    assert_eq!(services, expected.iter().map(String::as_str).collect(), "left: template.yaml, right: what is granted");
    Ok(())
}

#[test]
fn private_ecr_is_readable_only_where_repositories_are_named() -> Result<()> {
    let template = template()?;
    assert_eq!(at(&template, "/Parameters/PrivateEcrRepositories/Default"), "");
    assert_eq!(at(&template, "/Resources/PrivateEcrPolicy/Condition"), "HasPrivateEcr");
    let roles = at(&template, "/Resources/PrivateEcrPolicy/Properties/Roles");
    assert_eq!(roles, &json!(FUNCTIONS.map(|function| json!({ "Ref": format!("{function}Role") }))));
    Ok(())
}

#[test]
fn stored_data_outlives_the_stack() -> Result<()> {
    let template = template()?;
    for resource in ["Table", "Bucket"] {
        for policy in ["DeletionPolicy", "UpdateReplacePolicy"] {
            assert_eq!(at(&template, &format!("/Resources/{resource}/{policy}")), "Retain");
        }
    }
    Ok(())
}

/// Lambda refuses queues that hide messages for less time than the function may take. More only delays what was killed.
#[test]
fn a_fill_is_hidden_a_minute_longer_than_it_may_run_and_given_up_after_five_attempts() -> Result<()> {
    let template = template()?;
    let seconds = |path: &str| at(&template, path).as_u64().with_context(|| format!("{path} is no number"));
    let timeout = seconds("/Resources/FillerFunction/Properties/Timeout")?;
    for (queue, event) in [("FillQueue", "Fill"), ("BackgroundFillQueue", "BackgroundFill")] {
        assert_eq!(seconds(&format!("/Resources/{queue}/Properties/VisibilityTimeout"))?, timeout + 60);
        let redrive = at(&template, &format!("/Resources/{queue}/Properties/RedrivePolicy"));
        assert_eq!(redrive["maxReceiveCount"], 5);
        assert_eq!(redrive["deadLetterTargetArn"], json!({ "Fn::GetAtt": "DeadFillQueue.Arn" }));
        let event = at(&template, &format!("/Resources/FillerFunction/Properties/Events/{event}/Properties"));
        assert_eq!(event["Queue"], json!({ "Fn::GetAtt": format!("{queue}.Arn") }));
        assert_eq!(event["BatchSize"], 1);
        assert_eq!(event["FunctionResponseTypes"], json!(["ReportBatchItemFailures"]));
    }
    Ok(())
}

#[test]
fn due_schedules_are_looked_for_once_in_every_tick() -> Result<()> {
    let template = template()?;
    let event = at(&template, "/Resources/FillerFunction/Properties/Events/Prefetch/Properties");
    assert_eq!(stopover::config::TICK, std::time::Duration::from_hours(1));
    assert_eq!(event["Schedule"], "cron(17 * * * ? *)", "every hour");
    assert_eq!(event["Input"], r#"{"prefetch": "scheduled"}"#);
    Ok(())
}

#[test]
fn the_filler_sweeps_once_a_day() -> Result<()> {
    let template = template()?;
    let event = at(&template, "/Resources/FillerFunction/Properties/Events/Sweep/Properties");
    assert_eq!((&event["Schedule"], &event["Input"]), (&json!("cron(43 3 * * ? *)"), &json!(r#"{"sweep": {}}"#)));
    Ok(())
}

/// Robots are the only items that a caller of the registry may not cause to be written.
#[test]
fn the_registry_writes_every_kind_of_item_but_robots() -> Result<()> {
    let template = template()?;
    let items = std::fs::read_to_string(root().join("functions/aws/item.rs"))?;
    let keys = Regex::new(r#"(?-u:\b)key\((?:format!\()?"([a-z]+#?)"#)?;
    let kinds: BTreeSet<String> = keys.captures_iter(&items).map(|found| found[1].to_owned()).collect();
    ensure!(kinds.contains("robots") && kinds.contains("repo#"), "{kinds:?}");
    let of_registry = statements(&template, "Registry");
    let writes = |statement: &&&Value| texts(&statement["Action"]).contains(&&json!("dynamodb:PutItem"));
    let statement = of_registry.iter().find(writes).context("no statement lets it write")?;
    let allowed = texts(at(statement, "/Condition/ForAllValues:StringLike/dynamodb:LeadingKeys"));
    let allowed = allowed.into_iter().filter_map(|key| Some(key.as_str()?.trim_end_matches('*').to_owned()));
    let expected = kinds.into_iter().filter(|kind| kind != "robots");
    assert_eq!(
        allowed.collect::<BTreeSet<_>>(),
        expected.collect(),
        "left: template.yaml, right: functions/aws/item.rs"
    );
    // ForAllValues holds for a request that names no keys, which there must not be.
    assert_eq!(at(statement, "/Condition/Null/dynamodb:LeadingKeys"), false);
    let other = of_registry.iter().filter(|other| !std::ptr::eq(**other, *statement));
    for action in other.flat_map(|other| texts(&other["Action"])).filter_map(Value::as_str) {
        let reads = ["dynamodb:BatchGetItem", "dynamodb:GetItem", "dynamodb:Query"].contains(&action);
        assert!(!action.starts_with("dynamodb:") || reads, "{action} is not bound to kinds of items");
    }
    Ok(())
}

/// In a bucket whose policy demands it, `PutObject` and `CompleteMultipartUpload` without `If-None-Match` are refused.
#[test]
fn what_is_stored_is_never_replaced() -> Result<()> {
    let template = template()?;
    let policy = texts(at(&template, "/Resources/BucketPolicy/Properties/PolicyDocument/Statement"));
    let once = policy.into_iter().find(|statement| statement["Sid"] == "WriteOnce").context("no such statement")?;
    assert_eq!((&once["Effect"], &once["Action"]), (&json!("Deny"), &json!("s3:PutObject")));
    let condition = json!({ "Null": { "s3:if-none-match": true }, "Bool": { "s3:ObjectCreationOperation": true } });
    assert_eq!(once["Condition"], condition);
    let mut adapters = String::new();
    rust_sources(&root().join("functions/aws"), &mut adapters)?;
    let count = |text: &str| adapters.matches(text).count();
    let creating = count(".put_object()") + count(".complete_multipart_upload()");
    assert_eq!(count(".if_none_match(\"*\")"), creating, "an object would be refused");
    Ok(())
}

/// What each function does to each queue: the sets of actions above do not tell one queue from the other.
#[test]
fn each_function_may_do_to_each_queue_what_it_does() -> Result<()> {
    let template = template()?;
    let may = |function: &str, queue: &str| -> BTreeSet<String> {
        let arn = json!({ "Fn::GetAtt": format!("{queue}.Arn") });
        let about = statements(&template, function).into_iter().filter(|one| texts(&one["Resource"]).contains(&&arn));
        let actions = about.flat_map(|statement| texts(&statement["Action"])).filter_map(Value::as_str);
        actions.filter_map(|action| Some(action.strip_prefix("sqs:")?.to_owned())).collect()
    };
    let set = |actions: &[&str]| actions.iter().map(|action| (*action).to_owned()).collect::<BTreeSet<_>>();
    // The event source receives and deletes; the filler continues fills, and puts failed ones off.
    let worked_off =
        ["ChangeMessageVisibility", "DeleteMessage", "GetQueueAttributes", "ReceiveMessage", "SendMessage"];
    for queue in ["FillQueue", "BackgroundFillQueue"] {
        assert_eq!(may("Filler", queue), set(&worked_off), "{queue}");
        assert_eq!(may("Registry", queue), set(&["SendMessage"]), "{queue}");
    }
    // Operators list and retry; only SQS itself writes there.
    let read = ["ChangeMessageVisibility", "DeleteMessage", "ReceiveMessage"];
    assert_eq!((may("Filler", "DeadFillQueue"), may("Registry", "DeadFillQueue")), (set(&read), set(&[])));
    Ok(())
}

#[test]
fn a_chain_of_continuations_is_not_stopped_by_lambda() -> Result<()> {
    assert_eq!(at(&template()?, "/Resources/FillerFunction/Properties/RecursiveLoop"), "Allow");
    Ok(())
}
