//! IAM between a process and the services: what its role does not allow is refused before it arrives, in the words of the
//! service. Of policies it knows what the roles of the template have (IAM, "Policy evaluation logic"); anything else in a
//! statement is an error of the test.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use http::{Method, Request, Response, StatusCode, Uri, header};
use serde_json::{Map, Value, json};

use super::{ACCOUNT, Endpoints, Organization, REGION, sqs};

/// More than any request but those of S3, whose bodies are passed on while they arrive.
const MOST: usize = 32 * 1024 * 1024;

/// What the identity of a process may do.
#[derive(Clone, Debug, Default)]
pub struct Role {
    /// Statements of policies, with ARNs in place of references.
    pub statements: Vec<Value>,
}

/// One thing that a request wants to do.
#[derive(Debug)]
struct Call {
    action: String,
    resource: String,
    /// The partition keys of the items that it is about (`dynamodb:LeadingKeys`).
    keys: Vec<String>,
}

/// What a process behind a guard wanted.
#[derive(Default)]
struct Wanted {
    /// Actions, resources and partition keys that its role does not allow.
    refused: BTreeSet<String>,
    /// Actions that it allows, each with the number of the statement that does.
    allowed: BTreeSet<(usize, String)>,
}

/// The services behind a role.
pub struct Guard {
    variables: Vec<(String, String)>,
    role: Role,
    wanted: Arc<Mutex<Wanted>>,
}

impl Guard {
    /// Where a process with this role finds the services.
    pub fn environment(&self) -> &[(String, String)] {
        &self.variables
    }

    /// What was refused so far: actions, resources and partition keys.
    pub fn refused(&self) -> BTreeSet<String> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).refused.clone()
    }

    /// What the role allows and was not asked for so far: each action with the resources of its statement.
    pub fn unused(&self) -> Vec<String> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let statements = self.role.statements.iter().enumerate();
        let allowed = statements.flat_map(|(number, statement)| {
            texts(&statement["Action"]).map(move |action| (number, action, &statement["Resource"]))
        });
        let unused = allowed.filter(|(number, action, _)| !wanted.allowed.contains(&(*number, (*action).to_owned())));
        unused.map(|(_, action, resource)| format!("{action} on {resource}")).collect()
    }
}

impl Role {
    /// The number of the first statement that allows a call.
    fn allows(&self, call: &Call) -> Result<Option<usize>> {
        for (number, statement) in self.statements.iter().enumerate() {
            ensure!(statement["Effect"] == "Allow", "not modelled: {statement}");
            let any = |what: &str, wanted: &str| texts(&statement[what]).any(|pattern| matches(pattern, wanted));
            if any("Action", &call.action) && any("Resource", &call.resource) && holds(&statement["Condition"], call)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

/// A value or a list of values, as IAM allows both.
fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice).iter().filter_map(Value::as_str)
}

/// `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            rest.is_empty() || text.char_indices().any(|(at, _)| matches(rest, &text[at..])) || matches(rest, "")
        }),
    }
}

