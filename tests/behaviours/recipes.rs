//! The clients of docs/how-to/artifacts.md, as they ask: each against an upstream that answers as theirs does. What a client
//! needs of an answer is compared: status, length, digest, ranges, where it is led to.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::oci::{Algorithm, Digest};
use support::on_both_columns;
use support::scripted::Fault;
use support::world::{Answer, Column, World};

on_both_columns!(
    helm_pulls_a_chart_by_version_and_finds_the_newest_in_a_list_of_many_pages,
    flux_and_argo_cd_take_a_chart_where_upstream_refuses_head_and_ask_for_a_constraint_as_a_tag,
    renovate_and_updatecli_see_every_tag_on_one_page_and_the_digest_of_each,
    trivy_pulls_its_databases,
    homebrew_pulls_a_bottle_and_resumes_it,
    ollama_pulls_a_model_in_parts_from_where_it_is_led,
    a_model_runner_pulls_from_its_mirror_and_resumes,
);

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What an upstream has of an artifact.
struct Artifact {
    name: &'static str,
    digest: Digest,
    manifest: Bytes,
    /// The configuration, and the layers.
    blobs: Vec<(Digest, Bytes)>,
}

/// Puts an artifact at upstream: a configuration and layers of these media types. Each layer is long enough to be asked for in
/// parts.
fn artifact(world: &World, name: &'static str, tag: &str, media_type: &str, types: &[&str]) -> Artifact {
    let mut blobs = Vec::new();
    let mut describe = |media_type: &&str| {
        let content = Bytes::from(format!("{media_type} of {name}:{tag} ").repeat(100));
        let digest = Digest::of(Algorithm::Sha256, &content);
        let size = content.len();
        world.upstream.blob(name, &digest, &content);
        blobs.push((digest.clone(), content));
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    };
    let described: Vec<Value> = types.iter().map(&mut describe).collect();
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media_type, "config": described[0], "layers": described[1..] });
    let manifest = Bytes::from(manifest.to_string());
    let digest = world.upstream.manifest(name, tag, media_type, &manifest);
    Artifact { name, digest, manifest, blobs }
}

impl Artifact {
    /// HEAD and GET of its manifest: what oras-go, go-containerregistry and their like rely on.
    async fn resolve(&self, world: &World, reference: &str, accept: &str) {
        let path = format!("/v2/test.local/{}/manifests/{reference}", self.name);
        for method in [Method::HEAD, Method::GET] {
            let answer = world.send(method.clone(), &path, &[("accept", accept)]).await;
            assert_eq!(answer.status, StatusCode::OK, "{method} {path}: {answer:?}");
            assert_eq!(answer.header("docker-content-digest"), self.digest.as_str(), "{method} {path}");
            assert_eq!(answer.header("content-length"), self.manifest.len().to_string(), "{method} {path}");
            assert!(method == Method::HEAD || *answer.bytes() == self.manifest, "{path}");
        }
    }

    async fn fetch(&self, world: &World) {
        for (digest, content) in &self.blobs {
            let answer = world.pull(&format!("/v2/test.local/{}/blobs/{digest}", self.name)).await;
            assert_eq!((answer.status, answer.bytes()), (StatusCode::OK, content), "{digest}");
        }
    }
}

/// GET of a part of a blob, from where the cache leads to.
async fn part(world: &World, path: &str, range: &str) -> Answer {
    let answer = world.send(Method::GET, path, &[("range", range)]).await;
    if answer.status != StatusCode::TEMPORARY_REDIRECT {
        return answer;
    }
    // As clients do: the range goes along, and no login.
    let response = support::http().get(answer.header("location")).header("range", range).send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.map_err(|error| error.to_string()) }
}

/// A part of content, as an answer has it.
fn assert_part(answer: &Answer, content: &Bytes, first: usize, last: usize) {
    assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT, "{answer:?}");
    assert_eq!(answer.header("content-range"), format!("bytes {first}-{last}/{}", content.len()));
    assert_eq!(answer.header("accept-ranges"), "bytes", "{answer:?}");
    assert_eq!(answer.bytes(), &content[first..=last]);
}

/// Tags on pages of a hundred, as GitHub's registry has them.
fn tags_in_pages(world: &World, name: &str, tags: &[String]) {
    let path = format!("/v2/{name}/tags/list");
    for (number, page) in tags.chunks(100).enumerate() {
        let here = if number == 0 { path.clone() } else { format!("{path}?page={number}") };
        let next = (tags.len() > (number + 1) * 100).then(|| format!("<{path}?page={}>; rel=\"next\"", number + 1));
        world.upstream.page(
            &here,
            "application/json",
            &json!({ "name": name, "tags": page }).to_string(),
            next.as_deref(),
        );
    }
}

fn tags(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let list: Value = serde_json::from_slice(answer.bytes()).unwrap();
    serde_json::from_value(list["tags"].clone()).unwrap()
}

