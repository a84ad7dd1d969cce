use super::super::tests::{images, parsed};

#[test]
fn the_containers_of_kubernetes_manifests_are_found_wherever_a_pod_is_described() {
    let text = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {image: acme/not-this:1}}
spec:
  template:
    spec:
      initContainers:
        - name: migrate
          image: ghcr.io/a/migrate:1
      containers:
        # image: acme/old:1
        - image: "nginx:1.27"
          name: web
        - {name: side, image: "$(SIDE_IMAGE)"}
        - image: acme/op:1
          args: ["--reloader-image=acme/reloader:1", --image, acme/arg:1, --image-pull-deadline=1m]
          env: [{name: RELATED_IMAGE_X, value: "acme/x:1"}, {name: IMAGE_TAG, value: "1"}]
      volumes:
        - name: model
          image: {reference: quay.io/a/model:1, pullPolicy: Always}
status: {containerStatuses: [{image: docker.io/acme/status:1}]}
---
apiVersion: batch/v1
kind: CronJob
spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: job, image: nginx:1.27}]}}}}}
---
# nothing
---
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Pod
    spec:
      imagePullSecrets: [{name: not-an-image}]
      containers:
        - image: busybox
          env: [{name: image, value: not-an-image}]
  - apiVersion: v1
    kind: ConfigMap
    data:
      Dockerfile: |
        FROM not-an-image
"#;
    let mut found = images("k8s.yaml", text);
    found.sort();
    assert_eq!(
        found,
        [
            "acme/arg:1 17",
            "acme/op:1 16",
            "acme/reloader:1 17",
            "acme/x:1 18",
            "busybox 38",
            "ghcr.io/a/migrate:1 10",
            "nginx:1.27 13",
            "quay.io/a/model:1 21"
        ]
    );
    let listed = parsed("k8s.yaml", text).unwrap();
    assert_eq!(listed.skipped, ["k8s.yaml:15: skipped $(SIDE_IMAGE): a template that is not filled in"]);
}

