//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use stopover::identity::RobotName;
use stopover::oci::UpstreamId;
use stopover::operate::RobotCommand;
use stopover::values::time::Span;

use crate::client::{
    ClientLogin, DockerAction, Endpoint, Examination, Helper, LoginArguments, PrefetchArguments, Shown, Target,
};
use crate::cost::CostArguments;
use crate::explain::ExplainArguments;

/// A pull-through cache for container registries.
///
/// Without a command it serves: `stopover` is `stopover serve`.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

#[derive(clap::Args)]
pub(crate) struct Settings {
    /// The configuration file [default: stopover.toml in the working directory, where there is one]
    #[arg(long, global = true, env = "STOPOVER_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The address to listen on [default: 127.0.0.1:5000]
    #[arg(long, global = true, env = "STOPOVER_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// The directory that holds the cache [default: ./stopover-data]
    #[arg(long, global = true, env = "STOPOVER_DATA_DIR", value_name = "DIRECTORY")]
    pub(crate) data_dir: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, or a filter like stopover=debug
    #[arg(long, global = true, env = "STOPOVER_LOG", value_name = "FILTER", default_value = "info")]
    pub(crate) log: String,
    /// How it is logged
    #[arg(long, global = true, env = "STOPOVER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// How long answers that are under way may go on after a signal to stop
    #[arg(long, global = true, env = "STOPOVER_GRACE", value_name = "DURATION", default_value = "25s")]
    pub(crate) grace: Span,
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
    Serve,
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
    /// Remove an image, pinned or not, and what nothing else needs
    Purge {
        /// An image like docker.io/library/alpine:3.20 or ghcr.io/owner/name@sha256:…
        #[arg(value_name = "IMAGE")]
        image: String,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Show what a cache does: its upstreams and their quotas, its fills, what it has saved; ends with 1 if it is not ready
    Status {
        /// Print JSON: what `GET /_stopover/status` answers
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Show what has failed lately, why, and what to do about it
    Events {
        /// Print JSON: what `GET /_stopover/events` answers
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// List what is in the cache: repositories, or the images of one
    Ls {
        /// A repository, an image, or what names begin with: docker.io/library/, ghcr.io [default: everything]
        #[arg(value_name = "IMAGE-OR-PREFIX")]
        what: Option<String>,
        #[command(flatten)]
        shown: Shown,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Show what the cache has of an image: platforms, layers, when it was used and when it expires
    Inspect {
        /// An image like docker.io/library/alpine:3.20, or a repository
        #[arg(value_name = "IMAGE")]
        image: String,
        #[command(flatten)]
        shown: Shown,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Show what each repository takes, the largest first
    Du {
        /// What names begin with: docker.io/library/, ghcr.io [default: everything]
        #[arg(value_name = "PREFIX")]
        prefix: Option<String>,
        #[command(flatten)]
        shown: Shown,
        #[command(flatten)]
        asked: ServerArguments,
    },
    /// Show how much is left of each upstream's quota
    Quota {
        #[command(flatten)]
        asked: ServerArguments,
    },
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
        command: RobotArguments,
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
        asked: ServerArguments,
    },
    /// Log a client in at the cache, with the identity that AWS or the issuer of an ID token gives this machine
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
    /// Compute what a deployment on AWS costs in a month
    Cost(CostArguments),
}

/// The cache to ask, and the login to ask with.
#[derive(clap::Args)]
pub(crate) struct ServerArguments {
    /// The running cache to ask [default: the one with this data directory, or at the configured address]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<Endpoint>,
    #[command(flatten)]
    pub(crate) login: LoginArguments,
}

#[derive(Subcommand)]
pub(crate) enum FillsCommand {
    /// Try again what was given up
    Retry,
}

#[derive(Subcommand)]
pub(crate) enum RobotArguments {
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
pub(crate) enum PolicyCommand {
    /// Say whether a principal may pull an image, and why; ends with 1 if not
    Explain(ExplainArguments),
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
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
