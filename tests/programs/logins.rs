//! Logins as this machine: the program finds out who that is, and real clients let it speak for them.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};
use support::aws::sts::{Signer, Sts};
use support::images::{Image, Recipe};
use support::issuer::Issuer;
use support::neighbours::{Actions, Instance};
use support::node::Node;
use support::program::{Installation, Stopover, UPSTREAM, binary};
use support::registry::Registry;
use support::secrets;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

const ACCOUNT: &str = "123456789012";
/// How long a client may take.
const END: Duration = Duration::from_mins(1);

/// A cache that lets in one account of AWS and one owner's jobs, an image, and somebody of that account.
struct Setting {
    directory: TempDir,
    image: Image,
    sts: Sts,
    issuer: Issuer,
    signer: Signer,
    stopover: Stopover,
    _behind: (Installation, Registry),
}

impl Setting {
    async fn start() -> anyhow::Result<Self> {
        let upstream = Registry::start().await?;
        let image = Recipe::oci("team/app", vec![1000]).push(&upstream).await?;
        let (sts, issuer) = (Sts::start()?, Issuer::start()?);
        let signer = Signer::role(ACCOUNT, "node", "i-1");
        sts.know(&signer);
        let directory = TempDir::new()?;
        let keys = directory.path().join("keys");
        std::fs::write(&keys, format!("1:{}", STANDARD.encode([7; 32])))?;
        let installation = Installation::with_configuration(&format!(
            "[access]\nservice = \"cr.test\"\nsigning_keys = {{ file = \"{}\" }}\n\
             [access.iam]\naccounts = [\"{ACCOUNT}\"]\nendpoint = \"{}\"\n\
             [access.oidc.ci]\nissuer = \"{}\"\naudience = \"cr.test\"\nclaims = {{ owner_id = \"42\" }}\n\
             [upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\n",
            keys.display(),
            sts.url(),
            issuer.url(),
            upstream.url()
        ))?;
        let stopover = installation.start().await?;
        std::os::unix::fs::symlink(binary()?, directory.path().join("docker-credential-stopover"))?;
        Ok(Self { directory, image, sts, issuer, signer, stopover, _behind: (installation, upstream) })
    }

    fn helper(&self) -> PathBuf {
        self.directory.path().join("docker-credential-stopover")
    }

