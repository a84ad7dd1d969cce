//! One cache with its upstream and its storage, on either column: the embedded adapters, or the AWS adapters on strict
//! endpoints. A behaviour is written once and run on both.

#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use axum::Router;
use axum::body::Body;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use stopover::cache::Cache;
use stopover::config::{Cold, Config, SecretReference};
use stopover::http::{LocalOperator, router};
use stopover::identity::Peer;
use stopover::local::Local;
use stopover::oci::{Algorithm, Digest};
use stopover::values::time::{Clock, Timestamp};
use tempfile::TempDir;
use tower::ServiceExt as _;

use crate::aws::Endpoints;
use crate::filler::Filler;
use crate::scripted::Scripted;
use crate::secrets;

/// Which adapters a world has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Column {
    /// Files and the embedded ledger.
    Embedded,
    /// S3, DynamoDB and SQS.
    Aws,
}

/// The password of `TEST_SECRET`: long enough to be found in a log.
pub const PASSWORD: &str = "the-password-of-an-upstream";

/// A line for the table of an upstream, or of a rule, that is asked as `me` with [`PASSWORD`].
pub const CREDENTIALS: &str = "credentials = { username = \"me\", password_env = \"TEST_SECRET\" }";

/// How long anything in a test may take before it has failed.
pub const DEADLINE: Duration = Duration::from_mins(2);

/// A cache in this process. The upstream's id is `test.local`; time stands still unless it is moved.
pub struct World {
    /// The upstream.
    pub upstream: Scripted,
    /// The cache's clock.
    pub clock: Clock,
    /// The cache.
    pub cache: Arc<Cache>,
    storage: Storage,
    router: Router,
    _log: secrets::Watched,
}

enum Storage {
    Embedded { data: TempDir, local: Box<Local> },
    Aws { endpoints: Arc<Endpoints>, config: Box<Config>, _filler: Filler },
}

/// A world to be.
pub struct Plan {
    column: Column,
    data: TempDir,
    cold: Option<Cold>,
    settings: String,
    upstream: String,
}

/// An answer of the cache.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, or why it broke off.
    pub body: Result<Bytes, String>,
}

impl Answer {
    /// A header as text; empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Itself: what it has that may be in no log is known from now on.
    fn whose_secrets_are_known(self) -> Self {
        secrets::know_query("where an answer redirects to", self.header("location"));
        if let Some(body) = self.body.as_ref().ok().filter(|body| body.starts_with(b"{")) {
            let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
            secrets::know("a token", body["token"].as_str().unwrap_or_default());
            secrets::know("a refresh token", body["refresh_token"].as_str().unwrap_or_default());
            secrets::know("the secret of a robot", body["secret"]["secret"].as_str().unwrap_or_default());
        }
        self
    }

    /// The body, which has to be whole.
    pub fn bytes(&self) -> &Bytes {
        self.body.as_ref().expect("the body is whole")
    }

    /// Code and message of an OCI error body.
    pub fn error(&self) -> (String, String) {
        let body: serde_json::Value = serde_json::from_slice(self.bytes()).expect("an error body is JSON");
        let text = |name: &str| body["errors"][0][name].as_str().unwrap_or_default().to_owned();
        (text("code"), text("message"))
    }
}

impl World {
    /// A world with the defaults of its column.
    pub async fn on(column: Column) -> Self {
        Self::plan(column).start().await
    }

    /// A world with settings of its own.
    pub fn plan(column: Column) -> Plan {
        let data = TempDir::new().expect("a directory of this test");
        Plan { column, data, cold: None, settings: String::new(), upstream: String::new() }
    }

