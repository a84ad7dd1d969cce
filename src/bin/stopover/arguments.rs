//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use stopover::config::{Cold, Config, ConfigError, SecretReference};
use stopover::oci::UpstreamId;
use stopover::operate::RobotCommand;
use stopover::setup::Target;
use stopover::values::address::ListenAddress;
use stopover::values::time::Span;

use crate::client::{
    Asker, Client, ClientLogin, ClientLogout, DockerAction, Endpoint, Examination, Helper, LoginArguments,
    NamedEndpoint, PrefetchArguments,
};
use crate::cost::CostArguments;
use crate::explain::ExplainArguments;
use crate::output::Output;

/// A pull-through cache for container registries.
///
/// Without a command it serves: `stopover` is `stopover serve`, and takes its options.
#[derive(Parser)]
#[command(name = "stopover", version, propagate_version = true, override_usage = "stopover [COMMAND]")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    /// Reads the words of a command line; without a command they are those of `serve`.
    pub(crate) fn read(mut words: Vec<OsString>) -> Self {
        let general = ["-h", "--help", "-V", "--version"];
        let serves = words.get(1).is_none_or(|word| {
            word.as_encoded_bytes().starts_with(b"-") && !general.iter().any(|option| word == option)
        });
        if serves {
            words.splice(words.len().min(1)..words.len().min(1), ["serve".into()]);
        }
        Self::parse_from(words)
    }
}

/// The configuration that a command reads.
#[derive(clap::Args)]
pub(crate) struct FileArguments {
    /// The configuration file [default: stopover.toml in the working directory, where there is one]
    #[arg(long, global = true, env = "STOPOVER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl FileArguments {
    /// Reads the configuration. `secret` reads the passwords in it; commands that ask no upstream run where these are
    /// not known.
    pub(crate) fn load(&self, secret: fn(SecretReference) -> Result<String, String>) -> Result<Config, ConfigError> {
        let beside = PathBuf::from("stopover.toml");
        let path = self.config.clone().or_else(|| beside.exists().then_some(beside));
        Config::load(path.as_deref(), Cold::Follow, secret)
    }
}

/// The cache of this machine that a command is about.
#[derive(clap::Args)]
pub(crate) struct InstallationArguments {
    #[command(flatten)]
    file: FileArguments,
    /// The directory that holds the cache [default: ./stopover-data]
    #[arg(long, global = true, env = "STOPOVER_DATA_DIR", value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
}

impl InstallationArguments {
    /// As [`FileArguments::load`]; a directory that was named wins over that of the file.
    pub(crate) fn load(&self, secret: fn(SecretReference) -> Result<String, String>) -> Result<Config, ConfigError> {
        let mut config = self.file.load(secret)?;
        config.data_dir = self.data_dir.clone().unwrap_or(config.data_dir);
        Ok(config)
    }
}

/// `stopover serve`
#[derive(clap::Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    pub(crate) installation: InstallationArguments,
    /// The address to listen on; without a host every address of this machine [default: 127.0.0.1:5000]
    #[arg(long, env = "STOPOVER_LISTEN", value_name = "[HOST]:PORT")]
    pub(crate) listen: Option<ListenAddress>,
    /// What is logged: error, warn, info, debug, or a filter like stopover=debug
    #[arg(long, env = "STOPOVER_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// Log warnings and errors alone, and print nothing at the start
    #[arg(short, long, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Log what is done for each request: --log info,stopover=debug
    #[arg(short, long)]
    verbose: bool,
    /// How it is logged
    #[arg(long, env = "STOPOVER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// How long answers that are under way may go on after a signal to stop
    #[arg(long, env = "STOPOVER_GRACE", value_name = "DURATION", default_value = "25s")]
    pub(crate) grace: Span,
}

