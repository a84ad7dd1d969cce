//! `stopover`: the cache as one process.

mod client;
mod explain;
mod serve;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use client::{
    Client, ClientLogin, DockerAction, Endpoint, Examination, Helper, Login, Operator, Order, Target, Upstream,
};
use explain::Question;
use stopover::CacheError;
use stopover::access::token::TokenKeys;
use stopover::access::{RobotCommand, RobotName};
use stopover::config::{Cold, Config, DEFAULT_UPSTREAM, SecretReference, UpstreamConfig};
use stopover::local::Local;
use stopover::oci::UpstreamId;
use stopover::time::{Clock, Span, written};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The name by which Docker and podman run this program as the credential helper `stopover`.
const DOCKER_CREDENTIAL: &str = "docker-credential-stopover";

/// How long running fills and open connections may go on after a signal to stop.
const GRACE: Duration = Duration::from_secs(5);

/// A pull-through cache for container registries.
///
/// Without a command it serves: `stopover` is `stopover serve`.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args)]
struct Settings {
    /// The configuration file [default: stopover.toml in the working directory, where there is one]
    #[arg(long, global = true, env = "STOPOVER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address to listen on [default: 127.0.0.1:5000]
    #[arg(long, global = true, env = "STOPOVER_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The directory that holds the cache [default: ./stopover-data]
    #[arg(long, global = true, env = "STOPOVER_DATA_DIR", value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, or a filter like stopover=debug
    #[arg(long, global = true, env = "STOPOVER_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// How it is logged
    #[arg(long, global = true, env = "STOPOVER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    /// One readable line an event
    Text,
    /// One JSON object an event
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the registry API and copy what is missing from upstream
    Serve,
    /// Have images stored before anybody pulls them
    Prefetch {
        #[command(flatten)]
        order: Order,
        #[command(flatten)]
        asked: Asked,
    },
    /// Ask upstream now what tags are, however fresh the cache thinks they are
    Refresh {
        /// Images like docker.io/library/alpine:3.20 or ghcr.io/owner/name:tag
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        #[command(flatten)]
        asked: Asked,
    },
    /// Remove what nobody has used within `keep`, as happens every hour anyway
    Gc {
        /// Only say what would go, and how much that frees
        #[arg(long)]
        dry_run: bool,
        /// The running cache to ask [default: the one at the configured address]
        #[arg(long, value_name = "URL")]
        server: Option<Endpoint>,
    },
    /// Remove an image, pinned or not, and what nothing else needs
    Purge {
        /// An image like docker.io/library/alpine:3.20 or ghcr.io/owner/name@sha256:…
        #[arg(value_name = "IMAGE")]
        image: String,
        /// The running cache to ask [default: the one at the configured address]
        #[arg(long, value_name = "URL")]
        server: Option<Endpoint>,
    },
    /// Show how much is left of each upstream's quota
    Quota {
        #[command(flatten)]
        asked: Asked,
    },
    /// Show the fills that are under way, and those that were given up with the reason
    Fills {
        #[command(subcommand)]
        command: Option<FillsCommand>,
        /// The running cache to ask [default: the one at the configured address]
        #[arg(long, global = true, value_name = "URL")]
        server: Option<Endpoint>,
    },
    /// Manage robots: names with secrets that let machines in
    Robot {
        #[command(subcommand)]
        command: RobotArguments,
        /// The running cache to ask [default: the one at the configured address]
        #[arg(long, global = true, value_name = "URL")]
        server: Option<Endpoint>,
    },
    /// Look at the policy: who may pull what
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Print the configuration that has a client pull through the cache
    Setup {
        /// The client; without one, all are listed
        client: Option<Target>,
        /// Where clients reach the cache, over http or https [default: the configured address]
        #[arg(long, value_name = "URL")]
        server: Option<Endpoint>,
        /// The registries to pull through the cache [default: all that are configured, but for `*-docker.pkg.dev`]
        #[arg(long = "upstream", value_name = "ID")]
        upstreams: Vec<UpstreamId>,
    },
    /// Check from this machine, step by step, that pulls go through the cache
    Doctor {
        #[command(flatten)]
        examination: Examination,
        #[command(flatten)]
        asked: Asked,
    },
    /// Log a client in at the cache, as whom AWS or the issuer of an ID token says that this machine is
    Login {
        #[command(flatten)]
        login: ClientLogin,
        /// Where clients reach the cache [default: the configured address]
        #[arg(long, env = "STOPOVER_SERVER", value_name = "URL")]
        server: Option<Endpoint>,
    },
    /// Answer Docker and podman, as the credential helper that a link called docker-credential-stopover makes of this
    DockerCredential {
        action: DockerAction,
        #[command(flatten)]
        helper: Helper,
    },
    /// Answer the kubelet, as an image credential provider (v1)
    KubeletCredentialProvider {
        #[command(flatten)]
        helper: Helper,
    },
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// Which cache is asked, and by whom.
#[derive(clap::Args)]
struct Asked {
    /// The running cache to ask [default: the one at the configured address]
    #[arg(long, value_name = "URL")]
    server: Option<Endpoint>,
    #[command(flatten)]
    login: Login,
}

impl Asked {
    /// By an operator: without a login.
    fn by_operator(server: Option<Endpoint>) -> Self {
        Self { server, login: Login::default() }
    }
}

#[derive(Subcommand)]
enum FillsCommand {
    /// Try again what was given up
    Retry,
}

#[derive(Subcommand)]
enum RobotArguments {
    /// Make a robot, and show its secret, this once
    Add {
        name: RobotName,
        /// How long it is let in: 90d, 12h … [default: until it is removed]
        #[arg(long, value_name = "DURATION")]
        expires: Option<Span>,
    },
    /// Name all robots
    List,
    /// Give a robot a new secret, and show it, this once
    Rotate {
        name: RobotName,
        /// How long the secret before is still taken [default: 1day]
        #[arg(long, value_name = "DURATION")]
        overlap: Option<Span>,
        /// How long it is let in from now on: 90d, 12h … [default: as long as before]
        #[arg(long, value_name = "DURATION")]
        expires: Option<Span>,
    },
    /// Remove a robot
    Remove { name: RobotName },
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Say whether somebody may pull an image, and why; ends with 1 if not
    Explain(Question),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether the configuration can be used, and what it amounts to
    Check,
}

impl From<RobotArguments> for RobotCommand {
    fn from(arguments: RobotArguments) -> Self {
        match arguments {
            RobotArguments::Add { name, expires } => Self::Add { name, expires },
            RobotArguments::List => Self::List,
            RobotArguments::Rotate { name, overlap, expires } => Self::Rotate { name, overlap, expires },
            RobotArguments::Remove { name } => Self::Remove { name },
        }
    }
}

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
        // Clients run these wherever they happen to be, and no file there is about them.
        Command::DockerCredential { .. } | Command::KubeletCredentialProvider { .. } => {
            Config::load(None, Cold::Follow, |_| Ok(String::new()))?
        }
        _ => load(&settings, &command)?,
    };
    match command {
        Command::DockerCredential { action, helper } => block_on(helper.answer_docker(action)),
        Command::KubeletCredentialProvider { helper } => block_on(helper.answer_kubelet()),
        Command::Config(ConfigCommand::Check) => {
            let access = config.access();
            if let Some(keys) = access.signing_keys.as_ref().filter(|_| access.has_logins()) {
                TokenKeys::parse(keys.as_str(), Clock::default()).map_err(CacheError::Keys)?;
            }
            Ok(std::io::stdout().write_all(describe(&config).as_bytes())?)
        }
        Command::Quota { asked } => ask(&config, asked, async |client| client.quota().await),
        Command::Fills { command: None, server } => {
            ask(&config, Asked::by_operator(server), async |client| client.fills().await)
        }
        Command::Fills { command: Some(FillsCommand::Retry), server } => {
            ask(&config, Asked::by_operator(server), async |client| client.retry_fills().await)
        }
        Command::Prefetch { order, asked } => ask(&config, asked, async |client| client.prefetch(order).await),
        Command::Gc { dry_run, server } => {
            ask(&config, Asked::by_operator(server), async |client| client.collect_garbage(dry_run).await)
        }
        Command::Purge { image, server } => {
            ask(&config, Asked::by_operator(server), async |client| client.purge(&image).await)
        }
        Command::Robot { command, server } => {
            ask(&config, Asked::by_operator(server), async |client| client.robots(&command.into()).await)
        }
        Command::Policy(PolicyCommand::Explain(question)) => {
            let explanation = question.answer(&config)?;
            std::io::stdout().write_all(explanation.text.as_bytes())?;
            anyhow::ensure!(explanation.allowed, "the pull would be denied");
            Ok(())
        }
        Command::Doctor { examination, asked } => {
            ask(&config, asked, async |client| client.examine(examination, &config).await)
        }
        Command::Setup { client: None, .. } => Ok(std::io::stdout().write_all(client::list().as_bytes())?),
        Command::Setup { client: Some(client), server, upstreams } => set_up(&config, client, server, upstreams),
        Command::Login { login, server } => block_on(login.run(&endpoint(&config, server)?)),
        Command::Refresh { images, asked } => ask(&config, asked, async |client| client.refresh(&images).await),
        Command::Serve => {
            start_logging(&settings)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                // Each thread that has read a file keeps a buffer's worth of memory.
                .max_blocking_threads(16)
                .build()?;
            let outcome = runtime.block_on(serve(config));
            runtime.shutdown_timeout(Duration::from_secs(1));
            outcome
        }
    }
}