const HELM: [&str; 3] = [
    "application/vnd.cncf.helm.config.v1+json",
    "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
    "application/vnd.cncf.helm.chart.provenance.v1.prov",
];

/// What oras-go accepts.
const ORAS: &str = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.oci.artifact.manifest.v1+json";

async fn helm_pulls_a_chart_by_version_and_finds_the_newest_in_a_list_of_many_pages(column: Column) {
    let world = World::on(column).await;
    // A plus of a version is an underscore in its tag.
    let chart = artifact(&world, "org/app", "1.2.3_build", MANIFEST, &HELM);
    chart.resolve(&world, "1.2.3_build", ORAS).await;
    chart.resolve(&world, chart.digest.as_str(), ORAS).await;
    chart.fetch(&world).await;
    let versions: Vec<String> = (0..250).map(|patch| format!("1.2.{patch:03}")).collect();
    tags_in_pages(&world, "org/app", &versions);
    let (mut seen, mut next) = (Vec::new(), Some("/v2/test.local/org/app/tags/list?n=90".to_owned()));
    while let Some(path) = next {
        let page = world.get(&path).await;
        seen.extend(tags(&page));
        next = page.header("link").strip_prefix('<').and_then(|link| Some(link.split_once('>')?.0.to_owned()));
    }
    assert_eq!(seen, versions);
}

async fn flux_and_argo_cd_take_a_chart_where_upstream_refuses_head_and_ask_for_a_constraint_as_a_tag(column: Column) {
    let world = World::on(column).await;
    let chart = artifact(&world, "org/app", "1.2.3", MANIFEST, &HELM[..2]);
    world.upstream.fault("HEAD ", Fault::Status(405, vec![], String::new()));
    chart.resolve(&world, "1.2.3", ORAS).await;
    chart.fetch(&world).await;
    // A constraint is no tag: the list is asked then, and not every reconciliation asks upstream.
    for _ in 0..3 {
        let answer = world.send(Method::HEAD, "/v2/test.local/org/app/manifests/1.x", &[("accept", ORAS)]).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{answer:?}");
    }
    assert!(world.upstream.count("/manifests/1.x") <= 2, "HEAD, and GET because HEAD is refused");
    tags_in_pages(&world, "org/app", &["1.2.3".into()]);
    assert_eq!(tags(&world.get("/v2/test.local/org/app/tags/list").await), ["1.2.3"]);
}

async fn renovate_and_updatecli_see_every_tag_on_one_page_and_the_digest_of_each(column: Column) {
    let world = World::on(column).await;
    // Renovate reads 20 pages at the most from a host that it does not know.
    let versions: Vec<String> = (0..2500).map(|patch| format!("1.0.{patch:04}")).collect();
    tags_in_pages(&world, "org/app", &versions);
    let page = world.get("/v2/test.local/org/app/tags/list?n=10000").await;
    assert_eq!((tags(&page), page.header("link")), (versions, ""));
    // For a digest it reads the manifest of a platform, and its configuration.
    let (index, images) = world.upstream.index("org/app", "1.0.2499", &["linux/amd64", "linux/arm64"]);
    let path = "/v2/test.local/org/app/manifests/1.0.2499";
    let head = world.send(Method::HEAD, path, &[("accept", INDEX), ("accept", MANIFEST)]).await;
    assert_eq!((head.status, head.header("docker-content-digest")), (StatusCode::OK, index.as_str()));
    let read: Value = serde_json::from_slice(world.get(path).await.bytes()).unwrap();
    assert_eq!(read["manifests"][0]["digest"], json!(images[0].digest));
    let child = world.get(&format!("/v2/test.local/org/app/manifests/{}", images[0].digest)).await;
    let child: Value = serde_json::from_slice(child.bytes()).unwrap();
    let config = child["config"]["digest"].as_str().unwrap();
    let config = world.pull(&format!("/v2/test.local/org/app/blobs/{config}")).await;
    assert_eq!(serde_json::from_slice::<Value>(config.bytes()).unwrap()["architecture"], "amd64");
}

async fn trivy_pulls_its_databases(column: Column) {
    let world = World::on(column).await;
    for (name, tag, layer) in [
        ("aquasec/trivy-db", "2", "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip"),
        ("aquasec/trivy-java-db", "1", "application/vnd.aquasec.trivy.javadb.layer.v1.tar+gzip"),
        ("aquasec/trivy-checks", "2", "application/vnd.cncf.openpolicyagent.layer.v1.tar+gzip"),
    ] {
        let database = artifact(&world, name, tag, MANIFEST, &["application/vnd.oci.empty.v1+json", layer]);
        assert_eq!(world.get("/v2/").await.status, StatusCode::OK);
        database
            .resolve(&world, tag, "application/vnd.oci.image.manifest.v1+json,application/vnd.oci.image.index.v1+json")
            .await;
        database.fetch(&world).await;
        // A database is a moving tag: the same one costs no pull.
        let spent = world.upstream.served_by_get(&database.digest);
        world.clock.advance(std::time::Duration::from_hours(6));
        database.resolve(&world, tag, MANIFEST).await;
        assert_eq!(world.upstream.served_by_get(&database.digest), spent);
    }
}

