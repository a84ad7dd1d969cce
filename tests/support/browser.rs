//! Chromium, driven as `WebDriver` says (W3C, with the extensions of `ChromeDriver`).

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// A browser of its own profile, new and empty, that talks to nothing by itself.
const ARGUMENTS: [&str; 10] = [
    "--headless=new",
    "--no-sandbox",
    // Where that is small, pages end without a word.
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    // For what is no secure context: a name that is no name of this machine.
    "--host-resolver-rules=MAP cache.test 127.0.0.1",
];

/// How long a browser may take to start, and a page to become what is expected: several start at once on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// How many run at once: each is several processes.
static AT_ONCE: Semaphore = Semaphore::const_new(2);

/// What `WebDriver` calls an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A running browser. Dropping it ends it.
pub struct Browser {
    http: reqwest::Client,
    session: String,
    driver: Child,
    _profile: TempDir,
    _permit: SemaphorePermit<'static>,
}

impl Browser {
    /// Starts it.
    pub async fn start() -> Result<Self> {
        let permit = AT_ONCE.acquire().await?;
        let profile = TempDir::new()?;
        let mut driver = Command::new("chromedriver");
        // A group of its own, so that nothing of the browser stays behind.
        driver
            .arg("--port=0")
            .envs(["HOME", "TMPDIR"].map(|name| (name, profile.path())))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        let mut driver = driver.kill_on_drop(true).spawn().context("chromedriver: `make setup` installs it")?;
        let mut lines = BufReader::new(driver.stdout.take().context("no output")?).lines();
        let mut port = None;
        while port.is_none() {
            let line = timeout(PATIENCE, lines.next_line()).await??.context("chromedriver has ended")?;
            port =
                line.split_once("started successfully on port ").map(|(_, port)| port.trim_end_matches('.').to_owned());
        }
        // What it says later fills no pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let http = crate::http();
        let driver_url = format!("http://127.0.0.1:{}/session", port.context("no port")?);
        let profile_argument = format!("--user-data-dir={}", profile.path().display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([profile_argument.as_str()]).collect();
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "timeouts": { "script": PATIENCE.as_millis() }, "goog:loggingPrefs": { "browser": "ALL" },
            "goog:chromeOptions": { "args": arguments },
        } } });
        let answer = ask(&http, Method::POST, &driver_url, &capabilities).await?;
        let id = answer["sessionId"].as_str().with_context(|| answer.to_string())?;
        Ok(Self { session: format!("{driver_url}/{id}"), http, driver, _profile: profile, _permit: permit })
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value> {
        ask(&self.http, Method::POST, &format!("{}/{path}", self.session), &body).await
    }

    /// A command of the Chrome `DevTools` protocol.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Result<()> {
        self.post("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await.map(drop)
    }

    /// Opens an address, and waits until it is loaded.
    pub async fn open(&self, url: &str) -> Result<()> {
        self.post("url", json!({ "url": url })).await.map(drop)
    }

    /// What a script in the page returns.
    pub async fn run(&self, script: &str) -> Result<Value> {
        self.post("execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// What a script in the page hands to `done`.
    pub async fn run_async(&self, script: &str) -> Result<Value> {
        let script = format!("const done = arguments[arguments.length - 1]; {script}");
        self.post("execute/async", json!({ "script": script, "args": [] })).await
    }

    /// Waits until an expression is true in the page. While one page takes the place of another there may be none.
    pub async fn until(&self, expression: &str) -> Result<()> {
        let (script, deadline) = (format!("return Boolean({expression})"), Instant::now() + PATIENCE);
        loop {
            let found = self.run(&script).await;
            if found.as_ref().is_ok_and(|found| *found == true) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let text = self.run("return document.body?.innerText").await;
                bail!("{expression} does not become true: {found:?} in:\n{text:?}");
            }
            // The page says nothing of its changes to the outside: it is asked.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn element(&self, selector: &str) -> Result<String> {
        let found = self.post("element", json!({ "using": "css selector", "value": selector })).await?;
        Ok(found[ELEMENT].as_str().with_context(|| format!("{selector}: {found}"))?.to_owned())
    }

    /// Clicks the first element that a selector finds.
    pub async fn click(&self, selector: &str) -> Result<()> {
        let element = self.element(selector).await?;
        self.post(&format!("element/{element}/click"), json!({})).await.map(drop)
    }

    /// Types a text into it.
    pub async fn type_into(&self, selector: &str, text: &str) -> Result<()> {
        let element = self.element(selector).await?;
        self.post(&format!("element/{element}/value"), json!({ "text": text })).await.map(drop)
    }

    /// Presses and releases a key: a character, or one that `WebDriver` has for keys without one.
    pub async fn press(&self, key: char) -> Result<()> {
        let [down, up] = ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key }));
        let actions = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": [down, up] }] });
        self.post("actions", actions).await.map(drop)
    }

    /// Makes the window so wide, on a phone or not, and the person prefer these colours.
    pub async fn look(&self, width: u32, colours: &str) -> Result<()> {
        let size = json!({ "width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await?;
        let colours = json!({ "features": [{ "name": "prefers-color-scheme", "value": colours }] });
        self.devtools("Emulation.setEmulatedMedia", colours).await
    }

    /// What was written to the console since it was asked last.
    pub async fn console(&self) -> Result<Vec<String>> {
        let entries = self.post("se/log", json!({ "type": "browser" })).await?;
        let entries = entries.as_array().context("no list")?;
        Ok(entries.iter().map(|entry| format!("{}: {}", entry["level"], entry["message"])).collect())
    }

    /// Keeps a picture of what is seen, for people to look at, in `target/screenshots`.
    pub async fn picture(&self, name: &str) -> Result<PathBuf> {
        let picture = ask(&self.http, Method::GET, &format!("{}/screenshot", self.session), &Value::Null).await?;
        let test = std::env::current_exe()?;
        let directory =
            test.ancestors().nth(3).context("the test does not lie in a target directory")?.join("screenshots");
        std::fs::create_dir_all(&directory)?;
        let path = directory.join(format!("{name}.png"));
        std::fs::write(&path, BASE64_STANDARD.decode(picture.as_str().context("no picture")?)?)?;
        Ok(path)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // All processes of the group, whose number is that of its first.
        if let Some(id) = self.driver.id() {
            let _ = std::process::Command::new("kill").args(["-KILL", "--", &format!("-{id}")]).status();
        }
    }
}

/// Sends a command, and returns the value of its answer.
async fn ask(http: &reqwest::Client, method: Method, url: &str, body: &Value) -> Result<Value> {
    let request = http.request(method, url).timeout(PATIENCE);
    let request = if body.is_null() { request } else { request.body(body.to_string()) };
    let answer = request.send().await?;
    let status = answer.status();
    let mut answer: Value = serde_json::from_slice(&answer.bytes().await?)?;
    ensure!(status.is_success(), "{url}: {status}: {}", answer["value"]["message"]);
    Ok(answer["value"].take())
}
