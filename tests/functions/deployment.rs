//! Both functions, put together as the template does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_dynamodb::types::AttributeValue;
use reqwest::{Method, RequestBuilder, redirect::Policy};
use serde_json::Value;
use support::aws::{Endpoints, Guard, QueueSettings, Role};
use support::images::{Image, digest_of};
use support::lambda::{EventSource, Function, HttpFront, Manner};
use support::program::{UPSTREAM, built};
use tempfile::NamedTempFile;

/// The function that answers clients.
pub(crate) const REGISTRY: &str = "RegistryFunction";
/// The function that copies blobs.
pub(crate) const FILLER: &str = "FillerFunction";

/// How long fills may take together: far beyond what they need on a busy machine.
const FILLS: Duration = Duration::from_mins(2);

/// What a deployment chooses. Its upstream is [`UPSTREAM`].
pub(crate) struct Plan {
    upstream: String,
    anonymous: Option<&'static str>,
    sts: Option<String>,
    log_level: &'static str,
    queue: QueueSettings,
    /// What both functions may do. Where a test says nothing, they may do everything.
    roles: Option<[Role; 2]>,
    /// Where the configuration is (`ConfigurationUri`), if not beside the functions.
    place: Option<&'static str>,
}

/// The account of a deployment, and what its identities sign for.
pub(crate) const ACCOUNT: &str = "123456789012";
pub(crate) const SERVICE: &str = "stopover:123456789012:us-east-1:tests";

/// Where the keys of a deployment are, and the first of them: letters and digits, as the template has them made.
pub(crate) const KEYS: &str = "arn:aws:secretsmanager:us-east-1:123456789012:secret:SigningKeys-AbCdEf";
pub(crate) const SIGNING_KEY: &str = "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk";

/// How many processes answer clients.
pub(crate) const REGISTRIES: usize = 4;

/// The functions, several processes of each, and what they work on.
pub(crate) struct Deployment {
    front: HttpFront,
    source: EventSource,
    /// The roles of both functions, or none.
    guards: Vec<Guard>,
    pub(crate) endpoints: Endpoints,
    _configuration: NamedTempFile,
}

/// Calls of one function alone, with the environment that the template gives it.
pub(crate) struct Environment(pub(crate) Vec<(String, String)>);

impl Plan {
    /// In front of the upstream at this address.
    pub(crate) fn of(url: &str) -> Self {
        Self {
            upstream: format!("url = \"{url}\"\n"),
            anonymous: None,
            sts: None,
            log_level: "INFO",
            queue: QueueSettings::default(),
            roles: None,
            place: None,
        }
    }

    /// Has the configuration where an operator may replace it.
    pub(crate) fn configured_at(self, place: &'static str) -> Self {
        Self { place: Some(place), ..self }
    }

    /// What both functions may do.
    pub(crate) fn roles(self, roles: [Role; 2]) -> Self {
        Self { roles: Some(roles), ..self }
    }

    /// Adds lines to the upstream's table in stopover.toml.
    pub(crate) fn setting(mut self, lines: &str) -> Self {
        self.upstream.push_str(lines);
        self
    }

    /// As whoever deploys for the first time has it: the template's `AnonymousCidrs`, and no `[access]`.
    pub(crate) fn fresh(self, anonymous: &'static str) -> Self {
        Self { anonymous: Some(anonymous), ..self }
    }

    /// Has STS asked there.
    pub(crate) fn sts(self, url: &str) -> Self {
        Self { sts: Some(url.to_owned()), ..self }
    }

    /// The template's `LogLevel`.
    pub(crate) fn log_level(self, log_level: &'static str) -> Self {
        Self { log_level, ..self }
    }

    /// The queue's settings.
    pub(crate) fn queue(self, queue: QueueSettings) -> Self {
        Self { queue, ..self }
    }