async fn homebrew_pulls_a_bottle_and_resumes_it(column: Column) {
    let world = World::on(column).await;
    // `@` of a formula is a slash in its name.
    let name = "homebrew/core/openssl/3";
    let bottle = artifact(
        &world,
        name,
        "3.5.0",
        MANIFEST,
        &["application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"],
    );
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": MANIFEST, "digest": bottle.digest, "size": bottle.manifest.len(),
        "annotations": { "sh.brew.bottle.digest": bottle.blobs[1].0.hex() },
    }] });
    let digest = world.upstream.manifest(name, "3.5.0", INDEX, index.to_string().as_bytes());
    // HOMEBREW_ARTIFACT_DOMAIN of today, and of before; the login of `portable-ruby` is one that says nothing.
    for (path, headers) in [
        (format!("/v2/test.local/{name}"), &[("accept", INDEX)][..]),
        (format!("/test.local/v2/{name}"), &[("accept", INDEX), ("authorization", "Bearer QQ==")]),
    ] {
        let answer = world.send(Method::GET, &format!("{path}/manifests/3.5.0"), headers).await;
        assert_eq!(
            (answer.status, answer.header("docker-content-digest")),
            (StatusCode::OK, digest.as_str()),
            "{answer:?}"
        );
        let (layer, content) = &bottle.blobs[1];
        let blob = format!("{path}/blobs/{layer}");
        let whole = world.send(Method::GET, &blob, &headers[1..]).await;
        assert!(matches!(whole.status, StatusCode::OK | StatusCode::TEMPORARY_REDIRECT), "{whole:?}");
        assert_eq!(world.pull(&blob).await.bytes(), content);
        world.settled().await;
        let head = world.head(&blob).await;
        assert_eq!((head.status, head.header("content-length")), (StatusCode::OK, &*content.len().to_string()));
        assert_part(&part(&world, &blob, "bytes=1000-").await, content, 1000, content.len() - 1);
    }
}

async fn ollama_pulls_a_model_in_parts_from_where_it_is_led(column: Column) {
    let world = World::on(column).await;
    let model = artifact(
        &world,
        "library/llama3",
        "8b",
        DOCKER,
        &[
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.ollama.image.model",
            "application/vnd.ollama.image.license",
        ],
    );
    let agent = ("user-agent", "ollama/0.34.2 (amd64 linux) Go/go1.26");
    let manifest =
        world.send(Method::GET, "/v2/test.local/library/llama3/manifests/8b", &[("accept", DOCKER), agent]).await;
    assert_eq!((manifest.status, manifest.bytes()), (StatusCode::OK, &model.manifest));
    for (digest, content) in &model.blobs {
        let path = format!("/v2/test.local/library/llama3/blobs/{digest}");
        let head = world.send(Method::HEAD, &path, &[agent]).await;
        assert_eq!((head.status, head.header("content-length")), (StatusCode::OK, &*content.len().to_string()));
        // It reads no byte of this answer, but where the parts are.
        let first = world.send(Method::GET, &path, &[agent]).await;
        assert!(matches!(first.status, StatusCode::OK | StatusCode::TEMPORARY_REDIRECT), "{first:?}");
        let place = first.header("location").to_owned();
        assert!(!place.is_empty(), "it fails where it is told no place: {first:?}");
        drop(first);
        world.settled().await;
        let half = content.len() / 2;
        for (first, last) in [(0, half - 1), (half, content.len() - 1)] {
            let range = format!("bytes={first}-{last}");
            // A place of the cache, or one that the cache leads to now that the blob is stored.
            let place = if place.starts_with('/') { &place } else { &path };
            assert_part(&part(&world, place, &range).await, content, first, last);
        }
    }
}

async fn a_model_runner_pulls_from_its_mirror_and_resumes(column: Column) {
    let world = World::on(column).await;
    let model = artifact(
        &world,
        "ai/smollm2",
        "latest",
        MANIFEST,
        &[
            "application/vnd.docker.ai.model.config.v0.1+json",
            "application/vnd.docker.ai.gguf.v3",
            "application/vnd.docker.ai.license",
        ],
    );
    let path = "/v2/ai/smollm2";
    let manifest =
        world.send(Method::GET, &format!("{path}/manifests/latest?ns=test.local"), &[("accept", MANIFEST)]).await;
    assert_eq!((manifest.status, manifest.bytes()), (StatusCode::OK, &model.manifest));
    model.fetch(&world).await;
    world.settled().await;
    let (digest, content) = &model.blobs[1];
    let blob = format!("{path}/blobs/{digest}?ns=test.local");
    assert_part(&part(&world, &blob, "bytes=500-").await, content, 500, content.len() - 1);
}
