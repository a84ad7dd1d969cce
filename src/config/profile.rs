//! The peculiarities of known registries, as data: no other code asks which registry it talks to.

use url::Url;

use super::file::Origin;
use super::{Ecr, Referrers};
use crate::identity::partition::is_account;
use crate::oci::UpstreamId;
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
static PROFILES: [Profile; 25] = [
    // Docker Hub: API and token server are hosts of their own; official images are in `library/` and elsewhere too; no
    // referrers API (docker/roadmap#724).
    Profile {
        ids: &["docker.io"],
        hosts: &["registry-1.docker.io"],
        api: Some("registry-1.docker.io"),
        aliases: &["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "hub.docker.com"],
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
    // Kubernetes: no tokens; manifests too are redirected to other hosts. k8s.gcr.io was its name until 2023.
    Profile { ids: &["registry.k8s.io"], aliases: &["k8s.gcr.io"], ..ANY },
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
    // Docker Hardened Images: every pull needs a login of Docker Hub; tokens from its own host.
    Profile { ids: &["dhi.io"], ..ANY },
    // Chainguard: an organisation's policy refuses young digests (403).
    Profile { ids: &["cgr.dev"], ..ANY },
    // Red Hat: the first needs no login, the second always does, with tokens from its own host.
    Profile { ids: &["registry.access.redhat.com", "registry.redhat.io"], ..ANY },
    // Elastic: tokens from a host of its own.
    Profile { ids: &["docker.elastic.co"], token_realms: &["https://docker-auth.elastic.co"], ..ANY },
    // Codeberg, a Forgejo: tokens from its own host.
    Profile { ids: &["codeberg.org"], ..ANY },
    // Crossplane: packages rather than images, which have the same form.
    Profile { ids: &["xpkg.crossplane.io"], ..ANY },
    // Upbound: the same; for a repository that does not exist its token server answers 404; no referrers API.
    Profile { ids: &["xpkg.upbound.io"], referrers: Referrers::TagOnly, ..ANY },
    // Ollama: models; no tokens for public ones.
    Profile { ids: &["registry.ollama.ai"], ..ANY },
    // SUSE: tokens from its customer centre.
    Profile { ids: &["registry.suse.com"], token_realms: &["https://scc.suse.com"], ..ANY },
    // Oracle: tokens from its own host; some images only with a login that has accepted their licence.
    Profile { ids: &["container-registry.oracle.com"], ..ANY },
    // IBM Cloud: tokens from its own host, and so in each region.
    Profile { ids: &["icr.io"], hosts: &["*.icr.io"], ..ANY },
    // Azure, one host a customer: tokens from its own host; blobs from `*.blob.core.windows.net`.
    Profile { ids: &[], hosts: &["*.azurecr.io", "*.azurecr.cn", "*.azurecr.us"], ..ANY },
    // Oracle Cloud, one host a region: tokens from its own host.
    Profile { ids: &[], hosts: &["*.ocir.io"], ..ANY },
    // DigitalOcean: tokens from its API.
    Profile { ids: &["registry.digitalocean.com"], token_realms: &["https://api.digitalocean.com"], ..ANY },
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

    /// The origin of its API for the upstream with this id.
    pub(super) fn origin(&self, id: &str) -> Result<Origin, String> {
        Origin::try_from(format!("https://{}", self.api.unwrap_or(id)))
    }
}

/// The upstreams that need no configuration: id, profile, and the origin of the API.
pub(super) fn known() -> impl Iterator<Item = (UpstreamId, &'static Profile, Url)> {
    let ids = PROFILES.iter().flat_map(|profile| profile.ids.iter().map(move |id| (*id, profile)));
    ids.filter_map(|(id, profile)| Some((id.parse().ok()?, profile, profile.origin(id).ok()?.0)))
}

/// The registry of Amazon with this host name.
pub(super) fn ecr(host: &str) -> Option<Ecr> {
    match ecr_region(host) {
        Some(region) => Some(Ecr::Private { region: region.to_owned() }),
        None => (host == "public.ecr.aws").then_some(Ecr::Public),
    }
}

/// The region in the host name of a private ECR registry: `<account>.dkr.ecr[-fips].<region>.amazonaws.com[.cn]`, or
/// dual-stack `<account>.dkr-ecr[-fips].<region>.on.aws` (ECR, "Endpoints and quotas").
fn ecr_region(host: &str) -> Option<&str> {
    let (account, rest) = host.split_once('.')?;
    let kinds = ["dkr.ecr.", "dkr.ecr-fips.", "dkr-ecr.", "dkr-ecr-fips."];
    let region = kinds.iter().filter(|_| is_account(account)).find_map(|kind| rest.strip_prefix(kind))?;
    [".amazonaws.com", ".amazonaws.com.cn", ".on.aws"].iter().find_map(|end| region.strip_suffix(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_of_a_profile_is_an_upstream_and_every_realm_an_origin() {
        assert_eq!(known().count(), PROFILES.iter().map(|profile| profile.ids.len()).sum::<usize>());
        for profile in &PROFILES {
            assert!(profile.token_realms.iter().all(|realm| Origin::try_from((*realm).to_owned()).is_ok()));
            assert!(profile.alternates.iter().all(|(upstream, ..)| upstream.parse::<UpstreamId>().is_ok()));
        }
    }

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
