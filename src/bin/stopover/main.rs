//! `stopover`: the cache as one process.

#[cfg(not(panic = "unwind"))]
compile_error!("in a server one panic must cost one request: build this program with panic = \"unwind\"");

mod arguments;
mod client;
mod cost;
mod describe;
mod explain;
mod listener;
mod sendfile;
mod serve;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arguments::{Arguments, Command, ConfigCommand, FillsCommand, LogFormat, PolicyCommand, ServerArguments, Settings};
use clap::Parser as _;
use client::{Asker, Client, Endpoint, MirroredUpstream, Target};
use describe::{describe, reached_at, welcome};
use stopover::access::token::TokenKeys;
use stopover::cache::CacheError;
use stopover::config::{Cold, Config, SecretReference, SecretSource, UpstreamConfig};
use stopover::local::Local;
use stopover::oci::UpstreamId;
use stopover::values::time::Clock;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The name by which Docker and podman run this program as the credential helper `stopover`.
const DOCKER_CREDENTIAL: &str = "docker-credential-stopover";

/// How long running fills may go on after a signal to stop, at most: the next start continues them.
const FILLS_GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    if words.first().is_some_and(|name| Path::new(name).file_name() == Some(OsStr::new(DOCKER_CREDENTIAL))) {
        words.splice(..1, ["stopover".into(), "docker-credential".into()]);
    }
    let arguments = Arguments::parse_from(words);
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "stopover: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { command, settings }: Arguments) -> anyhow::Result<()> {
    let command = command.unwrap_or(Command::Serve);
    let config = match command {
        // These are run in any working directory; a configuration file there is not meant for them.
        Command::DockerCredential { .. } | Command::KubeletCredentialProvider { .. } | Command::Cost(_) => {
            Config::load(None, Cold::Follow, |_| Ok(String::new()))?
        }
        _ => load(&settings, &command)?,
    };
    match command {
        Command::DockerCredential { action, helper } => block_on(helper.answer_docker(action)),
        Command::KubeletCredentialProvider { helper } => block_on(helper.answer_kubelet()),
        Command::Config(ConfigCommand::Check) => {
            let access = config.access();
            if let Some(SecretSource::Text(keys)) = access.signing_keys.as_ref().filter(|_| access.has_logins()) {
                TokenKeys::parse(keys.as_str(), Clock::default()).map_err(CacheError::Keys)?;
            }
            Ok(std::io::stdout().write_all(describe(&config).as_bytes())?)
        }
        Command::Quota { asked } => ask(&config, Asker::Anyone, asked, async |client| client.quota().await),
        Command::Status { json, asked } => ask(&config, Asker::Anyone, asked, async |client| client.status(json).await),
        Command::Events { json, asked } => ask(&config, Asker::Anyone, asked, async |client| client.events(json).await),
        Command::Ls { what, shown, asked } => {
            ask(&config, Asker::Anyone, asked, async |client| client.list_stored(what.as_deref(), &shown).await)
        }
        Command::Inspect { image, shown, asked } => {
            ask(&config, Asker::Anyone, asked, async |client| client.inspect(&image, &shown).await)
        }
        Command::Du { prefix, shown, asked } => {
            ask(&config, Asker::Anyone, asked, async |client| client.disk_usage(prefix.as_deref(), &shown).await)
        }
        Command::Fills { command, asked } => ask(&config, Asker::Operator, asked, async |client| match command {
            None => client.fills().await,
            Some(FillsCommand::Retry) => client.retry_fills().await,
        }),
        Command::Prefetch { order, asked } => {
            ask(&config, Asker::Anyone, asked, async |client| client.prefetch(order).await)
        }
        Command::Gc { dry_run, asked } => {
            ask(&config, Asker::Operator, asked, async |client| client.collect_garbage(dry_run).await)
        }
        Command::Purge { image, asked } => {
            ask(&config, Asker::Operator, asked, async |client| client.purge(&image).await)
        }
        Command::Robot { command, asked } => {
            ask(&config, Asker::Operator, asked, async |client| client.robots(&command.into()).await)
        }
        Command::Policy(PolicyCommand::Explain(question)) => {
            let explanation = question.answer(&config)?;
            std::io::stdout().write_all(explanation.text.as_bytes())?;
            anyhow::ensure!(explanation.allowed, "the pull would be denied");
            Ok(())
        }
        Command::Doctor { examination, asked } => {
            ask(&config, Asker::Client, asked, async |client| client.examine(examination, &config).await)
        }
        Command::Setup { client: None, .. } => Ok(std::io::stdout().write_all(client::list().as_bytes())?),
        Command::Setup { client: Some(client), server, upstreams } => set_up(&config, client, server, upstreams),
        Command::Login { login, server } => block_on(login.run(&endpoint(&config, server)?)),
        Command::Cost(month) => Ok(std::io::stdout().write_all(month.answer()?.as_bytes())?),
        Command::Refresh { images, asked } => {
            ask(&config, Asker::Anyone, asked, async |client| client.refresh(&images).await)
        }
        Command::Serve => {
            start_logging(&settings)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                // Each thread that has read a file keeps the memory of a buffer.
                .max_blocking_threads(16)
                .build()?;
            let outcome = runtime.block_on(serve(config, settings.grace.0));
            runtime.shutdown_timeout(Duration::from_secs(1));
            outcome
        }
    }
}