    /// Sends a request to the cache's router, as from nobody in particular.
    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send_request(Request::builder().method(method), path, headers).await
    }

    /// POST of JSON to a path.
    pub async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send_whole(Request::post(path).body(body.into()).expect("a test sends a real request")).await
    }

    /// The same, by a caller with this address.
    pub async fn post_from(&self, caller: &str, path: &str, body: impl Into<Body>) -> Answer {
        self.post_with(caller, path, &[], body).await
    }

    /// The same, with headers.
    pub async fn post_with(&self, caller: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = Request::post(path).extension(source(caller));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send_whole(request.body(body.into()).expect("a test sends a real request")).await
    }

    /// GET of a path by a caller with this address.
    pub async fn get_from(&self, caller: &str, path: &str) -> Answer {
        self.send_from(caller, Method::GET, path).await
    }

    /// The same, with headers.
    pub async fn get_with(&self, caller: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send_request(Request::get("/").extension(source(caller)), path, headers).await
    }

    /// Sends a request by a caller with this address.
    pub async fn send_from(&self, caller: &str, method: Method, path: &str) -> Answer {
        self.send_with(caller, method, path, &[]).await
    }

    /// Sends a request with headers by a caller with this address.
    pub async fn send_with(&self, caller: &str, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send_request(Request::builder().method(method).extension(source(caller)), path, headers).await
    }

    /// Sends what an operator asks, as the socket of its machine hands it on. The functions have none, but the rules of the
    /// core hold there, too.
    pub async fn operate(&self, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path).extension(LocalOperator);
        self.send_whole(request.body(body.into()).expect("a test sends a real request")).await
    }

    /// GET of a path by an operator, with headers.
    pub async fn operate_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send_request(Request::get("/").extension(LocalOperator), path, headers).await
    }

    async fn send_request(&self, request: http::request::Builder, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = request.uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send_whole(request.body(Body::empty()).expect("a test sends a real request")).await
    }

    async fn send_whole(&self, request: Request<Body>) -> Answer {
        secrets::know_authorization("a client's login", request.headers());
        let answered = async {
            let response = self.router.clone().oneshot(request).await.expect("a router always answers");
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.map_err(|error| error.to_string());
            Answer { status: parts.status, headers: parts.headers, body }.whose_secrets_are_known()
        };
        tokio::time::timeout(DEADLINE, answered).await.expect("the cache answers in time")
    }

    /// GET of a path.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[]).await
    }

    /// HEAD of a path.
    pub async fn head(&self, path: &str) -> Answer {
        self.send(Method::HEAD, path, &[]).await
    }

    /// GET of a path as clients do it: a redirect is followed.
    pub async fn pull(&self, path: &str) -> Answer {
        let answer = self.get(path).await;
        if answer.status != StatusCode::TEMPORARY_REDIRECT {
            return answer;
        }
        let response = crate::http().get(answer.header("location")).send().await.expect("the target answers");
        let (status, headers) = (response.status(), response.headers().clone());
        Answer { status, headers, body: response.bytes().await.map_err(|error| error.to_string()) }
    }

    /// Waits until no fill is requested or running.
    pub async fn settled(&self) {
        let settled = async {
            match &self.storage {
                Storage::Embedded { local, .. } => local.settled().await,
                Storage::Aws { endpoints, .. } => {
                    until(|| endpoints.queued_messages() == 0).await;
                }
            }
        };
        tokio::time::timeout(DEADLINE, settled).await.expect("fills end");
    }

    /// The digests of the blobs that a client could be given, each checked against its bytes.
    pub async fn stored_blobs(&self) -> Vec<String> {
        match &self.storage {
            Storage::Embedded { data, .. } => files(&data.path().join("blobs")).expect("the directory can be read"),
            Storage::Aws { endpoints, .. } => {
                let client = endpoints.s3();
                let mut digests = Vec::new();
                for key in endpoints.objects() {
                    let object =
                        client.get_object().bucket(endpoints.bucket()).key(&key).send().await.expect("it is there");
                    let bytes = object.body.collect().await.expect("it can be read").into_bytes();
                    digests.push(checked(&key, &bytes));
                }
                digests.sort();
                digests
            }
        }
    }

    /// Deletes the bytes of every stored blob behind the cache's back.
    pub async fn delete_stored_blobs(&self) {
        match &self.storage {
            Storage::Embedded { data, .. } => {
                let blobs = data.path().join("blobs");
                fs::remove_dir_all(&blobs).and_then(|()| fs::create_dir(&blobs)).expect("it is ours");
            }
            Storage::Aws { endpoints, .. } => {
                let client = endpoints.s3();
                for key in endpoints.objects() {
                    client.delete_object().bucket(endpoints.bucket()).key(key).send().await.expect("it is ours");
                }
            }
        }
    }

    /// Another instance of the cache on the same storage and upstream, as Lambda starts one; on the embedded column, where
    /// one process owns the storage, the same one.
    pub fn another_instance(&self) -> Arc<Cache> {
        match &self.storage {
            Storage::Embedded { .. } => Arc::clone(&self.cache),
            Storage::Aws { endpoints, config, .. } => {
                connect(Config::clone(config), &self.clock, endpoints).expect("an instance starts")
            }
        }
    }

    /// The AWS endpoints, on that column.
    pub fn endpoints(&self) -> Option<&Endpoints> {
        match &self.storage {
            Storage::Aws { endpoints, .. } => Some(endpoints),
            Storage::Embedded { .. } => None,
        }
    }

    /// The data directory, on the embedded column.
    pub fn data(&self) -> Option<&Path> {
        match &self.storage {
            Storage::Embedded { data, .. } => Some(data.path()),
            Storage::Aws { .. } => None,
        }
    }
}