impl ServeArguments {
    /// The filter of the log.
    pub(crate) fn log(&self) -> &str {
        match self {
            Self { quiet: true, .. } => "warn",
            Self { verbose: true, .. } => "info,stopover=debug",
            Self { log, .. } => log,
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// One readable line an event
    Text,
    /// One JSON object an event
    Json,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Serve the registry API and copy what is missing from upstream
    Serve(ServeArguments),
    /// Have images stored before clients pull them
    Prefetch {
        #[command(flatten)]
        order: PrefetchArguments,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Ask upstream now what tags are, however fresh the cache thinks they are
    Refresh {
        /// Images like docker.io/library/alpine:3.20 or ghcr.io/owner/name:tag
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Remove what was not used within `keep`, as happens every hour anyway
    Gc {
        /// Only say what would go, and how much that frees
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Remove an image, pinned or not, and what nothing else needs; ends with 3 if nothing of it is stored
    Purge {
        /// An image like docker.io/library/alpine:3.20 or ghcr.io/owner/name@sha256:…
        #[arg(value_name = "IMAGE")]
        image: String,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Show what a cache does: its upstreams and their quotas, its fills, what it has saved; ends with 1 if it is not ready
    Status(ServerArguments),
    /// Ask a cache whether it is ready, as probes of containers do; ends with 1 if it is not
    Health(ServerArguments),
    /// Show what has failed lately, why, and what to do about it
    Events(ServerArguments),
    /// List what is in the cache: repositories, or the images of one
    Ls {
        /// A repository, an image, or what names begin with: docker.io/library/, ghcr.io [default: everything]
        #[arg(value_name = "IMAGE-OR-PREFIX")]
        what: Option<String>,
        #[command(flatten)]
        shown: StoredArguments,
    },
    /// Show what the cache has of an image: platforms, layers, when it was used and when it expires
    Inspect {
        /// An image like docker.io/library/alpine:3.20, or a repository
        #[arg(value_name = "IMAGE")]
        image: String,
        #[command(flatten)]
        shown: StoredArguments,
    },
    /// Show what each repository takes, the largest first
    Du {
        /// What names begin with: docker.io/library/, ghcr.io [default: everything]
        #[arg(value_name = "PREFIX")]
        prefix: Option<String>,
        #[command(flatten)]
        shown: StoredArguments,
    },
    /// Show how much is left of each upstream's quota
    Quota(ServerArguments),
    /// Show the fills that are under way, and those that were given up with the reason
    Fills {
        #[command(subcommand)]
        command: Option<FillsCommand>,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Manage robots: names with secrets that let machines in
    Robot {
        #[command(subcommand)]
        command: RobotCommand,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Look at the policy: who may pull what
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Print the configuration that has a client pull through the cache
    Setup {
        /// The client; without one, all are listed
        client: Option<Target>,
        #[command(flatten)]
        reached: ReachedArguments,
        /// The registries to pull through the cache [default: all that are configured, but for `*-docker.pkg.dev`]
        #[arg(long = "upstream", value_name = "ID")]
        upstreams: Vec<UpstreamId>,
    },
    /// Check from this machine, step by step, that pulls go through the cache
    Doctor {
        #[command(flatten)]
        examination: Examination,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Log a client in at the cache, with the identity that AWS or the issuer of an ID token gives this machine
    Login {
        #[command(flatten)]
        login: ClientLogin,
        #[command(flatten)]
        reached: ReachedArguments,
    },
    /// Have a client forget its login at the cache
    Logout {
        #[command(flatten)]
        logout: ClientLogout,
        #[command(flatten)]
        reached: ReachedArguments,
    },
    /// Answer Docker and podman, as the credential helper that a link called docker-credential-stopover makes of this
    DockerCredential {
        action: DockerAction,
        #[command(flatten)]
        helper: Helper,
    },
    /// Answer the kubelet, as an image credential provider (v1)
    KubeletCredentialProvider(Helper),
    /// Begin a configuration, or look at it
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Compute what a deployment on AWS costs in a month
    Cost(CostArguments),
    /// Print what has a shell complete the commands and options of this program
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page of this program
    Man {
        /// Write a page for each command into this directory, instead of printing one
        #[arg(value_name = "DIRECTORY")]
        directory: Option<PathBuf>,
    },
}

/// Where clients reach the cache.
#[derive(clap::Args)]
pub(crate) struct ReachedArguments {
    #[command(flatten)]
    file: FileArguments,
    /// Where clients reach the cache, over http or https [default: the configured address]
    #[arg(long, env = "STOPOVER_SERVER", value_name = "URL", value_parser = Endpoint::named)]
    server: Option<NamedEndpoint>,
}

impl ReachedArguments {
    /// The configuration, and the endpoint of the cache.
    pub(crate) fn load(self) -> anyhow::Result<(Config, Endpoint)> {
        let config = self.file.load(no_secrets)?;
        let server = self.server.flatten().map_or_else(|| Endpoint::configured(&config), Ok)?;
        Ok((config, server))
    }
}

/// For commands that ask no upstream: they run where its passwords are not known.
#[expect(clippy::unnecessary_wraps, reason = "it stands where other commands read secrets")]
pub(crate) fn no_secrets(_: SecretReference) -> Result<String, String> {
    Ok(String::new())
}

/// The cache to ask, the login to ask with, and how to print what it says.
#[derive(clap::Args)]
pub(crate) struct ServerArguments {
    #[command(flatten)]
    pub(crate) installation: InstallationArguments,
    /// The running cache to ask [default: the one with this data directory, or at the configured address]
    #[arg(long, global = true, env = "STOPOVER_SERVER", value_name = "URL", value_parser = Endpoint::named)]
    server: Option<NamedEndpoint>,
    #[command(flatten)]
    login: LoginArguments,
    #[command(flatten)]
    output: Output,
}

impl ServerArguments {
    /// A client of the running cache, which alone may open its ledger.
    pub(crate) fn client(self, asker: Asker) -> anyhow::Result<Client> {
        let Self { installation, server, login, output } = self;
        let config = installation.load(no_secrets)?;
        let named = server.flatten();
        let socket = if named.is_none() { asker.socket(&config.data_dir, &login)? } else { None };
        let server = named.map_or_else(|| Endpoint::configured(&config), Ok)?;
        Client::new(server, login, socket, output)
    }
}

/// The cache to ask, and how what is stored there is shown.
#[derive(clap::Args)]
pub(crate) struct StoredArguments {
    /// Print names only, one a line
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) asked: ServerArguments,
}

#[derive(Subcommand)]
pub(crate) enum FillsCommand {
    /// Try again what was given up
    Retry,
}

#[derive(Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say whether a principal may pull an image, and why; ends with 1 if not
    Explain {
        #[command(flatten)]
        question: ExplainArguments,
        #[command(flatten)]
        file: FileArguments,
    },
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Write a stopover.toml with a comment for every key, its default and an example
    Init {
        /// The file to write; one that is there stays as it is
        #[arg(value_name = "FILE", default_value = "stopover.toml")]
        file: PathBuf,
    },
    /// Say whether the configuration can be used, and what it amounts to
    Check(InstallationArguments),
}
