//! The cache of a process, which follows its configuration: a good one takes the place of the one before, a bad one is
//! told and changes nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aws_types::SdkConfig;
use stopover::cache::Cache;
use stopover::config::{Cold, Config, SecretReference};
use stopover::errors::{StoreError, chain};
use stopover::journal::Metric;
use stopover::ports::Storage;
use stopover::values::time::{Clock, Timestamp};
use tokio::sync::Mutex;

use crate::configuration::{Place, Reader, Written};
use crate::metrics::count;
use crate::settings::{CONFIG_URI, Settings, Wrong};
use crate::signed::SignedCalls;
use crate::{DynamoLedger, OwnRole, S3Blobs, SqsFills, dynamo_client, s3_client, sqs_client};

/// How often the configuration is read again.
const FRESH: Duration = Duration::from_mins(1);
/// How often, while there is none.
const FRESH_WITHOUT: Duration = Duration::from_secs(5);
/// How long a request waits for that, and how long the first one does.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_WITHOUT: Duration = Duration::from_secs(8);

/// The variables of the environment, by name.
type Variables = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What is made of a cache, made anew with each configuration.
pub struct Site<T> {
    /// The bucket of blobs. It stays the same whatever the configuration says, and so do the others.
    pub blobs: S3Blobs,
    /// The table.
    pub ledger: Arc<DynamoLedger>,
    /// The queues of fills.
    pub fills: Arc<SqsFills>,
    role: Arc<OwnRole>,
    variables: Variables,
    place: Place,
    reader: Reader,
    clock: Clock,
    make: Box<dyn Fn(Arc<Cache>) -> T + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// With its cache. `None`: there has been no good configuration.
    current: Option<(T, Arc<Cache>)>,
    /// What was read last, good or bad.
    written: Option<Written>,
    next_at: Timestamp,
    /// Why what was read last is not current.
    wrong: Option<String>,
    /// Why nothing could be read.
    unread: Option<String>,
}

impl<T> State<T> {
    fn is_wrong(&self) -> bool {
        self.unread.is_some() || self.wrong.is_some()
    }
}

impl<T: Clone> Site<T> {
    /// Reads the environment and the configuration.
    ///
    /// # Errors
    /// The environment or a file is wrong: until the next deployment there is no cache. What an operator may replace
    /// meanwhile is no such error: see [`Self::current`].
    pub async fn connect(
        variables: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
        aws: SdkConfig,
        clock: Clock,
        make: impl Fn(Arc<Cache>) -> T + Send + Sync + 'static,
    ) -> Result<Self, Wrong> {
        let settings = Settings::read(&variables)?;
        let blobs = S3Blobs::new(s3_client(&aws), settings.bucket);
        let ledger = Arc::new(DynamoLedger::new(dynamo_client(&aws), settings.table, blobs.clone()));
        let fills = Arc::new(SqsFills::new(sqs_client(&aws), settings.queues));
        let calls = SignedCalls::new(aws.clone());
        let reader = Reader { calls: calls.clone(), s3: s3_client(&aws) };
        let role = Arc::new(OwnRole::new(calls));
        let state = State { current: None, written: None, next_at: Timestamp(0), wrong: None, unread: None };
        let site = Self {
            blobs,
            ledger,
            fills,
            role,
            variables: Box::new(variables),
            place: settings.configuration,
            reader,
            clock,
            make: Box::new(make),
            state: Mutex::new(state),
        };
        if let Place::File(path) = &site.place {
            let config = Config::load(path.as_deref(), Cold::Redirect, |secret| site.secret(secret));
            let built = config.map_err(anyhow::Error::from).and_then(|config| site.build(config));
            site.state.lock().await.current = Some(built.map_err(|error| Wrong::new("stopover.toml", error))?);
            // An alarm ends that a deployment before has raised.
            count(&[(Metric::ConfigurationErrors, 0)]);
        } else {
            let _ = site.current().await;
        }
        Ok(site)
    }

    /// What the newest good configuration makes; it is looked for once a minute. Fails where there has been none.
    ///
    /// # Errors
    /// `STOPOVER_CONFIG_URI`, until there is a good one.
    pub async fn current(&self) -> Result<T, Wrong> {
        let mut state = self.state.lock().await;
        let now = self.clock.now();
        if state.next_at <= now && !matches!(self.place, Place::File(_)) {
            self.follow(&mut state).await;
            state.next_at = now.plus(if state.current.is_some() { FRESH } else { FRESH_WITHOUT });
        }
        let State { current, wrong, unread, .. } = &*state;
        let why = || Wrong::new(CONFIG_URI, unread.as_ref().or(wrong.as_ref()).map_or("", String::as_str));
        current.as_ref().map(|(made, _)| made.clone()).ok_or_else(why)
    }