impl Plan {
    /// This policy for blobs that are not stored.
    #[must_use]
    pub fn cold(mut self, cold: Cold) -> Self {
        self.cold = Some(cold);
        self
    }

    /// What is in the data directory already, on the embedded column.
    #[must_use]
    pub fn data(mut self, data: TempDir) -> Self {
        self.data = data;
        self
    }

    /// More lines at the top of `stopover.toml`.
    #[must_use]
    pub fn settings(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.settings);
        self
    }

    /// More lines in the table of the upstream.
    #[must_use]
    pub fn upstream(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.upstream);
        self
    }

    /// Starts it.
    pub async fn start(self) -> World {
        self.try_start().await.expect("the world starts")
    }

    async fn try_start(self) -> anyhow::Result<World> {
        secrets::watch_this_process();
        let upstream = Scripted::start()?;
        let data = self.data;
        let file = data.path().join("stopover.toml");
        let table = format!(
            "[upstreams.\"test.local\"]\nurl = \"{}\"\ntrusted_hosts = [\"127.0.0.1\"]\n{}\n",
            upstream.url(),
            self.upstream
        );
        // Requests of tests come from nowhere in particular.
        let access = if self.settings.contains("[access]") { "" } else { "[access]\nanonymous = true\n" };
        fs::write(&file, format!("{}\n{table}{access}", self.settings))?;
        let default = if self.column == Column::Aws { Cold::Redirect } else { Cold::Follow };
        let secret = |name: &str| match name {
            "TEST_SECRET" => Some(PASSWORD.to_owned()),
            "TEST_KEYS" => Some(BASE64_STANDARD.encode([7; 32])),
            _ => None,
        };
        secrets::know("a key that tokens are signed with", &BASE64_STANDARD.encode([7; 32]));
        secrets::know_login("the password of an upstream", "me", PASSWORD);
        let column = self.column;
        let read = |reference: SecretReference| match reference {
            // As the functions have it: they are read when they are needed.
            SecretReference::Stored(_) if column == Column::Aws => Ok(String::new()),
            reference => reference.read(secret),
        };
        let mut config = Config::load(Some(&file), self.cold.unwrap_or(default), read)?;
        config.data_dir = data.path().to_owned();
        let clock = Clock::manual(Timestamp(1_800_000_000));
        let (cache, storage) = match self.column {
            Column::Embedded => {
                let local = Local::open(config, clock.clone()).await?;
                (Arc::clone(&local.cache), Storage::Embedded { data, local: Box::new(local) })
            }
            Column::Aws => aws(config, &clock).await?,
        };
        let router = router(Arc::clone(&cache));
        Ok(World { router, upstream, clock, cache, storage, _log: secrets::Watched })
    }
}

async fn aws(config: Config, clock: &Clock) -> anyhow::Result<(Arc<Cache>, Storage)> {
    let endpoints = Arc::new(Endpoints::start().await?);
    let cache = connect(config.clone(), clock, &endpoints)?;
    let filler = Filler::start(&cache, &endpoints);
    Ok((cache, Storage::Aws { endpoints, config: Box::new(config), _filler: filler }))
}