/// Asks a running cache, because it alone may open its ledger, and prints what it says.
fn ask(
    config: &Config,
    Asked { server, login }: Asked,
    question: impl AsyncFnOnce(Client) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let own = endpoint(config, None)?;
    let server = server.unwrap_or_else(|| own.clone());
    let operator = Operator::read(&config.data_dir, &server, &own);
    let client = Client::new(server, login, operator)?;
    let text = block_on(question(client))?;
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// The cache that is meant, where none is named: the one that this configuration starts.
fn endpoint(config: &Config, named: Option<Endpoint>) -> anyhow::Result<Endpoint> {
    named.map_or_else(|| format!("http://{}", reached_at(config.listen)).parse(), Ok)
}

/// Where clients on this machine reach what listens there: every address of it is none that they can name.
fn reached_at(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    listen
}

/// Prints a client's configuration, and on standard error what that has no room for and what may be a mistake.
fn set_up(config: &Config, client: Target, server: Option<Endpoint>, upstreams: Vec<UpstreamId>) -> anyhow::Result<()> {
    let server = endpoint(config, server)?;
    // Of a family there are too many to be meant without being named.
    let single = |(id, upstream): (&UpstreamId, &UpstreamConfig)| upstream.family.is_none().then(|| id.clone());
    let all = || config.upstreams.iter().filter_map(single).collect();
    let upstreams: Vec<UpstreamId> = if upstreams.is_empty() { all() } else { upstreams };
    let mut beside = std::io::stderr();
    for id in upstreams.iter().filter(|id| !config.upstreams.contains_key(id)) {
        writeln!(
            beside,
            "{id}: this configuration has no such upstream; the cache answers for it only if its own has"
        )?;
    }
    let upstreams: Vec<Upstream> =
        upstreams.into_iter().map(|id| Upstream::new(id, config)).collect::<anyhow::Result<_>>()?;
    beside.write_all(client.advice(&server, &upstreams).as_bytes())?;
    Ok(std::io::stdout().write_all(client.configuration(&server, &upstreams).as_bytes())?)
}

fn load(settings: &Settings, command: &Command) -> anyhow::Result<Config> {
    // The other commands ask no upstream, and run where its passwords are not.
    let secret: fn(SecretReference) -> Result<String, String> = match command {
        Command::Serve | Command::Config(_) => |secret| secret.read(|name| std::env::var(name).ok()),
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
    Ok(())
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let listen = config.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}: choose another address with --listen, or listen in stopover.toml")
    })?;
    let address = listener.local_addr()?;
    let welcome = welcome(&config, address);
    let local = Local::open(config, Clock::default()).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    std::io::stderr().write_all(welcome.as_bytes())?;
    local.keep_schedules();
    let router = stopover::http::router(Arc::clone(&local.cache));
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let stopped = async move { _ = stopped.wait_for(|&stop| stop).await };
    let server = tokio::spawn(serve::run(listener, router, serve::most_connections(), stopped));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: running fills have {} s, the rest is parked for the next start", GRACE.as_secs());
    stop.send_replace(true);
    local.stop(GRACE).await;
    // Connections that still follow a parked fill are cut; their clients resume.
    let _ = tokio::time::timeout(Duration::from_secs(1), server).await;
    tracing::info!("stopped");
    Ok(())
}