    /// Writes down what was counted and is not written down yet: for a process that ends.
    pub async fn write_counts(&self) {
        if let Some((_, cache)) = &self.state.lock().await.current {
            cache.operate.write_counts().await;
        }
    }

    async fn follow(&self, state: &mut State<T>) {
        let (is_first, was_wrong) = (state.written.is_none(), state.is_wrong());
        let patience = if state.current.is_some() { PATIENCE } else { PATIENCE_WITHOUT };
        let read = self.reader.read(&self.place, state.written.as_ref());
        let late = |_| Err(StoreError::Unavailable("it took too long".into()));
        match tokio::time::timeout(patience, read).await.unwrap_or_else(late) {
            // It is as it was, and as right or wrong.
            Ok(None) => state.unread = None,
            Ok(Some(written)) => {
                state.unread = None;
                match self.parse(&written.text) {
                    Ok(made) => {
                        tracing::info!(version = written.version, "{} is the configuration", self.place);
                        state.wrong = None;
                        if let Some((_, before)) = state.current.replace(made) {
                            before.operate.write_counts().await;
                        }
                        self.keep(&written.text).await;
                    }
                    Err(error) => {
                        let error = format!("{error:#}");
                        let version = &written.version;
                        tracing::error!(version, "the configuration is wrong; the one before it stays: {error}");
                        state.wrong = Some(error);
                        if state.current.is_none() {
                            state.current = self.last_good().await;
                        }
                    }
                }
                state.written = Some(written);
            }
            Err(error) => {
                let error = format!("{} cannot be read: {}", self.place, chain(&error));
                if state.unread.as_deref() != Some(&error) {
                    tracing::error!("the configuration stays as it is: {error}");
                }
                state.unread = Some(error);
                if state.current.is_none() {
                    state.current = self.last_good().await;
                }
            }
        }
        // Each time while it is wrong, so that an alarm lasts; and once that it is right, so that it ends.
        if is_first || was_wrong || state.is_wrong() {
            count(&[(Metric::ConfigurationErrors, state.is_wrong().into())]);
        }
        if let Some((_, cache)) = &state.current {
            cache.core.journal.note_configuration(state.unread.as_deref().or(state.wrong.as_deref()));
        }
    }

    /// Keeps a good configuration in the table: for a process that starts while there is none.
    async fn keep(&self, text: &str) {
        let kept = tokio::time::timeout(PATIENCE, self.ledger.keep_configuration(text));
        let late = |_| Err(StoreError::Unavailable("it took too long".into()));
        if let Err(error) = kept.await.unwrap_or_else(late) {
            tracing::warn!(error = %chain(&error), "the configuration could not be kept for processes that start later");
        }
    }

    /// What was good last, in any process.
    async fn last_good(&self) -> Option<(T, Arc<Cache>)> {
        let kept = tokio::time::timeout(PATIENCE, self.ledger.kept_configuration()).await.ok()?;
        let made = self.parse(&kept.ok()??).ok()?;
        tracing::warn!("the last configuration that was good is used: {}", self.place);
        Some(made)
    }

    fn parse(&self, text: &str) -> anyhow::Result<(T, Arc<Cache>)> {
        let place = self.place.to_string();
        self.build(Config::parse(text, Path::new(&place), Cold::Redirect, |secret| self.secret(secret))?)
    }

    /// Secrets that are stored are read when they are needed.
    fn secret(&self, secret: SecretReference) -> Result<String, String> {
        if let SecretReference::Stored(_) = secret { Ok(String::new()) } else { secret.read(&self.variables) }
    }

    fn build(&self, mut config: Config) -> anyhow::Result<(T, Arc<Cache>)> {
        let settings = Settings::read(&self.variables)?;
        let access = config.access.get_or_insert(settings.access);
        if access.signing_keys.is_none() {
            access.signing_keys = settings.signing_keys;
        }
        if let Some(iam) = &mut access.iam {
            iam.partition = iam.partition.or(settings.partition);
            ensure!(
                iam.organization.is_none() || iam.partition == settings.partition,
                "access.iam.organization: an organisation is of the partition that this function runs in, and of no other"
            );
        }
        for (whose, settings) in config.settings() {
            ensure!(
                settings.cold != Cold::Follow,
                "{whose}: cold = \"follow\" needs fills in the same process; here it is \"redirect\" or \"wait\""
            );
        }
        ensure!(
            config.retention.max_size.is_none(),
            "max_size is for a cache on one machine; here keep says what stays"
        );
        let (ledger, fills) = (Arc::clone(&self.ledger) as _, Arc::clone(&self.fills) as _);
        let storage = Storage { blobs: Arc::new(self.blobs.clone()), ledger, fills };
        let role = Some(Arc::clone(&self.role) as _);
        let cache = Cache::new(config, self.clock.clone(), storage, role).context("cannot start")?;
        let cache = Arc::new(cache);
        Ok(((self.make)(Arc::clone(&cache)), cache))
    }
}
