//! `stopover`: the cache as one process.

#[cfg(not(panic = "unwind"))]
compile_error!("in a server one panic must cost one request: build this program with panic = \"unwind\"");

mod arguments;
mod client;
mod cost;
mod describe;
mod explain;
mod listener;
mod manual;
mod output;
mod sendfile;
mod serve;
mod slots;
mod threads;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arguments::{
    Arguments, Command, ConfigCommand, FillsCommand, InstallationArguments, LogFormat, PolicyCommand, ServeArguments,
    no_secrets,
};
use client::{Asker, NothingStored};
use describe::{describe, welcome};
use output::{ReadEnough, print};
use stopover::access::token::TokenKeys;
use stopover::cache::CacheError;
use stopover::config::{Config, SecretReference, SecretSource};
use stopover::local::Local;
use stopover::values::time::Clock;
use threads::Threads;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The name by which Docker and podman run this program as the credential helper `stopover`.
const DOCKER_CREDENTIAL: &str = "docker-credential-stopover";

/// How a purge ends that has found nothing: 1 says that something went wrong, and 2 that the arguments did.
const NOTHING_STORED: u8 = 3;

/// How long running fills may go on after a signal to stop, at most: the next start continues them.
const FILLS_GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    if words.first().is_some_and(|name| Path::new(name).file_name() == Some(OsStr::new(DOCKER_CREDENTIAL))) {
        words.splice(..1, ["stopover".into(), "docker-credential".into()]);
    }
    match run(Arguments::read(words).command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ReadEnough>() => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "stopover: {error:#}");
            if error.is::<NothingStored>() { ExitCode::from(NOTHING_STORED) } else { ExitCode::FAILURE }
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(arguments) => start(&arguments),
        Command::DockerCredential { action, helper } => block_on(helper.answer_docker(action)),
        Command::KubeletCredentialProvider(helper) => block_on(helper.answer_kubelet()),
        Command::Config(ConfigCommand::Init { file }) => {
            manual::begin_configuration(&file)?;
            print(&format!("{} is written: every key with its default\n", file.display()))
        }
        Command::Config(ConfigCommand::Check(installation)) => check(&installation),
        Command::Quota(asked) => block_on(asked.client(Asker::Anyone)?.quota()),
        Command::Status(asked) => block_on(asked.client(Asker::Anyone)?.status()),
        Command::Health(asked) => block_on(asked.client(Asker::Anyone)?.health()),
        Command::Events(asked) => block_on(asked.client(Asker::Anyone)?.events()),
        Command::Ls { what, shown } => {
            block_on(shown.asked.client(Asker::Anyone)?.list_stored(what.as_deref(), shown.quiet))
        }
        Command::Inspect { image, shown } => block_on(shown.asked.client(Asker::Anyone)?.inspect(&image, shown.quiet)),
        Command::Du { prefix, shown } => {
            block_on(shown.asked.client(Asker::Anyone)?.disk_usage(prefix.as_deref(), shown.quiet))
        }
        Command::Fills { command: None, asked } => block_on(asked.client(Asker::Anyone)?.fills()),
        Command::Fills { command: Some(FillsCommand::Retry), asked } => {
            block_on(asked.client(Asker::Operator)?.retry_fills())
        }
        Command::Prefetch { order, asked } => block_on(asked.client(Asker::Anyone)?.prefetch(order)),
        Command::Gc { dry_run, asked } => block_on(asked.client(Asker::Operator)?.collect_garbage(dry_run)),
        Command::Purge { image, asked } => block_on(asked.client(Asker::Operator)?.purge(&image)),
        Command::Robot { command, asked } => block_on(asked.client(Asker::Operator)?.robots(&command)),
        Command::Policy(PolicyCommand::Explain { question, file }) => {
            let (is_allowed, why) = question.answer(&file.load(no_secrets)?)?;
            print(&why)?;
            anyhow::ensure!(is_allowed, "the pull would be denied");
            Ok(())
        }
        Command::Doctor { examination, asked } => {
            let config = asked.installation.load(no_secrets)?;
            block_on(asked.client(Asker::Client)?.examine(examination, &config))
        }
        Command::Setup { client: None, .. } => print(&client::list()),
        Command::Setup { client: Some(client), reached, upstreams } => {
            print(&client::set_up(client, &reached.load()?, upstreams)?)
        }
        Command::Login { login, reached } => block_on(login.run(&reached.load()?.1)),
        Command::Logout { logout, reached } => block_on(logout.run(&reached.load()?.1)),
        Command::Cost(month) => print(&month.answer()?),
        Command::Refresh { images, asked } => block_on(asked.client(Asker::Anyone)?.refresh(&images)),
        Command::Completions { shell } => print(&manual::complete(shell)?),
        Command::Man { directory } => print(&manual::write(directory.as_deref())?),
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Says what a configuration amounts to. That of a deployment on AWS is checked here too.
fn check(installation: &InstallationArguments) -> anyhow::Result<()> {
    let config = installation.load(|secret| match secret {
        SecretReference::Stored(_) => Ok(String::new()),
        secret => secret.read(|name| std::env::var(name).ok()),
    })?;
    let access = config.access();
    if let Some(SecretSource::Text(keys)) = access.signing_keys.as_ref().filter(|_| access.has_logins()) {
        TokenKeys::parse(keys.as_str(), Clock::default()).map_err(CacheError::Keys)?;
    }
    print(&describe(&config))
}

/// Serves until a signal ends it.
fn start(arguments: &ServeArguments) -> anyhow::Result<()> {
    let mut config = arguments.installation.load(|secret| secret.read(|name| std::env::var(name).ok()))?;
    config.listen = arguments.listen.map_or(config.listen, |listen| listen.0);
    start_logging(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Each thread that has read a file keeps the memory of a buffer.
        .max_blocking_threads(16)
        .build()?;
    let outcome = runtime.block_on(serve(config, arguments.grace.0, arguments.quiet));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

fn start_logging(arguments: &ServeArguments) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(arguments.log())
        .with_context(|| format!("{:?} is no log filter: try info, or stopover=debug", arguments.log()))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Text => subscriber.with_target(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    std::panic::set_hook(Box::new(serve::log_panic));
    Ok(())
}

async fn serve(config: Config, grace: Duration, quiet: bool) -> anyhow::Result<()> {
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
    if !quiet {
        std::io::stderr().write_all(welcome.as_bytes())?;
    }
    local.keep_schedules();
    let router = stopover::http::router(Arc::clone(&local.cache));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let stopped = || {
        let mut stopped = stopped.clone();
        async move { _ = stopped.wait_for(|&stop| stop).await }
    };
    let cache = Some(Arc::clone(&local.cache));
    let threads = std::thread::available_parallelism().and_then(Threads::start).context("no threads can be started")?;
    let clients = serve::run(listener, router.clone(), cache, serve::most_connections(), threads.clone(), stopped());
    let operators = serve::run(operators, router, None, serve::OPERATORS, threads, stopped());
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
