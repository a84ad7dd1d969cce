//! `stopover.toml` as it is written: what serde reads, and its errors in the words of the file.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use url::{Position, Url};

use super::policy::{ClaimTable, PolicyRuleTable};
use super::{Alternate, Cold, Deleted, IamConfig, StoredSecret};
use crate::config::retention::SHORTEST;
use crate::oci::{Name, Platforms, UpstreamId};
use crate::values::address::ListenAddress;
use crate::values::pattern::Pattern;
use crate::values::time::Span;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) listen: Option<ListenAddress>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) fresh: Option<Span>,
    pub(super) stale: Option<Span>,
    pub(super) permission: Option<Span>,
    pub(super) missing: Option<Span>,
    pub(super) deleted: Option<Deleted>,
    pub(super) wait: Option<Span>,
    pub(super) misses: Option<u32>,
    pub(super) pulls: Option<u32>,
    pub(super) new_bytes: Option<Size>,
    pub(super) cold: Option<Cold>,
    pub(super) platforms: Option<Platforms>,
    #[serde(default)]
    pub(super) schedule: Vec<ScheduleTable>,
    pub(super) fill_memory: Option<Size>,
    pub(super) keep: Option<Keep>,
    pub(super) max_size: Option<Size>,
    #[serde(default)]
    pub(super) pin: Vec<Pattern>,
    #[serde(default)]
    pub(super) upstreams: BTreeMap<TableId, UpstreamTable>,
    #[serde(default)]
    pub(super) rules: BTreeMap<Name, RuleTable>,
    pub(super) access: Option<AccessTable>,
    #[serde(default)]
    pub(super) policy: Vec<PolicyRuleTable>,
}

/// The id of an upstream as the name of its table.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
pub(super) struct TableId(pub(super) UpstreamId);

impl TryFrom<String> for TableId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error| match text.rsplit_once(':') {
            Some((host, port)) if host.parse::<UpstreamId>().is_ok() && port.parse::<u16>().is_ok() => {
                format!("an id has no port: write [upstreams.\"{host}\"] and url = \"https://{text}\"")
            }
            _ => error.to_string(),
        })
    }
}

/// Scheme, host and port, as `"https://registry.example.com:5000"`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Origin(pub(super) Url);

impl TryFrom<String> for Origin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if !text.contains("://") {
            let host = text.rsplit('@').next().unwrap_or_default();
            let host = host.split(['/', '?', '#']).next().unwrap_or_default();
            return Err(format!("has no scheme: write \"https://{host}\""));
        }
        let url = Url::parse(&text)
            .map_err(|error| format!("is no URL: {error}; write \"https://host\" or \"https://host:port\""))?;
        let plain = matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if plain {
            return Ok(Self(url));
        }
        // Neither user, path nor query are repeated: they may hold a secret.
        let host =
            if url.has_host() { &url[Position::BeforeHost..Position::AfterPort] } else { "registry.example.com" };
        let scheme = if url.scheme() == "http" { "http" } else { "https" };
        let has_login = !url.username().is_empty() || url.password().is_some();
        let login = if has_login { "; a login belongs into credentials = { … }" } else { "" };
        Err(format!("must be scheme, host and port only: write \"{scheme}://{host}\"{login}"))
    }
}

/// `[[schedule]]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScheduleTable {
    pub(super) every: Span,
    pub(super) images: Vec<String>,
    pub(super) platforms: Platforms,
}

/// Declares tables that have keys in common: one of these keys alone, and one of each kind that has further keys.
/// (serde's `flatten` would take any unknown key for one of them.)
macro_rules! tables_in_common {
    (
        $common:ident { $($key:ident: $kind:ty,)* }
        $upstream:ident { $($upstream_key:ident: $upstream_kind:ty,)* }
        $rule:ident { $($rule_key:ident: $rule_kind:ty,)* }
    ) => {
        /// What tables of upstreams and of rules have in common.
        #[derive(Clone, Default, PartialEq)]
        pub(super) struct $common {
            $(pub(super) $key: Option<$kind>,)*
        }

        /// `[upstreams."…"]`
        #[derive(Deserialize, Default)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $upstream {
            $(pub(super) $upstream_key: Option<$upstream_kind>,)*
            $($key: Option<$kind>,)*
        }

        /// `[rules."…"]`
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $rule {
            $(pub(super) $rule_key: Option<$rule_kind>,)*
            $($key: Option<$kind>,)*
        }

        impl $upstream {
            pub(super) fn policy(&mut self) -> $common {
                $common { $($key: self.$key.take(),)* }
            }
        }

        impl $rule {
            pub(super) fn policy(&mut self) -> $common {
                $common { $($key: self.$key.take(),)* }
            }
        }
    };
}