fn welcome(config: &Config, address: SocketAddr) -> String {
    let shown = |(id, upstream): (&UpstreamId, &UpstreamConfig)| upstream.family.map_or(id.to_string(), str::to_owned);
    let mut upstreams: Vec<String> = config.upstreams.iter().map(shown).collect();
    upstreams.sort_unstable_by_key(|id| (id != DEFAULT_UPSTREAM, id.clone()));
    upstreams.dedup();
    let source = config.source.as_ref().map_or("defaults".into(), |path| path.display().to_string());
    let (here, access) = (reached_at(address), config.access());
    let next = if access.anonymous.admits(Some(here.ip()).into()) {
        format!(
            "try:\n  \
               curl -s http://{here}/v2/\n  \
               skopeo copy --src-tls-verify=false docker://{here}/docker.io/library/alpine:latest dir:alpine\n  \
               podman pull --tls-verify=false {here}/docker.io/library/alpine:latest\n  \
               docker pull {here}/docker.io/library/alpine:latest\n"
        )
    } else if access.has_logins() {
        format!(
            "callers on this machine have to log in:\n  \
               podman login --tls-verify=false {here}\n  \
               stopover doctor says whether a login is good, and what else is in the way\n"
        )
    } else {
        "callers on this machine are not answered: [access] in the settings says who is\n".into()
    };
    format!(
        "stopover {version}: a pull-through cache for container registries\n\
         listening on http://{address}\n\
         data in {data}, settings from {source}\n\
         serving {upstreams}\n\
         {next}",
        version = env!("CARGO_PKG_VERSION"),
        data = config.data_dir.display(),
        upstreams = upstreams.join(", "),
    )
}