    /// Starts everything.
    pub(crate) async fn start(self) -> Result<Deployment> {
        let endpoints = Endpoints::start_with(self.queue).await?;
        let (configuration, mut environment) = self.environment(&endpoints)?;
        if let Some(place) = self.place {
            put_configuration(&endpoints, place, &std::fs::read_to_string(configuration.path())?).await?;
            environment = environment.with("STOPOVER_CONFIG_URI", place);
        }
        let guards = self.roles.iter().flatten().map(|role| endpoints.guarded(role));
        let guards: Vec<Guard> = guards.collect::<Result<_>>()?;
        let set = |environment: Environment, (name, url): &(String, String)| environment.with(name, url);
        let behind = |guard: Option<&Guard>| {
            let variables = guard.map_or(&[][..], Guard::environment);
            variables.iter().fold(Environment(environment.0.clone()), set)
        };
        let (of_registry, of_filler) = (behind(guards.first()), behind(guards.last()));
        let registry = (0..REGISTRIES).map(|_| of_registry.start(REGISTRY));
        let filler = [of_filler.start(FILLER), of_filler.start(FILLER)];
        let registry = futures_util::future::try_join_all(registry).await?;
        let filler = futures_util::future::try_join_all(filler).await?;
        Ok(Deployment {
            guards,
            front: HttpFront::start(registry)?,
            source: EventSource::start(&endpoints, filler)?,
            endpoints,
            _configuration: configuration,
        })
    }

    /// What the functions are told, and the file that some of it is in.
    pub(crate) fn environment(&self, endpoints: &Endpoints) -> Result<(NamedTempFile, Environment)> {
        let configuration = NamedTempFile::new()?;
        // Clients of the tests reach no HTTPS, which a login needs here; where a test says nothing, there is none.
        let chosen = self.anonymous.is_some() || self.upstream.contains("[access]");
        let access = if chosen { "" } else { "[access]\nanonymous = [\"127.0.0.0/8\"]\n" };
        let text = format!("fresh = \"1h\"\n\n[upstreams.\"{UPSTREAM}\"]\n{}\n{access}", self.upstream);
        std::fs::write(&configuration, text)?;
        put_keys(endpoints, SIGNING_KEY);
        let path = configuration.path().display().to_string();
        let environment = Environment(endpoints.environment())
            .with("STOPOVER_CONFIG", &path)
            .with("STOPOVER_ACCOUNT", ACCOUNT)
            .with("STOPOVER_SERVICE", SERVICE)
            .with("STOPOVER_STACK", "tests")
            .with("STOPOVER_ANONYMOUS_CIDRS", self.anonymous.unwrap_or_default())
            .with("STOPOVER_SIGNING_KEYS_SECRET", &format!("{KEYS}#keys"))
            .with("AWS_ENDPOINT_URL_STS", self.sts.as_deref().unwrap_or_default())
            .with("AWS_LAMBDA_LOG_LEVEL", self.log_level);
        Ok((configuration, environment))
    }
}

/// Writes a configuration there, as an operator does.
pub(crate) async fn put_configuration(endpoints: &Endpoints, place: &str, text: &str) -> Result<()> {
    if let Some(name) = place.strip_prefix("ssm:") {
        endpoints.kept().put_parameter(name, text);
    } else {
        let (bucket, key) = place.trim_start_matches("s3://").split_once('/').context("no object")?;
        let object = endpoints.s3().put_object().bucket(bucket).key(key);
        object.body(text.to_owned().into_bytes().into()).send().await?;
    }
    Ok(())
}

/// Replaces the keys of a deployment, as Secrets Manager keeps them.
pub(crate) fn put_keys(endpoints: &Endpoints, keys: &str) {
    support::secrets::know("a key that tokens are signed with", keys);
    endpoints.kept().put_secret(KEYS, &serde_json::json!({ "keys": keys }).to_string());
}

impl Environment {
    /// Sets a variable.
    pub(crate) fn with(&self, name: &str, value: &str) -> Self {
        let mut environment = self.without(name).0;
        environment.push((name.to_owned(), value.to_owned()));
        Self(environment)
    }

