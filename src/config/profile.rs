//! The peculiarities of known registries, as data: no other code asks which registry it talks to.

use super::Referrers;
use crate::values::pattern::Pattern;

/// One registry, or a family of them that behave alike.
pub(super) struct Profile {
    /// The ids of its upstreams that need no configuration: each the host of an API, unless `api` names that.
    pub(super) ids: &'static [&'static str],
    /// Other hosts of its API, as patterns: an upstream that is configured with one of them gets this profile.
    hosts: &'static [&'static str],
    /// The host of its API, where that is not its id.
    pub(super) api: Option<&'static str>,
    /// Other values of `?ns=` that mean it.
    pub(super) aliases: &'static [&'static str],
    /// Origins that issue its tokens, besides its own.
    pub(super) token_realms: &'static [&'static str],
    /// Whether a name without a slash means `library/<name>`.
    pub(super) library: bool,
    /// How it lists referrers.
    pub(super) referrers: Referrers,
    /// Upstreams that carry its content too: their id, the first part of the names that they carry, and what replaces
    /// it there.
    pub(super) alternates: &'static [(&'static str, &'static str, &'static str)],
    /// The common name of many ids, so that lists for operators stay short.
    pub(super) family: Option<&'static str>,
}

/// A registry without known peculiarities.
static ANY: Profile = Profile {
    ids: &[],
    hosts: &[],
    api: None,
    aliases: &[],
    token_realms: &[],
    library: false,
    referrers: Referrers::Ask,
    alternates: &[],
    family: None,
};

macro_rules! artifact_registries {
    ($($location:literal)+) => { &[$(concat!($location, "-docker.pkg.dev")),+] };
}

/// Comments name the peculiarities. Those without a column are handled for every registry: a constant for a scope, a
/// relative `Location`, a missing digest.
static PROFILES: [Profile; 11] = [
    // Docker Hub: API and token server are hosts of their own; official images are in `library/` and elsewhere too; no
    // referrers API (docker/roadmap#724).
    Profile {
        ids: &["docker.io"],
        hosts: &["registry-1.docker.io"],
        api: Some("registry-1.docker.io"),
        aliases: &["index.docker.io"],
        token_realms: &["https://auth.docker.io"],
        library: true,
        referrers: Referrers::TagOnly,
        alternates: &[("public.ecr.aws", "library/", "docker/library/"), ("mirror.gcr.io", "library/", "library/")],
        ..ANY
    },
    // GitHub: a placeholder for the scope; asked for referrers it answers 404, or 303 to a web page.
    Profile { ids: &["ghcr.io"], referrers: Referrers::TagOnly, ..ANY },
    // LinuxServer.io: a gateway before ghcr.io, which issues its tokens.
    Profile { ids: &["lscr.io"], token_realms: &["https://ghcr.io"], referrers: Referrers::TagOnly, ..ANY },
    // Red Hat: 302 to its CDN, with a `Cache-Control` of a year that is longer than the signature lasts.
    Profile { ids: &["quay.io"], ..ANY },
    // Amazon ECR Public: the scope is literally `aws`; HEAD of a blob is 401.
    Profile { ids: &["public.ecr.aws"], ..ANY },
    // Kubernetes: no tokens; manifests too are redirected to other hosts.
    Profile { ids: &["registry.k8s.io"], ..ANY },
    // Google Container Registry and its mirror of Docker Hub, served by Artifact Registry.
    Profile { ids: &["gcr.io", "us.gcr.io", "eu.gcr.io", "asia.gcr.io", "mirror.gcr.io"], ..ANY },
    // Google Artifact Registry, one host a location: relative redirects; a 401 that does not say how to log in.
    Profile {
        ids: artifact_registries!(
            "africa-south1" "asia" "asia-east1" "asia-east2" "asia-northeast1" "asia-northeast2" "asia-northeast3"
            "asia-south1" "asia-south2" "asia-southeast1" "asia-southeast2" "australia-southeast1"
            "australia-southeast2" "europe" "europe-central2" "europe-north1" "europe-north2" "europe-southwest1"
            "europe-west1" "europe-west2" "europe-west3" "europe-west4" "europe-west6" "europe-west8" "europe-west9"
            "europe-west10" "europe-west12" "me-central1" "me-central2" "me-west1" "northamerica-northeast1"
            "northamerica-northeast2" "northamerica-south1" "southamerica-east1" "southamerica-west1" "us" "us-central1"
            "us-east1" "us-east4" "us-east5" "us-south1" "us-west1" "us-west2" "us-west3" "us-west4"
        ),
        hosts: &["*-docker.pkg.dev"],
        family: Some("*-docker.pkg.dev"),
        ..ANY
    },
    // Microsoft's public images: anonymous only.
    Profile { ids: &["mcr.microsoft.com"], ..ANY },
    // GitLab: tokens from its web host.
    Profile { ids: &["registry.gitlab.com"], token_realms: &["https://gitlab.com"], ..ANY },
    // NVIDIA: refuses an expired token with the challenge of another token server, which is no way back.
    Profile { ids: &["nvcr.io"], ..ANY },
];

impl Profile {
    /// The profile of an upstream: by its id, because that says how its names are written; else by the host of its API.
    pub(super) fn of(id: &str, host: Option<&str>) -> &'static Self {
        let known = |host: &str| {
            PROFILES.iter().find(|profile| {
                profile.ids.contains(&host) || profile.hosts.iter().any(|&pattern| Pattern::from(pattern).matches(host))
            })
        };
        known(id).or_else(|| known(host?)).unwrap_or(&ANY)
    }

    /// The ids of all upstreams that need no configuration.
    pub(super) fn known_ids() -> impl Iterator<Item = &'static str> {
        PROFILES.iter().flat_map(|profile| profile.ids.iter().copied())
    }
}

/// The region in the host name of a private ECR registry: `<account>.dkr.ecr[-fips].<region>.amazonaws.com[.cn]`, or
/// dual-stack `<account>.dkr-ecr[-fips].<region>.on.aws` (ECR, "Endpoints and quotas").
pub(super) fn ecr_region(host: &str) -> Option<&str> {
    let (account, rest) = host.split_once('.')?;
    if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let region =
        ["dkr.ecr.", "dkr.ecr-fips.", "dkr-ecr.", "dkr-ecr-fips."].iter().find_map(|kind| rest.strip_prefix(kind))?;
    [".amazonaws.com", ".amazonaws.com.cn", ".on.aws"].iter().find_map(|end| region.strip_suffix(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_of_a_private_ecr_registry_is_in_its_name() {
        for (host, region) in [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("123456789012.dkr-ecr.eu-west-1.on.aws", Some("eu-west-1")),
            ("12345678901.dkr.ecr.eu-west-1.amazonaws.com", None),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example", None),
            ("public.ecr.aws", None),
        ] {
            assert_eq!(ecr_region(host), region, "{host}");
        }
    }
}