fn connect(config: Config, clock: &Clock, endpoints: &Endpoints) -> anyhow::Result<Arc<Cache>> {
    let sdk = endpoints.sdk_config();
    let s3 = aws::s3_client(&sdk).config().to_builder().timeout_config(patience());
    let dynamo = aws::dynamo_client(&sdk).config().to_builder().timeout_config(patience());
    let sqs = aws::sqs_client(&sdk).config().to_builder().timeout_config(patience());
    let blobs = aws::S3Blobs::new(aws_sdk_s3::Client::from_conf(s3.build()), endpoints.bucket().to_owned());
    let dynamo = aws_sdk_dynamodb::Client::from_conf(dynamo.build());
    let ledger = aws::DynamoLedger::new(dynamo, endpoints.table().to_owned(), blobs.clone());
    let fills = aws::SqsFills::new(aws_sdk_sqs::Client::from_conf(sqs.build()), queues(endpoints));
    let role = Arc::new(aws::OwnRole::of(sdk));
    let (blobs, ledger, fills) = (Arc::new(blobs), Arc::new(ledger), Arc::new(fills));
    let storage = stopover::ports::Storage { blobs, ledger, fills };
    Ok(Arc::new(Cache::new(config, clock.clone(), storage, Some(role))?))
}

/// For how long calls of AWS wait: longer than the functions do. Here one process has as many requests at once as a thousand
/// functions, and tests say what they cost, not how fast a busy machine is.
fn patience() -> TimeoutConfig {
    let patience = TimeoutConfig::builder().connect_timeout(DEADLINE).read_timeout(DEADLINE);
    patience.disable_operation_attempt_timeout().operation_timeout(DEADLINE).build()
}

/// The queues of these endpoints, as the template names them to the functions.
pub fn queues(endpoints: &Endpoints) -> aws::Queues {
    aws::Queues {
        interactive: endpoints.queue_url(),
        background: endpoints.background_queue_url(),
        dead: endpoints.dlq_url(),
    }
}

/// A cache on a data directory, as a process that starts has it: with this `stopover.toml`, and the system's clock.
pub async fn open(data: &Path, settings: &str) -> Local {
    open_at(Clock::default(), data, settings).await
}

/// The same with another clock.
pub async fn open_at(clock: Clock, data: &Path, settings: &str) -> Local {
    let file = data.join("stopover.toml");
    fs::write(&file, settings).expect("the directory is ours");
    let mut config =
        Config::load(Some(&file), Cold::Follow, |secret| secret.read(|_| None)).expect("a test's settings are right");
    config.data_dir = data.to_owned();
    Local::open(config, clock).await.expect("nobody else has the directory")
}

/// Waits until a condition holds.
pub async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            // The reason for this pause: the condition is another task's state, which tells nobody of its changes.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the condition comes true in time");
}

fn source(caller: &str) -> Peer {
    Some(caller.parse().expect("a test names a real address")).into()
}

fn checked(path: &str, bytes: &[u8]) -> String {
    let mut parts = path.rsplit('/');
    let (hex, _, algorithm) = (parts.next().unwrap_or_default(), parts.next(), parts.next().unwrap_or_default());
    let algorithm = if algorithm == "sha512" { Algorithm::Sha512 } else { Algorithm::Sha256 };
    let digest = Digest::of(algorithm, bytes);
    assert_eq!(digest.hex(), hex, "the bytes of {path} are not those of its name");
    digest.to_string()
}

/// The digests of the files below a directory, each checked against its bytes.
fn files(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = path.to_string_lossy().into_owned();
            ensure!(found.insert(checked(&text, &fs::read(&path)?)), "{text} is there twice");
        }
    }
    Ok(found.into_iter().collect())
}

/// Stamps behaviours, written once as `async fn name(column: Column)`, on both columns.
#[macro_export]
macro_rules! on_both_columns {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name($crate::world::Column::Embedded).await;
                }
            )+
        }
        mod aws {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name($crate::world::Column::Aws).await;
                }
            )+
        }
    };
}