    /// Leaves a variable out.
    pub(crate) fn without(&self, name: &str) -> Self {
        let others = self.0.iter().filter(|(other, _)| other != name);
        Self(others.cloned().collect())
    }

    /// Starts a process of the function, with the timeout that the template gives it.
    pub(crate) async fn start(&self, function: &str) -> Result<Function> {
        self.start_with_timeout(function, timeout_in_template(function)?).await
    }

    /// Starts a process of the function whose invocations may take so long.
    pub(crate) async fn start_with_timeout(&self, function: &str, timeout: Duration) -> Result<Function> {
        Function::start_with_timeout(&bootstrap(function)?, &self.0, timeout).await
    }

    /// The one line in the log of a function that has no cache because `setting` is wrong. It runs all the same: clients
    /// are told to come back, operators and queues that it failed.
    pub(crate) async fn refusal(&self, function: &str, setting: &str) -> Result<String> {
        let running = self.start(function).await?;
        let process = running.process()?;
        for _ in 0..2 {
            if function == REGISTRY {
                let asked = serde_json::json!({ "http": { "method": "GET", "sourceIp": "127.0.0.1" } });
                let event = serde_json::json!({
                    "version": "2.0", "rawPath": "/v2/", "headers": { "host": "mirror.test" }, "requestContext": asked,
                });
                let answer = running.invoke(event).await?;
                ensure!(answer["statusCode"] == 503 && answer["headers"]["retry-after"].is_string(), "{answer}");
                ensure!(answer["body"].as_str().is_some_and(|body| body.contains(setting)), "{setting}: {answer}");
            } else {
                let failed = running.invoke(serde_json::json!({ "fills": "list" })).await;
                let failed = failed.err().map(|error| error.to_string()).unwrap_or_default();
                ensure!(failed.contains(setting), "{setting}: {failed}");
            }
        }
        ensure!(running.process()? == process, "another process answers");
        let log = running.log();
        let mut errors: Vec<&str> = log.lines().filter(|line| line.contains("\"level\":\"ERROR\"")).collect();
        if function == FILLER {
            // The runtime logs each invocation that fails.
            errors.retain(|line| line.contains("the configuration is wrong"));
        }
        let [error] = errors[..] else { anyhow::bail!("not one line: {log}") };
        Ok(error.to_owned())
    }
}

/// The template's `Timeout` of a function.
fn timeout_in_template(function: &str) -> Result<Duration> {
    let template = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../template.yaml"))?;
    let (_, properties) = template.split_once(&format!("\n  {function}:\n")).context("no such function")?;
    let seconds = properties.lines().find_map(|line| line.trim().strip_prefix("Timeout: ")?.split(' ').next());
    Ok(Duration::from_secs(seconds.context("a function without Timeout")?.parse()?))
}

/// The function as cargo has built it with the tests; or the file that a deployment uploads, in a directory like
/// `.aws-sam/build` that `make package` names.
fn bootstrap(function: &str) -> Result<PathBuf> {
    let Some(packages) = std::env::var_os("STOPOVER_BOOTSTRAPS") else {
        // RegistryFunction is the program `registry`.
        return built(&function.trim_end_matches("Function").to_lowercase());
    };
    let file = PathBuf::from(packages).join(function).join("bootstrap");
    ensure!(file.is_file(), "{} is not there: `make package` makes it", file.display());
    Ok(file)
}

impl Deployment {
    /// Where clients find it: `127.0.0.1:<port>`.
    pub(crate) fn address(&self) -> String {
        self.front.address().to_string()
    }

    /// Has the gateway behave so from now on.
    pub(crate) fn behave(&self, manner: Manner) {
        self.front.behave(manner);
    }

    /// A request for something of the upstream (`team/image/manifests/v1`); redirects are not followed.
    pub(crate) fn request(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        let url = format!("{}/v2/{UPSTREAM}/{path}", self.front.url());
        request(method, &url)
    }