    /// Credentials as they stand in an environment.
    fn credentials(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", self.signer.key_id.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.signer.secret.clone()),
            ("AWS_SESSION_TOKEN", self.signer.token.clone().unwrap_or_default()),
            ("AWS_REGION", "eu-west-1".to_owned()),
        ]
    }

    /// Runs a program that has these variables, and of others only those that name the cache, and where programs are.
    async fn run(
        &self,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, String)],
        input: &str,
    ) -> anyhow::Result<Output> {
        let path = std::env::var("PATH")?;
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", format!("{}:{path}", self.directory.path().display()))
            .env("HOME", self.directory.path())
            .env("STOPOVER_SERVICE", "cr.test")
            .env("STOPOVER_SERVER", format!("http://{}", self.stopover.address()))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(environment.iter().map(|(name, value)| (*name, value.as_str())))
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        // A program that does not read its input may have ended.
        let _ = child.stdin.take().context("it is piped")?.write_all(input.as_bytes()).await;
        tokio::time::timeout(END, child.wait_with_output()).await.context("it does not end")?.context("it ended badly")
    }

    /// What the credential helper says, which has to be a login.
    async fn login(&self, environment: &[(&str, String)]) -> anyhow::Result<(String, String)> {
        let server = format!("https://{}\n", self.stopover.address());
        let output = self.run(&self.helper(), &["get"], environment, &server).await?;
        ensure!(output.status.success(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(answer["ServerURL"] == server.trim(), "{answer}");
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        secrets::know_login("a login that a helper has made", &text("Username"), &text("Secret"));
        Ok((text("Username"), text("Secret")))
    }

    /// What the cache says to a login.
    async fn answers(&self, (user, secret): &(String, String)) -> anyhow::Result<StatusCode> {
        let url = format!("http://{}/token?service=cr.test", self.stopover.address());
        Ok(support::http().get(url).basic_auth(user, Some(secret)).send().await?.status())
    }

    fn reference(&self) -> String {
        format!("docker://{}/{UPSTREAM}/{}:{}", self.stopover.address(), self.image.name, self.image.tag)
    }

    /// What the issuer says of a job of the right owner.
    fn claims(&self) -> anyhow::Result<Value> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(json!({
            "iss": self.issuer.url(), "aud": "cr.test", "sub": "repo:acme/app", "owner_id": "42", "exp": now + 600,
        }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_helper_signs_with_credentials_of_the_environment() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let login = setting.login(&setting.credentials()).await?;
    ensure!(login.0 == "aws" && setting.answers(&login).await? == StatusCode::OK);
    // For another cache it is worth nothing here.
    let other = [setting.credentials(), vec![("STOPOVER_SERVICE", "other.test".to_owned())]].concat();
    ensure!(setting.answers(&setting.login(&other).await?).await? == StatusCode::UNAUTHORIZED);
    let wrong = [setting.credentials(), vec![("AWS_SECRET_ACCESS_KEY", "wrong".to_owned())]].concat();
    ensure!(setting.answers(&setting.login(&wrong).await?).await? == StatusCode::UNAUTHORIZED);
    ensure!(setting.sts.asked() == 3);
    ensure!(!setting.stopover.log().contains(&login.1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_helper_signs_with_credentials_of_the_container_or_the_instance() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let instance = Instance::start(&setting.signer)?;
    let token = setting.directory.path().join("token");
    std::fs::write(&token, format!("{}\n", Instance::CONTAINER_TOKEN))?;
    let container = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", instance.container_url()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.display().to_string()),
        ("AWS_REGION", "eu-west-1".to_owned()),
    ];
    ensure!(setting.answers(&setting.login(&container).await?).await? == StatusCode::OK);
    let metadata = [
        ("AWS_EC2_METADATA_DISABLED", String::new()),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", instance.url().to_owned()),
    ];
    ensure!(setting.answers(&setting.login(&metadata).await?).await? == StatusCode::OK);
    // Not from anywhere: what answers there would be believed.
    let elsewhere = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://10.0.0.1/".to_owned())];
    let output = setting.run(&setting.helper(), &["get"], &elsewhere, setting.stopover.address()).await?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(!output.status.success() && text.contains("another host"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_helper_signs_as_the_role_that_a_service_account_of_eks_has() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let role = format!("arn:aws:iam::{ACCOUNT}:role/eks/puller");
    setting.sts.trust("token of the pod", &role, &Signer::role(ACCOUNT, "puller", "stopover"));
    let file = setting.directory.path().join("web-identity");
    std::fs::write(&file, "token of the pod\n")?;
    let of_pod = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file.display().to_string()),
        ("AWS_ROLE_ARN", role),
        ("AWS_ENDPOINT_URL_STS", setting.sts.url().to_owned()),
        ("AWS_REGION", "eu-west-1".to_owned()),
    ];
    let login = setting.login(&of_pod).await?;
    ensure!(login.0 == "aws" && setting.answers(&login).await? == StatusCode::OK);
    let helper = setting.helper();
    let server = setting.stopover.address();
    let refusal = async |name, value: &str| {
        let changed = [&of_pod[..], &[(name, value.to_owned())]].concat();
        let output = setting.run(&helper, &["get"], &changed, server).await?;
        ensure!(!output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let said = refusal("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/other").await?;
    ensure!(said.contains("role/other") && said.contains("InvalidIdentityToken"), "{said}");
    ensure!(!said.contains("token of the pod"), "{said}");
    let said = refusal("AWS_ROLE_ARN", "").await?;
    ensure!(said.contains("belong together"), "{said}");
    let said = refusal("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere").await?;
    ensure!(said.contains("cannot read /nowhere"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_helpers_log_in_at_their_cache_and_nowhere_else() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let (helper, address) = (setting.helper(), setting.stopover.address());
    let get = async |server: &str, environment: &[(&str, String)]| {
        let environment = [&setting.credentials()[..], environment].concat();
        let output = setting.run(&helper, &["get"], &environment, server).await?;
        anyhow::Ok((output.status.success(), String::from_utf8(output.stdout)?))
    };
    for server in [address.to_owned(), format!("http://{address}"), format!("https://{address}/v2/\n")] {
        let (success, said) = get(&server, &[]).await?;
        ensure!(success && said.contains("\"Username\":\"aws\""), "{server}: {said}");
    }
    // Docker, podman and skopeo go on without credentials when they read exactly this.
    for server in ["https://index.docker.io/v1/", "ghcr.io", "127.0.0.1", &format!("{address}.evil.example"), "http://"]
    {
        let (success, said) = get(server, &[]).await?;
        ensure!(!success && said.trim() == "credentials not found in native keychain", "{server}: {said}");
    }
    for (variable, value, words) in [
        ("STOPOVER_SERVER", "", "--server or STOPOVER_SERVER"),
        ("STOPOVER_SERVER", "cache.example.com", "give a URL like https://cache.example.com"),
        ("STOPOVER_SERVICE", "", "--service or STOPOVER_SERVICE"),
    ] {
        let (success, said) = get(address, &[(variable, value.to_owned())]).await?;
        ensure!(!success && said.contains(words), "{variable}={value}: {said}");
    }
    // Without a user and a way to log in, an empty name is no login.
    let unset = [("STOPOVER_SERVICE", String::new())];
    let asked = setting.run(&binary()?, &["health"], &unset, "").await?;
    ensure!(asked.status.success(), "{asked:?}");
    let elsewhere = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest",
        "image": "registry.example.com/team/app:v1", "serviceAccountToken": "token of the pod",
    });
    let arguments = ["kubelet-credential-provider"];
    let output = setting.run(&binary()?, &arguments, &setting.credentials(), &elsewhere.to_string()).await?;
    let response: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.success() && response["auth"] == json!({}), "{output:?}");
    ensure!(response["kind"] == "CredentialProviderResponse", "{response}");
    ensure!(setting.sts.asked() == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_helper_passes_on_id_tokens_of_a_file_or_of_github_actions() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let token = setting.issuer.token("RS256", &setting.claims()?);
    let file = setting.directory.path().join("id-token");
    std::fs::write(&file, format!("{token}\n"))?;
    let login = setting.login(&[("STOPOVER_OIDC_TOKEN_FILE", file.display().to_string())]).await?;
    ensure!(login == ("oidc".to_owned(), token.clone()));
    ensure!(setting.answers(&login).await? == StatusCode::OK);
    let actions = Actions::start("cr.test", &token)?;
    let login = setting.login(&actions.environment()).await?;
    ensure!(login == ("oidc".to_owned(), token));
    // What is at hand is not used where the other way is named.
    let named = [actions.environment(), setting.credentials(), vec![("STOPOVER_LOGIN", "aws".to_owned())]].concat();
    ensure!(setting.login(&named).await?.0 == "aws");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_the_helper_says_where_it_has_looked() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let output = setting.run(&setting.helper(), &["get"], &[], setting.stopover.address()).await?;
    // Docker shows standard output.
    let text = String::from_utf8(output.stdout)?;
    ensure!(!output.status.success() && text.contains("AWS_ACCESS_KEY_ID"), "{text}");
    for action in ["store", "erase"] {
        let output = setting.run(&setting.helper(), &[action], &setting.credentials(), "{}").await?;
        ensure!(!output.status.success() && String::from_utf8(output.stdout)?.contains("keeps nothing"));
    }
    let output = setting.run(&setting.helper(), &["list"], &[], "").await?;
    ensure!(output.status.success() && serde_json::from_slice::<Value>(&output.stdout)? == json!({}));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pulls_with_the_helper_and_not_without() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let auth = setting.directory.path().join("auth.json");
    let skopeo = async |environment: &[(&str, String)]| {
        let reference = setting.reference();
        let arguments = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &reference];
        let named = [environment, &[("REGISTRY_AUTH_FILE", auth.display().to_string())]].concat();
        setting.run(Path::new("skopeo"), &arguments, &named, "").await
    };
    std::fs::write(&auth, "{}")?;
    let output = skopeo(&setting.credentials()).await?;
    ensure!(!output.status.success(), "{output:?}");
    std::fs::write(&auth, json!({ "credHelpers": { setting.stopover.address(): "stopover" } }).to_string())?;
    let output = skopeo(&setting.credentials()).await?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(String::from_utf8(output.stdout)?.trim() == setting.image.digest);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stopover_login_logs_a_client_in() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let auth = setting.directory.path().join("auth.json").display().to_string();
    let server = format!("http://{}", setting.stopover.address());
    let arguments =
        ["login", "skopeo", "--server", &server, "--", "--tls-verify=false", "--authfile", &auth].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = setting.run(&binary()?, &arguments, &setting.credentials(), "").await?;
    ensure!(output.status.success(), "{output:?}");
    let reference = setting.reference();
    let inspect = ["inspect", "--tls-verify=false", "--authfile", &auth, &reference];
    let output = setting.run(Path::new("skopeo"), &inspect, &[], "").await?;
    ensure!(output.status.success(), "{output:?}");
    // Somebody who is not let in is told so by the client.
    let stranger = Signer::user("999999999999", "me");
    setting.sts.know(&stranger);
    let theirs = [
        ("AWS_ACCESS_KEY_ID", stranger.key_id.clone()),
        ("AWS_SECRET_ACCESS_KEY", stranger.secret.clone()),
        ("AWS_REGION", "eu-west-1".to_owned()),
    ];
    let output = setting.run(&binary()?, &arguments, &theirs, "").await?;
    ensure!(!output.status.success(), "{output:?}");
    ensure!(String::from_utf8(output.stderr.clone())?.contains("invalid username/password"), "{output:?}");
    // Who they are to the cache they hear with a pull.
    std::fs::write(&auth, json!({ "credHelpers": { setting.stopover.address(): "stopover" } }).to_string())?;
    let output = setting.run(Path::new("skopeo"), &inspect, &theirs, "").await?;
    let text = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && text.contains("user/me is not let in"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_log_in_as_this_machine() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let server = format!("http://{}", setting.stopover.address());
    let image = format!("{UPSTREAM}/{}:{}", setting.image.name, setting.image.tag);
    let arguments = ["refresh", "--server", &server, &image];
    let output = setting.run(&binary()?, &arguments, &setting.credentials(), "").await?;
    let text = String::from_utf8([output.stdout, output.stderr].concat())?;
    ensure!(output.status.success() && text.contains(&setting.image.digest), "{text}");
    let other = [setting.credentials(), vec![("STOPOVER_SERVICE", "other.test".to_owned())]].concat();
    let output = setting.run(&binary()?, &arguments, &other, "").await?;
    let text = String::from_utf8([output.stdout, output.stderr].concat())?;
    ensure!(!output.status.success() && text.contains("refuses the login as aws: 401"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_gets_logins_of_the_node_and_of_service_accounts() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let image = format!("{}/{UPSTREAM}/team/app:v1", setting.stopover.address());
    let request = |token: &str| {
        json!({
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": image,
            "serviceAccountToken": token, "serviceAccountAnnotations": { "a": "b" },
        })
    };
    let token = setting.issuer.token("ES256", &setting.claims()?);
    for (token, user) in [("", "aws"), (token.as_str(), "oidc")] {
        let arguments = ["kubelet-credential-provider"];
        let output = setting.run(&binary()?, &arguments, &setting.credentials(), &request(token).to_string()).await?;
        ensure!(output.status.success(), "{output:?}");
        let response: Value = serde_json::from_slice(&output.stdout)?;
        let auth = &response["auth"][setting.stopover.address()];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let login = (text(&auth["username"]), text(&auth["password"]));
        ensure!(login.0 == user && setting.answers(&login).await? == StatusCode::OK, "{response}");
        for (name, value) in [
            ("apiVersion", "credentialprovider.kubelet.k8s.io/v1"),
            ("kind", "CredentialProviderResponse"),
            ("cacheKeyType", "Registry"),
            ("cacheDuration", "5m0s"),
        ] {
            ensure!(response[name] == value, "{response}");
        }
    }
    for wrong in ["", "{}", &request("").to_string().replace("/v1\"", "/v2\""), &request("").to_string()[..40]] {
        let output = setting.run(&binary()?, &["kubelet-credential-provider"], &[], wrong).await?;
        ensure!(!output.status.success() && output.stdout.is_empty(), "{wrong}");
    }
    Ok(())
}

/// A client that finds the helper for this cache, and there these credentials.
fn node_with_the_helper(setting: &Setting, credentials: &[(&'static str, String)]) -> anyhow::Result<Node> {
    let node = Node::new()?;
    let configuration = json!({ "credHelpers": { setting.stopover.address(): "stopover" } }).to_string();
    // podman reads the one, docker the other.
    node.write("auth.json", &configuration)?;
    node.write(".docker/config.json", &configuration)?;
    let (auth, docker) = (node.path("auth.json").into_os_string(), node.path(".docker").into_os_string());
    let path = format!("{}:{}", setting.directory.path().display(), std::env::var("PATH")?);
    let mut node = node.with(("REGISTRY_AUTH_FILE", auth)).with(("DOCKER_CONFIG", docker)).with(("PATH", path.into()));
    let server = format!("http://{}", setting.stopover.address());
    for (name, value) in
        [("STOPOVER_SERVER", &*server), ("STOPOVER_SERVICE", "cr.test"), ("AWS_EC2_METADATA_DISABLED", "true")]
    {
        node = node.with((name, value.into()));
    }
    Ok(credentials.iter().fold(node, |node, (name, value)| node.with((*name, value.into()))))
}

/// Somebody whom STS knows and this cache does not let in, and somebody with a secret that is not theirs.
fn others(setting: &Setting) -> [(Vec<(&'static str, String)>, &'static str); 2] {
    let stranger = Signer::user("999999999999", "me");
    setting.sts.know(&stranger);
    let with = |key: &str, secret: &str| {
        let named = [("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_REGION", "eu-west-1")];
        named.map(|(name, value)| (name, value.to_owned())).to_vec()
    };
    [
        (with(&stranger.key_id, &stranger.secret), "user/me is not let in"),
        (with(&stranger.key_id, "of somebody else"), "the user name or the secret is wrong"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pulls_with_the_helper_and_says_why_not() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let reference = setting.reference().replace("docker://", "");
    let pull = ["pull", "--quiet", "--tls-verify=false", &reference];
    for (credentials, words) in others(&setting) {
        let said = node_with_the_helper(&setting, &credentials)?.run("podman", &pull).await;
        let said = format!("{:#}", said.err().context("podman pulled")?);
        ensure!(said.contains(words), "{said}");
    }
    let node = node_with_the_helper(&setting, &setting.credentials())?;
    node.run("podman", &pull).await.with_context(|| setting.stopover.log())?;
    let digest = node.run("podman", &["image", "inspect", "--format", "{{.Digest}}", &reference]).await?;
    ensure!(digest.trim() == setting.image.digest, "podman pulled {digest}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pulls_with_the_helper_and_says_why_not() -> anyhow::Result<()> {
    let setting = Setting::start().await?;
    let reference = setting.reference().replace("docker://", "");
    let pull = ["pull", "--quiet", &reference];
    for (credentials, words) in others(&setting).into_iter().chain([(setting.credentials(), "")]) {
        let mut node = node_with_the_helper(&setting, &credentials)?;
        node.write("daemon.json", "{}")?;
        let (_containerd, _dockerd) = (node.start_containerd().await?, node.start_dockerd().await?);
        if let Err(error) = node.run("docker", &pull).await {
            ensure!(!words.is_empty() && format!("{error:#}").contains(words), "{error:#}");
            continue;
        }
        ensure!(words.is_empty(), "docker pulled without {words}");
        let inspect = ["image", "inspect", "--format", "{{.RepoDigests}}", &reference];
        let digests = node.run("docker", &inspect).await?;
        ensure!(digests.contains(&setting.image.digest), "docker pulled {digests}");
    }
    Ok(())
}