/// `ForAllValues` holds for a request without keys, too, unless `Null` says that there are some.
fn holds(condition: &Value, call: &Call) -> Result<bool> {
    for (operator, wanted) in condition.as_object().unwrap_or(&Map::new()) {
        let patterns = &wanted["dynamodb:LeadingKeys"];
        ensure!(!patterns.is_null(), "not modelled: {condition}");
        let holds = match operator.as_str() {
            "ForAllValues:StringLike" => call.keys.iter().all(|key| texts(patterns).any(|one| matches(one, key))),
            "Null" => call.keys.is_empty() == (*patterns == Value::Bool(true)),
            _ => bail!("not modelled: {condition}"),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is behind a guard.
struct Service {
    name: &'static str,
    url: String,
    role: Role,
    wanted: Arc<Mutex<Wanted>>,
    organization: Organization,
    client: reqwest::Client,
}

impl Endpoints {
    /// The services as a process with this role sees them.
    pub fn guarded(&self, role: &Role) -> Result<Guard> {
        let wanted = Arc::new(Mutex::new(Wanted::default()));
        let mut variables = Vec::new();
        // No certificates: reading those of the system takes longer than many a test.
        let client = stopover::values::crypto::http_client().no_proxy().tls_certs_only([]).build()?;
        for (variable, url) in self.environment() {
            let Some(name) = variable.strip_prefix("AWS_ENDPOINT_URL_") else { continue };
            let name = match name {
                "DYNAMODB" => "dynamodb",
                "S3" => "s3",
                "SQS" => "sqs",
                "SECRETS_MANAGER" => "secretsmanager",
                "SSM" => "ssm",
                "ECR" => "ecr",
                "ECR_PUBLIC" => "ecr-public",
                "ORGANIZATIONS" => "organizations",
                _ => continue,
            };
            let (listener, address) = self.loopback.bind()?;
            let (role, wanted) = (role.clone(), Arc::clone(&wanted));
            let (organization, client) = (self.organization().clone(), client.clone());
            let service = Arc::new(Service { name, url, role, wanted, organization, client });
            self.loopback.serve(listener, Router::new().fallback(pass).with_state(service));
            variables.push((variable, format!("http://{address}")));
        }
        Ok(Guard { variables, role: role.clone(), wanted })
    }
}

async fn pass(State(service): State<Arc<Service>>, request: Request<Body>) -> Response<Body> {
    let failed = |error: anyhow::Error| {
        let mut response = Response::new(Body::from(format!("the test's IAM: {error:#}")));
        *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
        response
    };
    service.pass(request).await.unwrap_or_else(failed)
}

impl Service {
    async fn pass(&self, request: Request<Body>) -> Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let (calls, body) = if self.name == "s3" {
            // Of a stream nothing but its bytes would be known, not even that there are none.
            let empty = axum::body::HttpBody::is_end_stream(&body);
            let body = if empty { "".into() } else { reqwest::Body::wrap_stream(body.into_data_stream()) };
            (vec![of_s3(&parts.method, &parts.uri)?], body)
        } else {
            let bytes = to_bytes(body, MOST).await?;
            let target = parts.headers.get("x-amz-target").context("no target")?.to_str()?;
            let operation = target.rsplit('.').next().unwrap_or_default();
            (self.of_json(operation, &serde_json::from_slice(&bytes)?)?, bytes.into())
        };
        for call in &calls {
            if !self.allows(call)? {
                return Ok(self.refusal(call));
            }
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let asked = self.client.request(parts.method.clone(), format!("{}{path}", self.url));
        // With the host that the client has signed for.
        let answer = asked.headers(parts.headers).body(body).send().await?;
        // S3 says that an object is missing only to callers that may list the bucket (S3, GetObject, "Permissions").
        if let ([call], StatusCode::NOT_FOUND) = (&calls[..], answer.status())
            && call.action == "s3:GetObject"
        {
            let bucket = call.resource.split('/').next().unwrap_or_default().to_owned();
            let list = Call { action: "s3:ListBucket".into(), resource: bucket, keys: Vec::new() };
            if !self.allows(&list)? {
                return Ok(self.refusal(&list));
            }
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        response.headers_mut().remove(header::TRANSFER_ENCODING);
        if parts.method != Method::HEAD {
            *response.body_mut() = Body::from_stream(answer.bytes_stream());
        }
        Ok(response)
    }

    /// What a request with a body in JSON needs.
    fn of_json(&self, operation: &str, request: &Value) -> Result<Vec<Call>> {
        let call = |action: &str, resource: &str| Call {
            action: action.to_owned(),
            resource: resource.to_owned(),
            keys: Vec::new(),
        };
        // Neither logins nor what issues them have a resource (Service Authorization Reference).
        Ok(match self.name {
            "ecr" => vec![call("ecr:GetAuthorizationToken", "*")],
            "ecr-public" => {
                ["ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"].map(|action| call(action, "*")).into()
            }
            "organizations" => {
                let account = request["AccountId"].as_str().context("no account")?;
                let of = self.organization.id();
                vec![call(
                    "organizations:DescribeAccount",
                    &format!("arn:aws:organizations::{ACCOUNT}:account/{of}/{account}"),
                )]
            }
            service => vec![of_json(service, operation, request)?],
        })
    }

    fn allows(&self, call: &Call) -> Result<bool> {
        let allowed = self.role.allows(call)?;
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        match allowed {
            Some(number) => wanted.allowed.insert((number, call.action.clone())),
            None => wanted.refused.insert(format!("{} on {} {:?}", call.action, call.resource, call.keys)),
        };
        Ok(allowed.is_some())
    }

    fn refusal(&self, call: &Call) -> Response<Body> {
        let message = format!("User is not authorized to perform: {} on resource: {}", call.action, call.resource);
        let (status, body) = if self.name == "s3" {
            (403, format!("<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>"))
        } else {
            (400, json!({ "__type": "AccessDeniedException", "message": message }).to_string())
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(status).expect("a real status");
        response
    }
}

/// What a request to S3 needs (S3, "Required permissions for Amazon S3 API operations").
fn of_s3(method: &Method, uri: &Uri) -> Result<Call> {
    let (bucket, key) = uri.path().trim_start_matches('/').split_once('/').unwrap_or((uri.path(), ""));
    let query = uri.query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let action = match (method, key) {
        (&Method::GET, "") if has("uploads") => "s3:ListBucketMultipartUploads",
        (&Method::GET | &Method::HEAD, "") => "s3:ListBucket",
        (&Method::GET, _) if has("uploadId") => "s3:ListMultipartUploadParts",
        (&Method::GET | &Method::HEAD, _) => "s3:GetObject",
        (&Method::PUT | &Method::POST, key) if !key.is_empty() => "s3:PutObject",
        (&Method::DELETE, key) if !key.is_empty() && has("uploadId") => "s3:AbortMultipartUpload",
        (&Method::DELETE, key) if !key.is_empty() => "s3:DeleteObject",
        _ => bail!("not modelled: {method} {uri}"),
    };
    let bucket = bucket.trim_matches('/');
    let resource = if key.is_empty() { bucket.to_owned() } else { format!("{bucket}/{key}") };
    Ok(Call { action: action.into(), resource: format!("arn:aws:s3:::{resource}"), keys: Vec::new() })
}

/// What a request to a service with bodies in JSON needs.
fn of_json(service: &str, operation: &str, request: &Value) -> Result<Call> {
    let text = |name: &str| request[name].as_str().with_context(|| format!("{operation} without {name}"));
    let (mut keys, operation) = (Vec::new(), operation.trim_end_matches("MessageBatch"));
    let (action, resource) = match (service, operation) {
        ("dynamodb", operation) => {
            let (table, about) = items(operation, request)?;
            keys = about.iter().filter_map(|item| Some(item["pk"]["S"].as_str()?.to_owned())).collect();
            (operation, format!("arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{table}"))
        }
        ("sqs", operation) => {
            let action = match operation {
                "Send" => "SendMessage",
                "Delete" => "DeleteMessage",
                other => other,
            };
            (action, sqs::arn(text("QueueUrl")?.rsplit('/').next().unwrap_or_default()))
        }
        ("secretsmanager", _) => (operation, text("SecretId")?.to_owned()),
        ("ssm", _) => {
            let name = text("Name")?.split(':').next().unwrap_or_default();
            (operation, format!("arn:aws:ssm:{REGION}:{ACCOUNT}:parameter{name}"))
        }
        _ => bail!("not modelled: {service} {operation}"),
    };
    Ok(Call { action: format!("{service}:{action}"), resource, keys })
}

/// The table of a request, and the keys or items that it names.
fn items<'a>(operation: &str, request: &'a Value) -> Result<(&'a str, Vec<&'a Value>)> {
    let table = request["TableName"].as_str();
    let items = match operation {
        "GetItem" | "UpdateItem" | "DeleteItem" => vec![&request["Key"]],
        "PutItem" => vec![&request["Item"]],
        "Query" | "Scan" => Vec::new(),
        "BatchGetItem" | "BatchWriteItem" => {
            let mut tables = request["RequestItems"].as_object().context("no items")?.iter();
            let (Some((table, asked)), None) = (tables.next(), tables.next()) else { bail!("not of one table") };
            let writes = asked.as_array().into_iter().flatten();
            let writes = writes.map(|write| match &write["PutRequest"]["Item"] {
                Value::Null => &write["DeleteRequest"]["Key"],
                item => item,
            });
            let reads = asked["Keys"].as_array().into_iter().flatten();
            return Ok((table, writes.chain(reads).collect()));
        }
        _ => bail!("not modelled: {operation}"),
    };
    Ok((table.context("no table")?, items))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("*#*", "blob#1", true),
            ("blob#*", "robot#1", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