tables_in_common! {
    PolicyTable {
        fresh: Fresh,
        immutable: Vec<Pattern>,
        stale: Span,
        permission: Span,
        missing: Span,
        deleted: Deleted,
        cold: Cold,
        platforms: Platforms,
        allow: Vec<String>,
        deny: Vec<String>,
        max_blob: Size,
        credentials: CredentialsTable,
        public: bool,
    }
    UpstreamTable {
        url: Origin,
        aliases: Vec<String>,
        token_realms: Vec<Origin>,
        trusted_hosts: Vec<String>,
        reserve: u64,
        fills: NonZeroUsize,
        first_byte: Span,
        alternates: Vec<Alternate>,
    }
    RuleTable {
        upstream: String,
        path: Name,
    }
}

#[derive(Clone, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialsTable {
    pub(super) username: String,
    pub(super) password_env: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) password_secret: Option<StoredSecret>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct AccessTable {
    pub(super) service: Option<String>,
    pub(super) anonymous: Option<AnonymousKey>,
    #[serde(default)]
    pub(super) robots: bool,
    #[serde(default)]
    pub(super) operators: Vec<String>,
    pub(super) iam: Option<IamConfig>,
    #[serde(default)]
    pub(super) oidc: BTreeMap<String, OidcTable>,
    pub(super) token_life: Option<Span>,
    pub(super) url: Option<Origin>,
    pub(super) signing_keys: Option<KeysTable>,
}

/// `anonymous = true`, or `anonymous = ["10.0.0.0/8", "vpce-0123456789abcdef0"]`.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected true, false or a list of networks and VPC endpoints like [\"10.0.0.0/8\", \"vpce-0123456789abcdef0\"]"
)]
pub(super) enum AnonymousKey {
    Everywhere(bool),
    From(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OidcTable {
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) jwks_uri: Option<Url>,
    #[serde(default)]
    pub(super) claims: BTreeMap<String, ClaimTable>,
    pub(super) budget_claim: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeysTable {
    pub(super) env: Option<String>,
    pub(super) file: Option<PathBuf>,
    pub(super) secret: Option<StoredSecret>,
}

/// `fresh = "5m"` for all tags, or `fresh = { "*" = "5m", "v*" = "1d" }`.
#[derive(Clone, Deserialize, PartialEq)]
#[serde(
    untagged,
    expecting = "expected a duration like \"5m\", or durations by pattern of tags like { \"v*\" = \"1d\" }"
)]
pub(super) enum Fresh {
    All(Span),
    By(BTreeMap<Pattern, Span>),
}

/// A duration, or `"forever"` (`None`).
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "String")]
pub(super) struct Keep(pub(super) Option<Duration>);

impl TryFrom<String> for Keep {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "forever" {
            return Ok(Self(None));
        }
        match text.parse::<Span>()?.0 {
            keep if keep < SHORTEST => Err("must be \"1d\" or more: what is used is noted once a day".into()),
            keep => Ok(Self(Some(keep))),
        }
    }
}

/// A number of bytes as `"512MB"` (1000 kB each) or `"1GiB"` (1024 MiB each).
#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(try_from = "String")]
pub(super) struct Size(pub(super) u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let after = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
        let number = text.strip_suffix(after).unwrap_or_default();
        let unit: u64 = match after.trim() {
            "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(format!("{text:?} is no size like \"50GB\" or \"512MiB\"")),
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        bytes.map(Self).ok_or_else(|| format!("{text:?} is no size like \"50GB\" or \"512MiB\""))
    }
}