    /// Waits until every fill that was requested is done, or is in the dead-letter queue.
    pub(crate) async fn until_filled(&self) -> Result<()> {
        self.source.wait_until_idle(FILLS).await
    }

    /// Checks that the bucket holds the blobs of this image, each byte of them, and nothing else.
    pub(crate) async fn check_stored(&self, image: &Image) -> Result<()> {
        let expected: BTreeMap<_, _> = image.blobs().map(|blob| (blob.digest.clone(), blob.size)).collect();
        let stored = stored(&self.endpoints).await?;
        ensure!(stored == expected, "stored {stored:#?} instead of {expected:#?}");
        let left = (self.endpoints.dead_messages(), self.endpoints.multipart_uploads());
        ensure!(left == (0, 0), "dead messages and unfinished uploads: {left:?}");
        Ok(())
    }

    /// Invokes the filler as an operator does.
    pub(crate) async fn invoke_filler(&self, event: Value) -> Result<Value> {
        let filler = self.source.functions().first().context("no filler")?;
        Ok(filler.invoke(event).await?)
    }

    /// Has one process that answers clients answer an event.
    pub(crate) async fn invoke_registry(&self, event: Value) -> Result<Value> {
        let registry = self.front.functions().first().context("no registry")?;
        Ok(registry.invoke(event).await?)
    }

    /// What the roles of both functions have refused.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.guards.iter().flat_map(Guard::refused).collect()
    }

    /// What the roles of both functions allow, and was not asked for.
    pub(crate) fn unused(&self) -> Vec<String> {
        self.guards.iter().flat_map(Guard::unused).collect()
    }

    /// All that the functions have printed.
    pub(crate) fn log(&self) -> String {
        let functions = self.front.functions().iter().chain(self.source.functions());
        functions.map(Function::log).collect()
    }
}

/// Takes every use as many days back.
pub(crate) async fn age(endpoints: &Endpoints, days: u64) -> Result<()> {
    let table = endpoints.dynamodb();
    let items = table.scan().table_name(endpoints.table()).send().await?.items.unwrap_or_default();
    for mut item in items {
        let Some(AttributeValue::N(used_at)) = item.get("used_at") else { continue };
        let before = used_at.parse::<u64>()? - days * 24 * 3600;
        item.insert("used_at".to_owned(), AttributeValue::N(before.to_string()));
        table.put_item().table_name(endpoints.table()).set_item(Some(item)).send().await?;
    }
    Ok(())
}

/// A request with any URL; redirects are not followed.
pub(crate) fn request(method: Method, url: &str) -> Result<RequestBuilder> {
    let client = stopover::values::crypto::http_client().no_proxy().redirect(Policy::none());
    Ok(client.build()?.request(method, url))
}

/// The code of an OCI error body.
pub(crate) async fn error_code(answer: reqwest::Response) -> Result<String> {
    let body: Value = serde_json::from_slice(&answer.bytes().await?)?;
    let code = body.pointer("/errors/0/code").and_then(Value::as_str);
    code.map(str::to_owned).with_context(|| format!("no OCI error: {body}"))
}

/// Reads every object: its digest and its length. One whose content does not hash to its key is an error.
pub(crate) async fn stored(endpoints: &Endpoints) -> Result<BTreeMap<String, u64>> {
    let client = endpoints.s3();
    let mut stored = BTreeMap::new();
    for key in endpoints.objects() {
        let object = client.get_object().bucket(endpoints.bucket()).key(&key);
        let bytes = object.send().await?.body.collect().await?.into_bytes();
        let digest = digest_of(&bytes);
        let hex = digest.trim_start_matches("sha256:");
        let path = format!("sha256/{}/{hex}", &hex[..2]);
        ensure!([format!("blobs/{path}"), format!("manifests/{path}")].contains(&key), "{key} holds {digest}");
        stored.insert(digest, bytes.len() as u64);
    }
    Ok(stored)
}