fn describe(config: &Config) -> String {
    use std::fmt::Write as _;
    let source = config.source.as_ref().map_or("no file: defaults".into(), |path| path.display().to_string());
    let mut text = format!(
        "The configuration can be used ({source}).\nlisten    {}\ndata_dir  {}\nwait      {}\nkeep      {}\n",
        config.listen,
        config.data_dir.display(),
        written(config.wait),
        config.retention.keep.map_or("forever".into(), written),
    );
    let access = config.access();
    let _ = writeln!(text, "access    {access}; rules of the policy: {}", access.policy.0.len());
    let settings = |settings: &UpstreamConfig| {
        let login = settings.credentials.as_ref().map_or("anonymous".into(), |login| format!("as {}", login.username));
        let mut shown =
            vec![login, format!("fresh {}", written(settings.tags.fresh)), format!("cold {}", settings.cold)];
        shown.extend(settings.is_private().then(|| format!("private, permission {}", written(settings.permission))));
        shown.extend(settings.names.patterns().map(|(key, patterns)| format!("{key} {patterns:?}")));
        shown.join(", ")
    };
    for (id, upstream) in config.upstreams.iter().filter(|(_, upstream)| upstream.family.is_none()) {
        let url = upstream.url.as_str().trim_end_matches('/');
        let _ = writeln!(text, "upstream  {id}: {url}, {}", settings(upstream));
    }
    let families: BTreeMap<&str, &UpstreamConfig> =
        config.upstreams.values().filter_map(|upstream| Some((upstream.family?, upstream))).collect();
    for (family, upstream) in families {
        let _ = writeln!(text, "upstreams {family}: {}", settings(upstream));
    }
    for (prefix, rule) in &config.rules {
        let inherited = || match config.rule_at(&rule.place) {
            Some(other) => format!("settings of rule {other}"),
            None => format!("settings of upstream {}", rule.place.upstream),
        };
        let held = rule.settings.as_ref().map_or_else(inherited, settings);
        // It would be a host otherwise, and no namespace there is called like one.
        let hidden = if prefix.first().contains('.') { "" } else { ", goes before Docker Hub's own names below it" };
        let _ = writeln!(text, "rule      {prefix}: {}, {held}{hidden}", rule.place);
    }
    for schedule in &config.schedules {
        let every = written(schedule.every);
        let _ = writeln!(text, "schedule  images: {}, every {every}", schedule.images.len());
    }
    text
}
