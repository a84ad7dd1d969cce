use super::*;
use crate::config::Cold;
use crate::local::EmbeddedLedger;

const RULES: &str = "
    [rules.\"team/hub\"]
    upstream = \"docker.io\"
    path = \"library\"
    [rules.\"team\"]
    upstream = \"quay.io\"
    fresh = \"3h\"
    [rules.\"team/hub/deep/er\"]
    upstream = \"ghcr.io\"
    path = \"acme/deeper\"
    [rules.\"registry.corp.example\"]
    upstream = \"ghcr.io\"
    path = \"corp\"
    [rules.\"ghcr.io/acme\"]
    fresh = \"1h\"
    deny = [\"*-internal\"]
    [rules.\"ghcr.io/acme/deeper\"]
    fresh = \"2h\"
    [upstreams.\"port.example\"]
    url = \"https://port.example:5000\"
";

fn upstreams(text: &str) -> Upstreams {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("stopover.toml");
    std::fs::write(&file, text).unwrap();
    let config = Config::load(Some(&file), Cold::Redirect, |secret| secret.read(|_| None)).unwrap();
    let ledger: Arc<dyn Ledger> = Arc::new(EmbeddedLedger::open(&data.path().join("ledger")).unwrap());
    Upstreams::new(&config, (&Clock::default(), &Arc::new(Journal::new([], Clock::default()))), &ledger, None).unwrap()
}

fn repository(upstreams: &Upstreams, path: &str) -> Result<String, PullError> {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let request = Request::parse(&http::Method::GET, path, query)?;
    let name = request.operation.name().unwrap();
    upstreams.repository(&request, name).map(|repository| repository.to_string())
}

#[test]
fn every_way_to_name_an_image_means_one_repository() {
    let upstreams = upstreams(RULES);
    for (expected, paths) in [
        (
            "docker.io/library/nginx",
            &[
                // The root of the registry, as dockerd uses a mirror.
                "/v2/nginx/manifests/1",
                "/v2/library/nginx/manifests/1",
                // The root with `ns`, as containerd does.
                "/v2/library/nginx/manifests/1?ns=docker.io",
                "/v2/library/nginx/manifests/1?ns=registry-1.docker.io",
                "/v2/nginx/manifests/1?ns=index.docker.io",
                // A path after /v2/, as BuildKit (with `ns`) and podman use a mirror, and everything in the name.
                "/v2/docker.io/nginx/manifests/1",
                "/v2/docker.io/library/nginx/manifests/1",
                "/v2/docker.io/library/nginx/manifests/1?ns=docker.io",
                "/v2/index.docker.io/library/nginx/manifests/1",
                "/v2/registry-1.docker.io/library/nginx/manifests/1",
                "/v2/registry.hub.docker.com/library/nginx/manifests/1",
                "/v2/library/nginx/manifests/1?ns=registry.hub.docker.com",
                // A path before /v2/, as dockerd and hosts.toml (with `ns`) do.
                "/docker.io/v2/nginx/manifests/1",
                "/docker.io/v2/library/nginx/manifests/1?ns=index.docker.io",
                // The same through a rule.
                "/v2/team/hub/nginx/manifests/1",
                "/team/hub/v2/nginx/manifests/1",
                "/team/hub/v2/nginx/manifests/1?ns=docker.io",
                "/team/v2/hub/nginx/manifests/1",
            ] as &[&str],
        ),
        (
            "ghcr.io/acme/app",
            &[
                "/v2/ghcr.io/acme/app/manifests/1",
                "/v2/acme/app/manifests/1?ns=ghcr.io",
                "/v2/ghcr.io/acme/app/manifests/1?ns=ghcr.io",
                "/ghcr.io/v2/acme/app/manifests/1",
                "/ghcr.io/v2/acme/app/manifests/1?ns=ghcr.io",
                "/ghcr.io/acme/v2/app/manifests/1",
            ],
        ),
        (
            "ghcr.io/corp/a/b",
            &[
                "/v2/registry.corp.example/a/b/manifests/1",
                "/registry.corp.example/v2/a/b/manifests/1",
                "/v2/a/b/manifests/1?ns=registry.corp.example",
                "/v2/ghcr.io/corp/a/b/manifests/1?ns=registry.corp.example",
            ],
        ),
        ("registry.k8s.io/pause", &["/v2/k8s.gcr.io/pause/manifests/1", "/v2/pause/manifests/1?ns=k8s.gcr.io"]),
        // A port, which no path can have.
        ("port.example/a/b", &["/v2/a/b/manifests/1?ns=port.example:5000", "/port.example/v2/a/b/manifests/1"]),
        // The longest prefix counts, and it ends between components.
        ("quay.io/app", &["/v2/team/app/manifests/1", "/team/v2/app/manifests/1"]),
        ("quay.io/hubs/app", &["/v2/team/hubs/app/manifests/1"]),
        ("docker.io/library/deep/app", &["/v2/team/hub/deep/app/manifests/1"]),
        // A name that a rule defines may itself be a repository.
        ("ghcr.io/acme/deeper", &["/v2/team/hub/deep/er/manifests/1", "/team/hub/deep/v2/er/manifests/1"]),
        // Elsewhere in a path it is only a name.
        ("docker.io/a/team/hub/b", &["/v2/a/team/hub/b/manifests/1"]),
        ("docker.io/library/team", &["/v2/team/manifests/1"]),
        // A prefix without a dot may begin any name, so `ns` decides which registry is meant; not if the client's own
        // path has it.
        ("quay.io/team/hub/nginx", &["/v2/team/hub/nginx/manifests/1?ns=quay.io"]),
        ("docker.io/team/hub/nginx", &["/v2/team/hub/nginx/manifests/1?ns=docker.io"]),
        ("ghcr.io/team/a", &["/v2/team/a/manifests/1?ns=ghcr.io"]),
        ("ghcr.io/corp/team/a", &["/v2/team/a/manifests/1?ns=registry.corp.example"]),
    ] {
        for path in paths {
            assert_eq!(repository(&upstreams, path).unwrap(), expected, "{path}");
        }
    }
}

#[test]
fn an_unknown_upstream_is_never_proxied() {
    let upstreams = upstreams(RULES);
    for path in [
        "/v2/evil.example/a/manifests/1",
        "/v2/a/manifests/1?ns=evil.example",
        "/evil.example/v2/a/manifests/1",
        "/evil/v2/nginx/manifests/1",
        "/library/v2/nginx/manifests/1",
        "/evil/v2/nginx/manifests/1?ns=docker.io",
        "/v2/evil/a/manifests/1?ns=docker.io:444",
        "/v2/nowhere-docker.pkg.dev/a/b/c/manifests/1",
    ] {
        assert!(matches!(repository(&upstreams, path), Err(PullError::UnknownUpstream(_))), "{path}");
    }
}

#[test]
fn a_path_before_v2_is_pinged_only_where_it_leads_to_a_place() {
    let upstreams = upstreams(RULES);
    let ping = |path: &str| upstreams.pinged(&Request::parse(&http::Method::GET, path, None).unwrap());
    for path in
        ["/v2/", "/ghcr.io/v2/", "/index.docker.io/v2", "/ghcr.io/acme/v2/", "/team/hub/v2/", "/team/hub/deep/v2/"]
    {
        assert!(ping(path).is_ok(), "{path}");
    }
    for path in ["/nosuch.example/v2/", "/anything/v2/", "/teams/v2/", "/team-hub/v2/", "/acme/v2/", "/library/v2/"] {
        assert!(matches!(ping(path), Err(PullError::UnknownUpstream(_))), "{path}");
    }
}

#[test]
fn a_path_and_a_namespace_that_disagree_are_ambiguous() {
    let upstreams = upstreams(RULES);
    for path in [
        "/v2/ghcr.io/a/manifests/1?ns=quay.io",
        "/ghcr.io/v2/a/manifests/1?ns=quay.io",
        "/team/hub/v2/nginx/manifests/1?ns=quay.io",
        "/team/v2/a/manifests/1?ns=ghcr.io",
        "/v2/ghcr.io/acme/app/manifests/1?ns=registry.corp.example",
    ] {
        assert!(matches!(repository(&upstreams, path), Err(PullError::Ambiguous { .. })), "{path}");
    }
}

#[test]
fn the_rule_with_the_longest_path_says_what_holds_whatever_the_image_was_called() {
    let upstreams = upstreams(RULES);
    let fresh = |path: &str| {
        let repository = repository(&upstreams, path).unwrap();
        let (upstream, name) = repository.split_once('/').unwrap();
        let repository = Repository { upstream: upstream.parse().unwrap(), name: name.parse().unwrap() };
        upstreams.get(&repository).unwrap().config().tags.fresh.as_secs() / 60
    };
    for (path, minutes) in [
        ("/v2/ghcr.io/acme/app/manifests/1", 60),
        ("/ghcr.io/acme/v2/app/manifests/1", 60),
        ("/v2/acme/app/manifests/1?ns=ghcr.io", 60),
        ("/v2/ghcr.io/acme/manifests/1", 60),
        ("/v2/ghcr.io/acme/deeper/manifests/1", 120),
        ("/v2/ghcr.io/acme/deeper/app/manifests/1", 120),
        ("/v2/team/hub/deep/er/app/manifests/1", 120),
        ("/v2/ghcr.io/acme/deeper2/manifests/1", 60),
        ("/v2/ghcr.io/acme2/app/manifests/1", 5),
        ("/v2/mcr.microsoft.com/acme/app/manifests/1", 5),
        // A rule for all of an upstream.
        ("/v2/team/app/manifests/1", 180),
        ("/v2/quay.io/acme/app/manifests/1", 180),
    ] {
        assert_eq!(fresh(path), minutes, "{path}");
    }
    let refused = |path: &str| match repository(&upstreams, path) {
        Err(PullError::NotAllowed { key, .. }) => Some(key),
        _ => None,
    };
    let key = Some("rules.\"ghcr.io/acme\".deny".to_owned());
    assert_eq!(refused("/v2/ghcr.io/acme/web-internal/manifests/1"), key);
    assert_eq!(refused("/v2/acme/web-internal/blobs/sha256:aa?ns=ghcr.io"), None, "no digest");
    assert_eq!(refused("/v2/acme/web-internal/tags/list?ns=ghcr.io"), key);
    assert_eq!(refused("/v2/ghcr.io/other/web-internal/manifests/1"), None);
}

#[test]
fn a_name_may_be_as_long_as_upstreams_have_them_whatever_stands_before_it() {
    let upstreams = upstreams(RULES);
    let (longest, too_long) = (vec!["a"; 128].join("/"), vec!["a"; 129].join("/"));
    assert_eq!(longest.len(), 255);
    for prefix in ["quay.io/", "team/", "a-name-of-many-characters.example/"] {
        let upstreams =
            self::upstreams(&format!("{RULES}[rules.\"a-name-of-many-characters.example\"]\nupstream = \"quay.io\""));
        let path = |name: &str| format!("/v2/{prefix}{name}/manifests/1");
        assert_eq!(repository(&upstreams, &path(&longest)).unwrap(), format!("quay.io/{longest}"), "{prefix}");
        assert!(matches!(repository(&upstreams, &path(&too_long)), Err(PullError::Request(_))), "{prefix}");
    }
    // What a rule adds in front counts.
    let path = format!("/v2/team/hub/{longest}/manifests/1");
    assert!(matches!(repository(&upstreams, &path), Err(PullError::Request(InvalidRequest::Name(_)))));
}

#[tokio::test(start_paused = true)]
async fn the_silence_of_another_host_is_not_that_of_the_registry() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, target) = (registry.local_addr().unwrap(), silent.local_addr().unwrap());
    let upstreams =
        upstreams(&format!("[upstreams.\"test.local\"]\nurl = \"http://{address}\"\ntrusted_hosts = [\"{target}\"]"));
    let redirects = tokio::spawn(async move {
        loop {
            let (mut connection, _) = registry.accept().await.unwrap();
            _ = connection.read(&mut [0; 4096]).await.unwrap();
            let head = format!(
                "HTTP/1.1 307 Away\r\nlocation: http://{target}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            connection.write_all(head.as_bytes()).await.unwrap();
        }
    });
    let repository = Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() };
    let digest = Digest::of(crate::oci::Algorithm::Sha256, b"a");
    let opened = upstreams.open_blob(&repository, &digest, None, Patience::Client).await.map(drop);
    assert!(matches!(opened, Err(UpstreamError::Elsewhere { silent: true, .. })), "{opened:?}");
    redirects.abort();
}