/// Asks a running cache, because it alone may open its ledger, and prints the answer.
fn ask(
    config: &Config,
    asker: Asker,
    ServerArguments { server, login }: ServerArguments,
    question: impl AsyncFnOnce(Client) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let socket = if server.is_none() { asker.socket(&config.data_dir, &login)? } else { None };
    let client = Client::new(endpoint(config, server)?, login, socket)?;
    let text = block_on(question(client))?;
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// The cache to ask: if none is named, the one that this configuration starts.
fn endpoint(config: &Config, named: Option<Endpoint>) -> anyhow::Result<Endpoint> {
    named.map_or_else(|| format!("http://{}", reached_at(config.listen)).parse(), Ok)
}

/// Prints a client's configuration, and on standard error the steps it has no room for and possible mistakes.
fn set_up(config: &Config, client: Target, server: Option<Endpoint>, upstreams: Vec<UpstreamId>) -> anyhow::Result<()> {
    let server = endpoint(config, server)?;
    // A family stands for too many registries to be meant without a name.
    let single = |(id, upstream): (&UpstreamId, &Arc<UpstreamConfig>)| upstream.family.is_none().then(|| id.clone());
    let all = || config.upstreams.iter().filter_map(single).collect();
    let upstreams: Vec<UpstreamId> = if upstreams.is_empty() { all() } else { upstreams };
    let mut beside = std::io::stderr();
    for id in upstreams.iter().filter(|id| !config.upstreams.contains_key(*id)) {
        writeln!(
            beside,
            "{id}: this configuration has no such upstream; the cache answers for it only if its own has"
        )?;
    }
    let upstreams: Vec<MirroredUpstream> =
        upstreams.into_iter().map(|id| MirroredUpstream::new(id, config)).collect::<anyhow::Result<_>>()?;
    beside.write_all(client.advice(&server, &upstreams).as_bytes())?;
    Ok(std::io::stdout().write_all(client.configuration(&server, &upstreams).as_bytes())?)
}

fn load(settings: &Settings, command: &Command) -> anyhow::Result<Config> {
    // The other commands ask no upstream, and run where the passwords of upstreams are not known.
    let secret: fn(SecretReference) -> Result<String, String> = match command {
        // The file of a deployment on AWS is checked here too.
        Command::Config(_) => |secret| match secret {
            SecretReference::Stored(_) => Ok(String::new()),
            secret => secret.read(|name| std::env::var(name).ok()),
        },
        Command::Serve => |secret| secret.read(|name| std::env::var(name).ok()),
        _ => |_| Ok(String::new()),
    };
    let beside = PathBuf::from("stopover.toml");
    let path = settings.config.clone().or_else(|| beside.exists().then_some(beside));
    let mut config = Config::load(path.as_deref(), Cold::Follow, secret)?;
    config.listen = settings.listen.unwrap_or(config.listen);
    config.data_dir = settings.data_dir.clone().unwrap_or(config.data_dir);
    Ok(config)
}

fn start_logging(settings: &Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log)
        .with_context(|| format!("{:?} is no log filter: try info, or stopover=debug", settings.log))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => subscriber.with_target(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    std::panic::set_hook(Box::new(serve::log_panic));
    Ok(())
}

async fn serve(config: Config, grace: Duration) -> anyhow::Result<()> {
    let listen = config.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}: choose another address with --listen, or listen in stopover.toml")
    })?;
    let address = listener.local_addr()?;
    let welcome = welcome(&config, address);
    let local = Local::open(config, Clock::default()).await?;
    let operators = local.listen_to_operators()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    std::io::stderr().write_all(welcome.as_bytes())?;
    local.keep_schedules();
    let router = stopover::http::router(Arc::clone(&local.cache));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let stopped = || {
        let mut stopped = stopped.clone();
        async move { _ = stopped.wait_for(|&stop| stop).await }
    };
    let cache = Some(Arc::clone(&local.cache));
    let clients = serve::run(listener, router.clone(), cache, serve::most_connections(), stopped());
    let operators = serve::run(operators, router, None, serve::OPERATORS, stopped());
    let mut server = tokio::spawn(async {
        tokio::join!(clients, operators);
    });
    let ended = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = &mut server => true,
    };
    let fills = grace.min(FILLS_GRACE);
    tracing::info!("stopping: answers under way have {grace:?}, fills {fills:?}; a second signal ends both");
    stop.send_replace(true);
    // Answers that follow a fill end when it is parked, and their clients resume; those of stored blobs are sent.
    let stopping = async {
        let server = async move { if ended { Ok(Ok(())) } else { tokio::time::timeout(grace, server).await } };
        tokio::join!(local.stop(fills), server)
    };
    tokio::select! {
        (_lock, _) = stopping => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopped");
    // The service manager starts the program again.
    anyhow::ensure!(!ended, "connections are no longer taken: the log says why");
    Ok(())
}