#[test]
fn images_are_found_in_documents_of_any_kind() {
    for (text, expected) in [
        // Tekton, Argo, Knative: whatever has an image.
        ("spec: {steps: [{image: acme/a:1}], stepTemplate: {image: acme/b}}\n", &["acme/a:1", "acme/b"][..]),
        (
            "spec: {taskRef: {bundle: acme/a:1}, params: [{name: BUILDER_IMAGE, value: acme/b:1}]}\n",
            &["acme/a:1", "acme/b:1"],
        ),
        ("spec: {imageName: acme/a:1, image: {repository: acme/b, tag: 1.5}}\n", &["acme/a:1", "acme/b:1.5"]),
        ("spec: {openAPIV3Schema: {properties: {image: {default: acme/a:1}}}}\n", &[]),
        ("from: {kind: DockerImage, name: acme/a:1}\n", &["acme/a:1"]),
        // Kustomize and its like.
        ("images: [{name: acme/a, newTag: '1'}, {name: alone}]\n", &["acme/a:1"]),
        ("images: [{name: b, newName: acme/c, digest: 'DIGEST'}]\n", &["acme/c@DIGEST"]),
        ("images: [acme/a:1, acme/b]\nadditionalImages: [{name: acme/c:1}]\n", &["acme/a:1", "acme/b", "acme/c:1"]),
        ("images: {web: 'acme/a:1', api: web}\n", &["acme/a:1"]),
        // Values of charts.
        (
            "image: {registry: quay.io, repository: acme/a, tag: v1}\nsidecar: {image: acme/b, tag: 2}\n",
            &["quay.io/acme/a:v1", "acme/b:2"],
        ),
        (
            "imageRepository: acme/a\nimageTag: '1'\nproxy_image_repo: acme/b\nproxy_image_tag: v2\n",
            &["acme/a:1", "acme/b:v2"],
        ),
        ("driver: {repository: nvcr.io/nvidia, image: driver, version: '535'}\n", &["nvcr.io/nvidia/driver:535"]),
        ("imageRepository: registry.example.com\nimageTag: '1'\n", &[]),
        (
            "global: {image: {registry: registry.k8s.io}}\na: {image: {image: acme/a, tag: v1}, b: {repository: quay.io/b, tag: 1}}\n",
            &["registry.k8s.io/acme/a:v1", "quay.io/b:1"],
        ),
        ("dependencies: [{name: a, version: 1.0.0, repository: 'https://example.com'}]\n", &[]),
        // Continuous integration.
        (
            "image: acme/a:1\nservices: [acme/b:1, postgres, {name: acme/c:1, alias: c}]\nt: {image: {name: node}}\n",
            &["acme/a:1", "acme/b:1", "postgres", "acme/c:1", "node"],
        ),
        ("language: go\nservices: [docker, mysql]\nscript: x\n", &[]),
        (
            "jobs: {t: {runs-on: x, container: node, services: {d: {image: acme/b}}, steps: [{uses: docker://acme/c:1}]}}\n",
            &["node", "acme/b", "acme/c:1"],
        ),
        ("jobs: {a: {docker: [{image: acme/a:1}]}, b: {machine: {image: ubuntu-2204:current}}}\n", &["acme/a:1"]),
        ("env: {IMAGE_NAME: acme/mine:1}\nvariables: {IMAGE: mine, OTHER_IMAGE: acme/a:1}\n", &["acme/a:1"]),
        ("Parameters: {ImageUrl: {Type: String, Default: nginx}}\n", &["nginx"]),
        ("[dependencies]\nimage = \"0.25\"\n", &[]),
        ("pool: {vmImage: ubuntu-latest}\njobs: [{container: alias}]\n", &[]),
        // JSON with comments, one a line, of ECS, and what tools print.
        ("// x\n{ /* y */ \"image\": \"acme/a:1\", \"url\": \"http://x\", }", &["acme/a:1"]),
        (
            "{\"Repository\":\"acme/a\",\"Tag\":\"1\"}\n{\"Repository\":\"acme/b\",\"Tag\":\"2\"}\n",
            &["acme/a:1", "acme/b:2"],
        ),
        ("{\"containerDefinitions\":[{\"image\":\"acme/a:1\"}]}", &["acme/a:1"]),
        ("{\"images\":[{\"id\":\"sha256:1\",\"repoTags\":[\"acme/a:1\"]}]}", &["acme/a:1"]),
        ("Image: !Sub 'acme/a:1'\nOther: {Name: !Ref X}\n", &["acme/a:1"]),
        (
            "registry.example.com:\n  images:\n    acme/a: ['1', '2']\n",
            &["registry.example.com/acme/a:1", "registry.example.com/acme/a:2"],
        ),
        // TOML.
        ("[build]\nimage = \"acme/a:1\"\n[plugins.cri]\nsandbox_image = 'acme/b:1'\n", &["acme/a:1", "acme/b:1"]),
        // Other things that are called images.
        ("image: cover.png\nbackground_image: /x/y\nurl: {image: 'https://example.com/a:1'}\n", &[]),
        ("web: {build: ., image: acme/built:1}\ndb: {image: acme/b:1}\n", &["acme/b:1"]),
        ("  image: acme/a:1\n  more: 1\n", &["acme/a:1"]),
    ] {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let found = images("document", &text.replace("DIGEST", digest));
        let found: Vec<&str> = found.iter().filter_map(|image| image.split(' ').next()).collect();
        let expected: Vec<String> = expected.iter().map(|image| image.replace("DIGEST", digest)).collect();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn what_cannot_be_known_is_named_with_its_line() {
    for (text, expected) in [
        ("a:\n- image: {{ .Values.image }}\n", "f:2: skipped {{ .Values.image }}: a template"),
        ("a: 1\nimage: 'acme/a:{{ .tag }}'\n", "f:2: skipped acme/a:{{ .tag }}: a template"),
        ("a: 1\nimage: acme/a:<< parameters.tag >>\n", "f:2: skipped acme/a:<< parameters.tag >>: a template"),
        ("jobs:\n  a: {container: {image: 'acme/a:${{ matrix.tag }}'}}\n", "f:2: skipped acme/a:${{ matrix.tag }}"),
        ("a: 1\nimage:\n  repository: acme/a\n  tag: \"\"\n", "f:3: skipped acme/a: its tag is not given here"),
        ("Image:\n  Ref: Parameter\n", "f:2: skipped Parameter: what it refers to is not known"),
        ("docker.io:\n  images:\n    acme/a: []\n", "f:3: skipped docker.io/acme/a: all its tags are meant"),
        ("{{- if .x }}\nimage: a{{ .y }}\n{{- else }}\nimage: {{ .z }}\n{{- end }}\n", "f:2: skipped a{{ .y }}"),
    ] {
        let listed = parsed("f", text).unwrap();
        assert!(listed.images.is_empty(), "{:?}", listed.images);
        assert!(listed.skipped.first().is_some_and(|line| line.starts_with(expected)), "{text}: {:?}", listed.skipped);
    }
}

#[test]
fn lines_that_have_only_templates_break_no_document() {
    let text = "apiVersion: v1\nkind: Pod\n{{- if .Values.x }}\nspec:\n  {{- with .y }}\n  containers: [{image: acme/a:1}]\n  \
                {{- end }}\n{{- end }}\n";
    assert_eq!(images("pod.yaml", text), ["acme/a:1 6"]);
    let error = parsed("pod.yaml", "a: [\n{{ x }}\n  b: {{ y }}\n").unwrap_err();
    assert!(format!("{error:#}").contains("no YAML or JSON"), "{error:#}");
}
