//! `stopover setup kubernetes` and `kyverno`: the expressions of the policy, evaluated on pods.

use std::sync::Arc;

use anyhow::{Context as _, anyhow, ensure};
use cel::extractors::This;
use cel::{Context, Program};
use serde_json::{Map, Value, json};

use crate::setup::{documents, printed};

const SERVER: &str = "https://cache.example.com";

/// What objects are made of in the mutation, the longer names first. For Kubernetes these are types.
const TYPES: [&str; 7] = [
    "Object.spec.volumes.image",
    "Object.spec.volumes",
    "Object.spec.ephemeralContainers",
    "Object.spec.initContainers",
    "Object.spec.containers",
    "Object.spec",
    "Object",
];

/// The fields that these have.
const FIELDS: [&str; 8] =
    ["spec", "containers", "initContainers", "ephemeralContainers", "volumes", "name", "image", "reference"];

/// The expressions of a policy, which those of Kubernetes and of Kyverno keep at the same places.
struct Policy {
    condition: String,
    variables: Vec<(String, String)>,
    mutation: String,
}

/// The policies that are printed for these upstreams.
async fn policies(upstreams: &[&str]) -> anyhow::Result<[Policy; 2]> {
    let options: Vec<&str> = upstreams.iter().flat_map(|upstream| ["--upstream", upstream]).collect();
    let read = async |client: &str| {
        let (text, _) = printed(&[&[client, "--server", SERVER][..], &options].concat()).await?;
        Policy::read(&documents(&text)?[0]["spec"]).with_context(|| text)
    };
    Ok([read("kubernetes").await?, read("kyverno").await?])
}

impl Policy {
    fn read(spec: &Value) -> anyhow::Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let variables = spec["variables"].as_array().context("no variables")?.iter();
        let variables = variables.map(|variable| Ok((text(&variable["name"])?, text(&variable["expression"])?)));
        Ok(Self {
            condition: text(&spec["matchConditions"][0]["expression"])?,
            variables: variables.collect::<anyhow::Result<_>>()?,
            mutation: text(&spec["mutations"][0]["applyConfiguration"]["expression"])?,
        })
    }

    /// The `spec` that is applied to a pod when it is made: what is not in it stays as it is.
    fn applied_to(&self, spec: &Value) -> anyhow::Result<Value> {
        self.applied(json!({ "operation": "CREATE" }), &Value::Null, spec)
    }

    fn applied(&self, request: Value, old: &Value, spec: &Value) -> anyhow::Result<Value> {
        let pod = |spec: &Value| if spec.is_null() { Value::Null } else { json!({ "spec": spec }) };
        let mut known = Map::from_iter([
            ("request".to_owned(), request),
            ("oldObject".to_owned(), pod(old)),
            ("object".to_owned(), pod(spec)),
            ("variables".to_owned(), json!({})),
        ]);
        for (name, expression) in &self.variables {
            let value = evaluate(expression, &known).with_context(|| name.clone())?;
            known["variables"][name] = value;
        }
        // An object is a map here; its keys are variables that have their own names as values.
        let mutation = TYPES.iter().fold(self.mutation.clone(), |text, name| text.replace(&format!("{name}{{"), "{"));
        known.extend(FIELDS.map(|field| (field.to_owned(), json!(field))));
        Ok(evaluate(&mutation, &known)?["spec"].take())
    }

    /// What becomes of the name of an image in a pod with one container.
    fn name_for(&self, image: &str) -> anyhow::Result<String> {
        let applied = self.applied_to(&json!({ "containers": [{ "name": "app", "image": image }] }))?;
        Ok(applied["containers"][0]["image"].as_str().context("no name")?.to_owned())
    }
}

fn evaluate(expression: &str, known: &Map<String, Value>) -> anyhow::Result<Value> {
    let program = Program::compile(expression).map_err(|error| anyhow!("{expression}: {error}"))?;
    let mut context = Context::default();
    for (name, value) in known {
        context.add_variable_from_value(name.as_str(), cel::to_value(value)?);
    }
    // The one function of Kubernetes' own that is used.
    let substring = |This(text): This<Arc<String>>, from: i64| {
        usize::try_from(from).ok().and_then(|from| text.get(from..)).unwrap_or_default().to_owned()
    };
    context.add_function("substring", substring).map_err(|error| anyhow!("substring: {error}"))?;
    let value = program.execute(&context).map_err(|error| anyhow!("{expression}: {error}"))?;
    value.json().map_err(|error| anyhow!("{expression}: {error}"))
}

#[tokio::test]
async fn a_policy_puts_the_cache_before_names_of_its_upstreams_and_leaves_every_other_name() -> anyhow::Result<()> {
    let digest = format!("sha256:{}", "a".repeat(64));
    let (pinned, both) = (format!("library/nginx@{digest}"), format!("ghcr.io/a/b:1@{digest}"));
    for policy in policies(&["docker.io", "ghcr.io"]).await? {
        for (image, through) in [
            ("nginx", "docker.io/nginx"),
            ("nginx:1.27", "docker.io/nginx:1.27"),
            (pinned.as_str(), &format!("docker.io/{pinned}")),
            ("team/app", "docker.io/team/app"),
            ("docker.io/nginx", "docker.io/nginx"),
            ("docker.io/library/nginx:1", "docker.io/library/nginx:1"),
            ("index.docker.io/library/nginx:1", "docker.io/library/nginx:1"),
            ("ghcr.io/a/b:tag", "ghcr.io/a/b:tag"),
            (both.as_str(), both.as_str()),
        ] {
            let through = format!("cache.example.com/{through}");
            ensure!(policy.name_for(image)? == through, "{image} became {}", policy.name_for(image)?);
            // Once more, as `reinvocationPolicy` may have it.
            ensure!(policy.name_for(&through)? == through, "{through} became {}", policy.name_for(&through)?);
        }
        for image in [
            "localhost/x",
            "localhost:5000/x",
            "registry.corp/nginx:1",
            "registry.corp:5000/nginx:1",
            "quay.io/a/b",
            "ghcr.io.evil.example/a/b",
            "ghcr.io:443/a/b",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/ghcr.io/a/b",
            "cache.example.com/ghcr.io/a/b:tag",
            "cache.example.com/nginx",
            // Istio puts its own image there.
            "auto",
        ] {
            ensure!(policy.name_for(image)? == image, "{image} became {}", policy.name_for(image)?);
        }
    }
    // Without Docker Hub, names without a registry are no names of an upstream.
    for policy in policies(&["ghcr.io"]).await? {
        ensure!(policy.name_for("nginx")? == "nginx" && policy.name_for("docker.io/nginx")? == "docker.io/nginx");
    }
    Ok(())
}

#[tokio::test]
async fn a_policy_lists_every_container_of_a_pod_and_the_volumes_that_are_images() -> anyhow::Result<()> {
    for policy in policies(&["docker.io"]).await? {
        let applied = policy.applied_to(&json!({
            "containers": [
                { "name": "a", "image": "nginx", "args": ["-x"] },
                { "name": "b", "image": "quay.io/b" },
                { "name": "c", "image": "nginx" },
            ],
            "initContainers": [{ "name": "d", "image": "busybox" }],
            "volumes": [
                { "name": "e", "emptyDir": {} },
                { "name": "f", "image": { "reference": "team/model:1", "pullPolicy": "Always" } },
            ],
        }))?;
        let wanted = json!({
            "containers": [
                { "name": "a", "image": "cache.example.com/docker.io/nginx" },
                { "name": "b", "image": "quay.io/b" },
                { "name": "c", "image": "cache.example.com/docker.io/nginx" },
            ],
            "initContainers": [{ "name": "d", "image": "cache.example.com/docker.io/busybox" }],
            "ephemeralContainers": [],
            "volumes": [{ "name": "f", "image": { "reference": "cache.example.com/docker.io/team/model:1" } }],
        });
        ensure!(applied == wanted, "{applied:#}");
    }
    Ok(())
}

#[tokio::test]
async fn a_policy_changes_only_containers_that_are_added_to_a_pod_that_runs() -> anyhow::Result<()> {
    for policy in policies(&["docker.io"]).await? {
        let first = json!({ "name": "first", "image": "busybox" });
        let second = json!({ "name": "second", "image": "busybox" });
        let spec = |debug: &[&Value]| {
            let containers = json!([{ "name": "a", "image": "nginx" }]);
            json!({ "containers": containers, "initContainers": containers, "ephemeralContainers": debug })
        };
        let update = json!({ "operation": "UPDATE" });
        let applied = policy.applied(update.clone(), &spec(&[&first]), &spec(&[&first, &second]))?;
        let wanted = json!({
            "containers": [], "initContainers": [], "volumes": [],
            "ephemeralContainers":
                [{ "name": "first", "image": "busybox" }, { "name": "second", "image": "cache.example.com/docker.io/busybox" }],
        });
        ensure!(applied == wanted, "{applied:#}");
        let old = json!({ "containers": [{ "name": "a", "image": "nginx" }] });
        let applied = policy.applied(update, &old, &spec(&[&first]))?;
        ensure!(applied["ephemeralContainers"][0]["image"] == "cache.example.com/docker.io/busybox", "{applied:#}");
    }
    Ok(())
}

#[tokio::test]
async fn a_policy_leaves_static_pods_and_the_namespace_of_the_cache_and_fails_no_pod() -> anyhow::Result<()> {
    for policy in policies(&["docker.io"]).await? {
        for (group, applies) in [("system:authenticated", true), ("system:nodes", false)] {
            let known = Map::from_iter([("request".to_owned(), json!({ "userInfo": { "groups": [group] } }))]);
            ensure!(evaluate(&policy.condition, &known)? == applies, "{group}");
        }
    }
    for client in ["kubernetes", "kyverno"] {
        let spec = documents(&printed(&[client, "--server", SERVER]).await?.0)?[0]["spec"].take();
        ensure!(spec["failurePolicy"] == "Ignore", "{client}");
        let namespaces = &spec["matchConstraints"]["namespaceSelector"]["matchExpressions"][0];
        let wanted = json!({
            "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", "stopover"],
        });
        ensure!(*namespaces == wanted, "{client}: {namespaces}");
    }
    Ok(())
}

#[tokio::test]
async fn a_policy_of_kubernetes_has_a_binding_without_which_it_does_nothing() -> anyhow::Result<()> {
    let [policy, binding] = &documents(&printed(&["kubernetes", "--server", SERVER]).await?.0)?[..] else {
        anyhow::bail!("not two documents");
    };
    for (document, kind) in [(policy, "MutatingAdmissionPolicy"), (binding, "MutatingAdmissionPolicyBinding")] {
        ensure!(document["apiVersion"] == "admissionregistration.k8s.io/v1" && document["kind"] == kind, "{document}");
    }
    ensure!(binding["spec"]["policyName"] == policy["metadata"]["name"], "{binding}");
    Ok(())
}
